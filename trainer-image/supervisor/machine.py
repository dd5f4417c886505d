"""What the member's and the master's part of the state machine share: state, timers, actions, the report."""

from __future__ import annotations

import random
from typing import Any, Callable, Dict, List, Optional, Tuple

from supervisor import events as e
from supervisor.gang import Gang
from supervisor.ranktable import Basket
from supervisor.report import Report


class Machine:
    """Events in, actions out, at a time that is passed in. A subclass's HANDLERS and TIMERS say what is done.

    `state`: wait (no World yet, or none that has a place for this pod), join, run, failed, finished, drained.
    """

    HANDLERS: Dict[type, Callable[..., Any]]
    TIMERS: Dict[str, Callable[[Any], None]]

    def __init__(self, me: e.Member, first_sequence: int = 1, uniform: Callable[[float, float], float] = random.uniform,
                 free_port: Callable[[], int] = lambda: 0) -> None:
        self.me = me
        self.state = "wait"
        self.place: Optional[int] = None  # in the gang of this run; None: a spare
        self.world: Optional[e.World] = None
        self.world_gone = False  # it was deleted, and with it perhaps the job
        self.run: e.Run = (0, 0)
        self.alive = me.devices  # processes of a run may exist; on devices, of the pod that had them before
        self.leaving: Optional[int] = None  # exit code
        self.fenced = False
        self.terminating = False
        self.imported = False  # ranks would start fast
        self.linked = False
        self.gang: Optional[Gang] = None  # on the master's pod
        self.ended = ""  # what the master says of the whole gang in this run
        self.api = True
        self._uniform = uniform
        self._free_port = free_port
        self._timers: Dict[str, float] = {}
        self._report = Report(me, first_sequence)
        self._store = ""  # address of our own store; "opening" until it is known
        self._announced: Tuple[e.Run, str] = ((0, 0), "")  # the address that was reported, and in which run
        self._link: Optional[Tuple[str, str, bool]] = None
        self._exits: Dict[int, e.Exit] = {}
        self._failure: Optional[e.Exit] = None
        self._killing = False
        self._forced = False  # the ranks were told to end because Drain took too long
        self._signalled = False  # they were asked to save by SIGTERM: exit codes other than 75 say nothing
        self._saved_step: Optional[int] = None
        self._saved = False
        self._missing: List[int] = []
        self._lost_since = 0.0  # seconds since 1970
        self._stalled = False  # the ranks are in a step for far longer than usual
        self._status: Optional[e.Status] = None
        self._port = 0
        self._basket = Basket()  # the rank table
        self._pending: Optional[e.Start] = None  # waits for its rank table
        self._checking = False  # what is alive is a check
        self._checked: Optional[e.Checked] = None  # the last one in this run
        self._progress_at = float("-inf")
        self._warned: Dict[str, None] = {}
        self._out: List[e.Action] = []
        self._now = 0.0
        self._wall = 0.0

    def handle(self, event: e.Event, now: float, wall: float = 0.0) -> List[e.Action]:
        """Take one event at `now` (seconds, monotonic) and `wall` (seconds since 1970); what is to be done."""
        self._now, self._wall, self._out = now, wall, []
        if self.leaving is None or isinstance(event, (e.RanksGone, e.Unauthorized)):
            self.HANDLERS[type(event)](self, event)
        return self._out

    def deadline(self) -> Optional[float]:
        """When the next Timer event is due."""
        return min(self._timers.values(), default=None)

    def _do(self, *actions: e.Action) -> None:
        self._out.extend(actions)

    def _log(self, text: str, once: bool = False) -> None:
        if once:
            if text in self._warned:
                return
            self._warned[text] = None
        self._do(e.Log(text))

    def _set_timer(self, name: str, seconds: float) -> None:
        self._timers[name] = self._now + seconds

    def _timer(self, event: e.Event) -> None:
        for name, due in list(self._timers.items()):
            if due <= self._now and name in self._timers and self.leaving is None:
                del self._timers[name]
                self.TIMERS[name](self)

    def _write(self, kind: str) -> None:
        if self.fenced or self.world is None or self.run[0] == 0:
            return
        self._timers.pop("progress", None)
        self._do(e.WriteReport(self._report.spec(kind)))
