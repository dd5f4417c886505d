"""Jobs of lower priority give up their places: whole jobs, saved first, and only if the waiting gang then fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainyard.placement.books import Books, Obstacle
from trainyard.plan.conditions import holds
from trainyard.plan.progress import current, progress
from trainyard.plan.removal import removal
from trainyard.plan.suspend import drain, drain_left, is_draining
from trainyard.plan.turn import Turn
from trainyard.plan.types import Occupant

PREEMPTED = "Preempted"  # cause of a World that drains, and reason of the condition
HELPLESS = ("PodNameTaken", "QuotaExceeded", "IllegalDeviceCount", "NoSuchDevice", "NoSuchTopology", "NoNodes")
_MOST_WITHDRAWALS = 1  # a gang that was given places and did not start, again, is no reason to stop others
_SPARED_MOST = 12  # jobs for which it is tried whether they can stay after all: each costs a placement

Places = dict[int, str] | Obstacle


@dataclass(frozen=True, slots=True)
class Room:
    """Jobs that make room."""

    leaving: tuple[Occupant, ...] = ()  # they are on their way out already
    fresh: tuple[Occupant, ...] = ()  # they are told now

    @property
    def all(self) -> tuple[Occupant, ...]:
        """All of them, in the order of their keys."""
        return tuple(sorted((*self.leaving, *self.fresh), key=lambda one: one.key))


def make_room(turn: Turn, obstacle: Obstacle, find: Callable[[Books], Places]) -> Room | None:
    """The jobs to preempt for this one; None if that would not help or is not allowed. `find` places the gang by other
    books. Lowest priority first, then least progress lost; a job that turns out not to be needed stays."""
    if not turn.snap.may_preempt or obstacle.reason in HELPLESS or turn.status.withdrawals > _MOST_WITHDRAWALS:
        return None
    leaving = tuple(one for one in turn.snap.occupants if one.leaving)
    staying = sorted((one for one in turn.snap.occupants if not one.leaving and one.priority < turn.snap.priority),
                     key=lambda one: (one.priority, one.at_risk, -one.created.timestamp(), one.key))  # fmt: skip
    books = _without(turn.snap.books, leaving)
    if leaving and isinstance(find(books), dict):
        return Room(leaving)
    if not staying or not isinstance(find(_without(books, staying)), dict):
        return None
    few, many = 0, len(staying)  # the shortest beginning of the list that is enough
    while few + 1 < many:
        middle = (few + many) // 2
        if isinstance(find(_without(books, staying[:middle])), dict):
            many = middle
        else:
            few = middle
    return Room(leaving, _needed(books, staying[:many], find))


def _needed(books: Books, enough: Sequence[Occupant], find: Callable[[Books], Places]) -> tuple[Occupant, ...]:
    """Of jobs that are enough, those whose nodes the gang would take; those who lose most are spared first."""
    places = find(_without(books, enough))
    assert isinstance(places, dict)
    nodes = set(places.values())
    needed = [one for one in enough if nodes & set(one.places.values())]
    for one in list(reversed(needed))[:_SPARED_MOST] if len(needed) > 1 else ():
        rest = [other for other in needed if other is not one]
        if isinstance(find(_without(books, rest)), dict):
            needed = rest
    return tuple(needed)


def _without(books: Books, occupants: Sequence[Occupant]) -> Books:
    for one in occupants:
        books = books.release(one.places, one.requests)
    return books


def preempted(turn: Turn) -> Turn:
    """Drain, then delete; then the job waits for places like any other, and comes back by itself. What began is
    completed, even if the other job wants the places no more."""
    other, world = turn.snap.preemptor, turn.world
    if not turn.snap.pods or not (other or is_draining(turn, PREEMPTED)):
        return turn
    culprit = f"{other.key} (priority {other.priority})" if other else world.cause.culprit if world else ""
    words = f"Its places go to {culprit}. The ranks save their state; the job comes back by itself when there is room."
    turn = turn.judge("Scheduled", "False", PREEMPTED, words).judge("Running", "False", PREEMPTED, words)
    if holds(turn.status, "Recovering"):
        turn = turn.judge("Recovering", "False", PREEMPTED, words)
    if world is None:
        return removal(turn, turn.snap.pods).stop()
    turn = drain(turn, PREEMPTED, culprit)
    left = drain_left(turn)
    if left > 0:
        return progress(turn).look_again(left).stop()
    return removal(current(turn), turn.snap.pods).stop()


def preempting(obstacle: Obstacle, room: Room) -> Obstacle:
    """What is said of the jobs that make room."""
    names = ", ".join(f"{one.key} (priority {one.priority})" for one in room.all[:3])
    more = f" and {len(room.all) - 3} more" if len(room.all) > 3 else ""
    verb = "gives up its places, and saves its" if len(room.all) == 1 else "give up their places, and save their"
    words = f"{names}{more} {verb} state first. Until then: {obstacle.message}"
    return Obstacle("Preempting", words)


def still_preempted(turn: Turn, obstacle: Obstacle) -> Obstacle:
    """A preempted job that has no place yet says so."""
    if turn.world is None or not is_draining(turn, PREEMPTED):
        return obstacle
    return Obstacle(PREEMPTED, f"Its places went to {turn.world.cause.culprit}. {obstacle.message}")
