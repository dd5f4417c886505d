"""Contenders of a part, run round by round, and its table."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from train.gang import IMPORTS, port

from speed import bubble, cases
from speed.cases import BATCH, SEQUENCE, Case
from speed.turns import Contender

WARM_UP = 3  # steps that do not count
AT_ONCE = 3  # layouts that are measured beside their floor: each takes 4 GB


@dataclass
class Result:
    """What one contender reached."""

    case: Case
    best: float  # tokens/s of all its ranks
    median: float
    memory: int  # bytes, of the fullest rank
    waited: float  # share of its time
    stall: float = 0.0  # s
    ceiling: float = 0.0  # tokens/s


def run(made: Sequence[Case], folder: Path, tokens: Path, rounds: int, steps: int, ceiling: bool = False,
        stall: bool = False) -> list[Result]:
    """All of them in turn, `rounds` times. `ceiling`: those of ours time theirs in each round, too."""
    with ExitStack() as stack:
        running = [stack.enter_context(_start(case, folder / str(number), tokens, stack))
                   for number, case in enumerate(made)]
        for one in running:
            one.warm_up(WARM_UP)
        ceilings: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for one in running:
                one.turn(steps)
                if ceiling and one.case.program == "speed.ours":
                    ceilings.setdefault(one.case.name, []).extend(one.ask("ceiling"))
        memory = [max(one.ask("memory")) for one in running]
        stalls = [max(one.ask("stall")) if stall else 0.0 for one in running]
        found = []
        for one, peak, stalled in zip(running, memory, stalls, strict=True):
            tokens_a_step = BATCH * SEQUENCE * one.case.ranks
            result = Result(one.case, tokens_a_step / min(one.seconds), tokens_a_step / statistics.median(one.seconds),
                            peak, one.waited / sum(one.seconds), stalled)
            if parts := ceilings.get(one.case.name):
                result.ceiling = tokens_a_step / sum(min(part[kind] for part in parts) for kind in parts[0])
                shown = ", ".join(f"{kind} {min(part[kind] for part in parts) * 1e3:.0f} ms" for kind in parts[0])
                print(f"  ceiling of {one.case.precision}: {shown}")
            found.append(result)
            print(f"  {result.case.name}: best {result.best:.0f} tokens/s, median {result.median:.0f}", flush=True)
    return found


def _start(case: Case, folder: Path, tokens: Path, stack: ExitStack) -> Contender:
    cores = sorted(os.sched_getaffinity(0))
    alone = bool(case.options.get("alone"))
    ports = [port() for _ in range(case.ranks)]
    memory = [_copier(folder.with_name(f"{folder.name}-memory-{rank}"), stack) for rank in range(case.ranks)
              ] if case.options.get("memory") else []  # fmt: skip

    def of_rank(rank: int) -> dict[str, str]:
        found = {"TRAINYARD_CHECKPOINT_EVERY": "1000000000", "HF_HUB_OFFLINE": "1",
                 "PYTHONPATH": IMPORTS, **case.options.get("environment", {})}
        if not alone and case.program == "speed.ours":
            found |= {"RANK": str(rank), "WORLD_SIZE": str(case.ranks), "LOCAL_RANK": str(rank),
                      "LOCAL_WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
        elif case.program == "speed.ours":
            found |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[rank])}  # fmt: skip
        if case.program == "speed.ours" and not alone:
            found["TRAINYARD_CHECKPOINT"] = str(folder / "checkpoints")
        if case.ranks > 1:
            found |= {"SPEED_CORE": str(cores[rank % len(cores)]), "OMP_NUM_THREADS": "1"}
        if memory:
            found["TRAINYARD_MEMORY"] = str(memory[rank])
        return found

    return Contender(case, folder, {"data": str(tokens), "share": 1 if alone else case.ranks}, of_rank)


def _copier(folder: Path, stack: ExitStack) -> Path:
    """The copier of a pod, as the supervisor starts it: here each rank is a pod."""
    place = Path("/dev/shm") / f"trainyard-speed-{os.getpid()}-{folder.name}"
    place.mkdir()
    stack.callback(lambda: subprocess.run(["rm", "-rf", str(place)], check=True))
    process = subprocess.Popen([sys.executable, "-m", "supervisor.copies.copier", str(place), "127.0.0.1"],
                               stdin=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdin is not None
    process.stdin.write("t" * 32 + "\n")  # what copiers know each other by
    process.stdin.close()
    stack.callback(process.wait)
    stack.callback(process.kill)
    return place


def one(folder: Path, tokens: Path, rounds: int, steps: int) -> str:
    """One process against Hugging Face's."""
    return _one_process(cases.one_process(), folder, tokens, rounds, steps)


