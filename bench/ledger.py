"""`python -m bench.ledger`: how fast the observer reads, and what watching costs the stages.

Reading: the log of whole cases, judged from the first record by a fresh observer that shares one core with
PostgreSQL. Watching: drains with the observer and without it, in pairs. Steady: 500 records a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from rich.console import Console
from rich.table import Table

from bench.drain import Drain, Drained
from bench.measure import Meter, conditions, settled
from bench.ratio import ratio
from chassis.clock import monotonic, utc_now
from chassis.kafka import KafkaPublisher
from chassis.message import time_header
from chassis.roots import new_id
from chassis.transport import Outgoing
from cli.world import OBSERVER, Place, World
from deploy.local.stack import LocalStack
from schemas import intake, router
from schemas.envelope import BY_BODY

STEADY_RATE, STEADY_S = 500, 15.0
RESULTS = Path("bench/results/ledger.json")
_console = Console(stderr=True)


def _say(line: str) -> None:
    _console.print(f"[dim]· {line}[/dim]", highlight=False)


class Bench:
    """One world; its log grows with every drain."""

    def __init__(self, cases: int, pairs: int, seed: int) -> None:
        self._cases, self._pairs, self._seed = cases, pairs, seed
        self._world = World(Path(".run/bench") / "ledger")

    async def run(self) -> dict[str, Any]:
        """Measure everything; raises Incomplete when a run was not correct."""
        world = self._world
        world.stop_stages()
        world.stop_stack()
        world.wipe()
        before = conditions()
        place = await asyncio.to_thread(world.start_stack)
        try:
            await world.prepare(place)
            stack = LocalStack(world.folder)
            database, broker = stack.postgres.process, stack.kafka.process
            assert database is not None
            assert broker is not None
            meter = Meter(place.database_url, database.pid, broker.pid)
            watching = await self._watching(Drain(world, place, meter, "product", self._cases), place)
            reading = [await self._read(place, meter, database.pid) for _ in range(3)]
            steady = await self._steady(place, meter)
        finally:
            world.stop_stages()
            world.stop_stack()
            world.wipe()
        return {
            "records_per_s_of_one_core": _median(reading, "records_per_core_s"),
            "records_per_s": _median(reading, "records_per_s"),
            "core_at_500_records_per_s": steady,
            "stage_cpu_ratio": watching["cpu"],
            "stage_throughput_ratio": watching["throughput"],
            "reading": reading,
            "conditions": before,
        }

    # ------------------------------------------------------------ what watching costs

    async def _watching(self, drain: Drain, place: Place) -> dict[str, Any]:
        _say("warming up")
        await drain.run()
        dice = random.Random(self._seed)
        pairs: list[dict[bool, Drained]] = []
        for pair in range(self._pairs):
            order = [True, False]
            dice.shuffle(order)
            runs = {}
            for watched in order:
                await settled(place.database_url)
                if watched:
                    await self._start(place)
                runs[watched] = await drain.run()
                self._world.stop_stages((OBSERVER,))
                figures = runs[watched].figures()
                _say(
                    f"pair {pair + 1} of {self._pairs}, {'watched' if watched else 'alone'}:"
                    f" {figures['handled_events_per_s']:,} handled events/s, workers"
                    f" {figures['workers_us']} µs each"
                )
            pairs.append(runs)
        return {
            "cpu": ratio(
                [
                    (p[True].cost.workers / p[True].handled, p[False].cost.workers / p[False].handled)
                    for p in pairs
                ],
                self._seed,
            ),
            "throughput": ratio(
                [(p[True].handled / p[True].seconds, p[False].handled / p[False].seconds) for p in pairs],
                self._seed,
            ),
        }

    async def _start(self, place: Place) -> None:
        await _value(place, "delete from status")  # the last observer's word
        await asyncio.to_thread(self._world.start_beside, OBSERVER, place, {"HOTLINE_CANARY_EVERY_S": "0"})
        await self._world.wait_ready(stages=(OBSERVER,))
        await self._caught_up(place)

    async def _caught_up(self, place: Place) -> dict[str, Any]:
        while True:
            document = await _value(place, "select document from status")
            found = json.loads(document) if document else {"blind": "starting"}
            if not found["blind"] and not found["behind_records"] and not found["pending"]:
                return found
            await asyncio.sleep(0.1)

    # ------------------------------------------------------------ what it costs while all is well

    async def _steady(self, place: Place, meter: Meter) -> float:
        """The share of a core that the observer needs while records come at a steady pace."""
        await self._start(place)
        pid = self._world.pid_of(OBSERVER)
        assert pid is not None
        publisher = KafkaPublisher(place.kafka, "hotline-bench")
        await publisher.start()
        before, started, said = await meter.read([pid]), monotonic(), 0
        while (seconds := monotonic() - started) < STEADY_S:
            due = int(seconds * STEADY_RATE / 2)
            await publisher.publish([message for _ in range(said, due) for message in _handoff()])
            said = due
            await asyncio.sleep(0.01)
        cost = await meter.read([pid]) - before
        await publisher.stop()
        self._world.stop_stages((OBSERVER,))
        share = round(cost.workers / seconds, 3)
        _say(f"steady: {share:.1%} of a core at {2 * said / seconds:.0f} records/s")
        return share

    # ------------------------------------------------------------ how fast it reads

    async def _read(self, place: Place, meter: Meter, database: int) -> dict[str, Any]:
        """A fresh observer reads the whole log; it and PostgreSQL on one core."""
        await _empty(place)
        await settled(place.database_url)
        _pin(database, [0])
        await asyncio.to_thread(self._world.start_beside, OBSERVER, place, {"HOTLINE_CANARY_EVERY_S": "0"})
        pid = self._world.pid_of(OBSERVER)
        assert pid is not None
        _pin(pid, [0])
        await self._world.wait_ready(stages=(OBSERVER,))
        before, started = await meter.read([pid]), monotonic()
        taken = (await self._seen(place))["read"]
        found = await self._caught_up(place)
        seconds, cost = monotonic() - started, await meter.read([pid]) - before
        self._world.stop_stages((OBSERVER,))
        _pin(database, list(range(psutil.cpu_count() or 1)))
        records = found["read"] - taken
        spent = cost.workers + cost.postgres
        rows = await _value(place, "select count(*) from handoffs")
        figures = {
            "records": records,
            "handoffs": rows,
            "seconds": round(seconds, 2),
            "records_per_s": round(records / seconds),
            "records_per_core_s": round(records / spent),
            "observer_us": round(cost.workers / records * 1e6, 1),
            "postgres_us": round(cost.postgres / records * 1e6, 1),
        }
        _say(f"reading: {figures}")
        return figures

    async def _seen(self, place: Place) -> dict[str, Any]:
        while not (document := await _value(place, "select document from status")):
            await asyncio.sleep(0.02)
        found: dict[str, Any] = json.loads(document)
        return found


def _handoff() -> Iterator[Outgoing]:
    """One recorded case and its answer, as far as the observer looks: the headers."""
    case, event, at = str(new_id()).encode(), str(new_id()).encode(), time_header(utc_now())
    for body, uid, cause in (
        (intake.CaseRecorded, event, []),
        (router.CaseParked, str(new_id()).encode(), [("ce_causationid", event)]),
    ):
        kind = BY_BODY[body]
        stage = kind.name.partition(".")[0]
        yield Outgoing(
            f"{stage}.cases",
            case,
            b"{}",
            [
                ("ce_id", uid),
                ("ce_type", kind.wire.encode()),
                ("ce_source", f"/hotline/{stage}".encode()),
                ("ce_time", at),
                ("ce_sequence", b"0000000001"),
                *cause,
            ],
        )


def _pin(pid: int, cores: list[int]) -> None:
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            one.cpu_affinity(cores)


async def _value(place: Place, sql: str) -> Any:
    connection = await asyncpg.connect(place.database_url)
    try:
        await connection.execute(f'set search_path to "{place.database_prefix}{OBSERVER}"')
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def _empty(place: Place) -> None:
    tables = "handoffs, verdicts, early, counts, acts, positions, commits, blind, status"
    await _value(place, f"truncate {tables}")


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def main() -> int:
    """Measure, print the table, keep the figures."""
    words = argparse.ArgumentParser(prog="make bench-ledger", description=__doc__)
    words.add_argument("--quick", action="store_true", help="small: does it work, not how fast is it")
    words.add_argument("--seed", type=int, default=1, help="shuffles the order within pairs")
    words.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    given = words.parse_args()
    cases, pairs = (500, 1) if given.quick else (5_000, 5)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    report = asyncio.run(Bench(cases, pairs, given.seed).run())
    RESULTS.write_text(json.dumps(report, indent=2))
    if given.json:
        print(json.dumps(report))
        return 0
    table = Table("what", "measured", "goal", title="The observer on this machine", title_justify="left")
    table.add_row(
        "records per second of one core, with PostgreSQL",
        f"{report['records_per_s_of_one_core']:,.0f}",
        "≥ 20,000",
    )
    table.add_row("records per second on that core", f"{report['records_per_s']:,.0f}", "")
    share = report["core_at_500_records_per_s"]
    table.add_row("share of a core at 500 records per second", f"{share:.1%}", "≤ 10 %")
    for name, what in (
        ("stage_cpu_ratio", "CPU per handled event of the stages"),
        ("stage_throughput_ratio", "throughput of the stages"),
    ):
        found = report[name]
        table.add_row(
            f"{what}, watched ÷ alone", f"{found['median']} ({found['low']} … {found['high']})", "within 3 %"
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
