"""Devices that fail again and again are kept out for a while, longer each time, but never many at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from trainyard.api.devices import MILD
from trainyard.api.times import moment, stamp
from trainyard.fleet.devices import Accelerators, Device, Order

AGAIN = 2  # failures in 24 hours from which on a device is quarantined
DAY = timedelta(hours=24)
SHARE = 0.1  # of a pool's devices that may be quarantined without a human
LONGEST_SECONDS = 24 * 3600.0
OPERATOR = "Operator"

Blamed = frozenset[tuple[str, str, str]]  # node, device, code: a job is to blame for it


@dataclass(frozen=True, slots=True)
class Withheld:
    """A device that would be quarantined, were it not for something that a human has to decide."""

    node: str
    device: str
    reason: str  # QuarantineLimit | ReleasedByAdministrator
    message: str


@dataclass(frozen=True, slots=True)
class Quarantines:
    """What is to be written, and what is left to people."""

    orders: Mapping[str, tuple[Order, ...]]  # by node, where they change: all orders of that node
    withheld: tuple[Withheld, ...] = ()
    look_again: datetime | None = None  # when the first quarantine ends


def quarantines(nodes: Iterable[Accelerators], blamed: Blamed, now: datetime, first_seconds: float) -> Quarantines:
    """The orders as they should be. A pool is all devices of one resource and model; its limit is on what the operator
    keeps out by itself. `first_seconds`: of the quarantine after the second failure, doubled with each more; 0: there
    are none."""
    pools: dict[tuple[str, str], list[Accelerators]] = {}
    for told in nodes:
        pools.setdefault(told.pool, []).append(told)
    orders: dict[str, tuple[Order, ...]] = {}
    withheld: list[Withheld] = []
    ends: list[datetime] = []
    for members in pools.values():
        kept = {told.node: _kept(told, blamed, now) for told in members}
        out = sum(_counts(order, now) for each in kept.values() for order in each)
        most = int(SHARE * sum(len(told.devices) for told in members))
        for told in sorted(members, key=lambda each: each.node):
            for device in told.devices:
                made = _judge(told, device, kept[told.node], blamed, now, first_seconds)
                if isinstance(made, Withheld):
                    withheld.append(made)
                elif made is not None:
                    before = next((o for o in kept[told.node] if o.device == device.id), None)
                    more = not (before and _counts(before, now))
                    if more and out >= most:
                        withheld.append(_at_limit(told, device, most, members))
                        continue
                    out += more
                    kept[told.node] = (*(o for o in kept[told.node] if o.device != device.id), made)
            if kept[told.node] != told.orders:
                orders[told.node] = kept[told.node]
            ends += [end for order in kept[told.node] if _counts(order, now) and (end := moment(order.until))]
    return Quarantines(orders, tuple(withheld), min(ends, default=None))


def failing(device: Device) -> bool:
    """Whether it has a fault now that takes it out of use; being kept out by an order or a probation is none."""
    if device.health != "Unhealthy" or device.level in MILD:
        return False
    return device.level is not None or not (device.quarantined or device.probation)


def _counts(order: Order, now: datetime) -> bool:
    """Whether the operator itself keeps a device out by this order now."""
    end = moment(order.until)
    return order.by == OPERATOR and order.action == "Quarantine" and (end is None or end > now)


def _over(order: Order, now: datetime) -> bool:
    """Whether an administrator's quarantine has ended by itself: it says nothing any more about what happens next."""
    end = moment(order.until)
    return order.action == "Quarantine" and end is not None and end <= now


def _kept(told: Accelerators, blamed: Blamed, now: datetime) -> tuple[Order, ...]:
    """The orders that stay. One of the operator's is kept after its end as long as the device has failed repeatedly,
    to remember for which failure it was given; it goes early when a job turns out to be to blame."""
    kept = []
    for order in told.orders:
        device = told.device(order.device)
        if order.by == OPERATOR:
            if device is None:
                continue
            reason = len(_failures(told, device, blamed, now)) >= AGAIN or _hold(told, device, blamed, now)
            innocent = any((told.node, device.id, f.code) in blamed for f in device.failures)
            if not reason and (innocent or not _counts(order, now)):
                continue
        kept.append(order)
    return tuple(kept)


