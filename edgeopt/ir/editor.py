"""Edit captured programs.

A program is never edited in place and never deep-copied (a deep copy renames an input called
`input`): `ProgramEditor` works on a copy of the graph with its own table of tensors and writes a
new program, so a trunk state can feed several branches.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node

from edgeopt.ir import edges
from edgeopt.ir.program import tensor_names, tensors, user_input_names

_QUOTES = frozenset("\"'\\")


class ProgramEditor:
    """Edit a copy of a program's graph and tensors, then `finish` into a new program.

    Attributes:
        graph: The copied graph; edit it freely.
        table: FQN -> tensor, of the copy. Replacing an entry does not touch the original.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.graph = Graph()
        mapping: dict[Node, Node] = {}
        output = self.graph.graph_copy(program.graph, mapping)
        for old, new in mapping.items():
            new.name = old.name  # graph_copy renames builtins such as `input`
        self.graph.output(output)
        old_output = next(n for n in program.graph.nodes if n.op == "output")
        new_output = next(n for n in self.graph.nodes if n.op == "output")
        new_output.meta = copy.copy(old_output.meta)
        self.table = tensors(program)
        self._fqn_of = tensor_names(program)  # placeholder name -> FQN
        self._fake_mode = _fake_mode(program.graph)

    @property
    def names(self) -> Mapping[str, str]:
        """Placeholder name -> FQN, of the copy's tensors."""
        return self._fqn_of

    def placeholder(self, fqn: str) -> Node:
        """Return the placeholder of a tensor by its FQN."""
        for node in self.graph.nodes:
            if node.op == "placeholder" and self._fqn_of.get(node.name) == fqn:
                return node
        raise KeyError(fqn)

    def fqn(self, node: Node) -> str | None:
        """Return the FQN of a tensor placeholder, or None for any other node."""
        return self._fqn_of.get(node.name) if node.op == "placeholder" else None

    def tensor(self, node: object) -> Tensor | None:
        """Return the tensor behind a placeholder, or None."""
        fqn = self.fqn(node) if isinstance(node, Node) else None
        return self.table[fqn] if fqn is not None else None

    def replace(self, fqn: str, value: Tensor) -> None:
        """Put another tensor, of any shape and type, where `fqn` is read."""
        node = self.placeholder(fqn)
        self.table[fqn] = value.detach().clone()
        node.meta["val"] = self._fake(value)
        node.meta.pop("tensor_meta", None)

    def add_buffer(self, fqn: str, value: Tensor) -> Node:
        """Add a buffer and return its placeholder; the FQN must be new."""
        if fqn in self.table:
            raise KeyError(f"{fqn} exists")
        if not fqn.isprintable() or _QUOTES & set(fqn):
            raise KeyError(f"{fqn[:80]!r} is no name: torch writes it into source")
        first = next(iter(self.graph.nodes))
        name = "b_" + "".join(c if c.isalnum() else "_" for c in fqn)
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        self.table[fqn] = value.detach().clone()
        self._fqn_of[node.name] = fqn
        node.meta["val"] = self._fake(value)
        return node

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        parent: Node,
        suffix: str,
        after: Node | None = None,
        before: Node | None = None,
    ) -> Node:
        """Insert a call, give it `parent`'s provenance with `/suffix`, and infer its value."""
        anchor = after if after is not None else before
        assert anchor is not None
        place = self.graph.inserting_after if after is not None else self.graph.inserting_before
        with place(anchor):
            node = self.graph.call_function(target, args)
        for key in ("nn_module_stack", "stack_trace"):
            if key in parent.meta:
                node.meta[key] = parent.meta[key]
        edges.derive(node, parent, suffix)
        self.infer(node)
        return node

    def infer(self, node: Node) -> None:
        """Compute `meta["val"]` of a call from its arguments' values."""
        node.meta["val"] = fake_call(node, self._fake_mode)

    def finish(self) -> ExportedProgram:
        """Drop dead nodes and unread tensors and return the new program."""
        self.graph.eliminate_dead_code()
        signature = self._program.graph_signature
        users = set(user_input_names(self._program))
        tensor_specs: list[InputSpec] = []
        user_specs: list[InputSpec] = []
        old_specs = {spec.arg.name: spec for spec in signature.input_specs}
        state: dict[str, Any] = {}
        constants = {
            name: value
            for name, value in self._program.constants.items()
            if not isinstance(value, Tensor)
        }
        for node in [n for n in self.graph.nodes if n.op == "placeholder"]:
            if node.name in users or node.name not in self._fqn_of:
                user_specs.append(old_specs[node.name])
                continue
            if not node.users:
                self.graph.erase_node(node)
                continue
            fqn = self._fqn_of[node.name]
            value = self.table[fqn]
            old = old_specs.get(node.name)
            keeps_kind = old is not None and old.kind is InputKind.PARAMETER
            if old is not None and old.kind is InputKind.CONSTANT_TENSOR:
                constants[fqn] = value
                tensor_specs.append(old)
                continue
            if keeps_kind and value.is_floating_point():
                kind, persistent = InputKind.PARAMETER, None
                value = value if isinstance(value, nn.Parameter) else nn.Parameter(value, False)
            else:
                kind, persistent = InputKind.BUFFER, True
            state[fqn] = value
            tensor_specs.append(
                InputSpec(kind, TensorArgument(name=node.name), target=fqn, persistent=persistent)
            )
        self._order_placeholders([spec.arg.name for spec in tensor_specs + user_specs])
        module = GraphModule(nn.Module(), self.graph)
        self.graph.lint()
        return ExportedProgram(
            root=module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(
                input_specs=tensor_specs + user_specs, output_specs=self._output_specs()
            ),
            state_dict=state,
            range_constraints=self._program.range_constraints,
            module_call_graph=self._program.module_call_graph,
            example_inputs=self._program.example_inputs,
            constants=constants,
            verifiers=[self._program.verifier],
        )

    def _output_specs(self) -> list[Any]:
        output = next(n for n in self.graph.nodes if n.op == "output")
        specs = []
        for spec, node in zip(
            self._program.graph_signature.output_specs, output.args[0], strict=True
        ):
            spec = copy.copy(spec)
            if isinstance(node, Node) and isinstance(spec.arg, TensorArgument):
                spec.arg = TensorArgument(name=node.name)
            specs.append(spec)
        return specs

    def _order_placeholders(self, names: list[str]) -> None:
        """Put placeholders into the signature's order, before everything else."""
        nodes = {n.name: n for n in self.graph.nodes if n.op == "placeholder"}
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        for name in names:
            first.prepend(nodes[name])

    def _fake(self, value: Tensor) -> Tensor:
        return self._fake_mode.from_tensor(value.detach(), static_shapes=True)


def fake_call(node: Node, mode: Any) -> Any:
    """Return what a call gives for its arguments' recorded values: shapes and types only.

    Guards are suppressed: some operators ask for a size as a plain number, which would pin a
    dynamic dimension to the example's size for good, in every graph that shares the symbols.
    """
    args = torch.fx.map_arg(node.args, lambda n: n.meta["val"])
    kwargs = torch.fx.map_arg(node.kwargs, lambda n: n.meta["val"])
    shape_env = getattr(mode, "shape_env", None)
    quiet = shape_env.suppress_guards() if shape_env is not None else contextlib.nullcontext()
    with quiet, mode, torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _fake_mode(graph: Graph) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def without_traces(exported: ExportedProgram) -> ExportedProgram:
    """Return a copy without stack traces and example inputs.

    Source paths would differ between machines, and example inputs are saved as a pickle.
    """
    bare = ProgramEditor(exported).finish()
    for node in bare.graph.nodes:
        node.meta.pop("stack_trace", None)
        edges.keep_only_site(node)  # torch notes there what it traced before, in this process
    bare._example_inputs = None
    return bare
