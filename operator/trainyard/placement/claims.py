"""What is kept for gangs that wait and come first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from trainyard.placement.arrange import arrange
from trainyard.placement.books import Books, Demand, Gang, Nearness, NodeView, Resources
from trainyard.placement.candidates import candidates
from trainyard.placement.domains import domain
from trainyard.placement.matching import hindrance
from trainyard.placement.room import capacity, natural


class Claim(Protocol):
    """A waiting gang whose nodes are kept from those that come after it."""

    @property
    def demand(self) -> Demand:
        """What each of its pods needs."""

    @property
    def count(self) -> int:
        """Its pods."""

    @property
    def nearness(self) -> Nearness | None:
        """How near to each other they have to be."""


def reserve(books: Books, claim: Claim) -> Books:
    """The books with the claim's places taken. While the claim has to wait, all the room it has now is kept, and for
    its other pods what is free on the nodes that need the least to become roomy. A claim that even an empty cluster
    could not satisfy keeps nothing."""
    gang = Gang(claim.demand, claim.count, nearness=claim.nearness)
    places = candidates(books, gang)[-1]
    loads = arrange(books, places, gang, Counter(), Counter())
    if loads is None:
        loads = _hopes(books, gang, {place.node: place.room for place in places})
    return books if loads is None else _keep(books, claim.demand.requests, loads)


def _keep(books: Books, requests: Resources, loads: Mapping[str, int]) -> Books:
    """As if so many pods were there, as far as there is anything to take."""
    used, pods = dict(books.used), dict(books.pods)
    devices = any("/" in name for name in requests)
    for name, number in loads.items():
        before = used.get(name, {})
        after, held = dict(before), dict(pods.get(name, {}))
        for each in range(number):
            allocatable = books.nodes[name].allocatable
            kept = {r: min(amount, max(0, allocatable.get(r, 0) - after.get(r, 0))) for r, amount in requests.items()}
            after |= {r: after.get(r, 0) + amount for r, amount in kept.items()}
            held[f"claim {len(held)} {each}"] = kept
        used[name] = after
        if devices:
            pods[name] = held
    return Books(books.nodes, used, pods)


def _hopes(books: Books, gang: Gang, fitting: Mapping[str, int]) -> Counter[str] | None:
    """Where the pods would be that fit now, and the others on nodes that would have room if they were empty; None if
    not even then. A gang that has to be near each other hopes for one domain."""
    nearness = gang.nearness
    if nearness is None or not nearness.required:
        return _hope(books, gang, fitting, list(books.nodes.values()))
    inside: dict[str, list[NodeView]] = {}
    for node in books.nodes.values():
        if found := domain(node, nearness.level):
            inside.setdefault(found, []).append(node)
    ready = {name: sum(fitting.get(node.name, 0) for node in nodes) for name, nodes in inside.items()}
    for name in sorted(inside, key=lambda one: (-ready[one], natural(one))):
        if (loads := _hope(books, gang, fitting, inside[name])) is not None:
            return loads
    return None


def _hope(books: Books, gang: Gang, fitting: Mapping[str, int], nodes: list[NodeView]) -> Counter[str] | None:
    requests = gang.demand.requests
    loads = Counter({node.name: min(gang.count, fitting.get(node.name, 0)) for node in nodes})
    hopes = []
    for node in nodes:
        more = capacity(node, gang.demand) - loads[node.name]
        if more > 0 and hindrance(node, gang.demand) is None:
            used = books.used.get(node.name, {})
            ready = min((min(1.0, (node.allocatable.get(r, 0) - used.get(r, 0)) / amount - loads[node.name])
                         for r, amount in requests.items() if amount), default=1.0)  # fmt: skip
            hopes.append((-ready, natural(node.name), node.name, more))
    rest = gang.count - loads.total()
    if sum(min(more, rest) for *_, more in hopes) < rest:
        return None
    for *_, name, more in sorted(hopes):
        loads[name] += min(more, rest)
        rest -= min(more, rest)
    return +loads
