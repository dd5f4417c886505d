"""Simulated nodes with 8 NPUs each, as their kubelet and Trainyard's agent would describe them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import Cluster
from harness.job import Api, Object
from kubernetes.client.exceptions import ApiException

if TYPE_CHECKING:
    from scale.inside import Inside


RESOURCE, DEVICES = "huawei.com/Ascend910", 8
NODES_A_SUPER_POD = 48
LABEL = {"trainyard.dev/simulated": "true"}
ANNOTATION = "kwok.x-k8s.io/node"
WRITERS = 16
_NODE_DEVICES = "/apis/trainyard.dev/v1alpha1/nodedevices"


def raw(api: Api, method: str, path: str, body: Any = None) -> Object:
    """One request with plain JSON: the client's typed objects take milliseconds each."""
    response = api.client.call_api(
        method, api.client.configuration.host + path, body=body,
        header_params={"Accept": "application/json", "Content-Type": "application/json",
                       **api.client.default_headers})  # fmt: skip
    data = response.read()
    if response.status >= 400:
        raise ApiException(status=response.status, reason=data[:500].decode())
    return dict(json.loads(data))


def everywhere(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Do it for all numbers, some at a time; the first error is raised."""
    with ThreadPoolExecutor(max_workers=WRITERS) as pool:
        list(pool.map(work, numbers))


def make_nodes(api: Api, numbers: Iterable[int]) -> None:
    """Nodes sim-00000 and on, with their NodeDevices."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    everywhere(lambda number: _make_node(api, f"sim-{number:05}", number, now), numbers)


def _make_node(api: Api, name: str, number: int, now: str) -> None:
    amounts = {"cpu": "192", "memory": "1536Gi", "pods": "110", "ephemeral-storage": "1Ti", RESOURCE: str(DEVICES)}
    made = raw(api, "POST", "/api/v1/nodes", {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {**LABEL, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
                     "annotations": {ANNOTATION: "fake"}},
        "status": {
            "capacity": amounts, "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Simulated", "lastHeartbeatTime": now,
                            "lastTransitionTime": now}],
            "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": "v1.36.0",
                         **dict.fromkeys(("bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion",
                                          "machineID", "osImage", "systemUUID"), "simulated")},
        },
    })  # fmt: skip
    ids = [f"Ascend910-{device}" for device in range(DEVICES)]
    told = raw(api, "POST", _NODE_DEVICES, {
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "NodeDevices",
        "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": name, "uid": made["metadata"]["uid"]}]},
        "spec": {
            "node": name, "resource": RESOURCE, "model": "910B-8", "chip": "910B3", "backend": "simulated",
            "superPod": str(number // NODES_A_SUPER_POD), "rack": str(number // 8), "server": str(number),
            "devices": [{"id": each, "physical": device, "ring": 0, "module": device,
                         "ip": f"10.{number >> 8 & 255}.{number & 255}.{device + 1}"}
                        for device, each in enumerate(ids)],
        },
    })  # fmt: skip
    told["status"] = {
        "healthy": f"{DEVICES}/{DEVICES}", "free": str(DEVICES),
        "devices": [{"id": each, "health": "Healthy", "since": now} for each in ids],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": now}],
    }
    raw(api, "PUT", f"{_NODE_DEVICES}/{name}/status", told)


@contextmanager
def kwok(cluster: Cluster, folder: Path, place: Inside) -> Iterator[None]:
    """KWOK, which plays kubelet on the simulated nodes."""
    argv = [*place.words, str(cluster.programs / "kwok"), "--kubeconfig", str(place.kubeconfig), "--config",
            str(Path(__file__).with_name("stages.yaml")), "--manage-nodes-with-annotation-selector",
            f"{ANNOTATION}=fake", "--cidr", "10.64.0.0/12", "--node-lease-duration-seconds", "0"]  # fmt: skip
    with (folder / "kwok.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"kwok has ended with {process.returncode}:\n"
                               + (folder / "kwok.log").read_text()[-2000:])
    finally:
        process.terminate()
        process.wait()
