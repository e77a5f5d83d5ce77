"""Judge a candidate against a baseline: the regression gate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.api.formats import inspector_for
from edgeopt.api.gating.facts import facts_of
from edgeopt.api.gating.opening import open_sides
from edgeopt.api.gating.side import Side
from edgeopt.devices.profile import Protocol
from edgeopt.errors import BundleError, RuntimeUnavailable, nearest
from edgeopt.limits.bounds import Bound, bounds
from edgeopt.limits.facts import Facts, accuracy, attached, counted
from edgeopt.limits.judge import Found, judge, verdict_of
from edgeopt.limits.quantities import Evidence, old_name_notes
from edgeopt.limits.results import GateLimit, GateResult, combine
from edgeopt.limits.written import read
from edgeopt.progress import Progress, no_progress
from edgeopt.results.measurements import Comparison, MemoryResult
from edgeopt.results.verdicts import Verdict

if TYPE_CHECKING:
    from edgeopt.runtime_tests.latency import Subject
    from edgeopt.runtime_tests.sequential import Looked, Ratio

SHOWN_ONLY = "shown, never judged: {why}; gate the plain files to judge them for this machine"


@dataclasses.dataclass(frozen=True)
class GateOptions:
    """How a gate judges.

    Attributes:
        limits: Bounds in place of the default ones: `latency_p50_ms<=1.1`.
        method: Only this method of the program, or None: all.
        artifact: Which artifact of both bundles, or None: the candidate's first.
        samples: Latency samples of each file in one look, or None: as the profile says, fewer
            where a call is slow.
        require_measured: A number that is missing keeps the gate from passing.
        seed: Of inputs, orders and resampling.
    """

    limits: tuple[str, ...] = ()
    method: str | None = None
    artifact: str | None = None
    samples: int | None = None
    require_measured: bool = False
    seed: int = 0


def run_gate(
    candidate: Path,
    baseline: Path,
    options: GateOptions | None = None,
    *,
    progress: Progress = no_progress,
) -> GateResult:
    """Compare a candidate with a baseline and judge every change by its limit.

    Latency and memory are measured on this machine where a runtime here runs the files and the
    machine is the profile's device; plain files are judged for this machine. Latencies measured on
    a device and attached to both bundles are used in their place. Everything else is read from the
    reports, or from the files where one side is a plain file.

    Args:
        candidate: A bundle or a model file.
        baseline: Likewise.
        options: How to judge.
        progress: Called with (what, done, total).

    Raises:
        BundleError: If one is damaged, or the two are not the same program.
        CheckFailed: If a bundle's files are not as they were written.
        ConfigError: If a limit cannot be meant.
    """
    return _Gate(candidate, baseline, options or GateOptions(), progress).run()


class _Gate:
    """One comparison."""

    def __init__(
        self, candidate: Path, baseline: Path, options: GateOptions, progress: Progress
    ) -> None:
        self._options = options
        self._progress = progress
        self._bounds = bounds(options.limits)
        progress("checksums", 0, None)
        self._ours, self._theirs = open_sides(candidate, baseline, options.artifact)
        self._methods = self._chosen_methods()
        self._comparisons: list[Comparison] = []

    def run(self) -> GateResult:
        """Judge everything."""
        from edgeopt.devices.machine import machine

        started = time.monotonic()
        here = machine()
        plain = self._ours.bundle is None or self._theirs.bundle is None
        self._progress("reports", 0, None)
        names = [bound.quantity.name for bound in self._bounds]
        ours, theirs = (facts_of(s, names, from_file=plain) for s in (self._ours, self._theirs))
        latency = self._latency(ours, theirs)
        rows: list[GateLimit] = []
        for bound in self._bounds:
            for method in self._methods if bound.change.per_method else ("",):
                match bound.change.evidence:
                    case Evidence.LATENCY:
                        row = latency[method, bound.quantity.name]
                    case Evidence.MEMORY:
                        row = self._memory(bound)
                    case Evidence.COUNTED:
                        row = counted(bound, ours, theirs)
                    case Evidence.ACCURACY:
                        row = accuracy(bound, method, ours, theirs)
                rows.append(self._judged(bound, row, method))
        found = tuple(rows)
        return GateResult(
            verdict=combine(found),
            candidate=self._ours.told,
            baseline=self._theirs.told,
            limits=found,
            comparisons=tuple(self._comparisons),
            machine=here,
            warnings=tuple(self._warnings()),
            seconds=time.monotonic() - started,
        )

    def _judged(self, bound: Bound, found: Found, method: str) -> GateLimit:
        required = self._options.require_measured
        return judge(bound, found, method=method, require_measured=required)

    def _chosen_methods(self) -> Mapping[str, tuple[str, str]]:
        """Return method -> its name on either side."""
        ours = [m.name for m in self._ours.artifact.methods]
        theirs = [m.name for m in self._theirs.artifact.methods]
        known = {m: (m, m if m in theirs else theirs[0]) for m in ours}
        wanted = self._options.method
        if wanted is None:
            return known
        if wanted not in known:
            raise BundleError(f"{self._ours.place}: no method {wanted!r}{nearest(wanted, known)}")
        return {wanted: known[wanted]}

    def _warnings(self) -> list[str]:
        found = old_name_notes(read(text).name for text in self._options.limits)
        if self._identical:
            found.append("candidate and baseline are the same file, byte for byte")
        one, other = self._ours.artifact.precision, self._theirs.artifact.precision
        if one and other and one != other:
            found.append(f"the candidate is {one} and the baseline {other}")
        if self._ours.bundle is not None and self._theirs.bundle is not None:
            model, before = (
                s.bundle.manifest.model for s in (self._ours, self._theirs) if s.bundle
            )
            if model != before:
                found.append(f"the candidate was made of {model} and the baseline of {before}")
        return found

    # --- latency ---------------------------------------------------------------------------------

    def _latency(self, ours: Facts, theirs: Facts) -> dict[tuple[str, str], Found]:
        """Return what is known of each method's latency, for the bounds that speak of it."""
        wanted = {
            bound.quantity.name: bound
            for bound in self._bounds
            if bound.change.evidence is Evidence.LATENCY
        }
        found: dict[tuple[str, str], Found] = {}
        for method, names in self._methods.items():
            brought = {n: attached(bound, method, ours, theirs) for n, bound in wanted.items()}
            if any(brought.values()):
                found |= {(method, n): f for n, f in brought.items() if f is not None}
            elif wanted:
                found |= {(method, n): f for n, f in self._timed(names, wanted).items()}
        return found

    def _timed(self, methods: tuple[str, str], wanted: Mapping[str, Bound]) -> dict[str, Found]:
        format_ = self._ours.artifact.format
        inspector = inspector_for(format_)
        why = inspector.untimed()
        if why is not None and not inspector.times_here:
            if self._away():
                why = f"a {format_} file is timed on its device"
            why += (
                "; what `edgeopt report BUNDLE --attach` brought home is used where both sides "
                "have it"
            )
        if why is not None:
            return {name: Found(reason=why) for name in wanted}
        try:
            return self._measured(methods, wanted)
        except RuntimeUnavailable as failure:
            return {name: Found(reason=str(failure)) for name in wanted}

    def _measured(self, methods: tuple[str, str], wanted: Mapping[str, Bound]) -> dict[str, Found]:
        from edgeopt.runtime_tests.sequential import LOOKS, compare_until

        away = self._away()
        one, other = self._subjects(methods)
        protocol = self._protocol(one, other)

        def found(comparison: Comparison, tail: Ratio | None) -> dict[str, Found]:
            return _latency_found(comparison, tail, [n for n in wanted])

        def decided(comparison: Comparison, tail: Ratio | None) -> bool:
            rows = found(comparison, tail)
            return all(
                verdict_of(bound, rows[name])[0] is not Verdict.NOT_MEASURED
                for name, bound in wanted.items()
            )

        looked = compare_until(
            one,
            other,
            protocol,
            decided,
            looks=1 if away or self._identical else LOOKS,
            seed=self._options.seed,
            progress=self._progress,
        )
        comparison = looked.pair.comparison
        self._comparisons.append(comparison)
        rows = found(comparison, looked.tail)
        return {name: self._told(row, looked, away) for name, row in rows.items()}

    def _told(self, row: Found, looked: Looked, away: str) -> Found:
        """Say where a measured number comes from, and whether it may be judged."""
        one, comparison = looked.pair.candidate, looked.pair.comparison
        threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
        looks = "1 look" if looked.looks == 1 else f"{looked.looks} looks"
        origin = (
            f"{one.runtime} on {one.machine.name}, {threads}; {comparison.pairs} interleaved "
            f"pairs, {looks} ({looked.ended}); noise of this machine {100 * comparison.noise:.1f} %"
        )
        return dataclasses.replace(
            row,
            origin=origin if row.value is not None else "",
            gated=not away,
            identical=self._identical,
            reason=SHOWN_ONLY.format(why=away) if away and row.value is not None else row.reason,
            seconds=looked.seconds,
        )

    @property
    def _identical(self) -> bool:
        return self._ours.hashes == self._theirs.hashes

    def _away(self) -> str:
        return self._ours.away() or self._theirs.away()

    def _subjects(self, methods: tuple[str, str]) -> tuple[Subject, Subject]:
        """Load both once, and give them the same inputs."""
        from edgeopt.runtime_tests import latency
        from edgeopt.runtime_tests.base import LoadOptions

        runner = inspector_for(self._ours.artifact.format).runner()
        usual = self._ours.protocol()
        opened: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        for side, method in zip((self._ours, self._theirs), methods, strict=True):
            session = runner.load([side.file], LoadOptions(threads=usual.threads))
            try:
                inputs = session.example_inputs(method, seed=self._options.seed)
                opened.append((inputs, session.run(method, inputs)))
            finally:
                session.close()
        _check_same_shapes(self._ours, self._theirs, opened[0], opened[1])
        inputs = opened[1][0]
        names = _names(self._ours, self._theirs)
        one, other = (
            latency.subject(name, runner, [side.file], inputs, usual, method=method)
            for name, side, method in zip(names, (self._ours, self._theirs), methods, strict=True)
        )
        return one, other

    def _protocol(self, one: Subject, other: Subject) -> Protocol:
        from edgeopt.runtime_tests.sequential import cost, fitted

        usual = self._ours.protocol()
        if self._options.samples is not None:
            samples = self._options.samples
            return dataclasses.replace(usual, samples=samples, block=min(usual.block, samples))
        costs = [cost(one), cost(other)]
        return fitted(usual, max(c[0] for c in costs), max(c[1] for c in costs))

    # --- memory ----------------------------------------------------------------------------------

    def _memory(self, bound: Bound) -> Found:
        from edgeopt.runtime_tests.sequential import memory_until

        inspector = inspector_for(self._ours.artifact.format)
        self._progress("peak memory", 0, None)
        started = time.monotonic()
        runtimes: list[str] = []

        def once(side: Side) -> Callable[[], MemoryResult]:
            def measure() -> MemoryResult:
                found = inspector.memory(side.folder, side.artifact)
                if found is None:
                    raise RuntimeUnavailable(
                        f"nothing on this machine shows the memory of a {side.artifact.format} file"
                    )
                runtimes.append(found.runtime)
                return found

            return measure

        def decided(ratio: Ratio) -> bool:
            found = dataclasses.replace(_memory_found(ratio), identical=self._identical)
            return verdict_of(bound, found)[0] is not Verdict.NOT_MEASURED

        try:
            ratio = memory_until(once(self._ours), once(self._theirs), decided)
        except RuntimeUnavailable as failure:
            return Found(reason=str(failure))
        if ratio is None:
            return Found(reason="a file adds no memory that can be seen")
        away = self._away()
        return dataclasses.replace(
            _memory_found(ratio),
            origin=f"{runtimes[0]}, {len(runtimes) // 2} processes each, the smallest peak",
            gated=not away,
            identical=self._identical,
            reason=SHOWN_ONLY.format(why=away) if away else "",
            seconds=time.monotonic() - started,
        )


