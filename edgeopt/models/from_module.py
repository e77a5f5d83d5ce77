"""Models that are modules already."""

from __future__ import annotations

import copy as copying
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data import Samples
from edgeopt.errors import ConfigError, ModelError
from edgeopt.files import parse
from edgeopt.ir import trees
from edgeopt.ir.calls import Batch, MethodExample
from edgeopt.ir.trees import leaves
from edgeopt.models.loaded import LoadedModel
from edgeopt.models.weights import check_finite

AUTO = "auto"


def from_module(
    module: nn.Module,
    example_args: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    source: str = "",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    input_roles: Sequence[str] = (),
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    calibration: Any = None,
    evaluation: Any = None,
    metric: str | None = AUTO,
    methods: Mapping[str, Any] | None = None,
    copy: bool = True,
) -> LoadedModel:
    """Take a module as it is in memory. It is copied and never changed.

    Args:
        module: Any module; training mode, half precision and other devices are left as they are
            on the user's and undone on the copy.
        example_args: One tensor, or a tuple of positional arguments.
        example_kwargs: Keyword arguments.
        name: For the bundle; else the class's name.
        source: Where it comes from, for reports; else the class's full name.
        dynamic_shapes: As `torch.export.export` takes them.
        input_names: One a tensor; else from the signature of `forward`.
        output_names: One a tensor; else from the outputs' own names.
        input_roles: One a tensor; else guessed from type and shape.
        preprocessing: A `Preprocessing`, or its fields by name.
        labels: Class names in order.
        calibration: Whatever `edgeopt.data.as_samples` takes.
        evaluation: The same.
        metric: How answers are judged; `auto` is `top1` for `[B, classes]` outputs and whole
            number labels, else None.
        methods: Further methods of the module: name -> example arguments, a tensor or a tuple.
        copy: False only where nobody else holds the module.

    Raises:
        ModelError: If the module does not run on the example, or its weights are not finite.
        ConfigError: If names do not match the inputs or outputs.
        DataError: If the data do not fit.
    """
    where = source or type(module).__name__
    if not isinstance(module, nn.Module):
        raise ModelError(f"{where}: {where} is no torch.nn.Module")
    check_finite(module, where)
    own = _own(module, where, copy=copy)
    args = example_args if isinstance(example_args, tuple) else (example_args,)
    example, outputs = _example(own, Batch(_plain(args), _plain(dict(example_kwargs or {}))), where)
    if isinstance(preprocessing, Mapping):
        preprocessing = parse(preprocessing, Preprocessing, where=f"{where}: preprocessing")
    loaded = LoadedModel(
        name=_folder_name(name) or _folder_name(type(module).__name__.lower()) or "model",
        source=where,
        module=own,
        example_args=example.args,
        example_kwargs=example.kwargs,
        dynamic_shapes=dynamic_shapes,
        input_names=_fitting(input_names, _input_names(own.forward, example), "input_names", where),
        output_names=_fitting(output_names, trees.output_names(outputs), "output_names", where),
        input_roles=_fitting(input_roles, _roles(own.forward, example), "input_roles", where),
        preprocessing=preprocessing,
        labels=tuple(labels),
        methods={n: _method(own, n, value, where) for n, value in (methods or {}).items()},
    )
    calib = None if calibration is None else loaded.data(calibration, name="calibration")
    evaluate = None if evaluation is None else loaded.data(evaluation, name="evaluation")
    described = [preprocessing, *(data.preprocessing for data in (evaluate, calib) if data)]
    return dataclasses.replace(
        loaded,
        calibration=calib,
        evaluation=evaluate,
        metric=_metric(outputs, evaluate) if metric == AUTO else metric,
        preprocessing=next((p for p in described if p is not None), None),
    )


