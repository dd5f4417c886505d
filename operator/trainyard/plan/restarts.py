"""Which new starts count towards maxRestarts, and what happens when they are used up."""

from __future__ import annotations

from trainyard.api import EXIT_CONFIG, EXIT_DIVERGED, EXIT_SUSPECT_DEVICE
from trainyard.api.job import Action, FailurePolicy
from trainyard.plan.finished import end
from trainyard.plan.gang import PLANNED
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView

DEFAULTS: dict[int, Action] = {EXIT_CONFIG: "Fail", EXIT_DIVERGED: "Fail", EXIT_SUSPECT_DEVICE: "RestartNode"}
TOLD_TO_STOP = "was told to stop"  # SIGTERM, and nobody known wanted the pod to leave
LOOK = "; look at the pod's events, its livenessProbe, the container's log, and at what else stops it"


def known_step(turn: Turn) -> int | None:
    """The last finished step that is known."""
    told = turn.gang.progress
    if told is not None:
        return told.step
    return turn.status.progress.step if turn.status.progress else None


def no_new_step(turn: Turn) -> bool:
    """Whether no step beyond those known at the last recovery has been finished; a job that reports none has none."""
    return turn.world is not None and (known_step(turn) or 0) <= (turn.world.cause.step or 0)


def lost_again(turn: Turn, pod: PodView) -> bool:
    """Whether this pod, itself a replacement, is lost without a newly finished step since the last loss. Infrastructure
    may take a place once; what keeps taking it is more likely a probe or the program, and must come to an end."""
    assert turn.world is not None
    if pod.incarnation == 1:
        return False
    cause = turn.world.cause
    if cause.kind in PLANNED:
        return not turn.gang.formed  # a loss on the way to the first step leaves no cause of its own
    lost = cause.kind in ("PodLost", "PeerLost") or (cause.kind == "Moved" and TOLD_TO_STOP in cause.culprit)
    return lost and no_new_step(turn)


def exhausted(turn: Turn, words: str) -> Turn:
    """The job has failed: the restarts that failurePolicy allows are used up."""
    assert turn.world is not None
    counted, allowed = turn.world.cause.counted, turn.spec.failure_policy.max_restarts
    message = f"{words} (after {counted} of {allowed} restarts that failurePolicy.maxRestarts allows)"
    return end(turn, "Failed", "MaxRestartsExceeded", message)


def action(policy: FailurePolicy, code: int) -> Action:
    """What the policy says about an exit code. A container's 128 + N and a rank's -N mean the same signal."""
    same = {code}
    if code > 128:
        same.add(128 - code)
    if code < 0:
        same.add(128 - code)
    for rule in policy.rules:
        if same & set(rule.on_exit_codes):
            return rule.action
    return DEFAULTS.get(code, "Restart")
