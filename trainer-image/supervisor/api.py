"""The Kubernetes API: watch one World, write one Report. Blocking, in two threads of its own."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.parse
from typing import Any, Callable, Dict, Mapping, Optional

from supervisor import events as e
from supervisor.report import as_yaml, wordless

GROUP = "trainyard.dev/v1alpha1"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
WATCH_SECONDS = (240, 360)
LOOK_AGAIN = 60.0  # s between two GETs of the World beside the watch
TIMEOUT = 10.0  # s for a request that is no watch
BACKOFF = (0.5, 30.0)  # s: first and longest range of the full jitter
REQUEST_BACKOFF = 5.0  # s; a waiting report is worth more haste
MANAGER = "trainyard-supervisor"


class Refused(Exception):
    """The API answered with an error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class Connection:
    """One connection to the API server, with the pod's own service account."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        account = environment.get("TRAINYARD_SERVICE_ACCOUNT", ACCOUNT)
        self._token_file = os.path.join(account, "token")
        self._ca = os.path.join(account, "ca.crt")
        given = environment.get("TRAINYARD_API_SERVER")
        if not given:
            host = environment.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
            given = f"https://[{host}]" if ":" in host else f"https://{host}"
            given += ":" + environment.get("KUBERNETES_SERVICE_PORT", "443")
        self._url = urllib.parse.urlsplit(given)
        self._http: Optional[http.client.HTTPConnection] = None

    def request(self, method: str, path: str, body: Optional[bytes] = None, content: str = "",
                timeout: float = TIMEOUT) -> http.client.HTTPResponse:
        """Send a request; the response has been begun, not read. Refused, OSError or HTTPException if it failed.

        A kept connection that turns out to be closed is made anew once, and so is the token read."""
        kept = self._http is not None
        try:
            return self._send(method, path, body, content, timeout)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self.close()
            if not kept:
                raise
            return self._send(method, path, body, content, timeout)
        except Refused as refused:
            if refused.status != 401:
                raise
            self.close()  # the token may have been renewed at this moment
            return self._send(method, path, body, content, timeout)

    def _send(self, method: str, path: str, body: Optional[bytes], content: str, timeout: float
              ) -> http.client.HTTPResponse:
        connection = self._connect(timeout)
        headers = {"Accept": "application/json"}
        if content:
            headers["Content-Type"] = content
        try:
            with open(self._token_file, encoding="ascii") as file:
                headers["Authorization"] = "Bearer " + file.read().strip()
        except FileNotFoundError:
            pass  # an API server that asks nobody's name; any other says 401
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if response.status >= 400:
            told = response.read(4096).decode("utf-8", "replace")
            if not response.isclosed():  # there is more: another request would find it instead of its own answer
                self.close()
            raise Refused(response.status, _message(told))
        return response

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._http is None or self._http.sock is None:  # none: the last answer came with `Connection: close`
            host, port = self._url.hostname or "", self._url.port
            if self._url.scheme == "https":
                context = ssl.create_default_context(cafile=self._ca if os.path.exists(self._ca) else None)
                self._http = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
            else:
                self._http = http.client.HTTPConnection(host, port, timeout=timeout)
            try:
                self._http.timeout = min(timeout, TIMEOUT)  # to connect; what follows may be a watch
                self._http.connect()
                _keep_alive(self._http.sock)
            except OSError:
                self.close()
                raise
        self._http.sock.settimeout(timeout)
        return self._http

    def close(self) -> None:
        """Drop the connection; the next request makes another."""
        if self._http is not None:
            self._http.close()
            self._http = None


def _keep_alive(sock: socket.socket) -> None:
    """A server that is cut off is noticed within about 15 s, idle or not."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:200]


