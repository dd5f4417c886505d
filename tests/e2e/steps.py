"""A user's own training script for the end-to-end tests: counts steps, keeps its state, obeys Drain.

Standard library only, so that a job starts in a fraction of a second and many can run at once. STEPS steps of
STEP_SECONDS each; after each step the rank keeps the number in its own file on the checkpoint volume, and
goes on from the smallest number that all ranks kept, as a real trainer does. A file `fail-<rank>` there holds
an exit code that the rank leaves with, once; a file `fail-always` one that rank 0 leaves with every time.
"""

import json
import os
import pathlib
import signal
import sys
import time

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
steps, seconds = int(os.environ.get("STEPS", "20")), float(os.environ.get("STEP_SECONDS", "0.2"))
folder = pathlib.Path(os.environ.get("TRAINYARD_CHECKPOINT", "/tmp/state"))
folder.mkdir(parents=True, exist_ok=True)


def kept(of: int) -> int:
    try:
        return int((folder / f"step-{of}").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def keep(step: int) -> None:
    fresh = folder / f"step-{rank}.new"
    fresh.write_text(str(step))
    fresh.replace(folder / f"step-{rank}")


def report(step: int) -> None:
    path = pathlib.Path(os.environ["TRAINYARD_PROGRESS"])
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"step": step, "steps": steps, "loss": 10 / (1 + step), "durableStep": step}))
    fresh.replace(path)


def injected() -> int | None:
    always = folder / "fail-always"
    if rank == 0 and always.exists():
        return int(always.read_text())
    once = folder / f"fail-{rank}"
    if once.exists():
        code = int(once.read_text())
        once.unlink()
        return code
    return None


start = min(kept(of) for of in range(world))
with (folder / f"starts-{rank}").open("a") as log:
    log.write(f"{os.environ['TRAINYARD_GENERATION']} {start}\n")
print(f"rank {rank} of {world} goes on from step {start}", flush=True)
for step in range(start + 1, steps + 1):
    time.sleep(seconds)
    keep(step)
    report(step)
    print(f"rank {rank} finished step {step}", flush=True)
    code = injected()
    if code is not None:
        print(f"injected failure {code}", file=sys.stderr, flush=True)
        if code < 0:
            os.kill(os.getpid(), -code)
            signal.pause()
        sys.exit(code)
    if os.path.exists(os.environ["TRAINYARD_DRAIN"]):
        print(f"rank {rank} saved step {step}", flush=True)
        sys.exit(75)
print(f"rank {rank} is done", flush=True)
