"""Decide which values of a graph are carried as codes, from a rule set.

A *value* is what one node computes. The decision is made on values; `plan` then writes one line
for each port around them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.devices.rules import Compute, OperatorRule, RuleSet
from edgeopt.ir import program
from edgeopt.ir.edges import address, flat_arguments, matches, operator_name
from edgeopt.quant.spec import Granularity


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A weighted operator that becomes integer: its ports."""

    node: Node
    activation: Node
    weight: Node
    bias: Node | None


@dataclasses.dataclass(frozen=True)
class Table:
    """An operator that picks rows of a weight whose codes a weighted operator reads as well."""

    node: Node
    weighted: Weighted


_BINARY = frozenset({"add", "sub", "mul"})
_MULTIPLIERS = frozenset(
    {"addmm", "mm", "matmul", "bmm", "baddbmm", "einsum", "bilinear", "lstm", "gru"}
    | {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
)
"""Operators that may multiply by a weight; one without a rule is named, never passed over."""

_SPLITS = frozenset({"split", "chunk", "unbind", "getitem", "split_with_sizes"})


class Groups:
    """Values that share one scale and zero point (union-find over nodes)."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def root(self, node: Node) -> Node:
        """Return the representative of a node's group."""
        while self._parent.get(node, node) is not node:
            node = self._parent[node]
        return node

    def join(self, keep: Node, other: Node) -> None:
        """Put two values into one group; `keep`'s representative stays."""
        a, b = self.root(keep), self.root(other)
        if a is not b:
            self._parent[b] = a


@dataclasses.dataclass
class Placement:
    """The decision for one program.

    Attributes:
        weighted: Weighted operators that become integer, in graph order.
        tables: Operators that pick rows of their weights.
        values: Values that are carried as codes, in graph order.
        constants: Stored tensors that are no weights and become codes, in graph order.
        ports: Value or constant -> (reader, argument index) that read codes.
        codes_only: Values whose producer writes codes, so that no float of them exists.
        groups: Which values share parameters.
        stays_float: Weighted operators that stay float, and under rules for the whole graph any
            other too: node -> reason.
    """

    weighted: list[Weighted] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    values: list[Node] = dataclasses.field(default_factory=list)
    constants: list[Node] = dataclasses.field(default_factory=list)
    ports: dict[Node, list[tuple[Node, int]]] = dataclasses.field(default_factory=dict)
    codes_only: set[Node] = dataclasses.field(default_factory=set)
    groups: Groups = dataclasses.field(default_factory=Groups)
    stays_float: dict[Node, str] = dataclasses.field(default_factory=dict)

    @property
    def owners(self) -> dict[Node, Weighted]:
        """Weight -> the first operator that multiplies by it, which owns its parameters."""
        return {w.weight: w for w in reversed(self.weighted)}


def tensor_arguments(node: Node) -> list[tuple[int, Node]]:
    """Return (flat index, node) for each argument that is a float tensor.

    Indices, conditions and the like are carried by no codes.
    """
    return [
        (index, item)
        for index, item in enumerate(flat_arguments(node))
        if isinstance(item, Node) and _is_float(item)
    ]


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _has_scalar(node: Node) -> bool:
    """Say whether an operator of two tensors takes a number, or scales one of them."""
    if operator_name(node) not in _BINARY:
        return False
    return bool(node.kwargs) or not all(isinstance(a, Node) for a in node.args[:2])


class Placer:
    """Make a `Placement` for one program."""

    def __init__(
        self,
        exported: ExportedProgram,
        rules: RuleSet,
        keep_float: Mapping[str, str],
        is_sparse: Callable[[str], bool],
    ) -> None:
        """Prepare.

        Args:
            exported: The program.
            rules: What the runtime's kernels take.
            keep_float: Address glob -> reason.
            is_sparse: Says of a weight's FQN whether an N:M contract holds for it.
        """
        self._exported = exported
        self._rules = rules
        self._keep_float = keep_float
        self._is_sparse = is_sparse
        self._names = program.tensor_names(exported)
        self._placement = Placement()
        self._wanted: set[Node] = set()
        self._available: set[Node] = set()  # could be codes if somebody wants them
        self._absorbed: set[Node] = set()

    def place(self) -> Placement:
        """Walk the graph once in order, then order the values."""
        eligible = {
            n: w for n in self._exported.graph.nodes if (w := self._eligible(n)) is not None
        }
        readers_left_float = self._weights_read_elsewhere(eligible)
        for node, reason in readers_left_float.items():
            del eligible[node]
            self._placement.stays_float[node] = reason
        for node in self._exported.graph.nodes:
            if node.op == "placeholder" and node.name not in self._names:
                self._available.add(node)
            if node in eligible:
                self._place_weighted(eligible[node])
            elif node.op == "call_function":
                reason = self._place_other(node)
                if reason and self._rules.whole_graph and _is_float(node):
                    self._placement.stays_float.setdefault(node, reason)
        self._share_weights(list(eligible.values()))
        in_order = [n for n in self._exported.graph.nodes if n in self._wanted]
        self._placement.values = [n for n in in_order if not self._is_constant(n)]
        self._placement.constants = [n for n in in_order if self._is_constant(n)]
        return self._placement

    def _is_constant(self, node: Node) -> bool:
        return node.op == "placeholder" and node.name in self._names

    def _kept_float(self, node: Node) -> str:
        where = address(node, "out")
        return next((r for p, r in self._keep_float.items() if matches(p, where)), "")

    def _eligible(self, node: Node) -> Weighted | None:
        if node.op != "call_function":
            return None
        rule = self._rules.rule(operator_name(node))
        if rule.compute is not Compute.WEIGHTED:
            self._name_float_multiplier(node, rule)
            return None
        activation, weight, *rest = (a for a in node.args[:3])
        bias = rest[0] if rest and isinstance(rest[0], Node) else None
        reason = self._kept_float(node)
        if not isinstance(weight, Node) or weight.name not in self._names:
            reason = "its weight is computed at run time"
        elif bias is not None and bias.name not in self._names:
            reason = "its bias is computed at run time"
        elif not isinstance(activation, Node) or activation.name in self._names:
            reason = "its input is a constant"
        if reason:
            self._placement.stays_float[node] = reason
            return None
        assert isinstance(activation, Node)
        assert isinstance(weight, Node)
        return Weighted(node, activation, weight, bias)

    def _name_float_multiplier(self, node: Node, rule: OperatorRule) -> None:
        name = operator_name(node)
        weights = [
            a for a in node.all_input_nodes if a.op == "placeholder" and a.name in self._names
        ]
        if name in _MULTIPLIERS and weights:
            reason = rule.note or f"the rules of {self._rules.name} have no integer {name}"
            self._placement.stays_float[node] = reason

    def _weights_read_elsewhere(self, eligible: dict[Node, Weighted]) -> dict[Node, str]:
        found: dict[Node, str] = {}
        for node, weighted in eligible.items():
            for reader in weighted.weight.users:
                if self._picks_rows(reader, weighted.weight):
                    continue
                same = eligible.get(reader)
                if same is None or same.weight is not weighted.weight:
                    found[node] = (
                        f"its weight is also read by {operator_name(reader)}, which stays float"
                    )
            if weighted.bias is not None:
                for reader in weighted.bias.users:
                    same = eligible.get(reader)
                    if same is None or same.weight is not weighted.weight:
                        found[node] = f"its bias is also read by {operator_name(reader)}"
        return found

    def _picks_rows(self, reader: Node, weight: Node) -> bool:
        """Say whether a reader can take rows of codes: each row of the table has one scale."""
        spec = self._rules.weight
        by_row = spec.granularity is Granularity.TENSOR or (
            spec.granularity is Granularity.CHANNEL and spec.axis == 0
        )
        return (
            by_row
            and self._rules.rule(operator_name(reader)).compute is Compute.TABLE
            and reader.args[0] is weight
            and not self._kept_float(reader)
        )

    def _want(self, value: Node, reader: Node | None = None, index: int = 0) -> None:
        """Carry a value as codes; codes flow back through operators that only move them."""
        self._wanted.add(value)
        if reader is not None:
            ports = self._placement.ports.setdefault(value, [])
            if (reader, index) not in ports:
                ports.append((reader, index))
        if value.op != "call_function" or value not in self._available:
            return
        if self._rules.rule(operator_name(value)).compute is Compute.FOLLOW:
            for at, source in tensor_arguments(value):
                if self._is_constant(source) and not self._takes_constants(value):
                    continue
                if (value, at) not in self._placement.ports.get(source, []):
                    self._want(source, value, at)
                self._placement.groups.join(source, value)
                self._placement.codes_only.add(value)

    def _takes_constants(self, node: Node) -> bool:
        return self._rules.rule(operator_name(node)).constants

    def _tail(self, node: Node) -> Node:
        """Return the last activation that the producer's output range can express."""
        fuses = self._rules.rule(operator_name(node)).fuses
        while len(node.users) == 1:
            (reader,) = node.users
            if reader.op != "call_function" or not self._absorbs(reader):
                break
            if "any" not in fuses and operator_name(reader) not in fuses:
                break
            node = reader
            self._absorbed.add(node)
        return node

    def _absorbs(self, node: Node) -> bool:
        return self._rules.rule(
            operator_name(node)
        ).compute is Compute.ABSORB and not self._kept_float(node)

    def _place_weighted(self, weighted: Weighted) -> None:
        self._placement.weighted.append(weighted)
        self._want(weighted.activation, weighted.node, 0)
        rule = self._rules.rule(operator_name(weighted.node))
        sparse = self._is_sparse(self._names[weighted.weight.name])
        if rule.output == "int8" or (rule.output == "sparse-int8" and sparse):
            tail = self._tail(weighted.node)
            self._available.add(tail)
            floats_wanted = self._only_output(tail) or self._feeds_float(tail)
            if rule.output == "int8" or not floats_wanted:
                self._want(tail)
                self._placement.codes_only.add(tail)

    def _feeds_float(self, node: Node) -> bool:
        """Say whether an operator that wants floats reads the value, or a view of it."""
        for reader in node.users:
            if reader.op != "call_function":
                continue
            rule = self._rules.rule(operator_name(reader))
            if rule.reads == "float":
                return True
            moves = rule.compute is Compute.FOLLOW or operator_name(reader) in _SPLITS
            if moves and self._feeds_float(reader):
                return True
        return False

    def _only_output(self, node: Node) -> bool:
        """Say whether a value leaves the model at once; then floats are what the user wants."""
        return all(reader.op == "output" for reader in node.users)

    def _place_other(self, node: Node) -> str:
        """Decide on an operator without a weight; return why it stays float, or nothing."""
        rule = self._rules.rule(operator_name(node))
        compute = rule.compute
        if compute is Compute.ABSORB:
            if node in self._absorbed or not self._rules.whole_graph:
                return ""
            compute = Compute.INTEGER  # what it reads has other readers, so it runs by itself
        if reason := self._kept_float(node) or self._no_kernel(node, rule, compute):
            return reason
        sources = tensor_arguments(node)
        if compute is Compute.FOLLOW:
            self._available.add(node)
            if self._rules.whole_graph:
                self._want(node)
            return ""
        for index, source in sources:
            self._want(source, node, index)
        tail = self._tail(node)
        self._available.add(tail)
        self._want(tail)
        self._placement.codes_only.add(tail)
        return ""

    def _no_kernel(self, node: Node, rule: OperatorRule, compute: Compute) -> str:
        """Return why no integer kernel takes an operator where it stands, or nothing."""
        if compute not in (Compute.INTEGER, Compute.FOLLOW):
            return rule.note or f"the rules of {self._rules.name} have no {operator_name(node)}"
        sources = [source for _, source in tensor_arguments(node)]
        moving = [s for s in sources if not self._is_constant(s)]
        if not sources or _has_scalar(node):
            return "takes a number, which has no code" if sources else "reads no float tensor"
        if len(moving) < len(sources) and not rule.constants:
            return "a constant operand has no codes"
        if not moving and compute is not Compute.FOLLOW:
            return "reads constants only"
        late = [s for s in moving if s not in self._available and s not in self._wanted]
        if late:
            return f"what it reads stays float ({operator_name(late[0])})"
        inputs = [s for s in moving if s.op == "placeholder" and s not in self._wanted]
        if inputs and not self._rules.whole_graph:
            return "would quantize an input only to move it"
        return ""

    def _share_weights(self, eligible: list[Weighted]) -> None:
        """Calls of one module share the scale of their input, so that they share the bias grid."""
        first = self._placement.owners
        for weighted in eligible:
            owner = first[weighted.weight]
            if owner is not weighted:
                self._placement.groups.join(owner.activation, weighted.activation)
        for weight, owner in first.items():
            self._placement.tables += [
                Table(reader, owner) for reader in weight.users if self._picks_rows(reader, weight)
            ]
