"""Edges of a captured graph: opaque ids, and the addresses that people read and write.

An id is given once, at capture, and kept in `node.meta["custom"]`, which survives re-export and
decomposition. It is never recomputed from a position or a node name. An address such as
`blocks.0.attn.qkv:linear#0.in0` shows it; globs over addresses select edges.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch.fx import Graph, Node

from edgeopt.errors import ConfigError

_KEY = "edgeopt"
_PLAIN = re.compile(r"[\w.@/+-]{0,1000}")


@dataclasses.dataclass(frozen=True, order=True)
class EdgeId:
    """One port of one operator: `n12` and `in0`, or `out`."""

    node: str
    port: str

    def __str__(self) -> str:
        return f"{self.node}.{self.port}"


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a node comes from: the owning module, the operator, and which of several it is."""

    id: str
    fqn: str
    op: str
    index: int

    @property
    def address(self) -> str:
        """`FQN:op#index`, without a port."""
        return f"{self.fqn}:{self.op}#{self.index}"

    @property
    def stem(self) -> str:
        """`FQN.op_index`, to name buffers made for it: letters, digits, `_` and `.` alone."""
        place = f"{self.op}_{self.index}"
        return re.sub(r"[^\w.]", "_", f"{self.fqn}.{place}" if self.fqn else place)

    @property
    def plain(self) -> bool:
        """Say whether its words are such that a file with them can be read again."""
        return all(is_plain(word) for word in (self.id, self.fqn, self.op))


def is_plain(text: str) -> bool:
    """Say whether a name holds letters, digits and `_.@/+-` only: it can do no harm in source."""
    return _PLAIN.fullmatch(text) is not None


def owner(node: Node) -> str:
    """Return the FQN of the module whose forward made `node`; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    fqn = str(list(stack.values())[-1][0])
    # torch names the module of nodes that it adds itself; they belong to the root.
    return "" if fqn.startswith("_empty_nn_module_stack") else fqn.split("@")[0]


def operator_name(node: Node) -> str:
    """Return the short operator name: `linear`, `conv2d`, `add`, `input`."""
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    packet = getattr(node.target, "_overloadpacket", None)
    name = str(packet) if packet is not None else getattr(node.target, "__name__", str(node.target))
    return name.split(".")[-1]


def assign(graph: Graph, user_inputs: Mapping[str, str], prefix: str = "") -> None:
    """Give every operator and user input of a freshly captured graph its site.

    Args:
        graph: The captured graph; its nodes' `meta["custom"]` is extended.
        user_inputs: Placeholder name -> name of the model's input.
        prefix: Of the ids, so that those of several programs differ.
    """
    seen: Counter[tuple[str, str]] = Counter()
    serial = 0
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs:
            fqn, op = user_inputs[node.name], "input"
        elif node.op == "call_function":
            fqn, op = owner(node), operator_name(node)
        else:
            continue
        index = seen[fqn, op]
        seen[fqn, op] += 1
        _set(node, Site(f"{prefix}n{serial}", fqn, op, index))
        serial += 1


def _set(node: Node, site: Site) -> None:
    custom = dict(node.meta.get("custom") or {})
    custom[_KEY] = dataclasses.asdict(site)
    node.meta["custom"] = custom


def keep_only_site(node: Node) -> None:
    """Drop everything but the site from the node's `meta["custom"]`."""
    custom = node.meta.get("custom") or {}
    if custom:
        node.meta["custom"] = {_KEY: custom[_KEY]} if _KEY in custom else {}


@dataclasses.dataclass(frozen=True)
class LastingSite:
    """The site of a node by what a new capture keeps of it.

    Attributes:
        node: An input's name, or the id of the result that the node is a part of.
        part: Which part, or None.
        site: Its site.
    """

    node: str
    part: int | None
    site: Site


