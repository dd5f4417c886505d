"""Jobs that cannot start say why, and start when they can."""

from __future__ import annotations

from typing import Any

import pytest
from e2e.manifests import counting, training
from harness.installation import Yard
from kubernetes.client.exceptions import ApiException


def test_a_wrong_field_is_refused_at_apply(yard: Yard, namespace: str) -> None:
    manifest = training("wrong", namespace)
    manifest["spec"]["train"]["optimizer"]["learningRate"] = -1
    with pytest.raises(ApiException, match=r"spec.train.optimizer.learningRate"):
        yard.api.apply(manifest)


def test_a_bad_image_is_named_and_mended(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("bad-image", namespace, "localhost/no/such:image", steps=3))
    status = job.wait("the image named", lambda s: "localhost/no/such:image" in job.describe(s), 60)
    assert status["state"] in ("Pending", "Starting")
    job.patch({"suspend": True})
    job.wait_state("Suspended")
    job.patch(counting("bad-image", namespace, yard.trainer_image, steps=3)["spec"] | {"suspend": False})
    job.wait_state("Succeeded")


def test_a_bad_template_is_refused_with_the_servers_words(yard: Yard, namespace: str) -> None:
    manifest = counting("bad-template", namespace, yard.trainer_image)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
    job = yard.api.apply(manifest)
    job.wait("a refusal", lambda s: job.condition("Accepted", s).get("status") == "False", 30)
    message = job.condition("Accepted")["message"]
    assert "must be less than or equal to cpu limit" in message
    assert job.pods() == []


@pytest.mark.parametrize(("name", "spec", "reason", "words"), [
    ("no-device", {"devices": {"resource": "example.com/npu", "perNode": 8}}, "NoSuchDevice",
     ["example.com/npu, which no node has"]),
    ("no-topology", {"topology": {"level": "superpod", "policy": "Required"}}, "NoSuchTopology",
     ["one super-pod, which no node is in", "what there is: node"]),
])
def test_an_unschedulable_job_says_what_is_missing(
        yard: Yard, namespace: str, name: str, spec: dict[str, Any], reason: str, words: list[str]) -> None:
    job = yard.api.apply(counting(name, namespace, yard.trainer_image, **spec))
    job.wait("a reason", lambda s: job.condition("Scheduled", s).get("status") == "False", 30)
    assert job.condition("Scheduled")["reason"] == reason
    assert all(each in job.condition("Scheduled")["message"] for each in words), job.condition("Scheduled")
    assert job.pods() == []


def test_a_gang_waits_as_a_whole(yard: Yard, namespace: str) -> None:
    """Five pods of which the nodes hold fewer: none is created until another job has gone."""
    manifest = counting("too-large", namespace, yard.trainer_image, nodes=64, steps=3)
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"memory": "4Gi"}}
    job = yard.api.apply(manifest)
    job.wait("a reason", lambda s: job.condition("Scheduled", s).get("status") == "False", 30)
    assert "memory" in job.condition("Scheduled")["message"]
    assert job.pods() == []


def test_pod_security_restricted(yard: Yard, namespace: str) -> None:
    yard.api.core.patch_namespace(
        namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    )
    yard.api.apply(counting("restricted", namespace, yard.trainer_image, steps=3)).wait_state("Succeeded")


