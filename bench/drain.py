"""Drains a backlog through all four stages, in three phases, and reads what it cost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import asyncpg

from bench.load import HANDLED_PER_CASE, Load
from bench.measure import Cost, Meter, cpu_of, pss_mib
from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher
from chassis.roots import new_batch_id
from chassis.transport import Outgoing
from cli.world import Place, World
from schemas.topics import STAGES

Variant = Literal["product", "naive"]
_USABLE = min(len(os.sched_getaffinity(0)), len(STAGES))
"""Cores that a drain can fill: each stage is one thread."""


class Incomplete(Exception):
    """A run in which not every case arrived has no figures."""


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain: how much was handled, how long it took, what it cost."""

    cases: int
    handled: int
    seconds: float
    cost: Cost
    pss_mib: float
    each: dict[str, float]
    """CPU seconds of each stage's own process."""

    def figures(self) -> dict[str, Any]:
        """The run as a row of the report."""
        return {
            "cases": self.cases,
            "handled_events": self.handled,
            "seconds": round(self.seconds, 2),
            "handled_events_per_s": round(self.handled / self.seconds),
            "cases_per_s": round(self.cases / self.seconds),
            "cores_busy_share": round(self.cost.cpu / self.seconds / _USABLE, 3),
            "cpu_us_per_event": round(self.cost.cpu / self.handled * 1e6, 1),
            "cpu_ms_per_case": round(self.cost.cpu / self.cases * 1000, 3),
            "workers_us": round(self.cost.workers / self.handled * 1e6, 1),
            "postgres_us": round(self.cost.postgres / self.handled * 1e6, 1),
            "broker_us": round(self.cost.broker / self.handled * 1e6, 1),
            "wal_bytes_per_case": round(self.cost.wal / self.cases),
            "pss_mib": self.pss_mib,
            "stage_us_per_case": {
                stage: round(spent / self.cases * 1e6) for stage, spent in self.each.items()
            },
        }


class Drain:
    """Runs one variant with one number of cases, again and again, on one world.

    The backlog is that of an outage in full operation: one cohort's calls, the departments' answers
    to the cohort before, the customers' answers of the one before that. So each drain handles
    exactly one whole life per case, with all four stages at work.
    """

    def __init__(self, world: World, place: Place, meter: Meter, variant: Variant, cases: int) -> None:
        self._world, self._place, self._meter = world, place, meter
        self._variant, self._cases = variant, cases
        self._delivered: Load | None = None
        self._told: Load | None = None
        self._naive: list[subprocess.Popen[bytes]] = []
        self._handled_before = 0

    async def prime(self) -> None:
        """Bring one cohort as far as told and the next as far as delivered; not measured."""
        first, second = await self._cohort(), await self._cohort()
        for messages, handled in (
            (first.calls(), 8),
            (first.departments(first.planned), 4),
            (second.calls(), 8),
        ):
            await self._drain("product", messages, handled * self._cases)
        self._told, self._delivered = first, second

    async def run(self) -> Drained:
        """Load the mixed backlog with the stages down, start them, measure until all is handled."""
        if self._told is None or self._delivered is None:
            await self.prime()
        told, delivered, fresh = self._told, self._delivered, await self._cohort()
        assert told is not None
        assert delivered is not None
        backlog = [
            *fresh.calls(),
            *delivered.departments(delivered.planned),
            *told.customers(told.planned),
        ]
        done = await self._drain(self._variant, backlog, HANDLED_PER_CASE * self._cases)
        self._told, self._delivered = delivered, fresh
        return done

    async def _cohort(self) -> Load:
        vault = await self._world.vault(self._place)
        load = Load(vault, self._cases)
        await load.prepare()
        await vault.close()
        return load

    async def _publish(self, messages: list[Outgoing]) -> None:
        publisher = KafkaPublisher(self._place.kafka, "hotline-bench")
        await publisher.start()
        for start in range(0, len(messages), 4000):
            await publisher.publish(messages[start : start + 4000])
        await publisher.stop()

    async def _drain(self, variant: Variant, backlog: list[Outgoing], expected: int) -> Drained:
        """Start the stages on the backlog; measure from all ready until everything is handled and sent."""
        await self._publish(backlog)
        wanted, since = await self._handled() + expected, new_batch_id()
        pids = self._start(variant)
        await self._wait_started(variant)
        before, early = await self._meter.read(pids), await self._done_so_far(variant, since)
        each_before = [cpu_of(pid) for pid in pids]
        started = looked = monotonic()
        pss = 0.0
        while not (await self._done_so_far(variant, since) >= expected and await self._idle()):
            if monotonic() - looked > 1:
                pss, looked = max(pss, pss_mib(pids)), monotonic()
            await asyncio.sleep(0.25)
            if monotonic() - started > 900:
                raise Incomplete(f"{await self._handled()} of {wanted} inputs handled after 900 s")
        seconds = monotonic() - started
        cost = await self._meter.read(pids) - before
        spent = [cpu_of(pid) - earlier for pid, earlier in zip(pids, each_before, strict=True)]
        handled = expected - early
        self._stop(variant)
        if await self._handled() != wanted:
            raise Incomplete(f"{await self._handled()} inputs handled, {wanted} expected")
        return Drained(
            round(handled / HANDLED_PER_CASE),
            handled,
            seconds,
            cost,
            pss,
            dict(zip(STAGES, spent, strict=True)),
        )

    async def _done_so_far(self, variant: Variant, since: int) -> int:
        """Ask cheaply, so that asking costs nothing: the product's own count, or the new rows."""
        if variant == "product":
            return sum([(await self._world.health(stage)).get("handled", 0) for stage in STAGES])
        return sum([await self._count(stage, since) for stage in STAGES])

    async def _handled(self) -> int:
        return sum([await self._count(stage, 0) for stage in STAGES])

    async def _count(self, stage: str, since: int) -> int:
        inbox = f'"{self._place.database_prefix}{stage}".inbox'
        return int(await self._value(f"select count(*) from {inbox} where batch >= {since}"))

    async def _idle(self) -> bool:
        for stage in STAGES:
            schema = f"{self._place.database_prefix}{stage}"
            if await self._value(
                f'select exists(select from "{schema}".unpublished) or exists(select from "{schema}".tasks)'
            ):
                return False
        return True

    async def _value(self, sql: str) -> Any:
        connection = await asyncpg.connect(self._place.database_url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    def _start(self, variant: Variant) -> list[int]:
        if variant == "product":
            self._world.start_stages(self._place)
            return [pid for stage in STAGES if (pid := self._world.pid_of(stage))]
        self._naive = []
        for stage in STAGES:
            port = self._world.folder / f"{stage}.port"
            port.unlink(missing_ok=True)
            log = (self._world.folder / f"naive-{stage}.log").open("ab")
            self._naive.append(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.naive.stage", stage],
                    env={
                        **self._world.environment(self._place),
                        "HOTLINE_PORT_FILE": str(port),
                        "PYTHONPATH": str(Path.cwd()),
                    },
                    stdout=log,
                    stderr=log,
                )
            )
        return [process.pid for process in self._naive]

    async def _wait_started(self, variant: Variant) -> None:
        if variant == "product":
            await self._world.wait_ready()
            return
        while not all((self._world.folder / f"{stage}.port").exists() for stage in STAGES):
            await asyncio.sleep(0.05)

    def _stop(self, variant: Variant) -> None:
        if variant == "product":
            self._world.stop_stages()
            return
        for process in self._naive:
            process.send_signal(signal.SIGKILL)
        for process in self._naive:
            process.wait(20)
