"""The operator dies; jobs do not notice."""

from __future__ import annotations

import pytest
from e2e.manifests import check_lost_pods, counting, wait_kept
from harness.installation import Yard


@pytest.mark.parametrize("moment", ["admission", "starting", "running", "recovering", "suspending", "finishing"])
def test_operator_killed_in_each_phase(yard: Yard, namespace: str, moment: str) -> None:
    name = f"headless-{moment}"
    steps = 8 if moment == "finishing" else 40
    job = yard.api.apply(counting(name, namespace, yard.trainer_image, nodes=2, steps=steps,
                                  step_seconds=0.6 if moment == "suspending" else 0.2))
    if moment == "starting":
        job.wait("a pod", lambda _: bool(job.pods()))
    if moment in ("running", "recovering", "suspending"):
        wait_kept(yard, job, 3)
    if moment == "recovering":
        job.kill_pod(f"{name}-1-1")
    if moment == "suspending":
        job.patch({"suspend": True})
    if moment == "finishing":
        wait_kept(yard, job, 6)
    yard.kill_operator()
    if moment == "suspending":
        job.wait_state("Suspended", 120)
        job.patch({"suspend": False})
    check_lost_pods(job.wait_state("Succeeded", 180), int(moment == "recovering"))


def test_leader_killed_in_the_middle_of_creating_a_gang(yard: Yard, namespace: str) -> None:
    """Names are deterministic, so the next leader completes the gang instead of making a second one."""
    job = yard.api.apply(counting("interrupted", namespace, yard.trainer_image, nodes=12, steps=3))
    job.wait("the first pods", lambda _: len(job.pods()) >= 1, 60)
    yard.kill_leader()
    status = job.wait_state("Succeeded", 240)
    assert status["restarts"]["counted"] == 0
    indices = sorted(int(pod["metadata"]["labels"]["trainyard.dev/index"]) for pod in job.pods())
    assert indices == list(range(12))


def test_a_follower_takes_over_within_15_seconds(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("steady", namespace, yard.trainer_image, nodes=2, steps=150))
    wait_kept(yard, job, 3)
    pods = {pod["metadata"]["uid"] for pod in job.pods()}
    seconds = yard.kill_leader()
    assert seconds <= 15
    status = job.wait_state("Succeeded", 180)
    assert {pod["metadata"]["uid"] for pod in job.pods()} == pods
    assert status["restarts"] == {"total": 0, "counted": 0}


def test_deletion_with_the_operator_down(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("orphan", namespace, yard.trainer_image, nodes=2, steps=1000))
    wait_kept(yard, job, 1)
    with yard.operator_down():
        job.delete()
        job.wait_gone(60)
