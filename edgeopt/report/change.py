"""How a gate's numbers are written, in every form of its report."""

from __future__ import annotations

from edgeopt.limits.quantities import Kind
from edgeopt.limits.results import GateLimit


def title(row: GateLimit) -> str:
    """Return what the row is of: `latency_p50_ms`, with the method where it is not `forward`."""
    return row.name if row.method in ("", "forward") else f"{row.name} ({row.method})"


def number(value: float | None, unit: str = "") -> str:
    """Return a number of any size with four significant digits, or `-`."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.4g}"  # + 0.0: never "-0"
    return text if unit in ("", "count", "share") else f"{text} {unit}"


def change(row: GateLimit) -> str:
    """Return the judged value: a ratio as `x 1.050`, a difference with its sign."""
    return "-" if row.value is None else _value(row.value, row)


def interval(row: GateLimit) -> str:
    """Return the value's interval, or an empty string where it is exact."""
    if row.value is None or (row.low == row.value and row.high == row.value):
        return ""
    low, high = ("?" if end is None else _bare(end, row) for end in (row.low, row.high))
    return f"{low} to {high}"


def allowed(row: GateLimit) -> str:
    """Return the bound, `<= x 1.050`."""
    return "-" if row.limit is None else f"{row.sense.value} {_value(row.limit, row)}"


def _value(value: float, row: GateLimit) -> str:
    return f"x {value:.3f}" if row.kind is Kind.RATIO else _bare(value, row)


def _bare(value: float, row: GateLimit) -> str:
    if row.kind is Kind.RATIO:
        return f"{value:.3f}"
    return f"{round(value, 4) + 0.0:+.4g}" if value else "0"
