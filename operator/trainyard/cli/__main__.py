"""`kubectl trainyard`, or `python -m trainyard.cli`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from kubernetes.aio.config.config_exception import ConfigException

from trainyard.cli import devices, plan
from trainyard.cli.errors import Refused
from trainyard.kube.client import ApiError, Client, load_configuration

COMMANDS = (devices, plan)
"""The modules of the subcommands."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(prog="kubectl trainyard", description="Trainyard on the command line.")
    made.add_argument("--kubeconfig", help="default: $KUBECONFIG, else ~/.kube/config")
    made.add_argument("--context", help="context of the kubeconfig; default: its current one")
    subparsers = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return made


async def _run(arguments: argparse.Namespace) -> int:
    try:
        configuration = await load_configuration(arguments.kubeconfig, arguments.context)
    except (ConfigException, OSError) as error:
        raise Refused(f"no cluster: {error}; name a kubeconfig with --kubeconfig or $KUBECONFIG") from error
    client = Client(configuration, user_agent="kubectl-trainyard")
    try:
        code: int = await arguments.run(arguments, client)
    finally:
        await client.close()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it was done, 1 with a sentence on stderr if not."""
    arguments = parser().parse_args(argv)
    try:
        if getattr(arguments, "offline", None) is not None:  # needs no cluster
            code: int = arguments.offline(arguments)
            return code
        return asyncio.run(_run(arguments))
    except (Refused, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
