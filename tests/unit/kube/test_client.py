"""What the client puts on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from trainyard.kube.client import ApiError, Client


@asynccontextmanager
async def serving(seen: list[str]) -> AsyncIterator[Client]:
    """A client of a server that notes the raw path and the Authorization of every request."""
    async def note(request: web.Request) -> web.Response:
        seen.append(f"{request.method} {request.raw_path} {request.headers.get('Authorization', '-')}")
        return web.json_response({"kind": "Status"})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", note)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = Client(configuration)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


async def test_queries_are_written_once_and_escaped() -> None:
    seen: list[str] = []
    async with serving(seen) as client:
        await client.get("/api/v1/pods", {"limit": 500, "continue": None, "fieldSelector": "spec.nodeName!=,a=b&c"})
        await client.get("/api/v1/pods", {})
        await client.write("POST", "/api/v1/pods", {}, query={"fieldManager": "me"})
    assert seen == ["GET /api/v1/pods?limit=500&fieldSelector=spec.nodeName%21%3D%2Ca%3Db%26c -", "GET /api/v1/pods -",
                    "POST /api/v1/pods?fieldManager=me -"]


async def test_only_the_configured_credentials_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[str] = []
    async with serving(seen) as client:
        await client.get("/version")
    assert seen == ["GET /version -"]


@pytest.mark.parametrize(("environment", "path"), [
    ({}, "/version"),
    ({"no_proxy": "api.test", "http_proxy": "PROXY"}, ""),
    ({"http_proxy": "PROXY"}, "http://api.test/version"),
])
async def test_the_environments_proxy_is_asked_where_there_is_one(
        environment: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`path`: what the server sees when it is asked as the proxy, or for itself; empty: api.test is asked directly, and
    is not there."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    seen: list[str] = []
    async with serving(seen) as client:
        server = client.configuration.host
        for name, value in environment.items():
            monkeypatch.setenv(name, server if value == "PROXY" else value)
        configuration = Configuration()
        configuration.host = "http://api.test" if environment else server
        other = Client(configuration, seconds=2.0)
        if path:
            await other.get("/version")
        else:
            with pytest.raises(ApiError, match=r"api\.test"):  # no such host
                await other.get("/version")
        await other.close()
    assert seen == ([f"GET {path} -"] if path else [])
