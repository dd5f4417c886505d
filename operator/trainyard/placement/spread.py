"""How many pods of a gang each of many places gets, so that the loss of a node costs least: over many nodes, in few
domains, where the price is lowest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from trainyard.placement.domains import Domains, within
from trainyard.placement.pack import WORK, pack
from trainyard.placement.price import Place


def spread(
    places: Sequence[Place], count: int, taken: Counter[str], near: Counter[Domains], work: int = WORK
) -> Counter[str] | None:
    """Pods by node, over as many nodes as possible; None if they do not all fit. `taken` are the gang's other pods by
    node, `near` the same by domain; `work` is that of `pack`."""
    if sum(min(place.room, count) for place in places) < count:
        return None

    def filled(level: int) -> Counter[str]:
        """Pods by node if every node is filled up to `level` members of the gang."""
        return Counter({p.node: min(p.room, max(0, level - taken[p.node])) for p in places})

    low, high = 1, count + max(taken.values(), default=0)
    while low < high:  # the lowest level at which all have a place
        middle = (low + high) // 2
        if filled(middle).total() >= count:
            high = middle
        else:
            low = middle + 1
    loads, full = filled(low - 1), filled(low)
    near = near.copy()
    for place in places:
        for each in within(place.domains) if loads[place.node] else ():
            near[each] += loads[place.node]
    top = [replace(place, room=1) for place in places if full[place.node] > loads[place.node]]
    rest = pack(top, count - loads.total(), taken + loads, near, work)
    assert rest is not None  # the level is such that there is room
    return +(loads + rest)