def _names(ours: Side, theirs: Side) -> tuple[str, str]:
    """Return what the two are called in a comparison: their files, as given."""
    names = [s.place.as_posix() for s in (ours, theirs)]
    if names[0] == names[1]:
        return f"{names[0]} (candidate)", f"{names[1]} (baseline)"
    return names[0], names[1]


def _check_same_shapes(
    ours: Side,
    theirs: Side,
    one: tuple[Mapping[str, Any], Mapping[str, Any]],
    other: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """Refuse two loaded files that take or give different arrays."""
    for what, own, their in zip(("inputs", "outputs"), one, other, strict=True):
        shown = [
            ", ".join(f"{n} {a.dtype}[{', '.join(map(str, a.shape))}]" for n, a in arrays.items())
            for arrays in (own, their)
        ]
        if shown[0] != shown[1]:
            raise BundleError(
                f"{ours.place} and {theirs.place} are not the same program: {what} are "
                f"{shown[0]} and {shown[1]}"
            )


def _latency_found(
    comparison: Comparison, tail: Ratio | None, names: Sequence[str]
) -> dict[str, Found]:
    import statistics

    from edgeopt.runtime_tests.sequential import TAIL_CALLS

    middles = {
        who: statistics.median(comparison.samples_ms[who]) for who in ("candidate", "baseline")
    }
    found = {
        "latency_p50_ms": Found(
            middles["baseline"],
            middles["candidate"],
            comparison.ratio,
            comparison.low,
            comparison.high,
            comparison.pace,
        ),
        "latency_p99_ms": Found(
            reason=f"a 99th percentile needs {TAIL_CALLS} calls, there are {comparison.pairs}; "
            "take more with --samples"
        ),
    }
    if tail is not None:
        found["latency_p99_ms"] = Found(
            tail.baseline, tail.candidate, tail.value, tail.low, tail.high
        )
    return {name: found[name] for name in names}


def _memory_found(ratio: Ratio) -> Found:
    return Found(ratio.baseline, ratio.candidate, ratio.value, ratio.low, ratio.high)
