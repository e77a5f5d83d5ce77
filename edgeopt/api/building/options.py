"""What `edgeopt build` is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.models.loaded import LoadedModel

INPUT_FORMS = ("float", "uint8-nhwc")


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        model: A model as named on the command line, or one that is loaded already.
        profile: A profile's name or TOML file.
        recipe: A recipe's name or TOML file, or None: the profile's own.
        calib: Calibration data, or None: the model's own.
        eval: Evaluation data, or None: the model's own.
        metric: How answers are judged, or None: the model's own.
        formats: Only targets of these formats; `onnx:float16` adds a float16 file.
        settings: `pass.option=value`.
        keep_float: Address globs that stay float.
        batch: Batch size of the files, or None: the protocol's.
        dynamic: Names of dimensions that stay dynamic (`batch`, `sequence`, ...: the model's).
        input_form: `float`, or `uint8-nhwc`: the picture input takes 8-bit pixels, channels last,
            and the file normalizes them.
        quantized_io: Inputs take and outputs give codes, where they are quantized at the border.
        out: The bundle's folder, or None: `dist/MODEL-PROFILE`.
        limits: `NAME<=NUMBER` or `NAME>=NUMBER`; replace the profile's of that name.
        adapters: PEFT LoRA folders, each `DIR` or `DIR@WEIGHT`, fused before the float reference is
            taken, so that accuracy is judged against the adapted model.
        seed: Seed of every draw.
        calib_samples: Samples drawn from the calibration data.
        eval_samples: Samples drawn from the evaluation data, or None: all.
        samples: Latency samples of each file, or None: the protocol's.
        latency: Measure latency.
        drift: Rank layers by drift.
        verify: `full`, `edited` or `off`.
        lock: The lock that these options came from, or None; the build is held against it.
    """

    model: str | LoadedModel = "zoo:vit"
    profile: str = "orin"
    recipe: str | None = None
    calib: Any = None
    eval: Any = None
    metric: Any = None
    formats: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    batch: int | None = None
    dynamic: tuple[str, ...] = ()
    input_form: str = "float"
    quantized_io: bool = False
    out: Path | None = None
    limits: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    seed: int = 0
    calib_samples: int = 64
    eval_samples: int | None = None
    samples: int | None = None
    latency: bool = True
    drift: bool = True
    verify: str = "full"
    lock: Path | None = None

    def __post_init__(self) -> None:
        """Take what Python callers naturally write: a path as text, one pattern without a tuple."""
        for name in ("formats", "settings", "keep_float", "dynamic", "limits"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        given = (self.adapters,) if isinstance(self.adapters, (str, Path)) else self.adapters
        object.__setattr__(self, "adapters", tuple(str(adapter) for adapter in given))
        for name in ("out", "lock"):
            value = getattr(self, name)
            object.__setattr__(self, name, Path(value) if value is not None else None)
        if self.input_form not in INPUT_FORMS:
            raise ConfigError(f"input is {' or '.join(INPUT_FORMS)}, not {self.input_form!r}")
        for name in ("batch", "calib_samples", "eval_samples", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is at least 1, not {value}")
