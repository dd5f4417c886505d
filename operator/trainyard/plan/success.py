"""All ranks of the gang ended with 0, says the master of this generation."""

from __future__ import annotations

from trainyard.plan.finished import end
from trainyard.plan.progress import current
from trainyard.plan.turn import Turn


def success(turn: Turn) -> Turn:
    """Finished by the master ends the job, whatever happened to pods or nodes since."""
    world, told = turn.world, turn.gang.said("Finished")
    if world is None or told is None or told.spec.pod_uid != world.master.pod_uid:
        return turn
    turn = current(turn)
    steps = turn.status.progress.step if turn.status.progress else None
    done = f" after step {steps:,}" if steps else ""
    return end(turn, "Succeeded", "Completed", f"All ranks finished{done}.")
