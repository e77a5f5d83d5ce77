"""Insert quantize and dequantize nodes on planned edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.contracts.quantized import Quantized
from edgeopt.ir import edges
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE, quantize, storage_dtype
from edgeopt.ir.edges import EdgeId, operator_name
from edgeopt.ir.editor import ProgramEditor
from edgeopt.quant.plan import PlannedEdge, Shared
from edgeopt.quant.ranges import (
    BIAS_CODE_LIMIT,
    affine_from_range,
    bias_code_limit,
    on_grid,
    raise_for_bias,
    weight_scales,
)
from edgeopt.quant.spec import Affine, Granularity, Role
from edgeopt.quant.statistics import EdgeStatistics

Ranges = dict[EdgeId, tuple[float, float]]
"""Owner of parameters -> smallest and largest real value."""


class Writer:
    """Write one method's plan into a copy of its graph."""

    def __init__(
        self,
        exported: ExportedProgram,
        rows: tuple[PlannedEdge, ...],
        statistics: object,
    ) -> None:
        self._editor = ProgramEditor(exported)
        self._rows = [row for row in rows if row.spec is not None]
        assert isinstance(statistics, dict)
        self._statistics: dict[str, EdgeStatistics] = statistics
        self._node = edges.by_id(self._editor.graph)
        self._codes: dict[EdgeId, Node] = {}  # out edge -> quantize node
        self._params: dict[EdgeId, tuple[Node, Node, Affine]] = {}  # out edge -> placeholders
        self._raw: dict[EdgeId, list[Node]] = {}  # out edge -> readers before anything was added
        self._floats: dict[
            str, Tensor
        ] = {}  # FQN of a constant -> its values before they are codes
        self._stored: set[str] = set()
        self.changes: dict[str, str] = {}
        self.notes: list[str] = []
        self.contracts: list[Quantized] = []

    def write(self) -> ExportedProgram:
        ranges = self._group_ranges()
        constants = [row for row in self._rows if row.role is Role.CONSTANT]
        for row in constants:
            self._quantize_constant(row, ranges)
        outs = [row for row in self._rows if row.role is Role.OUTPUT]
        for row in sorted(outs, key=lambda r: isinstance(r.source, Shared)):
            self._quantize_value(row, ranges)
        inputs = [row for row in self._rows if row.role is Role.INPUT]
        for row in inputs:
            self._dequantize_port(row)
        for row in outs:
            if row.codes_only:
                self._redirect_float_readers(row)
        for row in self._rows:
            if row.role is Role.WEIGHT:
                self._quantize_weight(row)
        return self._editor.finish()

    def _group_ranges(self) -> Ranges:
        """Join the ranges of all values that share parameters, under the owner's edge."""
        joined: dict[EdgeId, tuple[float, float]] = {}
        for row in self._rows:
            if row.role is Role.OUTPUT:
                found = self._statistics[str(row.edge)]
                ends = row.fixed_range or (found.low, found.high)
            elif row.role is Role.CONSTANT:
                ends = _ends(self._constant(row)[1])
            else:
                continue
            ends = max(ends[0], self._mask_floor(row)), ends[1]
            low, high = joined.get(_owner(row), ends)
            joined[_owner(row)] = (min(low, ends[0]), max(high, ends[1]))
        return joined

    def _mask_floor(self, row: PlannedEdge) -> float:
        """Return the value below which a mask hides as well as any: it is added before a softmax.

        The sum saturates at the smallest code of its own range, which is low enough. The range of
        the mask itself would have steps larger than all scores, and kernels that bring both
        addends to one scale would lose the scores.
        """
        node = self._node[row.edge.node]
        if row.role is Role.CONSTANT:
            value, readers = _argument(node, _index(row.edge)), [node]
        else:
            value, readers = node, list(node.users)
        floors = []
        for reader in readers:
            sums = self._measured(reader)
            softmax = all(operator_name(user) == "softmax" for user in reader.users)
            others = [self._measured(a) for a in reader.all_input_nodes if a is not value]
            if operator_name(reader) != "add" or not softmax or sums is None:
                return -float("inf")
            if len(others) != 1 or others[0] is None:
                return -float("inf")
            floors.append(sums.low - others[0].high)
        return min(floors, default=-float("inf"))

    def _measured(self, node: Node) -> EdgeStatistics | None:
        site = edges.site_of(node)
        return self._statistics.get(f"{site.id}.out") if site is not None else None

    def _parameters(
        self, row: PlannedEdge, ranges: Ranges, base: str, bound: float | None
    ) -> tuple[Node, Node, Affine]:
        """Return scale, zero point and both as numbers, made once for all that share them."""
        assert row.spec is not None
        owner = _owner(row)
        if owner not in self._params:
            affine = affine_from_range(*ranges[owner], row.spec, bound)
            self._params[owner] = (
                self._editor.add_buffer(f"{base}_scale", affine.scale),
                self._editor.add_buffer(f"{base}_zero_point", affine.zero_point),
                affine,
            )
        return self._params[owner]

    def _constant(self, row: PlannedEdge) -> tuple[str, Tensor]:
        """Return FQN and float values of the stored tensor at a port."""
        source = _argument(self._node[row.edge.node], _index(row.edge))
        if source.target is DEQUANTIZE:  # another reader's line came first
            source = _argument(source, 0)
        fqn = self._editor.fqn(source)
        assert fqn is not None
        return fqn, self._floats.setdefault(fqn, self._editor.table[fqn].detach().float())

    def _quantize_constant(self, row: PlannedEdge, ranges: Ranges) -> None:
        """Store a constant as codes; whatever else reads it sees the codes too."""
        assert row.spec is not None
        fqn, value = self._constant(row)
        scale, zero, affine = self._parameters(row, ranges, fqn, None)
        placeholder = self._editor.placeholder(fqn)
        if fqn not in self._stored:
            self._stored.add(fqn)
            qmin, qmax, dtype = row.spec.qmin, row.spec.qmax, row.spec.codes_dtype
            codes = quantize(value, affine.scale, affine.zero_point, None, None, dtype, qmin, qmax)
            self._editor.replace(fqn, codes)
            for reader in list(placeholder.users):
                for index in _places(reader, placeholder):
                    new = self._editor.call(
                        DEQUANTIZE,
                        (placeholder, scale, zero, None, None, dtype, torch.float32),
                        parent=reader,
                        suffix=f"dq.in{index}",
                        before=reader,
                    )
                    _replace_argument(reader, index, new)
        self.changes[row.address] = (
            f"{row.spec}, scale {float(affine.scale):.6g}, zero point {int(affine.zero_point)}"
        )
        self.contracts.append(Quantized(row.edge, row.spec, fqn, row.address))

    def _quantize_value(self, row: PlannedEdge, ranges: Ranges) -> None:
        assert row.spec is not None
        node = self._node[row.edge.node]
        base = f"{edges.require_site(node).stem}_out"
        scale, zero, affine = self._parameters(row, ranges, base, _clamp_bound(node))
        self._raw[row.edge] = list(node.users)
        self._codes[row.edge] = self._editor.call(
            QUANTIZE,
            (node, scale, zero, None, None, row.spec.codes_dtype, row.spec.qmin, row.spec.qmax),
            parent=node,
            suffix="q.out",
            after=_after(node, self._editor),
        )
        self.changes[row.address] = (
            f"{row.spec}, scale {float(affine.scale):.6g}, zero point {int(affine.zero_point)}"
        )
        self.contracts.append(Quantized(row.edge, row.spec, address=row.address))

    def _dequantize(self, out: EdgeId, parent: Node, port: str, before: Node) -> Node:
        codes = self._codes[out]
        owner = next(
            (r.source.edge for r in self._rows if r.edge == out and isinstance(r.source, Shared)),
            out,
        )
        scale, zero, _ = self._params[owner]
        return self._editor.call(
            DEQUANTIZE,
            (codes, scale, zero, None, None, codes.args[5], torch.float32),
            parent=parent,
            suffix=f"dq.{port}",
            before=before,
        )

    def _dequantize_port(self, row: PlannedEdge) -> None:
        assert isinstance(row.source, Shared)
        reader = self._node[row.edge.node]
        new = self._dequantize(row.source.edge, reader, row.edge.port, reader)
        _replace_argument(reader, _index(row.edge), new)

    def _redirect_float_readers(self, row: PlannedEdge) -> None:
        """Let every other reader see the codes too, since the producer has no float to give."""
        node = self._node[row.edge.node]
        left = [u for u in self._raw[row.edge] if node in u.all_input_nodes]
        if left:
            new = self._dequantize(row.edge, node, "out", left[0])
            for reader in left:
                reader.replace_input_with(node, new)

    def _quantize_weight(self, row: PlannedEdge) -> None:
        assert row.spec is not None
        if isinstance(row.source, Shared):
            return  # the first call of a shared module did it for all
        source = self._node[row.edge.node].args[1]
        assert isinstance(source, Node)
        fqn = self._editor.fqn(source)
        assert fqn is not None
        spec = row.spec
        weight = self._editor.table[fqn].detach().float()
        # the plan takes a weight only if its readers multiply by it (in1) or pick rows of it (in0)
        calls = [u for u in source.users if u.args[1] is source]
        tables = [u for u in source.users if u.args[0] is source]
        scale = weight_scales(weight, spec)
        scale = self._bias_on_grid(calls, scale, fqn)
        shape = [1] * weight.dim()
        if spec.granularity is Granularity.CHANNEL:
            shape[spec.axis] = -1
        codes = torch.clamp(torch.round(weight / scale.reshape(shape)), spec.qmin, spec.qmax)
        dtype = storage_dtype(spec.codes_dtype if spec.bits in (4, 8, 16) else "int8")
        self._editor.replace(fqn, codes.to(dtype))
        zeros = torch.zeros_like(scale, dtype=dtype)
        scale_node = self._editor.add_buffer(f"{fqn}_scale", scale)
        zero_node = self._editor.add_buffer(f"{fqn}_zero_point", zeros)
        axis = spec.axis if spec.granularity is Granularity.CHANNEL else None
        stored = str(dtype).removeprefix("torch.")
        for reader, index in [*((call, 1) for call in calls), *((table, 0) for table in tables)]:
            new = self._editor.call(
                DEQUANTIZE,
                (source, scale_node, zero_node, axis, None, stored, torch.float32),
                parent=reader,
                suffix=f"dq.in{index}",
                before=reader,
            )
            reader.update_arg(index, new)
        for reading in (r for r in self._rows if row.edge in (r.edge, _shared_with(r))):
            self.changes[reading.address] = f"{spec}"
            self.contracts.append(Quantized(reading.edge, spec, fqn, reading.address))

    def _bias_on_grid(self, calls: list[Node], scale: Tensor, fqn: str) -> Tensor:
        # Layers with a tied weight have biases of their own, and share the input's scale.
        found: dict[str, Tensor] = {}
        limit = BIAS_CODE_LIMIT
        for call in calls:
            bias = call.args[2] if len(call.args) > 2 else None
            bias_fqn = self._editor.fqn(bias) if isinstance(bias, Node) else None
            activation = call.args[0]
            assert isinstance(activation, Node)
            input_scale = self._editor.tensor(activation.args[1])
            assert input_scale is not None
            limit = bias_code_limit(str(activation.args[5]))
            if bias_fqn is not None:
                found[bias_fqn] = input_scale
        for bias_fqn, input_scale in found.items():
            value = self._editor.table[bias_fqn].detach().float()
            scale, raised = raise_for_bias(scale, value, float(input_scale), limit)
            if raised:
                self.notes.append(
                    f"{fqn}: weight scale raised in {len(raised)} channels so that the bias fits "
                    f"2^{limit.bit_length() - 1}"
                )
        for bias_fqn, input_scale in found.items():
            value = self._editor.table[bias_fqn].detach().float()
            self._editor.replace(bias_fqn, on_grid(value, input_scale, scale))
        return scale


