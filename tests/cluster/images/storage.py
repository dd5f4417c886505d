"""buildah with a storage of its own, apart from any that the user has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cluster.builtin.node import supports_overlay
from cluster.errors import ClusterError
from cluster.images.layout import Layout
from cluster.launch import run
from cluster.paths import cache_root


class Storage:
    """Images and layer cache under ``<cache>/images/storage``.

    Every command runs in a mount namespace of its own, so that an interrupted build leaves no mounts behind.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_root() / "images" / "storage"
        self._driver = ""

    def buildah(self, *argv: str, seconds: float = 120, log: Path | None = None, cwd: Path | None = None) -> str:
        """Run buildah and return its standard output; ``log`` gets the output instead, if given."""
        # The run root holds mount counts that are only true within one mount namespace: one a command.
        script = 'r=$(mktemp -d) && trap "rm -rf \\"$r\\"" EXIT && buildah --root "$0" --runroot "$r" "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(self.folder), *argv]
        done = subprocess.run(command, env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=seconds, cwd=cwd)  # fmt: skip
        if log is not None:
            log.write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            where = f" (all of it: {log})" if log else ""
            raise ClusterError(f"buildah {argv[0]} failed{where}:\n" + (done.stderr or done.stdout).strip()[-3000:])
        return done.stdout

    def store(self, name: str, layout: Layout, seconds: float = 600) -> None:
        """Write the image into ``layout``, uncompressed; layers that are there already are not written again."""
        layout.folder.mkdir(parents=True, exist_ok=True)
        script = (
            'r=$(mktemp -d) && trap "rm -rf \\"$r\\"" EXIT && skopeo copy --quiet --insecure-policy '
            '--dest-oci-accept-uncompressed-layers "containers-storage:[$0@$1+$r]$2" "oci:$3:$2"'
        )
        driver = self._environment()["STORAGE_DRIVER"]
        command = ["unshare", "--mount", "sh", "-c", script, driver, str(self.folder), name, str(layout.folder)]
        run(command, what=f"skopeo copy {name}", seconds=seconds)

    def keep_only(self, repository: str, names: list[str]) -> None:
        """Remove the images of ``repository`` that are not among ``names``, and layers that only they used."""
        listing = self.buildah("images", "--format", "{{.Name}}:{{.Tag}}", "--filter", f"reference={repository}")
        old = [name for name in listing.split() if name.startswith(repository + ":") and name not in names]
        if old:
            self.buildah("rmi", *old)

    def exists(self, name: str) -> bool:
        if not self.folder.exists():
            return False
        try:
            self.buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", name)
        except ClusterError:
            return False
        return True

    def _environment(self) -> dict[str, str]:
        if not self._driver:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._driver = "overlay" if supports_overlay(self.folder.parent) else "vfs"
        return {**os.environ, "STORAGE_DRIVER": self._driver, "BUILDAH_ISOLATION": "chroot", "STORAGE_OPTS": ""}
