"""A report as a real build of the demo would leave it."""

from __future__ import annotations

import random

from edgeopt.results.measurements import (
    AccuracyResult,
    Comparison,
    LatencyResult,
    Machine,
    MemoryResult,
    Percentile,
)
from edgeopt.results.reports import ArtifactRow, BuildReport, FileRole, PassRow
from edgeopt.results.structure import (
    ContractResult,
    DriftRow,
    NodeProof,
    OperatorRow,
    ProofResult,
    SizeRow,
)
from edgeopt.results.verdicts import LimitResult, Pace, Verdict

DEPTH = 4
LAYERS = {
    "attn.qkv": (256, 768),
    "attn.proj": (256, 256),
    "mlp.fc1": (256, 1024),
    "mlp.fc2": (1024, 256),
}
SITES = [f"blocks.{i}.{name}" for i in range(DEPTH) for name in LAYERS]
MACHINE = Machine(
    name="Example CPU 9000",
    cores=2,
    features=("avx2", "avx512f", "avx512_vnni"),
    system="Linux x86_64",
    load=0.4,
)


def _latency(artifact: str, centre: float, seed: int) -> LatencyResult:
    draw = random.Random(seed)
    samples = []
    for index in range(240):
        session = 1 + 0.02 * random.Random(seed * 1000 + index // 24).uniform(-1, 1)
        tail = draw.expovariate(1 / (0.12 * centre)) if draw.random() < 0.12 else 0.0
        samples.append(centre * session * (1 + abs(draw.gauss(0, 0.012))) + tail)
    ranked = sorted(samples)

    def point(share: float, width: float) -> Percentile:
        value = ranked[int(share * (len(ranked) - 1))]
        return Percentile(value, value * (1 - width), value * (1 + width))

    return LatencyResult(
        artifact=artifact,
        runtime="onnxruntime 1.31.1",
        machine=MACHINE,
        threads=1,
        batch=1,
        p50=point(0.5, 0.004),
        p90=point(0.9, 0.015),
        p99=point(0.99, 0.05),
        samples_ms=tuple(samples),
        block=24,
        stand_in=True,
    )


def _artifacts() -> tuple[ArtifactRow, ...]:
    own, stand_in, yardstick = FileRole.TARGET, FileRole.STAND_IN, FileRole.YARDSTICK
    rows = (
        ("qnn", "qnn", "qnn", "int8", "qnn.onnx", 3_342_018, 0.986, own),
        ("qnn-float32", "qnn", "qnn", "float32", "qnn.f32.onnx", 12_741_330, None, yardstick),
        ("xnnpack", "xnnpack", "executorch", "int8", "xnnpack.pte", 3_401_556, 0.961, own),
        ("xnnpack-float32", "xnnpack", "executorch", "float32", "x.f32.pte", 12_790_004, None,
         yardstick),
        ("onnxruntime", "onnxruntime", "onnx", "int8", "model.ort.onnx", 3_298_144, 0.974,
         stand_in),
        ("onnxruntime-float32", "onnxruntime", "onnx", "float32", "model.f32.onnx", 12_741_330,
         None, yardstick),
    )  # fmt: skip
    notes = {"qnn": ("Attention products stay in float16, so that they fuse.",)}
    return tuple(
        ArtifactRow(
            name,
            target,
            format_,
            precision,
            file,
            size,
            "5f2ab3c4d1e0" + 52 * "a",
            83_412_992,
            share,
            notes.get(name, ()),
            role,
        )
        for name, target, format_, precision, file, size, share, role in rows
    )


def _limits() -> tuple[LimitResult, ...]:
    fact = "the profile"
    return (
        LimitResult(
            "drop",
            "onnxruntime",
            "points",
            0.17,
            1.0,
            None,
            Verdict.PASS,
            "600 samples; the interval's upper end is 0.67",
            fact,
        ),
        LimitResult("agreement", "onnxruntime", "%", 99.5, None, 98.0, Verdict.PASS, "", fact),
        LimitResult("size_mb", "qnn", "MB", 3.34, 8.0, None, Verdict.PASS, "", fact),
        LimitResult(
            "int8_macs",
            "qnn",
            "share",
            0.986,
            None,
            0.95,
            Verdict.PASS,
            "attention products are the rest",
            fact,
        ),
        LimitResult(
            "speedup",
            "qnn",
            "ratio",
            None,
            None,
            1.6,
            Verdict.NOT_MEASURED,
            "needs the device (Snapdragon phone)",
            fact,
        ),
        LimitResult(
            "latency_p50_ms",
            "qnn",
            "ms",
            None,
            1.0,
            None,
            Verdict.NOT_MEASURED,
            "needs the device (Snapdragon phone)",
            fact,
        ),
    )


def _accuracy() -> tuple[AccuracyResult, ...]:
    return (
        AccuracyResult(
            "onnxruntime",
            "onnxruntime 1.31.1",
            "top1",
            "points",
            98.5,
            98.33,
            0.17,
            -0.17,
            0.67,
            99.5,
            31.4,
            0.99971,
            600,
        ),
        AccuracyResult(
            "qnn",
            "onnxruntime-qnn 2.7.0 (HTP simulator)",
            "top1",
            "points",
            98.5,
            98.17,
            0.33,
            -0.33,
            1.0,
            99.2,
            28.9,
            0.99942,
            600,
            warning="Run in the simulator, not on the device.",
        ),
        AccuracyResult(
            "xnnpack",
            "executorch 1.5.1",
            "top1",
            "points",
            98.5,
            97.83,
            0.67,
            0.17,
            1.33,
            99.0,
            30.2,
            0.99961,
            600,
        ),
    )


def _comparisons() -> tuple[Comparison, ...]:
    return (
        Comparison(
            "onnxruntime", "onnxruntime-float32", 0.421, 0.415, 0.428, 0.006, Pace.FASTER, 240
        ),
        Comparison("xnnpack", "xnnpack-float32", 0.996, 0.981, 1.012, 0.009, Pace.CANNOT_TELL, 240),
    )


def _passes() -> tuple[PassRow, ...]:
    pruned = {site: "2:4 by magnitude, 50.0 % zeros" for site in SITES}
    skipped = {
        "patch_embed": "8 x 8 convolution of one channel: in 64 is under the kernels' 128",
        "head": "10 outputs are not a multiple of 8",
    }
    plan = {f"{site}:linear#0.in0": "int8 affine, per tensor" for site in SITES}
    return (
        PassRow("fold_batch_norm", "trunk", {"skip": []}, {}, {}, None, 0.02),
        PassRow(
            "prune_nm",
            "trunk",
            {"n": 2, "m": 4},
            pruned,
            skipped,
            24.6,
            0.21,
            ("The next pass must keep the mask; it is a contract now.",),
        ),
        PassRow("capture", "trunk", {"strict": False}, {"forward": "241 nodes"}, {}, 134.0, 2.31),
        PassRow(
            "plan_quantization",
            "qnn",
            {},
            plan,
            {"blocks.*.attn:matmul#0": "attention products stay float16 on the HTP, so they fuse"},
            None,
            0.12,
        ),
        PassRow(
            "calibrate",
            "qnn",
            {"samples": 64, "method": "mse"},
            plan,
            {},
            None,
            3.92,
            ("32 more samples would move no scale by more than 1 %.",),
        ),
        PassRow("quantize", "qnn", {}, plan, {}, 30.8, 0.84),
        PassRow("quantize", "onnxruntime", {}, plan, {}, 33.1, 0.82),
    )


OPERATORS = (
    # operator, in block, MACs a token; then precision and place: qnn, xnnpack, onnxruntime
    ("Norm", "norm1:layer_norm#0", 0, ("int8", "htp"), ("float32", "portable"), ("float32", "cpu")),
    ("Gemm", "attn.qkv:linear#0", 256 * 768, ("int8", "htp"), ("int8", "xnn"), ("int8", "cpu")),
    ("MatMul", "attn:matmul#0", 6_400, ("float16", "htp"), ("float32", "xnn"), ("float32", "cpu")),
    ("Softmax", "attn:softmax#0", 0, ("int8", "htp"), ("float32", "xnn"), ("float32", "cpu")),
    ("MatMul", "attn:matmul#1", 6_400, ("float16", "htp"), ("float32", "xnn"), ("float32", "cpu")),
    ("Gemm", "attn.proj:linear#0", 256 * 256, ("int8", "htp"), ("int8", "xnn"), ("int8", "cpu")),
    ("Add", ":add#0", 0, ("int8", "htp"), ("int8", "xnn"), ("float32", "cpu")),
    ("Gemm", "mlp.fc1:linear#0", 256 * 1024, ("int8", "htp"), ("int8", "xnn"), ("int8", "cpu")),
    ("Gelu", "mlp:gelu#0", 0, ("int8", "htp"), ("float32", "portable"), ("float32", "cpu")),
    ("Gemm", "mlp.fc2:linear#0", 256 * 1024, ("int8", "htp"), ("int8", "xnn"), ("int8", "cpu")),
)  # fmt: skip
PLACES = {
    "htp": "HTP v73",
    "xnn": "XNNPACK",
    "portable": "ExecuTorch CPU kernel",
    "cpu": "CPUExecutionProvider",
}
WHY_FLOAT = {
    "qnn": "no integer kernel that fuses",
    "xnnpack": "XNNPACK has no integer kernel",
    "onnxruntime": "ONNX Runtime has no integer kernel",
}


def operators(depth: int = DEPTH) -> tuple[OperatorRow, ...]:
    """Return where each operator of each file runs, for a network of so many blocks."""
    rows = []
    for index, artifact in enumerate(WHY_FLOAT):
        for block in range(depth):
            for operator, site, macs, *placed in OPERATORS:
                precision, place = placed[index]
                rows.append(
                    OperatorRow(
                        artifact,
                        operator,
                        f"blocks.{block}{'' if site.startswith(':') else '.'}{site}",
                        precision,
                        PLACES[place],
                        25 * macs,
                        "" if precision == "int8" else WHY_FLOAT[artifact],
                    )
                )
    return tuple(rows)


def _sizes() -> tuple[SizeRow, ...]:
    rows = []
    for target, float_dtype in (("qnn", "float32"), ("xnnpack", "float32")):
        for site in SITES:
            columns, outputs = LAYERS[site.split(".", 2)[2]]
            count = columns * outputs
            rows += [
                SizeRow(target, f"{site}.weight", "int8", count),
                SizeRow(target, f"{site}.bias", float_dtype, outputs * 4),
                SizeRow(f"{target}-float32", f"{site}.weight", float_dtype, count * 4),
                SizeRow(f"{target}-float32", f"{site}.bias", float_dtype, outputs * 4),
            ]
        rows.append(SizeRow(target, "pos_embed", float_dtype, 25 * 256 * 4))
    rows += [SizeRow("xnnpack", f"norm{i}.weight", "float32", 1024) for i in range(4)]
    return tuple(rows)


def _drift() -> tuple[DriftRow, ...]:
    """Return a drift that grows with depth; only qnn quantizes patch_embed."""
    rows = []
    for target, start, sites in (
        ("qnn", 44.0, ["patch_embed", *SITES]),
        ("xnnpack", 47.0, SITES),
    ):
        own = [
            start - 3.0 - (i * 7 % 5) - (4.0 if "fc2" in s else 0.0) for i, s in enumerate(sites)
        ]
        total = [min(own[i], start - 1.1 * i - (i * 3 % 4)) for i in range(len(sites))]
        ranked = sorted(range(len(sites)), key=lambda i: own[i])
        rows += [
            DriftRow(f"{sites[i]}:linear#0", total[i], own[i], rank, target, i + 1)
            for rank, i in enumerate(ranked, start=1)
        ]
    return tuple(rows)


def _proof() -> tuple[ProofResult, ...]:
    exact = tuple(NodeProof(f"{s}.QGemm", "QGemm", 6_400, 6_400, 0.0) for s in SITES)
    off = NodeProof(
        "blocks.2.mlp.act_quant",
        "QLinearSoftmax",
        25_600,
        25_212,
        1.0,
        {"-1": 131, "0": 25_212, "1": 257},
    )
    return (
        ProofResult(
            "onnxruntime",
            "onnxruntime 1.31.1",
            "ort_mlas",
            len(exact),
            102_400,
            102_400,
            True,
            0.0,
            "",
            exact,
            {},
            {"LayerNormalization": 9, "Gelu": 4},
            ("avx512_vnni",),
        ),
        ProofResult(
            "qnn",
            "qnn 2.48",
            "qnn_htp",
            len(exact) + 1,
            128_000,
            127_612,
            False,
            1.0,
            off.node,
            (*exact, off),
            {"softmax_3": "Softmax"},
        ),
    )


def make() -> BuildReport:
    """Return a report with something in every section."""
    return BuildReport(
        bundle="dist/vit-phone-npu",
        edgeopt="0.1.0",
        model="zoo:vit",
        profile="phone-npu",
        profile_title="Snapdragon phone (Hexagon NPU, XNNPACK as fallback)",
        recipe="static-int8",
        build_key="9b1c64f00d5e7a3c2b88d1e6" + 40 * "0",
        verdict=Verdict.NOT_MEASURED,
        machine=MACHINE,
        tools={"torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.31.1"},
        artifacts=_artifacts(),
        accuracy=_accuracy(),
        latency=(
            _latency("xnnpack", 2.61, 3),
            _latency("xnnpack-float32", 2.62, 4),
            _latency("onnxruntime", 1.92, 1),
            _latency("onnxruntime-float32", 4.55, 2),
        ),
        comparisons=_comparisons(),
        memory=(MemoryResult("onnxruntime", 96.4, 61.2, "onnxruntime 1.31.1"),),
        limits=_limits(),
        passes=_passes(),
        plan={
            target: tuple(f"{s}:linear#0.in0   int8 affine  own" for s in SITES)
            for target in ("qnn", "xnnpack", "onnxruntime")
        },
        operators=operators(),
        sizes=_sizes(),
        drift=_drift(),
        proof=_proof(),
        contracts=tuple(
            ContractResult("qnn", "NMSparse", f"{s}.weight", True, "2:4 along in") for s in SITES
        ),
        compile={
            "qnn": {
                "compiler": "onnxruntime-qnn 2.7.0 (HTP simulator)",
                "partitions": 1,
                "delegated_share": 1.0,
                "fused_attentions": 4,
                "archs": {"v73": 3_610_224, "v75": 3_611_004},
                "lines": [f"{s} Gemm Int8" for s in SITES],
            },
            "xnnpack": {
                "compiler": "executorch 1.5.1 (XNNPACK)",
                "partitions": 9,
                "delegated_share": 0.8,
            },
        },
        unmeasured={
            "qnn": "needs the device (Snapdragon phone)",
            "qnn-float32": "needs the device (Snapdragon phone)",
        },
        warnings=(
            "Latency on the device was not measured; the numbers below are of a stand-in.",
            "The calibration data are the training split: 64 samples.",
        ),
        seconds={"trunk": 2.6, "qnn": 9.8, "onnxruntime": 7.4, "judging": 14.2},
    )
