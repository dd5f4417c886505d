"""A job of a higher priority class takes the places of a whole job, which saves its state first and comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from e2e import chain
from e2e.device_jobs import undisturbed
from e2e.manifests import CHAIN, Object, counting
from harness.installation import Yard
from harness.job import progress
from kubernetes import client

STEPS = 30  # the last ten are not begun while a file `hold` is there

@pytest.fixture
def urgent(yard: Yard) -> Iterator[str]:
    """A priority class above the default."""
    scheduling = client.SchedulingV1Api(yard.api.client)
    name = f"urgent-{os.urandom(2).hex()}"
    scheduling.create_priority_class({"metadata": {"name": name}, "value": 1000})
    yield name
    scheduling.delete_priority_class(name)


def one_a_node(yard: Yard, manifest: Object) -> Object:
    """The job, with pods of which no node holds two: each asks for more than half of a node's memory."""
    nodes = yard.api.core.list_node().items
    kibibytes = min(int(node.status.allocatable["memory"].removesuffix("Ki")) for node in nodes)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["resources"] = {"requests": {"memory": f"{kibibytes * 6 // 10}Ki"}}
    return manifest


def test_a_whole_job_makes_room_and_comes_back(yard: Yard, namespace: str, urgent: str) -> None:
    nodes = len(yard.api.core.list_node().items)
    folder = yard.volume(namespace) / "low"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "hold").touch()  # it does not end before the other one has come, however long that takes
    low = yard.api.apply(one_a_node(yard, counting(
        "low", namespace, yard.trainer_image, nodes=nodes, steps=STEPS, script=CHAIN)))
    low.wait("a few steps", lambda now: progress(now) >= 3, 120)
    high = yard.api.apply(one_a_node(yard, counting(
        "high", namespace, yard.trainer_image, nodes=1, steps=5, priorityClassName=urgent)))
    status = low.wait("its places given up", lambda now: not low.pods() and low.condition("Scheduled", now).get(
        "reason") == "Preempted", 120)
    saved = progress(status)
    assert 3 <= saved < STEPS
    (folder / "hold").unlink()
    high.wait_state("Succeeded", 180)
    status = low.wait_state("Succeeded", 240)
    assert status["restarts"] == {"total": 0, "counted": 0}, "making room is no failure"
    assert float(status["progress"]["loss"]) == chain.loss(undisturbed(0, STEPS)), "every step was taken exactly once"
    first, second = (int(line.split()[1]) for line in (folder / "starts-0").read_text().splitlines())
    assert first == 0
    assert second >= saved - 1, "it goes on from what all ranks had kept, and they are at most one step apart"
    assert "Preempted" in [event["reason"] for event in low.events()]
    assert "Preempting" in [event["reason"] for event in high.events()]
