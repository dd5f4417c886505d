"""Which fields of a TrainingJob may change when: the CRD's rules alone, and with the chart's policy beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from contract.apiserver import ApiServer
from contract.manifests import command_job, job
from contract.rest import GROUP, Answer, Rest

NAMESPACE = "crd-transitions"
JOBS = f"{GROUP}/namespaces/{NAMESPACE}/trainingjobs"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def rest(crds: ApiServer) -> Iterator[Rest]:
    """A server with the CRDs and nothing else."""
    crds.namespace(NAMESPACE)
    with Rest(crds.kubeconfig) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(installed: ApiServer) -> Iterator[Rest]:
    """A server with the CRDs and the chart's policies."""
    installed.namespace(NAMESPACE)
    with Rest(installed.kubeconfig) as client:
        yield client


def existing(rest: Rest, manifest: dict[str, Any] | None = None, **status: Any) -> str:
    """Make a job with that status; returns its path."""
    made = manifest or job()
    made["metadata"]["name"] = f"job-{next(_numbers)}"
    created = rest.create(JOBS, made)
    assert created.ok, str(created)
    path = f"{JOBS}/{made['metadata']['name']}"
    if status:
        written = rest.patch(f"{path}/status", {"status": status})
        assert written.ok, str(written)
    return path


def condition(type_: str, status: str = "True") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": "Test", "message": "",
            "lastTransitionTime": "2030-01-01T00:00:00Z"}


# What a rule of the CRD holds still while pods may exist: field -> a change of it.
FROZEN: dict[str, dict[str, Any]] = {
    "numNodes": {"numNodes": 5},
    "numProcPerNode": {"numProcPerNode": 4},
    "devices": {"devices": {"perNode": 4}},
    "train": {"train": {"steps": 2000}},
    "command": {"command": ["python3", "other.py"]},
    "preload": {"preload": ["torch"]},
    "template": {"template": None},
    "checkpoint.volume": {"checkpoint": {"volume": None}},
    "checkpoint.subPath": {"checkpoint": {"subPath": "elsewhere"}},
}
# What may change at any time before the end.
FREE: dict[str, dict[str, Any]] = {
    "suspend": {"suspend": True}, "minNodes": {"minNodes": 1}, "checkpoint.every": {"checkpoint": {"every": 10}},
    "failurePolicy": {"failurePolicy": {"maxRestarts": 50}}, "activeDeadlineSeconds": {"activeDeadlineSeconds": 60},
    "ttlSecondsAfterFinished": {"ttlSecondsAfterFinished": 60}, "cleanPodPolicy": {"cleanPodPolicy": "All"},
}


def _base(field: str) -> dict[str, Any]:
    return command_job() if field in ("command", "preload") else job()


def _refused(answer: Answer, field: str) -> bool:
    wanted = f"{field} can change only while the job is suspended and has no pods left: set spec.suspend to true"
    return answer.status == 422 and any(path == f"spec.{field}" and wanted in text for path, text in answer.causes)


@pytest.mark.parametrize("field", FROZEN)
def test_a_running_job_holds_still(rest: Rest, field: str) -> None:
    path = existing(rest, _base(field), admittedHash="abc", pods=4)
    answer = rest.patch(path, {"spec": FROZEN[field]})
    assert _refused(answer, field), str(answer)


@pytest.mark.parametrize("field", FROZEN)
def test_a_suspended_job_that_still_has_pods_holds_still(rest: Rest, field: str) -> None:
    path = existing(rest, _base(field), admittedHash="abc", pods=1)
    assert rest.patch(path, {"spec": {"suspend": True}}).ok
    answer = rest.patch(path, {"spec": FROZEN[field]})
    assert _refused(answer, field), str(answer)


@pytest.mark.parametrize("field", FROZEN)
def test_suspending_and_changing_in_one_update_is_too_early(rest: Rest, field: str) -> None:
    path = existing(rest, _base(field), admittedHash="abc", pods=0)
    answer = rest.patch(path, {"spec": {"suspend": True, **FROZEN[field]}})
    assert _refused(answer, field), str(answer)


@pytest.mark.parametrize("field", FROZEN)
def test_a_suspended_job_without_pods_may_change_and_resume_at_once(rest: Rest, field: str) -> None:
    path = existing(rest, _base(field), admittedHash="abc", pods=0)
    assert rest.patch(path, {"spec": {"suspend": True}}).ok
    answer = rest.patch(path, {"spec": {"suspend": False, **FROZEN[field]}})
    assert answer.ok, str(answer)


@pytest.mark.parametrize("field", FROZEN)
@pytest.mark.parametrize("status", [{}, {"pods": 0, "observedGeneration": 1}])
def test_a_job_that_was_never_admitted_may_change(rest: Rest, field: str, status: dict[str, Any]) -> None:
    path = existing(rest, _base(field), **status)
    answer = rest.patch(path, {"spec": FROZEN[field]})
    assert answer.ok, str(answer)


