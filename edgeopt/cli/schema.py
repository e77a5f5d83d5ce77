"""`edgeopt schema`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgeopt.cli.options import AsJson
from edgeopt.errors import ConfigError, nearest

# Name -> (module, type, where such data is found).
SCHEMAS = {
    "build": (
        "edgeopt.results.reports",
        "BuildReport",
        "`build --json`, `report --json`, report.json",
    ),
    "verify": ("edgeopt.results.reports", "VerifyResult", "`verify --json`"),
    "bench": ("edgeopt.results.reports", "BenchResult", "`bench --json`"),
    "adapter-inspect": (
        "edgeopt.api.adapter",
        "AdapterDescription",
        "`adapter inspect --json`",
    ),
    "adapter-fuse": ("edgeopt.api.adapter", "FusedModel", "`adapter fuse --json`, fused.json"),
    "gate": ("edgeopt.limits.results", "GateResult", "`gate --json`"),
    "assets": ("edgeopt.app_assets.manifest", "AssetsResult", "`assets --json`"),
    "app-manifest": ("edgeopt.app_assets.manifest", "AppManifest", "manifest.json of app assets"),
    "golden": (
        "edgeopt.app_assets.vectors",
        "GoldenIndex",
        "golden/MODEL/index.json of app assets",
    ),
    "doctor": ("edgeopt.api.doctor", "DoctorResult", "`doctor --json`"),
    "manifest": ("edgeopt.artifacts.manifest", "Manifest", "manifest.json of a bundle"),
    "measured": ("edgeopt.results.measurements", "Measured", "what the on-device script writes"),
    "profile": ("edgeopt.devices.profile", "DeviceProfile", "a device profile (TOML)"),
    "recipe": ("edgeopt.recipes.recipe", "Recipe", "a recipe (TOML)"),
    "rules": ("edgeopt.devices.rules", "RuleSet", "a rule set (TOML)"),
}


def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which one; else list them.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Print the JSON Schema of a file or of `--json`."""
    from edgeopt.cli.text import Table, show_json, show_table

    if name is not None:
        show_json(json_schema(name))
    elif as_json:
        show_json([{"name": key, "found_in": value[2]} for key, value in SCHEMAS.items()])
    else:
        rows = tuple((key, value[2]) for key, value in SCHEMAS.items())
        show_table(Table("", ("schema", "of"), rows))
    return 0


def json_schema(name: str) -> dict[str, Any]:
    """Return one JSON Schema.

    Raises:
        ConfigError: If there is none of that name.
    """
    import importlib

    import pydantic

    if name not in SCHEMAS:
        raise ConfigError(f"schema {name!r} is not known{nearest(name, SCHEMAS)}")
    module, type_, _ = SCHEMAS[name]
    adapter = pydantic.TypeAdapter(getattr(importlib.import_module(module), type_))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **adapter.json_schema()}
