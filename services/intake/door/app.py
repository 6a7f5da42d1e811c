"""Wiring of the door: what it opens, what runs beside it, how it stops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from chassis.clock import utc_now
from chassis.faults import Misconfigured, Transient, is_transient
from chassis.health import Health, Server, application
from chassis.kafka import KafkaPublisher
from chassis.log import get_logger
from chassis.message import Writer, time_header
from chassis.metrics import StageMetrics
from chassis.postgres import Database, role_of
from chassis.process import run_process, stop_on_signals, until_stopped, until_there
from chassis.relay import Relay
from chassis.roots import new_id
from chassis.vault import SCHEMA, FileKey, Vault
from schemas.telephony import ManifestPublished
from services.intake.app import STAGE
from services.intake.customers.record import Refused
from services.intake.door import customers, desk, ledger, telephony, waiting
from services.intake.door.access import Access
from services.intake.door.assistant import Assistant
from services.intake.door.cases import CaseView
from services.intake.door.entry import FEED, Entry
from services.intake.door.house import House
from services.intake.door.objections import said_no
from services.intake.door.scripts import scripts
from services.intake.door.settings import DoorSettings
from services.intake.door.sources import DEFAULT, Pbx, Webhook, load_sources
from services.intake.door.switches import Switches
from services.intake.waiting.agi import AgiServer

DECLARE_EVERY = 10.0
CLOCKS_APART = timedelta(seconds=5)
"""So far the clocks of two doors may differ; less than the time between two declarations."""
SEND_EVERY = 0.02
PRUNE_EVERY = 60.0
KEEP_TIME_EVERY = 10.0
STOP_WITHIN = 10.0
EXIT_FAILED = 70


_PROBLEMS = {"model_attributes_type": "is not a JSON object; send Content-Type: application/json"}
"""What FastAPI words for its own authors."""


class Door:
    """One door process; any number of them may run side by side."""

    def __init__(self, settings: DoorSettings) -> None:
        self._settings = settings
        url = settings.database_url.get_secret_value()
        vault_schema, schema = settings.schema_of(SCHEMA), settings.schema_of(STAGE.name)
        self._vault_database = Database(url, vault_schema, role=role_of(vault_schema), size=2)
        self._database = Database(url, schema, role=role_of(schema), size=8)
        self._publisher = KafkaPublisher(settings.kafka, "hotline-door")
        self._writer = Writer(FEED)
        metrics = StageMetrics("door")
        vault = Vault(self._vault_database, FileKey.at(settings.master_key_file))
        relay = Relay(STAGE, self._database, self._publisher, metrics, process=f"door-{os.getpid()}")
        entry = Entry(self._database, vault, relay)
        self._relay = relay
        self.house = House(settings, self._database, vault, entry, Access.at(settings.tokens_file))
        self._sources = load_sources(settings.sources_file, settings.http_host)
        self._assistant = Assistant(self.house)
        self._switches = Switches(self.house, self._sources)
        self._code = 0
        self._agi = AgiServer(
            scripts(self._assistant), settings.agi_host, settings.agi_port, ended=self._agi_ended
        )
        self._cases = CaseView(settings.kafka, self._database)
        self._health = Health(facts=self._facts)
        self._background: list[asyncio.Task[Any]] = []
        self._stop = asyncio.Event()
        self._declared_from = utc_now()
        self._last_look = (utc_now(), 0)
        self._log = get_logger(part="door")

    async def run(self) -> int:
        """Run until told to stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        stop_on_signals(self._stop)
        settings = self._settings
        app = web(self.house, self._health, self._assistant, self._sources)
        server = Server(app, settings.http_host, settings.http_port, settings.port_file)
        await self._listen_to_asterisk()
        await server.start()
        try:
            await until_stopped(self._start(), self._stop)
            await self._stop.wait()
        finally:
            loop.call_later(STOP_WITHIN, os._exit, 1)
            await server.stop()
            await self._agi.__aexit__()
            await self._cases.subscription.stop()
            for task in self._background:
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            await self._publisher.stop()
            await self._database.close()
            await self._vault_database.close()
        return self._code

    async def _listen_to_asterisk(self) -> None:
        try:
            await self._agi.__aenter__()
        except OSError as error:
            raise Misconfigured(
                f"FastAGI cannot listen on {self._settings.agi_host}:{self._settings.agi_port}:"
                f" {error.strerror}; set HOTLINE_AGI_PORT to a free port, or leave it unset"
            ) from None

    async def _start(self) -> None:
        await self._until_there("postgres", self._open_databases)
        # What comes in is kept even while Kafka is away: only then is it sent later.
        self._background.append(self._for_life(self.house.entry.run()))
        self._background.append(self._for_life(self._switches.run()))
        self._background.append(asyncio.create_task(self._for_ever(self._keep_time, KEEP_TIME_EVERY)))
        self._health.ready("start")
        await self._until_there("kafka", self._publisher.start)
        self._background += [
            self._relay.run_relay(SEND_EVERY),
            asyncio.create_task(self._for_ever(self._declare, DECLARE_EVERY)),
            asyncio.create_task(self._for_ever(self._prune, PRUNE_EVERY)),
        ]
        await self._until_there("kafka", self._cases.subscription.start)
        self._log.info("started")

    def _for_life(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what the door cannot be without: if it fails, the process ends and is started again."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                self._log.error("failed", exc_info=task.exception())
                self._code = EXIT_FAILED
                self._stop.set()

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        return task

    async def _until_there(self, part: str, attempt: Callable[[], Awaitable[None]]) -> None:
        await until_there(part, attempt, self._health, self._log)

    async def _open_databases(self) -> None:
        await self._database.reopen("chassis", "services.intake")
        await self._vault_database.reopen("chassis.vault")

    async def _for_ever(self, work: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                if not is_transient(error):
                    self._log.error("background_failed", exc_info=error, work=work.__name__)
            await asyncio.sleep(pause)

    async def _declare(self) -> None:
        """Say which numbers are published: what is missing then is proved to be lost.

        They are those that had been given at the last look, and have been sent since.
        """
        looked_at, through = self._last_look
        async with self._database.session() as tx:
            numbers = await ledger.declarable(tx, FEED, through, looked_at + CLOCKS_APART)
            self._last_look = (utc_now(), await ledger.published(tx, FEED))
        if numbers is None:
            return
        now = utc_now()
        body = ManifestPublished(
            source=FEED,
            from_seq=numbers[0],
            to_seq=numbers[1],
            count=numbers[1] - numbers[0] + 1,
            period_from=self._declared_from,
            period_to=now,
        )
        message = self._writer.write(body, uid=new_id(), at=time_header(now), correlation=FEED)
        await self._publisher.publish([message])
        async with self._database.session() as tx:
            await ledger.declared(tx, FEED, numbers[1])
        self._declared_from = now

    async def _prune(self) -> None:
        settings, more = self._settings, True
        while more:
            async with self._database.session() as tx:
                more = await ledger.prune(tx, settings.keep_deliveries, settings.keep_refused)

    async def _keep_time(self) -> None:
        await telephony.keep_time(self.house, self._sources)

    def _agi_ended(self, outcome: str) -> None:
        self.house.metrics.sessions.labels(outcome).inc()

    def _facts(self) -> dict[str, Any]:
        return {"part": "door", "pid": os.getpid(), "agi_port": self._agi.port}


def api(house: House, health: Health, assistant: Assistant) -> FastAPI:
    """Build the HTTP application: every room's routes, health, metrics, and one way to say no."""
    app = FastAPI(
        title="hotline intake",
        description="Telephony in, waiting callers informed, cases recorded.",
        version="1",
        # The pages that show the schema load scripts from elsewhere: the schema itself is enough.
        docs_url=None,
        redoc_url=None,
    )
    own = application(health, house.metrics.registry, house.settings.http_token_file)
    app.router.routes.extend(own.routes)

    @app.exception_handler(Transient)
    async def away(_: Request, error: Exception) -> Response:
        body = {"error": "try_again", "why": str(error), "next": "send the same again in a second"}
        return JSONResponse(body, 503, headers={"retry-after": "1"})

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Never what was in the field: it may be a customer's number.
        faults = [
            {
                "path": ".".join(str(part) for part in fault["loc"]),
                "problem": _PROBLEMS.get(fault["type"], fault["msg"]),
            }
            for fault in error.errors()
        ]
        body = {
            "error": "malformed",
            "why": "fields are missing or wrong",
            "next": "correct them, send again",
        }
        return JSONResponse({**body, "faults": faults[:20]}, 422)

    @app.exception_handler(HTTPException)
    async def no_such_address(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return said_no(error)

    app.add_exception_handler(Refused, customers.refused)
    app.include_router(waiting.router(house, assistant))
    app.include_router(desk.router(house))
    app.include_router(customers.router(house))
    return app


def web(
    house: House, health: Health, assistant: Assistant, sources: Mapping[str, Webhook | Pbx] = DEFAULT
) -> ASGIApp:
    """Build everything that answers HTTP: telephony's room in front, the application behind."""
    return _Front(api(house, health, assistant), Starlette(routes=telephony.routes(house, sources)))


class _Front:
    """Telephony's requests go straight to their room; everything else through the application."""

    def __init__(self, application: ASGIApp, telephony_room: ASGIApp) -> None:
        self._application, self._telephony = application, telephony_room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        room = self._telephony if scope.get("path", "").startswith("/telephony/") else self._application
        await room(scope, receive, send)


def main() -> None:
    """Run the door as a process and exit: 0 stopped, 1 by force, 70 failed, 78 misconfigured."""

    async def run(settings: DoorSettings) -> int:
        return await Door(settings).run()

    run_process(DoorSettings, run)
