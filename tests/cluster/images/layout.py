"""Image layouts as the OCI describes them: a folder of blobs by hash, and an index.

Layers are kept uncompressed: they never cross a network, and unpacking them costs a third of the time.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from cluster.errors import ClusterError

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """A folder with ``blobs/sha256/*`` and ``index.json``, whose images are told apart by a name of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def index(self) -> dict[str, Any]:
        path = self.folder / "index.json"
        if not path.exists():
            return {"schemaVersion": 2, "mediaType": _INDEX, "manifests": []}
        return dict(json.loads(path.read_text()))

    def names(self) -> list[str]:
        """The images' names, oldest first."""
        found = [
            entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in self.index()["manifests"]
        ]
        return [name for name in found if name]

    def descriptor(self, name: str) -> dict[str, Any] | None:
        """The manifest's descriptor of the image called ``name``, if it is here with all of its blobs."""
        for entry in self.index()["manifests"]:
            if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == name:
                path = self.blob(entry["digest"])
                complete = path.exists() and all(self.blob(blob).exists() for blob in self.blobs(entry["digest"]))
                return dict(entry) if complete else None
        return None

    def blobs(self, manifest_digest: str) -> list[str]:
        """Digests of manifest, config and layers."""
        manifest = json.loads(self.blob(manifest_digest).read_text())
        return [manifest_digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]

    def write_blob(self, data: bytes) -> dict[str, Any]:
        digest = digest_of(data)
        target = self.blob(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(target)
        return {"digest": digest, "size": len(data)}

    def keep_only(self, names: Iterable[str]) -> None:
        """Drop all other images, and the blobs that no kept one refers to."""
        kept = set(names)
        index = self.index()
        index["manifests"] = [
            entry
            for entry in index["manifests"]
            if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") in kept
        ]
        self._write_index(index)
        used = {blob for entry in index["manifests"] for blob in self.blobs(entry["digest"])}
        for path in (self.folder / "blobs" / "sha256").glob("*"):
            if f"sha256:{path.name}" not in used:
                path.unlink()

    def add(self, name: str, layer: bytes, config: dict[str, Any]) -> None:
        """Add an image of one layer."""
        described = self.write_blob(layer)
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [described["digest"]]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, **self.write_blob(json.dumps(document).encode())},
            "layers": [{"mediaType": _LAYER, **described}],
        }
        entry = {"mediaType": _MANIFEST, **self.write_blob(json.dumps(manifest).encode())}
        index = self.index()
        index["manifests"] = [
            *index["manifests"],
            {**entry, "annotations": {"org.opencontainers.image.ref.name": name}},
        ]
        self._write_index(index)

    def _write_index(self, index: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        fresh = self.folder / "index.new"
        fresh.write_text(json.dumps(index))
        fresh.replace(self.folder / "index.json")

    def archive(self, name: str, images: list[str], have: set[str], target: IO[bytes]) -> int:
        """Write an archive to import ``name`` under the names ``images``, without the blobs that the receiver has.

        Returns the number of bytes of blobs in it.
        """
        entry = self.descriptor(name)
        if entry is None:
            raise ClusterError(f"image {name} is not in {self.folder}; build it first")
        manifests = [
            {**entry, "annotations": {"io.containerd.image.name": image, "org.opencontainers.image.ref.name": image}}
            for image in images
        ]
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests}
        size = 0
        with tarfile.open(fileobj=target, mode="w|", bufsize=1 << 20) as tar:
            _add_bytes(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add_bytes(tar, "index.json", json.dumps(index).encode())
            for digest in self.blobs(entry["digest"]):
                if digest in have and digest != entry["digest"]:
                    continue
                path = self.blob(digest)
                size += path.stat().st_size
                tar.add(path, arcname=f"blobs/sha256/{path.name}")
        return size


def import_archive(
    layout: Layout, name: str, images: list[str], have: set[str], command: list[str], what: str, seconds: float = 600
) -> int:
    """Stream an archive into ``command``'s standard input; returns the bytes of blobs in it.

    A command that is not done after ``seconds`` is killed. Raises ClusterError with its messages if it fails.
    """
    size = 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        assert process.stdin is not None
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        try:
            with process.stdin as stream:
                size = layout.archive(name, images, have, stream)
        except BrokenPipeError:
            pass  # it has given up; its messages say why
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
            watchdog.cancel()
        if status != 0:
            errors.seek(0)
            raise ClusterError(f"{what} failed ({status}): {errors.read().strip()[-1000:]}")
    return size


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def pause_layer(program: bytes) -> bytes:
    """The layer of the pod sandbox's image: one static program, with fixed times so that its hash is stable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add_bytes(tar, "pause", program, 0o755)
    return buffer.getvalue()


def pause_image(layout: Layout) -> str:
    """Make the sandbox image in ``layout`` if it is not there; returns its name."""
    program = Path(shutil.which("catatonit") or "/usr/bin/catatonit").read_bytes()
    name = "localhost/trainyard/pause:" + hashlib.sha256(program).hexdigest()[:12]
    if layout.descriptor(name) is None:
        layout.add(name, pause_layer(program), {"Entrypoint": ["/pause", "-P"]})
    return name
