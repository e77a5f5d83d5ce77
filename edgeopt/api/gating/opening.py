"""Open what a gate compares: an artifact of a bundle, or a plain model file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.api.formats import SUFFIXES, inspector_for
from edgeopt.artifacts.artifact import Artifact, FileEntry, IOSpec, Method
from edgeopt.artifacts.bundle import REPORT, Bundle
from edgeopt.devices.profile import Protocol, Target, load_profile
from edgeopt.errors import BundleError, CheckFailed, ConfigError, EdgeOptError, ProfileError
from edgeopt.files import inside, sha256
from edgeopt.limits.facts import ACCURACY, Facts
from edgeopt.limits.results import GateSide
from edgeopt.results.reports import (
    SCHEMA_VERSION,
    AccuracyResult,
    ArtifactRow,
    BuildReport,
    LatencyResult,
)
from edgeopt.runtime_tests.inspection import Structure

ANY_CPU = "any-cpu"
THIS_MACHINE = "host"


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        place: The bundle or file as given.
        folder: Where the artifact's files are.
        artifact: What is compared.
        bundle: The bundle, or None: a plain file.
        report: The bundle's report, or None.
    """

    place: Path
    folder: Path
    artifact: Artifact
    bundle: Bundle | None = None
    report: BuildReport | None = None

    @property
    def file(self) -> Path:
        """The model file."""
        return self.folder / self.artifact.model_file.path

    @property
    def hashes(self) -> tuple[str, ...]:
        """SHA-256 of the artifact's files, the model file's first."""
        return tuple(entry.sha256 for entry in self.artifact.files)

    @property
    def told(self) -> GateSide:
        """The side as results name it."""
        manifest = None if self.bundle is None else self.bundle.manifest
        return GateSide(
            path=self.place.as_posix(),
            artifact=self.artifact.name,
            file=self.artifact.model_file.path,
            sha256=self.artifact.model_file.sha256,
            format=self.artifact.format,
            precision=self.artifact.precision,
            profile=manifest.profile if manifest else "",
            recipe=manifest.recipe if manifest else "",
            build_key=manifest.build_key if manifest else "",
        )

    def away(self) -> str:
        """Return why a latency measured on this machine is not the device's, or an empty string.

        A plain file names no device: it is judged for the machine that runs it.
        """
        if self.bundle is None:
            return ""
        name = self.bundle.manifest.profile
        try:
            profile = load_profile(name)
        except ProfileError:  # a profile of the user's own: its build knew
            return "" if self._was_timed_at_home() else f"profile {name!r} is not at hand here"
        if profile.runs_here != ANY_CPU:
            return f"this machine is not the device ({profile.title})"
        stand_ins = [target.name for target in profile.stand_ins]
        return "it stands in for another runtime" if self.artifact.target in stand_ins else ""

    def _was_timed_at_home(self) -> bool:
        rows = () if self.report is None else self.report.latency
        return any(
            r.artifact == self.artifact.name and r.machine.device == THIS_MACHINE and not r.stand_in
            for r in rows
        )

    def protocol(self) -> Protocol:
        """Return how the profile wants its latency measured; the usual way where it is unknown."""
        if self.bundle is None:
            return Protocol()
        try:
            profile = load_profile(self.bundle.manifest.profile)
            return profile.target(self.artifact.target).protocol
        except ProfileError:
            return Protocol()


def open_sides(candidate: Path, baseline: Path, artifact: str | None) -> tuple[Side, Side]:
    """Open both, and check that they are the same program for the same runtime.

    Args:
        candidate: A bundle or a model file.
        baseline: Likewise.
        artifact: Which artifact of the bundles, or None: the candidate's first.

    Raises:
        BundleError: If one is damaged, or the two cannot be compared.
        CheckFailed: If files of a bundle are not as they were written.
        ConfigError: If an artifact is named and both are plain files.
    """
    if artifact is not None and not (candidate.is_dir() or baseline.is_dir()):
        raise ConfigError(f"--artifact {artifact}: neither {candidate} nor {baseline} is a bundle")
    ours = _open(candidate, artifact)
    wanted = artifact if artifact is not None or ours.bundle is None else ours.artifact.name
    theirs = _open(baseline, wanted)
    _check_profiles(ours, theirs, named=artifact is not None)
    _check_format(ours, theirs)
    _check_signature(ours, theirs)
    return ours, theirs


def _open(place: Path, artifact: str | None) -> Side:
    if place.is_dir():
        return _of_bundle(place, artifact)
    if not place.is_file():
        raise BundleError(f"{place}: no such bundle or file")
    return _of_file(place)


