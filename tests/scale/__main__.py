"""`make bench-scale`: gangs of thousands of pods on simulated nodes, and the same number by a plain Indexed Job.

The control plane is the built-in cluster's, the operator a process of its own beside it, in the same network; nodes,
their NPUs and their kubelets are simulated. The table goes into docs/figures.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.__main__ import machine
from cluster import Cluster
from cluster.builtin import configs
from contract.operator_process import OperatorProcess, run_operator, until
from harness.job import Api, Object

from scale.fleet import DEVICES, LABEL, RESOURCE, kwok, make_nodes, raw
from scale.inside import inside
from scale.page import write
from scale.watching import Pods

SIZES = (100, 500, 1000, 5000)
KILLED_OF = 1000  # of this gang, or the next smaller one, pods are killed
CRDS = Path(__file__).resolve().parents[2] / "crds"
JOBS = "/apis/trainyard.dev/v1alpha1/namespaces/{namespace}/trainingjobs"
WORLDS = "/apis/trainyard.dev/v1alpha1/namespaces/{namespace}/worlds"
REPORTS = "/apis/trainyard.dev/v1alpha1/namespaces/{namespace}/reports"


@dataclass
class Result:
    """Seconds from the request until all pods are created, bound, Running."""

    size: int
    gang: tuple[float, float, float]
    job: tuple[float, float, float]
    cpu: float = 0.0  # s that the operator took for the gang
    resident: float = 0.0  # MB, operator, all pods Running
    peak: float = 0.0  # MB
    whole: list[float] = field(default_factory=list)  # s from the loss of a pod until all run again


def usage(operator: OperatorProcess) -> tuple[float, float, float]:
    """CPU seconds, resident MB and its peak, of a process."""
    folder = Path("/proc") / str(operator.process.pid)
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    memory = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in (folder / "status").read_text().splitlines()
              if line.startswith(("VmRSS", "VmHWM"))}  # fmt: skip
    return ticks / os.sysconf("SC_CLK_TCK"), memory["VmRSS"], memory["VmHWM"]


def pod_spec() -> Object:
    """What both kinds of pod have in common."""
    return {"nodeSelector": LABEL, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "trainer", "image": "registry/trainer:1"}]}


def training_job(name: str, namespace: str, size: int) -> Object:
    """A gang, a node's devices each pod."""
    return {
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"numNodes": size, "devices": {"resource": RESOURCE, "perNode": DEVICES},
                 "command": ["python3", "train.py"], "scheduleSeconds": 3600, "template": {"spec": pod_spec()}},
    }  # fmt: skip


def indexed_job(name: str, namespace: str, size: int) -> Object:
    """The same pods by Kubernetes' own Job."""
    spec = pod_spec()
    spec["restartPolicy"] = "Never"
    spec["containers"][0] |= {"command": ["python3", "train.py"], "resources": {"limits": {RESOURCE: str(DEVICES)}}}
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
        "spec": {"completions": size, "parallelism": size, "completionMode": "Indexed", "backoffLimit": 0,
                 "template": {"metadata": {"labels": {"scale": name}}, "spec": spec}},
    }  # fmt: skip


