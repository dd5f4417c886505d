"""Hashes of what was admitted and of what was rendered: the same on every version of Python and of Trainyard."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainyard.api.job import TrainingJobSpec

# What may change only while the job is suspended and has no pods.
_ADMITTED = ("num_nodes", "num_proc_per_node", "devices", "template", "train", "command", "preload")


def canonical(value: Any) -> str:
    """JSON with sorted keys and without spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str, length: int) -> str:
    """The first hex digits of the SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def admitted_hash(spec: TrainingJobSpec) -> str:
    """Hash (32 hex digits) of the fields that a job is admitted with: numNodes, numProcPerNode, devices, template,
    train, command, preload, and the checkpoint's volume and subPath.

    Only what the manifest says counts, not the defaults: an upgrade that knows a new field finds jobs unchanged.
    """
    said = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, include=set(_ADMITTED))
    checkpoint = spec.checkpoint.model_dump(mode="json", by_alias=True, include={"volume", "sub_path"})
    return digest(canonical(said | {"checkpoint": checkpoint}), 32)
