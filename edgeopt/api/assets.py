"""Write what an app or a robot loads: the shipped part of a bundle, checked after writing."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeopt.api.formats import exporter_for, inspector_for
from edgeopt.api.verify import GOLDEN_TOLERANCE, golden_error, run_verify
from edgeopt.app_assets import notices
from edgeopt.app_assets.manifest import (
    KIND,
    MANIFEST,
    AppManifest,
    AssetModel,
    AssetsResult,
    read_manifest,
)
from edgeopt.app_assets.platforms import PLATFORMS, Platform, platform
from edgeopt.app_assets.vectors import INDEX, read_vectors, write_vectors
from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.bundle import Bundle, entries
from edgeopt.artifacts.golden import read_golden
from edgeopt.devices.profile import load_profile
from edgeopt.devices.rules import load_rules
from edgeopt.errors import (
    BundleError,
    CheckFailed,
    ConfigError,
    EdgeOptError,
    ProfileError,
    RuntimeUnavailable,
)
from edgeopt.files import atomic_folder, inside, sha256, to_json, write_bytes, write_text
from edgeopt.progress import Progress, no_progress
from edgeopt.results.verdicts import Check, Verdict

LABELS = "labels.txt"
PREPROCESSING = "preprocessing.json"
NOTICES = "NOTICES.txt"
STAY_HOME = (".sites.json",)
"""Files of an artifact that only reports read."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def run_assets(
    bundle: Path,
    platform_name: str,
    out: Path | None = None,
    *,
    name: str | None = None,
    artifacts: Sequence[str] = (),
    progress: Progress = no_progress,
) -> AssetsResult:
    """Write app assets from a bundle.

    The bundle is verified first. The folder takes its place only after its files were read again,
    its golden vectors compared with the bundle's bit for bit, and each model run on them where its
    runtime is here. The same bundle and name give the same bytes.

    Args:
        bundle: The bundle.
        platform_name: `android`, `ios` or `jetson`.
        out: The folder that the platform's layout begins at: an Android module, an iOS project's
            resources, any folder for a Jetson. None: `BUNDLE-PLATFORM` beside the bundle.
        name: The model's name in the app, or None: the bundle's folder name.
        artifacts: Which artifacts, or none: all that run there but float yardsticks and stand-ins.
        progress: Called with (what, done, total).

    Raises:
        BundleError: If the bundle is damaged or holds nothing for the platform, or the place is
            taken by something else or cannot be written.
        CheckFailed: If the bundle fails its verification, or the written folder its checks.
        ConfigError: If the platform or the name cannot be meant.
    """
    chosen = platform(platform_name)
    opened = Bundle.open(bundle)
    called = _name(bundle, name)
    picked, left_out = _choose(opened, chosen, artifacts)
    root = out if out is not None else bundle.resolve().parent / f"{called}-{chosen.name}"
    final = root / chosen.folder(called)
    _check_place(final, bundle)
    warnings = [*_verified(bundle, progress), *_plan_warnings(picked)]
    with _parents_of(final), atomic_folder(final) as folder:
        progress("write assets", 0, None)
        manifest = _write(opened, chosen, called, picked, folder)
        checks = _checked(opened, picked, folder, progress)
        failed = [check for check in checks if not check.holds]
        if failed:
            raise CheckFailed(
                f"{final}: {failed[0].name}: {failed[0].message}; nothing was written"
            )
    unread = [a.name for a in picked if a.name not in opened.manifest.golden]
    warnings += [
        f"{n}: the bundle has no golden vectors, so the app cannot test it" for n in unread
    ]
    size = sum(entry.size_bytes for entry in manifest.files) + (final / MANIFEST).stat().st_size
    return AssetsResult(final.as_posix(), manifest, size, left_out, tuple(checks), tuple(warnings))


# --- what and where ------------------------------------------------------------------------------


def _name(bundle: Path, given: str | None) -> str:
    if given is not None:
        if not _NAME.fullmatch(given):
            raise ConfigError(f"--name {given!r}: takes letters, digits, `_`, `.` and `-`")
        return given
    return re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.resolve().name).lstrip(".-") or "model"


def _choose(
    bundle: Bundle, chosen: Platform, wanted: Sequence[str]
) -> tuple[list[Artifact], dict[str, str]]:
    """Return the artifacts that go there, and why the others do not."""
    manifest = bundle.manifest
    for name in wanted:
        found = manifest.artifact(name)
        if chosen.name not in _platforms(found):
            raise BundleError(f"--artifact {name}: {_not_there(found, chosen)}")
    picked: list[Artifact] = []
    left_out: dict[str, str] = {}
    for artifact in manifest.artifacts:
        reason = _left_out(artifact, bundle, chosen, wanted)
        if reason:
            left_out[artifact.name] = reason
        else:
            picked.append(artifact)
    if not picked:
        held = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "no artifact at all"
        raise BundleError(f"{bundle.path}: holds nothing for {chosen.title}: {held}")
    return picked, left_out


