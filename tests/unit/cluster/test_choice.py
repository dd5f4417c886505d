"""Which provider is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster.choice import Provider, choose
from cluster.paths import cluster_dir


@pytest.mark.parametrize(
    ("environment", "docker", "asked", "want"),
    [
        ({}, False, None, "builtin"),
        ({}, True, None, "kind"),
        ({"KUBECONFIG": "/home/me/config"}, True, None, "existing"),
        ({"KUBECONFIG": ""}, False, None, "builtin"),
        ({"KUBECONFIG": "/home/me/config"}, True, "builtin", "builtin"),
        ({}, True, "builtin", "builtin"),
        ({}, False, "existing", "existing"),
    ],
)
def test_choice(environment: dict[str, str], docker: bool, asked: Provider | None, want: Provider) -> None:
    assert choose(environment, docker, asked) == want


def test_our_own_kubeconfig_does_not_make_our_cluster_somebody_elses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choose({"KUBECONFIG": str(cluster_dir("dev") / "kubeconfig")}, False) == "builtin"
