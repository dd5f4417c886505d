"""How much fits on a node, and the order that nodes are named in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from trainyard.placement.books import Demand, NodeView, Resources
from trainyard.placement.seats import PLAIN, Fit, Gaze, fit, whole

PLENTY = 1 << 30  # pods of a node that nothing limits


def room(node: NodeView, used: Resources, requests: Resources) -> int:
    """How many pods with these requests still fit by the numbers, however the node is marked."""
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


def seats(
    node: NodeView, used: Resources, pods: Mapping[str, Resources], requests: Resources, gaze: Gaze = PLAIN
) -> Fit:
    """How many pods still fit by the numbers and by the devices, and how well. Devices of which no agent tells are
    numbers only."""
    number = room(node, used, requests)
    view = node.devices
    asked = requests.get(view.resource, 0) if view else 0
    if not number or view is None or not asked:
        return Fit(number, number, in_ring=number)
    if not view.known or view.elsewhere:
        return Fit()
    found = fit(view, pods, asked, gaze)
    if found.sets <= number:
        return found
    return replace(found, sets=number, clean=min(found.clean, number), in_ring=min(found.in_ring, number))


def capacity(node: NodeView, demand: Demand) -> int:
    """How many pods would fit if the node were empty and all its devices healthy."""
    view, requests = node.devices, demand.requests
    most = 1 if demand.apart == "Required" else PLENTY
    asked = requests.get(view.resource, 0) if view else 0
    if view is None or not asked:
        return min(most, room(node, {}, requests))
    others = {name: amount for name, amount in requests.items() if name != view.resource}
    return min(most, room(node, {}, others), whole(view, asked).sets)


@lru_cache(maxsize=1 << 16)
def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key that puts node-2 before node-10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name))
