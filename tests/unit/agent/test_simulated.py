"""The description of simulated devices: what it means, what is wrong with it, and how the agent follows it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from trainyard.agent.simulated import Simulated, parse
from trainyard.agent.types import Reading, Unreadable


def text(**nodes: Any) -> str:
    return json.dumps({"nodes": {name.replace("_", "-"): node for name, node in nodes.items()}})


@pytest.mark.parametrize(("model", "rings", "modules"), [
    ("910A", [0, 0, 0, 0, 1, 1, 1, 1], list(range(8))),
    ("910B-8", [0] * 8, list(range(8))),
    ("910B-16", [0] * 8 + [1] * 8, list(range(16))),
    ("A3", [0] * 16, [number // 2 for number in range(16)]),
])
def test_a_model_says_what_belongs_together(model: str, rings: list[int], modules: list[int]) -> None:
    node = parse(text(n={"model": model})).of("n", {})
    assert node is not None
    assert [device.ring for device in node.all("n")] == rings
    assert [device.module for device in node.all("n")] == modules


def test_one_entry_describes_many_nodes() -> None:
    entry = {"model": "910A", "count": 2, "ip": "10.{number}.0.{device}", "superDevice": "{device}", "rack": "{node}-r",
             "faults": {"Ascend910-1": ["80E01801", {"code": "X", "level": "SubHealthFault", "network": True}]},
             "unknown": ["Ascend910-0"]}
    node = parse(json.dumps({"nodes": {"*": entry}})).of("npu-17", {})
    assert node is not None
    reading = node.reading("npu-17", {"huawei.com/topotree.superpodid": "sp-3", "huawei.com/topotree.rackid": "no"})
    assert [device.ip for device in reading.facts.devices] == ["10.17.0.0", "10.17.0.1"]
    assert [device.super_device for device in reading.facts.devices] == ["0", "1"]
    assert (reading.facts.super_pod, reading.facts.rack) == ("sp-3", "npu-17-r")
    assert [(fault.code, fault.level, fault.network) for fault in reading.faults["Ascend910-1"]] == [
        ("80E01801", None, False), ("X", "SubHealthFault", True)]
    assert reading.unknown == {"Ascend910-0"}


@pytest.mark.parametrize(("node", "labels", "count"), [
    ("a", {}, 1), ("a", {"pool": "npu"}, 1), ("b", {"pool": "npu"}, 2), ("b", {"pool": "npu", "slow": "yes"}, 3),
    ("b", {}, 4), ("b", None, None),
])
def test_entries_are_chosen_by_name_then_labels_then_all(node: str, labels: dict[str, str] | None,
                                                         count: int | None) -> None:
    found = parse(json.dumps({"nodes": {
        key: {"model": "Other", "count": number} for key, number in (
            ("a", 1), ("pool=npu, slow!=yes", 2), ("slow=yes", 3), ("*", 4))}}))
    if count is None:
        with pytest.raises(Unreadable, match="chosen by labels"):
            found.of(node, labels)
    else:
        entry = found.of(node, labels)
        assert entry is not None
        assert entry.count == count


def test_a_node_without_an_entry_has_no_devices() -> None:
    assert parse(text(a={"model": "910A"})).of("b", {}) is None
    assert parse("nodes: {}").of("b", {}) is None


@pytest.mark.parametrize(("given", "words"), [
    ("{", "not valid YAML"),
    ("[]", "the file: Input should be a valid dictionary"),
    ("", "the file: Input should be a valid dictionary"),
    ("{}", "nodes: Field required"),
    ("nodes: {a: {model: 910C}}", "nodes.a.model: Input should be '910A'"),
    ("nodes: {a: {}}", "nodes.a.model: Field required"),
    ("nodes: {a: {model: 910A, rings: 2}}", "nodes.a.rings: Extra inputs are not permitted"),
    ("nodes: {a: {model: Other}}", "model Other needs count or devices"),
    ("nodes: {a: {model: 910A, count: 2, devices: []}}", "either count or devices, not both"),
    ("nodes: {a: {model: 910A, devices: [{id: x, physical: 0}, {id: x, physical: 1}]}}", "device x is there twice"),
    ("nodes: {a: {model: 910A, devices: [{id: x, physical: 0, rnig: 1}]}}", "devices.0.rnig"),
    ("nodes: {a: {model: 910A, faults: {Ascend910-9: [X]}}}", "no device Ascend910-9; there are Ascend910-0, "),
    ("nodes: {a: {model: 910A, faults: {Ascend910-1: [81078603]}}}", "put the code in quotes"),
    ("nodes: {a: {model: 910A, ip: '10.{rack}.1'}}", "only {node}, {number} and {device} can be filled in"),
    ("nodes: {'pool=a=b': {model: 910A}}", "is no selector"),
    ("nodes: {a: {model: 910A, ip: '{node.real}'}}", "only {node}, {number} and {device} can be filled in"),
    ("nodes: {a: {model: 910A, ip: '{number[0]}'}}", "only {node}, {number} and {device} can be filled in"),
    ("nodes: {a: {model: 910A, ip: '{number:999999999}'}}", "only {node}, {number} and {device} can be filled in"),
    ("nodes: {a: {model: 2026-13-45}}", "not valid YAML: month must be in 1..12"),
    ("nodes: {a: {model: 910A, count: " + "9" * 5000 + "}}", "not valid YAML: Exceeds the limit"),
    ("nodes: " + "[" * 100000, "nested deeper than 32 levels"),
    ("nodes:\n  a: {model: 910A}\n  b: {model: A3}\n  a: {model: A3}\n", "line 4: 'a' is there twice"),
    ("nodes: {a: {model: 910A, faults: {Ascend910-1: [X], Ascend910-1: [Y]}}}", "'Ascend910-1' is there twice"),
    ("nodes: {a: {model: Other, devices: [{id: x, physical: 3}, {id: y, physical: 3}]}}", "the physical number 3"),
])
def test_what_is_wrong_is_named(given: str, words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(given)
    assert caught.value.reason == "InvalidDevices"
    assert words in caught.value.message


def test_of_very_many_mistakes_the_first_are_named() -> None:
    with pytest.raises(Unreadable) as caught:
        parse("nodes:\n" + "".join(f"  n{number}: {{modell: 910A}}\n" for number in range(10000)))
    assert "nodes.n0.model: Field required" in caught.value.message
    assert caught.value.message.endswith("; and 19984 more")
    assert len(caught.value.message) < 4096


@pytest.mark.parametrize("field", ["ip", "rack", "server", "superPod", "superDevice"])
async def test_what_does_not_fit_this_node_leaves_the_last_good_file_in_force(tmp_path: Path, field: str) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text('nodes: {"*": {model: 910A}}')
    readings = Simulated(file, "n" * 60 + "-1").readings()
    assert len(known(await following(readings)).facts.devices) == 8
    file.write_text(f'nodes: {{"*": {{model: 910A, {field}: "{{node}}-{{number}}.{{device}}"}}}}')
    found = known(await following(readings))
    assert len(found.facts.devices) == 8
    assert found.warning is not None
    assert "filled in for node nnn" in found.warning.message


async def following(readings: AsyncIterator[Reading | Unreadable]) -> Reading | Unreadable:
    async with asyncio.timeout(3):
        return await anext(readings)


def known(reading: Reading | Unreadable) -> Reading:
    assert isinstance(reading, Reading), reading
    return reading


async def test_the_agent_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    async with aclosing(Simulated(file, "n").readings()) as readings:  # type: ignore[type-var]
        missing = await following(readings)
        assert isinstance(missing, Unreadable)
        assert str(file) in missing.message
        file.write_text(text(n={"model": "910A"}))
        assert len(known(await following(readings)).facts.devices) == 8
        file.write_text(text(n={"model": "910A", "faults": {"Ascend910-2": ["X"]}}))
        assert list(known(await following(readings)).faults) == ["Ascend910-2"]

        file.write_text("nodes: [")
        bad = known(await following(readings))
        assert list(bad.faults) == ["Ascend910-2"], "the last good state counts"
        assert bad.warning is not None
        assert "not valid YAML" in bad.warning.message
        file.write_text(text(n={"model": "910A"}))
        mended = known(await following(readings))
        assert (mended.faults, mended.warning) == ({}, None)

        file.write_text(text(n={"model": "910A", "unreadable": "it hangs"}))
        unread = await following(readings)
        assert isinstance(unread, Unreadable)
        assert (unread.reason, unread.message) == ("HealthUnreadable", "it hangs")
        file.write_text(text(other={"model": "910A"}))
        assert known(await following(readings)).facts.devices == ()
        file.unlink()
        gone = known(await following(readings))
        assert gone.warning is not None


async def test_a_configmap_is_swapped_as_a_whole_folder(tmp_path: Path) -> None:
    """As kubelet does it: the file is a link into ..data, which is a link to a folder that is replaced."""
    for number, model in enumerate(("910A", "910B-8")):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "devices.yaml").write_text(text(n={"model": model}))
        os.utime(folder / "devices.yaml", (1e9, 1e9))
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "devices.yaml").symlink_to("..data/devices.yaml")
    async with aclosing(Simulated(tmp_path / "devices.yaml", "n").readings()) as readings:  # type: ignore[type-var]
        assert known(await following(readings)).facts.model == "910A"
        (tmp_path / "..data_tmp").symlink_to("..1")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        assert known(await following(readings)).facts.model == "910B-8"


async def test_it_reads_again_though_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainyard.agent.simulated._AGAIN_SECONDS", 0.2)
    file = tmp_path / "devices.yaml"
    file.write_text(text(n={"model": "910A"}))
    async with aclosing(Simulated(file, "n").readings()) as readings:  # type: ignore[type-var]
        assert known(await following(readings)) == known(await following(readings))
