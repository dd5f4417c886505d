"""MindSpore for pods of the tests, without an image of its own: a folder that is mounted.

Unpacked it has 2.5 GB, nearly all of it for GPUs and NPUs. The part for CPUs is put into the user's cache once a
machine, and hard-linked into a cluster's shared folder.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cluster.errors import ClusterError
from cluster.gotools import exclusive
from cluster.paths import cache_root
from cluster.progress import Progress

VERSION = "2.10.0"
PYTHON = "3.11"  # of the images
NEEDS = ("numpy==2.4.6", "protobuf==7.36.2", "asttokens==3.0.2", "pillow==13.0.0", "scipy==1.17.1", "packaging==26.3",
         "psutil==7.2.2", "astunparse==1.6.3", "safetensors==0.8.0", "dill==0.4.1", "six==1.17.0")  # fmt: skip
_LEFT_OUT = ("mindspore/lib/plugin/ascend/", "mindspore/lib/plugin/gpu", "mindspore/lib/plugin/libmindspore_gpu",
             "mindspore/lib/plugin/libmindspore_ascend", "mindspore/lib/plugin/libmindspore_ops_ascend",
             "mindspore/include/")  # fmt: skip


def folder(progress: Progress | None = None) -> Path:
    """Where it is; PYTHONPATH is `site` in it, LD_LIBRARY_PATH `lib`. Raises ClusterError if it cannot be had."""
    target = cache_root() / "mindspore" / f"{VERSION}-python{PYTHON}"
    if target.exists():
        return target
    with exclusive(target.parent / "lock"):
        if not target.exists():
            shown = progress or Progress()
            for old in target.parent.glob("*python*"):
                shutil.rmtree(old)
            with shown.step(f"MindSpore {VERSION} for CPUs (once a machine)"), tempfile.TemporaryDirectory(
                    dir=target.parent, prefix="partial-python-") as temporary:
                fresh = Path(temporary) / "fresh"
                _unpack(fresh / "site", Path(temporary))
                _openmp(fresh / "lib", Path(temporary))
                fresh.rename(target)
    return target


def share(target: Path, progress: Progress | None = None) -> None:
    """Make `target`, on the same file system as the cache, another name of it."""
    if not target.exists():
        shutil.copytree(folder(progress), target, copy_function=os.link, symlinks=True)


def _unpack(site: Path, temporary: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    choice = ["--only-binary=:all:", "--no-deps", "--python-version", PYTHON]
    _run([*pip, "install", *choice, "--no-compile", "--target", str(site), *NEEDS])
    _run([*pip, "download", *choice, "--no-cache-dir", "--dest", str(temporary), f"mindspore=={VERSION}"])
    (wheel,) = temporary.glob("mindspore-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site, [name for name in packed.namelist() if not name.startswith(_LEFT_OUT)])
    wheel.unlink()
    if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):  # else every start compiles what it imports
        compileall.compile_dir(site, quiet=2, workers=os.cpu_count() or 1)


def _openmp(lib: Path, temporary: Path) -> None:
    """libgomp, which MindSpore takes from the system; Debian's package is unpacked, not installed."""
    if subprocess.run(["apt-get", "download", "-q", "libgomp1"], cwd=temporary, capture_output=True).returncode:
        _run(["apt-get", "update", "-q"])
        _run(["apt-get", "download", "-q", "libgomp1"], temporary)
    (package,) = temporary.glob("libgomp1_*.deb")
    _run(["dpkg-deb", "-x", str(package), str(temporary / "deb")])
    lib.mkdir()
    (found,) = (path for path in (temporary / "deb").rglob("libgomp.so.1.*") if not path.is_symlink())
    shutil.copy(found, lib / "libgomp.so.1")


def _run(command: list[str], where: Path | None = None) -> None:
    done = subprocess.run(command, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command[:6])} ... failed:\n{done.stderr.strip()[-1500:]}")
