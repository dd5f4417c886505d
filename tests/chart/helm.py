"""Helm, as pinned for the test cluster, and this repository's chart."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cluster.gotools import binaries
from cluster.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "trainyard"
NAMESPACE = "trainyard-system"


class HelmError(RuntimeError):
    """Helm refused; the message is what it said."""


@cache
def program() -> Path:
    """The helm of the test cluster's cache; built there if it is missing."""
    return binaries(Progress(), frozenset({"helm"})) / "helm"


def helm(*arguments: str, kubeconfig: Path | None = None, seconds: float = 120.0) -> str:
    """Run helm; returns what it printed. Raises HelmError."""
    env = {**os.environ, "KUBECONFIG": str(kubeconfig or os.devnull)}
    done = subprocess.run([str(program()), *arguments], capture_output=True, text=True, timeout=seconds, env=env)
    if done.returncode:
        raise HelmError(f"helm {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def values(given: Mapping[str, Any]) -> list[str]:
    """Flags that set values: {"image.operator.tag": "dev", "replicas": 3}."""
    return [flag for name, value in given.items() for flag in ("--set-json", f"{name}={json.dumps(value)}")]


def render(given: Mapping[str, Any] | None = None, release: str = "trainyard") -> list[dict[str, Any]]:
    """All objects of the chart as `helm template` makes them. Raises HelmError."""
    return copy.deepcopy(_rendered(release, *values(given or {})))


@cache
def _rendered(release: str, *flags: str) -> list[dict[str, Any]]:
    text = helm("template", release, str(CHART), "--namespace", NAMESPACE, *flags)
    return [part for part in yaml.safe_load_all(text) if part]
