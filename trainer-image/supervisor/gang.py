"""The master's books: who is connected, who has joined, finished or drained. Pure; the core owns it, store.py talks."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, Counter, Dict, List, Mapping, Optional, Set, Tuple

from supervisor import ranktable
from supervisor.events import GangState, Hello, Run, Start, Status, StoreReady, World
from supervisor.pairs import Pairs

FINAL = ("finished", "drained")  # stay true when the member is gone


@dataclass
class Place:
    """The pod of one index."""

    hello: Hello
    connection: Optional[int]
    status: Optional[Status] = None
    ran: Optional[Run] = None  # the run whose ranks it has started


class Gang:
    """State of the members of one World generation and attempt."""

    def __init__(self, world: World, host: str, ranks: int = 1, rank_table: bool = False) -> None:
        self.world = world
        self.host = host  # of the master's pod
        self.tables: Optional[ranktable.Shelf] = ranktable.Shelf() if rank_table else None
        self.no_table = ""  # why there is no rank table
        self._ranks = ranks
        self.run: Run = (world.generation, 0)
        self.start: Optional[Start] = None
        self.ready: Optional[StoreReady] = None
        self.pairs: Optional[Pairs] = None  # the check of nodes before the start, if there is one
        self._places: Dict[int, Place] = {}
        self._index: Dict[int, int] = {}  # by connection
        self._claims: Dict[Tuple[int, int], str] = {}  # (index, incarnation) -> pod UID
        self._silent: Set[int] = set()
        self._counts: Counter[Tuple[Run, str]] = collections.Counter()
        self._allowed = 0  # attempts of this generation that were made before the API was last heard of

    # What the world and the members say -------------------------------------------------------------------------------

    def advance(self, world: World) -> bool:
        """Take the World over; True if it starts another generation."""
        newer = world.generation > self.world.generation
        self.world = world
        for index, place in list(self._places.items()):
            if world.place(index) is None or place.hello.incarnation != world.incarnation(index):
                self._forget(place)
                del self._places[index]
                self._silent.discard(index)
        if newer:
            self._begin((world.generation, 0))
        return newer

    def next_attempt(self) -> None:
        """Start the same members again, without the operator."""
        self._begin((self.run[0], self.run[1] + 1))

    def api_answers(self) -> None:
        """Whoever reads our reports knows of all attempts so far: the next time that it is away they do not count."""
        self._allowed = self.run[1]

    def _begin(self, run: Run) -> None:
        self.run = run
        self._allowed = min(self._allowed, run[1])
        self.start = None
        self.ready = None
        self.pairs = None
        self._silent = set()

    def hello(self, connection: int, hello: Hello) -> str:
        """Admit a member; the answer says why it is refused, or is empty."""
        if self.world.place(hello.index) is None:
            return f"index {hello.index} holds no place in a gang of {self.world.size}"
        current = self.world.incarnation(hello.index)
        if hello.incarnation != current:
            return f"index {hello.index} is held by incarnation {current}, not {hello.incarnation}"
        holder = self._claims.setdefault((hello.index, hello.incarnation), hello.pod_uid)
        if holder != hello.pod_uid:
            return f"index {hello.index}, incarnation {hello.incarnation} is held by the pod with UID {holder}"
        place = self._places.get(hello.index)
        if place is None or place.hello != hello:
            if place is not None:
                self._forget(place)
            self._places[hello.index] = Place(hello, connection)
        else:
            if place.connection is not None:
                self._index.pop(place.connection, None)
            place.connection = connection
        self._index[connection] = hello.index
        self._silent.discard(hello.index)
        return ""

    def status(self, connection: int, status: Status) -> bool:
        """Note what a member says of itself; True if it is known."""
        index = self._index.get(connection)
        if index is None:
            return False
        place = self._places[index]
        self._count(place, -1)
        place.status = status
        self._count(place, 1)
        if status.state == "running":
            place.ran = status.run
        if self.pairs is not None and status.checked is not None and status.run == self.run:
            self.pairs.take(index, status.checked)
        return True

    def gone(self, connection: int) -> None:
        """A connection has ended. What the member finished stays finished."""
        index = self._index.pop(connection, None)
        if index is None:
            return
        place = self._places[index]
        if place.connection != connection:
            return
        place.connection = None
        if place.status is not None and place.status.state not in FINAL:
            self._count(place, -1)
            place.status = None
            if place.ran == self.run:
                self._silent.add(index)

    def _forget(self, place: Place) -> None:
        self._count(place, -1)
        if place.connection is not None:
            self._index.pop(place.connection, None)

    def _count(self, place: Place, by: int) -> None:
        if place.status is not None:
            key = (place.status.run, place.status.state)
            self._counts[key] += by
            if not self._counts[key]:
                del self._counts[key]

    # What follows from it ---------------------------------------------------------------------------------------------

    def try_start(self) -> bool:
        """True when all members have joined just now and know each other's place. ranktable.Unusable if their devices
        can never meet."""
        if not self._complete():
            return False
        assert self.ready is not None
        first = self._places[self.world.holder(0)].status
        assert first is not None
        table = self._table()
        if self.ready.agent_store:
            self.start = Start(self.host, self.ready.port, True, table)
        else:  # then rank 0, or MindSpore's scheduler beside it, makes the meeting point itself
            self.start = Start(first.host, first.port, False, table)
        return True

    def _complete(self) -> bool:
        """Everybody and everything is there, and nobody was told to start yet."""
        if self.start is not None or self.ready is None or self.ready.run != self.run:
            return False
        return self._counts[(self.run, "joining")] >= self.world.size and not self.rejoined()

    def wants_check(self) -> bool:
        """Whether nodes are to be checked in pairs now: asked for by the World, in its first attempt alone."""
        return self.world.check == "Pairs" and self.run[1] == 0 and self._complete() and len(self.able()) > 1

    def able(self) -> List[int]:
        """Members that can take part in that, in the order of their places; an older supervisor cannot."""
        places = ((index, self._places.get(index)) for index in self.world.members())
        return [index for index, place in places if place is not None and place.hello.checks]

    def _table(self) -> str:
        """The rank table of the members that are here; its digest."""
        self.no_table = ""
        if self.tables is None:
            return ""
        places = [self._places[index].hello.place for index in self.world.members()]
        try:
            return self.tables.put(ranktable.check(places, self._ranks))
        except ranktable.Unknown as why:
            self.no_table = str(why)
            return ""

    def silent(self) -> List[int]:
        """Members that started this run, had not come to its end, and are connected no more."""
        return sorted(self._silent)

    def joined_any(self) -> bool:
        """Whether somebody waits for the others."""
        return self.start is None and self._counts[(self.run, "joining")] > 0

    def missing(self) -> List[int]:
        """Indices that have not joined."""
        joined = {
            index for index, place in self._places.items()
            if place.status is not None and place.status.run == self.run and place.status.state == "joining"
        }
        return sorted(set(self.world.members()) - joined)

    def rejoined(self) -> List[int]:
        """Members whose supervisor started anew in the middle of this run: their ranks are lost."""
        return [
            index for index, place in self._places.items()
            if place.ran == self.run and place.status is not None and place.status.state == "joining"
            and place.status.run == self.run
        ] if self._counts[(self.run, "joining")] else []

    @property
    def ended(self) -> str:
        """`finished` or `drained` once all members are."""
        finished = self._counts[(self.run, "finished")]
        if finished == self.world.size:
            return "finished"
        drained = self._counts[(self.run, "drained")]
        return "drained" if drained and finished + drained == self.world.size else ""

    def drained_step(self) -> Optional[int]:
        """The step that Drain saved, if every member saved."""
        statuses = [place.status for place in self._places.values() if place.status is not None]
        if any(status.state == "drained" and not status.saved for status in statuses):
            return None
        first = self._places.get(self.world.holder(0))
        return first.status.step if first is not None and first.status else None

    def last_progress(self) -> Optional[Mapping[str, Any]]:
        """What rank 0 said last, as its pod told with its end."""
        first = self._places.get(self.world.holder(0))
        return first.status.progress if first is not None and first.status else None

    def failed(self) -> List[int]:
        """Indices of members whose ranks have failed in this run."""
        return sorted(index for index, place in self._places.items() if place.status is not None
                      and place.status.run == self.run and place.status.state == "failed")

    def can_attempt(self) -> bool:
        """A member failed, and all are connected and in this very run; none is about to leave."""
        if not self._counts[(self.run, "failed")] or self.run[1] - self._allowed >= self.world.local_attempts:
            return False
        if self._counts[(self.run, "drained")]:
            return False
        here = sum(count for (run, _), count in self._counts.items() if run == self.run)
        return here == self.world.size == len(self._index)

    def newest_generation(self) -> int:
        """The newest generation that a member knows of."""
        return max((run[0] for run, _ in self._counts), default=0)

    def state_for(self, connection: int) -> GangState:
        """What this member is told; a run that it has started before is never started a second time."""
        place = self._places[self._index[connection]]
        again = place.ran == self.run and place.status is not None and place.status.state == "joining"
        check = self.pairs.order(place.hello.index) if self.pairs is not None else None
        return GangState(self.run[0], self.run[1], None if again else self.start, self.ended, check)

    def connections(self) -> List[int]:
        """Connections of all admitted members."""
        return list(self._index)
