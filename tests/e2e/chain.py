"""A training script whose loss tells whether every step was taken exactly once, from the state the step before left.

Standard library only. Each rank holds a number; step t makes the next one of it, of t and of the rank. No rank begins
a step before all ranks have kept the one before, as with a collective. What a rank keeps is replaced in one move and
holds the last few steps, so that all can go on from the smallest step that every rank has. STEPS steps of STEP_SECONDS
each; while there is a file `hold` beside what is kept, the last ten are not begun.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time

MODULUS = 2**61 - 1
KEPT = 4  # ranks are at most one step apart
HELD = 10


def begin(rank: int) -> int:
    """A rank's number before the first step."""
    return rank + 1


def follow(value: int, step: int, rank: int) -> int:
    """A rank's number after this step."""
    return (value * 6364136223846793005 + step * 1442695040888963407 + rank) % MODULUS


def loss(value: int) -> float:
    """What is reported of a number."""
    return round(value / MODULUS, 12)


def main() -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    steps, seconds = int(os.environ["STEPS"]), float(os.environ["STEP_SECONDS"])
    folder = pathlib.Path(os.environ["TRAINYARD_CHECKPOINT"])
    folder.mkdir(parents=True, exist_ok=True)

    def kept(of: int) -> dict[int, int]:
        try:
            return {int(step): value for step, value in json.loads((folder / f"chain-{of}").read_text()).items()}
        except FileNotFoundError:
            return {0: begin(of)}

    def held(step: int) -> bool:
        return step > steps - HELD and (folder / "hold").exists()

    def replace(path: pathlib.Path, text: str) -> None:
        fresh = path.with_name(f"{path.name}.{os.environ['TRAINYARD_GENERATION']}.{os.getpid()}")
        fresh.write_text(text)
        fresh.replace(path)

    start = min(max(kept(of)) for of in range(world))
    history = {step: value for step, value in kept(rank).items() if step <= start}
    value = history[start]
    with (folder / f"starts-{rank}").open("a") as log:
        log.write(f"{os.environ['TRAINYARD_GENERATION']} {start}\n")
    print(f"rank {rank} of {world} goes on from step {start}", flush=True)
    for step in range(start + 1, steps + 1):
        while min(max(kept(of)) for of in range(world)) < step - 1 or held(step):
            if os.path.exists(os.environ["TRAINYARD_DRAIN"]):
                sys.exit(75)
            time.sleep(0.02)
        time.sleep(seconds)
        value = follow(value, step, rank)
        history = {known: each for known, each in {**history, step: value}.items() if known > step - KEPT}
        replace(folder / f"chain-{rank}", json.dumps(history))
        told = {"step": step, "steps": steps, "loss": loss(value), "durableStep": step - 1}
        replace(pathlib.Path(os.environ["TRAINYARD_PROGRESS"]), json.dumps(told))
        if os.path.exists(os.environ["TRAINYARD_DRAIN"]):
            sys.exit(75)
    print(f"rank {rank} ends with {value}", flush=True)


if __name__ == "__main__":
    main()
