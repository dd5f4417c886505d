"""How many pods find a legal set of devices on a node, and how good those sets are.

Kubelet and the device plugin choose the devices; NodeDevices tells who got which 2 to 5 s later. The choice is foretold
therefore, by the very function that the plugin answers kubelet with: for pods that are planned or bound but not yet
told as holders, and for those that are to be placed. It never gives a device twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from trainyard.placement.books import DevicesView, Resources
from trainyard.placement.rings import prefer, rule

Layout = tuple[tuple[int, int], ...]  # ring and module, by device


@dataclass(frozen=True, slots=True)
class Fit:
    """What a node's devices hold for pods that ask for the same number of them."""

    sets: int = 0  # pods that get a legal set, one after the other
    clean: int = 0  # of those, the first ones whose sets have no device that is better left alone
    ranks: tuple[int, ...] = ()  # how the model's table likes the rings of the first 1, 2, ... sets together
    broken: tuple[int, ...] = ()  # whole rings that are in pieces once the first 1, 2, ... sets are taken
    in_ring: int = 0  # pods whose sets stay, one after the other, in the ring of the first
    ring: int = 0  # that ring
    left: int = 0  # devices that are free now and may be given out


@dataclass(frozen=True, slots=True)
class Gaze:
    """How the devices are looked at."""

    several: bool = False  # for a job of several nodes: only devices whose link to other nodes works
    spoiled: Collection[str] = ()  # ids that the job avoids
    empty: bool = False  # as if no pod held any
    healthy: bool = False  # as if all were healthy


PLAIN = Gaze()


@dataclass(frozen=True, slots=True)
class _Seating:
    layout: Layout
    free: int  # a bit a device, here and below
    shunned: int  # the plugin gives these last: sub-healthy, or without a link to other nodes
    cut: int  # without that link
    spoiled: int  # sub-healthy or avoided by the job


def fit(view: DevicesView, pods: Mapping[str, Resources], count: int, gaze: Gaze = PLAIN) -> Fit:
    """For pods of `count` devices each, beside `pods`, which are all that are on the node."""
    seating = _seating(view, {} if gaze.empty else pods, gaze)
    cut = seating.cut if gaze.several else 0
    return _fit(view.model, seating.layout, seating.free, seating.shunned, cut, seating.spoiled, count)


def whole(view: DevicesView, count: int) -> Fit:
    """The same if no pod were there and all devices were healthy."""
    return _fit(view.model, _layout(view), (1 << len(view.devices)) - 1, 0, 0, 0, count)


def free_by_ring(view: DevicesView, pods: Mapping[str, Resources]) -> dict[int, int]:
    """Devices that may be given out, by ring."""
    free = _seating(view, pods, PLAIN).free
    found = dict.fromkeys(sorted({device.ring for device in view.devices}), 0)
    for number, device in enumerate(view.devices):
        found[device.ring] += free >> number & 1
    return found


def _seating(view: DevicesView, pods: Mapping[str, Resources], gaze: Gaze) -> _Seating:
    usable = held = shunned = cut = spoiled = 0
    told = set()
    for number, device in enumerate(view.devices):
        bit = 1 << number
        if device.holder in pods:
            told.add(device.holder)
            held |= bit
        elif not device.free and not device.holder and not gaze.empty:
            held |= bit  # somebody has it, nobody says who; a holder that is named and gone has left it
        if device.id in gaze.spoiled:
            spoiled |= bit
        if gaze.healthy:
            usable |= bit
            continue
        usable |= bit if device.usable else 0
        if device.sub_healthy:
            spoiled |= bit
            shunned |= bit
        if not device.network:
            cut |= bit
            shunned |= bit
    layout = _layout(view)
    untold = [amount for key, each in pods.items() if key not in told and (amount := each.get(view.resource, 0))]
    for amount in untold:  # in the order in which they got their places, which is kubelet's for the most part
        held |= _taken(view.model, layout, usable & ~held, shunned, amount)
    return _Seating(layout, usable & ~held, shunned, cut, spoiled)


def _layout(view: DevicesView) -> Layout:
    return tuple([(device.ring, device.module) for device in view.devices])


def _taken(model: str, layout: Layout, free: int, shunned: int, amount: int) -> int:
    """What a pod gets; if no set is legal, kubelet takes any."""
    chosen = _choice(model, layout, free, shunned, amount)[0]
    numbers = [number for number in range(len(layout)) if free >> number & 1]
    return chosen or sum(1 << number for number in numbers[:amount])


@dataclass(frozen=True, slots=True)
class _Seat:
    id: str
    ring: int
    module: int


@lru_cache(maxsize=1 << 15)
def _choice(model: str, layout: Layout, free: int, shunned: int, count: int) -> tuple[int, int]:
    """The set that the plugin prefers and its rank; (0, 0) if there is none."""
    seats = [_Seat(str(number), *place) for number, place in enumerate(layout)]
    ids = [seat.id for number, seat in enumerate(seats) if free >> number & 1]
    shun = [seat.id for number, seat in enumerate(seats) if shunned >> number & 1]
    found = prefer(model, seats, ids, (), count, shun)
    return (sum(1 << int(number) for number in found.ids), found.rank) if found else (0, 0)


@lru_cache(maxsize=1 << 15)
def _fit(model: str, layout: Layout, free: int, shunned: int, cut: int, spoiled: int, count: int) -> Fit:
    rings: dict[int, int] = {}
    for number, (ring, _) in enumerate(layout):
        rings[ring] = rings.get(ring, 0) | 1 << number
    whole = [ring for ring in (rings.values() if rule(model).ring else [(1 << len(layout)) - 1]) if not ring & ~free]
    home: int | None = None
    sets = clean = in_ring = rank = 0
    ranks, broken = list[int](), list[int]()
    left = free
    while True:
        chosen, liked = _choice(model, layout, left, shunned, count)
        if not chosen or chosen & cut:
            break
        if not sets:
            home = next((ring for ring, seats in rings.items() if not chosen & ~seats), None)
        clean += clean == sets and not chosen & spoiled
        in_ring += in_ring == sets and home is not None and not chosen & ~rings[home]
        sets += 1
        left &= ~chosen
        rank += liked
        ranks.append(rank)
        broken.append(sum(0 < (ring & left) < ring for ring in whole))
    return Fit(sets, clean, tuple(ranks), tuple(broken), in_ring, -1 if home is None else home, free.bit_count())
