"""`python -m bench.intake`: how fast telephony comes in, and whether what was acknowledged is there.

1. The manager feed: blocks and mapping of a recorded PBX, over and over: events per second of CPU, and
   whether memory stays flat.
2. HTTP at 500 events a second: latency as the sender sees it, and every 2xx on the log at the end.
3. The same while PostgreSQL and Kafka are restarted: latency does not count, loss does.
4. The worst hour of a real month (494 calls), a hundred times faster: every call ends.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import gzip
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chassis.clock import utc_now
from chassis.kafka import whole
from cli.world import DOOR, World, connected
from deploy.local.stack import LocalStack
from schemas.envelope import BY_WIRE
from services.intake.door.entry import fact_id
from services.intake.sources.ami import Blocks, recorded_chunks
from services.intake.sources.asterisk import Switch
from services.intake.sources.canonical import Mapped

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "cli/recordings/run2-full/ami-steady.raw.gz"
CALLS = ROOT.parent / "shared/data/calls/1999-02.tsv.gz"
WORLD = ROOT / ".run/bench-intake"
RESULT = ROOT / "bench/results/intake.json"


# ---------------------------------------------------------------- the manager feed


def reader(seconds: float) -> dict[str, Any]:
    """Read and map the recording again and again, each time as new calls of one long-lived switch."""
    data = b"".join(recorded_chunks(RECORDING))
    feed = Blocks()
    events = len(feed.feed(data)) + len(feed.close())
    switch, rounds, mapped = Switch("bench"), 0, 0
    before = _resident_kib()
    gc.disable()
    started = time.process_time()
    while time.process_time() - started < seconds:
        # Other ids and later times, as another hour of the same switch.
        again = data.replace(b": 17954", b": %05d" % (17955 + rounds % 9000))
        blocks = Blocks()
        for at in range(0, len(again), 1 << 16):
            for block in blocks.feed(again[at : at + (1 << 16)]):
                mapped += len(switch.feed(block))
        rounds += 1
        if rounds == 20:
            before = _resident_kib()
    spent = time.process_time() - started
    gc.enable()
    return {
        "events": events * rounds,
        "mapped": mapped,
        "events_per_cpu_s": round(events * rounds / spent),
        "memory_growth_kib": _resident_kib() - before,
    }


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


# ---------------------------------------------------------------- HTTP


@dataclass(slots=True)
class Sent:
    """What a sender knows: the ids that were acknowledged, how long each answer took, other answers."""

    acknowledged: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    others: dict[int, int] = field(default_factory=dict)
    failed: int = 0


class Sender:
    """Telephony's side: a few connections that stay open, one request at a time on each."""

    def __init__(self, port: int) -> None:
        self._port, self._idle = port, asyncio.Queue[tuple[Any, Any] | None]()
        self.sent = Sent()

    def open(self, connections: int) -> None:
        """Allow so many connections."""
        for _ in range(connections):
            self._idle.put_nowait(None)

    async def post(self, event_id: str, body: bytes, *, insist: bool) -> None:
        """Send one event; again and again until it is acknowledged, if told to insist."""
        due = time.perf_counter()
        while True:
            connection = await self._idle.get()
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
                status = await _exchange(connection, body)
            except (OSError, EOFError):
                status, connection = 0, None
                self.sent.failed += 1
            finally:
                self._idle.put_nowait(connection)
            if 200 <= status < 300:
                self.sent.acknowledged.add(event_id)
                self.sent.seconds.append(time.perf_counter() - due)
                return
            self.sent.others[status] = self.sent.others.get(status, 0) + 1
            if not insist:
                return
            await asyncio.sleep(0.5)


