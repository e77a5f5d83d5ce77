"""The report is one page that loads nothing, shows everything, and trusts no name."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import time

import pytest

from edgeopt.report.html import render
from edgeopt.results import (
    ArtifactRow,
    BuildReport,
    ContractResult,
    LatencyResult,
    Machine,
    Percentile,
    Verdict,
)

SECTIONS = [
    "limits",
    "artifacts",
    "accuracy",
    "latency",
    "size",
    "operators",
    "drift",
    "passes",
    "plan",
    "proof",
    "contracts",
    "compile",
    "tools",
]
VOID = {"meta", "br", "link", "img", "use", "path"}
HOSTILE = "<script>alert(1)</script>\"'&$\\frac{$ \x1b[31m\u202e"


class Page(html.parser.HTMLParser):
    """Collect elements and check that every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def _empty() -> BuildReport:
    return BuildReport(
        bundle="dist/x",
        edgeopt="0.1.0",
        model="zoo:vit",
        profile="orin",
        profile_title="A device",
        recipe="float",
        build_key="",
        verdict=Verdict.NOT_MEASURED,
        machine=Machine("cpu", 1, (), "Linux", 0.0),
        tools={},
        artifacts=(),
    )


def _hostile(report: BuildReport) -> BuildReport:
    """Put a hostile name wherever a name from a file can stand."""

    def poison(value: object) -> object:
        if isinstance(value, str):
            return HOSTILE + value
        if isinstance(value, (tuple, list)):
            return tuple(poison(item) for item in value)
        if isinstance(value, dict):
            return {poison(key): poison(item) for key, item in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: poison(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return type(value)(**fields)
        return value

    poisoned = poison(report)
    assert isinstance(poisoned, BuildReport)
    return poisoned


def test_loads_nothing_and_runs_nothing(fake_report: BuildReport) -> None:
    text = render(fake_report)
    page = Page(text)
    assert not page.open
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?://|@import|@font-face|javascript:", text)
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_every_internal_link_has_its_target_and_ids_are_unique(fake_report: BuildReport) -> None:
    text = render(fake_report)
    ids = [value for _, name, value in Page(text).attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    wanted = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in wanted} <= set(ids)


def test_has_every_section_with_its_contents(fake_report: BuildReport) -> None:
    page = Page(render(fake_report))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert [i for i in ids if i in SECTIONS] == SECTIONS
    for words in (
        "4 of 6 limits hold; not measured: speedup, latency_p50_ms.",
        "2.38",  # times faster
        "avx512_vnni",
        "--keep-float 'blocks.3.mlp.fc2:linear#0'",
        "10 outputs are not a multiple of 8",  # why a pass skipped
        "ONNX Runtime has no integer kernel",  # why an operator is float
        "Bit exact: 16 integer nodes",
        "388 of 128,000 elements differ",
        "All 16 contracts hold.",
        "TensorRT-RTX 1.7.1",
        "Stand-in: this machine is not the profile's device.",
    ):
        assert words in page.words, words


def test_says_why_a_section_is_empty() -> None:
    page = Page(render(_empty()))
    assert not page.open
    for words in (
        "The profile sets no limits",
        "No file was written.",
        "No artifact was judged",
        "Not measured: latency was switched off",
        "No two files were measured in pairs.",
        "Memory was not measured.",
        "The exporters reported no weights.",
        "reported where the operators run",
        "Layers were not ranked",
        "The recipe has no passes.",
        "plans no quantization",
        "Nothing was proven",
        "No pass left a contract to keep.",
        "No device compiler ran here.",
    ):
        assert words in page.words, words


def test_escapes_every_name(fake_report: BuildReport) -> None:
    page = Page(render(_hostile(fake_report)))
    assert not page.open
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.words  # shown as text
    assert not {"\x1b", "\u202e"} & set(page.words)


def test_the_same_report_gives_the_same_bytes(fake_report: BuildReport) -> None:
    assert render(fake_report) == render(fake_report)


def test_renders_in_under_three_seconds(fake_report: BuildReport) -> None:
    started = time.perf_counter()
    render(fake_report)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("verdict", "words"), [(v, v.value) for v in Verdict], ids=lambda v: str(v)
)
def test_the_verdict_comes_first(fake_report: BuildReport, verdict: Verdict, words: str) -> None:
    page = Page(render(dataclasses.replace(fake_report, verdict=verdict)))
    body = page.words[page.words.index("build report") :]
    assert body.index(words) < body.index("Limits")


def test_names_a_broken_contract_before_those_that_hold(fake_report: BuildReport) -> None:
    broken = ContractResult("tensorrt", "NMSparse", "head.weight", False, "3 of 4 are not zero")
    contracts = (*fake_report.contracts, broken)
    page = Page(render(dataclasses.replace(fake_report, contracts=contracts)))
    assert "1 of 17 contracts are broken." in page.words
    after = page.words[page.words.index("Each contract") :]
    assert after.index("head.weight") < after.index("blocks.0.attn.qkv.weight")


def test_draws_one_plot_a_machine_and_survives_equal_samples() -> None:
    point = Percentile(1.0, 1.0, 1.0)
    machines = [Machine(name, 1, (), "Linux", 0.0) for name in ("one", "two")]
    results = tuple(
        LatencyResult("a", "r 1", machine, 1, 1, point, point, point, (1.0,) * 5, 5)
        for machine in machines
    )
    artifact = ArtifactRow("a", "t", "onnx", "int8", "a.onnx", 0, "", 0, None)
    text = render(dataclasses.replace(_empty(), latency=results, artifacts=(artifact,)))
    assert text.count("<svg") == 2
