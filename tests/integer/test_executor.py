"""The reference executor: every operator's kernel, what has none, and whole programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from edgeopt.devices.rules import load_rules
from edgeopt.errors import ConfigError
from edgeopt.integer import kernels
from edgeopt.integer.arithmetic import ORT_MLAS, XNNPACK, Arithmetic, RoundingMode
from edgeopt.integer.executor import Executor, Step
from edgeopt.integer.kernels import Grid, Window
from edgeopt.integer.operators import HANDLERS
from edgeopt.ir.dialect import DEQUANTIZE, QUANTIZE, dequantize
from edgeopt.ir.edges import operator_name
from tests.small_models import Block, SmallCNN, context, normal, run, seeded

Array = np.ndarray[Any, Any]
TFLITE = Arithmetic("tflite", RoundingMode.SINGLE)
A = Grid.of(0.0431, -7, np.int8)
B = Grid.of(0.0119, 31, np.int8)
OUT = Grid.of(0.0523, -3, np.int8)
WIDE = Grid.of(0.3, 5, np.int8)
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "int16": (-9, 9)}


class Stored(nn.Module):
    """Quantizes and dequantizes on grids that are buffers, as captured programs do."""

    def hold(self, name: str, grid: Grid) -> None:
        self.register_buffer(f"{name}_scale", torch.tensor(grid.scale))
        self.register_buffer(f"{name}_zero", torch.tensor(grid.zero_point))

    def real(self, name: str, codes: Tensor, *, axis: int | None = None, kind: str = "") -> Tensor:
        scale, zero = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
        kind = kind or str(codes.dtype).removeprefix("torch.")
        return DEQUANTIZE(codes, scale, zero, axis, None, kind, torch.float32)

    def codes(self, name: str, x: Tensor, kind: str = "int8") -> Tensor:
        scale, zero = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
        low, high = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "int16": (-9, 9)}[
            kind
        ]
        return QUANTIZE(x, scale, zero, None, None, kind, low, high)


class Between(Stored):
    """One function of reals between codes; its weight and bias are stored as programs have them."""

    def __init__(
        self,
        body: Callable[..., Tensor],
        *,
        out: Grid = OUT,
        weight: Array | None = None,
        bias: bool = False,
        kind: str = "int8",
    ) -> None:
        super().__init__()
        self.body, self.kind = body, kind
        for name, grid in (("a", A), ("b", B), ("out", out)):
            self.hold(name, grid)
        self.weighted = weight is not None
        if weight is not None:
            self.hold("w", weights(weight))
            self.register_buffer("weight", torch.tensor(weight))
            on_grid = A.scale * weights(weight).scale
            values = np.arange(len(weight)).astype(np.float32) * 40 * on_grid
            self.bias = nn.Parameter(torch.tensor(values)) if bias else None

    def forward(self, *codes: Tensor) -> Tensor:
        reals = [self.real(name, c) for name, c in zip("ab", codes, strict=False)]
        if self.weighted:
            reals += [self.real("w", self.weight, axis=0)]
            reals += [self.bias] if self.bias is not None else []
        return self.codes("out", self.body(*reals), self.kind)


def weights(codes: Array) -> Grid:
    scales = np.linspace(0.5, 2.0, len(codes)).astype(np.float32) * np.float32(2**-7)
    return Grid.of(scales, np.zeros(len(codes)), np.int8)


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def exported(module: nn.Module, *inputs: Array, dynamic: Any = None) -> ExportedProgram:
    arguments = tuple(torch.tensor(x) for x in inputs)
    with torch.no_grad():
        return torch.export.export(module.eval(), arguments, dynamic_shapes=dynamic)


FILTERS = drawn(6, 4, 3, 3, seed=5)
PLANE = drawn(2, 4, 7, 9)
ROWS = drawn(5, 8)


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator, what it reads, and the same in double precision."""

    operator: str
    body: Callable[..., Tensor]
    inputs: tuple[Array, ...]
    weight: Array | None = None
    bias: bool = False
    out: Grid = OUT


