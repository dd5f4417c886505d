"""What it costs to put pods of a gang on a node or into a domain: the goals of docs/placement.md, as one number.

Every goal has its own digits of the number, a goal that comes first the higher ones, so that sums and comparisons of
prices are those of all goals at once, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from trainyard.placement.domains import LEVELS, Domains, within

_BITS = 64  # of each goal; sums stay far below, negative ones too
_MOST = 1 << 40  # amounts above are all the same
# From the last goal to the first.
_ROOM, _SIZE, _LEFT, _BROKEN, _RANK, _FOREIGN, _RELUCTANCE, _DIRTY, _AVOIDED, _NODE, _DOMAIN = range(11)


@dataclass(frozen=True, slots=True)
class Kind:
    """All of a node that decides what pods on it cost: nodes of one kind are as good as each other, but for where they
    are."""

    room: int  # pods like the gang's that fit
    clean: int = 1 << 30  # of those, the first ones whose devices are not better left alone
    avoided: bool = False  # the job would rather not use the node
    reluctance: int = 0  # how little a pod wants it: taints, preferred affinity
    foreign: int = 0  # free devices there that the gang has no use for
    ranks: tuple[int, ...] = ()  # how the model's table likes the rings of the first 1, 2, ... pods together
    broken: tuple[int, ...] = ()  # whole rings that are in pieces after 1, 2, ... pods
    left: int = 0  # free devices that it could use


@dataclass(frozen=True, slots=True)
class Place:
    """A node with room for at least one pod of the gang."""

    node: str
    room: int  # pods that the gang may have there
    domains: Domains
    order: tuple[object, ...]  # neighbours come one after the other
    kind: Kind


@lru_cache(maxsize=1 << 15)
def of_node(kind: Kind, load: int, new: bool = True) -> int:
    """Of so many pods on one node of this kind; `new`: the gang is not there yet."""
    ranks, broken = kind.ranks, kind.broken
    return sum(amount << _BITS * goal for goal, amount in (
        (_NODE, int(new)), (_AVOIDED, int(kind.avoided)), (_DIRTY, max(0, load - kind.clean)),
        (_RELUCTANCE, kind.reluctance * load), (_FOREIGN, min(kind.foreign, _MOST)),
        (_RANK, ranks[load - 1] if ranks else 0), (_BROKEN, broken[load - 1] if broken else 0),
        (_LEFT, min(kind.left, _MOST)), (_ROOM, kind.room),
    ))  # fmt: skip


def of_domain(depth: int, new: bool, size: int) -> int:
    """Of using a domain of LEVELS[depth] that has room for `size` of the gang; `new`: the gang is not in it yet."""
    return (int(new) << _BITS * (_DOMAIN + len(LEVELS) - 1 - depth)) + (size << _BITS * _SIZE)


def of_loads(
    places: Iterable[Place], loads: Mapping[str, int], count: int, taken: Mapping[str, int], near: Counter[Domains]
) -> int:
    """Of all pods together. `taken` are the gang's other pods by node, `near` the same by domain."""
    price, sizes, used = 0, Counter[Domains](), set[Domains]()
    for place in places:
        inside = within(place.domains)
        for each in inside:
            sizes[each] += min(place.room, count)
        if load := loads.get(place.node, 0):
            price += of_node(place.kind, load, not taken.get(place.node))
            used.update(inside)
    return price + sum(of_domain(len(each) - 1, not near[each], sizes[each]) for each in used)