class Api:
    """Posts what the API says as events; writes the newest report until it is written."""

    def __init__(self, environment: Mapping[str, str], post: Callable[[e.Event], None],
                 say: Callable[[str], None]) -> None:
        self._environment = environment
        self._post = post
        self._say = say
        namespace, self._job = environment["TRAINYARD_NAMESPACE"], environment["TRAINYARD_JOB"]
        self._pod, self._uid = environment["TRAINYARD_POD"], environment["TRAINYARD_POD_UID"]
        base = f"/apis/{GROUP}/namespaces/{urllib.parse.quote(namespace)}"
        self._world_path = f"{base}/worlds/{urllib.parse.quote(self._job)}"
        self._worlds_path = f"{base}/worlds"
        self._report_path = f"{base}/reports/{urllib.parse.quote(self._pod)}?fieldManager={MANAGER}&force=true"
        self._wake = threading.Condition()
        self._report: Optional[Dict[str, Any]] = None
        self._writing = False
        self._dropped = False
        self._read_now = False
        self._stopped = False
        self._told = ""

    def start(self) -> None:
        """Start both threads."""
        for name, target in (("watch", self._watch), ("requests", self._requests)):
            threading.Thread(target=target, name=name, daemon=True).start()

    # From the main thread ---------------------------------------------------------------------------------------------

    def write(self, spec: Dict[str, Any]) -> None:
        """Write this report as soon as possible, instead of any that waits."""
        with self._wake:
            self._report = spec
            self._wake.notify()

    def drop(self) -> None:
        """Forget a report that waits."""
        with self._wake:
            self._report = None
            self._dropped = True

    def read_world(self) -> None:
        """GET the World now."""
        with self._wake:
            self._read_now = True
            self._wake.notify()

    def flush(self, timeout: float) -> None:
        """Wait until the last report is written, at most `timeout` seconds."""
        with self._wake:
            self._wake.wait_for(lambda: self._report is None and not self._writing, timeout)
            self._stopped = True
            self._wake.notify_all()

    # Watch thread -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        connection = Connection(self._environment)
        failures = 0
        while not self._stopped:
            try:
                version = self._get(connection)
                failures = 0
                self._follow(connection, version)
                pause = random.uniform(0, 1)  # the server ended it: not all members at once
            except Exception as error:  # whatever it is: without this thread the pod would hear of no World any more
                failures += 1
                self._failed(error)
                pause = random.uniform(0, min(BACKOFF[1], BACKOFF[0] * 2 ** min(failures, 10)))
            connection.close()
            time.sleep(pause)

    def _get(self, connection: Connection) -> str:
        """Read the World; its resourceVersion, or an empty string if there is none."""
        try:
            response = connection.request("GET", self._world_path)
        except Refused as refused:
            if refused.status != 404:
                raise
            self._answered()
            self._post(e.WorldMissing())
            return ""
        manifest = json.loads(response.read())
        self._answered()
        self._seen(manifest)
        return str(manifest.get("metadata", {}).get("resourceVersion", ""))

    def _follow(self, connection: Connection, version: str) -> None:
        seconds = random.randint(*WATCH_SECONDS)
        query = {"watch": "1", "fieldSelector": f"metadata.name={self._job}", "timeoutSeconds": str(seconds),
                 "allowWatchBookmarks": "true"}
        if version:
            query["resourceVersion"] = version
        path = f"{self._worlds_path}?{urllib.parse.urlencode(query)}"
        response = connection.request("GET", path, timeout=seconds + 15)
        while not self._stopped:
            line = response.readline()
            if not line:
                return
            event = json.loads(line)
            if event.get("type") in ("ADDED", "MODIFIED"):
                self._seen(event["object"])
            elif event.get("type") == "DELETED":
                self._post(e.WorldMissing())
            elif event.get("type") == "ERROR":
                return  # 410: too old; the next GET starts anew

    def _seen(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("metadata", {}).get("name", self._job) != self._job:
            return
        try:
            world = e.World.parse(manifest)
        except ValueError as error:
            self._tell(f"the World cannot be read, it is ignored: {error}")
            return
        self._post(e.WorldSeen(world))

    # Requests thread --------------------------------------------------------------------------------------------------

    def _requests(self) -> None:
        connection = Connection(self._environment)
        failures = 0
        look = time.monotonic() + random.uniform(0, LOOK_AGAIN)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._read_now or self._report is not None,
                                    max(0.0, look - time.monotonic()))
                if self._stopped:
                    return
                report, self._report = self._report, None
                read, self._read_now = self._read_now or time.monotonic() >= look, False
                self._writing, self._dropped = report is not None, False
            try:
                if report is not None:
                    self._apply(connection, report)
                if read:
                    look = time.monotonic() + random.uniform(0.8, 1.2) * LOOK_AGAIN
                    self._get(connection)
                failures = 0
                self._done(None)
            except Exception as error:  # likewise: nobody would hear of this pod
                failures += 1
                self._failed(error)
                connection.close()
                self._done(report)
                with self._wake:  # a new report or the end need not wait for the whole pause
                    limit = random.uniform(0, min(REQUEST_BACKOFF, BACKOFF[0] * 2 ** min(failures, 5)))
                    self._wake.wait_for(lambda: self._stopped, limit)

    def _done(self, again: Optional[Dict[str, Any]]) -> None:
        """The report was written, or is to be tried again unless there is a newer one or it was dropped meanwhile."""
        with self._wake:
            if again is not None and self._report is None and not self._dropped:
                self._report = again
            self._writing = False
            self._wake.notify_all()

    def _apply(self, connection: Connection, spec: Dict[str, Any]) -> None:
        manifest: Dict[str, Any] = {
            "apiVersion": GROUP, "kind": "Report",
            "metadata": {
                "name": self._pod, "labels": {"trainyard.dev/job": self._job},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": self._pod, "uid": self._uid}],
            },
        }
        for words, content in (("words", spec), ("it", wordless(spec))):
            manifest["spec"] = content
            try:
                connection.request("PATCH", self._report_path, as_yaml(manifest), "application/apply-patch+yaml").read()
                break
            except Refused as refused:
                if refused.status not in (400, 422):
                    raise
                self._tell(f"the API does not take this report ({refused}); going on without {words}: "
                           f"{json.dumps(content)[:500]}")
        self._answered()

    # Both -------------------------------------------------------------------------------------------------------------

    def _answered(self) -> None:
        self._told = ""
        self._post(e.ApiBack())

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Refused) and error.status == 401:
            self._post(e.Unauthorized())
            return
        if isinstance(error, Refused) and error.status < 500 and error.status != 429:
            self._tell(f"the API refuses: {error}; trying again")
            return
        if isinstance(error, (OSError, http.client.HTTPException, Refused)):
            self._post(e.ApiLost(f"{type(error).__name__}: {error}"))
            return
        self._tell(f"the API's answer makes no sense ({type(error).__name__}: {error}); trying again")

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._say(text)
