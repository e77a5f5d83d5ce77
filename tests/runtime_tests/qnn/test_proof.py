"""The NPU's integers, value by value, against integer arithmetic on its own inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeopt.errors import ExportError
from edgeopt.exporters.qnn import hexagon
from edgeopt.runtime_tests.qnn import proof as proof_qnn
from edgeopt.runtime_tests.qnn.inspector import QnnInspector
from tests.exporters.qnn.models import Written, written
from tests.small_models import Block, SmallCNN, normal, seeded

pytestmark = pytest.mark.skipif(
    hexagon.unavailable() is not None, reason=str(hexagon.unavailable())
)
EXAMPLES = {SmallCNN: normal(4, 3, 8, 8), Block: normal(2, 4, 16)}
Case = tuple[Written, dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="module", params=[SmallCNN, Block], ids=["cnn", "block"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    x = EXAMPLES[request.param]
    result = written(seeded(request.param), x, tmp_path_factory.mktemp("proof"))
    return result, {"in0": x[:1].numpy()}


def test_every_quantized_value_is_compared_and_at_most_two_steps_off(case: Case) -> None:
    result, inputs = case
    proof = QnnInspector().prove(result.folder, result.artifact, inputs)
    assert proof is not None
    graph = onnx.load(result.folder / "qnn.onnx").graph
    quantized = [n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert [d.node for d in proof.details] == quantized
    assert proof.nodes == len(quantized) > 5
    assert proof.elements == sum(d.elements for d in proof.details)
    assert proof.unproven == {}
    # The NPU rounds half-way cases its own way, and normalizes through a table of roots.
    assert proof.max_lsb <= 2
    assert proof.equal >= 0.95 * proof.elements
    assert proof.exact == (proof.equal == proof.elements)
    assert bool(proof.first_difference) == (not proof.exact)
    assert "simulator" in proof.runtime


def test_a_wrong_code_is_found_where_it_is(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    result, inputs = case
    honest = QnnInspector().prove(result.folder, result.artifact, inputs)
    assert honest is not None
    simulated = proof_qnn._simulated
    last = honest.details[-1].node

    def tampered(*args: Any) -> dict[str, np.ndarray[Any, Any]]:
        values = {name: value.copy() for name, value in simulated(*args).items()}
        flat = values[last].reshape(-1)
        flat[0] = flat[0] + 3 if flat[0] < 250 else flat[0] - 3
        return values

    monkeypatch.setattr(proof_qnn, "_simulated", tampered)
    found = QnnInspector().prove(result.folder, result.artifact, inputs)
    assert found is not None
    assert found.max_lsb >= 2
    assert [d for d in found.details if d.node != last] == list(honest.details[:-1])
    assert found.details[-1].max_lsb >= 2


def test_a_compiler_that_refuses_the_outputs_is_told_and_fails_no_build(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("probed.onnx: the Hexagon compiler refuses it")

    monkeypatch.setattr(proof_qnn, "compile_context", refuse)
    result, inputs = case
    proof = QnnInspector().prove(result.folder, result.artifact, inputs)
    assert proof is not None
    assert (proof.nodes, proof.exact) == (0, False)
    assert proof.first_difference == "not compared: probed.onnx: the Hexagon compiler refuses it"


def test_half_the_outputs_at_a_time_where_all_are_too_many(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, inputs = case
    whole = QnnInspector().prove(result.folder, result.artifact, inputs)
    compiled = proof_qnn.compile_context
    calls: list[int] = []

    def small(path: Path, *args: Any) -> hexagon.Compiled:
        calls.append(len(onnx.load(path).graph.output))
        if len(calls) == 1:
            raise ExportError("Memory allocation related error")
        return compiled(path, *args)

    monkeypatch.setattr(proof_qnn, "compile_context", small)
    halves = QnnInspector().prove(result.folder, result.artifact, inputs)
    assert len(calls) == 3
    assert calls[1] < calls[0] > calls[2]
    assert whole is not None
    assert halves is not None
    assert halves.nodes == whole.nodes
    assert halves.max_lsb <= 2
