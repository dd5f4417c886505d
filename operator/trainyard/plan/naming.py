"""Names that the operator and the pods agree on (docs/protocol.md)."""

from __future__ import annotations


def pod_name(job: str, index: int, incarnation: int) -> str:
    """Name of a pod of the gang; deterministic, so that two leaders collide instead of making twins."""
    return f"{job}-{index}-{incarnation}"
