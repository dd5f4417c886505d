"""How many pods of a gang each of many places gets, so that the price is lowest: in few domains, on few nodes, where
they break the least."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainyard.placement.domains import LEVELS, Domains
from trainyard.placement.price import Kind, Place, of_domain, of_node

WORK = 200_000  # sums of two prices that an exact answer may take, about 0.05 s


def pack(
    places: Sequence[Place], count: int, taken: Mapping[str, int], near: Counter[Domains], work: int = WORK
) -> Counter[str] | None:
    """Pods by node; None if they do not all fit. `taken` are the gang's other pods by node, `near` the same by domain.

    The best answer there is, unless finding it would take more than `work`: then whole domains and nodes are filled
    from the largest, the last of them being the best that will do."""
    if sum(min(place.room, count) for place in places) < count:
        return None
    ordered = sorted(places, key=lambda place: place.order)
    try:
        return _Exact(count, taken, near, work).best(ordered)
    except _TooLong:
        return +Counter(_InTurn(taken, near).fill(ordered, count, 0)[1])


class _TooLong(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Table:
    """The lowest price of 0, 1, 2, ... pods in a part of the cluster, and how it comes about."""

    prices: Sequence[int]
    place: Place | None = None
    steps: Sequence[tuple[_Table, Sequence[int]]] = ()  # parts in turn; of so many pods so far, how many are in it

    def loads(self, count: int) -> dict[str, int]:
        if self.place is not None:
            return {self.place.node: count}
        found: dict[str, int] = {}
        for part, picks in reversed(self.steps):
            if picks[count]:
                found |= part.loads(picks[count])
            count -= picks[count]
        return found


class _Exact:
    """A knapsack over the nodes of each domain, then over the domains of the next wider one."""

    def __init__(self, count: int, taken: Mapping[str, int], near: Counter[Domains], work: int) -> None:
        self._count, self._taken, self._near, self._left = count, taken, near, work
        self._nodes: dict[tuple[Kind, int, bool], list[int]] = {}

    def best(self, places: Sequence[Place]) -> Counter[str]:
        """Raises _TooLong."""
        return Counter(self._domain(places, 0).loads(self._count))

    def _domain(self, places: Sequence[Place], depth: int) -> _Table:
        if depth == len(LEVELS):
            return self._joined(self._of_nodes(places))
        inside: dict[Domains, list[Place]] = defaultdict(list)
        for place in places:
            inside[place.domains[: depth + 1]].append(place)
        parts = []
        for each, members in inside.items():
            table = self._domain(members, depth + 1)
            size = sum(min(place.room, self._count) for place in members)
            entry = of_domain(depth, not self._near[each], size)
            parts.append(_Table([0, *(price + entry for price in table.prices[1:])], table.place, table.steps))
        return self._joined(self._distinct(parts))

    def _of_nodes(self, places: Sequence[Place]) -> list[_Table]:
        """Of nodes that are alike no more than the gang has pods."""
        found = []
        alike: Counter[tuple[Kind, int, bool]] = Counter()
        for place in places:
            kind, most, new = key = place.kind, min(place.room, self._count), not self._taken.get(place.node)
            alike[key] += 1
            if alike[key] <= self._count:
                if key not in self._nodes:
                    self._nodes[key] = [0, *(of_node(kind, load, new) for load in range(1, most + 1))]
                found.append(_Table(self._nodes[key], place))
        return found

    def _distinct(self, parts: Sequence[_Table]) -> list[_Table]:
        alike: Counter[tuple[int, ...]] = Counter()
        found = []
        for part in parts:
            key = tuple(part.prices)
            alike[key] += 1
            if alike[key] <= self._count:
                found.append(part)
        return found

    def _joined(self, parts: Sequence[_Table]) -> _Table:
        if len(parts) == 1:
            return parts[0]
        prices: Sequence[int] = [0]
        steps = []
        for part in parts:
            prices, picks = self._join(prices, part.prices)
            steps.append((part, picks))
        return _Table(prices, None, steps)

    def _join(self, before: Sequence[int], more: Sequence[int]) -> tuple[list[int], list[int]]:
        """The lowest prices of both together, and how many of the pods are in the second."""
        self._left -= len(before) * len(more)
        if self._left < 0:
            raise _TooLong
        most = min(self._count, len(before) + len(more) - 2)
        prices, picks = list(before), [0] * len(before)
        for total in range(len(before), most + 1):  # with as few as possible in the second
            pick = total - len(before) + 1
            prices.append(before[-1] + more[pick])
            picks.append(pick)
        for pick in range(1, len(more)):
            price = more[pick]
            for number in range(min(len(before), most + 1 - pick)):
                if (sum_ := before[number] + price) < prices[number + pick]:
                    prices[number + pick] = sum_
                    picks[number + pick] = pick
        return prices, picks


_Filled = tuple[int, dict[str, int]]  # price and pods by node


class _InTurn:
    """One domain, then one node after the other: near the rest of the gang; the best of those that would hold all that
    is left; if there is none, the largest."""

    def __init__(self, taken: Mapping[str, int], near: Counter[Domains]) -> None:
        self._taken, self._near = taken, near

    def fill(self, places: Sequence[Place], count: int, depth: int) -> _Filled:
        """`count` pods, for which there is room."""
        if depth == len(LEVELS):
            return self._nodes(places, count)
        inside: dict[Domains, list[Place]] = defaultdict(list)
        for place in places:
            inside[place.domains[: depth + 1]].append(place)
        sizes = {each: sum(min(place.room, count) for place in members) for each, members in inside.items()}
        entries = {each: of_domain(depth, not self._near[each], size) for each, size in sizes.items()}
        price, loads = 0, dict[str, int]()
        while count:
            ample = [each for each in inside if sizes[each] >= count]
            some = [each for each in ample if self._near[each]] or ample
            some = some or [min(inside, key=lambda each: (not self._near[each], -sizes[each]))]
            filled = {each: self.fill(inside[each], min(count, sizes[each]), depth + 1) for each in some}
            best = min(some, key=lambda each: entries[each] + filled[each][0])
            price += entries[best] + filled[best][0]
            loads |= filled[best][1]
            count -= min(count, sizes[best])
            del inside[best]
        return price, loads

    def _nodes(self, places: Sequence[Place], count: int) -> _Filled:
        rest = [(not self._taken.get(place.node), -min(place.room, count), place) for place in places]
        rest.sort(key=lambda one: (*one[:2], of_node(one[2].kind, -one[1], one[0])))
        price, loads = 0, dict[str, int]()
        for number, (new, _, place) in enumerate(rest):
            if place.room >= count:  # the last one: of those that would do, the best
                ample = (other for newer, _, other in rest[number:] if newer == new and other.room >= count)
                place = min(ample, key=lambda one: of_node(one.kind, count, new))
            loads[place.node] = min(place.room, count)
            price += of_node(place.kind, loads[place.node], new)
            count -= loads[place.node]
            if not count:
                break
        return price, loads
