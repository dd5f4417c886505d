"""/metrics, /healthz and /readyz of the agent."""

from __future__ import annotations

from aiohttp import web

from trainyard.agent.loop import Agent
from trainyard.agent.metrics import Metrics


async def serve(host: str, port: int, agent: Agent, metrics: Metrics) -> tuple[web.AppRunner, int]:
    """Start serving; returns the runner (to clean up) and the port."""

    def answer(wrong: list[str]) -> web.Response:
        return web.Response(text="\n".join(wrong) or "ok", status=503 if wrong else 200)

    async def show_metrics(request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def alive(request: web.Request) -> web.Response:
        return answer(agent.not_alive())

    async def ready(request: web.Request) -> web.Response:
        return answer(await agent.not_ready())

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, int(runner.addresses[0][1])
