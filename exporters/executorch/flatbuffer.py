"""Read flatbuffers by their schema text.

`flatc` prints floats with six digits, and scales are checked to the bit here. A schema's fields are
only ever appended to, so what the installed runtime ships reads its older files as well.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import BundleError

_SCALARS: Mapping[str, tuple[str, int]] = {
    # name: (struct code, bytes)
    **dict.fromkeys(("bool",), ("?", 1)),
    **dict.fromkeys(("byte", "int8"), ("b", 1)),
    **dict.fromkeys(("ubyte", "uint8"), ("B", 1)),
    **dict.fromkeys(("short", "int16"), ("h", 2)),
    **dict.fromkeys(("ushort", "uint16"), ("H", 2)),
    **dict.fromkeys(("int", "int32"), ("i", 4)),
    **dict.fromkeys(("uint", "uint32"), ("I", 4)),
    **dict.fromkeys(("float", "float32"), ("f", 4)),
    **dict.fromkeys(("long", "int64"), ("q", 8)),
    **dict.fromkeys(("ulong", "uint64"), ("Q", 8)),
    **dict.fromkeys(("double", "float64"), ("d", 8)),
}
_MAX_DEPTH = 32


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    type: str
    default: str = ""


@dataclasses.dataclass(frozen=True)
class Schema:
    """A parsed schema.

    Attributes:
        tables: Table -> its fields in order.
        enums: Enum -> its scalar type, and value -> name.
        unions: Union -> for each number from 1 its name and table.
        root: The root table.
        identifier: The four letters that a file carries, or empty.
    """

    tables: Mapping[str, tuple[_Field, ...]]
    enums: Mapping[str, tuple[str, Mapping[int, str]]]
    unions: Mapping[str, tuple[tuple[str, str], ...]]
    root: str
    identifier: str

    @staticmethod
    def load(path: Path) -> Schema:
        """Read a schema and what it includes."""
        return Schema.parse(_with_includes(path))

    @staticmethod
    def parse(text: str) -> Schema:
        """Read a schema from its text."""
        text = re.sub(r"//[^\n]*", "", text)
        tables = {
            name: tuple(_fields(body))
            for name, body in re.findall(r"\btable\s+(\w+)\s*\{(.*?)\}", text, re.S)
        }
        enums = {
            name: (kind, _members(body))
            for name, kind, body in re.findall(
                r"\benum\s+(\w+)\s*:\s*(\w+)\s*\{(.*?)\}", text, re.S
            )
        }
        unions = {
            name: tuple(_alternatives(body))
            for name, body in re.findall(r"\bunion\s+(\w+)\s*\{(.*?)\}", text, re.S)
        }
        root = re.search(r"\broot_type\s+(\w+)", text)
        identifier = re.search(r'\bfile_identifier\s+"(\w{4})"', text)
        return Schema(
            tables,
            enums,
            unions,
            root.group(1) if root else "",
            identifier.group(1) if identifier else "",
        )

    def read(self, data: bytes, where: str) -> dict[str, Any]:
        """Decode a buffer: tables as dictionaries, vectors as lists, bytes as bytes.

        A union's value is a pair (name, table); an enum's value is its name.

        Args:
            data: The buffer.
            where: Named in errors.

        Raises:
            BundleError: If the buffer is damaged.
        """
        try:
            (start,) = struct.unpack_from("<I", data, 0)
            return _Reader(self, data).table(start, self.root, 0)
        except (struct.error, IndexError, KeyError, ValueError) as failure:
            raise BundleError(f"{where}: is damaged: {failure}") from None


def _with_includes(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r'^\s*include\s+"([\w.]+)"', text, re.M):
        text += "\n" + (path.parent / name).read_text(encoding="utf-8")
    return text


def _fields(body: str) -> list[_Field]:
    found = []
    for line in body.split(";"):
        match = re.match(r"\s*(\w+)\s*:\s*(\[?\w+\]?)\s*(?:=\s*([\w.+-]+))?", line)
        if match:
            found.append(_Field(match.group(1), match.group(2), match.group(3) or ""))
    return found


def _members(body: str) -> dict[int, str]:
    found: dict[int, str] = {}
    value = -1
    for part in body.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name:
            value = int(number, 0) if number else value + 1
            found[value] = name
    return found


def _alternatives(body: str) -> list[tuple[str, str]]:
    found = []
    for part in body.split(","):
        name, _, table = (piece.strip() for piece in part.partition(":"))
        if name:
            found.append((name, table or name))
    return found


class _Reader:
    """Decode one buffer. Offsets point forward only, and tables are counted, so reading ends."""

    def __init__(self, schema: Schema, data: bytes) -> None:
        self._schema = schema
        self._data = data
        self._tables = 0

    def table(self, at: int, name: str, depth: int) -> dict[str, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"tables are nested more than {_MAX_DEPTH} deep")
        self._tables += 1
        if 4 * self._tables > len(self._data):
            raise ValueError("tables are shared without end")
        (back,) = struct.unpack_from("<i", self._data, at)
        vtable = at - back
        if vtable < 0:
            raise ValueError("a table lies outside the buffer")
        (size,) = struct.unpack_from("<H", self._data, vtable)
        found: dict[str, Any] = {}
        slot = 0
        for field in self._schema.tables[name]:
            union = self._schema.unions.get(field.type)
            if union is not None:
                tag_at, value_at = (self._place(at, vtable, size, slot + i) for i in range(2))
                slot += 2
                found[field.name] = self._union(union, tag_at, value_at, depth)
                continue
            place = self._place(at, vtable, size, slot)
            slot += 1
            found[field.name] = self._value(field, place, depth)
        return found

    def _place(self, at: int, vtable: int, size: int, slot: int) -> int | None:
        """Return where a field stands, or None where it has its default."""
        entry = 4 + 2 * slot
        if entry + 2 > size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, vtable + entry)
        return at + offset if offset else None

    def _union(
        self,
        union: tuple[tuple[str, str], ...],
        tag_at: int | None,
        value_at: int | None,
        depth: int,
    ) -> tuple[str, dict[str, Any]] | None:
        if tag_at is None or value_at is None:
            return None
        tag = self._data[tag_at]
        if tag == 0:
            return None
        name, table = union[tag - 1]
        return name, self.table(self._follow(value_at), table, depth + 1)

    def _value(self, field: _Field, place: int | None, depth: int) -> Any:
        kind = field.type
        if kind.startswith("["):
            return self._vector(kind[1:-1], place, depth)
        if kind in self._schema.enums:
            scalar, members = self._schema.enums[kind]
            if place is None:
                return field.default or members.get(0, "")
            return members[self._scalar(scalar, place)]
        if kind in _SCALARS:
            if place is None:
                return _default(field)
            return self._scalar(kind, place)
        if place is None:
            return "" if kind == "string" else None
        if kind == "string":
            return self._bytes(self._follow(place)).decode("utf-8")
        return self.table(self._follow(place), kind, depth + 1)

    def _vector(self, kind: str, place: int | None, depth: int) -> Any:
        if kind in ("ubyte", "uint8"):
            return b"" if place is None else self._bytes(self._follow(place))
        if place is None:
            return []
        start = self._follow(place)
        (count,) = struct.unpack_from("<I", self._data, start)
        if count > len(self._data):
            raise ValueError("a vector is longer than the buffer")
        if kind in self._schema.enums:
            scalar, members = self._schema.enums[kind]
            return [members[v] for v in self._scalars(scalar, start + 4, count)]
        if kind in _SCALARS:
            return self._scalars(kind, start + 4, count)
        places = [self._follow(start + 4 + 4 * i) for i in range(count)]
        if kind == "string":
            return [self._bytes(p).decode("utf-8") for p in places]
        return [self.table(p, kind, depth + 1) for p in places]

    def _scalar(self, kind: str, place: int) -> Any:
        return struct.unpack_from(f"<{_SCALARS[kind][0]}", self._data, place)[0]

    def _scalars(self, kind: str, place: int, count: int) -> list[Any]:
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind][0]}", self._data, place))

    def _follow(self, place: int) -> int:
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def _bytes(self, start: int) -> bytes:
        (count,) = struct.unpack_from("<I", self._data, start)
        if start + 4 + count > len(self._data):
            raise ValueError("a text is longer than the buffer")
        return self._data[start + 4 : start + 4 + count]


def _default(field: _Field) -> Any:
    code = _SCALARS[field.type][0]
    if code == "?":
        return field.default == "true"
    if code in "fd":
        return float(field.default or 0)
    return int(field.default or "0", 0)
