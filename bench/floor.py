"""What the pieces cost alone that no such pipeline does without: read, decode, encode, store, send.

They are measured one by one on the messages that whole cases have left on the log, in batches, at full
speed, with the libraries that the stages use. Their sum per handled event is a floor: nothing is decided,
nobody waits, nothing is proved. What a stage costs above it is its work, and what can be saved.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import process_time
from typing import Any
from zlib import crc32

import asyncpg

from bench.drain import Incomplete
from bench.measure import Meter
from chassis.ids import derived_id
from chassis.kafka import KafkaPublisher, apply_topics, whole
from chassis.message import own_id
from chassis.transport import Outgoing, Record
from cli.world import Place
from schemas.envelope import BY_WIRE, Body
from schemas.topics import BY_NAME, DEPARTMENTS, STAGES, Topic, inputs_of

BATCH = 250
_REPEATS = 3
_TOPIC = Topic("bench.floor", "case", (), ())
_TABLES = """
create table seen (event_id uuid primary key, batch bigint not null, outcome text not null);
create table states (key text primary key, document text not null);
create table said (batch bigint, ordinal int, topic text, key bytea, headers bytea, value bytea,
                   primary key (batch, ordinal));
"""
_SEEN = "insert into seen select e, $1, 'caused' from unnest($2::uuid[]) as x(e) on conflict do nothing"
_STATES = """insert into states select * from unnest($1::text[], $2::text[])
             on conflict (key) do update set document = excluded.document"""
_SAID = """insert into said select $1, o, t, k, h, v
           from unnest($2::int[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[]) as x(o, t, k, h, v)"""


@dataclass(frozen=True, slots=True)
class Sample:
    """Records as they lie on the log, their bodies, states as they lie in the tables.

    `read` and `said` count records per handled event: what the stages' groups fetch, what the stages say of
    cases and calls.
    """

    records: list[Record]
    bodies: list[Body]
    states: list[str]
    read: float
    said: float


async def floor_of(place: Place, meter: Meter, records: int = 20_000) -> dict[str, Any]:
    """Measure each piece on what earlier drains left: µs of CPU, client and server together.

    Raises Incomplete where nothing was handled yet.
    """
    sample = await _sample(place, records)
    await apply_topics(place.kafka, [_TOPIC])
    connection, schema = await asyncpg.connect(place.database_url), f"{place.database_prefix}floor"
    publisher = KafkaPublisher(place.kafka, "hotline-bench")
    await publisher.start()
    try:
        await connection.execute(f'create schema "{schema}"; set search_path to "{schema}"; {_TABLES}')
        pieces: dict[str, Callable[[], Awaitable[int]]] = {
            "decode": lambda: _decode(sample),
            "encode": lambda: _encode(sample),
            "store": lambda: _store(connection, sample),
            "send": lambda: _send(publisher, sample),
        }
        costs: dict[str, list[float]] = {name: [] for name in pieces}
        costs["read"] = [await _cost(meter, lambda: _read(place))]
        for _ in range(_REPEATS):
            for name, piece in pieces.items():
                costs[name].append(await _cost(meter, piece))
    finally:
        await publisher.stop()
        await connection.execute(f'drop schema if exists "{schema}" cascade')
        await connection.close()
    each = {name: round(statistics.median(found) * 1e6, 2) for name, found in costs.items()}
    said = sample.said * (each["encode"] + each["send"])
    return {
        "us_per_event": round(sample.read * each["read"] + each["decode"] + each["store"] + said, 1),
        "pieces_us": each,
        "read_per_event": round(sample.read, 2),
        "said_per_event": round(sample.said, 2),
    }


async def _cost(meter: Meter, piece: Callable[[], Awaitable[int]]) -> float:
    """CPU seconds per unit: this process, PostgreSQL and Kafka."""
    before = process_time() + meter.database() + meter.broker()
    units = await piece()
    return (process_time() + meter.database() + meter.broker() - before) / units


async def _sample(place: Place, most: int) -> Sample:
    """Count what is on the log, and take about `most` of it: whole cases and calls, each topic its share."""
    handled, states = await _kept(place)
    every = max(1, handled // most)
    groups = {topic: sum(stage in BY_NAME[topic].read_by for stage in STAGES) for topic in _topics()}
    sources = {f"/hotline/{stage}".encode() for stage in STAGES}
    read = said = 0
    records: list[Any] = []
    bodies: list[Body] = []
    async for record in whole(place.kafka, *groups):
        readers = groups[record.topic.removeprefix(place.kafka.prefix)]
        read += readers
        headers = dict(record.headers)
        said += headers["ce_source"] in sources
        if readers and crc32(record.key) % every == 0:
            records.append(record)
            bodies.append(BY_WIRE[headers["ce_type"].decode()].body.parse(record.value))
    return Sample(records, bodies, states, read / handled, said / handled)


async def _kept(place: Place) -> tuple[int, list[str]]:
    """How many events the stages have handled, and some states; raises Incomplete where there are none."""
    connection = await asyncpg.connect(place.database_url)
    try:
        handled, states = 0, []
        for stage in STAGES:
            schema = f'"{place.database_prefix}{stage}"'
            handled += await connection.fetchval(f"select count(*) from {schema}.inbox")
            rows = await connection.fetch(f"select document from {schema}.entities limit 500")
            states += [row["document"] for row in rows]
    finally:
        await connection.close()
    if not handled:
        raise Incomplete("nothing was handled in this world: run a drain first")
    return handled, states


def _topics() -> list[str]:
    """The stages' inputs, and what only others read."""
    inputs = {topic for stage in STAGES for topic in inputs_of(stage)}
    return sorted(inputs | {f"departments.{code}" for code in DEPARTMENTS})


async def _read(place: Place) -> int:
    count = 0
    async for _ in whole(place.kafka, *_topics()):
        count += 1
    return count


async def _decode(sample: Sample) -> int:
    for record, body in zip(sample.records, sample.bodies, strict=True):
        headers = dict(record.headers)
        own_id(headers["ce_id"].decode())
        type(body).parse(record.value or b"")
    return len(sample.records)


async def _encode(sample: Sample) -> int:
    """Make a message anew from its fields: its id, its body, its bytes."""
    cause = own_id(dict(sample.records[0].headers)["ce_id"].decode())
    for ordinal, body in enumerate(sample.bodies):
        type(body).model_validate(body.__dict__).to_bytes()
        str(derived_id(cause, "floor", ordinal)).encode()
    return len(sample.bodies)


async def _store(connection: asyncpg.Connection, sample: Sample) -> int:
    """Per batch one transaction: each event seen, each case's state, each message said."""
    await connection.execute("truncate seen, states, said")
    states = cycle(sample.states)
    for number, batch in enumerate(_batches(sample.records)):
        ids = [own_id(dict(record.headers)["ce_id"].decode()) for record in batch]
        keys = list({(record.key or b"").decode() for record in batch})
        out = list(islice(cycle(batch), round(len(batch) * sample.said)))
        async with connection.transaction():
            await connection.execute(_SEEN, number, ids)
            await connection.execute(_STATES, keys, list(islice(states, len(keys))))
            await connection.execute(
                _SAID,
                number,
                list(range(len(out))),
                [record.topic for record in out],
                [record.key for record in out],
                [b"\x1e".join(value for _, value in record.headers) for record in out],
                [record.value for record in out],
            )
    return len(sample.records)


async def _send(publisher: KafkaPublisher, sample: Sample) -> int:
    for batch in _batches(sample.records):
        messages = [
            Outgoing(_TOPIC.name, record.key or b"", record.value, list(record.headers)) for record in batch
        ]
        await publisher.publish(messages)
    return len(sample.records)


def _batches(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    for start in range(0, len(records), BATCH):
        yield records[start : start + BATCH]
