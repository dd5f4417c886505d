"""Things break; the work goes on."""

from __future__ import annotations

import re

import pytest
from e2e.manifests import check_lost_pods, counting, leave, training, wait_kept
from harness.installation import Yard
from harness.job import Job, Object


def kill_rank(yard: Yard, job: Job, pod: str, rank: int = 0) -> None:
    """SIGKILL the process of a local rank inside its container: a program with its environment or a named fork."""
    index = int(pod.rsplit("-", 2)[1])
    code = (
        "import os,signal\n"
        f"name = 'rank %d\\n' % ({index} * int(os.environ['TRAINYARD_NUM_PROC']) + {rank})\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try: env, comm = (open(f'/proc/{pid}/{what}').read() for what in ('environ', 'comm'))\n"
        "    except OSError: continue\n"
        f"    named = comm == name or 'LOCAL_RANK={rank}' in env.split(chr(0))\n"
        "    if named and int(pid) != os.getpid(): os.kill(int(pid), signal.SIGKILL)\n"
    )
    yard.cluster.kubectl("exec", "-n", job.namespace, pod, "-c", "trainer", "--", "python3", "-c", code)


def incarnations(job: Job) -> dict[int, int]:
    """Newest incarnation by index."""
    found: dict[int, int] = {}
    for pod in job.pods():
        labels = pod["metadata"]["labels"]
        index, incarnation = int(labels["trainyard.dev/index"]), int(labels["trainyard.dev/incarnation"])
        found[index] = max(incarnation, found.get(index, 0))
    return found


def test_a_killed_rank_starts_again_in_its_pod(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("rank-killed", namespace, yard.trainer_image, nodes=2, procs=2, steps=40))
    wait_kept(yard, job, 5)
    before = {pod["metadata"]["uid"] for pod in job.pods()}
    kill_rank(yard, job, "rank-killed-1-1")
    status = job.wait_state("Succeeded")
    assert {pod["metadata"]["uid"] for pod in job.pods()} == before, "no pod is replaced for a dead process"
    assert status["restarts"] == {"total": 1, "counted": 1}
    (recovery,) = status["recoveries"]
    assert recovery["cause"] == "RankFailed"
    assert "SIGKILL" in recovery["culprit"]
    assert recovery["milliseconds"]["total"] > 0


@pytest.mark.parametrize("index", [0, 1])
def test_a_lost_pod_is_replaced_and_its_peers_stay(yard: Yard, namespace: str, index: int) -> None:
    job = yard.api.apply(counting(f"pod-lost-{index}", namespace, yard.trainer_image, nodes=2, steps=40))
    wait_kept(yard, job, 5)
    other = job.pod(1 - index)
    assert other is not None
    job.kill_pod(f"pod-lost-{index}-{index}-1")
    status = job.wait_state("Succeeded")
    assert incarnations(job) == {index: 2, 1 - index: 1}
    survivor = job.pod(1 - index)
    assert survivor is not None
    assert survivor["metadata"]["uid"] == other["metadata"]["uid"]
    check_lost_pods(status, 1)


def near(saved: str, start: str) -> bool:
    """Is it the step that rank 0 saved? The job goes on from the last that both have, and they do not wait for each
    other."""
    return abs(int(saved) - int(start)) <= 2


