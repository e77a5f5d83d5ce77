"""Which runtimes, backends and CPU features this machine has, and how to get the rest."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec

from edgeopt.api.importable import Imports, problem
from edgeopt.devices.machine import is_device
from edgeopt.devices.profile import Target
from edgeopt.errors import PluginError
from edgeopt.registry.plugins import installed
from edgeopt.registry.plugins import problems as problems_of
from edgeopt.results.measurements import Machine
from edgeopt.results.verdicts import SCHEMA_VERSION


@dataclasses.dataclass(frozen=True)
class Piece:
    """One package, runtime or backend.

    Attributes:
        name: What people call it.
        kind: `required`, `runtime`, `backend`, `compiler` or `loader`.
        available: Whether it works here.
        version: Its version, or empty.
        gives: What it is for.
        without: What is lost without it.
        install: How to get it.
        problem: What was found where it is not available.
    """

    name: str
    kind: str
    available: bool
    version: str
    gives: str
    without: str
    install: str
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class CpuFeature:
    """An instruction set that decides which INT8 kernels run.

    Attributes:
        name: As the operating system calls it.
        available: Whether this CPU has it.
        meaning: What it changes.
    """

    name: str
    available: bool
    meaning: str


@dataclasses.dataclass(frozen=True)
class Measurable:
    """Whether one target's latency can be measured on this machine.

    Attributes:
        profile: The profile.
        target: Its target or stand-in.
        runtime: The runner.
        here: `yes`, `stand-in` (it runs, but this is not the device) or `no`.
        reason: Why not.
    """

    profile: str
    target: str
    runtime: str
    here: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class PluginFound:
    """An installed package that adds to edgeopt.

    Attributes:
        package: Its name on the index.
        version: Its version.
        adds: Kinds in the plural (`passes`) -> names.
        problem: What can be seen to be wrong with it without importing it, or empty.
    """

    package: str
    version: str
    adds: Mapping[str, tuple[str, ...]]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class DoctorResult:
    """What `edgeopt doctor` found.

    Attributes:
        edgeopt: Version.
        python: Version.
        machine: The machine.
        pieces: Packages, runtimes and backends.
        cpu: CPU features for INT8.
        measurable: Per target of every shipped profile.
        plugins: Installed packages that add to edgeopt; none was imported.
        schema: Version.
    """

    edgeopt: str
    python: str
    machine: Machine
    pieces: tuple[Piece, ...]
    cpu: tuple[CpuFeature, ...]
    measurable: tuple[Measurable, ...]
    plugins: tuple[PluginFound, ...] = ()
    schema: int = SCHEMA_VERSION

    @property
    def healthy(self) -> bool:
        """Whether everything that edgeopt cannot work without is here."""
        return all(p.available for p in self.pieces if p.kind == "required")


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """A package to look for: importable name, distributions that may bring it, and its use."""

    name: str
    kind: str
    module: str
    distributions: tuple[str, ...]
    gives: str
    without: str
    install: str


_REQUIRED = tuple(
    _Wanted(name, "required", module, (name,), gives, "nothing works", "pip install edgeopt")
    for name, module, gives in (
        ("torch", "torch", "models and capture"),
        ("onnx", "onnx", "ONNX files"),
        ("onnxscript", "onnxscript", "the ONNX export"),
        ("onnx-ir", "onnx_ir", "ONNX rewrites"),
        ("safetensors", "safetensors", "weights without pickle"),
        ("pydantic", "pydantic", "checked files"),
        ("scipy", "scipy", "solvers"),
        ("scikit-learn", "sklearn", "the demo's data"),
        ("matplotlib", "matplotlib", "plots of the report"),
        ("jinja2", "jinja2", "the report"),
    )
)


_OPTIONAL = (
    _Wanted(
        "ONNX Runtime",
        "runtime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "onnxruntime-openvino"),
        "accuracy, latency and integer proof of ONNX files",
        "ONNX files are written but not run: accuracy and latency are not measured",
        "pip install 'edgeopt[onnxruntime]'",
    ),
    _Wanted(
        "TensorRT",
        "runtime",
        "tensorrt",
        ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
        "engines, numerics and latency on this machine's NVIDIA GPU",
        "latency on NVIDIA GPUs is measured on the device and attached",
        "pip install tensorrt (needs an NVIDIA GPU)",
    ),
    _Wanted(
        "TensorRT-RTX",
        "compiler",
        "tensorrt_rtx_bindings",
        ("tensorrt-rtx-cu13-bindings", "tensorrt_rtx_cu13_bindings"),
        "compiles TensorRT files without a GPU: fusions, and the type of every layer",
        "TensorRT files are written, but no NVIDIA compiler has looked at them",
        "pip install --no-deps tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
    ),
    _Wanted(
        "ExecuTorch",
        "runtime",
        "executorch",
        ("executorch",),
        "writes .pte files for phones and runs them: accuracy, latency, integer proof",
        "no .pte file is written, so phone-cpu and phone-npu cannot be built whole",
        "pip install 'edgeopt[executorch]'",
    ),
    _Wanted(
        "QNN",
        "compiler",
        "onnxruntime_qnn",
        ("onnxruntime-qnn",),
        "Qualcomm's Hexagon compiler and simulator: context binaries, the NPU's own numerics",
        "the Q/DQ file for the phone NPU is written, but not compiled, run or judged",
        "pip install 'edgeopt[qnn]' (x86-64 with glibc 2.35 or newer)",
    ),
    _Wanted(
        "Transformers",
        "loader",
        "transformers",
        ("transformers",),
        "models named hf:DIR",
        "Transformers folders cannot be loaded",
        "pip install 'edgeopt[hf]'",
    ),
    _Wanted(
        "timm",
        "loader",
        "timm",
        ("timm",),
        "models named timm:NAME@WEIGHTS",
        "timm models cannot be loaded by name",
        "pip install 'edgeopt[timm]' and the torchvision that matches torch",
    ),
)


_PROVIDERS = (
    (
        "CPUExecutionProvider",
        "the CPU kernels that numerics and stand-ins use",
        "no numerics",
        "pip install 'edgeopt[onnxruntime]'",
    ),
    (
        "CUDAExecutionProvider",
        "ONNX files on an NVIDIA GPU",
        "no shipped profile uses it",
        "pip install onnxruntime-gpu (in place of onnxruntime)",
    ),
)


_HERE = ("torch", "timm", "sklearn")
"""What is imported in this process, which needs torch for the rest; half of the seconds that the
imports take. The others are imported in a child meanwhile."""

_CPU_FEATURES = {
    "x86": (
        ("avx2", "INT8 kernels of 256 bits"),
        ("avx512f", "kernels of 512 bits"),
        ("avx512_vnni", "exact u8 x s8 dot products; without any VNNI, 7-bit weights are used"),
        ("avx_vnni", "exact u8 x s8 dot products of 256 bits"),
        ("amx_int8", "INT8 matrix tiles"),
    ),
    "arm": (
        ("asimddp", "INT8 dot products (SDOT, UDOT)"),
        ("i8mm", "INT8 matrix multiply"),
        ("sve", "scalable vectors"),
    ),
}


def run_doctor() -> DoctorResult:
    """Look at this machine."""
    from edgeopt.devices.machine import machine as describe
    from edgeopt.version import __version__

    machine = describe()
    wanted = (*_REQUIRED, *_OPTIONAL)
    elsewhere = [w.module for w in wanted if w.module not in _HERE]
    with Imports(elsewhere) as imports:
        problems = {module: problem(module) for module in _HERE}
        backends, measurable = _backends(), _measurable()
        problems |= imports.problems()
    return DoctorResult(
        edgeopt=__version__,
        python=platform.python_version(),
        machine=machine,
        pieces=(*(_piece(w, problems[w.module]) for w in wanted), *backends),
        cpu=_cpu_features(frozenset(machine.features)),
        measurable=measurable,
        plugins=_plugins(),
    )


def _piece(wanted: _Wanted, problem: str) -> Piece:
    return Piece(
        name=wanted.name,
        kind=wanted.kind,
        available=not problem,
        version=_version(wanted.distributions),
        gives=wanted.gives,
        without=wanted.without,
        install=wanted.install,
        problem=problem,
    )


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _backends() -> tuple[Piece, ...]:
    """Return what ONNX Runtime and torch can drive here."""
    cuda = _torch_gpu()
    found = [
        Piece(
            name="CUDA",
            kind="backend",
            available=bool(cuda),
            version=cuda,
            gives="training and calibration on the GPU",
            without="they run on the CPU, which is enough for small models",
            install="an NVIDIA GPU with its driver, and a CUDA build of torch",
            problem="" if cuda else "torch sees no GPU",
        )
    ]
    if find_spec("onnxruntime") is None:
        return tuple(found)
    import onnxruntime

    known = set(onnxruntime.get_available_providers())
    for provider, gives, without, install in _PROVIDERS:
        here = provider in known
        found.append(
            Piece(
                name=f"ONNX Runtime {provider.removesuffix('ExecutionProvider')}",
                kind="backend",
                available=here,
                version=onnxruntime.__version__ if here else "",
                gives=gives,
                without=without,
                install=install,
                problem="" if here else "this build of ONNX Runtime lacks it",
            )
        )
    return tuple(found)


def _torch_gpu() -> str:
    try:
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    except Exception:  # a broken driver raises from C++
        return ""


def _cpu_features(present: frozenset[str]) -> tuple[CpuFeature, ...]:
    family = "arm" if platform.machine().lower() in ("aarch64", "arm64") else "x86"
    return tuple(
        CpuFeature(name, name in present, meaning) for name, meaning in _CPU_FEATURES[family]
    )


def _plugins() -> tuple[PluginFound, ...]:
    return tuple(
        PluginFound(
            found.distribution.name,
            found.distribution.version,
            found.gives,
            "; ".join(problems_of(found)),
        )
        for found in installed()
    )


def _measurable() -> tuple[Measurable, ...]:
    from edgeopt.devices.profile import load_profile, profile_names

    found = []
    for name in profile_names():
        try:
            profile = load_profile(name)
        except PluginError as failure:
            found.append(Measurable(name, "-", "-", "no", str(failure)))
            continue
        here = is_device(profile)
        for target in profile.targets:
            reason = _why_untimed(target) if here else f"this machine is not {profile.title}"
            found.append(
                Measurable(name, target.name, target.runtime, "no" if reason else "yes", reason)
            )
        for target in profile.stand_ins:
            reason = _why_untimed(target)
            word = "no" if reason else "stand-in"
            found.append(Measurable(name, target.name, target.runtime, word, reason))
    return tuple(found)


def _why_untimed(target: Target) -> str:
    try:
        from edgeopt.api.untimed import why_untimed_on_device
    except Exception as failure:  # without torch, or with a broken one, no part of it imports
        return f"edgeopt does not import: {failure}"
    try:
        return why_untimed_on_device(target.format)
    except PluginError as failure:
        return str(failure)
