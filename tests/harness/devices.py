"""Simulated devices on a cluster's nodes: the real agent, kubelet and device plugin socket, and a file that stands in
for the hardware."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kubernetes.client.exceptions import ApiException

from harness.installation import SYSTEM, Yard
from harness.job import GROUP, VERSION, Object, Timeout

RESOURCE = "huawei.com/Ascend910"
AGENT_LABEL = "trainyard-test-agent"
"""Agents are on nodes that have this label, so that one can be taken away."""
_FILE = "devices.yaml"  # in the folder that all nodes share; JSON is YAML, too


class Devices:
    """What devices the nodes of a cluster have. A change reaches every agent within 0.2 s."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.nodes: dict[str, Object] = {}
        self.arguments = (
            "--set", f"agent.enabled=true,agent.backend=simulated,agent.nodeSelector.{AGENT_LABEL}=here",
            "--set", f"agent.simulated.hostPath={yard.cluster.shared_path}/simulated/{_FILE}",
            # A device that works again is trusted after this, not after a minute.
            "--set", "agent.faultTable.probation.seconds=2",
        )  # fmt: skip
        """What `Yard.install` needs for the agents to run."""

    def describe(self, nodes: Mapping[str, Object]) -> None:
        """These are the devices from now on, as docs/devices.md describes them; nodes that are not named have none."""
        self.nodes = copy.deepcopy(dict(nodes))
        self.write(json.dumps({"nodes": self.nodes}))

    def write(self, text: str) -> None:
        """Put any text into the file, in one move."""
        folder = self.yard.cluster.shared / "simulated"
        folder.mkdir(exist_ok=True)
        fresh = folder / "fresh"
        fresh.write_text(text)
        os.replace(fresh, folder / _FILE)

    def fault(self, node: str, device: str, code: str = "80E01801", **fields: Any) -> None:
        """The device gets a fault; `fields` are those of SimulatedFault, such as level."""
        faults = self.nodes[node].setdefault("faults", {}).setdefault(device, [])
        faults[:] = [fault for fault in faults if fault["code"] != code] + [{"code": code, **fields}]
        self.describe(self.nodes)

    def heal(self, node: str, device: str) -> None:
        """The device has no fault any more."""
        self.nodes[node].get("faults", {}).pop(device, None)
        self.describe(self.nodes)

    def unreadable(self, node: str, why: str) -> None:
        """Nothing can be read on the node; with an empty `why` it can be again."""
        self.nodes[node]["unreadable"] = why
        self.describe(self.nodes)

    def get(self, node: str) -> Object | None:
        """The node's NodeDevices, or None."""
        try:
            found: Object = self.yard.api.custom.get_cluster_custom_object(GROUP, VERSION, "nodedevices", node)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def device(self, node: str, device: str) -> Object:
        """Status of one device, {} if there is none."""
        statuses = ((self.get(node) or {}).get("status") or {}).get("devices") or ()
        return next((dict(each) for each in statuses if each["id"] == device), {})

    def ready(self, node: str) -> Object:
        """The condition Ready of the node's NodeDevices, {} if there is none."""
        conditions = ((self.get(node) or {}).get("status") or {}).get("conditions") or ()
        return dict(conditions[0]) if conditions else {}

    def allocatable(self, node: str, resource: str = RESOURCE) -> int:
        """How many devices kubelet says may be used; 0 if it has none."""
        found = self.yard.api.core.read_node(node).status.allocatable or {}
        return int(found.get(resource, 0))

    def wait(self, what: str, holds: Callable[[], Any], seconds: float = 60) -> float:
        """Wait until `holds` is true; returns how long it took. Raises Timeout that shows the NodeDevices."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > seconds:
                found = self.yard.api.custom.list_cluster_custom_object(GROUP, VERSION, "nodedevices")["items"]
                seen = {each["metadata"]["name"]: [each["spec"].get("orders"), each.get("status")] for each in found}
                raise Timeout(f"not within {seconds:.0f} s: {what}; NodeDevices: {json.dumps(seen)[:4000]}")
            time.sleep(0.1)
        return time.monotonic() - began

    def wait_served(self, seconds: float = 60) -> None:
        """Wait until every node that is described serves all its healthy devices and says so."""
        for node in self.nodes:
            self.wait(f"{node} serves its devices", lambda node=node: self._served(node), seconds)  # type: ignore[misc]

    def _served(self, node: str) -> bool:
        status = (self.get(node) or {}).get("status") or {}
        healthy = sum(each["health"] == "Healthy" for each in status.get("devices") or ())
        return self.ready(node).get("reason") == "Serving" and self.allocatable(node) == healthy > 0

    def agent(self, node: str) -> Object:
        """The agent's pod on a node. Raises Timeout if there is none."""
        answer = self.yard.api.core.list_namespaced_pod(
            SYSTEM, label_selector="app.kubernetes.io/component=agent", field_selector=f"spec.nodeName={node}",
            _preload_content=False)  # fmt: skip
        pods = [pod for pod in json.loads(answer.data)["items"] if "deletionTimestamp" not in pod["metadata"]]
        if not pods:
            raise Timeout(f"no agent on {node}")
        return dict(pods[0])

    def everywhere(self) -> None:
        """Agents may be on all nodes."""
        self.yard.cluster.kubectl("label", "nodes", "--all", f"{AGENT_LABEL}=here", "--overwrite")

    @contextlib.contextmanager
    def agent_away(self, node: str) -> Iterator[None]:
        """No agent on the node for a while; its pod is on its way out when this begins."""
        self.yard.cluster.kubectl("label", "node", node, f"{AGENT_LABEL}-")
        try:
            yield
        finally:
            self.yard.cluster.kubectl("label", "node", node, f"{AGENT_LABEL}=here")

    def in_agent(self, node: str, code: str) -> str:
        """What Python code prints in the agent's container on a node."""
        pod = self.agent(node)["metadata"]["name"]
        return self.yard.cluster.kubectl("exec", "-n", SYSTEM, pod, "--", "python3", "-c", code)

    def held(self, node: str, resource: str = RESOURCE) -> dict[str, list[str]]:
        """Devices by the pod (namespace/name) that holds them, as kubelet's PodResources has it."""
        held: dict[str, list[str]] = {}
        for device, pod in json.loads(self.in_agent(node, _HELD.format(resource=resource))).items():
            held.setdefault(pod, []).append(device)
        return {pod: sorted(devices, key=lambda name: int(name.rpartition("-")[2])) for pod, devices in held.items()}


_HELD = """
import asyncio, json, pathlib
from trainyard.agent.podresources import PodResources
asked = PodResources(pathlib.Path("/var/lib/kubelet/pod-resources/kubelet.sock")).holders("{resource}")
print(json.dumps(asyncio.run(asked)))
"""
