"""The CRDs in the cluster must be as new as this operator; an older one would silently drop fields it writes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from trainyard.api import GROUP, SCHEMA_VERSION
from trainyard.kube.client import ApiError, Client, Object

log = logging.getLogger(__name__)

ANNOTATION = f"{GROUP}/schema-version"
KINDS = ("trainingjobs", "worlds", "reports", "nodedevices")


async def wanting(client: Client) -> list[str]:
    """What is wrong with the CRDs, a sentence each; empty when all are there and new enough. Raises ApiError."""
    wrong = []
    for plural in KINDS:
        name = f"{plural}.{GROUP}"
        try:
            crd = await client.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        except ApiError as error:
            if not error.not_found:
                raise
            wrong.append(f"CRD {name} is not installed; apply the folder crds/ of this version")
            continue
        found = (crd["metadata"].get("annotations") or {}).get(ANNOTATION, "")
        if not found.isdigit() or int(found) < SCHEMA_VERSION:
            wrong.append(f"CRD {name} has {ANNOTATION}={found or 'none'}, this operator needs {SCHEMA_VERSION} or "
                         "newer; apply the folder crds/ of this version")
        elif not _established(crd):
            wrong.append(f"CRD {name} is not served yet")
    return wrong


def _established(crd: Object) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


async def wait_for_crds(client: Client, tell: Callable[[list[str]], None]) -> None:
    """Return once all CRDs are there and new enough; `tell` hears what is still wrong, and [] at the end."""
    pause, said = 0.5, [""]
    while True:
        try:
            wrong = await wanting(client)
        except ApiError as error:
            wrong = [f"the CRDs could not be read: {error}"]
        tell(wrong)
        if not wrong:
            return
        if wrong != said:
            log.warning("not leading: %s", "; ".join(wrong))
            said = wrong
        await asyncio.sleep(pause * random.uniform(0.7, 1.3))
        pause = min(pause * 1.5, 5.0)
