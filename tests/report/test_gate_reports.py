"""JUnit XML and Markdown of a gate: what CI servers read, and names that would break them."""

from __future__ import annotations

import dataclasses
import re
from xml.etree import ElementTree

import pytest

from edgeopt.limits.results import GateResult
from edgeopt.report import junit, markdown
from tests.report.fake_gate import make

# What Jenkins' schema (xunit-plugin, junit-10.xsd) allows, with what it requires marked `!`.
ATTRIBUTES = {
    "testsuites": "name time tests failures errors",
    "testsuite": "name! tests! failures! errors! time skipped timestamp hostname id package",
    "testcase": "name! time classname",
    "failure": "type message",
    "error": "type message",
    "skipped": "type message",
    "properties": "",
    "property": "name! value!",
    "system-out": "",
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "testcase": {"failure", "error", "skipped", "system-out"},
    "properties": {"property"},
}
SECONDS = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")
NASTY = 'a<b>&"c"|d`e`\x1b[2J\x00\ud800\uffff\u202e]]>\n| x |\n# y'


def check(element: ElementTree.Element) -> None:
    """Check an element as the schema would."""
    allowed = ATTRIBUTES[element.tag].split()
    known = {name.rstrip("!") for name in allowed}
    assert set(element.attrib) <= known, element.tag
    assert {name.rstrip("!") for name in allowed if name.endswith("!")} <= set(element.attrib)
    if "time" in element.attrib:
        assert SECONDS.fullmatch(element.attrib["time"])
    assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
    for child in element:
        check(child)


@pytest.fixture
def nasty() -> GateResult:
    result = make()
    side = dataclasses.replace(result.candidate, path=NASTY, artifact=NASTY, file=NASTY)
    rows = tuple(
        dataclasses.replace(r, method=NASTY, reason=NASTY, origin=NASTY) for r in result.limits
    )
    machine = dataclasses.replace(result.machine, name=NASTY)
    return dataclasses.replace(
        result, candidate=side, limits=rows, machine=machine, warnings=(NASTY,)
    )


def test_each_limit_is_a_test_case_with_its_outcome() -> None:
    root = ElementTree.fromstring(junit.render(make()).encode())
    check(root)
    (suite,) = root
    cases = suite.findall("testcase")
    outcomes = {c.get("name"): [child.tag for child in c] for c in cases}
    assert outcomes == {
        "latency_p50_ms": ["failure"],
        "latency_p99_ms (decode)": ["error"],  # asked for, and cannot be told
        "size_mb": ["system-out"],
        "partitions": ["skipped"],
        "float_gemms": ["failure"],
        "drop": ["system-out"],
    }
    for element in (root, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors")) == (
            "6",
            "2",
            "1",
        )
    assert suite.get("skipped") == "1"
    assert cases[0].get("time") == "3.250"
    assert root.get("time") == "4.500"
    assert {c.get("classname") for c in cases} == {"edgeopt.gate.onnxruntime"}


def test_a_failure_says_what_was_found_and_what_is_allowed() -> None:
    root = ElementTree.fromstring(junit.render(make()).encode())
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == failure.text
    for words in ("1.2 ms against 1 ms", "ratio x 1.200 (1.150 to 1.250)", "<= x 1.050", "slower"):
        assert words in (failure.text or "")
    error = root.find(".//error")
    assert error is not None
    assert "cannot tell: the interval 0.900 to 1.300 reaches over the limit 1.2" in (
        error.text or ""
    )
    skipped = root.find(".//skipped")
    assert skipped is not None
    assert skipped.get("message") == "partitions: not measured: both: no compiler told it"


def test_names_from_files_do_not_break_the_xml(nasty: GateResult) -> None:
    text = junit.render(nasty)
    root = ElementTree.fromstring(text.encode())
    check(root)
    assert len(root.findall(".//testcase")) == 6
    found = [p.get("value") for p in root.iter("property") if p.get("name") == "candidate"]
    assert found
    assert str(found[0]).startswith('a<b>&"c"|d`e`')
    assert not set(text) & {"\x00", "\x1b", "\ud800", "\uffff", "\u202e"}


def test_markdown_holds_a_row_a_limit() -> None:
    text = markdown.render(make())
    lines = text.splitlines()
    assert lines[0] == "### edgeopt gate: fail"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 6
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table} == {8}
    assert table[2] == (
        "| **fail** | latency\\_p50\\_ms | 1 ms | 1.2 ms | x 1.200 (1.150 to 1.250), slower "
        "| \\<= x 1.050 |"
    )
    assert table[3].startswith("| **not measured** | latency\\_p99\\_ms (decode) |")
    assert table[5].startswith("| not measured | partitions | - | - | - |")
    assert "- latency\\_p50\\_ms: onnxruntime 1.31.1 on Example CPU 9000" in text
    assert lines[-1].startswith("Measured on Example CPU 9000, 2 cores, load 0.4")


def test_names_from_files_do_not_break_the_markdown(nasty: GateResult) -> None:
    lines = markdown.render(nasty).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 6
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table} == {8}
    assert sum(line.startswith("#") for line in lines) == 1
    assert not any(re.search(r"(?<!\\)[<`]", line) for line in lines)
    assert not set("".join(lines)) & {"\x00", "\x1b", "\ud800", "\u202e"}
