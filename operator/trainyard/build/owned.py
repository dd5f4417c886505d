"""What a job owns besides its pods: rights, network policy, World. All of it goes when the job goes."""

from __future__ import annotations

from collections.abc import Mapping

from trainyard.api import API_VERSION, JOB_LABEL, JOB_UID_LABEL, WRITTEN_ANNOTATION
from trainyard.api.job import TrainingJobSpec
from trainyard.api.protocol import WorldSpec
from trainyard.build.hashes import canonical, digest
from trainyard.build.types import JobRef, Object

WORKER_ROLE = "trainyard-worker"  # the ClusterRole that the chart ships; the operator may bind this one only


def owner_reference(job: JobRef) -> Object:
    """Makes the job the owner. Deleting the job waits for nothing."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingJob",
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def metadata(job: JobRef, name: str, labels: Mapping[str, str] | None = None,
             annotations: Mapping[str, str] | None = None) -> Object:  # fmt: skip
    """Metadata of something that the job owns."""
    made: Object = {
        "name": name,
        "namespace": job.namespace,
        "labels": {"app.kubernetes.io/managed-by": "trainyard", JOB_LABEL: job.name, JOB_UID_LABEL: job.uid}
        | dict(labels or {}),
        "ownerReferences": [owner_reference(job)],
    }
    return made | ({"annotations": dict(annotations)} if annotations else {})


def belongings(job: JobRef, spec: TrainingJobSpec) -> list[Object]:
    """What must be there before the first pod: the ServiceAccount (unless the template names another), the RoleBinding
    and the NetworkPolicy."""
    own = ((spec.template or {}).get("spec") or {}).get("serviceAccountName")
    account = str(own or job.name)
    made = [_role_binding(job, account), _network_policy(job)]
    return made if own else [_service_account(job), *made]


def world(job: JobRef, spec: WorldSpec, resource_version: str | None = None) -> Object:
    """The job's World; with the resource version that was read, a replacement for exactly that one."""
    content = spec.dump()
    meta = metadata(job, job.name, annotations={WRITTEN_ANNOTATION: written(content)})
    if resource_version is not None:
        meta["resourceVersion"] = resource_version
    return {"apiVersion": API_VERSION, "kind": "World", "metadata": meta, "spec": content}


def written(spec: Object) -> str:
    """What a World's annotation says as long as nobody but the operator has changed its spec."""
    return digest(canonical(spec), 16)


def _service_account(job: JobRef) -> Object:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(job, job.name)}


def _role_binding(job: JobRef, account: str) -> Object:
    api = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{api}/v1",
        "kind": "RoleBinding",
        "metadata": metadata(job, f"{job.name}-worker"),
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": WORKER_ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": job.namespace}],
    }


def _network_policy(job: JobRef) -> Object:
    """Pods of the job are reached by each other, on every port, and by nobody else."""
    members = {"matchLabels": {JOB_UID_LABEL: job.uid}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, job.name),
        "spec": {
            "podSelector": members,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": dict(members["matchLabels"])}}]}],
        },
    }