CASES = {
    "conv2d": Case(
        "conv2d",
        lambda x, w, b: functional.conv2d(x, w, b, (2, 1), (1, 0), (1, 2)),
        (PLANE,),
        FILTERS,
        bias=True,
        out=WIDE,
    ),
    "conv2d groups": Case(
        "conv2d",
        lambda x, w: functional.conv2d(x, w, None, 1, 1, 1, 2),
        (PLANE,),
        FILTERS[:, :2],
    ),
    "conv1d": Case(
        "conv1d",
        lambda x, w, b: functional.conv1d(x, w, b, 2, 1),
        (PLANE[:, :, 0],),
        FILTERS[..., 0],
        bias=True,
    ),
    "linear": Case("linear", functional.linear, (ROWS,), drawn(6, 8, seed=1), bias=True),
    "linear 3d": Case("linear", functional.linear, (drawn(2, 3, 8),), drawn(6, 8, seed=1)),
    "linear relu": Case(
        "linear",
        lambda x, w, b: functional.relu(functional.linear(x, w, b)),
        (ROWS,),
        drawn(6, 8, seed=1),
        bias=True,
    ),
    "conv2d relu6": Case(
        "conv2d",
        lambda x, w: functional.relu6(functional.conv2d(x, w)),
        (PLANE,),
        FILTERS,
        out=WIDE,
    ),
    "linear hardtanh": Case(
        "linear",
        lambda x, w: functional.hardtanh(functional.linear(x, w), -0.7, 1.9),
        (ROWS,),
        drawn(6, 8, seed=1),
    ),
    "add": Case("add", lambda a, b: a + b, (PLANE, drawn(4, 1, 9, seed=2))),
    "add relu": Case("add", lambda a, b: (a + b).relu(), (PLANE, drawn(4, 1, 9, seed=2))),
    "mul": Case("mul", lambda a, b: a * b, (PLANE, drawn(4, 1, 9, seed=2))),
    "sub": Case("sub", lambda a, b: a - b, (PLANE, drawn(4, 1, 9, seed=2))),
    "mean": Case("mean", lambda x: x.mean([-1, 2], keepdim=True), (PLANE,)),
    "mean squeezed": Case("mean", lambda x: x.mean([2, 3]), (PLANE,)),
    "max pool": Case("max_pool2d", lambda x: functional.max_pool2d(x, 2), (PLANE,)),
    "max pool forms": Case(
        "max_pool2d",
        lambda x: functional.max_pool2d(x, (3, 2), (2, 4), (1, 0), (1, 2), ceil_mode=True),
        (PLANE,),
    ),
    "view": Case("view", lambda x: x.view(8, 63), (PLANE,)),
    "reshape": Case("reshape", lambda x: x.reshape(2, -1), (PLANE,)),
    "flatten": Case("flatten", lambda x: x.flatten(1), (PLANE,)),
    "permute": Case("permute", lambda x: x.permute(0, 2, 3, 1), (PLANE,)),
    "transpose": Case("transpose", lambda x: x.transpose(1, 3), (PLANE,)),
    "unsqueeze": Case("unsqueeze", lambda x: x.unsqueeze(1), (PLANE,)),
    "slice": Case("slice", lambda x: x[:, 1:3], (PLANE,)),
    "cat": Case("cat", lambda a, b: torch.cat([b, a, b], 1), (PLANE, drawn(2, 3, 7, 9, seed=3))),
    "pad": Case("pad", lambda x: functional.pad(x, (0, 1, 2, 0)), (PLANE,)),
    "pad value": Case("pad", lambda x: functional.pad(x, (1, 1), value=2.5), (PLANE,)),
    "pad reflect": Case("pad", lambda x: functional.pad(x, (2, 1, 1, 0), "reflect"), (PLANE,)),
    "constant pad": Case(
        "constant_pad_nd", lambda x: torch.constant_pad_nd(x, (1, 0), -1.5), (PLANE,)
    ),
}  # fmt: skip


