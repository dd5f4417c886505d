"""The ranks' processes: sessions of their own, environment, files, their end, and everything that they leave behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from supervisor import draining, failures, hangs, mindspore, progress, ranktable
from supervisor.events import (
    Event,
    Exit,
    HangOver,
    HangSeen,
    Member,
    ProgressSeen,
    RankExited,
    RanksGone,
    RanksJoined,
    RanksLeft,
    RanksSignalled,
    Run,
    StallSeen,
    StartRanks,
    named,
)
from supervisor.files import read
from supervisor.forkserver import Fork, Forked, ForkServer
from supervisor.hangs import Hangs, Process
from supervisor.logs import Logs, Tail
from supervisor.oom import first_to_go, oom_kills
from supervisor.regroup import VARIABLE, RegroupLines

LAST_WORDS = 0.25  # s that a rank's output may still come after its end, if something else holds the pipe
PROGRESS_POLL = 0.2  # s
# Errors that say that a program cannot be started here at all; others (no memory, no more processes) may pass.
NEVER_STARTS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
                errno.ENAMETOOLONG, errno.E2BIG)


class Rank:
    """One process."""

    def __init__(self, local: int, rank: int, folder: str, scheduler: bool = False) -> None:
        self.local = local
        self.rank = rank
        self.scheduler = scheduler  # MindSpore's, beside rank 0: no rank of its own
        self.name = "scheduler" if scheduler else f"rank {rank}"
        self.tail = Tail()
        self.move(folder)
        self.process: Optional[subprocess.Popen[bytes]] = None  # None: forked
        self.streams: List[int] = []  # our ends of its output, until it runs
        self.code: Optional[int] = None
        self.told = False
        self.tell_at = 0.0
        self.ended_at = 0.0  # seconds since 1970

    def move(self, folder: str) -> None:
        """Its files, which are made anew for every run."""
        self.error_file = os.path.join(folder, "error.json")
        self.progress_file = os.path.join(folder, "progress.json")
        self.pulse_file = os.path.join(folder, "pulse")


class Ranks:
    """All ranks of this pod. `post` takes the events; `protected` names children that are no ranks. With a fork server
    ranks are forks of it; where that comes to nothing they are started as programs."""

    def __init__(self, program: Sequence[str], me: Member, environment: Mapping[str, str], scratch: str, logs: Logs,
                 post: Callable[[Event], None], protected: Callable[[], Set[int]],
                 server: Optional[ForkServer] = None, lines: Optional[RegroupLines] = None) -> None:
        self._program = list(program)
        self._me = me
        self._environment = dict(environment)
        self._scratch = scratch
        self._logs = logs
        self._post = post
        self._protected = protected
        self._server = server
        self._lines = lines
        if lines is not None:
            lines.heard = self._heard
        self._kept = False  # the ranks were told to leave their groups, or wait for their next run
        self._awaited: Set[int] = set()  # pids of those that have yet to say that they left their groups, or made them
        self._order: Optional[StartRanks] = None  # given to the fork server
        self._new: List[Rank] = []  # the ranks of that order
        self._early: Dict[int, int] = {}  # status by pid of what ended before we knew which of them are ranks
        self._ranks: Dict[int, Rank] = {}  # by pid, or by -1 - local rank if it could not be started
        self._run: Run = (0, 0)
        self._folder = ""
        self._table_file = ""
        self._killing = False
        self._signalled: Set[int] = set()  # pids that were asked to save by SIGTERM
        self._oom_kills = 0
        self._progress_seen: Tuple[int, int, int] = (0, 0, 0)
        self._garbage_seen: Tuple[int, int, int] = (0, 0, 0)
        self._garbage_told = False
        self._poll_at: Optional[float] = None
        self._hangs: Optional[Hangs] = None
        self._stalled = False  # as it was told last
        self._finished: Optional[int] = None  # the newest step that all ranks of this pod have finished

    # What the core asks for -------------------------------------------------------------------------------------------

    def start(self, order: StartRanks) -> None:
        """Start every rank of this pod for a run. Nothing of an earlier run may be left but ranks that were kept."""
        self._note_finished()
        old, self._folder = self._folder, os.path.join(self._scratch, named(order.run))
        self._run = order.run
        self._oom_kills = oom_kills()
        self._progress_seen = (0, 0, 0)
        self._poll_at = time.monotonic() + PROGRESS_POLL if order.place == 0 else None
        self._hangs, self._stalled = Hangs(self._environment.get("TRAINYARD_HANG_SECONDS", "")), False
        self._table_file = ""
        if old and old != self._folder:
            shutil.rmtree(old, ignore_errors=True)
        if self._kept:
            return self._regroup(order)
        self._ranks = {}
        count = self._me.processes(order.place)
        self._new = [self._rank(local, order) for local in reversed(range(count))]  # the scheduler first
        if self._server is not None and all(rank.code is None for rank in self._new):
            self._order, self._early = order, {}
            if self._server.fork([Fork(rank.local, rank.name, self._additions(rank, order),
                                       (rank.streams[0], rank.streams[1])) for rank in self._new]):
                return None
        return self._spawn(order)

    def keep(self) -> None:
        """Ask every rank to leave its groups and to wait. RanksLeft follows once all have said so, or that it cannot
        be."""
        self._kept, self._awaited = True, set(self._ranks)
        self._hangs = self._poll_at = None
        alive = self._order is None and all(rank.code is None for rank in self._ranks.values())
        if not alive or self._lines is None or not self._lines.leave(self._ranks):
            self._post(RanksLeft("not all of them can make groups again"))

    def _regroup(self, order: StartRanks) -> None:
        """The ranks live, in no group."""
        assert self._lines is not None
        self._kept, self._awaited = False, set(self._ranks)
        for pid, rank in self._ranks.items():
            rank.told = False  # one that ended meanwhile has done so in this run
            rank.move(os.path.join(self._folder, str(rank.local)))
            try:
                os.makedirs(os.path.dirname(rank.error_file), exist_ok=True)
            except OSError as error:
                self._logs.say(f"{os.path.dirname(rank.error_file)}: {error.strerror}")
            if rank.code is None and not self._lines.join(pid, self._additions(rank, order)):
                _signal(os.kill, pid, signal.SIGKILL)  # its end is told of like any other

    def _heard(self, pid: int, message: Mapping[str, Any]) -> None:
        if pid not in self._ranks or self._killing:
            return
        if self._kept and "stay" in message:
            self._post(RanksLeft(f"{self._ranks[pid].name} {message['stay']}"))
        elif pid in self._awaited and ("left" if self._kept else "joined") in message:
            self._awaited.discard(pid)
            if not self._awaited:
                self._post(RanksLeft() if self._kept else RanksJoined(self._run))

    def _write_table(self, order: StartRanks) -> str:
        """HCCL's rank table, for all ranks of this pod."""
        contents = ranktable.render(order.table, self._environment.get("RANK_TABLE_VERSION", ""))
        path = os.path.join(self._folder, "ranktable.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(contents) + "\n")
        return path

    def _rank(self, local: int, order: StartRanks) -> Rank:
        """A rank that does not run yet, with its folder and the pipes of its output."""
        scheduler = local == self._me.ranks
        number = order.place * self._me.ranks + (0 if scheduler else local)
        rank = Rank(local, number, os.path.join(self._folder, str(local)), scheduler)
        try:
            os.makedirs(os.path.dirname(rank.error_file), exist_ok=True)
            if order.table and not self._table_file:
                self._table_file = self._write_table(order)
            for error in (False, True):
                rank.streams.append(self._logs.pipe(f"[{rank.name}] ", rank.tail, error))
        except OSError as problem:
            self._cannot_start(rank, problem)
        return rank

    def _additions(self, rank: Rank, order: StartRanks) -> Dict[str, str]:
        """What this rank's environment has beside that of the fork server."""
        environment = self._environment_of(rank, order)
        base = base_environment(self._environment)
        return {name: value for name, value in environment.items() if base.get(name) != value}

    def _environment_of(self, rank: Rank, order: StartRanks) -> Dict[str, str]:
        environment = rank_environment(self._environment, self._me, order, rank, self.drain_file, self._table_file)
        if self._finished is not None:
            environment["TRAINYARD_FINISHED_STEP"] = str(self._finished)
        if self._lines is not None and self._lines.path:
            environment[VARIABLE] = self._lines.path
        return environment

    def forked(self, answer: Optional[Forked]) -> None:
        """What came of an order to the fork server: the ranks, or nothing; then they are started as programs."""
        order = self._order
        if answer is None or order is None or self._server is None:
            return
        if answer.problem:
            self._logs.say(f"{answer.problem}: ranks are started one by one")
            self._spawn(order)
        else:
            for rank in self._new:
                pid = answer.pids[rank.local]
                self._ranks[pid] = rank
                if pid in self._early:
                    self._ended(rank, self._early[pid])
            self._started()
            self._server.go()

    def _spawn(self, order: StartRanks) -> None:
        """Start every rank as a program."""
        for rank in self._new:
            if rank.code is None:
                self._exec(rank, order)
        self._started()

    def _exec(self, rank: Rank, order: StartRanks) -> None:
        try:
            rank.process = subprocess.Popen(
                self._program, stdin=subprocess.DEVNULL, stdout=rank.streams[0], stderr=rank.streams[1],
                start_new_session=True,
                env=self._environment_of(rank, order),
            )
            self._ranks[rank.process.pid] = rank
        except OSError as problem:
            self._cannot_start(rank, problem)

    def _cannot_start(self, rank: Rank, problem: OSError) -> None:
        rank.code = failures.CONFIGURATION if problem.errno in NEVER_STARTS else 1
        rank.tail.add([f"cannot start {self._program[0]!r}: {problem.strerror or problem}".encode()], True)
        self._ranks[-1 - rank.local] = rank

    def _started(self) -> None:
        """The pipes of the new ranks' output are theirs alone now."""
        for pid in self._ranks:
            if self._ranks[pid] in self._new and pid > 0:
                first_to_go(pid)
        for rank in self._new:
            for stream in rank.streams:
                os.close(stream)
            rank.streams = []
        self._new, self._order = [], None

    @property
    def drain_file(self) -> str:
        return os.path.join(self._folder, "drain")

    def touch_drain(self) -> None:
        """Ask the ranks to save and stop: by the file, and by SIGTERM those who know that instead. If the file cannot
        be written, SIGTERM follows in its time."""
        if self._folder:
            try:
                with open(self.drain_file, "w", encoding="utf-8"):
                    pass
            except OSError as error:
                self._logs.say(f"cannot tell the ranks to save: {self.drain_file}: {error.strerror}")
        asked = {pid for pid, rank in self._ranks.items() if rank.code is None and not rank.scheduler
                 and draining.by_signal(self._me.drain_by, self._me.runtime, pid, rank.pulse_file)}
        self._term(asked)
        if asked:
            self._post(RanksSignalled(self._run))

    def term(self) -> None:
        """SIGTERM to the ranks themselves, once: to many programs a second one means to give up what they save."""
        self._term({pid for pid, rank in self._ranks.items() if rank.code is None})

    def _term(self, pids: Set[int]) -> None:
        for pid in pids - self._signalled:
            _signal(os.kill, pid, signal.SIGTERM)
        self._signalled |= pids

    def forward(self, number: int) -> None:
        """A signal to the ranks themselves."""
        for pid, rank in self._ranks.items():
            if rank.code is None:
                _signal(os.kill, pid, number)

    def kill(self) -> None:
        """SIGKILL to all that the ranks are and started. RanksGone follows."""
        self._killing, self._kept = True, False
        self._poll_at = None
        self._hangs = None
        if self._order is not None and self._server is not None:
            self._server.cancel()  # those that it has forked were not told to go
            self._started()
        for pid, rank in self._ranks.items():
            if rank.code is None:
                _signal(os.killpg, pid, signal.SIGKILL)
        self._check_gone()

    # What the loop tells ----------------------------------------------------------------------------------------------

    def reap(self, other: Callable[[int, int], None]) -> None:
        """Collect every child that has ended, our own and those that we inherited; `other` hears of those that are no
        ranks (pid, status)."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            rank = self._ranks.get(ended.si_pid)
            if rank is not None and (ended.si_code != os.CLD_EXITED or ended.si_status != 0):
                # Before it is reaped: its pid is not free yet, so the group cannot be another's.
                _signal(os.killpg, ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            if rank is not None:
                self._ended(rank, status)
            else:
                if self._order is not None:
                    self._early[ended.si_pid] = status
                other(ended.si_pid, status)
        if self._killing:
            self._check_gone()

    def _ended(self, rank: Rank, status: int) -> None:
        rank.code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if rank.process is not None:
            rank.process.returncode = rank.code  # so that subprocess never waits for a pid that may be another's by now
        rank.ended_at = time.time()
        rank.tell_at = time.monotonic() + (LAST_WORDS if rank.code else 0)

    def deadline(self) -> Optional[float]:
        """When step() is due; it is also due when a rank's output ends."""
        if self._killing:
            return None
        due = [rank.tell_at for rank in self._ranks.values() if rank.code is not None and not rank.told]
        if self._poll_at is not None and self._ranks:
            due.append(self._poll_at)
        if self._hangs is not None and self._ranks:
            due.append(self._hangs.deadline())
        return min(due, default=None)

    def step(self) -> None:
        """Tell of ranks that ended, read rank 0's progress."""
        if self._killing:
            return
        now = time.monotonic()
        ended = [rank for rank in self._ranks.values() if rank.code is not None and not rank.told
                 and (now >= rank.tell_at or rank.tail.open <= 0)]
        if ended or (self._poll_at is not None and now >= self._poll_at):
            self._read_progress()
        for rank in ended:
            rank.told = True
            if self._kept:
                self._post(RanksLeft(f"{rank.name} has ended"))
                continue
            self._post(RankExited(self._run, rank.local, self._judge(rank)))
        self._look_for_hang()

    def _look_for_hang(self) -> None:
        """Ranks that end tell of themselves; a program without a pulse is left to the operator."""
        if self._hangs is None or any(rank.code is not None for rank in self._ranks.values()):
            return
        found = self._hangs.step([Process(rank.rank, pid, rank.pulse_file) for pid, rank in self._ranks.items()])
        if found is not None and found.hang is not None:
            hang = found.hang
            self._post(HangSeen(self._run, hang.culprit, hang.reason, hang.phase, hang.step, hang.silent, found.text,
                                found.positions))
        elif found is not None:
            self._post(HangOver(self._run))
        if self._hangs.stalled != self._stalled:
            self._stalled = self._hangs.stalled
            self._post(StallSeen(self._run, self._stalled))

    def _judge(self, rank: Rank) -> Exit:
        assert rank.code is not None
        if rank.code == 0:
            return Exit(rank.rank, 0)
        lines, errors = rank.tail.read()
        oom = rank.code == -signal.SIGKILL and oom_kills() > self._oom_kills
        verdict = failures.judge(rank.code, lines, errors, read(rank.error_file).decode("utf-8", "replace"), oom)
        step: Optional[int] = None
        try:
            step = progress.parse(read(rank.progress_file)).fields["step"]
        except ValueError:
            pass  # it never told
        reason = f"MindSpore's scheduler: {verdict.reason}" if rank.scheduler else verdict.reason
        return Exit(rank.rank, rank.code, verdict.root, reason, verdict.text, step, oom, rank.ended_at)

    def _read_progress(self) -> None:
        if self._poll_at is None:
            return
        self._poll_at = time.monotonic() + PROGRESS_POLL
        first = next((rank for rank in self._ranks.values() if rank.rank == 0 and not rank.scheduler), None)
        if first is None:
            return
        try:
            found = os.stat(first.progress_file)
        except OSError:
            return
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen == self._progress_seen:
            return
        line = read(first.progress_file)
        try:
            parsed = progress.parse(line)
        except ValueError as error:
            if seen == self._garbage_seen and line.strip():  # else it may be half written at this moment
                self._tell_garbage(error)
            self._garbage_seen = seen
            return
        self._progress_seen = seen
        self._post(ProgressSeen(self._run, parsed.fields, parsed.warnings, found.st_mtime))

    def _tell_garbage(self, error: ValueError) -> None:
        if not self._garbage_told:
            self._garbage_told = True
            self._logs.say(f"rank 0's progress is ignored until it can be read: {error}")

    # The end ----------------------------------------------------------------------------------------------------------

    def _check_gone(self) -> None:
        """RanksGone once no rank and nothing that a rank left to us lives. What a dying process had started becomes our
        child as it dies, so this is looked at again after every child's end."""
        strays = children() - self._protected() - set(self._ranks)
        for pid in strays:
            _signal(os.kill, pid, signal.SIGKILL)
        if strays or any(rank.code is None for rank in self._ranks.values()):
            return
        self._killing, self._signalled = False, set()
        self._forget()
        self._post(RanksGone())

    def _note_finished(self) -> None:
        """From the pulses of ranks that have ended, or left their gang. Those that had finished no step in their run
        leave it at what was known: that is what the next ranks will be behind, too."""
        pulses = [hangs.read(rank.pulse_file) for rank in self._ranks.values() if not rank.scheduler]
        steps = [found.step for found in pulses if found is not None and found.steps]
        self._finished = min(steps, default=self._finished)

    def _forget(self) -> None:
        self._note_finished()
        self._ranks = {}
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def base_environment(base: Mapping[str, str]) -> Dict[str, str]:
    """What all ranks of this pod have in common."""
    environment = dict(base)
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if base.get("TRAINYARD_HCCL") == "true":
        for name, seconds in ranktable.TIMEOUTS.items():
            environment.setdefault(name, seconds)
    return environment


def rank_environment(base: Mapping[str, str], me: Member, order: StartRanks, rank: Rank, drain: str,
                     table: str = "") -> Dict[str, str]:
    """What torchrun would give this rank, and Trainyard's own."""
    environment = base_environment(base)
    world = order.size * me.ranks
    environment.update({
        "MASTER_ADDR": order.start.host,
        "MASTER_PORT": str(order.start.port),
        "RANK": str(rank.rank),
        "LOCAL_RANK": str(rank.local),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(me.ranks),
        "GROUP_RANK": str(order.place),
        "GROUP_WORLD_SIZE": str(order.size),
        "ROLE_RANK": str(rank.rank),
        "ROLE_WORLD_SIZE": str(world),
        "ROLE_NAME": "default",
        "TORCHELASTIC_RUN_ID": me.job,
        "TORCHELASTIC_RESTART_COUNT": str(order.restarts),
        "TORCHELASTIC_MAX_RESTARTS": base.get("TRAINYARD_MAX_RESTARTS", str(max(10, order.restarts))),
        "TORCHELASTIC_ERROR_FILE": rank.error_file,
        "TORCHELASTIC_USE_AGENT_STORE": str(order.start.agent_store),
        "TRAINYARD_INDEX": str(order.place),
        "TRAINYARD_NUM_NODES": str(order.size),
        "TRAINYARD_GENERATION": named(order.run),
        "TRAINYARD_PROGRESS": rank.progress_file,
        "TRAINYARD_PULSE": rank.pulse_file,
        "TRAINYARD_DRAIN": drain,
    })
    if order.tuned:
        environment["TRAINYARD_TUNED"] = order.tuned
    if table:
        environment["RANK_TABLE_FILE"] = table
    if me.runtime == "mindspore":
        environment.update(mindspore.cluster_environment(
            base, order.start.host, order.start.port, rank.rank, 0 if rank.scheduler else rank.local, world, me.ranks,
            rank.scheduler))
    return environment


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError:
        pass  # it changed its user: it cannot be ours to stop


def children() -> Set[int]:
    """Pids of our own children, zombies included."""
    me = os.getpid()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = read(f"/proc/{name}/stat")
            fields = stat[stat.rfind(b")") + 2:].split()  # the command's name may hold anything, brackets too
            if len(fields) > 1 and int(fields[1]) == me:
                found.add(int(name))
    return found
