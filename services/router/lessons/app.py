"""Wiring of what the router does by the clock: it looks for drift every hour, and learns every night."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Gauge

from chassis.faults import Misconfigured, is_transient
from chassis.health import Health, Server, application
from chassis.log import get_logger
from chassis.postgres import Database, role_of
from chassis.process import run_process, stop_on_signals, until_stopped, until_there
from chassis.vault import SCHEMA, FileKey, Vault
from services.router import lessons
from services.router.decision import Desk
from services.router.learning import LIMITS
from services.router.lessons import Act, runs
from services.router.lessons.night import Night, NotTrained, Trained, nights
from services.router.lessons.runs import Clock, Job, Run
from services.router.lessons.schedule import daily, every, is_due
from services.router.lessons.settings import LessonSettings
from services.router.reading import Reading, load_shipped
from services.router.rules import BadRules, load_rules

LOOK_EVERY_S = 5.0
ATTEMPTS = 8
"""So often a job is tried for one slot, at looks that lie 1, 2, 4 … 64 apart: for ten minutes."""
STOP_WITHIN = 10.0
Found: TypeAlias = dict[str, Any]


class LessonMetrics:
    """What is shown of the last runs, whichever process has done them."""

    def __init__(self) -> None:
        of = self.registry = CollectorRegistry()
        # A label `job` is Prometheus's own: here it is a task.
        self._alarms = Gauge(
            "router_drift_alarms", "Alarms that ring, by kind", ["alarm", "window"], registry=of
        )
        self._restricted = Gauge(
            "router_restricted_departments", "For so many the classifier may not decide", registry=of
        )
        self._last = Gauge(
            "router_last_run_timestamp_seconds", "When a job was last done", ["task"], registry=of
        )
        self._failed = Gauge("router_last_run_failed", "1 when its last run failed", ["task"], registry=of)
        self._not_in_force = Gauge(
            "router_not_in_force", "1 while this is activated and cannot be loaded", ["what"], registry=of
        )
        self._named = {"rules"}
        self.not_in_force({})

    def not_in_force(self, faults: Iterable[str]) -> None:
        """Show what cannot be loaded, and what can be again."""
        faulty = set(faults)
        self._named |= faulty
        for what in self._named:
            self._not_in_force.labels(what).set(what in faulty)

    def show(self, done: dict[Job, Run], restricted: int) -> None:
        """Show these; what no job has found yet is absent."""
        self._restricted.set(restricted)
        for job, run in done.items():
            self._last.labels(job).set(run.ran_at.timestamp())
            self._failed.labels(job).set(run.failed)
        ringing = done["watch"].found.get("ringing", {}) if "watch" in done else {}
        for window, alarms in ringing.items():
            for alarm in LIMITS:
                self._alarms.labels(alarm, window).set(alarms.get(alarm, 0))


@dataclass(slots=True)
class _Attempts:
    """Attempts at a job that have failed, one after the other, and how many looks it rests now."""

    failed: int = 0
    rest: int = 0

    def fail(self) -> None:
        self.rest = 2 ** min(self.failed, ATTEMPTS - 1) - 1
        self.failed += 1


class Schedule:
    """Does what is due, if no other process does; `clock` tells the time."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        settings: LessonSettings,
        metrics: LessonMetrics,
        clock: Clock = runs.now,
    ) -> None:
        self._database, self._vault, self._settings = database, vault, settings
        self._metrics, self._clock = metrics, clock
        try:
            rules = load_rules(settings.rules_file)
        except BadRules as error:
            raise Misconfigured(str(error)) from None
        self._reading = Reading(vault, Desk(rules), load_shipped(settings.models))
        self._not_trained: dict[str, str] = {}
        self._attempts: defaultdict[Job, _Attempts] = defaultdict(_Attempts)
        self._log = get_logger(part="lessons")

    async def turn(self) -> None:
        """Do what is due now, then show the last runs; raises what ails the database, not what ails a job."""
        async with self._database.session() as tx:
            now = await self._clock(tx)
            # As the router does with the next case: but nobody knows when that comes.
            await self._reading.refresh(tx)
        self._metrics.not_in_force(self._reading.faults)
        await self._once("watch", every(self._settings.watch_every, now), self._watch)
        await self._once("retrain", daily(self._settings.retrain_at, self._reading.zone, now), self._learn)
        async with self._database.session() as tx:
            self._metrics.show(await runs.last(tx), len(await lessons.restrictions(tx)))

    async def _once(
        self, job: Job, slot: datetime, work: Callable[[datetime], Awaitable[Found | None]]
    ) -> None:
        if not await self._is_due(job, slot):
            self._attempts.pop(job, None)
            return
        if self._attempts[job].rest > 0:
            self._attempts[job].rest -= 1
            return
        async with runs.alone(self._database, job) as tx:
            # Another process may have done it since we looked.
            if tx is None or not await self._is_due(job, slot):
                return
            now = await self._clock(tx)
            try:
                found = await work(now)
                await runs.note(tx, job, slot, now, found)
            except Exception as error:
                if self._tries_again(job, error):
                    return
                found = None
                await runs.note(tx, job, slot, now, None)
            self._attempts.pop(job, None)
            if found is not None:
                self._log.info("run", job=job, late_s=round((now - slot).total_seconds()))

    def _tries_again(self, job: Job, error: Exception) -> bool:
        """Tell whether a failed job is done again for its slot: what time may mend is, for a while."""
        attempts = self._attempts[job]
        attempts.fail()
        if is_transient(error) and attempts.failed < ATTEMPTS:
            after = (attempts.rest + 1) * LOOK_EVERY_S
            self._log.warning("run_put_off", job=job, why=type(error).__name__, again_in_s=after)
            return True
        # It would fail again: the next slot is soon enough, and the alarm tells of it.
        self._log.error("run_failed", job=job, exc_info=error)
        return False

    async def _is_due(self, job: Job, slot: datetime) -> bool:
        async with self._database.session() as tx:
            done = (await runs.last(tx)).get(job)
            return is_due(slot, done.slot if done else None, await self._clock(tx))

    # ------------------------------------------------------------ the jobs

    async def _watch(self, now: datetime) -> Found:
        """Look for drift in the last hour and the last day."""
        ringing = {}
        for window, length in lessons.WINDOWS.items():
            async with self._database.transaction() as tx:
                act = Act("watch", f"alarm of the last {window}", now)
                found, taken = await lessons.supervise(tx, length, act)
            alarms = [one for one in found if one.rings]
            for one in alarms:
                of = one.language or one.department
                self._log.warning("drift", alarm=one.alarm, of=of, window=window, figure=one.figure)
            for department in taken:
                self._log.warning("department_restricted", department=department, window=window)
            ringing[window] = Counter(one.alarm for one in alarms)
        return {"ringing": ringing}

    async def _learn(self, _: datetime) -> Found | None:
        """Judge the watched models, train the next ones; None: one should have been trained and was not."""
        done = await nights(self._database, self._vault, self._settings.models, self._clock)
        for night in done:
            self._tell(night)
        return None if any(night.failed for night in done) else {}

    def _tell(self, night: Night) -> None:
        if night.judged is not None:
            why = "; ".join(night.judged.why)
            verdict = night.judged.verdict
            self._log.info("judged", language=night.language, model=night.watched, verdict=verdict, why=why)
        match night.trained:
            case Trained(model=model, watched=watched):
                self._log.info("trained", language=night.language, model=model.sha256, watched=watched)
            case NotTrained(why=why, next_step=next_step) if night.failed:
                self._log.error("training_failed", language=night.language, why=why, next=next_step)
            case NotTrained(why=why, next_step=next_step) if self._not_trained.get(night.language) != why:
                # Once: tomorrow it will be the same.
                self._not_trained[night.language] = why
                self._log.info("not_trained", language=night.language, why=why, next=next_step)


