"""Image layouts and the hash that decides whether to build."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from cluster.errors import ClusterError
from cluster.images import build
from cluster.images.build import OPERATOR, content_hash, kept_names, newest_names, source_files
from cluster.images.layout import Layout, import_archive, pause_layer


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "oci")
    made.add("localhost/a:1", b"layer one", {"Entrypoint": ["/a"]})
    made.add("localhost/a:2", b"layer two", {"Entrypoint": ["/a"]})
    return made


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (".dockerignore", "operator/Dockerfile", "operator/requirements.txt", "operator/trainyard/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_an_image_is_found_only_with_all_of_its_blobs(layout: Layout) -> None:
    entry = layout.descriptor("localhost/a:1")
    assert entry is not None
    assert layout.descriptor("localhost/a:3") is None
    layout.blob(layout.blobs(entry["digest"])[-1]).unlink()
    assert layout.descriptor("localhost/a:1") is None


def test_keep_only_drops_the_blobs_of_the_others(layout: Layout) -> None:
    layout.keep_only(["localhost/a:2"])
    assert layout.names() == ["localhost/a:2"]
    assert layout.descriptor("localhost/a:2") is not None
    assert len(list((layout.folder / "blobs" / "sha256").iterdir())) == 3


def test_an_archive_leaves_out_what_the_node_has_and_names_every_tag(layout: Layout, tmp_path: Path) -> None:
    entry = layout.descriptor("localhost/a:1")
    assert entry is not None
    manifest, config, layer = layout.blobs(entry["digest"])
    target = tmp_path / "a.tar"
    with target.open("wb") as stream:
        size = layout.archive("localhost/a:1", ["localhost/a:1", "localhost/a:dev"], {layer, manifest}, stream)
    with tarfile.open(target) as tar:
        names = tar.getnames()
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
    assert [f"blobs/sha256/{blob[7:]}" in names for blob in (manifest, config, layer)] == [True, True, False]
    assert size == layout.blob(manifest).stat().st_size + layout.blob(config).stat().st_size
    tags = [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]]
    assert tags == ["localhost/a:1", "localhost/a:dev"]


def test_an_unknown_image_is_an_error_that_says_so(layout: Layout, tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as stream, pytest.raises(ClusterError, match="localhost/b:1 is not in"):
        layout.archive("localhost/b:1", ["x"], set(), stream)


def test_an_import_that_fails_says_why(layout: Layout) -> None:
    command = ["sh", "-c", "echo no room >&2; exit 3"]
    with pytest.raises(ClusterError, match=r"importing here failed \(3\): no room"):
        import_archive(layout, "localhost/a:1", ["x"], set(), command, "importing here")


def test_an_import_gets_the_whole_archive(layout: Layout, tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    command = ["sh", "-c", 'cat > "$0"', str(target)]
    assert import_archive(layout, "localhost/a:2", ["x"], set(), command, "importing") > 0
    with tarfile.open(target) as tar:
        assert len(tar.getnames()) == 5


def test_the_sandbox_layer_is_the_same_every_time() -> None:
    assert pause_layer(b"program") == pause_layer(b"program") != pause_layer(b"another")


def test_the_hash_follows_content_base_and_wheels(checkout: Path, tmp_path: Path) -> None:
    before = content_hash(OPERATOR, "base", None, checkout)
    assert content_hash(OPERATOR, "base", None, checkout) == before
    assert content_hash(OPERATOR, "another base", None, checkout) != before
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch.whl").touch()
    assert content_hash(OPERATOR, "base", wheels, checkout) != before
    (checkout / "operator/trainyard/a.py").write_text("changed")
    assert content_hash(OPERATOR, "base", None, checkout) != before


def test_what_the_image_does_not_hold_does_not_change_the_hash(checkout: Path) -> None:
    before = content_hash(OPERATOR, "base", None, checkout)
    cache = checkout / "operator/trainyard/__pycache__"
    cache.mkdir()
    (cache / "a.cpython-311.pyc").touch()
    (checkout / "operator/trainyard/notes.md").touch()
    (checkout / "trainer-image").mkdir()
    (checkout / "trainer-image/x.py").touch()
    assert content_hash(OPERATOR, "base", None, checkout) == before


def test_a_missing_source_is_named(checkout: Path) -> None:
    (checkout / "operator/trainyard/a.py").unlink()
    (checkout / "operator/trainyard").rmdir()
    with pytest.raises(ClusterError, match="operator/trainyard is not in the checkout"):
        list(source_files(OPERATOR, checkout))


def test_the_newest_three_of_each_program_are_kept() -> None:
    names = [f"localhost/trainyard/operator:{n}" for n in range(5)] + ["localhost/trainyard/trainer:0", "other:1"]
    assert kept_names(names) == [*names[2:5], "localhost/trainyard/trainer:0"]
    assert newest_names(names) == ["localhost/trainyard/operator:4", "localhost/trainyard/trainer:0"]


def test_wheels_come_from_the_environment_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    beside = tmp_path / "shared" / "wheels"
    named = tmp_path / "named"
    monkeypatch.setattr(build, "REPOSITORY", tmp_path / "checkout")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/none {named}")
    assert build.wheel_folder() is None
    beside.mkdir(parents=True)
    (beside / "a.whl").touch()
    assert build.wheel_folder() == beside
    named.mkdir()
    (named / "a.whl").touch()
    assert build.wheel_folder() == named
