"""The one loop of the supervisor: sockets, signals, timers and what the threads post, into the core and out again."""

from __future__ import annotations

import collections
import os
import selectors
import signal
import socket
import time
from types import FrameType
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence

from supervisor import events as e
from supervisor import ranktable
from supervisor.api import Api
from supervisor.copies.process import CopierProcess
from supervisor.core import Core
from supervisor.devicecheck import DeviceCheck
from supervisor.files import read
from supervisor.forkserver import Forked, ForkServer
from supervisor.logs import Logs
from supervisor.paircheck import PairCheck
from supervisor.ranks import Ranks, base_environment
from supervisor.regroup import RegroupLines
from supervisor.store import StoreLink, StoreServer
from supervisor.torchstore import TorchStore, free_port

FLUSH = 1.0  # s that the last report gets before we leave
TERMINATION_MESSAGE = 4096  # bytes, as kubelet reads
FORWARDED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)  # to the ranks, who may know them


class Loop:
    """Everything with side effects that the core asks for."""

    def __init__(self, me: e.Member, program: Sequence[str], environment: Mapping[str, str], scratch: str) -> None:
        self._me = me
        self._selector = selectors.DefaultSelector()
        self._events: Deque[e.Event] = collections.deque()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._forward: Deque[int] = collections.deque()
        self._children_ended = True  # look once: an earlier PID 1 may have left some
        self._leave: Optional[e.Leave] = None
        six = ":" in me.pod_ip
        self._logs = Logs(on_end=self._wake)
        self._core = Core(me, first_sequence=int(time.time() * 1000), free_port=lambda: free_port(six))
        self._forks = ForkServer(program, environment.get("TRAINYARD_PRELOAD", ""), base_environment(environment),
                                 scratch, self._logs)
        self._forks_link: Optional[socket.socket] = None
        self._imports_told = False
        lines = RegroupLines(self._selector, scratch, self._logs.say) if me.keeps else None
        self._ranks = Ranks(program, me, environment, scratch, self._logs, self._ranks_say, self._protected,
                            self._forks, lines)
        self._devices = DeviceCheck(environment, me.ranks, scratch, self.post, self._logs.say)
        self._check = PairCheck(program, base_environment(environment), scratch, self._logs, self.post)
        self._torch = TorchStore(me.pod_ip, program, lambda: free_port(six), self._logs.say, me.runtime == "torch")
        self._environment = environment
        self._place_told = ""
        self._copier = CopierProcess(environment.get("TRAINYARD_MEMORY", ""), me.pod_ip, base_environment(environment),
                                     self._logs.say)
        self._torch_link: Optional[socket.socket] = None
        self._api = Api(environment, self.post, self._logs.say)
        self._server: Optional[StoreServer] = None
        self._link: Optional[StoreLink] = None
        self._status: Optional[e.Status] = None
        self._termination_log = environment.get("TRAINYARD_TERMINATION_LOG", "/dev/termination-log")

    def _protected(self) -> "set[int]":
        return self._torch.pids() | self._forks.pids() | self._copier.pids() | self._devices.pids()

    def _ranks_say(self, event: e.Event) -> None:
        """Ranks are gone when their devices are free as well."""
        if isinstance(event, e.RanksGone):
            self._devices.begin()
        else:
            self.post(event)

    # From other threads and signal handlers ---------------------------------------------------------------------------

    def post(self, event: e.Event) -> None:
        """Hand an event to the core. From any thread."""
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it is awake

    def _signalled(self, number: int, _frame: Optional[FrameType]) -> None:
        if number == signal.SIGCHLD:
            self._children_ended = True
        elif number in FORWARDED:
            self._forward.append(number)
        else:
            self._events.append(e.Terminate())

    # The loop ---------------------------------------------------------------------------------------------------------

    def catch_signals(self) -> None:
        """From here on signals are events."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, *FORWARDED):
            signal.signal(number, self._signalled)

    def run(self) -> int:
        """Until there is nothing more to do; the exit code."""
        self._logs.start()
        self._logs.say(f"index {self._me.index}, incarnation {self._me.incarnation}, {self._me.ranks} ranks, "
                       f"pod {self._me.pod}")
        self._api.start()
        self._forks.open()
        self._forks_told(None)
        while self._leave is None:
            for key, mask in self._selector.select(self._timeout()):
                key.data(mask)
            self._step()
        if self._leave.flush:
            self._api.flush(FLUSH)
        self._torch.close()
        self._forks.close()
        self._copier.close()
        self._logs.say(f"leaving with {self._leave.code}")
        self._logs.close(2.0)
        return self._leave.code

    def _timeout(self) -> Optional[float]:
        if self._events or self._children_ended or self._forward:
            return 0
        parts = (self._core, self._ranks, self._forks, self._copier, self._check, self._devices)
        due: List[Optional[float]] = [part.deadline() for part in parts]
        due += [part.deadline() for part in (self._server, self._link) if part is not None]
        soonest = min((at for at in due if at is not None), default=None)
        return None if soonest is None else max(0.0, soonest - time.monotonic())

    def _step(self) -> None:
        if self._children_ended:
            self._children_ended = False
            self._reap()
        while self._forward:
            self._ranks.forward(self._forward.popleft())
        self._forks_told(self._forks.step())
        self._copier.step()
        self._check.step()
        self._devices.step()
        self._ranks.step()
        for part in (self._server, self._link):
            if part is not None:
                part.step()
        while self._events and self._leave is None:
            self._handle(self._events.popleft())
        deadline = self._core.deadline()
        if deadline is not None and deadline <= time.monotonic() and self._leave is None:
            self._handle(e.Timer())

    def _handle(self, event: e.Event) -> None:
        if isinstance(event, e.WorldSeen) and event.world.job == self._me.job:
            self._copier.open(event.world.token)  # a spare's, too: it may be needed at once
        for action in self._core.handle(event, time.monotonic(), time.time()):
            ACTIONS[type(action)](self, action)
        if self._core.leaving is not None:
            self._devices.abandon()  # nobody starts here any more

    def _woken(self, _mask: int) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        self._ranks.reap(self._other_ended)

    # Actions ----------------------------------------------------------------------------------------------------------

    def _open_store(self, action: e.OpenStore) -> None:
        self._torch.open()
        self._server = StoreServer(self._selector, action.token, self._me.pod_ip,
                                   lambda: self._core.world.size if self._core.world is not None else 1, self.post)
        self._logs.say(f"this pod is the master; its store listens at {self._server.address}")
        self.post(e.StoreOpened(self._server.address))

    def _close_store(self, _action: e.CloseStore) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._torch.close()
        self._select_torch()

    def _prepare(self, action: e.PrepareStore) -> None:
        self._ready(self._torch.prepare(action.run))
        self._select_torch()

    def _ready(self, event: Optional[e.StoreReady]) -> None:
        if event is not None:
            self.post(event)

    def _select_torch(self) -> None:
        """Follow the link to torch's store: there is a new one for every child."""
        before, self._torch_link = self._torch_link, self._torch.link
        self._follow(before, self._torch_link, self._torch_says)

    def _torch_says(self, _mask: int) -> None:
        self._ready(self._torch.read())
        self._select_torch()

    def _select_forks(self) -> None:
        """Follow the link to the fork server: there is a new one for every process."""
        before, self._forks_link = self._forks_link, self._forks.link
        self._follow(before, self._forks_link, lambda _: self._forks_told(self._forks.read()))

    def _follow(self, before: Optional[socket.socket], now: Optional[socket.socket],
                read: Callable[[int], None]) -> None:
        """Select another socket than before. Sockets and not descriptors: a new one often gets the old one's number."""
        if before is not now:
            for key in [key for key in self._selector.get_map().values() if key.fileobj is before]:
                self._selector.unregister(key.fileobj)
            if now is not None:
                self._selector.register(now, selectors.EVENT_READ, read)

    def _forks_told(self, answer: Optional[Forked]) -> None:
        self._select_forks()
        self._ranks.forked(answer)
        if self._forks.settled and not self._imports_told:
            self._imports_told = True
            self.post(e.Imported())

    def _other_ended(self, pid: int, status: int) -> None:
        self._forks_told(self._forks.ended(pid, status))
        self._torch_ended(pid, status)
        self._copier.ended(pid)
        self._check.ended(pid, status)
        self._devices.ended(pid, status)

    def _torch_ended(self, pid: int, status: int) -> None:
        self._ready(self._torch.ended(pid, status))
        self._select_torch()

    def _connect(self, action: e.Link) -> None:
        self._unlink(e.Unlink())
        self._link = StoreLink(self._selector, action, self._me, self._place, self.post, self._logs.say)
        if self._status is not None:
            self._link.send(self._status)

    def _place(self) -> str:
        """What is known of this pod's devices at this moment: an annotation may come later than the pod."""
        if not self._me.rank_table:
            return ""
        try:
            annotation = read(ranktable.ANNOTATION_FILE).decode("utf-8", "replace")
            return ranktable.place_of(self._environment, annotation) or ""
        except ValueError as error:
            if str(error) != self._place_told:
                self._place_told = str(error)
                self._logs.say(f"this pod's devices are not known: {error}")
            return ""

    def _ask(self, action: e.AskTable) -> None:
        if self._link is not None:
            self._link.ask(action)

    def _send_part(self, action: e.SendPart) -> None:
        if self._server is not None:
            self._server.send_part(action.connection, action.part)

    def _unlink(self, _action: e.Unlink) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _send_status(self, action: e.SendStatus) -> None:
        self._status = action.status
        if self._link is not None:
            self._link.send(action.status)

    def _tell(self, action: e.Tell) -> None:
        if self._server is not None:
            self._server.tell(action.connection, action.gang)

    def _refuse(self, action: e.Refuse) -> None:
        if self._server is not None:
            self._server.refuse(action.connection, action.reason)

    def _termination_message(self, action: e.TerminationMessage) -> None:
        text = action.text.encode("utf-8", "replace")
        first, _, rest = text.partition(b"\n")
        first = first[:1024]
        room = TERMINATION_MESSAGE - len(first) - 1
        try:
            with open(self._termination_log, "wb") as file:
                file.write(first + b"\n" + (rest[-room:] if rest else b""))
        except OSError:
            pass  # not in a pod

    def _set_leave(self, action: e.Leave) -> None:
        self._leave = action