def _left_out(artifact: Artifact, bundle: Bundle, chosen: Platform, wanted: Sequence[str]) -> str:
    if chosen.name not in _platforms(artifact):
        return _not_there(artifact, chosen)
    if wanted:
        return "" if artifact.name in wanted else "was not asked for"
    takes = f"--artifact {artifact.name} takes it nevertheless"
    names = {a.name for a in bundle.manifest.artifacts}
    if artifact.name != artifact.target and artifact.target in names:
        return f"is the float yardstick of {artifact.target}; {takes}"
    if artifact.target in _stand_ins(bundle.manifest.profile):
        return f"stands in for the runtime of profile {bundle.manifest.profile}; {takes}"
    return ""


def _not_there(artifact: Artifact, chosen: Platform) -> str:
    takers = _platforms(artifact)
    where = f"is for {' and '.join(takers)}" if takers else "is for no platform that is known"
    return f"{artifact.format} {where}, not for {chosen.name}"


def _platforms(artifact: Artifact) -> list[str]:
    """Return the platforms whose runtimes load the file."""
    try:
        exporter = exporter_for(artifact.format)
    except ConfigError:  # a bundle of a newer edgeopt
        return []
    return [name for name in PLATFORMS if name in exporter.platforms]


def _stand_ins(profile: str) -> tuple[str, ...]:
    try:
        return tuple(target.name for target in load_profile(profile).stand_ins)
    except ProfileError:  # a profile of the user's own
        return ()


def _plan_warnings(picked: Sequence[Artifact]) -> list[str]:
    found = []
    for artifact in picked:
        try:
            rules = load_rules(artifact.plan) if artifact.plan else None
        except ProfileError:
            continue
        if rules is not None and rules.x86:
            found.append(
                f"{artifact.name}: is planned for the kernels of {rules.isa}; on Arm it runs, with "
                "other kernels than those that were proven"
            )
    return found


def _check_place(final: Path, bundle: Path) -> None:
    """Refuse a place that holds anything but older app assets, or that the bundle is part of."""
    here, home = final.resolve(), bundle.resolve()
    if here.is_relative_to(home) or home.is_relative_to(here):
        raise BundleError(
            f"{final}: is the bundle's own folder or part of it; choose another --out"
        )
    if final.is_dir() and any(final.iterdir()):
        try:
            read_manifest(final)
        except BundleError:
            raise BundleError(
                f"{final}: exists and holds no app assets; choose another --out or --name"
            ) from None


@contextlib.contextmanager
def _parents_of(final: Path) -> Iterator[None]:
    """Take away the empty folders made on the way to `final` if the block fails."""
    made = [p for p in final.parents if not p.exists()]
    try:
        yield
    except BaseException:
        for folder in made:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _verified(bundle: Path, progress: Progress) -> list[str]:
    result = run_verify(bundle, progress=progress)
    if result.verdict is Verdict.FAIL:
        broken = [f"{c.name}: {c.message}" for c in result.checks if not c.holds]
        broken += [f"{c.artifact}: {c.site}: {c.message}" for c in result.contracts if not c.holds]
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise CheckFailed(f"{bundle}: fails its verification: {broken[0]}{more}")
    return [f"{c.name}: {c.message}" for c in result.checks if not c.holds]


# --- writing -------------------------------------------------------------------------------------


def _write(
    bundle: Bundle, chosen: Platform, name: str, picked: Sequence[Artifact], folder: Path
) -> AppManifest:
    manifest = bundle.manifest
    models = [_write_model(bundle, chosen, artifact, folder) for artifact in picked]
    for path, content in chosen.extra_files(name).items():
        write_bytes(folder / path, content)
    if manifest.labels:
        lines = [" ".join(label.split()) for label in manifest.labels]
        write_text(folder / LABELS, "\n".join(lines) + "\n")
    if manifest.preprocessing is not None:
        write_text(folder / PREPROCESSING, to_json(manifest.preprocessing))
    runtimes = [row for artifact in picked for row in _runtimes(artifact.format)]
    write_text(folder / NOTICES, notices.text(manifest, runtimes))
    written = AppManifest(
        kind=KIND,
        name=name,
        platform=chosen.name,
        model=notices.plain_model(manifest.model),
        profile=manifest.profile,
        recipe=manifest.recipe,
        edgeopt=manifest.edgeopt,
        build_key=manifest.build_key,
        tools=manifest.tools,
        models=tuple(models),
        files=entries(folder),
        preprocessing=manifest.preprocessing,
        labels=LABELS if manifest.labels else "",
        adapters=tuple(notices.plain_model(adapter) for adapter in manifest.adapters),
        notices=NOTICES,
    )
    write_text(folder / MANIFEST, to_json(written))
    return written


