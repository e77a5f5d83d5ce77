"""Models from a program that `torch.export.save` wrote: `FILE.pt2`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgeopt.errors import ModelError
from edgeopt.ir import program, trees
from edgeopt.ir.edges import operator_name
from edgeopt.ir.reading import load_exported
from edgeopt.models.from_module import from_module
from edgeopt.models.loaded import LoadedModel

_TRAINING_FLAG = {"dropout": 2, "alpha_dropout": 2, "feature_dropout": 2, "batch_norm": 5}
"""Operator -> position of the argument that says whether it trains."""


def load_program(spec: str) -> LoadedModel:
    """Load a saved program, without running anything in the file.

    The module takes and gives what the program does; sizes that it leaves free stay free.
    Convolutions, linears and batch norms become modules again, under the names that their weights
    have, so that passes over modules (folding, pruning, adapters) find them.

    Raises:
        ModelError: If the file is damaged, holds what could run, or is no model for inference.
    """
    path = Path(spec).expanduser()
    exported = load_exported(path)
    _refuse_training(exported, path)
    args, kwargs = _example(exported, path)
    names = trees.input_names(
        exported.module_call_graph[0].signature.forward_arg_names or (), args, kwargs
    )
    try:
        module = as_module(exported)
        sizes = _free_sizes(exported, names)
        shapes = trees.export_shapes(args, kwargs, sizes, module.forward) if any(sizes) else None
    except Exception as failure:  # names and sizes that contradict each other
        text = " ".join(str(failure).split())[:200]
        raise ModelError(f"{path}: the program cannot be made a module: {text}") from failure
    return from_module(
        module,
        args,
        kwargs,
        name=path.stem,
        source=spec,
        dynamic_shapes=shapes,
        input_names=names,
        metric=None,
        copy=False,
    )


def _refuse_training(exported: ExportedProgram, path: Path) -> None:
    for node in exported.graph.nodes:
        position = _TRAINING_FLAG.get(operator_name(node)) if node.op == "call_function" else None
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise ModelError(
                f"{path}: {operator_name(node)} trains; call model.eval() before torch.export"
            )


def _example(exported: ExportedProgram, path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the file's example inputs, or make some of the recorded shapes."""
    if exported.example_inputs is not None:
        args, kwargs = exported.example_inputs
        return tuple(args), dict(kwargs)
    spec = exported.call_spec.in_spec
    users = set(program.user_input_names(exported))
    values = [n.meta.get("val") for n in exported.graph.nodes if n.name in users]
    if spec is None:
        raise ModelError(f"{path}: does not say what it takes; save it again with torch.export")
    generator = torch.Generator().manual_seed(0)
    made = [_made(v, exported, generator) if isinstance(v, Tensor) else v for v in values]
    args, kwargs = pytree.tree_unflatten(made, spec)
    return args, kwargs


def _made(value: Tensor, exported: ExportedProgram, generator: torch.Generator) -> Tensor:
    shape = []
    for size in value.shape:
        # torch burns sizes of 0 and 1 in
        low = 2 if isinstance(size, int) else _bounds(_range(exported, size)).get("min", 2)
        shape.append(size if isinstance(size, int) else max(2, low))
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(value.dtype)
    return torch.zeros(shape, dtype=value.dtype)


def _free_sizes(exported: ExportedProgram, names: tuple[str, ...]) -> list[dict[int, Any]]:
    """Return the free axes of each input; axes of one symbol share one `Dim`.

    The symbol of a first axis is called `batch`; another is `INPUT_AXIS`, for the first input that
    has it. The names that the exporting user chose are not in the file.
    """
    dims: dict[str, Any] = {}
    found: list[dict[int, Any]] = []
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    for placeholder, name in zip(program.tensor_input_names(exported), names, strict=True):
        sizes: dict[int, Any] = {}
        for axis, size in enumerate(values[placeholder].shape):
            if isinstance(size, int):
                continue
            expression = size.node.expr
            if not expression.is_Symbol:  # a multiple of another size: torch finds out which
                sizes[axis] = Dim.AUTO
                continue
            taken = {dim.__name__ for dim in dims.values()}
            first = trees.BATCH if axis == 0 and trees.BATCH not in taken else f"{name}_{axis}"
            if str(expression) not in dims:
                dims[str(expression)] = Dim(first, **_bounds(_range(exported, size)))
            sizes[axis] = dims[str(expression)]
        found.append(sizes)
    return found


def _range(exported: ExportedProgram, size: Any) -> Any:
    return exported.range_constraints.get(size.node.expr)


def _bounds(bounds: Any) -> dict[str, int]:
    if bounds is None:
        return {}
    found = {"min": int(bounds.lower)} if bounds.lower.is_Integer else {}
    return found | ({"max": int(bounds.upper)} if bounds.upper.is_Integer else {})


