"""Print how close files for Qualcomm's NPU come to the float model, on the HTP simulator.

    python benchmarks/qnn.py                     zoo:mobilenet and zoo:vit
    python benchmarks/qnn.py --assets            MobileNetV2 as well (see EDGEOPT_ASSETS)

Each model is quantized with 8- and with 16-bit activations, once by edgeopt and once by
`onnxruntime.quantization`'s own recipe for this NPU (`qnn_preprocess_model`, `get_qnn_qdq_config`),
from the same calibration samples and the same float ONNX file. All four are compiled for the same
chip and answer the same samples. The peer is run with its weights per tensor, as the recipe
chooses, and per channel. Nothing here is a latency.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import numpy as np

from edgeopt.api.build import BuildOptions, run_build
from edgeopt.data import Samples
from edgeopt.exporters.qnn.hexagon import Simulator, compile_context, parse_chips, read_context
from edgeopt.models.load import load_model
from edgeopt.models.loaded import LoadedModel
from edgeopt.runtime_tests.base import LoadOptions
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner

Array = np.ndarray[Any, Any]
CHIP = "v75"


def samples(loaded: LoadedModel, job: dict[str, Any], count: int) -> tuple[Samples, Array]:
    """Return the samples that calibrate, and others, one row each, that judge."""
    if "calib" in job:
        everything = loaded.data(job["calib"], name="calibration")
        calibration = everything.take(64, 0)
        judging = everything.without(calibration)
    else:
        assert loaded.calibration is not None
        assert loaded.evaluation is not None
        calibration, judging = loaded.calibration.take(64, 0), loaded.evaluation
    return calibration, rows(judging.take(count, 1))


def rows(chosen: Samples) -> Array:
    """Return all inputs, one sample a row."""
    return np.concatenate([batch.inputs[0].numpy() for batch in chosen.batches(16)])


def edgeopt_file(job: dict[str, Any], bits: int, folder: Path) -> Path:
    """Build for the NPU; return the Q/DQ file. Its context file lies beside it."""
    run_build(
        BuildOptions(
            **job,
            profile="phone-npu",
            formats=("qnn",),
            settings=(f"plan.activation_bits={bits}",),
            eval_samples=2,
            latency=False,
            drift=False,
            verify="edited",
            out=folder / f"edgeopt{bits}",
        )
    )
    return folder / f"edgeopt{bits}" / "qnn.onnx"


def float_file(job: dict[str, Any], folder: Path) -> Path:
    """Write the float32 file that the peer starts from."""
    run_build(
        BuildOptions(
            **job,
            profile="host",
            recipe="float",
            eval_samples=2,
            latency=False,
            drift=False,
            verify="edited",
            out=folder / "float",
        )
    )
    return folder / "float" / "onnxruntime.onnx"


def peer_file(source: Path, calibration: Array, bits: int, folder: Path, *, channel: bool) -> Path:
    """Quantize by the recipe that ONNX Runtime ships for QNN."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import (
        get_qnn_qdq_config,
        qnn_preprocess_model,
    )

    model = onnx.load(source)
    # The recipe stumbles over recorded shapes and over metadata.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    name = model.graph.input[0].name
    plain, ready = folder / "plain.onnx", folder / "ready.onnx"
    onnx.save(model, plain)
    if not qnn_preprocess_model(plain, ready):
        ready = plain

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Array] = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            sample = next(self.left, None)
            return None if sample is None else {name: sample[None]}

    config = get_qnn_qdq_config(
        ready,
        Reader(),
        activation_type=QuantType.QUInt8 if bits == 8 else QuantType.QUInt16,
        weight_type=QuantType.QInt8 if channel else QuantType.QUInt8,
        per_channel=channel,
    )
    target = folder / f"peer{bits}{'c' if channel else 't'}.onnx"
    quantize(ready, target, config)
    return target


def simulated(path: Path, inputs: Array) -> tuple[Array, int]:
    """Return the NPU's answers, and the number of partitions."""
    context = path.parent / f"{path.stem}.{CHIP}.ctx.onnx"
    compiled = (
        read_context(context)
        if context.is_file()
        else compile_context(path, context.name, *parse_chips(CHIP))
    )
    with Simulator(compiled) as simulator:
        (name,) = simulator.inputs
        answers = [next(iter(simulator.run({name: x[None]}).values())) for x in inputs]
    return np.concatenate(answers), compiled.partitions


def on_cpu(path: Path, inputs: Array) -> Array:
    """Return ONNX Runtime's answers to the same file, by its integer kernels."""
    session = OnnxRuntimeRunner().load([path], LoadOptions())
    (name,) = session.input_names
    return np.concatenate([next(iter(session.run("", {name: x[None]}).values())) for x in inputs])


def snr_db(want: Array, got: Array) -> float:
    """Return the signal-to-noise ratio of all logits in dB."""
    noise = ((want - got).astype(np.float64) ** 2).sum()
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def line(name: str, what: str, path: Path, inputs: Array, exact: Array) -> str:
    """Return one line of the table."""
    npu, partitions = simulated(path, inputs)
    cpu = on_cpu(path, inputs)
    same = 100 * np.mean(npu.argmax(1) == cpu.argmax(1))
    agrees = 100 * np.mean(npu.argmax(1) == exact.argmax(1))
    return (
        f"| {name} | {what} | {partitions} | {snr_db(exact, npu):.1f} | {snr_db(exact, cpu):.1f} | "
        f"{snr_db(cpu, npu):.1f} | {agrees:.1f} | {same:.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--assets", action="store_true", help="MobileNetV2 as well")
    parser.add_argument("--samples", type=int, default=64, help="samples that judge")
    parser.add_argument("--only", help="one model")
    options = parser.parse_args()
    print(
        "| model | file | partitions | NPU against float, dB | CPU against float, dB | "
        "NPU against CPU, dB | answers as float, % | answers as CPU, % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    real = cases.mobilenetv2() if options.assets else {}
    for name, job in (cases.zoo() | real).items():
        if options.only not in (None, name):
            continue
        loaded = load_model(job["model"])
        calibration, judging = samples(loaded, job, options.samples)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            source = float_file(job, folder)
            exact = on_cpu(source, judging)
            for bits in (8, 16):
                mine = edgeopt_file(job, bits, folder)
                print(line(name, f"edgeopt, A{bits}W8", mine, judging, exact), flush=True)
                for channel in (False, True):
                    peer = peer_file(source, rows(calibration), bits, folder, channel=channel)
                    what = f"peer, A{bits}W8 per {'channel' if channel else 'tensor'}"
                    print(line(name, what, peer, judging, exact), flush=True)


if __name__ == "__main__":
    main()
