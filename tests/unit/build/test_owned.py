"""What a job owns besides its pods, and what is kept of it."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from trainyard.api import WRITTEN_ANNOTATION
from trainyard.api.protocol import Master, WorldSpec
from trainyard.build import (
    admitted_hash,
    belongings,
    pod,
    read_rendering,
    render,
    rendering_configmap,
    with_demand,
    world,
)
from trainyard.build.owned import written
from trainyard.placement.quantities import demand_of
from unit.build.jobs import JOB, SETTINGS, TRAIN, command_job, pod_spec, train_job, trainer
from unit.build.test_pods import OWNER

LABELS = {
    "app.kubernetes.io/managed-by": "trainyard",
    "trainyard.dev/job": "llama",
    "trainyard.dev/job-uid": "1234-uid",
}


def metadata(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": "team", "labels": LABELS, "ownerReferences": [OWNER], **more}


def binding(account: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata("llama-worker"),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "trainyard-worker"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "team"}],
    }


SELECTOR = {"matchLabels": {"trainyard.dev/job-uid": "1234-uid"}}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": metadata("llama"),
    "spec": {
        "podSelector": SELECTOR,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": SELECTOR}]}],
    },
}


def test_belongings() -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("llama")}
    assert belongings(JOB, train_job()) == [account, binding("llama"), POLICY]


def test_an_account_of_ones_own_is_bound_not_made() -> None:
    assert belongings(JOB, train_job(pod_spec(serviceAccountName="ours"))) == [binding("ours"), POLICY]


def test_world() -> None:
    spec = WorldSpec(job="1234-uid", generation=3, phase="Run", size=2, token="x" * 16, incarnations={"1": 2},
                     master=Master(pod="llama-0-1"))  # fmt: skip
    made = world(JOB, spec, "77")
    assert made == {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "World",
        "metadata": metadata("llama", resourceVersion="77", annotations={WRITTEN_ANNOTATION: written(spec.dump())}),
        "spec": spec.dump(),
    }
    assert WorldSpec.model_validate(made["spec"]) == spec
    assert "resourceVersion" not in world(JOB, spec)["metadata"]


def test_a_rendering_is_kept_and_read_back() -> None:
    template = pod_spec(nodeSelector={"a": "b"}, affinity={"nodeAffinity": {}}, tolerations=[{"operator": "Exists"}])
    rendered = render(JOB, train_job(template), SETTINGS)
    rendered = with_demand(rendered, demand_of(pod(rendered, 0, 1, None)))
    kept = rendering_configmap(rendered)
    assert {key: value for key, value in kept.items() if key != "data"} == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(
            f"llama-{rendered.hash}",
            labels=LABELS | {"trainyard.dev/version": "0.1.0"},
            annotations={"trainyard.dev/supervisor-image": "registry/trainer:1"},
        ),
        "immutable": True,
    }
    assert sorted(kept["data"]) == ["asked.json", "demand.json", "layout.json", "pod.json", "train.json"]
    config = json.loads(kept["data"]["train.json"])
    assert config["steps"] == 3
    assert config["data"]["sequenceLength"] == 4096  # defaults are settled once
    assert len(rendered.hash) == 10
    assert read_rendering(json.loads(json.dumps(kept))) == rendered


def test_a_command_job_keeps_no_train_config() -> None:
    rendered = render(JOB, command_job(trainer(image="a")), SETTINGS)
    kept = rendering_configmap(rendered)
    assert list(kept["data"]) == ["pod.json"]
    assert read_rendering(kept) == rendered


def test_a_rendering_that_was_tampered_with() -> None:
    kept = rendering_configmap(render(JOB, train_job(), SETTINGS))
    changed = deepcopy(kept)
    changed["data"]["train.json"] = "{}"
    with pytest.raises(ValueError, match="was changed: its contents do not have the hash in its name"):
        read_rendering(changed)
    with pytest.raises(ValueError, match="holds no rendering"):
        read_rendering({"metadata": kept["metadata"], "data": {}})


BASE = admitted_hash(train_job())


@pytest.mark.parametrize("changed", [
    train_job(numNodes=3), train_job(numProcPerNode=2), train_job({}), train_job(trainer(image="a")),
    train_job(devices={"resource": "a.b/c", "perNode": 1}), train_job(train=TRAIN | {"steps": 4}),
    train_job(checkpoint={"volume": {"nfs": {}}}), train_job(checkpoint={"subPath": "other"}), command_job(),
])  # fmt: skip
def test_what_only_a_suspended_job_may_change(changed: Any) -> None:
    assert admitted_hash(changed) != BASE


@pytest.mark.parametrize("changed", [
    train_job(suspend=True), train_job(ttlSecondsAfterFinished=0), train_job(checkpoint={"every": 5, "keep": 1}),
    train_job(failurePolicy={"maxRestarts": 1}), train_job(priorityClassName="a"),
    train_job(train={"steps": 3, "data": {"sources": [{"path": "/data"}]}, "model": {"size": "tiny"}}),
])  # fmt: skip
def test_what_may_change_any_time(changed: Any) -> None:
    assert admitted_hash(changed) == BASE
