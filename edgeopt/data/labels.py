"""Which class a picture belongs to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from edgeopt.data.pictures import Store
from edgeopt.errors import DataError, nearest

LABEL_FILES = ("labels.csv", "labels.json")


def find_labels(
    store: Store, pictures: Sequence[str], rule: str, known: Sequence[str]
) -> tuple[list[int] | None, tuple[str, ...]]:
    """Return the label of each picture, and the class names as far as they are known.

    The first that applies decides:

    1. `rule`, or a `labels.csv` or `labels.json`, in or beside the pictures: a list of names
       (position = class; a picture's stem or folder is looked up in it), an object or a table
       that says the class, by number or name, for each file.
    2. The folder that a picture lies in, where there are at least two: by the model's own class
       names if they are these, else in sorted order, if the model has as many classes.
    3. Otherwise nobody knows.

    Args:
        store: Where the pictures are.
        pictures: Their names.
        rule: A file with labels, relative to the pictures; `none` leaves them unlabelled.
        known: The model's class names, in order.

    Raises:
        DataError: If the rule cannot be read, or a picture has no class.
    """
    if rule == "none":
        return None, ()
    file = rule or next((name for name in LABEL_FILES if _has(store, name)), "")
    if file:
        return _from_file(store, pictures, file, known)
    folders = [PurePosixPath(name).parent.name for name in pictures]
    names = sorted(set(folders))
    if len(names) < 2:
        return None, ()
    if set(names) <= set(known):
        names = list(known)
    elif known and len(names) != len(known):
        raise DataError(
            f"{store.path}: {len(names)} class folders, but the model has {len(known)} classes; "
            "pass ?labels=FILE.json with the folders' names in the model's order"
        )
    position = {name: index for index, name in enumerate(names)}
    return [position[folder] for folder in folders], tuple(names)


def _has(store: Store, name: str) -> bool:
    return name in store.names or (store.path.parent / name).is_file()


def _text(store: Store, name: str) -> str:
    try:
        if name in store.names:
            return store.read(name).decode("utf-8")
        beside = store.path.parent / name
        if not beside.is_file():
            raise DataError(f"{store.path}: no {name} in it or beside it")
        return beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise DataError(f"{name}: cannot be read: {failure}") from None


def _from_file(
    store: Store, pictures: Sequence[str], file: str, known: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    text = _text(store, file)
    if file.endswith(".csv"):
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        if any(len(row) != 2 for row in rows):
            raise DataError(f"{file}: each line is FILE,CLASS")
        return _from_table(pictures, dict(rows), file, known)
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as failure:
        raise DataError(f"{file}: not valid JSON: {failure}") from None
    if isinstance(data, Mapping):
        return _from_table(pictures, data, file, known)
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise DataError(f"{file}: a list of class names, or an object {{file: class}}")
    position = {name: index for index, name in enumerate(data)}
    if len(position) != len(data):
        raise DataError(f"{file}: a class name stands twice in the list")
    labels = []
    for name in pictures:
        path = PurePosixPath(name)
        key = path.stem if path.stem in position else path.parent.name
        if key not in position:
            raise DataError(f"{file}: neither {path.stem!r} nor its folder is a class of the list")
        labels.append(position[key])
    return labels, tuple(data)


def _from_table(
    pictures: Sequence[str], table: Mapping[str, Any], file: str, known: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    position = {name: index for index, name in enumerate(known)}
    labels = []
    for name in pictures:
        path = PurePosixPath(name)
        key = next((k for k in (name, path.name, path.stem) if k in table), None)
        if key is None:
            raise DataError(f"{file}: no class for {name}{nearest(name, table)[:200]}")
        value = table[key]
        text = str(value).strip()
        if text in position:
            labels.append(position[text])
        elif text.isdecimal() and (not known or int(text) < len(known)):
            labels.append(int(text))
        else:
            raise DataError(f"{file}: {name}: {text!r} is no class of the model")
    return labels, tuple(known)
