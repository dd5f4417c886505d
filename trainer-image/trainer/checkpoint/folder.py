"""What a checkpoint folder holds, which one is whole, and which may go.

    step-100.g3/             step 100, saved by generation 3
      __0_0.distcp ...       torch.distributed.checkpoint's files, one or more a rank
      .metadata              its index
      COMMITTED.json         written last, when every rank has handed in size and hash of its files: lists them all
    generation-3             empty: no older generation may delete anything

A folder without a marker that reads is partial and never loaded. Nothing is ever renamed, so a mount of an object
store will do."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from supervisor.copies import marker

from trainer.files import FileSum, sum_file, sync_folder, write_durably

MARKER = marker.NAME
VERSION = 2  # 1 has experts in order only; that is what is written where it is so
_NAME = re.compile(r"^step-(\d+)\.g(\d+(?:\.\d+)?)$")
_CLAIM = re.compile(r"^generation-(\d+(?:\.\d+)?)$")

Generation = tuple[int, ...]


@dataclass(frozen=True)
class Marker:
    """The content of COMMITTED.json."""

    step: int
    generation: str
    world_size: int
    model: dict[str, Any]  # identity of the model, trainer.model.shape.identity()
    training: dict[str, Any]  # counters that are not tensors
    files: dict[str, FileSum]


@dataclass(frozen=True)
class Found:
    """A checkpoint folder and what its marker says; `marker` is None for a partial one, `problem` says why.

    `left` tells what a crash left: `unmarked` or with a `torn` marker. Neither is a marker that cannot be read at this
    moment or that a newer trainer wrote: those may be whole."""

    path: Path
    step: int
    generation: Generation
    marker: Marker | None
    problem: str = ""
    left: Literal["", "unmarked", "torn"] = ""

    @property
    def age(self) -> tuple[int, Generation]:
        """Sorts oldest first."""
        return self.step, self.generation


def generation_of(text: str) -> Generation:
    """`3` or `3.1`, comparable. Raises ValueError."""
    return tuple(int(part) for part in text.split("."))


def folder_name(step: int, generation: str) -> str:
    """`step-100.g3`."""
    return f"step-{step}.g{generation}"


def scan(root: Path) -> list[Found]:
    """The checkpoint folders under `root`, newest first. A missing root has none; other OSErrors are raised."""
    try:
        entries = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        match = _NAME.match(entry)
        if match:
            path = root / entry
            found.append(Found(path, int(match[1]), generation_of(match[2]), *_look(path)))
    return sorted(found, key=lambda one: one.age, reverse=True)


def read_marker(folder: Path) -> tuple[Marker | None, str]:
    """The marker, or None and why there is none that can be trusted."""
    return _look(folder)[:2]


def _look(folder: Path) -> tuple[Marker | None, str, Literal["", "unmarked", "torn"]]:
    path = folder / MARKER
    try:
        content = json.loads(path.read_text())
        digest = content.pop("digest")
        if digest != marker.digest(content):
            return None, f"{path} is damaged (its digest does not match)", "torn"
        if content["version"] > VERSION:
            return None, f"{path} was written by a newer trainer (version {content['version']})", ""
        files = {name: FileSum(**entry) for name, entry in content["files"].items()}
        return Marker(content["step"], content["generation"], content["worldSize"], content["model"],
                      content["training"], files), "", ""
    except FileNotFoundError:
        return None, f"{path} is missing: saving was never finished", "unmarked"
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror})", ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{path} cannot be read ({type(error).__name__}: {error})", "torn"


def write_marker(folder: Path, committed: Marker) -> None:
    """Write the marker durably: file and folder are synced. Raises OSError."""
    write_durably(folder / MARKER, marker.dump(content_of(committed)))
    sync_folder(folder)


def content_of(committed: Marker) -> dict[str, Any]:
    """As the file has it, without its digest."""
    return {
        "version": VERSION if "experts" in committed.training else 1,
        "step": committed.step,
        "generation": committed.generation,
        "worldSize": committed.world_size,
        "model": committed.model,
        "training": committed.training,
        "files": {name: {"bytes": one.bytes, "sha256": one.sha256} for name, one in sorted(committed.files.items())},
    }


def verify(folder: Path, files: dict[str, FileSum]) -> str | None:
    """What is wrong with the first of these files that is not as its marker says; None if all are."""
    for name, expected in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected.bytes:
                return f"{path} should have {expected.bytes} bytes, found {size}"
            if sum_file(path).sha256 != expected.sha256:
                return f"{path} is damaged: its SHA-256 is not the one written when it was saved"
        except FileNotFoundError:
            return f"{path} is missing (is the checkpoint folder shared by all pods?)"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return None


def claim(root: Path, generation: str) -> None:
    """Say, before looking for a checkpoint to go on from, that older generations may delete nothing any more.

    Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    mine = generation_of(generation)
    claims = _claims(root)
    if max(claims, default=()) < mine:
        write_durably(root / f"generation-{generation}", b"")
        sync_folder(root)
        for older in claims.values():
            older.unlink(missing_ok=True)


def _claims(root: Path) -> dict[Generation, Path]:
    return {generation_of(match[1]): root / match[0] for entry in os.listdir(root) if (match := _CLAIM.match(entry))}


def newest_generation(root: Path) -> Generation:
    """The newest that has left a trace; (0,) if there is none. Raises OSError."""
    found = [one.generation for one in scan(root)]
    return max([(0,), *found, *(_claims(root) if root.exists() else ())])


def retire(root: Path, generation: Generation, keep: int, protected: Collection[Path],
           damaged: set[Path]) -> list[Path]:
    """Delete what is no longer wanted and return it: committed checkpoints beyond the `keep` newest, folders without a
    marker that older generations left, and damaged ones once `keep` whole ones exist.

    Never one of `protected`, such as the one training was resumed from. Does nothing if a newer generation has left a
    trace: then this one is stale and has no say."""
    if newest_generation(root) > generation:
        return []
    found = scan(root)
    whole = [one for one in found if one.marker is not None and one.path not in damaged]
    goners = [one.path for one in whole[keep:]]
    goners += [one.path for one in found if one.left == "unmarked" and one.generation < generation]
    if len(whole) >= keep:
        goners += [one.path for one in found
                   if one.path in damaged or (one.left == "torn" and one.generation < generation)]
    removed = []
    for path in goners:
        if path not in protected and remove(path):
            removed.append(path)
    return removed


def remove(folder: Path) -> bool:
    """Delete a checkpoint folder, its marker first, so that what a crash leaves is partial. Whether all is gone."""
    try:
        (folder / MARKER).unlink(missing_ok=True)
    except OSError:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
