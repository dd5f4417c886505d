"""Tokens on disk, mapped into memory: our own format (written by trainer.prepare) and Megatron's.

Our format is a folder:

    shard-00000.bin     tokens of whole or part documents, little-endian uint16 or uint32, nothing else
    shard-00000.doc     uint64 a document that begins in the shard: at which token
    index.json          written last: type, tokenizer, and each shard's tokens, documents and SHA-256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.sources import INDEX, Files
from trainer.errors import ConfigError
from trainer.files import write_durably

FORMAT, VERSION = "trainyard-tokens", 1
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


class Stream(Protocol):
    """A row of tokens: all documents, one after the other."""

    tokens: int

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens start .. start + count."""
        ...

    def documents(self, start: int, count: int) -> NDArray[np.int64]:
        """Which document each of these tokens is of: 0 for the first token's, rising where another begins."""
        ...


@dataclass(frozen=True)
class Shard:
    """A shard as the index lists it."""

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The content of index.json."""

    dtype: str
    vocab_size: int
    content: str  # hash of everything that decides the tokens
    shards: tuple[Shard, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)


def dtype_for(vocab_size: int) -> str:
    """The smallest of our types that holds every token."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_index(folder: Path, index: Index) -> None:
    """Write index.json; every shard is there already."""
    content: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "dtype": index.dtype, "vocabSize": index.vocab_size,
        "content": index.content, "tokens": index.tokens,
        "documents": sum(shard.documents for shard in index.shards),
        "shards": [{"file": s.file, "tokens": s.tokens, "documents": s.documents, "sha256": s.sha256}
                   for s in index.shards],
    }
    write_durably(folder / INDEX, json.dumps({**content, "digest": _digest(content)}, indent=1).encode())


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_index(folder: Path) -> Index:
    """Read and check index.json. Raises ConfigError."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise ConfigError(f"{path} is not of prepared data (its format is {content.get('format')!r})")
        if content["version"] > VERSION:
            raise ConfigError(f"{path} was written by a newer trainer (version {content['version']})")
        if content.pop("digest", None) != _digest(content):
            raise ConfigError(f"{path} is damaged; run python -m trainer.prepare again")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        return Index(content["dtype"], content["vocabSize"], content["content"], shards)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not of prepared data ({type(error).__name__}: {error})") from None


class Mapped:
    """A stream over files that each hold tokens of one type from a byte offset of 0."""

    def __init__(self, parts: Sequence[tuple[Path, int]], dtype: str, begins: Sequence[NDArray[Any]]) -> None:
        """`parts`: files and how many tokens each must hold; `begins`: for each, ascending, at which of its tokens
        documents begin. Raises ConfigError if a file is shorter or longer."""
        width = np.dtype(dtype).itemsize
        self._arrays: list[NDArray[Any]] = []
        self._begins = [begin for (_, count), begin in zip(parts, begins, strict=True) if count]
        counts = []
        for path, count in parts:
            try:
                size = path.stat().st_size
                if size != count * width:
                    raise ConfigError(f"{path} should have {count * width} bytes ({count} tokens), found {size}: it is "
                                      f"truncated or of another data set")
                if count:
                    self._arrays.append(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
                    counts.append(count)
            except OSError as error:
                raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.tokens = int(self._ends[-1]) if counts else 0

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens start .. start + count. Raises IndexError outside the stream."""
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens {start} to {start + count} of {self.tokens}")
        found: NDArray[np.int64] = np.empty(count, dtype=np.int64)
        part = int(np.searchsorted(self._ends, start, side="right"))
        filled = 0
        while filled < count:
            array = self._arrays[part]
            offset = start + filled - (int(self._ends[part]) - len(array))
            taken = array[offset: offset + count - filled]
            found[filled: filled + len(taken)] = taken
            filled += len(taken)
            part += 1
        return found

    def documents(self, start: int, count: int) -> NDArray[np.int64]:
        """Which document each of the tokens start .. start + count is of, counted from that of the first."""
        begun = np.zeros(count, dtype=np.int64)
        part = int(np.searchsorted(self._ends, start, side="right"))
        while part < len(self._arrays):
            offset = int(self._ends[part]) - len(self._arrays[part])  # of the part in the stream
            if offset >= start + count:
                break
            low, high = np.searchsorted(self._begins[part], (start + 1 - offset, start + count - offset))
            np.add.at(begun, self._begins[part][low:high].astype(np.int64) + (offset - start), 1)
            part += 1
        return np.cumsum(begun)


