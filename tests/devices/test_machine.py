"""What a machine says of itself."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from edgeopt.devices import machine as machines
from edgeopt.devices.machine import Hardware, is_device, is_named
from edgeopt.devices.profile import DeviceProfile, Target, load_profile

X86 = """processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512_vnni made_up

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd40\n"


def test_reads_the_first_processor() -> None:
    assert machines.parse_cpu_info(X86) == ("Some CPU @ 2 GHz", ("avx2", "avx512_vnni"))
    name, features = machines.parse_cpu_info(ARM)
    assert name == platform.machine()
    assert features == ("asimd", "asimddp", "neon")


def test_describes_this_machine() -> None:
    found = machines.machine()
    assert found.cores >= 1
    assert found.name
    assert platform.machine() in found.system
    assert found.load >= 0
    assert list(found.features) == sorted(set(found.features))


@pytest.mark.parametrize(
    ("architecture", "features", "exact"),
    [
        ("x86_64", ("avx2", "avx512_vnni"), True),
        ("AMD64", ("avx2", "avx_vnni"), True),
        ("x86_64", ("avx2", "avx512f"), False),
        ("x86_64", (), False),
        ("aarch64", (), True),
    ],
)
def test_only_x86_without_vnni_saturates(
    architecture: str,
    features: tuple[str, ...],
    exact: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(machines, "_processor", lambda: ("cpu", features))
    assert machines.has_vnni() is exact


A100 = Hardware(gpu="NVIDIA A100-SXM4-80GB", capability="sm80")
ORIN = Hardware("NVIDIA Jetson AGX Orin Developer Kit", "Orin", "sm87")
H200 = Hardware(gpu="NVIDIA H200", capability="sm90")
NOTHING = Hardware()


def profile(runs_here: str, name: str = "mine") -> DeviceProfile:
    target = Target("cpu", "onnx", "onnxruntime", "onnxruntime-x86")
    return DeviceProfile(name, "My device", "int8", (target,), runs_here=runs_here)


@pytest.mark.parametrize(
    ("runs_here", "device"),
    [
        ("any-cpu", (A100, ORIN, H200, NOTHING)),
        ("cuda-sm80", (A100,)),
        ("cuda-sm87", (ORIN,)),
        ("cuda-sm9", ()),
        ("jetson-orin", (ORIN,)),
        ("jetson-nosuchboard", ()),
        ("cuda-", ()),
        ("jetson-", ()),
        ("a-device", ()),
        ("", ()),
    ],
)
def test_a_machine_is_recognised_by_the_profiles_word(
    runs_here: str, device: tuple[Hardware, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in (A100, ORIN, H200, NOTHING):
        monkeypatch.setattr(machines, "hardware", lambda found=found: found)
        assert is_device(profile(runs_here)) is (found in device)


def test_the_shipped_profiles_know_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, name in ((A100, "a100"), (ORIN, "orin")):
        monkeypatch.setattr(machines, "hardware", lambda found=found: found)
        known = [p for p in ("a100", "orin", "phone-cpu") if is_device(load_profile(p))]
        assert known == [name]


@pytest.mark.parametrize(
    ("runs_here", "name", "expected"),
    [
        ("jetson-orin", "NVIDIA Jetson AGX Orin", True),
        ("cuda-sm80", "Mine, revision 2", True),
        ("cuda-sm80", "NVIDIA H200", False),
        ("cuda-sm80", "", False),
        ("any-cpu", "Pixel 9", None),
        ("", "Pixel 9", None),
    ],
)
def test_a_device_is_recognised_by_its_name(
    runs_here: str, name: str, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "hardware", lambda: NOTHING)
    assert is_named(profile(runs_here), name) is expected


def test_a_name_without_the_profiles_words_is_the_devices_where_this_machine_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Hardware(gpu="GRID board 7", capability="sm80")
    monkeypatch.setattr(machines, "hardware", lambda: board)
    assert is_named(profile("cuda-sm80"), "GRID board 7") is True
    assert is_named(profile("cuda-sm80"), "GRID board 8") is False
    assert is_named(profile("cuda-sm90"), "GRID board 7") is False
    assert is_named(profile("cuda-sm80"), "") is False  # it has no board, and that is no name


class Driver:
    """A CUDA driver that says what it is told to."""

    def __init__(self, *, fails: str = "", capability: tuple[int, int] = (8, 7)) -> None:
        self._fails = fails
        self._values = dict(zip((75, 76), capability, strict=True))

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return 100 if self._fails == "init" else 0  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 101 if self._fails == "device" else 0

    def cuDeviceGetName(self, name: Any, length: int, _device: Any) -> int:
        assert length == 256
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _device: Any) -> int:
        value._obj.value = self._values[attribute]
        return 0


def test_the_machine_itself_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machines, "BOARD", tmp_path / "model")
    monkeypatch.setattr(machines, "DRIVER", str(tmp_path / "libcuda.so.1"))
    assert machines.hardware() == NOTHING
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    board = Hardware("NVIDIA Jetson AGX Orin Developer Kit")
    assert machines.hardware() == board
    monkeypatch.setattr(machines.ctypes, "CDLL", lambda _name: Driver())
    assert machines.hardware() == ORIN
    monkeypatch.setattr(machines.ctypes, "CDLL", lambda _name: Driver(capability=(12, 1)))
    assert machines.hardware().capability == "sm121"
    for failing in ("init", "device"):
        driver = Driver(fails=failing)
        monkeypatch.setattr(machines.ctypes, "CDLL", lambda _name, driver=driver: driver)
        assert machines.hardware() == board
    monkeypatch.setattr(machines.ctypes, "CDLL", lambda _name: object())
    assert machines.hardware() == board
