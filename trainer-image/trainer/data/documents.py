"""Reading documents out of pieces of text, JSONL and Parquet files, so that several processes can share a file."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources import Files
from trainer.errors import ConfigError, one_line

SMALLEST, LARGEST = 4 << 20, 256 << 20  # bytes of a piece
HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can spell these, UTF-8 cannot
PART = 256 << 10  # characters of a long text that are tokenised at a time


@dataclass(frozen=True)
class Piece:
    """A stretch of a file: bytes [start, stop) of text or JSONL, row groups [start, stop) of Parquet."""

    path: str
    format: str
    field: str
    start: int
    stop: int
    last: bool  # does the file end with it?


@dataclass(frozen=True)
class Text:
    """A document, or a part of a long one."""

    text: str
    first: bool = True  # does a document begin here?
    last: bool = True  # does it end here?


def pieces(files: Files) -> list[Piece]:
    """The files cut into pieces, in order. A function of the files alone: the number of processes does not matter."""
    size = min(LARGEST, max(SMALLEST, files.bytes // 256))
    found = []
    for path in files.paths:
        end = path.stat().st_size
        if files.format == "parquet":
            groups = _open_parquet(path, files.field).num_row_groups
            stops = [(group, group + 1) for group in range(groups)]
        elif path.suffix == ".gz":
            stops = [(0, end)]
        else:
            stops = [(start, min(start + size, end)) for start in range(0, end, size)]
        found += [Piece(str(path), files.format, files.field, start, stop, stop == stops[-1][1])
                  for start, stop in stops]
    return found


def read(piece: Piece) -> Iterator[Text]:
    """The documents of a piece. Raises ConfigError that names the file, and line, that is not as expected."""
    if piece.format == "parquet":
        yield from _parquet(piece)
    elif piece.format == "jsonl":
        yield from _jsonl(piece)
    else:
        yield from _text(piece)


def _lines(piece: Piece) -> Iterator[tuple[int, str]]:
    """Offset and text of the lines that begin inside the piece."""
    path = Path(piece.path)
    packed = path.suffix == ".gz"
    try:
        opener: Any = gzip.open if packed else open
        with opener(path, "rb") as file:
            at = 0
            if piece.start and not packed:
                file.seek(piece.start - 1)
                at = piece.start - 1 + len(file.readline())
            while packed or at < piece.stop:
                line = file.readline()
                if not line:
                    return
                yield at, line.decode("utf-8")
                at += len(line)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} should be UTF-8, but the line at byte {at} is not ({error.reason})") from None
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error, 200)}") from None


def _text(piece: Piece) -> Iterator[Text]:
    """A text file is one document, tokenised in parts that end at line ends."""
    first = piece.start == 0
    held: list[str] = []
    length = 0
    for _, line in _lines(piece):
        if length and length + len(line) > PART:
            yield Text("".join(held), first, False)
            first, held, length = False, [], 0
        held.append(line)
        length += len(line)
    if held or (piece.last and not first):
        yield Text("".join(held), first, piece.last)


def _jsonl(piece: Piece) -> Iterator[Text]:
    for at, line in _lines(piece):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{piece.path}: the line at byte {at} is not JSON ({error})") from None
        text = record.get(piece.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f"{piece.path}: the line at byte {at} should be an object with text in "
                              f"{piece.field!r}, found {one_line(line, 80)}")
        yield Text(HALF_PAIR.sub("\ufffd", text))


def _open_parquet(path: Path, field: str) -> Any:
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except Exception as error:  # pyarrow's own errors, and OSError
        raise ConfigError(f"cannot read {path} as Parquet: {one_line(error, 200)}") from None
    names = file.schema_arrow.names
    if field not in names:
        raise ConfigError(f"{path} should have a column {field!r}, found {', '.join(names[:10])}")
    return file


def _parquet(piece: Piece) -> Iterator[Text]:
    file = _open_parquet(Path(piece.path), piece.field)
    for group in range(piece.start, piece.stop):
        for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=[piece.field]):
            for text in batch.column(0).to_pylist():
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise ConfigError(f"{piece.path}: column {piece.field!r} should hold text, found "
                                      f"{type(text).__name__}")
                yield Text(text)
