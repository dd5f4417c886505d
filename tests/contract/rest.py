"""Plain requests to an API server, answered in milliseconds, with the server's own words when it refuses."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import urlencode, urlsplit

GROUP = "/apis/trainyard.dev/v1alpha1"
Object = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: dict[str, Any]
    flow_schema: str = ""  # UID of the FlowSchema that the request was counted under

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.status < 300

    @property
    def message(self) -> str:
        """Why not."""
        return str(self.body.get("message", ""))

    @property
    def causes(self) -> list[tuple[str, str]]:
        """(field path, message) of each thing that was wrong with an object."""
        causes = self.body.get("details", {}).get("causes", ())
        return [(str(cause.get("field", "")), str(cause.get("message", ""))) for cause in causes]

    def __str__(self) -> str:
        return f"{self.status} {self.message or json.dumps(self.body)[:300]}"


class Rest:
    """A client with the identity of one kubeconfig (inline certificate or token), or at the same server with another
    token. Close it, or use it in `with`."""

    def __init__(self, kubeconfig: Path, token: str | None = None) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        if token:
            user = {"token": token}
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        if "client-certificate-data" in user:
            with NamedTemporaryFile() as pair:
                pair.write(base64.b64decode(user["client-certificate-data"]) + b"\n"
                           + base64.b64decode(user["client-key-data"]))
                pair.flush()
                context.load_cert_chain(pair.name)
        server = urlsplit(cluster["server"])
        self._connection = http.client.HTTPSConnection(str(server.hostname), server.port, timeout=30, context=context)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, method: str, path: str, body: Object | bytes | None = None, content: str = "application/json",
                **query: str) -> Answer:
        """One request; refusals are answers, not exceptions."""
        headers = {**self._headers, "Accept": "application/json", "Content-Type": content}
        target = f"{path}?{urlencode(query)}" if query else path
        self._connection.request(method, target, body if body is None or isinstance(body, bytes) else json.dumps(body),
                                 headers)
        response = self._connection.getresponse()
        flow_schema = response.headers.get("X-Kubernetes-Pf-Flowschema-Uid", "")
        return Answer(response.status, json.loads(response.read()), flow_schema)

    def create(self, path: str, body: Object, **query: str) -> Answer:
        """POST; unknown fields are refused, as kubectl asks for."""
        return self.request("POST", path, body, fieldValidation="Strict", **query)

    def patch(self, path: str, body: Object, **query: str) -> Answer:
        """Merge patch."""
        return self.request("PATCH", path, body, "application/merge-patch+json", fieldValidation="Strict", **query)

    def apply(self, path: str, body: Object | bytes, **query: str) -> Answer:
        """Server-side apply."""
        return self.request("PATCH", path, body, "application/apply-patch+yaml", fieldManager="test", force="true",
                            **query)

    def get(self, path: str) -> Answer:
        """GET."""
        return self.request("GET", path)
