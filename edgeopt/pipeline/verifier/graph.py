"""The verifier's rows for captured and for quantized graphs.

`ExportedProgram.validate()` accepts wrong shapes, stale values, dead nodes and in-place
operators, so the rows here look for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.devices.profile import Compute, load_rules
from edgeopt.ir import edges, program
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.pipeline.verifier.invariant import Row, Step, Violation
from edgeopt.quant.plan import Shared
from edgeopt.quant.ranges import bias_code_limit
from edgeopt.quant.reading import QuantNode, edge_of, quant_nodes, read


def _programs(step: Step) -> Iterator[tuple[str, ExportedProgram]]:
    yield from step.state.carrier_programs.items()


def well_formed(step: Step) -> Iterator[Violation]:
    """The graph passes `graph.lint()` and `program.validate()`."""
    for name, exported in _programs(step):
        try:
            exported.graph.lint()
            exported.validate()
        except Exception as failure:
            lines = str(failure).strip().splitlines() or ["no message"]
            yield Violation("well-formed", name, lines[0])


def shapes(step: Step) -> Iterator[Violation]:
    """Each tensor has the shape and type that its placeholder says."""
    for _, exported in _programs(step):
        table, names = program.tensors(exported), program.tensor_names(exported)
        for node in exported.graph.nodes:
            if node.op != "placeholder" or node.name not in names:
                continue
            value, told = table[names[node.name]], node.meta.get("val")
            if not isinstance(told, Tensor):
                yield Violation("shapes", names[node.name], "its placeholder has no value")
            elif tuple(value.shape) != tuple(told.shape) or value.dtype != told.dtype:
                yield Violation(
                    "shapes",
                    names[node.name],
                    f"is {tuple(value.shape)} {value.dtype}, but the graph says "
                    f"{tuple(told.shape)} {told.dtype}",
                )


def fresh_meta(step: Step) -> Iterator[Violation]:
    """Each call's recorded shape and type is what its inputs give."""
    for _, exported in _programs(step):
        for node in exported.graph.nodes:
            told = node.meta.get("val")
            if node.op != "call_function" or not isinstance(told, Tensor):
                continue
            arguments = [*node.all_input_nodes]
            if any("val" not in n.meta for n in arguments):
                yield Violation("fresh-meta", node.name, "an argument has no value")
                continue
            mode = getattr(told, "fake_mode", None)
            if mode is None:
                continue
            fresh = program.fake_call(node, mode)
            same = fresh.dtype == told.dtype and len(fresh.shape) == len(told.shape)
            sizes = zip(fresh.shape, told.shape, strict=False)
            if not same or any(str(a) != str(b) for a, b in sizes if _known(a) and _known(b)):
                yield Violation(
                    "fresh-meta",
                    node.name,
                    f"gives {tuple(fresh.shape)} {fresh.dtype}, but the graph says "
                    f"{tuple(told.shape)} {told.dtype}",
                )


def _known(size: object) -> bool:
    return isinstance(size, int)


def no_dead(step: Step) -> Iterator[Violation]:
    """No compute node without readers, no weight without readers (capture may leave buffers)."""
    for _, exported in _programs(step):
        names = program.tensor_names(exported)
        for node in exported.graph.nodes:
            if node.users or node.op == "output":
                continue
            if node.op == "call_function" and not _is_assertion(node):
                yield Violation("no-dead", node.name, "nobody reads it")
            elif node.op == "placeholder" and node.name in names:
                yield Violation("no-dead", names[node.name], "nobody reads this tensor")


def _is_assertion(node: Node) -> bool:
    return "assert" in str(node.target) or "sym_constrain" in str(node.target)


def functional(step: Step) -> Iterator[Violation]:
    """No operator writes into its inputs."""
    for _, exported in _programs(step):
        for node in exported.graph.nodes:
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable:
                yield Violation("functional", node.name, f"{node.target} writes into its input")


def provenance(step: Step) -> Iterator[Violation]:
    """Each compute node knows its site."""
    for _, exported in _programs(step):
        for node in exported.graph.nodes:
            if node.op == "call_function" and edges.site_of(node) is None:
                yield Violation("provenance", node.name, "has no site")


