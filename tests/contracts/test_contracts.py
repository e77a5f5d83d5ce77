"""Each kind of contract holds or breaks on a module, on a program and in a file."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.contracts.contract import Contract
from edgeopt.contracts.kinds import from_json
from edgeopt.contracts.nm_sparse import NMSparse
from edgeopt.contracts.quantized import Quantized
from edgeopt.contracts.tied import Tied, tied_contracts, tied_partners
from edgeopt.errors import BundleError
from edgeopt.ir.edges import EdgeId
from edgeopt.ir.editor import ProgramEditor
from edgeopt.pipeline.state import ModelState
from edgeopt.quant.spec import Granularity, TensorSpec
from edgeopt.registry.kinds import CONTRACTS
from edgeopt.registry.lookup import names
from tests.small_models import QUANTIZE, context, normal, run, seeded

INT8 = TensorSpec(narrow=True, granularity=Granularity.CHANNEL)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embedding(tokens)).chunk(3, dim=-1)
        return self.head(q * k + v)


TOKENS = torch.arange(6).reshape(2, 3)


@dataclasses.dataclass
class File:
    """A made-up exported file."""

    tensors: dict[str, np.ndarray[Any, Any]]
    edges: dict[str, str] = dataclasses.field(default_factory=dict)

    def tensor(self, fqn: str) -> np.ndarray[Any, Any] | None:
        return self.tensors.get(fqn)

    def edge_dtype(self, edge: str) -> str | None:
        return self.edges.get(edge)


@pytest.fixture(scope="module")
def quantized() -> ModelState:
    return run(seeded(Model), context(TOKENS), *QUANTIZE)


def program_of(state: ModelState) -> ExportedProgram:
    return state.carrier_programs["forward"]


def edited(exported: ExportedProgram, **tensors: Tensor) -> dict[str, ExportedProgram]:
    editor = ProgramEditor(exported)
    for name, value in tensors.items():
        editor.replace(name, value)
    return {"forward": editor.finish()}


# --- N:M -----------------------------------------------------------------------------------------

SPARSE = np.tile(np.array([1, 0, 0, 2], np.float32), (24, 2))
DENSE = SPARSE + np.eye(24, 8, dtype=np.float32)[:, ::-1]


def with_weight(values: np.ndarray[Any, Any]) -> nn.Module:
    module = seeded(Model)
    module.qkv.weight = nn.Parameter(torch.tensor(values))
    return module


@pytest.mark.parametrize(("values", "broken"), [(SPARSE, 0), (DENSE, 8)], ids=["sparse", "dense"])
def test_sparsity_on_module_program_and_file(values: np.ndarray[Any, Any], broken: int) -> None:
    contract = NMSparse("qkv.weight", 2, 4, 1)
    # eight ones were added, of which those that stand on a non-zero change no count
    extra = int(((values.reshape(24, 2, 4) != 0).sum(2) > 2).sum())
    want = f"{extra} of 48 groups of 4 hold more than 2 non-zeros" if broken else None
    module = with_weight(values)
    assert contract.check_module(module) == want
    exported = run(module, context(TOKENS), "capture").carrier_programs
    assert contract.check_programs(exported) == want
    assert contract.check_file(File({"qkv.weight": values})) == want
    assert contract.check_file(File({"qkv.weight": values.astype(np.int8)})) == want
    assert contract.sites == ("qkv.weight",)


def test_sparsity_counts_a_last_group_that_is_shorter() -> None:
    values = np.array([[1, 1, 0, 0, 1, 1, 1]], np.float32)
    contract = NMSparse("w", 2, 4, 1)
    assert contract.check_file(File({"w": values})) is not None
    values[0, 6] = 0
    assert contract.check_file(File({"w": values})) is None


def test_sparsity_runs_along_its_axis() -> None:
    values = np.zeros((8, 8), np.float32)
    values[0:2] = values[4:6] = 1  # two of four rows
    assert NMSparse("w", 2, 4, 0).check_file(File({"w": values})) is None
    assert NMSparse("w", 2, 4, 1).check_file(File({"w": values})) is not None


def test_a_weight_that_is_gone_breaks_its_sparsity(quantized: ModelState) -> None:
    contract = NMSparse("gone.weight", 2, 4, 1)
    assert contract.check_programs(quantized.carrier_programs) == (
        "gone.weight is not in program forward"
    )
    assert contract.check_file(File({})) == "gone.weight is not in the file"


# --- tied ----------------------------------------------------------------------------------------

TIE = Tied("embedding.weight", "head.weight")


def test_a_tie_on_a_module() -> None:
    module = seeded(Model)
    assert TIE.check_module(module) is None
    module.head.weight = nn.Parameter(module.head.weight.detach().clone())
    assert TIE.check_module(module) == "embedding.weight and head.weight no longer share storage"
    module.head = nn.Identity()
    assert TIE.check_module(module) == "head.weight is gone"


def test_a_storage_of_three_names_is_two_ties_and_each_name_has_two_partners() -> None:
    module = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abcd"})
    module["b"].weight = module["c"].weight = module["a"].weight
    assert tied_contracts(module) == (
        Tied("a.weight", "b.weight"),
        Tied("a.weight", "c.weight"),
    )
    assert tied_partners(module) == {
        "a.weight": ("b.weight", "c.weight"),
        "b.weight": ("a.weight", "c.weight"),
        "c.weight": ("a.weight", "b.weight"),
    }


def test_a_tie_in_a_program_where_both_names_are_read() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(4))
            self.b = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.a + self.b

    exported = run(Both(), context(normal(2, 4)), "capture").carrier_programs["forward"]
    contract = Tied("a", "b")
    assert contract.check_programs({"forward": exported}) is None
    assert contract.check_programs(edited(exported, a=torch.zeros(4))) == "a and b differ"


def test_a_tie_in_a_file() -> None:
    one, other = np.ones((2, 2)), np.zeros((2, 2))
    a, b = TIE.sites
    assert TIE.check_file(File({a: one, b: one.copy()})) is None
    assert TIE.check_file(File({a: one})) is None  # one tensor stands for both
    assert TIE.check_file(File({a: one, b: other})) == f"{a} and {b} differ in the file"
    assert TIE.check_file(File({a: one, b: np.ones(4)})) == f"{a} and {b} differ in the file"


# --- quantized -----------------------------------------------------------------------------------


def of_weight(state: ModelState) -> Quantized:
    (found,) = [c for c in state.contracts if isinstance(c, Quantized) and c.fqn == "qkv.weight"]
    return found


def of_value(state: ModelState) -> Quantized:
    return next(c for c in state.contracts if isinstance(c, Quantized) and not c.fqn)


def test_quantized_edges_on_a_program(quantized: ModelState) -> None:
    for contract in (of_weight(quantized), of_value(quantized)):
        assert contract.check_programs(quantized.carrier_programs) is None
        other = dataclasses.replace(contract, edge=EdgeId("n99", "in0"))
        assert other.check_programs(quantized.carrier_programs) == (
            "edge n99.in0 is not quantized any more"
        )
        wide = dataclasses.replace(contract, spec=dataclasses.replace(contract.spec, bits=16))
        message = wide.check_programs(quantized.carrier_programs)
        assert message == f"edge {contract.edge} carries int8, not int16"
        assert contract.check_module(seeded(Model)) is None  # a module has no edges


def test_quantized_edges_in_a_file(quantized: ModelState) -> None:
    value = of_value(quantized)
    edge = str(value.edge)
    assert value.check_file(File({}, {edge: "int8"})) is None
    assert value.check_file(File({}, {edge: "uint8"})) is None  # 128 more, the same value
    assert value.check_file(File({}, {edge: "int16"})) == (
        f"edge {edge} carries int16 in the file, not int8"
    )
    assert value.check_file(File({})) == f"edge {edge} is not quantized in the file"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([-127, 127], np.int8), None),
        (np.array([-128, 127], np.int8), "codes of w lie in [-128, 127], outside int8 symmetric"),
        (np.array([0.5], np.float32), "w is stored as float32, not int8"),
        (np.array([3], np.int16), "w is stored as int16, not int8"),
    ],
)
def test_quantized_weights_in_a_file(codes: np.ndarray[Any, Any], message: str | None) -> None:
    found = Quantized(EdgeId("n1", "in1"), INT8, "w").check_file(File({"w": codes}))
    assert found == message if message is None else (found or "").startswith(message)


@pytest.mark.parametrize("bits", [4, 7])
def test_narrow_codes_may_be_stored_in_a_byte_but_keep_their_range(bits: int) -> None:
    spec = dataclasses.replace(INT8, bits=bits)
    contract = Quantized(EdgeId("n1", "in1"), spec, "w")
    top = 2 ** (bits - 1) - 1
    assert contract.check_file(File({"w": np.array([-top, top], np.int8)})) is None
    message = contract.check_file(File({"w": np.array([top + 1], np.int8)}))
    assert message is not None
    assert message.startswith(f"codes of w lie in [{top + 1}, {top + 1}], outside int{bits}")


# --- on disk -------------------------------------------------------------------------------------

EXAMPLES: tuple[Contract, ...] = (
    NMSparse("a.weight", 2, 4, 1),
    TIE,
    Quantized(EdgeId("n3", "in1"), INT8, "a.weight"),
    Quantized(EdgeId("n3/x", "out"), TensorSpec(symmetric=False)),
)


def test_contracts_read_back_from_json() -> None:
    assert {c.kind for c in EXAMPLES} == set(names(CONTRACTS))
    rows = json.loads(json.dumps([c.to_json() for c in EXAMPLES]))
    assert from_json(rows) == EXAMPLES
    assert [next(iter(row)) for row in rows] == ["kind"] * len(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "nm-spars"}, "contract kind 'nm-spars' is not known (did you mean 'nm-sparse'?)"),
        ({}, "contract kind '' is not known"),
        (["nm-sparse"], "a contract is a table, not ['nm-sparse']"),
        (
            {"kind": "nm-sparse", "fqn": "a", "n": 2, "m": 4, "axes": 1},
            "contract nm-sparse: unknown key 'axes' (did you mean 'axis'?)",
        ),
        ({"kind": "nm-sparse", "fqn": "a", "n": "two", "m": 4, "axis": 1}, "contract nm-sparse: n"),
        ({"kind": "tied", "a": "a"}, "contract tied: b: Field required"),
    ],
)
def test_a_damaged_contract_is_one_line(row: Any, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        from_json([row])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