def _of_bundle(place: Path, name: str | None) -> Side:
    bundle = Bundle.open(place)
    artifacts = bundle.manifest.artifacts
    if not artifacts:
        raise BundleError(f"{place}: holds no artifact")
    if name is not None and name not in {a.name for a in artifacts}:
        known = ", ".join(a.name for a in artifacts)
        raise BundleError(
            f"{place}: has no artifact {name!r}; it holds {known}; name one of both bundles with "
            "--artifact"
        )
    broken = [check for check in bundle.checksums() if not check.holds]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        first = broken[0]
        raise CheckFailed(f"{place}: {first.name} {first.message}{more}; see edgeopt verify")
    artifact = artifacts[0] if name is None else bundle.manifest.artifact(name)
    bundle.file(artifact.model_file.path)
    return Side(place, place, artifact, bundle, _report(bundle, artifact))


def _report(bundle: Bundle, artifact: Artifact) -> BuildReport | None:
    """Read the report, where there is one; it must speak of the files that are there."""
    if not (bundle.path / REPORT).is_file():
        return None
    report = bundle.report()
    if report.schema != SCHEMA_VERSION:
        raise BundleError(
            f"{bundle.path / REPORT}: schema {report.schema}; this edgeopt reads {SCHEMA_VERSION}"
        )
    row = _row(report, artifact)
    if row is not None and row.sha256 != artifact.model_file.sha256:
        raise BundleError(
            f"{bundle.path / REPORT}: speaks of another {artifact.model_file.path} "
            f"(sha256 {row.sha256[:12]}, the manifest's is {artifact.model_file.sha256[:12]})"
        )
    return report


def _row(report: BuildReport, artifact: Artifact) -> ArtifactRow | None:
    return next((row for row in report.artifacts if row.name == artifact.name), None)


def _of_file(place: Path) -> Side:
    if place.suffix not in SUFFIXES:
        known = " or ".join(SUFFIXES)
        raise BundleError(f"{place}: is neither a bundle nor a model file ({known})")
    format_ = SUFFIXES[place.suffix]
    if place.stat().st_size == 0:
        raise BundleError(f"{place}: is empty")
    methods, beside = _read_file(place, format_)
    paths = [place, *(inside(place.parent, name) for name in beside)]
    artifact = Artifact(
        name=place.stem,
        target="",
        format=format_,
        precision="",
        plan="",
        files=tuple(_entry(path) for path in paths),
        methods=methods,
        tensor_map={},
    )
    return Side(place, place.parent, artifact)


def _read_file(place: Path, format_: str) -> tuple[tuple[Method, ...], tuple[str, ...]]:
    """Return a plain file's methods, and the files beside it that it needs."""
    if format_ == "onnx":
        from edgeopt.exporters.onnx.signature import read_signature

        signature = read_signature(place)
        return (signature.method,), signature.external
    if format_ == "executorch":
        return _executorch_methods(place), ()
    raise BundleError(f"{place}: a plain {format_} file does not tell its inputs; name its bundle")


def _executorch_methods(place: Path) -> tuple[Method, ...]:
    from edgeopt.exporters.executorch.file import FileTensor, read_file

    def specs(tensors: tuple[FileTensor, ...]) -> tuple[IOSpec, ...]:
        return tuple(
            IOSpec("", t.dtype, ("batch", *t.shape[1:]) if t.dynamic else t.shape) for t in tensors
        )

    methods = read_file(place).methods
    return tuple(Method(name, specs(m.inputs), specs(m.outputs)) for name, m in methods.items())


def _entry(path: Path) -> FileEntry:
    try:
        return FileEntry(path.name, sha256(path), path.stat().st_size)
    except OSError as failure:
        raise BundleError(f"{path}: cannot be read: {failure.strerror}") from None


def _check_profiles(ours: Side, theirs: Side, *, named: bool) -> None:
    if ours.bundle is None or theirs.bundle is None or named:
        return
    one, other = ours.bundle.manifest.profile, theirs.bundle.manifest.profile
    if one != other:
        raise BundleError(
            f"{ours.place} is for profile {one!r} and {theirs.place} for {other!r}; name an "
            "artifact of both with --artifact to compare them nevertheless"
        )


def _check_format(ours: Side, theirs: Side) -> None:
    one, other = ours.artifact.format, theirs.artifact.format
    if one != other:
        raise BundleError(
            f"{ours.place} is {one} and {theirs.place} is {other}: a gate compares files of one "
            "runtime; `edgeopt bench --against` compares any two"
        )


