"""Ranks that outlive a generation: they leave its groups, keep process and imports, and are told of the next run.

Whatever is not as usual ends in the way that always works: SIGKILL, and new processes. Pure."""

from __future__ import annotations

from typing import Optional, Tuple

from supervisor import events as e
from supervisor.master import Master

# s to leave the groups, the step's own work up to its next collective included: a new process takes as long for its
# start, so waiting longer would gain nothing.
LEAVE_WITHIN = 2.0
# s from the start of a run until its groups are made and the model stands. Others are waited for in that time, who may
# have to import torch first, on a busy node (10 s and more).
JOIN_WITHIN = 60.0


class Survivors(Master):
    """What the member does with ranks that live when another generation begins."""

    kept = False  # the ranks live, in no group
    _asked = False  # to leave their groups
    _give_up = False  # it went wrong once in this pod
    _hung = False  # they make no progress, and nobody knows why
    _shape: Tuple[int, Optional[int]] = (0, None)  # size of the gang and place in it, of the ranks that live

    def _keeps(self) -> bool:
        """Whether the ranks that live can take part in the World that has just come."""
        world = self.world
        assert world is not None
        training = self.state == "run" and not self._exits and not self._forced
        return ((training or self.kept or self._asked) and not (self._killing or self._give_up or self._hung)
                and not self.terminating and world.phase == "Run" and world.check != "Pairs" and self.me.keeps
                and self._shape == (world.size, world.place(self.me.index)))

    def _keep_ranks(self) -> None:
        """Those that have left their groups already only wait for another run."""
        if not self.kept and not self._asked:
            self._asked = True
            self._set_timer("groups", LEAVE_WITHIN)
            self._do(e.KeepRanks())

    def _release(self) -> None:
        """They are needed no more, or start anew."""
        if self.kept or self._asked:
            self._kill_ranks()
            self._send_status()

    def _ranks_left(self, event: e.RanksLeft) -> None:
        if event.problem:
            if self.kept or self._asked:
                self._log(f"the ranks start anew: {event.problem}")
                self._release()
        elif self._asked:
            self._timers.pop("groups", None)
            self._asked, self.kept = False, True
            self._send_status()
            self._try_start()

    def _begin_run(self, size: int, place: int) -> None:
        """The ranks are about to start, or to make their groups again."""
        if self.kept:
            self._log("the ranks are kept: they make their groups again")
            self._set_timer("groups", JOIN_WITHIN)
        self.kept, self._hung, self._shape = False, False, (size, place)

    def _ranks_joined(self, event: e.RanksJoined) -> None:
        if event.run == self.run:
            self._timers.pop("groups", None)

    def _groups_late(self) -> None:
        if self._asked:
            self._log(f"the ranks have not left their groups within {LEAVE_WITHIN:.0f} s: they start anew")
            self._release()
        elif self.state == "run":
            self._give_up = True
            assert self.place is not None
            self._failure = e.Exit(self.place * self.me.ranks, -9, True,
                                   f"a rank that was kept has not made its groups within {JOIN_WITHIN:.0f} s")
            self._failed()

    def _kill_ranks(self) -> None:
        self.kept = self._asked = False
        self._timers.pop("groups", None)
        if not self._killing:
            self._killing = True
            self._do(e.KillRanks())

    def _send_status(self) -> None:
        raise NotImplementedError

    def _try_start(self) -> None:
        raise NotImplementedError
