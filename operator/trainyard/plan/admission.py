"""Admission: one pod is tried out at the API server, and what comes back is kept for every pod of the job."""

from __future__ import annotations

from dataclasses import replace

from trainyard.placement.books import Demand, Obstacle
from trainyard.placement.obstacle import unservable
from trainyard.plan.changed import is_changed
from trainyard.plan.conditions import reason
from trainyard.plan.times import seconds_between, stamp
from trainyard.plan.tuned import readmitted
from trainyard.plan.turn import Turn
from trainyard.plan.types import Refusal

RETRY_SECONDS = 30.0  # between two tries of a pod that was refused for a reason that may pass


def admission(turn: Turn) -> Turn:
    """Refused: said so. Not yet tried: tried. Tried and kept: Accepted."""
    rendering, refusal = turn.snap.rendering, turn.snap.refusal
    if rendering is not None:
        return _accepted(turn)
    if turn.snap.spec is None:
        return turn  # there is nothing to try; what runs goes on, only replacements must wait
    if refusal is not None and refusal.generation == turn.snap.generation:
        turn = _refused(turn, refusal)
        if turn.admit or not turn.snap.pods:
            return turn.stop()
        return turn
    illegal = _illegal(turn)
    if illegal is not None and not turn.snap.pods:
        return _refused(turn, Refusal(illegal.reason, illegal.message, False, turn.snap.generation, turn.now)).stop()
    return replace(turn, admit=True).stop()


def _illegal(turn: Turn) -> Obstacle | None:
    """Devices a pod that no node's model allows; known as soon as NodeDevices tell of the models."""
    devices = turn.spec.devices
    return unservable(turn.snap.books, Demand({devices.resource: devices.per_node})) if devices else None


def _accepted(turn: Turn) -> Turn:
    rendering = turn.snap.rendering
    assert rendering is not None
    fresh = turn.status.rendered != rendering.name or not turn.status.admitted_hash
    if fresh:
        turn = turn.note(
            rendered=rendering.name,
            admitted_hash=turn.snap.admitted_hash or None,
            start_time=turn.status.start_time or stamp(turn.now),
        )
        if rendering.layout is not None:
            turn = turn.note(layout=readmitted(rendering.layout, turn.status.layout))
    if turn.snap.spec is None or is_changed(turn):
        return turn
    turn = turn.judge("Accepted", "True", "Admitted", "The API server accepts the job's pods.")
    # Written down before anything is made of it: from then on the API server refuses changes of what was admitted.
    return turn.look_again(0.0).stop() if fresh and not turn.snap.pods else turn


def _refused(turn: Turn, refusal: Refusal) -> Turn:
    turn = turn.judge("Accepted", "False", refusal.reason, refusal.message)
    if not reason(turn.status, "Scheduled"):
        turn = turn.judge("Scheduled", "Unknown", "NotAccepted", "The job is not accepted yet.")
    if refusal.permanent:
        return turn
    waited = RETRY_SECONDS if refusal.at is None else seconds_between(refusal.at, turn.now)
    if refusal.at is not None and waited >= RETRY_SECONDS:
        return replace(turn, admit=True)
    return turn.look_again(max(1.0, RETRY_SECONDS - waited) if refusal.at else RETRY_SECONDS)
