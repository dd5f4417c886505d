"""What the agent makes of a backend that does what nobody foresaw; its work with an API server is in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from trainyard.agent import loop
from trainyard.agent.loop import Agent
from trainyard.agent.metrics import Metrics
from trainyard.agent.options import parse
from trainyard.agent.types import Facts, Reading, Unreadable
from trainyard.api.devices import Device, NodeDevicesSpec
from unit.agent.devices import facts


class Scripted:
    """Gives readings, raises what is an exception, then begins with the rest when it is asked again."""

    name: Literal["simulated"] = "simulated"

    def __init__(self, *steps: Reading | Unreadable | Exception) -> None:
        self.steps = list(steps)

    def learn(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        pass

    def recall(self, spec: NodeDevicesSpec) -> None:
        pass

    async def readings(self) -> AsyncIterator[Reading | Unreadable]:
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Unreadable) or not isinstance(step, Exception):
                yield step
            else:
                raise step
        await asyncio.Event().wait()


async def said(tmp_path: Path, *steps: Reading | Unreadable | Exception) -> list[tuple[str, str]]:
    """Status and reason of Ready after each reading."""
    options = parse(["--backend", "simulated", "--node", "n1", "--plugins-folder", str(tmp_path),
                     "--pod-resources-socket", str(tmp_path / "none.sock")])
    backend = Scripted(*steps)
    client: Any = None
    agent = Agent(options, backend, client, Metrics())
    found: list[tuple[str, str]] = []
    take: Callable[..., Any] = agent._take

    async def noted(reading: Reading | Unreadable) -> None:
        await take(reading)
        wanted = agent.writer.wanted
        assert wanted is not None
        found.append((wanted.status.conditions[0].status, wanted.status.conditions[0].reason))

    agent._take = noted  # type: ignore[method-assign]
    task = asyncio.create_task(agent._read())
    async with asyncio.timeout(10):
        while len(found) < len(steps) and not task.done():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.01)
    if task.done():
        task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return found


def with_devices(devices: Iterable[Device], **more: Any) -> Reading:
    return Reading(Facts("huawei.com/Ascend910", "910A", tuple(devices), **more))


async def test_a_backend_that_fails_is_said_and_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_AGAIN_SECONDS", 0.0)
    well = Reading(facts())
    assert await said(tmp_path, well, ValueError("what is this"), well) == [
        ("True", "Serving"), ("False", "BackendFailed"), ("True", "Serving")]


async def test_facts_that_do_not_fit_are_said_and_leave_the_last_ones(tmp_path: Path) -> None:
    many = with_devices(Device(id=f"Ascend910-{number}", physical=number) for number in range(257))
    long = with_devices(facts().devices, chip="x" * 64)
    assert await said(tmp_path, Reading(facts()), many, long, Reading(facts())) == [
        ("True", "Serving"), ("False", "InvalidFacts"), ("False", "InvalidFacts"), ("True", "Serving")]