def in_double(case: Case) -> Array:
    """Return what the case gives in double precision, in steps of its output's grid."""
    reals = [
        (torch.tensor(codes).double() - float(grid.zero_point)) * float(grid.scale)
        for codes, grid in zip(case.inputs, (A, B), strict=False)
    ]
    if case.weight is not None:
        scale = torch.tensor(weights(case.weight).along(0, case.weight.ndim).scale).double()
        reals.append(torch.tensor(case.weight).double() * scale)
    if case.bias:
        module = Between(case.body, weight=case.weight, bias=True)
        reals.append(module.bias.detach().double())
    found = case.body(*reals).numpy() / float(case.out.scale) + float(case.out.zero_point)
    return np.clip(found, -128, 127)


COMPUTED = [
    pytest.param(name, arithmetic, id=f"{name}-{arithmetic.name}")
    for name, case in CASES.items()
    for arithmetic in (ORT_MLAS, XNNPACK, TFLITE)
    if case.operator != "sub" or arithmetic.subtracts
]


@pytest.mark.parametrize(("name", "arithmetic"), COMPUTED)
def test_an_operator_between_codes_is_computed_by_its_kernel(
    name: str, arithmetic: Arithmetic
) -> None:
    case = CASES[name]
    module = Between(case.body, weight=case.weight, bias=case.bias, out=case.out)
    executor = Executor(exported(module, *case.inputs), arithmetic)
    (step,) = executor.steps
    assert step.name == case.operator
    assert step.reason == ""
    assert executor.floats == {}
    trace = executor.run(case.inputs)
    (got,) = trace.outputs
    np.testing.assert_array_equal(got, trace.codes[step.quantize])
    wanted = in_double(case)
    assert got.dtype == np.int8
    assert got.shape == wanted.shape
    # half a step of the final rounding; scales and multipliers of 20 bits and more add under 2^-10
    assert np.abs(got - wanted).max() <= 0.5 + 2.0**-10
    assert len(np.unique(got)) > 5


def test_every_handler_has_a_case() -> None:
    assert {case.operator for case in CASES.values()} == set(HANDLERS)


def test_a_kernel_gets_grids_window_groups_and_bias_of_its_operator() -> None:
    case = CASES["conv2d"]
    assert case.weight is not None
    module = Between(case.body, weight=case.weight, bias=True, out=case.out)
    executor = Executor(exported(module, *case.inputs), XNNPACK)
    window = Window.of((3, 3), (2, 1), (1, 0, 1, 0), (1, 2))
    bias = (np.arange(6) * 40).astype(np.int32)
    wanted = kernels.conv(
        PLANE, A, FILTERS, weights(FILTERS), WIDE, window, bias=bias, arithmetic=XNNPACK
    )
    np.testing.assert_array_equal(executor.run(case.inputs).outputs[0], wanted)
    others = kernels.conv(PLANE, A, FILTERS, weights(FILTERS), WIDE, window, arithmetic=XNNPACK)
    assert (others != wanted).any(), "the bias shows"


def test_the_arithmetic_decides_where_ties_go() -> None:
    every = np.repeat(np.arange(-128, 128, dtype=np.int8), 256)
    other = np.tile(np.arange(-128, 128, dtype=np.int8), 256)
    module = Between(lambda a, b: a + b)
    for name, value in (("a", (0.0625, 3)), ("b", (0.03125, -5)), ("out", (0.125, 7))):
        module.hold(name, Grid.of(*value, np.int8))
    found = exported(module, every, other)
    grids = [Grid.of(*value, np.int8) for value in ((0.0625, 3), (0.03125, -5), (0.125, 7))]
    outputs = {}
    for arithmetic in (ORT_MLAS, XNNPACK):
        (outputs[arithmetic.name],) = Executor(found, arithmetic).run([every, other]).outputs
        np.testing.assert_array_equal(
            outputs[arithmetic.name],
            kernels.add(every, grids[0], other, grids[1], grids[2], arithmetic),
        )
    assert (outputs["ort_mlas"] != outputs["xnnpack"]).any()