class Lessons:
    """The process; any number may run side by side, one of them acts."""

    def __init__(self, settings: LessonSettings) -> None:
        self._settings = settings
        url = settings.database_url.get_secret_value()
        vault_schema, schema = settings.schema_of(SCHEMA), settings.schema_of("router")
        self._vault_database = Database(url, vault_schema, role=role_of(vault_schema), size=1)
        self._database = Database(url, schema, role=role_of(schema), size=3)
        vault = Vault(self._vault_database, FileKey.at(settings.master_key_file))
        self._metrics = LessonMetrics()
        self._schedule = Schedule(self._database, vault, settings, self._metrics)
        self._health = Health(facts=lambda: {"part": "lessons", "pid": os.getpid()})
        self._stop = asyncio.Event()
        self._log = get_logger(part="lessons")

    async def run(self) -> int:
        """Run until told to stop; returns the exit code. What is stopped halfway is done again."""
        loop, settings = asyncio.get_running_loop(), self._settings
        stop_on_signals(self._stop)
        app = application(self._health, self._metrics.registry, settings.http_token_file)
        server = Server(app, settings.http_host, settings.http_port, settings.port_file)
        await server.start()
        try:
            await until_stopped(self._work(), self._stop)
        finally:
            # A training that has begun cannot be interrupted, and nothing of it is lost.
            loop.call_later(STOP_WITHIN, os._exit, 0)
            await server.stop()
            await self._database.close()
            await self._vault_database.close()
        return 0

    async def _work(self) -> None:
        await until_there("postgres", self._open, self._health, self._log)
        self._health.ready("start")
        self._log.info("started")
        while True:
            try:
                await self._schedule.turn()
                self._health.ready("postgres")
            except Exception as error:
                if not is_transient(error):
                    raise
                self._health.not_ready("postgres", type(error).__name__)
                self._log.warning("waiting", part="postgres", why=type(error).__name__)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _open(self) -> None:
        await self._database.reopen("chassis", "services.router")
        await self._vault_database.reopen("chassis.vault")


def main() -> None:
    """Run the process and exit: 0 stopped, 78 misconfigured."""

    async def run(settings: LessonSettings) -> int:
        return await Lessons(settings).run()

    run_process(LessonSettings, run)
