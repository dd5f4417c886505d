"""Trainyard installed on a cluster with its Helm chart, and ways to break the operator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Progress
from kubernetes import client

from harness import text
from harness.job import Api, Object, Timeout

CHART = Path(__file__).resolve().parents[2] / "charts" / "trainyard"
SYSTEM = "trainyard-system"


class Yard:
    """A cluster with the images of this checkout and the operator running."""

    def __init__(self, cluster: Cluster, progress: Progress | None = None) -> None:
        self.cluster = cluster
        self.progress = progress
        self.api = Api(cluster.kubeconfig)
        self.operator_image = cluster.load("operator", progress)
        self.trainer_image = cluster.load("trainer", progress)
        # An image with Python that knows nothing of training: what a user brings with an own script.
        self.plain_image = self.operator_image

    def install(self, *arguments: str, release: str = "trainyard") -> None:
        """Install or upgrade the chart and wait until the operator is ready."""
        operator, _, operator_tag = self.operator_image.rpartition(":")
        trainer, _, trainer_tag = self.trainer_image.rpartition(":")
        self.cluster.helm(
            "upgrade", "--install", release, str(CHART), "--namespace", SYSTEM, "--create-namespace", "--wait",
            "--timeout", "120s",
            "--set", f"image.operator.repository={operator},image.operator.tag={operator_tag}",
            "--set", f"image.trainer.repository={trainer},image.trainer.tag={trainer_tag}",
            # Nodes are known to be lost after 8 s here, not 40: the operator need not wait so long either.
            "--set", "operator.unreadyNodeSeconds=10",
            *arguments,
        )  # fmt: skip

    def uninstall(self, release: str = "trainyard") -> None:
        """Uninstall the release; the CRDs and the jobs stay."""
        self.cluster.helm("uninstall", release, "--namespace", SYSTEM, "--wait")

    def needs(self, capability: str) -> None:
        """Skip the test where the cluster cannot do this."""
        if capability not in self.cluster.capabilities:
            pytest.skip(f"a cluster of provider {self.cluster.provider} does not offer {capability!r}")

    def volume(self, namespace: str) -> Path:
        """The host's side of the claim `shared` of a namespace."""
        return self.cluster.shared / namespace

    def make_volume(self, namespace: str) -> None:
        """Make the claim `shared` in a namespace: one host folder that every node sees, with text and a tokenizer."""
        folder = self.volume(namespace)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)  # pods run as a user of their own, and a hostPath volume ignores fsGroup
        for name, made in (("text.txt", text.corpus), ("tokenizer.model", text.tokenizer)):
            source = made(self.cluster.shared / name)
            if not (folder / "data" / name).exists():
                (folder / "data" / name).hardlink_to(source)
        volume = {
            "metadata": {"name": f"shared-{namespace}"},
            "spec": {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "hostPath": {"path": f"{self.cluster.shared_path}/{namespace}"},
                "claimRef": {"name": "shared", "namespace": namespace},
            },
        }
        claim = {
            "metadata": {"name": "shared"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": f"shared-{namespace}",
                "resources": {"requests": {"storage": "10Gi"}},
            },
        }
        with contextlib.suppress(client.exceptions.ApiException):
            self.api.core.delete_persistent_volume(f"shared-{namespace}")
        self.api.core.create_persistent_volume(volume)
        self.api.core.create_namespaced_persistent_volume_claim(namespace, claim)

    def remove_namespace(self, namespace: str) -> None:
        """Delete a namespace and its volume, without waiting."""
        self.api.core.delete_namespace(namespace)
        self.api.core.delete_persistent_volume(f"shared-{namespace}")

    def operator_pods(self, ending: bool = False) -> list[Object]:
        """The operator's pods, raw; those that are on their way out only if `ending`."""
        found = self.api.core.list_namespaced_pod(SYSTEM, label_selector="app.kubernetes.io/component=operator")
        pods = self.api.client.sanitize_for_serialization(found)["items"]
        return [pod for pod in pods if ending or "deletionTimestamp" not in pod["metadata"]]

    def leader(self) -> str:
        """Name of the pod that holds the lease, empty if nobody does."""
        lease = client.CoordinationV1Api(self.api.client).read_namespaced_lease("trainyard-operator", SYSTEM)
        holder: str = lease.spec.holder_identity or ""
        return holder

    def kill_operator(self) -> None:
        """Kill every operator pod at once, without grace."""
        for pod in self.operator_pods():
            self.api.core.delete_namespaced_pod(pod["metadata"]["name"], SYSTEM, grace_period_seconds=0)

    def kill_leader(self) -> float:
        """Kill the leading pod without grace; seconds until another one leads."""
        before = self.leader()
        pod = next(p["metadata"]["name"] for p in self.operator_pods() if before.startswith(p["metadata"]["name"]))
        start = time.monotonic()
        self.api.core.delete_namespaced_pod(pod, SYSTEM, grace_period_seconds=0)
        while self.leader() in ("", before):
            if time.monotonic() - start > 60:
                raise Timeout(f"no other leader than {before} within 60 s")
            time.sleep(0.1)
        return time.monotonic() - start

    @contextlib.contextmanager
    def operator_down(self) -> Iterator[None]:
        """No operator at all for a while."""
        self._scale(0)
        try:
            yield
        finally:
            self._scale(2)

    def _scale(self, replicas: int) -> None:
        apps = client.AppsV1Api(self.api.client)
        apps.patch_namespaced_deployment_scale("trainyard", SYSTEM, {"spec": {"replicas": replicas}})
        deadline = time.monotonic() + 90
        while True:
            pods = self.operator_pods(ending=replicas == 0)  # one that is ending still acts
            ready = [p for p in pods if any(
                c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))]  # fmt: skip
            if len(ready) == replicas == len(pods):
                return
            if time.monotonic() > deadline:
                raise Timeout(f"the operator has {len(ready)} ready pods, expected {replicas}")
            time.sleep(0.2)
