"""What the chart makes of its values, without a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart.checkov import failed_checks
from chart.helm import CHART, NAMESPACE, HelmError, helm, render, values

EVERYTHING: dict[str, Any] = {
    "image.operator.digest": "sha256:" + "a" * 64, "image.trainer.tag": "v9", "image.pullSecrets": ["registry"],
    "replicas": 3, "metrics.serviceMonitor.enabled": True, "metrics.serviceMonitor.labels": {"release": "prometheus"},
    "networkPolicy.metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
    "nodeSelector": {"pool": "system"}, "tolerations": [{"key": "system", "operator": "Exists"}],
    "priorityClassName": "system-cluster-critical", "podLabels": {"team": "a"}, "podAnnotations": {"b": "c"},
    "serviceAccount.annotations": {"d": "e"}, "operator.extraEnv": [{"name": "TZ", "value": "UTC"}],
    "operator.namespaces": ["team-a", "team-b"], "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]}},
    "agent.enabled": True, "agent.backend": "simulated", "agent.simulated.nodes": {"*": {"model": "910A"}},
    "agent.faultTable": {"codes": {"80E01801": {"level": "NotHandleFault"}}}, "agent.nodeSelector": {"npu": "yes"},
    "agent.podLabels": {"team": "a"}, "agent.podAnnotations": {"b": "c"}, "agent.extraEnv": [
        {"name": "TZ", "value": "UTC"}],
}
NOTHING: dict[str, Any] = {
    "crds.install": False, "rbac.aggregate": False, "policies.enabled": False, "podDisruptionBudget.enabled": False,
    "networkPolicy.enabled": False, "metrics.service": False, "flowControl.enabled": False, "replicas": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {"defaults": {}, "everything": EVERYTHING, "nothing": NOTHING}


def one(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    found = [item for item in objects if item["kind"] == kind and (not name or item["metadata"]["name"] == name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)} found"
    return found[0]


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(objects)["env"] if "value" in entry}


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_lint(variant: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *values(VARIANTS[variant]))


@pytest.mark.parametrize("version", ["1.30", "1.36"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_one_that_kubernetes_knows(variant: str, version: str) -> None:
    seen = 0
    for item in render(VARIANTS[variant]):
        if item["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(item, version, strict=True)
            seen += 1
    assert seen >= 7


def test_checkov_finds_nothing(tmp_path: Path) -> None:
    """In one run, since it takes its time to start, with an operator beside it that has something to be found."""
    for variant, given in VARIANTS.items():
        (tmp_path / f"{variant}.yaml").write_text(yaml.safe_dump_all(render(given)))
    bad = render()
    container(bad)["securityContext"]["privileged"] = True
    (tmp_path / "privileged.yaml").write_text(yaml.safe_dump_all([one(bad, "Deployment")]))
    passed, failed = failed_checks(*tmp_path.iterdir())
    assert [line for line in failed if "privileged.yaml" not in line] == []
    assert any("CKV_K8S_16 " in line for line in failed), failed
    assert passed > 300


def test_every_exception_of_checkov_has_its_reason() -> None:
    text = (CHART / ".checkov.yaml").read_text()
    for exception in yaml.safe_load(text)["skip-check"]:
        before = text[:text.index(f"- {exception}")].rstrip().splitlines()[-1]
        assert before.startswith("#"), f"{exception} has no comment above it"


@pytest.mark.parametrize(("given", "words"), [
    ({"replicaCount": 2}, "additional properties 'replicaCount' not allowed"),
    ({"image.operator.name": "x"}, "additional properties 'name' not allowed"),
    ({"image.operator.digest": "abc"}, "does not match pattern"),
    ({"image.trainer.pullPolicy": "Sometimes"}, "value must be one of"),
    ({"replicas": "two"}, "got string, want integer"),
    ({"operator.logLevel": "loud"}, "value must be one of"),
    ({"operator.workers": 0}, "minimum"),
    ({"networkPolicy.apiServer.ports": []}, "minItems"),
    ({"fullnameOverride": "Trainyard"}, "does not match pattern"),
    ({"agent.backend": "nvidia"}, "value must be one of"),
    ({"agent.simulated.nodes": {"node-1": {"count": 3}}}, "missing property 'model'"),
    ({"agent.simulated.hostPath": "devices.yaml"}, "does not match pattern"),
])
def test_a_wrong_value_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmError, match=re.escape(words)):
        render(given)


def test_every_value_is_in_the_schema_and_explained() -> None:
    """Each top-level value of values.yaml stands under a comment, or inside a block that has one."""
    text = (CHART / "values.yaml").read_text()
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    given = yaml.safe_load(text)

    def known(node: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        for name, value in node.items():
            assert name in schema["properties"], f"{path}{name}"
            below = schema["properties"][name]
            if isinstance(value, dict) and "properties" in below:
                known(value, below, f"{path}{name}.")

    known(given, schema, "")
    assert set(schema["properties"]) - {"global"} == set(given)


def test_images() -> None:
    assert container(render())["image"] == f"ghcr.io/trainyard/operator:{_app_version()}"
    assert environment(render())["TRAINYARD_TRAINER_IMAGE"] == f"ghcr.io/trainyard/trainer:{_app_version()}"
    full = render(EVERYTHING)
    assert container(full)["image"] == "ghcr.io/trainyard/operator@sha256:" + "a" * 64
    assert environment(full)["TRAINYARD_TRAINER_IMAGE"] == "ghcr.io/trainyard/trainer:v9"
    assert environment(full)["TRAINYARD_IMAGE_PULL_SECRETS"] == "registry"
    assert one(full, "Deployment")["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_the_operator_understands_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that the chart sets is one that the operator reads, and its value one that it takes."""
    from trainyard.controller.options import parse

    defaults = parse([])
    given = EVERYTHING | {"operator.workers": 3, "operator.resyncSeconds": 60, "operator.stuckSeconds": 61,
                          "operator.unreadyNodeSeconds": 9,
                          "operator.logLevel": "debug"}
    for name, value in environment(render(given)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POD_NAME", "trainyard-0")
    monkeypatch.setenv("POD_NAMESPACE", NAMESPACE)
    options = parse([])
    assert (options.workers, options.resync_seconds, options.stuck_seconds, options.log_level) == (3, 60, 61, "DEBUG")
    assert (options.pod_gone_seconds, options.unready_node_seconds, options.starvation_seconds) == (5, 9, 300)
    assert options.quarantine_seconds == 600
    assert (options.identity, options.lease_namespace, options.port) == ("trainyard-0", NAMESPACE, 8080)
    assert options.namespaces == ("team-a", "team-b")
    assert options.image_pull_secrets == ("registry",)
    assert options.trainer_image != defaults.trainer_image
    read = {"POD_NAME", "POD_NAMESPACE", "TZ", *_flags()}
    assert {entry["name"] for entry in container(render(EVERYTHING))["env"]} <= read


def agent(given: dict[str, Any]) -> dict[str, Any]:
    return one(render({"agent.enabled": True} | given), "DaemonSet")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def test_the_agent_understands_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainyard.agent.options import parse

    spec = agent({"agent.backend": "simulated", "agent.simulated.hostPath": "/srv/devices/npus.yaml",
                  "agent.faultTable": {"codes": {}}, "agent.resource": "huawei.com/npu", "agent.logLevel": "debug"})
    for entry in spec["containers"][0]["env"]:
        monkeypatch.setenv(entry["name"], entry.get("value", "node-7"))
    options = parse([])
    assert (options.node, options.backend, options.resource) == ("node-7", "simulated", "huawei.com/npu")
    assert (options.runtime, options.log_level, options.port) == ("none", "DEBUG", 8080)
    assert str(options.simulated_file) == "/etc/trainyard/simulated/npus.yaml"
    assert str(options.fault_table) == "/etc/trainyard/faults/faults.yaml"
    paths = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in spec["volumes"]}
    assert paths["simulated"] == "/srv/devices"


