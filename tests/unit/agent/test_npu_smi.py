"""The npu-smi backend with programs in place of the driver's: processes that print what was recorded, fail, hang."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from trainyard.agent.host import Host
from trainyard.agent.npu_smi import NpuSmi
from trainyard.agent.tool import Tool
from trainyard.agent.types import Reading, Unreadable
from trainyard.api.devices import Device, NodeDevicesSpec
from unit.agent.recorded import recorded

NPU = "huawei.com/Ascend910"


class Driver:
    """Two programs that print files: a file is named after the arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.npu_smi = self._program("npu-smi")
        self._program("tools/hccn_tool")
        self.conf = folder / "hccn.conf"

    def _program(self, name: str) -> Path:
        program = self.folder / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"""#!/bin/sh
echo "$$ $*" >> {self.folder}/calls
[ -e {self.folder}/hangs ] && {{ echo "$$" >> {self.folder}/hanging; sleep 1000; }}
file="{self.folder}/{program.name} $*"
[ -e "$file" ] || {{ echo "not supported: $*"; exit 1; }}
exec cat "$file"
""")
        program.chmod(0o755)
        return program

    def prints(self, text: str, *arguments: str, tool: str = "npu-smi") -> None:
        (self.folder / " ".join((tool, *arguments))).write_text(text)

    @property
    def calls(self) -> list[str]:
        return [line.partition(" ")[2] for line in (self.folder / "calls").read_text().splitlines()]

    def backend(self, accelerator: str = "", resource: str = NPU, limit: float = 20.0) -> NpuSmi:
        host = Host(npu_smi=str(self.npu_smi), driver=str(self.folder), hccn_conf=str(self.conf))
        made = NpuSmi(resource, host, pause=0, limit=limit)
        made.learn({"accelerator-type": accelerator} if accelerator else {}, {})
        return made


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    made = Driver(tmp_path)
    made.prints(recorded("info-910a.txt").replace("Alarm", "OK   "), "info")
    made.prints(recorded("map-910.txt"), "info", "-m")
    return made


