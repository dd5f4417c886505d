"""Going on from copies in memory: which step every rank's state is still there of, and loading it in any layout."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from supervisor.copies.slot import Damaged, Slot
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, StorageReader
from torch.distributed.checkpoint import load as load_distributed
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from trainer.checkpoint.copier import FETCHES, Copier
from trainer.checkpoint.memory import Memory, Piece, view
from trainer.checkpoint.replicas import Replicas
from trainer.checkpoint.saver import State, reason
from trainer.distributed import gather


@dataclass(frozen=True)
class Source:
    """One rank's copy, somewhere."""

    rank: int
    address: str  # of the copier that has it
    kind: str
    name: str
    number: int


@dataclass(frozen=True)
class Recall:
    """A step whose whole state is in memory: a copy of every rank of the run that took it, or of a replica of it."""

    step: int
    run: str
    layout: str
    sources: tuple[tuple[Source, ...], ...]  # by rank of that run; its own copies first, then its replicas'


def find(memory: Memory) -> list[Recall]:
    """All that could be loaded, newest first; the same at every rank."""
    part, parts = memory.share()  # the ranks of a pod would all see the same: each tells of its share
    mine = memory.copier.try_to("inventory", part=part, parts=parts).get("copies", [])
    mine = [entry for entry in mine if entry["model"] == memory.model]
    return complete([(address, entry) for address, entries in gather(memory.gang, (memory.address, mine))
                     for entry in entries])


def complete(entries: Sequence[tuple[str, dict[str, Any]]]) -> list[Recall]:
    """Sets with a copy of every rank's state, newest step first, of the same step the newest run first."""
    sets: dict[tuple[int, str, str], dict[int, list[Source]]] = defaultdict(lambda: defaultdict(list))
    sizes: dict[tuple[int, str, str], tuple[int, Replicas]] = {}
    for address, entry in entries:
        key = entry["step"], entry["run"], entry["layout"]
        replicas = Replicas(*entry.get("replicas", ()))
        sizes[key] = entry["world"], replicas
        sets[key][replicas.first(entry["rank"])].append(
            Source(entry["rank"], address, entry["kind"], entry["name"], entry["number"]))
    found = []
    for (step, run, layout), states in sets.items():
        world, replicas = sizes[step, run, layout]
        if all(replicas.first(rank) in states for rank in range(world)):
            ordered = tuple(_ordered(states[replicas.first(rank)], rank) for rank in range(world))
            found.append(Recall(step, run, layout, ordered))
    return sorted(found, key=lambda one: (one.step, [int(part) for part in one.run.split(".")]), reverse=True)


def _ordered(sources: Sequence[Source], rank: int) -> tuple[Source, ...]:
    return tuple(sorted(sources, key=lambda source: (source.rank != rank, source.kind != "own", source.address)))


def load(memory: Memory, recall: Recall, state: State) -> dict[str, Any] | None:
    """Load it in place and return the counters that it carries; None, at every rank, if a copy is gone or damaged by
    now. The state is then in pieces: load another."""
    problem, training = "", {}
    try:
        if recall.layout == memory.layout:
            seal = _load_same(memory, recall.sources[memory.gang.rank], state)
        else:
            seal = _load_other(memory, recall, state)
        training = seal["training"]
    except CheckpointException as error:  # no Exception, and it hides what happened
        problem = reason(error)
    except Exception as error:  # whatever is wrong with a copy, there may be an older one, or a checkpoint
        problem = str(error) or type(error).__name__
    problems = [text for text in gather(memory.gang, problem) if text]
    if problems and memory.gang.first:
        print(f"warning: copies of step {recall.step} in memory are not used: {problems[0]}", flush=True)
    return None if problems else training


def _load_same(memory: Memory, sources: Sequence[Source], state: State) -> dict[str, Any]:
    """My own part, as it was. Raises OSError, Damaged."""
    from trainer.checkpoint.memory import local_of, pieces

    mine, _ = pieces(state)
    with _Shelf(memory) as shelf:
        header, seal, data = shelf.whole(sources)
        if header["tensors"] != [piece.dump() for piece, _ in mine]:
            raise Damaged(f"the copy of rank {memory.gang.rank} is of another layout")
        for piece, tensor in mine:
            local_of(tensor).copy_(view(data, piece))
    return seal


