"""Invariants of captured graphs.

`ExportedProgram.validate()` accepts wrong shapes, stale values, dead nodes and in-place
operators, so the rows here look for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.ir import edges, editor, program
from edgeopt.pipeline.verifier.invariant import Row, Step, Violation


def step_programs(step: Step) -> Iterator[tuple[str, ExportedProgram]]:
    yield from step.state.carrier_programs.items()


def well_formed(step: Step) -> Iterator[Violation]:
    """The graph passes `graph.lint()` and `program.validate()`."""
    for name, exported in step_programs(step):
        try:
            exported.graph.lint()
            exported.validate()
        except Exception as failure:
            lines = str(failure).strip().splitlines() or ["no message"]
            yield Violation("well-formed", name, lines[0])


def shapes(step: Step) -> Iterator[Violation]:
    """Each tensor has the shape and type that its placeholder says."""
    for _, exported in step_programs(step):
        table, names = program.tensors(exported), program.tensor_names(exported)
        for node in exported.graph.nodes:
            if node.op != "placeholder" or node.name not in names:
                continue
            value, told = table[names[node.name]], node.meta.get("val")
            if not isinstance(told, Tensor):
                yield Violation("shapes", names[node.name], "its placeholder has no value")
            elif tuple(value.shape) != tuple(told.shape) or value.dtype != told.dtype:
                yield Violation(
                    "shapes",
                    names[node.name],
                    f"is {tuple(value.shape)} {value.dtype}, but the graph says "
                    f"{tuple(told.shape)} {told.dtype}",
                )


def fresh_meta(step: Step) -> Iterator[Violation]:
    """Each call's recorded shape and type is what its inputs give."""
    for _, exported in step_programs(step):
        for node in exported.graph.nodes:
            told = node.meta.get("val")
            if node.op != "call_function" or not isinstance(told, Tensor):
                continue
            arguments = [*node.all_input_nodes]
            if any("val" not in n.meta for n in arguments):
                yield Violation("fresh-meta", node.name, "an argument has no value")
                continue
            mode = getattr(told, "fake_mode", None)
            if mode is None:
                continue
            fresh = editor.fake_call(node, mode)
            same = fresh.dtype == told.dtype and len(fresh.shape) == len(told.shape)
            sizes = zip(fresh.shape, told.shape, strict=False)
            if not same or any(str(a) != str(b) for a, b in sizes if _known(a) and _known(b)):
                yield Violation(
                    "fresh-meta",
                    node.name,
                    f"gives {tuple(fresh.shape)} {fresh.dtype}, but the graph says "
                    f"{tuple(told.shape)} {told.dtype}",
                )


def _known(size: object) -> bool:
    return isinstance(size, int)


def no_dead(step: Step) -> Iterator[Violation]:
    """No compute node without readers, no weight without readers (capture may leave buffers)."""
    for _, exported in step_programs(step):
        names = program.tensor_names(exported)
        for node in exported.graph.nodes:
            if node.users or node.op == "output":
                continue
            if node.op == "call_function" and not _is_assertion(node):
                yield Violation("no-dead", node.name, "nobody reads it")
            elif node.op == "placeholder" and node.name in names:
                yield Violation("no-dead", names[node.name], "nobody reads this tensor")


def _is_assertion(node: Node) -> bool:
    return "assert" in str(node.target) or "sym_constrain" in str(node.target)


def functional(step: Step) -> Iterator[Violation]:
    """No operator writes into its inputs."""
    for _, exported in step_programs(step):
        for node in exported.graph.nodes:
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable:
                yield Violation("functional", node.name, f"{node.target} writes into its input")


def provenance(step: Step) -> Iterator[Violation]:
    """Each compute node knows its site."""
    for _, exported in step_programs(step):
        for node in exported.graph.nodes:
            if node.op == "call_function" and edges.site_of(node) is None:
                yield Violation("provenance", node.name, "has no site")


def ranges(step: Step) -> Iterator[Violation]:
    """Dynamic-shape constraints are unchanged."""
    before, after = step.before.ranges, step.after.ranges
    if before and before != after:
        yield Violation("ranges", "", "the dynamic-shape constraints changed")


GRAPH: tuple[Row, ...] = (
    Row("well-formed", well_formed),
    Row("shapes", shapes),
    Row("fresh-meta", fresh_meta),
    Row("no-dead", no_dead),
    Row("functional", functional),
    Row("provenance", provenance),
    Row("ranges", ranges),
)