@pytest.mark.parametrize("field", FREE)
def test_what_a_running_job_may_change(rest: Rest, field: str) -> None:
    path = existing(rest, admittedHash="abc", pods=4)
    answer = rest.patch(path, {"spec": FREE[field]})
    assert answer.ok, str(answer)


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
@pytest.mark.parametrize("field", [*FROZEN, *FREE])
def test_after_the_end_only_suspend_and_the_finish_policies_change(rest: Rest, field: str, end: str) -> None:
    base = _base(field)
    base["spec"]["suspend"] = True  # a job may be suspended and ended; the end counts
    path = existing(rest, base, admittedHash="abc", pods=0, conditions=[condition(end), condition("Running", "False")])
    change = {"suspend": False} if field == "suspend" else (FROZEN | FREE)[field]
    answer = rest.patch(path, {"spec": change})
    if field in ("suspend", "ttlSecondsAfterFinished", "cleanPodPolicy"):
        assert answer.ok, str(answer)
        return
    assert answer.status == 422
    assert any(where == "spec" and "the job has ended; of its spec only suspend, cleanPodPolicy and "
               "ttlSecondsAfterFinished can still change" in text for where, text in answer.causes), answer.causes


def test_a_false_condition_is_no_end(rest: Rest) -> None:
    path = existing(rest, admittedHash="abc", pods=4, conditions=[condition("Failed", "False")])
    assert rest.patch(path, {"spec": {"minNodes": 1}}).ok


def test_metadata_and_status_may_change_after_the_end(rest: Rest) -> None:
    path = existing(rest, admittedHash="abc", pods=0, conditions=[condition("Succeeded")])
    assert rest.patch(path, {"metadata": {"labels": {"team": "a"}}}).ok
    assert rest.patch(f"{path}/status", {"status": {"pods": 0, "completionTime": "2030-01-01T00:00:00Z"}}).ok


def test_spec_does_not_change_through_status_nor_status_through_spec(rest: Rest) -> None:
    path = existing(rest, admittedHash="abc", pods=4)
    sneaked = rest.patch(f"{path}/status", {"spec": {"numNodes": 9}, "status": {"pods": 3}})
    assert (sneaked.body["spec"]["numNodes"], sneaked.body["status"]["pods"]) == (4, 3)
    lied = rest.patch(path, {"spec": {"minNodes": 1}, "status": {"pods": 0}})
    assert lied.body["status"]["pods"] == 3


@pytest.mark.parametrize(("before", "after"), [
    (None, "kueue.x-k8s.io/multikueue"), ("trainyard.dev/operator", "kueue.x-k8s.io/multikueue"),
    ("trainyard.dev/operator", None),
])
def test_managed_by_never_changes(rest: Rest, before: str | None, after: str | None) -> None:
    path = existing(rest, command_job(managedBy=before) if before else command_job())
    answer = rest.patch(path, {"spec": {"managedBy": after}})
    assert answer.status == 422
    assert any(where == "spec" and "managedBy cannot be changed" in text for where, text in answer.causes)


# A key exchanged for another: what a CRD's rule takes for no change in a field whose keys it does not know.
OPEN: dict[str, dict[str, Any]] = {
    "template": {"template": {"spec": None, "metadata": {"labels": {"a": "b"}}}},
    "checkpoint.volume": {"checkpoint": {"volume": {
        "persistentVolumeClaim": None, "nfs": {"server": "a", "path": "/"}}}},
    "train.model.config": {"train": {"model": {"config": {"rope_theta": None, "hidden_size": 64}}}},
}


@pytest.mark.parametrize("field", OPEN)
def test_the_policy_sees_inside_fields_that_belong_to_others(guarded: Rest, field: str) -> None:
    path = existing(guarded, admittedHash="abc", pods=4)
    answer = guarded.patch(path, {"spec": OPEN[field]})
    assert answer.status == 403, str(answer)
    assert f"{field} can change only while the job is suspended and has no pods left" in answer.message
    assert guarded.patch(path, {"spec": {"minNodes": 1}, "metadata": {"labels": {"a": "b"}}}).ok


@pytest.mark.parametrize("field", OPEN)
def test_the_policy_lets_a_resting_job_change(guarded: Rest, field: str) -> None:
    path = existing(guarded, admittedHash="abc", pods=0)
    assert guarded.patch(path, {"spec": {"suspend": True}}).ok
    answer = guarded.patch(path, {"spec": OPEN[field]})
    assert answer.ok, str(answer)
    never = existing(guarded)
    assert guarded.patch(never, {"spec": OPEN[field]}).ok


@pytest.mark.parametrize("field", OPEN)
def test_the_policy_knows_the_end(guarded: Rest, field: str) -> None:
    base = job(suspend=True)
    path = existing(guarded, base, admittedHash="abc", pods=0, conditions=[condition("Failed")])
    answer = guarded.patch(path, {"spec": OPEN[field]})
    assert answer.status in (403, 422), str(answer)
    assert "the end of the job" in answer.message or "the job has ended" in answer.message
    assert guarded.patch(path, {"spec": {"ttlSecondsAfterFinished": 1}}).ok
