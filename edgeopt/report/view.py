"""What the report's sections show, computed from a `BuildReport`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgeopt.report.files import Files
from edgeopt.report.words import number
from edgeopt.results.measurements import AccuracyResult, Comparison, LatencyResult, Machine
from edgeopt.results.reports import BuildReport, PassRow
from edgeopt.results.verdicts import LimitResult, Pace, Verdict


def verdict_sentence(report: BuildReport) -> str:
    """Say in words what the verdict is made of."""
    limits = report.limits
    if not limits:
        return "No limits were set, so nothing was judged."
    count = {v: sum(x.verdict is v for x in limits) for v in Verdict}
    parts = [f"{count[Verdict.PASS]} of {len(limits)} limits hold"]
    failed = [x.name for x in limits if x.verdict is Verdict.FAIL]
    open_ = [x.name for x in limits if x.verdict is Verdict.NOT_MEASURED]
    if failed:
        parts.append(f"missed: {', '.join(dict.fromkeys(failed))}")
    if open_:
        parts.append(f"not measured: {', '.join(dict.fromkeys(open_))}")
    return f"{'; '.join(parts)}."


def limit_fill(limit: LimitResult) -> float | None:
    """Return how much of a maximum is used up, in percent, for the bar."""
    if limit.value is None or not limit.maximum or limit.maximum < 0:
        return None
    return max(0.0, min(100.0, 100 * limit.value / limit.maximum))


def machines(report: BuildReport) -> tuple[tuple[Machine, tuple[LatencyResult, ...]], ...]:
    """Return the machines that measured latency, each at its busiest, with what they measured."""
    found: dict[tuple[str, str], list[LatencyResult]] = {}
    for result in report.latency:
        found.setdefault((result.machine.device, result.machine.name), []).append(result)
    return tuple(
        (max((r.machine for r in results), key=lambda machine: machine.load), tuple(results))
        for results in found.values()
    )


def called(result: LatencyResult) -> str:
    """Name an artifact, and the method where it is not the usual one."""
    return result.artifact if result.method == "forward" else f"{result.artifact} {result.method}"


def latency_findings(
    results: Sequence[LatencyResult], comparisons: Iterable[Comparison]
) -> tuple[str, ...]:
    """Say what one machine's distributions show: a sentence a pair, else one a file.

    Args:
        results: Measured on one machine.
        comparisons: All pairs; only this machine's are used.
    """
    found = {r.artifact: r for r in results}
    # Pairs are interleaved on the building machine only, and do not say which method they are of.
    if results[0].machine.device != "host" or len(found) < len(results):
        comparisons = ()
    said: set[str] = set()
    words = []
    for pair in comparisons:
        if pair.candidate in found and pair.baseline in found:
            mine, other = found[pair.candidate].p50.value, found[pair.baseline].p50.value
            words.append(
                f"{pair.candidate} takes {number(mine)} ms at the median, {pair.baseline} "
                f"{number(other)} ms."
            )
            said |= {pair.candidate, pair.baseline}
    for result in results:
        if result.artifact not in said:
            words.append(
                f"{called(result)} takes {number(result.p50.value)} ms at the median, "
                f"{number(result.p99.value)} ms at p99."
            )
    return tuple(words)


def comparison_finding(pair: Comparison) -> str:
    """Say how much faster one file is than the other."""
    verb = "cannot be told from"
    if pair.pace is Pace.FASTER and pair.ratio > 0:
        verb = f"is {1 / pair.ratio:.2f} × as fast as"
    elif pair.pace is Pace.SLOWER:
        verb = f"takes {pair.ratio:.2f} × as long as"
    elif pair.pace is Pace.SAME:
        verb = "is as fast as"
    return f"{pair.candidate} {verb} {pair.baseline}."


def judged(report: BuildReport) -> tuple[tuple[AccuracyResult, ...], ...]:
    """Return the drops of the files that are judged, one group a metric and method."""
    files = Files(report)
    plain = {a.name for a in files.yardsticks}
    order = {a.name: place for place, a in enumerate(files.main)}
    found: dict[tuple[str, str, str], list[AccuracyResult]] = {}
    for result in sorted(report.accuracy, key=lambda r: order.get(r.artifact, len(order))):
        if result.drop is not None and result.artifact not in plain:
            found.setdefault((result.metric, result.unit, result.method), []).append(result)
    return tuple(tuple(group) for group in found.values())


def accuracy_finding(group: Sequence[AccuracyResult]) -> str:
    """Say how much the worst file loses, and whether the samples can tell it from nothing."""
    worst = max(group, key=lambda result: result.drop or 0.0)
    drop, low, high = worst.drop or 0.0, worst.drop_low, worst.drop_high
    if drop <= 0:
        who = worst.artifact if len(group) == 1 else f"None of {len(group)} files"
        words = f"{who} loses {'no' if len(group) == 1 else 'any'} {worst.metric}"
        ends = [result.drop_high for result in group if result.drop_high is not None]
        if ends:
            words += f"; {worst.samples} samples allow a drop of {number(max(ends))} {worst.unit}"
        return f"{words}."
    words = f"{worst.artifact} loses {number(drop)} {worst.unit} of {worst.metric}"
    if len(group) > 1:
        words = f"The worst of {len(group)} files, {words}"
    if low is None or high is None:
        return f"{words}."
    if low <= 0 <= high:
        return f"{words}; {worst.samples} samples cannot tell that from no loss."
    return f"{words} (95 %: {number(low)} to {number(high)})."


def drop_limit(report: BuildReport, group: Sequence[AccuracyResult]) -> float | None:
    """Return the largest drop that a limit allows to one of the files, or None."""
    names = {(result.artifact, result.method) for result in group}
    return next(
        (
            limit.maximum
            for limit in report.limits
            if limit.name == "drop" and (limit.artifact, limit.method) in names
        ),
        None,
    )


def branches(rows: Iterable[PassRow]) -> tuple[tuple[str, tuple[PassRow, ...]], ...]:
    """Group the passes by branch, in order."""
    found: dict[str, list[PassRow]] = {}
    for row in rows:
        found.setdefault(row.branch, []).append(row)
    return tuple((name, tuple(passes)) for name, passes in found.items())


def histogram(counts: Mapping[str, int]) -> tuple[tuple[str, int, float], ...]:
    """Return (difference in codes, count, percent of the largest), in order, without 0."""

    def place(key: str) -> tuple[float, str]:
        try:
            return float(key), key
        except ValueError:
            return float("inf"), key

    different = {key: count for key, count in counts.items() if place(key)[0] != 0}
    most = max([*different.values(), 1])
    return tuple(
        (key, different[key], 100 * different[key] / most) for key in sorted(different, key=place)
    )
