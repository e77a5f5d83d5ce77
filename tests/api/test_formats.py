"""What each format says of itself, asked by those who take any format."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from edgeopt.api.building.targets import choose_targets
from edgeopt.api.formats import exporter_for, format_names, format_of, inspector_for
from edgeopt.artifacts.interface import Method
from edgeopt.devices.profile import load_profile
from edgeopt.errors import BundleError, ConfigError
from edgeopt.runtime_tests.inspection import Inspector
from tests.api.small_bundles import products
from tests.installing import install


def test_exporter_and_inspector_of_a_format_agree_on_its_name() -> None:
    assert set(format_names()) == {"onnx", "tensorrt", "executorch", "qnn"}
    for name in format_names():
        assert exporter_for(name).format == inspector_for(name).format == name


def test_a_suffix_stands_for_one_format() -> None:
    assert format_of(Path("model.onnx")) == "onnx"
    assert format_of(Path("model.pte")) == "executorch"
    for place in ("model.txt", "model"):
        with pytest.raises(
            BundleError, match=r"is neither .* nor a model file \(\.onnx or \.pte\)"
        ):
            format_of(Path(place))
    named = [exporter_for(name).suffix for name in format_names() if exporter_for(name).suffix]
    assert len(set(named)) == len(named)


def test_a_suffix_may_be_a_plugins_and_a_broken_one_stands_in_nobodys_way(site: Path) -> None:
    source = """
        from edgeopt.exporters.base import Exporter

        class Fine(Exporter):
            format = "acme-fine"
            suffix = ".acme"

            def unsupported(self, request):
                return []

            def export(self, request, folder):
                raise NotImplementedError

        class Half(Exporter):
            format = "acme-half"
    """
    exporters = {"acme-fine": "acme:Fine", "acme-half": "acme:Half"}
    install(site, "acme", {"edgeopt.exporters": exporters}, {"acme.py": source})
    assert format_of(Path("model.acme")) == "acme-fine"
    assert format_of(Path("model.onnx")) == "onnx"
    with pytest.raises(BundleError) as caught:
        format_of(Path("model.other"))
    told = str(caught.value)
    assert "nor a model file (.acme or .onnx or .pte); format 'acme-half' of acme 1.0" in told
    assert told.endswith("lacks export, unsupported")
    with pytest.raises(ConfigError, match="--format onnx:int3: takes onnx:float32 or onnx:float16"):
        choose_targets(load_profile("host"), ["onnx:int3"])


def test_only_a_compilers_own_version_is_added_to_what_every_build_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {name: exporter_for(name).compilers() for name in format_names()}
    assert {name for name, tools in found.items() if tools} == {"qnn"}
    monkeypatch.setattr(metadata, "version", {"onnxruntime-qnn": "2.7"}.__getitem__)
    assert exporter_for("qnn").compilers() == {"onnxruntime-qnn": "2.7"}

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert exporter_for("qnn").compilers() == {"onnxruntime-qnn": "not installed"}


def test_a_plain_file_tells_its_interface_or_says_that_it_does_not(tmp_path: Path) -> None:
    methods, beside = inspector_for("onnx").interface(products(tmp_path / "a.onnx"))
    assert [(type(m), m.name, [s.name for s in m.inputs]) for m in methods] == [
        (Method, "forward", ["x"])
    ]
    assert beside == ()
    with pytest.raises(BundleError, match="a plain qnn file does not tell its inputs"):
        Inspector.interface(inspector_for("qnn"), tmp_path / "a.onnx")


@pytest.mark.parametrize("name", format_names())
def test_what_is_not_timed_here_always_says_why(name: str) -> None:
    inspector = inspector_for(name)
    if not inspector.times_here:
        assert inspector.untimed()
    else:
        assert inspector.untimed() == inspector.runner().unavailable()


def test_what_stands_in_for_a_runtime_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = inspector_for("onnx")
    if inspector.untimed() is not None:
        pytest.skip("ONNX Runtime is not installed")
    for attribute, value in (("stands_in", True), ("times_here", False)):
        with monkeypatch.context() as changed:
            changed.setattr(type(inspector), attribute, value)
            assert inspector.untimed() == "edgeopt times no onnx file itself"
