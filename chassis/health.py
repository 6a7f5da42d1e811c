"""What a process tells about itself: alive, ready, metrics; for probes and for `hotline status`."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp


@dataclass(slots=True)
class Health:
    """Why the process is not ready, by part; empty when it is."""

    waiting_for: dict[str, str] = field(default_factory=lambda: {"start": "starting"})
    facts: Callable[[], Mapping[str, Any]] = dict

    def ready(self, part: str) -> None:
        """Note that one part works."""
        self.waiting_for.pop(part, None)

    def not_ready(self, part: str, why: str) -> None:
        """Note that one part does not work, and why."""
        self.waiting_for[part] = why


def application(health: Health, registry: CollectorRegistry) -> Starlette:
    """Build the endpoints `/healthz`, `/readyz` and `/metrics`."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"alive": True, **health.facts()})

    async def readyz(_: Request) -> Response:
        waiting = dict(health.waiting_for)
        body = {"ready": not waiting, "waiting_for": waiting, **health.facts()}
        return JSONResponse(body, status_code=503 if waiting else 200)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
    )


class Server:
    """An HTTP server inside a stage's event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int, port_file: Path | None) -> None:
        config = uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._port_file = port_file
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; writes the chosen port to the port file."""
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._task = asyncio.create_task(self._server._serve(None))  # noqa: SLF001 - serve() takes over signals
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        if self._port_file is not None and self._server.started:
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self._port_file.write_text(json.dumps({"port": port}))

    async def stop(self) -> None:
        """Stop listening at once."""
        self._server.should_exit = self._server.force_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2)
