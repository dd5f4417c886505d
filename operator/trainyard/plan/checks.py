"""What came of the check of nodes in pairs, which a second hang without a culprit leads to."""

from __future__ import annotations

from datetime import timedelta

from trainyard.api.job import Avoid
from trainyard.api.protocol import Check
from trainyard.plan.conditions import shorten
from trainyard.plan.losses import active
from trainyard.plan.recoveries import latest
from trainyard.plan.times import stamp
from trainyard.plan.turn import Fault, Turn

KIND = "CheckFailed"
AVOID_SECONDS = 600.0  # how long the job keeps away from a node that failed, if there are others


def check_failed(turn: Turn) -> Turn:
    """A fault for the nodes that failed with both their partners: their pods are replaced elsewhere. No program is to
    blame, so it is not counted."""
    told = _told(turn)
    if told is None or not active(turn) or turn.gang.formed:
        return turn
    known = frozenset[int]().union(*(fault.replace for fault in turn.faults))
    pods = [turn.gang.alive[index] for index in told.culprits if index in turn.gang.alive and index not in known]
    if not pods:
        return turn
    names = ", ".join(f"pod {pod.name} on node {pod.node}" for pod in pods)
    words = f"{names} failed the check of nodes in pairs: {told.reason}"
    until = stamp(turn.now + timedelta(seconds=AVOID_SECONDS))
    avoid = tuple(Avoid(node=pod.node, reason=words[:4096], until=until) for pod in pods if pod.node)
    turn = turn.emit("Warning", KIND, shorten(words, 1000))
    lost = frozenset(pod.index for pod in pods)
    return turn.with_faults(Fault(KIND, words, turn.now, lost, "free", avoid, takes_over=True))


def check_passed(turn: Turn) -> Turn:
    """The recovery under way tells that nodes were checked and nobody was to blame, and so does an event, once."""
    told, last = _told(turn), latest(turn)
    if told is None or told.culprits or last is None or not active(turn):
        return turn
    words = f"nodes were checked in pairs: {told.reason}"
    if last.culprit.startswith(words[:256]):
        return turn
    culprit = shorten(f"{words[:256]}; {last.culprit}", 512)
    turn = turn.note(recoveries=[*turn.status.recoveries[:-1], last.model_copy(update={"culprit": culprit})])
    bad = told.failed > 0
    return turn.emit("Warning" if bad else "Normal", "NodesChecked", shorten(f"{words[0].upper()}{words[1:]}.", 1000))


def _told(turn: Turn) -> Check | None:
    """What the master of this generation has found."""
    return next((report.spec.check for report in turn.gang.reports if report.spec.check is not None), None)
