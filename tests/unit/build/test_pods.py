"""Whole pods, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.build import BuildSettings, RenderedJob, pod, render, with_demand
from trainyard.placement.books import Demand
from trainyard.placement.quantities import demand_of
from unit.build.jobs import JOB, SETTINGS, command_job, pod_spec, train_job, trainer

OWNER = {
    "apiVersion": "trainyard.dev/v1alpha1",
    "kind": "TrainingJob",
    "name": "llama",
    "uid": "1234-uid",
    "controller": True,
    "blockOwnerDeletion": False,
}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
STAYING = [
    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
]
TMP = {"name": "trainyard-tmp", "mountPath": "/tmp"}
CONFIGURATION = [{"key": name, "path": name} for name in ("train.json", "asked.json")]
SHM = {"name": "trainyard-shm", "mountPath": "/dev/shm"}


def environment(**values: str) -> list[dict[str, Any]]:
    known = {"TRAINYARD_POD": "metadata.name", "TRAINYARD_POD_UID": "metadata.uid", "TRAINYARD_POD_IP": "status.podIP"}
    if "TRAINYARD_HCCL" in values or "TRAINYARD_MEMORY" in values:
        known |= {"TRAINYARD_NODE": "spec.nodeName"}
    if "TRAINYARD_HCCL" in values:
        known |= {"TRAINYARD_HOST_IP": "status.hostIP"}
    return [
        *({"name": name, "value": values[name]} for name in ("TRAINYARD_INDEX", "TRAINYARD_INCARNATION")),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in known.items()),
        {"name": "TRAINYARD_JOB", "value": "llama"},
        {"name": "TRAINYARD_JOB_UID", "value": "1234-uid"},
        {"name": "TRAINYARD_NAMESPACE", "value": "team"},
        *({"name": n, "value": v} for n, v in values.items() if n not in ("TRAINYARD_INDEX", "TRAINYARD_INCARNATION")),
        {"name": "HOME", "value": "/tmp"},
        {"name": "USER", "value": "trainer"},
    ]


def test_a_mindspore_job_says_so_to_the_supervisor() -> None:
    made = pod(render(JOB, command_job(runtime="mindspore", template=trainer(image="mine")), SETTINGS), 0, 1, "")
    variables = {one["name"]: one.get("value") for one in made["spec"]["containers"][0]["env"]}
    assert variables["TRAINYARD_RUNTIME"] == "mindspore"
    assert "TRAINYARD_HCCL" not in variables


def test_a_pod_of_the_shipped_trainer() -> None:
    spec = train_job(
        devices={"resource": "huawei.com/Ascend910", "perNode": 8},
        checkpoint={"volume": {"persistentVolumeClaim": {"claimName": "shared"}}, "every": 7, "keep": 2},
        priorityClassName="high",
    )
    rendered = render(JOB, spec, SETTINGS)
    npus = {"huawei.com/Ascend910": "8"}
    assert pod(rendered, 1, 2, "node-7") == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "llama-1-2",
            "namespace": "team",
            "labels": {
                "trainyard.dev/job": "llama",
                "trainyard.dev/job-uid": "1234-uid",
                "trainyard.dev/index": "1",
                "trainyard.dev/incarnation": "2",
            },
            "annotations": {
                "kubectl.kubernetes.io/default-container": "trainer",
                "trainyard.dev/rendered": rendered.hash,
            },
            "ownerReferences": [OWNER],
        },
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": "llama",
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 30,
            "priorityClassName": "high",
            "securityContext": POD_SECURITY,
            "tolerations": STAYING,
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-7"]}]}
                        ]
                    }
                }
            },
            "containers": [
                {
                    "name": "trainer",
                    "image": "registry/trainer:1",
                    "command": ["python3", "/opt/trainyard/supervisor.pyz", "--", "python3", "-m", "trainer"],
                    "env": environment(
                        TRAINYARD_INDEX="1",
                        TRAINYARD_INCARNATION="2",
                        TRAINYARD_NUM_NODES="2",
                        TRAINYARD_NUM_PROC="8",
                        TRAINYARD_MAX_RESTARTS="10",
                        TRAINYARD_HANG_SECONDS="auto",
                        TRAINYARD_GRACE="30",
                        TRAINYARD_CHECKPOINT_EVERY="7",
                        TRAINYARD_CHECKPOINT_KEEP="2",
                        TRAINYARD_STRAGGLERS="Report",
                        TRAINYARD_TRAIN_CONFIG="/etc/trainyard/train.json",
                        TRAINYARD_PRELOAD="trainer.preload:warm_up",
                        TRAINYARD_CHECKPOINT="/checkpoint",
                        TRAINYARD_MEMORY="/dev/shm/trainyard",
                        TRAINYARD_MEMORY_EVERY="auto",
                        TRAINYARD_MEMORY_COPY_EVERY="auto",
                        TRAINYARD_MEMORY_COPIES="auto",
                        TRAINYARD_HCCL="true",
                        OMP_NUM_THREADS="1",
                    ),
                    "resources": {"limits": npus, "requests": npus},
                    "volumeMounts": [
                        TMP,
                        SHM,
                        {"name": "trainyard-config", "mountPath": "/etc/trainyard", "readOnly": True},
                        {"name": "trainyard-podinfo", "mountPath": "/etc/trainyard-podinfo", "readOnly": True},
                        {"name": "trainyard-checkpoint", "mountPath": "/checkpoint", "subPath": "llama"},
                    ],
                    "securityContext": RESTRICTED,
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }
            ],
            "volumes": [
                {"name": "trainyard-tmp", "emptyDir": {}},
                {"name": "trainyard-shm", "emptyDir": {"medium": "Memory"}},
                {
                    "name": "trainyard-config",
                    "configMap": {"name": rendered.name, "items": CONFIGURATION},
                },
                {"name": "trainyard-podinfo", "downwardAPI": {"items": [{
                    "path": "ascend-910-configuration", "fieldRef": {
                        "fieldPath": "metadata.annotations['ascend.kubectl.kubernetes.io/ascend-910-configuration']"},
                }]}},
                {"name": "trainyard-checkpoint", "persistentVolumeClaim": {"claimName": "shared"}},
            ],
        },
    }


def test_a_pod_of_a_program_of_ones_own() -> None:
    settings = BuildSettings("registry/trainer:1", "registry/supervisor:2", "Always", ("pull",))
    rendered = render(JOB, command_job(trainer(image="mine:3"), numProcPerNode=4), settings)
    small = {"cpu": "100m", "memory": "64Mi"}
    made = pod(rendered, 0, 1, None)
    assert made["spec"] == {
        "restartPolicy": "Never",
        "serviceAccountName": "llama",
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "imagePullSecrets": [{"name": "pull"}],
        "securityContext": POD_SECURITY,
        "tolerations": STAYING,
        "initContainers": [
            {
                "name": "trainyard-supervisor",
                "image": "registry/supervisor:2",
                "imagePullPolicy": "Always",
                "command": ["cp", "/opt/trainyard/supervisor.pyz", "/trainyard/supervisor.pyz"],
                "resources": {"limits": small, "requests": small},
                "volumeMounts": [{"name": "trainyard-supervisor", "mountPath": "/trainyard"}],
                "securityContext": RESTRICTED,
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
        "containers": [
            {
                "name": "trainer",
                "image": "mine:3",
                "command": ["python3", "/trainyard/supervisor.pyz", "--", "python", "train.py"],
                "env": environment(
                    TRAINYARD_INDEX="0",
                    TRAINYARD_INCARNATION="1",
                    TRAINYARD_NUM_NODES="2",
                    TRAINYARD_NUM_PROC="4",
                    TRAINYARD_MAX_RESTARTS="10",
                    TRAINYARD_HANG_SECONDS="auto",
                    TRAINYARD_GRACE="30",
                    TRAINYARD_CHECKPOINT_EVERY="100",
                    TRAINYARD_CHECKPOINT_KEEP="3",
                    OMP_NUM_THREADS="1",
                ),
                "volumeMounts": [
                    TMP,
                    SHM,
                    {"name": "trainyard-supervisor", "mountPath": "/trainyard", "readOnly": True},
                ],
                "securityContext": RESTRICTED,
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
        "volumes": [
            {"name": "trainyard-tmp", "emptyDir": {}},
            {"name": "trainyard-shm", "emptyDir": {"medium": "Memory"}},
            {"name": "trainyard-supervisor", "emptyDir": {}},
        ],
    }
    assert (rendered.supervisor_image, rendered.checkpoint, rendered.train) == ("registry/supervisor:2", False, None)


def test_the_modules_that_a_program_wants_ahead() -> None:
    rendered = render(JOB, command_job(trainer(image="mine:3"), preload=["torch", "mine.model"]), SETTINGS)
    assert variables(rendered)["TRAINYARD_PRELOAD"] == "torch,mine.model"


def rendered_with(template: dict[str, Any], **fields: Any) -> RenderedJob:
    return render(JOB, train_job(template, **fields), SETTINGS)


def pinned(affinity: dict[str, Any]) -> dict[str, Any]:
    made = pod(rendered_with(pod_spec(affinity=affinity)), 0, 1, "n")["spec"]["affinity"]
    assert isinstance(made, dict)
    return made


def test_the_pin_narrows_every_alternative_of_the_user() -> None:
    here = {"key": "metadata.name", "operator": "In", "values": ["n"]}
    one = {"key": "a", "operator": "Exists"}
    two = {"key": "metadata.name", "operator": "NotIn", "values": ["m"]}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = [{"matchExpressions": [one]}, {"matchFields": [two]}, {}, {"matchExpressions": []}]
    others: dict[str, Any] = {"podAntiAffinity": {required: []}}
    preferred: dict[str, Any] = {"preferredDuringSchedulingIgnoredDuringExecution": []}
    assert pinned({"nodeAffinity": {required: {"nodeSelectorTerms": terms}, **preferred}, **others}) == {
        "nodeAffinity": {
            required: {
                "nodeSelectorTerms": [
                    {"matchExpressions": [one], "matchFields": [here]},
                    {"matchFields": [two, here]},
                ]
            },
            **preferred,
        },
        **others,
    }
    only = {"nodeSelectorTerms": [{"matchFields": [here]}]}
    assert pinned({"nodeAffinity": None}) == {"nodeAffinity": {required: only}}


def test_making_a_pod_leaves_the_rendering_alone() -> None:
    rendered = rendered_with(trainer(env=[{"name": "A", "value": "$(TRAINYARD_INDEX)"}]))
    first = pod(rendered, 0, 1, "a")
    assert pod(rendered, 5, 3, "b") != first
    assert pod(rendered, 0, 1, "a") == first


@pytest.mark.parametrize(("resources", "ranks", "threads"), [
    ({"limits": {"cpu": "16"}}, 4, "4"),
    ({"limits": {"cpu": "16"}, "requests": {"cpu": "2"}}, 4, "4"),
    ({"requests": {"cpu": "7"}}, 2, "3"),
    ({"requests": {"cpu": "500m"}}, 1, "1"),
    ({"limits": {"memory": "8Gi"}}, 1, "1"),
    ({}, 8, "1"),
])  # fmt: skip
def test_threads(resources: dict[str, Any], ranks: int, threads: str) -> None:
    assert variables(rendered_with(trainer(resources=resources), numProcPerNode=ranks))["OMP_NUM_THREADS"] == threads


def test_threads_of_a_pod_that_states_its_own_resources() -> None:
    rendered = rendered_with(pod_spec(resources={"limits": {"cpu": "6"}}), numProcPerNode=2)
    assert variables(rendered)["OMP_NUM_THREADS"] == "3"


def variables(rendered: RenderedJob) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(rendered)["env"]}


def container(rendered: RenderedJob) -> dict[str, Any]:
    found = pod(rendered, 0, 1, None)["spec"]["containers"][0]
    assert isinstance(found, dict)
    return found


def test_the_users_values_win() -> None:
    rendered = rendered_with({
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "containers": [
                {"name": "logs", "image": "logs:1"},
                {
                    "name": "trainer",
                    "image": "mine:1",
                    "env": [
                        {"name": "OMP_NUM_THREADS", "value": "9"},
                        {"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "MINE", "value": "1"},
                    ],
                    "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}, {"name": "data", "mountPath": "/data"}],
                    "resources": {"limits": {"cpu": "2"}},
                    "securityContext": {"readOnlyRootFilesystem": False, "capabilities": {"add": ["IPC_LOCK"]}},
                },
            ],
            "volumes": [
                {"name": "scratch", "emptyDir": {}},
                {"name": "data", "nfs": {"server": "s", "path": "/"}},
                {"name": "trainyard-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            ],
            "securityContext": {"runAsUser": 1000, "fsGroup": None},
            "serviceAccountName": "ours",
            "terminationGracePeriodSeconds": 300,
            "enableServiceLinks": True,
            "schedulerName": "volcano",
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 5}],
        },
    })  # fmt: skip
    made = pod(rendered, 0, 1, None)
    spec, one = made["spec"], container(rendered)
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["annotations"]["note"] == "b"
    assert [c["name"] for c in spec["containers"]] == ["trainer", "logs"]
    values = variables(rendered)
    assert (values["OMP_NUM_THREADS"], values["MINE"], values["TRAINYARD_GRACE"]) == ("9", "1", "300")
    assert values["HOME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert one["image"] == "mine:1"
    assert one["volumeMounts"] == [
        {"name": "scratch", "mountPath": "/tmp"},
        SHM,
        {"name": "trainyard-config", "mountPath": "/etc/trainyard", "readOnly": True},
        {"name": "data", "mountPath": "/data"},
    ]
    assert one["resources"] == {"limits": {"cpu": "2"}}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    assert spec["volumes"] == [
        {"name": "trainyard-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "trainyard-config", "configMap": {"items": CONFIGURATION,
                                                   "name": rendered.name}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "data", "nfs": {"server": "s", "path": "/"}},
    ]  # fmt: skip
    security = dict(POD_SECURITY, runAsUser=1000)
    del security["fsGroup"]
    assert spec["securityContext"] == security
    assert (spec["serviceAccountName"], rendered.service_account) == ("ours", "ours")
    assert (spec["terminationGracePeriodSeconds"], rendered.grace_seconds) == (300, 300)
    assert (spec["enableServiceLinks"], spec["schedulerName"]) == (True, "volcano")
    assert [t.get("tolerationSeconds") for t in spec["tolerations"]] == [5, None]


@pytest.mark.parametrize(("template", "on_pod", "on_container"), [
    (pod_spec(securityContext={"runAsUser": 0}), None, {}),
    (pod_spec(securityContext={"runAsUser": 0, "runAsNonRoot": True}), True, {}),
    (trainer(securityContext={"runAsUser": 0}), True, {"runAsUser": 0, "runAsNonRoot": False}),
    (trainer(securityContext={"privileged": True}), True, {"privileged": True, "allowPrivilegeEscalation": None}),
    (trainer(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}), True,
     {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "allowPrivilegeEscalation": None}),
    (pod_spec(securityContext=None), "gone", {}),
    (trainer(securityContext=None), True, None),
])  # fmt: skip
def test_no_default_contradicts_the_template(template: Any, on_pod: Any, on_container: dict[str, Any] | None) -> None:
    rendered = rendered_with(template)
    spec = rendered.template["spec"]
    assert spec.get("securityContext", {"runAsNonRoot": "gone"}).get("runAsNonRoot") == on_pod
    if on_container is None:
        assert "securityContext" not in container(rendered)
    else:
        expected = {key: value for key, value in (RESTRICTED | on_container).items() if value is not None}
        assert container(rendered)["securityContext"] == expected


def test_the_demand_of_a_rendering() -> None:
    container = {"name": "trainer", "resources": {"requests": {"cpu": "2"}}}
    rendered = rendered_with(pod_spec(containers=[container], nodeSelector={"a": "b"}))
    known = with_demand(rendered, demand_of(pod(rendered, 0, 1, None)))
    assert known.demand == Demand({"cpu": 2000, "pods": 1}, node_selector={"a": "b"}, tolerations=tuple(STAYING))
    assert known.hash != rendered.hash
