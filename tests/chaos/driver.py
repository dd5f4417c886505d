"""Runs cases: a job, faults one after the other, and what must hold after each and at the end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from cluster import ClusterError
from e2e.device_jobs import installed, whole
from harness.devices import Devices
from harness.installation import Yard
from harness.job import Job, Object, Timeout
from kubernetes.client.exceptions import ApiException

from chaos import evidence
from chaos.cases import CASES, Case
from chaos.disk import SmallDisk
from chaos.jobs import manifest
from chaos.journal import Journal
from chaos.results import Recovered, Result
from chaos.scene import Scene
from chaos.torchrun import Torchrun

SETTLE = 8  # finished steps of a start before the next fault; a job takes three times as many a fault
SETTLE_SECONDS = 20.0  # that a job lasts longer for its first fault: its status is written every 5 s, a spare imports
START_SECONDS = 240  # a job may take to its first steps
STEP_SECONDS = 5.0  # a step may take, on a machine that is not ours alone
SAME = 0.3  # s that status may be off
STORM_STEPS = 1_000_000  # more than there is time for
BESIDE_SECONDS = 180.0  # that torchrun gets for a recovery


class Driver:
    """One namespace of a cluster for all cases."""

    def __init__(self, yard: Yard, namespace: str, settle: int = SETTLE, same: float = SAME) -> None:
        """`settle`: steps before a fault; `same`: s that the status may be off what the logs say, which a busy machine
        holds up."""
        self.yard, self.namespace, self.settle, self.same = yard, namespace, settle, same
        self._undisturbed: dict[int, dict[int, str]] = {}  # losses by step, by nodes
        self._pace: dict[int, float] = {}  # s a step, by nodes
        self.results: dict[str, Result] = {}  # by key, of the cases that are over
        self._devices: Devices | None = None

    def run(self, cases: list[Case], times: int, beside_times: int) -> list[Result]:
        """All of them, in their order. What fails is told in its result and stops no other case."""
        longest: dict[int, int] = {}
        for case in cases:
            longest[case.nodes] = max(longest.get(case.nodes, 0), self._steps(case, 1 if case.every else times))
        for nodes, steps in longest.items():
            self._undisturbed[nodes] = self._reference(nodes, steps)
        self._run([case for case in cases if not case.devices], times)
        if any(case.devices for case in cases):
            with self._accelerators():
                self._run([case for case in cases if case.devices], times)
        if beside_times and any(case.beside for case in cases):
            self._beside(cases, beside_times)
        return [self.results[case.key] for case in cases]

    def _run(self, cases: list[Case], times: int) -> None:
        for case in cases:
            result = self._case(case, times)
            base = self.results[case.beyond].median if case.beyond in self.results else 0.0
            result.aim = None if case.aim is None or base is None else case.aim + base
            self.results[case.key] = result

    @contextlib.contextmanager
    def _accelerators(self) -> Iterator[None]:
        """Every node has simulated ones for a while."""
        with installed(self.yard, whole()) as made:
            made.wait_served()
            self._devices = made
            yield
            self._devices = None

    def _steps(self, case: Case, times: int) -> int:
        return (3 * self.settle + case.steps) * times + 2 * self.settle

    def _steps_while_it_lasts(self, case: Case, times: int) -> int:
        """Beyond those; with what the undisturbed run may not be compared, which would take as long."""
        return math.ceil((1.3 * times * case.seconds + SETTLE_SECONDS) / self._pace[case.nodes])

    def _journal(self, prefix: str) -> Journal:
        cluster = self.yard.cluster
        return Journal([cluster.disk(node) for node in cluster.nodes], self.namespace, prefix)

    def _reference(self, nodes: int, steps: int) -> dict[int, str]:
        """Losses by step of a run that nothing happens to."""
        name = f"undisturbed-{nodes}"
        began = time.monotonic()
        with self._journal(name) as journal:
            job = self.yard.api.apply(manifest(name, self.namespace, steps, nodes))
            job.wait_state("Succeeded", START_SECONDS + STEP_SECONDS * steps)
            time.sleep(0.1)
            read, _ = journal.read()
            losses = journal.losses()
        self._delete(job)
        if sorted(losses) != list(range(1, steps + 1)):
            raise Timeout(f"the undisturbed run should have told of {steps} steps, found {len(losses)}")
        pace = (read[-1].at - read[self.settle].at) / (steps - 1 - self.settle)
        self._pace[nodes] = pace
        print(f"undisturbed, {nodes} nodes: {steps} steps, {pace:.3f} s each, {time.monotonic() - began:.0f} s in all",
              flush=True)
        return losses

    # ---- a case

    def _case(self, case: Case, times: int) -> Result:
        result = Result(case.key, case.name)
        print(f"case {case.key}: {case.name}", flush=True)
        attempt = 0
        while len(result.recovered) < times and not result.failed:
            attempt += 1
            try:
                self._job(case, f"case-{case.key}-{attempt}", times, result)
            except (Timeout, AssertionError, LookupError, ApiException, ClusterError) as error:
                result.failed.append(f"{type(error).__name__}: {error}")
                print(f"  FAILED {error}", flush=True)
        return result

    def _job(self, case: Case, name: str, times: int, result: Result) -> None:
        """Faults on one job until all are done, or it has no steps left for more."""
        steps = STORM_STEPS if case.every else self._steps(case, times) + self._steps_while_it_lasts(case, times)
        environment = dict(case.environment(times)) if case.environment else None
        made = manifest(name, self.namespace, steps, case.nodes, environment, spareNodes=case.spares, **case.spec)
        small = SmallDisk(self.yard.cluster) if case.small_disk else contextlib.nullcontext()
        self._cluster_is_whole()
        with small, self._journal(name) as journal:
            job = self.yard.api.apply(made)
            scene = Scene(self.yard, job, journal, len(result.recovered), self._devices)
            try:
                with scene.undo:
                    if case.every:
                        return self._storm(case, scene, times, result)
                    done = 0
                    while len(result.recovered) < times and self._settled(case, scene, steps):
                        if done and case.apart and not scene.apart():
                            break  # a node that is cut off with all members on it goes on by itself
                        result.recovered.append(self._fault(case, scene))
                        scene.number += 1
                        done += 1
                    if not done:
                        raise Timeout(f"{name} ended before a fault: {job.describe(job.status())}")
                    self._ended(case, scene, steps, done, result)
            except (Timeout, AssertionError, LookupError, ApiException):
                with contextlib.suppress(ApiException):
                    print(f"  what is left of {name} is in {evidence.keep(self.yard, job, journal.text())}", flush=True)
                raise
            finally:
                self._delete(job)

    def _storm(self, case: Case, scene: Scene, times: int, result: Result) -> None:
        """Faults at fixed times, after as long a time without any; the steps of both tell what the faults cost."""
        journal = scene.journal

        def finished_until(end: float) -> int:
            time.sleep(max(0.0, end - time.monotonic()))
            return journal.step

        self._settled(case, scene, STORM_STEPS)
        began, first = time.monotonic(), journal.step
        usual = (finished_until(began + case.every) - first) / (time.monotonic() - began)
        began, first = time.monotonic(), journal.step
        for number in range(times):
            finished_until(began + case.every * (number + 0.5))
            result.recovered.append(self._fault(case, scene))
            scene.number += 1
        share = (finished_until(began + case.every * times) - first) / (time.monotonic() - began) / usual
        result.throughput, result.throughput_aim = share, case.throughput
        print(f"  {share:.1%} of the undisturbed throughput", flush=True)
        self._compare(case, journal, result)

    def _settled(self, case: Case, scene: Scene, steps: int) -> bool:
        """Wait until the job is whole again: steps, copies on other nodes, warm spares, an operator that leads. False
        if it is too near its end."""
        journal, job = scene.journal, scene.job

        def whole() -> bool:
            read, starts = journal.read()
            fresh = [step for step in read if step.start == len(starts)]
            if journal.step > steps - self.settle:
                return True
            if len(fresh) < self.settle:
                return False
            status = job.status()
            if status["nodes"].get("spare", 0) < case.spares:
                return False
            return bool((status.get("checkpoint") or {}).get("memoryStep")) and status["state"] == "Running"

        scene.wait("settled job", whole, START_SECONDS)
        self._cluster_is_whole()
        return journal.step <= steps - self.settle

    def _cluster_is_whole(self) -> None:
        """Wait for an operator that leads, one in reserve, and every node."""
        _until("operator", lambda: len([pod for pod in self.yard.operator_pods() if _ready(pod)]) == 2, 60)
        _until("usable nodes", lambda: all(map(_usable, self.yard.api.core.list_node().items)), 60)

    def _fault(self, case: Case, scene: Scene) -> Recovered:
        before = scene.job.status()
        pods = {pod["metadata"]["uid"] for pod in scene.job.pods()}
        with scene.pulses() as pulses:
            at = case.fault(scene)
            step = scene.next_step(at, bool(case.causes), case.within)
            finished = [each.step for each in pulses]
        told = None if None in finished else min(each for each in finished if each is not None)
        made = Recovered(step.at - at, scene.journal.lost(step, told))
        if case.check is not None:
            case.check(scene)
        scene.undo.close()
        made = self._told(case, scene, before, made)
        shown = " ".join(f"{name} {value}" for name, value in made.milliseconds.items() if name != "total")
        print(f"  {made.seconds:.2f} s, {made.lost} steps lost, {made.counted} counted; ms: {shown}", flush=True)
        assert made.lost <= case.lost, f"{made.lost} finished steps were lost, expected at most {case.lost}"
        gone = pods - {pod["metadata"]["uid"] for pod in scene.job.pods()}
        assert len(gone) <= case.pods, f"{len(gone)} pods were replaced, expected at most {case.pods}"
        return made

    def _told(self, case: Case, scene: Scene, before: Object, made: Recovered) -> Recovered:
        """What status says about it must be the same story."""
        known = len(before.get("recoveries") or [])
        newest = (before.get("recoveries") or [{"generation": 0}])[-1]["generation"]

        def over(status: Object) -> bool:
            last = (status.get("recoveries") or [{"generation": 0}])[-1]
            return bool(last["generation"] > newest and "total" in last["milliseconds"])

        if not case.causes or not case.told:
            status = scene.job.status()
            assert len(status.get("recoveries") or []) == known, f"nothing should be restarted: {status['recoveries']}"
        else:
            status = scene.job.wait("recovery in the status", over, 60)
            last = status["recoveries"][-1]
            assert last["cause"] in case.causes, f"expected {' or '.join(case.causes)}, found {last}"
            made = replace(made, milliseconds=last["milliseconds"])
            total = last["milliseconds"]["total"] / 1000
            if last["cause"] == "RankFailed" and "detect" in last["milliseconds"]:
                # The kernel says when; a lost pod or node is missed some time later.
                difference = abs(total - made.seconds)
                assert difference < self.same + 0.2 * made.seconds, (
                    f"status says {total} s, it was {made.seconds:.2f} s")
        added = {kind: status["restarts"][kind] - before["restarts"][kind] for kind in ("counted", "total")}
        expected = {"counted": added["counted"] if case.counted is None else case.counted, "total": case.total}
        assert added == expected, f"restarts: {added}, expected {expected}, {status['recoveries'][-1:]}"
        return replace(made, counted=added["counted"])

    def _ended(self, case: Case, scene: Scene, steps: int, done: int, result: Result) -> None:
        status = scene.job.wait_state("Succeeded", START_SECONDS + STEP_SECONDS * steps)
        scene.wait("last step", lambda: scene.journal.step == steps, 10)
        losses = scene.journal.losses()
        assert len(losses) == steps, f"{steps} steps were to be taken, {len(losses)} were"
        assert float(status["progress"]["loss"]) == float(losses[steps])
        self._compare(case, scene.journal, result)

    def _compare(self, case: Case, journal: Journal, result: Result) -> None:
        """Every loss, digit for digit, with that of the run that nothing happened to."""
        expected = self._undisturbed[case.nodes]
        losses = {step: loss for step, loss in journal.losses().items() if step in expected}
        wrong = {step: (loss, expected[step]) for step, loss in losses.items() if loss != expected[step]}
        assert not wrong, f"losses differ from the undisturbed run's: {dict(list(wrong.items())[:5])}"
        last = max(losses)
        result.losses = f"equal ({losses[last]} at {last})"

    def _delete(self, job: Job) -> None:
        if job.get() is not None:
            job.delete()
        for pod in job.pods():  # those of a cut node are let go by nobody else
            with contextlib.suppress(ApiException):
                job.kill_pod(pod["metadata"]["name"])
        job.wait_gone(60)

    # ---- torchrun

    def _beside(self, cases: list[Case], times: int) -> None:
        """The same faults under torchrun."""
        known = self.results
        print("the same under torchrun", flush=True)
        left = [case for case in cases if case.beside is not None]
        while left:  # a gang that has not come back is no place for another fault
            other = Torchrun(self.yard, self.namespace, 2)
            with other.journal, self._started(other):
                while left:
                    case = left.pop(0)
                    try:
                        for _ in range(times):
                            known[case.key].beside.append(self._beside_once(case, other))
                    except (Timeout, LookupError, ApiException) as error:
                        known[case.key].beside_failed = f"not within {BESIDE_SECONDS:.0f} s"
                        print(f"  case {case.key} FAILED under torchrun: {str(error)[-3000:]}", flush=True)
                        break

    @contextlib.contextmanager
    def _started(self, other: Torchrun) -> Iterator[None]:
        other.start()
        try:
            yield
        finally:
            other.remove()

    def _beside_once(self, case: Case, other: Torchrun) -> Recovered:
        assert case.beside is not None
        journal = other.journal

        def fresh() -> int:
            read, starts = journal.read()
            return sum(step.start == len(starts) for step in read)

        _until("torchrun's steps", lambda: fresh() >= self.settle, START_SECONDS, journal)
        with other.undo:
            at = case.beside(other)
            _until("a step of torchrun after the fault", lambda: journal.next_step(at, True), BESIDE_SECONDS, journal)
        step = journal.next_step(at, True)
        assert step is not None
        made = Recovered(step.at - at, journal.lost(step))
        print(f"  case {case.key}: {made.seconds:.2f} s, {made.lost} steps lost", flush=True)
        return made


def _until(what: str, holds: Callable[[], object], seconds: float, journal: Journal | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            told = f"; journal:\n{journal.text()}" if journal else ""
            raise Timeout(f"no {what} within {seconds:.0f} s{told}")
        time.sleep(0.05)


def _ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def _usable(node: Any) -> bool:
    ready = any(each.type == "Ready" and each.status == "True" for each in node.status.conditions)
    return ready and not node.spec.unschedulable and not node.spec.taints


def select(names: str) -> list[Case]:
    """Cases by their keys, comma between; `3` is also 3b. Empty: all. Raises ValueError."""
    if not names:
        return list(CASES)
    wanted = [name.strip() for name in names.split(",")]
    found = [case for case in CASES if case.key in wanted or case.key.rstrip("abc") in wanted]
    unknown = [name for name in wanted if not any(name in (case.key, case.key.rstrip("abc")) for case in CASES)]
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(case.key for case in CASES)}")
    missing = {case.beyond for case in found if case.beyond} - {case.key for case in found}
    return [case for case in CASES if case in found or case.key in missing]
