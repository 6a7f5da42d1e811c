"""`python -m bench.ledger`: what the ledger costs the stages, and what the observer itself needs.

Stages: drains in pairs, as the stages are and without what they do for the ledger alone (`bench.unwatched`);
no observer runs. Beside: drains in pairs, with the observer on the same cores and without it. Reading: the
log of whole cases, judged from the first record by a fresh observer that shares one core with PostgreSQL.
Steady: 500 records a second. Detection: meanwhile, from a group's commit past an event that nothing answers
to the verdict that anybody can read. Memory: what one handoff more holds while it is open.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from aiokafka import TopicPartition
from rich.console import Console
from rich.table import Table

from bench.drain import Drain, Drained, Incomplete
from bench.measure import Meter, conditions, settled
from bench.ratio import ratio
from bench.unwatched.drain import PRODUCT, UNWATCHED, StandingDrain, together
from chassis.clock import epoch_ms, monotonic, utc_now
from chassis.kafka import KafkaPublisher, abandon, reader
from chassis.message import time_header
from chassis.roots import new_id
from chassis.transport import Outgoing, partition_for
from chassis.transport import Place as Partition
from cli.world import OBSERVER, Place, World
from deploy.local.stack import LocalStack
from observer.contract import contract_of
from observer.headers import Said
from observer.ledger import Ledger
from schemas import intake, resolver, router
from schemas.envelope import BY_BODY, Body
from schemas.topics import BY_NAME

STEADY_RATE, STEADY_S = 500, 15.0
RESULTS = Path("bench/results/ledger.json")
_FOLDER = Path(".run/bench")
_VERDICT = (
    "select exists(select from verdicts where topic = $1 and partition = $2 and record_offset = $3"
    " and state = 'dropped')"
)
_console = Console(stderr=True)


def _say(line: str) -> None:
    _console.print(f"[dim]· {line}[/dim]", highlight=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: cases per drain or round, turns per round, rounds, pairs, handoffs dropped."""

    cases: int
    turns: int
    rounds: int
    beside_pairs: int
    drops: int


FULL = Plan(cases=4_000, turns=10, rounds=10, beside_pairs=5, drops=200)
QUICK = Plan(cases=400, turns=2, rounds=2, beside_pairs=1, drops=20)


