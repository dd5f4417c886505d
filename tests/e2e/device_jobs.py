"""Jobs with accelerators, as the tests of device faults see them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from e2e import chain
from e2e.manifests import CHAIN, counting
from harness.devices import RESOURCE, Devices
from harness.installation import Yard
from harness.job import GROUP, VERSION, Job, Object, Timeout
from trainyard.api.times import stamp

NODES = ("node-1", "node-2", "node-3")
# Devices take new work a moment after they are healed, so that a test need not wait for it.
TABLE = "agent.faultTable=" + json.dumps({"probation": {"seconds": 1, "factor": 1, "longestSeconds": 1}})


def whole(*nodes: str) -> dict[str, Any]:
    """Each of these nodes has eight NPUs of a 910A."""
    return {node: {"model": "910A"} for node in nodes or NODES}


@contextlib.contextmanager
def installed(yard: Yard, nodes: dict[str, Any], *arguments: str) -> Iterator[Devices]:
    """The chart with agents that simulate these devices; afterwards as it was before, without any."""
    made = Devices(yard)
    made.describe(nodes)
    made.everywhere()
    yard.install(*made.arguments, *arguments)
    yield made
    made.describe({})
    for node in nodes:
        made.wait(f"the NodeDevices of {node} are gone", lambda node=node: made.get(node) is None)  # type: ignore[misc]
    yard.install()


def made_new(devices: Devices, nodes: dict[str, Any]) -> None:
    """Every device is healthy, and no failure of an earlier test is held against it."""
    devices.describe(nodes)
    devices.wait_served()
    for node in nodes:
        devices.wait(f"no faults on {node}", lambda node=node: not _ill(devices, node))  # type: ignore[misc]
        ids = [each["id"] for each in _statuses(devices, node) if each.get("history")]
        if ids:
            # `at` is in whole seconds: a fault that ended in this one ends before it only from the next on.
            at = stamp(datetime.now(UTC) + timedelta(seconds=1))
            _order(devices, node, [{"device": name, "action": "Release", "by": "Administrator", "at": at}
                                   for name in ids])
            devices.wait(f"{node} has forgotten", lambda node=node: not any(  # type: ignore[misc]
                each.get("history") for each in _statuses(devices, node)))
        _order(devices, node, [])
        devices.wait(f"{node} is usable", lambda node=node: not any(  # type: ignore[misc]
            each["quarantined"] or each["health"] != "Healthy" for each in _statuses(devices, node)))
    devices.wait_served()


def _statuses(devices: Devices, node: str) -> list[Object]:
    return list(((devices.get(node) or {}).get("status") or {}).get("devices") or ())


def _ill(devices: Devices, node: str) -> list[Object]:
    return [each for each in _statuses(devices, node) if each.get("level") or each.get("probation")]


def _order(devices: Devices, node: str, orders: list[Object]) -> None:
    devices.yard.api.custom.patch_cluster_custom_object(
        GROUP, VERSION, "nodedevices", node, {"spec": {"orders": orders}},
        _content_type="application/merge-patch+json")  # fmt: skip


class Run:
    """One job of chain.py with devices."""

    def __init__(self, yard: Yard, devices: Devices, namespace: str, name: str, *, nodes: int = 2, per_node: int = 4,
                 steps: int = 60, step_seconds: float = 0.2, apart: bool = False, **spec: Any) -> None:  # fmt: skip
        """`apart`: the template wants no two pods on one node."""
        self.yard, self.devices, self.steps = yard, devices, steps
        manifest = counting(name, namespace, yard.trainer_image, nodes=nodes, steps=steps, step_seconds=step_seconds,
                            script=CHAIN, devices={"resource": RESOURCE, "perNode": per_node}, numProcPerNode=1,
                            **spec)  # fmt: skip
        if apart:
            term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"job": name}}}
            template = manifest["spec"]["template"]
            template["metadata"] = {"labels": {"job": name}}
            template["spec"]["affinity"] = {
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        self.job: Job = yard.api.apply(manifest)
        self.folder = yard.volume(namespace) / name

    def step(self, rank: int = 0) -> int:
        """The last step that a rank has kept; -1 before it has begun."""
        path = self.folder / f"chain-{rank}"
        return max(map(int, json.loads(path.read_text()))) if path.exists() else -1

    def wait_steps(self, more: int, seconds: float = 90) -> int:
        """Wait until rank 0 has kept so many steps more than now, or all that are begun while it is held; returns its
        step."""
        goal, deadline = max(self.step(), 0) + more, time.monotonic() + seconds
        if (self.folder / "hold").exists():
            goal = min(goal, self.steps - chain.HELD)
        while (step := self.step()) < goal:
            if time.monotonic() > deadline:
                raise Timeout(f"{self.job.name}: no step {goal} within {seconds:.0f} s, rank 0 kept {step}; "
                              f"{self.job.describe(self.job.status())}")
            time.sleep(0.05)
        return step

    def starts(self, rank: int = 0) -> int:
        """How often the rank was started."""
        path = self.folder / f"starts-{rank}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def hold(self) -> None:
        """The job does not end before `succeeded` is called."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o777)
        (self.folder / "hold").touch()

    def pod(self, index: int) -> Object:
        """The pod that holds an index. Raises Timeout if there is none."""
        found = self.job.pod(index)
        if found is None:
            raise Timeout(f"{self.job.name}: no pod {index}; {self.job.describe(self.job.status())}")
        return found

    def place(self, index: int) -> tuple[str, list[str]]:
        """Node and device ids of a pod, as kubelet says; no ids before it runs."""
        pod = self.pod(index)
        told = [each for container in pod["status"].get("containerStatuses") or ()
                for each in container.get("allocatedResourcesStatus") or ()]
        ids = sorted(each["resourceID"] for kind in told for each in kind["resources"])
        return pod["spec"].get("nodeName", ""), ids

    def waiting(self) -> str:
        """What kubelet says of the trainer that does not start, in pod 0; empty before it tries."""
        told = (self.job.pod(0) or {}).get("status", {}).get("containerStatuses") or ()
        return next((str((each.get("state", {}).get("waiting") or {}).get("message", "")) for each in told
                     if each["name"] == "trainer"), "")

    def wait_gate(self) -> str:
        """Wait until the pod of a job with a gate stands before it, with its devices; returns its node."""
        def there() -> bool:
            told = (self.job.pod(0) or {}).get("status", {}).get("initContainerStatuses") or ()
            return any(each["name"] == "gate" and "running" in each["state"] for each in told)

        self.devices.wait(f"{self.job.name} stands before its gate", there)
        return str(self.pod(0)["spec"]["nodeName"])

    def go(self) -> None:
        """Open the gate, for good."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "go").touch()

    def free(self, node: str) -> str:
        """A healthy device of a node that nobody holds."""
        return next(str(each["id"]) for each in _statuses(self.devices, node)
                    if not each.get("pod") and each["health"] == "Healthy")

    def recoveries(self, count: int, seconds: float = 90) -> list[Object]:
        """Wait until so many recoveries are over; returns all."""
        def over(status: Object) -> bool:
            known = status.get("recoveries") or []
            return len(known) >= count and all("total" in each["milliseconds"] for each in known)

        return list(self.job.wait(f"{count} recoveries", over, seconds)["recoveries"])

    def succeeded(self, seconds: float = 240) -> Object:
        """Wait for the end, for which it is no longer held, and check that every step was taken exactly once. Returns
        the status."""
        (self.folder / "hold").unlink(missing_ok=True)
        status = self.job.wait_state("Succeeded", seconds)
        assert status["restarts"]["counted"] == 0, f"{status['restarts']} {status['recoveries']}"
        assert self.step() == self.steps
        assert float(status["progress"]["loss"]) == chain.loss(undisturbed(0, self.steps))
        for rank in range(status["nodes"]["desired"]):
            kept = json.loads((self.folder / f"chain-{rank}").read_text())
            assert kept[str(self.steps)] == undisturbed(rank, self.steps), f"rank {rank}"
        return status


def undisturbed(rank: int, steps: int) -> int:
    """A rank's number after so many steps of a run in which nothing happens."""
    value = chain.begin(rank)
    for step in range(1, steps + 1):
        value = chain.follow(value, step, rank)
    return value