ACTIONS: Dict[type, Callable[[Loop, Any], None]] = {
    e.StartRanks: lambda loop, action: loop._ranks.start(action),
    e.CheckPair: lambda loop, action: loop._check.start(action),
    e.KillRanks: lambda loop, _: loop._ranks.kill(),
    e.KeepRanks: lambda loop, _: loop._ranks.keep(),
    e.TermRanks: lambda loop, _: loop._ranks.term(),
    e.TouchDrain: lambda loop, _: loop._ranks.touch_drain(),
    e.OpenStore: Loop._open_store,
    e.CloseStore: Loop._close_store,
    e.PrepareStore: Loop._prepare,
    e.Link: Loop._connect,
    e.Unlink: Loop._unlink,
    e.SendStatus: Loop._send_status,
    e.Tell: Loop._tell,
    e.AskTable: Loop._ask,
    e.SendPart: Loop._send_part,
    e.Refuse: Loop._refuse,
    e.WriteReport: lambda loop, action: loop._api.write(action.spec),
    e.DropReport: lambda loop, _: loop._api.drop(),
    e.ReadWorld: lambda loop, _: loop._api.read_world(),
    e.TerminationMessage: Loop._termination_message,
    e.Log: lambda loop, action: loop._logs.say(action.text),
    e.Leave: Loop._set_leave,
}
