"""The kinds of things that have names, each with its group of entry points."""

from __future__ import annotations

import dataclasses

from edgeopt.registry.builtin import Classes, Files, Named, Table


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        group: The group of entry points; what people write into their `pyproject.toml`.
        noun: One of them, in words.
        builtin: Where those that ship with edgeopt are found.
    """

    group: str
    noun: str
    builtin: Classes | Files | Table | Named

    @property
    def plural(self) -> str:
        """All of them in one word: `passes`; also the command that lists them, if any does."""
        return self.group.rpartition(".")[2]


PASS_CLASSES = Classes("edgeopt.passes", "*/*.py", "name")

PASSES = Kind("edgeopt.passes", "pass", PASS_CLASSES)
RULES = Kind("edgeopt.rules", "rule set", Files("edgeopt.device_profiles", "rules/*.toml"))
PROFILES = Kind("edgeopt.profiles", "profile", Files("edgeopt.device_profiles", "*.toml"))
# a colon, as in 2:4, is no legal file name everywhere
RECIPES = Kind("edgeopt.recipes", "recipe", Files("edgeopt.recipes", "*.toml", (":", "_")))
EXPORTERS = Kind(
    "edgeopt.exporters", "format", Classes("edgeopt.exporters", "*/exporter.py", "format")
)
INSPECTORS = Kind(
    "edgeopt.inspectors", "inspector", Classes("edgeopt.runtime_tests", "*/inspector.py", "format")
)
RUNNERS = Kind(
    "edgeopt.runners", "runner", Classes("edgeopt.runtime_tests", "*/runner.py", "runtime")
)
CONTRACTS = Kind("edgeopt.contracts", "contract kind", Classes("edgeopt.contracts", "*.py", "kind"))
QUANTITIES = Kind(
    "edgeopt.quantities", "limit", Table("edgeopt.limits", "quantities", "Quantity", "QUANTITIES")
)
ADAPTERS = Kind(
    "edgeopt.adapters", "adapter family", Classes("edgeopt.adapters", "peft/*.py", "name")
)
MODELS = Kind(
    "edgeopt.models",
    "model source",
    Named(
        (
            ("hf", "edgeopt.models.from_transformers:load_transformers"),
            ("timm", "edgeopt.models.from_timm:load_timm"),
            ("zoo", "edgeopt.models.zoo:load_spec"),
        )
    ),
)

ALL = (
    PASSES,
    RULES,
    PROFILES,
    RECIPES,
    EXPORTERS,
    INSPECTORS,
    RUNNERS,
    CONTRACTS,
    QUANTITIES,
    ADAPTERS,
    MODELS,
)