def test_pod_security_violations_are_quoted(yard: Yard, namespace: str) -> None:
    yard.api.core.patch_namespace(
        namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    )
    manifest = counting("root", namespace, yard.trainer_image)
    manifest["spec"]["template"]["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    job = yard.api.apply(manifest)
    job.wait("a refusal", lambda s: job.condition("Accepted", s).get("status") == "False", 30)
    assert "privileged" in job.condition("Accepted")["message"]


def test_a_limit_range_is_counted(yard: Yard, namespace: str) -> None:
    """Defaults that the namespace adds are part of what the planner must find room for."""
    limits = {"limits": [{"type": "Container", "default": {"memory": "100Gi"}, "defaultRequest": {"memory": "100Gi"}}]}
    yard.api.core.create_namespaced_limit_range(namespace, {"metadata": {"name": "large"}, "spec": limits})
    job = yard.api.apply(counting("limited", namespace, yard.trainer_image, steps=3))
    job.wait("a reason", lambda s: job.condition("Scheduled", s).get("status") == "False", 30)
    assert "memory" in job.condition("Scheduled")["message"]
    assert job.pods() == []


def test_a_quota_one_pod_short(yard: Yard, namespace: str) -> None:
    yard.api.core.create_namespaced_resource_quota(
        namespace, {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}}
    )
    job = yard.api.apply(counting("quota", namespace, yard.trainer_image, nodes=2, steps=3))
    job.wait("a reason", lambda s: job.condition("Scheduled", s).get("status") == "False", 30)
    assert "small" in job.condition("Scheduled")["message"], "the quota is named"
    assert job.pods() == []
    yard.api.core.patch_namespaced_resource_quota("small", namespace, {"spec": {"hard": {"pods": "2"}}})
    job.wait_state("Succeeded")


def test_another_controllers_job_is_left_alone(yard: Yard, namespace: str) -> None:
    foreign = yard.api.apply(
        counting("foreign", namespace, yard.trainer_image, managedBy="example.com/multicluster", steps=2)
    )
    ours = yard.api.apply(counting("ours", namespace, yard.trainer_image, steps=2))
    ours.wait_state("Succeeded")
    assert foreign.status() == {}
    assert foreign.pods() == []


def bad_training(name: str, namespace: str, change: dict[str, object]) -> dict[str, Any]:
    """A job of the shipped trainer with this laid over its spec.train."""
    manifest = training(name, namespace)
    train = manifest["spec"]["train"]
    for key, value in change.items():
        train[key] = train.get(key, {}) | value if isinstance(value, dict) else value
    return manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"sources": [{"path": "/data/no-such.txt"}]}}, "/data/no-such.txt"),
        ({"data": {"tokenizer": "/data/no-tokenizer"}}, "/data/no-tokenizer"),
    ],
    ids=["path", "tokenizer"],
)
def test_bad_training_input_fails_once_with_one_line(
    yard: Yard, namespace: str, request: pytest.FixtureRequest, change: dict[str, object], words: str
) -> None:
    job = yard.api.apply(bad_training("bad-" + request.node.callspec.id, namespace, change))
    status = job.wait_state("Failed", 120)
    message = job.condition("Failed", status)["message"]
    assert words in message
    assert "Traceback" not in message
    assert status["restarts"] == {"total": 0, "counted": 0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"sequenceLength": 4096}}, "4096"),
        ({"batchSize": 3, "parallel": {"shard": 2}}, "batch"),
        ({"parallel": {"tensor": 3}}, "parallel.tensor"),
    ],
    ids=["sequence", "batch", "tensor"],
)
def test_what_cannot_be_laid_out_is_refused_before_any_pod(
    yard: Yard, namespace: str, request: pytest.FixtureRequest, change: dict[str, object], words: str
) -> None:
    job = yard.api.apply(bad_training("bad-" + request.node.callspec.id, namespace, change))
    job.wait("a reason", lambda s: job.condition("Accepted", s).get("status") == "False", 60)
    accepted = job.condition("Accepted")
    assert accepted["reason"] == "InvalidLayout"
    assert words in accepted["message"]
    assert job.pods() == []


def test_what_cannot_fit_is_refused_with_what_would_before_any_pod(yard: Yard, namespace: str) -> None:
    """7 billion parameters on two CPU pods whose limit holds a tenth of them."""
    manifest = bad_training("too-big", namespace, {"model": {"size": "7b", "config": {}}})
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "16Gi"}}
    job = yard.api.apply(manifest)
    job.wait("a reason", lambda s: job.condition("Accepted", s).get("status") == "False", 60)
    accepted = job.condition("Accepted")
    assert accepted["reason"] == "LayoutDoesNotFit"
    assert "no legal layout of 2 x CPU fits" in accepted["message"]
    assert "there are 17.2 GB. Would fit: " in accepted["message"]
    assert " nodes" in accepted["message"].partition("Would fit: ")[2]
    assert job.pods() == []
