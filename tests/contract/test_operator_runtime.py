"""The operator against a real API server, with the rights that the chart gives it and nothing else.

No kubelet and no controllers run: pods stay as they were created, which is all that these tests need.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chart.helm import NAMESPACE
from contract.apiserver import ApiServer
from contract.operator_process import OperatorProcess, run_operator, until
from contract.playground import Playground
from contract.rest import GROUP, Object, Rest


@pytest.fixture(scope="module")
def operator(kubeconfig: Path, rest: Rest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    # Jobs that other tests left would wait for places here as well.
    for job in rest.get(f"{GROUP}/trainingjobs").body["items"]:
        meta = job["metadata"]
        rest.request("DELETE", f"{GROUP}/namespaces/{meta['namespace']}/trainingjobs/{meta['name']}")
    with run_operator(kubeconfig, tmp_path_factory.mktemp("operator"), "shared", namespace=NAMESPACE) as running:
        until("it leads", 30, lambda: running.leads)
        yield running


def pinned(pod: Object) -> str:
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return str(terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0])


def test_a_gang_gets_its_pods_its_world_and_its_rights(operator: OperatorProcess, here: Playground) -> None:
    here.node("a", cpu="1500m")
    here.node("b", cpu="1500m")
    here.submit("gang")
    pods = here.until_pods(2)
    assert sorted(pod["metadata"]["name"] for pod in pods) == ["gang-0-1", "gang-1-1"]
    assert {pinned(pod) for pod in pods} == {f"{here.name}-a", f"{here.name}-b"}
    here.until_condition("gang", "Scheduled", "True")
    job = here.job("gang")
    assert job["status"]["observedGeneration"] == job["metadata"]["generation"]
    assert "finalizers" not in job["metadata"]
    assert "annotations" not in job["metadata"]
    world = here.rest.get(f"{GROUP}/namespaces/{here.name}/worlds/gang").body
    assert (world["spec"]["job"], world["spec"]["generation"]) == (job["metadata"]["uid"], 1)
    assert world["spec"]["phase"] == "Run"
    for path in ("/api/v1/namespaces/{}/serviceaccounts/gang",
                 "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/gang",
                 "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings/gang-worker",
                 "/api/v1/namespaces/{}/configmaps/" + job["status"]["rendered"]):
        owned = here.rest.get(path.format(here.name))
        assert owned.ok, owned
        assert owned.body["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    events = f"/api/v1/namespaces/{here.name}/events"
    until("an event", 5, lambda: "Scheduled" in {event["reason"] for event in here.rest.get(events).body["items"]})
    assert any(line.get("job") == f"{here.name}/gang" for line in operator.lines())


def test_a_job_without_room_says_so_and_goes_on_when_a_node_comes(operator: OperatorProcess, here: Playground) -> None:
    here.node("small", cpu="1")
    here.submit("tall", cpu="3")
    waiting = here.until_condition("tall", "Scheduled", "False")
    assert "cpu" in waiting["message"]
    assert here.pods() == []
    until("counted as waiting", 5, lambda: operator.metric("trainyard_waiting_jobs") == 1)
    here.node("large", cpu="8")
    assert {pinned(pod) for pod in here.until_pods(2, seconds=5)} == {f"{here.name}-large"}
    assert operator.metric("trainyard_waiting_jobs") == 0


def test_waiting_jobs_get_their_turn_in_order_when_a_pod_ends(operator: OperatorProcess, here: Playground) -> None:
    here.node("only", cpu="1")
    here.submit("first", cpu="600m", numNodes=1)
    here.until_pods(1)
    for name in ("second", "third"):
        here.submit(name, cpu="600m", numNodes=1)
        here.until_condition(name, "Scheduled", "False")
        time.sleep(1.1)  # conditions are stamped in whole seconds: the order must show in them
    job = here.rest.request("DELETE", f"{GROUP}/namespaces/{here.name}/trainingjobs/first")
    assert job.ok, job
    here.rest.request("DELETE", f"/api/v1/namespaces/{here.name}/pods/first-0-1", gracePeriodSeconds="0")
    pods = until("another pod", 5, lambda: [p for p in here.pods() if p["metadata"]["name"] != "first-0-1"])
    assert [pod["metadata"]["name"] for pod in pods] == ["second-0-1"]
    assert here.condition("third", "Scheduled")["status"] == "False"


def test_defaults_of_a_limit_range_count(operator: OperatorProcess, here: Playground) -> None:
    limit = {"type": "Container", "defaultRequest": {"cpu": "3"}, "default": {"cpu": "3"}}
    here.server.apply({"apiVersion": "v1", "kind": "LimitRange", "spec": {"limits": [limit]},
                       "metadata": {"name": "defaults", "namespace": here.name}})
    here.node("a", cpu="4")  # room for one such pod
    here.submit("plain", cpu=None)
    assert "3 cpu" in here.until_condition("plain", "Scheduled", "False")["message"]


def test_a_refused_template_is_quoted_and_not_tried_again(operator: OperatorProcess, here: Playground) -> None:
    here.node("a")
    here.submit("typo", template={"spec": {"containers": [
        {"name": "trainer", "image": "python:3.11", "imagePullPolicy": "Sometimes"}]}})
    refused = here.until_condition("typo", "Accepted", "False")
    assert refused["reason"] == "TemplateRefused"
    assert "imagePullPolicy" in refused["message"]
    assert "Sometimes" in refused["message"]
    before = operator.metric("trainyard_api_errors_total", method="POST", code="422")
    time.sleep(3)
    assert operator.metric("trainyard_api_errors_total", method="POST", code="422") == before
    assert here.pods() == []


def test_a_pod_of_a_stranger_is_left_alone(operator: OperatorProcess, here: Playground) -> None:
    here.node("a")
    here.server.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine-0-1", "namespace": here.name},
                       "spec": {"containers": [{"name": "c", "image": "i"}]}})
    here.submit("mine")
    taken = here.until_condition("mine", "Scheduled", "False")
    assert taken["reason"] == "PodNameTaken"
    assert "mine-0-1" in taken["message"]
    stranger = here.rest.get(f"/api/v1/namespaces/{here.name}/pods/mine-0-1").body
    assert "ownerReferences" not in stranger["metadata"]
    assert "deletionTimestamp" not in stranger["metadata"]


def test_a_job_of_another_controller_is_not_touched(operator: OperatorProcess, here: Playground) -> None:
    here.node("a")
    here.submit("theirs", managedBy="kueue.x-k8s.io/multikueue")
    here.submit("ours")
    here.until_pods(2)
    assert "status" not in here.job("theirs")


def test_a_stale_status_does_not_replace_a_newer_one(installed: ApiServer, rest: Rest) -> None:
    """The patch that the operator sends, sent with an old resource version."""
    here = Playground(installed, rest)
    here.submit("raced", managedBy="example.com/nobody")
    path, old = f"{GROUP}/namespaces/{here.name}/trainingjobs/raced", here.job("raced")["metadata"]["resourceVersion"]
    assert rest.patch(f"{path}/status", {"status": {"state": "Running"}}).ok
    answer = rest.request("PATCH", f"{path}/status", [  # type: ignore[arg-type]
        {"op": "replace", "path": "/metadata/resourceVersion", "value": old},
        {"op": "add", "path": "/status", "value": {"state": "Failed"}}], "application/json-patch+json")
    assert answer.status == 409, answer
    assert here.job("raced")["status"]["state"] == "Running"


def test_an_api_server_that_is_away_for_a_while(operator: OperatorProcess, here: Playground) -> None:
    here.node("a")
    memory = operator.metric("process_resident_memory_bytes")
    here.server.kill()
    here.rest.close()
    try:
        until("it leads no longer", 15, lambda: not operator.leads)
        time.sleep(5)
        assert operator.health()[0] == 200, operator.health()
        asked = operator.metric("trainyard_api_errors_total", code="0")
        time.sleep(3)
        assert operator.metric("trainyard_api_errors_total", code="0") - asked < 60, "it hammers the API server"
    finally:
        here.server.restart()
    here.submit("after")
    here.until_pods(2, seconds=20)
    assert operator.process.poll() is None
    assert operator.metric("process_resident_memory_bytes") < memory + 30e6


def put_devices(here: Playground, name: str, *told: Object) -> str:
    """Sixteen devices on a node, as its agent would write them; returns their path."""
    node = f"{here.name}-{name}"
    path = f"{GROUP}/nodedevices/{node}"
    ids = [f"d{number}" for number in range(16)]
    if not here.rest.get(path).ok:
        answer = here.rest.create(f"{GROUP}/nodedevices", {
            "apiVersion": "trainyard.dev/v1alpha1", "kind": "NodeDevices", "metadata": {"name": node},
            "spec": {"node": node, "resource": f"{here.name}.example/npu", "backend": "simulated",
                     "devices": [{"id": each, "physical": number} for number, each in enumerate(ids)]}})
        assert answer.ok, answer
    known = {each["id"]: each for each in told}
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "",
             "lastTransitionTime": "2026-01-01T00:00:00Z"}
    answer = here.rest.patch(f"{path}/status", {"status": {
        "conditions": [ready], "devices": [known.get(each, {"id": each, "health": "Healthy"}) for each in ids]}})
    assert answer.ok, answer
    return path


def accelerators(here: Playground, name: str) -> tuple[str, str]:
    """Status and message of the node's condition."""
    conditions = here.rest.get(f"/api/v1/nodes/{here.name}-{name}").body["status"]["conditions"]
    return next(((c["status"], c["message"]) for c in conditions if c["type"] == "AcceleratorsHealthy"), ("", ""))


