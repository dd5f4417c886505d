"""Copies of a rank's state in memory: taken between steps, kept by the pod's copier, held by buddies in other pods.

A rank writes its own shard into a slot (supervisor.copies.slot) and tells the copier, which sends it on. What may be
overwritten is decided by supervisor.copies.rotation, from what all ranks agree on in the all-reduce of each step."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from supervisor.copies.rotation import Rotation
from supervisor.copies.slot import Damaged, Slot
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list
from torch.distributed.tensor import DTensor

from trainer.checkpoint.saver import State
from trainer.distributed import Gang, gather

ALIGN = 64  # bytes
SHARE = 0.8  # of the free memory at most for copies
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat"),
)
COPIER_STARTS = 10.0  # s
TELL_AGAIN = 5.0  # s after which a copier that has not delivered is asked again
BUDGET = 0.03  # of the training time, for own copies and buddies' together
MEASURED = 3  # copies that are timed before `auto` decides


warnings.filterwarnings("ignore", message="The given buffer is not writable")  # it is only read from


class Unavailable(Exception):
    """There can be no copies in memory here; why."""


@dataclass(frozen=True)
class Piece:
    """One contiguous part of a tensor that this rank holds, and its place in the slot's data."""

    key: str  # part.name, as torch.distributed.checkpoint flattens it
    dtype: str
    shape: tuple[int, ...]  # of the whole tensor
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    at: int  # byte

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.sizes) * getattr(torch, self.dtype).itemsize  # type: ignore[no-any-return]

    @property
    def room(self) -> int:
        """Bytes until the next piece."""
        return -(-self.bytes // ALIGN) * ALIGN

    def dump(self) -> list[Any]:
        """As the header has it."""
        return [self.key, self.dtype, list(self.shape), list(self.offsets), list(self.sizes), self.at]

    @classmethod
    def read(cls, entry: Sequence[Any]) -> Piece:
        """The reverse."""
        key, dtype, shape, offsets, sizes, at = entry
        return cls(key, dtype, tuple(shape), tuple(offsets), tuple(sizes), at)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What of it is here."""
    local: torch.Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()
    return local


def pieces(state: State) -> tuple[list[tuple[Piece, torch.Tensor]], int]:
    """This rank's part of the state, in order, with the tensors; and the bytes that they need together."""
    found, at = [], 0
    for part, tensors in state.items():
        for name, tensor in tensors.items():
            local = local_of(tensor)
            if not local.numel():
                continue
            chunk = _create_chunk_list(tensor)[0]
            piece = Piece(f"{part}.{name}", str(local.dtype).removeprefix("torch."), tuple(tensor.shape),
                          tuple(chunk.offsets), tuple(chunk.sizes), at)
            found.append((piece, local))
            at += piece.room
    return found, at


def view(data: memoryview, piece: Piece) -> torch.Tensor:
    """The piece inside a slot's data, without a copy."""
    raw = torch.frombuffer(data, dtype=torch.uint8, count=piece.bytes, offset=piece.at)
    return raw.view(getattr(torch, piece.dtype)).view(piece.sizes)


class Copier:
    """The rank's line to its pod's copier. Raises OSError when it is gone."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "copier.sock")
        self._stream: Any = None

    def wait(self, seconds: float) -> None:
        """Until it listens; it is started together with the first ranks."""
        end = time.monotonic() + seconds
        while not os.path.exists(self._path) and time.monotonic() < end:
            time.sleep(0.02)  # polled: nobody tells when another program makes a socket

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One question. The copier may have been started anew in between: then it is asked a second time."""
        for attempt in range(2):
            try:
                if self._stream is None:
                    sock = socket.socket(socket.AF_UNIX)
                    sock.settimeout(60.0)
                    sock.connect(self._path)
                    self._stream = sock.makefile("rwb")
                    sock.close()  # the stream keeps it open
                self._stream.write(json.dumps({"op": op, **fields}).encode() + b"\n")
                self._stream.flush()
                line = self._stream.readline()
                if not line:
                    raise ConnectionResetError("the copier is gone")
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise OSError(answer["error"])
                return answer
            except (ConnectionError, FileNotFoundError):
                self._stream = None
                if attempt:
                    raise
        raise AssertionError("unreachable")


@dataclass
class Rhythm:
    """How often copies are taken: every `own` steps, and every `buddy` steps (a multiple) for the buddies too."""

    own: int | None  # None: not yet decided
    buddy: int | None
    costs: list[float] = field(default_factory=list)  # s that training stood still for a copy
    together: bool = False  # there are only slots for copies that are also sent

    @property
    def decided(self) -> bool:
        """Whether both are known."""
        return self.own is not None and self.buddy is not None

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether this step is copied, and sent to the buddies."""
        own, buddy = self.own or 1, self.buddy or 1
        return step % own == 0, step % buddy == 0

    def __str__(self) -> str:
        return f"every {self.own} steps, to other nodes every {self.buddy}"

    def decide(self, cost: float, step: float, sending: float) -> None:
        """From seconds a copy, seconds a step and CPU seconds of sending (all the worst of all ranks): each kind gets
        half of the budget. What was set by hand stays."""
        half = BUDGET / 2 * max(step, 1e-6)
        if self.own is None:
            self.own = max(1, math.ceil(cost / half))
        if self.buddy is None:
            self.buddy = max(1, math.ceil(sending / half))
        self.buddy = -(-self.buddy // self.own) * self.own
        if self.together:
            self.own = self.buddy


class Memory:
    """This rank's copies."""

    def __init__(self, folder: Path, gang: Gang, nodes: Sequence[int], layout: str, model: str, run: str, copies: int,
                 rhythm: Rhythm, asked: bool = False) -> None:
        """`nodes`: the node of every rank. `layout`: a digest of all that decides who holds what; `model`: of what the
        tensors mean; `asked`: whether fewer `copies` will not do. Raises Unavailable on every rank if one cannot."""
        self.gang = gang
        self.folder = folder
        self.layout = layout
        self.model = model
        self.run = run
        self.rhythm = rhythm
        self.asked = asked
        self.copier = Copier(folder)
        self.problem = ""
        self.memory_step: int | None = None  # newest that is whole everywhere
        self._nodes = list(nodes)
        self._copies = copies
        self._slots: list[Slot] = []
        self._pieces: list[tuple[Piece, torch.Tensor]] = []
        self._ack = 0
        self._number = 0  # of the content that was sent last
        self._sent_slot = 0
        self._told_at = 0.0
        self.rotation = Rotation([])
        try:
            self.copier.wait(COPIER_STARTS)
            self.address = self.copier.ask("address")["address"]
            problem = ""
        except OSError as error:
            self.address, problem = "", f"no copier in this pod ({error})"
        answers = gather(gang, (self.address, problem))
        self.addresses = [address for address, _ in answers]
        wrong = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text]
        if wrong:
            raise Unavailable(wrong[0])

    def buddies(self) -> list[str]:
        """Addresses of the copiers that hold this rank's copies: those of the next nodes."""
        return buddies_of(self.gang.rank, self._nodes, self.addresses, self._copies)

    # Slots ------------------------------------------------------------------------------------------------------------

    def attach(self, state: State, resumed: int | None) -> None:
        """Make or find this rank's slots and tell the copier whom to send them to. `resumed`: the step that was loaded
        from memory, which must stay until a copy of it is whole again everywhere. Raises Unavailable on every rank if
        memory does not suffice at one."""
        self._pieces, size = pieces(state)
        header = {"world": self.gang.world_size, "rank": self.gang.rank, "model": self.model,
                  "tensors": [piece.dump() for piece, _ in self._pieces]}
        count = self._fit(size)
        problem = ""
        try:
            self.copier.ask("attach", layout=self.layout, rank=self.gang.rank, buddies=self.buddies())
            self._slots = [self._slot(number, header, size) for number in range(count)]
        except OSError as error:
            problem = f"{count} copies of {size >> 20} MiB a rank do not fit {self.folder}: {error.strerror or error}"
        wrong = [f"rank {rank}: {text}" for rank, text in enumerate(gather(self.gang, problem)) if text]
        if wrong:
            self._drop()
            raise Unavailable(wrong[0])
        seals = [slot.seal() for slot in self._slots]
        self.rotation = Rotation([seal["step"] if seal else None for seal in seals], agreed=resumed)
        for number, step in enumerate(self.rotation.slots):
            if step != resumed:  # of another past
                self.rotation.slots[number] = None
        self._open_acknowledgement()

    def _fit(self, size: int) -> int:
        """Slots a rank, so that all of a node's copies, own and held, fit its free memory; fewer copies at buddies if
        that is what it takes. Raises Unavailable on every rank, and what was asked for is never made less."""
        answers = gather(self.gang, (size, free_bytes(self.folder) + taken_bytes(self.folder)))
        ranks = max(self._nodes.count(node) for node in set(self._nodes))
        largest, free = max(size for size, _ in answers), int(min(free for _, free in answers) * SHARE)
        same = self.rhythm.decided and self.rhythm.own == self.rhythm.buddy
        choices = [(2, self._copies)] if same else [(3, self._copies), (2, self._copies)]
        if not self.asked:
            choices.append((2, 0))
        for count, copies in choices:
            if ranks * largest * count * (1 + copies) <= free:
                self._copies = copies
                if count == 2 and not same:  # both kinds share the two slots
                    self.rhythm.together = True
                return count
        count, copies = choices[-1]
        need = ranks * largest * count * (1 + copies)
        raise Unavailable(f"{count} copies of {largest >> 20} MiB for each of {ranks} ranks and {copies} other nodes' "
                          f"need {need >> 20} MiB a pod, {free >> 20} MiB can be used; give the pods more memory, or "
                          "set checkpoint.memory.every to 0")

    def _slot(self, number: int, header: dict[str, Any], size: int) -> Slot:
        path = self.folder / "own" / self.layout / f"{self.gang.rank}.{number}"
        try:
            slot = Slot.open(str(path), write=True)
            if slot.header == header and len(slot.data) == size:
                return slot
            slot.close()
        except (FileNotFoundError, Damaged):
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        return Slot.create(str(path), header, size)

    def _drop(self) -> None:
        for slot in self._slots:
            os.unlink(slot.path)
        self._slots = []

    def _open_acknowledgement(self) -> None:
        path = self.folder / "acks" / f"{self.layout}.{self.gang.rank}"
        self._ack = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(self._ack, struct.pack("<Q", 0), 0)

    # Between steps ----------------------------------------------------------------------------------------------------

    def copy(self, step: int, training: dict[str, Any], refill: str = "") -> None:
        """Copy the state of a finished step, if it is its turn. `refill`: after a recovery, whatever the turn is; the
        run that the state is from, so that it makes up one set with the copies that are still there."""
        own, buddy = (True, True) if refill else self.rhythm.due(step)
        if not own:
            return
        if step in self.rotation.slots:
            slot: int | None = self.rotation.slots.index(step)
        else:
            started = time.monotonic()
            slot = self._write(step, training, refill or self.run)
            if slot is not None and not self.rhythm.decided:
                self.rhythm.costs.append(time.monotonic() - started)
        if slot is None:
            return
        self.rotation.copied(slot, step)
        if buddy and self.rotation.sent is None:
            self.rotation.send(step)
            seal = self._slots[slot].seal()
            assert seal is not None
            self._number = seal["number"]
            self._sent_slot = slot
            if self.buddies():
                self._tell()

    def _write(self, step: int, training: dict[str, Any], run: str) -> int | None:
        slot = self.rotation.place()
        if slot is None:
            return None
        target = self._slots[slot]
        self.rotation.begin(slot)
        target.break_seal()
        for piece, local in self._pieces:
            view(target.data, piece).copy_(local)
        target.set_seal({"step": step, "run": run, "number": time.time_ns(), "training": training})
        return slot

    def _tell(self) -> None:
        """Have it sent; a copier that was started anew must first be told to whom."""
        self._told_at = time.monotonic()
        for attempt in range(2):
            try:
                if attempt:
                    self.copier.ask("attach", layout=self.layout, rank=self.gang.rank, buddies=self.buddies())
                self.copier.ask("send", layout=self.layout, rank=self.gang.rank, slot=self._sent_slot)
                self.problem = ""
                return
            except OSError as error:
                self.problem = f"copies are not sent to other pods: {error}"

    def behind(self) -> bool:
        """For the all-reduce: has something that was sent not arrived yet?"""
        if self.rotation.sent is None or not self.buddies():
            return False
        (number,) = struct.unpack("<Q", os.pread(self._ack, 8, 0))
        behind = self.rotation.behind(self.rotation.sent if number == self._number else None)
        if behind and time.monotonic() - self._told_at > TELL_AGAIN:
            self._tell()
        return behind

    def reduced(self, anybody_behind: bool) -> None:
        """The all-reduce's answer."""
        arriving = self.rotation.sent
        self.rotation.reduced(anybody_behind)
        if arriving is not None and self.rotation.sent is None:
            if self.memory_step is None:
                self._forget_others()
            self.memory_step = arriving

    def decide(self, seconds_per_step: float) -> None:
        """Every rank at the same step: how often copies are taken from now on, from what they cost at the slowest."""
        if self.rhythm.decided:
            return
        cost = sum(self.rhythm.costs) / len(self.rhythm.costs) if self.rhythm.costs else 0.0
        worst = [max(column) for column in zip(*gather(self.gang, (cost, self.sending_seconds())), strict=True)]
        steps = gather(self.gang, seconds_per_step)
        self.rhythm.decide(worst[0], min(steps), worst[1])

    def sending_seconds(self) -> float:
        """CPU seconds that the newest sending took."""
        try:
            return float(self.copier.ask("state", layout=self.layout, rank=self.gang.rank)["seconds"])
        except OSError:
            return 0.0

    def _forget_others(self) -> None:
        """Copies of other layouts are not needed any more."""
        try:
            self.copier.ask("keep", layout=self.layout)
        except OSError:
            pass  # they go with the pod