def test_the_described_devices_are_ones_that_the_agent_takes() -> None:
    from trainyard.agent.simulated import parse

    config = next(item for item in render(EVERYTHING) if item["metadata"]["name"].endswith("-agent-simulated"))
    entry = parse(config["data"]["devices.yaml"]).of("any", {})
    assert entry is not None
    assert len(entry.all("any")) == 8
    assert parse(next(item for item in render({"agent.enabled": True, "agent.backend": "simulated"})
                      if item["kind"] == "ConfigMap")["data"]["devices.yaml"]).nodes == {}


@pytest.mark.parametrize(("backend", "reads"), [("auto", True), ("observe", True), ("simulated", False)])
def test_the_agent_reads_pods_and_configmaps_only_where_it_observes(backend: str, reads: bool) -> None:
    objects = render({"agent.enabled": True, "agent.backend": backend})
    rules = [rule for item in objects if item["kind"] in ("ClusterRole", "Role") and "agent" in item["metadata"]["name"]
             for rule in item["rules"]]
    assert (["pods"] in [rule["resources"] for rule in rules]) == reads
    assert (["configmaps"] in [rule["resources"] for rule in rules]) == reads


@pytest.mark.parametrize(("backend", "privileged"), [
    ("auto", True), ("npu-smi", True), ("observe", False), ("simulated", False)])
