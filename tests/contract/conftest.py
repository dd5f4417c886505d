"""Fixtures of the contract tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chart.helm import CHART, NAMESPACE, helm
from contract.apiserver import ApiServer, NoBinaries, run_apiserver
from contract.manifests import command_job, report, world
from contract.operator_process import OperatorProcess
from contract.playground import Playground
from contract.rest import GROUP, Answer, Rest

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


@pytest.fixture(scope="session")
def installed() -> Iterator[ApiServer]:
    """Another server, with the whole chart installed by Helm: rights and admission policies as in a real cluster."""
    try:
        with run_apiserver() as server:
            helm("install", "trainyard", str(CHART), "--namespace", NAMESPACE, "--create-namespace",
                 "--set", "agent.enabled=true,agent.backend=simulated", kubeconfig=server.kubeconfig)
            server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            _wait_for_policies(server)
            yield server
    except NoBinaries as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="module")
def kubeconfig(installed: ApiServer) -> Path:
    """The operator's own identity, as the chart makes it."""
    return installed.service_account(NAMESPACE, "trainyard")


@pytest.fixture(scope="module")
def rest(installed: ApiServer) -> Iterator[Rest]:
    with closing(Rest(installed.kubeconfig)) as client:
        yield client


@pytest.fixture
def here(installed: ApiServer, rest: Rest) -> Playground:
    return Playground(installed, rest)


def _wait_for_policies(server: ApiServer) -> None:
    """The API server takes a moment to put a new policy in force: wait until each kind refuses what it must."""
    server.namespace("policies-in-force")
    account = server.service_account("policies-in-force", "default")
    server.apply({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "policies-in-force"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "policies-in-force"}]})
    path = f"{GROUP}/namespaces/policies-in-force"
    frozen = command_job("frozen", template={"metadata": {"labels": {"a": "b"}}})
    with Rest(server.kubeconfig) as admin, Rest(account) as powerful:
        assert admin.create(f"{path}/trainingjobs", frozen).ok
        assert admin.patch(f"{path}/trainingjobs/frozen/status", {"status": {"admittedHash": "a", "pods": 1}}).ok
        swap = {"spec": {"template": {"metadata": None, "spec": {"hostNetwork": True}}}}
        trials: list[Callable[[], Answer]] = [
            lambda: powerful.create(f"{path}/worlds", world(), dryRun="All"),
            lambda: powerful.create(f"{path}/reports", report("job-0-1", "uid"), dryRun="All"),
            lambda: admin.patch(f"{path}/trainingjobs/frozen", swap, dryRun="All"),
        ]
        end = time.monotonic() + 30
        for trial in trials:
            while (answer := trial()).ok or "ValidatingAdmissionPolicy" not in answer.message:
                assert time.monotonic() < end, f"not in force after 30 s: {answer}"
                time.sleep(0.1)
    server.kubectl("delete", "clusterrolebinding/policies-in-force", "namespace/policies-in-force", "--wait=false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its operator said last."""
    report = yield
    process = getattr(item, "funcargs", {}).get("operator")
    if report.failed and isinstance(process, OperatorProcess):
        report.sections.append(("the operator's log", "\n".join(process.log.read_text().splitlines()[-60:])))
    return report
