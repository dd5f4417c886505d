"""One pod of a gang."""

from __future__ import annotations

import pickle

from trainyard.api import INCARNATION_LABEL, INDEX_LABEL, RENDERED_ANNOTATION, TRAINER_CONTAINER
from trainyard.build.owned import owner_reference
from trainyard.build.template import CONFIG_VOLUME
from trainyard.build.types import JobRef, Object, RenderedJob


def pod_name(job: JobRef, index: int, incarnation: int) -> str:
    """Its name: two operators that would make the same pod collide instead of making two."""
    return f"{job.name}-{index}-{incarnation}"


def pod(rendered: RenderedJob, index: int, incarnation: int, node: str | None) -> Object:
    """The pod that holds this index, bound to `node` through its affinity; None leaves the choice to the scheduler."""
    # A gang has thousands of pods, and copy.deepcopy takes ten times as long for plain values.
    made: Object = pickle.loads(pickle.dumps({"apiVersion": "v1", "kind": "Pod", **rendered.template}))
    meta, spec = made["metadata"], made["spec"]
    meta["name"] = pod_name(rendered.job, index, incarnation)
    meta["namespace"] = rendered.job.namespace
    meta["labels"] |= {INDEX_LABEL: str(index), INCARNATION_LABEL: str(incarnation)}
    meta["annotations"] |= {RENDERED_ANNOTATION: rendered.hash}
    meta["ownerReferences"] = [owner_reference(rendered.job)]
    trainer = next(container for container in spec["containers"] if container["name"] == TRAINER_CONTAINER)
    # First, so that variables of the template can refer to them.
    trainer["env"][:0] = [
        {"name": "TRAINYARD_INDEX", "value": str(index)},
        {"name": "TRAINYARD_INCARNATION", "value": str(incarnation)},
    ]
    for volume in spec["volumes"]:
        if volume["name"] == CONFIG_VOLUME:
            volume["configMap"]["name"] = rendered.name
    if node is not None:
        _pin(spec, node)
    return made


def _pin(spec: Object, node: str) -> None:
    """Requires this node in every alternative of the node affinity, so that kube-scheduler looks at one node only."""
    affinity = spec["affinity"] = spec.get("affinity") or {}
    by_node = affinity["nodeAffinity"] = affinity.get("nodeAffinity") or {}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    # An alternative without any condition matches no node; it must not come to match this one.
    terms = [term for term in (by_node.get(required) or {}).get("nodeSelectorTerms") or () if any(term.values())]
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    pinned = [{**term, "matchFields": [*(term.get("matchFields") or ()), here]} for term in terms or [{}]]
    by_node[required] = {"nodeSelectorTerms": pinned}
