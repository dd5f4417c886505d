"""Projections: from raw Kubernetes objects to the small values that the caches keep."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from trainyard.api import (
    ACCELERATORS_HEALTHY,
    INCARNATION_LABEL,
    INDEX_LABEL,
    JOB_LABEL,
    JOB_UID_LABEL,
    RENDERED_ANNOTATION,
    TRAINER_CONTAINER,
    WRITTEN_ANNOTATION,
)
from trainyard.api.protocol import ReportSpec, WorldSpec
from trainyard.build.owned import written
from trainyard.kube.client import Object
from trainyard.kube.times import instant
from trainyard.placement.books import NodeView, Resources
from trainyard.placement.quantities import node_view, pod_usage
from trainyard.plan.types import PodDevice, PodView, Report, World

log = logging.getLogger(__name__)

_OWN_UNREADINESS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_INTERNED_MOST = 4096  # distinct request sets kept shared; a cluster has a few dozen


@dataclass(frozen=True, slots=True)
class JobView:
    """One TrainingJob as stored."""

    namespace: str
    name: str
    uid: str
    version: str  # resourceVersion
    generation: int
    created: datetime
    deleting: bool
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def key(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class OwnPod:
    """One pod of ours, with the job it belongs to and what it takes from its node."""

    namespace: str
    job: str
    job_uid: str
    view: PodView
    requests: Resources


@dataclass(frozen=True, slots=True)
class Usage:
    """What one bound, unfinished pod of the cluster takes."""

    node: str
    requests: Resources
    priority: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node for placement, and its health for recovery."""

    view: NodeView
    ready: bool  # status of its Ready condition is True
    since: datetime | None
    accelerators: tuple[str, str, str] = ("", "", "")  # status, reason, message of AcceleratorsHealthy, as last written


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The agent's pod on a node."""

    node: str
    ready: bool


@dataclass(frozen=True, slots=True)
class RawQuota:
    """A ResourceQuota; which of it counts depends on the pod."""

    namespace: str
    name: str
    raw: Mapping[str, Any]  # spec and status


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """A PriorityClass."""

    value: int
    default: bool
    preempts: bool = True  # preemptionPolicy is not Never


@dataclass(frozen=True, slots=True)
class OwnedReport:
    """A Report with its namespace; the job is known by UID."""

    namespace: str
    report: Report


@dataclass(slots=True)
class Interned:
    """Equal request sets share one dict: most pods of a cluster ask for one of a few."""

    seen: dict[tuple[tuple[str, int], ...], Resources] = field(default_factory=dict)

    def __call__(self, requests: Resources) -> Resources:
        if len(self.seen) > _INTERNED_MOST:
            self.seen.clear()
        return self.seen.setdefault(tuple(sorted(requests.items())), requests)


_interned = Interned()


def job_view(raw: Object, old: JobView | None = None) -> JobView:
    """Of a TrainingJob."""
    metadata = raw["metadata"]
    return JobView(
        namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"],
        version=metadata["resourceVersion"], generation=int(metadata.get("generation") or 0),
        created=instant(metadata["creationTimestamp"]) or datetime.now(UTC),
        deleting=bool(metadata.get("deletionTimestamp")),
        spec=raw.get("spec") or {}, status=raw.get("status") or {})


def usage(raw: Object, old: Usage | None = None) -> Usage | None:
    """Of any pod; None unless it is bound and unfinished."""
    node = raw["spec"].get("nodeName")
    requests = pod_usage(raw) if node else None
    if not node or not requests:
        return None
    return Usage(str(node), _interned(requests), int(raw["spec"].get("priority") or 0))


def own_pod(raw: Object, old: OwnPod | None = None) -> OwnPod | None:
    """Of a pod with our labels; None if they make no sense."""
    labels = raw["metadata"].get("labels") or {}
    try:
        index, incarnation = int(labels[INDEX_LABEL]), int(labels[INCARNATION_LABEL])
        job, uid = labels[JOB_LABEL], labels[JOB_UID_LABEL]
    except (KeyError, ValueError):
        return None
    return OwnPod(raw["metadata"]["namespace"], job, uid, pod_view(raw, index, incarnation, old.view if old else None),
                  _interned(pod_usage(raw)))


