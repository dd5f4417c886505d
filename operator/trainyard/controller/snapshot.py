"""Everything about one job at one moment, from the caches alone: no request is made here."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from trainyard.api.job import TrainingJobSpec, TrainingJobStatus
from trainyard.build import RenderedJob, admitted_hash, pod
from trainyard.controller.cluster import Cluster
from trainyard.controller.occupants import occupants
from trainyard.controller.status import read_status
from trainyard.fleet.devices import Accelerators
from trainyard.kube.times import instant
from trainyard.kube.views import JobView, OwnPod, RawQuota, own_unreadiness
from trainyard.placement.books import Books, Demand
from trainyard.placement.matching import tolerated
from trainyard.placement.place import charged
from trainyard.placement.quantities import demand_of, quota_left
from trainyard.plan.types import NodeState, Quota, Refusal, Rendering, Settings, Snapshot, Waiting

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Memory:
    """What this operator remembers of a job between two reconciles; all of it can be found out again."""

    uid: str
    refusal: Refusal | None = None
    rendered: RenderedJob | None = None
    strangers: dict[str, float] = field(default_factory=dict)  # taken names; until (monotonic)
    spec: tuple[int, TrainingJobSpec | None, str] | None = None  # generation, parsed spec, what is wrong with it
    admitted: tuple[int, str] = (-1, "")  # generation, admitted_hash
    judged_seconds: float = 0.0  # of CPU that the last look at it took
    ignored: tuple[str, ...] = ()  # parts of the status that this version does not understand


def parse_spec(job: JobView, memory: Memory) -> tuple[TrainingJobSpec | None, str]:
    """The spec, or None and what is wrong with it by field; parsed once a generation."""
    if memory.spec is None or memory.spec[0] != job.generation:
        try:
            spec, wrong = TrainingJobSpec.model_validate(job.spec), ""
        except ValidationError as error:
            spec, wrong = None, describe(error)
        memory.spec = (job.generation, spec, wrong)
        memory.admitted = (job.generation, admitted_hash(spec) if spec else "")
    return memory.spec[1], memory.spec[2]


def describe(error: ValidationError) -> str:
    """A validation error in one line a field, with the field's path."""
    lines = []
    for each in error.errors(include_url=False, include_context=False)[:10]:
        path = ".".join(["spec", *(str(part) for part in each["loc"])])
        lines.append(f"{path}: {each['msg']}")
    return "; ".join(lines)


def take(cluster: Cluster, job: JobView, memory: Memory, *, rendered: RenderedJob | None, ahead: tuple[Waiting, ...],
         settings: Settings, preemptor: Waiting | None = None) -> Snapshot:
    """The snapshot. Its books are live: use it before anything else runs."""
    spec, wrong = parse_spec(job, memory)
    status, ignored = read_status(job.status)
    if ignored and ignored != memory.ignored:
        log.warning("job %s: left out of its status, another version wrote it: %s", job.key, ", ".join(ignored))
    memory.ignored = ignored
    pods = cluster.pods_of(job)
    ours = [each for each in pods if each.job_uid == job.uid]
    strangers = {each.view.name for each in pods if each.job_uid != job.uid} | _taken(memory)
    rendering = _rendering(rendered) if rendered else None
    demand = rendering.demand if rendering else None
    return Snapshot(
        now=cluster.now(), namespace=job.namespace, name=job.name, uid=job.uid, generation=job.generation,
        created=job.created, spec=spec, spec_error=wrong, status=status,
        deleting=job.deleting, admitted_hash=memory.admitted[1], priority=cluster.priority(job),
        rendering=rendering, refusal=memory.refusal,
        world=world if (world := cluster.worlds.get(job.key)) and world.spec.job == job.uid else None,
        pods=tuple(each.view for each in ours), strangers=tuple(sorted(strangers)),
        reports=tuple(each.report for each in cluster.reports_of(job)), heard_since=cluster.heard_since,
        nodes=_nodes(cluster, ours, demand), devices=_devices(cluster, ours, status),
        books=Books(nodes=cluster.node_views, used=cluster.ledger.used, pods=cluster.ledger.pods),
        quotas=_quotas(cluster, job.namespace, demand), ahead=ahead, settings=settings,
        may_preempt=cluster.preempts(job), preemptor=preemptor,
        occupants=occupants(cluster, job) if _incomplete(spec, ours) else (),
        new_token=secrets.token_urlsafe(32))


def _incomplete(spec: TrainingJobSpec | None, pods: list[OwnPod]) -> bool:
    """Whether pods of the job may have to be placed."""
    alive = {pod.view.index for pod in pods if not pod.view.ended}
    return spec is not None and spec.placement == "Planner" and len(alive) < spec.num_nodes + spec.spare_nodes


def _taken(memory: Memory) -> set[str]:
    """Pods of strangers carry no label that we watch; after a while the name is simply tried again."""
    memory.strangers = {name: until for name, until in memory.strangers.items() if until > time.monotonic()}
    return set(memory.strangers)


def waiting_since(job: JobView) -> datetime:
    """Since when the job has been waiting for places, which a resumed one has since then; its creation if it never was
    judged."""
    for condition in job.status.get("conditions") or ():
        if condition.get("type") == "Scheduled" and condition.get("status") != "True":
            return instant(condition.get("lastTransitionTime")) or job.created
    return job.created


def _rendering(rendered: RenderedJob) -> Rendering:
    return Rendering(name=rendered.name, hash=rendered.hash,
                     demand=rendered.demand or demand_of(pod(rendered, 0, 1, None)),
                     grace_seconds=rendered.grace_seconds, checkpoint=rendered.checkpoint, layout=rendered.layout)


def _nodes(cluster: Cluster, pods: list[OwnPod], demand: Demand | None) -> dict[str, NodeState]:
    found = {}
    for name in {place for each in pods if (place := each.view.node or each.view.pinned)}:
        if node := cluster.nodes.get(name):
            evicting = [taint.key for taint in node.view.taints if taint.effect == "NoExecute"
                        and not own_unreadiness(taint.key)
                        and not tolerated(taint, demand.tolerations if demand else ())]
            found[name] = NodeState(name, node.ready, node.since, node.view.cordoned, evicting[0] if evicting else "")
    return found


def _devices(cluster: Cluster, pods: list[OwnPod], status: TrainingJobStatus) -> dict[str, Accelerators]:
    names = {place for each in pods if (place := each.view.node or each.view.pinned)}
    names |= {entry.node for entry in status.avoid if entry.device}
    return {name: told for name in names if (told := cluster.devices.get(name))}


def _quotas(cluster: Cluster, namespace: str, demand: Demand | None) -> tuple[Quota, ...]:
    if demand is None:
        return ()
    left = ((each, quota_left(each.raw, demand)) for each in cluster.quotas_in(namespace))
    return tuple(_less_promised(cluster, quota, amounts) for quota, amounts in left if amounts is not None)


def _less_promised(cluster: Cluster, quota: RawQuota, left: dict[str, int]) -> Quota:
    """What is left once the pods that other jobs are creating at this moment are there."""
    for namespace, demand, count in cluster.promised.values():
        if namespace == quota.namespace and quota_left(quota.raw, demand) is not None:
            left = {name: amount - count * charged(name, demand) for name, amount in left.items()}
    return Quota(quota.name, left)
