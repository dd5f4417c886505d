"""`python -m trainyard.controller`."""

from __future__ import annotations

import asyncio
import os
import sys

from trainyard.controller import logs
from trainyard.controller.options import parse


def run() -> None:
    """Parse, run, exit. Never returns."""
    options = parse()
    logs.set_up(options.log_level)
    from trainyard.controller.operator import main  # after the logs: imports may log

    code = asyncio.run(main(options))
    sys.stdout.flush()
    os._exit(code)  # kopf's thread has no end of its own


if __name__ == "__main__":
    run()
