"""Devices on which a process is left: what the tools print, and what becomes of it."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from supervisor import events as e
from supervisor.core import Core
from supervisor.devices import Gpus, Held, chips, gpu_processes, held_chips, own_chips
from unit.agent.recorded import recorded
from unit.supervisor.core_pod import WORLD, Pod, found, last_report, reports
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod


def with_processes(name: str, *rows: str) -> str:
    """A recorded output with these rows in its table of processes instead of its own."""
    head, header, _ = re.split(r"(\| NPU[^|]*\| Process id .*\n)", recorded(name))
    return head + header + "+===+===+\n" + "".join(f"| {row} |\n+===+===+\n" for row in rows)


@pytest.mark.parametrize(("name", "count", "last", "processes"), [
    ("info-910a.txt", 8, ((7, 0), 7), None),
    ("info-910b.txt", 8, ((7, 0), 7), [((0, 0), 692318)]),
    ("info-a3.txt", 16, ((7, 1), 15), [((0, 0), 692318)]),
    ("info-950.txt", 8, ((7, 0), 7), []),
])
def test_the_tables_of_npu_smi(name: str, count: int, last: tuple[tuple[int, int], int],
                               processes: list[tuple[tuple[int, int], int]] | None) -> None:
    listed = chips(recorded(name))
    assert len(listed.physical) == count
    assert max(listed.physical.items()) == last
    assert processes is None or listed.processes == processes


@pytest.mark.parametrize(("row", "process"), [
    ("3       0                 | 77            | python                   | 9                       ", ((3, 0), 77)),
    ("3       0                 | 77            |                          | 9                       ", ((3, 0), 77)),
    ("3                         | 77            | python                   | 9                       ", ((3, 0), 77)),
])
def test_rows_of_processes(row: str, process: tuple[tuple[int, int], int]) -> None:
    quiet = "No running processes found in NPU 1           "
    assert chips(with_processes("info-910b.txt", quiet, row, row)).processes == [process, process]


@pytest.mark.parametrize("text", [
    "", "There is no NPU card on this machine", recorded("map-a3.txt"),
    recorded("info-910b.txt").split("Process id")[0],
    with_processes("info-910b.txt", "0 0 | none | python | 3"),
    recorded("info-a3.txt").replace("| 1     1  ", "| -     -  "),
])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        chips(text)


PLUGIN = json.dumps([{"id": "Ascend910-5", "physical": 5}, {"id": "Ascend910-0", "physical": 0}])


@pytest.mark.parametrize(("environment", "own"), [
    ({"TRAINYARD_DEVICES": PLUGIN, "ASCEND_VISIBLE_DEVICES": "1"}, {0: "Ascend910-0", 5: "Ascend910-5"}),
    ({"ASCEND_VISIBLE_DEVICES": "0,2-3"}, {0: "Ascend910-0", 2: "Ascend910-2", 3: "Ascend910-3"}),
    ({"TRAINYARD_DEVICES": "{", "ASCEND_VISIBLE_DEVICES": "Ascend910-7"}, {7: "Ascend910-7"}),
    ({"ASCEND_VISIBLE_DEVICES": "all"}, {}),
    ({}, {}),
])
def test_the_pods_own_chips(environment: dict[str, str], own: dict[int, str]) -> None:
    assert own_chips(environment) == own


LEFT = "0       0                 | 77            | python                   | 9"
ALONE = re.sub(r"(?m)^\| 1  .*\n.*\n\+=.*\n(\| [2-7]  .*\n.*\n\+=.*\n)*", "", with_processes("info-910b.txt", LEFT))


@pytest.mark.parametrize(("text", "own", "ranks", "held"), [
    (recorded("info-910b.txt"), {0: "a"}, 1, [Held("a", (692318,))]),  # all of the node are shown
    (recorded("info-910b.txt"), {1: "b", 2: "c"}, 2, []),  # it is on another's
    (with_processes("info-a3.txt", "1 1 | 9 | x | 3", "1 1 | 8 | x | 3"), {3: "d"}, 1, [Held("d", (8, 9))]),
    (ALONE, {5: "f"}, 1, [Held("f", (77,))]),  # numbered anew in the container
    (ALONE, {}, 1, [Held("NPU 0 chip 0", (77,))]),  # nobody has told which, but there is no other
])
def test_who_holds_ours(text: str, own: dict[int, str], ranks: int, held: list[Held]) -> None:
    assert held_chips(chips(text), own, ranks) == held


@pytest.mark.parametrize(("own", "ranks"), [({}, 1), ({40: "x"}, 1)])
def test_which_are_ours_has_to_be_known(own: dict[int, str], ranks: int) -> None:
    with pytest.raises(ValueError, match="lists 8 chips, and which of them are this pod's 1 is not told"):
        held_chips(chips(recorded("info-910b.txt")), own, ranks)


def test_gpus() -> None:
    assert gpu_processes("77, GPU-a\n\n 78 ,GPU-b\n") == [("GPU-a", 77), ("GPU-b", 78)]
    with pytest.raises(ValueError, match="expected a pid"):
        gpu_processes("[Insufficient Permissions], GPU-a")
    gpus = Gpus("nvidia-smi", {"NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 2)
    assert gpus.read("5, GPU-a\n6, GPU-c\n") == [], "5 was there before us: the GPU is shared"
    assert gpus.read("5, GPU-a\n7, GPU-b\n8, GPU-c\n") == [Held("GPU-b", (7,))]
    unnamed = Gpus("nvidia-smi", {"NVIDIA_VISIBLE_DEVICES": "all"}, 1)
    assert "--query-gpu=uuid" in unnamed.command()
    with pytest.raises(ValueError, match="lists 2 GPUs"):
        unnamed.read("GPU-a\nGPU-b\n")
    assert unnamed.read("GPU-a\n") is None
    assert "--query-compute-apps=pid,gpu_uuid" in unnamed.command()


def test_nobody_joins_before_the_devices_are_free_and_the_report_names_them() -> None:
    pod = Pod(index=1, ranks=2)
    pod.core.alive = True  # as of a member with devices
    did = pod.on(e.WorldSeen(WORLD), e.Linked())
    assert found(did, e.KillRanks)
    assert found(did, e.SendStatus)[-1].status.state == "stopping"
    held = e.DeviceHeld(("Ascend910-5",), "Ascend910-5 (process 77) still in use")
    did = pod.on(held, held)
    assert reports(did) == ["RankFailed"]
    failure = last_report(pod)["failure"]
    assert (failure["exitCode"], failure["root"], failure["rank"]) == (76, True, 2)
    assert failure["devices"] == ["Ascend910-5"]
    pod.on(e.RanksGone())
    pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    assert found(pod.did, e.SendStatus)[-1].status.state == "joining", "free again, in the next generation"


def test_a_member_with_devices_looks_before_its_first_start() -> None:
    me = Pod(index=0).core.me
    assert Core(replace(me, devices=True)).alive
    assert not Core(me).alive


# With a tool as a process ---------------------------------------------------------------------------------------------

HURRIED = ["/usr/bin/python3", "-c", "from supervisor import __main__, devicecheck; devicecheck.HELD_SECONDS = 1.0; "
           "devicecheck.TOOL_SECONDS = 1.0; devicecheck.EVERY = 0.1; __main__.main()"]
RANK = ["/usr/bin/python3", "-S", "-c", "print('rank runs')"]


@pytest.fixture
def npu_pod(start: Callable[..., SupervisedPod], tmp_path: Path) -> Callable[..., SupervisedPod]:
    """A pod with one NPU and this program as npu-smi."""
    def made(script: str) -> SupervisedPod:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "free").write_text(with_processes("info-910b.txt", "No running processes found in NPU 0"))
        (folder / "held").write_text(with_processes("info-910b.txt", LEFT))
        tool = folder / "npu-smi"
        tool.write_text(f"#!/bin/sh\ncd {folder}\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return start(RANK, command=HURRIED, PATH=f"{folder}:/usr/bin:/bin",
                     TRAINYARD_DEVICES=json.dumps([{"id": "Ascend910-0", "physical": 0}]))
    return made


@pytest.mark.parametrize(("script", "said"), [
    ("cat free", None),
    ("[ -e second ] && exec cat free; touch second; cat held",
     "devices are not free yet: Ascend910-0 (process 77)"),
    ("exit 3", "whether devices are free is not known, ranks start all the same"),
    ("echo rubbish", "expected a table of devices and one of processes"),
    ("exec sleep 1000", "it has not ended within 1 s"),
], ids=["free", "free after a moment", "fails", "rubbish", "hangs"])
def test_ranks_start(npu_pod: Callable[..., SupervisedPod], api: FakeApi, script: str, said: str | None) -> None:
    operator = Operator(api)
    pod = npu_pod(script)
    operator.run(pod)
    operator.report("Finished")
    pod.wait_output("[rank 0] rank runs")
    assert said in pod.output() if said else "devices" not in pod.output()
    operator.put(phase="Done")
    assert pod.wait() == 0


def test_a_device_that_stays_in_use_is_reported_and_no_rank_starts(npu_pod: Callable[..., SupervisedPod],
                                                                   api: FakeApi) -> None:
    operator = Operator(api)
    pod = npu_pod("[ -e late ] && exec cat free; cat held")
    operator.run(pod)
    failure: dict[str, Any] = operator.report("RankFailed", 1)["failure"]
    assert (failure["devices"], failure["exitCode"]) == (["Ascend910-0"], 76)
    assert failure["reason"].startswith("Ascend910-0 (process 77) still in use 1 s after the pod's last rank")
    operator.put(generation=2)
    operator.report("RankFailed", 2)
    assert "rank runs" not in pod.output()
    pod.terminate()
    assert pod.wait() == 143, "a pod that leaves does not wait for its devices"
