"""Pods that will have to leave: evicted, preempted, deleted, drained from their node. Saved first, if there is time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from trainyard.plan.losses import active
from trainyard.plan.nodes import unreachable
from trainyard.plan.restarts import LOOK, TOLD_TO_STOP, exhausted, known_step, lost_again
from trainyard.plan.suspend import MARGIN_SECONDS
from trainyard.plan.times import fine_stamp, moment, seconds_between
from trainyard.plan.turn import Fault, Turn
from trainyard.plan.types import PodView

LEAST_SECONDS = 5.0  # less than this is not enough to save anything
LEAVES_EARLY_SECONDS = 4  # a supervisor leaves 3 s before its grace ends, and Drain takes a moment to arrive


@dataclass(frozen=True, slots=True)
class Mover:
    """A pod that will have to leave."""

    why: str
    seconds: float  # until it is gone


def movers(turn: Turn) -> dict[int, Mover]:
    """By index, the pods that are there and will not stay."""
    grace = float(turn.snap.rendering.grace_seconds) if turn.snap.rendering else 30.0
    stopping = {report.spec.index for report in turn.gang.reports if report.spec.kind == "Stopping"}
    found = {}
    for index, pod in turn.gang.holders.items():
        if not pod.ended and (why := _why(turn, pod, index in stopping)):
            left = seconds_between(turn.now, pod.deleting) if pod.deleting else grace
            found[index] = Mover(f"pod {pod.name} {why}", left)
    return found


def _why(turn: Turn, pod: PodView, stopping: bool) -> str:
    state = turn.snap.nodes.get(pod.node or "")
    if pod.disruption:
        return f"is being removed ({pod.disruption})"
    if state is not None and state.no_execute:
        return f"must leave node {state.name} (taint {state.no_execute})"
    if pod.deleting is not None:
        return "was deleted"
    return TOLD_TO_STOP if stopping else ""


def moves(turn: Turn) -> Turn:
    """Drain while the pods that leave can still take part, then the next generation without them."""
    world = turn.world
    if not active(turn) or world is None:
        return turn
    leaving = movers(turn)
    if world.phase == "Run" and not turn.faults:
        turn = _told_again(turn, leaving)
        if turn.stopped:
            return turn
    if turn.faults or not turn.gang.formed:
        return _with_move(turn, leaving) if turn.faults or any(_is_started(turn, i) for i in leaving) else turn
    if world.phase == "Drain":
        left = _drain_left(turn)
        return turn.look_again(left) if left > 0 else _with_move(turn, leaving, always=True)
    if not leaving:
        return turn
    seconds = min(mover.seconds for mover in leaving.values())
    if seconds < LEAST_SECONDS:  # killed rather than moved: nothing can be saved, and steps are lost
        hurried = {index: mover for index, mover in leaving.items() if mover.seconds < LEAST_SECONDS}
        turn = turn.with_faults(Fault("PodLost", _words(hurried), turn.now, frozenset(hurried)))
        return _with_move(turn, {index: mover for index, mover in leaving.items() if index not in hurried})
    if not _can_save(turn, leaving):
        return _with_move(turn, leaving)
    return _drain(turn, leaving, seconds)


def _told_again(turn: Turn, leaving: dict[int, Mover]) -> Turn:
    """A pod that keeps being told to stop, and that nobody known wants to leave: a liveness probe for instance."""
    for index, mover in leaving.items():
        if not mover.why.endswith(TOLD_TO_STOP) or not lost_again(turn, turn.gang.holders[index]):
            continue
        assert turn.world is not None
        culprit = f"{mover.why}, again without a new step{LOOK}"
        if turn.world.cause.counted >= turn.spec.failure_policy.max_restarts:
            return exhausted(turn, culprit)
        turn = turn.with_faults(Fault("PodLost", culprit, turn.now, frozenset({index}), "counted"))
    return turn


def _is_started(turn: Turn, index: int) -> bool:
    return turn.gang.holders[index].started


def _can_save(turn: Turn, leaving: dict[int, Mover]) -> bool:
    rendering, gang = turn.snap.rendering, turn.gang
    there = all(not unreachable(turn.snap, gang.holders[index]) for index in leaving)
    return (
        there and rendering is not None and rendering.checkpoint and gang.said("RankFailed") is None
    )  # fmt: skip


def _drain(turn: Turn, leaving: dict[int, Mover], seconds: float) -> Turn:
    assert turn.world is not None
    cause = turn.world.cause.model_copy(
        update={"kind": "Moved", "culprit": _words(leaving), "at": fine_stamp(turn.now), "step": known_step(turn)}
    )
    limit = max(1, min(turn.world.drain_seconds, int(seconds) - LEAVES_EARLY_SECONDS))
    world = turn.world.model_copy(update={"phase": "Drain", "cause": cause, "drain_seconds": limit})
    return turn.with_world(world).look_again(limit + MARGIN_SECONDS)


def _drain_left(turn: Turn) -> float:
    assert turn.world is not None
    if turn.gang.said("Drained"):
        return 0.0
    began = moment(turn.world.cause.at) or turn.now
    return seconds_between(turn.now, began + timedelta(seconds=turn.world.drain_seconds + MARGIN_SECONDS))


def _with_move(turn: Turn, leaving: dict[int, Mover], always: bool = False) -> Turn:
    if not leaving and not always:
        return turn
    assert turn.world is not None
    culprit = _words(leaving) or turn.world.cause.culprit
    kind = turn.world.cause.kind if turn.world.phase == "Drain" else "Moved"
    return turn.with_faults(Fault(kind, culprit, turn.now, frozenset(leaving), "planned"))


def _words(leaving: dict[int, Mover]) -> str:
    shown = [leaving[index].why for index in sorted(leaving)[:3]]
    more = len(leaving) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
