"""The Kubernetes objects that a job owns, from its spec alone. Pure: nothing is read from or sent to a cluster.

    rendered = render(job, spec, settings)                # InvalidTemplate: tell the user, do not try again
    for thing in belongings(job, spec): create(thing)     # ServiceAccount, RoleBinding, NetworkPolicy
    answer = create(pod(rendered, 0, 1, None))            # with dryRun=All and fieldValidation=Strict
    rendered = with_demand(rendered, demand_of(answer))   # LimitRanges, webhooks and defaults counted
    create(rendering_configmap(rendered))                 # and later: read_rendering(configmap)
    create(pod(rendered, index, incarnation, node))
"""

from trainyard.build.hashes import admitted_hash
from trainyard.build.owned import WORKER_ROLE, belongings, owner_reference, world
from trainyard.build.pods import pod, pod_name
from trainyard.build.rendering import read_rendering, render, rendering_configmap, with_demand
from trainyard.build.types import BuildSettings, InvalidTemplate, JobRef, RenderedJob

__all__ = [
    "WORKER_ROLE",
    "BuildSettings",
    "InvalidTemplate",
    "JobRef",
    "RenderedJob",
    "admitted_hash",
    "belongings",
    "owner_reference",
    "pod",
    "pod_name",
    "read_rendering",
    "render",
    "rendering_configmap",
    "with_demand",
    "world",
]
