"""Building the operator's and the trainer's image from their Dockerfiles.

An image is named after a hash of all that goes into it, so that nothing is built, or loaded into a node, twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster import packages
from cluster.errors import ClusterError
from cluster.gotools import exclusive
from cluster.images import base, seed
from cluster.images.layout import Layout
from cluster.images.storage import Storage
from cluster.paths import REPOSITORY, cache_root
from cluster.progress import Progress

# Kept of each program: the newest, and the ones before it that a cluster may still run.
_KEPT = 3
_CPU_TORCH = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Recipe:
    """``sources`` are the folders and files that the Dockerfile copies, relative to the repository."""

    program: str
    dockerfile: str
    sources: tuple[str, ...]

    @property
    def repository(self) -> str:
        return f"localhost/trainyard/{self.program}"


OPERATOR = Recipe("operator", "operator/Dockerfile", ("operator/requirements.txt", "operator/trainyard"))
TRAINER = Recipe(
    "trainer",
    "trainer-image/Dockerfile",
    (
        "trainer-image/requirements.txt",
        "operator/trainyard/__init__.py",
        "operator/trainyard/api",
        "operator/trainyard/layout",
        "trainer-image/supervisor",
        "trainer-image/trainer",
    ),
)
RECIPES = {recipe.program: recipe for recipe in (OPERATOR, TRAINER)}


def layout() -> Layout:
    """Where finished images wait to be loaded into nodes."""
    return Layout(cache_root() / "images" / "oci")


def build(recipe: Recipe, progress: Progress) -> str:
    """Build the image unless it is there already; returns its name with a tag made from its content."""
    named = os.environ.get("TRAINYARD_BASE_IMAGE")
    wheels = wheel_folder()
    name = f"{recipe.repository}:{content_hash(recipe, named or base.recipe_key(), wheels)}"
    done = layout()
    with exclusive(cache_root() / "images" / "lock"):
        if done.descriptor(name) is not None:
            return name
        packages.ensure(packages.FOR_IMAGES, progress)
        storage = Storage()
        on = named or base.ensure(storage, progress)
        with progress.step(f"{recipe.program} image: build"):
            _run_build(storage, recipe, on, wheels, name)
        with progress.step(f"{recipe.program} image: store layers"):
            storage.store(name, done)
            done.keep_only(kept_names(done.names()))
            storage.keep_only(recipe.repository, done.names())
        seed.refresh(done, newest_names(done.names()), progress)
    return name


def content_hash(recipe: Recipe, base_key: str, wheels: Path | None, root: Path = REPOSITORY) -> str:
    """A hash of the Dockerfile, the base, the sources and the wheels that may be preferred."""
    digest = hashlib.sha256(base_key.encode())
    for path in [root / ".dockerignore", root / recipe.dockerfile, *source_files(recipe, root)]:
        digest.update(f"{path.relative_to(root)} {path.stat().st_mode & 0o111:o}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    if wheels is not None:
        digest.update(repr(sorted(path.name for path in wheels.glob("*.whl"))).encode())
    return digest.hexdigest()[:12]


def source_files(recipe: Recipe, root: Path = REPOSITORY) -> Iterable[Path]:
    """The files that end up in the image, in a stable order; what .dockerignore leaves out is left out."""
    for source in recipe.sources:
        path = root / source
        if path.is_file():
            yield path
            continue
        if not path.is_dir():
            raise ClusterError(f"{recipe.program} image: {source} is not in the checkout {root}")
        yield from sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".pyc", ".md")
        )


def kept_names(names: list[str]) -> list[str]:
    """The newest ``_KEPT`` names of each program; ``names`` are oldest first."""
    kept = []
    for recipe in RECIPES.values():
        kept += [name for name in names if name.startswith(recipe.repository + ":")][-_KEPT:]
    return kept


def newest_names(names: list[str]) -> list[str]:
    """The newest name of each program."""
    found = [[name for name in names if name.startswith(recipe.repository + ":")] for recipe in RECIPES.values()]
    return [each[-1] for each in found if each]


def wheel_folder() -> Path | None:
    """A local folder of wheels to prefer: PIP_FIND_LINKS, else ``shared/wheels`` beside the checkout.

    It matters for torch: PyPI's build carries CUDA and is 3 GB larger than the build for CPUs.
    """
    named = [Path(word) for word in os.environ.get("PIP_FIND_LINKS", "").split()]
    for folder in [*named, REPOSITORY.parent / "shared" / "wheels"]:
        if folder.is_dir() and any(folder.glob("*.whl")):
            return folder.resolve()
    return None


def torch_index(wheels: Path | None) -> str:
    """The index for torch's CPU build, where no wheel of it is at hand and the index answers; else ""."""
    if wheels is not None and any(wheels.glob("torch-*.whl")):
        return ""
    index = os.environ.get("TRAINYARD_TORCH_INDEX", _CPU_TORCH)
    if index == _CPU_TORCH:
        try:
            urllib.request.urlopen(f"{index}/torch/", timeout=10).close()
        except OSError:
            return ""
    return index


