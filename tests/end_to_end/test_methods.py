"""A model with several methods: one set of weights, one `.pte` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt.api.build import BuildOptions, BuildOutcome, run_build
from edgeopt.api.formats import inspector_for
from edgeopt.devices.profile import load_profile
from edgeopt.errors import ConfigError, ExportError, ModelError
from edgeopt.ir.edges import sites
from edgeopt.models.from_module import from_module
from edgeopt.models.load import load_model
from edgeopt.passes.capture.capture import Capture
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState

FACTORY = Path(__file__).resolve().parent.parent / "factories" / "two_methods.py"
SPEC = f"{FACTORY}:load"


def built(out: Path, **options: Any) -> BuildOutcome:
    given: dict[str, Any] = {"profile": "phone-cpu", "recipe": "float", "latency": False, **options}
    return run_build(BuildOptions(model=SPEC, out=out, **given))


def test_methods_share_their_weights_and_no_edge_id() -> None:
    loaded = load_model(SPEC)
    profile = load_profile("host")
    context = PassContext(
        profile=profile,
        target=profile.targets[0],
        example_args=loaded.example_args,
        methods=loaded.methods,
    )
    state = Pipeline((Capture(),)).run(ModelState(module=loaded.module), context)
    forward, embed = (state.carrier_programs[name] for name in ("forward", "embed"))
    assert set(embed.state_dict) < set(forward.state_dict)
    for fqn, value in embed.state_dict.items():
        assert value.data_ptr() == forward.state_dict[fqn].data_ptr()
    ids = [{site.id for _, site in sites(p.graph)} for p in (forward, embed)]
    assert not ids[0] & ids[1]
    addresses = [{site.address for _, site in sites(p.graph)} for p in (forward, embed)]
    assert "body.0:linear#0" in addresses[0] & addresses[1]
    assert "forward" not in vars(loaded.module)  # capture put nothing into the instance
    assert state.history[-1].changes == {
        "the model": "captured 4 operators of forward; captured 5 operators of embed"
    }


def test_one_file_holds_both_and_each_computes_its_program(tmp_path: Path) -> None:
    bundle = built(tmp_path / "out").bundle
    artifact = bundle.manifest.artifact("executorch")
    assert [method.name for method in artifact.methods] == ["forward", "embed"]
    assert [spec.name for spec in artifact.methods[1].outputs] == ["features", "norm"]
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
    module = load_model(SPEC).module
    session = inspector_for("executorch").load(bundle.path, artifact)
    try:
        found = session.run("embed", {"x": x.numpy()})
        logits = session.run("forward", {"x": x[:1].numpy()})["output"]
    finally:
        session.close()
    with torch.no_grad():
        wanted = module.embed(x)
        np.testing.assert_allclose(logits, module(x[:1]).numpy(), atol=1e-5)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-5)


def test_quantizing_several_methods_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"methods forward, embed.*use --recipe float"):
        built(tmp_path / "out", recipe="int8")
    assert not list(tmp_path.iterdir())


def test_a_format_with_one_method_refuses_two(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="2 methods: an ONNX file holds one"):
        built(tmp_path / "out", profile="host")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["forward", "encode", "head_size"])
def test_a_method_that_the_module_lacks_is_named(name: str) -> None:
    module = torch.nn.Linear(4, 2)
    with pytest.raises(ModelError, match=f"has no further method '{name}'"):
        from_module(module, (torch.ones(2, 4),), methods={name: (torch.ones(2, 4),)})
