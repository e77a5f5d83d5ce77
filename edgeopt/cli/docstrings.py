"""Read options and their meaning from a frozen dataclass and its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

_ATTRIBUTE = re.compile(r"^    (\w+): (.*)$")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: As in recipes and `--set`.
        type: Its type as written.
        default: Plain data, or None where it must be given.
        required: Whether it must be given.
        doc: What it means.
    """

    name: str
    type: str
    default: Any
    required: bool
    doc: str


def options_of(config: type) -> tuple[Option, ...]:
    """Return the fields of a config dataclass with their defaults and docs."""
    from edgeopt.files import to_plain

    docs = attribute_docs(config)
    found = []
    for field in dataclasses.fields(config):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        type_ = field.type if isinstance(field.type, str) else field.type.__name__
        plain = None if required else to_plain(default)
        found.append(Option(field.name, type_, plain, required, docs.get(field.name, "")))
    return tuple(found)


def attribute_docs(type_: type) -> dict[str, str]:
    """Return what stands under `Attributes:` in a docstring, name -> words."""
    text = inspect.getdoc(type_) or ""
    _, found, rest = text.partition("Attributes:\n")
    docs: dict[str, str] = {}
    name = ""
    for line in rest.splitlines() if found else ():
        if line and not line.startswith(" "):
            break
        if match := _ATTRIBUTE.match(line):
            name = match[1]
            docs[name] = match[2]
        elif name and line.strip():
            docs[name] += f" {line.strip()}"
    return docs


def summary_of(type_: type) -> str:
    """Return the first sentence or line of a docstring."""
    return first_paragraph(inspect.getdoc(type_) or "")


def first_paragraph(text: str) -> str:
    """Return a text's first paragraph on one line."""
    return " ".join(text.split("\n\n")[0].split())