class Bench:
    """One cluster with simulated nodes, and the operator."""

    def __init__(self, api: Api, operator: OperatorProcess, killed_of: int) -> None:
        self.api = api
        self.operator = operator
        self.killed_of = killed_of  # pods of the gang of which some are killed

    def come_up(self, manifest: Object, path: str, selector: str, size: int,
                meanwhile: Callable[[Pods, float], None]) -> tuple[float, float, float]:
        """Apply it and watch until all pods run; then `meanwhile`; then it is deleted, and its pods are gone."""
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        wait_for_quiet(self.api)
        pods = Pods(self.api, namespace, selector)
        limit = 120 + size * 0.25
        try:
            begun = time.monotonic()
            raw(self.api, "POST", path, manifest)
            pods.wait(f"all {size} pods of {name} run", lambda: len(pods.running) >= size, limit)
            seconds = tuple(max(times.values()) - begun for times in (pods.created, pods.bound, pods.running))
            meanwhile(pods, begun)
            raw(self.api, "DELETE", f"{path}/{name}", {"propagationPolicy": "Background"})
            pods.wait(f"all pods of {name} are gone", lambda: len(pods.gone) == len(pods.created), limit)
        finally:
            pods.close()
        return seconds[0], seconds[1], seconds[2]

    def gang(self, size: int) -> Result:
        """The gang, then the Indexed Job."""
        namespace = self.api.namespace(f"scale-{size}")
        result = Result(size, (0, 0, 0), (0, 0, 0))
        before = usage(self.operator)[0]

        def meanwhile(pods: Pods, begun: float) -> None:
            cpu, result.resident, _ = usage(self.operator)
            result.cpu = cpu - before
            if size == self.killed_of:
                result.whole = [self.kill(namespace, "gang", size, pods, index) for index in (0, 1, size // 2)]
            result.peak = usage(self.operator)[2]

        result.gang = self.come_up(training_job("gang", namespace, size), JOBS.format(namespace=namespace),
                                   "trainyard.dev/job%3Dgang", size, meanwhile)
        print(f"{size} pods, gang: {_three(result.gang)}; {result.cpu:.1f} s of CPU, {result.resident:.0f} MB, "
              f"whole again {result.whole}", flush=True)
        result.job = self.come_up(indexed_job("plain", namespace, size), f"/apis/batch/v1/namespaces/{namespace}/jobs",
                                  "scale%3Dplain", size, lambda pods, begun: None)
        print(f"{size} pods, Indexed Job: {_three(result.job)}", flush=True)
        return result

    def kill(self, namespace: str, name: str, size: int, pods: Pods, index: int) -> float:
        """Take one pod away, as a lost node's is; seconds until all run again in the World's next generation."""
        world = self._formed(namespace, name)
        victim = f"{name}-{index}-{world['spec'].get('incarnations', {}).get(str(index), 1)}"
        count, begun = len(pods.running), time.monotonic()
        raw(self.api, "DELETE", f"/api/v1/namespaces/{namespace}/pods/{victim}", {"gracePeriodSeconds": 0})
        pods.wait(f"{victim} is replaced", lambda: len(pods.running) > count, 60)
        seconds = max(pods.running.values()) - begun
        generation = world["spec"]["generation"]
        until("the World's next generation", 10,
              lambda: self._world(namespace, name)["spec"]["generation"] > generation)
        return max(seconds, 0.0)

    def _world(self, namespace: str, name: str) -> Object:
        return raw(self.api, "GET", f"{WORLDS.format(namespace=namespace)}/{name}")

    def _formed(self, namespace: str, name: str) -> Object:
        """Say what the supervisors of the gang would: its master has an address, and all have joined."""
        def with_master() -> Object:
            found = self._world(namespace, name)
            return found if found["spec"]["master"].get("podUid") else {}

        world = until("a World with a master", 30, with_master)
        spec, master = world["spec"], world["spec"]["master"]
        index, incarnation = master["pod"].removeprefix(f"{name}-").split("-")
        report: Object = {
            "apiVersion": "trainyard.dev/v1alpha1", "kind": "Report",
            "metadata": {"name": master["pod"], "namespace": namespace, "labels": {"trainyard.dev/job": name},
                         "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": master["pod"],
                                              "uid": master["podUid"]}]},
            "spec": {"job": spec["job"], "podUid": master["podUid"], "index": int(index),
                     "incarnation": int(incarnation), "generation": spec["generation"],
                     "sequence": time.monotonic_ns(), "kind": "Formed", "address": "10.64.0.1:5000",
                     "formedAt": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())},
        }  # fmt: skip
        path = REPORTS.format(namespace=namespace)
        known = [each for each in raw(self.api, "GET", path)["items"] if each["metadata"]["name"] == master["pod"]]
        if known:
            report["metadata"]["resourceVersion"] = known[0]["metadata"]["resourceVersion"]
            raw(self.api, "PUT", f"{path}/{master['pod']}", report)
        else:
            raw(self.api, "POST", path, report)

        def formed() -> bool:
            status = raw(self.api, "GET", f"{JOBS.format(namespace=namespace)}/{name}").get("status") or {}
            return bool(status.get("state") == "Running")

        until("the operator knows that the gang has formed", 30, formed)
        return self._world(namespace, name)


