"""Open the two sides of a gate: a bundle or a plain file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.api.formats import format_of, inspector_for
from edgeopt.api.gating.side import Side, artifact_row
from edgeopt.artifacts.artifact import Artifact, FileEntry
from edgeopt.artifacts.bundle import REPORT, Bundle
from edgeopt.artifacts.interface import IOSpec
from edgeopt.errors import BundleError, CheckFailed, ConfigError
from edgeopt.files import inside
from edgeopt.results.reports import BuildReport
from edgeopt.results.verdicts import SCHEMA_VERSION


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
    row = artifact_row(report, artifact)
    if row is not None and row.sha256 != artifact.model_file.sha256:
        raise BundleError(
            f"{bundle.path / REPORT}: speaks of another {artifact.model_file.path} "
            f"(sha256 {row.sha256[:12]}, the manifest's is {artifact.model_file.sha256[:12]})"
        )
    return report


def _of_file(place: Path) -> Side:
    format_ = format_of(place)
    if place.stat().st_size == 0:
        raise BundleError(f"{place}: is empty")
    methods, beside = inspector_for(format_).interface(place)
    paths = [place, *(inside(place.parent, name) for name in beside)]
    artifact = Artifact(
        name=place.stem,
        target="",
        format=format_,
        precision="",
        plan="",
        files=tuple(FileEntry.of(path) for path in paths),
        methods=methods,
        tensor_map={},
    )
    return Side(place, place.parent, artifact)


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
