"""What kubelet is told, and what a container gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainyard.agent.host import Host
from trainyard.agent.serving import Grant, grant, prefer, serve
from trainyard.api.devices import Device, DeviceStatus
from unit.agent.devices import facts

GOOD = DeviceStatus(id="Ascend910-0", health="Healthy")


def status(**fields: Any) -> DeviceStatus:
    return GOOD.model_copy(update=fields)


@pytest.mark.parametrize(("given", "healthy", "grantable", "why"), [
    ({}, True, True, ""),
    ({"level": "SubHealthFault", "code": "80DE0207"}, True, True, ""),
    ({"health": "Unhealthy", "level": "SeparateNPU", "code": "A1", "text": "broken"}, False, False,
     "Ascend910-0 is unhealthy: A1 SeparateNPU broken"),
    ({"health": "Unhealthy", "level": "SeparateNPU", "code": "A1", "pod": "ns/p"}, False, False, "A1 SeparateNPU"),
    ({"health": "Unknown"}, False, False, "the health of Ascend910-0 cannot be read"),
    ({"health": "Unknown", "pod": "ns/p"}, True, False, "cannot be read"),
    ({"quarantined": True, "health": "Unhealthy"}, False, False, "is quarantined"),
    ({"quarantined": True}, False, False, "is quarantined"),
    ({"quarantined": True, "pod": "ns/p"}, True, False, "is quarantined"),
    ({"level": "PreSeparateNPU", "code": "B2", "pod": "ns/p"}, True, False, "B2 PreSeparateNPU"),
    ({"probation": "2026-11-22T05:00:00Z"}, False, False, "on probation until 2026-11-22T05:00:00Z"),
    ({"probation": "2026-11-22T05:00:00Z", "pod": "ns/p"}, True, False, "on probation"),
])
def test_what_kubelet_is_told(given: dict[str, Any], healthy: bool, grantable: bool, why: str) -> None:
    served = serve(facts(1), [status(**given)], {})["Ascend910-0"]
    assert (served.healthy, served.grantable) == (healthy, grantable)
    assert why in served.why
    assert bool(served.why) != grantable


def test_a_device_without_a_status_is_not_given_away() -> None:
    assert not serve(facts(1), [], {})["Ascend910-0"].healthy


def test_a_device_that_is_gone_stays_in_the_list_as_unhealthy() -> None:
    before = serve(facts(2), [status(), status(id="Ascend910-1")], {})
    after = serve(facts(1), [status()], before)
    assert list(after) == ["Ascend910-0", "Ascend910-1"]
    assert after["Ascend910-0"].healthy
    assert not after["Ascend910-1"].healthy
    assert serve(facts(1), [status()], after) == after
    assert serve(facts(2), [status(), status(id="Ascend910-1")], after) == before


def test_devices_with_mild_faults_are_the_last_choice() -> None:
    names = [f"Ascend910-{number}" for number in range(8)]
    ill: dict[str, dict[str, Any]] = {"Ascend910-4": {"level": "SubHealthFault"}, "Ascend910-5": {"network": False}}
    served = serve(facts(8), [status(id=name, **ill.get(name, {})) for name in names], {})
    assert prefer("910A", served, names[3:6], [], 1) == ["Ascend910-3"]
    assert prefer("910A", served, names[4:6], [], 2) == ["Ascend910-4", "Ascend910-5"]
    assert prefer("910A", served, names, ["Ascend910-5"], 2)[0].startswith("Ascend910-")
    assert "Ascend910-5" in prefer("910A", served, names, ["Ascend910-5"], 2)
    assert prefer("910A", served, names, [], 3) == [], "no legal number: kubelet may choose"


def test_what_a_container_gets(tmp_path: Path) -> None:
    devices = [Device(id="Ascend910-5", physical=5, ip="1.1.1.5", super_device="55"),
               Device(id="Ascend910-1", physical=1, ip="1.1.1.1", super_device="51")]
    bare = grant(devices, "none", Host(), super_pod="7", server="3")
    told = json.loads(bare.environment.pop("TRAINYARD_DEVICES"))
    assert told == [
        {"id": "Ascend910-1", "physical": 1, "ip": "1.1.1.1", "superDevice": "51", "superPod": "7", "server": "3"},
        {"id": "Ascend910-5", "physical": 5, "ip": "1.1.1.5", "superDevice": "55", "superPod": "7", "server": "3"}]
    assert bare == Grant({"ASCEND_VISIBLE_DEVICES": "1,5"})
    assert grant(devices, "ascend", Host()).environment["ASCEND_RUNTIME_OPTIONS"] == ""
    for path in ("opt/npu/lib64", "opt/npu/include", "usr/local/bin/npu-smi"):  # and no dcmi
        (tmp_path / path).mkdir(parents=True)
    plain = grant(devices, "plain", Host(tmp_path, driver="/opt/npu"))
    assert plain.nodes == ("/dev/davinci1", "/dev/davinci5", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
    assert plain.mounts == (
        ("/usr/local/Ascend/driver/lib64", "/opt/npu/lib64"), ("/usr/local/Ascend/driver/include", "/opt/npu/include"),
        ("/usr/local/bin/npu-smi", "/usr/local/bin/npu-smi"))
    assert not any("RT_VISIBLE" in name for name in plain.environment)


def test_equal_states_make_equal_lists() -> None:
    """What is equal is not sent again."""
    first = serve(facts(2), [status(), status(id="Ascend910-1", pod="ns/p")], {})
    again = serve(replace(facts(2)), [status(faults=3), status(id="Ascend910-1", pod="ns/q")], first)
    assert again == first
