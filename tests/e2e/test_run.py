"""A job that nothing happens to, and jobs that are paused, limited in time or deleted."""

from __future__ import annotations

import json
import math

import pytest
from e2e.manifests import counting, leave, training, wait_kept
from harness.installation import Yard
from harness.job import progress


def test_the_shipped_trainer_runs_to_the_end(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(training("complete", namespace, steps=12))
    status = job.wait_state("Succeeded", 240)
    assert status["progress"]["step"] == 12
    assert status["progress"]["percent"] == 100
    assert float(status["progress"]["loss"]) < 11
    assert status["restarts"] == {"total": 0, "counted": 0}
    assert status["checkpoint"]["durableStep"] == 12
    layout = status["layout"]
    chosen = {name: layout[name] for name in ("data", "shard", "tensor", "pipeline", "context")}
    assert math.prod(chosen.values()) == 2
    sizes = next(line for line in job.logs("complete-0-1").splitlines() if "million parameters" in line)
    assert all(f"{name} {size}" in sizes for name, size in chosen.items() if size > 1), sizes
    export = yard.volume(namespace) / "complete" / "export"
    assert json.loads((export / "config.json").read_text())["model_type"] == "llama"
    assert list(export.glob("*.safetensors"))
    job.wait("its event", lambda _: "Succeeded" in [event["reason"] for event in job.events()], 30)
    both = ["Succeeded", "Succeeded"]
    job.wait("finished pods that keep their logs", lambda _: [p["status"]["phase"] for p in job.pods()] == both, 60)


def test_a_users_own_script_in_an_image_without_trainyard(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("own-script", namespace, yard.plain_image, nodes=2, procs=2, steps=5))
    status = job.wait_state("Succeeded")
    assert status["progress"]["step"] == 5
    for rank in range(4):
        assert (yard.volume(namespace) / "own-script" / f"step-{rank}").read_text() == "5"


def test_suspend_saves_and_resume_goes_on(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("paused", namespace, yard.trainer_image, steps=40))
    wait_kept(yard, job, 5)
    job.patch({"suspend": True})
    status = job.wait_state("Suspended")
    assert job.pods() == []
    assert job.condition("Suspended", status)["status"] == "True"
    assert 5 <= progress(status) < 40
    saved = min(int((yard.volume(namespace) / "paused" / f"step-{rank}").read_text()) for rank in range(2))
    job.patch({"suspend": False})
    status = job.wait_state("Succeeded")
    assert status["restarts"] == {"total": 0, "counted": 0}, "a resume is no failure"
    starts = (yard.volume(namespace) / "paused" / "starts-0").read_text().split("\n")
    first, second = (line.split() for line in starts if line)
    assert first[1] == "0"
    assert int(second[1]) == saved, "no step that all ranks have finished is done again"


def test_a_suspended_job_may_change_its_size(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("resized", namespace, yard.trainer_image, nodes=2, steps=30))
    wait_kept(yard, job, 3)
    with pytest.raises(Exception, match="suspend"):
        job.patch({"numNodes": 1})
    job.patch({"suspend": True})
    job.wait_state("Suspended")
    job.patch({"numNodes": 1})
    job.patch({"suspend": False})
    job.wait_state("Succeeded")
    assert {pod["metadata"]["labels"]["trainyard.dev/index"] for pod in job.pods()} == {"0"}


def test_created_suspended_makes_no_pods(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("later", namespace, yard.trainer_image, steps=3, suspend=True))
    job.wait_state("Suspended")
    assert job.pods() == []
    job.patch({"suspend": False})
    job.wait_state("Succeeded")


def test_the_deadline_ends_a_job(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("late", namespace, yard.trainer_image, steps=1000, activeDeadlineSeconds=8))
    status = job.wait_state("Failed", 60)
    failed = job.condition("Failed", status)
    assert failed["reason"] == "DeadlineExceeded"
    assert "8" in failed["message"]
    job.wait("running pods removed", lambda _: not [p for p in job.pods() if p["status"]["phase"] == "Running"], 60)


def test_the_clock_of_the_deadline_restarts_on_resume(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("patient", namespace, yard.trainer_image, steps=50, activeDeadlineSeconds=600))
    wait_kept(yard, job, 20)
    before = job.status()["startTime"]
    job.patch({"suspend": True})
    job.wait_state("Suspended")
    job.patch({"suspend": False})
    assert job.wait_state("Succeeded")["startTime"] > before


def test_ttl_removes_a_finished_job(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("brief", namespace, yard.trainer_image, steps=2, ttlSecondsAfterFinished=3))
    job.wait_gone(90)


@pytest.mark.parametrize(("policy", "left"), [("All", []), ("None", ["Succeeded", "Succeeded"])])
def test_clean_pod_policy(yard: Yard, namespace: str, policy: str, left: list[str]) -> None:
    job = yard.api.apply(
        counting(f"clean-{policy.lower()}", namespace, yard.trainer_image, steps=2, cleanPodPolicy=policy)
    )
    job.wait_state("Succeeded")
    job.wait(f"pods {left}", lambda _: [pod["status"]["phase"] for pod in job.pods()] == left, 60)


@pytest.mark.parametrize("moment", ["at once", "starting", "running", "recovering", "suspended", "finished"])
def test_deletion_in_every_state(yard: Yard, namespace: str, moment: str) -> None:
    steps = 2 if moment == "finished" else 1000
    job = yard.api.apply(counting(f"gone-{moment.replace(' ', '-')}", namespace, yard.trainer_image, steps=steps))
    if moment == "starting":
        job.wait("a pod", lambda _: bool(job.pods()))
    if moment in ("running", "recovering", "suspended"):
        wait_kept(yard, job, 1)
    if moment == "recovering":
        job.kill_pod(job.pods()[0]["metadata"]["name"])
    if moment == "suspended":
        job.patch({"suspend": True})
        job.wait_state("Suspended")
    if moment == "finished":
        job.wait_state("Succeeded")
    job.delete()
    job.wait_gone(60)


@pytest.mark.timeout(900)
def test_twenty_jobs_at_once_and_all_are_hurt(yard: Yard, namespace: str) -> None:
    jobs = [yard.api.apply(counting(f"crowd-{i}", namespace, yard.trainer_image, steps=100_000, step_seconds=0.5))
            for i in range(20)]  # fmt: skip
    before = [wait_kept(yard, job, 2, 400, rank=1) for job in jobs]
    for number, job in enumerate(jobs):
        if number % 2:
            job.kill_pod(f"{job.name}-1-1")
        else:
            leave(yard.volume(namespace) / job.name, -9)
    for number, job in enumerate(jobs):
        status = job.wait("its recovery", lambda found: bool(found.get("recoveries")), 240)
        # A supervisor's word that it was told to stop may arrive before that of its pod's end.
        assert status["recoveries"][0]["cause"] in (("PodLost", "Moved") if number % 2 else ("RankFailed",))
        wait_kept(yard, job, before[number] + 3, 240, rank=1)
    for number, job in enumerate(jobs):
        assert job.status()["restarts"]["counted"] == 1 - number % 2, job.name
        job.delete()
    for job in jobs:
        job.wait_gone(120)
