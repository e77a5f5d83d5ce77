"""What `build`, `verify`, `bench` and `doctor` print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli.text import STYLES, Table, show_line, show_table, show_warning
from edgeopt.registry.plugins import in_words
from edgeopt.results.verdicts import Verdict

if TYPE_CHECKING:
    from edgeopt.api.doctor import DoctorResult
    from edgeopt.results.measurements import (
        AccuracyResult,
        Comparison,
        LatencyResult,
        Machine,
        Percentile,
    )
    from edgeopt.results.reports import BenchResult, BuildReport, VerifyResult
    from edgeopt.results.structure import ContractResult, ProofResult
    from edgeopt.results.verdicts import LimitResult


def show_build(report: BuildReport, bundle: Path) -> None:
    """Print a build: the verdict first, then what it is made of."""
    _show_verdict(f"{report.model} for {report.profile_title} ({report.recipe})", report.verdict)
    for warning in report.warnings:
        show_warning(warning)
    show_table(limit_table(report.limits))
    show_table(accuracy_table(report.accuracy))
    _show_latency(report.latency)
    show_table(comparison_table(report.comparisons))
    _show_artifacts(report)
    show_table(proof_table(report.proof))
    show_line(f"bundle  {bundle}")


def _show_verdict(what: str, verdict: Verdict) -> None:
    show_line(f"{verdict.value.upper()}  {what}", STYLES[verdict.value])
    show_line()


def limit_table(limits: tuple[LimitResult, ...]) -> Table:
    """Return the limits with what was found."""
    rows = tuple(
        (
            limit.name if limit.method == "forward" else f"{limit.name} ({limit.method})",
            limit.artifact,
            _significant(limit.value),
            bound(limit),
            limit.unit,
            limit.verdict.value,
            limit.reason,
        )
        for limit in limits
    )
    return Table("Limits", ("limit", "artifact", ">found", ">limit", "unit", "verdict", ""), rows)


def bound(limit: LimitResult) -> str:
    """Return a limit's bound, `<= 1`."""
    if limit.maximum is not None:
        return f"<= {limit.maximum:g}"
    return f">= {limit.minimum:g}" if limit.minimum is not None else "-"


def accuracy_table(results: tuple[AccuracyResult, ...]) -> Table:
    """Return accuracy against the float model."""
    rows = tuple(
        (
            a.artifact,
            a.runtime,
            f"{a.metric}\n({a.samples} samples)",
            number(a.reference),
            number(a.value),
            _drop(a),
            number(a.agreement),
            number(a.snr_db, 1),
        )
        for a in results
    )
    heads = (">float", ">this", ">drop\n(95 %)", ">agrees\n%", ">SNR\ndB")
    return Table("Accuracy", ("artifact", "runtime", "metric", *heads), rows)


def _drop(result: AccuracyResult) -> str:
    if result.drop is None:
        return "-"
    drop = f"{number(result.drop)} {result.unit}"
    if result.drop_low is None or result.drop_high is None:
        return drop
    return f"{drop}\n({number(result.drop_low)} to {number(result.drop_high)})"


def _show_latency(results: tuple[LatencyResult, ...]) -> None:
    groups: dict[tuple[str, str], list[LatencyResult]] = {}
    for r in results:
        threads = "1 thread" if r.threads == 1 else f"{r.threads} threads"
        how = f"{r.runtime}, {threads}, batch {r.batch}"
        groups.setdefault((r.machine.name, how), []).append(r)
    for (_, how), found in groups.items():
        busiest = max((r.machine for r in found), key=lambda machine: machine.load)
        show_table(latency_table(tuple(found), f"Latency on {machine_line(busiest)}, {how}"))


def latency_table(results: tuple[LatencyResult, ...], title: str) -> Table:
    """Return measured latencies of one machine."""
    rows = tuple(
        (
            f"{r.artifact}*" if r.stand_in else r.artifact,
            _percentile(r.p50),
            _percentile(r.p90),
            _percentile(r.p99),
            str(len(r.samples_ms)),
        )
        for r in results
    )
    note = "; * stand-in, not the device, never gated" if any(r.stand_in for r in results) else ""
    heads = (">p50 ms\n(95 %)", ">p90", ">p99", ">samples")
    return Table(f"{title}{note}", ("artifact", *heads), rows)


def _percentile(p: Percentile) -> str:
    return f"{p.value:.3f}\n({p.low:.3f} to {p.high:.3f})"


def machine_line(machine: Machine) -> str:
    """Return a machine in one line."""
    if machine.device != "host":  # a device tells its clocks, not its load
        return machine.name
    return f"{machine.name}, {machine.cores} cores, load {machine.load:.1f}"