def _run_build(storage: Storage, recipe: Recipe, on: str, wheels: Path | None, name: str) -> None:
    argv = ["build", "--layers", "--pull-never" if on.startswith("localhost/") else "--pull", "--format", "oci",
            "--file", recipe.dockerfile, "--build-arg", f"BASE={on}", "--tag", name]  # fmt: skip
    if recipe is TRAINER and (index := torch_index(wheels)):
        argv += ["--build-arg", f"TORCH_INDEX={index}"]
    with tempfile.TemporaryDirectory() as temporary:
        for source, target in host_mounts(wheels, Path(temporary)):
            argv += ["--volume", f"{source}:{target}"]
        log = cache_root() / "images" / f"{recipe.program}.log"
        storage.buildah(*argv, ".", seconds=3600, log=log, cwd=REPOSITORY)


def host_mounts(wheels: Path | None, temporary: Path) -> list[tuple[Path, str]]:
    """What of this machine a build may see while it runs: certificates, pip's settings and cache, wheels.

    They are mounted, never copied: all that an image keeps of them is empty mount points.
    """
    cache = cache_root() / "images" / "pip"
    cache.mkdir(parents=True, exist_ok=True)
    settings = temporary / "pip.conf"
    settings.write_text(pip_settings())
    mounts = [(cache, "/root/.cache/pip"), (settings, "/etc/pip.conf:ro")]
    certificates = Path("/etc/ssl/certs")
    if certificates.is_dir():
        mounts.append((certificates, "/etc/ssl/certs:ro"))
    if wheels is not None:
        mounts.append((wheels, "/wheels:ro"))
    return mounts


def pip_settings() -> str:
    """Where this machine's pip looks for packages, as a pip.conf for the build."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    wanted = {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries", "default-timeout"}
    lines = ["[global]", "disable-pip-version-check = true", "root-user-action = ignore"]
    found = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        option = key.rpartition(".")[2]
        if option in wanted:
            found[option] = value.strip("'\"")
    lines += [f"{option} = {value}" for option, value in found.items()]
    return "\n".join(lines) + "\n"


def docker_build(recipe: Recipe, progress: Progress) -> str:
    """The same image by a Docker engine; returns its name."""
    name = f"{recipe.repository}:{content_hash(recipe, 'docker', None)}"
    known = subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode == 0
    if known:
        return name
    command = ["docker", "build", "--file", recipe.dockerfile, "--tag", name, "--tag", f"{recipe.repository}:dev"]
    if recipe is TRAINER and (index := torch_index(None)):
        command += ["--build-arg", f"TORCH_INDEX={index}"]
    with progress.step(f"{recipe.program} image: docker build"):
        done = subprocess.run([*command, "."], cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise ClusterError(f"docker build of {recipe.program} failed:\n{done.stderr.strip()[-3000:]}")
    return name


def prune() -> list[Path]:
    """Delete all image caches and return them; the next build makes them again."""
    root = cache_root() / "images"
    with exclusive(root / "lock"):
        gone = [path for path in root.iterdir() if path.is_dir()]
        for path in gone:
            shutil.rmtree(path)
    return gone
