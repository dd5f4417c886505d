"""How each device is: what the backend read, the orders, who holds what and what was before, made into what NodeDevices
says and kubelet is told. Pure; the clock is passed in. What it has to remember is in the statuses that it returned
last, so an agent that starts again goes on from what the API server kept. docs/device-faults.md has the rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from trainyard.agent.faults import Entry, FaultTable, Repeated, badness, normal, worse_than
from trainyard.agent.types import Facts, Fault, Reading, Unreadable
from trainyard.api.devices import MILD, DeviceStatus, FaultRecord, Level, Order, takes_new_work
from trainyard.api.times import moment, stamp

KEPT = 16
"""Records that a device keeps at most."""
DAY = timedelta(hours=24)
_MEMORY = timedelta(hours=48 + 168)  # the longest window and the longest hold that a table may ask for


def assess(
    facts: Facts,
    reading: Reading | Unreadable,
    orders: Sequence[Order],
    holders: Mapping[str, str],
    table: FaultTable,
    previous: Sequence[DeviceStatus],
    now: datetime,
) -> tuple[DeviceStatus, ...]:
    """The state of every device, in the order of `facts.devices`.

    `holders` are pods (namespace/name) by device id. `previous` are the statuses of the last call, or those that an
    agent before this one wrote. The same arguments give the same result, and the result given back as `previous` at the
    same time is returned unchanged."""
    before = {status.id: status for status in previous}
    ordered = {order.device: order for order in orders}
    now = now.replace(microsecond=0)
    made = []
    for device in facts.devices:
        readable = not isinstance(reading, Unreadable) and device.id not in reading.unknown
        faults = reading.faults.get(device.id, ()) if readable and not isinstance(reading, Unreadable) else None
        made.append(_status(device.id, faults, ordered.get(device.id), holders.get(device.id, ""), table,
                            before.get(device.id), now))
    return tuple(made)


def _status(
    name: str, faults: Sequence[Fault] | None, order: Order | None, pod: str, table: FaultTable,
    previous: DeviceStatus | None, now: datetime,
) -> DeviceStatus:
    """One device; `faults` is None if they could not be read."""
    past = [_not_later(record, now) for record in previous.history] if previous else []
    records = _kept(_released(_recorded(past, faults, table, now), order, now), table, now)
    records = [_with_hold(record, records, table, now) for record in records]
    judged = [_judged(record, records, table, now) for record in records]
    mild = _unrecorded(faults, table)
    worst = max([found for found in judged if found.level is not None] + mild,
                key=lambda found: (badness(found.level), found.open, found.code), default=None)
    quarantined = order is not None and order.action == "Quarantine" and not _over(order.until, now)
    level = worst.level if worst else None
    bad = [found for found in judged if found.level not in MILD and found.level is not None]
    probation = max((found.held for found in bad if found.held), default=None)
    kept_out = not takes_new_work(level)
    if (kept_out and not (level == "PreSeparateNPU" and pod)) or (quarantined and not pod):
        health = "Unhealthy"
    else:
        health = "Unknown" if faults is None else "Healthy"
    unchanged = previous is not None and previous.health == health
    return DeviceStatus.model_validate({
        "id": name, "health": health, "level": level, "code": worst.code if worst else "",
        "text": worst.text if worst else "", "history": records, "quarantined": quarantined, "pod": pod,
        "network": not any(found.network and found.level is not None for found in [*judged, *mild]),
        "since": previous.since if unchanged and previous and previous.since else stamp(now),
        "faults": sum(1 for record in records if record.level != "NotHandleFault" and now - _began(record, now) < DAY),
        "probation": stamp(probation) if probation and not any(found.open for found in bad) else None,
    })


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a fault means now."""

    code: str
    level: Level | None  # None: nothing any more
    text: str = ""
    network: bool = False
    open: bool = True
    held: datetime | None = None  # its level lasts until then, if it is over


def _recorded(
    past: Iterable[FaultRecord], faults: Sequence[Fault] | None, table: FaultTable, now: datetime
) -> list[FaultRecord]:
    """The records after this reading: what is there goes on or begins, what is not ends; unread, nothing changes."""
    if faults is None:
        return list(past)
    present = _present(faults, table)
    made = []
    for record in past:
        entry = present.get(record.code)
        if entry is not None and _goes_on(record, entry, table, now):
            del present[record.code]
            record = record.model_copy(update={
                "level": _level(entry.level, record.code, _began(record, now), table, now), "ended": None,
                "network": entry.network, "text": entry.text})
        elif record.ended is None:
            record = record.model_copy(update={"ended": stamp(now)})
        made.append(record)
    for code, new in present.items():
        made.append(FaultRecord(code=code, level=_level(new.level, code, now, table, now), began=stamp(now),
                                network=new.network, text=new.text))
    return made


def _present(faults: Iterable[Fault], table: FaultTable) -> dict[str, Entry]:
    """The faults that leave a record, by code; of several with one code the worst."""
    present: dict[str, Entry] = {}
    for fault in faults:
        code, entry = normal(fault.code)[:64], table.entry(fault)
        if not _remembered(code, entry, table):
            continue
        other = present.get(code, entry)
        worst = entry if worse_than(entry.level, other.level) else other
        present[code] = worst.model_copy(update={"network": entry.network or other.network})
    return present


def _remembered(code: str, entry: Entry, table: FaultTable) -> bool:
    """Whether a fault leaves a record: all but those that need no action, whatever comes of them."""
    return entry.level != "NotHandleFault" or table.repeats(code) is not None or table.lasts(code) is not None


