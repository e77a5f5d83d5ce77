"""The border to the disk: typed reading, one-line errors, writes that happen whole or not."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import BundleError, ConfigError, ProfileError
from edgeopt.files import (
    atomic_folder,
    inside,
    parse,
    read_json,
    read_toml,
    sha256,
    to_json,
    to_plain,
    write_text,
)


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Inner:
    """What `Outer` holds."""

    width: int
    color: Color = Color.RED


@dataclasses.dataclass(frozen=True)
class Outer:
    """A type with one of everything."""

    name: str
    inner: Inner
    several: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    maybe: Inner | None = None
    number: float = 0.0

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ConfigError("number is at least 0")


GOOD: dict[str, Any] = {"name": "a", "inner": {"width": 3}}

# --- reading -------------------------------------------------------------------------------------


def test_plain_data_become_typed_data() -> None:
    data = {
        **GOOD,
        "several": [{"width": 1, "color": "red"}],
        "by_name": {"x": {"width": 2}},
        "maybe": {"width": 4},
    }
    assert parse(data, Outer, where="here") == Outer(
        "a", Inner(3), (Inner(1),), {"x": Inner(2)}, Inner(4)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": 1}, "here: unknown key 'nam' (did you mean 'name'?)"),
        (
            {"zzz": 1},
            "here: unknown key 'zzz' (known: by_name, inner, maybe, name, number, several)",
        ),
        ({"inner": {"widht": 3}}, "here: unknown key 'widht' in inner (did you mean 'width'?)"),
        (
            {"several": [{"width": 1}, {"widths": 3}]},
            "here: unknown key 'widths' in several.1 (did you mean 'width'?)",
        ),
        (
            {"by_name": {"x": {"colour": "red"}}},
            "here: unknown key 'colour' in by_name.x (did you mean 'color'?)",
        ),
        ({"maybe": {"with": 1}}, "here: unknown key 'with' in maybe (did you mean 'width'?)"),
        ({"inner": {"width": "wide"}}, "here: inner.width: Input should be a valid integer"),
        ({"inner": {"width": 1, "color": "blue"}}, "here: inner.color: Input should be 'red'"),
        ({"inner": {}}, "here: inner.width: Field required"),
        ({"number": -1}, "here: number is at least 0"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**GOOD, **change}, Outer, where="here")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_data_that_are_no_table_are_refused() -> None:
    for data in ([], "text", 3, None):
        with pytest.raises(ProfileError, match=r"^here: "):
            parse(data, Outer, where="here", error=ProfileError)


DAMAGED_JSON = {
    "nothing": "",
    "half a file": '{"name": "a"',
    "not text": b"\xff\xfe\x00",
    "endless nesting": "[" * 200_000,
    "an endless number": '{"name": ' + "1" * 10_000 + "}",
}


@pytest.mark.parametrize("case", DAMAGED_JSON)
def test_damaged_json_is_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = DAMAGED_JSON[case]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BundleError) as caught:
        read_json(path, Outer)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["name = ", "a = " + "[" * 5000, b"\xff"])
def test_damaged_toml_is_one_line(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_toml(path, Outer)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.toml: cannot be read"):
        read_toml(tmp_path / "a.toml", Outer)
    with pytest.raises(BundleError, match="cannot be read"):
        read_json(tmp_path, Outer)  # a folder


def test_toml_and_json_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "a"\n[inner]\nwidth = 3\n')
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_toml(tmp_path / "a.toml", Outer) == read_json(tmp_path / "a.json", Outer)


# --- writing -------------------------------------------------------------------------------------


def test_typed_data_become_json_and_read_back(tmp_path: Path) -> None:
    value = Outer("ä", Inner(3), (Inner(1),), {"x": Inner(2)}, None, 0.5)
    text = to_json(value)
    assert text.endswith("}\n")
    assert "ä" in text
    write_text(tmp_path / "a.json", text)
    assert read_json(tmp_path / "a.json", Outer) == value


def test_json_holds_no_number_that_json_lacks() -> None:
    data = {"a": float("nan"), "b": (float("inf"), 1.5), "c": Path("x") / "y", "d": Color.RED}
    assert to_plain(data) == {"a": None, "b": [None, 1.5], "c": "x/y", "d": "red"}
    json.loads(to_json(data), parse_constant=pytest.fail)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BundleError, match=r"a\.txt: cannot be written: No space left on device$"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_a_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# --- folders that appear whole -------------------------------------------------------------------


def old_bundle(place: Path) -> dict[str, str]:
    place.mkdir()
    content = {"manifest.json": "{}", "model.onnx": "old"}
    for name, text in content.items():
        (place / name).write_text(text)
    return content


def content_of(place: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in place.iterdir()}


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
def test_a_folder_appears_when_the_block_succeeds(older: bool, tmp_path: Path) -> None:
    final = tmp_path / "dist" / "bundle"
    if older:
        final.parent.mkdir()
        old_bundle(final)
    with atomic_folder(final) as work:
        assert work.parent == final.parent  # on the same file system
        (work / "manifest.json").write_text("new")
        assert final.exists() == older
    assert content_of(final) == {"manifest.json": "new"}
    assert [p.name for p in final.parent.iterdir()] == ["bundle"]
    assert final.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
def test_a_block_that_fails_leaves_nothing_and_the_older_one_as_it_was(
    failure: BaseException, older: bool, tmp_path: Path
) -> None:
    final = tmp_path / "bundle"
    content = old_bundle(final) if older else None

    def write() -> None:
        with atomic_folder(final) as work:
            (work / "model.onnx").write_text("half")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert final.exists() == older
    if content is not None:
        assert content_of(final) == content
    assert [p.name for p in tmp_path.iterdir()] == (["bundle"] if older else [])


@pytest.mark.parametrize("at", [1, 2], ids=["old aside", "new in place"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_move_that_fails_brings_the_older_one_back(
    at: int, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "bundle"
    content = old_bundle(final)
    real, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == at:
            raise failure
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    expected = BundleError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected), atomic_folder(final) as work:
        (work / "manifest.json").write_text("new")
    monkeypatch.undo()
    assert content_of(final) == content
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    final = tmp_path / "photos"
    final.mkdir()
    (final / "holiday.jpg").write_text("dear")
    with (
        pytest.raises(BundleError, match="exists, is not empty and is not a bundle; choose"),
        atomic_folder(final),
    ):
        pytest.fail("the block must not run")
    assert content_of(final) == {"holiday.jpg": "dear"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    final = tmp_path / "empty"
    final.mkdir()
    with atomic_folder(final) as work:
        (work / "manifest.json").write_text("{}")
    assert content_of(final) == {"manifest.json": "{}"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "file"
    final.write_text("mine")
    with pytest.raises(BundleError, match="exists and is not a folder"), atomic_folder(final):
        pytest.fail("the block must not run")
    assert final.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_told_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BundleError, match="bundle: cannot be written: "),
        atomic_folder(tmp_path / "file" / "bundle"),
    ):
        pytest.fail("the block must not run")


# --- names in a bundle ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.onnx", "golden/forward.npz", "a/../b", "./a", "..."])
def test_a_name_inside_the_folder_is_taken(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name).resolve().is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/hostname", "..", "link/secret", "a\0b", "link"]
)
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="leaves the folder"):
        inside(folder, name)