def _three(seconds: tuple[float, float, float]) -> str:
    return " / ".join(f"{each:.1f}" for each in seconds)


def wait_for_scheduler(api: Api, node: str) -> None:
    """Until kube-scheduler has heard of the node that was made last, and so of all: before that it refuses pods for
    nodes that it does not know yet, and the first job would pay for it."""
    namespace = api.namespace("scale-probe")
    pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace},
           "spec": {**pod_spec(), "nodeSelector": {"kubernetes.io/hostname": node}}}
    pod["spec"]["containers"][0]["resources"] = {"limits": {RESOURCE: str(DEVICES)}}
    path = f"/api/v1/namespaces/{namespace}/pods"
    until("a service account for pods", 60, lambda: raw(
        api, "GET", f"/api/v1/namespaces/{namespace}/serviceaccounts")["items"], 0.2)
    raw(api, "POST", path, pod)
    until(f"the scheduler knows {node}", 120, lambda: raw(api, "GET", f"{path}/probe")["spec"].get("nodeName"), 0.2)
    raw(api, "DELETE", f"{path}/probe", {"gracePeriodSeconds": 0})


def wait_for_quiet(api: Api, writes: int = 15, seconds: float = 120) -> None:
    """Until the control plane has done what new nodes, or pods that are gone, give it to do: it writes for many seconds
    after them, and the next job would pay for it. Quiet: at most so many writes a second for three seconds."""
    def version() -> int:
        return int(raw(api, "GET", "/api/v1/namespaces?limit=1")["metadata"]["resourceVersion"])

    end, quiet, before = time.monotonic() + seconds, 0, version()
    while quiet < 3:
        assert time.monotonic() < end, f"the control plane still writes more than {writes} objects a second"
        time.sleep(1.0)
        now = version()
        quiet, before = (quiet + 1 if now - before <= writes else 0), now


def measure(sizes: list[int], name: str, keep: bool, logs: Path | None) -> list[Result]:
    """All sizes, smallest first, on one cluster that is made for it."""
    # The simulated nodes send no heartbeats: nothing but the load of an idle fleet would come of them.
    configs.NODE_MONITOR_GRACE = "24h"
    cluster = Cluster.up(name, nodes=0, provider="builtin")
    try:
        api = Api(cluster.kubeconfig)
        cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as temporary, \
                kwok(cluster, folder := logs or Path(temporary), place := inside(cluster, Path(temporary))):
            known = {node["metadata"]["name"] for node in raw(api, "GET", "/api/v1/nodes?limit=20000")["items"]}
            begun = time.monotonic()
            make_nodes(api, [number for number in range(max(sizes)) if f"sim-{number:05}" not in known])
            print(f"{max(sizes)} nodes made in {time.monotonic() - begun:.0f} s", flush=True)
            api.namespace("trainyard-system")
            wait_for_scheduler(api, f"sim-{max(sizes) - 1:05}")
            with run_operator(place.kubeconfig, folder, "scale", namespace="trainyard-system",
                              before=place.words) as operator:
                # Not asked by HTTP: it serves in the control plane's network.
                until("the operator leads", 120,
                      lambda: any(line["msg"].startswith("this operator leads now") for line in operator.lines()), 0.5)
                bench = Bench(api, operator, max((size for size in sizes if size <= KILLED_OF), default=0))
                return [bench.gang(size) for size in sorted(sizes)]
    finally:
        if not keep:
            cluster.down()


def main() -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(prog="python -m scale", description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="pods a job, comma-separated")
    parser.add_argument("--cluster", default="bench-scale", help="name of the cluster that is made for it")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--logs", type=Path, help="folder for the logs of operator and KWOK")
    parser.add_argument("--no-page", action="store_true", help="print only; leave docs/figures.md as it is")
    given = parser.parse_args()
    results = measure([int(size) for size in given.sizes.split(",")], given.cluster, given.keep, given.logs)
    write(results, machine(), page=not given.no_page)


if __name__ == "__main__":
    main()