def test_codes_stay_in_a_range_that_is_narrower_than_their_type() -> None:
    out = Grid.of(0.5, 1, np.int8)
    narrow = exported(Between(lambda a, b: a + b, out=out, kind="int4"), PLANE, PLANE)
    whole = exported(Between(lambda a, b: a + b, out=out), PLANE, PLANE)
    (got,) = Executor(narrow, ORT_MLAS).run([PLANE, PLANE]).outputs
    (wide,) = Executor(whole, ORT_MLAS).run([PLANE, PLANE]).outputs
    np.testing.assert_array_equal(got, np.clip(wide, -8, 7))
    assert wide.max() > 7


class Formless(Stored):
    """Forms that no kernel has: each gives codes of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name, grid in (("a", A), ("out", OUT), ("c", Grid.of([0.1] * 4, [0] * 4, np.int8))):
            self.hold(name, grid)
        self.register_buffer("weight", torch.tensor(FILTERS[:4]))
        self.hold("w", weights(FILTERS[:4]))
        self.register_buffer("blocks", torch.full((2, 1, 7, 9), 0.05))
        self.register_buffer("zeros", torch.zeros((2, 1, 7, 9), dtype=torch.int8))

    def forward(self, x: Tensor, wide: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        real, filters = self.real("a", x), self.real("w", self.weight, axis=0)
        blocks = DEQUANTIZE(x, self.blocks, self.zeros, None, [1, 4, 1, 1], "int8", torch.float32)
        results = (
            real.mean([1]),
            functional.conv2d(real, filters, bias, padding=1),
            functional.conv2d(real, filters, padding="same"),
            torch.add(real, self.real("a", x), alpha=2),
            self.real("a", wide, kind="int16") + real,
            self.real("c", x, axis=1) + real,
            blocks + real,
            real - self.real("a", x),
        )
        return (*(self.codes("out", r) for r in results), self.codes("out", real * real, "int16"))


REASONS = (
    ("mean", "a mean over [1] of 4 dimensions"),
    ("conv2d", "the bias is not stored"),
    ("conv2d", "argument 4 is 'same'"),
    ("add", "alpha 2"),
    ("add", "operand 0 has int16 codes"),
    ("add", "operand 0 has a scale for each channel of axis 1"),
    ("add", "blocks of scales"),
    ("sub", "arithmetic ort_mlas has no integer subtraction"),
    ("mul", "the output has int16 codes"),
)


def by_torch(found: ExportedProgram, *inputs: Array) -> list[Array]:
    """Return what torch makes of a program: float operators, and the dialect's own rounding."""
    outputs = found.module()(*(torch.tensor(x) for x in inputs))
    return [o.detach().numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]


