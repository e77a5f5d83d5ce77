"""The bundled models through whole builds, judged as a user would judge them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgeopt.api.build import BuildOptions, BuildOutcome, options_from_lock, run_build
from edgeopt.api.verify import run_verify
from edgeopt.artifacts.bundle import UNLISTED
from edgeopt.files import sha256
from edgeopt.results.verdicts import Verdict
from edgeopt.runtime_tests.tensorrt.rtx_compiler import unavailable

SMALL = f"{Path(__file__).resolve().parents[1] / 'factories' / 'small_cnn.py'}:load"
"""Where the options of a build are tested, and any model will do."""


def _build(model: str, profile: str, out: Path, **options: object) -> BuildOutcome:
    return run_build(
        BuildOptions(model=model, profile=profile, out=out, latency=False, **options)  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return _build("zoo:vit", "host", tmp_path_factory.mktemp("vit") / "bundle")


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return _build("zoo:mobilenet", "host", tmp_path_factory.mktemp("mobilenet") / "bundle")


@pytest.fixture(params=["vit", "mobilenet"])
def host(request: pytest.FixtureRequest) -> BuildOutcome:
    outcome: BuildOutcome = request.getfixturevalue(request.param)
    return outcome


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return _build(
        SMALL, "orin", tmp_path_factory.mktemp("orin") / "bundle", drift=False,
        limits=("latency_p50_ms<=1",),
    )  # fmt: skip


def test_static_int8_loses_at_most_one_point_and_agrees(host: BuildOutcome) -> None:
    (accuracy,) = host.report.accuracy
    assert accuracy.samples == 600
    assert accuracy.warning == ""
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.0
    assert accuracy.agreement is not None
    assert accuracy.agreement >= 98.5


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    return _build("zoo:bytelm", "host", tmp_path_factory.mktemp("bytelm") / "bundle", drift=False)


def test_the_language_model_keeps_its_perplexity(language: BuildOutcome) -> None:
    (accuracy,) = language.report.accuracy
    assert accuracy.metric == "perplexity"
    assert (accuracy.samples, accuracy.warning) == (128, "")
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.5
    verdicts = {limit.name: limit.verdict for limit in language.report.limits}
    assert verdicts["drop"] is verdicts["int8_macs"] is Verdict.PASS


def test_a_tied_head_is_integer_and_shares_its_table_with_the_embedding(
    language: BuildOutcome,
) -> None:
    report = language.report
    (head,) = [o for o in report.operators if o.artifact == "onnxruntime" and o.macs and
               o.site == "head:linear#0"]  # fmt: skip
    assert head.precision == "int8"
    sites = {c.site: c.holds for c in report.contracts if c.artifact == "onnxruntime"}
    assert sites["embed.weight, head.weight"]
    assert sites["embed:embedding#0.in0"]
    assert sites["head:linear#0.in1"]
    assert report.proof[0].exact
    assert "DequantizeLinear" not in report.proof[0].float_islands
    size = next(a.size_bytes for a in report.artifacts if a.name == "onnxruntime")
    assert size < 1.2 * 1_623_744  # every weight one byte, one copy of the table


def test_integer_kernels_run_and_equal_the_executor(host: BuildOutcome) -> None:
    (proof,) = host.report.proof
    assert proof.exact
    assert proof.equal == proof.elements > 100_000
    assert proof.unproven == {}
    weighted = [o for o in host.report.operators if o.artifact == "onnxruntime" and o.macs]
    products = [o for o in weighted if "attention" not in o.site]
    assert products
    assert {o.precision for o in products} == {"int8"}


def test_what_stays_float_is_exactly_what_has_no_integer_kernel(host: BuildOutcome) -> None:
    (proof,) = host.report.proof
    if host.report.model == "zoo:mobilenet":
        assert proof.float_islands == {}
        assert host.report.artifacts[0].int8_macs == 1.0
    else:
        kinds = set(proof.float_islands)
        assert {"LayerNormalization", "Gelu", "Softmax"} <= kinds
        assert kinds.isdisjoint({"Gemm", "Conv", "FusedConv"})


def test_the_bundle_verifies(host: BuildOutcome) -> None:
    result = run_verify(host.bundle_path)
    assert result.verdict is Verdict.PASS
    assert all(c.holds for c in result.checks)
    assert all(c.holds for c in result.contracts)
    assert {c.kind for c in result.contracts} == {"quantized"}


def test_a_damaged_weight_is_found(orin: BuildOutcome, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(orin.bundle_path, copy)
    model = copy / "tensorrt.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    result = run_verify(copy)
    assert result.verdict is Verdict.FAIL
    assert [c.name for c in result.checks if not c.holds] == ["file tensorrt.onnx"]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): sha256(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in UNLISTED - {"manifest.json", "edgeopt.lock"}
    }


def test_two_builds_of_one_lock_give_the_same_bytes(orin: BuildOutcome, tmp_path: Path) -> None:
    options = options_from_lock(orin.bundle_path / "edgeopt.lock", tmp_path / "second")
    import dataclasses

    second = run_build(dataclasses.replace(options, latency=False, drift=False))
    assert _hashes(orin.bundle_path) == _hashes(second.bundle_path)
    assert len(_hashes(orin.bundle_path)) > 10


@pytest.mark.parametrize("model", ["vit", "mobilenet"])
def test_the_tensorrt_file_compiles_with_int8_macs(model: str, tmp_path: Path) -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    outcome = _build(f"zoo:{model}", "a100", tmp_path / "bundle", drift=False)
    report = outcome.report
    compiled = report.compile["tensorrt"]
    assert compiled["int8_macs"] >= 0.95
    others = [
        o for o in report.operators
        if o.artifact == "tensorrt" and o.macs and o.precision != "int8"
    ]  # fmt: skip
    assert all(o.reason for o in others)
    share = sum(o.macs for o in others) / compiled["macs"]
    assert share == pytest.approx(1 - compiled["int8_macs"], abs=1e-9)
    verdicts = {limit.name: limit.verdict for limit in report.limits}
    assert verdicts == {"drop": Verdict.PASS, "int8_macs": Verdict.PASS}


def test_orin_keeps_2_4_through_the_exported_file(tmp_path: Path) -> None:
    report = _build("zoo:vit", "orin", tmp_path / "bundle", drift=False).report
    sparse = [c for c in report.contracts if c.artifact == "tensorrt" and c.kind == "nm-sparse"]
    assert len(sparse) == 16  # four linears in each of four blocks
    assert all(c.holds for c in sparse)
    prune = next(p for p in report.passes if p.name == "prune_nm")
    assert set(prune.skipped) == {"patch_embed", "head"}
    accuracy = report.accuracy[0]
    assert accuracy.artifact == "tensorrt"
    assert accuracy.drop is not None
    assert accuracy.drop <= 1.5


def test_a_latency_limit_for_another_device_is_not_measured(orin: BuildOutcome) -> None:
    (limit,) = [x for x in orin.report.limits if x.name == "latency_p50_ms"]
    assert limit.verdict is Verdict.NOT_MEASURED
    assert "build_engine.py" in limit.reason
    assert orin.report.verdict is Verdict.NOT_MEASURED


def test_a_stand_in_alone_gives_no_verdict(tmp_path: Path) -> None:
    outcome = _build(SMALL, "orin", tmp_path / "b", drift=False, formats=("onnx",))
    assert {x.verdict for x in outcome.report.limits} == {Verdict.NOT_MEASURED}


def test_keeping_the_worst_layer_float_raises_the_snr(tmp_path: Path) -> None:
    plain = _build(SMALL, "host", tmp_path / "a")
    worst = plain.report.drift[0].site
    better = _build(SMALL, "host", tmp_path / "b", keep_float=(worst,), drift=False)
    before, after = plain.report.accuracy[0].snr_db, better.report.accuracy[0].snr_db
    assert before is not None
    assert after is not None
    assert after > before
    skipped = next(p for p in better.report.passes if p.name == "plan").skipped
    assert list(skipped) == [worst]
    assert "recipe or command line" in skipped[worst]


def test_a_dynamic_batch_runs_at_any_size(tmp_path: Path) -> None:
    outcome = _build(SMALL, "host", tmp_path / "b", drift=False, dynamic=("batch",))
    method = outcome.bundle.manifest.artifacts[0].methods[0]
    assert isinstance(method.inputs[0].shape[0], str)
    assert outcome.report.accuracy[0].agreement == 100.0


def test_a_fixed_batch_and_a_float16_file(tmp_path: Path) -> None:
    outcome = _build(
        "zoo:mobilenet", "host", tmp_path / "b", drift=False, batch=4, eval_samples=50,
        formats=("onnx", "onnx:float16"),
    )  # fmt: skip
    artifacts = {a.name: a for a in outcome.bundle.manifest.artifacts}
    assert artifacts["onnxruntime"].methods[0].inputs[0].shape == (4, 1, 32, 32)
    assert artifacts["onnx-float16"].precision == "float16"
    sizes = {name: a.model_file.size_bytes for name, a in artifacts.items()}
    assert sizes["onnx-float16"] < 0.6 * sizes["onnxruntime-float32"]


def test_the_users_module_and_an_older_bundle_survive_a_failed_build(tmp_path: Path) -> None:
    from edgeopt.errors import EdgeOptError
    from edgeopt.ir.digests import digest
    from edgeopt.models.load import load_model

    loaded = load_model(SMALL)
    before = digest(loaded.module)
    out = tmp_path / "bundle"
    options = BuildOptions(model=loaded, profile="host", out=out, latency=False, drift=False)
    run_build(options)
    kept = _hashes(out)
    import dataclasses

    with pytest.raises(EdgeOptError):
        run_build(dataclasses.replace(options, keep_float=("no.such.layer",)))
    assert _hashes(out) == kept
    assert digest(loaded.module) == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_hash_of_the_weights_is_in_the_lock(orin: BuildOutcome) -> None:
    from edgeopt.api.building.lock import read_lock

    lock = read_lock(orin.bundle_path / "edgeopt.lock")
    assert set(lock.hashes) == {"weights", "structure", "recipe", "profile", "calibration"}
    assert all(len(h) == len(hashlib.sha256().hexdigest()) for h in lock.hashes.values())


def test_a_lock_of_other_weights_is_refused_before_anything_is_built(
    orin: BuildOutcome, tmp_path: Path
) -> None:
    import dataclasses

    from edgeopt.api.building.lock import read_lock
    from edgeopt.errors import CheckFailed
    from edgeopt.files import to_json

    lock = read_lock(orin.bundle_path / "edgeopt.lock")
    other = dataclasses.replace(lock, hashes={**lock.hashes, "weights": "0" * 64})
    path = tmp_path / "edgeopt.lock"
    path.write_text(to_json(other))
    with pytest.raises(CheckFailed, match="weights changed"):
        run_build(options_from_lock(path, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
