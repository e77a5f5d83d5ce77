"""What is known of sources and licences, and what is said to be unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeopt.app_assets.notices import plain_model, text
from edgeopt.artifacts.manifest import Manifest
from edgeopt.models.zoo.catalogue import CATALOGUE

ONNX = [("ONNX Runtime", "MIT")]
MANIFEST = Manifest("0.1.0", "zoo:vit", "host", "int8", "k", {}, 0, {}, (), ())
NOTICE = Path(__file__).resolve().parents[2] / "NOTICE"
LICENCES = {
    "bytelm": "Python Software Foundation License Version 2",
    "mobilenet": "not established here",
    "vit": "not established here",
}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("zoo:vit", "zoo:vit"),
        ("/home/me/nets/net.py:make", "net.py:make"),
        ("net.py:make", "net.py:make"),
        ("../nets/net.py:make", "net.py:make"),
        ("timm:resnet18?pad=same@/data/me/w.safetensors", "timm:resnet18?pad=same@w.safetensors"),
        ("hf:/data/me/llama/", "hf:llama"),
        ("/data/me/model.pt2", "model.pt2"),
        ("C:\\Users\\me\\net.py:make", "C:net.py:make"),
        ("Net", "Net"),
    ],
)
def test_a_model_is_named_without_the_folders_of_whoever_compiled_it(
    given: str, shown: str
) -> None:
    assert plain_model(given) == shown


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_zoos_data_are_named_with_what_is_known_of_their_licence(name: str) -> None:
    found = text(dataclasses.replace(MANIFEST, model=f"zoo:{name}"), ONNX)
    assert CATALOGUE[name].data in found
    assert f"Licence of the data: {LICENCES[name]}" in found
    _, _, of_the_model = NOTICE.read_text(encoding="utf-8").partition(f"{name}.safetensors")
    assert of_the_model.partition("Licence of the data:")[2].strip().startswith(LICENCES[name])
    assert "unknown" not in found
    assert "- ONNX Runtime: MIT" in found


def test_a_users_model_is_of_unknown_licence() -> None:
    found = text(dataclasses.replace(MANIFEST, model="/home/me/net.py:make"), ONNX)
    assert "Model net.py:make" in found
    assert "Licence: unknown." in found
    assert "/home" not in found


def test_a_fused_adapter_is_named() -> None:
    found = text(dataclasses.replace(MANIFEST, adapters=("/home/me/lora",)), ONNX)
    assert "Adapter lora, fused into the model\nLicence: unknown" in found


def test_a_runtime_of_two_files_is_named_once() -> None:
    found = text(MANIFEST, [*ONNX, ("XNNPACK", "BSD-3-Clause"), *ONNX])
    assert found.endswith("- ONNX Runtime: MIT\n- XNNPACK: BSD-3-Clause\n")
