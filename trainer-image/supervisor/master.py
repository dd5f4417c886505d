"""The master's part of the state machine: what it makes of what the members say. Pure."""

from __future__ import annotations

from typing import List, Optional

from supervisor import events as e
from supervisor import ranktable
from supervisor.checks import Checks
from supervisor.failures import CONFIGURATION
from supervisor.gang import Gang

LOST_AFTER = 1.0  # s that a peer gets to connect again before the operator is told that it is lost
LOST_SHOWN = 64  # indices a report
LOCAL_DELAY = 2.5  # s without the API before the same members are started again
MISSING_EVERY = 1.0  # s between two looks at who has not joined, once joinSeconds are over


class Master(Checks):
    """Forms the gang, collects who finished and drained, starts it again without the API."""

    def _member_hello(self, event: e.MemberHello) -> None:
        if self.gang is None or self.world is None:
            return self._do(e.Refuse(event.connection, "not the master"))
        why = self.gang.hello(event.connection, event.hello)
        if why:
            self._log(f"refused a member: {why}", once=True)
            self._do(e.Refuse(event.connection, why))
            if event.hello.incarnation > self.world.incarnation(event.hello.index):
                self._do(e.ReadWorld())
        return None  # an answer follows when it has said what it is at

    def _member_status(self, event: e.MemberStatus) -> None:
        if self.gang is None or not self.gang.status(event.connection, event.status):
            return
        if event.status.generation > self.gang.run[0]:
            self._do(e.ReadWorld())
        self._do(e.Tell(event.connection, self.gang.state_for(event.connection)))
        self._gang_changed()
        self._look_for_lost()

    def _member_beat(self, event: e.MemberBeat) -> None:
        if self.gang is not None and event.connection in self.gang.connections():
            if event.generation > self.gang.run[0]:
                self._do(e.ReadWorld())
            self._do(e.Tell(event.connection, self.gang.state_for(event.connection)))

    def _member_asks(self, event: e.MemberAsks) -> None:
        gang = self.gang
        if gang is not None and gang.tables is not None and event.connection in gang.connections():
            part = gang.tables.part(event.table, event.have, event.at)
            if part is not None:  # else a newer run is about to be told
                self._do(e.SendPart(event.connection, part))

    def _member_gone(self, event: e.MemberGone) -> None:
        if self.gang is not None:
            self.gang.gone(event.connection)
            self._gang_changed()
            self._look_for_lost()

    def _store_ready(self, event: e.StoreReady) -> None:
        if self.gang is None or event.run != self.gang.run:
            return
        self.gang.ready = event
        if self.gang.start is not None:
            self._break("torch's store ended unexpectedly", self.place)
        else:
            self._gang_changed()

    def _look_for_lost(self) -> None:
        """Peers whose connection broke while ranks run are told of once they have had the time to come back. The master
        tells of members, its two neighbours in the ring of places tell of it: no loss is told of by many."""
        lost, told = self._lost_peers(), self._report.lost
        if not lost:
            self._timers.pop("lost", None)
        elif set(lost) - set(told) and "lost" not in self._timers:
            self._lost_since = self._wall
            self._set_timer("lost", LOST_AFTER)
        if set(told) - set(lost):
            self._report.lost = [index for index in told if index in lost]
            self._write("Formed" if self._report.kind == "PeerLost" and not self._report.lost else self._report.kind)

    def _lost_peers(self) -> List[int]:
        world = self.world
        if world is None or world.phase != "Run" or self.terminating or self.state not in ("run", "failed"):
            return []
        if self.gang is not None:
            return self.gang.silent()[:LOST_SHOWN] if self.gang.run == self.run else []
        return [world.master_index] if self._near() and not self.linked else []

    def _near(self) -> bool:
        """Whether this pod is one of the two that tell of the master's loss: its neighbours in the ring of places."""
        world = self.world
        master = world.place(world.master_index) if world is not None else None
        if world is None or master is None or self.place is None or self.place == master:
            return False
        return (self.place - master) % world.size in (1, world.size - 1)

    def _tell_lost(self) -> None:
        lost = self._lost_peers()
        if lost and lost != self._report.lost:
            self._log(f"lost the connection to index {', '.join(map(str, lost[:16]))}")
            self._report.lost, self._report.lost_at = lost, self._lost_since
            self._report.stalled = self._stalled
            self._write("RankFailed" if self._report.kind == "RankFailed" else "PeerLost")

    def _stall_seen(self, event: e.StallSeen) -> None:
        """That the ranks wait as well is what the operator needs to believe that a peer is lost."""
        if event.run == self.run and self.state == "run":
            self._stalled = event.stalled
            if self._report.lost and self._report.stalled != event.stalled:
                self._report.stalled = event.stalled
                self._write(self._report.kind)

    def _tell_all(self) -> None:
        assert self.gang is not None
        for connection in self.gang.connections():
            self._do(e.Tell(connection, self.gang.state_for(connection)))

    def _gang_changed(self) -> None:
        gang, world = self.gang, self.world
        if gang is None or world is None or gang.run[0] != world.generation:
            return
        if world.phase == "Run":
            try:
                if not self._waits_for_checks(gang) and gang.try_start():
                    self._formed(gang)
            except ranktable.Unusable as error:
                self._break(str(error), error.index, CONFIGURATION)
        if world.phase == "Run" and gang.joined_any():
            if "missing" not in self._timers:
                self._set_timer("missing", world.join_seconds)
        else:
            self._timers.pop("missing", None)
        again = gang.rejoined() if gang.start is not None else []
        if again:
            self._break(f"the supervisor of index {again[0]} has started anew", world.place(again[0]))
        if gang.ended and self._report.kind != gang.ended.capitalize() and gang.run == self.run:
            self._report.drained_step = gang.drained_step() if gang.ended == "drained" else None
            self._report.progress = gang.last_progress() or self._report.progress
            if gang.ended == "finished" or world.phase == "Drain":
                self._write(gang.ended.capitalize())
                self._tell_all()
        if not self.api and world.phase == "Run" and gang.can_attempt():
            if "local" not in self._timers:
                self._set_timer("local", LOCAL_DELAY)
        else:
            self._timers.pop("local", None)

    def _formed(self, gang: Gang) -> None:
        self._log(f"generation {e.named(gang.run)}: all {gang.world.size} members are here")
        if gang.no_table:
            self._log(f"no rank table is written: {gang.no_table}", once=True)
        self._tell_all()
        if gang.run == self.run:
            self._report.form(self._wall)
            self._write("Formed")

    def _break(self, why: str, place: Optional[int], code: int = 1) -> None:
        """This run cannot go on: fail this pod's ranks, so that the operator begins another, or ends the job if the
        code says that none can do better."""
        if self.state in ("join", "run") and self.gang is not None and self.gang.run == self.run:
            self._failure = e.Exit((place or 0) * self.me.ranks, code, True, why)
            self._failed()

    def _failed(self) -> None:
        raise NotImplementedError

    def _missing_now(self) -> None:
        gang = self.gang
        if gang is not None and gang.joined_any():
            self._report_missing(gang)
            self._set_timer("missing", MISSING_EVERY)  # those that come meanwhile change what is true

    def _report_missing(self, gang: Gang) -> None:
        missing = gang.missing()
        if missing and missing != self._missing and gang.run == self.run and self.state in ("join", "run"):
            self._missing = missing
            self._report.missing = missing[:64]
            self._log(f"{len(missing)} members have not joined: {', '.join(map(str, missing[:16]))}")
            self._write("Missing")

    def _local(self) -> None:
        gang = self.gang
        if gang is not None and self.world is not None and not self.api and gang.can_attempt():
            failed = ", ".join(map(str, gang.failed()))
            gang.next_attempt()
            text = (f"ranks of index {failed} failed while the API could not be reached: the same members start again, "
                    f"as {e.named(gang.run)}")
            self._log(text)
            self._report.warn("RestartedWithoutApi", text, self._wall)
            self._do(e.PrepareStore(gang.run))
            self._tell_all()
