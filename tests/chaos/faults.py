"""What is done to processes and pods of a job. Each returns when it happened, in seconds since 1970."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

from harness.job import Object, Timeout

from chaos import processes
from chaos.scene import Scene

Fault = Callable[[Scene], float]
NAN_EVERY = 12  # steps; less than a job takes a fault
OPERATOR_DIES_AFTER = (0.0, 0.02, 0.05, 0.1, 0.2)  # s from the rank's end, by the number of the fault
RUNS = 0.05  # s at a time that a slowed rank runs
NAMED_WITHIN = 100.0  # s: a minute, the time between two comparisons, and the last steps before each
SPARE_FIRST = 0.2  # s that the spare is lost before the worker


def kill_rank(place: int) -> Fault:
    """SIGKILL to the rank of a place."""
    return lambda scene: processes.send([scene.rank(place)], signal.SIGKILL)


def stop_rank(place: int) -> Fault:
    """SIGSTOP to it."""
    return lambda scene: processes.send([scene.rank(place)], signal.SIGSTOP)


def slow_rank(place: int) -> Fault:
    """Its process gets every third moment only."""

    def fault(scene: Scene) -> float:
        pid, over = scene.rank(place), threading.Event()

        def brake() -> None:
            with contextlib.suppress(ProcessLookupError):
                while not over.wait(RUNS):
                    os.kill(pid, signal.SIGSTOP)
                    over.wait(2 * RUNS)
                    os.kill(pid, signal.SIGCONT)

        thread = threading.Thread(target=brake, daemon=True)
        scene.undo.callback(thread.join)
        scene.undo.callback(over.set)
        at = time.time()
        thread.start()
        scene.kept["slow"] = f"rank {place} ("
        return at

    return fault


def straggler_is_named(scene: Scene) -> None:
    """In status.warnings, after a minute of being slow."""

    def named() -> bool:
        told = scene.job.status().get("warnings") or []
        return any(each["reason"] == "Straggler" and scene.kept["slow"] in each["message"] for each in told)

    scene.wait("straggler in status.warnings", named, NAMED_WITHIN)


def delete_pod(place: int) -> Fault:
    """`kubectl delete --force` of the pod that holds the place."""

    def fault(scene: Scene) -> float:
        name, at = scene.pod_name(place), time.time()
        scene.job.kill_pod(name)
        return at

    return fault


def in_turn(*several: Fault) -> Fault:
    """One after the other."""
    return lambda scene: several[scene.number % len(several)](scene)


def delete_spare_and_pod(scene: Scene) -> float:
    """The spare, and then the pod whose place it would have taken."""
    (spare,), name = scene.spares(), scene.pod_name(1)
    scene.job.kill_pod(spare)
    time.sleep(SPARE_FIRST)
    at = time.time()
    scene.job.kill_pod(name)
    return at


def nan_every(faults: int) -> Mapping[str, str]:
    """Every so many steps the gradients of rank 1 are NaN, the first time that the batch is computed."""
    parts = (f"nan:step={NAN_EVERY * number},rank=1" for number in range(1, faults + 1))
    return {"TRAINYARD_INJECT": ";".join(parts)}


def wait_for_nan(scene: Scene) -> float:
    """The trainer does it to itself: when the step before was finished."""
    before = NAN_EVERY * (scene.number + 1) - 1
    scene.wait(f"step {before}", lambda: scene.journal.step >= before, 60)
    steps, _ = scene.journal.read()
    return next(step.at for step in steps if step.number == before)


def leader(scene: Scene) -> Object:
    """The pod of the operator that leads. Raises Timeout."""
    holder = scene.yard.leader()
    found = next((pod for pod in scene.yard.operator_pods() if holder.startswith(pod["metadata"]["name"])), None)
    if found is None:
        raise Timeout(f"no operator leads; the lease says {holder!r}")
    return found


def unseat(scene: Scene) -> None:
    """Another operator leads, wherever it is."""
    before = leader(scene)["metadata"]
    scene.yard.api.core.delete_namespaced_pod(before["name"], before["namespace"])

    def another() -> bool:
        try:
            return bool(leader(scene)["metadata"]["name"] != before["name"])
        except Timeout:
            return False

    scene.wait("other leader", another, 60)


def kill_rank_and_operator(scene: Scene) -> float:
    """The leader dies at another moment of the recovery each time."""
    operator = [pid for pid in processes.of_pod(leader(scene)["metadata"]["uid"])
                if "trainyard" in processes.command(pid)]
    at = processes.send([scene.rank(1)], signal.SIGKILL)
    time.sleep(OPERATOR_DIES_AFTER[scene.number % len(OPERATOR_DIES_AFTER)])
    processes.send(operator, signal.SIGKILL)
    return at
