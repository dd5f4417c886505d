"""Members that did not join their master in time are replaced, if they have had the time."""

from __future__ import annotations

from datetime import datetime

from trainyard.plan.losses import active
from trainyard.plan.times import seconds_between
from trainyard.plan.turn import Fault, Turn
from trainyard.plan.types import PodView


def missing(turn: Turn) -> Turn:
    """The master's list convicts pods that have run for joinSeconds; those still starting are waited for."""
    world, told = turn.world, turn.gang.said("Missing")
    if world is None or not active(turn) or told is None or turn.gang.formed:
        return turn
    late = {}
    for index in told.spec.missing:
        pod = turn.gang.alive.get(index)
        if pod is None or not pod.started or pod.uid == world.master.pod_uid:
            continue
        left = world.join_seconds - seconds_between(_since(pod), turn.now)
        if left <= 0:
            late[index] = pod.name
        else:
            turn = turn.look_again(left)
    if not late:
        return turn
    names = ", ".join(late[index] for index in sorted(late)[:5])
    culprit = f"{names} did not join the gang within {world.join_seconds} s"
    return turn.with_faults(Fault("Missing", culprit, turn.now, frozenset(late)))


def _since(pod: PodView) -> datetime:
    return pod.started_at or pod.created