def test_the_agent_is_privileged_only_where_it_talks_to_a_driver(backend: str, privileged: bool) -> None:
    spec = agent({"agent.backend": backend})
    security = spec["containers"][0]["securityContext"]
    assert security.get("privileged", False) == privileged
    assert security["readOnlyRootFilesystem"]
    assert privileged or security["capabilities"] == {"drop": ["ALL"]}
    assert ("root" in {volume["name"] for volume in spec["volumes"]}) == privileged
    paths = [volume["hostPath"] for volume in spec["volumes"] if "hostPath" in volume]
    assert all(path["type"] == "Directory" for path in paths), "nothing is made on a node that does not have it"


def test_replicas_keep_apart_unless_told_otherwise() -> None:
    affinity = one(render(), "Deployment")["spec"]["template"]["spec"]["affinity"]
    [term] = affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert one(render(), "Deployment")["spec"]["replicas"] == 2
    assert one(render(EVERYTHING), "Deployment")["spec"]["template"]["spec"]["affinity"] == EVERYTHING["affinity"]


def test_no_rule_has_wildcards_or_secrets() -> None:
    for item in render(EVERYTHING):
        for rule in item.get("rules", ()) if item["kind"] in ("ClusterRole", "Role") else ():
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"], item["metadata"]["name"]
            assert "secrets" not in rule["resources"], item["metadata"]["name"]


def test_the_selector_of_everything_is_the_pods() -> None:
    objects = render()
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [one(objects, "Deployment")["spec"]["selector"]["matchLabels"],
                 one(objects, "Service")["spec"]["selector"],
                 one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                 one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert "app.kubernetes.io/version" not in selector, "an upgrade could not change it"


def test_switched_off_parts_are_gone() -> None:
    kinds = {item["kind"] for item in render(NOTHING)}
    assert kinds == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment"}


def test_a_long_release_name_still_makes_names(tmp_path: Path) -> None:
    for item in render(release="r" * 53):
        if item["kind"] != "CustomResourceDefinition":
            assert len(item["metadata"]["name"]) <= (63 if item["kind"] == "Service" else 253)


def _app_version() -> str:
    return str(yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"])


def test_the_charts_version_is_the_programs() -> None:
    import trainyard

    assert _app_version() == trainyard.__version__


def _flags() -> set[str]:
    """Environment variables that the operator's options name in their own help."""
    import io
    from contextlib import redirect_stdout, suppress

    from trainyard.controller.options import parse

    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        parse(["--help"])
    return set(re.findall(r"\$(TRAINYARD_[A-Z_]+)", text.getvalue()))
