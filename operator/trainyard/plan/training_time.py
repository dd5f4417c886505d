"""What recoveries cost: since when the job trains, and how much of that time brought it no further."""

from __future__ import annotations

from trainyard.api.job import Recovery, TrainingTime
from trainyard.plan.gang import PLANNED
from trainyard.plan.nodes import seconds_per_step
from trainyard.plan.times import fine_stamp, moment
from trainyard.plan.turn import Turn


def begun(turn: Turn) -> Turn:
    """It begins with the first step of a job, and again when a job comes back that had no places: the time in between
    was nobody's fault."""
    world, told, known = turn.world, turn.gang.progress, turn.status.training_time
    first = moment(told.first_step_at) if told is not None else None
    if world is None or first is None:
        return turn
    start = moment(world.cause.at) if world.cause.kind in PLANNED else None
    since = moment(known.since) if known is not None else None
    if since is not None and (start is None or since >= start):
        return turn
    first = min(max(first, start or first), turn.now)  # the pod's clock may differ
    return turn.note(training_time=TrainingTime(since=fine_stamp(first)))


def spent(turn: Turn, recovery: Recovery) -> Turn:
    """A recovery has ended: the time until its first step, and the steps that are computed again."""
    known = turn.status.training_time
    if known is None:
        return turn
    again = (recovery.lost_steps or 0) * (seconds_per_step(turn) or 0.0)
    lost = known.lost_milliseconds + (recovery.milliseconds.total or 0) + round(again * 1000)
    return turn.note(training_time=known.model_copy(update={"lost_milliseconds": lost}))
