"""What a step frees, the next one has without asking the kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from trainer import allocator

PROGRAM = """
import resource, threading, torch
from trainer import allocator
torch.set_num_threads(1)
print(allocator.keep_freed_memory(threads=1))
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
allocator.keep_freed_memory(threads=1)
held = [torch.ones(1 << 20) for _ in range(32)]
allocator.unused_bytes = lambda: 4 * {most}
allocator.reserve({size}, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held += [torch.ones(1 << 20) for _ in range(16)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(open("/proc/self/statm").read().split()[1]))
"""
HEAPS = """
import ctypes, threading
from trainer import allocator
allocator.keep_freed_memory({threads})
held = []
thread = threading.Thread(target=lambda: held.append(bytes(100_000)))
thread.start()
thread.join()
ctypes.CDLL(None).malloc_stats()
"""
ROUNDS = 12
PAGES = (10 << 20) * 4 // 4096  # of the larger tensor
NEEDED = (16 << 20) * 4 // 4096  # after what was reserved


def run(program: str = PROGRAM.format(rounds=ROUNDS), **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", program], env={**inherited, **environment}, text=True,
                          capture_output=True, check=True)  # fmt: skip
    return [*done.stdout.split(), *done.stderr.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_is_kept_and_given_back() -> None:
    kept, faults, given_back = run()
    assert kept == "True"
    # without: all pages each round, of a thread at least; something small in the way may let the heap grow once
    assert int(faults) < ROUNDS // 4 * PAGES
    assert int(given_back) > PAGES  # in pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(("threads", "shared"), [(1, True), (2, False)])
def test_threads_that_compute_do_not_wait_for_each_others_heap(threads: int, shared: bool) -> None:
    heaps = [line for line in run(HEAPS.format(threads=threads)) if line.startswith("Arena ")]
    assert (len(heaps) == 1) == shared, heaps


@pytest.mark.parametrize("variable", [{"MALLOC_TRIM_THRESHOLD_": "131072"},
                                      {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}])
def test_what_somebody_has_set_stays(variable: dict[str, str]) -> None:
    kept, faults, _ = run(**variable)
    assert kept == "False"
    assert int(faults) > ROUNDS * PAGES


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_reserved_is_there_when_it_is_needed() -> None:
    plenty = 1 << 40
    without, small = map(int, run(AHEAD.format(size=0, most=plenty)))
    faults, size = map(int, run(AHEAD.format(size=80 << 20, most=plenty)))
    assert without > NEEDED // 2
    assert faults < NEEDED // 4
    assert size > small
    _, most = map(int, run(AHEAD.format(size=1 << 40, most=plenty)))
    assert most < 4 * small, "no more than the process had"


def test_nothing_is_reserved_where_memory_is_not_kept_or_short() -> None:
    faults, _ = map(int, run(AHEAD.format(size=80 << 20, most=1 << 40), MALLOC_TRIM_THRESHOLD_="131072"))
    assert faults > NEEDED // 2
    faults, _ = map(int, run(AHEAD.format(size=80 << 20, most=79 << 20)))
    assert faults > NEEDED // 2


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_is_left_is_no_more_than_the_machine_has() -> None:
    assert 0 < allocator.unused_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
