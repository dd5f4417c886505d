"""Who may do what once the chart is installed: the whole table, asked of the API server's authorizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chart.helm import NAMESPACE as OPERATOR_NAMESPACE
from contract.apiserver import ApiServer
from contract.rest import Rest

TENANT = "rbac-tenant"
OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:trainyard"
WORKER = f"system:serviceaccount:{TENANT}:job"
_RBAC = "rbac.authorization.k8s.io"
_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
OURS = "trainyard.dev"
READ = frozenset(("get", "list", "watch"))
WRITE = frozenset(("create", "update", "patch", "delete", "deletecollection"))


@pytest.fixture(scope="module")
def rest(installed: ApiServer) -> Iterator[Rest]:
    """The server with a worker's binding and a user for each of the chart's aggregated roles."""
    installed.namespace(TENANT)
    with Rest(installed.kubeconfig) as client:
        bind(client, "job-worker", "trainyard-worker", {"kind": "ServiceAccount", "name": "job", "namespace": TENANT})
        for role in ("view", "edit", "device-admin"):
            bind(client, role, f"{OPERATOR_NAMESPACE}-trainyard-{role}",
                 {"kind": "User", "name": role, "apiGroup": _RBAC})
        yield client


def bind(rest: Rest, name: str, role: str, subject: dict[str, str]) -> None:
    answer = rest.create(f"/apis/{_RBAC}/v1/namespaces/{TENANT}/rolebindings", {
        "apiVersion": f"{_RBAC}/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role}, "subjects": [subject]})
    assert answer.ok, str(answer)


def allowed(rest: Rest, user: str, verb: str, resource: str, group: str = "", namespace: str = TENANT,
            name: str = "") -> bool:
    """What `kubectl auth can-i` would say. `resource` may have a subresource behind a slash; a namespace of "" asks
    for the whole cluster."""
    kind, _, subresource = resource.partition("/")
    attributes: dict[str, Any] = {"verb": verb, "group": group, "resource": kind, "subresource": subresource,
                                  "namespace": namespace, "name": name}
    groups = ["system:authenticated"]
    if user.startswith("system:serviceaccount:"):
        groups += ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}"]
    answer = rest.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes}})
    assert answer.ok, str(answer)
    return bool(answer.body["status"]["allowed"])


def verbs(rest: Rest, user: str, resource: str, group: str = "", namespace: str = TENANT) -> set[str]:
    return {verb for verb in _VERBS if allowed(rest, user, verb, resource, group, namespace)}


OPERATOR_MAY = {
    ("trainingjobs", OURS): READ | {"delete"},
    ("trainingjobs/status", OURS): {"get", "update", "patch"},
    ("worlds", OURS): READ | {"create", "update"},
    ("reports", OURS): READ,
    ("pods", ""): READ | {"create", "delete"},
    ("configmaps", ""): {"get", "create"},
    ("serviceaccounts", ""): {"get", "create"},
    ("networkpolicies", "networking.k8s.io"): {"get", "create", "patch"},
    ("rolebindings", _RBAC): {"get", "create", "patch"},
    ("nodes", ""): READ,
    ("nodes/status", ""): {"patch"},
    ("nodedevices", OURS): READ | {"patch"},
    ("nodedevices/status", OURS): set(),
    ("resourcequotas", ""): READ,
    ("priorityclasses", "scheduling.k8s.io"): READ,
    ("events", ""): {"create", "patch"},
    ("events", "events.k8s.io"): {"create", "patch"},
}
NOBODY = {  # what neither the operator nor a worker may touch, among what would be worth having
    ("secrets", ""), ("pods/exec", ""), ("pods/attach", ""), ("pods/log", ""), ("pods/status", ""),
    ("pods/ephemeralcontainers", ""), ("pods/eviction", ""), ("nodes/proxy", ""),
    ("namespaces", ""), ("persistentvolumes", ""), ("persistentvolumeclaims", ""), ("serviceaccounts/token", ""),
    ("roles", _RBAC), ("clusterroles", _RBAC), ("clusterrolebindings", _RBAC), ("deployments", "apps"),
    ("customresourcedefinitions", "apiextensions.k8s.io"),
    ("validatingadmissionpolicies", "admissionregistration.k8s.io"),
    ("validatingadmissionpolicybindings", "admissionregistration.k8s.io"), ("trainingjobs/finalizers", OURS),
}


@pytest.mark.parametrize(("resource", "group"), OPERATOR_MAY)
@pytest.mark.parametrize("namespace", [TENANT, ""])
def test_the_operator_may(rest: Rest, resource: str, group: str, namespace: str) -> None:
    assert verbs(rest, OPERATOR, resource, group, namespace) == OPERATOR_MAY[resource, group]


@pytest.mark.parametrize(("resource", "group"), sorted(NOBODY))
@pytest.mark.parametrize("user", [OPERATOR, WORKER])
def test_nobody_of_ours_may_touch(rest: Rest, user: str, resource: str, group: str) -> None:
    assert verbs(rest, user, resource, group) == set()


def test_the_operator_binds_one_role_and_makes_none(rest: Rest) -> None:
    assert allowed(rest, OPERATOR, "bind", "clusterroles", _RBAC, "", "trainyard-worker")
    for role in ("cluster-admin", "admin", "edit", "view", ""):
        assert not allowed(rest, OPERATOR, "bind", "clusterroles", _RBAC, "", role)
    for verb in ("escalate", "impersonate"):
        assert not allowed(rest, OPERATOR, verb, "clusterroles", _RBAC, "")
    assert not allowed(rest, OPERATOR, "impersonate", "users", "", "")
    assert not allowed(rest, OPERATOR, "impersonate", "serviceaccounts", "")


def test_binding_another_role_is_refused_by_the_server_itself(rest: Rest, installed: ApiServer) -> None:
    path = f"/apis/{_RBAC}/v1/namespaces/{TENANT}/rolebindings"
    with Rest(installed.service_account(OPERATOR_NAMESPACE, "trainyard")) as operator:
        for role, taken in (("trainyard-worker", True), ("cluster-admin", False), ("system:node", False)):
            answer = operator.create(path, {
                "apiVersion": f"{_RBAC}/v1", "kind": "RoleBinding", "metadata": {"name": f"of-{role}"},
                "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": "x", "namespace": TENANT}]}, dryRun="All")
            assert answer.ok == taken, str(answer)


def test_a_binding_of_another_role_gets_no_subjects_from_the_operator(rest: Rest, installed: ApiServer) -> None:
    """`patch` on RoleBindings is no way around `bind`."""
    bind(rest, "admins", "cluster-admin", {"kind": "User", "name": "admin", "apiGroup": _RBAC})
    path = f"/apis/{_RBAC}/v1/namespaces/{TENANT}/rolebindings/admins"
    me = {"kind": "ServiceAccount", "name": "trainyard", "namespace": OPERATOR_NAMESPACE}
    with Rest(installed.service_account(OPERATOR_NAMESPACE, "trainyard")) as operator:
        answer = operator.patch(path, {"subjects": [me]})
    assert answer.status == 403
    assert "attempting to grant RBAC permissions not currently held" in answer.message


def test_the_operator_leads_in_its_own_namespace_only(rest: Rest) -> None:
    leases = ("leases", "coordination.k8s.io")
    for verb in ("get", "update", "patch"):
        assert allowed(rest, OPERATOR, verb, *leases, OPERATOR_NAMESPACE, "trainyard-operator")
        assert not allowed(rest, OPERATOR, verb, *leases, OPERATOR_NAMESPACE, "another")
    assert allowed(rest, OPERATOR, "create", *leases, OPERATOR_NAMESPACE)
    assert verbs(rest, OPERATOR, *leases, TENANT) == set()


def test_the_operator_reads_its_crds_and_no_others(rest: Rest) -> None:
    crds = ("customresourcedefinitions", "apiextensions.k8s.io", "")
    for plural in ("trainingjobs", "worlds", "reports", "nodedevices"):
        assert allowed(rest, OPERATOR, "get", *crds, f"{plural}.{OURS}")
        assert not allowed(rest, OPERATOR, "update", *crds, f"{plural}.{OURS}")
    assert not allowed(rest, OPERATOR, "get", *crds, "certificates.cert-manager.io")


WORKER_MAY = {("worlds", OURS): READ, ("reports", OURS): {"get", "create", "patch"}}


@pytest.mark.parametrize(("resource", "group"), [
    *WORKER_MAY, ("trainingjobs", OURS), ("trainingjobs/status", OURS), ("nodedevices", OURS), ("nodes/status", ""),
    *((kind, "") for kind in ("pods", "configmaps", "serviceaccounts", "events", "nodes", "services", "endpoints")),
])
def test_a_worker_may(rest: Rest, resource: str, group: str) -> None:
    assert verbs(rest, WORKER, resource, group) == WORKER_MAY.get((resource, group), set())
    assert verbs(rest, WORKER, resource, group, OPERATOR_NAMESPACE) == set()
    assert verbs(rest, WORKER, resource, group, "") == set()


AGENT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:trainyard-agent"
AGENT_MAY = {
    ("nodedevices", OURS): READ | {"create", "patch", "delete"}, ("nodedevices/status", OURS): {"patch"},
    ("nodes", ""): {"get"},
}


@pytest.mark.parametrize(("resource", "group"), [
    *AGENT_MAY, *sorted(NOBODY), ("trainingjobs", OURS), ("worlds", OURS), ("reports", OURS), ("pods", ""),
    ("configmaps", ""), ("events", ""),
])
def test_an_agent_may(rest: Rest, resource: str, group: str) -> None:
    assert verbs(rest, AGENT, resource, group, "") == AGENT_MAY.get((resource, group), set())


@pytest.mark.parametrize(("role", "resource", "may"), [
    ("view", "trainingjobs", READ), ("view", "trainingjobs/status", READ), ("view", "reports", READ),
    ("view", "worlds", set()), ("view", "nodedevices", READ), ("edit", "nodedevices", set()),
    ("device-admin", "nodedevices", READ | {"patch", "update"}), ("device-admin", "nodedevices/status", set()),
    ("device-admin", "trainingjobs", set()), ("edit", "trainingjobs", WRITE), ("edit", "trainingjobs/status", set()),
    ("edit", "worlds", set()), ("edit", "reports", set()),
])
def test_what_aggregation_adds(rest: Rest, role: str, resource: str, may: set[str]) -> None:
    assert verbs(rest, role, resource, OURS) == may


def test_aggregation_goes_to_the_built_in_roles(installed: ApiServer) -> None:
    roles = {item["metadata"]["name"]: item["metadata"]["labels"] for item in installed.get("clusterroles")["items"]
             if item["metadata"]["name"].startswith(f"{OPERATOR_NAMESPACE}-trainyard")}
    prefix = f"{_RBAC}/aggregate-to-"
    aggregated = {(name.rsplit("-", 1)[1], label.removeprefix(prefix))
                  for name, labels in roles.items() for label in labels if label.startswith(prefix)}
    # The built-in edit and admin roles contain view already.
    assert aggregated == {("view", "view"), ("edit", "edit"), ("edit", "admin")}
