"""What a template must not say, and what the user is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.api.job import TrainingJobSpec
from trainyard.build import InvalidTemplate, pod, read_rendering, render, rendering_configmap
from unit.build.jobs import JOB, SETTINGS, command_job, pod_spec, train_job, trainer

POD = "spec.template.spec"
FIRST = f"{POD}.containers[0]"
NPUS = {"resource": "huawei.com/Ascend910", "perNode": 8}


@pytest.mark.parametrize(("spec", "path", "message"), [
    (train_job({"containers": []}), "spec.template.containers",
     "unknown field, expected metadata or spec; did you mean spec.template.spec.containers?"),
    (train_job({"status": {}}), "spec.template.status", "unknown field, expected metadata or spec"),
    (train_job({"spec": []}), POD, "expected an object, found a list"),
    (train_job({"metadata": {"name": "a"}}), "spec.template.metadata.name",
     "only labels and annotations can be set; Trainyard names its pods"),
    (train_job({"metadata": {"labels": {"trainyard.dev/index": "3"}}}),
     "spec.template.metadata.labels[trainyard.dev/index]", "keys that begin with trainyard.dev/ are Trainyard's own"),
    (train_job({"metadata": {"annotations": {"a": 3}}}), "spec.template.metadata.annotations[a]",
     "expected a string, found a number; quote it"),
    (train_job(trainer(command=["sh"])), f"{FIRST}.command",
     "cannot be set, the container runs the supervisor: spec.train decides what runs"),
    (command_job(trainer(image="a", args=["sh"])), f"{FIRST}.args",
     "cannot be set, the container runs the supervisor: set spec.command of the TrainingJob"),
    (train_job(pod_spec(containers=[{"name": "a"}, {"name": "trainer", "restartPolicy": "Always"}])),
     f"{POD}.containers[1].restartPolicy", "cannot be set: the supervisor restarts its ranks itself"),
    (train_job(trainer(env=[{"name": "A"}, {"name": "TRAINYARD_INDEX", "value": "1"}])), f"{FIRST}.env[1].name",
     "TRAINYARD_INDEX: names that begin with TRAINYARD_ are Trainyard's own"),
    (train_job(trainer(env={"A": "b"})), f"{FIRST}.env", "expected a list, found an object"),
    (train_job(trainer(env=[{"name": "A"}, {"name": "A"}])), f"{FIRST}.env[1].name", "A is there twice"),
    (train_job(trainer(volumeMounts=[{"name": "a", "mountPath": "/trainyard/"}])),
     f"{FIRST}.volumeMounts[0].mountPath", "/trainyard/ is taken by Trainyard's own files"),
    (train_job(trainer(volumeMounts=[{"name": "a", "mountPath": "/checkpoint"}]), checkpoint={"volume": {"nfs": {}}}),
     f"{FIRST}.volumeMounts[0].mountPath", "/checkpoint is taken by the volume of spec.checkpoint"),
    (train_job(trainer(resources={"limits": {"huawei.com/Ascend910": 4}}), devices=NPUS),
     f"{FIRST}.resources.limits[huawei.com/Ascend910]",
     "4 contradicts spec.devices.perNode, which is 8; leave it out here"),
    (train_job(trainer(resources={"limits": {"cpu": "many"}})), f"{FIRST}.resources.limits[cpu]",
     "expected a quantity such as 500m, 2 or 1Gi, found 'many'"),
    (train_job(pod_spec(containers=[{"image": "a"}])), f"{FIRST}.name", "must be set"),
    (train_job(pod_spec(volumes=[{"name": "trainyard-config", "emptyDir": {}}])), f"{POD}.volumes[0].name",
     "trainyard-config is Trainyard's own volume"),
    (train_job(pod_spec(initContainers=[{"name": "trainyard-supervisor"}])), f"{POD}.initContainers[0].name",
     "this is Trainyard's own container"),
    (train_job(pod_spec(restartPolicy="OnFailure")), f"{POD}.restartPolicy",
     "must be Never, found OnFailure: Trainyard replaces pods itself"),
    (train_job(pod_spec(automountServiceAccountToken=False)), f"{POD}.automountServiceAccountToken",
     "must be true, found false: the supervisor talks to the API server"),
    (train_job(pod_spec(shareProcessNamespace=True)), f"{POD}.shareProcessNamespace",
     "must be false, found true: the supervisor has to be process 1 of its container"),
    (train_job(pod_spec(nodeName="a")), f"{POD}.nodeName",
     "cannot be set: Trainyard chooses the nodes; use nodeSelector or affinity to narrow the choice"),
    (train_job(pod_spec(priorityClassName="a"), priorityClassName="b"), f"{POD}.priorityClassName",
     "use spec.priorityClassName of the TrainingJob, which also decides its place among waiting jobs"),
    (train_job(pod_spec(terminationGracePeriodSeconds="30")), f"{POD}.terminationGracePeriodSeconds",
     "expected whole seconds, at least 1, found 30"),
    (train_job(pod_spec(initContainers=False)), f"{POD}.initContainers", "expected a list, found true or false"),
    (train_job(pod_spec(tolerations="")), f"{POD}.tolerations", "expected a list, found a string"),
    (train_job(pod_spec(tolerations=["a"])), f"{POD}.tolerations[0]", "expected an object, found a string"),
    (train_job(pod_spec(securityContext="none")), f"{POD}.securityContext", "expected an object, found a string"),
    (command_job(), f"{POD}.containers", "spec.command needs an image: give the container trainer yours"),
    (command_job(trainer()), f"{FIRST}.image", "spec.command needs an image: give the container trainer yours"),
    (train_job(checkpoint={"volume": {}}), "spec.checkpoint.volume",
     "expected one volume source, such as persistentVolumeClaim, found none"),
    (train_job(checkpoint={"volume": {"nfs": {}, "emptyDir": {}}}), "spec.checkpoint.volume",
     "expected one volume source, such as persistentVolumeClaim, found emptyDir, nfs"),
    (train_job(checkpoint={"volume": {"name": "a", "nfs": {}}}), "spec.checkpoint.volume.name",
     "cannot be set: Trainyard names the volume"),
])  # fmt: skip
def test_refusals(spec: TrainingJobSpec, path: str, message: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        render(JOB, spec, SETTINGS)
    assert (refused.value.path, refused.value.message) == (path, message)
    assert str(refused.value) == f"{path}: {message}"


@pytest.mark.parametrize("spec", [
    train_job(pod_spec(priorityClassName="a"), priorityClassName="a"),
    train_job(pod_spec(restartPolicy="Never", hostPID=False, automountServiceAccountToken=True)),
    train_job(trainer(resources={"limits": {"huawei.com/Ascend910": "8"}}), devices=NPUS),
    train_job(trainer(volumeMounts=[{"name": "a", "mountPath": "/checkpoint"}])),
    train_job({"metadata": None, "spec": None}),
    train_job(pod_spec(containers=None, volumes=None, restartPolicy=None, tolerations=None)),
    train_job(trainer(env=None, volumeMounts=None, command=None, resources=None)),
    train_job(trainer(env=[{"name": "TRAINYARD_INJECT", "value": "nan:step=5"},
                           {"name": "TRAINYARD_DRAIN_BY", "value": "file"}])),
])  # fmt: skip
def test_what_says_nothing_new_is_no_mistake(spec: TrainingJobSpec) -> None:
    made = pod(render(JOB, spec, SETTINGS), 0, 1, "n")
    assert made["spec"]["containers"][0]["command"][0] == "python3"
    assert made["spec"]["restartPolicy"] == "Never"


names = st.sampled_from([
    "metadata", "spec", "labels", "annotations", "containers", "initContainers", "volumes", "name", "trainer", "env",
    "volumeMounts", "mountPath", "resources", "limits", "requests", "cpu", "securityContext", "capabilities", "add",
    "tolerations", "affinity", "nodeAffinity", "runAsUser", "terminationGracePeriodSeconds", "image", "emptyDir",
    "imagePullSecrets", "serviceAccountName", "requiredDuringSchedulingIgnoredDuringExecution",
])  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["trainer", "a", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(names, anything, max_size=4)
trainers = objects.map(lambda fields: fields | {"name": "trainer"})
templates = st.one_of(
    objects,
    st.builds(lambda fields, one: {"spec": fields | {"containers": [one]}}, objects, trainers),
    st.builds(lambda fields: {"spec": fields}, objects),
)


@settings(max_examples=150, deadline=None)
@given(templates, st.booleans())
def test_any_template_is_built_or_refused(template: dict[str, Any], shipped: bool) -> None:
    spec = train_job(template) if shipped else command_job(template)
    try:
        rendered = render(JOB, spec, SETTINGS)
    except InvalidTemplate:
        return
    made = pod(rendered, 0, 1, None)
    assert made["spec"]["restartPolicy"] == "Never"
    assert made["spec"]["containers"][0]["command"][0] == "python3"
    assert made["spec"]["serviceAccountName"] == rendered.service_account
    assert read_rendering(rendering_configmap(rendered)) == rendered
