"""`python -m harness.run STAGE...`: run stages of the tests in turn, and a table of results at the end.

A failed stage does not stop the next one: one run shows all that is broken. The exit code is 1 if any failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# What is built once a machine takes longer than a test may. An API server can be there already.
PROGRAMS = (sys.executable, "-m", "cluster", "programs", *(("helm",) if os.environ.get("KUBEBUILDER_ASSETS") else ()))
PREPARED = (sys.executable, "-m", "cluster", "prepare")
PACKAGES = ["operator/trainyard", "trainer-image/supervisor", "trainer-image/trainer", "tests", "examples/demo"]


@dataclass(frozen=True)
class Stage:
    """Commands that all have to succeed."""

    name: str
    commands: tuple[tuple[str, ...], ...]


STAGES = {
    stage.name: stage
    for stage in (
        Stage("lint", (
            (sys.executable, "-m", "ruff", "check", "."),
            (sys.executable, "-m", "mypy", *PACKAGES),
            (str(Path(sys.executable).with_name("lint-imports")),),
            (sys.executable, "-m", "trainyard.api.generate", "--check"),
            (sys.executable, "-m", "harness.stubs", "--check"),
        )),
        Stage("unit", ((*PYTEST, "tests/unit"),)),
        Stage("train", ((*PYTEST, "tests/train"),)),
        Stage("parity", ((*PYTEST, "tests/parity"),)),
        Stage("contract", (PROGRAMS, (*PYTEST, "tests/contract"))),
        Stage("chart", (PROGRAMS, (*PYTEST, "tests/chart"))),
        Stage("e2e", (PREPARED, (*PYTEST, "-v", "tests/e2e"))),
    )
}  # fmt: skip


def run(stage: Stage) -> tuple[bool, float]:
    """Run one stage. Returns whether it passed and the seconds it took."""
    start = time.monotonic()
    passed = True
    for command in stage.commands:
        shown = " ".join(Path(part).name if part.startswith("/") else part for part in command)
        print(f"\n=== {stage.name}: {shown}", flush=True)
        child = subprocess.Popen(command, cwd=ROOT)
        # A terminal's Ctrl-C reaches the child too; CI's SIGTERM comes to us alone and is passed on as one.
        signal.signal(signal.SIGTERM, partial(_interrupt, child))
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.wait(timeout=60)  # it is cleaning up after itself
            raise
        passed &= code == 0
        if code:
            print(f"=== {stage.name}: failed with exit code {code}", flush=True)
    return passed, time.monotonic() - start


def _interrupt(child: subprocess.Popen[bytes], *_: object) -> None:
    child.send_signal(signal.SIGINT)
    raise KeyboardInterrupt


def main(names: list[str]) -> int:
    """Run the named stages."""
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        print(f"expected stages from {', '.join(STAGES)}; got {', '.join(names) or 'none'}", file=sys.stderr)
        return 2
    results = []
    for name in names:
        results.append((name, *run(STAGES[name])))
    print()
    for name, ok, seconds in results:
        print(f"{'ok    ' if ok else 'FAILED'} {name:<10} {seconds:7.1f} s")
    failed = sum(not ok for _, ok, _ in results)
    print(f"stages: {len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
