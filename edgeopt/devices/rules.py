"""Rule sets: what the kernels of a runtime take."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from pathlib import Path

from edgeopt.errors import ConfigError, ProfileError
from edgeopt.quant.spec import TensorSpec
from edgeopt.registry.kinds import RULES
from edgeopt.registry.lookup import check_name, find_file

SCHEMA_VERSION = 1


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

    @property
    def x86(self) -> bool:
        """Whether these are kernels of x86 CPUs."""
        return self.isa.startswith("x86")

    def rule(self, operator: str) -> OperatorRule:
        """Return the rule of an operator; FLOAT where none is listed."""
        return self.operators.get(operator, OperatorRule(Compute.FLOAT, note="no integer kernel"))


def load_rules(name_or_path: str) -> RuleSet:
    """Return a rule set by name, or one from a TOML file.

    Raises:
        ProfileError: For an unknown name (the nearest is suggested), or a file that does not fit.
        PluginError: If a plug-in names no file.
    """
    path = find_file(RULES, name_or_path, error=ProfileError)
    try:
        written = path.stat().st_mtime_ns
    except OSError as failure:
        raise ProfileError(f"{path}: cannot be read: {failure.strerror or failure}") from None
    rules = _read(path, written)
    check_name(RULES, name_or_path, rules.name)
    return rules


@functools.cache
def _read(path: Path, _written: int) -> RuleSet:
    """Read a file once, and again after it was written again: passes ask for rules often."""
    from edgeopt.files import read_toml

    rules = read_toml(path, RuleSet, error=ProfileError)
    if rules.schema != SCHEMA_VERSION:
        raise ProfileError(f"{path}: schema {rules.schema}; this edgeopt reads {SCHEMA_VERSION}")
    return rules
