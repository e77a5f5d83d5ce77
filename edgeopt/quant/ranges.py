"""From a range to affine parameters, and from a weight to codes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeopt.ir.dialect import storage_dtype
from edgeopt.quant.spec import Affine, Granularity, TensorSpec

BIAS_CODE_LIMIT = 2**24
"""Above this some codes are no float32 integers, and a bias would differ from its int32 form."""

WIDE_BIAS_CODE_LIMIT = 2**30
"""With 16-bit activations the grid is 256 times finer, and biases pass 2^24 as a rule."""

SPARE_SCALE = 2.0**-10
"""Scale of a weight that is zero throughout; of a size that weight scales have."""


def affine_from_range(low: float, high: float, spec: TensorSpec, bound: float | None) -> Affine:
    """Return the per-tensor parameters of a range.

    Symmetric: `s = max(|low|, |high|) / qmax`, zero point 0 (or the middle code where unsigned).
    Affine: 0 is forced into the range, `s = (high - low) / (qmax - qmin)`,
    `z = rne(qmin - low / s)`. A range that is a single 0 gets scale 1.

    Args:
        low: Smallest real value.
        high: Largest real value.
        spec: Width and symmetry.
        bound: The upper bound of a clamp that this range stands for, or None. The largest code
            then never exceeds it, so that the clamp is implied.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    dtype = storage_dtype(spec.codes_dtype)
    if spec.symmetric:
        middle = 0 if spec.signed else 1 << (spec.bits - 1)
        reach = max(-low, high)
        scale = np.float32(reach / (spec.qmax - middle)) if reach > 0 else np.float32(1.0)
        return Affine(torch.tensor(_usable(scale)), torch.tensor(middle, dtype=dtype))
    width = high - low
    scale = np.float32(width / (spec.qmax - spec.qmin)) if width > 0 else np.float32(1.0)
    scale = _usable(scale)
    zero = int(np.clip(np.rint(spec.qmin - low / float(scale)), spec.qmin, spec.qmax))
    # Where other values share the parameters, the range may reach past the clamp of one of them.
    if bound is not None and 0.0 < high <= np.float32(bound) and zero < spec.qmax:
        scale = min(scale, np.float32(bound / (spec.qmax - zero)))
        while np.float32(scale * np.float32(spec.qmax - zero)) > np.float32(bound):
            scale = np.nextafter(np.float32(scale), np.float32(0.0))
    return Affine(torch.tensor(scale), torch.tensor(zero, dtype=dtype))


def _usable(scale: np.float32) -> np.float32:
    # a subnormal scale has no reciprocal in float32
    tiny = np.finfo(np.float32).tiny
    return np.float32(max(float(scale), float(tiny)))


def weight_scales(weight: Tensor, spec: TensorSpec) -> Tensor:
    """Return `max|w| / qmax` per channel [channels] or per tensor [].

    A channel that is zero takes the largest scale of the others: its codes are 0 under any, and
    its bias, on the grid of this scale, stays as fine as theirs.
    """
    reach = (
        weight.detach().abs().amax()
        if spec.granularity is Granularity.TENSOR
        else weight.detach()
        .movedim(spec.axis, 0)
        .reshape(weight.shape[spec.axis], -1)
        .abs()
        .amax(1)
    )
    scale = (reach.double() / spec.qmax).float()
    usable = torch.clamp(scale, min=torch.finfo(torch.float32).tiny)
    alive = reach > 0
    spare = usable[alive].max() if bool(alive.any()) else torch.tensor(SPARE_SCALE)
    return torch.where(alive, usable, spare)


def bias_code_limit(codes_dtype: str) -> int:
    """Return the largest bias code beside activations of a type."""
    return BIAS_CODE_LIMIT if codes_dtype in ("int8", "uint8") else WIDE_BIAS_CODE_LIMIT


def raise_for_bias(
    scale: Tensor, bias: Tensor, input_scale: float, limit: int = BIAS_CODE_LIMIT
) -> tuple[Tensor, list[int]]:
    """Raise the weight scale of channels whose bias code would pass `limit`.

    Returns:
        The scales, and the channels that were raised.
    """
    codes = bias.double().abs() / (scale.double() * input_scale)
    over = codes > limit
    if not bool(over.any()):
        return scale, []
    raised = (bias.double().abs() / (input_scale * limit)).float() * (1 + 2.0**-20)
    channels = torch.nonzero(over.expand(scale.shape) if scale.dim() == 0 else over).flatten()
    if scale.dim() == 0:
        return torch.maximum(scale, raised.max()), [0]
    return torch.where(over, raised, scale), [int(c) for c in channels]


def on_grid(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Return the nearest bias on the int32 grid `s_x * s_w`, float32."""
    grid = input_scale.float() * weight_scale.float()
    return (bias_codes(bias, grid).double() * grid.double()).float()


def bias_codes(bias: Tensor, grid: Tensor) -> Tensor:
    """Return the codes of a bias, int32.

    A code above 2^24 keeps its first 22 bits, so that `float32(code * grid)` is one number whether
    the runtime stores it as a float or as the code, and gives the same code back.
    """
    codes = torch.round(bias.double() / grid.double())
    step = torch.exp2(torch.floor(torch.log2(codes.abs().clamp(min=1.0))) - 21)
    step = torch.where(codes.abs() > BIAS_CODE_LIMIT, step, 1.0)
    return (torch.round(codes / step) * step).to(torch.int32)
