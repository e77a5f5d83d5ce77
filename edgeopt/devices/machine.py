"""Which machine a number was measured on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from edgeopt.results.measurements import Machine

CPU_INFO = Path("/proc/cpuinfo")


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


def is_device(runs_here: str) -> bool:
    """Tell whether this machine is the device that a profile's `runs_here` describes."""
    if runs_here == "any-cpu":
        return True
    if runs_here.startswith("cuda-sm"):
        return _cuda_capability() == runs_here.removeprefix("cuda-")
    if runs_here.startswith("jetson-"):
        try:
            board = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return runs_here.removeprefix("jetson-") in board.lower()
    return False


def _cuda_capability() -> str:
    try:
        import torch

        if not torch.cuda.is_available():
            return ""
        major, minor = torch.cuda.get_device_capability(0)
    except Exception:  # a broken driver raises from C++
        return ""
    return f"sm{major}{minor}"
