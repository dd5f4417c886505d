"""What the devices commands read and say; what they write is in the contract tests."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trainyard.cli.__main__ import main, parser
from trainyard.cli.devices import length, table

NOW = datetime(2026, 11, 22, 5, 0, tzinfo=UTC)


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d12h", 129600), ("1h30m", 5400)])
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert length(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-2h", "0h", "2w", "1.5h", "9" * 20 + "d"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        length(text)


@pytest.mark.parametrize("line", [
    [], ["devices"], ["devices", "quarantine", "n"], ["devices", "list", "-o", "xml"],
    ["devices", "quarantine", "n", "d", "--for", "soon"], ["devices", "release", "n", "d", "--for", "2h"]])
def test_command_lines_that_make_no_sense(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2
    assert "usage: kubectl trainyard" in capsys.readouterr().err


def test_a_missing_kubeconfig_is_said(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kubeconfig", str(tmp_path / "none"), "devices", "list"]) == 1
    assert "error: no cluster: " in capsys.readouterr().err


def test_the_command_line() -> None:
    given = parser().parse_args(["devices", "quarantine", "node-a", "3", "--for", "2h", "--reason", "fans"])
    assert (given.node, given.device, given.length, given.reason) == ("node-a", "3", timedelta(hours=2), "fans")


def test_the_table() -> None:
    node = {
        "metadata": {"name": "node-a"},
        "spec": {"devices": [{"id": f"Ascend910-{number}", "physical": number, "ring": number // 2}
                             for number in range(4)],
                 "orders": [{"device": "Ascend910-2", "action": "Quarantine", "by": "Administrator",
                             "at": "2026-11-22T04:00:00Z", "until": "2026-11-22T08:30:00Z", "reason": "fans"}]},
        "status": {"devices": [
            {"id": "Ascend910-0", "health": "Healthy", "since": "2026-11-20T04:00:00Z", "pod": "ns/job-0"},
            {"id": "Ascend910-1", "health": "Unhealthy", "since": "2026-11-22T04:59:00Z", "code": "80E01801",
             "level": "RestartBusiness", "text": "HBM", "faults": 2, "probation": "2026-11-22T05:04:00Z",
             "network": False},
            {"id": "Ascend910-2", "health": "Unhealthy", "quarantined": True}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "HealthUnreadable",
                            "message": "npu-smi hangs", "lastTransitionTime": "2026-11-22T04:59:00Z"}]},
    }
    lines = table([node], NOW).splitlines()
    assert [line.split() for line in lines[1:2]] == [
        ["node-a", "Ascend910-0", "0", "Healthy", "2d", "-", "-", "0", "ns/job-0"]]
    assert "RestartBusiness   2" in lines[2]
    assert lines[2].endswith("on probation, 4m left; no network; HBM")
    assert lines[3].endswith("quarantined by the administrator, 3h left: fans")
    assert lines[4].endswith("its agent has not told yet")
    assert lines[5] == "node-a: HealthUnreadable: npu-smi hangs"
    assert len({line.index("HEALTH") if "HEALTH" in line else line.index(word) for line, word in zip(
        lines[:4], ("HEALTH", "Healthy", "Unhealthy", "Unhealthy"), strict=True)}) == 1


def test_what_is_wrong_although_devices_work_is_shown() -> None:
    def node(reason: str, message: str) -> dict[str, Any]:
        return {"metadata": {"name": "node-a"}, "spec": {"devices": [{"id": "d", "physical": 0}]}, "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": reason, "message": message,
                            "lastTransitionTime": "2026-11-22T04:59:00Z"}]}}
    lines = table([node("InvalidFaultTable", "codes.A1")], NOW).splitlines()
    assert lines[2:] == ["node-a: InvalidFaultTable: codes.A1"]
    assert table([node("Serving", "")], NOW).splitlines()[2:] == []
