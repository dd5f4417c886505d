"""Pinned programs, packages, and kind's configuration."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from cluster import gotools, kind, packages
from cluster.builtin import configs
from cluster.builtin.addresses import NodePlan
from cluster.errors import ClusterError
from cluster.progress import Progress

GO_MOD = """module m

require (
	k8s.io/api v0.1.0 // indirect
	k8s.io/kubernetes v1.36.3
)
"""


def test_the_version_is_read_from_go_mod() -> None:
    assert gotools.pinned_version(GO_MOD, "k8s.io/kubernetes") == "v1.36.3"
    assert gotools.pinned_version("require sigs.k8s.io/kind v0.1.0\n", "sigs.k8s.io/kind") == "v0.1.0"
    with pytest.raises(ClusterError, match=r"k8s\.io/other is not required"):
        gotools.pinned_version(GO_MOD, "k8s.io/other")


def test_kubernetes_programs_are_told_the_pinned_version() -> None:
    flags = gotools.MODULES[0].ldflags()
    pinned = gotools.pinned_version((gotools.MODULES[0].path / "go.mod").read_text(), "k8s.io/kubernetes")
    assert f"version.gitVersion={pinned}" in flags


def test_the_key_follows_the_pins_and_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gotools, "TOOLS", tmp_path)
    module = gotools.Module("m", {"p": "example.org/p"})
    (tmp_path / "m").mkdir()
    (tmp_path / "m/go.mod").write_text(GO_MOD)
    (tmp_path / "m/go.sum").write_text("")
    before = gotools.key((module,), "1.26.0")
    assert gotools.key((module,), "1.26.1") != before
    (tmp_path / "m/go.sum").write_text("changed")
    assert gotools.key((module,), "1.26.0") != before


def test_missing_packages_are_named_once(tmp_path: Path) -> None:
    programs = {"sh": "dash", "no-such-program": "b", "another-missing": "b", str(tmp_path / "x"): "a"}
    assert packages.missing(programs) == ["a", "b"]


def test_without_root_the_command_to_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name, path=None: "/x" if name == "apt-get" else None)
    with pytest.raises(ClusterError, match=r"sudo apt-get install .* missing-package"):
        packages.ensure({"no-such-program": "missing-package"}, Progress(io.StringIO()))


def test_kind_shares_the_folder_with_every_worker() -> None:
    document = json.loads(kind.configuration("/host/shared", 3))
    workers = [node for node in document["nodes"] if node["role"] == "worker"]
    assert len(workers) == 3
    for worker in workers:
        assert worker["extraMounts"] == [{"hostPath": "/host/shared", "containerPath": configs.SHARED}]


def test_nodes_differ_only_in_what_is_their_own() -> None:
    one, two = (json.loads(configs.kubelet_document("dev", NodePlan(n))) for n in (1, 2))
    assert {key for key in one if one[key] != two[key]} == {"cgroupRoot", "tlsCertFile", "tlsPrivateKeyFile"}


def test_progress_prints_a_line_a_step_without_a_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.step("doing this"):
        progress.detail("never shown")
    with pytest.raises(ValueError), progress.step("doing that"):
        raise ValueError
    lines = stream.getvalue().splitlines()
    assert [line.split(" s  ")[1] for line in lines] == ["doing this", "FAILED: doing that"]
