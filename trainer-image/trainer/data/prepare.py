"""Tokenising, in parallel processes, into the format of tokens.py. A killed run goes on where it stopped.

The text is cut into pieces by size alone; each becomes one shard, recorded in a small file of its own when it is
done. So the result does not depend on how many processes worked or how often they were killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import tokenizer as tokenizers
from trainer.data.documents import Piece, pieces, read
from trainer.data.sources import INDEX, Files
from trainer.data.tokens import Index, Shard, dtype_for, open_prepared, read_index, write_index
from trainer.errors import ConfigError
from trainer.files import sum_file, write_durably

VERSION = 1  # of how text becomes tokens; a change makes earlier results stale
PLAN = "plan.json"
BATCH = 1 << 20  # characters that are tokenised in one call

Say = Callable[[str], None]


def content_key(files: Files, tokenizer: Path, sums: dict[str, str] | None = None) -> str:
    """Hash of everything that decides the tokens: the files' contents in order, the field, the tokenizer.

    `sums`: known hashes of files by path."""
    known = sums or {}
    parts: list[Any] = [VERSION, files.format, files.field, tokenizers.digest(tokenizer)]
    for path in files.paths:
        parts.append(known.get(str(path)) or sum_file(path).sha256)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def prepare(files: Files, tokenizer: Path, output: Path, processes: int, say: Say, key: str | None = None) -> Index:
    """Tokenise a source into the folder `output`, or finish what is there. `say` is told how it goes.

    Raises ConfigError if the folder holds something else, the input is not as expected, or the disk is full."""
    try:
        return _prepare(files, tokenizer, output, processes, say, key or content_key(files, tokenizer))
    except OSError as error:
        raise ConfigError(f"cannot prepare data in {output}: {error.strerror or error}") from None


def _prepare(files: Files, tokenizer: Path, output: Path, processes: int, say: Say, key: str) -> Index:
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, key)
    if (output / INDEX).exists():
        return read_index(output)
    vocab_size = tokenizers.open_tokenizer(tokenizer).vocab_size
    todo = list(enumerate(pieces(files)))
    done = {number: shard for number, _ in todo if (shard := _recorded(output, number)) is not None}
    missing = [(number, piece) for number, piece in todo if number not in done]
    if done:
        say(f"{len(done)} of {len(todo)} pieces are there already")
    for number, shard in _work(missing, tokenizer, output, dtype_for(vocab_size), processes):
        done[number] = shard
        say(f"{len(done)} of {len(todo)} pieces")
    index = Index(dtype_for(vocab_size), vocab_size, key, tuple(done[number] for number, _ in todo))
    if index.tokens == 0:
        raise ConfigError(f"{files.where}.path: no document with text in {files.paths[0]}"
                          f"{' and the other files' if len(files.paths) > 1 else ''}")
    write_index(output, index)
    return index


def _claim(output: Path, key: str) -> None:
    """Make sure that the folder is ours: empty, or of the same content."""
    plan = output / PLAN
    try:
        found = json.loads(plan.read_text()).get("content")
    except FileNotFoundError:
        if any(output.iterdir()):
            raise ConfigError(f"{output} should be empty or of an earlier run of prepare, found other files") from None
        found = None
    except (ValueError, AttributeError):
        found = None  # torn by a crash; nothing else can have been written yet
    if found is not None and found != key:
        raise ConfigError(f"{output} holds other data or that of another tokenizer; choose another folder or delete it")
    if found is None:
        write_durably(plan, json.dumps({"content": key}).encode())


def _work(missing: list[tuple[int, Piece]], tokenizer: Path, output: Path, dtype: str,
          processes: int) -> Iterator[tuple[int, Shard]]:
    if processes <= 1 or len(missing) <= 1:
        for number, piece in missing:
            yield number, _tokenise(number, piece, str(tokenizer), str(output), dtype)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs threads of torch's would not do
    with ProcessPoolExecutor(min(processes, len(missing)), mp_context=spawn) as pool:
        futures = {pool.submit(_tokenise, number, piece, str(tokenizer), str(output), dtype): number
                   for number, piece in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass
class _Count:
    tokens: int = 0
    documents: int = 0


_opened: dict[str, tokenizers.Tokenizer] = {}  # a process opens its tokenizer once


def _tokenise(number: int, piece: Piece, tokenizer: str, output: str, dtype: str) -> Shard:
    """Make one shard and its record."""
    if tokenizer not in _opened:
        _opened[tokenizer] = tokenizers.open_tokenizer(Path(tokenizer))
    tool = _opened[tokenizer]
    name = f"shard-{number:05d}"
    path = Path(output) / f"{name}.bin"
    starts: list[int] = []
    digest = hashlib.sha256()
    count = _Count()
    # Not truncated when opened: should two processes write the same shard, they write the same bytes.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
        for tokens, begins in _documents(piece, tool):
            if begins:
                starts.append(count.tokens)
            packed = np.asarray(tokens, dtype=dtype).tobytes()
            file.write(packed)
            digest.update(packed)
            count.tokens += len(tokens)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    write_durably(path.with_suffix(".doc"), np.asarray(starts, dtype="<u8").tobytes())
    shard = Shard(path.name, count.tokens, len(starts), digest.hexdigest())
    write_durably(path.with_suffix(".json"), json.dumps(asdict(shard)).encode())
    return shard


def _documents(piece: Piece, tool: tokenizers.Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """Tokens of each text of the piece with begin and end of its document, and whether a document begins there."""
    held, length = [], 0
    for text in read(piece):
        held.append(text)
        length += len(text.text)
        if length >= BATCH:
            yield from _encode(held, tool)
            held, length = [], 0
    yield from _encode(held, tool)


def _encode(texts: list[Any], tool: tokenizers.Tokenizer) -> Iterator[tuple[list[int], bool]]:
    for text, tokens in zip(texts, tool.encode([one.text for one in texts]), strict=True):
        begin = [tool.bos] if text.first and tool.bos is not None else []
        end = [tool.eos] if text.last and tool.eos is not None else []
        yield [*begin, *tokens, *end], text.first


def _recorded(output: Path, number: int) -> Shard | None:
    """The shard, if an earlier run finished it."""
    record = output / f"shard-{number:05d}.json"
    try:
        shard = Shard(**json.loads(record.read_text()))
        return shard if sum_file(output / shard.file).sha256 == shard.sha256 else None
    except (OSError, ValueError, TypeError):
        return None


def verify(folder: Path) -> None:
    """Read every shard of a finished folder and compare its hash. Raises ConfigError."""
    for shard in read_index(folder).shards:
        path = folder / shard.file
        try:
            if sum_file(path).sha256 != shard.sha256:
                raise ConfigError(f"{path} is damaged: its SHA-256 is not the one in {INDEX}")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None


class Cache:
    """Prepared data by content, in a folder that jobs share. Remembers the hashes of files by size and time, so that a
    restart need not read them again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._remembered = root / "files.json"

    def folder(self, files: Files, tokenizer: Path) -> tuple[Path, str]:
        """Where this source's tokens are or will be, and their content key. Raises ConfigError."""
        try:
            key = content_key(files, tokenizer, self._sums(files))
        except OSError as error:
            raise ConfigError(f"{files.where}.path: cannot read {error.filename}: {error.strerror}") from None
        return self._root / key[:32], key

    def ready(self, folder: Path) -> bool:
        """Is it finished? A folder that is damaged is thrown away."""
        if not (folder / INDEX).exists():
            return False
        try:
            open_prepared(folder)
        except ConfigError:
            shutil.rmtree(folder, ignore_errors=True)
            return False
        return True

    def _sums(self, files: Files) -> dict[str, str]:
        try:
            known = json.loads(self._remembered.read_text())
        except (OSError, ValueError):
            known = {}
        sums, fresh = {}, False
        for path in files.paths:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            entry = known.get(str(path))
            if not entry or entry[:2] != stamp:
                entry = known[str(path)] = [*stamp, sum_file(path).sha256]
                fresh = True
            sums[str(path)] = entry[2]
        if fresh:
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                self._remembered.write_text(json.dumps(known))
            except OSError:
                pass  # it only saves time
        return sums
