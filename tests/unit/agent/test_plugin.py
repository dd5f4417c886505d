"""The device plugin against a stand-in for kubelet that speaks the same protocol over the same kind of sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from trainyard.agent import plugin as module
from trainyard.agent.metrics import Metrics
from trainyard.agent.plugin import Plugin
from trainyard.agent.types import Facts
from trainyard.agent.wire import deviceplugin_pb2 as pb
from trainyard.agent.wire import deviceplugin_pb2_grpc as rpc
from trainyard.api.devices import DeviceStatus
from unit.agent.devices import facts
from unit.agent.registry import Kubelet


async def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.02)


def healthy(count: int = 2) -> list[DeviceStatus]:
    return [DeviceStatus(id=f"Ascend910-{number}", health="Healthy") for number in range(count)]


def ill(name: str) -> DeviceStatus:
    return DeviceStatus(id=name, health="Unhealthy", code="80E01801", level="SeparateNPU")


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Plugin, Kubelet]]:
    made, kubelet = Plugin(folder, "none", Metrics()), Kubelet(folder)
    await kubelet.start()
    task = asyncio.create_task(made.run())
    try:
        yield made, kubelet
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kubelet.stop()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LISTEN_SECONDS", 0.5)
    return tmp_path


def stub(channel: Any) -> Any:
    return rpc.DevicePluginStub(channel)


async def test_it_registers_once_there_is_something_to_serve(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        await asyncio.sleep(0.2)
        assert not kubelet.registered
        assert not plugin.socket.exists()
        plugin.show(facts(), healthy())
        await until(lambda: plugin.registered)
        assert kubelet.registered == ["huawei.com/Ascend910"]
        assert kubelet.lists == [{"Ascend910-0": "Healthy", "Ascend910-1": "Healthy"}]
        assert await plugin.answers() == ""
        plugin.hide()
        await until(lambda: not plugin.socket.exists())
    assert not plugin.socket.exists()


async def test_the_full_list_is_sent_at_every_change_recoveries_included(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        plugin.show(facts(), healthy())
        await until(lambda: kubelet.lists)
        plugin.show(facts(), [healthy()[0], ill("Ascend910-1")])
        await until(lambda: len(kubelet.lists) == 2)
        plugin.show(facts(), [healthy()[0].model_copy(update={"pod": "ns/p"}), ill("Ascend910-1")])
        plugin.show(facts(), healthy())
        await until(lambda: len(kubelet.lists) == 3)
        assert [seen["Ascend910-1"] for seen in kubelet.lists] == ["Healthy", "Unhealthy", "Healthy"]
        assert all(len(seen) == 2 for seen in kubelet.lists)


async def test_it_registers_again_with_a_new_kubelet(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        plugin.show(facts(), healthy())
        await until(lambda: plugin.registered)
        await kubelet.stop()
        await until(lambda: not plugin.registered)
        assert "not registered" in await plugin.answers()
        await kubelet.start()
        await until(lambda: plugin.registered and len(kubelet.lists) == 2)
        assert await plugin.answers() == ""


async def test_it_comes_back_when_its_socket_vanishes(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        plugin.show(facts(), healthy())
        await until(lambda: plugin.registered)
        plugin.socket.unlink()
        await until(lambda: len(kubelet.registered) == 2 and plugin.registered)
        assert plugin.socket.exists()


async def test_it_registers_again_while_kubelet_does_not_listen(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        kubelet.listens = False
        plugin.show(facts(), healthy())
        await until(lambda: len(kubelet.registered) == 2)
        assert not plugin.registered
        kubelet.listens = True
        await until(lambda: plugin.registered)


async def test_another_resource_is_another_registration(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        plugin.show(facts(), healthy())
        await until(lambda: plugin.registered)
        old = facts()
        plugin.show(Facts("huawei.com/npu", old.model, old.devices), healthy())
        await until(lambda: kubelet.registered[-1] == "huawei.com/npu" and plugin.registered)


async def test_the_next_agents_socket_is_left_alone(folder: Path) -> None:
    """In a rolling update the old agent may end after the new one has begun."""
    async with running(folder) as (plugin, _):
        plugin.show(facts(), healthy())
        await until(lambda: plugin.registered)
        theirs = folder / "theirs"
        theirs.write_text("the next one's")
        theirs.replace(plugin.socket)
    assert plugin.socket.exists()


async def test_allocate_and_start_refuse_what_has_gone_bad(folder: Path) -> None:
    async with running(folder) as (plugin, _):
        plugin.show(facts(), [healthy()[0], ill("Ascend910-1")])
        await until(lambda: plugin.registered)
        async with grpc.aio.insecure_channel(f"unix:{plugin.socket}") as channel:
            def ask(*names: str) -> Any:
                return pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=names)])

            given = await stub(channel).Allocate(ask("Ascend910-0"))
            (told,) = json.loads(given.container_responses[0].envs.pop("TRAINYARD_DEVICES"))
            assert (told["id"], told["physical"]) == ("Ascend910-0", 0)
            assert dict(given.container_responses[0].envs) == {"ASCEND_VISIBLE_DEVICES": "0"}
            await stub(channel).PreStartContainer(pb.PreStartContainerRequest(devices_ids=["Ascend910-0"]))
            for name, words in (("Ascend910-1", "80E01801 SeparateNPU"), ("Ascend910-9", "not among the node's")):
                with pytest.raises(grpc.aio.AioRpcError, match=words):
                    await stub(channel).Allocate(ask(name))
                with pytest.raises(grpc.aio.AioRpcError, match=words):
                    await stub(channel).PreStartContainer(pb.PreStartContainerRequest(devices_ids=[name]))


async def test_unknown_health_gives_nothing_away_and_stops_nothing(folder: Path) -> None:
    async with running(folder) as (plugin, kubelet):
        held = DeviceStatus(id="Ascend910-0", health="Unknown", pod="ns/p")
        plugin.show(facts(), [held, DeviceStatus(id="Ascend910-1", health="Unknown")])
        await until(lambda: kubelet.lists)
        assert kubelet.lists == [{"Ascend910-0": "Healthy", "Ascend910-1": "Unhealthy"}]
        async with grpc.aio.insecure_channel(f"unix:{plugin.socket}") as channel:
            await stub(channel).PreStartContainer(pb.PreStartContainerRequest(devices_ids=["Ascend910-0"]))
            with pytest.raises(grpc.aio.AioRpcError, match="cannot be read"):
                await stub(channel).Allocate(pb.AllocateRequest(container_requests=[
                    pb.ContainerAllocateRequest(devices_ids=["Ascend910-0"])]))


async def test_the_preferred_devices_are_of_one_ring(folder: Path) -> None:
    async with running(folder) as (plugin, _):
        plugin.show(facts(8), healthy(8))
        await until(lambda: plugin.registered)
        async with grpc.aio.insecure_channel(f"unix:{plugin.socket}") as channel:
            answer = await stub(channel).GetPreferredAllocation(pb.PreferredAllocationRequest(container_requests=[
                pb.ContainerPreferredAllocationRequest(
                    available_deviceIDs=[f"Ascend910-{number}" for number in (0, 1, 5, 6, 7)],
                    must_include_deviceIDs=["Ascend910-6"], allocation_size=2)]))
        chosen = list(answer.container_responses[0].deviceIDs)
        assert "Ascend910-6" in chosen
        assert set(chosen) < {"Ascend910-5", "Ascend910-6", "Ascend910-7"}