def _folder_name(text: str) -> str:
    """Return the text fit for a folder's name: no separators, and nothing hidden."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".-")


def _own(module: nn.Module, where: str, *, copy: bool) -> nn.Module:
    if copy:
        try:
            module = copying.deepcopy(module)
        except Exception as failure:
            raise ModelError(
                f"{where}: the module cannot be copied ({failure}); build it in FILE.py:FACTORY"
            ) from failure
    return module.to("cpu").float().eval().requires_grad_(False)


def _method(module: nn.Module, name: str, example: Any, where: str) -> MethodExample:
    """Run a further method on its example and name what it takes and gives."""
    call = getattr(module, name, None)
    if name == "forward" or not callable(call):
        raise ModelError(f"{where}: methods: the module has no further method {name!r}")
    args = _plain(example if isinstance(example, tuple) else (example,))
    outputs = _run(call, Batch(args), f"{where}: method {name}")
    batch = Batch(args)
    return MethodExample(
        args,
        input_names=_input_names(call, batch),
        output_names=trees.output_names(outputs),
        input_roles=_roles(call, batch),
    )


def _plain(value: Any) -> Any:
    """Return example inputs on the CPU, floating ones as float32."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        return leaf.float() if leaf.is_floating_point() else leaf

    return pytree.tree_map(convert, value)


def _example(module: nn.Module, example: Batch, where: str) -> tuple[Batch, Any]:
    """Run the example; a batch of 1 becomes 2 if the module then gives 2 of everything."""
    outputs = _run(module, example, where)
    inputs = leaves((example.args, example.kwargs))
    if not all(value.ndim and len(value) == 1 for value in inputs):
        return example, outputs
    args, kwargs = pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf,
        (example.args, dict(example.kwargs)),
    )
    doubled = Batch(args, kwargs)
    try:
        with torch.no_grad():
            again = module(*doubled.args, **doubled.kwargs)
    except Exception:  # the module fixes its batch at 1, which is its right
        return example, outputs
    one, two = leaves(outputs), leaves(again)
    fits = len(one) == len(two) and all(
        b.ndim and b.shape == (2, *a.shape[1:]) for a, b in zip(one, two, strict=True)
    )
    return (doubled, again) if fits else (example, outputs)


def _run(module: Callable[..., Any], example: Batch, where: str) -> Any:
    trees.register_dataclasses((example.args, dict(example.kwargs)))
    if not leaves((example.args, example.kwargs)):
        raise ModelError(f"{where}: give example inputs that hold at least one tensor")
    try:
        with torch.no_grad():
            outputs = module(*example.args, **example.kwargs)
    except Exception as failure:
        text = " ".join(str(failure).split())[:300]
        raise ModelError(
            f"{where}: does not run on its example inputs: {type(failure).__name__}: {text}"
        ) from failure
    found = trees.flatten(outputs)
    for leaf in found:
        if leaf.value is not None and not isinstance(leaf.value, Tensor):
            raise ModelError(
                f"{where}: output {leaf.label or 'of the model'} is {type(leaf.value).__name__}; "
                "return tensors, in tuples, lists, mappings or dataclasses"
            )
    values = leaves(outputs)
    if not values:
        raise ModelError(f"{where}: returns no tensor")
    for value in values:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{where}: gives NaN or Inf on its example inputs")
    return outputs


def _fitting(given: Sequence[str], own: tuple[str, ...], what: str, where: str) -> tuple[str, ...]:
    names = tuple(given)
    if not names:
        return own
    if len(names) != len(own):
        raise ConfigError(f"{where}: {len(names)} {what}, the model has {len(own)}: {own}")
    if what != "input_roles" and len(set(names)) != len(names):
        raise ConfigError(f"{where}: {what} {names}: a name stands twice")
    return names


def _input_names(call: Callable[..., Any], example: Batch) -> tuple[str, ...]:
    parameters = [
        p.name
        for p in inspect.signature(call).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return trees.input_names(parameters, example.args, example.kwargs)


def _roles(call: Callable[..., Any], example: Batch) -> tuple[str, ...]:
    values = leaves((example.args, dict(example.kwargs)))
    return tuple(map(_role, _input_names(call, example), values))


def _role(name: str, value: Tensor) -> str:
    if "mask" in name:
        return "mask"
    if not value.is_floating_point():
        return "position" if "position" in name else "tokens" if value.ndim == 2 else "tensor"
    pictures = value.ndim == 4 and (value.shape[1] in (1, 3) or value.shape[3] in (1, 3))
    return "image" if pictures else "tensor"


def _metric(outputs: Any, evaluation: Samples | None) -> str | None:
    first = leaves(outputs)[0]
    if first.ndim != 2 or first.shape[1] < 2:
        return None
    if evaluation is None:
        return "top1"
    labels = next(evaluation.batches(1)).labels
    whole = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
    return "top1" if whole else None
