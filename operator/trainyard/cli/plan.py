"""`kubectl trainyard plan`: the parallel layouts of a job, ranked. Needs no cluster."""

from __future__ import annotations

import argparse
from typing import Any

from trainyard.cli.errors import Refused
from trainyard.layout import __main__ as offline


def add(subparsers: Any) -> None:
    """The subcommand; its options are those of `python -m trainyard.layout`."""
    made: argparse.ArgumentParser = subparsers.add_parser("plan", help="rank the parallel layouts of a TrainingJob")
    offline.add_options(made)
    made.set_defaults(offline=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table. Raises Refused if there is no layout."""
    try:
        print(offline.answer(arguments))
    except (ValueError, OSError) as error:
        raise Refused(f"{arguments.job}: {offline.told(error)}") from error
    return 0
