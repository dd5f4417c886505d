"""The same model and step under plain torchrun: pods of a StatefulSet, as people run it without an operator of their
own. The trainer is the same program; who starts, watches and restarts its ranks is torchrun, and what it goes on from
is a checkpoint."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from typing import Any

from harness.installation import Yard
from harness.job import Object, Timeout
from kubernetes import client

from chaos import processes
from chaos.jobs import DATA, ENVIRONMENT, EVERY, VOLUME, train
from chaos.journal import Journal

NAME = "torchrun"
PORT = 29400
STEPS = 1_000_000  # it is removed when it was measured
RESTARTS = 1000


class Torchrun:
    """A gang of as many pods as the job's, one rank each. `undo` is emptied once a fault was measured."""

    def __init__(self, yard: Yard, namespace: str, nodes: int) -> None:
        self.yard, self.namespace, self.nodes = yard, namespace, nodes
        self.journal = Journal([yard.cluster.disk(node) for node in yard.cluster.nodes], namespace, NAME)
        self._apps = client.AppsV1Api(yard.api.client)
        self.undo = contextlib.ExitStack()

    def start(self) -> None:
        """Create it and wait for its first steps."""
        self.yard.api.core.create_namespaced_config_map(self.namespace, {
            "metadata": {"name": NAME}, "data": {"train.json": json.dumps(train(STEPS, self.nodes))}})
        self.yard.api.core.create_namespaced_service(self.namespace, {
            "metadata": {"name": NAME},
            "spec": {"clusterIP": "None", "selector": {"app": NAME}, "publishNotReadyAddresses": True}})
        self._apps.create_namespaced_stateful_set(self.namespace, self._set())

    def remove(self) -> None:
        """Delete it and wait until its pods are gone."""
        self._apps.delete_namespaced_stateful_set(NAME, self.namespace)
        for index in range(self.nodes):
            self.yard.cluster.kubectl("delete", "pod", "-n", self.namespace, f"{NAME}-{index}", "--force",
                                      "--ignore-not-found")
        self.yard.api.core.delete_namespaced_service(NAME, self.namespace)
        self.yard.api.core.delete_namespaced_config_map(NAME, self.namespace)
        deadline = time.monotonic() + 60
        while self._pods():
            if time.monotonic() > deadline:
                raise Timeout("the pods of torchrun are still there after 60 s")
            time.sleep(0.2)

    def _pods(self) -> list[Object]:
        answer = self.yard.api.core.list_namespaced_pod(
            self.namespace, label_selector=f"app={NAME}", _preload_content=False)
        found: list[Object] = json.loads(answer.data)["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    def _set(self) -> Object:
        command = [
            "torchrun", f"--nnodes={self.nodes}", "--nproc-per-node=1", f"--max-restarts={RESTARTS}",
            "--rdzv-backend=c10d", f"--rdzv-id={NAME}", f"--rdzv-endpoint={NAME}-0.{NAME}:{PORT}",
            "--module", "trainer", "--config", "/config/train.json", "--checkpoint", f"/checkpoint/{NAME}",
            "--checkpoint-every", str(EVERY),
        ]  # fmt: skip
        container: dict[str, Any] = {
            "name": "trainer", "image": self.yard.trainer_image, "imagePullPolicy": "IfNotPresent", "command": command,
            "env": [{"name": key, "value": value} for key, value in ENVIRONMENT.items()],
            "volumeMounts": [DATA, {"name": "shared", "mountPath": "/checkpoint"},
                             {"name": "config", "mountPath": "/config"}, {"name": "memory", "mountPath": "/dev/shm"}],
        }  # fmt: skip
        away = {"labelSelector": {"matchLabels": {"app": NAME}}, "topologyKey": "kubernetes.io/hostname"}
        return {
            "metadata": {"name": NAME},
            "spec": {
                "replicas": self.nodes, "serviceName": NAME, "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": {"app": NAME}},
                "template": {
                    "metadata": {"labels": {"app": NAME}},
                    "spec": {
                        "containers": [container],
                        "terminationGracePeriodSeconds": 0,
                        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [away]}},
                        "volumes": [{"name": "shared", **VOLUME}, {"name": "config", "configMap": {"name": NAME}},
                                    {"name": "memory", "emptyDir": {"medium": "Memory"}}],
                    },
                },
            },
        }  # fmt: skip

    # ---- faults

    def _pod(self, index: int) -> Object:
        """Raises LookupError if it is not there."""
        name = f"{NAME}-{index}"
        for pod in self._pods():
            if pod["metadata"]["name"] == name:
                return pod
        raise LookupError(f"no pod {name}")

    def rank(self, number: int) -> int:
        """Pid of a rank. torchrun gives ranks to pods as they come."""
        for index in range(self.nodes):
            try:
                return processes.rank(self._pod(index)["metadata"]["uid"], number)
            except LookupError:
                continue
        raise LookupError(f"torchrun has no rank {number}")

    def signal(self, rank: int, number: signal.Signals) -> float:
        """Signal a rank."""
        return processes.send([self.rank(rank)], number)

    def delete_pod(self, index: int) -> float:
        """`kubectl delete --force` of a pod."""
        at = time.time()
        self.yard.api.core.delete_namespaced_pod(f"{NAME}-{index}", self.namespace, grace_period_seconds=0)
        return at

    def evict_pod(self, index: int) -> float:
        """What `kubectl drain` does to a pod."""
        at, name = time.time(), f"{NAME}-{index}"
        self.yard.api.core.create_namespaced_pod_eviction(name, self.namespace, {"metadata": {"name": name}})
        return at

    def cut(self, index: int) -> float:
        """No packet passes between the node of a pod and the rest."""
        node, at = self._pod(index)["spec"]["nodeName"], time.time()
        self.yard.cluster.cut_network(node)
        self.undo.callback(self.yard.cluster.mend_network, node)
        return at
