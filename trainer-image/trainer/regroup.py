"""A rank that outlives its gang: it leaves the process groups of a generation that lost a rank, and takes part in the
next one in the same process. supervisor/regroup.py has the messages, docs/recovery.md the whole.

Nothing of the model is kept: the next generation builds and restores it as a new process would, so that all ranks do
the same. Whatever is not as usual ends the process; the supervisor then starts another."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from supervisor.failures import is_consequence
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from trainyard.api.train import TrainConfig

from trainer.errors import describe, one_line
from trainer.parallel.layout import Layout

# s that a rank whose collective has failed waits to be told what to do: a lost process is told of in milliseconds, a
# lost pod or node within 2 s, and without the API the master starts the same members again after 2.5 s. Then it ends,
# as it would without all this, and its supervisor tells of that.
PATIENCE = 4.0
COLLECTIVES = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}  # backend by device
Sockets = dict[int, str]  # by descriptor: what the kernel calls them


def sockets() -> Sockets:
    """Of this process."""
    found: Sockets = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own is gone by now
            what = os.readlink(f"/proc/self/fd/{name}")
            if what.startswith("socket:"):
                found[int(name)] = what
    return found


def cut_gloo(before: Sockets) -> None:
    """Shut down the connections that were made since: no call of gloo's ends a collective that waits for a peer, a
    connection that ends does. Listening sockets and that to torch's store stay, gloo aborts without the one."""
    store = int(os.environ["MASTER_PORT"])
    for descriptor, name in sockets().items():
        if before.get(descriptor) == name:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as mine:
            if mine.family in (socket.AF_INET, socket.AF_INET6) and mine.getpeername()[1] != store:
                mine.shutdown(socket.SHUT_RDWR)


# How collectives that wait for a lost peer are ended; None: nobody has tested a way, so these ranks start anew.
CUTS: dict[str, Callable[[Sockets], None] | None] = {"gloo": cut_gloo, "nccl": None, "hccl": None}


def why_not(config: TrainConfig, layout: Layout, device: torch.device) -> str:
    """What it has not been tested with, or an empty string."""
    backend = COLLECTIVES[device.type]
    if CUTS[backend] is None:
        return f"has groups of {backend}"
    if layout.tensor * layout.pipeline * layout.context * layout.expert > 1:
        return f"has the layout {layout}"
    if config.compile or config.profile is not None:
        return "compiles" if config.compile else "is being profiled"
    return ""


class Regroup:
    """This rank's line to its supervisor. `ends` collects what has to end before the process can take part in another
    generation. Without a path nothing is ever asked."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._line: socket.socket | None = None
        self._before: Sockets = {}
        self._cut: Callable[[Sockets], None] | None = None
        self._busy: Callable[[], str] = lambda: ""
        self._told = threading.Event()
        self._orders: SimpleQueue[dict[str, str] | None] = SimpleQueue()
        self.ends = ExitStack()

    def before_groups(self) -> None:
        """The sockets of now are none of gloo's."""
        self._before = sockets()

    def ready(self, problem: str, device: torch.device, busy: Callable[[], str]) -> None:
        """The groups are made and the model stands. From here on the supervisor may ask, unless there is a `problem`;
        `busy` says why it cannot be at the moment. It is called from another thread."""
        if problem or not self._path:
            return
        self._cut, self._busy = CUTS[COLLECTIVES[device.type]], busy
        if self._line is None:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(self._path)
            except OSError:
                line.close()  # it does not want to keep anybody
                return
            self._line = line
            self._say(pid=os.getpid())
            threading.Thread(target=self._listen, args=(line,), name="regroup", daemon=True).start()
        self._say(joined=True)

    def _say(self, **message: Any) -> None:
        assert self._line is not None
        self._line.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), line.makefile("r") as stream:
            for text in stream:
                message = json.loads(text)
                if "environment" in message:
                    self._orders.put(message["environment"])
                else:
                    self._leave()
        self._orders.put(None)

    def _leave(self) -> None:
        problem = self._busy()
        if problem or self._cut is None:
            return self._say(stay=problem)
        self._told.set()
        self._cut(self._before)
        return None

    def lost(self, error: Exception) -> bool:
        """Whether this error is only the loss of the gang, and the process is to be kept."""
        if self._line is None or not isinstance(error, RuntimeError):
            return False
        if not self._told.is_set() and not self._busy() and is_consequence(describe(error)):
            print(f"lost the gang, waiting for the next: {one_line(error, 200)}", flush=True)
            self._told.wait(PATIENCE)
        return self._told.is_set()

    def rejoin(self) -> None:
        """Leave all groups, let go of all that belonged to them, and take over the environment of the next generation
        once the supervisor says so. Raises an exception if that cannot be."""
        self._busy = lambda: "is between two generations"
        self._told.clear()
        self.ends.close()
        gc.collect()  # the model, before there is another
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # it holds meshes
        self._say(left=True)
        environment = self._orders.get()
        if environment is None:
            raise ConnectionError("the supervisor is gone")
        os.environ.update(environment)
