"""What is known of the nodes under a job: signals that confirm a loss, but convict nobody by themselves."""

from __future__ import annotations

import math
from datetime import datetime

from trainyard.plan.times import moment, seconds_between
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView, Snapshot

BLIP_SECONDS = 10.0  # nodes that fell silent within this time probably share one cause: the control plane
MASS_PATIENCE = 3.0  # times the usual wait, if that many nodes are suspected at once


def gone(snap: Snapshot, pod: PodView) -> bool:
    """Whether the node object of the pod no longer exists. Without books nothing is known."""
    return bool(pod.node and snap.books.nodes and pod.node not in snap.books.nodes and pod.node not in snap.nodes)


def unready(snap: Snapshot, pod: PodView) -> bool:
    """Whether the pod's node is NotReady or Unknown."""
    state = snap.nodes.get(pod.node or "")
    return state is not None and not state.ready


def unreachable(snap: Snapshot, pod: PodView) -> bool:
    """Whether no kubelet is there that would end the pod."""
    return gone(snap, pod) or unready(snap, pod)


def last_step_at(turn: Turn) -> datetime | None:
    """When this operator last saw a newly finished step, by its own clock; None: the job reports no steps."""
    known, told = turn.status.progress, turn.gang.progress
    if told is not None and (known is None or told.step != known.step):
        return next(r.received for r in reversed(turn.gang.reports) if r.spec.progress is not None)
    return moment(known.updated) if known is not None else None


def stepping(turn: Turn) -> bool:
    """Whether the job still finishes steps. One that reports none is believed to, until a rank complains."""
    if not turn.gang.formed or turn.gang.said("RankFailed"):
        return False
    last = last_step_at(turn)
    if last is None:
        return True
    usual = seconds_per_step(turn) or 0.0
    return seconds_between(last, turn.now) < max(turn.snap.settings.unready_node_seconds, 5 * usual)


def seconds_per_step(turn: Turn) -> float | None:
    """Median seconds a step, as rank 0 reports it; None if it does not, or reports nonsense."""
    told = turn.gang.progress
    try:
        pace = float(told.seconds_per_step) if told and told.seconds_per_step else 0.0
    except ValueError:
        return None
    return pace if 0 < pace < math.inf else None


def suspects(snap: Snapshot, pods: dict[int, PodView]) -> dict[int, datetime]:
    """By index, since when the node of its pod has been silent."""
    found = {}
    for index, pod in pods.items():
        state = snap.nodes.get(pod.node or "")
        if state is not None and not state.ready:
            found[index] = state.since or snap.now
    return found


def is_blip(since: dict[int, datetime], pods: dict[int, PodView], size: int) -> bool:
    """Whether more than max(2, 10 %) of the job's nodes fell silent within a few seconds."""
    first: dict[str, datetime] = {}
    for index, at in since.items():
        first[pods[index].node or ""] = at
    moments = sorted(first.values())
    limit = max(2.0, 0.1 * size)
    close = (sum(0 <= seconds_between(start, at) <= BLIP_SECONDS for at in moments) for start in moments)
    return any(count > limit for count in close)
