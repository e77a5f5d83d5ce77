"""Print the latency table: model x runtime x float and INT8, measured here, interleaved.

    python benchmarks/latency.py            the zoo's models
    python benchmarks/latency.py --assets   MobileNetV2 and ResNet-20 as well (see EDGEOPT_ASSETS)

Each row is one `edgeopt build --profile host`: the INT8 file and its float32 yardstick run in
blocks, call by call, with both sessions made anew for each block. `--peer` adds the file that
`onnxruntime.quantization` makes from the same calibration samples, timed in the same way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import cases
import numpy as np

from edgeopt.api.build import BuildOptions, BuildOutcome, run_build
from edgeopt.devices.profile import load_profile
from edgeopt.results.measurements import AccuracyResult
from edgeopt.results.verdicts import Pace
from edgeopt.runtime_tests.latency import Subject, compare, subject
from edgeopt.runtime_tests.onnxruntime.runner import OnnxRuntimeRunner


def row(name: str, outcome: BuildOutcome) -> str:
    """Return one line of the table."""
    report = outcome.report
    latency = {x.artifact: x for x in report.latency}
    pair = report.comparisons[0]
    accuracy: AccuracyResult = report.accuracy[0]
    sizes = {a.name: a.size_bytes / 1e6 for a in report.artifacts}
    proof = report.proof[0]
    return (
        f"| {name} | {latency[pair.baseline].runtime} | {latency[pair.baseline].p50.value:.3f} | "
        f"{latency[pair.candidate].p50.value:.3f} | {1 / pair.ratio:.2f} "
        f"({1 / pair.high:.2f} to {1 / pair.low:.2f}) | {sizes[pair.baseline]:.2f} | "
        f"{sizes[pair.candidate]:.2f} | {accuracy.reference:.2f} | {accuracy.value:.2f} | "
        f"{accuracy.agreement:.1f} | {proof.equal} of {proof.elements} |"
    )


def peer_file(outcome: BuildOutcome, calibration: np.ndarray[Any, Any], folder: Path) -> Path:
    """Quantize the float32 yardstick with `onnxruntime.quantization`, static, u8 x s8."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    source = outcome.bundle_path / "onnxruntime-float32.onnx"
    model = onnx.load(source)
    del model.graph.value_info[:]  # its shape inference refuses recorded shapes
    plain = folder / "plain.onnx"
    onnx.save(model, plain)
    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.left, None)
            return None if sample is None else {name: sample[None]}

    target = folder / "peer.onnx"
    quantize_static(
        plain,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target


def peer_line(outcome: BuildOutcome, options: BuildOptions, folder: Path) -> str:
    """Time edgeopt's INT8 file against the peer's, interleaved."""
    from edgeopt.models.load import load_model

    loaded = load_model(str(options.model))
    samples = loaded.calibration if options.calib is None else loaded.data(options.calib)
    assert samples is not None
    chosen = samples.take(options.calib_samples, options.seed)
    calibration = np.concatenate([b.inputs[0].numpy() for b in chosen.batches(16)])
    peer = peer_file(outcome, calibration, folder)
    protocol = load_profile("host").targets[0].protocol
    mine = outcome.bundle_path / "onnxruntime.onnx"
    feed = {outcome.bundle.manifest.artifacts[0].methods[0].inputs[0].name: calibration[:1]}

    def timed(name: str, path: Path) -> Subject:
        return subject(name, OnnxRuntimeRunner(), [path], feed, protocol)

    result = compare(timed("edgeopt", mine), timed("peer", peer), protocol).comparison
    words = {Pace.FASTER: "faster than", Pace.SLOWER: "slower than", Pace.SAME: "the same as"}
    return (
        f"against onnxruntime.quantization: {1 / result.ratio:.2f} times its speed "
        f"({1 / result.high:.2f} to {1 / result.low:.2f}); "
        f"{words.get(result.pace, 'cannot tell from')} it"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", action="store_true", help="real models too")
    parser.add_argument("--peer", action="store_true", help="against onnxruntime.quantization")
    args = parser.parse_args()
    lines: list[str] = []
    peers: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        real = cases.mobilenetv2() | cases.resnet20() if args.assets else {}
        for name, wanted in (cases.zoo() | real).items():
            place = Path(work) / name.replace(":", "-").replace(" ", "-")
            options = BuildOptions(profile="host", drift=False, out=place, **wanted)
            print(f"building {name}", file=sys.stderr, flush=True)
            outcome = run_build(options)
            lines.append(row(name, outcome))
            if args.peer:
                peers.append(f"{name}: {peer_line(outcome, options, Path(work))}")
            machine = outcome.report.machine
    print(
        f"{machine.name}, {machine.cores} cores, {', '.join(machine.features)}; 1 thread, batch 1"
    )
    print(
        "| model | runtime | float32 ms | INT8 ms | times faster (95 %) | float32 MB | INT8 MB | "
        "float top-1 | INT8 top-1 | agrees % | equal to the integer executor |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join([*lines, "", *peers]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
