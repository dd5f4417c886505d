"""`python -m trainyard.agent`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from trainyard.agent import plugin
from trainyard.agent.auto import Auto
from trainyard.agent.loop import Agent
from trainyard.agent.metrics import Metrics
from trainyard.agent.npu_smi import NpuSmi
from trainyard.agent.observe import Observe
from trainyard.agent.options import Options, parse
from trainyard.agent.podresources import PodResources
from trainyard.agent.probes import serve
from trainyard.agent.simulated import Simulated
from trainyard.agent.types import Backend
from trainyard.kube.client import Client, load_configuration

log = logging.getLogger("trainyard.agent")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(), "logger": record.name, "msg": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _set_up_logs(level: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("aiohttp", "asyncio", "kubernetes", "grpc"):
        logging.getLogger(noisy).setLevel("WARNING")


def _backend(options: Options, client: Client) -> Backend:
    pods = PodResources(options.pod_resources)
    match options.backend:
        case "simulated":
            return Simulated(options.simulated_file, options.node)
        case "npu-smi":
            return NpuSmi(options.resource, options.hardware)
        case "observe":
            return Observe(client, options.node, pods, options.resource)
        case _:
            return Auto(client, options.node, pods, options.resource, options.plugins, plugin.SOCKET,
                        options.hardware)


async def main(options: Options) -> None:
    """Run until SIGTERM or SIGINT; raises what ended the agent otherwise."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = Client(await load_configuration(options.kubeconfig), user_agent="trainyard-agent")
    metrics = Metrics()
    agent = Agent(options, _backend(options, client), client, metrics)
    runner, port = await serve(options.host, options.port, agent, metrics)
    log.info("started", extra={"node": options.node, "backend": agent.backend.name, "port": port})
    running = asyncio.create_task(agent.run())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        stopped.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await runner.cleanup()
        await client.close()
    log.info("stopped")


def run(argv: Sequence[str] | None = None) -> None:
    """Parse and run."""
    options = parse(argv)
    _set_up_logs(options.log_level)
    asyncio.run(main(options))


if __name__ == "__main__":
    run()
