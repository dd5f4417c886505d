"""MindCluster's ConfigMap, from the examples in its documentation (github.com/Ascend/mind-cluster, docs), hashes
included."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from trainyard.agent.mindcluster import read
from trainyard.agent.types import Unreadable

NPU = "huawei.com/Ascend910"
FAULTS = [
    {"fault_type": "CardNetworkUnhealthy", "npu_name": "Ascend910-0", "large_model_fault_level": "PreSeparateNPU",
     "fault_level": "PreSeparateNPU", "fault_handling": "PreSeparateNPU", "fault_code": "81078603",
     "fault_time_and_level_map": {"81078603": {"fault_time": 1744168468259, "fault_level": "PreSeparateNPU"}}},
    {"fault_type": "CardUnhealthy", "npu_name": "Ascend910-4", "large_model_fault_level": "SeparateNPU",
     "fault_level": "SeparateNPU", "fault_handling": "SeparateNPU",
     "fault_code": "A8028801,A4028801,80E18402,80E18401",
     "fault_time_and_level_map": {code: {"fault_time": 1744167455784, "fault_level": level} for code, level in [
         ("80E18401", "NotHandleFault"), ("80E18402", "SeparateNPU"), ("A4028801", "NotHandleFault"),
         ("A8028801", "SeparateNPU")]}},
]
UPDATED = 1744182144


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def lists(healthy: str, **more: str) -> dict[str, str]:
    return {NPU: healthy} | {f"{NPU}-{key}": value for key, value in more.items()}


def published(device_list: dict[str, str], updated: int = UPDATED, **more: Any) -> dict[str, str]:
    """As MindCluster writes it."""
    info = compact({"DeviceList": device_list, "UpdateTime": updated})
    rest = {"CheckCode": hashlib.sha256(info.encode()).hexdigest()} | more
    return {"DeviceInfoCfg": '{"DeviceInfo":' + info + "," + compact(rest)[1:]}


EXAMPLE = published(
    {NPU: "Ascend910-0,Ascend910-1,Ascend910-2,Ascend910-3,Ascend910-5,Ascend910-6,Ascend910-7",
     f"{NPU}-Fault": compact(FAULTS), f"{NPU}-NetworkUnhealthy": "Ascend910-0", f"{NPU}-Recovering": "",
     f"{NPU}-Unhealthy": "Ascend910-4"}, SuperPodID=-2, ServerIndex=-2)
NOW = datetime.fromtimestamp(UPDATED + 60, UTC)


def test_the_documented_example_has_the_documented_hash() -> None:
    assert json.loads(EXAMPLE["DeviceInfoCfg"])["CheckCode"] == (
        "a550811fdfafb5717555526816af2ca4ac6c3e102f5907574048578e0c8fcc73")


def test_an_example_of_an_older_version_has_its_hash() -> None:
    older = {NPU: ",".join(f"Ascend910-{number}" for number in range(8)), f"{NPU}-Fault": "[]",
             f"{NPU}-NetworkUnhealthy": "", f"{NPU}-Unhealthy": ""}
    data = published(older, 1718702470)
    assert json.loads(data["DeviceInfoCfg"])["CheckCode"] == (
        "4f00cf1d220da26a8fdbeb5ba163a751d4b264c48b81d22149257e272ae3b413")
    found = read(data, datetime.fromtimestamp(1718702470, UTC))
    assert (found.resource, len(found.devices), found.faults) == (NPU, 8, {})


def test_what_it_says() -> None:
    found = read(EXAMPLE, NOW)
    assert found.devices == {f"Ascend910-{number}" for number in range(8)}
    assert (found.super_pod, found.server) == ("", "")
    assert [(fault.code, fault.level, fault.network) for fault in found.faults["Ascend910-0"]] == [
        ("81078603", "PreSeparateNPU", True)]
    assert {fault.code: fault.level for fault in found.faults["Ascend910-4"]} == {
        "A8028801": "SeparateNPU", "A4028801": "NotHandleFault", "80E18402": "SeparateNPU",
        "80E18401": "NotHandleFault"}
    assert set(found.faults) == {"Ascend910-0", "Ascend910-4"}


def test_lists_without_codes_and_devices_taken_out_by_hand() -> None:
    data = published(lists("Ascend910-0", Fault="[]", Unhealthy="Ascend910-1", NetworkUnhealthy="Ascend910-0",
                           Recovering="Ascend910-2"), SuperPodID=5, ServerIndex=3)
    found = read(data | {"ManuallySeparateNPU": "Ascend910-3"}, NOW)
    assert {name: [(fault.code, fault.level) for fault in faults] for name, faults in found.faults.items()} == {
        "Ascend910-1": [("CardUnhealthy", "SeparateNPU")],
        "Ascend910-0": [("CardNetworkUnhealthy", "PreSeparateNPU")],
        "Ascend910-2": [("Recovering", "RestartNPU")], "Ascend910-3": [("ManuallySeparateNPU", None)]}
    assert (found.super_pod, found.server) == ("5", "3")


def test_a_level_of_its_own_is_taken_for_the_one_that_it_is() -> None:
    fault = [{"fault_type": "CardUnhealthy", "npu_name": "Ascend910-1", "fault_level": "ManuallySeparateNPU",
              "fault_code": "80E01801"}]
    assert read(published(lists("", Fault=compact(fault))), NOW).faults["Ascend910-1"][0].level == "SeparateNPU"


@pytest.mark.parametrize(("data", "said"), [
    ({}, "expected an object with DeviceInfo.DeviceList"),
    ({"DeviceInfoCfg": "not json"}, "expected an object with DeviceInfo.DeviceList"),
    ({"DeviceInfoCfg": "[]"}, "expected an object"),
    ({"DeviceInfoCfg": '{"DeviceInfo":{"DeviceList":7,"UpdateTime":1}}'}, "expected an object"),
    ({"DeviceInfoCfg": EXAMPLE["DeviceInfoCfg"].replace('"Ascend910-4"}', '""}')}, "CheckCode does not fit"),
    (published(lists("Ascend910-0"), UPDATED - 3600), "MindCluster's device plugin does not run"),
    (published({}), "it names no resource"),
    (published(lists("Ascend910-0", Fault="{")), "is not a list of faults"),
    (published(lists("Ascend910-0", Fault="[7]")), "is not a list of faults"),
])
def test_what_cannot_be_believed_is_said(data: dict[str, str], said: str) -> None:
    with pytest.raises(Unreadable) as raised:
        read(data, NOW)
    assert raised.value.reason == "MindClusterUnreadable"
    assert said in raised.value.message


@pytest.mark.parametrize("device_list", [
    {NPU: None}, {NPU: 5}, {NPU: "a", f"{NPU}-Unhealthy": 5},
    {NPU: "a", f"{NPU}-Fault": '[{"npu_name": "a", "fault_time_and_level_map": [1], "fault_code": "1"}]'},
    {NPU: "a", f"{NPU}-Fault": {"a": 1}},
], ids=str)
def test_fields_of_another_type_are_named(device_list: dict[str, Any]) -> None:
    with pytest.raises(Unreadable) as caught:
        read(published(device_list), NOW)
    assert caught.value.reason == "MindClusterUnreadable"
