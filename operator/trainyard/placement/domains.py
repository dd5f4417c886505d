"""Which nodes are near each other: the levels of the network, as labels and NodeDevices tell them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from trainyard.placement.books import Books, NodeView

Domains = tuple[str, ...]

SUPER_POD = "huawei.com/topotree.superpodid"
RACK = "huawei.com/topotree.rackid"
# From the widest to the narrowest; domains of one level lie in one domain of the level before.
LEVELS = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "superpod", "rack")
NODE_LEVELS = ("node", "ring")  # the gang on one node


def domain(node: NodeView, level: str) -> str:
    """The node's domain of a level (node, ring, rack, superpod, or the key of a label); empty if it is in none."""
    if level in NODE_LEVELS:
        return node.name
    if level == "superpod":
        return (node.devices.super_pod if node.devices else "") or node.labels.get(SUPER_POD, "")
    if level == "rack":
        return (node.devices.rack if node.devices else "") or node.labels.get(RACK, "")
    return node.labels.get(level, "")


def domains(node: NodeView) -> Domains:
    """The node's domains, by LEVELS."""
    labels, devices = node.labels, node.devices
    return (
        labels.get(LEVELS[0], ""), labels.get(LEVELS[1], ""),
        (devices.super_pod if devices else "") or labels.get(SUPER_POD, ""),
        (devices.rack if devices else "") or labels.get(RACK, ""),
    )  # fmt: skip


def within(found: Domains) -> list[Domains]:
    """A domain and all that it lies in."""
    return [found[: depth + 1] for depth in range(len(found))]


def whereabouts(books: Books, nodes: Iterable[str]) -> tuple[Counter[str], Counter[Domains]]:
    """A gang's pods by node and by domain."""
    members = Counter(nodes)
    near: Counter[Domains] = Counter()
    for name, number in members.items():
        if name in books.nodes:
            for each in within(domains(books.nodes[name])):
                near[each] += number
    return members, near
