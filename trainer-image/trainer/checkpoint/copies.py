"""Whether copies are kept in memory, and how: from what was asked for to a Memory, or the reason why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from trainer.checkpoint.memory import Memory, layout_digest
from trainer.checkpoint.replicas import Replicas
from trainer.checkpoint.rhythm import Rhythm
from trainer.checkpoint.room import Unavailable
from trainer.config import MemoryWish
from trainer.distributed import Gang
from trainer.errors import ConfigError


def open_memory(asked: MemoryWish | None, gang: Gang, layout: Any, identity: dict[str, Any], generation: str,
                warn: Callable[[str], None], durable: bool) -> Memory | None:
    """Every rank at the same place. `durable`: there is a checkpoint folder, too. Raises
    ConfigError for what was asked for and cannot be."""
    if asked is None or asked.every == 0:
        return None
    every, copy_every = asked.every, asked.copy_every
    if every and copy_every and copy_every % every:
        raise ConfigError(f"checkpoint.memory.copyEvery should be a multiple of every, {every}, found {copy_every}")
    model = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    try:
        return Memory(asked.folder, gang, layout_digest(gang.world_size, layout, identity), model, generation,
                      asked.copies, Rhythm(every, copy_every), durable, Replicas.of_layout(layout))
    except Unavailable as error:
        warn(f"no copies in memory: {error}")
        return None
