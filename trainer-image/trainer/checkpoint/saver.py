"""Saving while training goes on: copiers write the state from pinned slots (trainer.checkpoint.pinned); where there are
none, it is copied, then a thread writes, hashes and commits it.

All ranks start a save at the same step. The thread has a process group of its own; every stage of it ends in a
collective, so a failure of one rank is everybody's failure and, without copiers, a gang that lost a rank can never
commit."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter
from torch.distributed.checkpoint import save as save_distributed
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from trainer.checkpoint import folder as folders
from trainer.checkpoint.folder import Marker
from trainer.distributed import Gang
from trainer.errors import describe, one_line
from trainer.files import FileSum, sum_file, sync_folder, write_durably

if TYPE_CHECKING:
    from trainer.checkpoint.pinned import Pinned

State = dict[str, dict[str, torch.Tensor]]


class NotWritten(OSError):
    """No copier will write the marker; `copiers` says whether that is their fault, not the disk's."""

    def __init__(self, reason: str, copiers: bool) -> None:
        super().__init__(reason)
        self.copiers = copiers


class _Writer(FileSystemWriter):  # type: ignore[misc]  # torch is not typed here
    """torch's writer without its rename of `.metadata`, which some mounts of object stores cannot do, and with the
    operating system's reason when it fails: its archive format reports a full disk as `unexpected pos`."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise _root_cause(error, Path(self.path)) from error

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.storage_data = {one.index: one.storage_data for part in results for one in part}
        metadata.storage_meta = self.storage_meta()
        write_durably(Path(self.path) / ".metadata", pickle.dumps(metadata))


class Saver:
    """Saves this job's checkpoints under `root`.

    `on_commit(step)` and `on_failure(step, reason)` are called by rank 0's thread."""

    def __init__(self, root: Path, gang: Gang, generation: str, keep: int, model: dict[str, Any],
                 on_commit: Callable[[int], None], on_failure: Callable[[int, str], None]) -> None:
        self._root = root
        self._gang = gang
        self._generation = generation
        self._keep = keep
        self._model = model
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._staged: State = {}
        self.pinned: Pinned | None = None  # who writes from memory, if anybody
        self._copiers_failed = False  # then the next is written here
        self._marked: Path | None = None  # the newest whose marker is written; nothing of it may be undone
        self.protected: Path | None = None  # what training was resumed from
        self.damaged: set[Path] = set()  # found when resuming
        self.saved_step: int | None = None  # the newest that was committed or resumed from
        self.failures = 0  # in a row
        self.failed_at = 0.0  # monotonic seconds

    @property
    def busy(self) -> bool:
        """Is a save still being written?"""
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, state: State, training: dict[str, Any]) -> None:
        """Copy the state, if it is not in memory yet, and have it written in the background. Every rank calls this at
        the same step, when none is busy."""
        self.wait()
        path = self._root / folders.folder_name(step, self._generation)
        work: Callable[[], None]
        if self.pinned is not None and not self._copiers_failed:
            marker = Marker(step, self._generation, self._gang.world_size, self._model, dict(training), {})
            work = partial(self.pinned.write, path, marker, state, self.pinned.pin(step, training))
        else:
            self._stage(state)
            work = partial(self._write, path, step, dict(training))
        self._start(path, step, work)

    def take_over(self, pinned: Pinned, pending: dict[str, Any] | None, step: int) -> int:
        """From now on copiers write. `pending`: what they write since before these ranks; unless it is old, or of a
        step that these have not come to, its end is waited for as that of any save. Returns the newest step that was
        saved or is being."""
        self.pinned = pinned
        saved = self.saved_step or 0
        if pending is None:
            return saved
        if not saved < pending["step"] <= step:
            pinned.let_go(pending)
            return saved
        self._start(Path(pending["folder"]), pending["step"], partial(pinned.go_on, pending))
        return int(pending["step"])

    def _start(self, path: Path, step: int, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(path, step, work), name=f"save-{step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def retry_due(self) -> bool:
        """After failures: has it been long enough for another try? 5 s, 10 s, 20 s, ... at most 5 minutes."""
        if not self.failures:
            return False
        return time.monotonic() - self.failed_at >= min(5.0 * 2.0 ** (self.failures - 1), 300.0)

    def _stage(self, state: State) -> None:
        """Copy into memory of the host that is kept between saves."""
        for part, tensors in state.items():
            kept = self._staged.setdefault(part, {})
            for name, tensor in tensors.items():
                local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()
                if name not in kept:
                    buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.device.type == "cuda")
                    kept[name] = DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) \
                        else buffer
                target = kept[name]._local_tensor if isinstance(kept[name], DTensor) else kept[name]
                target.copy_(local.detach())

    def _run(self, path: Path, step: int, work: Callable[[], None]) -> None:
        by_copiers = self.pinned is not None and not self._copiers_failed
        try:
            work()
        except (Exception, CheckpointException) as error:  # torch made the latter no Exception
            self.failures += 1
            self.failed_at = time.monotonic()
            self._copiers_failed = isinstance(error, NotWritten) and error.copiers
            if self._gang.first:
                # Without a word from them copiers go on writing.
                if path != self._marked and (not by_copiers or isinstance(error, NotWritten)):
                    folders.remove(path)
                self._on_failure(step, reason(error))
            return
        self.failures = 0
        self.saved_step = step
        self._copiers_failed = False
        if self._gang.first:
            self._marked = path
            self._on_commit(step)
            self._retire()

    def _write(self, path: Path, step: int, training: dict[str, Any]) -> None:
        """Every rank writes its files, then all check that all did, then rank 0 writes the marker."""
        self._all_or_none(lambda: self._begin(path) if self._gang.first else None)
        save_distributed(self._staged, storage_writer=_Writer(path), process_group=self._gang.saving)
        sums: dict[str, FileSum] = {}
        for part in self._all_or_none(lambda: self._hand_in(path)):
            sums.update(part)
        marker = Marker(step, self._generation, self._gang.world_size, self._model, training, sums)
        self._all_or_none(lambda: self._commit(path, marker) if self._gang.first else None)
        if self._gang.first:
            sync_folder(self._root)

    def _begin(self, path: Path) -> None:
        """An empty folder; what an earlier try at the same step left is removed."""
        if path == self._marked:
            raise OSError(f"{path} is committed, but this gang is broken")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not folders.remove(path):
            raise OSError(f"cannot remove what an earlier try left in {path}")
        path.mkdir()

    def _commit(self, path: Path, marker: Marker) -> None:
        """From here on another generation may go on from this checkpoint, whatever becomes of this gang."""
        folders.write_marker(path, marker)
        self._marked = path

    def _hand_in(self, path: Path) -> dict[str, FileSum]:
        mine = [name for name in os.listdir(path) if name.startswith(f"__{self._gang.rank}_")]
        if self._gang.first:
            mine.append(".metadata")
        sync_folder(path)
        return {name: sum_file(path / name) for name in mine}

    def _all_or_none(self, work: Callable[[], Any]) -> list[Any]:
        """Do `work` on each rank and return every rank's result; raise on all if any failed."""
        result: Any = None
        problem: str | None = None
        try:
            result = work()
        except Exception as error:
            problem = describe(error)
        everybody: list[Any] = [None] * self._gang.world_size
        dist.all_gather_object(everybody, (result, problem), group=self._gang.saving)
        for rank, (_, text) in enumerate(everybody):
            if text:
                raise OSError(f"rank {rank}: {text}")
        return [result for result, _ in everybody]

    def _retire(self) -> None:
        try:
            protected = {path for path in (self.protected, self._marked) if path is not None}
            folders.retire(self._root, folders.generation_of(self._generation), self._keep, protected, self.damaged)
        except OSError as error:
            print(f"warning: cannot delete old checkpoints in {self._root}: {error.strerror}", flush=True)


def _root_cause(error: BaseException, path: Path) -> Exception:
    """The OSError behind an error of torch's archive writer, if there is one; else a look at the disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return OSError(seen.errno, os.strerror(seen.errno), str(path))
        seen = seen.__cause__ or seen.__context__
    free = shutil.disk_usage(path).free
    return OSError(f"{path}: {one_line(error, 200)} ({free >> 20} MB free)")


def reason(error: BaseException) -> str:
    """One line; torch's CheckpointException hides each rank's own error in `failures`."""
    failures = getattr(error, "failures", None)
    if failures:
        rank, (cause, _) = min(failures.items())
        return one_line(f"rank {rank}: {describe(cause)}", 400)
    return one_line(error, 400)