def _load_other(memory: Memory, recall: Recall, state: State) -> dict[str, Any]:
    """From all ranks of another layout what I need of them. Raises OSError, Damaged."""
    with _Shelf(memory) as shelf:
        reader = CopyReader(shelf, recall)
        load_distributed(state, storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
        return reader.seal


class _Shelf:
    """Copies that are read, fetched first if another pod has them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._copier: Copier = memory.copier
        self._open: list[Slot] = []
        self._fetched_files: list[str] = []
        self._prefix = f"fetched-{memory.share()[0]}-"
        for left in memory.folder.glob(f"{self._prefix}*"):  # by a rank that was killed in the middle
            left.unlink(missing_ok=True)

    def __enter__(self) -> _Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._open:
            with contextlib.suppress(BufferError):  # a tensor still looks at it; it goes with the tensor
                slot.close()
        for path in self._fetched_files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def whole(self, sources: Sequence[Source]) -> tuple[dict[str, Any], dict[str, Any], memoryview]:
        """Header, seal and data of the first source that is good."""
        wrong = []
        for source in sources:
            try:
                if source.address == self._memory.address:
                    return self._local(source)
                return self._fetched(source, None)
            except (OSError, Damaged) as error:
                wrong.append(str(error))
        raise OSError("; ".join(wrong))

    def ranges(self, source: Source, wanted: list[tuple[int, int]]) -> memoryview:
        """These byte ranges, one after the other."""
        if source.address == self._memory.address:
            _, _, data = self._local(source)
            return memoryview(b"".join(data[at:at + size] for at, size in wanted))
        return self._fetched(source, wanted)[2]

    def _local(self, source: Source) -> tuple[dict[str, Any], dict[str, Any], memoryview]:
        slot = Slot.open(str(self._memory.folder / source.kind / source.name))
        self._open.append(slot)
        seal = slot.seal()
        wrong = slot.check()
        if wrong and source.kind == "own" and source.rank == self._memory.gang.rank:
            self._drop(slot)
        if wrong or seal is None or seal["number"] != source.number:
            raise Damaged(wrong or f"{source.name} holds something else by now")
        return slot.header, seal, slot.data

    def _drop(self, slot: Slot) -> None:
        """My own copy is damaged: it must not be taken for one that needs not be written again."""
        damaged = Slot.open(slot.path, write=True)
        damaged.break_seal()
        damaged.close()

    def _fetched(self, source: Source, wanted: list[tuple[int, int]] | None
                 ) -> tuple[dict[str, Any], dict[str, Any], memoryview]:
        path = str(self._memory.folder / f"{self._prefix}{os.getpid()}-{len(self._fetched_files)}")
        self._fetched_files.append(path)
        answer = self._copier.ask("fetch", FETCHES, address=source.address, kind=source.kind, name=source.name,
                                  number=source.number, ranges=[[0, 1 << 62]] if wanted is None else wanted, to=path)
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return answer["header"], answer["seal"], data


class CopyReader(StorageReader):  # type: ignore[misc]  # torch is not typed here
    """Lets torch.distributed.checkpoint load from copies, so that any layout can be loaded into any other."""

    def __init__(self, shelf: _Shelf, recall: Recall) -> None:
        self._shelf = shelf
        self._recall = recall
        self._where: dict[tuple[str, tuple[int, ...]], tuple[Source, Piece]] = {}
        self.seal: dict[str, Any] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between loads."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """There is no path."""
        return True

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """From the headers of all ranks' copies."""
        tensors: dict[str, TensorStorageMetadata] = {}
        for sources in self._recall.sources:
            source, header = self._header(sources)
            for entry in header["tensors"]:
                piece = Piece.read(entry)
                properties = TensorProperties(dtype=getattr(torch, piece.dtype))
                known = tensors.setdefault(piece.key, TensorStorageMetadata(properties, torch.Size(piece.shape), []))
                place = piece.key, piece.offsets
                if place not in self._where:  # replicas have the same
                    self._where[place] = source, piece
                    known.chunks.append(ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)))
        return Metadata(state_dict_metadata=tensors)

    def _header(self, sources: Sequence[Source]) -> tuple[Source, dict[str, Any]]:
        wrong = []
        for source in sources:
            try:
                header, seal, _ = self._shelf.whole([source]) if source.address == self._shelf._memory.address \
                    else self._shelf._fetched(source, [(0, 1)])
                self.seal = seal
                return source, header
            except (OSError, Damaged) as error:
                wrong.append(str(error))
        raise OSError("; ".join(wrong))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """As they are."""
        return plans

    def read_data(self, plan: Any, planner: Any) -> Any:
        """Every piece that is needed, each source asked once."""
        wanted: dict[Source, list[tuple[Any, Piece]]] = defaultdict(list)
        for item in plan.items:
            index: MetadataIndex = item.storage_index
            source, piece = self._where[index.fqn, tuple(index.offset)]
            wanted[source].append((item, piece))
        for source, items in wanted.items():
            pieces = list(dict.fromkeys(piece for _, piece in items))
            data = self._shelf.ranges(source, [(piece.at, piece.room) for piece in pieces])
            at, tensors = 0, {}
            for piece in pieces:
                moved = Piece(piece.key, piece.dtype, piece.shape, piece.offsets, piece.sizes, at)
                tensors[piece] = view(data, moved)
                at += piece.room
            for item, piece in items:
                part = tensors[piece]
                for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    part = part.narrow(dimension, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done