def running(group: int) -> bool:
    """Whether a process of the group still runs; zombies that nobody has reaped do not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            return True
    return False


async def gone(group: int) -> bool:
    """Whether it ends; a process that was killed takes a moment to be gone."""
    for _ in range(500):
        if not running(group):
            return True
        await asyncio.sleep(0.01)
    return False


async def read(backend: NpuSmi) -> Reading:
    found = await backend.read()
    assert isinstance(found, Reading), str(found)
    return found


async def unread(backend: NpuSmi) -> Unreadable:
    found = await backend.read()
    assert isinstance(found, Unreadable)
    return found


async def test_a_healthy_node_of_each_label(driver: Driver) -> None:
    driver.conf.write_text("".join(f"address_{number}=10.0.0.{number + 1}\n" for number in range(8)))
    found = await read(driver.backend("module"))
    assert (found.faults, found.unknown) == ({}, frozenset())
    facts = found.facts
    assert (facts.model, facts.resource, facts.chip) == ("910A", NPU, "Ascend 910B")
    assert [(device.id, device.physical, device.ring, device.module, device.ip) for device in facts.devices] == [
        (f"Ascend910-{number}", number, number // 4, number, f"10.0.0.{number + 1}") for number in range(8)]
    assert {device.ring for device in (await read(driver.backend("module-910b-8"))).facts.devices} == {0}


async def test_without_a_label_the_hardware_says_what_it_is(driver: Driver) -> None:
    assert (await read(driver.backend())).facts.model == "Other"
    driver.prints(recorded("board-910a.txt"), "info", "-t", "board", "-i", "0", "-c", "0")
    assert (await read(driver.backend())).facts.model == "910A"
    driver.prints(recorded("board-910a.txt").replace("0xD801", "0xd802"), "info", "-t", "board", "-i", "0", "-c", "0")
    assert (await read(driver.backend())).facts.model == "910B-8"


async def test_labels_that_come_later_count(driver: Driver) -> None:
    backend = driver.backend()
    assert (await read(backend)).facts.rack == ""
    backend.learn({"accelerator-type": "module", "huawei.com/topotree.rackid": "r7"}, {})
    facts = (await read(backend)).facts
    assert (facts.model, facts.rack, {device.ring for device in facts.devices}) == ("910A", "r7", {0, 1})


async def test_a3(driver: Driver) -> None:
    driver.prints(recorded("info-a3.txt"), "info")
    driver.prints(recorded("map-a3.txt"), "info", "-m")
    driver.prints(recorded("health-none.txt"), "info", "-t", "health", "-i", "1", "-c", "1")
    for number in range(16):
        driver.prints(recorded("spod-info.txt").replace("16777216", str(16777216 + number)), "info", "-t", "spod-info",
                      "-i", str(number // 2), "-c", str(number % 2))
    found = await read(driver.backend())
    facts = found.facts
    assert (facts.model, facts.super_pod, facts.server, len(facts.devices)) == ("A3", "3", "4", 16)
    assert [(device.module, device.super_device) for device in facts.devices][5] == (2, "16777221")
    assert found.unknown == {"Ascend910-6"}
    assert [(name, [(fault.code, fault.severity) for fault in faults]) for name, faults in found.faults.items()] == [
        ("Ascend910-3", [("HealthCritical", "critical")])]


async def test_950_is_asked_without_a_chip(driver: Driver) -> None:
    driver.prints(recorded("info-950.txt"), "info")
    driver.prints(recorded("map-950.txt"), "info", "-m")
    driver.prints(recorded("health-two.txt"), "info", "-t", "health", "-i", "7")
    found = await read(driver.backend(resource="huawei.com/npu"))
    assert found.facts.devices[7].id == "npu-7"
    assert [fault.code for fault in found.faults["npu-7"]] == ["80E18402", "A8028801"]
    assert not any("-c" in call for call in driver.calls)


async def test_error_codes_and_memory(driver: Driver) -> None:
    driver.prints(recorded("info-910a.txt"), "info")
    driver.prints(recorded("health-two.txt"), "info", "-t", "health", "-i", "5", "-c", "0")
    driver.prints(recorded("ecc-errors.txt"), "info", "-t", "ecc", "-i", "2", "-c", "0")
    driver.prints(recorded("ecc.txt"), "info", "-t", "ecc", "-i", "3", "-c", "0")
    found = await read(driver.backend("module"))
    assert {name: [(fault.code, fault.severity) for fault in faults] for name, faults in found.faults.items()} == {
        "Ascend910-5": [("80E18402", "major"), ("A8028801", "major")],
        "Ascend910-2": [("HbmDoubleBitErrors", "minor")]}


async def test_links(driver: Driver) -> None:
    driver.conf.write_text("address_0=10.0.0.1\n")
    driver.prints("ipaddr:10.0.0.2\nnetmask:255.0.0.0\n", "-i", "1", "-ip", "-g", tool="hccn_tool")
    for number in range(2, 8):
        driver.prints("ipaddr:-.-.-.-\n", "-i", str(number), "-ip", "-g", tool="hccn_tool")
    driver.prints("link status: DOWN\n", "-i", "1", "-link", "-g", tool="hccn_tool")
    driver.prints("link status: UP\n", "-i", "0", "-link", "-g", tool="hccn_tool")
    found = await read(driver.backend("module"))
    assert [device.ip for device in found.facts.devices[:3]] == ["10.0.0.1", "10.0.0.2", ""]
    assert list(found.faults) == ["Ascend910-1"]
    assert found.faults["Ascend910-1"][0].network


async def test_a_failing_hccn_tool_makes_no_device_ill(driver: Driver) -> None:
    driver.conf.write_text("address_0=10.0.0.1\n")
    found = await read(driver.backend("module"))
    assert (found.faults, found.unknown) == ({}, frozenset())


async def test_a_device_that_disappears_is_unknown_then_lost_then_back(driver: Driver) -> None:
    backend = driver.backend("module")
    whole = recorded("info-910a.txt").replace("Alarm", "OK   ")
    assert len((await read(backend)).facts.devices) == 8
    lines = whole.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("| 3     910B"))
    driver.prints("".join(lines[:start] + lines[start + 3:]), "info")
    assert (await read(backend)).unknown == {"Ascend910-3"}
    lost = await read(backend)
    assert ([fault.code for fault in lost.faults["Ascend910-3"]], lost.unknown) == (["DeviceLost"], frozenset())
    assert len(lost.facts.devices) == 8
    driver.prints(whole, "info")
    assert (await read(backend)).faults == {}


async def test_a_device_that_an_agent_before_saw_is_not_forgotten(driver: Driver) -> None:
    backend = driver.backend("module")
    backend.recall(NodeDevicesSpec(node="n", resource=NPU, backend="npu-smi",
                                   devices=[Device(id="Ascend910-8", physical=8, ring=2)]))
    await read(backend)
    found = await read(backend)
    assert found.facts.devices[8].id == "Ascend910-8"
    assert [fault.code for fault in found.faults["Ascend910-8"]] == ["DeviceLost"]


@pytest.mark.parametrize(("printed", "reason"), [
    ("Segmentation fault", "ToolUnreadable"), ("", "ToolUnreadable"), ("x" * (2 << 20), "ToolUnreadable")])
async def test_rubbish_fails_closed_and_recovers(driver: Driver, printed: str, reason: str) -> None:
    backend = driver.backend("module")
    good = (driver.folder / "npu-smi info").read_text()
    driver.prints(printed, "info")
    error = await unread(backend)
    assert (error.reason, "npu-smi info" in error.message) == (reason, True)
    driver.prints(good, "info")
    assert len((await read(backend)).facts.devices) == 8


async def test_failing_and_missing_are_named_and_recover(driver: Driver) -> None:
    backend = driver.backend("module")
    good = (driver.folder / "npu-smi info").read_text()
    (driver.folder / "npu-smi info").unlink()
    error = await unread(backend)
    assert error.reason == "ToolFails"
    assert error.message == "npu-smi info ended with code 1: not supported: info"
    driver.npu_smi.rename(driver.folder / "away")
    assert (await unread(backend)).reason == "ToolMissing"
    (driver.folder / "away").rename(driver.npu_smi)
    driver.prints(good, "info")
    assert len((await read(backend)).facts.devices) == 8


async def test_a_hanging_one_is_killed_with_its_children_and_tried_again(driver: Driver) -> None:
    backend = driver.backend("module", limit=1.0)
    (driver.folder / "hangs").touch()
    begun = time.monotonic()
    error = await unread(backend)
    assert time.monotonic() - begun < 4
    assert error.reason == "ToolHangs"
    assert "npu-smi info" in error.message
    for group in (driver.folder / "hanging").read_text().split():
        assert await gone(int(group))
    (driver.folder / "hangs").unlink()
    backend = driver.backend("module")
    assert len((await read(backend)).facts.devices) == 8


async def test_what_cannot_be_killed_is_not_started_a_second_time(driver: Driver) -> None:
    tool = Tool(str(driver.npu_smi))
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        tool._stuck = process  # stands for one that hangs inside the driver, where no signal reaches it
        with pytest.raises(Unreadable, match="is not gone") as raised:
            await tool.run("info", seconds=5)
        assert raised.value.reason == "ToolHangs"
        assert not (driver.folder / "calls").exists()
    finally:
        process.kill()
        await process.wait()
    assert "NPU" in await tool.run("info", seconds=10)


async def test_cancelled_while_it_runs_leaves_no_process(driver: Driver) -> None:
    (driver.folder / "hangs").touch()
    task = asyncio.create_task(Tool(str(driver.npu_smi)).run("info", seconds=100))
    hanging = driver.folder / "hanging"
    for _ in range(1000):
        if hanging.exists() and hanging.read_text().endswith("\n"):
            break
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(int((driver.folder / "hanging").read_text()))


async def test_readings_never_end(driver: Driver) -> None:
    (driver.folder / "npu-smi info").rename(driver.folder / "kept")
    readings = driver.backend("module").readings()
    assert isinstance(await anext(readings), Unreadable)
    (driver.folder / "kept").rename(driver.folder / "npu-smi info")
    assert isinstance(await anext(readings), Reading)


@pytest.mark.parametrize(("state", "code"), [("Alarm", "HealthAlarm"), ("Critical", "HealthCritical"), ("Warning", "")])
async def test_a_broken_chip_that_does_not_answer_is_ill_alone(driver: Driver, state: str, code: str) -> None:
    driver.prints(recorded("info-910a.txt").replace("Alarm   ", state.ljust(8)), "info")
    found = await read(driver.backend("module"))  # -t health of it fails
    (ill,) = {*found.faults} or found.unknown
    assert ill == "Ascend910-5"
    assert [fault.code for fault in found.faults.get(ill, ())] == ([code] if code else [])
    assert found.unknown == (frozenset() if code else {ill}), "how grave a warning is nobody knows without its code"


async def test_a_link_that_cannot_be_read_hides_no_other(driver: Driver) -> None:
    driver.conf.write_text("".join(f"address_{number}=10.0.0.{number + 1}\n" for number in range(8)))
    driver.prints("link status: DOWN\n", "-i", "6", "-link", "-g", tool="hccn_tool")
    found = await read(driver.backend("module"))
    assert list(found.faults) == ["Ascend910-6"]


async def test_slow_tools_are_asked_in_several_rounds(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen questions of 3 s do not fit into a round of 20 s."""
    driver.conf.write_text("".join(f"address_{number}=10.0.0.{number + 1}\n" for number in range(8)))
    driver.prints("HBM Double Bit Error Count : 3\n", "info", "-t", "ecc", "-i", "7", "-c", "0")
    driver.prints("link status: DOWN\n", "-i", "7", "-link", "-g", tool="hccn_tool")
    backend = driver.backend("module", limit=20)
    clock = [0.0]
    monkeypatch.setattr("trainyard.agent.npu_smi.time", SimpleNamespace(monotonic=lambda: clock[0]))
    ask = Tool.run

    async def slow(self: Tool, *arguments: str, seconds: float) -> str:
        clock[0] += 3.0
        return await ask(self, *arguments, seconds=seconds)

    monkeypatch.setattr(Tool, "run", slow)
    seen: set[str] = set()
    for _ in range(12):
        begun, clock[0] = clock[0], clock[0] + 3.0
        seen |= {fault.code for fault in (await read(backend)).faults.get("Ascend910-7", ())}
        if begun:  # the first round also learns what the devices are
            assert clock[0] - begun <= 20
    assert seen == {"81078603", "HbmDoubleBitErrors"}
