"""The pod template that Trainyard brings; the user's is laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainyard.api import JOB_LABEL, JOB_UID_LABEL, TRAINER_CONTAINER
from trainyard.api.job import TrainingJobSpec
from trainyard.build.template import (
    CHECKPOINT_PATH,
    CONFIG_PATH,
    CONFIG_VOLUME,
    INFO_PATH,
    MEMORY_PATH,
    SUPERVISOR_CONTAINER,
    SUPERVISOR_PATH,
    SUPERVISOR_VOLUME,
    trainer_of,
)
from trainyard.build.types import CHECKPOINT_VOLUME, BuildSettings, JobRef, Object
from trainyard.placement.quantities import resources

TRAINER_PRELOAD = "trainer.preload:warm_up"
PACKED = "/opt/trainyard/supervisor.pyz"  # in the shipped images
TMP_VOLUME = "trainyard-tmp"
SHM_VOLUME = "trainyard-shm"
INFO_VOLUME = "trainyard-podinfo"
CONFIGURATION = "ascend.kubectl.kubernetes.io/ascend-910-configuration"  # annotation by MindCluster's device plugin
GRACE_SECONDS = 30
NOBODY = 65532  # user and group of pods whose template names none; the customary number of non-root images
UNREACHABLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def base_template(job: JobRef, spec: TrainingJobSpec, settings: BuildSettings) -> Object:
    """A PodTemplateSpec that passes Pod Security `restricted`, without the user's part."""
    pod: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": job.name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "fsGroup": NOBODY,  # lets that user write to the volumes
            "fsGroupChangePolicy": "OnRootMismatch",  # a large volume is not walked through at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_trainer(job, spec, settings)],
        "volumes": _volumes(spec),
    }
    if spec.command is not None:
        pod["initContainers"] = [_supervisor(settings)]
    if spec.priority_class_name:
        pod["priorityClassName"] = spec.priority_class_name
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    meta = {
        "labels": {JOB_LABEL: job.name, JOB_UID_LABEL: job.uid},
        "annotations": {"kubectl.kubernetes.io/default-container": TRAINER_CONTAINER},
    }
    return {"metadata": meta, "spec": pod}


def supervisor_image(settings: BuildSettings) -> str:
    """The image that brings the supervisor to `command` jobs."""
    return settings.supervisor_image or settings.trainer_image