def test_devices_make_a_condition_of_their_node_and_are_quarantined_when_they_fail_again(
        operator: OperatorProcess, here: Playground) -> None:
    here.node("npu")
    node = f"{here.name}-npu"
    answer = here.rest.patch(f"/api/v1/nodes/{node}/status", {"status": {
        "allocatable": {f"{here.name}.example/npu": "16"}, "capacity": {f"{here.name}.example/npu": "16"}}})
    assert answer.ok, answer
    path = put_devices(here, "npu")
    until("the node is well", 30, lambda: accelerators(here, "npu")[0] == "True")
    put_devices(here, "npu", {"id": "d3", "health": "Unhealthy", "level": "RestartNPU", "code": "80E18005"})
    until("the node is not", 10, lambda: accelerators(here, "npu")[0] == "False")
    assert "d3 (80E18005, RestartNPU)" in accelerators(here, "npu")[1]
    ready = {c["type"] for c in here.rest.get(f"/api/v1/nodes/{node}").body["status"]["conditions"]}
    assert ready == {"Ready", "AcceleratorsHealthy"}, "no other condition is touched"
    now = time.time()
    history = [{"code": "80E18005", "level": "RestartNPU", "began": stamp(now - 60 * ago),
                "ended": stamp(now - 60 * ago + 5)} for ago in (9, 4)]
    put_devices(here, "npu", {"id": "d3", "health": "Healthy", "history": history})
    until("a quarantine", 10, lambda: here.rest.get(path).body["spec"].get("orders"))
    (order,) = here.rest.get(path).body["spec"]["orders"]
    assert (order["device"], order["action"], order["by"]) == ("d3", "Quarantine", "Operator")
    assert operator.metric("trainyard_device_fault", node=node, device="d3") == 1
    about = {event["reason"] for event in here.rest.get("/api/v1/namespaces/default/events").body["items"]
             if event["involvedObject"]["name"] == node}
    assert {"DevicesUnhealthy", "Quarantined"} <= about
    assert here.rest.request("DELETE", path).ok
    until("no devices, no condition", 10, lambda: accelerators(here, "npu") == ("", ""))


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
