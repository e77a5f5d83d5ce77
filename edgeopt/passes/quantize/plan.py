"""Decide, edge by edge, what is quantized and how."""

from __future__ import annotations

import dataclasses

from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.devices.rules import RuleSet, load_rules
from edgeopt.errors import ConfigError, PreconditionError
from edgeopt.ir import edges
from edgeopt.ir.edges import EdgeId, require_site
from edgeopt.passes.quantize.code_placement import Placement, Placer, Weighted
from edgeopt.pipeline.compiler_pass import Pass, PassResult
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.state import Effect, ModelState, Phase, Stage
from edgeopt.quant.plan import Derived, Own, Plan, PlannedEdge, Shared
from edgeopt.quant.spec import Role, TensorSpec


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Options of `plan`.

    Attributes:
        weight_bits: Width of weight codes, or 0: the rule set's. 7 keeps u8 x s8 sums from
            saturating on a CPU without VNNI.
        activation_bits: Width of activation codes, or 0: the rule set's. 16 on runtimes that take
            it: slower, and nearly as exact as float.
        keep_float: Address globs that stay float, besides those of the recipe and command line.
    """

    weight_bits: int = 0
    activation_bits: int = 0
    keep_float: tuple[str, ...] = ()


class PlanQuantization(Pass[PlanConfig]):
    """Make the quantization plan from the target's rule set. The graph is not touched.

    Inputs, weights and biases of weighted operators are quantized; outputs where the runtime's
    kernel must write codes; operators with an integer kernel where all that they read are codes;
    operators that only move codes share the parameters of what they move. An activation that a
    range expresses (ReLU, ReLU6) is absorbed: the codes stand behind it. An embedding that is tied
    to an integer head picks rows of the head's codes, so that one table serves both. Where the
    rules say so, stored operands (position embeddings, weights of normalizations) become codes as
    well, and the whole graph is carried as codes. What stays float is a line of the plan too, with
    the reason.
    """

    name = "plan"
    config_type = PlanConfig
    stage = Stage.GRAPH
    effect = Effect.EQUIVALENT
    from_phase = Phase.FLOAT
    to_phase = Phase.PLANNED

    def run(self, state: ModelState, ctx: PassContext) -> PassResult:
        rules = self._rules(load_rules(ctx.target.rules))
        keep = {p: "kept float: the recipe or command line says so" for p in ctx.keep_float}
        keep |= {p: "kept float by the plan's options" for p in self.config.keep_float}
        self._refuse_idle(keep, state)
        sparse = {c.fqn for c in state.contracts if isinstance(c, NMSparse)}
        lines: dict[str, tuple[PlannedEdge, ...]] = {}
        changes: dict[str, str] = {}
        skipped: dict[str, str] = {}
        for method, exported in state.carrier_programs.items():
            placement = Placer(exported, rules, keep, sparse.__contains__).place()
            lines[method] = _lines(exported, placement, rules)
            for weighted in placement.weighted:
                changes[require_site(weighted.node).address] = "integer"
            for table in placement.tables:
                owner = require_site(table.weighted.node).address
                changes[require_site(table.node).address] = f"rows of the codes of {owner}"
            if rules.whole_graph:
                for value in placement.values:
                    if value.op == "call_function":
                        changes.setdefault(require_site(value).address, "integer")
            for node, reason in placement.stays_float.items():
                skipped[require_site(node).address] = reason
        if not changes:
            raise PreconditionError(
                f"plan: no operator of the model can be quantized by the rules of {rules.name}"
                + "".join(f" (first: {site}: {why})" for site, why in [*skipped.items()][:1])
            )
        plan = Plan(rules=rules.name, target=ctx.target.name, edges=lines)
        after = dataclasses.replace(state, plan=plan, phase=Phase.PLANNED)
        return PassResult(after, changes, skipped)

    def _rules(self, rules: RuleSet) -> RuleSet:
        bits = self.config.weight_bits or rules.weight.bits
        if bits > rules.weight.bits:
            raise ConfigError(f"plan: {rules.name} takes weights of {rules.weight.bits} bits")
        wide = self.config.activation_bits or rules.activation.bits
        if wide not in (rules.activation.bits, *rules.activation_bits):
            known = " or ".join(map(str, sorted({rules.activation.bits, *rules.activation_bits})))
            raise ConfigError(f"plan: {rules.name} takes activations of {known} bits, not {wide}")
        return dataclasses.replace(
            rules,
            weight=dataclasses.replace(rules.weight, bits=bits),
            activation=dataclasses.replace(rules.activation, bits=wide),
        )

    def _refuse_idle(self, keep: dict[str, str], state: ModelState) -> None:
        for pattern in keep:
            hit = any(
                edges.matches(pattern, f"{site.address}.out")
                for exported in state.carrier_programs.values()
                for _, site in edges.sites(exported.graph)
            )
            if not hit:
                raise ConfigError(f"plan: --keep-float {pattern!r} matches no operator")


def _lines(
    exported: ExportedProgram, placement: Placement, rules: RuleSet
) -> tuple[PlannedEdge, ...]:
    by_node: dict[Node, list[PlannedEdge]] = {}
    for value in placement.values:
        root = placement.groups.root(value)
        source = Own() if root is value else Shared(_owner(root, placement))
        line = _line(value, "out", Role.OUTPUT, rules.activation, source)
        by_node.setdefault(value, []).append(
            dataclasses.replace(
                line,
                codes_only=value in placement.codes_only,
                fixed_range=rules.rule(edges.operator_name(value)).output_range or None,
            )
        )
        for reader, index in placement.ports.get(value, []):
            by_node.setdefault(reader, []).append(
                _line(
                    reader, f"in{index}", Role.INPUT, rules.activation, Shared(_edge(value, "out"))
                )
            )
    owners = placement.owners
    for constant in placement.constants:
        owner = _owner(placement.groups.root(constant), placement)
        for reader, index in placement.ports[constant]:
            port = _edge(reader, f"in{index}")
            source = Own() if port == owner else Shared(owner)
            by_node.setdefault(reader, []).append(
                _line(reader, port.port, Role.CONSTANT, rules.activation, source)
            )
    for weighted in placement.weighted:
        found = _weight_lines(weighted, owners[weighted.weight].node, rules)
        by_node.setdefault(weighted.node, []).extend(found)
    for table in placement.tables:
        source = Shared(_edge(table.weighted.node, "in1"))
        by_node.setdefault(table.node, []).append(
            _line(table.node, "in0", Role.WEIGHT, rules.weight, source)
        )
    for node, reason in placement.stays_float.items():
        by_node.setdefault(node, []).append(
            PlannedEdge(
                _edge(node, "in1"), edges.address(node, "in1"), Role.WEIGHT, None, Own(), reason
            )
        )
    return tuple(
        line
        for node in exported.graph.nodes
        for line in sorted(by_node.get(node, []), key=lambda row: row.edge.port)
    )


def _owner(root: Node, placement: Placement) -> EdgeId:
    """Return the edge that owns a value's parameters: of a constant, the first that reads it."""
    if root in placement.constants:
        reader, index = placement.ports[root][0]
        return _edge(reader, f"in{index}")
    return _edge(root, "out")


def _weight_lines(weighted: Weighted, first: Node, rules: RuleSet) -> list[PlannedEdge]:
    node = weighted.node
    # Calls of one module read one weight: the first call owns its parameters.
    source = Own() if first is node else Shared(_edge(first, "in1"))
    found = [_line(node, "in1", Role.WEIGHT, rules.weight, source)]
    if weighted.bias is not None:
        spec = TensorSpec(
            bits=rules.bias_bits,
            signed=True,
            symmetric=True,
            granularity=rules.weight.granularity,
            axis=0,
        )
        derived = Derived((_edge(node, "in0"), _edge(node, "in1")))
        found.append(_line(node, "in2", Role.BIAS, spec, derived))
    return found


def _edge(node: Node, port: str) -> EdgeId:
    return EdgeId(require_site(node).id, port)


def _line(
    node: Node, port: str, role: Role, spec: TensorSpec, source: Own | Shared | Derived
) -> PlannedEdge:
    return PlannedEdge(_edge(node, port), edges.address(node, port), role, spec, source)
