"""A gate's verdicts as JUnit XML, which CI servers show test by test.

One `testsuites`, one `testsuite`, one `testcase` a limit, with the attributes that both Jenkins'
schema (xunit-plugin, junit-10.xsd) and GitLab read. A limit that fails is a `failure`; one that the
gate needs and that was not measured, or cannot be told, an `error`; one that it does not need,
`skipped`.
"""

from __future__ import annotations

from xml.etree import ElementTree

from edgeopt.limits.results import GateLimit, GateResult
from edgeopt.report import change
from edgeopt.report.printable import printable
from edgeopt.results.verdicts import Verdict

SUITE = "edgeopt gate"


def render(result: GateResult) -> str:
    """Return the document."""
    counts = {"failure": 0, "error": 0, "skipped": 0}
    cases = []
    for row in result.limits:
        case = _case(row, result)
        for outcome in counts.keys() & {child.tag for child in case}:
            counts[outcome] += 1
        cases.append(case)
    tallies = {
        "name": SUITE,
        "tests": str(len(cases)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "time": _seconds(result.seconds),
    }
    root = ElementTree.Element("testsuites", tallies)
    suite = ElementTree.SubElement(
        root, "testsuite", {**tallies, "skipped": str(counts["skipped"])}
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(result):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
    suite.extend(cases)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="UTF-8"?>\n', "\n")
    )


def _properties(result: GateResult) -> list[tuple[str, str]]:
    found = [("verdict", result.verdict.value), ("machine", result.machine.name)]
    for who, side in (("candidate", result.candidate), ("baseline", result.baseline)):
        found += [
            (who, side.path),
            (f"{who} artifact", side.artifact),
            (f"{who} sha256", side.sha256),
        ]
    return found


def _case(row: GateLimit, result: GateResult) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        {
            "name": _text(change.title(row)),
            "classname": _text(f"edgeopt.gate.{result.candidate.artifact}"),
            "time": _seconds(row.seconds),
        },
    )
    message = _text(sentence(row))
    if row.verdict is Verdict.FAIL:
        tag = "failure"
    elif row.verdict is Verdict.NOT_MEASURED:
        tag = "error" if row.required else "skipped"
    else:
        ElementTree.SubElement(case, "system-out").text = message
        return case
    # GitLab shows the text, Jenkins the attribute.
    ElementTree.SubElement(
        case, tag, {"type": row.verdict.value, "message": message}
    ).text = message
    return case


def sentence(row: GateLimit) -> str:
    """Return a row in one line."""
    if row.value is None:
        return f"{change.title(row)}: {row.verdict.value}: {row.reason}"
    spread = change.interval(row)
    parts = (
        f"{change.title(row)}: {change.number(row.candidate, row.unit)} against "
        f"{change.number(row.baseline, row.unit)}, {row.kind.value} {change.change(row)}"
        + (f" ({spread})" if spread else ""),
        f"allowed {change.allowed(row)}" if row.limit is not None else "",
        row.comparison.value if row.comparison is not None else "",
        row.reason,
        row.origin,
    )
    return "; ".join(part for part in parts if part)


def _text(text: str) -> str:
    """Return text that XML 1.0 can hold; the writer escapes the rest."""
    return printable(text)


def _seconds(value: float) -> str:
    return f"{value:.3f}"
