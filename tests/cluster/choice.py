"""Which kind of cluster to use: the one that is there, else kind, else the built-in one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cluster.paths import clusters_root

Provider = Literal["existing", "kind", "builtin"]


def choose(environment: Mapping[str, str], docker_answers: bool, asked: Provider | None = None) -> Provider:
    """The provider for a new cluster; ``asked`` is what the user named, if anything.

    A KUBECONFIG that one of our own clusters wrote is no reason to take it for somebody's existing cluster.
    """
    if asked is not None:
        return asked
    kubeconfig = environment.get("KUBECONFIG", "")
    if kubeconfig and not Path(kubeconfig).is_relative_to(clusters_root()):
        return "existing"
    return "kind" if docker_answers else "builtin"


def docker_answers() -> bool:
    """Whether there is a Docker engine behind the ``docker`` command."""
    if not shutil.which("docker"):
        return False
    try:
        done = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=10)  # fmt: skip
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def choose_here() -> Provider:
    return choose(os.environ, docker_answers())
