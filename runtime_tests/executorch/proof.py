"""Compare XNNPACK's integer kernels with the reference executor, element by element.

A `.pte` shows its inputs and outputs only. So the program that it was written from is lowered once
more with all of its codes among the outputs, run in the same runtime, and each integer operator is
computed again from the runtime's own codes: no error adds up, and every operator is judged on
integers that really occur. The shipped file must give the same outputs to the bit.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from edgeopt.exporters.executorch import lowering
from edgeopt.integer.arithmetic import XNNPACK, Arithmetic
from edgeopt.integer.executor import Executor, Step
from edgeopt.integer.operators import PADS
from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from edgeopt.results.structure import ProofResult
from edgeopt.runtime_tests.base import Arrays, LoadOptions
from edgeopt.runtime_tests.differences import Comparison
from edgeopt.runtime_tests.executorch.runner import ExecuTorchRunner

Array = np.ndarray[Any, Any]
ABOUT = "edgeopt"


def prove(
    artifact: str,
    model: Path,
    inputs: Arrays,
    exported: ExportedProgram,
    *,
    method: str = "forward",
    arithmetic: Arithmetic = XNNPACK,
) -> ProofResult:
    """Compare each integer operator of a program, as XNNPACK runs it here, with the executor.

    Args:
        artifact: The artifact's name, for the result.
        model: The exported file.
        inputs: Inputs by name, in the program's order; real samples.
        exported: The legalized program that the file was written from, at any batch.
        method: The file's method.
        arithmetic: How the executor rescales.

    Raises:
        RuntimeUnavailable: If ExecuTorch is missing.
        BundleError: If a file cannot be loaded or run.
        DataError: If the inputs do not fit.
        ExportError: If the program with its codes as outputs cannot be lowered.
    """
    tensors = [torch.from_numpy(np.asarray(value)) for value in inputs.values()]
    fixed = _at_inputs(exported, tensors)
    executor = Executor(fixed, arithmetic)
    probes = _probes(executor)
    shipped = _run(model, method, list(inputs.values()))
    with tempfile.TemporaryDirectory() as work:
        probed = Path(work) / "probed.pte"
        probed.write_bytes(_lowered(fixed, probes, tensors))
        outputs = _run(probed, method, list(inputs.values()))
    count = len(outputs) - len(probes)
    values = dict(zip(probes, outputs[count:], strict=True))
    placeholders = {n.name: n for n in fixed.graph.nodes if n.op == "placeholder"}
    given = [placeholders[name] for name in program.user_input_names(fixed)]
    shown = [n for n in given if isinstance(n.meta.get("val"), Tensor)]
    values |= dict(zip(shown, inputs.values(), strict=True))
    result = _judged(artifact, executor, values)
    ends = zip(shipped, outputs[:count], strict=True)
    if result.first_difference or all(np.array_equal(a, b) for a, b in ends):
        return result
    return dataclasses.replace(
        result, exact=False, first_difference="the file's outputs are not those of the program "
        "that shows its codes; the operators were proven on the latter",
    )  # fmt: skip


def _judged(artifact: str, executor: Executor, values: Mapping[Node, Array]) -> ProofResult:
    """Compare every step that shows its codes with what the executor makes of the runtime's own."""
    compared = Comparison(executor.arithmetic.name)
    unproven: dict[Node, Step] = {}
    for step in executor.steps:
        if step.moves or step.quantize not in values:
            continue
        wanted = executor.codes(step, values)
        if wanted is None:
            unproven[step.operator or step.quantize] = step
            continue
        compared.add(step.address, step.name, values[step.quantize], wanted)
    islands = Counter(operator_name(node) for node in executor.floats if node not in unproven)
    return compared.result(
        artifact,
        ExecuTorchRunner().version(),
        unproven={step.address: step.name for step in unproven.values()},
        float_islands=islands,
    )


def _run(path: Path, method: str, arrays: Sequence[Array]) -> list[Array]:
    session = ExecuTorchRunner().load([path], LoadOptions())
    try:
        names = session.input_names(method)
        return list(session.run(method, dict(zip(names, arrays, strict=True))).values())
    finally:
        session.close()


def _at_inputs(exported: ExportedProgram, tensors: list[Tensor]) -> ExportedProgram:
    """Return the program with all sizes fixed to those of the inputs."""
    args, kwargs = program.unflattened(exported, tensors)
    return program.retrace(exported, args, kwargs)


def _probes(executor: Executor) -> list[Node]:
    """Return the values to show: codes, and the floats that XNNPACK quantizes itself.

    Codes behind a border are left out: a second reader would keep it from being folded.
    """
    found: dict[Node, None] = {}
    for step in executor.steps:
        source = step.quantize.args[0]
        assert isinstance(source, Node)
        if source is step.operator and step.name in PADS:
            continue
        if step.operator is None and source.op == "call_function":
            found[source] = None
        found[step.quantize] = None
    return list(found)


class _Probed(nn.Module):
    """The program, with more of its values among the outputs."""

    def __init__(self, module: torch.fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._names = names

    def forward(self, *args: Any) -> tuple[Any, ...]:
        shown: dict[str, Any] = {}
        wanted = frozenset(self._names)

        class Watch(Interpreter):
            def run_node(self, n: Node) -> Any:
                value = super().run_node(n)
                if n.name in wanted:
                    shown[n.name] = value
                return value

        outputs = Watch(self.module).run(*args)
        return (*pytree.tree_leaves(outputs), *(shown[name] for name in self._names))


def _lowered(exported: ExportedProgram, probes: list[Node], tensors: list[Tensor]) -> bytes:
    module = program.runnable(exported)
    shown = _Probed(module, [node.name for node in probes])
    flat = program.flat_inputs(exported, *program.unflattened(exported, tensors))
    with torch.no_grad(), program.quiet_export():
        again = torch.export.export(shown, tuple(flat))
    decomposed = lowering.to_decomposed(again)
    return lowering.lower({"forward": decomposed}, {}, ABOUT).data