class Bench:
    """Two worlds, one after the other; the log of each grows with every drain."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._seed = plan, seed
        self._world = World(_FOLDER / "ledger")

    async def run(self) -> dict[str, Any]:
        """Measure everything; raises Incomplete when a run was not correct."""
        before = conditions()
        async with self._opened("unwatched") as (place, meter):
            stages = await self._stages(place, meter)
        async with self._opened("ledger") as (place, meter):
            beside = await self._beside(place, meter)
            reading = [await self._read(place, meter) for _ in range(3)]
            await self._start(place)
            steady = await self._steady(place, meter)
            detection = await self._detection(place)
        return {
            "stages": stages,
            "observer_beside": beside,
            "records_per_s_of_one_core": _median(reading, "records_per_core_s"),
            "records_per_s": _median(reading, "records_per_s"),
            "core_at_500_records_per_s": steady,
            "detection_s": detection,
            "bytes_per_open_handoff": round(bytes_per_open_handoff()),
            "reading": reading,
            "conditions": before,
        }

    @asynccontextmanager
    async def _opened(self, name: str) -> AsyncIterator[tuple[Place, Meter]]:
        """A world of its own, from nothing to nothing; with its meter."""
        world = self._world = World(_FOLDER / name)
        world.stop_stages()
        world.stop_stack()
        world.wipe()
        place = await asyncio.to_thread(world.start_stack)
        try:
            await world.prepare(place)
            yield place, Meter.of(LocalStack(world.folder))
        finally:
            world.stop_stages()
            world.stop_stack()
            world.wipe()

    # ------------------------------------------------------------ what the ledger costs the stages

    async def _stages(self, place: Place, meter: Meter) -> dict[str, Any]:
        """The stages as they are, against themselves without what they do for the ledger alone, by turns.

        Each kind has a world of its own on one Kafka and one PostgreSQL. A pair is two short turns, one of
        each, so that both have the same minute of a machine that is shared; rounds of many turns are told.
        What the database has to tidy up is done between rounds, not in somebody's turn.
        """
        plan, dice = self._plan, random.Random(self._seed)
        drains = {
            name: StandingDrain(
                World(self._world.folder / name),
                replace(place, kafka_prefix=f"{name}.", database_prefix=f"{name}_"),
                meter,
                module,
                plan.cases // plan.turns,
            )
            for name, module in (("watchable", PRODUCT), ("unwatched", UNWATCHED))
        }
        turns: dict[str, list[Drained]] = {name: [] for name in drains}
        await _execute(place, "alter system set autovacuum = off", "select pg_reload_conf()")
        try:
            for drain in drains.values():
                _say("warming up")
                await drain.start()
                await drain.run()
            for number in range(plan.rounds):
                await _execute(place, "vacuum analyze", "checkpoint")
                for _ in range(plan.turns):
                    for name in dice.sample(list(drains), len(drains)):
                        turns[name].append(await drains[name].run())
                for name, done in turns.items():
                    _tell(f"round {number + 1} of {plan.rounds}, {name}", together(done[-plan.turns :]))
        finally:
            for name in drains:
                World(self._world.folder / name).stop_stages()
        return self._compared(turns)

    async def _beside(self, place: Place, meter: Meter) -> dict[str, Any]:
        """The same stages with the observer on their cores, against themselves alone."""
        drain = Drain(self._world, place, meter, "product", self._plan.cases)
        _say("warming up")
        await drain.run()
        dice, pairs = random.Random(self._seed), self._plan.beside_pairs
        runs: dict[str, list[Drained]] = {"beside": [], "alone": []}
        for pair in range(pairs):
            for name in dice.sample(list(runs), len(runs)):
                await settled(place.database_url)
                if name == "beside":
                    await self._start(place)
                runs[name].append(await drain.run())
                self._world.stop_stages((OBSERVER,))
                _tell(f"observer: pair {pair + 1} of {pairs}, {name}", runs[name][-1])
        return self._compared(runs)

    def _compared(self, runs: Mapping[str, list[Drained]]) -> dict[str, Any]:
        """The first ÷ the second, pair by pair."""
        pairs = list(zip(*runs.values(), strict=True))
        figures: Mapping[str, Callable[[Drained], float]] = {
            "cpu": lambda done: done.cost.cpu / done.handled,
            "workers": lambda done: done.cost.workers / done.handled,
            "throughput": lambda done: done.handled / done.seconds,
            "wal": lambda done: done.cost.wal / done.handled,
        }
        ratios = {
            name: ratio([(figure(first), figure(second)) for first, second in pairs], self._seed)
            for name, figure in figures.items()
        }
        return {**ratios, "runs": {name: [done.figures() for done in list_] for name, list_ in runs.items()}}

    async def _start(self, place: Place) -> None:
        await _value(place, "delete from status")  # the last observer's word
        await asyncio.to_thread(self._world.start_beside, OBSERVER, place, {"HOTLINE_CANARY_EVERY_S": "0"})
        await self._world.wait_ready(stages=(OBSERVER,))
        await self._caught_up(place)

    async def _caught_up(self, place: Place) -> dict[str, Any]:
        async with _connected(place) as ledger:  # one for all looks: a new one each time is work, too
            while True:
                document = await ledger.fetchval("select document from status")
                found: dict[str, Any] = json.loads(document) if document else {"blind": "starting"}
                if not found["blind"] and not found["behind_records"] and not found["pending"]:
                    return found
                await asyncio.sleep(0.1)

    # ------------------------------------------------------------ what it costs while all is well

    async def _steady(self, place: Place, meter: Meter) -> dict[str, float]:
        """The share of a core that the observer needs while records come at a steady pace."""
        pid = self._world.pid_of(OBSERVER)
        assert pid is not None
        async with _steady_pace(place):
            read, before, started = (await self._seen(place))["read"], await meter.read([pid]), monotonic()
            await asyncio.sleep(STEADY_S)
            cost, seconds = await meter.read([pid]) - before, monotonic() - started
            read = (await self._seen(place))["read"] - read
        shares = {
            "observer": round(cost.workers / seconds, 3),
            "with_postgres": round((cost.workers + cost.postgres) / seconds, 3),
            "records_per_s": round(read / seconds),
        }
        _say(f"steady: {shares}")
        return shares

    # ------------------------------------------------------------ how soon it tells

    async def _detection(self, place: Place) -> dict[str, float]:
        """Seconds from the commit past an unanswered result to its verdict in the table."""
        case, drops, dice = str(new_id()), self._plan.drops, random.Random(self._seed)
        await _publish(place, [_said(resolver.CaseResolved, case, str(new_id())) for _ in range(drops)])
        await self._caught_up(place)
        partition = partition_for(case.encode(), BY_NAME[resolver.CASES].partitions)
        tp = TopicPartition(place.kafka.prefix + resolver.CASES, partition)
        feedback = reader(place.kafka, group="feedback")
        await feedback.start()
        feedback.assign([tp])
        end, found = (await feedback.end_offsets([tp]))[tp], []
        async with _steady_pace(place), _connected(place) as ledger:
            for commit in range(end - drops + 1, end + 1):
                await asyncio.sleep(dice.random() / 4)  # at any moment of the observer's cycle
                await feedback.commit({tp: commit})
                found.append(await _told(ledger, partition, commit - 1))
        await abandon(feedback)
        self._world.stop_stages((OBSERVER,))
        hundredths = statistics.quantiles(found, n=100, method="inclusive")
        times = {"p50": hundredths[49], "p99": hundredths[98], "max": max(found)}
        figures = {name: round(value, 3) for name, value in times.items()} | {"drops": drops}
        _say(f"detection: {figures}")
        return figures

    # ------------------------------------------------------------ how fast it reads

    async def _read(self, place: Place, meter: Meter) -> dict[str, Any]:
        """A fresh observer reads the whole log; it and PostgreSQL on one core."""
        await _empty(place)
        await settled(place.database_url)
        _pin(meter.postgres_pid, [0])
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
        _pin(meter.postgres_pid, list(range(psutil.cpu_count() or 1)))
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


@asynccontextmanager
async def _steady_pace(place: Place) -> AsyncIterator[None]:
    """Publish handoffs and their answers at the steady rate for as long as the context lasts."""
    publisher = KafkaPublisher(place.kafka, "hotline-bench")
    await publisher.start()

    async def publish() -> None:
        started, said = monotonic(), 0
        while True:
            due = int((monotonic() - started) * STEADY_RATE / 2)
            await publisher.publish([message for _ in range(said, due) for message in _handoff()])
            said = due
            await asyncio.sleep(0.01)

    publishing = asyncio.create_task(publish())
    try:
        yield
        assert not publishing.done(), publishing
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await publisher.stop()


async def _publish(place: Place, messages: list[Outgoing]) -> None:
    publisher = KafkaPublisher(place.kafka, "hotline-bench")
    await publisher.start()
    await publisher.publish(messages)
    await publisher.stop()


async def _told(ledger: Any, partition: int, offset: int, within: float = 60) -> float:
    """Seconds until the verdict on a dropped result is there for everybody to read."""
    started = monotonic()
    while not await ledger.fetchval(_VERDICT, resolver.CASES, partition, offset):
        if monotonic() - started > within:
            raise Incomplete(
                f"{resolver.CASES}/{partition}/{offset} was dropped; no verdict after {within} s"
            )
        await asyncio.sleep(0.005)
    return monotonic() - started


def _handoff() -> Iterator[Outgoing]:
    """One recorded case and its answer."""
    case, event = str(new_id()), str(new_id())
    yield _said(intake.CaseRecorded, case, event)
    yield _said(router.CaseParked, case, str(new_id()), event)


def _said(body: type[Body], case: str, uid: str, cause: str | None = None) -> Outgoing:
    """A record as far as the observer looks: the headers."""
    kind = BY_BODY[body]
    headers = [
        ("ce_id", uid.encode()),
        ("ce_type", kind.wire.encode()),
        ("ce_source", f"/hotline/{kind.name.partition('.')[0]}".encode()),
        ("ce_time", time_header(utc_now())),
        ("ce_sequence", b"0000000001"),
    ]
    if cause is not None:
        headers.append(("ce_causationid", cause.encode()))
    return Outgoing(str(kind.topic), case.encode(), b"{}", headers)


_RECORDED = BY_BODY[intake.CaseRecorded].wire.encode()


def bytes_per_open_handoff(count: int = 100_000) -> float:
    """Bytes of memory that one handoff more holds while it is open, its place in every index included."""
    held, room = opened(count)
    edges = {owed.edge for owed in contract_of().owed[_RECORDED]}
    return held / sum(room.open_by_edge()[edge][0] for edge in edges)


def opened(count: int) -> tuple[int, Ledger]:
    """A ledger that has read so many recorded cases which nobody has answered, and the bytes it holds."""
    room, place = Ledger(contract_of()), Partition(intake.CASES, 0)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for offset in range(count):
            uid, source = str(new_id()).encode(), b"/hotline/intake"
            said = Said(offset, epoch_ms(), uid, _RECORDED, source, b"", 1, 1, 0, b"case", b"")
            room.take(place, said)
            if offset % 4_000 == 0:
                room.drain()  # as the store takes it over
        room.drain()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before, room
    finally:
        tracemalloc.stop()


def _pin(pid: int, cores: list[int]) -> None:
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            one.cpu_affinity(cores)


@asynccontextmanager
async def _connected(place: Place) -> AsyncIterator[Any]:
    """A connection to the ledger's tables."""
    connection = await asyncpg.connect(place.database_url)
    try:
        await connection.execute(f'set search_path to "{place.database_prefix}{OBSERVER}"')
        yield connection
    finally:
        await connection.close()


