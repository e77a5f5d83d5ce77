"""How the report writes numbers, sizes, types and places in a network."""

from __future__ import annotations

from edgeopt.results.verdicts import EXACT_DB

MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with fixed digits, or a dash where there is none."""
    if value is None:
        return "–"
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace("-", MINUS)
    # + 0.0: no minus before a zero
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def significant(value: float | None) -> str:
    """Write a number of any size with four significant digits."""
    if value is None:
        return "–"
    words = f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.4g}"
    return words.replace("-", MINUS, 1) if words.startswith("-") else words


def size(value: float | None) -> str:
    """Write bytes in decimal units."""
    if value is None:
        return "–"
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def quantity(value: float) -> str:
    """Write a large count for people: `4.2 G`."""
    for unit, least in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= least:
            return f"{value / least:.3g} {unit}"
    return f"{value:g}"


def decibels(snr_db: float | None) -> str:
    """Write an SNR, `exact` where nothing differs."""
    if snr_db is None:
        return "–"
    return "exact" if snr_db >= EXACT_DB else f"{number(snr_db, 1)} dB"


def share(part: float) -> str:
    """Write a share of 0 to 1 in percent; only all is 100 %, only nothing 0 %."""
    percent = 100 * part
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if percent < 0.05:
        return "under 0.1 %"
    return "over 99.9 %" if percent >= 99.95 else f"{percent:.1f} %"


def count(number_of: int, noun: str, nouns: str = "") -> str:
    """Write a count with its noun: `1 partition`, `4 partitions`; `nouns` where no `s` makes it."""
    return f"{number_of:,} {noun if number_of == 1 else nouns or f'{noun}s'}"


def kind(precision: str) -> str:
    """Return the CSS class of a precision or dtype."""
    if precision.startswith(("int8", "uint8", "int4", "uint4")):
        return "int8"
    if precision.startswith(("float16", "bfloat16")):
        return "half"
    return "full" if precision.startswith("float") else "other"


def stage(site: str) -> str:
    """Return the stretch of the network that a site lies in: `blocks.3` of `blocks.3.mlp.fc1`.

    That is the module path up to its first number, else its first part. A name that a runtime made
    for a node of its own (`gemm_input_reshape`) is no path and lies in no stage.
    """
    first = site.split(", ")[0].split("/")[0]
    path = first.partition(":")[0]
    if path == first and "." not in path:
        return ""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part.isdigit() and index:
            return ".".join(parts[: index + 1])
    return parts[0]
