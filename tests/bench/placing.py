"""CPU seconds of placement on a large cluster: 5,000 nodes of 8 devices, 1,000 jobs there already."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainyard.placement.books import Demand, Nearness
from trainyard.placement.place import place
from unit.placement.clusters import NPU, busy_cluster


def placing() -> list[tuple[str, Callable[[int], float]]]:
    """What is measured, and the measurement: CPU seconds of its n-th run."""
    where = "5,000 nodes of 8 devices, 1,000 jobs there"
    gangs = {
        f"CPU to place a gang of 1,000 whole nodes ({where})": (8, 1000, None),
        f"CPU to find one super-pod for a gang of 100 whole nodes ({where})": (8, 100, Nearness("superpod", True)),
        f"CPU to place one pod of 2 devices ({where})": (2, 1, None),
    }
    return [(what, _measure(*gang)) for what, gang in gangs.items()]


def _measure(devices: int, pods: int, nearness: Nearness | None) -> Callable[[int], float]:
    def seconds(number: int) -> float:
        cluster = busy_cluster()
        began = time.process_time()
        found = place(cluster, Demand({NPU: devices, "cpu": 32000, "pods": 1}), range(pods), nearness=nearness)
        spent = time.process_time() - began
        if len(found if isinstance(found, dict) else ()) != pods:
            raise RuntimeError(f"no place: {found}")
        return spent

    return seconds
