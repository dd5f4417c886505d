"""Between the end of the last process and the word that it has ended: the devices must be free as well (devices.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Callable, List, Mapping, Optional, Set

from supervisor.devices import Held, tool_of
from supervisor.events import DeviceHeld, Event, RanksGone

HELD_SECONDS = 20.0  # after which a device that still has a process on it counts as faulty
TOOL_SECONDS = 10.0  # for one look; then the tool is killed and the devices are taken for free
EVERY = 0.5  # s between two looks
OUTPUT = 1 << 20  # bytes


class DeviceCheck:
    """Posts RanksGone once nothing is left on the pod's devices, DeviceHeld again and again while something stays."""

    def __init__(self, environment: Mapping[str, str], ranks: int, scratch: str, post: Callable[[Event], None],
                 say: Callable[[str], None]) -> None:
        self._tool = tool_of(environment, ranks)
        self._environment = dict(environment)
        self._file = os.path.join(scratch, "devices.txt")
        self._post = post
        self._say = say
        self._waiting = False  # RanksGone is owed
        self._since = 0.0
        self._due: Optional[float] = None  # next look, or end of this one
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._dying: Set[int] = set()
        self._told = ""

    @property
    def wanted(self) -> bool:
        """Whether there are devices, and somebody who can tell of them."""
        return self._tool is not None

    def pids(self) -> Set[int]:
        """Children that are not reaped yet."""
        return self._dying | ({self._child.pid} if self._child is not None else set())

    def begin(self) -> None:
        """Every process of this pod's ranks has ended."""
        self._waiting, self._since = True, time.monotonic()
        if self._tool is None:
            self.abandon()
        elif self._dying:
            self._give_up("its last call was killed and is not gone")
        elif self._child is None:
            self._look()

    def abandon(self) -> None:
        """It does not matter any more."""
        self._kill()
        self._due = None
        if self._waiting:
            self._waiting = False
            self._post(RanksGone())

    def deadline(self) -> Optional[float]:
        """When step() is due."""
        return self._due

    def step(self) -> None:
        """Look again, or end a tool that hangs."""
        if self._due is None or time.monotonic() < self._due:
            return
        if self._child is not None:
            self._give_up(f"it has not ended within {TOOL_SECONDS:.0f} s")
        else:
            self._look()

    def _look(self) -> None:
        assert self._tool is not None
        command = self._tool.command()
        try:
            with open(self._file, "wb") as file:
                self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file,
                                               stderr=subprocess.DEVNULL, start_new_session=True,
                                               env=self._environment)
            self._due = time.monotonic() + TOOL_SECONDS
        except OSError as error:
            self._give_up(f"it cannot be started: {error}")

    def ended(self, pid: int, status: int) -> None:
        """A child was reaped."""
        self._dying.discard(pid)
        if self._child is None or pid != self._child.pid:
            return
        self._child.returncode = status
        self._child, self._due = None, None
        if self._waiting:
            self._judge(status)

    def _judge(self, status: int) -> None:
        """What the tool has printed."""
        assert self._tool is not None
        if status != 0:
            return self._give_up(f"it ended with status {status}")
        try:
            with open(self._file, "rb") as file:
                held = self._tool.read(file.read(OUTPUT).decode("utf-8", "replace"))
        except (OSError, ValueError) as error:
            return self._give_up(str(error))
        if held is None:
            return self._look()
        return self._wait(held) if held else self.abandon()

    def _wait(self, held: List[Held]) -> None:
        passed = time.monotonic() - self._since
        words = ", ".join(map(str, held))
        if passed < HELD_SECONDS:
            self._tell(f"devices are not free yet: {words}")
        else:
            self._tell(f"devices are still not free after {HELD_SECONDS:.0f} s and count as faulty: {words}")
            self._post(DeviceHeld(tuple(one.device for one in held),
                                  f"{words} still in use {HELD_SECONDS:.0f} s after the pod's last rank had ended"))
        self._due = time.monotonic() + EVERY * (1 if passed < HELD_SECONDS else 4)

    def _give_up(self, why: str) -> None:
        assert self._tool is not None
        command = " ".join(self._tool.command())
        self._tell(f"whether devices are free is not known, ranks start all the same: {command}: {why}")
        self.abandon()

    def _tell(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._say(words)

    def _kill(self) -> None:
        if self._child is not None:
            os.killpg(self._child.pid, signal.SIGKILL)  # not reaped before ended(): the pid is still its own
            self._child.returncode = -signal.SIGKILL
            self._dying.add(self._child.pid)
            self._child = None
