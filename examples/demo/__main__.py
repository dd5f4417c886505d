"""`python -m demo run | up | clean`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, ClusterError, Progress, remove
from harness.installation import Yard
from harness.job import Job, follow, progress
from rich.console import Console

from demo.curve import draw
from demo.view import View

NAME = "demo"
NAMESPACE = "demo"
SECONDS = 900
PICTURE = Path("out/demo-loss.png")
PROMPT = "And God said"
_LOG_LINE = re.compile(r"step (\d+)/\d+ loss ([0-9.]+)")


def install(name: str, console: Console) -> Yard:
    """A cluster of two nodes with Trainyard on it."""
    console.print(f"[bold]cluster[/] {name}: a real control plane and two nodes")
    shown = Progress()
    cluster = Cluster.up(name, nodes=2, progress=shown)
    console.print("[bold]images[/]: built from this checkout, brought to the nodes")
    yard = Yard(cluster, shown)
    console.print("[bold]helm[/]: installing charts/trainyard")
    yard.install()
    return yard


def submit(yard: Yard) -> Job:
    """Apply the demo's job, in place of one that an earlier run left."""
    yard.api.namespace(NAMESPACE)
    manifest: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "job.yaml").read_text())
    old = Job(yard.api, NAMESPACE, manifest["metadata"]["name"])
    if old.get() is not None:
        old.delete()
    old.wait_gone()
    subprocess.run(["rm", "-rf", str(yard.volume(NAMESPACE) / old.name)], check=True)
    if not yard.api.core.list_namespaced_persistent_volume_claim(NAMESPACE).items:
        yard.make_volume(NAMESPACE)
    return yard.api.apply(manifest)


def watch(job: Job, view: View) -> tuple[dict[str, Any], int | None]:
    """Show the job until its end and kill a worker half-way. Returns the last status and the step of the kill."""
    killed_at: int | None = None
    told_state, back = "", False
    status: dict[str, Any] = {}
    for status in follow(job, SECONDS):
        state = status.get("state") or "Pending"
        if state != told_state:
            view.tell(_reason(job, status, state))
            told_state = state
        now = progress(status)
        steps = (status.get("progress") or {}).get("steps") or 0
        if killed_at is None and steps and now >= steps // 2:
            victim = f"{job.name}-1-1"
            job.kill_pod(victim)
            killed_at = now
            view.tell(f"killed worker {victim} without any grace at step {now}")
        recoveries = status.get("recoveries") or []
        if killed_at is not None and not back and recoveries and recoveries[-1]["milliseconds"].get("total"):
            back = True
            recovery = recoveries[-1]
            view.tell(
                f"training goes on {recovery['milliseconds']['total'] / 1000:.1f} s after the loss was seen; "
                f"{recovery.get('lostSteps', 0)} steps are computed again"
            )
        view.show(status, job.pods())
    return status, killed_at


def _reason(job: Job, status: dict[str, Any], state: str) -> str:
    """The state with the message of the condition that explains it."""
    kind = {"Pending": "Scheduled", "Starting": "Running"}.get(state, state)
    message = job.condition(kind, status).get("message", "")
    return f"{state}: {message}" if message else state


def losses(job: Job) -> list[tuple[int, float]]:
    """(step, loss) pairs from the log of rank 0's pod, which lived through the whole run; the last word a step wins."""
    found = {int(step): float(loss) for step, loss in _LOG_LINE.findall(job.logs(f"{job.name}-0-1"))}
    return sorted(found.items())


def generate(export: Path) -> str:
    """A sentence by the exported model."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer.generate", "--model", str(export), "--prompt", PROMPT],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    if done.returncode:
        raise ClusterError(f"the exported model in {export} could not be used: {done.stderr.strip()[-400:]}")
    return done.stdout.strip()


def run(console: Console) -> int:
    """The whole demo."""
    start = time.monotonic()
    yard = install(NAME, console)
    console.print(f"[bold]ready[/] after {time.monotonic() - start:.0f} s; applying examples/demo/job.yaml")
    with View(console, "kubectl apply -f examples/demo/job.yaml") as view:
        job = submit(yard)
        status, killed_at = watch(job, view)
    if status.get("state") != "Succeeded":
        console.print(f"[red]the job did not succeed:[/] {job.describe(status)}")
        return 1
    points = losses(job)
    draw(points, killed_at, PICTURE)
    if points:
        console.print(f"loss {points[0][1]:.2f} -> {points[-1][1]:.2f} over {points[-1][0]} steps; curve in {PICTURE}")
    console.print(f"[bold]generated:[/] {generate(yard.volume(NAMESPACE) / job.name / 'export')}", highlight=False)
    console.print(f"done in {time.monotonic() - start:.0f} s. The cluster is still up:\n", highlight=False)
    console.print(f"  export KUBECONFIG={yard.cluster.kubeconfig} PATH={yard.cluster.programs}:$PATH", highlight=False)
    console.print(f"  kubectl -n {NAMESPACE} get tj,pods -o wide", highlight=False)
    console.print(f"  kubectl -n {NAMESPACE} describe tj {job.name}", highlight=False)
    console.print("  kubectl explain trainingjob.spec.train.optimizer", highlight=False)
    console.print("\n`make demo-clean` removes everything.", highlight=False)
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("command", choices=["run", "up", "clean"])
    command = parser.parse_args().command
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if command == "clean":
        remove(NAME)
        return 0
    try:
        if command == "run":
            return run(console)
        yard = install("dev", console)
        console.print(f"export KUBECONFIG={yard.cluster.kubeconfig} PATH={yard.cluster.programs}:$PATH")
        return 0
    except KeyboardInterrupt:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # half a removal helps nobody
        console.print("\ninterrupted; removing the cluster")
        remove(NAME if command == "run" else "dev")
        return 130
    except (ClusterError, AssertionError) as error:
        console.print(f"[red]{type(error).__name__}:[/] {error}", highlight=False)
        return 1


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main())
