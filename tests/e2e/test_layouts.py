"""Jobs of 2 nodes x 2 processes on every kind of layout: chosen, tensor, pipeline and expert parallel, and the fastest
of those that are measured; a worker of each is lost, and still they learn what one process learns."""

from __future__ import annotations

import re
from typing import Any

import pytest
from e2e.manifests import check_lost_pods, training
from harness.installation import Yard
from harness.job import Job, Object
from kubernetes.client import ApiException
from trainyard.layout.ranks import groups
from trainyard.layout.types import Layout

STEPS = 80  # of which the status tells late
# At 3e-3 a rounding decides which expert a token goes to by step 35, and losses go apart by 9e-4; those of one process
# whose experts' results are multiplied by 1 + 1e-7 at random do likewise, by 3e-3.
MIXTURE_RATE = 1e-3
LOST_AT = 8
EQUAL = 2e-5  # relative; fp32 sums in another order, over all steps: 1.8e-6 was seen
LOSS = re.compile(r"step (\d+)/\d+ loss (\S+) norm ")

PARALLEL: dict[str, Object] = {
    "chosen": {}, "tensor": {"tensor": 2}, "pipeline": {"pipeline": 2},
    "expert": {"data": 2, "tensor": 2, "expert": 2},
}
MICRO = {"tensor": 1, "pipeline": 1, "expert": 2}  # experts are balanced over what is computed at once: here the batch


def manifest(name: str, namespace: str, **train: Any) -> Object:
    """One process, unless it is said otherwise; a mixture's experts are balanced over the whole batch."""
    made = training(name, namespace, nodes=1, steps=STEPS)
    made["spec"]["train"].update(train)
    if "expert" in name:
        made["spec"]["train"]["optimizer"]["learningRate"] = MIXTURE_RATE
        model = made["spec"]["train"]["model"]
        model.update(family="mixtral", config={**model["config"], "num_local_experts": 4, "num_experts_per_tok": 2})
    return made


def losses(job: Job, pod: str) -> dict[int, set[str]]:
    """By step, as often as it was computed."""
    found: dict[int, set[str]] = {}
    for step, loss in LOSS.findall(job.logs(pod)):
        found.setdefault(int(step), set()).add(loss)
    return found


def logged(job: Job, pod: str) -> dict[int, set[str]]:
    """Losses so far; none where there is no such pod or container yet."""
    try:
        return losses(job, pod)
    except ApiException as error:
        if error.status in (400, 404):
            return {}
        raise


@pytest.fixture(scope="module")
def alone(yard: Yard) -> dict[str, dict[int, set[str]]]:
    """What one process learns, of the dense model and of the mixture."""
    namespace = yard.api.namespace("layouts-alone")
    yard.make_volume(namespace)
    jobs = {name: yard.api.apply(manifest(name, namespace, microBatchSize=4)) for name in ("dense", "experts")}
    try:
        for job in jobs.values():
            job.wait_state("Succeeded", 240)
        return {name: losses(job, f"{name}-0-1") for name, job in jobs.items()}
    finally:
        yard.remove_namespace(namespace)


