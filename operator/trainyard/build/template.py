"""What a job's template must not say, because Trainyard owns it or would ignore it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainyard.api import GROUP, TRAINER_CONTAINER
from trainyard.api.job import TrainingJobSpec
from trainyard.build.merge import keyed, kind
from trainyard.build.types import CHECKPOINT_VOLUME, InvalidTemplate
from trainyard.placement.quantities import whole

ROOT = "spec.template"
POD = f"{ROOT}.spec"
SWITCHES = frozenset(  # docs/faults.md, docs/recovery.md, docs/supervisor.md: people set them
    {"TRAINYARD_INJECT", "TRAINYARD_SURVIVORS", "TRAINYARD_DRAIN_BY"}
)
CHECKPOINT_PATH = "/checkpoint"
MEMORY_PATH = "/dev/shm/trainyard"  # copies of state
CONFIG_PATH = "/etc/trainyard"
SUPERVISOR_PATH = "/trainyard"
INFO_PATH = "/etc/trainyard-podinfo"
CONFIG_VOLUME = "trainyard-config"
SUPERVISOR_VOLUME = "trainyard-supervisor"
SUPERVISOR_CONTAINER = "trainyard-supervisor"

_OWN_VOLUMES = (CHECKPOINT_VOLUME, CONFIG_VOLUME, SUPERVISOR_VOLUME)
_COMMON = ("containers", "volumes", "tolerations", "nodeSelector", "affinity", "imagePullSecrets", "securityContext")
# Fields of the pod that are refused whatever they say, with what to do instead.
_REFUSED = {
    "nodeName": "Trainyard chooses the nodes; use nodeSelector or affinity to narrow the choice",
    "activeDeadlineSeconds": "a pod that ends by itself is replaced; use spec.activeDeadlineSeconds of the TrainingJob",
    "priority": "use spec.priorityClassName of the TrainingJob",
    "serviceAccount": "use serviceAccountName",
    "ephemeralContainers": "use kubectl debug",
}
# Fields that may be said, but only this.
_FIXED: dict[str, tuple[Any, str]] = {
    "restartPolicy": ("Never", "Trainyard replaces pods itself"),
    "automountServiceAccountToken": (True, "the supervisor talks to the API server"),
    "shareProcessNamespace": (False, "the supervisor has to be process 1 of its container"),
    "hostPID": (False, "the supervisor has to be process 1 of its container"),
}


def check_template(spec: TrainingJobSpec) -> None:
    """Raises InvalidTemplate for what must not be in spec.template and spec.checkpoint.volume."""
    template = spec.template or {}
    for name in template:
        if name not in ("metadata", "spec"):
            hint = f"; did you mean {POD}.{name}?" if name in _COMMON else ""
            raise InvalidTemplate(f"{ROOT}.{name}", f"unknown field, expected metadata or spec{hint}")
    _check_metadata(_object(template.get("metadata"), f"{ROOT}.metadata"))
    pod = _object(template.get("spec"), POD)
    _check_pod(pod, spec)
    _check_amounts(_object(pod.get("resources"), f"{POD}.resources"), f"{POD}.resources", spec)
    _check_lists(pod)
    for index, volume in enumerate(keyed(_given(pod, "volumes"), "name", f"{POD}.volumes")):
        if volume["name"] in _OWN_VOLUMES:
            raise InvalidTemplate(f"{POD}.volumes[{index}].name", f"{volume['name']} is Trainyard's own volume")
    for index, init in enumerate(keyed(_given(pod, "initContainers"), "name", f"{POD}.initContainers")):
        if init["name"] == SUPERVISOR_CONTAINER:
            raise InvalidTemplate(f"{POD}.initContainers[{index}].name", "this is Trainyard's own container")
    path, trainer = trainer_of(spec)
    _check_trainer(trainer, path, spec)
    _check_checkpoint(spec)


def trainer_of(spec: TrainingJobSpec) -> tuple[str, Mapping[str, Any]]:
    """Path and contents of the container `trainer` in the template; empty if the template has none."""
    containers = _given(_object((spec.template or {}).get("spec"), POD), "containers")
    for index, container in enumerate(keyed(containers, "name", f"{POD}.containers")):
        if container["name"] == TRAINER_CONTAINER:
            return f"{POD}.containers[{index}]", container
    return f"{POD}.containers", {}


def _given(part: Mapping[str, Any], name: str) -> Any:
    """What a list's field says; nothing and null are empty lists, false and "" are mistakes."""
    found = part.get(name)
    return [] if found is None else found


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for name, entries in metadata.items():
        here = f"{ROOT}.metadata.{name}"
        if name not in ("labels", "annotations"):
            raise InvalidTemplate(here, "only labels and annotations can be set; Trainyard names its pods")
        for key, value in _object(entries, here).items():
            if key.startswith(f"{GROUP}/"):
                raise InvalidTemplate(f"{here}[{key}]", f"keys that begin with {GROUP}/ are Trainyard's own")
            if value is not None and not isinstance(value, str):
                raise InvalidTemplate(f"{here}[{key}]", f"expected a string, found {kind(value)}; quote it")


