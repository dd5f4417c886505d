"""What is done to nodes and to the control plane, and what must not come of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

from cluster.builtin.addresses import CONTROL_PLANE_PORT
from e2e.device_jobs import made_new, whole
from urllib3.exceptions import HTTPError

from chaos import processes
from chaos.faults import Fault, leader, unseat
from chaos.scene import Scene

AWAY = 30.0  # s without an API server
LEADERS = 6  # operators that are unseated at most until one leads on a node without members
SLOWEST = 5.0  # s between two steps while nothing should stop training
CUT = f"""
table inet chaos {{
  chain out {{ type filter hook output priority 0; tcp dport {CONTROL_PLANE_PORT} drop; }}
}}
"""


def cut(count: int) -> Fault:
    """No packet passes between `count` members' nodes and the rest: those of the last places, and not the one with the
    leading operator, whose lease would have to run out first."""

    def fault(scene: Scene) -> float:
        nodes = _to_cut(scene, count)
        for _ in range(LEADERS):
            if len(nodes) >= count:
                break
            unseat(scene)
            nodes = _to_cut(scene, count)
        assert len(nodes) == count, f"found {nodes} to cut; the rest of the members are where the leader is"
        at = time.time()
        for node in nodes:
            scene.yard.cluster.cut_network(node)
            scene.undo.callback(scene.yard.cluster.mend_network, node)
        return at

    return fault


def _to_cut(scene: Scene, count: int) -> list[str]:
    size = int(scene.world()["size"])
    spared = leader(scene)["spec"]["nodeName"]
    found = [node for place in reversed(range(size)) if (node := scene.node(place)) != spared]
    return list(dict.fromkeys(found))[:count]


def kill_kubelet(scene: Scene) -> float:
    """Of the node of place 1."""
    node, at = scene.node(1), time.time()
    scene.yard.cluster.kill("kubelet", node)
    scene.undo.callback(scene.yard.cluster.start, "kubelet", node)
    return at


def cut_kubelets(scene: Scene) -> float:
    """Nothing on any node itself reaches the API server; pods do, and each other."""
    at, cluster = time.time(), scene.yard.cluster
    for node in cluster.nodes:
        cluster.run_on(node, "nft", CUT)
        scene.undo.callback(cluster.run_on, node, "nft", "delete table inet chaos")
    return at


def goes_on(seconds: float) -> Callable[[Scene], None]:
    """For so long steps are finished and no rank starts."""

    def check(scene: Scene) -> None:
        _, starts = scene.journal.read()
        time.sleep(seconds)
        steps, now = scene.journal.read()
        assert len(now) == len(starts), f"ranks were started again:\n{scene.journal.text()}"
        assert time.time() - steps[-1].at < SLOWEST, f"no step for {time.time() - steps[-1].at:.1f} s"

    return check


def kill_rank_without_api(scene: Scene) -> float:
    """The API server ends, then a rank does."""
    pid, cluster = scene.rank(1), scene.yard.cluster
    cluster.kill("apiserver")
    scene.undo.callback(cluster.start, "apiserver")
    return processes.send([pid], signal.SIGKILL)


def api_stays_away(scene: Scene) -> None:
    """It comes back half a minute later; meanwhile training goes on."""
    goes_on(AWAY)(scene)


def told_without_api(scene: Scene) -> None:
    """Once it is back, an Event tells what was done without it."""
    api_stays_away(scene)
    scene.undo.close()
    said = "RestartedWithoutApi"

    def told() -> bool:
        try:
            return any(event["reason"] == said for event in scene.job.events())
        except HTTPError:  # it is only just back
            return False

    scene.wait(f"event {said}", told, 60)


def drain(scene: Scene) -> float:
    """`kubectl drain` of the node of a member, where the leading operator is not."""
    spared = leader(scene)["spec"]["nodeName"]
    place = next(place for place in (1, 0) if scene.node(place) != spared)
    node, cluster = scene.node(place), scene.yard.cluster
    at = time.time()
    command = [str(cluster.programs / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), "drain", node,
               "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"]
    draining = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def undo() -> None:
        _, errors = draining.communicate(timeout=100)
        cluster.kubectl("uncordon", node)
        assert draining.returncode == 0, errors

    scene.undo.callback(undo)
    return at


def device_fault(scene: Scene) -> float:
    """The simulated hardware says that a device of place 1 has failed."""
    assert scene.devices is not None
    pod = scene.pod(1)
    told = [each for container in pod["status"].get("containerStatuses") or ()
            for each in container.get("allocatedResourcesStatus") or ()]
    device = told[0]["resources"][0]["resourceID"]
    scene.undo.callback(made_new, scene.devices, whole())
    at = time.time()
    scene.devices.fault(pod["spec"]["nodeName"], device, code="8C1F8608", level="RestartNPU", text="simulated")
    return at
