"""Edges: ids that survive everything, and the addresses that people write."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeopt.errors import ConfigError
from edgeopt.ir import edges, program
from edgeopt.ir.edges import EdgeId, Site, address, matches, site_of
from edgeopt.ir.editor import ProgramEditor, without_traces
from tests.small_models import Block, context, normal, run, seeded

X = normal(2, 4, 16)


@pytest.fixture(scope="module")
def captured() -> ExportedProgram:
    return run(seeded(Block), context(X), "capture").carrier_programs["forward"]


def sites(exported: ExportedProgram) -> dict[str, str]:
    """Return id -> address of all sites but sizes, whose nodes come and go with the shapes."""
    return {
        site.id: site.address for _, site in edges.sites(exported.graph) if site.op != "sym_size"
    }


# --- what an address selects ---------------------------------------------------------------------

QKV = "blocks.0.attn.qkv:linear#0.in0"
SOFTMAX = "blocks.0.attn:softmax#0.in0"
ROOT = ":add#1.out"


@pytest.mark.parametrize(
    ("pattern", "hit", "miss"),
    [
        ("blocks.0.attn", [QKV, SOFTMAX], [ROOT, "blocks.0.attn2:linear#0.out"]),
        ("blocks.*", [QKV, SOFTMAX], [ROOT]),
        ("*", [QKV, SOFTMAX, ROOT], []),
        ("*.attn:softmax#0.in0", [SOFTMAX], [QKV, "blocks.0.attn:softmax#0.in1"]),
        ("*.attn:softmax", [SOFTMAX, "a.attn:softmax#3.out"], [QKV, "attn:softmax#0.in0"]),
        ("*.mlp:.out", ["blocks.3.mlp:linear#0.out"], ["blocks.3.mlp:linear#0.in0", ROOT]),
        ("*:linear", [QKV], [SOFTMAX]),
        (":add", [ROOT, ":add#0.in1"], ["a:add#0.out", QKV]),
        (":add#1", [ROOT], [":add#0.out"]),
        ("*:*.in?", [QKV, SOFTMAX], [ROOT]),
        ("blocks.0.attn:", [SOFTMAX], [QKV]),  # with a colon, this module's own operators only
        ("blocks.[01].attn.qkv", [QKV], ["blocks.2.attn.qkv:linear#0.in0"]),
        ("Blocks.0.attn", [], [QKV]),
    ],
)
def test_a_glob_selects_addresses(pattern: str, hit: list[str], miss: list[str]) -> None:
    assert [a for a in (*hit, *miss) if matches(pattern, a)] == hit


def test_edge_ids_are_ordered() -> None:
    assert sorted([EdgeId("b", "in0"), EdgeId("a", "out"), EdgeId("a", "in1")])[0].port == "in1"


# --- sites of a captured graph -------------------------------------------------------------------


def test_every_operator_has_a_site_named_by_module_and_kind(captured: ExportedProgram) -> None:
    assert [a for a in sites(captured).values()] == [
        "x:input#0",
        "norm1:layer_norm#0",
        "attn.qkv:linear#0",
        "attn:reshape#0",
        "attn:permute#0",
        "attn:unbind#0",
        "attn:getitem#0",
        "attn:getitem#1",
        "attn:getitem#2",
        "attn:scaled_dot_product_attention#0",
        "attn:transpose#0",
        "attn:reshape#1",
        "attn.proj:linear#0",
        ":add#0",
        "norm2:layer_norm#0",
        "fc1:linear#0",
        "act:gelu#0",
        "fc2:linear#0",
        ":add#1",
    ]
    for node in captured.graph.nodes:
        assert (site_of(node) is None) == (
            node.op == "output" or node.name in program.tensor_names(captured)
        )


def test_a_module_that_is_called_twice_has_a_site_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    exported = run(seeded(Twice), context(normal(2, 4)), "capture").carrier_programs["forward"]
    assert [a for a in sites(exported).values() if "linear" in a] == [
        "layer:linear#0",
        "layer:linear#1",
    ]


def saved_and_loaded(exported: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(without_traces(exported), buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: program.retrace(p, (X[:1],), {}),
        lambda p: program.retrace(p, (X,), {}, ({0: torch.export.Dim.DYNAMIC},)),
        lambda p: program.retrace(program.retrace(p, (X,), {}), (X,), {}),
        lambda p: ProgramEditor(p).finish(),
    ],
    ids=["retrace", "dynamic", "twice", "edit"],
)
def test_ids_survive(change: object, captured: ExportedProgram) -> None:
    after = change(captured)  # type: ignore[operator]
    assert sites(after) == sites(captured)


def test_ids_of_operators_survive_saving(captured: ExportedProgram) -> None:
    # torch saves the metadata of operators alone: not of inputs, nor of parts of a result
    lost = {i for i, a in sites(captured).items() if "getitem" in a or "input" in a}
    assert sites(saved_and_loaded(captured)) == {
        i: a for i, a in sites(captured).items() if i not in lost
    }


def test_decomposed_operators_inherit_the_site(captured: ExportedProgram) -> None:
    after = captured.run_decompositions()
    found = {
        n: site_of(n)
        for n in after.graph.nodes
        if n.op == "call_function" and edges.operator_name(n) != "sym_size"
    }
    assert len(found) > len(sites(captured))
    assert all(site is not None for site in found.values())
    assert {s.fqn for s in found.values() if s is not None} == {
        a.partition(":")[0] for a in sites(captured).values()
    } - {"x"}


# --- inserted nodes ------------------------------------------------------------------------------


def test_an_inserted_node_has_its_parents_id_and_a_suffix(captured: ExportedProgram) -> None:
    editor = ProgramEditor(captured)
    parent = edges.by_id(editor.graph)["n2"]
    node = editor.call(
        torch.ops.aten.neg.default, (parent,), parent=parent, suffix="x", after=parent
    )
    assert site_of(node) == Site("n2/x", "norm1", "layer_norm/x", 0)
    assert address(node, "out") == "norm1:layer_norm/x#0.out"
    # the parent's own site, and the original graph, are as they were
    assert site_of(parent) == Site("n2", "norm1", "layer_norm", 0)
    assert "n2/x" not in edges.by_id(captured.graph)


def test_a_graph_that_was_not_captured_here_is_refused() -> None:
    exported = torch.export.export(nn.Linear(4, 4), (normal(2, 4),))
    node = next(n for n in exported.graph.nodes if n.op == "call_function")
    assert site_of(node) is None
    with pytest.raises(ConfigError, match="has no site; capture the model with edgeopt"):
        edges.require_site(node)
