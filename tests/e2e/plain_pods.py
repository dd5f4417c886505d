"""Pods with devices that belong to no job."""

from __future__ import annotations

import json
import time
from typing import Any

from harness.devices import RESOURCE
from harness.installation import Yard
from harness.job import Object, Timeout

# /dev/shm is the sandbox's: what is left there would stop the container that is started next, too.
_WAIT = ("import pathlib, time\nstop = pathlib.Path('/dev/shm/stop')\n"
         "while not stop.exists(): time.sleep(0.1)\nstop.unlink()\n")


class Pods:
    """Plain pods with devices, in one namespace."""

    def __init__(self, yard: Yard, namespace: str) -> None:
        self.yard = yard
        self.namespace = namespace

    def make(self, name: str, node: str, count: int, **spec: Any) -> None:
        """A pod that runs until it finds /dev/shm/stop, bound by the scheduler."""
        container = {"name": "main", "image": self.yard.plain_image, "imagePullPolicy": "IfNotPresent",
                     "command": ["python3", "-c", _WAIT], "resources": {"limits": {RESOURCE: str(count)}}}
        self.yard.api.core.create_namespaced_pod(self.namespace, {"metadata": {"name": name}, "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container],
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, **spec}})  # fmt: skip

    def get(self, name: str) -> Object:
        answer = self.yard.api.core.read_namespaced_pod(name, self.namespace, _preload_content=False)
        return dict(json.loads(answer.data))

    def container(self, name: str) -> Object:
        """Status of its container, {} before there is one."""
        statuses: list[Object] = self.get(name)["status"].get("containerStatuses") or [{}]
        return dict(statuses[0])

    def running(self, name: str, restarts: int = 0) -> bool:
        container = self.container(name)
        return "running" in container.get("state", {}) and container["restartCount"] >= restarts

    def health(self, name: str) -> dict[str, str]:
        """What kubelet says of its devices."""
        return {resource["resourceID"]: resource["health"]
                for each in self.container(name).get("allocatedResourcesStatus") or ()
                for resource in each["resources"]}

    def wait_running(self, *names: str, restarts: int = 0, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        for name in names:
            while not self.running(name, restarts):
                if time.monotonic() > deadline:
                    raise Timeout(f"{name} does not run after {seconds:.0f} s: {self.get(name)['status']}")
                time.sleep(0.1)

    def delete(self, *names: str) -> None:
        for name in names:
            self.yard.api.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)