def as_module(exported: ExportedProgram) -> GraphModule:
    """Return the program as a module of its own: no shared storage, no hooks, real submodules."""
    graph_module = program.runnable(exported)
    # A new module leaves behind the hook that checks inputs, and a `train` that raises.
    module = GraphModule(graph_module, graph_module.graph)
    copies: dict[Any, Tensor] = {}
    for child in module.modules():
        tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers, vars(child))
        for table in tables:
            for name, value in list(table.items()):
                if isinstance(value, Tensor):
                    table[name] = _copied(value, copies)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            _restore(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module.eval()


def _copied(value: Tensor, copies: dict[Any, Tensor]) -> Tensor:
    """Return one copy a storage, so that tied weights stay tied."""
    place = (value.data_ptr() if value.numel() else id(value), value.shape, value.stride())
    if place not in copies:
        own = value.detach().clone()
        copies[place] = nn.Parameter(own, False) if isinstance(value, nn.Parameter) else own
    return copies[place]


# --- modules from operators ----------------------------------------------------------------------


def _restore(module: GraphModule, node: Node) -> None:
    """Turn one call into a call of a module, where it reads just what that module would hold."""
    maker = _MAKERS.get(str(node.target))
    if maker is None or node.kwargs:
        return
    tensors = _tensors(module, node)
    made = maker(node, tensors["weight"]) if tensors is not None else None
    if tensors is None or made is None or not _fits(made, tensors):
        return
    fqn = _fqn(node, made)
    holder = _submodule(module, fqn)
    if type(holder) is nn.Module:
        held = {**holder._parameters, **holder._buffers}
        known = {**tensors, "num_batches_tracked": None}  # no inference reads it
        if any(holder.children()) or not held.keys() <= known.keys():
            return
        if any(name in tensors and value is not tensors[name] for name, value in held.items()):
            return
        for name, value in {**held, **tensors}.items():
            own: dict[str, Any] = made._parameters if name in made._parameters else made._buffers
            own[name] = value
        module.set_submodule(fqn, made.eval())
    elif repr(holder) != repr(made) or any(
        getattr(holder, name, None) is not value for name, value in tensors.items()
    ):
        return  # another call of the same weights, with other options
    source = node.args[0]
    assert isinstance(source, Node)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(fqn, (source,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


_PORTS = ("input", "weight", "bias", "running_mean", "running_var")
"""What the first arguments are; convolution and linear have no more than three tensors."""


def _tensors(module: GraphModule, node: Node) -> dict[str, Tensor] | None:
    """Return the tensors that a call reads, by the names that its module would give them."""
    found: dict[str, Tensor] = {}
    for port, argument in zip(_PORTS, node.args, strict=False):
        if port == "input" or not isinstance(argument, Node):
            continue
        if argument.op != "get_attr":
            return None
        holder, _, name = str(argument.target).rpartition(".")
        found[port] = getattr(_submodule(module, holder), name)
    return found if isinstance(node.args[0], Node) and "weight" in found else None


def _fits(made: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    wanted = {
        name: value.shape
        for name, value in (*made.named_parameters(), *made.named_buffers())
        if name != "num_batches_tracked"
    }
    return wanted == {name: value.shape for name, value in tensors.items()}


def _fqn(node: Node, made: nn.Module) -> str:
    """Return the module that made the call; a tied weight stands under another's name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    kind = f"{type(made).__module__}.{type(made).__qualname__}"
    if stack and str(stack[-1][1]) == kind:
        return str(stack[-1][0]).split("@")[0]
    weight = node.args[1]
    assert isinstance(weight, Node)
    return str(weight.target).rpartition(".")[0]


def _submodule(module: GraphModule, fqn: str) -> Any:
    """Return a submodule, made empty where the program keeps none: its weight is another's."""
    try:
        return module.get_submodule(fqn)
    except AttributeError:
        module.add_submodule(fqn, nn.Module())
        return module.get_submodule(fqn)


def _linear(node: Node, weight: Tensor) -> nn.Module | None:
    outputs, inputs = weight.shape
    return nn.Linear(inputs, outputs, bias=_bias(node) is not None, device="meta")


def _convolution(kind: type[Any]) -> Callable[[Node, Tensor], nn.Module | None]:
    def make(node: Node, weight: Tensor) -> nn.Module | None:
        defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1, 1)
        args: Any = (*node.args, *defaults[len(node.args) :])
        dims = weight.dim() - 2
        stride, padding, dilation = (_each(value, dims) for value in args[3:6])
        groups = args[6]
        made: nn.Module = kind(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride=stride,
            padding=padding, dilation=dilation, groups=groups, bias=_bias(node) is not None,
            device="meta",
        )  # fmt: skip
        return made

    return make


def _each(value: Any, dims: int) -> Any:
    """Return one number a dimension; a word (`same`) stays."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * dims if len(values) == 1 else values


def _batch_norm(node: Node, weight: Tensor) -> nn.Module | None:
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, Node) else None
    kinds: Mapping[int, type[Any]] = {
        2: nn.BatchNorm1d,
        3: nn.BatchNorm1d,
        4: nn.BatchNorm2d,
        5: nn.BatchNorm3d,
    }
    if not isinstance(value, Tensor) or value.dim() not in kinds or node.args[5] is not False:
        return None
    kind = kinds[value.dim()]
    made: nn.Module = kind(weight.shape[0], eps=node.args[7], momentum=node.args[6])
    return made


def _bias(node: Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


_MAKERS: Mapping[str, Callable[[Node, Tensor], nn.Module | None]] = {
    "aten.linear.default": _linear,
    "aten.conv1d.default": _convolution(nn.Conv1d),
    "aten.conv2d.default": _convolution(nn.Conv2d),
    "aten.conv3d.default": _convolution(nn.Conv3d),
    "aten.conv1d.padding": _convolution(nn.Conv1d),
    "aten.conv2d.padding": _convolution(nn.Conv2d),
    "aten.conv3d.padding": _convolution(nn.Conv3d),
    "aten.batch_norm.default": _batch_norm,
}
