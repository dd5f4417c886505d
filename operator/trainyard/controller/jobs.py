"""TrainingJobs, watched by kopf: the one place that imports it.

kopf runs in a thread and an event loop of its own: on its way down it cancels every task of its loop, ours would be
among them. It only watches: no finalizers, annotations, events or peering. What it hears goes to the operator's loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from trainyard.api import GROUP, VERSION
from trainyard.kube.client import Client, Object

log = logging.getLogger(__name__)

_TOKEN_MINUTES = 10  # a rotated service account token is read again after this long


class Backoffs:
    """Pauses between kopf's attempts, without end and jittered: an API server may be away for as long as it likes."""

    def __iter__(self) -> Iterator[float]:
        pause = 0.5
        while True:
            yield pause * random.uniform(0.7, 1.3)
            pause = min(pause * 2, 8.0)


class JobWatch:
    """Calls `heard(type, object)` in the given loop for everything that happens to a TrainingJob."""

    def __init__(self, client: Client, namespaces: tuple[str, ...],
                 heard: Callable[[str | None, Object], None]) -> None:
        self.beat = time.monotonic()  # when kopf's loop last turned
        self._client = client
        self._namespaces = namespaces
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name="kopf", daemon=True)

    def start(self) -> None:
        """Start watching; the thread ends with the process."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _main(self) -> None:
        while not self._loop.is_closed():
            try:
                asyncio.run(self._watch())
                log.warning("kopf has stopped, starting it again")
            except Exception as error:
                log.warning("kopf has failed, starting it again: %s: %s", type(error).__name__, error)
            time.sleep(random.uniform(1.0, 3.0))

    async def _watch(self) -> None:
        beating = asyncio.create_task(self._keep_beating())  # made before kopf: it leaves what it finds alone
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        kopf.on.event(GROUP, VERSION, "trainingjobs", registry=registry)(self._event)
        try:
            await kopf.operator(
                # An identity of our own: kopf's is made from the user's name, which an arbitrary uid does not have.
                registry=registry, settings=_settings(), standalone=True, identity="trainyard",
                clusterwide=not self._namespaces, namespaces=self._namespaces)
        finally:
            beating.cancel()

    async def _keep_beating(self) -> None:
        while True:
            self.beat = time.monotonic()
            await asyncio.sleep(1.0)

    async def _event(self, event: Any, **_: Any) -> None:
        self._loop.call_soon_threadsafe(self._heard, event["type"], dict(event["object"]))

    async def _login(self, **_: Any) -> kopf.ConnectionInfo:
        authorization = {name.lower(): value for name, value in (await self._client.headers()).items()}.get(
            "authorization", "")
        return connection(self._client.configuration, authorization)


def connection(configuration: Configuration, authorization: str) -> kopf.ConnectionInfo:
    """The client's configuration in kopf's words. `authorization`: the header's value, empty with a certificate."""
    scheme, _, token = authorization.partition(" ")
    return kopf.ConnectionInfo(
        server=str(configuration.host),
        ca_path=configuration.ssl_ca_cert,
        ca_data=None if configuration.ssl_ca_cert else configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() if token else None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        trust_env=True,
        expiration=datetime.now(UTC) + timedelta(minutes=_TOKEN_MINUTES) if token else None)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.scanning.disabled = True  # the CRD was there before kopf was started
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.connect_timeout = 5
    settings.watching.reconnect_backoff = 0.5
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = Backoffs()
    settings.persistence.finalizer = f"{GROUP}/kopf"  # never set: there are no handlers that need one
    settings.process.ultimate_exiting_timeout = None  # ending the process is not kopf's business
    return settings