def _shared_with(row: PlannedEdge) -> EdgeId | None:
    return row.source.edge if isinstance(row.source, Shared) else None


def _owner(row: PlannedEdge) -> EdgeId:
    return row.source.edge if isinstance(row.source, Shared) else row.edge


def _ends(value: Tensor) -> tuple[float, float]:
    if value.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(value)
    return float(low), float(high)


def _index(edge: EdgeId) -> int:
    return int(edge.port.removeprefix("in"))


def _clamp_bound(node: Node) -> float | None:
    if node.op == "call_function" and operator_name(node) == "hardtanh":
        return float(node.args[2]) if len(node.args) > 2 else 1.0  # type: ignore[arg-type]
    if node.op == "call_function" and operator_name(node) == "relu6":
        return 6.0
    return None


def _after(node: Node, editor: ProgramEditor) -> Node:
    """Return where to insert behind a node; behind the last placeholder for an input."""
    if node.op != "placeholder":
        return node
    return [n for n in editor.graph.nodes if n.op == "placeholder"][-1]


def _argument(reader: Node, index: int) -> Node:
    found = edges.flat_arguments(reader)[index]
    assert isinstance(found, Node)
    return found


def _places(reader: Node, source: Node) -> list[int]:
    return [index for index, item in enumerate(edges.flat_arguments(reader)) if item is source]


def _replace_argument(reader: Node, index: int, new: Node) -> None:
    """Replace one argument, by its port number."""
    position = 0
    args: list[Any] = []
    for argument in reader.args:
        if isinstance(argument, (list, tuple)):
            items = list(argument)
            for offset in range(len(items)):
                if position + offset == index:
                    items[offset] = new
            position += len(items)
            args.append(items)
        else:
            args.append(new if position == index else argument)
            position += 1
    reader.args = tuple(args)
