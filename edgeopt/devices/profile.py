"""Everything that a step may ask about a device."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from edgeopt.errors import ConfigError, ProfileError, nearest
from edgeopt.quant.spec import TensorSpec

SCHEMA_VERSION = 1
MAX_THREADS = 256
"""More would bring the machine down before they measured anything."""


class Compute(enum.Enum):
    """How a rule set treats an operator.

    Attributes:
        WEIGHTED: Multiplies by a weight; inputs, weight and bias are quantized.
        INTEGER: Has an integer kernel when every activation around it is quantized.
        FOLLOW: Moves codes without changing them; input and output share parameters.
        ABSORB: An activation that the producer's output range already expresses.
        TABLE: Picks rows of its first input; where a weighted operator reads that table too (a
            tied head), both read the same codes.
        FLOAT: Stays float.
    """

    WEIGHTED = "weighted"
    INTEGER = "integer"
    FOLLOW = "follow"
    ABSORB = "absorb"
    TABLE = "table"
    FLOAT = "float"


@dataclasses.dataclass(frozen=True)
class OperatorRule:
    """What a runtime's kernels do with one operator.

    Attributes:
        compute: How it is treated.
        output: For WEIGHTED: `int8` if the kernel must also write codes, `float` if it may write
            floats, `sparse-int8` if only under an N:M contract.
        reads: `float` if its float kernel fuses with what feeds it, so that codes before it cost
            more than they save; `any` otherwise.
        constants: Its kernel takes codes of a stored tensor too (a position embedding, the weight
            of a normalization); they are quantized as activations are.
        output_range: The range that its kernel assumes for its codes, whatever was measured; empty
            where any range will do.
        fuses: Activations that its kernel takes in, of those that are absorbed; `any` for all.
        note: Why; shown where the operator stays float.
    """

    compute: Compute
    output: str = "float"
    reads: str = "any"
    constants: bool = False
    output_range: tuple[float, float] | tuple[()] = ()
    fuses: tuple[str, ...] = ("any",)
    note: str = ""

    def __post_init__(self) -> None:
        if self.output not in ("float", "int8", "sparse-int8"):
            raise ConfigError(f"output is float, int8 or sparse-int8, not {self.output!r}")
        if self.reads not in ("any", "float"):
            raise ConfigError(f"reads is any or float, not {self.reads!r}")


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """The quantization rules of one (runtime, instruction set).

    Attributes:
        name: Also the file's name.
        runtime: Whose kernels these are.
        isa: The instruction set, or empty.
        weight: How weights are quantized.
        activation: How activations are quantized in the plan (before legalization).
        operators: Operator name (`linear`, `conv2d`, `add`) -> rule; others stay float.
        bias_bits: 32: the bias lies on its int32 grid.
        prepare: Passes that bring the float graph to the runtime's form before it is planned; the
            float yardstick gets them too.
        whole_graph: What is not codes runs on another processor: inputs, outputs and what only
            moves data are quantized as well, and every operator that stays float is named.
        activation_bits: Other widths of activation codes that the kernels take; `plan` chooses.
        legalize: Passes that bring the quantized graph to the runtime's form, in order.
        weight_bits_without_vnni: On a CPU that saturates u8 x s8 products: use this width.
        accumulator_bits: Width of the integer accumulator.
        wide_accumulator_bits: Its width where activations have more than 8 bits.
        source: Where the rules come from.
    """

    name: str
    runtime: str
    weight: TensorSpec
    activation: TensorSpec
    operators: Mapping[str, OperatorRule]
    legalize: tuple[str, ...]
    source: str
    whole_graph: bool = False
    activation_bits: tuple[int, ...] = ()
    isa: str = ""
    bias_bits: int = 32
    prepare: tuple[str, ...] = ()
    weight_bits_without_vnni: int = 7
    accumulator_bits: int = 32
    wide_accumulator_bits: int = 32
    schema: int = SCHEMA_VERSION

    def rule(self, operator: str) -> OperatorRule:
        """Return the rule of an operator; FLOAT where none is listed."""
        return self.operators.get(operator, OperatorRule(Compute.FLOAT, note="no integer kernel"))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How latency is measured (DESIGN.md section 8).

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
class Limit:
    """A bound on one measured or structural quantity.

    Attributes:
        name: One of `LIMITS`.
        maximum: The value must not be above, or None.
        minimum: The value must not be below, or None.
        method: The program's method that it speaks of.
        source: Why this bound.
    """

    name: str
    maximum: float | None = None
    minimum: float | None = None
    method: str = "forward"
    source: str = ""

    def __post_init__(self) -> None:
        if self.name not in LIMITS:
            raise ConfigError(f"limit {self.name!r} is not known{nearest(self.name, LIMITS)}")
        if (self.maximum is None) == (self.minimum is None):
            raise ConfigError(f"limit {self.name}: give either maximum or minimum")

    @property
    def text(self) -> str:
        """The bound as people write it: `drop<=1`."""
        if self.maximum is not None:
            return f"{self.name}<={self.maximum:g}"
        return f"{self.name}>={self.minimum:g}"

    @staticmethod
    def parse(text: str) -> Limit:
        """Read `drop<=1` or `speedup>=1.6`.

        Raises:
            ConfigError: For any other form, or an unknown name.
        """
        for sign in ("<=", ">="):
            name, found, number = text.partition(sign)
            if found:
                try:
                    value = float(number)
                    if math.isnan(value):
                        raise ValueError
                except ValueError:
                    raise ConfigError(f"limit {text!r}: {number!r} is not a number") from None
                if sign == "<=":
                    return Limit(name.strip(), maximum=value, source="command line")
                return Limit(name.strip(), minimum=value, source="command line")
        raise ConfigError(f"a limit is NAME<=NUMBER or NAME>=NUMBER, not {text!r}")


LIMITS: Mapping[str, tuple[str, str]] = {
    # name: (unit, what it is)
    "latency_p50_ms": ("ms", "median latency of one call, measured on the device"),
    "latency_p99_ms": ("ms", "99th percentile of the latency, measured on the device"),
    "speedup": ("ratio", "float latency over quantized latency, interleaved, same runtime"),
    "size_mb": ("MB", "size of the target's model file, 10^6 bytes"),
    "peak_memory_mb": ("MB", "peak resident set of a process that loads and runs the file"),
    "drop": ("metric units", "loss of the task metric against the float model, paired"),
    "agreement": ("%", "share of samples whose answer equals the float model's"),
    "snr_db": ("dB", "signal-to-noise ratio of the outputs against the float model"),
    "int8_macs": ("share", "share of the multiply-accumulates that run in INT8"),
    "float_gemms": ("count", "weighted operators (convolutions, linears) that stay float"),
    "partitions": ("count", "pieces of the program that the accelerator or delegate takes"),
    "delegated_share": ("share", "share of the operators that the accelerator or delegate takes"),
    "fused_attentions": ("count", "attentions that the device's compiler fuses into one kernel"),
    "macs": ("count", "multiply-accumulates of one call"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """One form of the model on a device: (format, runtime, backend) and its rules.

    Attributes:
        name: The target's name in reports and file names.
        format: The exporter: `onnx`, `tensorrt`, `executorch` or `qnn`.
        runtime: The runner that measures it.
        backend: Execution provider, delegate or GPU.
        rules: Name of the rule set.
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


