"""How many of a gang's pods each node gets, with the topology that the job asks for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from trainyard.placement.books import Books, Gang
from trainyard.placement.domains import Domains, domain
from trainyard.placement.pack import WORK, pack
from trainyard.placement.price import Place, of_loads
from trainyard.placement.room import natural
from trainyard.placement.spread import spread


def arrange(
    books: Books, places: Sequence[Place], gang: Gang, members: Counter[str], near: Counter[Domains]
) -> Counter[str] | None:
    """Pods by node; None if they do not all fit. `members` are the gang's other pods by node, `near` by domain."""
    if gang.nearness is None:
        return _arranged(places, gang, members, near)
    grouped = by_domain(books, places, gang.nearness.level)
    home = {domain(books.nodes[name], gang.nearness.level) for name in members if name in books.nodes} - {""}
    fitting = {name: inside for name, inside in grouped.items() if _room(inside, gang.count) >= gang.count}
    at_home = {name: inside for name, inside in fitting.items() if name in home}
    if gang.nearness.required and home:
        fitting = at_home
    if at_home or fitting:
        return _best(at_home or fitting, gang, members, near)
    if gang.nearness.required:
        return None
    return _arranged(_union(grouped, places, gang.count, home), gang, members, near)


def _arranged(
    places: Sequence[Place], gang: Gang, members: Counter[str], near: Counter[Domains], work: int = WORK
) -> Counter[str] | None:
    return (pack if gang.packed else spread)(places, gang.count, members, near, work)


def by_domain(books: Books, places: Sequence[Place], level: str) -> dict[str, list[Place]]:
    """The places by their domain of this level; those that are in none are left out."""
    grouped: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        if found := domain(books.nodes[place.node], level):
            grouped[found].append(place)
    return grouped


def _room(places: Sequence[Place], count: int) -> int:
    return sum(min(place.room, count) for place in places)


def _best(
    fitting: Mapping[str, Sequence[Place]], gang: Gang, members: Counter[str], near: Counter[Domains]
) -> Counter[str] | None:
    """The domain in which the gang is best off by the goals that hold anywhere; of equal ones the smallest."""
    found: tuple[tuple[object, ...], Counter[str] | None] | None = None
    for name, inside in fitting.items():
        loads = _arranged(inside, gang, members, near, WORK // len(fitting))
        assert loads is not None  # there is room for all
        most = max(number + members[node] for node, number in loads.items())
        key = (*(() if gang.packed else (most, -len(loads))), of_loads(inside, loads, gang.count, members, near),
               _room(inside, gang.count), natural(name))  # fmt: skip
        if found is None or key < found[0]:
            found = (key, loads)
    return found[1] if found else None


def _union(
    grouped: Mapping[str, Sequence[Place]], places: Sequence[Place], count: int, home: set[str]
) -> Sequence[Place]:
    """The places of as few domains as hold the gang: those it is in first, then the largest, the last one the smallest
    that will do. All places, if those of no domain are needed too."""
    rest = dict(grouped)
    union: list[Place] = []
    while (missing := count - _room(union, count)) > 0 and rest:
        ample = [name for name, inside in rest.items() if _room(inside, count) >= missing]
        if ample:
            name = min(ample, key=lambda one: (one not in home, _room(rest[one], count), natural(one)))
        else:
            name = min(rest, key=lambda one: (one not in home, -_room(rest[one], count), natural(one)))
        union += rest.pop(name)
    return places if missing > 0 else union
