"""Files of an exporter are there whole and described, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from edgeopt.artifacts.artifact import FileEntry
from edgeopt.errors import BundleError
from edgeopt.exporters.writing import publish

FULL = OSError(28, "No space left on device")


def content_of(folder: Path) -> dict[str, bytes]:
    """Return every file, hidden ones too."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_describes_what_it_wrote_in_the_order_given(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "checked").write_bytes(b"\x00model" * 1000)
    folder = tmp_path / "out"
    entries = publish(
        folder, {"m.onnx": work / "checked", "m.json": '{"ü": 1}\n', "m.bin": b"\xff\x00"}
    )
    wanted = {"m.onnx": b"\x00model" * 1000, "m.json": '{"ü": 1}\n'.encode(), "m.bin": b"\xff\x00"}
    assert content_of(folder) == wanted
    assert entries == tuple(
        FileEntry(name, hashlib.sha256(data).hexdigest(), len(data))
        for name, data in wanted.items()
    )
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o644}
    assert (work / "checked").is_file()


def test_the_model_takes_its_name_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    replace = os.replace

    def noted(source: str, final: Path) -> None:
        order.append(final.name)
        assert Path(source).read_bytes() in (b"model", b"beside"), "whole before it is named"
        replace(source, final)

    monkeypatch.setattr(os, "replace", noted)
    publish(tmp_path, {"m.pte": b"model", "m.sites.json": b"beside"})
    assert order == ["m.sites.json", "m.pte"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_disk_that_is_full_midway_leaves_the_older_files_alone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"m.onnx": b"old model", "m.json": b"old", "m.bin": b"old too"}
    for name, data in older.items():
        (tmp_path / name).write_bytes(data)
    written = 0
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written < number:
            return write(path, data)
        write(path, data[: len(data) // 2])
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", full)
    name = list(older)[number - 1]
    with pytest.raises(BundleError) as caught:
        publish(tmp_path, {"m.onnx": b"new model", "m.json": "new", "m.bin": b"new too"})
    assert str(caught.value) == f"{tmp_path / name}: cannot be written: No space left on device"
    assert content_of(tmp_path) == older


def test_a_copy_that_fails_midway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, final: Path) -> None:
        final.write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BundleError, match=r"m\.onnx: cannot be written: No space left on device$"):
        publish(tmp_path, {"m.onnx": tmp_path / "work"})
    assert content_of(tmp_path) == {}


def test_an_interrupt_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, {"m.onnx": b"model"})
    assert content_of(tmp_path) == {}


def test_a_read_only_folder_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:  # root, who runs some CI jobs, is never refused
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(BundleError, match=r"m\.onnx: cannot be written: Permission denied$"):
        publish(tmp_path, {"m.onnx": b"model"})


def test_a_place_below_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BundleError, match=r"m\.pte: cannot be written: ") as caught:
        publish(tmp_path / "file", {"m.pte": b"x"})
    assert len(str(caught.value).splitlines()) == 1
