"""The supervisor's decisions: events in, actions out. No I/O, the clock is passed in (docs/supervisor.md)."""

from __future__ import annotations

import math
from typing import Optional

from supervisor import events as e
from supervisor.failures import SUSPECT_DEVICE
from supervisor.gang import FINAL, Gang
from supervisor.survivors import Survivors

SETTLE = 0.3  # s that the pod's other ranks get to end by themselves after a consequence, so that the root is named
HOLD = (0.3, 1.0)  # s, drawn at random: a consequence is reported only if no new generation came before
KILL_AFTER_TERM = 5.0  # s
PROGRESS_EVERY = 2.0  # s
URGENT_EVERY = 0.5  # s, for a first step or a new durable one; a program may save after every step
DONE_WITHIN = 600.0  # s that a finished gang waits for Done
EARLY_DRAIN = 10.0  # s from ranks that saved and stopped to a World that says Drain
GRACE_MARGIN = 3.0  # s left of the pod's grace period when the ranks are killed
ALONE_AFTER = 10.0  # s from SIGTERM until ranks are asked to save without a Drain; a third of a shorter grace


class Core(Survivors):
    """One member of the gang; on the master's pod it also keeps the gang's books."""

    def _world(self, event: e.WorldSeen) -> None:
        world = event.world
        if world.job != self.me.job:
            return self._fence(f"the World belongs to job {world.job}, this pod to {self.me.job}")
        if world.protocol > e.PROTOCOL + 1:
            return self._log(f"the World speaks protocol {world.protocol}, this supervisor {e.PROTOCOL} "
                             f"(and tolerates {e.PROTOCOL + 1}): ignored; use a newer supervisor", once=True)
        incarnation = world.incarnation(self.me.index)
        if incarnation > self.me.incarnation:
            return self._fence(f"index {self.me.index} was given to incarnation {incarnation}, "
                               f"this is {self.me.incarnation}")
        if incarnation < self.me.incarnation:
            return self._log(f"the World (generation {world.generation}) does not know incarnation "
                             f"{self.me.incarnation} of index {self.me.index} yet: waiting", once=True)
        old = self.world
        if old is not None and world.order < old.order:
            return None  # an older answer that came late
        self.world, self.world_gone = world, False
        if world.phase == "Done":
            self._log("the job is over")
            return self._leave(0)
        if old is None or world.generation > old.generation:
            if self.terminating:
                self._log(f"generation {world.generation} goes on without this pod")
                return self._leave(143)
            self._begin((world.generation, 0))
        if self.leaving is None:
            self._master(world)
            if world.phase == "Drain":
                self._drain(world, old)
        return None

    def _begin(self, run: e.Run) -> None:
        """Leave whatever was before and get ready for this run."""
        assert self.world is not None
        self._log(f"generation {e.named(run)}")
        keeps = self.alive and self._keeps()
        self.run = run
        self.ended = ""
        stay = ("leave", "local", "groups") if self._asked else ("leave", "local")
        self._timers = {name: due for name, due in self._timers.items() if name in stay}
        self._exits, self._failure, self._forced, self._signalled = {}, None, False, False
        self._saved, self._saved_step = False, None
        self._missing, self._stalled = [], False
        self._pending, self._checking, self._checked = None, False, None
        self._do(e.DropReport())
        self._report.begin(run)
        self.place = self.world.place(self.me.index)
        self._port = self._free_port() if self.place == 0 else 0
        if self.place is None:
            self._log(f"this pod is a spare of a gang of {self.world.size}: waiting")
        elif self.place != self.me.index:
            self._log(f"this pod holds place {self.place} of a gang of {self.world.size}")
        self.state = "wait" if self.place is None else "join"
        if keeps:
            self._keep_ranks()
        elif self.alive:
            self._kill_ranks()
        self._tell_warm()
        self._send_status()

    def _imported(self, event: e.Event) -> None:
        self.imported = True
        self._tell_warm()

    def _tell_warm(self) -> None:
        """A spare that has imported is warm, which nobody else can see. Members have nothing to tell: they start."""
        if self.imported and self.place is None:
            self._write("Warm")

    def _missing_world(self, event: e.Event) -> None:
        self._api_back(event)
        self._log("there is no World for this job: waiting for the operator", once=True)
        self.world_gone = True
        if self.terminating:  # the job was deleted: nobody will answer with Drain
            self._leave(143)

    def _fence(self, why: str) -> None:
        """This pod has no part in the gang any more: write nothing, tell nobody."""
        if not self.fenced:
            self.fenced = True
            self._log(f"fenced: {why}")
            self._do(e.DropReport(), e.Unlink())
            if self._store:
                self._do(e.CloseStore())
            self.gang = None
            self._leave(143)

    def _unauthorized(self, event: e.Event) -> None:
        if self.leaving is not None:  # no more writes, but it is leaving already
            self.fenced = True
            self._do(e.DropReport())
            return
        self._fence("the API refuses this pod's token (401): the pod was deleted")

    def _leave(self, code: int) -> None:
        if self.leaving is not None:
            return
        self.leaving = code
        self._timers = {}
        if self.alive:
            self._kill_ranks()
        else:
            self._do(e.Leave(code, flush=not self.fenced))

    # Master and link --------------------------------------------------------------------------------------------------

    def _master(self, world: e.World) -> None:
        if world.master_uid and world.master_uid == self.me.pod_uid:
            if not self._store:
                self._store = "opening"
                self._do(e.OpenStore(world.token))
            if self.gang is None:
                self.gang = Gang(world, self.me.pod_ip, self.me.ranks, self.me.rank_table)
                if self.gang.tables is not None and self._basket.table:
                    self.gang.tables.put(self._basket.table)  # what most members have from the last master
                self._do(e.PrepareStore(self.gang.run))
            elif self.gang.advance(world):
                self._timers.pop("missing", None)
                self._timers.pop("local", None)
                self._do(e.PrepareStore(self.gang.run))
                self._tell_all()
            if self._store != "opening":
                self._announce()
            self._gang_changed()
            return
        if self._store:
            self._log("another pod is the master now")
            self._store, self.gang, self._report.address = "", None, ""
            self._do(e.CloseStore())
        self._connect(world.address if world.master_uid and self.place is not None else "")

    def _announce(self) -> None:
        assert self.world is not None
        self._connect(self._store)
        if self.world.address != self._store and self._announced != (self.run, self._store):
            self._announced = (self.run, self._store)
            self._write(self._report.kind or "Master")

    def _connect(self, address: str) -> None:
        assert self.world is not None
        wanted = (address, self.world.token, self._near()) if address else None
        if wanted == self._link:
            return
        self._link = wanted
        self.linked = False
        self._do(e.Link(address, self.world.token, self.world.size, self._near()) if wanted else e.Unlink())

    def _store_opened(self, event: e.StoreOpened) -> None:
        if self._store and self.world is not None:
            self._store = self._report.address = event.address
            self._announce()

    def _linked(self, event: e.Event) -> None:
        self.linked = True
        self._look_for_lost()
        self._check_done()

    def _unlinked(self, event: e.Unlinked) -> None:
        self.linked = False
        if event.reason:
            self._do(e.ReadWorld())
        self._look_for_lost()
        self._check_done()
        self._check_drained()

    def _send_status(self) -> None:
        """Tell the master what is true of this member. Ranks that may still exist have joined nothing."""
        states = {"join": "joining", "run": "running", "failed": "failed", "finished": "finished", "drained": "drained"}
        if self.state == "wait":
            return
        state = states[self.state]
        if self.alive and not self.kept and not self._checking and state in ("joining", "drained"):
            state = "stopping"
        last = self._report.progress if state in FINAL and self.place == 0 else None
        status = e.Status(self.run[0], self.run[1], state, self._saved_step, self._saved, self.me.pod_ip, self._port,
                          self._checked, last)
        if status != self._status:
            self._status = status
            self._do(e.SendStatus(status))

    def _gang_seen(self, event: e.GangSeen) -> None:
        gang = event.gang
        if gang.generation > self.run[0]:
            self._do(e.ReadWorld())
            return
        if self.world is None or gang.generation < self.run[0] or self.state == "wait":
            return
        if gang.attempt > self.run[1]:
            if self.world.phase == "Run" and not self.terminating:
                self._begin(gang.run)
            return
        if gang.run != self.run:
            return
        if gang.check is not None:
            self._check_pair(gang.check)
        if gang.start is not None:
            self._pending = gang.start
            self._try_start()
        if gang.ended != self.ended:
            self.ended = gang.ended
            self._check_done()
            self._check_drained()

    def _try_start(self) -> None:
        """Start once the rank table is here. Asked for again with every word of the master, in case one got lost."""
        start = self._pending
        if start is None or self.state != "join" or self.world is None or self.world.phase != "Run":
            return
        if self.kept and not start.agent_store:
            self._release()  # rank 0 would have to make the store: untested in a process that had another
        if self.alive and not self.kept:
            return
        if start.table and start.table != self._basket.have:
            self._do(e.AskTable(start.table, *self._basket.ask(start.table)))
        else:
            self._pending = None
            self._start(start)

    def _table_part(self, event: e.TablePart) -> None:
        wanted = self._pending.table if self._pending is not None else ""
        if event.part.table == wanted != self._basket.have and self._basket.ask(wanted)[1] == event.part.at:
            self._basket.take(event.part)  # another one was asked for twice, or is for an earlier run
            self._try_start()

    # Ranks ------------------------------------------------------------------------------------------------------------

    def _start(self, start: e.Start) -> None:
        assert self.world is not None
        self.state, self.alive = "run", True
        table = self._basket.table if start.table else ()
        assert self.place is not None
        self._begin_run(self.world.size, self.place)
        self._do(e.StartRanks(self.run, start, self.world.size, self.world.restarts + self.run[1], table, self.place,
                              self.world.tuned))
        self._send_status()
        if self.terminating:
            self._check_drained()

    def _rank_exited(self, event: e.RankExited) -> None:
        if event.run != self.run or self.state != "run":
            return
        assert self.world is not None
        exit_ = event.exit
        if event.local_rank == self.me.ranks and self._only_scheduler():
            exit_ = e.Exit(exit_.rank, 0)  # its word has no weight once the ranks have ended
        self._exits[event.local_rank] = exit_
        counts = exit_.code not in (0, 75) and not (self._forced or self._signalled)
        if counts and (self._failure is None or (exit_.root and not self._failure.root)):
            self._failure = exit_
        if len(self._exits) == self.me.processes(self.place):
            self._all_exited()
        elif self._failure is not None:
            if self._failure.root:
                self._failed()
            elif "settle" not in self._timers:
                self._set_timer("settle", SETTLE)
        elif self._only_scheduler():  # ranks on other pods still need it to take their leave
            self._set_timer("scheduler", DONE_WITHIN)

    def _only_scheduler(self) -> bool:
        """The ranks have ended well, MindSpore's scheduler has not."""
        return (self.me.processes(self.place) > self.me.ranks == len(self._exits) and self.me.ranks not in self._exits
                and self._failure is None)

    def _scheduler_over(self) -> None:
        if self.state == "run" and self._only_scheduler():
            self._log("MindSpore's scheduler has not ended by itself: it is stopped")
            self._exits[self.me.ranks] = e.Exit(0, 0)
            self._all_exited()

    def _all_exited(self) -> None:
        assert self.world is not None
        if self._failure is not None:
            return self._failed()
        codes = [exit_.code for exit_ in self._exits.values()]
        asked = self._forced or self._signalled
        if not any(codes) and not asked:  # many programs answer SIGTERM with 0, finished or not
            self.state = "finished"
            self._log("all ranks of this pod have finished")
            if "progress" in self._timers:
                self._progress_now()
        else:
            self.state = "drained"
            self._saved = not self._forced and set(codes) <= ({75} if self._signalled else {0, 75})
            if self._saved:
                self._saved_step = self._report.newest_step()
            self._log("all ranks of this pod have saved and stopped" if self._saved
                      else "the ranks have answered SIGTERM" if not self._forced
                      else "ranks were stopped before they had saved")
            if self.world.phase != "Drain":
                self._do(e.ReadWorld())
                self._set_timer("early", EARLY_DRAIN)
        self._stop_rest()
        self._check_done()
        return None

    def _stop_rest(self) -> None:
        """The ranks have ended; what they left behind ends, too."""
        for name in ("settle", "term", "kill", "scheduler", "groups"):
            self._timers.pop(name, None)
        self._kill_ranks()
        self._send_status()

    def _failed(self) -> None:
        assert self.world is not None
        assert self._failure is not None
        failure = self._failure
        self._log(f"rank {failure.rank} failed: {failure.reason or failure.code}"
                  + ("" if failure.root else " (it followed the loss of another)"))
        self._report.fail(failure)
        self._do(e.TerminationMessage(f"rank {failure.rank}: {failure.reason}\n{failure.text}"))
        draining = self.world.phase == "Drain"
        self.state = "drained" if draining else "failed"
        self._stop_rest()
        if failure.root:
            self._write("RankFailed")
        elif not draining:
            self._set_timer("hold", self._uniform(*HOLD))
        if self.terminating and not draining:
            self._set_timer("leave", min(self._timers.get("leave", self._now), self._now + HOLD[1]) - self._now)

    def _device_held(self, event: e.DeviceHeld) -> None:
        """This pod cannot take part in the run that it should join: its ranks would meet what is on the device."""
        if self.state == "join" and self.place is not None:
            self._failure = e.Exit(self.place * self.me.ranks, SUSPECT_DEVICE, True, event.reason, at=self._wall,
                                   devices=event.devices)
            self._failed()

    def _early(self) -> None:
        """Ranks left with 75, and no Drain came. A pod that was told to end has said so, and asked its ranks."""
        if self.terminating:
            return
        if self.state == "drained" and self.world is not None and self.world.phase == "Run":
            last = next(exit_ for exit_ in self._exits.values() if exit_.code)
            self.state = "failed"
            self._report.fail(e.Exit(last.rank, last.code, True, "exit code 75 without Drain", last.text, last.step))
            self._write("RankFailed")
            self._send_status()

    def _ranks_gone(self, event: e.Event) -> None:
        self.alive = self._killing = self._checking = False
        if self.leaving is not None:
            self._do(e.Leave(self.leaving, flush=not self.fenced))
            return
        self._send_status()
        self._check_drained()

    # Drain, the end, SIGTERM ------------------------------------------------------------------------------------------

    def _drain(self, world: e.World, old: Optional[e.World]) -> None:
        if old is not None and old.generation == world.generation and old.phase == "Drain":
            return
        self._log("told to save and stop")
        self._timers.pop("early", None)
        self._timers.pop("alone", None)
        if self.state == "run":
            self._do(e.TouchDrain())
            self._set_timer("term", world.drain_seconds)
        elif self.state in ("join", "failed"):
            self.state = "drained"  # nothing here could be saved
            if self._checking:
                self._checking = False
                self._kill_ranks()
            self._timers.pop("hold", None)
            self._release()
            self._send_status()
        self._check_drained()

    def _ranks_signalled(self, event: e.RanksSignalled) -> None:
        if event.run == self.run and self.state == "run":
            self._signalled = True

    def _term(self) -> None:
        if self._only_scheduler():
            return self._scheduler_over()
        self._log("the ranks have not stopped in time")
        self._forced = True
        self._do(e.TermRanks())
        self._set_timer("kill", KILL_AFTER_TERM)
        return None

    def _kill(self) -> None:
        self.state = "drained"
        self._stop_rest()

    def _check_drained(self) -> None:
        """Told to end, and nothing is left to wait for."""
        if not self.terminating or self.alive:
            return
        drained = self.state == "drained" and (self.ended or not self.linked)
        drained = drained or (self.state == "finished" and self.ended == "drained")
        if drained or self.state in ("join", "wait"):
            self._leave(143)

    def _check_done(self) -> None:
        """A finished gang waits for Done, but not for ever if the API answers."""
        if self.state == "finished" and self.api and (self.ended or not self.linked):
            if "done" not in self._timers:
                self._set_timer("done", DONE_WITHIN)
        else:
            self._timers.pop("done", None)

    def _done(self) -> None:
        self._log("all ranks have finished, and nobody said Done: leaving")
        self._leave(0)

    def _terminate(self, event: e.Event) -> None:
        if self.terminating:
            return None
        self.terminating = True
        self._log("told to end (SIGTERM)")
        if self.world is None or self.world_gone:
            return self._leave(143)
        self._set_timer("leave", max(0.0, self.me.grace - GRACE_MARGIN))
        if self.state == "failed":
            if self._timers.pop("hold", None) is not None:
                self._write("RankFailed")
            return self._leave(143)
        if self._report.kind not in ("Finished", "Drained") and self.place is not None:
            self._write("Stopping")
        self._release()
        if self.state == "run" and self.world.phase == "Run":
            self._set_timer("alone", min(ALONE_AFTER, self.me.grace / 3))
        return self._check_drained()

    def _stop_alone(self) -> None:
        """Nobody has said Drain: the operator or the API is away. Ranks that agree on it save in every pod."""
        if self.state == "run":
            self._log("nobody has answered that this pod is to end: its ranks are asked to save and stop")
            self._do(e.TouchDrain())

    def _grace_over(self) -> None:
        self._leave(143)

    # The API ----------------------------------------------------------------------------------------------------------

    def _api_lost(self, event: e.ApiLost) -> None:
        if self.api:
            self.api = False
            self._log(f"the API cannot be reached ({event.reason}); training goes on")
            self._gang_changed()
            self._check_done()

    def _api_back(self, event: e.Event) -> None:
        if not self.api:
            self.api = True
            self._log("the API answers again")
            self._timers.pop("local", None)
            if self.gang is not None:
                self.gang.api_answers()
            self._check_done()

    # Reports ----------------------------------------------------------------------------------------------------------

    def _hold_over(self) -> None:
        if self.state == "failed":
            self._write("RankFailed")

    def _hang(self, event: e.HangSeen) -> None:
        """A rank that is stopped is killed and told of like one that failed. Ranks that only wait are left alone until
        a new generation ends them: the culprit may be elsewhere, and busy for a good reason."""
        if event.run != self.run or self.state != "run" or self._forced:
            return
        self._log(f"hang: {event.reason}")
        if event.culprit is None:
            self._hung = True
            self._report.hang(event, self._wall)
            self._write(self._report.kind or "Formed")
        else:
            self._failure = e.Exit(event.culprit, -9, True, event.reason, event.text, event.step,
                                   at=self._wall - event.silent, hang=True)
            self._failed()

    def _hang_over(self, event: e.HangOver) -> None:
        if event.run == self.run and self.state == "run":
            self._log("the ranks make progress again")
            self._hung = False
            self._report.hang(None, self._wall)
            self._write(self._report.kind or "Formed")

    def _progress(self, event: e.ProgressSeen) -> None:
        if event.run != self.run or self.place != 0:
            return
        wall = self._wall if event.at is None else event.at
        urgent = self._report.take_progress(event.progress, event.warnings, wall)
        wait = self._progress_at + (URGENT_EVERY if urgent else PROGRESS_EVERY) - self._now
        if wait <= 0:
            self._progress_now()
        else:
            self._set_timer("progress", min(wait, self._timers.get("progress", math.inf) - self._now))

    def _progress_now(self) -> None:
        """Pass on what rank 0 says; with `Formed`, which is true of every pod that has steps to tell of."""
        if self.state != "failed":
            self._progress_at = self._now
            self._write(self._report.kind or "Formed")


