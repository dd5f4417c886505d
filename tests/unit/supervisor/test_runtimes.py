"""What ranks on NPUs and MindSpore's ranks are given, by real supervisors."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable

from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod, wait_for

Start = Callable[..., SupervisedPod]


def npus(index: int, ip: str) -> dict[str, str]:
    listed = [{"id": "Ascend910-5", "physical": 5, "ip": ip, "superDevice": "", "superPod": "", "server": ""}]
    return {"TRAINYARD_HCCL": "true", "TRAINYARD_NODE": f"node-{index}", "TRAINYARD_HOST_IP": "10.0.0.9",
            "TRAINYARD_DEVICES": json.dumps(listed)}


def test_ranks_find_their_rank_table(start: Start, api: FakeApi) -> None:
    operator = Operator(api, 2)
    show = ["sh", "-c", "echo connect $HCCL_CONNECT_TIMEOUT exec $HCCL_EXEC_TIMEOUT; cat $RANK_TABLE_FILE; sleep 100"]
    pods = [start(show, index=index, nodes=2, HCCL_EXEC_TIMEOUT="1836", **npus(index, f"1.1.1.{index}"))
            for index in range(2)]
    operator.run(pods[0])
    assert "connect 600 exec 1836" in pods[0].wait_output('"status"')
    (line,) = re.findall(r"\[rank 1\] (\{.*\})", pods[1].wait_output("[rank 1] {"))
    table = json.loads(line)
    assert [(server["server_id"], server["device"]) for server in table["server_list"]] == [
        ("node-0", [{"device_id": "5", "device_ip": "1.1.1.0", "rank_id": "0"}]),
        ("node-1", [{"device_id": "5", "device_ip": "1.1.1.1", "rank_id": "1"}]),
    ]


def test_a_wrong_address_ends_the_job_before_a_rank_starts(start: Start, api: FakeApi) -> None:
    operator = Operator(api, 2)
    pods = [start(["sh", "-c", "echo started; sleep 100"], index=index, nodes=2, **npus(index, ip))
            for index, ip in enumerate(["1.1.1.1", "-.-.-.-"])]
    operator.run(pods[0])
    failure = operator.report("RankFailed")["failure"]
    assert failure["exitCode"] == 78
    assert failure["reason"].startswith("pod j-1-1, node node-1, device 5: device_ip is '-.-.-.-'")
    assert not any("started" in pod.output().replace("has started", "") for pod in pods)


def said(pods: list[SupervisedPod], lines: list[int]) -> bool:
    """Whether every process has printed its line."""
    return [pod.output().count("] MS_") for pod in pods] == lines


def test_mindspores_cluster_has_a_scheduler_beside_rank_0(start: Start, api: FakeApi) -> None:
    operator = Operator(api, 2)
    show = 'echo "$MS_ROLE $MS_NODE_ID at $MS_SCHED_HOST:$MS_SCHED_PORT of $MS_WORKER_NUM/$MS_LOCAL_WORKER"; '
    pods = [start(["sh", "-c", show + "sleep 100"], index=index, nodes=2, ranks=2, TRAINYARD_RUNTIME="mindspore")
            for index in range(2)]
    operator.run(pods[1])  # the master need not be the pod of rank 0
    ports = []
    for generation in (1, 2):
        operator.put(generation=generation)
        operator.report("Formed", generation)
        wanted = [3 * generation, 2 * generation]
        wait_for(functools.partial(said, pods, wanted), 30, lambda: str([pod.output() for pod in pods]))
        (scheduler,) = re.findall(r"\[scheduler\] MS_SCHED scheduler at (\S+) of 4/2", pods[0].output())[-1:]
        workers = re.findall(r"\[rank (\d)\] MS_WORKER (\d) at (\S+) of 4/2", "".join(pod.output() for pod in pods))
        assert {(rank, node) for rank, node, _ in workers} == {(n, n) for n in "0123"}
        assert sum(where == scheduler for _, _, where in workers) == 4
        ports.append(scheduler)
    assert ports[0] != ports[1]
    assert "[scheduler]" not in pods[1].output()