def test_a_form_without_a_kernel_is_named_and_computed_in_float() -> None:
    inputs = (PLANE, PLANE.astype(np.int16) * 3, np.array([3, -1, 0, 0.5], np.float32))
    found = exported(Formless(), *inputs)
    executor = Executor(found, ORT_MLAS)
    assert [(step.name, step.reason) for step in executor.steps] == list(REASONS)
    for step in executor.steps:
        assert step.kernel is None
        assert step.operator is not None
        assert executor.floats[step.operator] == step.reason
        assert executor.codes(step, {}) is None
    assert len(executor.floats) == len(REASONS)
    outputs = executor.run(inputs).outputs
    for got, wanted in zip(outputs, by_torch(found, *inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


class Islands(Stored):
    """An operator without a handler, one that reads floats, and one that nobody quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.hold("a", A)
        self.hold("out", OUT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        real = self.real("a", x)
        sine = self.codes("out", torch.sin(real))
        shifted = self.codes("out", torch.exp(real).view(-1) + 1.0)
        return sine, shifted, real * real


def test_an_operator_without_a_handler_is_named_with_the_reason() -> None:
    found = exported(Islands(), PLANE)
    executor = Executor(found, XNNPACK)
    assert {operator_name(node): reason for node, reason in executor.floats.items()} == {
        "sin": "no integer kernel for sin",
        "exp": "no integer kernel for exp",
        "add": "it reads floats",
        "mul": "its result is not quantized",
    }
    assert [(step.name, step.operator) for step in executor.steps] == [("quantize", None)] * 2
    sine, shifted, square = executor.run([PLANE]).outputs
    real = dequantize(
        torch.tensor(PLANE), torch.tensor(A.scale), torch.tensor(A.zero_point),
        None, None, "int8", torch.float32,
    )  # fmt: skip
    # floats become codes as the runtime's arithmetic quantizes, not as torch does
    np.testing.assert_array_equal(sine, kernels.quantize(real.sin().numpy(), OUT, XNNPACK))
    plus_one = (real.exp() + 1).flatten().numpy()
    np.testing.assert_array_equal(shifted, kernels.quantize(plus_one, OUT, XNNPACK))
    np.testing.assert_array_equal(square, (real * real).numpy())


def test_an_activation_that_others_read_too_is_no_part_of_a_kernel() -> None:
    class Twice(Islands):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = functional.relu(self.real("a", x) * self.real("a", x))
            return self.codes("out", y), torch.sin(y)

    executor = Executor(exported(Twice(), PLANE), XNNPACK)
    (step,) = executor.steps
    assert step.operator is None
    assert {operator_name(node) for node in executor.floats} == {"mul", "relu", "sin"}


class Border(Islands):
    """A border between codes, in front of a sum."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        padded = self.codes("a", functional.pad(self.real("a", x), (1, 0)))
        return self.codes("out", self.real("a", padded) + self.real("a", padded))


def test_a_step_is_computed_from_what_is_known() -> None:
    executor = Executor(exported(Border(), PLANE), XNNPACK)
    border, total = executor.steps
    assert (border.moves, total.moves) == (True, False)
    (x,) = (n for n in border.quantize.graph.nodes if n.op == "placeholder" and n.name == "x")
    assert executor.codes(total, {}) is None
    padded = np.pad(PLANE, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=A.zero_point)
    wanted = kernels.add(padded, A, padded, A, OUT, XNNPACK)
    np.testing.assert_array_equal(executor.codes(total, {x: PLANE}), wanted)
    # a runtime's own codes are taken as they are
    np.testing.assert_array_equal(
        executor.codes(total, {border.quantize: PLANE, x: padded}),
        kernels.add(PLANE, A, PLANE, A, OUT, XNNPACK),
    )


class Legalized(Stored):
    """Codes of pixels, and a bias as int32 codes, as some targets want it."""

    def __init__(self) -> None:
        super().__init__()
        self.hold("a", Grid.of(0.02, 128, np.uint8))
        self.hold("out", Grid.of(0.1, 100, np.uint8))
        self.hold("w", weights(drawn(6, 8, seed=1)))
        self.hold(
            "bias", Grid.of(np.float32(0.02) * weights(drawn(6, 8, seed=1)).scale, 0, np.int8)
        )
        self.register_buffer("weight", torch.tensor(drawn(6, 8, seed=1)))
        self.register_buffer("codes_of_bias", torch.arange(-3000, 3000, 1000, dtype=torch.int32))

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.real("w", self.weight, axis=0)
        bias = self.real("bias", self.codes_of_bias, axis=0)
        y = functional.linear(self.real("a", pixels), weight, bias)
        return self.codes("out", y, "uint8")


def test_unsigned_codes_and_a_bias_of_codes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8)).astype(np.uint8)
    executor = Executor(exported(Legalized(), pixels), ORT_MLAS)
    assert executor.floats == {}
    weight = drawn(6, 8, seed=1)
    wanted = kernels.gemm(
        pixels,
        Grid.of(0.02, 128, np.uint8),
        weight.T,
        weights(weight),
        Grid.of(0.1, 100, np.uint8),
        bias=np.arange(-3000, 3000, 1000).astype(np.int32),
    )
    np.testing.assert_array_equal(executor.run([pixels]).outputs[0], wanted)


