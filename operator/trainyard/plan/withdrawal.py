"""A gang that cannot start is taken back whole, so that half a gang never holds devices for long; then it waits longer
each time."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256

from trainyard.api.protocol import Master
from trainyard.plan.bringup import UNSCHEDULABLE_PATIENCE, hindrance, is_hopeless, refused_for
from trainyard.plan.conditions import find
from trainyard.plan.gang import trained
from trainyard.plan.losses import active
from trainyard.plan.recover import ever, raised
from trainyard.plan.removal import removal
from trainyard.plan.times import fine_stamp, moment, seconds_between
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView

FIRST_BACKOFF = 10.0
LONGEST_BACKOFF = 300.0
JITTER = 0.3  # a pause is longer by up to this part of it


def withdrawal(turn: Turn) -> Turn:
    """After scheduleSeconds without all pods started, or when no node seems to do: every place fenced, every pod
    deleted, a time to try again."""
    if turn.gang.formed:
        return turn.note(withdrawals=0, retry_at=None)
    if not active(turn) or trained(turn.gang, turn.world) or not turn.gang.holders:
        return turn
    waits = [(_left(turn, pod), _words(turn, pod)) for pod in turn.gang.holders.values() if _waits(pod)]
    if turn.gang.missing and (since := _unplaced_since(turn)) is not None:
        left = turn.spec.schedule_seconds - since
        found = find(turn.status, "Scheduled")
        waits.append((left, found.message if found else "no place for the rest of the gang"))
    if not waits:
        return turn
    left, words = min(waits)
    return _withdraw(turn, words) if left <= 0 else turn.look_again(left)


def _waits(pod: PodView) -> bool:
    return not pod.started and not pod.ended and bool(pod.node or pod.pinned)


def _left(turn: Turn, pod: PodView) -> float:
    if is_hopeless(turn, pod):
        return UNSCHEDULABLE_PATIENCE - refused_for(pod, turn.now)
    return turn.spec.schedule_seconds - seconds_between(pod.created, turn.now)


def _words(turn: Turn, pod: PodView) -> str:
    found = hindrance(turn, pod)
    if found and is_hopeless(turn, pod):
        return f"the scheduler can bind pod {pod.name} to none of the nodes it was given: {found.text}"
    return f"pod {pod.name} did not start within {turn.spec.schedule_seconds} s{': ' + found.text if found else ''}"


def _unplaced_since(turn: Turn) -> float | None:
    found = find(turn.status, "Scheduled")
    if found is None or found.status != "False":
        return None
    since = moment(found.last_transition_time)
    oldest = min(pod.created for pod in turn.gang.holders.values())
    return seconds_between(max(since, oldest), turn.now) if since else None


def _withdraw(turn: Turn, words: str) -> Turn:
    assert turn.world is not None
    pause = _pause(turn)
    retry = turn.now + timedelta(seconds=pause)
    update = {"incarnations": raised(turn, ever(turn.world)), "master": Master()}
    turn = turn.with_world(turn.world.model_copy(update=update))
    message = f"The gang was withdrawn: {words}. It is placed again at {retry:%H:%M:%S} UTC."
    turn = turn.judge("Scheduled", "False", "Withdrawn", message).judge("Running", "False", "Withdrawn", message)
    turn = turn.note(withdrawals=turn.status.withdrawals + 1, retry_at=fine_stamp(retry))
    return removal(turn, turn.snap.pods).look_again(pause).stop()


def _pause(turn: Turn) -> float:
    """Seconds until the next try. Jobs that one cause withdrew together come back apart, by a jitter that follows from
    the job's UID and the number of the withdrawal: the same snapshot gives the same plan."""
    count = turn.status.withdrawals
    drawn = int.from_bytes(sha256(f"{turn.snap.uid}/{count}".encode()).digest()[:4], "big") / 2**32
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count, 16)) * (1.0 + JITTER * drawn)
