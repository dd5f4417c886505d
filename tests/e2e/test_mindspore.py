"""runtime: mindspore, with the real MindSpore on CPU over two pods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from e2e.manifests import VOLUME, counting
from e2e.test_recovery import kill_rank
from harness import mindspore
from harness.installation import Yard

SCRIPT = Path(__file__).with_name("summing.py").read_text()
STEPS = 40


@pytest.mark.timeout(900)  # MindSpore is fetched and unpacked once a machine
def test_an_all_reduce_over_two_pods_before_and_after_a_worker_is_killed(yard: Yard, namespace: str) -> None:
    yard.needs("shared")
    mindspore.share(yard.volume(namespace) / "mindspore", yard.progress)
    manifest = counting("summing", namespace, yard.plain_image, steps=STEPS, runtime="mindspore",
                        command=["python3", "-c", SCRIPT])
    pod = manifest["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "shared", **VOLUME}]
    pod["containers"][0]["volumeMounts"] = [
        {"name": "shared", "mountPath": "/mindspore", "subPath": "mindspore", "readOnly": True}]
    pod["containers"][0]["env"] += [
        {"name": "PYTHONPATH", "value": "/mindspore/site"}, {"name": "LD_LIBRARY_PATH", "value": "/mindspore/lib"}]
    job = yard.api.apply(manifest)
    kept = yard.volume(namespace) / "summing" / "step"
    job.wait("step 5", lambda _: kept.exists() and int(kept.read_text() or 0) >= 5, 180)
    kill_rank(yard, job, "summing-1-1")
    status = job.wait_state("Succeeded", 180)
    assert status["restarts"] == {"total": 1, "counted": 1}
    (recovery,) = status["recoveries"]
    assert recovery["cause"] == "RankFailed"
    assert "rank 1" in recovery["culprit"]
    for rank in range(2):
        log = job.api.core.read_namespaced_pod_log(f"summing-{rank}-1", namespace, container="trainer")
        starts = re.findall(rf"rank {rank} of 2 goes on from step (\d+), RANK is {rank}$", log, re.MULTILINE)
        assert len(starts) == 2, "the ranks of both starts are the same"
        assert int(starts[1]) >= 5
        assert f"rank {rank} finished step {STEPS}, the sum is {STEPS * 11}" in log
        assert ("[scheduler] " in log) == (rank == 0)
