"""The part of the state machine that has nodes checked in pairs before ranks start, when the World asks for it: the
master's rounds, the member's one check at a time. Pure."""

from __future__ import annotations

from supervisor import events as e
from supervisor.gang import Gang
from supervisor.machine import Machine
from supervisor.pairs import Pairs

CHECK_SECONDS = 60.0  # for one check, imports and the meeting of the two included; then it is killed
ROUND_SECONDS = CHECK_SECONDS + 15.0  # that the master waits for the answers of a round
ANSWER_SECONDS = 120.0  # that the operator gets to replace the culprits; then the ranks start with them


class Checks(Machine):
    """Checks before the start of a run."""

    def _waits_for_checks(self, gang: Gang) -> bool:
        """The master's part: go on with the check, if there is one; whether the start has to wait for it."""
        if gang.pairs is None:
            if not gang.wants_check():
                return False
            ready = gang.ready
            assert ready is not None
            if not ready.agent_store:
                self._log("nodes are not checked in pairs: the Python of the program has no torch", once=True)
                return False
            gang.pairs = Pairs(gang.able(), gang.host, ready.port)
            self._log(f"the nodes are checked in pairs before ranks start: {len(gang.able())} of {gang.world.size} "
                      "members can take part")
        pairs = gang.pairs
        if pairs.over:
            return not pairs.released
        if not pairs.advance():
            return True
        if not pairs.over:
            self._set_timer("round", ROUND_SECONDS)
            self._tell_all()
            return True
        return self._judge(pairs)

    def _judge(self, pairs: Pairs) -> bool:
        """All rounds were played. Where somebody is to blame the operator is asked to replace it."""
        self._timers.pop("round", None)
        found = pairs.verdict()
        self._log(f"nodes were checked in pairs: {found.reason}")
        self._report.check = {"pairs": found.pairs, "failed": len(found.failed), "culprits": found.culprits[:64],
                              "reason": found.reason[:1024]}
        pairs.released = not found.culprits
        if found.culprits:
            self._set_timer("answer", ANSWER_SECONDS)
            self._write("Checked")
        return bool(found.culprits)

    def _round_over(self) -> None:
        if self.gang is not None and self.gang.pairs is not None:
            self.gang.pairs.expire()
            self._gang_changed()

    def _unanswered(self) -> None:
        """The operator has replaced nobody."""
        if self.gang is not None and self.gang.pairs is not None:
            self._log("nobody was replaced: the ranks start all the same")
            self.gang.pairs.released = True
            self._gang_changed()

    def _check_pair(self, order: e.PairOrder) -> None:
        """The member's part. While its check runs it still counts as one that has joined."""
        if self.state == "join" and not self.alive and (self._checked is None or order.round > self._checked.round):
            self.alive = self._checking = True
            self._log(f"checked together with index {order.peer} (round {order.round})")
            self._do(e.CheckPair(self.run, order))

    def _pair_checked(self, event: e.PairChecked) -> None:
        """The answer is told once whatever the check has left behind is gone, as before ranks start."""
        if event.run == self.run and self._checking and self.state == "join":
            self._checked = event.checked
            if not event.checked.passed:
                self._log(f"the check of round {event.checked.round} failed: {event.checked.why}")
            self._kill_ranks()

    def _gang_changed(self) -> None:
        raise NotImplementedError

    def _tell_all(self) -> None:
        raise NotImplementedError

    def _kill_ranks(self) -> None:
        raise NotImplementedError
