"""The chart's life in a real API server: installed, upgraded, rolled back, uninstalled, installed by another name."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.helm import CHART, REPOSITORY, HelmError, helm, render
from contract.apiserver import ApiServer, NoBinaries, run_apiserver
from contract.manifests import command_job
from contract.rest import GROUP, Rest
from trainyard.api import SCHEMA_VERSION
from trainyard.api.crd import KINDS

CRDS = tuple(kind.name for kind in KINDS)
JOBS = "trainingjobs.trainyard.dev"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    try:
        with run_apiserver() as running:
            yield running
    except NoBinaries as missing:
        pytest.fail(str(missing))


@pytest.fixture
def clean(server: ApiServer) -> Iterator[ApiServer]:
    """The server without CRDs or releases of ours."""
    yield server
    for release in _releases(server):
        helm("uninstall", release["name"], "--namespace", release["namespace"], kubeconfig=server.kubeconfig)
    _delete_crds(server)


def _delete_crds(server: ApiServer) -> None:
    """Delete our CRDs. The API server gives up on one whose storage it is just setting up ("storage is
    (re)initializing"), and looks at it again only when it changes."""
    server.kubectl("delete", "crd", *CRDS, "--ignore-not-found", "--wait=false")
    for attempt in range(30):
        left = server.kubectl("get", "crd", *CRDS, "--ignore-not-found", "-o", "name").stdout.split()
        if not left:
            return
        time.sleep(1.0)
        if attempt % 5 == 4:
            server.kubectl("annotate", "--overwrite", *left, f"test/attempt={attempt}", check=False)
    pytest.fail(f"not deleted within 30 s: {', '.join(left)}")


def _releases(server: ApiServer) -> list[dict[str, str]]:
    listed = helm("list", "--all-namespaces", "-o", "json", kubeconfig=server.kubeconfig)
    return yaml.safe_load(listed)  # type: ignore[no-any-return]


def owner(server: ApiServer, name: str) -> tuple[str, str]:
    """(release, namespace) that a CRD belongs to."""
    annotations = server.get("crd", name)["metadata"]["annotations"]
    assert annotations["helm.sh/resource-policy"] == "keep"
    return annotations["meta.helm.sh/release-name"], annotations["meta.helm.sh/release-namespace"]


def install(server: ApiServer, release: str, namespace: str, chart: Path = CHART, verb: str = "install") -> None:
    more = ["--create-namespace"] if verb == "install" else ["--install"]
    helm(verb, release, str(chart), "--namespace", namespace, *more, kubeconfig=server.kubeconfig)


def older_chart(folder: Path) -> Path:
    """A copy of the chart whose TrainingJob CRD is of an older schema and lacks a field."""
    older = folder / "older"
    shutil.copytree(CHART, older)
    path = older / "files/crds/trainyard.dev_trainingjobs.yaml"
    crd = yaml.safe_load(path.read_text())
    crd["metadata"]["annotations"]["trainyard.dev/schema-version"] = "0"
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["scheduleSeconds"]
    schema["x-kubernetes-validations"] = schema["x-kubernetes-validations"][:1]
    path.write_text(yaml.safe_dump(crd, sort_keys=False))
    return older


def knows_schedule_seconds(server: ApiServer) -> bool:
    [version] = server.get("crd", JOBS)["spec"]["versions"]
    return "scheduleSeconds" in version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


def test_a_life_with_a_job_throughout(clean: ApiServer, tmp_path: Path) -> None:
    server, older = clean, older_chart(tmp_path)
    install(server, "first", "yard-one", older)
    server.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{JOBS}")
    server.namespace("tenant")
    with Rest(server.kubeconfig) as rest:
        made = rest.create(f"{GROUP}/namespaces/tenant/trainingjobs", command_job("lives"))
        assert made.ok, str(made)
        uid = made.body["metadata"]["uid"]

        def lives() -> bool:
            return bool(rest.get(f"{GROUP}/namespaces/tenant/trainingjobs/lives").body["metadata"]["uid"] == uid)

        assert not knows_schedule_seconds(server)
        install(server, "first", "yard-one", verb="upgrade")
        assert knows_schedule_seconds(server)
        helm("rollback", "first", "1", "--namespace", "yard-one", kubeconfig=server.kubeconfig)
        assert lives()
        assert not knows_schedule_seconds(server)

        helm("uninstall", "first", "--namespace", "yard-one", kubeconfig=server.kubeconfig)
        assert lives()
        assert owner(server, JOBS) == ("first", "yard-one")

        # Another name, another namespace, a newer CRD: taken over and brought up to date in one go.
        install(server, "second", "yard-two")
        assert lives()
        assert {owner(server, crd) for crd in CRDS} == {("second", "yard-two")}
        assert knows_schedule_seconds(server)

        # From now on they are like every other object of the release: upgraded, rolled back, kept.
        install(server, "second", "yard-two", older, verb="upgrade")
        assert not knows_schedule_seconds(server)
        install(server, "second", "yard-two", verb="upgrade")
        annotations = server.get("crd", JOBS)["metadata"]["annotations"]
        assert "helm.sh/hook" not in annotations
        assert annotations["trainyard.dev/schema-version"] == str(SCHEMA_VERSION)
        helm("rollback", "second", "1", "--namespace", "yard-two", kubeconfig=server.kubeconfig)
        assert {owner(server, crd) for crd in CRDS} == {("second", "yard-two")}
        assert lives()


def test_crds_that_kubectl_applied_are_taken_over(clean: ApiServer) -> None:
    clean.kubectl("apply", "-f", str(REPOSITORY / "crds"))
    install(clean, "first", "yard-one")
    assert {owner(clean, crd) for crd in CRDS} == {("first", "yard-one")}


def test_other_crds_that_kubectl_applied_take_one_command_more(clean: ApiServer, tmp_path: Path) -> None:
    """As docs/install.md has it: Helm does not overrule what somebody else wants of a field."""
    older = older_chart(tmp_path)
    clean.kubectl("apply", "-f", str(older / "files/crds"))
    with pytest.raises(HelmError, match="conflict"):
        install(clean, "first", "yard-one")
    clean.kubectl("apply", "--server-side", "--field-manager=helm", "--force-conflicts", "-f",
                  str(REPOSITORY / "crds"))
    install(clean, "first", "yard-one", verb="upgrade")
    assert {owner(clean, crd) for crd in CRDS} == {("first", "yard-one")}
    assert knows_schedule_seconds(clean)


def test_a_second_release_beside_the_first_is_refused(clean: ApiServer) -> None:
    """Two operators would both look after every job; Helm refuses before it changes anything."""
    install(clean, "first", "yard-one")
    with pytest.raises(HelmError, match="trainyard-worker"):
        install(clean, "second", "yard-two")
    assert {owner(clean, crd) for crd in CRDS} == {("first", "yard-one")}


def test_a_dry_run_changes_nothing(clean: ApiServer) -> None:
    helm("install", "first", str(CHART), "--namespace", "yard-one", "--create-namespace", "--dry-run=server",
         kubeconfig=clean.kubeconfig)
    assert clean.kubectl("get", "crd", CRDS[0], check=False).returncode != 0


def test_the_operators_pod_passes_pod_security_restricted(server: ApiServer) -> None:
    server.namespace("restricted", {"pod-security.kubernetes.io/enforce": "restricted"})
    deployment: dict[str, Any] = next(item for item in render() if item["kind"] == "Deployment")
    spec = copy.deepcopy(deployment["spec"]["template"]["spec"])
    spec["serviceAccountName"] = "default"
    with Rest(server.kubeconfig) as rest:
        pods = "/api/v1/namespaces/restricted/pods"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": spec}
        taken = rest.create(pods, pod, dryRun="All")
        assert taken.ok, str(taken)
        spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        refused = rest.create(pods, pod, dryRun="All")
        assert refused.status == 403, "the namespace enforces nothing"
