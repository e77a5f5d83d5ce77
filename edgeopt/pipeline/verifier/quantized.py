"""Invariants of quantized graphs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.devices.rules import Compute, load_rules
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE
from edgeopt.pipeline.verifier.graph import step_programs
from edgeopt.pipeline.verifier.invariant import Row, Step, Violation
from edgeopt.quant.operands import weighted_operands
from edgeopt.quant.plan import Shared
from edgeopt.quant.ranges import bias_code_limit
from edgeopt.quant.reading import QuantNode, edge_of, quant_nodes


def _quantized(step: Step) -> Iterator[tuple[ExportedProgram, QuantNode]]:
    for _, exported in step_programs(step):
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
    for method, exported in step_programs(step):
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
    rules = load_rules(step.ctx.target.rules)
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


def bias_grid(step: Step) -> Iterator[Violation]:
    """Each bias lies on its int32 grid `s_x * s_w`, with codes of at most 2^24."""
    for _, exported in step_programs(step):
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
    rules = load_rules(step.ctx.target.rules) if plan is not None else None
    for _, exported in step_programs(step):
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
    for method, exported in step_programs(step):
        present = {edge_of(n) for n in exported.graph.nodes if n.target in (QUANTIZE, DEQUANTIZE)}
        for row in plan.edges[method]:
            if row.spec is not None and row.role.value != "bias" and row.edge not in present:
                yield Violation("planned", row.address, "is planned, but not quantized")


QUANTIZED: tuple[Row, ...] = (
    Row("qparams", qparams),
    Row("shared", shared_parameters),
    Row("target", allowed_by_target),
    Row("planned", planned_edges_quantized),
    Row("bias-grid", bias_grid),
    Row("accumulator", accumulator),
)
