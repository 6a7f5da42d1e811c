"""What a process tells about itself: alive, ready, metrics; for probes and for `hotline status`.

Who asks from this machine is told everything. Who asks from elsewhere needs the token of `http_token_file`,
but for one word: that the process is alive, which whoever must restart it asks without a secret.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
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


def application(health: Health, registry: CollectorRegistry, token_file: Path | None = None) -> Starlette:
    """Build the endpoints `/healthz`, `/readyz` and `/metrics`; the token is read anew for each request.

    Requests from elsewhere are answered 403 without a token file, 401 without its token.
    """

    async def healthz(request: Request) -> Response:
        return JSONResponse({"alive": True, **(health.facts() if _is_local(request) else {})})

    async def readyz(_: Request) -> Response:
        waiting = dict(health.waiting_for)
        body = {"ready": not waiting, "waiting_for": waiting, **health.facts()}
        return JSONResponse(body, status_code=503 if waiting else 200)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guard(request: Request) -> Response:
            return (None if _is_local(request) else _refusal(request, token_file)) or await answer(request)

        return guard

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", guarded(readyz)),
            Route("/metrics", guarded(metrics)),
        ]
    )


def _is_local(request: Request) -> bool:
    try:
        address = ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def shown_token(request: Request) -> str:
    """Give the SHA-256, hexadecimal, of the bearer token that a request shows; empty when it shows none.

    Digests are of one length, so that the time to compare them tells nothing of the token.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return sha256(token.strip().encode()).hexdigest() if scheme.lower() == "bearer" else ""


def _refusal(request: Request, token_file: Path | None) -> Response | None:
    """Say no to whoever does not show the token; None to whoever does."""
    if token_file is None:
        why, next_step = "only this machine may ask", "set HOTLINE_HTTP_TOKEN_FILE, and send its token"
        return JSONResponse({"error": "not_allowed", "why": why, "next": next_step}, 403)
    try:
        token = token_file.read_bytes().strip()
    except OSError:
        token = b""
    if token and hmac.compare_digest(shown_token(request), sha256(token).hexdigest()):
        return None
    why, next_step = (
        "not the token of this process",
        "send Authorization: Bearer … with the token of its file",
    )
    body = {"error": "not_allowed", "why": why, "next": next_step}
    return JSONResponse(body, 401, headers={"www-authenticate": "Bearer"})


class Server:
    """An HTTP server inside a stage's event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int, port_file: Path | None) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            lifespan="off",
            # A proxy of this machine says for whom it asks; nobody else may claim to be this machine.
            forwarded_allow_ips=["127.0.0.1", "::1"],
        )
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
