"""activeDeadlineSeconds: its clock runs while the job is not suspended and starts again when it is resumed."""

from __future__ import annotations

from datetime import timedelta

from trainyard.plan.conditions import holds
from trainyard.plan.finished import end
from trainyard.plan.times import moment, seconds_between
from trainyard.plan.turn import Turn


def deadline(turn: Turn) -> Turn:
    """Past its deadline the job fails."""
    limit, start = turn.spec.active_deadline_seconds, moment(turn.status.start_time)
    if limit is None or start is None or turn.spec.suspend or holds(turn.status, "Suspended"):
        return turn
    left = seconds_between(turn.now, start + timedelta(seconds=limit))
    if left > 0:
        return turn.look_again(left)
    message = f"The job was active for longer than its activeDeadlineSeconds of {limit} s."
    return end(turn, "Failed", "DeadlineExceeded", message)
