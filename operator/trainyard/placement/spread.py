"""How many pods of a gang each of many places gets: over many nodes, in few domains, where it costs least."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from trainyard.placement.domains import LEVELS, Domains, within

Cost = tuple[int, ...]
Vector = tuple[int, ...]  # domains by LEVELS
_WORK = 200_000  # combinations looked at for the fewest domains; beyond, whole domains are filled from the largest


@dataclass(frozen=True, slots=True)
class Place:
    """A node with room for at least one pod of the gang."""

    node: str
    room: int  # pods of the gang that fit
    domains: Domains
    order: tuple[object, ...]  # neighbours come one after the other
    cost: Cost  # of the first pod, what to avoid most first
    fit: tuple[object, ...]  # among near nodes the smallest is taken: the least is left over that others could use


def spread(places: Sequence[Place], count: int, taken: Counter[str], near: Counter[Domains]) -> Counter[str] | None:
    """Pods by node, over as many nodes as possible; None if they do not all fit. `taken` are the gang's other pods by
    node, `near` the same by domain."""
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
    top = sorted((place for place in places if full[place.node] > loads[place.node]), key=lambda place: place.fit)
    near = near.copy()
    for place in places:
        for each in within(place.domains) if loads[place.node] else ():
            near[each] += loads[place.node]
    loads.update(place.node for place in nearest(top, count - loads.total(), near))
    return +loads


def cost(places: Iterable[Place]) -> Cost:
    """The sum over the places."""
    return tuple(map(sum, zip(*(place.cost for place in places), strict=True)))


def new_domains(found: Iterable[Domains], near: Counter[Domains]) -> Vector:
    """Domains of each level that the gang is not in yet."""
    new = {each for lowest in set(found) for each in within(lowest) if not near[each]}
    depths = Counter(map(len, new))
    return tuple(depths[depth + 1] for depth in range(len(LEVELS)))


def nearest(places: Sequence[Place], count: int, near: Counter[Domains]) -> list[Place]:
    """`count` of the places, sorted by fit, one pod each: in as few domains as possible, the widest level first."""
    chosen = _fill(places, count, near, 0)
    reached = new_domains((place.domains for place in chosen), near)
    if all(have <= least for have, least in zip(reached, _least(places, count, near), strict=True)):
        return chosen
    best = _fewest(places, count, near, reached)
    return _fill([place for place in places if place.domains in best], count, near, 0) if best else chosen


def _fill(places: Sequence[Place], count: int, near: Counter[Domains], depth: int) -> list[Place]:
    """Near the rest of the gang; of several domains that would do, the one that costs least, and of those the one that
    is left with the least; if none would do, the largest is filled first."""
    if depth == len(LEVELS) or count == 0:
        return list(places[:count])
    inside: dict[Domains, list[Place]] = defaultdict(list)
    for place in places:
        inside[place.domains[: depth + 1]].append(place)
    chosen: list[Place] = []
    while len(chosen) < count:
        rest = count - len(chosen)
        ample = [each for each, members in inside.items() if len(members) >= rest]
        if ample:
            best = ample[0]
            if len(ample) > 1:
                best = min(ample, key=lambda d: (-near[d], cost(inside[d][:rest]), len(inside[d]), d))
        else:
            best = min(inside, key=lambda d: (-bool(near[d]), -len(inside[d]), -near[d], cost(inside[d]), d))
        members = inside.pop(best)
        chosen += _fill(members, min(rest, len(members)), near, depth + 1)
    return chosen


def _least(places: Sequence[Place], count: int, near: Counter[Domains]) -> Vector:
    """No choice needs fewer new domains, each level looked at by itself."""
    found = []
    for depth in range(len(LEVELS)):
        sizes = Counter(place.domains[: depth + 1] for place in places)
        rest = count - sum(size for each, size in sizes.items() if near[each])
        new = 0
        for _, size in Counter({each: size for each, size in sizes.items() if not near[each]}).most_common():
            if rest <= 0:
                break
            rest -= size
            new += 1
        found.append(new)
    return tuple(found)


_Option = tuple[int, int, Any]
"""Some lowest domains of a wider one: what they cost in new domains, how many pods they hold, and which they are: a
pair of options' third parts, or a list of one lowest domain, or nothing."""


def _fewest(places: Sequence[Place], count: int, near: Counter[Domains], bound: Vector) -> Collection[Domains]:
    """The lowest domains to use, so that new domains are fewest, widest level first; empty if `bound` is as good, or if
    finding out would take too long. A knapsack over each level, from the narrowest to the widest: a vector of counts is
    one number in which a wider level outweighs all narrower ones."""
    sizes = Counter(place.domains for place in places)
    base = len(sizes) + 1
    weights = [base ** (len(LEVELS) - 1 - depth) for depth in range(len(LEVELS))]
    limit = sum(number * weight for number, weight in zip(bound, weights, strict=True)) - 1
    options: dict[Domains, list[_Option]] = {each: [(0, min(size, count), [each])] for each, size in sizes.items()}
    work = 0
    for depth in reversed(range(len(LEVELS))):
        wider: dict[Domains, list[_Option]] = {}
        for each in sorted(options):
            own = 0 if near[each] else weights[depth]
            known = wider.setdefault(each[:depth], [(0, 0, None)])
            work += len(known) * len(options[each])
            if work > _WORK:
                return ()
            more = [(old + own + new, min(count, held + room), (one, other))
                    for old, held, one in known for new, room, other in options[each]
                    if room and old + own + new <= limit]  # fmt: skip
            wider[each[:depth]] = _worth([*known, *more])
        options = wider
    enough = [option for option in options[()] if option[1] >= count]
    return _lowest(min(enough, key=itemgetter(0))[2]) if enough else ()


def _worth(options: list[_Option]) -> list[_Option]:
    """Without those that another one beats in room and cost."""
    kept: list[_Option] = []
    options.sort(key=itemgetter(1), reverse=True)
    options.sort(key=itemgetter(0))
    for option in options:
        if not kept or option[1] > kept[-1][1]:
            kept.append(option)
    return kept


def _lowest(parts: Any) -> set[Domains]:
    found, rest = set(), [parts]
    while rest:
        one = rest.pop()
        if isinstance(one, list):
            found.update(one)
        elif one:
            rest += one
    return found
