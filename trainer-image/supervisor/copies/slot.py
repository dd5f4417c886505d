"""One slot: a file in memory that holds one rank's state of one step, and says itself what it holds.

    0      magic, sizes and their sum with the header's, the sum of the data (32 bits) and the seal it belongs to
    64     header: JSON that never changes: whose state this is, and name, dtype, global shape, offset of every tensor
    ...    seal: JSON with a checksum of its own: step, run and counters; absent while data is being written
    ...    data: raw tensors, page aligned

Whatever moment a writer is killed at, the seal is either absent or true of the data.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from typing import Any, Callable, Dict, Optional

MAGIC = b"TYCOPY02"
_FIXED = struct.Struct("<8sQQQI")  # magic, header bytes, seal's place, data's place, sum; the size says the rest
_SUM = struct.Struct("<QQ")  # number of the seal it was made for, sum + 1 (0: none yet)
_SUM_AT = 40
_HEADER_AT = 64
_SEAL = struct.Struct("<II")  # length (0: none), CRC-32 of the JSON
SEAL_BYTES = 64 << 10
PAGE = 4096
CHUNK = 16 << 20  # bytes summed at a time


class Damaged(Exception):
    """The file is no slot, or not what it says it is."""


def _aligned(number: int) -> int:
    return -(-number // PAGE) * PAGE


def _header_sum(text: bytes, seal_at: int, data_at: int) -> int:
    """Of what never changes: a flipped bit in an offset would load other numbers than were saved."""
    return zlib.crc32(b"%d %d" % (seal_at, data_at), zlib.crc32(text))


class Slot:
    """A slot that is mapped into this process."""

    def __init__(self, path: str, header: Dict[str, Any], seal_at: int, data_at: int, memory: mmap.mmap) -> None:
        self.path = path
        self.header = header
        self._seal_at = seal_at
        self._memory = memory
        self._view = memoryview(memory)
        self.data = self._view[data_at:]

    @classmethod
    def create(cls, path: str, header: Dict[str, Any], data_bytes: int) -> "Slot":
        """A new slot without a seal; what was at `path` is replaced. OSError (ENOSPC) if memory does not suffice: it is
        all taken now, because a write into a mapping could not fail in an orderly way."""
        text = json.dumps(header, separators=(",", ":")).encode()
        seal_at = _aligned(_HEADER_AT + len(text))
        data_at = seal_at + SEAL_BYTES
        made = f"{path}.new"
        descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, max(data_at + data_bytes, data_at + 1))
            summed = _header_sum(text, seal_at, data_at)
            os.pwrite(descriptor, _FIXED.pack(MAGIC, len(text), seal_at, data_at, summed), 0)
            os.pwrite(descriptor, text, _HEADER_AT)
            os.ftruncate(descriptor, data_at + data_bytes)
            memory = mmap.mmap(descriptor, 0)
        except BaseException:
            os.unlink(made)
            raise
        finally:
            os.close(descriptor)
        os.rename(made, path)
        return cls(path, header, seal_at, data_at, memory)

    @classmethod
    def open(cls, path: str, write: bool = False) -> "Slot":
        """A slot that is there. Raises Damaged, OSError."""
        descriptor = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size < _HEADER_AT:
                raise Damaged(f"{path} is too short")
            memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
        finally:
            os.close(descriptor)
        magic, header_bytes, seal_at, data_at, summed = _FIXED.unpack_from(memory)
        if magic != MAGIC or not _HEADER_AT + header_bytes <= seal_at <= data_at - SEAL_BYTES <= len(memory):
            raise Damaged(f"{path} is no copy")
        text = memory[_HEADER_AT:_HEADER_AT + header_bytes]
        if summed != _header_sum(text, seal_at, data_at):
            raise Damaged(f"the header of {path} is damaged")
        header = json.loads(text)
        return cls(path, header, seal_at, data_at, memory)

    def close(self) -> None:
        """Unmap it."""
        self.data.release()
        self._view.release()
        self._memory.close()

    # The seal ---------------------------------------------------------------------------------------------------------

    def seal(self) -> Optional[Dict[str, Any]]:
        """What the data is: step, run, number, training; None while there is none that can be trusted."""
        length, checksum = _SEAL.unpack_from(self._memory, self._seal_at)
        if not 0 < length <= SEAL_BYTES - _SEAL.size:
            return None
        start = self._seal_at + _SEAL.size
        text = self._memory[start:start + length]
        if zlib.crc32(text) != checksum:
            return None
        found = json.loads(text)
        return found if isinstance(found, dict) else None

    def number(self) -> Optional[int]:
        """Tells the present content from every other; None while nothing is whole."""
        seal = self.seal()
        return None if seal is None else int(seal["number"])

    def break_seal(self) -> None:
        """Before data is written."""
        _SEAL.pack_into(self._memory, self._seal_at, 0, 0)

    def set_seal(self, seal: Dict[str, Any]) -> None:
        """After data was written; `number` tells this content from every other. Raises ValueError if it is too long."""
        text = json.dumps(seal, separators=(",", ":")).encode()
        if len(text) > SEAL_BYTES - _SEAL.size:
            raise ValueError(f"a seal holds at most {SEAL_BYTES} bytes, found {len(text)}")
        start = self._seal_at + _SEAL.size
        self._memory[start:start + len(text)] = text
        _SEAL.pack_into(self._memory, self._seal_at, len(text), zlib.crc32(text))

    # The sum ----------------------------------------------------------------------------------------------------------

    def compute_sum(self, stop: Callable[[], bool] = lambda: False) -> int:
        """CRC-32 of the data; of its beginning, once `stop` says so."""
        total = 0
        for start in range(0, len(self.data), CHUNK):
            if stop():
                break
            total = zlib.crc32(self.data[start:start + CHUNK], total)
        return total

    def note_sum(self, number: int, total: int) -> None:
        """Keep the sum of the content with this number."""
        _SUM.pack_into(self._memory, _SUM_AT, number, total + 1)

    def known_sum(self) -> Optional[int]:
        """The sum that was noted for the present content, if any."""
        seal = self.seal()
        number, total = _SUM.unpack_from(self._memory, _SUM_AT)
        return total - 1 if seal is not None and total and seal.get("number") == number else None

    def check(self) -> str:
        """What is wrong with the present content; empty if nothing is known to be."""
        if self.seal() is None:
            return f"{self.path} is not whole"
        known = self.known_sum()
        if known is not None and known != self.compute_sum():
            return f"{self.path} is damaged: its CRC-32 is not the one noted when it was made"
        return ""
