"""What the builders make, judged by a real API server: strict fields, Pod Security, LimitRanges, quotas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from contract.apiserver import ApiServer
from contract.rest import Answer, Rest
from trainyard.api.job import TrainingJobSpec
from trainyard.api.protocol import WorldSpec
from trainyard.build import (
    BuildSettings,
    JobRef,
    belongings,
    pod,
    read_rendering,
    render,
    rendering_configmap,
    with_demand,
    world,
)
from trainyard.placement.quantities import demand_of, node_view, pod_usage

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TRAIN = {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/data"}]}, "steps": 3}
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Pod": "/api/v1/namespaces/{}/pods",
    "World": "/apis/trainyard.dev/v1alpha1/namespaces/{}/worlds",
}
LIMITS = {"cpu": "4", "memory": "8Gi"}
JOBS: dict[str, dict[str, Any]] = {
    "train": {
        "train": TRAIN,
        "devices": {"resource": "huawei.com/Ascend910", "perNode": 8},
        "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "shared"}}},
        "template": {"spec": {"containers": [{"name": "trainer", "resources": {"limits": LIMITS}}]}},
    },
    "command": {
        "command": ["python", "train.py", "--name", "$(TRAINYARD_JOB)"],
        "template": {"spec": {"containers": [{"name": "trainer", "image": "mine:1"}]}},
    },
}


@pytest.fixture(scope="module")
def rest(crds: ApiServer) -> Iterator[Rest]:
    with Rest(crds.kubeconfig) as rest:
        yield rest


def create(rest: Rest, thing: dict[str, Any], **query: str) -> Answer:
    return rest.create(PATHS[thing["kind"]].format(thing["metadata"]["namespace"]), thing, **query)


def job_in(namespace: str, fields: dict[str, Any]) -> tuple[JobRef, TrainingJobSpec]:
    ref = JobRef(namespace, "llama", "b4a7a1c5-6a5e-4c0e-8a8f-2d1d1f4f0a01")
    return ref, TrainingJobSpec.model_validate({"numNodes": 2, **fields})


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_everything_is_taken_in_a_restricted_namespace(crds: ApiServer, rest: Rest, kind: str) -> None:
    ref, spec = job_in(crds.namespace(f"built-{kind}", RESTRICTED), JOBS[kind])
    for thing in belongings(ref, spec):
        assert create(rest, thing).ok, thing["kind"]
    rendered = render(ref, spec, BuildSettings("registry.example/trainer:1", version="0.1.0"))
    tried = create(rest, pod(rendered, 0, 1, None), dryRun="All")
    assert tried.ok, tried
    rendered = with_demand(rendered, demand_of(tried.body))
    kept = create(rest, rendering_configmap(rendered))
    assert kept.ok, kept
    assert read_rendering(kept.body) == rendered
    made = create(rest, pod(rendered, 0, 1, "node-1"))
    assert made.ok, made
    assert pod_usage(made.body) == demand_of(tried.body).requests
    token = WorldSpec(job=ref.uid, generation=1, phase="Run", size=2, token="t" * 32)
    answer = create(rest, world(ref, token))
    assert answer.ok, answer


def test_what_a_limit_range_adds_is_counted(crds: ApiServer, rest: Rest) -> None:
    ref, spec = job_in(crds.namespace("built-limits"), {"train": TRAIN})
    defaults = {"type": "Container", "default": {"cpu": "3", "memory": "1Gi"}, "defaultRequest": {"cpu": "1500m"}}
    crds.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "d", "namespace": ref.namespace},
                "spec": {"limits": [defaults]}})  # fmt: skip
    for thing in belongings(ref, spec):
        assert create(rest, thing).ok
    tried = create(rest, pod(render(ref, spec, BuildSettings("a:1")), 0, 1, None), dryRun="All")
    demand = demand_of(tried.body)
    assert demand.requests == {"cpu": 1500, "memory": 1 << 30, "pods": 1}
    assert demand.limits == {"cpu": 3000, "memory": 1 << 30}


def test_a_mistake_in_the_template_is_named_by_the_server(crds: ApiServer, rest: Rest) -> None:
    wrong = {"spec": {"nodeSelecter": {"a": "b"}}}
    ref, spec = job_in(crds.namespace("built-wrong"), {"train": TRAIN, "template": wrong})
    for thing in belongings(ref, spec):
        assert create(rest, thing).ok
    answer = create(rest, pod(render(ref, spec, BuildSettings("a:1")), 0, 1, None), dryRun="All")
    assert (answer.status, 'unknown field "spec.nodeSelecter"' in answer.message) == (400, True), answer


def test_a_node_as_the_server_gives_it(crds: ApiServer, rest: Rest) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "built-node"}, "spec": {"unschedulable": True}}
    assert rest.create("/api/v1/nodes", node).ok
    status = {"status": {"allocatable": {"cpu": "3920m", "memory": "16Gi", "huawei.com/Ascend910": "8"},
                         "conditions": [{"type": "Ready", "status": "True"}]}}  # fmt: skip
    answer = rest.patch("/api/v1/nodes/built-node/status", status)
    assert answer.ok, answer
    view = node_view(answer.body)
    assert (view.name, view.cordoned, view.ready) == ("built-node", True, True)
    assert view.allocatable == {"cpu": 3920, "memory": 16 << 30, "huawei.com/Ascend910": 8}
    assert rest.request("DELETE", "/api/v1/nodes/built-node").ok
