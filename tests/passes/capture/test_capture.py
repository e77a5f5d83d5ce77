"""`capture` turns a module into a functional graph that owns its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.contracts.tied import Tied
from edgeopt.errors import CaptureError, PassError
from edgeopt.ir import edges, program
from edgeopt.ir.digests import digest
from edgeopt.passes.capture.capture import Capture, CaptureConfig
from edgeopt.pipeline.state import ModelState, Stage
from tests.small_models import SmallCNN, context, normal, run, seeded


def capture(module: nn.Module, *args: Any, **changes: Any) -> ModelState:
    return run(module, context(*args, **changes), "capture")


def operators(state: ModelState) -> list[str]:
    graph = state.carrier_programs["forward"].graph
    return [edges.operator_name(n) for n in graph.nodes if n.op == "call_function"]


def outputs(state: ModelState, *args: Any, **kwargs: Any) -> Any:
    return program.run(state.carrier_programs["forward"], args, kwargs)


def wrapped(forward: Any) -> nn.Module:
    """Return a module of one linear, `self.layer`, with the given forward."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.drop = nn.Dropout(0.5)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

    return seeded(Wrapped)


X = normal(2, 4)


def test_a_captured_model_gives_the_same_outputs_at_the_next_stage() -> None:
    module = seeded(SmallCNN)
    x = normal(4, 3, 8, 8)
    state = capture(module, x)
    assert state.stage is Stage.GRAPH
    assert state.module is None
    assert state.history[-1].changes == {"the model": "captured 10 operators"}
    assert torch.equal(outputs(state, x), module(x))


# --- the batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_dynamic_where_the_model_allows_it(batch: int) -> None:
    module = seeded(SmallCNN)
    x = normal(batch, 3, 8, 8)
    # kernels may block another batch in another way: a few float32 roundings
    torch.testing.assert_close(
        outputs(capture(module, normal(4, 3, 8, 8)), x), module(x), rtol=1e-5, atol=1e-6
    )


def test_a_model_that_fixes_its_batch_is_captured_as_it_is_and_says_so() -> None:
    module = wrapped(lambda self, x: self.layer(x).reshape(8))
    state = capture(module, X)
    assert state.history[-1].notes == ("the batch is static: the model fixes it",)
    shape = state.carrier_programs["forward"].graph.find_nodes(op="output")[0].args[0][0].meta
    assert tuple(shape["val"].shape) == (8,)
    with pytest.raises(RuntimeError):
        outputs(state, normal(3, 4))


def test_a_static_batch_can_be_asked_for() -> None:
    state = run(
        seeded(SmallCNN),
        context(normal(4, 3, 8, 8)),
        Capture(CaptureConfig(dynamic_batch=False)),
    )
    assert state.carrier_programs["forward"].range_constraints == {}
    assert state.history[-1].notes == ()


def test_the_users_dynamic_shapes_are_used() -> None:
    module = wrapped(lambda self, x: self.layer(x))
    shapes = (({0: torch.export.Dim.STATIC, 1: torch.export.Dim("tokens", max=16)},),)
    state = capture(module, normal(2, 5, 4), dynamic_shapes=shapes)
    assert outputs(state, normal(2, 9, 4)).shape == (2, 9, 4)
    with pytest.raises((RuntimeError, AssertionError)):
        outputs(state, normal(2, 17, 4))


# --- inputs and outputs --------------------------------------------------------------------------


def test_keyword_inputs_and_outputs_of_any_kind_are_kept() -> None:
    def forward(self: Any, *, x: Tensor, mask: Tensor) -> dict[str, Any]:
        y = self.layer(x) * mask
        return {"logits": y, "more": (y + 1, [y - 1])}

    module = wrapped(forward)
    mask = torch.tensor([[1.0], [0.0]])
    state = capture(module, kwargs={"x": X, "mask": mask})
    found = outputs(state, x=X, mask=mask)
    assert set(found) == {"logits", "more"}
    assert torch.equal(found["more"][1][0], module(x=X, mask=mask)["more"][1][0])


def test_one_tensor_given_as_two_inputs_stays_two_inputs() -> None:
    module = wrapped(lambda self, a, b: self.layer(a) - b)
    state = capture(module, X, X)
    assert torch.equal(outputs(state, X, X + 1), module(X, X + 1))


def test_inputs_are_called_as_the_context_says() -> None:
    state = capture(wrapped(lambda self, x: self.layer(x)), X, input_names=("pixels",))
    graph = state.carrier_programs["forward"].graph
    assert [s.address for _, s in edges.sites(graph)] == ["pixels:input#0", "layer:linear#0"]


# --- what becomes of operators -------------------------------------------------------------------


