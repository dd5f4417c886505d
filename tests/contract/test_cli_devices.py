"""`kubectl trainyard devices` against a real API server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Self
from uuid import uuid4

import pytest
from contract.apiserver import ApiServer
from contract.rest import GROUP, Rest
from trainyard.api.times import moment, stamp
from trainyard.cli import devices
from trainyard.cli.__main__ import main

PATH = f"{GROUP}/nodedevices"


@pytest.fixture(scope="module")
def rest(crds: ApiServer) -> Iterator[Rest]:
    with closing(Rest(crds.kubeconfig)) as client:
        yield client


@pytest.fixture
def node(rest: Rest) -> str:
    """NodeDevices of a node of its own, with four devices; the third is held and has a fault."""
    name = f"cli-{uuid4().hex[:8]}"
    made = rest.create(PATH, {
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "NodeDevices", "metadata": {"name": name},
        "spec": {"node": name, "resource": "huawei.com/Ascend910", "devices": [
            {"id": f"Ascend910-{number}", "physical": number} for number in range(4)]}})
    assert made.ok, str(made)
    status = rest.patch(f"{PATH}/{name}/status", {"status": {"devices": [
        {"id": "Ascend910-2", "health": "Unhealthy", "code": "80818C00", "level": "SeparateNPU", "pod": "ns/job-0",
         "history": [{"code": "80818C00", "level": "SeparateNPU", "began": "2026-11-22T04:00:00Z"}]}]}})
    assert status.ok, str(status)
    return name


def orders(rest: Rest, node: str) -> list[dict[str, Any]]:
    return list(rest.get(f"{PATH}/{node}").body["spec"].get("orders", []))


def run(server: ApiServer, *line: str) -> int:
    return main(["--kubeconfig", str(server.kubeconfig), "devices", *line])


def test_quarantine_and_release(crds: ApiServer, rest: Rest, node: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(crds, "quarantine", node, "Ascend910-1", "--for", "2h", "--reason", "fans") == 0
    assert run(crds, "quarantine", node, "2") == 0  # by its physical number
    said = capsys.readouterr().out
    first, second = orders(rest, node)
    assert (first["device"], first["action"], first["by"], first["reason"]) == (
        "Ascend910-1", "Quarantine", "Administrator", "fans")
    until, given = moment(first["until"]), moment(first["at"])
    assert until is not None
    assert given is not None
    assert until - given == timedelta(hours=2)
    assert abs(datetime.now(UTC) - given) < timedelta(minutes=2)
    assert second["device"] == "Ascend910-2"
    assert "until" not in second
    assert f"{node} Ascend910-1: quarantined until {first['until']}\n" in said
    assert f"{node} Ascend910-2: quarantined until it is released; pod ns/job-0 keeps it until it ends\n" in said

    assert run(crds, "release", node, "Ascend910-2") == 0
    assert [(each["device"], each["action"]) for each in orders(rest, node)] == [
        ("Ascend910-1", "Quarantine"), ("Ascend910-2", "Release")]
    assert "released; 80818C00 is there still and keeps it out" in capsys.readouterr().out


class Elsewhen(datetime):
    """A clock that is three hours slow."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(hours=3)


def test_the_clock_of_whoever_types_does_not_matter(
        crds: ApiServer, rest: Rest, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "datetime", Elsewhen)
    assert run(crds, "quarantine", node, "Ascend910-1", "--for", "1h") == 0
    (order,) = orders(rest, node)
    until = moment(order["until"])
    assert until is not None
    assert abs(until - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=2)


def test_a_release_comes_after_every_fault_that_is_shown_to_be_over(crds: ApiServer, rest: Rest, node: str) -> None:
    """By the node's clock, which may be a little ahead; one far ahead is no reason to forget what is to come."""
    ahead = stamp(datetime.now(UTC) + timedelta(minutes=2))
    far = stamp(datetime.now(UTC) + timedelta(days=300))
    history = [{"code": "80818C00", "level": "SeparateNPU", "began": "2026-11-22T04:00:00Z", "ended": at}
               for at in (ahead, far)]
    assert rest.patch(f"{PATH}/{node}/status", {"status": {"devices": [
        {"id": "Ascend910-1", "health": "Unhealthy", "history": history}]}}).ok
    assert run(crds, "release", node, "Ascend910-1") == 0
    assert orders(rest, node)[0]["at"] == ahead


def test_an_order_of_the_operator_is_replaced_and_others_are_kept(crds: ApiServer, rest: Rest, node: str) -> None:
    given = [{"device": f"Ascend910-{number}", "action": "Quarantine", "by": "Operator", "at": "2026-11-22T04:00:00Z"}
             for number in (0, 1)]
    assert rest.patch(f"{PATH}/{node}", {"spec": {"orders": given}}).ok
    assert run(crds, "release", node, "Ascend910-0") == 0
    assert [(each["device"], each["action"], each["by"]) for each in orders(rest, node)] == [
        ("Ascend910-1", "Quarantine", "Operator"), ("Ascend910-0", "Release", "Administrator")]


def test_orders_given_at_the_same_time_are_all_kept(crds: ApiServer, rest: Rest, node: str) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda n=number: codes.append(run(crds, "quarantine", node, str(n % 4))))
               for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 20
    assert sorted(each["device"] for each in orders(rest, node)) == [f"Ascend910-{number}" for number in range(4)]


def test_what_exists_is_listed(crds: ApiServer, node: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(crds, "list", node) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == [f"Ascend910-{number}" for number in range(4)]
    assert "SeparateNPU" in lines[3]
    assert run(crds, "list") == 0
    assert node in capsys.readouterr().out
    assert run(crds, "list", "-o", "json") == 0
    assert '"kind": "NodeDevicesList"' in capsys.readouterr().out


@pytest.mark.parametrize(("line", "said"), [
    (("quarantine", "{node}", "Ascend910-9"), "has no device Ascend910-9. It has: Ascend910-0, Ascend910-1,"),
    (("release", "nowhere", "Ascend910-0"), "node nowhere has no devices. Nodes that have: "),
    (("list", "nowhere"), "node nowhere has no devices. Nodes that have: "),
    (("quarantine", "{node}", "Ascend910-0", "--reason", "x" * 5000), "--reason has 5000 characters; at most 4096"),
])
def test_what_is_wrong_is_said_and_nothing_written(
    crds: ApiServer, rest: Rest, node: str, capsys: pytest.CaptureFixture[str], line: tuple[str, ...], said: str,
) -> None:
    assert run(crds, *(part.format(node=node) for part in line)) == 1
    assert said in capsys.readouterr().err
    assert orders(rest, node) == []


def test_who_may_not_is_told_what_it_takes(crds: ApiServer, node: str, capsys: pytest.CaptureFixture[str]) -> None:
    somebody = crds.user("somebody")
    crds.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "cli-view"},
                "rules": [{"apiGroups": ["trainyard.dev"], "resources": ["nodedevices"], "verbs": ["get", "list"]}]},
               {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": "cli-view"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cli-view"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "somebody"}]})
    assert main(["--kubeconfig", str(somebody), "devices", "list", node]) == 0
    assert main(["--kubeconfig", str(somebody), "devices", "quarantine", node, "0"]) == 1
    assert "you may not give orders about devices: " in capsys.readouterr().err
