"""The chart's admission policies: what a training pod can write with its own token, and what it cannot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from chart.helm import NAMESPACE as OPERATOR_NAMESPACE
from contract.apiserver import ApiServer
from contract.manifests import changed, report, world
from contract.operator_process import until
from contract.rest import GROUP, Answer, Rest
from supervisor.report import as_yaml
from trainyard.kube.client import APPLY, encoded

TENANT, OTHER = "policy-tenant", "policy-other"
_RBAC = "rbac.authorization.k8s.io"
_numbers = itertools.count()


@dataclass(frozen=True)
class Worker:
    """A pod of a job and a client that has its token."""

    rest: Rest
    pod: str
    uid: str

    def report(self, **changes: Any) -> dict[str, Any]:
        """Its Report; changes by path, __ for the dots."""
        good = report(self.pod, self.uid)
        return changed(good, {path.replace("__", "."): value for path, value in changes.items()})


def reports(namespace: str = TENANT) -> str:
    return f"{GROUP}/namespaces/{namespace}/reports"


def _bind(server: ApiServer, namespace: str, account: str, role: str = "trainyard-worker") -> None:
    server.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}},
        {"apiVersion": f"{_RBAC}/v1", "kind": "RoleBinding", "metadata": {
            "name": f"{account}-{role}", "namespace": namespace},
         "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
         "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]})


def _in_pod(server: ApiServer, clients: ExitStack, namespace: str, account: str, pod: str) -> Worker:
    """Make a pod that never runs, and a client with the token that kubelet would mount into it."""
    admin = clients.enter_context(Rest(server.kubeconfig))
    core = f"/api/v1/namespaces/{namespace}"
    made = admin.create(f"{core}/pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": {
        "serviceAccountName": account, "containers": [{"name": "trainer", "image": "none"}]}})
    assert made.ok, str(made)
    uid = made.body["metadata"]["uid"]
    token = admin.create(f"{core}/serviceaccounts/{account}/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}})
    assert token.ok, str(token)
    return Worker(clients.enter_context(Rest(server.kubeconfig, token.body["status"]["token"])), pod, uid)


@pytest.fixture(scope="module")
def tenants(installed: ApiServer) -> ApiServer:
    """Two namespaces in which the account `job` has the rights of a worker, and `owner` has all rights."""
    for namespace in (TENANT, OTHER):
        installed.namespace(namespace)
        _bind(installed, namespace, "job")
        _bind(installed, namespace, "owner", "cluster-admin")
    return installed


@pytest.fixture(scope="module")
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _worker(server: ApiServer, clients: ExitStack, account: str = "job") -> Worker:
    return _in_pod(server, clients, TENANT, account, f"job{next(_numbers)}-0-1")


@pytest.fixture
def worker(tenants: ApiServer, clients: ExitStack) -> Worker:
    """A pod of the job that has not reported yet."""
    return _worker(tenants, clients)


def refused(answer: Answer, words: str) -> bool:
    return answer.status == 403 and "ValidatingAdmissionPolicy" in answer.message and words in answer.message


def test_a_pod_writes_and_rewrites_its_own_report(worker: Worker) -> None:
    mine = f"{reports()}/{worker.pod}"
    assert (first := worker.rest.apply(mine, worker.report())).status == 201, str(first)
    again = worker.rest.apply(mine, worker.report(spec__sequence=2, spec__kind="Stopping"))
    assert (again.status, again.body["spec"]["kind"]) == (200, "Stopping"), str(again)
    assert worker.rest.patch(mine, {"spec": {"sequence": 3}}).ok
    assert worker.rest.get(mine).ok


SAID = {
    "gloo": "GLHF! \U0001f3d6\ufe0f",  # of every connection that breaks
    "all": "".join(map(chr, (*range(0xd7ff), *range(0xe000, 0x11000), 0x10ffff))),
    "escaped": "a literal \\ud83c\\udfd6 and \\\\u0000",
    "half": "half a character: \ud83c",
}


@pytest.mark.parametrize("said", list(SAID.values()), ids=list(SAID))
def test_whatever_a_rank_prints_its_report_comes_through(worker: Worker, said: str) -> None:
    mine = f"{reports()}/{worker.pod}"
    for start in range(0, len(said), 4096):
        text = said[start:start + 4096]
        failure = {"root": False, "rank": 0, "exitCode": 1, "text": text}
        spec = worker.report(spec__kind="RankFailed", spec__sequence=start + 1, spec__failure=failure)
        answer = worker.rest.apply(mine, as_yaml(spec))
        assert answer.ok, str(answer)
        assert answer.body["spec"]["failure"]["text"] == text.replace("\ud83c", "?")
        assert encoded(spec, APPLY) == as_yaml(spec), "what operator and agent apply comes through as well"


def test_a_pod_creates_its_report_without_a_label(worker: Worker) -> None:
    bare = worker.report()
    del bare["metadata"]["labels"]
    answer = worker.rest.create(reports(), bare)
    assert answer.ok, str(answer)


def test_a_pod_cannot_write_the_report_of_another(worker: Worker, tenants: ApiServer, clients: ExitStack) -> None:
    victim = _worker(tenants, clients)
    assert victim.rest.create(reports(), victim.report()).ok
    theirs = f"{reports()}/{victim.pod}"
    words = f"its token is bound to pod {worker.pod}"
    assert refused(worker.rest.apply(theirs, victim.report(spec__sequence=9)), words)
    assert refused(worker.rest.patch(theirs, {"spec": {"sequence": 9}}), words)
    nobody = report("job-7-1", worker.uid, index=7)
    assert refused(worker.rest.create(reports(), nobody), words)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "the UID of another pod": ({"spec__podUid": "8a0cbbf1"}, "spec.podUid must be the UID of the pod that writes"),
    "another index": ({"spec__index": 1}, "spec.index and spec.incarnation must be those at the end of the name"),
    "another incarnation": ({"spec__incarnation": 2}, "spec.index and spec.incarnation must be those at the end"),
    "no owner": ({"metadata__ownerReferences": []}, "metadata.ownerReferences must name pod"),
    "an owner of another UID": ({"metadata__ownerReferences[0]__uid": "8a0cbbf1"}, "must name pod"),
    "an owner that is no pod": ({"metadata__ownerReferences[0]__kind": "Node"}, "must name pod"),
    "a second owner": ({"metadata__ownerReferences[1]": {
        "apiVersion": "v1", "kind": "Pod", "name": "other", "uid": "8a0cbbf1"}}, "must name pod"),
    "an owner whose deletion waits": ({"metadata__ownerReferences[0]__blockOwnerDeletion": True}, "must name pod"),
    "a finalizer": ({"metadata__finalizers": ["example.com/stay"]}, "no annotations, no finalizers and no label"),
    "an annotation": ({"metadata__annotations": {"a": "b"}}, "no annotations, no finalizers and no label"),
    "a label": ({"metadata__labels": {"a": "b"}}, "no annotations, no finalizers and no label"),
    "another job's label": ({"metadata__labels": {"trainyard.dev/job": "other"}}, "with the name of its pod's job"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_pod_cannot_create_its_report_with(worker: Worker, case: str) -> None:
    changes, words = BAD[case]
    answer = worker.rest.create(reports(), worker.report(**changes))
    assert refused(answer, words), str(answer)


@pytest.mark.parametrize("case", [case for case in BAD if case != "no owner"])
def test_a_pod_cannot_change_its_report_to(worker: Worker, case: str) -> None:
    changes, words = BAD[case]
    mine = f"{reports()}/{worker.pod}"
    assert worker.rest.apply(mine, worker.report()).ok
    answer = worker.rest.apply(mine, worker.report(spec__sequence=2, **changes))
    assert refused(answer, words), str(answer)


def test_a_pod_cannot_give_its_report_up(worker: Worker) -> None:
    mine = f"{reports()}/{worker.pod}"
    assert worker.rest.apply(mine, worker.report()).ok
    answer = worker.rest.patch(mine, {"metadata": {"ownerReferences": None}})
    assert refused(answer, "metadata.ownerReferences must name pod"), str(answer)


def test_a_pod_cannot_report_in_another_namespace(worker: Worker, tenants: ApiServer) -> None:
    """Not by its rights; and if it was given rights there, not by the policy."""
    answer = worker.rest.create(reports(OTHER), worker.report())
    assert answer.status == 403
    assert "cannot create resource" in answer.message
    tenants.apply({
        "apiVersion": f"{_RBAC}/v1", "kind": "RoleBinding", "metadata": {"name": "foreign", "namespace": OTHER},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "trainyard-worker"},
        "subjects": [{"kind": "ServiceAccount", "name": "job", "namespace": TENANT}]})
    # A binding is in force a moment after it was made.
    until("the policy refuses", 20, lambda: refused(worker.rest.create(reports(OTHER), worker.report()),
                                                    f"its token is of namespace {TENANT}"))
    tenants.kubectl("delete", "rolebinding", "foreign", "-n", OTHER)


@pytest.mark.parametrize("account", ["job", "owner"])
def test_a_token_without_a_pod_writes_no_report(tenants: ApiServer, clients: ExitStack, account: str) -> None:
    rest = clients.enter_context(Rest(tenants.service_account(TENANT, account)))
    answer = rest.create(reports(), report("job-0-1", "uid"))
    assert refused(answer, "this token is bound to no pod"), str(answer)


def test_all_rights_in_the_namespace_do_not_help(tenants: ApiServer, clients: ExitStack) -> None:
    """A job may run under its user's own account, which may do anything else."""
    worker = _worker(tenants, clients, account="owner")
    victim = _worker(tenants, clients)
    assert victim.rest.create(reports(), victim.report()).ok
    assert worker.rest.create(reports(), worker.report()).ok
    assert refused(worker.rest.patch(f"{reports()}/{victim.pod}", {"spec": {"sequence": 5}}), "of its own name only")
    worlds = f"{GROUP}/namespaces/{TENANT}/worlds"
    assert refused(worker.rest.create(worlds, world("mine")), "Worlds are written by the operator")


