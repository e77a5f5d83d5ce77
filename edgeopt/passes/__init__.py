"""The passes. Each family is a folder and each pass a file: the listing is the catalogue."""

from __future__ import annotations

from typing import Any

from edgeopt.errors import ConfigError, nearest
from edgeopt.passes.capture.capture import Capture
from edgeopt.passes.factorize.factorize_svd import FactorizeSVD
from edgeopt.passes.fold.fold_batch_norm import FoldBatchNorm
from edgeopt.passes.fuse.fuse_lora import FuseLora
from edgeopt.passes.legalize.drop_implied_activations import DropImpliedActivations
from edgeopt.passes.legalize.integer_bias import IntegerBias
from edgeopt.passes.legalize.signed_second_operands import SignedSecondOperands
from edgeopt.passes.legalize.symmetric_activations import SymmetricActivations
from edgeopt.passes.legalize.unsigned_activations import UnsignedActivations
from edgeopt.passes.prepare.decompose_attention import DecomposeAttention
from edgeopt.passes.prepare.flatten_attention import FlattenAttention
from edgeopt.passes.prepare.global_mean import GlobalMean
from edgeopt.passes.prepare.slice_splits import SliceSplits
from edgeopt.passes.prepare.slices_and_views import SlicesAndViews
from edgeopt.passes.prepare.tensor_scalars import TensorScalars
from edgeopt.passes.prune.prune_nm import PruneNM
from edgeopt.passes.quantize.calibrate import Calibrate
from edgeopt.passes.quantize.plan import PlanQuantization
from edgeopt.passes.quantize.quantize import Quantize
from edgeopt.pipeline.compiler_pass import Pass

ALL: tuple[type[Pass[Any]], ...] = (
    FuseLora,
    FoldBatchNorm,
    FactorizeSVD,
    PruneNM,
    Capture,
    DecomposeAttention,
    FlattenAttention,
    SliceSplits,
    SlicesAndViews,
    GlobalMean,
    TensorScalars,
    PlanQuantization,
    Calibrate,
    Quantize,
    DropImpliedActivations,
    SignedSecondOperands,
    UnsignedActivations,
    IntegerBias,
    SymmetricActivations,
)

if len({p.name for p in ALL}) != len(ALL):
    raise ConfigError("two passes have one name")


def by_name(name: str) -> type[Pass[Any]]:
    """Return a pass class.

    Raises:
        ConfigError: If there is none of that name; the nearest is suggested.
    """
    found = {p.name: p for p in ALL}
    if name not in found:
        raise ConfigError(f"pass {name!r} is not known{nearest(name, found)}")
    return found[name]
