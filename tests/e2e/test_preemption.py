"""A job of a higher priority class takes the places of a whole job, which saves its state first and comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from e2e.manifests import Object, counting, wait_kept
from harness.installation import Yard
from harness.job import progress
from kubernetes import client


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
    low = yard.api.apply(one_a_node(yard, counting("low", namespace, yard.trainer_image, nodes=nodes, steps=40)))
    wait_kept(yard, low, 3)
    high = yard.api.apply(one_a_node(yard, counting(
        "high", namespace, yard.trainer_image, nodes=1, steps=5, priorityClassName=urgent)))
    status = low.wait("its places given up", lambda now: not low.pods() and low.condition("Scheduled", now).get(
        "reason") == "Preempted", 120)
    saved = progress(status)
    assert saved >= 3
    high.wait_state("Succeeded", 180)
    status = low.wait_state("Succeeded", 240)
    assert status["restarts"] == {"total": 0, "counted": 0}, "making room is no failure"
    starts = (yard.volume(namespace) / "low" / "starts-0").read_text().split("\n")
    first, second = (line.split() for line in starts if line)
    assert first[1] == "0"
    assert int(second[1]) >= saved, "no finished step is done again"
    assert "Preempted" in [event["reason"] for event in low.events()]
    assert "Preempting" in [event["reason"] for event in high.events()]
