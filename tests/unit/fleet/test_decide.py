"""Conditions and events: said when they change, in words that name what is wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trainyard.api.times import stamp
from trainyard.fleet.condition import Health, health
from trainyard.fleet.decide import Decision, Notice, decide
from trainyard.fleet.devices import Accelerators, Failure, Order
from unit.fleet.nodes import BAD, but, node

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
WELL = Health("True", "AllHealthy", "All 8 devices are healthy.")


@pytest.mark.parametrize(("changes", "status", "reason", "words"), [
    ({}, "True", "AllHealthy", "All 8 devices"),
    (BAD, "False", "DevicesUnhealthy", "1 of 8 devices have failed: Ascend910-3 (80E18005, RestartNPU: HBM error)"),
    ({"health": "Unknown"}, "Unknown", "HealthUnknown", "Ascend910-3"),
    ({"quarantined": True}, "False", "DevicesKeptOut", "Ascend910-3 (quarantined)"),
    ({"health": "Unhealthy", "quarantined": True}, "False", "DevicesKeptOut", "quarantined"),
    ({"level": "PreSeparateNPU", "code": "8C"}, "False", "DevicesKeptOut", "8C, PreSeparateNPU"),
    ({"network": False}, "False", "NetworkUnhealthy", "no link"),
    ({"level": "SubHealthFault", "code": "8C"}, "True", "SubHealthy", "8C, SubHealthFault"),
])
def test_what_a_nodes_condition_says(changes: dict[str, Any], status: str, reason: str, words: str) -> None:
    made = health(but(node(), 3, **changes), "")
    assert (made.status, made.reason) == (status, reason)
    assert words in made.message


def test_of_many_only_some_are_named() -> None:
    told = node()
    for number in range(6):
        told = but(told, number, **BAD)
    assert health(told, "").message.endswith("; and 2 more.")


@pytest.mark.parametrize(("told", "trouble", "reason", "words"), [
    (node(), "the agent's pod is not ready", "AgentAway", "the agent's pod is not ready."),
    (node(ready=False, reason="HealthUnreadable", message="npu-smi hangs"), "HealthUnreadable", "HealthUnreadable",
     "npu-smi hangs"),
])
def test_where_health_is_not_known(told: Accelerators, trouble: str, reason: str, words: str) -> None:
    assert health(told, trouble) == Health("Unknown", reason, words)


def look(*nodes: Accelerators, said: dict[str, Health | None] | None = None, **troubles: str) -> Decision:
    known = {told.node: told for told in nodes}
    return decide(known, troubles, dict.fromkeys(known) if said is None else said, frozenset(), NOW, 600)


def test_a_condition_is_written_when_it_changes_only() -> None:
    made = look(node())
    assert made.conditions == {"n1": WELL}
    assert made.notices == (), "a node that comes up well is no news"
    assert look(node(), said={"n1": WELL}).conditions == {}
    bad = look(but(node(), 3, **BAD), said={"n1": WELL})
    assert bad.conditions["n1"] is not None
    assert [(each.kind, each.type, each.reason) for each in bad.notices] == [("Node", "Warning", "DevicesUnhealthy")]
    back = look(node(), said={"n1": bad.conditions["n1"]})
    assert [(each.kind, each.type, each.reason) for each in back.notices] == [("Node", "Normal", "AllHealthy")]


def test_a_node_without_devices_loses_the_condition_and_others_never_get_it() -> None:
    assert look(said={"n1": WELL, "cpu": None}).conditions == {"n1": None}


def test_nothing_is_written_to_a_node_that_is_not_there() -> None:
    assert look(node("gone"), said={}).conditions == {}


def test_quarantines_are_announced_and_their_end() -> None:
    failures = tuple(Failure("1", stamp(NOW - timedelta(hours=h)), stamp(NOW - timedelta(hours=h - 0.5)))
                     for h in (2, 1))
    members = [but(node(), 3, failures=failures), node("n2")]
    made = look(*members)
    (order,) = made.orders["n1"]
    (notice,) = [each for each in made.notices if each.kind == "NodeDevices"]
    assert (notice.type, notice.reason) == ("Warning", "Quarantined")
    assert order.until in notice.message
    after = look(node(orders=(order,)), node("n2"))
    assert after.orders == {}, "still lasts"
    over = node(orders=(replace(order, until=stamp(NOW)),))
    assert [each.reason for each in look(over).notices] == ["QuarantineOver"]


def test_standing_warnings() -> None:
    failures = tuple(Failure("1", stamp(NOW - timedelta(hours=h)), stamp(NOW - timedelta(hours=h - 0.5)))
                     for h in (2, 1))
    table = node("n2", reason="InvalidFaultTable", message="line 3: no such level")
    made = look(but(node(), 3, failures=failures), table)
    assert made.orders, "a tenth of sixteen is one"
    assert [(each.node, each.reason) for each in made.standing] == [("n2", "InvalidFaultTable")]
    assert Notice("NodeDevices", "n2", "Warning", "InvalidFaultTable", "line 3: no such level") in made.standing
    alone = look(but(node(), 3, failures=failures))
    assert [each.reason for each in alone.withheld] == ["QuarantineLimit"]
    assert "no more than 0" in alone.withheld[0].message


def test_an_order_about_a_device_that_is_not_there_is_said() -> None:
    orders = (Order("Ascend910-99", "Quarantine", "Administrator", stamp(NOW)),
              Order("Ascend910-3", "Quarantine", "Administrator", stamp(NOW)))
    (notice,) = look(node(orders=orders)).standing
    assert (notice.reason, notice.device) == ("UnknownDevice", "Ascend910-99")
    assert "it has Ascend910-0, " in notice.message


def test_a_pool_that_grows_makes_no_new_warning_of_an_old_one() -> None:
    failures = tuple(Failure("1", stamp(NOW - timedelta(hours=h)), stamp(NOW - timedelta(hours=h - 0.5)))
                     for h in (2, 1))
    ill = but(node(count=4), 3, failures=failures)
    (one,), (other,) = look(ill).standing, look(ill, node("n2", count=4)).standing
    assert one.message != other.message
    assert one.topic == other.topic
