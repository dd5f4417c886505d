"""`kubectl apply -f examples/...` as a reader would."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart.helm import REPOSITORY
from contract.apiserver import ApiServer

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_applies_without_a_warning(crds: ApiServer, path: Path) -> None:
    crds.namespace("examples")
    done = crds.kubectl("apply", "-n", "examples", "-f", str(path))
    assert done.stderr == ""
    assert "trainingjob.trainyard.dev/" in done.stdout
    again = crds.kubectl("apply", "-n", "examples", "-f", str(path))
    assert "configured" not in again.stdout, "nothing may be filled in or dropped"
