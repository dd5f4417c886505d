"""Finding the files of a source and telling their format."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard.api.train import DataSource

from trainer.errors import ConfigError

ENDINGS = {
    ".txt": "text", ".text": "text", ".md": "text", ".txt.gz": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonl.gz": "jsonl", ".json": "jsonl",
    ".parquet": "parquet",
    ".bin": "megatron", ".idx": "megatron",
}
INDEX = "index.json"  # of a folder that trainer.prepare has written
SMALL = 1_000_000_000  # bytes of text that are tokenised at the start of a job


@dataclass(frozen=True)
class Files:
    """A source's files, in the order in which their documents are numbered. Tokenised ones have format megatron
    (files without ending) or prepared (folders)."""

    where: str  # such as train.data.sources[0]
    format: str
    field: str
    weight: float
    paths: tuple[Path, ...]

    @property
    def raw(self) -> bool:
        """Has it yet to be tokenised?"""
        return self.format in ("text", "jsonl", "parquet")

    @property
    def bytes(self) -> int:
        """Size of the raw files."""
        return sum(path.stat().st_size for path in self.paths) if self.raw else 0


def find_all(sources: Sequence[DataSource], where: str) -> list[Files]:
    """The files of every source. Raises ConfigError if one is missing, empty or unreadable."""
    return [find(source, f"{where}[{number}]") for number, source in enumerate(sources)]


def find(source: DataSource, where: str) -> Files:
    """The files of one source. Raises ConfigError."""
    paths = _expand(source, where)
    kinds = {path: _format(path, source, where) for path in paths}
    known = {path: kind for path, kind in kinds.items() if kind}
    if not known:
        raise ConfigError(f"{where}.path: {source.path} holds no file with a known ending "
                          f"({', '.join(sorted(ENDINGS))}); name the files or set {where}.format")
    found = sorted(set(known.values()))
    if len(found) > 1:
        raise ConfigError(f"{where}.path: {source.path} mixes the formats {' and '.join(found)}; give each a source of "
                          f"its own")
    kept = _megatron_pairs(list(known), where) if found[0] == "megatron" else list(known)
    files = Files(where, found[0], source.field, source.weight, tuple(kept))
    _check_readable(files)
    return files


def _expand(source: DataSource, where: str) -> list[Path]:
    path = Path(source.path)
    try:
        if path.is_dir():
            if source.format in ("auto", "prepared") and (path / INDEX).is_file():
                return [path]
            if source.format == "prepared":
                raise ConfigError(f"{where}.path: {path} should be a folder that `python -m trainer.prepare` finished, "
                                  f"but it has no {INDEX}")
            inside = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
            if not inside:
                raise ConfigError(f"{where}.path: the folder {path} is empty")
            return inside
        if path.exists():
            return [path]
        if source.format == "megatron" and path.with_name(path.name + ".idx").exists():
            return [path.with_name(path.name + ".idx")]
        matched = [Path(name) for name in sorted(glob.glob(source.path, recursive=True)) if Path(name).is_file()]
    except OSError as error:
        raise ConfigError(f"{where}.path: cannot read {source.path}: {error.strerror}") from None
    if not matched:
        what = "matches no file" if glob.has_magic(source.path) else "does not exist"
        raise ConfigError(f"{where}.path: {source.path} {what}; it should be a file, a folder or a glob pattern as the "
                          f"pods see it")
    return matched


def _format(path: Path, source: DataSource, where: str) -> str | None:
    if path.is_dir():
        return "prepared"
    if source.format != "auto":
        if source.format == "prepared":
            raise ConfigError(f"{where}.path: a prepared source is a folder, {path} is a file")
        return source.format
    name = path.name.lower()
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)


def _megatron_pairs(paths: list[Path], where: str) -> list[Path]:
    """The data sets, named without their endings; each needs both files."""
    stems = sorted({path.with_suffix("") for path in paths})
    for stem in stems:
        for ending in (".bin", ".idx"):
            if not Path(f"{stem}{ending}").is_file():
                raise ConfigError(f"{where}.path: a Megatron data set is a .bin and an .idx file, {stem}{ending} does "
                                  f"not exist")
    return stems


def _check_readable(files: Files) -> None:
    if files.format == "prepared":
        checked = [folder / INDEX for folder in files.paths]
    elif files.format == "megatron":
        checked = [Path(f"{stem}{ending}") for stem in files.paths for ending in (".bin", ".idx")]
    else:
        checked = list(files.paths)
    total = 0
    for path in checked:
        try:
            with path.open("rb") as file:
                total += os.fstat(file.fileno()).st_size
        except OSError as error:
            raise ConfigError(f"{files.where}.path: cannot read {path}: {error.strerror}") from None
    if total == 0:
        raise ConfigError(f"{files.where}.path: {checked[0] if len(checked) == 1 else 'every file'} is empty")