def comparison_table(comparisons: tuple[Comparison, ...]) -> Table:
    """Return the interleaved pairs."""
    rows = tuple(
        (
            c.candidate,
            c.baseline,
            f"{c.ratio:.3f}\n({c.low:.3f} to {c.high:.3f})",
            f"{1 / c.ratio:.2f}" if c.ratio > 0 else "-",
            f"{c.noise:.3f}",
            c.pace.value,
        )
        for c in comparisons
    )
    heads = (">ratio\n(95 %)", ">speedup", ">noise", "verdict")
    return Table("Interleaved", ("candidate", "baseline", *heads), rows)


def _show_artifacts(report: BuildReport) -> None:
    rows = tuple(
        (
            a.name,
            a.format,
            a.precision,
            f"{a.size_bytes / 1e6:.2f}",
            "-" if a.int8_macs is None else f"{100 * a.int8_macs:.1f}",
            a.file,
        )
        for a in report.artifacts
    )
    heads = ("artifact", "format", "precision", ">MB", ">INT8 MACs %", "file")
    show_table(Table("Artifacts", heads, rows))


def _proven(proof: ProofResult) -> str:
    if proof.exact:
        return "bit exact"
    if not proof.nodes:
        return "not proven"
    if proof.equal == proof.elements:
        return "the outputs differ"
    return f"{proof.elements - proof.equal} differ, at most {proof.max_lsb:g} LSB"


def proof_table(proofs: tuple[ProofResult, ...]) -> Table:
    """Return the integer proofs."""
    rows = tuple(
        (
            p.artifact,
            p.runtime,
            str(p.nodes),
            str(p.elements),
            _proven(p),
            p.first_difference or "-",
        )
        for p in proofs
    )
    heads = ("artifact", "runtime", ">nodes", ">elements", "result", "first difference")
    return Table("Integer proof", heads, rows)


def show_verify(result: VerifyResult) -> None:
    """Print what `verify` found."""
    _show_verdict(result.bundle, result.verdict)
    checks = tuple((c.name, "pass" if c.holds else "fail", c.message) for c in result.checks)
    show_table(Table("Checks", ("check", "verdict", ""), checks))
    show_table(_contract_table(result.contracts))
    broken = tuple((c.artifact, c.kind, c.site, c.message) for c in result.contracts if not c.holds)
    show_table(Table("Broken contracts", ("artifact", "contract", "site", "found"), broken))
    show_table(proof_table(result.proof))


def _contract_table(contracts: tuple[ContractResult, ...]) -> Table:
    """Return how many contracts hold, per artifact and kind: large models have thousands."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for contract in contracts:
        groups.setdefault((contract.artifact, contract.kind), []).append(contract.holds)
    rows = tuple(
        (artifact, kind, str(len(found)), str(sum(found)), "pass" if all(found) else "fail")
        for (artifact, kind), found in groups.items()
    )
    heads = ("artifact", "contract", ">sites", ">hold", "verdict")
    return Table("Contracts in the files", heads, rows)


def show_bench(result: BenchResult) -> None:
    """Print what `bench` measured."""
    _show_latency(result.latency)
    show_table(comparison_table(result.comparisons))


def show_doctor(result: DoctorResult) -> None:
    """Print what this machine has, then what is missing and how to get it."""
    show_line(f"edgeopt {result.edgeopt}, Python {result.python}")
    show_line(machine_line(result.machine))
    show_line()
    rows = tuple(
        (p.name, p.kind, "yes" if p.available else "no", p.version or "-", p.gives)
        for p in result.pieces
    )
    show_table(Table("What is here", ("piece", "kind", "here", "version", "gives"), rows))
    cpu = tuple((f.name, "yes" if f.available else "no", f.meaning) for f in result.cpu)
    show_table(Table("CPU features that decide INT8 speed", ("feature", "here", "meaning"), cpu))
    missing = tuple(
        (p.name, p.problem, p.without, p.install) for p in result.pieces if not p.available
    )
    columns = ("piece", "found", "without it", "to install")
    show_table(Table("Missing", columns, missing))
    added = tuple((p.package, p.version, in_words(p.adds), p.problem) for p in result.plugins)
    show_table(Table("Plug-ins", ("package", "version", "adds", "problem"), added))
    devices = tuple((d.profile, d.target, d.runtime, d.here, d.reason) for d in result.measurable)
    where = ("profile", "target", "runtime", "latency here", "")
    show_table(Table("What can be measured here", where, devices))


def number(value: float | None, digits: int = 2) -> str:
    """Return a number for people, or a dash where there is none."""
    if value is None:
        return "-"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero


def _significant(value: float | None) -> str:
    """Return a number of any size with four significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.4g}"  # + 0.0: never "-0"
