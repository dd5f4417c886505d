"""What a step frees, the next one has without asking the kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading, torch
from trainer import allocator
torch.set_num_threads(1)
print(allocator.keep_freed_memory())
def step():
    first, second = torch.ones(10 << 20), torch.ones(9 << 20)
    return first, second
def elsewhere():
    thread = threading.Thread(target=step)  # as of those that communicate
    thread.start()
    thread.join()
for _ in range({rounds}):
    step()
    elsewhere()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({rounds}):
    step()
    elsewhere()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
kept = int(open("/proc/self/statm").read().split()[1])
allocator.give_back()
print(kept - int(open("/proc/self/statm").read().split()[1]))
"""
AHEAD = """
import resource, torch
from trainer import allocator
torch.set_num_threads(1)
allocator.keep_freed_memory()
held = [torch.ones(1 << 20) for _ in range(32)]
allocator.reserve({size})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held += [torch.ones(1 << 20) for _ in range(16)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(open("/proc/self/statm").read().split()[1]))
"""
ROUNDS = 12
PAGES = (10 << 20) * 4 // 4096  # of the larger tensor


def run(program: str = PROGRAM.format(rounds=ROUNDS), **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", program], env={**inherited, **environment}, text=True,
                          capture_output=True, check=True)  # fmt: skip
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_is_kept_and_given_back() -> None:
    kept, faults, given_back = run()
    assert kept == "True"
    # without: all pages each round, of a thread at least; something small in the way may let the heap grow once
    assert int(faults) < ROUNDS // 4 * PAGES
    assert int(given_back) > PAGES  # in pages


@pytest.mark.parametrize("variable", [{"MALLOC_TRIM_THRESHOLD_": "131072"},
                                      {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}])
def test_what_somebody_has_set_stays(variable: dict[str, str]) -> None:
    kept, faults, _ = run(**variable)
    assert kept == "False"
    assert int(faults) > ROUNDS * PAGES


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_reserved_is_there_when_it_is_needed() -> None:
    pages = 16 << 20 >> 10  # of what is allocated afterwards
    without, small = map(int, run(AHEAD.format(size=0)))
    faults, size = map(int, run(AHEAD.format(size=80 << 20)))
    assert without >= pages
    assert faults < pages // 4
    assert size > small
    _, most = map(int, run(AHEAD.format(size=1 << 40)))
    assert most < 4 * small, "no more than the process had"


def test_nothing_is_reserved_where_memory_is_not_kept() -> None:
    faults, _ = map(int, run(AHEAD.format(size=80 << 20), MALLOC_TRIM_THRESHOLD_="131072"))
    assert faults >= 16 << 20 >> 10
