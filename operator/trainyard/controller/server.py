"""/metrics, /healthz and /readyz."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from trainyard.controller.metrics import Metrics


async def serve(host: str, port: int, metrics: Metrics, health: Callable[[], list[str]],
                ready: Callable[[], list[str]]) -> tuple[web.AppRunner, int]:
    """Start serving; returns the runner (to clean up) and the port. `health` and `ready` return what is wrong."""

    async def show_metrics(request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def judge(check: Callable[[], list[str]]) -> Callable[[web.Request], object]:
        async def answer(request: web.Request) -> web.Response:
            wrong = check()
            return web.Response(text="\n".join(wrong) or "ok", status=503 if wrong else 200)
        return answer

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", judge(health))  # type: ignore[arg-type]
    app.router.add_get("/readyz", judge(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    return runner, int(runner.addresses[0][1])
