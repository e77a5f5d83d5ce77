"""Read a `.pt2` archive of a stranger without running anything in it.

`torch.export.load` was not made for that. It unpickles freely where careful unpickling fails,
loads compiled code, `eval`s the sizes in the graph (through sympy), calls whatever attribute of
torch a node names, imports what an output's type names, and writes names from the file into Python
source that it executes. So nothing of the file reaches it as it is: members are read by name, each
is checked, pickles are loaded with `weights_only=True` and written anew, and a new archive of what
passed is what torch gets.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgeopt.errors import ModelError
from edgeopt.ir.edges import is_plain

MODEL = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
CONFIGS = {
    "data/weights": "data/weights/model_weights_config.json",
    "data/constants": "data/constants/model_constants_config.json",
}
MAX_JSON_BYTES = 256 << 20
MAX_EXPANDED_BYTES = 16 << 20
"""How far a tensor may go beyond the bytes stored for it (a constant that was expanded)."""

_IGNORED = re.compile(r"(archive_format|archive_version|byteorder|\.data/\w+|extra/.*)")
_PAYLOAD = re.compile(r"data/(weights|constants)/(weight|tensor)_\d+")

# Strings are letters, digits, _ . @ + - (modules may be called stem-conv): no call, no assignment
# and no quote can be written with them.
_WORD = re.compile(r"[\w.@+-]*")
_FREE_TEXT = frozenset({"as_string", "as_strings"})  # quoted where it becomes source
_DROPPED = frozenset({"guards_code", "torch_version"})
_CODE_OBJECTS = ("as_custom_obj", "custom_obj", "custom_obj_name")

_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_set_grad_enabled"
    r"|torch\.sym_(max|min|not|int|float|ite|sum|sqrt|fresh_size)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|neg|pos|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_"
    r"|not_)"
)
_DIALECT = frozenset(f"torch.ops.edgeopt.{name}.default" for name in ("quantize", "dequantize"))
_REFUSED_OPERATORS = re.compile(r"torch\.ops\.aten\.(from_file|_print|save|load)\b.*")

_EXPRESSIONS = frozenset(
    {
        "Symbol",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "Eq",
        "Ne",
        "Equality",
        "Unequality",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "And",
        "Or",
        "Not",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "floor",
        "ceiling",
    }
)
_CONSTANTS = frozenset({"true", "false", "oo", "int_oo"})
_MAX_EXPONENT = 16
_TREES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})


def clean_archive(path: Path, *, dialect: bool = False) -> io.BytesIO:
    """Return a new archive of what was checked, for `torch.export.load`.

    Args:
        path: The file.
        dialect: Also take edgeopt's operators and sites, which the programs of a bundle have.

    Raises:
        ModelError: If the file is missing, damaged, of another layout, or holds what could run.
    """
    members = _members(path)
    configs = {folder: _json(members, name, path) for folder, name in CONFIGS.items()}
    model = _json(members, MODEL, path)
    try:
        return _archive(_checked(members, model, configs, path, dialect=dialect))
    except RecursionError:
        raise ModelError(f"{path}: its graph or its lists nest too deep") from None


def _checked(
    members: Mapping[str, bytes],
    model: Any,
    configs: Mapping[str, Any],
    path: Path,
    *,
    dialect: bool,
) -> dict[str, bytes]:
    _check_model(model, path, dialect=dialect)
    written: dict[str, bytes] = {MODEL: json.dumps(model).encode()}
    for folder, config in configs.items():
        for payload in _payloads(config, path):
            name = f"{folder}/{payload['path_name']}"
            if name not in members or not _PAYLOAD.fullmatch(name):
                raise ModelError(f"{path}: {name}: {_what(name)}")
            if payload.get("use_pickle"):
                written[name] = _pickled_anew(members[name], path, name)
            else:
                _check_size(payload.get("tensor_meta"), len(members[name]), path, name)
                written[name] = members[name]
        written[CONFIGS[folder]] = json.dumps(config).encode()
    if SAMPLE_INPUTS in members:
        written[SAMPLE_INPUTS] = _pickled_anew(members[SAMPLE_INPUTS], path, SAMPLE_INPUTS)
    return written


def _what(name: str) -> str:
    if "custom_obj" in name or "opaque_obj" in name:
        return "an object that is no tensor, which only code could load; refused"
    if name.startswith("data/aotinductor/"):
        return "compiled code, which is never run; save with torch.export.save"
    if name.startswith(("data/weights/", "data/constants/")):
        return "is missing, or not as torch.export.save of torch 2.9 and newer writes it"
    return "no part of a program that torch.export.save writes; refused"


def _members(path: Path) -> dict[str, bytes]:
    """Read the archive's members, by their names under its one folder."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    size = path.stat().st_size
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise ModelError(f"{path}: a member stands twice; refused")
            if "serialized_exported_program.json" in names:
                raise ModelError(f"{path}: saved by an older torch; save it again")
            stored = all(
                e.compress_type == zipfile.ZIP_STORED and e.compress_size == e.file_size
                for e in entries
            )
            if not stored or sum(entry.file_size for entry in entries) > size:
                raise ModelError(
                    f"{path}: members are compressed or overlap, which torch.export.save never "
                    "does; refused"
                )
            for entry in entries:
                name = entry.filename.partition("/")[2]
                if _IGNORED.fullmatch(name):
                    continue
                known = name in (MODEL, SAMPLE_INPUTS, *CONFIGS.values())
                if not known and not _PAYLOAD.fullmatch(name):
                    raise ModelError(f"{path}: {entry.filename}: {_what(name)}")
                if name in members:
                    raise ModelError(f"{path}: {name} stands in two folders; refused")
                members[name] = archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as failure:
        raise ModelError(f"{path}: damaged or no .pt2 archive: {failure}") from None
    for name in (MODEL, *CONFIGS.values()):
        if name not in members:
            raise ModelError(
                f"{path}: has no {name}; save the program with torch.export.save (torch 2.9 or "
                "newer)"
            )
    return members