def test_a_deleted_pod_is_moved_with_a_checkpoint(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(counting("moved", namespace, yard.trainer_image, nodes=2, steps=50))
    wait_kept(yard, job, 5)
    yard.api.core.delete_namespaced_pod("moved-1-1", namespace)
    job.wait_state("Succeeded")
    starts = [line.split() for line in (yard.volume(namespace) / "moved" / "starts-1").read_text().splitlines()]
    assert len(starts) == 2, "one move, one new start"
    saved = re.findall(r"rank 0 saved step (\d+)", job.logs("moved-0-1"))
    assert len(saved) == 1
    assert near(saved[0], starts[1][1]), "the step saved by Drain is the one it goes on from"


def test_cordon_moves_nobody_a_drain_and_a_no_execute_taint_do_with_a_checkpoint(yard: Yard, namespace: str) -> None:
    job, kubectl = yard.api.apply(counting("leaves", namespace, yard.trainer_image, nodes=2, steps=150)), (
        yard.cluster.kubectl)

    def node() -> str:
        pod = job.pod(1)
        assert pod is not None
        return str(pod["spec"]["nodeName"])

    def steps() -> None:
        wait_kept(yard, job, wait_kept(yard, job, 0, rank=1) + 5, rank=1)

    wait_kept(yard, job, 3)
    before, cordoned = incarnations(job), node()
    kubectl("cordon", cordoned)
    try:
        steps()
        assert incarnations(job) == before, job.status()
        kubectl("drain", cordoned, "--force", "--ignore-daemonsets", "--delete-emptydir-data",
                f"--pod-selector=trainyard.dev/job={job.name}")  # fmt: skip
        steps()
        assert node() != cordoned
    finally:
        kubectl("uncordon", cordoned)
    tainted = node()
    kubectl("taint", "node", tainted, "trainyard-test=leave:NoExecute")
    try:
        job.wait("another move", lambda status: status["world"]["generation"] >= 3)
        steps()
        assert node() != tainted
    finally:
        kubectl("taint", "node", tainted, "trainyard-test-")
    status = job.wait_state("Succeeded")
    assert status["restarts"]["counted"] == 0
    assert {each["cause"] for each in status["recoveries"]} <= {"Moved"}
    starts = [line.split()[1] for line in (yard.volume(namespace) / job.name / "starts-1").read_text().splitlines()]
    saved = re.findall(r"rank 0 saved step (\d+)", job.logs(f"{job.name}-0-{before[0]}"))
    assert (len(starts), len(saved)) == (3, 2)
    assert all(map(near, saved, starts[1:])), "each goes on from the step that was saved for it"


def test_the_trainer_goes_on_from_its_checkpoint(yard: Yard, namespace: str) -> None:
    job = yard.api.apply(training("resumed", namespace, steps=120))
    job.wait("a checkpoint", lambda s: (s.get("checkpoint") or {}).get("durableStep", 0) >= 5, 240)
    job.kill_pod("resumed-1-1")
    status = job.wait_state("Succeeded", 300)
    assert status["progress"]["step"] == 120
    check_lost_pods(status, 1)
    assert status["recoveries"][0]["lostSteps"] <= 120 - 5


def test_a_dead_kubelet_replaces_nothing_while_steps_go_on(yard: Yard, namespace: str) -> None:
    yard.needs("kubelet")
    job = yard.api.apply(counting("kubelet-dead", namespace, yard.trainer_image, nodes=2, steps=90))
    wait_kept(yard, job, 3)
    pod = job.pod(1)
    assert pod is not None
    node = pod["spec"]["nodeName"]
    yard.cluster.stop("kubelet", node)
    try:
        wait_kept(yard, job, 75, 120)  # 14 s at least, past the moment at which the node is declared unknown
        assert incarnations(job) == {0: 1, 1: 1}
        assert job.status()["restarts"] == {"total": 0, "counted": 0}
    finally:
        yard.cluster.start("kubelet", node)
    job.wait_state("Succeeded")


def test_a_lost_node_is_replaced(yard: Yard, namespace: str) -> None:
    yard.needs("cut-network")
    job = yard.api.apply(training("node-lost", namespace, steps=150))
    job.wait("a checkpoint", lambda s: (s.get("checkpoint") or {}).get("durableStep", 0) >= 5, 240)
    pod = job.pod(1)
    assert pod is not None
    node = pod["spec"]["nodeName"]
    yard.cluster.cut_network(node)
    try:
        status = job.wait("a recovery", lambda s: bool(s["recoveries"]) and s["state"] == "Running", 180)
        assert incarnations(job)[1] == 2
        (recovery,) = status["recoveries"]
        assert recovery["cause"] in ("NodeLost", "PeerLost"), "whoever misses it first"
        assert node in recovery["culprit"]
        replaced = job.pod(1)
        assert replaced is not None
        assert replaced["spec"]["nodeName"] != node
    finally:
        yard.cluster.mend_network(node)
    status = job.wait_state("Succeeded", 300)
    assert status["restarts"] == {"total": 1, "counted": 0}, "the pod that comes back is fenced and changes nothing"


def start_and_fail(yard: Yard, namespace: str, name: str, code: int, policy: Object) -> Job:
    """A job of two pods whose rank 1 leaves with `code` once."""
    folder = yard.volume(namespace) / name
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    job = yard.api.apply(counting(name, namespace, yard.trainer_image, nodes=2, steps=25, failurePolicy=policy))
    wait_kept(yard, job, 3)
    leave(folder, code)
    return job


def test_failure_rule_fail(yard: Yard, namespace: str) -> None:
    policy = {"rules": [{"onExitCodes": [3], "action": "Fail"}]}
    job = start_and_fail(yard, namespace, "rule-fail", 3, policy)
    failed = job.condition("Failed", job.wait_state("Failed"))
    assert "exit code 3" in failed["message"]
    assert job.status()["restarts"] == {"total": 0, "counted": 0}


def test_failure_rule_restart(yard: Yard, namespace: str) -> None:
    policy = {"rules": [{"onExitCodes": [3], "action": "Restart"}]}
    status = start_and_fail(yard, namespace, "rule-restart", 3, policy).wait_state("Succeeded")
    assert status["restarts"] == {"total": 1, "counted": 1}


def test_failure_rule_restart_node(yard: Yard, namespace: str) -> None:
    policy = {"rules": [{"onExitCodes": [3], "action": "RestartNode"}]}
    job = start_and_fail(yard, namespace, "rule-node", 3, policy)
    status = job.wait_state("Succeeded")
    assert status["restarts"] == {"total": 1, "counted": 1}
    assert incarnations(job) == {0: 1, 1: 2}
    assert status["avoid"]


def test_failure_rule_ignore(yard: Yard, namespace: str) -> None:
    policy = {"maxRestarts": 0, "rules": [{"onExitCodes": [3], "action": "Ignore"}]}
    status = start_and_fail(yard, namespace, "rule-ignore", 3, policy).wait_state("Succeeded")
    assert status["restarts"] == {"total": 1, "counted": 0}


def test_bad_configuration_fails_at_once(yard: Yard, namespace: str) -> None:
    job = start_and_fail(yard, namespace, "rule-config", 78, {})
    failed = job.condition("Failed", job.wait_state("Failed"))
    assert "injected failure 78" in failed["message"]


def test_max_restarts_ends_a_crash_loop(yard: Yard, namespace: str) -> None:
    folder = yard.volume(namespace) / "loop"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "fail-always").write_text("9")
    job = yard.api.apply(
        counting("loop", namespace, yard.trainer_image, nodes=1, steps=25, failurePolicy={"maxRestarts": 2})
    )
    status = job.wait_state("Failed")
    assert job.condition("Failed", status)["reason"] == "MaxRestartsExceeded"
    assert status["restarts"] == {"total": 2, "counted": 2}
