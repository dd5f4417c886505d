"""From raw objects to what is kept of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from trainyard.api.protocol import WorldSpec
from trainyard.build import JobRef, owned
from trainyard.kube import views
from trainyard.kube.client import Object


def pod(status: dict[str, Any] | None = None, **spec: Any) -> Object:
    return {
        "metadata": {
            "namespace": "a", "name": "j-3-2", "uid": "u1", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"trainyard.dev/job": "j", "trainyard.dev/job-uid": "ju", "trainyard.dev/index": "3",
                       "trainyard.dev/incarnation": "2"},
            "annotations": {"trainyard.dev/rendered": "abc"}},
        "spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "500m"}}}], **spec},
        "status": status or {}}


def trainer(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "sidecar", "state": {"running": {}}}, {"name": "trainer", **state}]}


def pin(*names: str, **more: Any) -> dict[str, Any]:
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]} | more for name in names]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": required}}


def test_a_fresh_pod() -> None:
    own = views.own_pod(pod(**pin("n1")))
    assert own is not None
    assert (own.job, own.job_uid, own.view.index, own.view.incarnation) == ("j", "ju", 3, 2)
    assert (own.view.pinned, own.view.node, own.view.phase, own.view.rendered) == ("n1", None, "Pending", "abc")
    assert own.requests == {"cpu": 500, "pods": 1}


@pytest.mark.parametrize(("affinity", "pinned"), [
    (pin("n1", "n1"), "n1"), (pin("n1", "n2"), None), ({}, None),
    (pin("n1", matchExpressions=[{"key": "zone", "operator": "Exists"}]), "n1")])
def test_the_node_it_is_pinned_to(affinity: dict[str, Any], pinned: str | None) -> None:
    assert views._pinned(affinity) == pinned


def test_labels_that_make_no_sense() -> None:
    raw = pod()
    raw["metadata"]["labels"]["trainyard.dev/index"] = "first"
    assert views.own_pod(raw) is None


def seen(status: dict[str, Any], **spec: Any) -> Any:
    own = views.own_pod(pod(status, **spec))
    assert own is not None
    return own.view


def test_running() -> None:
    view = seen({"phase": "Running", "podIP": "10.0.0.1"} | trainer(
        ready=True, state={"running": {"startedAt": "2026-01-01T00:00:05Z"}}))
    assert (view.started, view.ready, view.ip) == (True, True, "10.0.0.1")
    assert view.started_at.second == 5


def test_ended() -> None:
    view = seen({"phase": "Failed"} | trainer(state={"terminated": {
        "exitCode": 137, "reason": "OOMKilled", "message": "last words"}}))
    assert (view.exit_code, view.oom, view.reason, view.message) == (137, True, "OOMKilled", "last words")
    assert view.finished


def test_an_image_that_cannot_be_pulled() -> None:
    view = seen({"phase": "Pending"} | trainer(state={"waiting": {"reason": "ImagePullBackOff", "message": "no such"}}))
    assert (view.reason, view.message) == ("ImagePullBackOff", "no such")
    assert seen({"phase": "Pending"} | trainer(state={"waiting": {"reason": "ContainerCreating"}})).reason == ""


def test_an_init_container_that_failed() -> None:
    view = seen({"phase": "Failed", "initContainerStatuses": [
        {"name": "drop", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]})
    assert (view.reason, view.failed_init, view.init_exit_code, view.exit_code) == ("Error", "drop", 1, None)


def test_a_sidecar_that_was_ended_with_the_pod_is_no_init_container_that_failed() -> None:
    ended = {"initContainerStatuses": [{"name": "log", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]}
    view = seen({"phase": "Failed"} | ended, initContainers=[{"name": "log", "restartPolicy": "Always"}])
    assert (view.reason, view.failed_init, view.init_exit_code) == ("", "", None)


def test_an_init_container_that_ran_out_of_memory() -> None:
    view = seen({"phase": "Failed", "initContainerStatuses": [
        {"name": "drop", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]})
    assert view.oom


def test_reasons_of_the_pod_itself_come_first() -> None:
    view = seen({"phase": "Failed", "reason": "Evicted", "message": "low on memory"} | trainer(
        state={"terminated": {"exitCode": 137, "reason": "Error"}}))
    assert (view.reason, view.message, view.exit_code) == ("Evicted", "low on memory", 137)


def test_unschedulable_and_disrupted() -> None:
    view = seen({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes",
         "lastTransitionTime": "2026-11-20T12:00:03Z"},
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]})
    assert (view.unschedulable, view.disruption) == ("0/3 nodes", "PreemptionByScheduler")
    assert view.unschedulable_since == datetime(2026, 11, 20, 12, 0, 3, tzinfo=UTC)


def test_usage_is_of_bound_unfinished_pods_only() -> None:
    assert views.usage(pod()) is None
    bound = pod({"phase": "Running"}, nodeName="n1", priority=5)
    assert views.usage(bound) == views.Usage("n1", {"cpu": 500, "pods": 1}, 5)
    assert views.usage(pod({"phase": "Succeeded"}, nodeName="n1")) is None
    twin = views.usage(pod({"phase": "Running"}, nodeName="n2"))
    first = views.usage(bound)
    assert twin is not None
    assert first is not None
    assert twin.requests is first.requests, "equal requests are kept once"


def report(sequence: int, uid: str = "u1") -> Object:
    return {"metadata": {"namespace": "a", "name": "j-3-2", "resourceVersion": "1"}, "spec": {
        "job": "ju", "podUid": uid, "index": 3, "incarnation": 2, "generation": 1, "sequence": sequence,
        "kind": "Formed", "aFieldOfTheFuture": 1}}


def test_a_report_was_received_when_its_sequence_was_first_seen() -> None:
    first = views.report(report(1))
    assert first is not None
    again = views.report(report(1), first)
    later = views.report(report(2), first)
    other = views.report(report(1, uid="u2"), first)
    assert again == first
    assert later is not None
    assert other is not None
    assert later.report.received > first.report.received
    assert other.report.received > first.report.received


def test_a_report_that_makes_no_sense_is_left_out() -> None:
    raw = report(1)
    raw["spec"]["index"] = "three"
    assert views.report(raw) is None


def test_a_world_that_makes_no_sense_is_left_out_without_its_secret(caplog: pytest.LogCaptureFixture) -> None:
    raw = {"metadata": {"namespace": "a", "name": "j", "resourceVersion": "1"}, "spec": {"token": "s3cret"}}
    assert views.world(raw) is None
    assert "generation" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_world_that_somebody_else_changed_is_known_as_such() -> None:
    spec = WorldSpec(job="uid", generation=3, phase="Run", size=2, token="0123456789abcdef", incarnations={"1": 2})
    raw = owned.world(JobRef("team", "llama", "uid"), spec, "7")
    stored = json.loads(json.dumps(raw))
    seen = views.world(stored)
    assert seen is not None
    assert (seen.spec, seen.edited) == (spec, False)
    changed = views.world(stored | {"spec": {**stored["spec"], "phase": "Done"}})
    assert changed is not None
    assert changed.edited
    del stored["metadata"]["annotations"]  # written by an operator that did not know of this
    old = views.world(stored)
    assert old is not None
    assert not old.edited
