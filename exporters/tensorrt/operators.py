"""What TensorRT's ONNX parser takes, by version.

Source: onnx-tensorrt, docs/operators.md of 10.15 and docs/Changelog.md (operators that came after
10.0, and the ONNX release that each parser was built with).
"""

from __future__ import annotations

Version = tuple[int, ...]

# First TensorRT version -> newest opset.
_OPSETS: tuple[tuple[Version, int], ...] = (
    ((8, 5), 17),
    ((10, 0), 20),
    ((10, 6), 22),
    ((10, 11), 23),
    ((10, 15), 24),
)
OLDEST_OPSET = 9
# Float16 scales of QuantizeLinear and DequantizeLinear.
OLDEST_FLOAT16_OPSET = 19

_SINCE: dict[str, Version] = {
    "Attention": (10, 14),
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "STFT": (10, 5),
}
_SINCE_10_0 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike
Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish
Hardmax Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean
MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow
PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round Scan
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
Trilu Unsqueeze Upsample Where Xor
"""
_ALWAYS = frozenset(_SINCE_10_0.split())


def parse_version(text: str) -> Version:
    """Read `10.3` or `10.3.0`; an empty text is the oldest strongly typed version, 10.0.

    Raises:
        ValueError: For any other text.
    """
    return tuple(int(part) for part in text.split(".")) if text else (10, 0)


def newest_opset(version: Version) -> int:
    """Return the newest opset that a TensorRT version reads."""
    return max((opset for first, opset in _OPSETS if first <= version), default=13)


def takes_operator(operator: str, version: Version) -> bool:
    """Return whether a TensorRT version reads an operator of the standard domain."""
    return operator in _ALWAYS or version >= _SINCE.get(operator, (10**6,))