def test_dropout_and_detach_are_dropped_and_named() -> None:
    module = wrapped(lambda self, x: self.drop(self.layer(x)).detach() + 1)
    state = capture(module, X)
    assert operators(state) == ["linear", "add"]
    assert state.history[-1].notes == ("dropped without effect in eval mode: detach, dropout",)


def test_an_in_place_activation_becomes_functional() -> None:
    module = wrapped(lambda self, x: F.relu(self.layer(x), inplace=True) + 1)
    state = capture(module, X)
    assert operators(state) == ["linear", "relu", "add"]
    assert torch.equal(outputs(state, X), module(X))


def aliased(self: Any, x: Tensor) -> Tensor:
    y = self.layer(x)
    z = self.drop(y)  # in eval mode the same tensor
    z.add_(1)
    return y + z


def viewed(self: Any, x: Tensor) -> Tensor:
    y = self.layer(x)
    y[:, 0].mul_(2)  # writes into y
    return y


def viewed_before(self: Any, x: Tensor) -> Tensor:
    y = self.drop(self.layer(x))
    z = y.reshape(-1)  # a view
    y.neg_()
    return z


def chained(self: Any, x: Tensor) -> Tensor:
    return self.drop(self.layer(x)).relu_().add_(1)


def read_before(self: Any, x: Tensor) -> Tensor:
    y = self.layer(x)
    z = y * 2
    y.neg_()
    return y + z


@pytest.mark.parametrize("forward", [aliased, viewed, viewed_before, chained, read_before])
def test_a_write_in_place_keeps_its_meaning(forward: Any) -> None:
    module = wrapped(forward)
    state = capture(module, X)
    assert torch.equal(outputs(state, X), module(X))
    graph = state.carrier_programs["forward"].graph
    schemas = [n.target._schema for n in graph.nodes if hasattr(n.target, "_schema")]
    assert schemas
    assert not [schema for schema in schemas if schema.is_mutable]


# --- storage -------------------------------------------------------------------------------------


def test_parameters_own_their_storage() -> None:
    module = seeded(SmallCNN)
    before = digest(module)
    state = capture(module, normal(4, 3, 8, 8))
    with torch.no_grad():
        for value in program.tensors(state.carrier_programs["forward"]).values():
            value.zero_()
    assert digest(module) == before


class Tie(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.square = nn.Parameter(torch.arange(16.0).reshape(4, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens) @ self.square)


def test_tied_weights_stay_one_and_are_under_contract() -> None:
    tokens = torch.arange(4).reshape(2, 2)
    module = seeded(Tie)
    state = capture(module, tokens)
    assert state.contracts == (Tied("embedding.weight", "head.weight"),)
    # `x @ w` is captured as a linear, whose kernel may add four products in another order
    torch.testing.assert_close(outputs(state, tokens), module(tokens), rtol=1e-5, atol=1e-5)


def test_a_weight_and_its_transposed_view_stay_different() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(16.0).reshape(4, 4))
            self.register_buffer("other", self.weight.detach().t())

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight - x @ self.other

    module = Transposed().eval()
    torch.testing.assert_close(outputs(capture(module, X), X), module(X), rtol=1e-5, atol=1e-5)


# --- refusals ------------------------------------------------------------------------------------


def branching(self: Any, x: Tensor) -> Tensor:
    y = self.layer(x)
    if y.sum() > 0:
        return y
    return -y


def test_control_flow_on_data_is_refused_and_says_where() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(wrapped(branching), X)
    message = str(caught.value)
    assert message.startswith("capture: the model cannot be captured: ")
    assert "test_capture.py" in message
    assert "in branching" in message
    assert len(message.splitlines()) == 1


def test_control_flow_in_the_graph_is_refused_with_its_module() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(CaptureError, match=r"the model holds cond \(control flow"):
        capture(wrapped(forward), X)


def test_a_model_that_does_not_run_is_a_pass_error_with_its_reason() -> None:
    with pytest.raises(PassError, match=r"^capture: the model does not run on the example before"):
        capture(wrapped(lambda self, x: self.layer(x)), normal(2, 5))


def test_a_slice_of_the_whole_axis_is_dropped() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:, ::2] + x[:, :-1, 0:8:2]

    x = normal(2, 4, 8)
    state = run(Tokens().eval(), context(x), "capture")
    exported = state.carrier_programs["forward"]
    kept = [n.args[1] for n in exported.graph.nodes if edges.operator_name(n) == "slice"]
    assert kept == [1, 2, 1, 2]  # those of the batch are gone, those with a step stay
    assert torch.equal(program.run(exported, (x,), {}), Tokens()(x))
