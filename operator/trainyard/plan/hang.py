"""A job whose steps stopped although nothing failed is restarted after failurePolicy.hangSeconds."""

from __future__ import annotations

from trainyard.plan.losses import active
from trainyard.plan.nodes import last_step_at, seconds_per_step
from trainyard.plan.restarts import exhausted
from trainyard.plan.times import moment, seconds_between
from trainyard.plan.turn import Fault, Turn

AUTO_LEAST_SECONDS = 300.0
AUTO_STEPS = 10  # auto: this many times the median step
AUTO_AFTER = 5  # auto: once this many steps were reported
ACTIVITY_SECONDS = 1800.0  # an evaluation, a save, an export: no step is finished meanwhile, and nothing hangs
FIRST_STEP_SECONDS = 1800.0  # loading and compiling come before the first step of a generation


def hang(turn: Turn) -> Turn:
    """No finished step for too long counts like a failed rank; jobs that report no steps are left alone."""
    if not active(turn) or turn.world is None or turn.world.phase != "Run" or turn.faults:
        return turn
    limit, last, formed = allowance(turn), last_step_at(turn), turn.gang.formed_at
    if limit is None or formed is None:
        return turn
    # A pod's clock may be behind; the gang cannot have formed before the generation was wanted.
    formed = max(formed, moment(turn.world.cause.at) or formed)
    since = max(last or formed, formed)
    # While the API server is away nobody can report a step; ranks that train on are not to be blamed for that.
    listened = seconds_between(max(since, turn.snap.heard_since or since), turn.now)
    if listened < limit:
        return turn.look_again(limit - listened)
    silent = seconds_between(since, turn.now)
    step = turn.status.progress.step if turn.status.progress else 0
    words = f"no step was finished for {int(silent)} s after step {step:,}"
    if turn.world.cause.counted >= turn.spec.failure_policy.max_restarts:
        return exhausted(turn, words)
    return turn.with_faults(Fault("Hang", words, turn.now, weight="counted"))


def allowance(turn: Turn) -> float | None:
    """Seconds that may pass without a finished step; None: not judged yet."""
    wanted, told = turn.spec.failure_policy.hang_seconds, turn.gang.progress
    fixed = None if wanted == "auto" else float(wanted)
    if told is None or told.first_step_at is None:
        reports_steps = turn.status.progress is not None or turn.spec.train is not None
        return max(FIRST_STEP_SECONDS, fixed or 0.0) if reports_steps else None
    least = ACTIVITY_SECONDS if told.activity else 0.0
    if fixed is not None:
        return max(fixed, least)
    usual = seconds_per_step(turn)
    if usual is None or told.step < AUTO_AFTER:
        return None
    return max(AUTO_LEAST_SECONDS, AUTO_STEPS * usual, least)
