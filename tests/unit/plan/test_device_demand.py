"""Devices and topology of the spec, on their way to placement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from trainyard.api.job import Avoid
from trainyard.placement.books import Books, Demand
from trainyard.plan.times import stamp
from trainyard.plan.types import Admit, CreatePod
from unit.placement.clusters import NPU, seated
from unit.plan.builders import NOW, RENDERING, condition, job, of_type


def cluster(*nodes: Any) -> Books:
    return Books({node.name: node for node in nodes})


def asking(count: int, nodes: int = 1, **fields: Any) -> Any:
    """A job for so many NPUs a pod, admitted."""
    case = job(nodes, devices={"resource": NPU, "perNode": count}, **fields)
    return case.but(rendering=replace(RENDERING, demand=Demand({NPU: count, "pods": 1})))


def test_a_number_that_no_model_allows_is_refused_at_admission_with_the_legal_ones() -> None:
    case = asking(3).but(rendering=None, books=cluster(seated("a"), seated("b")))
    made = case.plan()
    assert made.actions == ()
    verdict, reason, message = condition(made.status, "Accepted")
    assert (verdict, reason) == ("False", "IllegalDeviceCount")
    assert "910A (on 2 nodes) takes 1, 2, 4 or 8" in message
    assert made.requeue_after == 30
    assert case.but(books=cluster(seated("a"), seated("c", "910B-8"))).plan().actions == (Admit(),)


def test_an_admitted_job_is_told_when_its_number_is_illegal() -> None:
    made = asking(3).applied().but(books=cluster(seated("a"))).plan()
    assert condition(made.status, "Scheduled")[:2] == ("False", "IllegalDeviceCount")


@pytest.mark.parametrize(("policy", "nodes"), [("Required", []), ("Preferred", ["a", "b"])])
def test_topology(policy: str, nodes: list[str]) -> None:
    case = asking(8, 2, topology={"level": "superpod", "policy": policy}).applied()
    made = case.but(books=cluster(seated("a", super_pod="x"), seated("b", super_pod="y"))).plan()
    assert [pod.node for pod in of_type(made, CreatePod)] == nodes
    assert made.waiting is None or made.waiting.nearness is not None


@pytest.mark.parametrize(("device", "node"), [("d0", "b"), ("", "b")])
def test_an_avoided_device_is_one_of_the_last_to_be_used(device: str, node: str) -> None:
    entry = Avoid(node="a", device=device, reason="80E01801", until=stamp(NOW.replace(hour=23)))
    case = asking(8).applied().status_with(avoid=[entry]).but(books=cluster(seated("a"), seated("b")))
    assert [pod.node for pod in of_type(case.plan(), CreatePod)] == [node]
    made = case.but(books=cluster(seated("a"))).plan()
    assert [pod.node for pod in of_type(made, CreatePod)] == (["a"] if device else [])


def beside(case: Any) -> Any:
    """With books that know the job's pods."""
    each = case.snap.rendering.demand.requests
    return case.but(books=case.snap.books.take({f"ns/{pod.name}": pod.pinned for pod in case.snap.pods}, each))


def test_a_gang_shares_a_node_and_its_spare_is_on_another() -> None:
    case = asking(2, 2, spareNodes=1).but(books=cluster(seated("a"), seated("b")))
    case = beside(case.settled())
    assert [pod.pinned for pod in case.snap.pods] == ["a", "a"]
    made = case.started().settled()
    assert {pod.index: pod.pinned for pod in made.snap.pods} == {0: "a", 1: "a", 2: "b"}
    alone = case.but(books=replace(case.snap.books, nodes={"a": seated("a")})).started().settled()
    assert {pod.index: pod.pinned for pod in alone.snap.pods} == {0: "a", 1: "a", 2: "a"}, "rather there than none"


def test_a_replacement_stays_off_the_node_of_the_pod_that_goes_where_none_may_be_beside_another() -> None:
    """Kube-scheduler counts it as long as it is there."""
    case = asking(2, 2).but(books=cluster(seated("a"), seated("b"), seated("c")))
    demand = replace(case.snap.rendering.demand, apart="Required")
    case = beside(case.but(rendering=replace(case.snap.rendering, demand=demand)).settled().started().settled())
    assert [pod.pinned for pod in case.snap.pods] == ["a", "b"]
    lost = case.pod(1, deleting=case.snap.now)
    (create,) = of_type(lost.plan(), CreatePod)
    assert (create.index, create.node) == (1, "c")
    full = replace(lost.snap.books, nodes={name: lost.snap.books.nodes[name] for name in "ab"})
    made = lost.but(books=full).plan()
    assert not of_type(made, CreatePod)
    assert "2 are taken by another pod of the job" in condition(made.status, "Scheduled")[2]
