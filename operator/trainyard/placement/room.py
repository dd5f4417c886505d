"""How much fits on a node, and the order that nodes are named in."""

from __future__ import annotations

import re

from trainyard.placement.books import NodeView, Resources

PLENTY = 1 << 30  # pods of a node that nothing limits


def room(node: NodeView, used: Resources, requests: Resources) -> int:
    """How many pods with these requests still fit, however the node is marked."""
    fewest = PLENTY
    allocatable = node.allocatable
    for name, amount in requests.items():
        if amount > 0:
            fits = (allocatable.get(name, 0) - used.get(name, 0)) // amount
            if fits < fewest:
                if fits <= 0:
                    return 0
                fewest = fits
    return fewest


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key that puts node-2 before node-10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name))
