"""Images: built from the repository's Dockerfiles, kept as layers, loaded into nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.errors import ClusterError
from cluster.images import build
from cluster.images.storage import Storage
from cluster.progress import Progress

if TYPE_CHECKING:
    from cluster.backend import Backend


def prepare(provider: str, progress: Progress) -> None:
    """Build our own images, so that no load has to. An existing cluster has what it has."""
    for recipe in build.RECIPES.values():
        if provider == "kind":
            build.docker_build(recipe, progress)
        elif provider == "builtin":
            build.build(recipe, progress)


def load(backend: Backend, provider: str, image: str, progress: Progress) -> str:
    """Build ``image`` if it names a program of ours, and bring it onto every node. Returns its name.

    A program's image also gets the tag ``dev``, for manifests written by hand.
    """
    recipe = build.RECIPES.get(image)
    if provider == "kind":
        name = build.docker_build(recipe, progress) if recipe else image
    elif recipe:
        name = build.build(recipe, progress)
    else:
        name = _from_storage(image, progress)
    names = [name, f"{recipe.repository}:dev"] if recipe else [name]
    with progress.step(f"loading {name}"):
        moved = backend.load(build.layout(), name, names)
    progress.note(
        f"           {moved / 1e6:.0f} MB of new layers a node" if moved else "           it was there already"
    )
    return name


def _from_storage(image: str, progress: Progress) -> str:
    layout = build.layout()
    storage = Storage()
    if storage.exists(image):
        with progress.step(f"{image}: store layers"):
            storage.store(image, layout)
    elif layout.descriptor(image) is None:
        raise ClusterError(
            f"image {image!r}: expected operator, trainer, or an image in the build storage "
            f"({storage.folder}); build one with: buildah --root {storage.folder} build -t {image} ..."
        )
    return image
