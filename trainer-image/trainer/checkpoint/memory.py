"""Copies of a rank's state in memory: taken between steps, kept by the pod's copier, held by buddies in other pods.

A rank writes its own shard into a slot (supervisor.copies.slot) and tells the copier, which sends it on. What may be
overwritten is decided by supervisor.copies.rotation, from what all ranks agree on in the all-reduce of each step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from supervisor.copies.rotation import Rotation
from supervisor.copies.slot import Damaged, Slot
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list
from torch.distributed.tensor import DTensor

from trainer import allocator
from trainer.checkpoint.buddies import ALONE, Buddies
from trainer.checkpoint.copier import Copier
from trainer.checkpoint.replicas import Replicas
from trainer.checkpoint.rhythm import Rhythm
from trainer.checkpoint.room import Unavailable, choose
from trainer.checkpoint.saver import State
from trainer.distributed import Gang, gather

ALIGN = 64  # bytes
SHARE = 0.8  # of the free memory at most for copies
TELL_AGAIN = 5.0  # s after which a copier that has not delivered is asked again
FAILS_FOR = 20.0  # s after which buddies that cannot be reached are given up for a while
TAKES_AT_MOST = 600.0  # s for a copy to arrive
GIVEN_UP = 1e6  # in the all-reduce: more than all ranks that are only behind
ASKED_BETWEEN_STEPS = 1.0  # s that training waits for an answer of the copier


warnings.filterwarnings("ignore", message="The given buffer is not writable")  # it is only read from


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
    """What of it is here now."""
    local: torch.Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()
    return local


def pieces(state: State) -> tuple[list[tuple[Piece, torch.Tensor]], int]:
    """This rank's part of the state, in order, with the tensors; and the bytes that they need together. What of a
    parameter is here is asked of it anew each time (local_of): FSDP2 puts another tensor there before its first
    forward where a shard is smaller than the others."""
    found, at = [], 0
    for part, tensors in state.items():
        for name, tensor in tensors.items():
            local = local_of(tensor)
            if not local.numel():
                continue
            chunk = _create_chunk_list(tensor)[0]
            piece = Piece(f"{part}.{name}", str(local.dtype).removeprefix("torch."), tuple(tensor.shape),
                          tuple(chunk.offsets), tuple(chunk.sizes), at)
            found.append((piece, tensor))
            at += piece.room
    return found, at


def view(data: memoryview, piece: Piece) -> torch.Tensor:
    """The piece inside a slot's data, without a copy."""
    raw = torch.frombuffer(data, dtype=torch.uint8, count=piece.bytes, offset=piece.at)
    return raw.view(getattr(torch, piece.dtype)).view(piece.sizes)