async def _execute(place: Place, *commands: str) -> None:
    connection = await asyncpg.connect(place.database_url)
    try:
        for command in commands:
            await connection.execute(command)
    finally:
        await connection.close()


async def _value(place: Place, sql: str) -> Any:
    async with _connected(place) as ledger:
        return await ledger.fetchval(sql)


async def _empty(place: Place) -> None:
    tables = "handoffs, verdicts, early, counts, acts, positions, commits, blind, status"
    await _value(place, f"truncate {tables}")


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def _tell(what: str, done: Drained) -> None:
    figures = done.figures()
    _say(
        f"{what}: {figures['handled_events_per_s']:,} handled events/s, {figures['cpu_us_per_event']} µs CPU"
        f" each (workers {figures['workers_us']}, PostgreSQL {figures['postgres_us']},"
        f" Kafka {figures['broker_us']})"
    )


def _show(report: dict[str, Any]) -> None:
    table = Table("what", "measured", "goal", title="The ledger on this machine", title_justify="left")
    stages, beside, detection = report["stages"], report["observer_beside"], report["detection_s"]
    steady = report["core_at_500_records_per_s"]
    table.add_row("stages, as they are ÷ without what only the ledger needs:")
    table.add_row("  CPU per handled event, with PostgreSQL and Kafka", _interval(stages["cpu"]), "≤ 1.03")
    table.add_row("  throughput", _interval(stages["throughput"]), "≥ 0.97")
    table.add_row(
        "share of a core at 500 records/s; with PostgreSQL",
        f"{steady['observer']:.1%}; {steady['with_postgres']:.1%}",
        "≤ 10 %",
    )
    table.add_row(
        "records per second of one core, with PostgreSQL",
        f"{report['records_per_s_of_one_core']:,.0f}",
        "≥ 20,000",
    )
    table.add_row("records per second on that core", f"{report['records_per_s']:,.0f}", "")
    table.add_row(
        "seconds from commit to verdict, p50 / p99 / max",
        f"{detection['p50']} / {detection['p99']} / {detection['max']}",
        "– / ≤ 2 / ≤ 5",
    )
    table.add_row("bytes per open handoff", f"{report['bytes_per_open_handoff']}", "≤ 300")
    table.add_row("stages with the observer on the same busy cores ÷ alone:")
    table.add_row("  CPU of the stages per handled event", _interval(beside["workers"]), "")
    table.add_row("  throughput", _interval(beside["throughput"]), "")
    Console().print(table)


def _interval(found: dict[str, float]) -> str:
    return f"{found['median']} ({found['low']} … {found['high']})"


def main() -> int:
    """Measure, print the table, keep the figures."""
    words = argparse.ArgumentParser(prog="make bench-ledger", description=__doc__)
    words.add_argument("--quick", action="store_true", help="small: does it work, not how fast is it")
    words.add_argument("--seed", type=int, default=1, help="shuffles the order within pairs")
    words.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    given = words.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    report = asyncio.run(Bench(QUICK if given.quick else FULL, given.seed).run())
    RESULTS.write_text(json.dumps(report, indent=2))
    if given.json:
        print(json.dumps(report))
    else:
        _show(report)
        print(f"all figures: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
