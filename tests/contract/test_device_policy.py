"""Who may write NodeDevices: an agent those of its own node, the operator orders, no other service account any."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from chart.helm import CHART
from chart.helm import NAMESPACE as SYSTEM
from contract.apiserver import ApiServer
from contract.manifests import DELETE, changed
from contract.rest import GROUP, Answer, Rest
from trainyard.api.devices import NodeDevicesSpec

PATH = f"{GROUP}/nodedevices"
ORDER = {"device": "Ascend910-0", "action": "Quarantine", "by": "Administrator", "at": "2026-01-01T00:00:00Z"}
_numbers = itertools.count()


def refused(answer: Answer, words: str) -> bool:
    return answer.status == 403 and "ValidatingAdmissionPolicy" in answer.message and words in answer.message


def devices(node: str, uid: str = "8a0cbbf1", **changes: Any) -> dict[str, Any]:
    """NodeDevices as an agent writes them; changes by path, __ for the dots."""
    return changed({
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "NodeDevices", "metadata": {
            "name": node, "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]},
        "spec": {"node": node, "resource": "huawei.com/Ascend910", "model": "910A", "backend": "simulated",
                 "devices": [{"id": "Ascend910-0", "physical": 0}, {"id": "Ascend910-1", "physical": 1}]},
    }, {path.replace("__", "."): value for path, value in changes.items()})


STATUS = {"healthy": "1/2", "devices": [{"id": "Ascend910-0", "health": "Healthy"},
                                        {"id": "Ascend910-1", "health": "Unhealthy"}]}


@dataclass(frozen=True)
class Agent:
    """An agent's identity on a node of its own."""

    rest: Rest
    node: str

    @property
    def mine(self) -> str:
        return f"{PATH}/{self.node}"


@pytest.fixture(scope="module")
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def admin(installed: ApiServer, clients: ExitStack) -> Rest:
    return clients.enter_context(Rest(installed.kubeconfig))


def _pod_client(server: ApiServer, admin: Rest, clients: ExitStack, account: str, node: str | None) -> Rest:
    """A client with the token that kubelet would mount into a pod of that account on that node."""
    core, pod = f"/api/v1/namespaces/{SYSTEM}", f"{account}-{next(_numbers)}"
    spec: dict[str, Any] = {"serviceAccountName": account, "containers": [{"name": "x", "image": "none"}]}
    made = admin.create(f"{core}/pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod},
                                         "spec": spec | ({"nodeName": node} if node else {})})
    assert made.ok, str(made)
    token = admin.create(f"{core}/serviceaccounts/{account}/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": made.body["metadata"]["uid"]}}})
    assert token.ok, str(token)
    return clients.enter_context(Rest(server.kubeconfig, token.body["status"]["token"]))


@pytest.fixture
def agent(installed: ApiServer, admin: Rest, clients: ExitStack) -> Agent:
    """The agent of a node that has no NodeDevices yet."""
    node = f"npu-{next(_numbers)}"
    assert admin.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}).ok
    return Agent(_pod_client(installed, admin, clients, "trainyard-agent", node), node)


@pytest.fixture(scope="module")
def operator(installed: ApiServer, admin: Rest, clients: ExitStack) -> Iterator[Rest]:
    """The operator's account, with all rights on NodeDevices: what is refused here, the policy refuses."""
    everything = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "all-nd"},
                  "rules": [{"apiGroups": ["trainyard.dev"], "resources": ["nodedevices", "nodedevices/status"],
                             "verbs": ["*"]}]}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
               "metadata": {"name": "all-nd"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
                                                           "kind": "ClusterRole", "name": "all-nd"},
               "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}
                            for name in ("trainyard", "stranger")]}
    stranger = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger", "namespace": SYSTEM}}
    installed.apply(stranger, everything, binding)
    yield _pod_client(installed, admin, clients, "trainyard", None)
    installed.kubectl("delete", "clusterrolebinding,clusterrole", "all-nd")  # the server is other modules' as well


def test_an_agent_writes_the_devices_of_its_node_and_takes_them_away(agent: Agent) -> None:
    assert (made := agent.rest.apply(agent.mine, devices(agent.node))).status == 201, str(made)
    again = agent.rest.apply(agent.mine, devices(agent.node, spec__rack="r-1"))
    assert (again.status, again.body["spec"]["rack"]) == (200, "r-1"), str(again)
    told = agent.rest.apply(f"{agent.mine}/status", {**devices(agent.node, spec=DELETE), "status": STATUS})
    assert (told.status, told.body["status"]["healthy"]) == (200, "1/2"), str(told)
    assert told.body["spec"]["rack"] == "r-1"
    assert agent.rest.request("DELETE", agent.mine).ok


def test_an_agent_does_not_touch_another_nodes(agent: Agent, installed: ApiServer, admin: Rest) -> None:
    assert admin.create(PATH, devices("another")).ok or admin.get(f"{PATH}/another").ok
    words = f"its token is of node {agent.node}"
    for answer in (agent.rest.patch(f"{PATH}/another", {"spec": {"rack": "x"}}),
                   agent.rest.patch(f"{PATH}/another/status", {"status": STATUS}),
                   agent.rest.request("DELETE", f"{PATH}/another"),
                   agent.rest.create(PATH, devices("one-more"))):
        assert refused(answer, words), str(answer)
    assert "rack" not in admin.get(f"{PATH}/another").body["spec"]


