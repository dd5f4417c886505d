"""What the API server takes and refuses of a TrainingJob, a World and a Report, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chart.helm import REPOSITORY
from contract.apiserver import ApiServer
from contract.manifests import DELETE, changed, command_job, job, report, world
from contract.rest import GROUP, Rest
from trainyard.api.crd import KINDS

NAMESPACE = "crd-schema"
JOBS, WORLDS, REPORTS = (f"{GROUP}/namespaces/{NAMESPACE}/{plural}" for plural in ("trainingjobs", "worlds", "reports"))


@pytest.fixture(scope="module")
def rest(crds: ApiServer) -> Iterator[Rest]:
    crds.namespace(NAMESPACE)
    with Rest(crds.kubeconfig) as client:
        yield client


GOOD: dict[str, dict[str, Any]] = {
    "everything": job(),
    "the smallest": command_job(),
    "a finetuning run from files": job(train__model={"path": "/models/llama"}, train__parallel=DELETE),
    "a name of 48 characters": command_job("a" * 48),
    "ranks by number": command_job(numProcPerNode=8),
    "hangSeconds auto": command_job(failurePolicy={"hangSeconds": "auto"}),
    "minNodes as many as numNodes": job(minNodes=4),
    "minLearningRate as high as the default": job(train__optimizer={"minLearningRate": 3e-4}),
    "batchSize without microBatchSize": job(train__microBatchSize=DELETE, train__batchSize=7),
    "subPath with dots in a name": job(checkpoint__subPath="a/..b/c"),
    "managed by somebody else": command_job(managedBy="kueue.x-k8s.io/multikueue"),
    "a template with anything in it": command_job(template={"metadata": {"annotations": {"a": "b"}}, "spec": {
        "priorityClassName": "x", "volumes": [{"name": "v", "csi": {"driver": "d", "volumeAttributes": {"k": "v"}}}]}}),
    "imports ahead": command_job(preload=["torch", "transformers.models.llama"]),
    "finished jobs kept for no time": command_job(ttlSecondsAfterFinished=0),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_job_is_taken(rest: Rest, case: str) -> None:
    answer = rest.create(JOBS, GOOD[case], dryRun="All")
    assert answer.ok, str(answer)
    assert answer.body["spec"] == GOOD[case]["spec"], "nothing may be pruned or filled in"


# name: (manifest, field, part of the message)
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no nodes": (command_job(numNodes=0), "spec.numNodes", "should be greater than or equal to 1"),
    "numNodes missing": (command_job(numNodes=DELETE), "spec.numNodes", "Required value"),
    "numNodes as text": (command_job(numNodes="2"), "spec.numNodes", 'must be of type integer: "string"'),
    "too many nodes": (command_job(numNodes=16385), "spec.numNodes", "should be less than or equal to 16384"),
    "more copies than other nodes": (job(checkpoint={"memory": {"copies": 8}}), "spec", "must be less than numNodes"),
    "minNodes above numNodes": (job(minNodes=5), "spec", "minNodes must not be above numNodes"),
    "neither train nor command": (command_job(command=DELETE), "spec", "exactly one of train and command must be set"),
    "both train and command": (job(command=["python3"]), "spec", "exactly one of train and command must be set"),
    "preload beside train": (job(preload=["torch"]), "spec", "preload needs command"),
    "a module that cannot be": (command_job(preload=["os;x"]), "spec.preload[0]", "should match"),
    "empty command": (command_job(command=[]), "spec.command", "should have at least 1 items"),
    "numProcPerNode in words": (command_job(numProcPerNode="many"), "spec.numProcPerNode",
                                "must be 'auto' or a whole number from 1 to 256"),
    "numProcPerNode 0": (command_job(numProcPerNode=0), "spec.numProcPerNode",
                         "must be 'auto' or a whole number from 1 to 256"),
    "hangSeconds 0": (command_job(failurePolicy={"hangSeconds": 0}), "spec.failurePolicy.hangSeconds",
                      "must be 'auto' or a whole number from 1 to 86400"),
    "a device that is no extended resource": (job(devices__resource="cpu"), "spec.devices.resource", "should match"),
    "devices without a number": (job(devices__perNode=DELETE), "spec.devices.perNode", "Required value"),
    "placement unknown": (command_job(placement="Random"), "spec.placement",
                          'supported values: "Planner", "Scheduler"'),
    "cleanPodPolicy unknown": (command_job(cleanPodPolicy="Some"), "spec.cleanPodPolicy",
                               'supported values: "All", "Running", "None"'),
    "negative deadline": (command_job(activeDeadlineSeconds=-1), "spec.activeDeadlineSeconds",
                          "should be greater than or equal to 1"),
    "negative ttl": (command_job(ttlSecondsAfterFinished=-1), "spec.ttlSecondsAfterFinished",
                     "should be greater than or equal to 0"),
    "scheduleSeconds 0": (command_job(scheduleSeconds=0), "spec.scheduleSeconds",
                          "should be greater than or equal to 1"),
    "unknown model family": (job(train__model__family="llama9"), "spec.train.model.family",
                             'supported values: "llama2", "mixtral"'),
    "a size of another family": (job(train__model__family="mixtral"), "spec.train.model",
                                 "size 8x7b is of family mixtral; 7b, 13b and 70b are of llama2"),
    "unknown model size": (job(train__model__size="8b"), "spec.train.model.size",
                           'supported values: "tiny", "7b", "13b", "70b", "8x7b"'),
    "no model": (job(train__model={}), "spec.train.model", "model needs one of size, config or path"),
    "no data": (job(train__data__sources=[]), "spec.train.data.sources", "should have at least 1 items"),
    "data without a path": (job(train__data__sources=[{}]), "spec.train.data.sources[0].path", "Required value"),
    "weight 0": (job(train__data__sources=[{"path": "/a", "weight": 0}]), "spec.train.data.sources[0].weight",
                 "should be greater than 0"),
    "no steps": (job(train__steps=0), "spec.train.steps", "should be greater than or equal to 1"),
    "batch not made of micro batches": (job(train__batchSize=65), "spec.train",
                                        "batchSize must be a multiple of microBatchSize"),
    "minLearningRate above the default": (job(train__optimizer={"minLearningRate": 4e-4}), "spec.train.optimizer",
                                          "minLearningRate must not be above learningRate"),
    "experts of a dense model": (job(train__experts={"capacityFactor": 1.25}), "spec.train",
                                 "experts is for model.family mixtral; leave it out"),
    "beta2 of 1": (job(train__optimizer__beta2=1.0), "spec.train.optimizer.beta2", "should be less than 1"),
    "evaluation of nothing": (job(train__evaluate__data=[]), "spec.train.evaluate.data", "should have at least 1"),
    "checkpoint every 0 steps": (job(checkpoint__every=0), "spec.checkpoint.every",
                                 "should be greater than or equal to 1"),
    "subPath absolute": (job(checkpoint__subPath="/a"), "spec.checkpoint", "subPath must be a path inside the volume"),
    "subPath upwards": (job(checkpoint__subPath="a/../.."), "spec.checkpoint",
                        "subPath must be a path inside the volume"),
    "a rule for success": (job(failurePolicy__rules=[{"onExitCodes": [1, 0], "action": "Fail"}]),
                           "spec.failurePolicy.rules[0]", "onExitCodes must not name 0"),
    "a rule without an action": (job(failurePolicy__rules=[{"onExitCodes": [1]}]),
                                 "spec.failurePolicy.rules[0].action", "Required value"),
    "an exit code of 300": (job(failurePolicy__rules=[{"onExitCodes": [300], "action": "Fail"}]),
                            "spec.failurePolicy.rules[0].onExitCodes[0]", "should be less than or equal to 255"),
    "too many rules": (job(failurePolicy__rules=[{"onExitCodes": [1], "action": "Fail"}] * 33),
                       "spec.failurePolicy.rules", "must have at most 32 items"),
    "a path of 1,025 characters": (job(train__data__tokenizer="x" * 1025), "spec.train.data.tokenizer",
                                   "may not be more than 1024"),
    "no spec": (changed(command_job(), {"spec": DELETE}), "spec", "Required value"),
    "a name of 49 characters": (command_job("a" * 49), "metadata.name", "must be a DNS label of at most 48 characters"),
    "a name with dots": (command_job("a.b"), "metadata.name", "must be a DNS label of at most 48 characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_job_is_refused_with_path_and_reason(rest: Rest, case: str) -> None:
    manifest, field, message = BAD[case]
    answer = rest.create(JOBS, manifest, dryRun="All")
    assert answer.status == 422, str(answer)
    assert any(path == field and message in text for path, text in answer.causes), answer.causes


@pytest.mark.parametrize(("path", "value"), [
    ("spec.numNode", 2), ("spec.train.optimizer.lr", 1e-3), ("spec.train.data.sources[0].pth", "/a"),
    ("spec.checkpoint.evry", 1), ("sepc", {}),
])
def test_an_unknown_field_is_refused_by_name(rest: Rest, path: str, value: Any) -> None:
    answer = rest.create(JOBS, changed(job(), {path: value}), dryRun="All")
    assert answer.status == 400
    assert f'unknown field "{path}"' in answer.message


def test_worlds_only_go_forward(rest: Rest) -> None:
    made = rest.create(WORLDS, world("forward"))
    assert made.ok, str(made)
    here = f"{WORLDS}/forward"
    assert rest.patch(here, {"spec": {"generation": 2}}).ok
    back = rest.patch(here, {"spec": {"generation": 1}})
    assert ("spec", "generation only grows") in [(path, text.split(": ")[-1]) for path, text in back.causes]
    far = rest.patch(here, {"spec": {"generation": 2**31 - 1}})
    assert ("spec", "generation grows by 1000 at most") in [(path, text.split(": ")[-1]) for path, text in far.causes]
    other = rest.patch(here, {"spec": {"job": "another"}})
    assert ("spec", "job cannot be changed") in [(path, text.split(": ")[-1]) for path, text in other.causes]


@pytest.mark.parametrize(("path", "value", "field"), [
    ("spec.token", "short", "spec.token"), ("spec.phase", "Stop", "spec.phase"), ("spec.size", 0, "spec.size"),
    ("spec.generation", 0, "spec.generation"),
])
def test_a_bad_world_is_refused(rest: Rest, path: str, value: Any, field: str) -> None:
    answer = rest.create(WORLDS, changed(world(), {path: value}), dryRun="All")
    assert [cause for cause, _ in answer.causes if cause != "<nil>"] == [field], str(answer)


@pytest.mark.parametrize(("path", "value", "field"), [
    ("spec.kind", "Happy", "spec.kind"), ("spec.failure.exitCode", 256, "spec.failure.exitCode"),
    ("spec.failure.text", "x" * 4097, "spec.failure.text"), ("spec.incarnation", 0, "spec.incarnation"),
    ("spec.formedAt", "yesterday", "spec.formedAt"),
])
def test_a_bad_report_is_refused(rest: Rest, path: str, value: Any, field: str) -> None:
    good = report("job-0-1", "uid")
    assert rest.create(REPORTS, good, dryRun="All").ok
    answer = rest.create(REPORTS, changed(good, {path: value}), dryRun="All")
    assert [cause for cause, _ in answer.causes if cause != "<nil>"] == [field], str(answer)


def test_explain_speaks_in_sentences_with_units_and_defaults(crds: ApiServer) -> None:
    text = " ".join(crds.kubectl("explain", "trainingjob.spec.train.optimizer").stdout.split())
    for expected in ("AdamW with linear warm-up and cosine decay.", "learningRate <number> Peak learning rate",
                     "Default: 0.0003.", "Steps of linear warm-up from 0.", "Default: a tenth of learningRate."):
        assert expected in text
    deadline = " ".join(crds.kubectl("explain", "tj.spec.activeDeadlineSeconds").stdout.split())
    assert "Seconds of not being suspended after which the job fails" in deadline


def test_kubectl_get_shows_how_training_goes(rest: Rest, crds: ApiServer) -> None:
    assert rest.create(JOBS, job("shown")).ok
    status = {"state": "Running", "nodes": {"ready": 3, "desired": 4}, "restarts": {"total": 2, "counted": 1},
              "progress": {"step": 120, "steps": 1000, "loss": "2.3125", "eta": "2030-01-01T10:00:00Z"},
              "conditions": [{"type": "Scheduled", "status": "False", "reason": "InsufficientResources",
                              "message": "", "lastTransitionTime": "2030-01-01T00:00:00Z"}]}
    written = rest.patch(f"{JOBS}/shown/status", {"status": status})
    assert written.ok, str(written)
    header, row = crds.kubectl("get", "tj", "shown", "-n", NAMESPACE).stdout.splitlines()
    assert header.split() == ["NAME", "STATE", "READY", "NODES", "STEP", "LOSS", "ETA", "RESTARTS", "AGE"]
    assert row.split()[:-1] == ["shown", "Running", "3", "4", "120", "2.3125", "2030-01-01T10:00:00Z", "2"]
    wide = crds.kubectl("get", "tj", "shown", "-n", NAMESPACE, "-o", "wide").stdout
    assert "InsufficientResources" in wide
    assert "huawei.com/Ascend910" in wide
    assert "trainingjob.trainyard.dev/shown" in crds.kubectl("get", "all", "-n", NAMESPACE, "-o", "name").stdout


def test_plain_client_side_apply_works(crds: ApiServer) -> None:
    """`kubectl apply -f crds/` keeps the whole object in an annotation of at most 256 KiB."""
    done = crds.kubectl("apply", "--dry-run=server", "-f", str(REPOSITORY / "crds"))
    assert done.stdout.count("(server dry run)") == len(KINDS)