@pytest.mark.parametrize("name", PARALLEL)
def test_a_layout_learns_what_one_process_learns(yard: Yard, namespace: str, alone: dict[str, dict[int, set[str]]],
                                                 name: str) -> None:
    micro = {"microBatchSize": MICRO[name]} if name in MICRO else {}
    job_manifest = manifest(name, namespace, parallel=PARALLEL[name], **micro)
    job_manifest["spec"].update(numNodes=2, numProcPerNode=2)
    job = yard.api.apply(job_manifest)
    job.wait("steps", lambda _: LOST_AT in logged(job, f"{name}-0-1"), 240)
    status = job.status()
    layout = Layout(**{key: status["layout"][key] for key in ("data", "shard", "tensor", "pipeline", "context")})
    assert layout.ranks == 4
    for key, size in PARALLEL[name].items():
        assert status["layout"][key] == size, status["layout"]
    assert status["layout"]["explanation"], "it was chosen before pods started"
    nodes = {pod["metadata"]["labels"]["trainyard.dev/index"]: pod["spec"]["nodeName"] for pod in job.pods()}
    assert len(set(nodes.values())) == 2, "each pod has a node of its own"
    reached = {name: [len({nodes[str(rank // 2)] for rank in group}) for group in groups(layout, name)]
               for name in ("tensor", "pipeline")}
    assert set(reached["tensor"]) == {1}, "tensor groups stay in a node"
    assert set(reached["pipeline"]) == {layout.pipeline}, "pipelines cross"

    job.kill_pod(f"{name}-1-1")
    status = job.wait_state("Succeeded", 240)
    assert status["progress"]["step"] == STEPS
    check_lost_pods(status, 1)
    found = losses(job, f"{name}-0-1")
    assert sorted(found) == list(range(1, STEPS + 1))
    off = apart(alone["experts" if name == "expert" else "dense"], found)
    print(f"{name}: {status['layout']['explanation']}; loss off one process's by {off:.1e} at most; "
          f"{status['recoveries'][0]['lostSteps']} steps lost, {status['recoveries'][0].get('milliseconds')}")
    assert off < EQUAL


def apart(expected: dict[int, set[str]], found: dict[int, set[str]]) -> float:
    """How far losses are from those expected, relative."""
    return max(abs(float(loss) - float(want)) / float(want)
               for step, seen in found.items() for loss in seen for want in expected[step])


def test_a_worker_is_lost_while_layouts_are_measured_and_another_after(
    yard: Yard, namespace: str, alone: dict[str, dict[int, set[str]]]
) -> None:
    """The measurement begins anew; once it has ended its choice outlives whoever is lost."""
    asked = manifest("tuned", namespace, autotune=True)
    asked["spec"].update(numNodes=2, numProcPerNode=2)
    faults = "layout:number=1,waits=8; layout:number=1,slow=1000"  # there is time, and the planner's choice is not kept
    asked["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "TRAINYARD_INJECT", "value": faults}]
    job = yard.api.apply(asked)
    status = job.wait("measurement", lambda status: activity(status).startswith("autotune "), 240)
    planned = [each["name"] for each in status["layout"]["candidates"]]
    assert len(planned) > 1
    assert "tuned" not in status["layout"]
    job.kill_pod("tuned-1-1")

    status = job.wait_step(LOST_AT, 240)
    layout = status["layout"]
    assert [each["name"] for each in layout["candidates"]] == planned
    assert all(float(each["measuredSecondsPerStep"]) > 0 for each in layout["candidates"]), layout
    assert layout["tuned"] in planned[1:]
    check_lost_pods(status, 1)
    assert job.logs("tuned-0-1").count("autotune 1/") == 2, "all is measured anew, in the same pod"

    job.kill_pod("tuned-0-1")
    status = job.wait_state("Succeeded", 240)
    check_lost_pods(status, 2)
    assert status["layout"]["tuned"] == layout["tuned"]
    text = job.logs("tuned-0-2")
    assert "autotune 1/" not in text, "what was chosen is not measured again"
    assert "layouts are not measured" not in text, "nor is the planner's choice taken because there is a checkpoint"
    sizes = next(line for line in text.splitlines() if "million parameters" in line)
    assert all(f"{name} {layout[name]}" in sizes for name in ("data", "shard", "tensor", "pipeline")
               if layout[name] > 1), sizes
    found = losses(job, "tuned-0-2")
    assert sorted(found) == list(range(min(found), STEPS + 1))
    assert apart(alone["dense"], found) < EQUAL


def activity(status: Object) -> str:
    """What the ranks do besides steps, as the status says."""
    told: str = (status.get("progress") or {}).get("activity") or ""
    return told
