"""Everything that a step may ask about a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from edgeopt.devices.rules import SCHEMA_VERSION, load_rules
from edgeopt.errors import ConfigError, ProfileError, nearest
from edgeopt.limits.limit import Limit
from edgeopt.registry.kinds import PROFILES, RULES
from edgeopt.registry.lookup import builtin, check_name, find_file, is_path

MAX_THREADS = 256
"""More would bring the machine down before they measured anything."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How latency is measured: in blocks, as sessions of one file differ for good.

    Attributes:
        threads: Threads of the runtime.
        warmup: Calls before the first sample of each session.
        samples: Samples of each file.
        block: Samples between re-creations of the sessions.
        batch: Batch size.
    """

    threads: int = 1
    warmup: int = 10
    samples: int = 240
    block: int = 24
    batch: int = 1

    def __post_init__(self) -> None:
        if min(self.threads, self.samples, self.block, self.batch) < 1 or self.warmup < 0:
            raise ConfigError("threads, samples, block and batch are at least 1")
        if self.threads > MAX_THREADS:
            raise ConfigError(f"threads are at most {MAX_THREADS}, not {self.threads}")


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """Which N:M patterns the kernels run, and when they pay.

    Attributes:
        n: Non-zeros kept.
        m: Group length.
        in_multiple: Reduction width must be a multiple of this.
        out_multiple: Output width must be a multiple of this.
        min_in: Below this reduction width the sparse kernel is not faster.
        min_out: Below this output width likewise.
        source: Where the rule comes from.
    """

    n: int
    m: int
    in_multiple: int
    out_multiple: int
    min_in: int
    min_out: int
    source: str


@dataclasses.dataclass(frozen=True)
class LowRankRule:
    """When two thin layers beat the one that they replace.

    Attributes:
        multiple: Ranks are multiples of this: the kernels' tile or alignment.
        min_width: A layer with fewer inputs or outputs stays whole: a second launch, and a value
            written and read between the two, cost more than they save.
        saving: Least share of the multiply-accumulates that must go, 0 to 1.
        source: Where the rule comes from.
    """

    multiple: int = 8
    min_width: int = 0
    saving: float = 0.0
    source: str = "edgeopt's own default"

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.min_width < 0 or not 0 <= self.saving < 1:
            raise ConfigError(
                "low_rank: multiple is at least 1, min_width at least 0, saving from 0 to below 1"
            )


@dataclasses.dataclass(frozen=True)
class Target:
    """One form of the model on a device: (format, runtime, backend) and its rules.

    Attributes:
        name: The target's name in reports and file names.
        format: The exporter: `onnx`, `tensorrt`, `executorch` or `qnn`.
        runtime: The runner that measures it.
        backend: Execution provider, delegate or GPU.
        rules: Name of the rule set, or path of its file.
        float_type: Type of what stays unquantized: `float32` or `float16`.
        protocol: How latency is measured.
        options: Options of the exporter: opset, optimization profiles, compute capability.
        minimum_runtime: The oldest runtime version that takes the file.
        yardstick: Also write the file with nothing quantized, to compare with.
    """

    name: str
    format: str
    runtime: str
    rules: str
    backend: str = "cpu"
    float_type: str = "float32"
    protocol: Protocol = Protocol()
    options: Mapping[str, int | float | str | bool] = dataclasses.field(default_factory=dict)
    minimum_runtime: str = ""
    yardstick: bool = True

    def __post_init__(self) -> None:
        if self.float_type not in ("float32", "float16"):
            raise ConfigError(f"float_type is float32 or float16, not {self.float_type!r}")


@dataclasses.dataclass(frozen=True)
class Fact:
    """One number about a device, with its source. A fact that is not known is left out.

    Attributes:
        name: What it is.
        value: The number.
        unit: Its unit.
        source: Where it was read; `derived:` with the arithmetic where it was computed.
    """

    name: str
    value: float
    unit: str
    source: str


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """A device.

    Attributes:
        name: The profile's name.
        title: The device in words.
        default_recipe: The recipe that `build` takes.
        targets: The forms made for it; the first one gives the verdict.
        stand_ins: Runtimes that run the model on this machine for numerics; their latency is
            shown with its machine and never gated.
        limits: Bounds that a build is judged by.
        sparsity: The N:M pattern that the kernels take, or None.
        low_rank: When low-rank factors pay.
        facts: Numbers with their sources.
        unknown: What is not known about the device, in words.
        runs_here: How a machine is recognised as the device: `any-cpu`, `cuda-sm80`, ... or empty.
    """

    name: str
    title: str
    default_recipe: str
    targets: tuple[Target, ...]
    stand_ins: tuple[Target, ...] = ()
    limits: tuple[Limit, ...] = ()
    sparsity: Sparsity | None = None
    low_rank: LowRankRule = LowRankRule()
    facts: tuple[Fact, ...] = ()
    unknown: tuple[str, ...] = ()
    runs_here: str = ""
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.targets:
            raise ProfileError(f"profile {self.name}: has no target")
        names = [t.name for t in (*self.targets, *self.stand_ins)]
        if len(set(names)) != len(names):
            raise ProfileError(f"profile {self.name}: target names repeat: {', '.join(names)}")

    def target(self, name: str) -> Target:
        """Return a target or stand-in by name.

        Raises:
            ProfileError: If there is none.
        """
        found = {t.name: t for t in (*self.targets, *self.stand_ins)}
        if name not in found:
            raise ProfileError(f"profile {self.name}: no target {name!r}{nearest(name, found)}")
        return found[name]


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles that ship with edgeopt."""
    return tuple(entry.name for entry in builtin(PROFILES))


def load_profile(name_or_path: str) -> DeviceProfile:
    """Return a profile by name, or one from a TOML file.

    A target's `rules` names a rule set, or is the path of its TOML file from the profile's folder;
    a path comes back as it is from here.

    Raises:
        ProfileError: For an unknown name (the nearest is suggested), or a file that does not fit.
        PluginError: If a plug-in names no file.
    """
    from edgeopt.files import read_toml

    path = find_file(PROFILES, name_or_path, error=ProfileError)
    profile = read_toml(path, DeviceProfile, error=ProfileError)
    if profile.schema != SCHEMA_VERSION:
        raise ProfileError(f"{path}: schema {profile.schema}; this edgeopt reads {SCHEMA_VERSION}")
    check_name(PROFILES, name_or_path, profile.name)
    return dataclasses.replace(
        profile,
        targets=tuple(_with_rules(target, path) for target in profile.targets),
        stand_ins=tuple(_with_rules(target, path) for target in profile.stand_ins),
    )


def _with_rules(target: Target, profile: Path) -> Target:
    if is_path(target.rules):
        rules = find_file(RULES, target.rules, beside=profile.parent, error=ProfileError)
        target = dataclasses.replace(target, rules=str(rules))
    load_rules(target.rules)
    return target
