"""A node's image store made in advance, so that new nodes start with the large layers in place.

Importing an image writes and unpacks every layer, for the trainer 1.2 GB a node. The seed is the image store of a
containerd that has imported our newest images once. A new node gets it as hard links: layers are only ever read, and
files that are one inode also share their memory. Only containerd's two small databases are copied.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from cluster.errors import ClusterError
from cluster.gotools import exclusive
from cluster.images.layout import Layout, import_archive
from cluster.paths import cache_root
from cluster.progress import Progress
from cluster.trash import discard

# Smaller differences are cheaper to load into each node than to seed.
_WORTHWHILE = 50_000_000
_CONTENT = "io.containerd.content.v1.content/blobs"
_SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs"
_METADATA = "io.containerd.metadata.v1.bolt"

_CONFIG = """version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{state}/containerd.sock"
"""
# Everything in one script in a pid namespace: it ends by itself, and nothing of it outlives it.
_RUN = """
config=$1 log=$2 socket=$3 kept=$4
images() { ctr --address "$socket" --namespace k8s.io images "$@"; }
containerd --config "$config" >"$log" 2>&1 &
server=$!
tries=0
until ctr --address "$socket" version >/dev/null 2>&1; do
  tries=$((tries + 1))
  [ $tries -lt 200 ] || { tail -5 "$log" >&2; exit 1; }
  sleep 0.1
done
images import - || exit 1
if [ -n "$kept" ]; then
  for image in $(images ls --quiet); do
    case " $kept " in
    *" $image "*) ;;
    *) images rm --sync "$image" || exit 1 ;;
    esac
  done
fi
# Only a containerd that ends by itself has closed its databases.
kill $server && wait $server
"""


def _root() -> Path:
    return cache_root() / "images" / "seed"


def _in_use() -> AbstractContextManager[None]:
    """Held for the moment in which the seed is copied from, or replaced."""
    return exclusive(_root().with_suffix(".lock"))


def refresh(layout: Layout, names: list[str], progress: Progress) -> None:
    """Make the seed anew if the images ``names`` have large layers that it lacks."""
    with exclusive(_root().with_suffix(".making")):
        if _missing_bytes(layout, names) < _WORTHWHILE:
            return
        fresh = _root().with_suffix(".partial")
        discard(fresh)
        (fresh / "root").mkdir(parents=True)
        with progress.step("image store for new nodes"):
            # The old seed is the start of the new one: only what has changed is imported.
            have = _have() if _copy(_root() / "root", fresh / "root") else set()
            for name in names:
                # Old images go last: what they share with the new ones must not go with them.
                _import(layout, name, fresh / "root", have, names if name == names[-1] else [])
        layers = sorted({digest for name in names for digest in _layers(layout, name)})
        (fresh / "layers.json").write_text(json.dumps(layers))
        with _in_use():
            discard(_root(), patience=0)
            fresh.rename(_root())


def _layers(layout: Layout, name: str) -> list[str]:
    entry = layout.descriptor(name)
    if entry is None:
        raise ClusterError(f"image {name} is not in {layout.folder}; build it first")
    return layout.blobs(entry["digest"])


def _have() -> set[str]:
    path = _root() / "layers.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


def _missing_bytes(layout: Layout, names: list[str]) -> int:
    missing = {digest for name in names for digest in _layers(layout, name)} - _have()
    return sum(layout.blob(digest).stat().st_size for digest in missing)


def _import(layout: Layout, name: str, root: Path, have: set[str], kept: list[str]) -> None:
    with tempfile.TemporaryDirectory() as state:
        config = Path(state) / "config.toml"
        config.write_text(_CONFIG.format(root=root, state=state))
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _RUN, "seed",
                   str(config), f"{state}/log", f"{state}/containerd.sock", " ".join(kept)]  # fmt: skip
        import_archive(layout, name, [name], have, command, "importing into the image store for new nodes")


def plant(target: Path) -> bool:
    """Give a new node, whose containerd has not run yet, the seed's images. False if there is no seed to be had."""
    if target.exists() and any(target.iterdir()):
        return False
    with _in_use():
        return _copy(_root() / "root", target)


def _copy(source: Path, target: Path) -> bool:
    """Copy an image store that is not in use: hard links to the layers, copies of the databases.

    False, and an empty ``target``, if there is none or it is on another file system.
    """
    if not (source.parent / "layers.json").exists():
        return False
    try:
        for part in (_CONTENT, f"{_SNAPSHOTS}/snapshots"):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-al", str(source / part), str(target / part)], check=True, capture_output=True)
        for part in (f"{_SNAPSHOTS}/metadata.db", f"{_METADATA}/meta.db"):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(target)
        target.mkdir()
        return False
    return True