def ranges(step: Step) -> Iterator[Violation]:
    """Dynamic-shape constraints are unchanged."""
    before, after = step.before.ranges, step.after.ranges
    if before and before != after:
        yield Violation("ranges", "", "the dynamic-shape constraints changed")


# --- quantized graphs ----------------------------------------------------------------------------


def _quantized(step: Step) -> Iterator[tuple[ExportedProgram, QuantNode]]:
    for _, exported in _programs(step):
        for found in quant_nodes(exported):
            yield exported, found


def qparams(step: Step) -> Iterator[Violation]:
    """Scales finite and positive, zero points legal, channel counts as the axis says."""
    for _, found in _quantized(step):
        scale, zero = found.params.scale, found.params.zero_point
        where = found.node.name
        if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            yield Violation("qparams", where, "a scale is not finite and positive")
        info = torch.iinfo(zero.dtype)
        low = info.min if found.qmin is None else found.qmin
        high = info.max if found.qmax is None else found.qmax
        codes = zero.to(torch.int64)  # torch compares no uint16
        if bool((codes < low).any()) or bool((codes > high).any()):
            yield Violation("qparams", where, f"a zero point lies outside [{low}, {high}]")
        if found.params.axis is not None:
            value = found.node.args[0]
            assert isinstance(value, Node)
            channels = value.meta["val"].shape[found.params.axis]
            if scale.numel() != channels:
                yield Violation("qparams", where, f"{scale.numel()} scales for {channels} channels")


def shared_parameters(step: Step) -> Iterator[Violation]:
    """Edges that the plan shares really have one scale and zero point."""
    plan = step.state.plan
    if plan is None:
        return
    for method, exported in _programs(step):
        found = {edge_of(q.node): q for q in quant_nodes(exported)}
        for row in plan.edges[method]:
            if not isinstance(row.source, Shared) or row.spec is None:
                continue
            mine, theirs = found.get(row.edge), found.get(row.source.edge)
            if mine is None or theirs is None:
                continue
            same = torch.equal(mine.params.scale, theirs.params.scale) and torch.equal(
                mine.params.zero_point, theirs.params.zero_point
            )
            if not same:
                yield Violation("shared", row.address, f"differs from {row.source.edge}")


def allowed_by_target(step: Step) -> Iterator[Violation]:
    """Every quantized operator, width and granularity is one that the rule set lists."""
    plan = step.state.plan
    if plan is None:
        return
    rules = load_rules(plan.rules)
    for row in plan:
        if row.spec is None:
            continue
        operator = row.address.rpartition(":")[2].partition("#")[0]
        weighted = rules.rule(operator).compute in (Compute.WEIGHTED, Compute.TABLE)
        if row.role.value == "weight" and not weighted:
            yield Violation("target", row.address, f"{rules.name} has no integer {operator}")
        wish = rules.weight if row.role.value == "weight" else rules.activation
        widths = (wish.bits,) if wish is rules.weight else (wish.bits, *rules.activation_bits)
        if row.role.value in ("weight", "input", "output", "constant") and (
            row.spec.bits > max(widths) or row.spec.granularity is not wish.granularity
        ):
            yield Violation("target", row.address, f"{row.spec} is not what {rules.name} takes")


