"""Three supervisors check their nodes in pairs with real collectives before their ranks start."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervisor import checks
from supervisor.events import Checked, CheckPair, Event, PairChecked, PairOrder
from supervisor.logs import Logs
from supervisor.paircheck import PairCheck
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod, wait_for

pytest.importorskip("torch")
Start = Callable[..., SupervisedPod]


@pytest.mark.timeout(240)
def test_a_node_that_computes_wrongly_is_found_and_the_gang_starts_without_it(start: Start, api: FakeApi) -> None:
    operator = Operator(api, size=3, check="Pairs")

    def pod(index: int, incarnation: int = 1) -> SupervisedPod:
        return start([sys.executable, "-c", "print('trained')"], index=index, nodes=3, incarnation=incarnation,
                     TRAINYARD_INJECT="check:pod=j-2-1,how=sum")

    pods = [pod(index) for index in range(3)]
    operator.run(pods[0])
    check = operator.report("Checked", 1, timeout=180)["check"]
    assert (check["pairs"], check["failed"], check["culprits"]) == (3, 2, [2]), pods[0].output()
    assert "index 2 failed with index 1 and index 0: wrong sum on cpu: 1 of 1048576 elements" in check["reason"]
    assert not any("trained" in each.output() for each in pods)
    operator.put(generation=2, check="None", incarnations={"2": 2})
    assert pods[2].wait() == 143
    pods[2] = pod(2, incarnation=2)
    operator.report("Finished", 2, timeout=60)
    operator.put(phase="Done")
    assert [each.wait() for each in pods] == [0, 0, 0]


def test_a_check_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_SECONDS", 1.0)
    told: list[Event] = []
    logs = Logs()
    logs.start()
    environment = dict(os.environ, TRAINYARD_INDEX="0", TRAINYARD_POD="j-0-1",
                       TRAINYARD_INJECT="check:pod=j-0-1,how=hang")
    check = PairCheck([sys.executable], environment, str(tmp_path), logs, told.append)
    check.start(CheckPair((1, 0), PairOrder(1, 0, 1, "127.0.0.1", 1)))
    assert check._child is not None
    pid, due = check._child.pid, check.deadline()
    assert due is not None
    time.sleep(max(0.0, due - time.monotonic()))
    check.step()
    check.ended(*os.waitpid(pid, 0))

    def over() -> bool:
        check.step()
        return bool(told)

    wait_for(over, 10, lambda: "nothing was told")
    logs.close(1.0)
    assert told == [PairChecked((1, 0), Checked(1, False, "it did not end within 1 s"))]
    assert check.deadline() is None
