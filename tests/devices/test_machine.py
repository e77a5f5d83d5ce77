"""What a machine says of itself."""

from __future__ import annotations

import platform

import pytest

from edgeopt.devices import machine as machines

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
