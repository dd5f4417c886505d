"""What is remembered about a cluster between commands: one small JSON file."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.paths import cluster_dir, clusters_root


@dataclass
class State:
    """``phase`` is "creating" from before the first thing is made until the cluster is ready."""

    name: str
    provider: str
    kubeconfig: str
    phase: str = "creating"
    nodes: list[str] = field(default_factory=list)
    port: int = 0
    programs: str = ""
    created: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        return cluster_dir(self.name)

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "state.new"
        fresh.write_text(json.dumps(asdict(self), indent=1))
        fresh.replace(self.folder / "state.json")

    def programs_dir(self) -> Path:
        return Path(self.programs)


def load(name: str) -> State | None:
    path = cluster_dir(name) / "state.json"
    return State(**json.loads(path.read_text())) if path.exists() else None


def names() -> list[str]:
    """Clusters with a folder, whatever state they are in."""
    root = clusters_root()
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.exists() else []


def forget(name: str) -> None:
    """Drop the folder of a cluster of which nothing else is left."""
    shutil.rmtree(cluster_dir(name), ignore_errors=True)
