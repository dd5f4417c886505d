"""suspend: true saves a checkpoint (Drain), removes the pods and keeps the job; nothing is lost but the places."""

from __future__ import annotations

from datetime import timedelta

from trainyard.plan.conditions import find, holds
from trainyard.plan.progress import current, progress, without_memory
from trainyard.plan.removal import removal
from trainyard.plan.times import fine_stamp, moment, seconds_between
from trainyard.plan.turn import Turn

MARGIN_SECONDS = 10.0  # past drainSeconds: SIGTERM, 5 s, SIGKILL, and the way of the report


def suspend(turn: Turn) -> Turn:
    """Drain, then delete, then Suspended. A suspension that began is completed before the job is resumed."""
    under_way = is_draining(turn) and (bool(turn.snap.pods) or not _was_suspended(turn))
    if not turn.spec.suspend and not under_way:
        return turn
    if not turn.snap.pods:
        # The World says so too, even if nobody is left to save: it is what makes the resumption a new start.
        return without_memory(_suspended(drain(turn))).stop()
    turn = _quiet(turn, "Draining", "The ranks save their state; then the pods are removed.")
    turn = turn.judge("Suspended", "False", "Draining", "The ranks save their state; then the pods are removed.")
    if turn.world is None:
        return removal(turn, turn.snap.pods).stop()
    turn = drain(turn)
    left = drain_left(turn)
    if left > 0:
        return progress(turn).look_again(left).stop()
    # The step that was saved is in the status before the Reports go with their pods.
    return removal(current(turn), turn.snap.pods).stop()


def is_draining(turn: Turn, kind: str = "Suspended") -> bool:
    """Whether the World says Drain for the sake of a suspension, or of another such cause."""
    return turn.world is not None and turn.world.phase == "Drain" and turn.world.cause.kind == kind


def drain(turn: Turn, kind: str = "Suspended", culprit: str = "spec.suspend") -> Turn:
    """The World with phase Drain. Its cause says since when, and keeps the counters."""
    if turn.world is None or is_draining(turn, kind):
        return turn
    cause = turn.world.cause.model_copy(update={"kind": kind, "culprit": culprit, "at": fine_stamp(turn.now)})
    return turn.with_world(turn.world.model_copy(update={"phase": "Drain", "cause": cause}))


def drain_left(turn: Turn) -> float:
    """Seconds that ranks may still take to save; 0 when they have, or when nobody is left who could."""
    world, gang = turn.world, turn.gang
    if world is None or not gang.formed or gang.said("Drained") or gang.said("RankFailed"):
        return 0.0
    if sum(not pod.ended for pod in gang.holders.values()) < gang.size:
        return 0.0
    began = moment(world.cause.at) or turn.now
    return max(0.0, seconds_between(turn.now, began + timedelta(seconds=world.drain_seconds + MARGIN_SECONDS)))


def _was_suspended(turn: Turn) -> bool:
    found = find(turn.status, "Suspended")
    return found is not None and (found.status == "True" or found.reason == "Resumed")


def _suspended(turn: Turn) -> Turn:
    """Admission is forgotten: what is resumed may be another spec, and is rendered anew."""
    if not holds(turn.status, "Suspended"):
        turn = turn.judge("Suspended", "True", "Suspended", "The job holds no pods; set suspend to false to go on.")
    turn = _quiet(turn, "Suspended", "The job is suspended.")
    turn = turn.judge("Scheduled", "False", "Suspended", "The job is suspended.")
    return turn.note(rendered=None, admitted_hash=None, withdrawals=0, retry_at=None)


def _quiet(turn: Turn, why: str, message: str) -> Turn:
    turn = turn.judge("Running", "False", why, message)
    return turn.judge("Recovering", "False", why, message) if holds(turn.status, "Recovering") else turn
