"""A gang that waits too long for a replacement goes on smaller, and grows again at a checkpoint when there is room."""

from __future__ import annotations

from trainyard.plan.gang import trained
from trainyard.plan.losses import active
from trainyard.plan.restarts import known_step
from trainyard.plan.seats import idle, largest, sizes, warm
from trainyard.plan.suspend import MARGIN_SECONDS
from trainyard.plan.times import fine_stamp, moment, seconds_between
from trainyard.plan.turn import Fault, Turn


def elastic(turn: Turn) -> Turn:
    """Shrunk, after replaceSeconds; Grown, once enough pods of a larger gang run."""
    world = turn.world
    if world is None or not active(turn) or world.phase != "Run" or turn.faults or len(sizes(turn)) < 2:
        return turn
    return _grown(turn) if turn.gang.formed else _shrunk(turn)


def _shrunk(turn: Turn) -> Turn:
    assert turn.world is not None
    missing = idle(turn)
    there = turn.gang.size - len(missing)
    if not missing or not trained(turn.gang, turn.world) or largest(turn, there) == 0:
        return turn
    since = moment(turn.world.cause.at) or turn.now
    limit = turn.spec.failure_policy.replace_seconds
    left = limit - seconds_between(since, turn.now)
    if left > 0:
        return turn.look_again(left)
    words = f"no replacement for {len(missing)} of {turn.gang.size} pods within {limit} s"
    return turn.with_faults(Fault("Shrunk", words, turn.now, weight="planned", takes_over=True))


def _grown(turn: Turn) -> Turn:
    """Only what can be saved is given up for a larger gang, and not more often than every replaceSeconds."""
    assert turn.world is not None
    more = warm(turn)
    size = largest(turn, turn.gang.size + len(more))
    rendering = turn.snap.rendering
    if turn.gang.size >= turn.spec.num_nodes or size <= turn.gang.size or rendering is None:
        return turn
    left = turn.spec.failure_policy.replace_seconds - seconds_between(turn.gang.formed_at or turn.now, turn.now)
    if left > 0:
        return turn.look_again(left)
    saved = turn.status.checkpoint
    if not rendering.checkpoint and (saved is None or saved.memory_step is None):
        return turn  # it would begin anew; the next recovery takes the pods in
    fresh = size - turn.gang.size
    words = f"{fresh} more {'pod is' if fresh == 1 else 'pods are'} ready: the gang grows to {size}"
    if not rendering.checkpoint:
        return turn.with_faults(Fault("Grown", words, turn.now, weight="planned"))
    cause = turn.world.cause.model_copy(
        update={"kind": "Grown", "culprit": words, "at": fine_stamp(turn.now), "step": known_step(turn)}
    )
    world = turn.world.model_copy(update={"phase": "Drain", "cause": cause})
    return turn.with_world(world).look_again(world.drain_seconds + MARGIN_SECONDS)
