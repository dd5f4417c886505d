"""Crash loops: the same failure again and again without a newly finished step."""

from __future__ import annotations

import re

from trainyard.plan.finished import end
from trainyard.plan.restarts import no_new_step
from trainyard.plan.times import seconds_between
from trainyard.plan.turn import Loop, Turn

LIMIT = 3  # times in a row, after which the job has failed
TAIL = 2000  # characters of a rank's output, or of stacks, in the reason of a failed job
SILENT_SECONDS = 600.0  # a program that reports no steps, and lived this long, may have made some
OUTSIDE = (-9, -15, 137, 143)  # SIGKILL and SIGTERM say nothing about the program
NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


def signature(code: int, why: str, oom: bool) -> str:
    """By which failures are compared."""
    if code in OUTSIDE and not oom:
        return ""
    return f"{code} {NUMBERS.sub('#', why)}"[:200]


def loop(turn: Turn, failure: str, node: str | None) -> Loop:
    """With this failure of a rank on this node."""
    assert turn.world is not None
    before = turn.world.cause
    again = bool(failure) and before.failure == failure and _without_progress(turn)
    if not again:
        return Loop(failure, 1, node or "")
    return Loop(failure, before.repeats + 1, before.node if before.node == node else "")


def crash_loop(turn: Turn, words: str, seen: Loop, index: int | None, text: str) -> Turn:
    """The job has failed, with all that is known of it. `index`: the pod of the last time, if it was one pod's."""
    pod = turn.gang.holders.get(index) if index is not None else None
    where = ""
    if pod is not None:
        where = f", each time on node {seen.node}" if seen.node else f", on several nodes, last on {pod.node}"
        if pod.devices:
            where += f" (devices {', '.join(device.id for device in pod.devices)})"
    words = f"{words}; the same {seen.times} times without a newly finished step{where}"
    return end(turn, "Failed", "CrashLoop", f"{words}. Last lines:\n{text[-TAIL:]}" if text else words)


def _without_progress(turn: Turn) -> bool:
    if turn.status.progress is not None or turn.spec.train is not None:
        return no_new_step(turn)
    formed = turn.gang.formed_at
    return formed is None or seconds_between(formed, turn.now) < SILENT_SECONDS
