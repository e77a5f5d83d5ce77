"""The report is one page that loads nothing, shows everything, and trusts no name."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import time

import pytest

from edgeopt.files import parse, to_json
from edgeopt.report.html import render
from edgeopt.results.measurements import LatencyResult, Machine, Percentile
from edgeopt.results.reports import ArtifactRow, BuildReport
from edgeopt.results.structure import ContractResult
from edgeopt.results.verdicts import Verdict

SECTIONS = [
    "targets",
    "limits",
    "accuracy",
    "latency",
    "size",
    "operators",
    "drift",
    "proof",
    "passes",
    "plan",
    "contracts",
    "compile",
    "artifacts",
    "tools",
]
VOID = {"meta", "br", "link", "img", "use", "path", "input"}
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


@pytest.fixture(scope="module")
def text(fake_report: BuildReport) -> str:
    """Return the page of the fake report."""
    return render(fake_report)


def test_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert not page.open
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?://|@import|@font-face|javascript:", text)
    policy = [value for _, name, value in page.attributes if value.startswith("default-src")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_every_internal_link_has_its_target_and_ids_are_unique(text: str) -> None:
    ids = [value for _, name, value in Page(text).attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    wanted = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in wanted} <= set(ids)


def test_has_every_section_with_its_contents(text: str, fake_report: BuildReport) -> None:
    worst = [row for row in fake_report.drift if row.rank == 1]
    assert len(worst) == 2
    page = Page(text)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert [i for i in ids if i in SECTIONS] == SECTIONS
    for words in (
        "4 of 6 limits hold; not measured: speedup, latency_p50_ms.",
        "2.38",  # times faster
        "avx512_vnni",
        *(f"--keep-float '{row.site}'" for row in worst),
        "10 outputs are not a multiple of 8",  # why a pass skipped
        "ONNX Runtime has no integer kernel",  # why an operator is float
        "Bit exact: 16 integer nodes",
        "388 of 128,000 elements differ",
        "All 16 contracts hold.",
        "onnxruntime-qnn 2.7.0",
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


def test_the_same_report_gives_the_same_bytes(text: str, fake_report: BuildReport) -> None:
    assert render(fake_report) == text


def test_every_target_has_its_figures_size_strip_and_drift(
    text: str, fake_report: BuildReport
) -> None:
    page = Page(text)
    labels = [v for _, n, v in page.attributes if n == "aria-label"]
    panels = [v for _, n, v in page.attributes if n == "data-name"]
    for name in ("qnn", "xnnpack"):
        assert panels.count(name) == 2  # sizes and drift
        assert any(label.startswith(f"{name}: ") for label in labels)  # the strip
    cards = [v for t, n, v in page.attributes if (t, n) == ("article", "class")]
    assert cards == ["target verdict", "target shipped", "target stand-in"]
    marks = [v for t, n, v in page.attributes if (t, n) == ("i", "title")]
    assert len(marks) == len(fake_report.operators)
    assert any(
        m.startswith("blocks.0.mlp:gelu#0\nGelu, float32\non ExecuTorch CPU k") for m in marks
    )


def test_switches_panels_without_a_script(text: str) -> None:
    page = Page(text)
    ids = {v for t, n, v in page.attributes if (t, n) == ("input", "id")}
    labels = [v for t, n, v in page.attributes if (t, n) == ("label", "for")]
    assert ids == {"sizes-1", "sizes-2", "drift-1", "drift-2"} == set(labels)
    checked = [n for t, n, _ in page.attributes if t == "input" and n == "checked"]
    assert len(checked) == 2  # the first of each group


def test_stays_small_with_hundreds_of_operators(fake_report: BuildReport) -> None:
    operators = tuple(
        dataclasses.replace(row, site=f"network.{copy}.{row.site}", reason=row.reason * 4)
        for copy in range(3)
        for row in fake_report.operators
    )
    assert len(operators) >= 300
    text = render(dataclasses.replace(fake_report, operators=operators))
    assert len(text.encode()) < 2_000_000


def test_renders_what_older_versions_wrote(fake_report: BuildReport) -> None:
    """Such a report has no roles, targets of a drift, depths or reasons; it had one target."""
    keep = {"qnn", "qnn-float32", "onnxruntime", "onnxruntime-float32"}
    plain = json.loads(to_json(fake_report))
    plain["artifacts"] = [a for a in plain["artifacts"] if a["name"] in keep]
    plain["drift"] = [row for row in plain["drift"] if row["target"] == "qnn"]
    del plain["unmeasured"]
    for row in plain["artifacts"]:
        del row["role"]
    for row in plain["drift"]:
        del row["target"], row["depth"], row["method"]
    report = parse(plain, BuildReport, where="report.json")
    page = Page(render(report))
    assert not page.open
    cards = [v for t, n, v in page.attributes if (t, n) == ("article", "class")]
    assert cards == ["target verdict", "target stand-in"]
    assert "needs the device (Snapdragon phone)" in page.words  # told by the open limit
    assert "Worst first" in page.words
    assert "Along the network" not in page.words  # the order is not known


def test_renders_in_under_three_seconds(fake_report: BuildReport) -> None:
    started = time.process_time()
    render(fake_report)
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("verdict", "words"), [(v, v.value) for v in Verdict], ids=lambda v: str(v)
)
def test_the_verdict_comes_first(fake_report: BuildReport, verdict: Verdict, words: str) -> None:
    page = Page(render(dataclasses.replace(fake_report, verdict=verdict)))
    body = page.words[page.words.index("build report") :]
    assert body.index(words) < body.index("Limits")


def test_names_a_broken_contract_before_those_that_hold(fake_report: BuildReport) -> None:
    broken = ContractResult("qnn", "NMSparse", "head.weight", False, "3 of 4 are not zero")
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


def test_survives_outputs_that_are_exact_and_sites_without_a_path(fake_report: BuildReport) -> None:
    drift = tuple(
        dataclasses.replace(row, snr_db=float("inf"), own_snr_db=float("inf"), site=f"n{i}")
        for i, row in enumerate(fake_report.drift)
    )
    page = Page(render(dataclasses.replace(fake_report, drift=drift)))
    assert not page.open
    assert "no layer's output differs from float" in page.words