@dataclasses.dataclass(frozen=True)
class LastingSites:
    """The sites that torch drops when it saves a graph, and drops or blurs when it captures one.

    These are the inputs, found by name, and the parts of a result (which take on the result's own
    site), found by result and number.
    """

    rows: tuple[LastingSite, ...]
    schema: int = 1

    @staticmethod
    def of(graph: Graph) -> LastingSites:
        """Take them from a graph that has them."""
        found = ((_lasting_key(node), site) for node, site in sites(graph))
        return LastingSites(tuple(LastingSite(*key, site) for key, site in found if key))

    def restore(self, graph: Graph) -> None:
        """Give them back to a later form of the graph."""
        known = {(row.node, row.part): row.site for row in self.rows}
        for node in graph.nodes:
            key = _lasting_key(node)
            if key in known:
                _set(node, known[key])


def _lasting_key(node: Node) -> tuple[str, int | None] | None:
    if node.op == "placeholder":
        return node.name, None
    if node.op == "call_function" and node.target is operator.getitem:
        source, part = node.args
        site = site_of(source) if isinstance(source, Node) else None
        return (site.id, part) if site is not None and isinstance(part, int) else None
    return None


def site_of(node: Node) -> Site | None:
    """Return the node's site, or None for a weight placeholder or the output."""
    value: Any = (node.meta.get("custom") or {}).get(_KEY)
    return Site(**value) if value is not None else None


def require_site(node: Node) -> Site:
    """Return the node's site.

    Raises:
        ConfigError: If the node has none, so that the graph was not made by `capture`.
    """
    site = site_of(node)
    if site is None:
        raise ConfigError(f"graph node {node.name} has no site; capture the model with edgeopt")
    return site


def where_is(node: Node) -> str:
    """Return the node's address for a message; of a node without a site, its name."""
    site = site_of(node)
    return site.address if site is not None else node.name


def derive(node: Node, parent: Node, suffix: str) -> None:
    """Mark an inserted node: the parent's id with `/suffix`."""
    site = require_site(parent)
    _set(node, Site(f"{site.id}/{suffix}", site.fqn, f"{site.op}/{suffix}", site.index))


def flat_arguments(node: Node) -> list[Any]:
    """Return what a call takes, by port number; items of lists count singly."""
    flat: list[Any] = []
    for argument in node.args:
        flat += list(argument) if isinstance(argument, (list, tuple)) else [argument]
    return flat


def by_id(graph: Graph) -> dict[str, Node]:
    """Map site ids to nodes."""
    found: dict[str, Node] = {}
    for node in graph.nodes:
        site = site_of(node)
        if site is not None:
            found[site.id] = node
    return found


def address(node: Node, port: str) -> str:
    """Return what people read: `FQN:op#index.port`."""
    return f"{require_site(node).address}.{port}"


def sites(graph: Graph) -> Iterator[tuple[Node, Site]]:
    """Yield every node that has a site."""
    for node in graph.nodes:
        site = site_of(node)
        if site is not None:
            yield node, site


def matches(pattern: str, address_text: str) -> bool:
    """Say whether a glob selects an address.

    Without a colon the glob is matched against the FQN, and also selects everything below it:
    `blocks.0.attn` selects `blocks.0.attn.qkv:linear#0.in0`. With one, an absent index or port
    matches any: `*.attn:softmax`, `*.mlp:.out`. An operator that stands in for part of another one
    also goes by its own name: `softmax` selects `scaled_dot_product_attention/softmax`.
    """
    fqn, _, rest = address_text.partition(":")
    want_fqn, colon, want_rest = pattern.partition(":")
    if not colon:
        return fnmatch.fnmatchcase(fqn, want_fqn) or fnmatch.fnmatchcase(fqn, f"{want_fqn}.*")
    if not fnmatch.fnmatchcase(fqn, want_fqn):
        return False
    op, _, port = rest.partition(".")
    want_op, _, want_port = want_rest.partition(".")
    name = op.partition("#")[0]
    names = (op, name, name.rpartition("/")[2])
    return (not want_op or any(fnmatch.fnmatchcase(n, want_op) for n in names)) and (
        not want_port or fnmatch.fnmatchcase(port, want_port)
    )