_MULTIPLY_BY_WEIGHT = frozenset(
    {"linear"} | {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
)


def weighted_operands(
    exported: ExportedProgram,
) -> Iterator[tuple[Node, QuantNode, QuantNode, Tensor, Tensor | None]]:
    """Yield (operator, its input's dequantize, its weight's, weight codes, float bias or None)."""
    table, names = program.tensors(exported), program.tensor_names(exported)
    for node in exported.graph.nodes:
        if node.op != "call_function" or edges.operator_name(node) not in _MULTIPLY_BY_WEIGHT:
            continue
        arguments = [a if isinstance(a, Node) else None for a in node.args[:3]]
        if arguments[0] is None or arguments[1] is None:
            continue
        activation = read(arguments[0], table, names)
        weight = read(arguments[1], table, names)
        if activation is None or weight is None or activation.node.target is not DEQUANTIZE:
            continue
        codes_node = weight.node.args[0]
        if not isinstance(codes_node, Node) or codes_node.name not in names:
            continue
        bias = arguments[2] if len(arguments) > 2 else None
        value = None
        if bias is not None:
            if bias.op == "placeholder" and bias.name in names:
                value = table[names[bias.name]]
            else:
                found = read(bias, table, names)
                if found is not None and isinstance(bias.args[0], Node):
                    codes = table[names[bias.args[0].name]]
                    value = codes.float() * found.params.scale
        yield node, activation, weight, table[names[codes_node.name]], value


def bias_grid(step: Step) -> Iterator[Violation]:
    """Each bias lies on its int32 grid `s_x * s_w`, with codes of at most 2^24."""
    for _, exported in _programs(step):
        for node, activation, weight, _, bias in weighted_operands(exported):
            if bias is None:
                continue
            grid = activation.params.scale.float() * weight.params.scale.float()
            codes = bias.double() / grid.double()
            off = (codes - codes.round()).abs().max().item()
            # float32 rounding of code * grid: half an ulp of a 24-bit code
            if off > 0.5 * 2.0**-23 * max(1.0, codes.abs().max().item()) * 4:
                yield Violation("bias-grid", node.name, f"a bias lies {off:.3g} codes off its grid")
            limit = bias_code_limit(activation.codes_dtype)
            if codes.abs().max().item() > limit:
                yield Violation("bias-grid", node.name, f"a bias code exceeds {limit}")


def accumulator(step: Step) -> Iterator[Violation]:
    """The accumulator cannot overflow: interval bound from the codes themselves."""
    plan = step.state.plan
    rules = load_rules(plan.rules) if plan is not None else None
    for _, exported in _programs(step):
        for node, activation, weight, codes, bias in weighted_operands(exported):
            zero = int(activation.params.zero_point.reshape(-1)[0])
            low, high = _code_range(activation.codes_dtype)
            reach = max(high - zero, zero - low)
            axis = weight.params.axis or 0
            rows = codes.movedim(axis, 0).reshape(codes.shape[axis], -1).abs().sum(1).double()
            bound = rows * reach
            if bias is not None:
                grid = activation.params.scale.double() * weight.params.scale.double()
                bound = bound + (bias.double() / grid).abs()
            bits = 32
            if rules is not None:
                wide = max(-low, high) > 255
                bits = rules.wide_accumulator_bits if wide else rules.accumulator_bits
            if bound.max().item() >= 2.0 ** (bits - 1):
                yield Violation(
                    "accumulator",
                    node.name,
                    f"can reach {bound.max().item():.3g}, past int{bits}",
                )


def _code_range(codes_dtype: str) -> tuple[int, int]:
    bits = int(codes_dtype.lstrip("uint"))
    return (
        (0, 2**bits - 1)
        if codes_dtype.startswith("u")
        else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def planned_edges_quantized(step: Step) -> Iterator[Violation]:
    """Every edge that the plan quantizes carries a quantize or dequantize node."""
    plan = step.state.plan
    if plan is None:
        return
    for method, exported in _programs(step):
        present = {edge_of(n) for n in exported.graph.nodes if n.target in (QUANTIZE, DEQUANTIZE)}
        for row in plan.edges[method]:
            if row.spec is not None and row.role.value != "bias" and row.edge not in present:
                yield Violation("planned", row.address, "is planned, but not quantized")


GRAPH: tuple[Row, ...] = (
    Row("well-formed", well_formed),
    Row("shapes", shapes),
    Row("fresh-meta", fresh_meta),
    Row("no-dead", no_dead),
    Row("functional", functional),
    Row("provenance", provenance),
    Row("ranges", ranges),
)
QUANTIZED: tuple[Row, ...] = (
    Row("qparams", qparams),
    Row("shared", shared_parameters),
    Row("target", allowed_by_target),
    Row("planned", planned_edges_quantized),
    Row("bias-grid", bias_grid),
    Row("accumulator", accumulator),
)
