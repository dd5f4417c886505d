"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.apiserver import ApiServer, NoBinaries, run_apiserver

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """One API server for the whole session; tests keep apart by namespace."""
    try:
        with run_apiserver() as server:
            yield server
    except NoBinaries as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def crds(apiserver: ApiServer) -> ApiServer:
    """The same server with our CRDs served."""
    apiserver.install_crds(REPOSITORY / "crds")
    return apiserver
