"""Data arguments: `--calib` and `--eval`, `calibration=` and `evaluate=`."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data.arrays import (
    MAX_ARRAY_BYTES,
    DatasetSource,
    from_named,
    from_tensors,
    read_npz,
    split_item,
    to_labels,
)
from edgeopt.data.labels import find_labels
from edgeopt.data.pictures import SUFFIXES, FolderStore, PictureSource, Store, ZipStore
from edgeopt.data.pixels import check_preprocessing
from edgeopt.data.samples import Samples
from edgeopt.data.signature import Example, Signature
from edgeopt.errors import DataError, nearest
from edgeopt.files import parse
from edgeopt.userfile import load_function, split_spec

FORMS = "FILE.npz, a folder or .zip of pictures, or FILE.py:FUNCTION"
DESCRIPTIONS = ("preprocessing.toml", "preprocessing.json")


@dataclasses.dataclass(frozen=True)
class _Description(Preprocessing):
    """A `preprocessing.toml`: the keys of `Preprocessing`, and where the labels are."""

    labels: str = ""


def load_data(
    spec: str,
    *,
    example: Example,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    input_names: Sequence[str] = (),
    dynamic_shapes: Any = None,
) -> Samples:
    """Open calibration or evaluation data.

    - `FILE.npz`: arrays named as the inputs (or `x`, `images`) and, if known, `y` or `labels`.
      `?x=NAME&y=NAME` picks others. 8-bit pictures go through the preprocessing.
    - A folder or `.zip` of pictures, decoded as they are needed. Where the labels come from:
      `edgeopt.data.labels.find_labels`.
    - `FILE.py:FUNCTION`, whose result `as_samples` takes. This runs the file's code.

    How a picture becomes an input: the model's own description, overridden by a
    `preprocessing.toml` (or `.json`) in or beside the data, overridden by options after a `?`:
    `resize`, `crop`, `mean`, `std`, `channels`, `layout`, and `labels` as there;
    `size=S` is `resize=S&crop=S`, `preprocessing=FILE` names another description. As in
    `pictures.zip?resize=256&crop=224&mean=0.5,0.5,0.5&std=0.5&labels=wnids.json`.

    Args:
        spec: One of these.
        example: The model's example arguments; shapes and types are checked against them.
        preprocessing: The model's own, or None.
        labels: The model's class names, in order.
        input_names: Names of the inputs, in order.
        dynamic_shapes: As `torch.export` takes them; these dimensions are not checked.

    Raises:
        DataError: In one line, if the data are missing, damaged, empty or not what the model
            takes.
    """
    signature = Signature.of(example, input_names, dynamic_shapes)
    user = split_spec(spec)
    if user is not None:
        value = load_function(*user, error=DataError)()
        return _convert(value, signature, spec, preprocessing)
    location, _, query = spec.partition("?")
    options = _options(query, spec)
    path = Path(location).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        described, _ = _describe(None, path, options, preprocessing)
        keys = {key: options.get(key, "") for key in ("x", "y")}
        return from_named(
            read_npz(path), signature, name=path.name, preprocessing=described, **keys
        )
    if path.is_dir():
        return _pictures(FolderStore(path), signature, options, preprocessing, labels)
    if path.suffix.lower() == ".zip" and path.is_file():
        return _pictures(ZipStore(path), signature, options, preprocessing, labels)
    problem = f"not one of {FORMS}" if path.exists() else "no such file or folder"
    raise DataError(f"{location}: {problem}")


def as_samples(
    value: Any,
    *,
    example: Example,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    input_names: Sequence[str] = (),
    dynamic_shapes: Any = None,
    name: str = "data",
) -> Samples:
    """Make samples of a Python value.

    - `Samples`: as they are. A string or path: as `load_data`.
    - An array or tensor `[N, ...]`, a tuple `(x, y)`, or one array for each input and then
      perhaps the labels, or a mapping as in a `.npz`.
    - A map-style data set (`len(data)`, `data[i]`): read one by one when needed.
    - Any iterable of batches or of samples, such as a `DataLoader`: read once, kept in memory.

    Raises:
        DataError: As `load_data`.
    """
    if isinstance(value, (str, Path)):
        return load_data(
            str(value),
            example=example,
            preprocessing=preprocessing,
            labels=labels,
            input_names=input_names,
            dynamic_shapes=dynamic_shapes,
        )
    signature = Signature.of(example, input_names, dynamic_shapes)
    return _convert(value, signature, name, preprocessing)


def _convert(
    value: Any, signature: Signature, name: str, preprocessing: Preprocessing | None
) -> Samples:
    if isinstance(value, Samples):
        signature.fit(value.source.read(value.indices[:1]).inputs, name)
        return value
    if isinstance(value, Mapping):
        return from_named(value, signature, name=name, preprocessing=preprocessing)
    if isinstance(value, (Tensor, np.ndarray)):
        return from_tensors([value], None, signature, name=name, preprocessing=preprocessing)
    if isinstance(value, tuple):
        inputs, labels = split_item(value, signature, name)
        return from_tensors(inputs, labels, signature, name=name, preprocessing=preprocessing)
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, list):
        if not len(value):
            raise DataError(f"{name}: no samples; name data that hold at least one")
        source = DatasetSource(signature, value, name)
        source.read([0])
        return Samples(name, source, range(source.count))
    if isinstance(value, Iterable):
        return _collect(value, signature, name, preprocessing)
    raise DataError(
        f"{name}: {type(value).__name__} is no data; return arrays, (x, y), batches or a data set"
    )


def _collect(
    items: Iterable[Any], signature: Signature, name: str, preprocessing: Preprocessing | None
) -> Samples:
    """Join batches, or stack samples, told apart by the number of dimensions."""
    columns: list[list[Tensor]] = [[] for _ in signature.leaves]
    answers: list[Tensor] = []
    total = 0
    for number, item in enumerate(items):
        where = f"{name}: batch {number}"
        values, label = split_item(item, signature, where)
        if len(values) != len(columns):
            raise DataError(f"{where}: {len(values)} inputs, the model takes {len(columns)}")
        single = values[0].ndim == len(signature.leaves[0].shape)
        for column, value in zip(columns, values, strict=True):
            column.append(value[None] if single else value)
            total += value.nbytes
        if label is not None:
            answer = to_labels(label, where)
            answers.append(answer[None] if single else answer)
        if total > MAX_ARRAY_BYTES:
            raise DataError(
                f"{name}: more than {MAX_ARRAY_BYTES >> 30} GiB; return a data set with "
                "__len__ and __getitem__, which is read as it is needed"
            )
    if not columns[0]:
        raise DataError(f"{name}: no samples; name data that hold at least one")
    if answers and len(answers) != len(columns[0]):
        raise DataError(f"{name}: some batches have labels and some have none")
    try:
        inputs = [torch.cat(column) for column in columns]
        labels = torch.cat(answers) if answers else None
    except (RuntimeError, TypeError) as failure:
        raise DataError(f"{name}: the batches do not join: {failure}") from None
    return from_tensors(inputs, labels, signature, name=name, preprocessing=preprocessing)


def _pictures(
    store: Store,
    signature: Signature,
    options: Mapping[str, str],
    preprocessing: Preprocessing | None,
    known: Sequence[str],
) -> Samples:
    where = str(store.path)
    names = [n for n in store.names if PurePosixPath(n).suffix.lower() in SUFFIXES]
    if not names:
        raise DataError(f"{where}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    for key in ("x", "y"):
        if key in options:
            raise DataError(f"{where}: ?{key}= is for .npz files")
    if len(signature.leaves) != 1:
        raise DataError(f"{where}: the model takes {len(signature.leaves)} inputs, not a picture")
    described, rule = _describe(store, store.path, options, preprocessing)
    if described is None:
        raise DataError(
            f"{where}: say how a picture becomes an input: ?size=...&mean=...&std=..., or a "
            "preprocessing.toml in the folder"
        )
    answers, classes = find_labels(store, names, rule, known)
    source = PictureSource(signature, store, names, answers, described)
    source.read([0])
    return Samples(store.path.name, source, range(len(names)), described, classes)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


_KEYS: Mapping[str, Callable[[str], Any]] = {
    "resize": int,
    "crop": int,
    "size": int,
    "mean": _numbers,
    "std": _numbers,
    "channels": str,
    "layout": str,
    "labels": str,
    "preprocessing": str,
    "x": str,
    "y": str,
}


def _options(query: str, spec: str) -> dict[str, str]:
    options = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in _KEYS:
            raise DataError(f"{spec}: unknown option {key!r}{nearest(key, _KEYS)}")
        options[key] = value
    return options


def preprocessing_options(options: Mapping[str, str], where: str) -> dict[str, Any]:
    """Turn `resize`, `crop`, `size`, `mean`, `std`, `channels` and `layout` into fields.

    Raises:
        DataError: For a value that is no number where one is needed.
    """
    fields: dict[str, Any] = {}
    for key, text in options.items():
        if key in ("x", "y", "preprocessing"):
            continue
        try:
            value = _KEYS[key](text)
        except ValueError:
            raise DataError(f"{where}: {key}={text!r} is no number") from None
        fields.update({"resize": value, "crop": value} if key == "size" else {key: value})
    return fields


def _describe(
    store: Store | None,
    path: Path,
    options: Mapping[str, str],
    own: Preprocessing | None,
) -> tuple[Preprocessing | None, str]:
    """Return how a picture becomes an input, and the label rule."""
    fields: dict[str, Any] = {} if own is None else dataclasses.asdict(own)
    given = options.get("preprocessing", "")
    names = (given,) if given else DESCRIPTIONS
    found = [n for n in names if store is not None and n in store.names]
    beside = [path.parent / n for n in names if (path.parent / n).is_file()]
    if store is not None and found:
        fields |= _parse_description(store.read(found[0]), found[0])
    elif beside:
        fields |= _parse_description(beside[0].read_bytes(), str(beside[0]))
    elif given:
        raise DataError(f"{path}: no {given} in it or beside it")
    fields |= preprocessing_options(options, str(path))
    rule = str(fields.pop("labels", ""))
    if not fields:
        return None, rule
    return check_preprocessing(Preprocessing(**fields), str(path)), rule


def _parse_description(content: bytes, name: str) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
        data = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
    except (ValueError, RecursionError) as failure:
        raise DataError(f"{name}: cannot be read: {failure}") from None
    parsed = parse(data, _Description, where=name, error=DataError)
    return {key: getattr(parsed, key) for key in data}
