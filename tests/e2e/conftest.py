"""One cluster with Trainyard for all end-to-end tests; a namespace with a shared volume for each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from cluster import Cluster
from e2e.device_jobs import TABLE, installed, whole
from e2e.plain_pods import Pods
from harness.devices import Devices
from harness.installation import Yard

NODES = 3


@pytest.fixture(scope="session")
def yard() -> Iterator[Yard]:
    """A fresh cluster named e2e, or as TRAINYARD_E2E says, removed at the end. TRAINYARD_KEEP=1 leaves it up and takes
    it again next time."""
    name = os.environ.get("TRAINYARD_E2E", "e2e")
    keep = bool(os.environ.get("TRAINYARD_KEEP"))
    if not keep:
        from cluster import remove

        remove(name)
    cluster = Cluster.up(name, nodes=NODES)
    try:
        made = Yard(cluster)
        made.install()
        yield made
    finally:
        if not keep:
            cluster.down()


@pytest.fixture(scope="module")
def devices(yard: Yard) -> Iterator[Devices]:
    """Three nodes of eight NPUs each, for jobs; a module with other devices has a fixture of its own."""
    with installed(yard, whole(), "--set-json", TABLE) as made:
        yield made


@pytest.fixture
def namespace(yard: Yard, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, with the claim `shared`; removed afterwards."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    name = f"t-{words[:40].strip('-')}-{os.urandom(2).hex()}"
    yard.api.namespace(name)
    yard.make_volume(name)
    yield name
    if request.session.testsfailed == 0 or not os.environ.get("TRAINYARD_KEEP"):
        yard.remove_namespace(name)


@pytest.fixture
def pods(yard: Yard, namespace: str) -> Pods:
    """Plain pods in the test's namespace."""
    return Pods(yard, namespace)