def compiled(folder: Path, tokens: Path, rounds: int, steps: int) -> str:
    """Likewise with torch.compile. Raises RuntimeError without a C++ compiler."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RuntimeError("torch.compile needs a C++ compiler on a CPU: install g++, or set $CXX")
    return _one_process(cases.compiled(), folder, tokens, rounds, steps)


def _one_process(made: Sequence[Case], folder: Path, tokens: Path, rounds: int, steps: int) -> str:
    found = []
    for precision in ("fp32", "bf16"):
        found += run([case for case in made if case.precision == precision], folder / precision, tokens, rounds, steps,
                     ceiling=True, stall=True)  # fmt: skip
    lines = ["| one process | tokens/s, best (median) | share of the ceiling | peak memory | waiting for data | "
             "checkpoint stall |", "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for result in found:
        ceiling = max(other.ceiling for other in found if other.case.precision == result.case.precision)
        lines.append(f"| {result.case.name} | {result.best:.0f} ({result.median:.0f}) | {result.best / ceiling:.0%} | "
                     f"{result.memory / 1e6:.0f} MB | {result.waited:.2%} | {result.stall:.2f} s |")
    return "\n".join([*lines, "", *_against(found)])


def _against(found: Sequence[Result]) -> list[str]:
    """Ours against the best of theirs, like for like and by default."""
    lines = []
    for precision in dict.fromkeys(one.case.precision for one in found):
        same = [one for one in found if one.case.precision == precision]
        for kind, tuned in (("every switch of theirs on", True), ("defaults", False)):
            mine = max((one for one in same if one.case.program == "speed.ours"
                        and (tuned or not one.case.options.get("train"))), key=lambda one: one.median)  # fmt: skip
            theirs = [one for one in same if one.case.program != "speed.ours"
                      and bool(one.case.options.get("tuned")) == tuned]  # fmt: skip
            if theirs:
                rival = max(theirs, key=lambda one: one.median)
                name = rival.case.name.replace(", every switch on", "").replace(", defaults", "")
                lines.append(f"{mine.case.name} against the best with {kind} ({name}): "
                             f"{mine.median / rival.median:.2f} times (medians), {mine.best / rival.best:.2f} (best).")
    return lines


def two(folder: Path, tokens: Path, rounds: int, steps: int) -> str:
    """Layouts against two processes that do not talk."""
    lines = ["| two processes | tokens/s, best (median) | of no communication | peak memory a rank |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for precision in ("fp32", "bf16"):
        floor, *layouts = cases.two_processes((precision,))
        for first in range(0, len(layouts) if precision == "fp32" else 1, AT_ONCE):
            together = [floor, *layouts[first:first + AT_ONCE]]
            found = run(together, folder / f"{precision}-{first}", tokens, rounds, steps)
            lines += [f"| {result.case.name} | {result.best:.0f} ({result.median:.0f}) | "
                      f"{result.median / found[0].median:.0%} | {result.memory / 1e6:.0f} MB |" for result in found]
    return "\n".join(lines)


def copies(folder: Path, tokens: Path, rounds: int, steps: int) -> str:
    """What copies in memory cost."""
    without, with_copies = run(cases.copies(), folder, tokens, rounds, 4 * steps)
    return (f"Copies in memory, two pods of a rank, fp32: {with_copies.median:.0f} tokens/s against "
            f"{without.median:.0f} without (medians), {1 - with_copies.median / without.median:.1%} less.")


def bubbles(folder: Path, _: Path, rounds: int, __: int) -> str:
    """The bubble of every schedule of a pipeline."""
    return bubble.table(folder, rounds)


PARTS: dict[str, Callable[[Path, Path, int, int], str]] = {
    "one": one, "compiled": compiled, "two": two, "bubble": bubbles, "copies": copies}