def _folder() -> Path:
    return Path(str(resources.files("edgeopt.device_profiles")))


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles that ship with edgeopt."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def load_profile(name_or_path: str) -> DeviceProfile:
    """Return a shipped profile by name, or one from a TOML file.

    Raises:
        ProfileError: For an unknown name (the nearest is suggested), or a file that does not fit.
    """
    from edgeopt.files import read_toml

    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    else:
        if name_or_path not in profile_names():
            raise ProfileError(
                f"profile {name_or_path!r} is not known{nearest(name_or_path, profile_names())}"
            )
        path = _folder() / f"{name_or_path}.toml"
    profile = read_toml(path, DeviceProfile, error=ProfileError)
    if profile.schema != SCHEMA_VERSION:
        raise ProfileError(f"{path}: schema {profile.schema}; this edgeopt reads {SCHEMA_VERSION}")
    for target in (*profile.targets, *profile.stand_ins):
        load_rules(target.rules)
    return profile


@functools.cache
def load_rules(name: str) -> RuleSet:
    """Return a rule set by name.

    Raises:
        ProfileError: If there is none of that name, or it does not fit.
    """
    from edgeopt.files import read_toml

    known = sorted(path.stem for path in (_folder() / "rules").glob("*.toml"))
    if name not in known:
        raise ProfileError(f"rule set {name!r} is not known{nearest(name, known)}")
    return read_toml(_folder() / "rules" / f"{name}.toml", RuleSet, error=ProfileError)