def test_a_deleted_pods_token_is_refused(worker: Worker, tenants: ApiServer) -> None:
    tenants.kubectl("delete", "pod", worker.pod, "-n", TENANT, "--grace-period=0", "--force")
    # The API server learns of it in a moment, and remembers a token that it has seen for ten seconds.
    until("the token is refused", 30, lambda: worker.rest.get(f"{GROUP}/namespaces/{TENANT}/worlds").status == 401)


@pytest.fixture(scope="module")
def operator(installed: ApiServer, clients: ExitStack) -> Rest:
    """The operator's own account, as the Deployment's pods have it."""
    return _in_pod(installed, clients, OPERATOR_NAMESPACE, "trainyard", "operator-0").rest


def test_the_operator_writes_worlds_and_no_reports(operator: Rest, tenants: ApiServer) -> None:
    worlds = f"{GROUP}/namespaces/{TENANT}/worlds"
    made = operator.create(worlds, world("by-the-operator"))
    assert made.ok, str(made)
    made.body["spec"]["generation"] = 2
    assert operator.request("PUT", f"{worlds}/by-the-operator", made.body).ok
    assert operator.create(reports(), report("job-0-1", "uid")).status == 403


def test_a_worker_reads_worlds_and_writes_none(worker: Worker, operator: Rest) -> None:
    worlds = f"{GROUP}/namespaces/{TENANT}/worlds"
    made = operator.create(worlds, world("to-read"))
    assert made.ok or made.status == 409, str(made)
    assert worker.rest.get(f"{worlds}/to-read").ok
    assert worker.rest.get(worlds).ok
    for answer in (worker.rest.patch(f"{worlds}/to-read", {"spec": {"phase": "Done"}}),
                   worker.rest.create(worlds, world("new")), worker.rest.request("DELETE", f"{worlds}/to-read")):
        assert answer.status == 403
        assert "ValidatingAdmissionPolicy" not in answer.message, "already its rights must not allow it"