def _failures(told: Accelerators, device: Device, blamed: Blamed, now: datetime) -> list[tuple[datetime, str]]:
    """When the device failed in the last 24 hours, and of what. Faults that overlap are one failure: what breaks often
    breaks several things at once. What a job is to blame for is none."""
    found: list[tuple[datetime, str]] = []
    over: datetime | None = None  # when the failure before had ended
    for fault in sorted(device.failures, key=lambda each: each.began):
        began = moment(fault.began)
        if began is None or now - began >= DAY or (told.node, device.id, fault.code) in blamed:
            continue
        ended = moment(fault.ended) or now
        if over is None or began >= over:
            found.append((began, fault.code))
        over = max(over or ended, ended)
    return found


@dataclass(frozen=True, slots=True)
class _Hold:
    """What the fault table asks for, because a fault came too often."""

    until: datetime
    began: datetime
    code: str


def _hold(told: Accelerators, device: Device, blamed: Blamed, now: datetime) -> _Hold | None:
    """The longest hold that is asked for and not over."""
    asked = [_Hold(until, began, each.code) for each in device.failures
             if (until := moment(each.hold)) and until > now and (began := moment(each.began))
             and (told.node, device.id, each.code) not in blamed]
    return max(asked, key=lambda each: each.until, default=None)


def _judge(told: Accelerators, device: Device, orders: tuple[Order, ...], blamed: Blamed, now: datetime,
           first_seconds: float) -> Order | Withheld | None:
    """A quarantine for the device's last failure, unless it has had one for that."""
    if not first_seconds or not device.failures:
        return None
    failures, hold = _failures(told, device, blamed, now), _hold(told, device, blamed, now)
    again = len(failures) >= AGAIN
    if not again and hold is None:
        return None
    before = next((order for order in orders if order.device == device.id), None)
    if before is not None and before.by != OPERATOR and not _over(before, now):
        return _released(told, device, len(failures)) if before.action == "Release" else None
    last = max([began for began, _ in failures] + ([hold.began] if hold else []))
    ours = before is not None and before.by == OPERATOR and before.action == "Quarantine"
    if before is not None and ours and (moment(before.at) or last) >= last and (
            hold is None or (moment(before.until) or hold.until) >= hold.until):
        return None
    until, reason = now, ""
    if again:
        until = now + timedelta(seconds=min(LONGEST_SECONDS, first_seconds * 2.0 ** min(len(failures) - AGAIN, 20)))
        reason = f"failed {len(failures)} times in 24 h, last with {failures[-1][1] or 'an unknown fault'}"
    if hold is not None and hold.until > until:
        until, reason = hold.until, f"{hold.code} came so often that the fault table keeps it out"
    if ours and before is not None and (end := moment(before.until)) and end > until:
        until = end  # another failure makes none shorter
    # `at` is the failure's own time, by the node's clock: so it is known for which one the order was given.
    return Order(device.id, "Quarantine", OPERATOR, stamp(last), stamp(until), reason)


def _released(told: Accelerators, device: Device, times: int) -> Withheld:
    again = f"{times} times" if times > 1 else "again"
    return Withheld(told.node, device.id, "ReleasedByAdministrator", (
        f"{device.id} has failed {again} since an administrator released it, and is not quarantined for that: "
        "quarantine it, or remove the order from spec.orders to leave that to the operator."))


def _at_limit(told: Accelerators, device: Device, most: int, members: list[Accelerators]) -> Withheld:
    total = sum(len(each.devices) for each in members)
    return Withheld(told.node, device.id, "QuarantineLimit", (
        f"{device.id} has failed repeatedly in 24 h, but is not quarantined: of the {total} {told.model} devices of "
        f"{told.resource} no more than {most} are without a human. Find out what the failing ones have in common, or "
        "quarantine it yourself."))
