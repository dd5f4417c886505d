"""A spec that does not validate: said so; a job that runs goes on with what was admitted."""

from __future__ import annotations

from trainyard.plan.turn import Turn


def invalid(turn: Turn) -> Turn:
    """Accepted=False InvalidSpec. Without pods there is nothing to go on with."""
    if turn.snap.spec is not None:
        return turn
    message = turn.snap.spec_error or "The spec does not validate."
    turn = turn.judge("Accepted", "False", "InvalidSpec", message)
    return turn if turn.snap.pods and turn.world is not None else turn.stop()
