"""The byte language model: its parts against their definitions, and the same text everywhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeopt.contracts.tied import Tied, tied_contracts
from edgeopt.models import zoo
from edgeopt.models.zoo.byte_lm import Attention, ByteLM, RMSNorm, RotaryEmbedding, SwiGLU, rotate
from edgeopt.runtime_tests.generate import Step, greedy
from tests.small_models import normal, seeded

WINDOW = 96
PROMPT = b'The "assert" statement is '
# What the stored weights say in float32: each byte leads by 0.07 or more. The bytes stand here,
# since Python's own text differs between releases.
GOLDEN = b"a substring that is a subscription\nin th"


def tiny(**changes: int) -> ByteLM:
    sizes = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 48, "context": 64}
    model = seeded(lambda: ByteLM(**(sizes | changes)))  # type: ignore[arg-type]
    assert isinstance(model, ByteLM)
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return zoo.load("bytelm").module


# --- the whole model -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 64)])
def test_each_token_gets_a_logit_for_each_byte(shape: tuple[int, int]) -> None:
    logits = tiny()(tokens(*shape))
    assert logits.shape == (*shape, 256)
    assert logits.dtype == torch.float32


def test_a_later_token_changes_no_earlier_logit() -> None:
    model, text = tiny(), tokens(2, 20)
    changed = text.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 256
    before, after = model(text), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amax(-1).min() > 1e-4


def test_an_earlier_token_changes_every_later_logit() -> None:
    model, text = tiny(), tokens(1, 20)
    changed = text.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 256
    moved = (model(text) - model(changed)).abs().amax(-1)[0]
    assert moved[:3].max() == 0
    assert moved[3:].min() > 1e-6


def test_the_head_is_the_embedding() -> None:
    model = tiny()
    assert model.head.weight is model.embed.weight
    assert tied_contracts(model) == (Tied("embed.weight", "head.weight"),)
    assert "rotary.cos" not in model.state_dict()


# --- its parts -----------------------------------------------------------------------------------


def test_the_norm_is_torchs() -> None:
    own, reference = RMSNorm(32), nn.RMSNorm(32, eps=1e-5)
    scale = normal(32, seed=3)
    own.weight.data, reference.weight.data = scale, scale
    x = normal(2, 5, 32) * torch.tensor([1e-3, 1, 1e3, 1e-6, 7])[:, None]
    torch.testing.assert_close(own(x), reference(x), rtol=1e-5, atol=1e-7)


def test_a_rotated_product_depends_on_the_distance_alone() -> None:
    cos, sin = RotaryEmbedding(16, 64)(64)
    q, k = normal(16, seed=1), normal(16, seed=2)
    rows = rotate(q.expand(1, 1, 64, 16), (cos, sin))[0, 0]
    columns = rotate(k.expand(1, 1, 64, 16), (cos, sin))[0, 0]
    products = rows @ columns.T
    for distance in (-20, -1, 0, 3, 50):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)
    assert products[0].std() > 0.1


def test_a_rotation_turns_pairs_of_features_by_their_angles() -> None:
    x = normal(1, 1, 8, 6)
    got = rotate(x, RotaryEmbedding(6, 8, base=100.0)(8))[0, 0].double()
    angle = torch.outer(torch.arange(8.0).double(), 100.0 ** (-torch.arange(3).double() / 3))
    turned = torch.complex(*x[0, 0].double().chunk(2, -1)) * torch.exp(1j * angle)
    torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1), rtol=0, atol=1e-6)


def test_angles_may_start_anywhere() -> None:
    rotary = RotaryEmbedding(8, 32)
    for part, whole in zip(rotary(5, start=7), rotary(12), strict=True):
        assert torch.equal(part, whole[7:])


def test_grouped_queries_are_full_attention_with_repeated_keys() -> None:
    grouped = seeded(Attention, 32, 4, 2)
    full = seeded(Attention, 32, 4, 4)
    assert isinstance(grouped, Attention)
    assert isinstance(full, Attention)
    full.q_proj, full.o_proj = grouped.q_proj, grouped.o_proj
    for name in ("k_proj", "v_proj"):
        rows = getattr(grouped, name).weight.reshape(2, 1, 8, 32).expand(2, 2, 8, 32)
        getattr(full, name).weight.data = rows.reshape(32, 32).clone()
    x, rope = normal(2, 9, 32), RotaryEmbedding(8, 16)(9)
    torch.testing.assert_close(grouped(x, rope), full(x, rope), rtol=0, atol=1e-6)


def test_attention_is_the_causal_softmax_of_scaled_products() -> None:
    attention = seeded(Attention, 16, 2, 1)
    assert isinstance(attention, Attention)
    x, rope = normal(1, 6, 16), RotaryEmbedding(8, 8)(6)
    q, k, v = (t.double() for t in attention.project(x, rope))
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2).float()
    torch.testing.assert_close(attention(x, rope), attention.o_proj(mixed), rtol=0, atol=1e-5)


def test_one_token_can_be_decoded_from_kept_keys_and_values() -> None:
    attention, rotary = seeded(Attention, 32, 4, 2), RotaryEmbedding(8, 16)
    assert isinstance(attention, Attention)
    x = normal(2, 9, 32)
    whole = attention(x, rotary(9))
    _, kept_k, kept_v = attention.project(x[:, :8], rotary(8))
    q, k, v = attention.project(x[:, 8:], rotary(1, start=8))
    last = attention.attend(q, torch.cat((kept_k, k), 2), torch.cat((kept_v, v), 2), causal=False)
    torch.testing.assert_close(last, whole[:, 8:], rtol=0, atol=1e-6)


def test_the_gate_is_a_sigmoid_linear_unit() -> None:
    mlp = seeded(SwiGLU, 8, 12)
    assert isinstance(mlp, SwiGLU)
    x = normal(3, 8)
    gate = mlp.gate_proj(x)
    want = mlp.down_proj(gate * torch.sigmoid(gate) * mlp.up_proj(x))
    torch.testing.assert_close(mlp(x), want, rtol=0, atol=1e-6)


# --- the stored weights, in torch and in ONNX Runtime --------------------------------------------


def torch_step(module: nn.Module) -> Step:
    def step(text: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(text)).numpy()

    return step


def test_the_stored_weights_say_what_they_said(trained: nn.Module) -> None:
    found = greedy(torch_step(trained), list(PROMPT), len(GOLDEN), WINDOW)
    assert bytes(found) == GOLDEN


@pytest.fixture(scope="module")
def exported(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a float32 ONNX file with dynamic batch and sequence."""
    path = tmp_path_factory.mktemp("bytelm") / "dynamic.onnx"
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", min=2, max=256)}
    program = torch.export.export(trained, (tokens(2, 8),), dynamic_shapes=(sizes,))
    torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False).save(path)
    return path


def onnx_step(path: Path) -> Step:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda text: session.run(None, {given.name: text})[0]


@pytest.mark.parametrize("shape", [(1, 2), (2, 9), (3, 96), (1, 256)])
def test_the_model_exports_with_free_batch_and_length(
    trained: nn.Module, exported: Path, shape: tuple[int, int]
) -> None:
    text = tokens(*shape)
    with torch.no_grad():
        want = trained(text).numpy()
    np.testing.assert_allclose(onnx_step(exported)(text.numpy()), want, rtol=0, atol=1e-3)


def test_torch_and_onnxruntime_say_the_same(trained: nn.Module, exported: Path) -> None:
    # 100 new bytes pass the window's end, so that the cut text is compared too
    wanted = greedy(torch_step(trained), list(PROMPT), 100, WINDOW)
    assert greedy(onnx_step(exported), list(PROMPT), 100, WINDOW) == wanted


def test_each_norm_is_one_operator_for_onnxruntime(exported: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("SimplifiedLayerNormalization") == 9  # two a block, and the last
    assert not {"ReduceMean", "Pow", "Sqrt"} & set(kinds)
