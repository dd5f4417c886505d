"""suspend: false again: the job is admitted and placed like a new one and goes on from its checkpoint."""

from __future__ import annotations

from trainyard.plan.conditions import holds
from trainyard.plan.times import stamp
from trainyard.plan.turn import Turn


def resume(turn: Turn) -> Turn:
    """The clock of activeDeadlineSeconds starts again; the World follows when places are found."""
    if turn.spec.suspend or not holds(turn.status, "Suspended"):
        return turn
    turn = turn.judge("Suspended", "False", "Resumed", "The job was resumed.")
    # Unknown, so that the time of waiting for places starts here, and not when the job was suspended.
    turn = turn.judge("Scheduled", "Unknown", "Resumed", "Places are being looked for.")
    return turn.note(start_time=stamp(turn.now), rendered=None, admitted_hash=None)
