"""Devices that fail again: kept out for a growing time, never many without a human, never against an order of one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.api.times import moment, stamp
from trainyard.fleet.devices import Accelerators, Failure, Order
from trainyard.fleet.quarantine import SHARE, Blamed, Quarantines, quarantines
from unit.fleet.nodes import BAD, but, node

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
FIRST = 600.0


def failures(*hours: float, code: str = "80E18005", lasting: float = 1 / 60) -> tuple[Failure, ...]:
    """Faults that began so many hours ago."""
    return tuple(Failure(code, at(h), at(h - lasting) if h > lasting else "") for h in sorted(hours, reverse=True))


def at(hours_ago: float) -> str:
    return stamp(NOW - timedelta(hours=hours_ago))


def failed(*hours: float, told: Accelerators | None = None, number: int = 3, **more: Any) -> Accelerators:
    """A node whose device has failed so many hours ago."""
    return but(told or node(), number, failures=failures(*hours), **more)


def pool(told: Accelerators, size: int = 3) -> list[Accelerators]:
    """The node among others of its kind: 8 devices each."""
    return [told, *(node(f"other{i}") for i in range(size - 1))]


def judge(told: Accelerators, blamed: Blamed = frozenset(), seconds: float = FIRST, now: datetime = NOW) -> Quarantines:
    return quarantines(pool(told), blamed, now, seconds)


def obeyed(told: Accelerators, made: Quarantines) -> Accelerators:
    """The node with the orders written."""
    return replace(told, orders=made.orders.get(told.node, told.orders))


@pytest.mark.parametrize(("hours", "minutes"), [
    ((), None), ((1,), None), ((1, 25), None), ((0.5, 1), 10), ((0.5, 1, 2), 20), ((0.5, 1, 2, 3), 40),
    (tuple(range(1, 16)), 24 * 60)])
def test_it_grows_with_every_failure(hours: tuple[float, ...], minutes: float | None) -> None:
    made = judge(failed(*hours))
    if minutes is None:
        assert made.orders == {}
        return
    (order,) = made.orders["n1"]
    assert (order.device, order.action, order.by) == ("Ascend910-3", "Quarantine", "Operator")
    assert order.until == stamp(NOW + timedelta(minutes=minutes))
    assert order.reason == f"failed {len(hours)} times in 24 h, last with 80E18005"
    assert made.look_again == moment(order.until)


def test_a_failure_has_one_quarantine_and_the_next_a_longer_one() -> None:
    told = failed(1, 2)
    told = obeyed(told, judge(told))
    assert judge(told).orders == {}
    after = NOW + timedelta(minutes=11)
    assert judge(told, now=after).orders == {}, "over, and not given again for the same failure"
    again = failed(0.01, 1, 2, told=told)
    (order,) = judge(again).orders["n1"]
    assert order.until == stamp(NOW + timedelta(minutes=20))
    long_after = NOW + timedelta(hours=23)
    assert judge(told, now=long_after).orders == {"n1": ()}, "forgotten with the failures"


def test_faults_that_overlap_are_one_failure() -> None:
    several = (Failure("A", at(2), at(1.5)), Failure("B", at(1.9), at(1)), Failure("C", at(1.2), ""))
    assert judge(but(node(), 3, failures=several)).orders == {}
    assert judge(but(node(), 3, failures=(*several[:2], Failure("C", at(0.9), "")))).orders


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_never_more_than_a_tenth_of_a_pool(size: int) -> None:
    members = [node(f"n{i:02d}") for i in range(size)]
    for number in range(8):
        members = [but(told, number, failures=failures(1, 2)) for told in members]
    other = replace(failed(1, 2, told=node("gpu")), resource="nvidia.com/gpu", model="Other")
    made = quarantines([*members, other], frozenset(), NOW, FIRST)
    count = sum(len(orders) for orders in made.orders.values())
    assert count == int(SHARE * 8 * size)
    assert len(made.withheld) == 8 * size - count + 1
    assert {each.reason for each in made.withheld} == {"QuarantineLimit"}
    assert "gpu" not in made.orders, "a pool is one resource and model"
    written = [obeyed(told, made) for told in members]
    assert quarantines(written, frozenset(), NOW, FIRST).orders == {}
    over = NOW + timedelta(minutes=11)
    assert quarantines(written, frozenset(), over, FIRST).orders or not count, "places for others once some are over"


def test_what_is_quarantined_already_may_be_extended_at_the_limit() -> None:
    told = failed(1, 2, told=failed(1, 2, number=4), number=5)
    told = obeyed(told, judge(told))
    assert len(told.orders) == 2
    first = told.orders[0].device
    again = but(told, int(first[-1]), failures=failures(0.01, 1, 2))
    made = judge(again)
    assert len(made.orders["n1"]) == 2
    assert next(o for o in made.orders["n1"] if o.device == first).until == stamp(NOW + timedelta(minutes=20))


@pytest.mark.parametrize("action", ["Quarantine", "Release"])
@pytest.mark.parametrize("until", ["", at(-5)])
def test_an_administrators_order_is_never_touched(action: str, until: str) -> None:
    order = Order("Ascend910-3", action, "Administrator", at(6), until, "because")
    made = judge(failed(1, 2, told=node(orders=(order,))))
    assert made.orders == {}
    assert [each.reason for each in made.withheld] == (["ReleasedByAdministrator"] if action == "Release" else [])
    both = failed(1, 2, told=node(orders=(order,)), number=4)
    assert judge(both).orders["n1"][0] == order


def test_an_administrators_quarantine_that_is_over_is_in_nobodys_way() -> None:
    order = Order("Ascend910-3", "Quarantine", "Administrator", at(6), at(5), "because")
    assert judge(node(orders=(order,))).orders == {}, "it stays while there is no reason for another"
    (made,) = judge(failed(1, 2, told=node(orders=(order,)))).orders["n1"]
    assert (made.by, made.until) == ("Operator", stamp(NOW + timedelta(minutes=10)))
    again = judge(obeyed(failed(1, 2), judge(failed(1, 2, told=node(orders=(order,))))))
    assert again.orders == {}


def test_blame_on_a_job_takes_a_quarantine_back() -> None:
    told = failed(1, 2)
    blamed = frozenset({("n1", "Ascend910-3", "80E18005")})
    assert judge(told, blamed).orders == {}
    quarantined = obeyed(told, judge(told))
    assert judge(quarantined, blamed).orders == {"n1": ()}
    assert judge(quarantined, frozenset({("n2", "Ascend910-3", "80E18005"), ("n1", "Ascend910-3", "x")})).orders == {}
    another = but(told, 3, failures=(*failures(1, 2), *failures(0.1, 0.2, code="other")))
    assert judge(another, blamed).orders, "what no job is to blame for still counts"


def test_none_are_made_where_they_are_switched_off() -> None:
    assert judge(failed(1, 2), seconds=0).orders == {}


def held(hours: float, told: Accelerators | None = None, number: int = 3, began: float = 1) -> Accelerators:
    """A node with a device whose fault came too often for the fault table, which wants it out for so many hours."""
    return but(told or node(), number, failures=(Failure("80E01801", at(began), at(began - 0.1), at(-hours)),))


def test_what_the_fault_table_asks_for_is_an_order_of_the_operator() -> None:
    (order,) = judge(held(20)).orders["n1"]
    assert (order.until, order.at) == (at(-20), at(1))
    assert "80E01801" in order.reason
    told = obeyed(held(20), judge(held(20)))
    assert judge(told).orders == {}
    assert judge(told, now=NOW + timedelta(hours=21)).orders == {"n1": ()}
    assert judge(held(20, began=30)).orders, "longer than a day, if the table says so"
    assert judge(held(-1)).orders == {}, "over"
    assert judge(held(20), frozenset({("n1", "Ascend910-3", "80E01801")})).orders == {}, "a job is to blame"
    assert judge(held(20), seconds=0).orders == {}, "switched off"


def test_a_quarantine_grows_to_what_the_fault_table_asks_for_once_the_fault_is_over() -> None:
    there = but(node(), 3, failures=(*failures(2), Failure("80E01801", at(0.1))))
    told = obeyed(there, judge(there))
    assert told.orders[0].until == stamp(NOW + timedelta(minutes=10))
    over = but(told, 3, failures=(*failures(2), Failure("80E01801", at(0.1), at(0), at(-24))))
    (order,) = judge(over).orders["n1"]
    assert order.until == at(-24)
    assert judge(obeyed(over, judge(over))).orders == {}


def test_another_failure_makes_no_quarantine_shorter() -> None:
    told = obeyed(held(20), judge(held(20)))
    again = but(told, 3, failures=(Failure("80E01801", at(1), at(0.9)), Failure("80E01801", at(0.1))))
    (order,) = judge(again).orders["n1"]
    assert (order.until, order.at) == (at(-20), at(0.1))


def test_the_fault_table_does_not_take_more_than_a_tenth_of_a_pool_either() -> None:
    told = node()
    for number in range(8):
        told = held(20, told, number)
    made = judge(told)
    assert len(made.orders["n1"]) == 2, "of 24"
    assert [each.reason for each in made.withheld] == ["QuarantineLimit"] * 6


def test_an_order_about_a_device_that_is_there_no_longer_goes() -> None:
    order = Order("gone", "Quarantine", "Operator", at(1), at(-5))
    kept = Order("gone", "Quarantine", "Administrator", at(1))
    assert judge(node(orders=(order,))).orders == {"n1": ()}
    assert judge(node(orders=(kept,))).orders == {}


histories = st.lists(st.tuples(st.integers(0, 7), st.floats(0.01, 30), st.sampled_from("AB")), max_size=16)


@settings(max_examples=60, deadline=None)
@given(st.lists(histories, min_size=1, max_size=4), st.integers(0, 40))
def test_whatever_happens_it_comes_to_rest_within_the_limit(nodes: list[Any], later: int) -> None:
    members = []
    for number, history in enumerate(nodes):
        told = node(f"n{number}")
        for device in range(8):
            mine = sorted((f for d, hours, code in history if d == device for f in failures(hours, code=code)),
                          key=lambda each: each.began)
            told = but(told, device, failures=tuple(mine), **(BAD if mine else {}))
        members.append(told)
    for now in (NOW, NOW + timedelta(hours=later)):
        made = quarantines(members, frozenset(), now, FIRST)
        members = [obeyed(told, made) for told in members]
        assert quarantines(members, frozenset(), now, FIRST).orders == {}
        active = sum((moment(o.until) or now) > now for told in members for o in told.orders)
        assert active <= SHARE * 8 * len(members)
        assert all(len({o.device for o in told.orders}) == len(told.orders) for told in members)
