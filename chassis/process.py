"""The life of a stage's process: start when everything is there, watch itself, stop in time."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import uvloop

from chassis.batch import Pass
from chassis.clock import monotonic
from chassis.faults import Misconfigured, Transient, is_transient
from chassis.health import Health, Server, application
from chassis.kafka import KafkaPublisher, Subscription, check_topics, lag_of
from chassis.log import configure, get_logger
from chassis.metrics import StageMetrics
from chassis.pause import Reading
from chassis.postgres import BY_KEY, Database, role_of
from chassis.relay import Relay
from chassis.settings import Settings, load_settings
from chassis.stage import Stage
from chassis.vault import SCHEMA, FileKey, Vault

STOP_WITHIN = 30.0
STOP_STALLED_WITHIN = 3.0
COLLECT_EVERY = 20.0
EXIT_BY_FORCE = 1
EXIT_MISCONFIGURED = 78
EXIT_STALLED = 70


class Process:
    """One stage, wired to Kafka, PostgreSQL and HTTP."""

    def __init__(self, settings: Settings, build: Callable[[Settings, Vault], Stage]) -> None:
        self._settings = settings
        master = FileKey.at(settings.master_key_file)
        vault_schema = settings.schema_of(SCHEMA)
        url = settings.database_url.get_secret_value()
        self._vault_database = Database(
            url, vault_schema, role=role_of(vault_schema), size=2, planning=BY_KEY
        )
        self._vault = Vault(self._vault_database, master)
        self._stage = build(settings, self._vault)
        schema = settings.schema_of(self._stage.name)
        self._database = Database(url, schema, role=role_of(schema), planning=BY_KEY)
        self._metrics = StageMetrics(self._stage.name)
        self._publisher = KafkaPublisher(settings.kafka, f"hotline-{self._stage.name}")
        self._health = Health(facts=self._facts)
        self._reading: Reading | None = None
        self._pass: Pass | None = None
        self._background: list[asyncio.Task[Any]] = []
        self._stop = asyncio.Event()
        self._code = 0
        self._log = get_logger(stage=self._stage.name)

    async def run(self) -> int:
        """Run until told to stop; returns the exit code."""
        # A batch makes tens of thousands of short-lived objects and hardly a cycle: collecting while it
        # is folded costs a tenth of the CPU and finds nothing. `_collect_garbage` does it by the clock.
        gc.freeze()
        gc.disable()
        stop_on_signals(self._stop)
        server = Server(
            application(self._health, self._metrics.registry, self._settings.http_token_file),
            self._settings.http_host,
            self._settings.http_port,
            self._settings.port_file,
        )
        await server.start()
        try:
            await until_stopped(self._start(), self._stop)
            if not self._stop.is_set():
                await until_stopped(self._watch(), self._stop)
        finally:
            await self._shut_down()
            await server.stop()
        return self._code

    async def _start(self) -> None:
        await self._until_there("postgres", self._open_databases)
        await self._until_there("kafka", self._preflight)
        await self._until_there("kafka", self._publisher.start)
        relay = Relay(self._stage, self._database, self._publisher, self._metrics, process=str(os.getpid()))
        self._pass = handle = Pass(
            self._stage, self._database, self._publisher, self._vault.seal_record, self._metrics
        )
        self._reading = Reading(
            self._database,
            lambda: Subscription(
                self._settings.kafka,
                self._stage.name,
                self._stage.inputs,
                handle,
                handle.settle,
                self._stage.gather.total_seconds(),
            ),
        )
        await self._until_there("postgres", self._reading.look)
        await self._until_there("kafka", self._reading.start)
        self._background = [*relay.run(), asyncio.create_task(_collect_garbage())]
        self._health.ready("start")
        self._log.info("started", topics=list(self._stage.inputs))

    async def _until_there(self, part: str, attempt: Callable[[], Awaitable[None]]) -> None:
        await until_there(part, attempt, self._health, self._log)

    async def _open_databases(self) -> None:
        await self._database.reopen("chassis", f"services.{self._stage.name}")
        await self._vault_database.reopen("chassis.vault")

    async def _preflight(self) -> None:
        faults = await check_topics(self._settings.kafka, self._stage.inputs)
        if faults:
            raise Misconfigured("; ".join(faults))

    @property
    def _subscription(self) -> Subscription | None:
        return self._reading.subscription if self._reading is not None else None

    # ------------------------------------------------------------ watching

    async def _watch(self) -> None:
        """Measure lag; exit when records wait, everything works, and yet nothing moves.

        A partition that is blocked by a decision that raises stands still rightly: a new start would
        raise again, and take from the other partitions whoever reads them.
        """
        while True:
            await asyncio.sleep(5)
            lag = await self._measured_lag()
            if lag is None or self._pass is None:
                continue
            for place, records in lag.items():
                self._metrics.lag.labels(self._stage.name, place.topic, str(place.partition)).set(records)
            subscription = self._subscription
            if subscription is None:
                continue  # paused: it stands still rightly
            idle = monotonic() - subscription.progress.committed_at
            blocked = self._pass.blocked(subscription.progress.assigned)
            waiting = sum(records for place, records in lag.items() if place not in blocked)
            if waiting == 0:
                subscription.progress.committed_at = monotonic()
            elif idle > self._settings.stalled_after_s and await self._database_answers():
                self._log.error("stalled", lag=waiting, idle_s=round(idle))
                self._code = EXIT_STALLED
                return

    async def _measured_lag(self) -> dict[Any, int] | None:
        subscription = self._subscription
        try:
            async with asyncio.timeout(5):
                lag = (
                    await subscription.lag()
                    if subscription is not None
                    else await lag_of(self._settings.kafka, self._stage.name, self._stage.inputs)
                )
        except Exception as error:
            if not is_transient(error):
                raise
            self._health.not_ready("kafka", f"{type(error).__name__} while asking for offsets")
            return await self._lag_seen_by_another()
        self._health.ready("kafka")
        return lag

    async def _lag_seen_by_another(self) -> dict[Any, int] | None:
        """Ask with a fresh client, to tell whether Kafka is away or our own client no longer works."""
        try:
            async with asyncio.timeout(10):
                return await lag_of(self._settings.kafka, self._stage.name, self._stage.inputs)
        except Exception as error:
            if not is_transient(error):
                raise
            return None

    async def _database_answers(self) -> bool:
        try:
            async with asyncio.timeout(5), self._database.session() as tx:
                await tx.fetchval("select 1")
        except Exception as error:
            self._health.not_ready("postgres", type(error).__name__)
            return False
        self._health.ready("postgres")
        return True

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "stage": self._stage.name,
            "pid": os.getpid(),
            "handled": self._metrics.handled_total,
        }
        if self._reading is not None and self._reading.pause is not None:
            facts["paused_since"] = self._reading.pause.since.isoformat(timespec="seconds")
        if self._subscription is not None:
            progress = self._subscription.progress
            facts["partitions"] = len(progress.assigned)
            facts["last_poll_s"] = round(monotonic() - progress.polled_at, 1)
            facts["last_commit_s"] = round(monotonic() - progress.committed_at, 1)
        return facts

    # ------------------------------------------------------------ stopping

    async def _shut_down(self) -> None:
        """Finish the batch under way, leave the group, close; by force after a while.

        Whoever stands still has nothing to finish; what is not committed is read again at the next start.
        """
        within = STOP_STALLED_WITHIN if self._code == EXIT_STALLED else STOP_WITHIN
        asyncio.get_running_loop().call_later(within, os._exit, self._code or EXIT_BY_FORCE)
        if self._reading is not None:
            await self._reading.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._publisher.stop()
        await self._database.close()
        await self._vault_database.close()
        self._log.info("stopped", code=self._code)


async def until_there(part: str, attempt: Callable[[], Awaitable[None]], health: Health, log: Any) -> None:
    """Try until a part answers, a clear line each time that it does not; raises what waiting cannot mend."""
    while True:
        try:
            await attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            why = str(error) if isinstance(error, Transient) else type(error).__name__
            health.not_ready(part, why)
            log.warning("waiting", part=part, why=why)
            await asyncio.sleep(5 if part == "kafka" else 2)
        else:
            health.ready(part)
            return


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set the event when this process is told to stop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def until_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Do the work until it ends, or until told to stop: then it is cancelled; raises what it raises."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        task.result()
        return
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _collect_garbage() -> None:
    while True:
        await asyncio.sleep(COLLECT_EVERY)
        gc.collect()


S = TypeVar("S", bound=Settings)


def run_process(kind: type[S], run: Callable[[S], Coroutine[Any, Any, int]]) -> None:
    """Read the settings, run, and exit with the code that `run` gives, or 78 when misconfigured."""
    try:
        settings = load_settings(kind)
        configure(settings.log_level)
        code = uvloop.run(run(settings))
    except Misconfigured as error:
        print(f"hotline: {error}", file=sys.stderr)  # noqa: T201 - the last word before exit
        code = EXIT_MISCONFIGURED
    sys.stdout.flush()
    os._exit(code)


def run_stage(build: Callable[[Settings, Vault], Stage], kind: type[Settings] = Settings) -> None:
    """Run a stage as a process and exit: 0 stopped, 1 stopped by force, 70 stalled, 78 misconfigured."""

    async def run(settings: Settings) -> int:
        return await Process(settings, build).run()

    run_process(kind, run)
