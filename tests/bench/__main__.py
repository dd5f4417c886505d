"""Measures on a real cluster of this machine and writes docs/figures.md.

Times come from one clock: the moment before the manifest is sent, and the time stamps that containerd puts on the log
lines of the ranks. The fault is a SIGKILL of one rank of two pods.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cluster import Cluster, remove
from e2e.manifests import counting, training
from e2e.test_recovery import kill_rank
from harness.installation import Yard
from harness.job import Job, Object
from scale.page import section

from bench.operator import scrape
from bench.placing import placing

TARGET = Path(__file__).resolve().parents[2] / "docs" / "figures.md"
REPEATS = 5
_STEP = re.compile(r"^(\S+Z) .*(?:finished step (\d+)$|step (\d+)/\d+ loss)")


def steps(job: Job, pod: str) -> list[tuple[float, int]]:
    """(unix seconds, step) for every log line of a finished step, oldest first."""
    log = job.api.core.read_namespaced_pod_log(pod, job.namespace, container="trainer", timestamps=True)
    found = []
    for line in log.splitlines():
        match = _STEP.match(line)
        if match:
            stamp = re.sub(r"(\.\d{6})\d*Z", r"\1+00:00", match[1])
            found.append((datetime.fromisoformat(stamp).timestamp(), int(match[2] or match[3])))
    return found


def first_step(yard: Yard, namespace: str, manifest: Object) -> float:
    """Seconds from apply to the first finished step of rank 0."""
    start = time.time()
    job = yard.api.apply(manifest)
    job.wait_step(1, 240)
    seconds = steps(job, f"{job.name}-0-1")[0][0] - start
    job.delete()
    job.wait_gone()
    return seconds


def recovered(status: Object) -> bool:
    """Whether the newest recovery has finished a step."""
    recoveries = status.get("recoveries") or []
    return bool(recoveries and recoveries[-1]["milliseconds"].get("total"))


def rank_killed(yard: Yard, namespace: str, manifest: Object, phases: list[Object]) -> float:
    """Seconds from the SIGKILL of a rank of pod 1 to the next finished step of rank 0; adds its phases."""
    job = yard.api.apply(manifest)
    job.wait_step(3, 240)
    killed = time.time()
    kill_rank(yard, job, f"{job.name}-1-1")
    status = job.wait("a restart that finished steps", recovered, 240)
    phases.append(status["recoveries"][-1]["milliseconds"])
    lines = steps(job, f"{job.name}-0-1")
    # The kill takes effect some time into the exec: the gap that holds it is the longest one since.
    times = [stamp for stamp, _ in lines if stamp > killed - 1]
    gap = max(later - earlier for earlier, later in pairwise(times))
    job.delete()
    job.wait_gone()
    return gap


def repeat(what: str, measure: Callable[[int], float], count: int = REPEATS) -> str:
    """Median, and the range, of several measurements in seconds."""
    values = []
    for number in range(count):
        values.append(measure(number))
        print(f"  {what}: {values[-1]:.2f} s", flush=True)
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f}, {count} runs)"


def by_phase(phases: list[Object]) -> str:
    """Median milliseconds of each phase."""
    names = ("detect", "decide", "replace", "rendezvous", "restore", "firstStep")
    medians = {name: statistics.median(one[name] for one in phases if name in one)
               for name in names if any(name in one for one in phases)}
    return ", ".join(f"{name} {value:.0f} ms" for name, value in medians.items())


def operator_at_work(yard: Yard, namespace: str) -> list[tuple[str, str]]:
    """The operator's own cost at rest and with 20 jobs, and its reconcile latency."""
    rows = []
    before, start = scrape(yard), time.monotonic()
    time.sleep(30)
    rest = scrape(yard).since(before)
    share = 100 * rest.cpu_seconds / (time.monotonic() - start)
    rows.append(("operator at rest", f"{rest.resident_bytes / 1e6:.0f} MB RSS, {share:.1f} % of a core"))
    jobs = [
        yard.api.apply(counting(f"twenty-{i}", namespace, yard.trainer_image, nodes=2, steps=60, step_seconds=0.5))
        for i in range(20)
    ]
    for job in jobs:
        job.wait_step(1, 400)
    before, start = scrape(yard), time.monotonic()
    time.sleep(20)
    busy = scrape(yard).since(before)
    share = 100 * busy.cpu_seconds / (time.monotonic() - start)
    rows.append(("operator with 20 running jobs", f"{busy.resident_bytes / 1e6:.0f} MB RSS, {share:.1f} % of a core"))
    for job in jobs:
        job.wait_state("Succeeded", 400)
    whole = scrape(yard)
    rows.append(("reconcile, mean", f"{whole.mean * 1000:.1f} ms over {whole.count:.0f}"))
    rows.append(("reconcile, median and 99th percentile",
                 f"at most {whole.quantile(0.5) * 1000:.0f} and {whole.quantile(0.99) * 1000:.0f} ms"))  # fmt: skip
    return rows


def machine() -> str:
    """One line about where this ran."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    memory = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) / 2**20
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, commit {commit}"


def write(rows: list[tuple[str, str]], provider: str) -> None:
    """Write the table."""
    lines = [
        "# Figures",
        "",
        f"Printed by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {machine()}, cluster of provider {provider}, "
        "two nodes that share these cores. Medians; node-monitor-grace-period 8 s.",
        "",
        "| what | measured |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    kept = section(TARGET.read_text()) if TARGET.exists() else ""  # of `make bench-scale`
    TARGET.write_text("\n".join([*lines, *([kept, ""] if kept else [])]))
    print("\n".join(lines))


def main() -> None:
    """Measure everything."""
    remove("bench")
    start = time.monotonic()
    cluster = Cluster.up("bench", nodes=2)
    rows = [("cluster of two nodes, from nothing to Ready (programs built)", f"{time.monotonic() - start:.1f} s")]
    rows += [(what, repeat(what, measure)) for what, measure in placing()]
    try:
        yard = Yard(cluster)
        yard.install()
        namespace = yard.api.namespace("bench")
        yard.make_volume(namespace)

        def count(name: str, **more: object) -> Object:
            return counting(name, namespace, yard.trainer_image, nodes=2, **more)  # type: ignore[arg-type]

        rows.append(("apply to first step, own script", repeat(
            "script", lambda i: first_step(yard, namespace, count(f"first-{i}", steps=100, step_seconds=0.05)))))
        rows.append(("apply to first step, LLaMA2 (imports torch and transformers)", repeat(
            "llama2", lambda i: first_step(yard, namespace, training(f"train-{i}", namespace, steps=1000)), 3)))
        script: list[Object] = []
        rows.append(("SIGKILL of a rank to next finished step, own script", repeat(
            "script",
            lambda i: rank_killed(yard, namespace, count(f"kill-{i}", steps=100_000, step_seconds=0.05), script))))
        rows.append(("by phase, own script", by_phase(script)))
        llama: list[Object] = []
        rows.append(("SIGKILL of a rank to next finished step, LLaMA2", repeat(
            "llama2", lambda i: rank_killed(yard, namespace, training(f"killt-{i}", namespace, steps=1000), llama))))
        rows.append(("by phase, LLaMA2", by_phase(llama)))
        rows += operator_at_work(yard, namespace)
        write(rows, cluster.provider)
    finally:
        cluster.down()


if __name__ == "__main__":
    main()
