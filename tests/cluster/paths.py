"""Where things are kept.

Everything this package makes outside the checkout lies under one cache folder, so that removing it removes all:

    bin/<key>/        Go programs, keyed by what they were built from
    go/<version>/     a Go toolchain, where the machine has none
    images/           base file systems, build storage and ready image layers
    clusters/<name>/  one running cluster: credentials, logs, node disks, and the ledger of what was made
"""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).resolve().parent / "tools"


def cache_root() -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/trainyard``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "trainyard"


def clusters_root() -> Path:
    return cache_root() / "clusters"


def cluster_dir(name: str) -> Path:
    return clusters_root() / name