def free_bytes(folder: Path) -> int:
    """What may still be written into a folder in memory: what its mount, the container and the machine leave."""
    left = [os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize]
    for limit, used, kept in CGROUPS:
        try:
            most, now = int(Path(limit).read_text()), int(Path(used).read_text())
            stat = dict(line.split() for line in Path(kept).read_text().splitlines())
            # Files that were read stay in the cache and count as used, until somebody needs the memory.
            left.append(most - now + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue  # not this version of cgroups, or no limit ("max")
    with open("/proc/meminfo", encoding="ascii") as file:
        left.append(next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) << 10)
    return max(0, min(left))


def taken_bytes(folder: Path) -> int:
    """What copies take already; they are written over or go."""
    return sum(path.stat().st_blocks * 512 for kind in ("own", "held") for path in (folder / kind).glob("*/*"))


def buddies_of(rank: int, nodes: Sequence[int], addresses: Sequence[str], copies: int) -> list[str]:
    """Copiers on the next `copies` nodes: of the rank with the same place on its node, so that load is even."""
    order = sorted(set(nodes))
    mine = order.index(nodes[rank])
    place = [other for other, node in enumerate(nodes) if node == nodes[rank]].index(rank)
    found = []
    for distance in range(1, min(copies, len(order) - 1) + 1):
        there = [other for other, node in enumerate(nodes) if node == order[(mine + distance) % len(order)]]
        found.append(addresses[there[place % len(there)]])
    return found


def layout_digest(world_size: int, layout: Any, identity: dict[str, Any]) -> str:
    """Short name for all that decides which rank holds what."""
    text = json.dumps([world_size, repr(layout), identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
