"""A job whose steps stopped although nothing failed: pods that watch their ranks say so; otherwise, and if they cannot,
the lack of new steps does, after a longer time."""

from __future__ import annotations

from datetime import datetime, timedelta

from trainyard.api.job import Avoid, HangDetection
from trainyard.plan.collectives import behind
from trainyard.plan.loops import LIMIT, crash_loop, loop
from trainyard.plan.losses import active
from trainyard.plan.nodes import last_step_at, seconds_per_step
from trainyard.plan.restarts import exhausted
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.tuned import tuned
from trainyard.plan.turn import Fault, Turn
from trainyard.plan.types import Report

AUTO_LEAST_SECONDS = 300.0
AUTO_STEPS = 10  # auto: this many times the median step
AUTO_AFTER = 5  # auto: once this many steps were reported
ACTIVITY_SECONDS = 1800.0  # an evaluation, a save, an export: no step is finished meanwhile, and nothing hangs
PULSE_SECONDS = 30.0  # more than a pod needs that sees its own ranks hang
FIRST_STEP_SECONDS = 1800.0  # loading and compiling come before the first step of a generation
NOBODY = "a hang, nobody is behind"  # by which hangs without a culprit are compared
BEHIND = "a hang, somebody is behind"  # and those with one
AVOID_SECONDS = 600.0  # how long the job keeps away from a node that was to blame twice, if there are others
CHECK_FROM = 2  # times in a row, without a newly finished step, that it is that: then nodes are checked in pairs


def hang(turn: Turn) -> Turn:
    """No progress for too long counts like a failed rank; jobs that report no steps are left alone."""
    turn = turn.note(hang_detection=_detection(turn))
    if not active(turn) or turn.world is None or turn.world.phase != "Run" or turn.faults:
        return turn
    waiting = {report.spec.index: report for report in turn.gang.reports if report.spec.hang is not None}
    if waiting and len(waiting) == turn.gang.size:  # one that is busy with something else is no hang yet
        return _told(turn, [waiting[index] for index in sorted(waiting)])
    return _silent(turn)


def _detection(turn: Turn) -> HangDetection:
    if turn.spec.train is not None:
        return "Ranks"
    return "Steps" if turn.status.progress is not None or turn.gang.progress is not None else "None"


def _told(turn: Turn, reports: list[Report]) -> Turn:
    """Every pod says that its ranks wait."""
    hangs = [(report, report.spec.hang) for report in reports if report.spec.hang is not None]
    late = behind(position for _, hang in hangs for position in hang.positions)
    first = min((hang for _, hang in hangs), key=lambda hang: hang.since)
    places = {one.rank // turn.spec.procs for one in late}
    blamed = frozenset(index for place, index in enumerate(turn.gang.members) if place in places)
    words = "; ".join(str(one) for one in late[:4]) if late else "all ranks wait for each other, none is behind"
    words = f"{words} (phase {first.phase}, after step {first.step:,})"
    texts = [hang.text for report, hang in hangs if not blamed or report.spec.index in blamed]
    return _counted(turn, words, moment(first.since), texts[0] if texts else "", blamed)


def _counted(turn: Turn, words: str, happened: datetime | None, text: str = "",
             blamed: frozenset[int] = frozenset()) -> Turn:
    """Everybody starts again. The second time in a row without a new step nodes are checked in pairs first if nobody is
    to blame, and a node that was to blame both times is left behind; the third time the job has failed."""
    assert turn.world is not None
    if turn.world.cause.counted >= turn.spec.failure_policy.max_restarts:
        return exhausted(turn, words)
    only = next(iter(blamed)) if len(blamed) == 1 else None
    pod = turn.gang.holders.get(only) if only is not None else None
    seen = loop(turn, BEHIND if blamed else NOBODY, pod.node if pod is not None else None)
    if seen.times >= LIMIT:
        return crash_loop(turn, words, seen, only, text)
    check = not blamed and seen.times >= CHECK_FROM and turn.gang.size > 1
    if check:
        words = f"{words}; again without a new step: nodes are checked in pairs first"
    lost, avoid = frozenset[int](), tuple[Avoid, ...]()
    if pod is not None and seen.times == LIMIT - 1 and seen.node:
        lost, until = blamed, stamp(turn.now + timedelta(seconds=AVOID_SECONDS))
        words = f"{words}; again without a new step, and again pod {pod.name} on node {seen.node}: it is replaced"
        avoid = (Avoid(node=seen.node, reason=words[:4096], until=until),)
    return turn.with_faults(Fault("Hang", words, turn.now, lost, "counted", avoid, happened=happened, text=text,
                                  loop=seen, check=check))


def _silent(turn: Turn) -> Turn:
    """No step was reported for too long."""
    assert turn.world is not None
    limit, last, formed = allowance(turn), last_step_at(turn), turn.gang.formed_at
    if limit is None or formed is None:
        return turn
    # A pod's clock may be behind; the gang cannot have formed before the generation was wanted.
    formed = max(formed, moment(turn.world.cause.at) or formed)
    since = max(last or formed, formed)
    if since > turn.now:  # the operator's clock was set back after that was written down
        since = turn.snap.heard_since or turn.now
    # While the API server is away nobody can report a step; ranks that train on are not to be blamed for that.
    listened = seconds_between(max(since, turn.snap.heard_since or since), turn.now)
    if listened < limit:
        return turn.look_again(limit - listened)
    silent = seconds_between(since, turn.now)
    step = turn.status.progress.step if turn.status.progress else 0
    return _counted(turn, f"no step was finished for {int(silent)} s after step {step:,}", None)


def allowance(turn: Turn) -> float | None:
    """Seconds that may pass without a finished step; None: not judged yet."""
    wanted, told = turn.spec.failure_policy.hang_seconds, turn.gang.progress
    fixed = None if wanted == "auto" else float(wanted)
    if told is None or told.first_step_at is None:
        reports_steps = turn.status.progress is not None or turn.spec.train is not None
        limit = max(FIRST_STEP_SECONDS, fixed or 0.0) * (1 + _measured(turn))
        return limit if reports_steps else None
    least = ACTIVITY_SECONDS if told.activity else 0.0
    if fixed is not None:
        return max(fixed + (PULSE_SECONDS if turn.spec.train is not None else 0.0), least)
    usual = seconds_per_step(turn)
    if usual is None or told.step < AUTO_AFTER:
        return None
    return max(AUTO_LEAST_SECONDS, AUTO_STEPS * usual, least)


def _measured(turn: Turn) -> int:
    """Layouts that are measured before the first step: each may load and compile."""
    rendering = turn.snap.rendering
    layout = rendering.layout if rendering is not None else None
    return 0 if layout is None or tuned(turn) else len(layout.candidates or ())
