"""A report as a real build of the demo would leave it."""

from __future__ import annotations

import random

from edgeopt.results import (
    AccuracyResult,
    ArtifactRow,
    BuildReport,
    Comparison,
    ContractResult,
    DriftRow,
    LatencyResult,
    LimitResult,
    Machine,
    MemoryResult,
    NodeProof,
    OperatorRow,
    Pace,
    PassRow,
    Percentile,
    ProofResult,
    SizeRow,
    Verdict,
)

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
    rows = (
        ("tensorrt", "tensorrt", "tensorrt", "int8", "model.onnx", 3_342_018, 0.986),
        ("tensorrt-float16", "tensorrt", "tensorrt", "float16", "model.fp16.onnx", 6_418_220, None),
        ("onnxruntime", "onnxruntime", "onnx", "int8", "model.ort.onnx", 3_298_144, 0.974),
        (
            "onnxruntime-float32",
            "onnxruntime",
            "onnx",
            "float32",
            "model.f32.onnx",
            12_741_330,
            None,
        ),
    )
    notes = {"tensorrt": ("Attention products stay in float16, so that they fuse.",)}
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
        )
        for name, target, format_, precision, file, size, share in rows
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
        LimitResult("size_mb", "tensorrt", "MB", 3.34, 8.0, None, Verdict.PASS, "", fact),
        LimitResult(
            "int8_macs",
            "tensorrt",
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
            "tensorrt",
            "ratio",
            None,
            None,
            1.6,
            Verdict.NOT_MEASURED,
            "not the device; run build_engine.py there and attach what it writes",
            fact,
        ),
        LimitResult(
            "latency_p50_ms",
            "tensorrt",
            "ms",
            None,
            1.0,
            None,
            Verdict.NOT_MEASURED,
            "not the device; run build_engine.py there and attach what it writes",
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
            "tensorrt",
            "reference executor",
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
            warning="Computed with TensorRT's arithmetic, not run on the device.",
        ),
        AccuracyResult(
            "onnxruntime-float32",
            "onnxruntime 1.31.1",
            "top1",
            "points",
            98.5,
            98.5,
            0.0,
            0.0,
            0.0,
            100.0,
            128.3,
            1.0,
            600,
        ),
    )


def _comparisons() -> tuple[Comparison, ...]:
    return (
        Comparison(
            "onnxruntime", "onnxruntime-float32", 0.421, 0.415, 0.428, 0.006, Pace.FASTER, 240
        ),
        Comparison("onnxruntime", "peer", 0.996, 0.981, 1.012, 0.009, Pace.CANNOT_TELL, 240),
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
            "tensorrt",
            {},
            plan,
            {"blocks.*.attn:matmul#0": "attention products stay float16 on TensorRT, so they fuse"},
            None,
            0.12,
        ),
        PassRow(
            "calibrate",
            "tensorrt",
            {"samples": 64, "method": "mse"},
            plan,
            {},
            None,
            3.92,
            ("32 more samples would move no scale by more than 1 %.",),
        ),
        PassRow("quantize", "tensorrt", {}, plan, {}, 30.8, 0.84),
        PassRow("quantize", "onnxruntime", {}, plan, {}, 33.1, 0.82),
    )


def _operators() -> tuple[OperatorRow, ...]:
    rows = []
    for site in SITES:
        columns, outputs = LAYERS[site.split(".", 2)[2]]
        macs = 25 * columns * outputs
        rows.append(OperatorRow("tensorrt", "gemm", site, "int8", "TensorRT-RTX", macs))
        rows.append(OperatorRow("onnxruntime", "QGemm", site, "int8", "CPU", macs))
    for block in range(DEPTH):
        for name, kind, macs in (
            ("attn:matmul#0", "_gemm_mha_v2", 160_000),
            ("norm1:layer_norm#0", "layer_norm", 0),
        ):
            rows.append(
                OperatorRow(
                    "tensorrt",
                    kind,
                    f"blocks.{block}.{name}",
                    "float16",
                    "TensorRT-RTX",
                    macs,
                    "no integer kernel that fuses",
                )
            )
            rows.append(
                OperatorRow(
                    "onnxruntime",
                    kind,
                    f"blocks.{block}.{name}",
                    "float32",
                    "CPU",
                    macs,
                    "ONNX Runtime has no integer kernel",
                )
            )
    return tuple(rows)


def _sizes() -> tuple[SizeRow, ...]:
    rows = []
    for site in SITES:
        columns, outputs = LAYERS[site.split(".", 2)[2]]
        count = columns * outputs
        rows += [
            SizeRow("tensorrt", f"{site}.weight", "int8", count),
            SizeRow("tensorrt", f"{site}.bias", "float16", outputs * 2),
            SizeRow("tensorrt-float16", f"{site}.weight", "float16", count * 2),
            SizeRow("tensorrt-float16", f"{site}.bias", "float16", outputs * 2),
        ]
    rows.append(SizeRow("tensorrt", "pos_embed", "float16", 25 * 256 * 2))
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
            "tensorrt",
            "TensorRT 10.3",
            "tensorrt",
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
        bundle="dist/vit-orin",
        edgeopt="0.1.0",
        model="zoo:vit",
        profile="orin",
        profile_title="NVIDIA Jetson AGX Orin (TensorRT, INT8)",
        recipe="sparse-int8",
        build_key="9b1c64f00d5e7a3c2b88d1e6" + 40 * "0",
        verdict=Verdict.NOT_MEASURED,
        machine=MACHINE,
        tools={"torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.31.1"},
        artifacts=_artifacts(),
        accuracy=_accuracy(),
        latency=(_latency("onnxruntime", 1.92, 1), _latency("onnxruntime-float32", 4.55, 2)),
        comparisons=_comparisons(),
        memory=(MemoryResult("onnxruntime", 96.4, 61.2, "onnxruntime 1.31.1"),),
        limits=_limits(),
        passes=_passes(),
        plan={"tensorrt": tuple(f"{s}:linear#0.in0   int8 affine  own" for s in SITES)},
        operators=_operators(),
        sizes=_sizes(),
        drift=tuple(
            DriftRow(f"{site}:linear#0", 21.5 + 1.7 * i, 33.0 + 1.2 * i, i + 1)
            for i, site in enumerate(reversed(SITES))
        ),
        proof=_proof(),
        contracts=tuple(
            ContractResult("tensorrt", "NMSparse", f"{s}.weight", True, "2:4 along in")
            for s in SITES
        ),
        compile={
            "tensorrt": {
                "compiler": "TensorRT-RTX 1.7.1",
                "engine_bytes": 3_610_224,
                "layers": 126,
                "int8 layers": 49,
                "fused": ["_gemm_mha_v2 x 4"],
                "lines": [f"{s} gemm Int8 -> Half" for s in SITES],
            }
        },
        warnings=(
            "Latency on the device was not measured; the numbers below are of a stand-in.",
            "The calibration data are the training split: 64 samples.",
        ),
        seconds={"trunk": 2.6, "tensorrt": 9.8, "onnxruntime": 7.4, "judging": 14.2},
    )
