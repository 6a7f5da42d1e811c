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
from bench.measure import Cost, Meter, pss_mib
from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher
from chassis.transport import Outgoing
from cli.world import Place, World
from schemas.topics import STAGES

Variant = Literal["product", "naive"]


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

    def figures(self) -> dict[str, Any]:
        """The run as a row of the report."""
        return {
            "cases": self.cases,
            "handled_events": self.handled,
            "seconds": round(self.seconds, 2),
            "handled_events_per_s": round(self.handled / self.seconds),
            "cases_per_s": round(self.cases / self.seconds),
            "cpu_us_per_event": round(self.cost.cpu / self.handled * 1e6, 1),
            "cpu_ms_per_case": round(self.cost.cpu / self.cases * 1000, 3),
            "workers_us": round(self.cost.workers / self.handled * 1e6, 1),
            "postgres_us": round(self.cost.postgres / self.handled * 1e6, 1),
            "broker_us": round(self.cost.broker / self.handled * 1e6, 1),
            "wal_bytes_per_case": round(self.cost.wal / self.cases),
            "pss_mib": self.pss_mib,
        }


class Drain:
    """Runs one variant on one world, again and again."""

    def __init__(self, world: World, place: Place, meter: Meter) -> None:
        self._world, self._place, self._meter = world, place, meter
        self._goal: dict[str, int] = {}
        self._naive: list[subprocess.Popen[bytes]] = []

    async def run(self, variant: Variant, cases: int) -> Drained:
        """Load `cases` cases phase by phase with the stages down, drain each phase, add up."""
        self._goal = {stage: await self._count(stage) for stage in STAGES}
        vault = await self._world.vault(self._place)
        load = Load(vault, cases)
        await load.prepare()
        seconds, handled, pss = 0.0, 0, 0.0
        total = Cost(0.0, 0.0, 0.0, 0)
        phases = [
            (load.calls, "resolver", cases),
            (lambda: load.departments(load.planned), "feedback", 2 * cases),
            (lambda: load.customers(load.planned), "feedback", 3 * cases),
        ]
        for build, last, expected in phases:
            await self._publish(build())
            done = await self._drain(variant, last, expected)
            if os.environ.get("BENCH_PHASES"):
                print(
                    "  phase",
                    round(done[0], 2),
                    done[1],
                    round(done[1] / done[0]),
                    round(done[2].cpu / done[0], 2),
                    done[2],
                )
            seconds, handled, pss = seconds + done[0], handled + done[1], max(pss, done[3])
            total = Cost(
                total.workers + done[2].workers,
                total.postgres + done[2].postgres,
                total.broker + done[2].broker,
                total.wal + done[2].wal,
            )
        arrived = await self._handled() - sum(self._goal.values())
        if arrived != cases * HANDLED_PER_CASE:
            raise Incomplete(f"{arrived} inputs handled, {cases * HANDLED_PER_CASE} expected")
        return Drained(cases, handled, seconds, total, pss)

    async def _publish(self, messages: list[Outgoing]) -> None:
        publisher = KafkaPublisher(self._place.kafka, "hotline-bench")
        await publisher.start()
        for start in range(0, len(messages), 4000):
            await publisher.publish(messages[start : start + 4000])
        await publisher.stop()

    async def _drain(self, variant: Variant, last: str, expected: int) -> tuple[float, int, Cost, float]:
        """Start the stages on the backlog; measure from all ready until the last stage has it all."""
        wanted = self._goal[last] + expected
        pids = self._start(variant)
        await self._wait_started(variant)
        before, handled_before = await self._meter.read(pids), await self._handled()
        started = monotonic()
        pss = 0.0
        while await self._count(last) < wanted or not await self._idle():
            pss = max(pss, pss_mib(pids))
            await asyncio.sleep(0.05)
            if monotonic() - started > 600:
                raise Incomplete(f"{last} has {await self._count(last)} of {wanted} after 600 s")
        seconds = monotonic() - started
        cost = await self._meter.read(pids) - before
        handled = await self._handled() - handled_before
        self._stop(variant)
        return seconds, handled, cost, pss

    async def _count(self, stage: str) -> int:
        return int(await self._value(f'select count(*) from "{self._place.database_prefix}{stage}".inbox'))

    async def _handled(self) -> int:
        return sum([await self._count(stage) for stage in STAGES])

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
                    env={**self._world.environment(self._place, stage), "PYTHONPATH": str(Path.cwd())},
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