def _goes_on(record: FaultRecord, entry: Entry, table: FaultTable, now: datetime) -> bool:
    """Whether a fault that is there is the recorded one: that is there still, or has not been gone for long enough. One
    that is now mild (by a new table, say) is another."""
    rule = table.lasts(record.code)
    if record.ended is None:
        return record.level in MILD or _level(entry.level, record.code, _began(record, now), table, now) not in MILD
    return rule is not None and now - _ended(record, now) < timedelta(seconds=rule.up_seconds)


def _level(level: Level, code: str, began: datetime, table: FaultTable, now: datetime) -> Level:
    """The level of a fault that is there: a worse one once it has lasted long enough."""
    rule = table.lasts(code)
    lasted = rule is not None and now - began >= timedelta(seconds=rule.down_seconds)
    return rule.level if rule and lasted and worse_than(rule.level, level) else level


def _released(records: list[FaultRecord], order: Order | None, now: datetime) -> list[FaultRecord]:
    """Without the faults that a Release forgets."""
    given = moment(order.at) if order is not None and order.action == "Release" else None
    if given is None:
        return records
    return [record for record in records if record.ended is None or _ended(record, now) > given]


def _kept(records: list[FaultRecord], table: FaultTable, now: datetime) -> list[FaultRecord]:
    """Those that still matter: faults that are there, and the newest of those whose day or rule is not over. At most
    KEPT; of too many, what is there and worst is kept."""
    matter = []
    for record in records:
        rule = table.repeats(record.code)
        memory = max(DAY, timedelta(hours=rule.hours + rule.hold_hours)) if rule else DAY
        if record.ended is None or now - _ended(record, now) < min(memory, _MEMORY):
            matter.append(record)
    chosen = sorted(matter, key=lambda one: (one.ended is None, badness(one.level) if one.ended is None else 0,
                                             _ended(one, now)))[-KEPT:]
    return sorted(chosen, key=lambda one: (_began(one, now), one.code))


def _judged(record: FaultRecord, records: Sequence[FaultRecord], table: FaultTable, now: datetime) -> _Judged:
    """What one record means now: its level while it is there, and while its probation lasts."""
    level, ended = record.level, _ended(record, now)
    lasting, repeated = table.lasts(record.code), table.repeats(record.code)
    if repeated and worse_than(repeated.level, level) and _too_often(record.code, records, repeated, now):
        level = repeated.level
    held = ended + timedelta(seconds=lasting.up_seconds if lasting else 0)
    if level not in MILD:
        held = max(held, ended + _probation_length(record, records, table, now))
    active = record.ended is None or now < held
    return _Judged(record.code, level if active else None, record.text, record.network, record.ended is None, held)


def _too_often(code: str, records: Sequence[FaultRecord], rule: Repeated, now: datetime) -> bool:
    """Whether so many faults of the code began within the rule's hours."""
    began = sorted(_began(record, now) for record in records if record.code == code)
    window = timedelta(hours=rule.hours)
    return any(last - first <= window for first, last in zip(began, began[rule.times - 1 :]))


def _with_hold(record: FaultRecord, records: Sequence[FaultRecord], table: FaultTable, now: datetime) -> FaultRecord:
    """With what a rule asks for, once the last fault of a code is over. Asks: an agent sees one node, and must not keep
    much of a pool out by itself."""
    rule, hold = table.repeats(record.code), None
    same = [one for one in records if one.code == record.code]
    over = all(one.ended is not None for one in same)
    if rule and over and record is max(same, key=lambda one: _ended(one, now)) and _too_often(
            record.code, records, rule, now):
        hold = stamp(_ended(record, now) + timedelta(hours=rule.hold_hours))
    return record if record.hold == hold else record.model_copy(update={"hold": hold})


def _probation_length(
    record: FaultRecord, records: Sequence[FaultRecord], table: FaultTable, now: datetime
) -> timedelta:
    """Longer for each failure that was over before this one, in the 24 hours before it. Faults that overlap are one
    failure: what breaks often breaks several things at once."""
    rule, began = table.probation, _began(record, now)
    earlier = {one.began for one in records if one.level not in MILD and one.ended is not None
               and _ended(one, now) <= began and timedelta() < began - _began(one, now) < DAY}
    return timedelta(seconds=min(rule.longest_seconds, rule.seconds * rule.factor ** len(earlier)))


def _unrecorded(faults: Sequence[Fault] | None, table: FaultTable) -> list[_Judged]:
    """Faults that need no action and no memory: shown while they are there."""
    found = []
    for fault in faults or ():
        code, entry = normal(fault.code), table.entry(fault)
        if not _remembered(code, entry, table):
            found.append(_Judged(code[:64], entry.level, entry.text, entry.network))
    return found


def _not_later(record: FaultRecord, now: datetime) -> FaultRecord:
    """With no time in the future: a clock that was set back must not keep a device out for long. Written down, so that
    a probation begins now and not anew at every look."""
    late = {name: stamp(now) for name in ("began", "ended") if (at := moment(getattr(record, name))) and at > now}
    return record.model_copy(update=late) if late else record


def _began(record: FaultRecord, now: datetime) -> datetime:
    return min(moment(record.began) or now, now)


def _ended(record: FaultRecord, now: datetime) -> datetime:
    """`now` while it is there."""
    return min(moment(record.ended) or now, now) if record.ended else now


def _over(until: str | None, now: datetime) -> bool:
    ends = moment(until)
    return ends is not None and ends <= now
