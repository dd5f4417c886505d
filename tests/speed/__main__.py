"""`python -m speed [PART...] [--write]`: measure, print, and with --write keep the tables in docs/speed.md.

Parts: one (one process against Hugging Face's), compiled (the same with torch.compile), two (layouts of two processes
against no communication), bubble (of a pipeline's schedules), copies (copies in memory on and off)."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from speed import cases, group, page


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m speed")
    parser.add_argument("parts", nargs="*", default=list(group.PARTS), help=", ".join(group.PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (default: 4)")
    parser.add_argument("--write", action="store_true", help=f"keep the tables in {page.TARGET.name}")
    given = parser.parse_args()
    if wrong := [part for part in given.parts if part not in group.PARTS]:
        parser.error(f"expected parts from {', '.join(group.PARTS)}, found {', '.join(wrong)}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trainyard-speed-") as folder:
        tokens = cases.write_tokens(Path(folder) / "tokens")
        for part in given.parts:
            table = group.PARTS[part](Path(folder) / part, tokens, given.rounds, given.steps)
            print(f"\n{table}\n", flush=True)
            if given.write:
                page.keep(part, table)
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
