"""`edgeopt passes|profiles|models|recipes`: what there is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from edgeopt.cli.docstrings import first_paragraph
from edgeopt.cli.options import AsJson, NameArgument

if TYPE_CHECKING:
    from edgeopt.devices.profile import DeviceProfile, Target
    from edgeopt.pipeline.compiler_pass import Pass
    from edgeopt.recipes.recipe import Recipe
    from edgeopt.registry.kinds import Kind

T = TypeVar("T")


def passes(
    name: NameArgument = None,
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the catalogue as Markdown (docs/passes.md).")
    ] = False,
) -> int:
    """List the passes; with NAME, one in full."""
    from edgeopt.cli.text import Table, show_json, show_table
    from edgeopt.registry.kinds import PASSES

    if markdown:
        from edgeopt.passes import by_name, shipped

        print(passes_markdown(shipped() if name is None else (by_name(name),)), end="")
        return 0
    if name is not None:
        from edgeopt.passes import by_name

        found = _describe_pass(by_name(name))
        if as_json:
            show_json([found])
        else:
            _show_pass(found)
        return 0
    rows = [*_passes_by_source(), *_plugin_rows(PASSES)]
    if as_json:
        show_json(rows)
        return 0
    heads = ("pass", "family", "stage", "effect", "what it does")
    keys = ("name", "family", "stage", "effect", "summary")
    show_table(Table("", heads, tuple(tuple(row.get(k, "") for k in keys) for row in rows)))
    return 0


def _passes_by_source() -> list[dict[str, Any]]:
    """Describe the passes that ship with edgeopt, without importing torch or any of them."""
    from edgeopt.registry.kinds import PASS_CLASSES

    return [
        {
            "name": found.name,
            "family": _family(found.module),
            "stage": found.values["stage"].rpartition(".")[2],
            "effect": found.values["effect"].rpartition(".")[2].lower(),
            "summary": first_paragraph(found.doc),
            "doc": found.doc,
            "package": "edgeopt",
        }
        for found in PASS_CLASSES.read()
    ]


def _plugin_rows(kind: Kind) -> list[dict[str, Any]]:
    """Describe what plug-ins add to a kind, without importing them."""
    from edgeopt.registry.plugins import entries

    return [
        {
            "name": entry.name,
            "summary": f"of {entry.plugin}; `edgeopt {kind.plural} {entry.name}` tells more",
            "package": str(entry.plugin),
        }
        for entry in entries(kind)
    ]


def _read_all(
    kind: Kind, names: Sequence[str], load: Callable[[str], T]
) -> tuple[list[T], list[dict[str, Any]]]:
    """Load files by name; of several, also describe what plug-ins add or stand in the way of."""
    from edgeopt.errors import PluginError

    if len(names) == 1:
        return [load(names[0])], []
    found, told = [], []
    for name in names:
        try:
            found.append(load(name))
        except PluginError as failure:
            told.append({"name": name, "summary": str(failure), "package": "edgeopt"})
    return found, [*told, *_plugin_rows(kind)]


def _describe_pass(type_: type[Pass[Any]]) -> dict[str, Any]:
    from edgeopt.cli.docstrings import options_of, summary_of
    from edgeopt.registry.kinds import PASSES
    from edgeopt.registry.lookup import find

    return {
        "name": type_.name,
        "family": _family(type_.__module__),
        "stage": type_.stage.name,
        "effect": type_.effect.value,
        "summary": summary_of(type_),
        "doc": inspect.getdoc(type_) or "",
        "needs_calibration": type_.needs_calibration,
        "must_follow": sorted(type_.must_follow),
        "options": list(options_of(type_.config_type)),
        "package": str(find(PASSES, type_.name).plugin or "edgeopt"),
    }


def _family(module: str) -> str:
    """Return the folder that a pass's module is in; a plug-in's may be in none."""
    return module.split(".")[-2:][0]


def passes_markdown(types: Sequence[type[Pass[Any]]]) -> str:
    """Return the catalogue of passes from their docstrings, by family in pipeline order."""
    found = [_describe_pass(type_) for type_ in types]
    lines = [
        "# The passes",
        "",
        "Written by `edgeopt passes --markdown`; do not edit.",
        "",
        "| pass | family | stage | effect | what it does |",
        "|---|---|---|---|---|",
    ]
    for d in found:
        anchor = f"[`{d['name']}`](#{d['name']})"
        row = (anchor, d["family"], d["stage"], d["effect"], _cell(d["summary"]))
        lines.append(f"| {' | '.join(row)} |")
    for d in found:
        lines += ["", f"## {d['name']}", "", d["doc"], ""]
        facts = [f"Family `{d['family']}`, stage {d['stage']}, {d['effect']}."]
        if d["must_follow"]:
            facts.append(f"Must come after {', '.join(d['must_follow'])}.")
        if d["needs_calibration"]:
            facts.append("Needs calibration data.")
        lines.append(" ".join(facts))
        if d["options"]:
            lines += ["", "| option | type | default | meaning |", "|---|---|---|---|"]
        for o in d["options"]:
            default = "(required)" if o.required else f"`{_toml(o.default)}`"
            lines.append(f"| `{o.name}` | `{_cell(o.type)}` | {default} | {_cell(o.doc)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _show_pass(found: dict[str, Any]) -> None:
    from edgeopt.cli.text import Table, show_line, show_table

    show_line(f"{found['name']}  ({found['family']}, {found['stage']}, {found['effect']})", "bold")
    show_line()
    show_line(found["doc"])
    show_line()
    if found["must_follow"]:
        show_line(f"Must come after: {', '.join(found['must_follow'])}.")
    if found["needs_calibration"]:
        show_line("Needs calibration data.")
    rows = tuple(
        (o.name, o.type, "(required)" if o.required else _toml(o.default), o.doc)
        for o in found["options"]
    )
    if not rows:
        show_line("No options.")
    show_table(Table("Options", ("option", "type", "default", "meaning"), rows))


def profiles(name: NameArgument = None, as_json: AsJson = False) -> int:
    """List the devices; with NAME, one in full."""
    from edgeopt.cli.text import Table, show_json, show_table, show_warning
    from edgeopt.devices.profile import load_profile, profile_names
    from edgeopt.limits.limit import renamed
    from edgeopt.limits.quantities import old_name_notes
    from edgeopt.registry.kinds import PROFILES

    read, plugins = _read_all(PROFILES, [name] if name else profile_names(), load_profile)
    for note in old_name_notes(limit.name for profile in read for limit in profile.limits):
        show_warning(note)
    found = [dataclasses.replace(p, limits=tuple(map(renamed, p.limits))) for p in read]
    if as_json:
        show_json([*found, *plugins])
        return 0
    if name is not None:
        _show_profile(found[0])
        return 0
    rows = (
        *(
            (p.name, p.title, ", ".join(t.format for t in p.targets), p.default_recipe, _limits(p))
            for p in found
        ),
        *((row["name"], row["summary"], "", "", "") for row in plugins),
    )
    show_table(Table("", ("profile", "device", "formats", "recipe", "limits"), rows))
    return 0


def _limits(profile: DeviceProfile) -> str:
    return ", ".join(limit.text for limit in profile.limits) or "none"


def _show_profile(profile: DeviceProfile) -> None:
    from edgeopt.cli.text import Table, show_line, show_table

    show_line(f"{profile.name}  {profile.title}", "bold")
    show_line(
        f"Default recipe: {profile.default_recipe}. Measured here on: {profile.runs_here}."
        if profile.runs_here
        else f"Default recipe: {profile.default_recipe}."
    )
    show_line()
    targets = (
        *(_target_row(t, "target") for t in profile.targets),
        *(_target_row(t, "stand-in") for t in profile.stand_ins),
    )
    heads = ("name", "as", "format", "runtime", "backend", "rules", "float type", "oldest runtime")
    show_table(Table("Targets", heads, targets))
    limits = tuple((x.text, x.method, x.quantity.unit, x.source) for x in profile.limits)
    show_table(Table("Limits", ("limit", "method", "unit", "why"), limits))
    if profile.sparsity is not None:
        s = profile.sparsity
        row = (
            f"{s.n}:{s.m}",
            f"{s.in_multiple} x {s.out_multiple}",
            f"{s.min_in} x {s.min_out}",
            s.source,
        )
        show_table(Table("Sparsity", ("pattern", "multiples", "pays from", "source"), (row,)))
    low = profile.low_rank
    thin = (str(low.multiple), str(low.min_width), f"{100 * low.saving:g} %", low.source)
    columns = ("ranks are multiples of", "pays from width", "saves at least", "source")
    show_table(Table("Low rank", columns, (thin,)))
    facts = tuple((f.name, f"{f.value:g}", f.unit, f.source) for f in profile.facts)
    show_table(Table("Facts", ("fact", ">value", "unit", "source"), facts))
    unknown = tuple((words,) for words in profile.unknown)
    show_table(Table("Not known", ("what",), unknown))


def _target_row(target: Target, role: str) -> tuple[str, ...]:
    from edgeopt.devices.rules import load_rules

    return (
        target.name,
        role,
        target.format,
        target.runtime,
        target.backend,
        load_rules(target.rules).name,
        target.float_type,
        target.minimum_runtime or "-",
    )


def recipes(name: NameArgument = None, as_json: AsJson = False) -> int:
    """List the recipes; with NAME, one in full."""
    from edgeopt.cli.text import Table, show_json, show_table
    from edgeopt.recipes.recipe import load_recipe, recipe_names
    from edgeopt.registry.kinds import RECIPES

    found, plugins = _read_all(RECIPES, [name] if name else recipe_names(), load_recipe)
    if as_json:
        show_json([*found, *plugins])
        return 0
    if name is not None:
        _show_recipe(found[0])
        return 0
    rows = (
        *((r.name, " > ".join(s.name for s in r.passes), r.summary) for r in found),
        *((row["name"], "", row["summary"]) for row in plugins),
    )
    show_table(Table("", ("recipe", "passes", "what it does"), rows))
    return 0


def _show_recipe(recipe: Recipe) -> None:
    from edgeopt.cli.text import Table, show_line, show_table

    show_line(f"{recipe.name}  {recipe.summary}", "bold")
    show_line()
    rows = tuple(
        (str(i + 1), s.name, ", ".join(f"{k}={_toml(v)}" for k, v in s.options.items()) or "-")
        for i, s in enumerate(recipe.passes)
    )
    show_table(Table("Passes", (">#", "pass", "options (others at their default)"), rows))
    if recipe.keep_float:
        show_line(f"Stays float: {', '.join(recipe.keep_float)}")


def models(name: NameArgument = None, as_json: AsJson = False) -> int:
    """List the models that ship with edgeopt, and the sources that plug-ins add."""
    from edgeopt.cli.text import Table, show_json, show_line, show_table
    from edgeopt.errors import ConfigError, nearest
    from edgeopt.models.forms import FORMS
    from edgeopt.models.zoo.catalogue import CATALOGUE
    from edgeopt.registry.kinds import MODELS

    plugins = _plugin_rows(MODELS)
    if name is not None and name.partition(":")[0] in [row["name"] for row in plugins]:
        return _show_source(name.partition(":")[0], as_json=as_json)
    if name is not None and (name := name.removeprefix("zoo:")) not in CATALOGUE:
        raise ConfigError(f"model {name!r} is not known{nearest(name, CATALOGUE)}")
    found = list(CATALOGUE.values()) if name is None else [CATALOGUE[name]]
    if as_json:
        show_json([*found, *(plugins if name is None else [])])
    elif name is not None:
        for field in dataclasses.fields(found[0]):
            show_line(f"{field.name:<12} {getattr(found[0], field.name)}")
    else:
        rows = tuple((f"zoo:{m.name}", f"{m.parameters:,}", m.input, m.summary) for m in found)
        show_table(Table("", ("model", ">parameters", "input", "what it is"), rows))
        show_line(f"A build takes {FORMS}.")
        for row in plugins:
            show_line(f"{row['name']}:...  {row['summary']}")
    return 0


def _show_source(name: str, *, as_json: bool) -> int:
    """Show a plug-in's source of models: what its function says of itself."""
    from edgeopt.cli.text import show_json, show_line
    from edgeopt.registry.kinds import MODELS
    from edgeopt.registry.lookup import find

    entry = find(MODELS, name)
    doc = inspect.getdoc(entry.load()) or ""
    if as_json:
        show_json([{"name": name, "doc": doc, "package": str(entry.plugin)}])
    else:
        show_line(f"{name}:...  of {entry.plugin}", "bold")
        show_line()
        show_line(doc)
    return 0


def _toml(value: Any) -> str:
    """Write a default as `--set` takes it."""
    import json

    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)