def test_sizes_that_are_dynamic_are_read_from_the_inputs() -> None:
    class Flat(Border):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.codes("a", self.real("a", x).view(x.shape[0], -1))
            return self.codes("out", self.real("a", flat) + self.real("a", flat))

    found = exported(Flat(), PLANE, dynamic=({0: Dim("batch")},))
    executor = Executor(found, XNNPACK)
    assert [step.name for step in executor.steps] == ["view", "add"]
    more = drawn(5, 4, 7, 9, seed=8)
    (got,) = executor.run([more]).outputs
    np.testing.assert_array_equal(got, kernels.add(more, A, more, A, OUT, XNNPACK).reshape(5, -1))


def test_another_number_of_inputs_is_refused() -> None:
    executor = Executor(exported(Border(), PLANE), XNNPACK)
    with pytest.raises(ConfigError, match="executor: 2 inputs, and the program takes 1"):
        executor.run([PLANE, PLANE])


def quantized(kind: type[nn.Module], *shape: int) -> tuple[ExportedProgram, Array]:
    """Return a model after the passes that XNNPACK's rules ask for, and an input."""
    example = normal(*shape)
    passes = ("capture", *load_rules("xnnpack").prepare, "plan", "calibrate", "quantize")
    state = run(seeded(kind), context(example, rules="xnnpack"), *passes)
    return state.carrier_programs["forward"], example.numpy()


class Recorder(TorchDispatchMode):
    """Notes the operators that torch runs in float."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.names.add(str(func).split(".")[1])
        return result


def addresses(steps: tuple[Step, ...]) -> list[str]:
    return [step.address for step in steps if not step.moves]


def test_a_whole_network_runs_in_integers() -> None:
    found, x = quantized(SmallCNN, 4, 3, 8, 8)
    executor = Executor(found, XNNPACK)
    assert executor.floats == {}
    assert addresses(executor.steps) == [
        "x:input/q.out#0",
        "stem:conv2d#0",
        "depthwise:conv2d#0",
        "expand:conv2d#0",
        ":add#0",
        "pool:max_pool2d#0",
        "gap:adaptive_avg_pool2d/mean#0",
        "head:linear#0",
    ]
    with Recorder() as ran:
        trace = executor.run([x])
    # nothing that a kernel computes is computed in float as well
    with Recorder() as float_program:
        (wanted,) = by_torch(found, x)
    products = {"convolution", "addmm", "add", "mean", "relu"}
    assert float_program.names >= products
    assert ran.names.isdisjoint(products)
    for step in executor.steps:
        if step.operator is not None:
            by_itself = executor.codes(step, trace.codes)
            np.testing.assert_array_equal(by_itself, trace.codes[step.quantize])
    (logits,) = trace.outputs
    step_size = float(np.abs(np.diff(np.unique(wanted))).min())
    assert logits.dtype == np.float32
    assert logits.shape == wanted.shape
    # torch rounds ties and factors elsewhere: a code here and there, and what comes of it
    assert np.abs(logits - wanted).max() <= 2.5 * step_size
    assert np.abs(wanted).max() > 20 * step_size


def test_the_float_parts_of_a_transformer_are_named_and_run() -> None:
    found, x = quantized(Block, 4, 4, 16)
    executor = Executor(found, XNNPACK)
    reasons = {operator_name(node): reason for node, reason in executor.floats.items()}
    assert reasons == {
        "layer_norm": "no integer kernel for layer_norm",
        "mul": "it reads floats",
        "bmm": "no integer kernel for bmm",
        "softmax": "no integer kernel for softmax",
        "gelu": "no integer kernel for gelu",
        "add": "it reads floats",
    }
    products = [step for step in executor.steps if step.name == "linear"]
    assert [step.address for step in products] == [
        "attn.qkv:linear#0",
        "attn.proj:linear#0",
        "fc1:linear#0",
        "fc2:linear#0",
    ]
    (got,) = executor.run([x]).outputs
    (wanted,) = by_torch(found, x)
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