def pod_view(raw: Object, index: int, incarnation: int, old: PodView | None = None) -> PodView:
    """What matters of one pod of a job. `old`: what was known of it before."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    trainer = _trainer(status)
    state = trainer.get("state") or {}
    ended = state.get("terminated") or {}
    init, init_ended = _failed_init(spec, status)
    reason, message = _trouble(status, init_ended or ended)
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    refused = scheduled.get("status") == "False"
    disrupted = conditions.get("DisruptionTarget") or {}
    return PodView(
        name=metadata["name"], uid=metadata["uid"], index=index, incarnation=incarnation,
        rendered=(metadata.get("annotations") or {}).get(RENDERED_ANNOTATION, ""),
        created=instant(metadata["creationTimestamp"]) or datetime.now(UTC),
        node=spec.get("nodeName") or None,
        pinned=_pinned(spec),
        phase=status.get("phase") or "Pending",
        started="running" in state,
        started_at=instant((state.get("running") or {}).get("startedAt")),
        ready=bool(trainer.get("ready")),
        deleting=instant(metadata.get("deletionTimestamp")),
        ip=status.get("podIP") or None,
        exit_code=ended.get("exitCode"),
        failed_init=init,
        init_exit_code=init_ended.get("exitCode"),
        oom="OOMKilled" in (ended.get("reason"), init_ended.get("reason")),
        reason=reason,
        message=message[:4096],
        unschedulable=(scheduled.get("message") or "")[:4096] if refused else "",
        unschedulable_since=instant(scheduled.get("lastTransitionTime")) if refused else None,
        disruption=disrupted.get("reason") or "" if disrupted.get("status") == "True" else "",
        devices=_pod_devices(status, old.devices if old else ()))


def _pod_devices(status: Mapping[str, Any], old: tuple[PodDevice, ...]) -> tuple[PodDevice, ...]:
    """Devices of a device plugin that kubelet gave to the pod, by id, with what the plugin last told kubelet."""
    known = {(device.resource, device.id): device for device in old}
    found: dict[tuple[str, str], PodDevice] = {}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        for kind in container.get("allocatedResourcesStatus") or ():
            for each in kind.get("resources") or ():
                made = PodDevice(str(each["resourceID"]), str(each.get("health") or "Unknown"), str(kind["name"]))
                before = known.get((made.resource, made.id))
                since = before.since if before and before.health == made.health else datetime.now(UTC)
                found[made.resource, made.id] = replace(made, since=since)
    return tuple(found[key] for key in sorted(found))


def _trainer(status: Mapping[str, Any]) -> Mapping[str, Any]:
    for container in status.get("containerStatuses") or ():
        if container["name"] == TRAINER_CONTAINER:
            return dict(container)
    return {}


def _failed_init(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and end of the init container that failed; sidecars, which may end as they like, are none."""
    sidecars = {each["name"] for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"}
    for container in status.get("initContainerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode") and container["name"] not in sidecars:
            return str(container["name"]), ended
    return "", {}


def _trouble(status: Mapping[str, Any], ended: Mapping[str, Any]) -> tuple[str, str]:
    """Reason and message of what keeps the pod from running, or of its end."""
    if status.get("reason"):
        return status["reason"], status.get("message") or ""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in ("PodInitializing", "ContainerCreating"):
            return waiting["reason"], waiting.get("message") or ""
    return ended.get("reason") or "", ended.get("message") or ""


def _pinned(spec: Mapping[str, Any]) -> str | None:
    """The node that a required affinity names in every term, as the builder writes it."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ()
    names = set()
    for term in terms:
        fields = [f for f in term.get("matchFields") or ()
                  if f["key"] == "metadata.name" and f["operator"] == "In" and len(f.get("values") or ()) == 1]
        names.add(fields[0]["values"][0] if fields else None)
    return names.pop() if len(names) == 1 else None


def node(raw: Object, old: Node | None = None) -> Node:
    """Of a Node."""
    conditions = {each["type"]: each for each in (raw.get("status") or {}).get("conditions") or ()}
    ready, accelerators = conditions.get("Ready") or {}, conditions.get(ACCELERATORS_HEALTHY) or {}
    said = (accelerators.get("status") or "", accelerators.get("reason") or "", accelerators.get("message") or "")
    return Node(node_view(raw), ready.get("status") == "True", instant(ready.get("lastTransitionTime")), said)


def agent_pod(raw: Object, old: AgentPod | None = None) -> AgentPod | None:
    """Of a pod of the agent's DaemonSet; None while it is on no node or once it has ended."""
    node, status = raw["spec"].get("nodeName"), raw.get("status") or {}
    if not node or status.get("phase") in ("Succeeded", "Failed"):
        return None
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    return AgentPod(str(node), ready and not raw["metadata"].get("deletionTimestamp"))


def own_unreadiness(taint_key: str) -> bool:
    """Whether a taint only says that its node is not ready or not reached."""
    return taint_key in _OWN_UNREADINESS


def report(raw: Object, old: OwnedReport | None = None) -> OwnedReport | None:
    """Of a Report; None if it makes no sense. `received` is when this operator first saw its sequence."""
    metadata = raw["metadata"]
    try:
        spec = ReportSpec.model_validate(raw["spec"])
    except (ValidationError, KeyError) as error:
        log.warning("report %s/%s ignored: %s", metadata["namespace"], metadata["name"], error)
        return None
    known = old and (old.report.spec.pod_uid, old.report.spec.sequence) == (spec.pod_uid, spec.sequence)
    received = old.report.received if old and known else datetime.now(UTC)
    return OwnedReport(metadata["namespace"], Report(metadata["name"], spec, received))


def world(raw: Object, old: World | None = None) -> World | None:
    """Of a World; None if it makes no sense."""
    try:
        told = (raw["metadata"].get("annotations") or {}).get(WRITTEN_ANNOTATION)
        edited = told is not None and told != written(raw["spec"])
        return World(WorldSpec.model_validate(raw["spec"]), raw["metadata"]["resourceVersion"], edited)
    except (ValidationError, KeyError) as error:
        log.warning("world %s/%s ignored: %s", raw["metadata"]["namespace"], raw["metadata"]["name"], error)
        return None


def quota(raw: Object, old: RawQuota | None = None) -> RawQuota:
    """Of a ResourceQuota."""
    metadata = raw["metadata"]
    return RawQuota(metadata["namespace"], metadata["name"],
                    {"spec": raw.get("spec") or {}, "status": raw.get("status") or {}})


def priority_class(raw: Object, old: PriorityClass | None = None) -> PriorityClass:
    """Of a PriorityClass."""
    return PriorityClass(int(raw.get("value") or 0), bool(raw.get("globalDefault")),
                         raw.get("preemptionPolicy") != "Never")
