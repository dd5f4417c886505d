"""What a MindSpore program finds its peers by: the environment of MindSpore's dynamic cluster. Pure.

A scheduler process, the same program in another role, runs beside rank 0 for as long as the workers do; every start of
the gang has its own, at a port of its own, so that no worker of an earlier one can reach it.
"""

from __future__ import annotations

from typing import Dict, Mapping

SCHEDULER_NODE = "scheduler"


def cluster_environment(base: Mapping[str, str], host: str, port: int, rank: int, local: int, size: int, ranks: int,
                        scheduler: bool) -> Dict[str, str]:
    """For a worker of rank `rank` (of `size`, `ranks` of them on this pod), or for the scheduler. A numeric MS_NODE_ID
    is also the rank that MindSpore gives the worker, so a rank has the same one after every restart."""
    return {
        "MS_ROLE": "MS_SCHED" if scheduler else "MS_WORKER",
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": str(port),
        "MS_WORKER_NUM": str(size),
        "MS_LOCAL_WORKER": str(ranks),
        "MS_NODE_ID": SCHEDULER_NODE if scheduler else str(rank),
        "RANK_ID": str(rank),
        "RANK_SIZE": str(size),
        "DEVICE_ID": str(local),
        # Without it MindSpore ends its own processes when it misses a peer, long after the supervisors have; with it
        # they wait, and the supervisors decide.
        "MS_ENABLE_RECOVERY": base.get("MS_ENABLE_RECOVERY", "1"),
    }
