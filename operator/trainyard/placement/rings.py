"""Which devices of a node may be used together: one table of rules by model (docs/placement.md), and the set that a
request gets. The device plugin answers kubelet with it (GetPreferredAllocation), and placement foretells kubelet's
choice by the same function. Facts: MindCluster's affinity rules (ascend-for-volcano)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Seat(Protocol):
    """Where a device sits: placement.books.DeviceView and api.devices.Device are such."""

    @property
    def id(self) -> str:
        """As kubelet knows it."""

    @property
    def ring(self) -> int:
        """Devices of one ring are joined by the node's fast links."""

    @property
    def module(self) -> int:
        """Devices of one module are given out together."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one model asks of a set of devices."""

    counts: tuple[int, ...] = ()  # devices that one pod may ask for; empty: any number
    ring: int = 0  # up to so many stay in one ring, more are split evenly over all rings; 0: any set will do
    order: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By request: free devices of the ring to take, best first. Without an entry: the fewest."""
    modules: bool = False  # even requests take whole modules


RULES: Mapping[str, Rule] = {
    "910A": Rule((1, 2, 4, 8), ring=4, order={1: (1, 3, 2, 4), 2: (2, 4, 3), 4: (4,)}),
    "910B-8": Rule(tuple(range(1, 9))),
    "910B-16": Rule((*range(1, 9), 10, 12, 14, 16), ring=8),
    "A3": Rule((1, *range(2, 17, 2)), modules=True),
    "Other": Rule(),
}


def rule(model: str) -> Rule:
    """The model's rule; of a model that nobody knows: none."""
    return RULES.get(model, RULES["Other"])


def legal(model: str) -> tuple[int, ...]:
    """The numbers of devices that a pod on this model may ask for, ascending; empty: any."""
    return rule(model).counts


def may_ask(model: str, count: int) -> bool:
    """Whether a pod on this model may ask for so many devices."""
    counts = legal(model)
    return count >= 0 and (not counts or count == 0 or count in counts)


def choose(
    model: str,
    devices: Sequence[Seat],
    available_ids: Collection[str],
    must_include: Collection[str] = (),
    count: int = 1,
    shun: Collection[str] = (),
) -> list[str]:
    """The best legal set of `count` of the available devices that holds all of `must_include`, in the order of
    `devices` (all of the node's, in its order); empty if there is none.

    Best is, in this order: the fewest of `shun` (sub-healthy, or without network); the ring that the model's table
    prefers, so that whole rings and modules stay whole; what comes first on the node.
    """
    found = prefer(model, devices, available_ids, must_include, count, shun)
    return list(found.ids) if found else []


@dataclass(frozen=True, slots=True)
class Choice:
    """A legal set."""

    ids: tuple[str, ...]
    shunned: int  # of those, how many would rather be left alone
    rank: int  # how the model's table likes the ring it comes of; smaller is better


def prefer(
    model: str,
    devices: Sequence[Seat],
    available_ids: Collection[str],
    must_include: Collection[str] = (),
    count: int = 1,
    shun: Collection[str] = (),
) -> Choice | None:
    """What `choose` chooses, and how good it is."""
    must, available = set(must_include), set(available_ids) | set(must_include)
    known = {device.id for device in devices}
    if not may_ask(model, count) or count < max(1, len(must)) or not must <= known:
        return None
    seats = [device for device in devices if device.id in available]
    if len(seats) < count:
        return None
    shunned = set(shun)

    def taste(seat: Seat) -> tuple[bool, bool]:
        return seat.id not in must, seat.id in shunned

    found = rule(model)
    if found.modules:
        sets = _of_modules(devices, seats, count, taste)
    elif not found.ring:
        sets = _of_any(seats, count, taste)
    elif count <= found.ring:
        sets = _of_one_ring(found, seats, count, taste)
    else:
        sets = _of_all_rings(devices, seats, count, taste)
    best = min(
        ((sum(seat.id in shunned for seat in chosen), rank, number, chosen)
         for number, (rank, chosen) in enumerate(sets) if must <= {seat.id for seat in chosen}),
        key=lambda one: one[:3], default=None,
    )  # fmt: skip
    if best is None:
        return None
    ids = {seat.id for seat in best[3]}
    return Choice(tuple(device.id for device in devices if device.id in ids), best[0], best[1])


class _Taste(Protocol):
    def __call__(self, seat: Seat, /) -> tuple[bool, bool]:
        """Smaller is taken first: what must be taken, then what is not shunned."""


_Sets = Iterator[tuple[int, list[Seat]]]


def _of_one_ring(found: Rule, seats: Sequence[Seat], count: int, taste: _Taste) -> _Sets:
    order = found.order.get(count, ())
    for inside in _by(seats, lambda seat: seat.ring).values():
        if len(inside) >= count:
            rank = order.index(len(inside)) if len(inside) in order else len(order) + len(inside)
            yield rank, sorted(inside, key=taste)[:count]


def _of_all_rings(devices: Sequence[Seat], seats: Sequence[Seat], count: int, taste: _Taste) -> _Sets:
    """As many of every ring, at the same places in each."""
    rings = _by(devices, lambda seat: seat.ring)
    each, odd = divmod(count, len(rings))
    if odd:
        return
    free = {seat.id for seat in seats}
    places = [place for place in zip(*rings.values(), strict=False) if all(seat.id in free for seat in place)]
    if len(places) >= each:
        yield 0, [seat for place in _tasty(places, taste)[:each] for seat in place]


def _of_modules(devices: Sequence[Seat], seats: Sequence[Seat], count: int, taste: _Taste) -> _Sets:
    """Whole modules; a single device comes of a module that is broken already, if there is one."""
    sizes = {module: len(inside) for module, inside in _by(devices, lambda seat: seat.module).items()}
    modules = _by(seats, lambda seat: seat.module)
    if count == 1:
        for module, inside in modules.items():
            for seat in inside:
                yield int(len(inside) == sizes[module]), [seat]
        return
    taken: list[Seat] = []
    for whole in _tasty([inside for module, inside in modules.items() if len(inside) == sizes[module]], taste):
        if len(taken) + len(whole) <= count:
            taken += whole
    if len(taken) == count:
        yield 0, taken


def _of_any(seats: Sequence[Seat], count: int, taste: _Taste) -> _Sets:
    """Any set is legal; few rings are better than many, and the one with the fewest free better than a whole one."""
    rings = _by(seats, lambda seat: seat.ring)
    for inside in rings.values():
        if len(inside) >= count:
            yield len(inside), sorted(inside, key=taste)[:count]
    fullest = sorted(seats, key=lambda seat: (*taste(seat), -len(rings[seat.ring])))
    yield len(seats) + 1, fullest[:count]


def _tasty(groups: Sequence[Sequence[Seat]], taste: _Taste) -> list[Sequence[Seat]]:
    """Groups that hold what must be taken first, then those with the least that is shunned."""
    return sorted(groups, key=lambda group: (min(taste(seat)[0] for seat in group), sum(taste(s)[1] for s in group)))


def _by(seats: Sequence[Seat], key: _Key) -> dict[int, list[Seat]]:
    found: dict[int, list[Seat]] = defaultdict(list)
    for seat in seats:
        found[key(seat)].append(seat)
    return dict(sorted(found.items()))


class _Key(Protocol):
    def __call__(self, seat: Seat, /) -> int:
        """Ring or module."""