def _runtimes(format_: str) -> tuple[tuple[str, str], ...]:
    """Return what runs the format's files, with its licence."""
    return exporter_for(format_).runtimes or ((format_, notices.UNKNOWN),)


def _write_model(bundle: Bundle, chosen: Platform, artifact: Artifact, folder: Path) -> AssetModel:
    shipped = _shipped(artifact)
    for path in shipped:
        _copy(bundle, path, folder)
    golden = ""
    source = bundle.manifest.golden.get(artifact.name)
    if source is not None:
        inputs, outputs = read_golden(bundle.file(source))
        place = _golden_folder(artifact)
        tolerance = GOLDEN_TOLERANCE[artifact.precision]
        method = artifact.methods[0].name
        write_vectors(folder / place, artifact.name, method, inputs, outputs, tolerance)
        golden = f"{place}/{INDEX}"
        if not chosen.raw_golden_only:
            _copy(bundle, source, folder)
    runtime = _runtime(artifact)
    return AssetModel(
        name=artifact.name,
        format=artifact.format,
        precision=artifact.precision,
        file=artifact.model_file.path,
        files=shipped,
        runtime=runtime,
        minimum_runtime=bundle.manifest.minimum_runtime.get(runtime, ""),
        methods=artifact.methods,
        golden=golden,
        tools=artifact.tools,
    )


def _shipped(artifact: Artifact) -> tuple[str, ...]:
    return tuple(e.path for e in artifact.files if not e.path.endswith(STAY_HOME))


def _golden_folder(artifact: Artifact) -> str:
    return f"golden/{artifact.name}"


def _copy(bundle: Bundle, path: str, folder: Path) -> None:
    target = inside(folder, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle.file(path), target)


def _runtime(artifact: Artifact) -> str:
    """Return what loads the file on the platform, by its name in profiles."""
    try:
        inspector = inspector_for(artifact.format)
    except ConfigError:
        return artifact.format
    return artifact.format if inspector.stands_in else inspector.runner().runtime


# --- checking ------------------------------------------------------------------------------------


def _checked(
    bundle: Bundle, picked: Sequence[Artifact], folder: Path, progress: Progress
) -> list[Check]:
    """Read the written folder again, as an app would."""
    manifest = read_manifest(folder)
    checks = [_same_bytes(folder, e.path, e.sha256, e.size_bytes) for e in manifest.files]
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    for artifact in picked:
        progress(f"check {artifact.name}", 0, None)
        for entry in artifact.files:
            if entry.path in listed:
                same = listed[entry.path] == entry.sha256
                message = "" if same else "is not the bundle's"
                checks.append(Check(f"{entry.path} is the bundle's", same, message))
        source = bundle.manifest.golden.get(artifact.name)
        if source is None:
            continue
        checks.append(_same_vectors(bundle.file(source), folder / _golden_folder(artifact)))
        checks.append(_runs(folder, artifact))
    return checks


def _same_bytes(folder: Path, path: str, wanted: str, size_bytes: int) -> Check:
    place = inside(folder, path)
    holds = place.stat().st_size == size_bytes and sha256(place) == wanted
    return Check(f"file {path}", holds, "" if holds else "reads back as other bytes")


def _same_vectors(source: Path, folder: Path) -> Check:
    _, *found = read_vectors(folder)
    for wanted, got in zip(read_golden(source), found, strict=True):
        if list(wanted) != list(got) or not all(_equal(wanted[n], got[n]) for n in wanted):
            return Check(f"golden {folder.name}", False, "decodes to other vectors")
    return Check(f"golden {folder.name}", True, "decodes to the bundle's, bit for bit")


def _equal(one: Any, other: Any) -> bool:
    same: bool = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()


def _runs(folder: Path, artifact: Artifact) -> Check:
    """Run the written file on the written vectors; where that cannot be done here, say so."""
    name = f"run {artifact.name}"
    index, inputs, outputs = read_vectors(folder / _golden_folder(artifact))
    try:
        session = inspector_for(artifact.format).load(folder, artifact)
    except (RuntimeUnavailable, ConfigError) as failure:
        return Check(name, True, f"not run here: {failure}")
    except EdgeOptError as failure:
        return Check(name, False, str(failure))
    try:
        got = session.run(index.method, inputs)
    except EdgeOptError as failure:
        return Check(name, False, str(failure))
    finally:
        session.close()
    error = golden_error(outputs, got)
    message = f"largest error {error:.3g} of the largest output, {index.tolerance:g} is allowed"
    return Check(name, error <= index.tolerance, message)
