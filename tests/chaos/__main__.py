"""`make chaos`: break a job in many ways on a cluster of its own, print and keep the table of docs/recovery.md."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from cluster import Cluster, remove
from harness.installation import Yard

from chaos import page
from chaos.driver import SETTLE, Driver, select
from chaos.results import Result
from chaos.scene import BUILT_IN

NODES = 3


def main(arguments: list[str]) -> int:
    """Run cases. Returns 1 if anything did not hold; a missed aim is only told."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--cases", default="", help="such as 1,2,3b (default: all)")
    parser.add_argument("--times", type=int, default=5, help="faults a case (default: 5)")
    parser.add_argument("--torchrun", type=int, default=3, help="faults a case under torchrun (default: 3; 0: none)")
    parser.add_argument("--settle", type=int, default=SETTLE,
                        help=f"finished steps between a recovery and the next fault, at least 4 (default: {SETTLE})")
    parser.add_argument("--no-page", action="store_true", help="leave docs/recovery.md as it is")
    parser.add_argument("--cluster", default="", help="use and keep the cluster of this name (default: one of its own)")
    given = parser.parse_args(arguments)
    try:
        cases = select(given.cases)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is removed
    name, load = given.cluster or "chaos", os.getloadavg()[0]
    if not given.cluster:
        remove(name)
    cluster = Cluster.up(name, nodes=NODES)
    results: list[Result] = []
    try:
        if "disks" not in cluster.capabilities:
            parser.error(f"{BUILT_IN}, found provider {cluster.provider}")
        yard = Yard(cluster)
        yard.install()
        namespace = yard.api.namespace(f"chaos-{int(time.time()) % 100_000}")
        driver = Driver(yard, namespace, given.settle)
        try:
            yard.make_volume(namespace)
            driver.run(cases, given.times, given.torchrun)
        finally:
            results = [driver.results[case.key] for case in cases if case.key in driver.results]
            if results:  # what was measured before an interruption counts
                page.write(results, load, page=not given.no_page)
            yard.remove_namespace(namespace)
    finally:
        if not given.cluster:
            cluster.down()
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