class Memory:
    """This rank's copies."""

    def __init__(self, folder: Path, gang: Gang, layout: str, model: str, run: str, copies: int | None,
                 rhythm: Rhythm, durable: bool = False, replicas: Replicas = ALONE) -> None:
        """`layout`: a digest of all that decides who holds what; `model`: of what the tensors mean; `copies`: None if
        fewer will do; `durable`: checkpoints are written from here, too. Replicas on other nodes count as copies.
        There are no more than other pods: admission refuses a job that asks for them, but a gang may have become
        smaller. Raises Unavailable on every rank if one cannot."""
        self.gang = gang
        self.folder = folder
        self.layout = layout
        self.model = model
        self.run = run
        self.rhythm = rhythm
        self.asked = copies is not None
        self.fewer = ""  # why other pods hold fewer copies than they should; empty: they do not
        self.given_up = ""  # what else there is not, for want of memory
        self.pins = durable  # is there a slot to pin?
        self.pending: dict[str, Any] | None = None  # a checkpoint that copiers are writing since before this run
        self.copier = Copier(folder)
        self.problem = ""
        self.memory_step: int | None = None  # newest that is whole everywhere
        self._slots: list[Slot] = []
        self._pieces: list[tuple[Piece, torch.Tensor]] = []
        self._ack = 0
        self._number = 0  # of the content that was sent last
        self._sent_slot = 0
        self._sent_beside: int | None = None  # step that the buddies must keep meanwhile
        self._sent_at = self._told_at = 0.0
        self._telling = False
        self._unsummed = 0, 0  # slot and number of the newest that is to be summed
        self._summing = False  # the copier is yet to be told of it
        self._forgotten = False
        self._errands: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._runner = threading.Thread(target=self._run_errands, name="copier", daemon=True)
        self._teller = Copier(folder)
        self.rotation = Rotation([])
        try:
            self.address = self.copier.meet(run)
            problem = ""
        except OSError as error:
            self.address, problem = "", f"no copier in this pod ({error})"
        # Who is told nothing of the node is on one of its own.
        answers = gather(gang, (self.address, os.environ.get("TRAINYARD_NODE") or self.address, problem))
        self.addresses = [address for address, _, _ in answers]
        self._hosts = [host for _, host, _ in answers]
        wrong = [f"rank {rank}: {text}" for rank, (_, _, text) in enumerate(answers) if text]
        if wrong:
            raise Unavailable(wrong[0])
        self._pods = [self.addresses.index(address) for address in self.addresses]  # the first rank of each rank's
        others = len(set(self._pods)) - 1
        wanted = min(1 if copies is None else copies, others)
        if copies is not None and wanted < copies:
            self.fewer = f"{wanted} copies in memory instead of {copies}: there are no more other pods in this gang"
        self._replicas = replicas
        self._replicated = min(len(replicas.hosts(rank, self._hosts)) for rank in range(gang.world_size))
        self._copies = max(0, wanted - self._replicated)
        self._buddies = Buddies(self._pods, self._hosts, self._copies, replicas=replicas)
        if wanted == 0:
            rhythm.buddy = rhythm.buddy or rhythm.own

    def share(self) -> tuple[int, int]:
        """This rank's place among those of its pod, and how many they are."""
        pod = self._pods[self.gang.rank]
        return self._pods[:self.gang.rank].count(pod), self._pods.count(pod)

    def buddies(self) -> list[str]:
        """Addresses of the copiers that hold this rank's copies."""
        return [self.addresses[other] for other in self._buddies.of(self.gang.rank)]

    @property
    def outlive_node(self) -> bool:
        """Whether the copies, where there are any, outlive the loss of a node."""
        return self._replicated > 0 or self._buddies.outlive_node

    @property
    def guarded(self) -> bool:
        """Whether this rank's state is, or will be, in other pods, too."""
        return self._replicated > 0 or bool(self.buddies())

    @property
    def protection(self) -> str:
        """What may be lost with a step left that is whole in memory: a Node, a Pod, or neither, at the moment."""
        if self.memory_step is None:
            return "Unprotected"
        return "Node" if self.outlive_node else "Pod"

    # Slots ------------------------------------------------------------------------------------------------------------

    def attach(self, live: State, resumed: tuple[int, str] | None) -> None:
        """Make or find this rank's slots and tell the copier whom to send them to. `live`: the state as it is trained,
        with the parameters themselves, of which copies are taken from now on. `resumed`: step and run of what was
        loaded from memory, which must stay until a copy of it is whole again everywhere. Raises Unavailable on every
        rank if memory does not suffice at one."""
        self._pieces, size = pieces(live)
        header = {"world": self.gang.world_size, "rank": self.gang.rank, "model": self.model,
                  "replicas": [self._replicas.count, self._replicas.stride],
                  "tensors": [piece.dump() for piece, _ in self._pieces]}
        count = self._fit(size) + self.pins
        problem = ""
        pending = self._attach(self.copier)
        try:
            self._slots = [self._slot(number, header, size) for number in range(count)]
        except OSError as error:
            problem = f"{count} copies of {size >> 20} MiB a rank do not fit {self.folder}: {error.strerror or error}"
        answers = gather(self.gang, (problem, pending and pending["save"]))
        wrong = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(answers) if text]
        if wrong:
            self._drop()
            raise Unavailable(wrong[0])
        seals = [slot.seal() for slot in self._slots]
        kept = [seal["step"] if seal and (seal["step"], seal["run"]) == resumed else None for seal in seals]
        self.rotation = Rotation(kept, agreed=resumed[0] if resumed else None,  # what else there is is of another past
                                 spare=int(self.pins))
        self._take_over(pending, len({save for _, save in answers}) == 1)
        self._open_acknowledgement()
        self._runner.start()

    def _attach(self, copier: Copier) -> dict[str, Any] | None:
        """Answers with the checkpoint that the copier writes of this rank, or wrote last."""
        try:
            answer = copier.ask("attach", layout=self.layout, rank=self.gang.rank, buddies=self.buddies(),
                                generation=self.run)
            return answer.get("pending")
        except OSError as error:  # it is told again together with the first copy
            self.problem = f"copies are not sent to other pods: {error}"
            return None

    def _take_over(self, pending: dict[str, Any] | None, everywhere: bool) -> None:
        """A checkpoint whose ranks have died goes on being written if all of its copiers are still there."""
        if pending is None:
            return
        if everywhere and self.pins:
            self.pending, self.rotation.pinned = pending, pending["slot"]
        else:
            self.copier.try_to("drop", ASKED_BETWEEN_STEPS, save=pending["save"])

    def _fit(self, size: int) -> int:
        """Slots a rank, so that all of a pod's copies, own and held, fit its free memory; buddies on the same node, or
        none, if that is what it takes. Raises Unavailable on every rank, and what was asked for is never made less."""
        free_now = free_bytes(self.folder)
        free_with_others = free_now + taken_bytes(self.folder, self.layout)
        answers = gather(self.gang, (size, free_now + taken_bytes(self.folder), free_with_others))
        largest = max(size for size, _, _ in answers)
        free = int(min(free for _, free, _ in answers) * SHARE)
        beside_others = int(min(free for _, _, free in answers) * SHARE)
        near = Buddies(self._pods, self._hosts, self._copies, apart=False, replicas=self._replicas)
        alone = None if self.asked else Buddies(self._pods, self._hosts, 0)
        room = choose(self._buddies, near, alone, largest, free, self.rhythm.turns, self.pins)
        self._buddies, self.pins = room.buddies, room.pins
        if room.alone:
            self.fewer = room.given_up
        else:
            self.given_up = room.given_up
        if room.need > beside_others:  # a former layout's copies, which have been loaded, are in the way
            self.copier.try_to("keep", layout=self.layout)
        if room.turns == 2:
            self.rhythm.share()
        return room.turns

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
        sends = buddy and self.rotation.may_send
        if sends:
            self.rotation.send(step)
            self._number = self._number_in(slot)
            self._sent_slot, self._sent_beside = slot, self.rotation.agreed
            self._sent_at = time.monotonic()
        if sends and self.guarded:
            self._tell()  # if only by replicas, the copier still notes the sum
        else:
            self._have_summed(slot)

    def _write(self, step: int, training: dict[str, Any], run: str) -> int | None:
        slot = self.rotation.place()
        if slot is not None:
            self._fill(slot, step, training, run)
        return slot

    def _fill(self, slot: int, step: int, training: dict[str, Any], run: str) -> None:
        target = self._slots[slot]
        self.rotation.begin(slot)
        target.break_seal()
        for piece, tensor in self._pieces:
            view(target.data, piece).copy_(local_of(tensor))
        target.set_seal({"step": step, "run": run, "number": time.time_ns(), "training": training})

    def pin(self, step: int, training: dict[str, Any], anew: bool) -> tuple[int, int]:
        """The slot that holds this step, and the number of its content: it stays until unpin(). The state is only
        copied if it was not, after this step; or `anew`."""
        slot, empty = self.rotation.pin(step, anew)
        if empty:
            self._fill(slot, step, training, self.run)
        return slot, self._number_in(slot)

    def _number_in(self, slot: int) -> int:
        number = self._slots[slot].number()
        assert number is not None
        return number

    def unpin(self) -> None:
        """It may be overwritten; from any thread."""
        self.rotation.pinned = None

    def _tell(self) -> None:
        """Have it sent. Not in this thread: a copier that hangs must not keep anybody from training."""
        self._told_at = time.monotonic()
        slot, number, keep = self._sent_slot, self._number, self._sent_beside
        if not self._telling:
            self._telling = True
            self._errands.put(lambda: self._order(slot, number, keep))

    def _order(self, slot: int, number: int, keep: int | None) -> None:
        """A copier that was started anew must first be told to whom."""
        for attempt in range(2):
            try:
                if attempt:
                    self._attach(self._teller)
                answer = self._teller.ask("send", layout=self.layout, rank=self.gang.rank, slot=slot, number=number,
                                          keep=keep)
                self.problem = answer["problem"]
                break
            except OSError as error:
                self.problem = f"copies are not sent to other pods: {error}"
        self._telling = False

    def _have_summed(self, slot: int) -> None:
        """By the copier, which takes the sum of what it sends unasked. If it comes late, the newest is enough: older
        ones are soon overwritten."""
        self._unsummed = slot, self._number_in(slot)
        if not self._summing:
            self._summing = True
            self._errands.put(self._order_sum)

    def _order_sum(self) -> None:
        self._summing = False
        slot, number = self._unsummed
        # One that is started anew after this sums what it finds.
        self._teller.try_to("sum", layout=self.layout, rank=self.gang.rank, slot=slot, number=number)

    def _run_errands(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand()

    def close(self) -> None:
        """No more copies from this object; the slots stay. Raises TimeoutError if the copier does not answer."""
        if self._runner.is_alive():
            self._errands.put(None)
            self._runner.join(ASKED_BETWEEN_STEPS)
            if self._runner.is_alive():
                raise TimeoutError("the copier has not answered yet")
            os.close(self._ack)

    def behind(self) -> float:
        """For the all-reduce: 1 if something that was sent has not arrived yet, GIVEN_UP if it does not seem to."""
        if self.rotation.sent is None or not self.guarded:
            return 0.0
        (number,) = struct.unpack("<Q", os.pread(self._ack, 8, 0))
        if not self.rotation.behind(self.rotation.sent if number == self._number else None):
            return 0.0
        now = time.monotonic()
        if now - self._told_at > TELL_AGAIN:
            self._tell()
        waited = now - self._sent_at
        hopeless = waited > TAKES_AT_MOST or (waited > FAILS_FOR and bool(self.problem or self._telling))
        return GIVEN_UP if hopeless else 1.0

    def reduced(self, behind: float) -> None:
        """The all-reduce's answer: the sum of what all ranks said."""
        arriving, agreed = self.rotation.sent, self.rotation.agreed
        self.rotation.reduced(behind > 0, behind >= GIVEN_UP)
        if agreed is not None and self.rotation.agreed is None:
            self.memory_step = None
        if arriving is not None and self.rotation.agreed == arriving:
            if not self._forgotten:
                self._forgotten = True
                self._errands.put(lambda: self._teller.try_to("keep", layout=self.layout))
            if self.guarded:
                self.memory_step = arriving

    def decide(self, seconds_per_step: float) -> None:
        """Every rank at the same step: how often copies are taken from now on, from what they cost at the slowest."""
        if self.rhythm.decided:
            return
        cost = sum(self.rhythm.costs) / len(self.rhythm.costs) if self.rhythm.costs else 0.0
        summing, sending = self.copier_seconds()
        worst = [max(column) for column in zip(*gather(self.gang, (cost + summing, sending)), strict=True)]
        steps = gather(self.gang, seconds_per_step)
        self.rhythm.decide(worst[0], min(steps), worst[1])

    def copier_seconds(self) -> tuple[float, float]:
        """CPU seconds that the copier's newest sum of a copy took, and its newest sending."""
        answer = self.copier.try_to("state", ASKED_BETWEEN_STEPS, layout=self.layout, rank=self.gang.rank)
        return float(answer.get("summing", 0.0)), float(answer.get("seconds", 0.0))


def free_bytes(folder: Path) -> int:
    """What may still be written into a folder in memory: what its mount, the container and the machine leave."""
    return min(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize, allocator.unused_bytes())


def taken_bytes(folder: Path, layout: str = "*") -> int:
    """What copies (of a layout) take already; they are written over or go."""
    taken = 0
    for path in (path for kind in ("own", "held") for path in (folder / kind).glob(f"{layout}/*")):
        with contextlib.suppress(FileNotFoundError):  # one that is being made has another name by now
            taken += path.stat().st_blocks * 512
    return taken


def layout_digest(world_size: int, layout: Any, identity: dict[str, Any]) -> str:
    """Short name for all that decides which rank holds what."""
    text = json.dumps([world_size, repr(layout), identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
