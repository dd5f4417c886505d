"""A spare takes a lost pod's place; a gang without replacement goes on smaller, and grows again."""

from __future__ import annotations

from e2e.manifests import check_lost_pods, counting, wait_kept
from harness.installation import Yard
from harness.job import Job, Object
from kubernetes import client


def worlds(yard: Yard, job: Job) -> Object:
    """The job's World."""
    objects = client.CustomObjectsApi(yard.api.core.api_client)
    found: Object = objects.get_namespaced_custom_object("trainyard.dev", "v1alpha1", job.namespace, "worlds", job.name)
    return dict(found["spec"])


def running(job: Job) -> dict[str, str]:
    """Names and UIDs of the pods that run."""
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in job.pods()
            if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")}


def test_a_spare_takes_the_place_of_a_lost_pod(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("spare", namespace, yard.trainer_image, nodes=2, steps=200, spareNodes=1))
    job.wait("a spare", lambda s: (s.get("nodes") or {}).get("spare") == 1, 120)
    wait_kept(yard, job, 3)
    before = running(job)
    assert sorted(before) == ["spare-0-1", "spare-1-1", "spare-2-1"]
    job.kill_pod("spare-1-1")
    status = job.wait("the recovery", lambda s: any("total" in (each.get("milliseconds") or {})
                                                     for each in s.get("recoveries") or ()), 60)
    assert worlds(yard, job)["places"] == {"1": 2}
    check_lost_pods(status, 1)
    print(f"spare promoted: {status['recoveries'][0]['milliseconds']}")
    assert "rank 1 of 2 goes on" in job.logs("spare-2-1")
    after = running(job)
    assert (after["spare-0-1"], after["spare-2-1"]) == (before["spare-0-1"], before["spare-2-1"])
    status = job.wait("a spare again", lambda s: (s.get("nodes") or {}).get("spare") == 1, 60)
    assert job.condition("SparesReady", status)["status"] == "True"
    check_lost_pods(job.wait_state("Succeeded", 120), 1)
    job.wait("nobody left", lambda _: not running(job), 40)


def test_a_gang_without_replacement_shrinks_and_grows_again(yard: Yard, namespace: str) -> None:
    quota = client.V1ResourceQuota(metadata=client.V1ObjectMeta(name="few"),
                                   spec=client.V1ResourceQuotaSpec(hard={"pods": "3"}))
    yard.api.core.create_namespaced_resource_quota(namespace, quota)
    job = yard.api.apply(counting("elastic", namespace, yard.trainer_image, nodes=3, steps=150, minNodes=2,
                                  failurePolicy={"replaceSeconds": 3}))
    wait_kept(yard, job, 3)
    before = running(job)
    yard.api.core.patch_namespaced_resource_quota("few", namespace, {"spec": {"hard": {"pods": "2"}}})
    job.kill_pod("elastic-1-1")
    status = job.wait("two pods that train", lambda s: s["state"] == "Running" and s["world"].get("size") == 2, 60)
    assert "2 of 3 pods train" in job.condition("Running", status)["message"]
    assert worlds(yard, job)["places"] == {"1": 2}
    assert status["recoveries"][0]["cause"] == "Shrunk"
    kept = wait_kept(yard, job, 1)
    wait_kept(yard, job, kept + 5)
    yard.api.core.patch_namespaced_resource_quota("few", namespace, {"spec": {"hard": {"pods": "3"}}})
    status = job.wait("three pods that train", lambda s: s["state"] == "Running" and s["world"].get("size") == 3, 90)
    assert [each["cause"] for each in status["recoveries"]] == ["Shrunk", "Grown"]
    assert status["recoveries"][1]["lostSteps"] == 0, "it grows at a checkpoint"
    after = running(job)
    assert all(after[name] == before[name] for name in ("elastic-0-1", "elastic-2-1")), "no survivor is touched"
    assert job.wait_state("Succeeded", 180)["restarts"]["counted"] == 0
