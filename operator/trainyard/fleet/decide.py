"""What follows from how all devices are: orders, node conditions, events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trainyard.fleet.condition import Health, health
from trainyard.fleet.devices import Accelerators, Order
from trainyard.fleet.quarantine import OPERATOR, Blamed, Withheld, quarantines

INVALID = ("InvalidDevices", "InvalidFaultTable")  # what somebody wrote; the agent goes on with the last good one


@dataclass(frozen=True, slots=True)
class Notice:
    """An Event about a node or its NodeDevices."""

    kind: Literal["Node", "NodeDevices"]
    node: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    device: str = ""

    @property
    def topic(self) -> tuple[str, ...]:
        """What it is about: figures in the message of one about a device (the size of the pool, say) make it no other
        warning."""
        return (self.kind, self.node, self.reason, self.device or self.message)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. `standing` are the warnings that hold now: each is announced when it is new."""

    orders: Mapping[str, tuple[Order, ...]]
    conditions: Mapping[str, Health | None]  # by node, where they change; None: there are no devices any more
    notices: tuple[Notice, ...]
    standing: frozenset[Notice]
    withheld: tuple[Withheld, ...]
    look_again: datetime | None


def decide(nodes: Mapping[str, Accelerators], troubles: Mapping[str, str], said: Mapping[str, Health | None],
           blamed: Blamed, now: datetime, quarantine_seconds: float) -> Decision:
    """`troubles`: by node, why its devices' health is not known; `said`: of every node, its condition as it is now."""
    made = quarantines(nodes.values(), blamed, now, quarantine_seconds)
    conditions: dict[str, Health | None] = {}
    notices: list[Notice] = []
    for node, before in said.items():
        told = nodes.get(node)
        after = health(told, troubles.get(node, "")) if told else None
        if after != before:
            conditions[node] = after
            if after and (before is None or (after.status, after.reason) != (before.status, before.reason)):
                kind: Literal["Normal", "Warning"] = "Normal" if after.status == "True" else "Warning"
                if before is not None or kind == "Warning":  # a node that comes up well is no news
                    notices.append(Notice("Node", node, kind, after.reason, after.message))
    for node, orders in made.orders.items():
        notices += _orders(nodes[node], orders)
    standing = {Notice("NodeDevices", each.node, "Warning", each.reason, each.message, each.device)
                for each in made.withheld}
    standing |= {notice for told in nodes.values() for notice in _strange(told)}
    standing |= {Notice("NodeDevices", node, "Warning", told.reason, told.message) for node, told in nodes.items()
                 if told.reason in INVALID}
    return Decision(made.orders, conditions, tuple(notices), frozenset(standing), made.withheld, made.look_again)


def _strange(told: Accelerators) -> list[Notice]:
    """People's orders from which nothing follows. A node that has lost all its devices says so itself."""
    there = ", ".join(each.id for each in told.devices[:16])
    return [Notice("NodeDevices", told.node, "Warning", "UnknownDevice", (
        f"spec.orders has an order ({order.action}) about {order.device}, and the node has no such device; it has "
        f"{there}. Nothing follows from the order: correct or remove it"), order.device)
        for order in told.orders if order.by != OPERATOR and told.devices and told.device(order.device) is None]


def _orders(told: Accelerators, orders: tuple[Order, ...]) -> list[Notice]:
    notices = [Notice("NodeDevices", told.node, "Warning", "Quarantined",
                      f"{order.device} is quarantined until {order.until}: {order.reason}")
               for order in orders if order not in told.orders]
    kept = {order.device for order in orders}
    notices += [Notice("NodeDevices", told.node, "Normal", "QuarantineOver", f"{order.device} is quarantined no longer")
                for order in told.orders if order.device not in kept]
    return notices