Core.HANDLERS = {
    e.WorldSeen: Core._world, e.WorldMissing: Core._missing_world, e.ApiLost: Core._api_lost, e.ApiBack: Core._api_back,
    e.Unauthorized: Core._unauthorized, e.StoreOpened: Core._store_opened, e.StoreReady: Core._store_ready,
    e.MemberHello: Core._member_hello, e.MemberStatus: Core._member_status, e.MemberBeat: Core._member_beat,
    e.MemberAsks: Core._member_asks, e.MemberGone: Core._member_gone, e.Linked: Core._linked,
    e.Unlinked: Core._unlinked, e.GangSeen: Core._gang_seen, e.TablePart: Core._table_part,
    e.RankExited: Core._rank_exited, e.RanksGone: Core._ranks_gone, e.RanksLeft: Core._ranks_left,
    e.RanksJoined: Core._ranks_joined, e.RanksSignalled: Core._ranks_signalled, e.ProgressSeen: Core._progress,
    e.HangSeen: Core._hang, e.StallSeen: Core._stall_seen, e.HangOver: Core._hang_over,
    e.PairChecked: Core._pair_checked, e.DeviceHeld: Core._device_held, e.Imported: Core._imported,
    e.Terminate: Core._terminate, e.Timer: Core._timer,
}
Core.TIMERS = {
    "settle": Core._failed, "hold": Core._hold_over, "term": Core._term, "kill": Core._kill, "leave": Core._grace_over,
    "missing": Core._missing_now, "local": Core._local, "done": Core._done, "early": Core._early,
    "progress": Core._progress_now, "lost": Core._tell_lost, "scheduler": Core._scheduler_over,
    "round": Core._round_over, "answer": Core._unanswered, "groups": Core._groups_late,
    "alone": Core._stop_alone,
}
