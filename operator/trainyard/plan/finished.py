"""The end of a job. Terminal means terminal: nothing is made again, the World says Done, pods and job are tidied up."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Literal

from trainyard.api.protocol import Cause
from trainyard.plan import conditions
from trainyard.plan.removal import removal
from trainyard.plan.times import fine_stamp, moment, seconds_between, stamp
from trainyard.plan.turn import Turn

LEAVE_SECONDS = 30.0  # supervisors leave by themselves on Done; what still runs after this is deleted


def finished(turn: Turn) -> Turn:
    """A job that has ended is only tidied up; one whose end reached the World but not the status ends now."""
    if conditions.finished(turn.status):
        return tidy(turn).stop()
    if turn.world is not None and turn.world.phase == "Done":
        why, _, message = turn.world.cause.culprit.partition(": ")
        kind: Literal["Succeeded", "Failed"] = "Succeeded" if turn.world.cause.kind == "Succeeded" else "Failed"
        return end(turn, kind, why or kind, message)
    return turn


def end(turn: Turn, kind: Literal["Succeeded", "Failed"], why: str, message: str) -> Turn:
    """The job ends here: condition and completion time, Done for the supervisors, pods by cleanPodPolicy."""
    turn = turn.judge(kind, "True", why, message).judge("Running", "False", "Finished", "The job has ended.")
    if conditions.holds(turn.status, "Recovering"):
        turn = turn.judge("Recovering", "False", "Finished", "The job has ended.")
    turn = turn.note(completion_time=stamp(turn.now), retry_at=None)
    if turn.world is not None and turn.world.phase != "Done":
        cause = turn.world.cause.model_copy(
            update={"kind": kind, "culprit": conditions.shorten(f"{why}: {message}", 512), "at": fine_stamp(turn.now)}
        )
        turn = turn.with_world(turn.world.model_copy(update={"phase": "Done", "cause": cause}))
    return tidy(turn).stop()


def tidy(turn: Turn) -> Turn:
    """World Done, pods by cleanPodPolicy, the job itself by ttlSecondsAfterFinished."""
    if turn.world is not None and turn.world.phase != "Done":
        kind = "Succeeded" if conditions.holds(turn.status, "Succeeded") else "Failed"
        cause = Cause(kind=kind, total=turn.world.cause.total, counted=turn.world.cause.counted)
        turn = turn.with_world(turn.world.model_copy(update={"phase": "Done", "cause": cause}))
    return _expire(_clean(turn))


def _clean(turn: Turn) -> Turn:
    policy = turn.spec.clean_pod_policy
    if policy == "All":
        return removal(turn, turn.snap.pods)
    running = [pod for pod in turn.snap.pods if not pod.finished]
    # They leave by themselves, unless somebody has deleted the World that would tell them to.
    if not running or (policy == "None" and turn.world is not None):
        return turn
    ended = moment(turn.status.completion_time) or turn.now
    left = LEAVE_SECONDS - seconds_between(ended, turn.now)
    return removal(turn, running) if left <= 0 else turn.look_again(left)


def _expire(turn: Turn) -> Turn:
    ttl = turn.spec.ttl_seconds_after_finished
    ended = moment(turn.status.completion_time)
    if ttl is None or ended is None or turn.snap.spec is None:
        return turn
    left = seconds_between(turn.now, ended + timedelta(seconds=ttl))
    if left > 0:
        return turn.look_again(left)
    return replace(turn, delete_job=True)
