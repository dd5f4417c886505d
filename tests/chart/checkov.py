"""checkov in an environment of its own: its pins and ours do not go together. Made once, in the user's cache."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from chart.helm import CHART
from cluster.paths import cache_root

VERSION = "3.3.30"


def program() -> Path:
    """The checkov of that environment; installs it from PyPI if it is not there. Raises CalledProcessError."""
    folder = cache_root() / f"checkov-{VERSION}"
    complete = folder / ".complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check",
                            f"checkov=={VERSION}"], check=True)
            complete.touch()
    return folder / "bin" / "checkov"


def failed_checks(*manifests: Path) -> tuple[int, list[str]]:
    """How many checks passed, and what failed, in words; exceptions are in the chart's .checkov.yaml. Nothing is sent
    or fetched."""
    flags = [part for manifest in manifests for part in ("-f", str(manifest))]
    done = subprocess.run(
        [str(program()), "--config-file", str(CHART / ".checkov.yaml"), *flags, "-o", "json"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "LOG_LEVEL": "ERROR"})
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"checkov: exit {done.returncode}: {done.stdout[-500:]} {done.stderr[-1000:]}") from None
    failed = [f"{check['check_id']} {check['check_name']}: {check['resource']} in {check['file_path']}"
              for check in result["results"]["failed_checks"]]
    return int(result["summary"]["passed"]), failed
