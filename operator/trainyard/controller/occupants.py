"""Which jobs could make room for another one, and what they would lose."""

from __future__ import annotations

from datetime import UTC, datetime

from trainyard.controller.cluster import Cluster
from trainyard.kube.times import instant
from trainyard.kube.views import JobView
from trainyard.plan.preemption import PREEMPTED
from trainyard.plan.types import Occupant


def occupants(cluster: Cluster, job: JobView) -> tuple[Occupant, ...]:
    """The jobs of lower priority that hold places, pods that end included: their places come free."""
    if not cluster.preempts(job):
        return ()
    priority, now, found = cluster.priority(job), datetime.now(UTC), []
    for key, other in cluster.jobs:
        if key == job.key or cluster.priority(other) >= priority:
            continue
        pods = [pod for pod in cluster.pods_of(other) if pod.job_uid == other.uid and not pod.view.finished]
        places = {f"{pod.namespace}/{pod.view.name}": place for pod in pods
                  if (place := pod.view.node or pod.view.pinned)}
        if places:
            found.append(Occupant(key, cluster.priority(other), other.created, places, pods[0].requests,
                                  at_risk(other, now), _leaving(cluster, other)))
    return tuple(found)


def at_risk(job: JobView, now: datetime) -> float:
    """Seconds of training since the newest durable checkpoint, at the pace so far: what is lost if the ranks cannot
    save their state on the way out, as those of a job without a checkpoint volume cannot."""
    progress, saved = job.status.get("progress") or {}, job.status.get("checkpoint") or {}
    step, durable = int(progress.get("step") or 0), int(saved.get("durableStep") or 0)
    begun = instant(job.status.get("startTime"))
    if begun is None or step <= 0:
        return 0.0
    return max(0.0, (now - begun).total_seconds()) * max(0, step - durable) / step


def _leaving(cluster: Cluster, job: JobView) -> bool:
    world = cluster.worlds.get(job.key)
    drains = world is not None and world.spec.job == job.uid and world.spec.phase == "Drain"
    return job.deleting or bool(drains and world and world.spec.cause.kind in ("Suspended", PREEMPTED))