def _check_pod(pod: Mapping[str, Any], spec: TrainingJobSpec) -> None:
    for name, instead in _REFUSED.items():
        if pod.get(name) is not None:
            raise InvalidTemplate(f"{POD}.{name}", f"cannot be set: {instead}")
    for name, (only, why) in _FIXED.items():
        if pod.get(name) is not None and pod[name] != only:
            raise InvalidTemplate(f"{POD}.{name}", f"must be {_json(only)}, found {_json(pod[name])}: {why}")
    priority = pod.get("priorityClassName")
    if priority is not None and priority != spec.priority_class_name:
        raise InvalidTemplate(f"{POD}.priorityClassName", "use spec.priorityClassName of the TrainingJob, which also "
                              "decides its place among waiting jobs")  # fmt: skip
    grace = pod.get("terminationGracePeriodSeconds")
    if grace is not None and (type(grace) is not int or grace < 1):
        raise InvalidTemplate(f"{POD}.terminationGracePeriodSeconds",
                              f"expected whole seconds, at least 1, found {_json(grace)}")  # fmt: skip
    account = pod.get("serviceAccountName")
    if account is not None and (not isinstance(account, str) or not account):
        raise InvalidTemplate(f"{POD}.serviceAccountName", f"expected a name, found {_json(account)}")


def _check_lists(pod: Mapping[str, Any]) -> None:
    """Everything that is looked into later has the form it should have; the rest is the API server's to judge."""
    for part in ("containers", "initContainers"):
        for index, container in enumerate(keyed(_given(pod, part), "name", f"{POD}.{part}")):
            here = f"{POD}.{part}[{index}]"
            keyed(_given(container, "volumeMounts"), "mountPath", f"{here}.volumeMounts")
    tolerations = _given(pod, "tolerations")
    if not isinstance(tolerations, list):
        raise InvalidTemplate(f"{POD}.tolerations", f"expected a list, found {kind(tolerations)}")
    for index, toleration in enumerate(tolerations):
        _object(toleration, f"{POD}.tolerations[{index}]")


def _check_trainer(trainer: Mapping[str, Any], path: str, spec: TrainingJobSpec) -> None:
    for name in ("command", "args"):
        if trainer.get(name) is not None:
            instead = "spec.train decides what runs" if spec.train else "set spec.command of the TrainingJob"
            raise InvalidTemplate(f"{path}.{name}", f"cannot be set, the container runs the supervisor: {instead}")
    if trainer.get("restartPolicy") is not None:
        raise InvalidTemplate(f"{path}.restartPolicy", "cannot be set: the supervisor restarts its ranks itself")
    for index, variable in enumerate(keyed(_given(trainer, "env"), "name", f"{path}.env")):
        if str(variable["name"]).startswith("TRAINYARD_") and variable["name"] not in SWITCHES:
            why = f"{variable['name']}: names that begin with TRAINYARD_ are Trainyard's own"
            raise InvalidTemplate(f"{path}.env[{index}].name", why)
    taken = {CONFIG_PATH: "Trainyard's own files", SUPERVISOR_PATH: "Trainyard's own files"}
    if spec.checkpoint.volume is not None:
        taken[CHECKPOINT_PATH] = "the volume of spec.checkpoint"
    for index, mount in enumerate(keyed(_given(trainer, "volumeMounts"), "mountPath", f"{path}.volumeMounts")):
        used = taken.get(str(mount["mountPath"]).rstrip("/"))
        if used:
            raise InvalidTemplate(f"{path}.volumeMounts[{index}].mountPath", f"{mount['mountPath']} is taken by {used}")
    _check_amounts(_object(trainer.get("resources"), f"{path}.resources"), f"{path}.resources", spec)


def _check_amounts(resources: Mapping[str, Any], path: str, spec: TrainingJobSpec) -> None:
    """Amounts are quantities; the template may repeat spec.devices, not contradict it."""
    for part in ("limits", "requests"):
        for name, amount in _object(resources.get(part), f"{path}.{part}").items():
            here = f"{path}.{part}[{name}]"
            try:
                number = whole(name, amount)
            except ValueError as error:
                raise InvalidTemplate(here, str(error)) from None
            if spec.devices and name == spec.devices.resource and number != spec.devices.per_node:
                raise InvalidTemplate(here, f"{amount} contradicts spec.devices.perNode, which is "
                                      f"{spec.devices.per_node}; leave it out here")  # fmt: skip


def _check_checkpoint(spec: TrainingJobSpec) -> None:
    volume, path = spec.checkpoint.volume, "spec.checkpoint.volume"
    if volume is None:
        return
    if "name" in volume:
        raise InvalidTemplate(f"{path}.name", "cannot be set: Trainyard names the volume")
    if len(volume) != 1:
        found = ", ".join(sorted(volume)) or "none"
        raise InvalidTemplate(path, f"expected one volume source, such as persistentVolumeClaim, found {found}")


def _object(value: Any, path: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTemplate(path, f"expected an object, found {kind(value)}")
    return value


def _json(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
