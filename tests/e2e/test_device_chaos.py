"""Whatever happens to devices and pods, in whatever order: the job ends with the loss of a run that nothing happened
to. A short form in CI; `make device-chaos` does a thousand events."""

from __future__ import annotations

import os
import random
import time

import pytest
from e2e.device_jobs import Run, made_new, whole
from harness.devices import Devices
from harness.installation import SYSTEM, Yard
from harness.job import Timeout
from kubernetes.client.exceptions import ApiException

EVENTS = int(os.environ.get("TRAINYARD_CHAOS_EVENTS", "60"))
SECONDS = float(os.environ.get("TRAINYARD_CHAOS_SECONDS", "60"))  # for all events; fewer are done if they take longer
SEED = int(os.environ.get("TRAINYARD_CHAOS_SEED", "4"))
END_SECONDS = 240  # the job may take after the last event
LEVELS = ("RestartNPU", "SeparateNPU", "RestartBusiness", "RestartNPU", "PreSeparateNPU", "SubHealthFault",
          "NotHandleFault")  # fmt: skip


class Chaos:
    """Events drawn from one seed. What they hit depends on where the job is at the time."""

    def __init__(self, yard: Yard, devices: Devices, run: Run, seed: int) -> None:
        self.yard, self.devices, self.run, self.draw = yard, devices, run, random.Random(seed)
        self.done: list[str] = []

    def event(self) -> None:
        """One of them."""
        kinds = {"fault in use": 20, "fault": 20, "heal": 35, "kill pod": 12, "delete pod": 5, "kill agent": 3}
        kind = self.draw.choices(list(kinds), list(kinds.values()))[0]
        said = {"fault in use": self._fault_in_use, "fault": self._fault, "heal": self._heal,
                "kill pod": lambda: self._remove_pod(0), "delete pod": lambda: self._remove_pod(None),
                "kill agent": self._kill_agent}[kind]()  # fmt: skip
        self.done.append(f"{kind}: {said}")

    def _fault_in_use(self) -> str:
        index = self.draw.randrange(2)
        try:
            node, ids = self.run.place(index)
        except Timeout:
            return "nobody there"
        return self._break(node, self.draw.choice(ids)) if ids else "not begun"

    def _fault(self) -> str:
        return self._break(self.draw.choice(list(self.devices.nodes)), f"Ascend910-{self.draw.randrange(8)}")

    def _break(self, node: str, device: str) -> str:
        # A code of its own each time: the same one on many devices would be the job's own doing.
        code, level = f"AA{len(self.done):06X}", self.draw.choice(LEVELS)
        self.devices.fault(node, device, code=code, level=level)
        return f"{device} of {node} {level}"

    def _heal(self) -> str:
        ill = [(node, device) for node, told in self.devices.nodes.items() for device in told.get("faults", {})]
        if not ill:
            return "all are well"
        node, device = self.draw.choice(sorted(ill))
        self.devices.heal(node, device)
        return f"{device} of {node}"

    def _remove_pod(self, grace: int | None) -> str:
        pod = self.run.job.pod(self.draw.randrange(2))
        if pod is None:
            return "nobody there"
        name = pod["metadata"]["name"]
        try:
            self.yard.api.core.delete_namespaced_pod(name, self.run.job.namespace, grace_period_seconds=grace)
        except ApiException as error:
            if error.status != 404:
                raise
        return str(name)

    def _kill_agent(self) -> str:
        node = self.draw.choice(list(self.devices.nodes))
        try:
            name = self.devices.agent(node)["metadata"]["name"]
        except Timeout:
            return "not there"
        self.yard.api.core.delete_namespaced_pod(name, SYSTEM, grace_period_seconds=0)
        return str(name)


@pytest.mark.timeout(SECONDS + END_SECONDS + 120)
def test_random_faults(yard: Yard, devices: Devices, namespace: str) -> None:
    made_new(devices, whole())
    run = Run(yard, devices, namespace, "chaos", nodes=2, per_node=2, steps=max(100, int(SECONDS)), step_seconds=0.1)
    run.hold()
    run.wait_steps(1)
    chaos, begun = Chaos(yard, devices, run, SEED), time.monotonic()
    try:
        for number in range(EVENTS):
            if time.monotonic() - begun > SECONDS:
                break
            chaos.event()
            time.sleep(max(0.0, SECONDS * (number + 1) / EVENTS - (time.monotonic() - begun)))
        devices.describe(whole())
        status = run.succeeded(END_SECONDS)
    except BaseException:
        print(f"seed {SEED}, {len(chaos.done)} events:", *chaos.done, sep="\n  ")
        raise
    causes = [each["cause"] for each in status["recoveries"]]
    print(f"seed {SEED}: {len(chaos.done)} events, {status['restarts']['total']} restarts, "
          f"{status['world']['generation']} generations; the last were {', '.join(causes)}")
    assert len(chaos.done) > EVENTS // 2, "too slow to tell anything"
    assert status["world"]["generation"] > 1, "nothing has hit the job"