def _trainer(job: JobRef, spec: TrainingJobSpec, settings: BuildSettings) -> Object:
    program = ["python3", "-m", "trainer"] if spec.command is None else spec.command
    supervisor = PACKED if spec.command is None else f"{SUPERVISOR_PATH}/supervisor.pyz"
    container: Object = {
        "name": TRAINER_CONTAINER,
        "command": ["python3", supervisor, "--", *program],
        "env": _environment(job, spec),
        "volumeMounts": _mounts(job, spec),
        "securityContext": _restricted(),
        # The supervisor writes the message itself; where it could not (out of memory), the end of the log stands in.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if spec.command is None:
        container |= _image(settings.trainer_image, settings)
    if spec.devices:
        amount = {spec.devices.resource: str(spec.devices.per_node)}
        container["resources"] = {"limits": amount, "requests": dict(amount)}
    return container


def _supervisor(settings: BuildSettings) -> Object:
    small = {"cpu": "100m", "memory": "64Mi"}  # limits = requests: a Guaranteed trainer stays Guaranteed
    return {
        "name": SUPERVISOR_CONTAINER,
        **_image(supervisor_image(settings), settings),
        "command": ["cp", PACKED, f"{SUPERVISOR_PATH}/supervisor.pyz"],
        "resources": {"limits": small, "requests": dict(small)},
        "volumeMounts": [{"name": SUPERVISOR_VOLUME, "mountPath": SUPERVISOR_PATH}],
        "securityContext": _restricted(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _image(image: str, settings: BuildSettings) -> Object:
    return {"image": image} | ({"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {})


def _restricted() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _volumes(spec: TrainingJobSpec) -> list[Object]:
    # /dev/shm has no size of its own: what is in it counts as the container's memory, whose limit kubelet gives it.
    volumes: list[Object] = [
        {"name": TMP_VOLUME, "emptyDir": {}},
        {"name": SHM_VOLUME, "emptyDir": {"medium": "Memory"}},
    ]
    if spec.command is None:
        # The ConfigMap's name holds a hash of this template; pod() fills it in.
        items = [{"key": key, "path": key} for key in ("train.json", "asked.json")]
        volumes.append({"name": CONFIG_VOLUME, "configMap": {"items": items}})
    else:
        volumes.append({"name": SUPERVISOR_VOLUME, "emptyDir": {}})
    if _ascend(spec):
        path = f"metadata.annotations['{CONFIGURATION}']"
        item = {"path": CONFIGURATION.partition("/")[2], "fieldRef": {"fieldPath": path}}
        volumes.append({"name": INFO_VOLUME, "downwardAPI": {"items": [item]}})
    if spec.checkpoint.volume is not None:
        volumes.append({"name": CHECKPOINT_VOLUME, **spec.checkpoint.volume})
    return volumes


def _mounts(job: JobRef, spec: TrainingJobSpec) -> list[Object]:
    mounts: list[Object] = [
        {"name": TMP_VOLUME, "mountPath": "/tmp"},
        {"name": SHM_VOLUME, "mountPath": "/dev/shm"},
    ]
    if spec.command is None:
        mounts.append({"name": CONFIG_VOLUME, "mountPath": CONFIG_PATH, "readOnly": True})
    else:
        mounts.append({"name": SUPERVISOR_VOLUME, "mountPath": SUPERVISOR_PATH, "readOnly": True})
    if _ascend(spec):
        mounts.append({"name": INFO_VOLUME, "mountPath": INFO_PATH, "readOnly": True})
    if spec.checkpoint.volume is not None:
        folder = spec.checkpoint.sub_path or job.name
        mounts.append({"name": CHECKPOINT_VOLUME, "mountPath": CHECKPOINT_PATH, "subPath": folder})
    return mounts


def _ascend(spec: TrainingJobSpec) -> bool:
    """Whether the devices are Ascend NPUs: ranks meet by HCCL, and MindCluster may say more in an annotation."""
    resource = spec.devices.resource if spec.devices else ""
    return resource.startswith("huawei.com/Ascend") or resource == "huawei.com/npu"


def _environment(job: JobRef, spec: TrainingJobSpec) -> list[Object]:
    """What docs/protocol.md lists, but for the index and the incarnation."""
    _, trainer = trainer_of(spec)
    template = (spec.template or {}).get("spec") or {}
    grace = template.get("terminationGracePeriodSeconds") or GRACE_SECONDS
    plain = {
        "TRAINYARD_JOB": job.name,
        "TRAINYARD_JOB_UID": job.uid,
        "TRAINYARD_NAMESPACE": job.namespace,
        "TRAINYARD_NUM_NODES": str(spec.num_nodes),
        "TRAINYARD_NUM_PROC": str(spec.procs),
        "TRAINYARD_MAX_RESTARTS": str(spec.failure_policy.max_restarts),
        "TRAINYARD_HANG_SECONDS": str(spec.failure_policy.hang_seconds),
        "TRAINYARD_GRACE": str(grace),
        "TRAINYARD_CHECKPOINT_EVERY": str(spec.checkpoint.every),
        "TRAINYARD_CHECKPOINT_KEEP": str(spec.checkpoint.keep),
    }
    if spec.command is None:
        plain["TRAINYARD_STRAGGLERS"] = spec.failure_policy.stragglers
        plain["TRAINYARD_TRAIN_CONFIG"] = f"{CONFIG_PATH}/train.json"
        plain["TRAINYARD_PRELOAD"] = TRAINER_PRELOAD
    elif spec.preload:
        plain["TRAINYARD_PRELOAD"] = ",".join(spec.preload)
    if spec.checkpoint.volume is not None:
        plain["TRAINYARD_CHECKPOINT"] = CHECKPOINT_PATH
    if spec.command is None and spec.checkpoint.memory.every != 0:
        memory = spec.checkpoint.memory
        plain |= {"TRAINYARD_MEMORY": MEMORY_PATH, "TRAINYARD_MEMORY_EVERY": str(memory.every),
                  "TRAINYARD_MEMORY_COPY_EVERY": str(memory.copy_every), "TRAINYARD_MEMORY_COPIES": str(memory.copies)}
    if spec.runtime != "torch":
        plain["TRAINYARD_RUNTIME"] = spec.runtime
    if _ascend(spec):
        plain["TRAINYARD_HCCL"] = "true"
    plain["OMP_NUM_THREADS"] = str(_threads(trainer, template, spec.procs))
    # The root filesystem is read-only, and the user has no entry in /etc/passwd: libraries that ask for a home or for
    # the user's name find them here.
    plain |= {"HOME": "/tmp", "USER": TRAINER_CONTAINER}
    known = {"TRAINYARD_POD": "metadata.name", "TRAINYARD_POD_UID": "metadata.uid", "TRAINYARD_POD_IP": "status.podIP"}
    if _ascend(spec) or "TRAINYARD_MEMORY" in plain:
        known["TRAINYARD_NODE"] = "spec.nodeName"
    if _ascend(spec):
        known["TRAINYARD_HOST_IP"] = "status.hostIP"
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in known.items()),
        *({"name": name, "value": value} for name, value in plain.items()),
    ]


def _threads(trainer: Mapping[str, Any], template: Mapping[str, Any], ranks: int) -> int:
    """Threads a rank: the container's (or the pod's) cpu shared among the ranks, never the node's."""
    for given in (trainer.get("resources") or {}, template.get("resources") or {}):
        for part in ("limits", "requests"):
            cpu = resources({"cpu": (given.get(part) or {}).get("cpu") or 0})["cpu"]
            if cpu:
                return max(1, cpu // 1000 // ranks)
    return 1