def _check_signature(ours: Side, theirs: Side) -> None:
    """Refuse two programs that do not take and give the same."""
    one = {m.name: m for m in ours.artifact.methods}
    other = {m.name: m for m in theirs.artifact.methods}
    if len(one) == len(other) == 1 and (ours.bundle is None or theirs.bundle is None):
        # A plain file does not tell what its one method is called.
        other = {next(iter(one)): next(iter(other.values()))}
    if set(one) != set(other):
        raise BundleError(
            f"{ours.place} has methods {', '.join(sorted(one))} and {theirs.place} "
            f"{', '.join(sorted(other))}: they are not the same program"
        )
    for name, method in one.items():
        for what in ("inputs", "outputs"):
            own, their = _specs(getattr(method, what)), _specs(getattr(other[name], what))
            if not all(spec[0] for spec in (*own, *their)):  # a file without names
                own, their = ([("", *spec[1:]) for spec in specs] for specs in (own, their))
            if own != their:
                raise BundleError(
                    f"{ours.place} and {theirs.place} are not the same program: {what} of {name} "
                    f"are {_shown(own)} and {_shown(their)}"
                )


Spec = tuple[str, str, tuple[Any, ...]]


def _specs(specs: tuple[IOSpec, ...]) -> list[Spec]:
    """Return name, type and shape; all dynamic dimensions are alike, whatever they are called."""
    return [
        (s.name, s.dtype, tuple(d if isinstance(d, int) else "?" for d in s.shape)) for s in specs
    ]


def _shown(specs: list[Spec]) -> str:
    return ", ".join(f"{name} {dtype}[{', '.join(map(str, dims))}]" for name, dtype, dims in specs)


def facts_of(side: Side, *, from_file: bool) -> Facts:
    """Return what a side tells without being measured.

    Args:
        side: The side.
        from_file: Read the file alone, since the other side is a plain file.
    """
    if side.report is not None and not from_file:
        return _reported(side, side.report)
    return _read(side)


def _reported(side: Side, report: BuildReport) -> Facts:
    name = side.artifact.name
    row = _row(report, side.artifact)
    numbers = {"size": _size_mb(side.artifact)}
    missing: dict[str, str] = {}
    if row is not None:
        structure = {
            "macs": row.macs,
            "int8_macs": row.int8_macs,
            "float_gemms": row.float_gemms,
        }
        _sort(structure, numbers, missing, "its report does not tell")
    else:
        absent = "its report does not speak of the artifact"
        missing |= {key: absent for key in ("macs", "int8_macs", "float_gemms")}
    _sort(_compiled(report.compile.get(name, {})), numbers, missing, "no compiler told it")
    missing |= dict.fromkeys(ACCURACY, "its build judged no such accuracy")
    accuracy: dict[str, AccuracyResult] = {
        r.method: r for r in report.accuracy if r.artifact == name
    }
    attached: dict[str, LatencyResult] = {
        r.method: r
        for r in report.latency
        if r.artifact == name and r.machine.device != THIS_MACHINE and not r.stand_in
    }
    return Facts(numbers, side.hashes, missing, accuracy, attached)


def _read(side: Side) -> Facts:
    numbers = {"size": _size_mb(side.artifact)}
    missing = dict.fromkeys(ACCURACY, "a file does not tell its accuracy; compare two bundles")
    structure, reason = _structure(side)
    found: Mapping[str, float | None] = {
        "macs": structure.macs if structure else None,
        "int8_macs": structure.int8_macs if structure else None,
        "float_gemms": structure.float_gemms if structure else None,
    }
    _sort(found, numbers, missing, reason)
    compiled = _compiled(structure.compile if structure else {})
    _sort(compiled, numbers, missing, "no compiler told it")
    return Facts(numbers, side.hashes, missing, origin="file")


def _size_mb(artifact: Artifact) -> float:
    """Return the size of everything that a runtime loads, in 10^6 bytes."""
    loaded = [e for e in artifact.files if not e.path.endswith((".json", ".py"))]
    return sum(entry.size_bytes for entry in loaded) / 1e6


def _structure(side: Side) -> tuple[Structure | None, str]:
    artifact = side.artifact
    target = Target(artifact.target or artifact.name, artifact.format, "", "")
    try:
        return inspector_for(artifact.format).structure(side.folder, artifact, target), (
            "the file multiplies nothing"
        )
    except EdgeOptError as failure:
        return None, f"cannot be read off the file: {failure}"


def _compiled(compile_: Mapping[str, Any]) -> dict[str, float | None]:
    names = ("fused_attentions", "partitions", "delegated_share")
    return {name: _number(compile_.get(name)) for name in names}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value == value else None


def _sort(
    found: Mapping[str, float | None],
    numbers: dict[str, float],
    missing: dict[str, str],
    reason: str,
) -> None:
    for name, value in found.items():
        if value is None:
            missing[name] = reason
        else:
            numbers[name] = float(value)