def open_prepared(folder: Path) -> Mapped:
    """Map a folder of our format. Raises ConfigError if a shard is missing or truncated."""
    index = read_index(folder)
    return Mapped([(folder / shard.file, shard.tokens) for shard in index.shards], index.dtype,
                  [_read_begins(folder / shard.file, shard.documents) for shard in index.shards])


def _read_begins(shard: Path, documents: int) -> NDArray[Any]:
    path = shard.with_suffix(".doc")
    try:
        size = path.stat().st_size
        if size != documents * 8:
            raise ConfigError(f"{path} should have {documents * 8} bytes ({documents} documents), found {size}: it is "
                              f"truncated or of another data set")
        return np.memmap(path, dtype="<u8", mode="r", shape=(documents,)) if documents else np.empty(0, dtype="<u8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def open_megatron(stems: Sequence[Path]) -> Mapped:
    """Map Megatron data sets, named without ending. Raises ConfigError."""
    parts, types, begins = [], set(), []
    for stem in stems:
        dtype, tokens, begin = _read_megatron_index(Path(f"{stem}.idx"))
        types.add(dtype)
        parts.append((Path(f"{stem}.bin"), tokens))
        begins.append(begin)
    if len(types) > 1:
        raise ConfigError(f"the Megatron data sets of one source should have one type of token, found {sorted(types)}")
    return Mapped(parts, types.pop(), begins)


def _read_megatron_index(path: Path) -> tuple[str, int, NDArray[np.int64]]:
    """Type and number of the tokens, and at which of them documents begin. The sequences must follow each other in the
    .bin without gaps. A document is one or more sequences; an index that does not say which has one each."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if content[:9] != MEGATRON_MAGIC or len(content) < 34:
        raise ConfigError(f"{path} is not a Megatron index (it should begin with {MEGATRON_MAGIC!r})")
    version = int.from_bytes(content[9:17], "little")
    code = content[17]
    if version != 1 or code not in MEGATRON_TYPES:
        raise ConfigError(f"{path}: version 1 and a whole-number type are expected, found version {version}, "
                          f"type {code}")
    sequences = int.from_bytes(content[18:26], "little")
    if len(content) < 34 + sequences * 12:
        raise ConfigError(f"{path} is truncated: {sequences} sequences need {34 + sequences * 12} bytes, found "
                          f"{len(content)}")
    lengths = np.frombuffer(content, "<i4", sequences, 34).astype(np.int64)
    pointers = np.frombuffer(content, "<i8", sequences, 34 + sequences * 4)
    dtype = MEGATRON_TYPES[code]
    expected = (np.cumsum(lengths) - lengths) * np.dtype(dtype).itemsize
    if not np.array_equal(pointers, expected):
        raise ConfigError(f"{path}: sequences should follow each other in the .bin file without gaps")
    first = np.cumsum(lengths) - lengths
    said = int.from_bytes(content[26:34], "little")  # indices of the documents' first sequences, and the end
    if said > 1 and len(content) >= 34 + sequences * 12 + said * 8:
        indices = np.frombuffer(content, "<i8", said, 34 + sequences * 12)[:-1]
        if indices.min() >= 0 and indices.max() < sequences and (np.diff(indices) >= 0).all():
            first = first[indices]
    return dtype, int(lengths.sum()), first


def open_stream(files: Files) -> Mapped:
    """Map a tokenised source. Raises ConfigError."""
    if files.format == "megatron":
        return open_megatron(files.paths)
    return open_prepared(files.paths[0])