async def _exchange(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes) -> int:
    answer, request = connection
    request.write(
        b"POST /telephony/events HTTP/1.1\r\nhost: door\r\ncontent-type: application/cloudevents+json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    head = await answer.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    await answer.readexactly(length)
    return int(head.split(b" ", 2)[1])


def events_of(call: int, mark: str) -> Iterator[tuple[str, bytes]]:
    """One call as four events, each with its id and its CloudEvent."""
    call_id, at = f"{mark}-{call:07d}", utc_now()
    data = {"call_id": call_id, "source": "bench", "occurred_at": at.isoformat()}
    queued = {**data, "queue": "cards", "visit": 1}
    said: list[tuple[str, dict[str, Any]]] = [
        ("call-offered", {**data, "caller_number": f"+86138{call % 10**8:08d}"}),
        ("call-queued", queued),
        ("queue-left", {**queued, "reason": "abandoned", "wait_ms": 20_000}),
        ("call-ended", {**data, "cause": "hangup_16"}),
    ]
    for name, body in said:
        yield _event(f"{call_id}-{name}", name, at, body)


def _event(event_id: str, name: str, at: datetime, body: dict[str, Any]) -> tuple[str, bytes]:
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": "/bench",
        "type": f"telephony.{name}.v1",
        "time": at.isoformat(),
        "data": body,
    }
    return event_id, json.dumps(event).encode()


async def load(world: World, mark: str, rate: float, seconds: float, *, broken: bool) -> dict[str, Any]:
    """Send at a steady rate; restart PostgreSQL, then Kafka on the way when `broken`."""
    sender = Sender(await _port(world))
    sender.open(64)
    tasks: set[asyncio.Task[None]] = set()
    chaos = asyncio.create_task(_restarts(world, seconds)) if broken else None
    started, number = time.perf_counter(), 0
    for call in range(int(rate * seconds / 4)):
        for event_id, body in events_of(call, mark):
            due = started + number / rate
            number += 1
            ahead = due - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            task = asyncio.create_task(sender.post(event_id, body, insist=broken))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    if chaos is not None:
        await chaos
    took = time.perf_counter() - started
    missing = await _missing(world, sender.sent.acknowledged)
    sent = sender.sent
    cuts = statistics.quantiles(sent.seconds, n=100, method="inclusive")
    return {
        "events": number,
        "rate": round(number / took, 1),
        "acknowledged": len(sent.acknowledged),
        "other_answers": sent.others,
        "connections_lost": sent.failed,
        "p50_ms": round(1000 * cuts[49], 1),
        "p99_ms": round(1000 * cuts[98], 1),
        "max_ms": round(1000 * max(sent.seconds), 1),
        "acknowledged_and_missing": len(missing),
    }


async def _restarts(world: World, seconds: float) -> None:
    stack = LocalStack(world.folder)
    await asyncio.sleep(seconds / 4)
    await asyncio.to_thread(stack.postgres.restart_immediate)
    await asyncio.sleep(seconds / 4)
    await asyncio.to_thread(stack.kafka.restart)


async def _port(world: World) -> int:
    return int(json.loads((world.folder / f"{DOOR}.port").read_text())["port"])


async def _missing(world: World, acknowledged: set[str], within: float = 60) -> set[str]:
    """Which acknowledged events are not on the log; the ids of facts follow from what was sent."""
    deadline = time.monotonic() + within
    while True:
        there: set[str] = set()
        async for record in whole(world.place().kafka, "telephony.calls"):
            headers = dict(record.headers)
            kind = BY_WIRE.get(headers.get("ce_type", b"").decode())
            if kind is None or kind.key != "call_id":
                continue
            body = kind.body.parse(record.value)
            event_id = f"{body.model_dump()['call_id']}-{kind.name.partition('.')[2]}"
            if str(fact_id(Mapped(f"/bench {event_id}", body))) == headers["ce_id"].decode():
                there.add(event_id)
        missing = acknowledged - there
        if not missing or time.monotonic() > deadline:
            return missing
        await asyncio.sleep(1)


# ---------------------------------------------------------------- the worst hour


