"""A thin client over raw JSON.

Configuration, TLS and credentials (kubeconfig, exec plugins, rotating service account tokens) come from
`kubernetes.aio`; its typed models are left out, because parsing large lists with them blocks the loop for seconds.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration
from yarl import URL

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
# Characters that YAML 1.1 (section 5.1) takes for line breaks, or not at all.
_UNPRINTABLE = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")

_CONNECT_SECONDS = 5.0
_IDLE_SECONDS = 45.0  # making a connection costs a recovery milliseconds; many proxies close idle ones after 50 s
_CONNECTIONS = 128  # a burst of pods never waits for a connection, nor do the watches
_SILENCE_SECONDS = 150.0  # a watch gets a bookmark a minute; silence for longer is a dead connection
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ApiError(Exception):
    """The API server refused a request or could not be reached (`status` 0).

    `reason` is the machine-readable reason of its Status (AlreadyExists, Invalid, ...), `message` its sentence.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed later: no answer, throttled, or the server's own trouble."""
        return self.status in (0, 408, 429) or self.status >= 500

    @property
    def not_found(self) -> bool:
        """The object is not there."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """A precondition did not hold, or the name is taken."""
        return self.status == 409


class NotLeading(Exception):
    """A write was attempted by an operator that does not (or no longer) hold the lease."""


async def load_configuration(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """From the named kubeconfig, else $KUBECONFIG, else the pod's service account, else ~/.kube/config; `context` is
    one of the kubeconfig's, by default its current one."""
    configuration = Configuration()
    if kubeconfig or context or os.environ.get("KUBECONFIG") or not (_SERVICE_ACCOUNT / "token").exists():
        await kube_config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration,
                                           persist_config=False)
    else:
        kube_config.load_incluster_config(client_configuration=configuration)
    return configuration


def _keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices within about 20 s that the other side is gone, idle or sending."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class Client:
    """Requests to one API server. Every write passes the `gate`, which says how many seconds this process may still
    write (leader election); reads and the lease itself do not."""

    def __init__(self, configuration: Configuration, *, user_agent: str = "trainyard-operator", seconds: float = 15.0,
                 observe: Callable[[str, int, float], None] | None = None) -> None:
        self.configuration = configuration
        self.gate: Callable[[], float] | None = None
        self.server_time: datetime | None = None
        """The API server's clock (or that of a proxy before it) at its last answer, in whole seconds."""
        self._host = str(configuration.host).rstrip("/")
        self._user_agent = user_agent
        self._seconds = seconds
        self._observe = observe or (lambda method, status, seconds: None)
        self._session: aiohttp.ClientSession | None = None

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=_tls(self.configuration),
                                             keepalive_timeout=_IDLE_SECONDS, socket_factory=_keepalive_socket)
            self._session = aiohttp.ClientSession(connector=connector, proxy=_proxy(self._host),
                                                  cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    def _url(self, path: str, query: Mapping[str, Any] | None) -> URL:
        asked = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        return URL(f"{self._host}{path}?{asked}" if asked else f"{self._host}{path}", encoded=True)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def headers(self) -> dict[str, str]:
        """Request headers with fresh credentials."""
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        for setting in (await self.configuration.auth_settings()).values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        return headers

    async def get(self, path: str, query: Mapping[str, Any] | None = None, *, seconds: float | None = None) -> Object:
        """GET of an object or a list. Raises ApiError."""
        return await self._request("GET", path, query, None, "application/json", seconds or self._seconds)

    async def write(self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None,
                    content_type: str = "application/json", gated: bool = True, seconds: float | None = None) -> Object:
        """POST, PUT, PATCH or DELETE. Raises ApiError, and NotLeading when the gate is shut."""
        limit = seconds or self._seconds
        if gated and self.gate is not None:
            left = self.gate()
            if left <= 0:
                raise NotLeading(f"{method} {path} was not sent: this operator does not hold the lease")
            limit = min(limit, left)
        return await self._request(method, path, query, body, content_type, limit)

    async def _request(self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, content_type: str,
                       seconds: float) -> Object:
        begun = time.monotonic()
        status = 0
        try:
            headers = await self.headers()
            if body is not None:
                headers["Content-Type"] = content_type
            timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, _CONNECT_SECONDS))
            async with self._connected().request(
                    method, self._url(path, query), headers=headers, timeout=timeout,
                    data=None if body is None else encoded(body, content_type)) as response:
                status = response.status
                raw = await response.read()
                self.server_time = _date(response.headers.get("Date")) or self.server_time
                if status >= 400:
                    raise _error(status, raw, response.headers.get("Retry-After"))
                return json.loads(raw) if raw else {}
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ApiError(0, "BadAnswer", f"{method} {path}: not JSON: {error}") from error
        finally:
            self._observe(method, status, time.monotonic() - begun)

    async def stream(self, path: str, query: Mapping[str, Any], *, seconds: float) -> AsyncIterator[Object]:
        """The events of a watch, one JSON object a line, until the server ends it, at most `seconds`.

        Raises ApiError when it cannot be opened, breaks, or goes silent."""
        begun = time.monotonic()
        status = 0
        try:
            timeout = aiohttp.ClientTimeout(total=seconds + 30, sock_connect=_CONNECT_SECONDS,
                                            sock_read=_SILENCE_SECONDS)
            asked = {**query, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": int(seconds)}
            async with self._connected().get(self._url(path, asked), headers=await self.headers(),
                                             timeout=timeout) as response:
                status = response.status
                self._observe("WATCH", status, time.monotonic() - begun)
                if status >= 400:
                    raise _error(status, await response.read(), response.headers.get("Retry-After"))
                async for line in _lines(response.content):
                    yield json.loads(line)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if not status:
                self._observe("WATCH", 0, time.monotonic() - begun)
            raise ApiError(0, "Unreachable", f"WATCH {path}: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ApiError(0, "BadAnswer", f"WATCH {path}: not JSON: {error}") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length; the reader's own readline has a limit that large objects exceed."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
        for line in whole:
            if line:
                yield line


def encoded(body: Any, content_type: str) -> bytes:
    """A body as JSON. What is applied is read as YAML: there a character beyond 16 bits cannot be escaped by halves, as
    JSON does, nor may some others stand for themselves."""
    if content_type != APPLY:
        return json.dumps(body).encode()
    text = json.dumps(body, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode("utf-8", "replace")


def _proxy(server: str) -> str | None:
    """The proxy that the environment names for this server. Looked up once: with trust_env aiohttp asks the environment
    and ~/.netrc before every request, in a thread, and puts an Authorization of its own beside ours."""
    url = urlsplit(server)
    return None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)


def _date(header: str | None) -> datetime | None:
    """Of a Date header; None if there is none, or nonsense."""
    try:
        return parsedate_to_datetime(header).astimezone(UTC) if header else None
    except ValueError:
        return None


def _error(status: int, raw: bytes, retry_after: str | None) -> ApiError:
    try:
        answer = json.loads(raw)
        reason, message = str(answer.get("reason") or ""), str(answer.get("message") or "")
        seconds = (answer.get("details") or {}).get("retryAfterSeconds")
    except (ValueError, AttributeError):  # a proxy in between answered in its own words
        reason, message, seconds = "", raw[:500].decode(errors="replace"), None
    if seconds is None and retry_after and retry_after.isdigit():
        seconds = int(retry_after)
    return ApiError(status, reason or f"HTTP{status}", message, retry_after=float(seconds) if seconds else None)
