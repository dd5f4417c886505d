"""Programs of the operating system that the built-in cluster and the image builds need."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from cluster.errors import ClusterError
from cluster.progress import Progress

# program -> Debian package. A program with a slash is looked for at that path.
FOR_CLUSTER = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "catatonit": "catatonit",
    "ip": "iproute2",
    "bridge": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
FOR_IMAGES = {"buildah": "buildah", "skopeo": "skopeo", "debootstrap": "debootstrap"}

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(programs: dict[str, str]) -> list[str]:
    """The Debian packages of the programs that are not there, sorted."""
    absent = {
        package
        for program, package in programs.items()
        if not (Path(program).exists() if "/" in program else shutil.which(program, path=_SEARCH))
    }
    return sorted(absent)


def ensure(programs: dict[str, str], progress: Progress) -> None:
    """Install what is missing where we may (root on Debian); else say which command would."""
    absent = missing(programs)
    if not absent:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *absent]
    if not shutil.which("apt-get"):
        raise ClusterError(
            f"missing programs of the packages {', '.join(absent)} (Debian's names); this machine has no apt-get: "
            f"install them with its own package tool"
        )
    if os.geteuid() != 0:
        raise ClusterError(f"missing packages; install them with: sudo {' '.join(command)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with progress.step(f"installing Debian packages: {' '.join(absent)}"):
        if not _apt(command, environment):
            _apt(["apt-get", "update"], environment)
            if not _apt(command, environment):
                raise ClusterError(f"could not install packages; see the output of: {' '.join(command)}")
    still = missing(programs)
    if still:
        raise ClusterError(f"installed, but their programs are still not found: {', '.join(still)}")


def _apt(command: list[str], environment: dict[str, str]) -> bool:
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode == 0


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError(
            "the built-in cluster makes namespaces, mounts and cgroups and must run as root: try sudo, start a Docker "
            "engine so that kind can be used, or point KUBECONFIG at a cluster"
        )
