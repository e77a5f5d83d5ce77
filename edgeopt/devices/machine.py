"""Which machine a number is measured on, and whether it is a profile's device."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import platform
import sys
from pathlib import Path

from edgeopt.devices.profile import DeviceProfile
from edgeopt.results.measurements import Machine

CPU_INFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of cuda.h
CAPABILITY_MINOR = 76
ANY_CPU = "any-cpu"
"""A profile's `runs_here` where every machine is the device."""


# Instruction sets that decide which kernels a runtime takes.
FEATURES = frozenset(
    [
        "sse4_1",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "avx_vnni",
        "avx_vnni_int8",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "neon",
        "asimd",
        "asimddp",
        "i8mm",
        "sve",
        "sve2",
        "bf16",
        "svei8mm",
    ]
)


_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


def machine() -> Machine:
    """Describe this machine and how busy it is now."""
    name, features = _processor()
    return Machine(
        name=name,
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        features=features,
        system=f"{platform.system()} {platform.machine()}",
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    )


def has_vnni() -> bool:
    """Say whether products of uint8 and int8 codes are summed exactly by this CPU's kernels.

    x86 without VNNI adds pairs of them in int16, which saturates; other architectures do not. An
    x86 CPU whose features cannot be read counts as one without.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    return not _VNNI.isdisjoint(_processor()[1])


@functools.cache
def _processor() -> tuple[str, tuple[str, ...]]:
    """Return the processor's name and its features, sorted."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), ()
    return parse_cpu_info(text)


def parse_cpu_info(text: str) -> tuple[str, tuple[str, ...]]:
    """Read the first processor of `/proc/cpuinfo`: its name, and its known features, sorted."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or fields.get("hardware") or platform.machine()
    present = set((fields.get("flags") or fields.get("features") or "").split())
    if "asimd" in present:  # what 64-bit Arm calls NEON
        present.add("neon")
    return name, tuple(sorted(present & FEATURES))


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What this machine says of the device that it may be.

    Attributes:
        board: The device tree's model (`NVIDIA Jetson AGX Orin Developer Kit`), or empty.
        gpu: The name of the first CUDA GPU, or empty.
        capability: Its compute capability, `sm80`, or empty.
    """

    board: str = ""
    gpu: str = ""
    capability: str = ""


def hardware() -> Hardware:
    """Ask this machine what it is; everything about devices is decided by the answer."""
    try:
        board = BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    return Hardware(board, *_first_gpu())


def _first_gpu() -> tuple[str, str]:
    """Return the name and the compute capability of the first GPU, or empty words.

    The driver is asked, not torch: a machine whose torch is a CPU build is its device all the same.
    """
    name = ctypes.create_string_buffer(256)
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL(DRIVER)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), 0)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
        )
    except (OSError, AttributeError):  # no driver, or another library of its name
        return "", ""
    if failed:
        return "", ""
    return name.value.decode(errors="replace"), f"sm{major.value}{minor.value}"


def is_device(profile: DeviceProfile) -> bool:
    """Tell whether this machine is a profile's device."""
    if profile.runs_here == ANY_CPU:
        return True
    kind, _, which = profile.runs_here.partition("-")
    if kind == "cuda":
        return bool(which) and hardware().capability == which
    if kind == "jetson":
        return bool(which) and which in hardware().board.lower()
    return False


def is_named(profile: DeviceProfile, name: str) -> bool | None:
    """Tell whether a device that calls itself `name` is a profile's; None where nothing tells.

    Its name tells by the words of the profile, or because it is this machine's and this machine is
    the device.
    """
    if profile.runs_here in ("", ANY_CPU):
        return None
    words = (profile.name, profile.runs_here.rpartition("-")[2])
    if any(word and word.lower() in name.lower() for word in words):
        return True
    found = hardware()
    return bool(name) and name in (found.board, found.gpu) and is_device(profile)
