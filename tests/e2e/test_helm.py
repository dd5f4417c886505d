"""The chart's life with a job running throughout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from e2e.manifests import counting, wait_kept
from harness.installation import Yard
from harness.job import Job, Object, progress

RENDERED = "trainyard.dev/rendered"


def pod_facts(job: Job) -> dict[str, tuple[str, str]]:
    """UID and rendering by pod name."""
    return {
        pod["metadata"]["name"]: (pod["metadata"]["uid"], pod["metadata"]["annotations"][RENDERED])
        for pod in job.pods()
    }


def _recovered(times: int) -> Callable[[Object], bool]:
    return lambda status: len(status.get("recoveries") or ()) == times and status["state"] == "Running"


@pytest.mark.timeout(600)
def test_install_upgrade_roll_back_uninstall_and_install_under_another_name(yard: Yard, namespace: str) -> None:
    try:
        _live(yard, namespace)
    finally:
        yard.install()  # whatever happened, the other tests find it as it was


def _live(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("throughout", namespace, yard.trainer_image, nodes=2, steps=100_000))
    wait_kept(yard, job, 3)
    before = pod_facts(job)

    # Another trainer image as the default of new jobs, and another operator setting: a running job keeps its own.
    yard.install("--set", "image.trainer.tag=another,operator.podGoneSeconds=6")
    assert pod_facts(job) == before
    job.kill_pod("throughout-1-1")
    job.wait("a replacement that trains", _recovered(1), 90)
    replaced = pod_facts(job)
    assert replaced["throughout-0-1"] == before["throughout-0-1"], "the survivor stays"
    assert replaced["throughout-1-2"][1] == before["throughout-1-1"][1], "a replacement is made like its peers"

    yard.cluster.helm("rollback", "trainyard", "--namespace", "trainyard-system", "--wait")
    step = progress(job.status())
    wait_kept(yard, job, step + 5)
    assert pod_facts(job) == replaced

    yard.uninstall()
    crds = yard.cluster.kubectl("get", "crd", "-o", "name")
    assert "trainingjobs.trainyard.dev" in crds, "jobs outlive the release"
    assert pod_facts(job) == replaced, "training goes on without an operator"

    yard.install(release="railway")
    try:
        step = progress(job.status())
        wait_kept(yard, job, step + 5)
        assert pod_facts(job) == replaced
        job.kill_pod("throughout-0-1")
        job.wait("another recovery", _recovered(2), 90)
        job.delete()
        job.wait_gone()
    finally:
        yard.uninstall("railway")
