"""Leader election by a Lease.

A follower takes over when it has seen the same record for the whole lease duration on its own clock; clocks of two
machines are never compared. A leader counts from *before* it sent a renewal, on a clock that also runs while the
machine sleeps, and stops writing a margin before a follower could take over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime

from trainyard.kube.client import ApiError, Client, Object

log = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """The lease could not be renewed in time, or another holds it."""


def clock() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """One candidate. `seconds_left` is the gate for all writes."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str, *, predecessor: str = "",
                 duration: float = 10.0, renew: float = 2.0, margin: float = 3.0, poll: float = 1.0) -> None:
        """`predecessor`: how the identities of those begin that are certain to have ended when this one runs, such as
        earlier starts of the same container; nobody waits for their lease to run out."""
        if margin + renew >= duration:
            raise ValueError(f"lease duration {duration} s must exceed renewal {renew} s plus margin {margin} s")
        self.identity = identity
        self._predecessor = predecessor
        self.holder = ""
        self.beat = time.monotonic()  # when this loop last did anything
        self._client = client
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name
        self._duration, self._renew, self._margin, self._poll = duration, renew, margin, poll
        self._until = 0.0  # writes allowed before this time of `clock`
        self._record: Object | None = None
        self._seen = 0.0  # when the record last changed, by our clock

    def seconds_left(self) -> float:
        """Seconds for which this process may still write; not positive if it does not lead."""
        return self._until - clock()

    async def acquire(self) -> None:
        """Return once this candidate holds the lease."""
        while not await self._try():
            self.beat = time.monotonic()
            await asyncio.sleep(self._poll * random.uniform(0.9, 1.1))
        log.info("this operator leads now (%s)", self.identity)

    async def hold(self) -> None:
        """Renew until that fails for too long. Raises LeadershipLost."""
        while True:
            await asyncio.sleep(self._renew)
            self.beat = time.monotonic()
            renewed = await self._try()
            if not renewed and (self.seconds_left() <= 0 or self.holder != self.identity):
                self._until = 0.0
                raise LeadershipLost(f"lease {self._namespace}/{self._name} is held by {self.holder or 'nobody'}; "
                                     "it could not be renewed in time")

    async def release(self) -> None:
        """Give the lease up, so that a follower takes over at its next look. Never raises ApiError."""
        if self.holder != self.identity or self._record is None:
            return
        self._until = 0.0
        body = self._body(self._record, holder="", duration=1)
        try:
            await self._client.write("PUT", f"{self._path}/{self._name}", body, gated=False, seconds=2)
            self.holder = ""
        except ApiError as error:
            log.info("lease was not released, it runs out by itself: %s", error)

    async def _try(self) -> bool:
        """One attempt to take or renew; True if this candidate holds it now."""
        begun = clock()
        try:
            record = await self._read()
            if record is None:
                method, path = "POST", self._path
            elif self._free(record):
                method, path = "PUT", f"{self._path}/{self._name}"
            else:
                return False
            self._took(begun, await self._client.write(method, path, self._body(record), gated=False, seconds=3))
            return True
        except ApiError as error:
            level = logging.DEBUG if error.conflict else logging.WARNING
            log.log(level, "lease %s/%s: %s", self._namespace, self._name, error)
            return False

    async def _read(self) -> Object | None:
        try:
            record = await self._client.get(f"{self._path}/{self._name}", seconds=3)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        if self._record is None or record["metadata"]["resourceVersion"] != self._record["metadata"]["resourceVersion"]:
            self._record, self._seen = record, clock()
        self.holder = record.get("spec", {}).get("holderIdentity") or ""
        return record

    def _free(self, record: Object) -> bool:
        """Whether we may write ourselves into it."""
        spec = record.get("spec", {})
        if not self.holder or self.holder == self.identity:
            return True
        if self._predecessor and self.holder.startswith(self._predecessor):
            return True
        return clock() - self._seen >= float(spec.get("leaseDurationSeconds") or self._duration)

    def _took(self, begun: float, record: Object) -> None:
        self.holder, self._record, self._seen = self.identity, record, clock()
        self._until = begun + self._duration - self._margin

    def _body(self, record: Object | None, *, holder: str | None = None, duration: int | None = None) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        old = (record or {}).get("spec", {})
        holder = self.identity if holder is None else holder
        same = old.get("holderIdentity") == holder
        metadata: Object = {"name": self._name, "namespace": self._namespace}
        if record:
            metadata["resourceVersion"] = record["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": duration or round(self._duration),
                "acquireTime": old.get("acquireTime") if same and old.get("acquireTime") else now,
                "renewTime": now,
                "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if same else 1),
            },
        }
