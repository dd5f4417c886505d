"""This rank's pulse, for the supervisor to see whether it hangs (supervisor/pulse.py has the format)."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from supervisor.pulse import COUNT, GROUP, GROUPS, HEADER, MAGIC, PHASES, SIZE, STACKS_SUFFIX

EVERY = 0.25  # s between two looks at the collectives
RECORDED = "64"  # entries of torch's flight recorder; only its counters are used
STACKS = signal.SIGRTMIN + 7  # dumps the stacks of all threads; nobody else uses it


class Pulse:
    """Says phase and step at once, and from a thread how many collectives were issued and completed: the training loop
    pays for two small writes a step and for torch's own counting.

    Without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._version = 0
        self._phase, self._steps, self._step, self._usual = "start", 0, 0, 0.0
        self._signal = 0
        self._not_compared: set[str] = set()
        self._closed = threading.Event()
        self._old: set[str] = set()  # groups of generations that this process has outlived
        if path is None:
            return
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(descriptor, bytes(SIZE))  # no hole, which on a full disk would be SIGBUS when it is filled
            self._map = mmap.mmap(descriptor, SIZE)
            os.close(descriptor)
            self._stacks = path.with_name(path.name + STACKS_SUFFIX).open("a")  # kept open for the handler
            faulthandler.register(STACKS, file=self._stacks, all_threads=True)
            self._signal = STACKS
        except OSError as error:
            print(f"warning: hangs of this rank will not be noticed: {path}: {error.strerror}", flush=True)
            self._map = None
            return
        self._old = {name for name, _, _ in collectives()}
        self._progress()
        threading.Thread(target=self._follow, name="pulse", daemon=True).start()

    def restart_steps(self) -> None:
        """The first step begins: it may compile."""
        self._phase = "compile"
        self._progress()

    def stepped(self, step: int, usual: float) -> None:
        """A step was finished; they take `usual` seconds."""
        self._phase, self._step, self._usual = "step", step, usual
        self._steps += 1
        self._progress()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Something else than steps."""
        before, self._phase = self._phase, name
        self._progress()
        try:
            yield
        finally:
            self._phase = before
            self._progress()

    @property
    def doing(self) -> str:
        """The phase."""
        return self._phase

    def close(self) -> None:
        """Say nothing more of this process's groups."""
        self._closed.set()

    def leave_out(self, group: str) -> None:
        """Ranks need not be equally far in this group: a thread of its own uses it."""
        self._not_compared.add(group)

    def _progress(self) -> None:
        self._write(0, HEADER.pack(MAGIC, 0, PHASES.index(self._phase), self._signal, self._steps, self._step,
                                   time.monotonic(), self._usual))

    def _write(self, at: int, content: bytes) -> None:
        if self._map is None:
            return
        with self._lock:
            self._version += 1
            COUNT.pack_into(self._map, 8, self._version)  # odd: being written
            if at == 0:
                self._map[12: len(content)] = content[12:]
                self._map[:8] = content[:8]
            else:
                self._map[at: at + len(content)] = content
            self._version += 1
            COUNT.pack_into(self._map, 8, self._version)

    def _follow(self) -> None:
        while not self._closed.is_set():
            counted = [one for one in renamed(collectives(), self._old) if one[0] not in self._not_compared][:GROUPS]
            packed = b"".join(GROUP.pack(name.encode()[:24], issued, completed) for name, issued, completed in counted)
            self._write(HEADER.size, COUNT.pack(len(counted)) + packed)
            self._closed.wait(EVERY)


def renamed(counted: list[tuple[str, int, int]], old: set[str]) -> list[tuple[str, int, int]]:
    """Without the `old` groups, and by the names that the others have in a new process, so that ranks can be compared:
    torch numbers a process's groups all its life. The first of a generation is that of all ranks, which is used
    first."""
    if not old:
        return counted
    new = [(int(name), issued, completed) for name, issued, completed in counted if name not in old]
    first = min((number for number, _, _ in new), default=0)
    return sorted((str(number - first), issued, completed) for number, issued, completed in new)


def count_collectives() -> None:
    """Let torch count collectives, group by group. Before the first process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", RECORDED)


def collectives() -> list[tuple[str, int, int]]:
    """Of each of torch's groups: name, collectives issued, collectives completed. Point-to-point messages are not
    counted, as their numbers differ between the ranks of a pipeline. Empty with a torch that does not count."""
    dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    if dump is None:
        return []
    try:
        status = json.loads(dump(includeCollectives=False)).get("pg_status", {})
        return sorted((str(name), max(0, int(one["last_enqueued_collective"])),
                       max(0, int(one["last_completed_collective"]))) for name, one in status.items())
    except (ValueError, KeyError, TypeError, RuntimeError):
        return []
