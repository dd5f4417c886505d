"""Jobs of thousands of pods: what is looked at at once, and what waits for company."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from trainyard.controller.metrics import Metrics
from trainyard.controller.operator import Operator
from trainyard.controller.options import parse
from trainyard.controller.queue import WorkQueue
from trainyard.controller.snapshot import Memory
from trainyard.kube.client import Client, Object

CREATED = "2026-01-01T00:00:00Z"


class Clock:
    """Resource versions."""

    now = 0


def pod(node: str = "", phase: str = "Pending", uid: str = "p", deleting: bool = False, **container: Any) -> Object:
    Clock.now += 1
    labels = {"trainyard.dev/job": "j", "trainyard.dev/job-uid": "u", "trainyard.dev/index": "0",
              "trainyard.dev/incarnation": "1"}  # fmt: skip
    made: Object = {
        "metadata": {"name": "j-0-1", "namespace": "a", "uid": uid, "labels": labels, "creationTimestamp": CREATED,
                     "resourceVersion": str(Clock.now)},
        "spec": {"containers": [{"name": "trainer"}], **({"nodeName": node} if node else {})},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", **container}] if container else []},
    }  # fmt: skip
    if deleting:
        made["metadata"]["deletionTimestamp"] = CREATED
    return made


def job(generation: int = 1, **status: Any) -> Object:
    Clock.now += 1
    return {"metadata": {"name": "j", "namespace": "a", "uid": "u", "generation": generation,
                         "resourceVersion": str(Clock.now), "creationTimestamp": CREATED},
            "spec": {"numNodes": 1, "command": ["true"]}, "status": status}  # fmt: skip


async def test_only_what_nobody_waits_for_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Operator(parse(["--no-leader-election"]), Client(Configuration()), Metrics()).cluster
    heard: list[str] = []
    monkeypatch.setattr(cluster, "wake", lambda key: heard.append(f"wake {key}"))
    monkeypatch.setattr(cluster, "later", lambda key: heard.append(f"later {key}"))

    def said(store: Any, raw: Object) -> list[str]:
        heard.clear()
        store.put(raw)
        return heard.copy()

    assert said(cluster.jobs, job()) == ["wake a/j"]
    assert said(cluster.jobs, job(state="Pending")) == ["later a/j"]
    assert said(cluster.jobs, job(generation=2)) == ["wake a/j"]
    running = {"running": {"startedAt": CREATED}}
    sick = [{"name": "claim:x", "resources": [{"resourceID": "d0", "health": "Unhealthy"}]}]
    assert said(cluster.pods, pod()) == ["later a/j"]
    assert said(cluster.pods, pod("n")) == ["later a/j"]
    assert said(cluster.pods, pod("n", "Running", state=running, ready=True)) == ["later a/j"]
    assert said(cluster.pods, pod("n", "Running", state=running, allocatedResourcesStatus=sick)) == ["wake a/j"]
    assert said(cluster.pods, pod("n", "Running", state={"terminated": {"exitCode": 1}})) == ["wake a/j"]
    assert said(cluster.pods, pod("n", "Failed")) == ["wake a/j"]
    assert said(cluster.pods, pod(uid="q")) == ["wake a/j"]
    assert said(cluster.pods, pod(uid="q", deleting=True)) == ["wake a/j"]
    heard.clear()
    cluster.pods.forget("a/j-0-1")
    assert heard == ["wake a/j"]


async def test_only_jobs_that_are_dear_to_judge_rest() -> None:
    operator = Operator(parse(["--no-leader-election"]), Client(Configuration()), Metrics())
    operator.leading = True
    cheap, dear = Memory("c", judged_seconds=0.002), Memory("d", judged_seconds=0.1)
    operator.reconciler._memories |= {"a/cheap": cheap, "a/dear": dear}
    for key in ("a/cheap", "a/dear", "a/unknown"):
        operator._later(key)
    assert (operator.queue.depth, operator.queue.delayed) == (2, 1)
    operator._wake("a/dear")  # a report
    assert (operator.queue.depth, operator.queue.delayed) == (3, 0)
    assert operator.reconciler.pace("a/dear") == 1.0
    dear.judged_seconds = 0.01  # a gang of 500
    assert operator.reconciler.pace("a/dear") == pytest.approx(0.1)


async def test_soon_is_never_put_off_and_never_cuts_a_rest_short() -> None:
    runs: list[float] = []
    loop = asyncio.get_running_loop()

    async def work(key: str) -> None:
        runs.append(loop.time())
        if len(runs) == 1:
            raise RuntimeError("once")

    queue = WorkQueue(work)
    begun = loop.time()
    task = asyncio.create_task(queue.run())
    for _ in range(20):  # events keep coming
        queue.add_soon("a", 0.05)
        await asyncio.sleep(0.01)
    assert len(runs) == 1
    assert 0.04 < runs[0] - begun < 0.19
    while len(runs) < 2:
        queue.add_soon("a", 0.001)
        await asyncio.sleep(0.05)
    assert runs[1] - runs[0] > 0.6  # the rest after a failure: 1 s with its jitter
    task.cancel()


async def test_a_gang_of_thousands_may_take_longer_to_make() -> None:
    operator = Operator(parse(["--no-leader-election"]), Client(Configuration()), Metrics())
    limits = []
    for nodes in (2, 1000, 16384, "many"):
        raw = job()
        raw["spec"]["numNodes"] = nodes
        operator.cluster.jobs.put(raw)
        limits.append(operator.reconciler._limit("a/j"))
    assert limits == [pytest.approx(120.06), pytest.approx(150.0), 270.0, 120.0]
