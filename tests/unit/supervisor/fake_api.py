"""A small Kubernetes API over real sockets, for tests of the supervisor: worlds (get, watch), reports (apply)."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import socket
import threading
import time
import urllib.parse
from typing import Any

BASE = "/apis/trainyard.dev/v1alpha1/namespaces/team/"


class FakeApi:
    """Start with `with FakeApi() as api:`; `api.reports` holds every report written, in order."""

    def __init__(self) -> None:
        self.worlds: dict[str, dict[str, Any]] = {}
        self.reports: list[tuple[float, str, dict[str, Any]]] = []
        self.requests: list[tuple[str, str]] = []
        self.status: int | None = None  # answer everything with this status
        self.closes = False  # end the connection after every answer, and say so
        self.nonsense = False  # answers are no objects
        self.unwelcome = ""  # reports with this word are refused
        self._version = 0
        self._watchers: list[tuple[str, queue.Queue[dict[str, Any] | None]]] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._server: http.server.ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self.port = 0

    def __enter__(self) -> FakeApi:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Serve, at the port of the last time if there was one."""
        api = self

        class Handler(_Handler):
            fake = api

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def process_request(self, request: Any, client_address: Any) -> None:
                api._open.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                api._open.discard(request)
                super().shutdown_request(request)

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def down(self) -> None:
        """Close the port, every watch and every connection that is kept."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            self.cut()
            for kept in list(self._open):
                with contextlib.suppress(OSError):
                    kept.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every watch."""
        with self._lock:
            for _, events in self._watchers:
                events.put(None)
            self._watchers = []

    def put_world(self, name: str, spec: dict[str, Any]) -> None:
        """Write a World and tell its watchers."""
        with self._lock:
            self._version += 1
            kind = "MODIFIED" if name in self.worlds else "ADDED"
            self.worlds[name] = {"metadata": {"name": name, "resourceVersion": str(self._version),
                                              "generation": self._version},
                                 "spec": json.loads(json.dumps(spec))}
            self._tell(name, kind)

    def delete_world(self, name: str) -> None:
        with self._lock:
            self._tell(name, "DELETED")
            del self.worlds[name]

    def _tell(self, name: str, kind: str) -> None:
        for watched, events in self._watchers:
            if watched == name:
                events.put({"type": kind, "object": self.worlds[name]})

    def wait_report(self, match: Any, timeout: float = 30.0) -> dict[str, Any]:
        """The first report that `match(pod, spec)` accepts; TimeoutError lists those that came."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for _, pod, spec in self.reports:
                    if match(pod, spec):
                        return spec
                left = deadline - time.monotonic()
                if left <= 0:
                    seen = [(pod, spec["kind"], spec["generation"]) for _, pod, spec in self.reports]
                    raise TimeoutError(f"no such report within {timeout} s; there were {seen}")
                self._changed.wait(left)


class _Handler(http.server.BaseHTTPRequestHandler):
    fake: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = b"[]" if self.fake.nonsense else json.dumps(body).encode()
        self.send_response(status)
        if self.fake.closes:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refused(self) -> bool:
        self.fake.requests.append((self.command, self.path))
        if self.fake.status is not None:
            self._answer(self.fake.status, {"message": "the test says so"})
            return True
        return False

    def do_GET(self) -> None:
        if self._refused():
            return
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        if "watch" in query:
            self._watch(query)
            return
        name = url.path.removeprefix(BASE + "worlds/")
        with self.fake._lock:
            world = self.fake.worlds.get(name)
        if world is None:
            self._answer(404, {"message": f"worlds {name} not found"})
        else:
            self._answer(200, world)

    def _watch(self, query: dict[str, list[str]]) -> None:
        name = query["fieldSelector"][0].removeprefix("metadata.name=")
        since = int(query.get("resourceVersion", ["0"])[0])
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self.fake._lock:
            world = self.fake.worlds.get(name)
            if world is not None and int(world["metadata"]["resourceVersion"]) > since:
                events.put({"type": "ADDED", "object": world})
            self.fake._watchers.append((name, events))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):  # the supervisor has left
            while (event := events.get()) is not None:
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

    def do_PATCH(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        if self._refused():
            return
        if self.fake.unwelcome and self.fake.unwelcome.encode() in raw:
            self._answer(422, {"message": "the test says so"})
            return
        pod = urllib.parse.urlsplit(self.path).path.removeprefix(BASE + "reports/")
        if self.headers["Content-Type"] != "application/apply-patch+yaml":
            self._answer(415, {"message": "not an apply"})
            return
        with self.fake._changed:
            self.fake.reports.append((time.monotonic(), pod, body["spec"]))
            self.fake._changed.notify_all()
        self._answer(201, body)
