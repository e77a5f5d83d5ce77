"""A family of adapters that a plug-in adds is read, checked and fused as edgeopt's own are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.adapters.fusing import fuse_adapters
from edgeopt.adapters.peft.folder import read_adapter
from edgeopt.api.adapter import run_inspect
from edgeopt.cli import main
from edgeopt.errors import AdapterError, PluginError
from tests.installing import install
from tests.small_models import normal, seeded

P = "base_model.model."
SOURCE = """
    import dataclasses

    from edgeopt.adapters.deltas.delta import Delta, check_shape, equal
    from edgeopt.adapters.family import Family

    @dataclasses.dataclass(frozen=True, eq=False)
    class Shift(Delta):
        by: object
        family = "shift"

        @property
        def parameters(self):
            return self.by.numel()

        @property
        def words(self):
            return "a shift"

        def alone(self, base, rows, *, transposed):
            return base + self.by[rows].double()

        def _same(self, other):
            return equal(self.by, other.by)

    class ShiftFamily(Family):
        name = "SHIFT"
        parts = ("shift.by", "shift.more")
        options = ("strength",)

        def deltas(self, tensors, options, layer, where):
            by = tensors["shift.by"]
            check_shape(where, "the shift", by, tuple(layer.weight.shape), layer.weight)
            return {"weight": Shift(by * options.get("strength", 1))}

    class Half(Family):
        name = "HALF"
"""


@pytest.fixture
def shift(site: Path) -> Path:
    points = {"SHIFT": "acme:ShiftFamily", "HALF": "acme:Half"}
    install(site, "acme", {"edgeopt.adapters": points}, {"acme.py": SOURCE})
    return site


class Two(nn.Module):
    """Two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


BY = normal(3, 4)


def written(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    data = {"peft_type": "SHIFT", "target_modules": ["one"], "inference_mode": True, **config}
    (folder / "adapter_config.json").write_text(json.dumps(data))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.usefixtures("shift")
def test_an_adapter_of_the_family_is_fused_beside_another(tmp_path: Path) -> None:
    first = written(tmp_path / "a", {f"{P}one.shift.by": BY}, strength=3)
    whole = {f"{P}two.weight": torch.ones(4, 3), f"{P}two.bias": torch.zeros(4)}
    second = written(tmp_path / "b", {f"{P}one.shift.by": 2 * BY, **whole}, modules_to_save=["two"])
    module = seeded(Two)
    before = module.one.weight.detach().clone()
    fusion = fuse_adapters(module, [(read_adapter(first), 1.0), (read_adapter(second), 0.5)])
    assert fusion.changes["one"].startswith("a: a shift; b, weight 0.5: a shift; |change|")
    torch.testing.assert_close(module.one.weight, before + 3 * BY + BY)
    assert set(fusion.changes) == {"one", "two.weight", "two.bias"}


@pytest.mark.usefixtures("shift")
def test_a_folder_of_the_family_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "a", {f"{P}one.shift.by": BY}, base_model_name_or_path="base")
    found = run_inspect(folder)
    assert (found.method, found.parameters, found.base) == ("SHIFT", 12, "base")
    (module,) = found.modules
    assert (module.module, module.kind, module.rank, module.norm) == ("one", "", None, None)
    assert main(["adapter", "inspect", str(folder)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a SHIFT 12 parameters in 1 modules" in text
    assert "one - - - - - -" in text


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            {"one.shift.by": BY},
            {"width": 3},
            "width is set, which SHIFT does not read; it may chang",
        ),
        ({"one.shift.by": BY}, {"use_dora": True}, "use_dora is set, which SHIFT does not read"),
        (
            {"one.shift.by": BY.T.contiguous()},
            {},
            "one: the shift is [4, 3], the model's weight [3",
        ),
        ({"gone.shift.by": BY}, {}, "module 'gone' is not in the model"),
        ({"two.shift.by": BY}, {}, "the configuration targets one, and the file has no factors of"),
        ({"one.lora_A.weight": BY}, {}, "module 'one.lora_A' is not in the model"),
        (
            {"one.shift.by": BY},
            {"peft_type": "SHFT"},
            "only LORA, HALF, SHIFT adapters can be fused",
        ),
    ],
)
@pytest.mark.usefixtures("shift")
def test_what_does_not_fit_is_refused(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "a", {P + name: t for name, t in tensors.items()}, **config)
    with pytest.raises(AdapterError) as caught:
        fuse_adapters(seeded(Two), [(read_adapter(folder), 1.0)])
    assert message in str(caught.value)


@pytest.mark.usefixtures("shift")
def test_a_broken_family_names_itself(tmp_path: Path) -> None:
    half = written(tmp_path / "half", {f"{P}one.shift.by": BY}, peft_type="HALF")
    told = r"^adapter family 'HALF' of acme 1\.0 \(acme:Half\): lacks deltas, parts$"
    with pytest.raises(PluginError, match=told):
        read_adapter(half)
    lacking = written(tmp_path / "lacking", {f"{P}one.shift.more": BY})
    told = (
        r"^adapter family 'SHIFT' of acme 1\.0 \(acme:ShiftFamily\): .*one: KeyError: 'shift.by'$"
    )
    with pytest.raises(PluginError, match=told):
        fuse_adapters(seeded(Two), [(read_adapter(lacking), 1.0)])


def test_without_the_plugin_the_family_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", {f"{P}one.shift.by": BY})
    with pytest.raises(
        AdapterError, match=r"peft_type is 'SHIFT'; only LORA adapters can be fused"
    ):
        read_adapter(folder)
