"""Products by a stored weight become linears, whichever way the module spells them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeopt.ir import program
from edgeopt.ir.edges import operator_name
from edgeopt.passes.capture.linear_form import as_linears


class Addmm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))  # [in, out]
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ReadTwice(Product):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight) + self.weight.sum()


class Scaled(Addmm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, alpha=2.0)


def _operators(exported: torch.export.ExportedProgram) -> list[str]:
    return [operator_name(n) for n in exported.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Addmm(), (4, 8)), (Product(), (4, 8)), (Product(), (2, 3, 8))],
    ids=["addmm", "mm", "matmul-3d"],
)
def test_a_product_by_a_weight_becomes_a_linear(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    exported = torch.export.export(module, (x,))
    rewritten, transposed = as_linears(exported)
    assert transposed == {"weight"}
    assert _operators(rewritten) == ["linear"]
    assert program.tensors(rewritten)["weight"].shape == (6, 8)
    assert program.tensors(exported)["weight"].shape == (8, 6)  # the original is untouched
    # one GEMM for another: sums of 8 products, a few ulp of values near 3
    torch.testing.assert_close(
        program.run(rewritten, (x,), {}), module(x).detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("module", [ReadTwice(), Scaled()], ids=["read twice", "scaled"])
def test_any_other_product_stays(module: nn.Module) -> None:
    exported = torch.export.export(module, (torch.randn(4, 8),))
    rewritten, transposed = as_linears(exported)
    assert transposed == frozenset()
    assert rewritten is exported
