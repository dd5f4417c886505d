"""Writing files that outlive a crash, and proving later that they did."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.copies.marker import sync_folder as sync_folder


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


def sum_file(path: Path) -> FileSum:
    """Size and hash of a file, read from disk. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSum(os.fstat(file.fileno()).st_size, digest)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until the disk has what others wrote into a file. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
