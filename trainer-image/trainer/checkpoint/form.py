"""What a rank's files of a durable checkpoint are made of, worked out once, so that a copier, which has no torch, can
write them from a slot: torch.distributed.checkpoint plans a save whose tensors' data are left out."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as save_distributed
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainer.checkpoint.memory import Piece
from trainer.checkpoint.saver import State

DESCRIPTOR = b"PK\x07\x08"  # of a zip archive: follows a file's data, its CRC-32 next
ENTRY = b"PK\x01\x02"  # a file in the archive's directory
ENTRY_SUM, ENTRY_NAME = 16, 46  # places in it


class _Sink(io.RawIOBase):
    """What torch.save writes, and the place of the data that it leaves out."""

    def __init__(self) -> None:
        self.before, self.after = bytearray(), bytearray()
        self.hole = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return len(self.before) + self.hole + len(self.after)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Forward from here, once, is all that it is asked for."""
        if whence != os.SEEK_CUR or self.hole:
            raise OSError("expected the data of one tensor to be left out")
        self.hole = offset
        return self.tell()

    def write(self, data: Any) -> int:
        (self.after if self.hole else self.before).extend(data)
        return len(data)


def archive(dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[bytes, int, bytes, list[int]]:
    """torch.save's file of such a tensor: what comes before its data, how many bytes those are, what comes after, and
    where in that the data's CRC-32 belongs."""
    sink = _Sink()
    with torch.serialization.skip_data():
        torch.save(torch.empty(sizes, dtype=dtype), sink)
    if not sink.hole:
        return bytes(sink.before), 0, b"", []
    after = bytes(sink.after)
    if not after.startswith(DESCRIPTOR):
        raise RuntimeError("torch.save has another format than expected: no descriptor follows the data")
    entry = after.index(ENTRY)
    while not after[entry + ENTRY_NAME:].split(b"PK", 1)[0].split(b"/data/0", 1)[1:]:
        entry = after.index(ENTRY, entry + 1)
    return bytes(sink.before), sink.hole, after, [len(DESCRIPTOR), entry + ENTRY_SUM]


class _Planner(FileSystemWriter):  # type: ignore[misc]  # torch is not typed here
    """Plans files instead of writing them."""

    def __init__(self, pieces: list[Piece]) -> None:
        super().__init__(os.curdir)
        self._places = {(piece.key, piece.offsets): piece.at for piece in pieces}
        self.files: dict[str, list[Any]] = {}

    def prepare_local_plan(self, plan: Any) -> Any:
        """Nothing is written."""
        return plan

    def write_data(self, plan: Any, planner: Any) -> Any:
        """This rank's one file."""
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        parts: list[Any] = []
        results, at = [], 0
        known: dict[Any, Any] = {}
        for item in plan.items:
            kind = item.tensor_data.properties.dtype, tuple(item.tensor_data.chunk.sizes)
            if kind not in known:
                known[kind] = archive(*kind)
            before, count, after, sums = known[kind]
            parts.append(_text(before, []))
            if count:
                parts += [[self._places[item.index.fqn, tuple(item.index.offset)], count], _text(after, sums)]
            length = len(before) + count + len(after)
            results.append(WriteResult(item.index, length, _StorageInfo(name, at, length)))
            at += length
        if parts:
            self.files[name] = parts
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The index, on rank 0."""
        metadata.storage_data = {one.index: one.storage_data for part in results for one in part}
        self.files[".metadata"] = [_text(pickle.dumps(metadata), [])]


def _text(content: bytes, sums: list[int]) -> dict[str, Any]:
    return {"text": base64.b64encode(content).decode(), "sums": sums}


def write(path: Path, name: str, state: State, pieces: list[Piece], group: Any) -> None:
    """Make this rank's form, together with all others; `name` tells forms that were made together."""
    planner = _Planner(pieces)
    save_distributed(state, storage_writer=planner, process_group=group)
    made = path.with_suffix(".new")
    made.write_text(json.dumps({"files": planner.files}))
    made.replace(path)
    path.with_suffix(".name").write_text(name)


def name_of(path: Path) -> str:
    """Name of the form that is there; empty if there is none."""
    try:
        return path.with_suffix(".name").read_text()
    except FileNotFoundError:
        return ""
