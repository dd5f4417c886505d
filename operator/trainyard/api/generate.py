"""Write what follows from the types: the CRDs, the chart's copy of them, the API reference.

`python -m trainyard.api.generate` writes, `--check` only says which files are stale and exits with 1 if any is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainyard.api import GROUP
from trainyard.api.crd import KINDS
from trainyard.api.reference import reference

REPOSITORY = Path(__file__).resolve().parents[3]
_NOTE = "# Generated from operator/trainyard/api by `make generate`; edit the types instead.\n"


class _Dumper(yaml.SafeDumper):
    """Plain YAML: no anchors, whatever objects the schema shares."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def files() -> dict[Path, str]:
    """What every generated file should hold, by its path inside the repository."""
    made: dict[Path, str] = {}
    for kind in KINDS:
        text = _NOTE + yaml.dump(kind.dump(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        name = f"{GROUP}_{kind.plural}.yaml"
        made[Path("crds", name)] = text
        made[Path("charts/trainyard/files/crds", name)] = text
    made[Path("docs/api.md")] = reference(KINDS)
    return made


def stale(repository: Path = REPOSITORY) -> list[Path]:
    """Generated files that are missing or not what the types say, and CRDs that no type stands behind any more."""
    wanted = files()
    wrong = [path for path, text in wanted.items()
             if not (repository / path).is_file() or (repository / path).read_text(encoding="utf-8") != text]
    for folder in ("crds", "charts/trainyard/files/crds"):
        wrong += [path.relative_to(repository) for path in sorted((repository / folder).glob("*"))
                  if path.relative_to(repository) not in wanted]
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m trainyard.api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    wrong = stale()
    if options.check:
        for path in wrong:
            print(f"{path} is not what the types in operator/trainyard/api say; run `make generate`", file=sys.stderr)
        return 1 if wrong else 0
    wanted = files()
    for path in wrong:
        target = REPOSITORY / path
        if path not in wanted:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