def test_a_cluster_administrator_may_repair(tenants: ApiServer, clients: ExitStack) -> None:
    """People act by their rights; only cluster administrators have any here."""
    admin = clients.enter_context(Rest(tenants.kubeconfig))
    assert admin.create(reports(), report("job-9-1", "uid", index=9), dryRun="All").ok
    assert admin.create(f"{GROUP}/namespaces/{TENANT}/worlds", world("repaired"), dryRun="All").ok


@pytest.mark.parametrize("kind", ["reports", "worlds"])
def test_the_garbage_collector_is_not_in_the_way_of_deletion(
        tenants: ApiServer, clients: ExitStack, worker: Worker, operator: Rest, kind: str) -> None:
    """It lifts the finalizer of a foreground deletion by a patch, with a token that is bound to no pod."""
    admin = clients.enter_context(Rest(tenants.kubeconfig))
    path = f"{GROUP}/namespaces/{TENANT}/{kind}"
    made = worker.rest.create(path, worker.report()) if kind == "reports" else operator.create(path, world("to-go"))
    assert made.ok, str(made)
    target = f"{path}/{made.body['metadata']['name']}"
    assert admin.request("DELETE", target, {"propagationPolicy": "Foreground"}).ok
    collector = "generic-garbage-collector"
    tenants.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
        "name": collector, "namespace": "kube-system"}})
    rest = clients.enter_context(Rest(tenants.service_account("kube-system", collector)))
    lifted = rest.patch(target, {"metadata": {"finalizers": None}})
    assert lifted.ok, str(lifted)
    assert admin.get(target).status == 404


def test_the_operator_and_the_workers_queue_apart(worker: Worker, operator: Rest, installed: ApiServer) -> None:
    names = {item["metadata"]["uid"]: item["metadata"]["name"] for item in installed.get("flowschemas")["items"]}
    worlds = f"{GROUP}/namespaces/{TENANT}/worlds"
    prefix = f"{OPERATOR_NAMESPACE}-trainyard"
    assert names[operator.get(worlds).flow_schema] == f"{prefix}-operator"
    assert names[operator.get("/api/v1/nodes").flow_schema] == f"{prefix}-operator"
    assert names[worker.rest.get(worlds).flow_schema] == f"{prefix}-workers"
    assert names[worker.rest.get("/version").flow_schema] != f"{prefix}-workers"
