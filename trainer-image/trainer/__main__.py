"""One rank: `python -m trainer`. Exit codes: 0 finished, 75 saved after a drain, 78 bad configuration, 79 the
loss is not finite and stays so, 76 this rank's device computes wrongly, 1 failed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

from supervisor.regroup import VARIABLE
from trainyard.api import EXIT_CONFIG

from trainer import config, errors


def main() -> int:
    """Run one rank, through every generation that this process outlives; every failure is told in one line, last on
    stderr."""
    regroup: Any = None
    while True:
        try:
            if regroup is not None:
                regroup.rejoin()
            train, run = config.load(sys.argv[1:], os.environ)
            config.batch_size(train, config.layout(train, run.rank.world_size), run.resized)
            from trainer.pretrain import pretrain  # torch takes seconds to import: mistakes above are told before
            from trainer.regroup import Regroup

            regroup = regroup or Regroup(os.environ.get(VARIABLE))
            return pretrain(train, run, regroup)
        except errors.ConfigError as error:
            errors.report(error)
            return EXIT_CONFIG
        except Exception as error:
            if regroup is None or not regroup.lost(error):
                errors.report(error)
                return getattr(error, "exit_code", 1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():  # they tokenise for a rank that was told to stop
        child.kill()
    os._exit(code)  # threads and process groups of a broken gang must not keep the process alive
