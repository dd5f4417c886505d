"""Events, each once: what a user wants to see is read from how the new status differs from the old one."""

from __future__ import annotations

from trainyard.api.job import ConditionType, JobWarning
from trainyard.plan.conditions import find, holds, shorten
from trainyard.plan.times import fine_stamp, moment
from trainyard.plan.turn import Turn

LIMIT = 1000  # characters; the API allows 1,024
KEPT = 10  # of status.warnings
ANNOUNCED: tuple[tuple[ConditionType, str, bool], ...] = (
    ("Accepted", "Admitted", False), ("Scheduled", "Scheduled", False), ("Suspended", "Suspended", False),
    ("Succeeded", "Succeeded", False), ("Failed", "Failed", True),
)  # fmt: skip
SILENT = ("Suspended", "Resumed", "NotAccepted", "Withdrawn", "SparesStarting")  # reasons that something else tells


def events(turn: Turn) -> Turn:
    """The turn with its events."""
    for kind, why, bad in ANNOUNCED:
        if holds(turn.status, kind) and not holds(turn.snap.status, kind):
            turn = _say(turn, why, _message(turn, kind), bad)
    return _warnings(_recovery(_waits(_starts(turn))))


def _starts(turn: Turn) -> Turn:
    started = holds(turn.status, "Running") and not holds(turn.snap.status, "Running")
    if started and turn.world is not None and turn.world.cause.kind in ("Start", "Resume"):
        turn = _say(turn, "Started", _message(turn, "Running"))
    now, before = find(turn.status, "Suspended"), find(turn.snap.status, "Suspended")
    if now is not None and now.reason == "Resumed" and (before is None or before.reason != "Resumed"):
        turn = _say(turn, "Resumed", now.message)
    return turn


def _waits(turn: Turn) -> Turn:
    waits: tuple[tuple[ConditionType, str], ...] = (
        ("Accepted", "Refused"), ("Scheduled", "Waiting"), ("SparesReady", "SparesMissing"),
    )  # fmt: skip
    for kind, why in waits:
        now, before = find(turn.status, kind), find(turn.snap.status, kind)
        news = now is not None and now.status == "False" and (before is None or before.reason != now.reason)
        if now is not None and news and now.reason not in SILENT:
            if now.reason in ("Preempted", "Preempting"):
                turn = _say(turn, now.reason, now.message, now.reason == "Preempted")
            else:
                turn = _say(turn, why, f"{now.reason}: {now.message}", kind != "Scheduled")
    if turn.status.withdrawals > turn.snap.status.withdrawals:
        turn = _say(turn, "Withdrawn", _message(turn, "Scheduled"), True)
    return turn


def _recovery(turn: Turn) -> Turn:
    now = turn.status.recoveries[-1] if turn.status.recoveries else None
    before = turn.snap.status.recoveries[-1] if turn.snap.status.recoveries else None
    if now is None:
        return turn
    if before is None or now.at != before.at:
        message = f"{now.cause}: {now.culprit}" + (f"\n{now.text}" if now.text else "")
        planned = now.cause in ("Moved", "Grown")
        turn = _say(turn, now.cause if planned else "Recovering", message, not planned)
    done = now.milliseconds.total
    if done is not None and (before is None or before.at != now.at or before.milliseconds.total is None):
        step = f" at step {turn.status.progress.step:,}" if turn.status.progress else ""
        turn = _say(turn, "Recovered", f"Training goes on{step} after {done / 1000:.1f} s.")
    return turn


def _warnings(turn: Turn) -> Turn:
    """Warnings of the pods that are newer than the last one announced."""
    told = turn.status.warnings
    last = moment(told[-1].at) if told else None
    fresh = []
    for report in turn.gang.reports:
        for warning in report.spec.warnings:
            at = moment(warning.at)
            if at is not None and at <= turn.now and (last is None or at > last):
                fresh.append((at, report.pod, warning))
    made = [JobWarning(pod=pod, at=fine_stamp(at), reason=warning.reason, message=warning.message)
            for at, pod, warning in sorted(fresh, key=lambda one: one[:2])]
    for each in made:
        turn = _say(turn, each.reason, f"Pod {each.pod}: {each.message}", True)
    return turn.note(warnings=[*told, *made][-KEPT:]) if made else turn


def _message(turn: Turn, kind: ConditionType) -> str:
    found = find(turn.status, kind)
    return found.message if found else ""


def _say(turn: Turn, why: str, message: str, bad: bool = False) -> Turn:
    return turn.emit("Warning" if bad else "Normal", why, shorten(message, LIMIT))
