"""A lock holds what decides bytes, and says part by part what is not the same any more."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.api.building.lock import (
    FROM_PYTHON,
    Lock,
    differences,
    locked_options,
    options_from_lock,
    read_lock,
)
from edgeopt.api.building.options import BuildOptions
from edgeopt.errors import ConfigError
from edgeopt.files import to_json, write_text
from edgeopt.ir.digests import key_of

OPTIONS = BuildOptions(
    model="zoo:vit",
    profile="host",
    settings=("prune_nm.n=1",),
    keep_float=("head",),
    batch=2,
    seed=3,
    limits=("drop<=1",),
    out=Path("dist/x"),
)


def lock_of(options: BuildOptions, **changes: Any) -> Lock:
    lock = Lock(
        options=locked_options(options),
        limits=options.limits,
        hashes={"weights": "aa", "recipe": "bb"},
        tools={"torch": "2.13.0", "onnx": "1.23.0"},
        machine={"vnni": "yes"},
        files={"model.onnx": "cc"},
        build_key="dd",
    )
    return dataclasses.replace(lock, **changes)


def written(tmp_path: Path, lock: Lock) -> Path:
    path = tmp_path / "edgeopt.lock"
    write_text(path, to_json(lock))
    return path


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    lock = lock_of(OPTIONS)
    found = read_lock(written(tmp_path, lock))
    # lists of options come back as lists; everything else is equal
    assert dataclasses.replace(found, options=dict(lock.options)) == lock
    assert json.loads(json.dumps(found.options)) == json.loads(json.dumps(lock.options))


def test_the_options_of_a_lock_build_the_same_again(tmp_path: Path) -> None:
    path = written(tmp_path, lock_of(OPTIONS))
    again = options_from_lock(path, Path("elsewhere"))
    assert again == dataclasses.replace(OPTIONS, out=Path("elsewhere"), lock=path)
    assert locked_options(again) == locked_options(OPTIONS)


def test_only_what_decides_bytes_is_locked() -> None:
    locked = set(locked_options(OPTIONS))
    assert {"model", "profile", "recipe", "calib", "settings", "keep_float", "seed"} <= locked
    assert not locked & {"out", "latency", "samples", "drift", "limits"}
    slower = dataclasses.replace(OPTIONS, latency=False, samples=7, out=None)
    assert locked_options(slower) == locked_options(OPTIONS)
    assert locked_options(dataclasses.replace(OPTIONS, seed=4)) != locked_options(OPTIONS)


@pytest.mark.parametrize("name", ["model", "calib", "eval", "metric"])
def test_what_was_given_from_python_cannot_be_built_from_the_lock(
    name: str, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, **{name: object()})
    assert locked_options(options)[name] == FROM_PYTHON
    with pytest.raises(ConfigError, match=f"{name} was given from Python; build it there again"):
        options_from_lock(written(tmp_path, lock_of(options)), None)


def test_a_key_is_that_of_the_content_and_not_of_its_order() -> None:
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert len(key_of({})) == 64


def test_differences_name_parts_and_tools() -> None:
    lock = lock_of(OPTIONS)
    assert differences(lock, lock.hashes, lock.tools) == ([], [])
    parts, tools = differences(
        lock, {"weights": "changed", "profile": "new"}, {"torch": "2.14.0", "numpy": "2.0"}
    )
    assert parts == ["profile", "recipe", "weights"]
    assert tools == [
        "onnx is missing, the lock says 1.23.0",
        "torch is 2.14.0, the lock says 2.13.0",
    ]


def test_an_option_that_is_not_known_is_refused(tmp_path: Path) -> None:
    more = {**locked_options(OPTIONS), "turbo": True}
    lock = dataclasses.replace(lock_of(OPTIONS), options=more)
    with pytest.raises(ConfigError, match="unknown option 'turbo'"):
        options_from_lock(written(tmp_path, lock), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "edgeopt.lock: "),
        ('{"options": {}}', "Field required"),
        ('{"optoins": {}}', "unknown key 'optoins' (did you mean 'options'?)"),
    ],
)
def test_a_damaged_lock_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "edgeopt.lock"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_lock(path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_lock_of_another_schema_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="schema 9; this edgeopt reads 1"):
        read_lock(written(tmp_path, lock_of(OPTIONS, schema=9)))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lock(tmp_path / "nowhere.lock")