def _json(members: Mapping[str, bytes], name: str, path: Path) -> Any:
    if len(members[name]) > MAX_JSON_BYTES:
        raise ModelError(f"{path}: {name} has {len(members[name])} bytes, too many")
    try:
        return json.loads(members[name])
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: {name} is damaged") from None


def _payloads(config: Any, path: Path) -> Iterator[dict[str, Any]]:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: the list of weights or constants is damaged")
    for name, payload in entries.items():
        shaped = isinstance(payload, dict) and isinstance(payload.get("path_name"), str)
        if not shaped or not _WORD.fullmatch(name):
            raise ModelError(f"{path}: {name[:80]!r} in the list of weights is damaged")
        _check_strings(payload, path)
        yield payload


def _check_size(meta: Any, stored: int, path: Path, name: str) -> None:
    try:
        numbers = [size["as_int"] for size in meta["sizes"]]
        good = all(isinstance(n, int) and n >= 0 for n in numbers)
        claimed = math.prod(numbers) if good else -1
    except (TypeError, KeyError):
        claimed = -1
    if claimed < 0:
        raise ModelError(f"{path}: {name}: its sizes are damaged")
    if claimed > stored + MAX_EXPANDED_BYTES:  # an element takes a byte or more
        raise ModelError(f"{path}: {name}: {claimed} elements in {stored} bytes; refused")


def _pickled_anew(data: bytes, path: Path, name: str) -> bytes:
    """Load a pickle that may hold tensors and plain containers only, and write it again."""
    if not data:
        return data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it, in one line
            value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch, zip and pickle readers each have errors of their own
        raise ModelError(
            f"{path}: {name} holds more than tensors in tuples, lists and dicts, or is damaged; "
            "loading it could run code; refused"
        ) from None
    again = io.BytesIO()
    torch.save(value, again)
    return again.getvalue()


def _archive(members: Mapping[str, bytes]) -> io.BytesIO:
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, data in members.items():
            writer.write_bytes(name, data)
    buffer.seek(0)
    return buffer


# --- the graph -----------------------------------------------------------------------------------


def _check_model(model: Any, path: Path, *, dialect: bool) -> None:
    """Check every string of the graph, and drop what only debugging reads."""
    if not isinstance(model, dict) or not isinstance(model.get("graph_module"), dict):
        raise ModelError(f"{path}: {MODEL} is damaged")
    _check_strings(model, path, dialect=dialect)
    model["guards_code"] = []  # Python source, which `module()` would execute
    model["torch_version"] = ""


