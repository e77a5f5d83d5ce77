"""Rank layers by what their quantization costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from edgeopt.ir import edges, program
from edgeopt.ir.calls import Batch
from edgeopt.numerics.snr import snr_db
from edgeopt.quant.operands import weighted_operands
from edgeopt.results.structure import DriftRow
from edgeopt.results.verdicts import finite_db


def rank(
    float_program: ExportedProgram, quantized: ExportedProgram, batch: Batch
) -> list[DriftRow]:
    """Compare each integer operator with its float twin on one batch.

    `own_snr_db` is the operator's output with only this operator quantized, at the float model's
    own inputs: what leaving it in float would win. `snr_db` is its output in the quantized model,
    with the noise of all layers before it. Worst own SNR first.

    Args:
        float_program: The program before `quantize`.
        quantized: The same program after it; sites are the same.
        batch: What both run on.
    """
    wanted = {edges.require_site(node).id: node for node, *_ in weighted_operands(quantized)}
    inputs = program.flat_inputs(quantized, batch.args, batch.kwargs)
    quant_watch = _Outputs(quantized, set(wanted))
    float_watch = _Outputs(float_program, set(wanted))
    with torch.no_grad():
        quant_watch.run(*inputs)
        float_watch.run(*inputs)
    rows = []
    for depth, (site_id, node) in enumerate(wanted.items(), start=1):
        exact = float_watch.outputs[site_id]
        own = _alone(node, float_watch.inputs[site_id], quant_watch, site_id)
        rows.append(
            (
                depth,
                edges.require_site(node).address,
                finite_db(snr_db([exact], [quant_watch.outputs[site_id]])),
                finite_db(snr_db([exact], [own])),
            )
        )
    rows.sort(key=lambda row: row[3])
    return [
        DriftRow(site=site, snr_db=total, own_snr_db=own, rank=index + 1, depth=depth)
        for index, (depth, site, total, own) in enumerate(rows)
    ]


class _Outputs(Interpreter):
    """Run a graph and keep inputs, operands and outputs of chosen operators."""

    def __init__(self, exported: ExportedProgram, wanted: set[str]) -> None:
        # quantizer arguments are read again later
        super().__init__(program.runnable(exported), garbage_collect_values=False)
        self._wanted = wanted
        self.inputs: dict[str, Tensor] = {}
        self.operands: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, Tensor] = {}
        self.quantizers: dict[str, tuple[Any, ...]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        site = edges.site_of(n)
        if site is not None and site.id in self._wanted:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.inputs[site.id] = args[0]
            self.operands[site.id] = tuple(args)
            self.outputs[site.id] = value
            source = n.args[0]
            if isinstance(source, Node) and source.target is torch.ops.edgeopt.dequantize.default:
                codes = source.args[0]
                assert isinstance(codes, Node)
                self.quantizers[site.id] = tuple(
                    self.fetch_args_kwargs_from_env(n)[0][1:] for n in (codes, source)
                )
        return value


def _alone(node: Node, exact_input: Tensor, quantized: _Outputs, site_id: str) -> Tensor:
    """Run one operator with quantized operands on the float model's input."""
    quantize_args, dequantize_args = quantized.quantizers[site_id]
    codes = torch.ops.edgeopt.quantize.default(exact_input, *quantize_args)
    rounded = torch.ops.edgeopt.dequantize.default(codes, *dequantize_args)
    operands = quantized.operands[site_id]
    with torch.no_grad():
        result: Tensor = node.target(rounded, *operands[1:], **node.kwargs)  # type: ignore[operator]
    return result
