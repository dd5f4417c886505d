"""The last file of a durable checkpoint: what it must look like to be believed, for whoever writes it."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, Union

NAME = "COMMITTED.json"


def digest(content: Dict[str, Any]) -> str:
    """SHA-256 of the content without its digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def dump(content: Dict[str, Any]) -> bytes:
    """The file, from all but its digest."""
    return json.dumps({**content, "digest": digest(content)}, indent=1).encode()


def sync_folder(folder: Union[str, "os.PathLike[str]"]) -> None:
    """Wait until the disk has the folder's entries. File systems that cannot sync a folder are taken at their word."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
