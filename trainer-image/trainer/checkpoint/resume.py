"""Going on from the newest checkpoint that verifies, on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint import load as load_distributed

from trainer.checkpoint import folder as folders
from trainer.checkpoint.folder import Found, Marker
from trainer.checkpoint.saver import State, reason
from trainer.distributed import Gang, gather, tell_all
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Choice:
    """The checkpoint to go on from, and the damaged ones that were passed over."""

    path: Path | None
    marker: Marker | None
    damaged: set[Path]


def newest_that_verifies(root: Path, gang: Gang, model: dict[str, Any], warn: Callable[[str], None],
                         before: int | None = None) -> Choice:
    """Find the newest checkpoint (of step `before` at most) whose files are all as their marker says; each rank reads
    its share of them.

    `warn` is told, on every rank, about each one that is passed over and which file is to blame. Raises ConfigError if
    the newest belongs to another model."""
    damaged: set[Path] = set()
    for found in tell_all(gang, lambda: _scan(root)):
        if found.marker is None:
            warn(f"skipped {found.path.name}: {found.problem}")
            continue
        if before is not None and found.marker.step > before:
            continue
        check_model(found, model)
        names = sorted(found.marker.files)[gang.rank::gang.world_size]
        share = {name: found.marker.files[name] for name in names}
        problems = [text for text in gather(gang, folders.verify(found.path, share)) if text]
        if not problems:
            return Choice(found.path, found.marker, damaged)
        warn(f"skipped {found.path.name}: {problems[0]}")
        damaged.add(found.path)
    return Choice(None, None, damaged)


def newest_marked(root: Path) -> Marker | None:
    """The marker of the newest checkpoint that has one; nothing of it is verified. Raises ConfigError."""
    return next((found.marker for found in _scan(root) if found.marker is not None), None)


def _scan(root: Path) -> list[Found]:
    try:
        return folders.scan(root)
    except OSError as error:
        raise ConfigError(f"cannot read the checkpoint folder {root}: {error.strerror}") from None


def check_model(found: Found, model: dict[str, Any]) -> None:
    """Raise ConfigError if the checkpoint is of a model with other shapes or another meaning of its weights."""
    assert found.marker is not None
    theirs = found.marker.model
    different = [f"{name} is {theirs.get(name)} there and {model.get(name)} in train.model"
                 for name in sorted({*theirs, *model}) if theirs.get(name) != model.get(name)]
    if different:
        raise ConfigError(f"checkpoint {found.path} is of another model: {'; '.join(different[:4])}. Use that model or "
                          f"another checkpoint folder")


def load(path: Path, state: State) -> None:
    """Read each rank's part of the state in place, whatever layout it was saved from. Raises RuntimeError.

    Each rank reads the index and plans for itself: they need not meet, and one that fails ends the run of all."""
    try:
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # no_dist is what we want
        load_distributed(state, storage_reader=FileSystemReader(path), no_dist=True)
    except CheckpointException as error:  # no Exception, and it hides each rank's own
        raise RuntimeError(f"cannot load {path}: {reason(error)}") from error


def default_generation(root: Path) -> str:
    """A generation for runs that nobody numbers: one more than the highest that used the folder."""
    try:
        return str(folders.newest_generation(root)[0] + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the checkpoint folder {root}: {error.strerror}") from None