def worst_hour(path: Path) -> list[tuple[float, list[tuple[str, dict[str, Any]]]]]:
    """The calls of 3 February 1999, 13 to 14 h: seconds into the hour, and what telephony would say."""
    calls = []
    with gzip.open(path, "rt", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["date"] == "990203" and row["vru_entry"].startswith("13:"):
                calls.append(row)
    return [_as_said(number, row) for number, row in enumerate(calls)]


def _as_said(number: int, row: dict[str, str]) -> tuple[float, list[tuple[str, dict[str, Any]]]]:
    minutes, seconds = map(int, row["vru_entry"].split(":")[1:])
    at, waited = minutes * 60 + seconds, int(row["q_time"])
    base = {"call_id": f"spike-{number:04d}", "source": "1999"}
    queue = {**base, "queue": row["type"], "visit": 1}
    said: list[tuple[str, dict[str, Any]]] = [("call-offered", base), ("call-queued", queue)]
    if row["outcome"] == "AGENT":
        talk = {**queue, "agent": f"agent-{hash(row['server']) % 97:02d}"}
        said += [
            ("call-answered", {**talk, "wait_ms": waited * 1000}),
            ("talk-ended", {**talk, "talk_ms": max(0, int(row["ser_time"])) * 1000}),
        ]
    else:
        said.append(("queue-left", {**queue, "reason": "abandoned", "wait_ms": waited * 1000}))
    return at, [*said, ("call-ended", {**base, "cause": "hangup_16"})]


async def spike(world: World, speed: float = 100) -> dict[str, Any]:
    """Play the hour so much faster, and count what the stage made of it."""
    calls = worst_hour(CALLS)
    sender = Sender(await _port(world))
    sender.open(64)
    started = time.perf_counter()
    tasks = []
    for at, said in sorted(calls, key=lambda call: call[0]):
        ahead = started + at / speed - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        now = utc_now()
        for step, (name, body) in enumerate(said):
            moment = now + timedelta(milliseconds=step)
            event_id, content = _event(
                f"{body['call_id']}-{name}", name, moment, {**body, "occurred_at": moment.isoformat()}
            )
            tasks.append(asyncio.create_task(sender.post(event_id, content, insist=True)))
    await asyncio.gather(*tasks)
    missing = await _missing(world, sender.sent.acknowledged)
    return {
        "calls": len(calls),
        "events": len(tasks),
        "acknowledged": len(sender.sent.acknowledged),
        "acknowledged_and_missing": len(missing),
        "calls_ended_in_the_stage": await _ended(world, len(calls)),
    }


async def _ended(world: World, calls: int, within: float = 60) -> int:
    deadline = time.monotonic() + within
    while True:
        async with connected(world.place(), "intake") as database, database.session() as tx:
            ended: int = await tx.fetchval(
                "select count(*) from calls where call_id like 'spike-%' and ended_at is not null"
            )
        if ended == calls or time.monotonic() > deadline:
            return ended
        await asyncio.sleep(0.5)


# ---------------------------------------------------------------- the whole


async def over_http(seconds: float, progress: Any) -> dict[str, Any]:
    """Start a world of its own and send to its door."""
    world = World(WORLD, progress)
    world.stop_stages()
    world.stop_stack()
    world.wipe()
    try:
        place = await asyncio.to_thread(world.start_stack)
        await world.prepare(place)
        await asyncio.to_thread(world.start_stages, place, None, ("intake",))
        await asyncio.to_thread(world.start_beside, DOOR, place)
        await world.wait_ready(stages=("intake", DOOR))
        await load(world, "warm", 200, 3, broken=False)
        progress("500 events a second")
        found = {"calm": await load(world, "calm", 500, seconds, broken=False)}
        progress("500 events a second while PostgreSQL and Kafka are restarted")
        found["restarts"] = await load(world, "restarts", 500, seconds, broken=True)
        if CALLS.exists():
            progress("the worst hour of February 1999, 100 times faster")
            found["spike"] = await spike(world)
        return found
    finally:
        await asyncio.to_thread(world.stop_stages, ("intake", DOOR))
        await asyncio.to_thread(world.stop_stack)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, keep `bench/results/intake.json`; 1 when something acknowledged is missing."""
    options = argparse.ArgumentParser(prog="bench.intake", description=__doc__)
    options.add_argument("--seconds", type=float, default=20, help="length of each HTTP run")
    options.add_argument("--reader-only", action="store_true")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args(arguments)
    err = Console(stderr=True)
    err.print("· reading the recorded manager feed again and again")
    result: dict[str, Any] = {"at": datetime.now(UTC).isoformat(), "reader": reader(10)}
    if not chosen.reader_only:
        result |= asyncio.run(over_http(chosen.seconds, lambda line: err.print(f"· {line}")))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    if chosen.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        _show(result)
    parts = [part for part in result.values() if isinstance(part, dict)]
    return 1 if any(part.get("acknowledged_and_missing") for part in parts) else 0


def _show(result: dict[str, Any]) -> None:
    table = Table(title="Telephony in", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for part, figures in result.items():
        if isinstance(figures, dict):
            for name, value in figures.items():
                table.add_row(f"{part} · {name.replace('_', ' ')}", str(value))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