def test_orders_are_not_the_agents(agent: Agent, admin: Rest) -> None:
    words = "spec.orders are not the agent's"
    assert refused(agent.rest.create(PATH, devices(agent.node, spec__orders=[ORDER])), words)
    assert agent.rest.apply(agent.mine, devices(agent.node)).ok
    assert admin.patch(agent.mine, {"spec": {"orders": [ORDER]}}).ok
    for orders in (None, [], [ORDER | {"action": "Release"}]):
        assert refused(agent.rest.patch(agent.mine, {"spec": {"orders": orders}}), words)
    assert refused(agent.rest.request("DELETE", agent.mine), words)
    again = agent.rest.apply(agent.mine, devices(agent.node, spec__rack="r-2"))
    assert again.ok, str(again)
    assert (again.body["spec"]["orders"], again.body["spec"]["rack"]) == ([ORDER], "r-2")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another node in its spec": ({"spec__node": "another"}, "spec.node must be the name of the object"),
    "no owner": ({"metadata__ownerReferences": []}, "ownerReferences must name the Node"),
    "an owner of another name": ({"metadata__ownerReferences[0]__name": "another"}, "must name the Node"),
    "an owner that is no node": ({"metadata__ownerReferences[0]__kind": "Pod"}, "must name the Node"),
    "an owner whose deletion waits": ({"metadata__ownerReferences[0]__blockOwnerDeletion": True}, "must name the Node"),
    "a finalizer": ({"metadata__finalizers": ["example.com/stay"]}, "no labels, annotations or finalizers"),
    "a label": ({"metadata__labels": {"a": "b"}}, "no labels, annotations or finalizers"),
    "an annotation": ({"metadata__annotations": {"a": "b"}}, "no labels, annotations or finalizers"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("there", [False, True], ids=["create", "change"])
def test_an_agent_cannot_write(agent: Agent, case: str, there: bool) -> None:
    changes, words = BAD[case]
    if there:
        assert agent.rest.create(PATH, devices(agent.node)).ok
    if there and case == "no owner":  # an apply without owners would leave those that others set
        answer = agent.rest.patch(agent.mine, {"metadata": {"ownerReferences": None}})
    else:
        answer = agent.rest.apply(agent.mine, devices(agent.node, **changes))
    assert refused(answer, words), str(answer)


def test_labels_of_people_stay(agent: Agent, admin: Rest) -> None:
    assert agent.rest.apply(agent.mine, devices(agent.node)).ok
    assert admin.patch(agent.mine, {"metadata": {"labels": {"team": "a"}}}).ok
    again = agent.rest.apply(agent.mine, devices(agent.node, spec__rack="r-3"))
    assert again.ok, str(again)
    assert again.body["metadata"]["labels"] == {"team": "a"}


def test_a_token_that_names_no_node_writes_nothing(installed: ApiServer, clients: ExitStack) -> None:
    rest = clients.enter_context(Rest(installed.service_account(SYSTEM, "trainyard-agent")))
    assert refused(rest.create(PATH, devices("npu-x")), "this token names no node")


def test_no_other_service_account_writes_any(installed: ApiServer, operator: Rest, clients: ExitStack) -> None:
    rest = clients.enter_context(Rest(installed.service_account(SYSTEM, "stranger")))
    assert refused(rest.create(PATH, devices("npu-y")), "only, not by system:serviceaccount:")


def test_the_operator_writes_orders_and_nothing_else(agent: Agent, operator: Rest) -> None:
    assert refused(operator.create(PATH, devices("npu-z")), "the operator writes spec.orders only")
    assert agent.rest.apply(agent.mine, devices(agent.node)).ok
    assert agent.rest.apply(f"{agent.mine}/status", {**devices(agent.node, spec=DELETE), "status": STATUS}).ok
    given = operator.patch(agent.mine, {"spec": {"orders": [ORDER | {"by": "Operator"}]}})
    assert given.ok, str(given)
    for answer in (operator.patch(agent.mine, {"spec": {"devices": []}}),
                   operator.patch(agent.mine, {"spec": {"superPod": "sp-9"}}),
                   operator.patch(f"{agent.mine}/status", {"status": {"healthy": "2/2"}}),
                   operator.patch(agent.mine, {"metadata": {"ownerReferences": None}}),
                   operator.request("DELETE", agent.mine)):
        assert refused(answer, "the operator writes spec.orders only"), str(answer)


def test_an_administrator_may_repair(admin: Rest) -> None:
    assert admin.create(PATH, devices("repaired", spec__orders=[ORDER]), dryRun="All").ok


def test_every_fact_is_kept_from_the_operator() -> None:
    """CEL has no "all other fields": a field that is added to the type has to be added to the policy."""
    text = (CHART / "templates/policies/nodedevices.yaml").read_text()
    named = re.search(r"range list ([^}]*)}}", text)
    assert named
    fields = {str(field.alias) for field in NodeDevicesSpec.model_fields.values()}
    assert set(re.findall(r'"(\w+)"', named[1])) == fields - {"orders"}
