"""What holds of every life of a device."""

from __future__ import annotations

import json
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.agent.health import KEPT
from trainyard.agent.types import Fault
from trainyard.api.devices import LEVELS, DeviceStatus, Order, takes_new_work
from trainyard.api.times import moment, stamp
from unit.agent.devices import START, TABLE, Life

CODES = [*TABLE.codes, "UNLISTED"]
faults = st.lists(st.one_of(
    st.builds(Fault, code=st.sampled_from(CODES)),
    st.builds(Fault, code=st.sampled_from(["X", "Y"]), level=st.sampled_from(LEVELS), network=st.booleans()),
), max_size=3)
events = st.lists(st.tuples(
    st.sampled_from([0, 1, 5, 5, 5, 30, 61, 400, 4000, 50000, 90000]),  # seconds since the last
    faults, st.booleans(),  # held by a pod
    st.sampled_from(["read", "read", "read", "unread", "lost"]),
    st.sampled_from(["", "", "", "Quarantine", "Release"]),
), min_size=1, max_size=25)


def lived(history: list[tuple[int, list[Fault], bool, str, str]], restart: bool) -> list[DeviceStatus]:
    """The statuses of a life; `restart`: an agent of its own for every reading, which knows what the API kept."""
    life, second, seen = Life(), 0, []
    for gap, now, held, kind, order in history:
        second += gap
        life.hold("ns/pod" if held else "")
        life.orders = [Order.model_validate({"device": "Ascend910-0", "action": order, "by": "Operator",
                                             "at": stamp(START + timedelta(seconds=second))})] if order else []
        if restart:
            life.statuses = tuple(DeviceStatus.model_validate(json.loads(json.dumps(status.dump())))
                                  for status in life.statuses)
        seen.append(life.at(second, *now, unread=kind == "unread", lost=kind == "lost"))
        assert life.at(second, *now, unread=kind == "unread", lost=kind == "lost") == seen[-1]  # asked again, the same
    return seen


@settings(max_examples=150, deadline=None)
@given(events)
def test_every_life(history: list[tuple[int, list[Fault], bool, str, str]]) -> None:
    statuses = lived(history, restart=False)
    assert lived(history, restart=True) == statuses
    now = START
    for status, (gap, faults_, held, kind, order) in zip(statuses, history, strict=True):
        now += timedelta(seconds=gap)
        assert len(status.history) <= KEPT
        assert status.level is None or status.code
        if kind == "read":
            levels = [TABLE.entry(fault).level for fault in faults_]
            for level in levels:
                assert status.level is not None
                assert LEVELS.index(status.level) >= LEVELS.index(level)
                if not takes_new_work(level):
                    assert status.health == "Unhealthy" or (held and status.level == "PreSeparateNPU")
            assert status.health != "Unknown"
            if any(fault.network for fault in faults_):
                assert not status.network
        if status.probation:
            ends = moment(status.probation)
            assert ends is not None
            assert ends > now
            assert not takes_new_work(status.level)
        if order == "Quarantine" and not held:
            assert status.health == "Unhealthy"
        if status.health == "Healthy" and not held:
            assert takes_new_work(status.level)
            assert not status.quarantined
        if kind != "read" and takes_new_work(status.level) and not status.quarantined:
            assert status.health == "Unknown"


@settings(max_examples=60, deadline=None)
@given(events)
def test_what_is_well_for_long_enough_is_well(history: list[tuple[int, list[Fault], bool, str, str]]) -> None:
    life, second = Life(), 0
    for gap, now, _, _, _ in history:
        second += gap
        life.at(second, *now)
    life.at(second + 1)
    assert life.at(second + 1 + 48 * 3600).health == "Healthy"
    assert life.at(second + 1 + 48 * 3600).history == []