def _check_strings(value: Any, path: Path, key: str = "", *, dialect: bool = False) -> None:
    if isinstance(value, dict):
        for name, inner in list(value.items()):
            if not _WORD.fullmatch(name):
                raise ModelError(f"{path}: {name[:80]!r} is no name; refused")
            if name in _CODE_OBJECTS or (name == "custom_obj_values" and inner):
                raise ModelError(f"{path}: holds an object that is no tensor; refused")
            if name == "metadata":
                value[name] = _metadata(inner) | (_site(inner) if dialect else {})
            elif name not in _DROPPED:
                _check_strings(inner, path, name, dialect=dialect)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(inner, path, key, dialect=dialect)
    elif isinstance(value, str) and key not in _FREE_TEXT:
        checks: dict[str, Callable[[str], str | None]] = {
            "expr_str": _wrong_expression,
            "in_spec": _wrong_tree,
            "out_spec": _wrong_tree,
            "target": _wrong_target,
            "as_operator": _wrong_target,
        }
        problem = checks.get(key, _wrong_word)(value)
        if dialect and key == "target" and value in _DIALECT:
            return
        if problem:
            raise ModelError(f"{path}: {problem}")


def _metadata(value: Any) -> dict[str, str]:
    """Keep which module an operator came from; the rest names source files and functions."""
    stack = value.get("nn_module_stack") if isinstance(value, dict) else None
    plain = isinstance(stack, str) and re.fullmatch(r"[\w.@,;()\[\]<>*' -]*", stack)
    return {"nn_module_stack": str(stack)} if plain else {}


def _site(value: Any) -> dict[str, str]:
    """Keep where an operator stood in the model: four plain fields, written anew."""
    try:
        given = json.loads(value["custom"])["edgeopt"]
        words = {key: str(given[key]) for key in ("id", "fqn", "op")}
        index = int(given["index"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}
    if not all(is_plain(word) for word in words.values()):
        return {}
    return {"custom": json.dumps({"edgeopt": {**words, "index": index}})}


def _wrong_word(text: str) -> str | None:
    return None if _WORD.fullmatch(text) else f"{text[:80]!r} is no name; refused"


def _wrong_target(text: str) -> str | None:
    if _TARGET.fullmatch(text) and not _REFUSED_OPERATORS.fullmatch(text):
        return None
    if text.startswith("torch.ops."):
        return (
            f"operator {text[10:90]} is none of torch's own (aten), or may not be run from a file; "
            "export again without it"
        )
    return f"calls {text[:80]!r}, which is no operator; refused"


def _wrong_tree(text: str) -> str | None:
    """Say what is wrong with the description of nested inputs or outputs."""
    try:
        protocol, tree = json.loads(text)
        pending = [tree]
        while pending:
            node = pending.pop()
            kind, context = node["type"], node["context"]
            if kind is not None and kind not in _TREES:
                return (
                    f"inputs or outputs nest in {str(kind)[:80]!r}; export a model that takes and "
                    "gives tensors in tuples, lists and dicts"
                )
            keys = json.loads(context) if context not in (None, "null") else None
            if keys is not None and not _plain_keys(keys):
                return f"the keys {context[:80]!r} of inputs or outputs are no names; refused"
            pending += node["children_spec"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "the description of inputs or outputs is damaged"
    return None if protocol == 1 else "the description of inputs or outputs is damaged"


def _plain_keys(keys: Any) -> bool:
    return isinstance(keys, list) and all(
        isinstance(key, int) or (isinstance(key, str) and _WORD.fullmatch(key)) for key in keys
    )


def _wrong_expression(text: str) -> str | None:
    """Say what is wrong with a size, which sympy would evaluate as Python."""
    problem = f"{text[:80]!r} is no size; refused"
    try:
        tree = ast.parse(text, mode="eval").body
        return None if _is_expression(tree) else problem
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return problem


def _is_expression(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_expression(node.operand)
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS or re.fullmatch(r"[su]\d+", node.id) is not None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    name = node.func.id
    if name not in _EXPRESSIONS or any(k.arg is None for k in node.keywords):
        return False
    if not all(isinstance(k.value, ast.Constant) for k in node.keywords):
        return False
    if name == "Symbol":
        # Only here may a string stand: others would evaluate it.
        first = node.args[0] if len(node.args) == 1 else None
        word = first.value if isinstance(first, ast.Constant) else None
        return isinstance(word, str) and word.isidentifier()
    if any(not isinstance(k.value.value, (bool, int)) for k in node.keywords):  # type: ignore[attr-defined]
        return False
    if name == "Pow" and not _small_power(node):
        return False
    return all(_is_expression(argument) for argument in node.args)


def _small_power(node: ast.Call) -> bool:
    if len(node.args) != 2:
        return False
    exponent = ast.unparse(node.args[1])
    found = re.fullmatch(r"(?:Integer\()?(-?\d{1,3})\)?", exponent)
    return found is not None and abs(int(found[1])) <= _MAX_EXPONENT
