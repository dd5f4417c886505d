"""`devices list`, `devices quarantine` and `devices release`: accelerators as NodeDevices tell of them, and orders
about them."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from trainyard.api import GROUP, VERSION
from trainyard.api.devices import DeviceStatus, Order
from trainyard.api.times import moment, stamp
from trainyard.cli.errors import Refused
from trainyard.kube.client import MERGE_PATCH, ApiError, Client, Object

PATH = f"/apis/{GROUP}/{VERSION}/nodedevices"
_PATIENCE_SECONDS = 30.0  # agent, operator and people write as well, and a script may give many orders at once
_LONGEST_PAUSE = 1.0
_REASON = 4096
_SKEW = timedelta(minutes=10)  # by which clocks of a cluster may differ
_HEAD = ("NODE", "DEVICE", "RING", "HEALTH", "SINCE", "FAULT", "LEVEL", "FAULTS/24H", "POD", "NOTE")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add(subparsers: Any) -> None:
    """The subcommand."""
    commands = subparsers.add_parser("devices", help="accelerators of the nodes, and orders about them").add_subparsers(
        title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="every device: its health, its fault, who holds it")
    listing.add_argument("node", nargs="?", metavar="NODE", help="default: all nodes")
    listing.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: %(default)s")
    listing.set_defaults(run=show)
    quarantine = commands.add_parser(
        "quarantine", help="keep new work off a device", description="Keep new work off a device, whatever its health "
        "says. A pod that holds it keeps it until it ends.")
    quarantine.add_argument("--for", dest="length", type=length, metavar="TIME",
                            help="how long, such as 90s, 30m, 2h, 1d12h; default: until it is released")
    release = commands.add_parser(
        "release", help="end a quarantine and forget past faults", description="End a device's quarantine and its "
        "probation, and forget the faults that are over. A fault that is there still keeps it out.")
    for command, action in ((quarantine, "Quarantine"), (release, "Release")):
        command.add_argument("node", metavar="NODE")
        command.add_argument("device", metavar="DEVICE", help="its id, such as Ascend910-3, or its physical number")
        command.add_argument("--reason", default="", help="why; shown in NodeDevices")
        command.set_defaults(run=order, action=action)


def length(text: str) -> timedelta:
    """A length of time, such as 1d12h. Raises argparse.ArgumentTypeError."""
    parts = re.findall(r"([0-9]+)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text or not any(int(n) for n, _ in parts):
        raise argparse.ArgumentTypeError(f"expected a length of time such as 90s, 30m, 2h or 1d12h, found {text!r}")
    try:
        return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is too long; without --for a quarantine has no end") from None


async def show(arguments: argparse.Namespace, client: Client) -> int:
    """Print all devices."""
    if arguments.node:
        found = [await _node(client, arguments.node)]
    else:
        found = sorted((await client.get(PATH)).get("items", []), key=lambda one: str(one["metadata"]["name"]))
    if arguments.output == "json":
        print(json.dumps({"apiVersion": f"{GROUP}/{VERSION}", "kind": "NodeDevicesList", "items": found}, indent=2))
    elif not found:
        print("No node has devices: no agent of Trainyard runs, or none has found any (see the DaemonSet's logs).")
    else:
        print(table(found, _now(client)))
    return 0


def table(found: Iterable[Object], now: datetime) -> str:
    """One line a device, aligned, with a line a node that cannot be read."""
    rows: list[Sequence[str]] = [_HEAD]
    said = []
    for one in found:
        node, spec, status = one["metadata"]["name"], one.get("spec") or {}, one.get("status") or {}
        states = {each["id"]: DeviceStatus.model_validate(each) for each in status.get("devices", [])}
        orders = {each["device"]: Order.model_validate(each) for each in spec.get("orders", [])}
        for device in spec.get("devices", []):
            name = device["id"]
            state = states.get(name) or DeviceStatus(id=name, health="Unknown", text="its agent has not told yet")
            rows.append((node, name, str(device.get("ring", 0)), state.health, _ago(state.since, now),
                         state.code or "-", state.level or "-", str(state.faults), state.pod or "-",
                         _note(state, orders.get(name), now)))
        for condition in status.get("conditions", []):
            if condition["type"] == "Ready" and (condition["status"] != "True" or condition.get("message")):
                said.append(f"{node}: {condition['reason']}: {condition.get('message', '')}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines + said)


def _note(state: DeviceStatus, order: Order | None, now: datetime) -> str:
    notes = []
    if state.quarantined:
        by = f" by the {order.by.lower()}" if order else ""
        until = f", {_left(order.until, now)} left" if order and order.until else ""
        why = f": {order.reason}" if order and order.reason else ""
        notes.append(f"quarantined{by}{until}{why}")
    if state.probation:
        notes.append(f"on probation, {_left(state.probation, now)} left")
    if not state.network:
        notes.append("no network")
    if state.text:
        notes.append(state.text)
    return "; ".join(notes)


def _ago(text: str | None, now: datetime) -> str:
    since = moment(text)
    return _short(now - since) if since else "-"


def _left(text: str, now: datetime) -> str:
    until = moment(text)
    return _short(until - now) if until else "unknown"


def _short(span: timedelta) -> str:
    """As kubectl writes ages: the largest unit that is at least 2."""
    seconds = max(0, int(span.total_seconds()))
    for unit in ("d", "h", "m"):
        if seconds >= 2 * _UNITS[unit]:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


async def order(arguments: argparse.Namespace, client: Client) -> int:
    """Write an order in the administrator's name, instead of what was ordered about the device before."""
    begun, pause = time.monotonic(), 0.1
    while True:
        found = await _node(client, arguments.node)
        device = _device(found, arguments.device)
        given = _order(arguments, device, _given_at(found, device, arguments.action, _now(client)))
        others = [each for each in found["spec"].get("orders", []) if each.get("device") != device]
        patch = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                 "spec": {"orders": [*others, given.dump()]}}
        try:
            await client.write("PATCH", f"{PATH}/{arguments.node}", patch, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.conflict and time.monotonic() - begun < _PATIENCE_SECONDS:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # somebody wrote in between: look again
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if error.status == 403:
                raise Refused(f"you may not give orders about devices: {error.message}. It takes the ClusterRole "
                              "<release>-device-admin of Trainyard's chart, bound by a ClusterRoleBinding") from error
            raise
        print(_answer(found, given))
        return 0


def _now(client: Client) -> datetime:
    """By the cluster's clock: that of whoever types may be wrong, and the agents compare with theirs."""
    return client.server_time or datetime.now(UTC)


def _given_at(found: Object, device: str, action: str, now: datetime) -> datetime:
    """When an order is given. A release comes after all faults that NodeDevices show to be over: the node's clock may
    be a little ahead."""
    states = (found.get("status") or {}).get("devices") or ()
    ended = [moment(record.get("ended")) for state in states if state.get("id") == device and action == "Release"
             for record in state.get("history") or ()]
    return max([now, *(at for at in ended if at and at - now < _SKEW)])


def _order(arguments: argparse.Namespace, device: str, now: datetime) -> Order:
    ends = getattr(arguments, "length", None)
    if len(arguments.reason) > _REASON:
        raise Refused(f"--reason has {len(arguments.reason)} characters; at most {_REASON} are kept")
    try:
        until = None if ends is None else stamp(now + ends)
    except OverflowError:
        raise Refused("--for is too long; leave it out for a quarantine without end") from None
    return Order(device=device, action=arguments.action, by="Administrator", at=stamp(now), until=until,
                 reason=arguments.reason)


def _answer(found: Object, given: Order) -> str:
    """What was done, and what it does not do."""
    node = found["metadata"]["name"]
    states = {each["id"]: DeviceStatus.model_validate(each) for each in (found.get("status") or {}).get("devices", [])}
    state = states.get(given.device)
    if given.action == "Quarantine":
        until = f" until {given.until}" if given.until else " until it is released"
        rest = f"; pod {state.pod} keeps it until it ends" if state and state.pod else ""
        return f"{node} {given.device}: quarantined{until}{rest}"
    there = [record.code for record in state.history if record.ended is None] if state else []
    rest = f"; {', '.join(there)} is there still and keeps it out" if there else ""
    return f"{node} {given.device}: released{rest}"


async def _node(client: Client, node: str) -> Object:
    try:
        return await client.get(f"{PATH}/{node}")
    except ApiError as error:
        if not error.not_found:
            raise
    known = sorted(str(one["metadata"]["name"]) for one in (await client.get(PATH)).get("items", []))
    raise Refused(f"node {node} has no devices. " + (f"Nodes that have: {_some(known)}" if known else
                  "No node has any: no agent of Trainyard runs, or none has found any"))


def _device(found: Object, wanted: str) -> str:
    devices = found["spec"].get("devices", [])
    for device in devices:
        if wanted in (device["id"], str(device.get("physical", ""))):
            return str(device["id"])
    raise Refused(f"node {found['metadata']['name']} has no device {wanted}. It has: "
                  f"{_some([str(device['id']) for device in devices])}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
