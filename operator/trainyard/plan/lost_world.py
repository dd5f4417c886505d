"""A World that somebody deleted or edited is made again, past every generation that anybody has seen."""

from __future__ import annotations

from trainyard.api.protocol import Cause, WorldSpec
from trainyard.plan.placement import known_generation
from trainyard.plan.recover import drain_seconds
from trainyard.plan.seats import places_of
from trainyard.plan.times import fine_stamp
from trainyard.plan.tuned import tuned
from trainyard.plan.turn import Turn

# Status follows the World, and a member that only waits reports nothing: generations may have been written that
# neither tells of. Members follow no older generation than their own, so the new one leaps over all of them.
LEAP = 100


def lost_world(turn: Turn) -> Turn:
    """Pods without a World to trust: a later generation, every place held by the newest pod that is there."""
    snap = turn.snap
    if turn.world is not None or not snap.pods:
        return turn
    newest: dict[str, int] = {}
    for pod in snap.pods:
        newest[str(pod.index)] = max(pod.incarnation, newest.get(str(pod.index), 1))
    restarts, progress = turn.status.restarts, turn.status.progress
    culprit = f"the World object was {'edited by hand' if snap.world else 'deleted'}"
    cause = Cause(
        kind="WorldLost", culprit=culprit, at=fine_stamp(snap.now),
        step=progress.step if progress else None, total=restarts.total, counted=restarts.counted,
    )  # fmt: skip
    size = turn.status.world.size or turn.spec.num_nodes
    made = WorldSpec(
        job=snap.uid, generation=known_generation(turn) + LEAP, phase="Run", size=size, token=snap.new_token,

        incarnations={index: number for index, number in newest.items() if number > 1 or int(index) >= size},
        places=places_of(_members(turn, size)), cause=cause,
        drain_seconds=drain_seconds(turn), tuned=tuned(turn),
    )  # fmt: skip
    return turn.with_world(made)


def _members(turn: Turn, size: int) -> list[int]:
    """Who held which place is lost with the World: the gang is made of pods that run, as far as there are such."""
    running = {pod.index for pod in turn.snap.pods if pod.started and not pod.ended and pod.deleting is None}
    there = {pod.index for pod in turn.snap.pods}
    known = running | there | set(range(size))
    wanted = sorted(known, key=lambda index: (index not in running, index not in there, index))
    return sorted(wanted[:size])
