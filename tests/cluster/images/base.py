"""The base image without a registry: Debian with Python 3.11, made by debootstrap.

The Dockerfiles take their base as an argument, ``python:3.11-slim-bookworm`` by default. Where no registry can be
asked, this one stands in: the same Debian release, Debian's own Python 3.11, nothing of this machine in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from cluster.errors import ClusterError
from cluster.images.storage import Storage
from cluster.paths import cache_root
from cluster.progress import Progress

_SUITE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = ["ca-certificates", "python3", "python3-venv"]

# Nothing of these is used in a container. Python's own files stay whole.
_UNUSED = ["usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/i18n",
           "usr/share/common-licenses", "usr/share/lintian", "usr/share/bug", "var/cache/apt", "var/lib/apt/lists",
           "var/cache/debconf", "var/log"]  # fmt: skip
_SOURCES = f"deb {_MIRROR} {_SUITE} main\ndeb http://deb.debian.org/debian-security {_SUITE}-security main\n"


def recipe_key() -> str:
    text = repr((_SUITE, _PACKAGES, _UNUSED, _SOURCES, _finish.__code__.co_code.hex()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def ensure(storage: Storage, progress: Progress) -> str:
    """The base image's name; it is made if it is not in the storage yet."""
    name = f"localhost/trainyard/base:{recipe_key()}"
    if storage.exists(name):
        return name
    root = cache_root() / "images" / "rootfs.partial"
    _delete(root)
    try:
        with progress.step("base image: debootstrap of Debian bookworm with Python 3.11 (once a machine)"):
            _debootstrap(root)
            _finish(root)
        with progress.step("base image: commit"):
            _commit(storage, root, name)
    finally:
        _delete(root)
    return name


def _debootstrap(root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    log = root.with_name("debootstrap.log")
    # All its mounts stay in a namespace of their own, so that an interrupted run leaves none behind.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE,
               str(root), mirror()]  # fmt: skip
    with log.open("w") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ClusterError(f"debootstrap failed ({log}):\n{tail}")


def mirror() -> str:
    """The mirror that this machine's apt uses, if it is a Debian; only debootstrap itself sees it."""
    if not shutil.which("apt-get"):
        return _MIRROR
    filters = ["Codename: " + _SUITE, "Created-By: Packages"]
    done = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)", *filters], capture_output=True, text=True)
    sites = [line for line in done.stdout.splitlines() if line.startswith("http")]
    return sites[0].rstrip("/") if done.returncode == 0 and sites else _MIRROR


def _finish(root: Path) -> None:
    """Drop what is never used and what came from this machine."""
    for name in _UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    (root / "etc/apt/sources.list").write_text(_SOURCES)
    (root / "etc/hostname").write_text("localhost\n")
    (root / "etc/resolv.conf").write_text("")
    (root / "etc/machine-id").write_text("")
    for cache in list(root.glob("usr/**/__pycache__")):
        if "python3.11" not in str(cache):
            shutil.rmtree(cache)
    python = root / "usr/local/bin/python"
    python.unlink(missing_ok=True)
    python.symlink_to("/usr/bin/python3")


def _commit(storage: Storage, root: Path, name: str) -> None:
    container = storage.buildah("from", "scratch").strip()
    try:
        storage.buildah("copy", "--quiet", container, str(root), "/", seconds=300)
        storage.buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                        "--env", "LANG=C.UTF-8", "--cmd", "python3", container)  # fmt: skip
        storage.buildah("commit", "--quiet", container, name, seconds=600)
    finally:
        storage.buildah("rm", container)


def _delete(path: Path) -> None:
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=True)
