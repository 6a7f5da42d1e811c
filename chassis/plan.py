"""What one batch will write: collected by the fold, stored in one statement."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from chassis import outbox
from chassis.faults import ConcurrentWriter
from chassis.postgres import Tx, columns
from chassis.step import Task
from chassis.transport import Outgoing, Record
from schemas.envelope import Body


@dataclass(slots=True)
class Entity:
    """A case in memory while its batch is folded: where it stood in the table, where it stands now."""

    key: str
    state: Body | None = None
    base: int | None = None
    version: int = 0
    sequence: int = 0
    timers: dict[str, datetime] = field(default_factory=dict)
    changed: bool = False

    @property
    def wake_at(self) -> datetime | None:
        """When the next timer is due."""
        return min(self.timers.values(), default=None)


@dataclass(frozen=True, slots=True)
class DueTask:
    """A task whose time has come: its id is the idempotency key towards the outside."""

    task_id: UUID
    key: str
    name: str
    data: str
    document: str


@dataclass(frozen=True, slots=True)
class Parked:
    """An input that came before its case, and until when it waits."""

    uid: UUID
    key: str
    record: Record
    until: datetime


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that cannot be handled, with the reason; `sealed` keeps its bytes."""

    quarantine_id: UUID
    record: Record
    reason: str
    explanation: str
    sealed: bytes


@dataclass(slots=True)
class Plan:
    """Everything that one pass stores and then sends."""

    batch: int
    now: datetime
    inbox: list[tuple[UUID, int, str]] = field(default_factory=list)
    entities: dict[str, Entity] = field(default_factory=dict)
    outgoing: list[Outgoing] = field(default_factory=list)
    correlations: list[str | None] = field(default_factory=list)
    tasks: list[tuple[UUID, str, Task]] = field(default_factory=list)
    parked: dict[UUID, Parked] = field(default_factory=dict)
    unparked: list[UUID] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def say(self, message: Outgoing, correlation: str | None) -> None:
        """Add a message to what is sent after the commit."""
        self.outgoing.append(message)
        self.correlations.append(correlation)


async def load(tx: Tx, keys: Sequence[str], state: type[Body]) -> tuple[dict[str, Entity], list[str]]:
    """Read the entities of these keys as they stand, and those keys for which inputs wait."""
    rows = await tx.fetch(
        "select key, version, sequence, timers, document from entities where key = any($1::text[])"
        " union all select distinct key, null::int, null::int, null, null from parked"
        " where key = any($1::text[])",
        keys,
    )
    awaited = [row["key"] for row in rows if row["version"] is None]
    entities = {
        row["key"]: Entity(
            row["key"],
            state.parse(row["document"]),
            row["version"],
            row["version"],
            row["sequence"],
            read_timers(row["timers"]),
        )
        for row in rows
        if row["version"] is not None
    }
    return entities, awaited


def read_timers(text: str) -> dict[str, datetime]:
    """Read an entity's timers as `write` stores them."""
    if text == "{}":
        return {}
    return {name: datetime.fromisoformat(due) for name, due in json.loads(text).items()}


def timers_text(timers: dict[str, datetime]) -> str:
    """Write an entity's timers, the inverse of `read_timers`."""
    # JSON by hand, in half the time: names are ours and plain, times need no escape.
    return "{" + ",".join([f'"{name}":"{due.isoformat()}"' for name, due in timers.items()]) + "}"


async def parked_for(tx: Tx, keys: Sequence[str]) -> list[Parked]:
    """Read the inputs that wait for these keys, in the order in which they came."""
    rows = await tx.fetch(
        "select event_id, key, topic, message_key, headers, value, until from parked"
        " where key = any($1::text[]) order by arrival",
        keys,
    )
    return [Parked(row["event_id"], row["key"], _Kept(row), row["until"]) for row in rows]


class _Kept:
    """A parked record, read back."""

    partition = -1
    offset = -1
    timestamp = 0

    def __init__(self, row: dict[str, object]) -> None:
        self.topic = str(row["topic"])
        self.key: bytes | None = row["message_key"]  # type: ignore[assignment]
        self.value: bytes | None = row["value"]  # type: ignore[assignment]
        self.headers = outbox.unpack(row["headers"])  # type: ignore[arg-type]


_WRITE = """
with seen as (
    insert into inbox (event_id, batch, digest, outcome)
    select e, $1, d, r from unnest($3::uuid[], $4::bigint[], $5::text[]) as x(e, d, r)
    on conflict do nothing returning 1
), created as (
    insert into entities (key, version, sequence, wake_at, updated_at, phase, timers, document)
    select k, v, s, w, $2, p, t, j
    from unnest($6::text[], $7::int[], $8::int[], $9::timestamptz[], $10::text[], $11::text[], $12::text[])
        as x(k, v, s, w, p, t, j)
    on conflict do nothing returning 1
), moved as (
    update entities
    set version = v, sequence = s, wake_at = w, updated_at = $2, phase = p, timers = t, document = j
    from unnest($13::text[], $14::int[], $15::int[], $16::timestamptz[], $17::text[], $18::text[],
                $19::text[], $20::int[]) as x(k, v, s, w, p, t, j, base)
    where key = k and version = base returning 1
), said as (
    insert into outbox (batch, ordinal, topic, key, headers, value, correlation)
    select $1, o, t, k, h, b, c
    from unnest($21::int[], $22::text[], $23::bytea[], $24::bytea[], $25::bytea[], $26::text[])
        as x(o, t, k, h, b, c)
), pending as (
    insert into unpublished (batch, relay) select $1, false where cardinality($21::int[]) > 0
)
select (select count(*) from seen) as seen, (select count(*) from created) as created,
       (select count(*) from moved) as moved
"""


async def write(tx: Tx, plan: Plan, phase: Callable[[Any], str]) -> None:
    """Store a plan; raises ConcurrentWriter when another process handled or changed the same."""
    changed = [entity for entity in plan.entities.values() if entity.changed]
    new = [entity for entity in changed if entity.base is None]
    old = [entity for entity in changed if entity.base is not None]
    row = await tx.fetchrow(
        _WRITE,
        plan.batch,
        plan.now,
        *columns(plan.inbox, 3),
        *_entity_columns(new, phase),
        *_entity_columns(old, phase),
        [entity.base for entity in old],
        *_message_columns(plan),
    )
    if (row["seen"], row["created"], row["moved"]) != (len(plan.inbox), len(new), len(old)):
        raise ConcurrentWriter("another process of this stage worked on the same case")
    await write_rare(tx, plan)


def _entity_columns(entities: Sequence[Entity], phase: Callable[[Any], str]) -> list[list[Any]]:
    return [
        [entity.key for entity in entities],
        [entity.version for entity in entities],
        [entity.sequence for entity in entities],
        [entity.wake_at for entity in entities],
        [phase(entity.state) for entity in entities],
        [timers_text(entity.timers) for entity in entities],
        [entity.state.to_bytes().decode() if entity.state else "null" for entity in entities],
    ]


def _message_columns(plan: Plan) -> list[list[Any]]:
    messages = plan.outgoing
    return [
        list(range(len(messages))),
        [message.topic for message in messages],
        [message.key for message in messages],
        [outbox.pack(message.headers) for message in messages],
        [message.value for message in messages],
        plan.correlations,
    ]


async def write_rare(tx: Tx, plan: Plan) -> None:
    """Store what most batches do not have: tasks, parked inputs, quarantined records."""
    if plan.tasks:
        await tx.execute(
            "insert into tasks (task_id, key, name, due_at, data)"
            " select * from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[])",
            *columns(
                [
                    (uid, key, task.name, task.due_at, task.data.to_bytes().decode())
                    for uid, key, task in plan.tasks
                ],
                5,
            ),
        )
    if plan.parked:
        await tx.execute(
            "insert into parked (event_id, key, topic, message_key, headers, value, until)"
            " select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[],"
            " $6::bytea[], $7::timestamptz[])",
            *columns([_parked_row(parked) for parked in plan.parked.values()], 7),
        )
    if plan.unparked:
        await tx.execute("delete from parked where event_id = any($1::uuid[])", plan.unparked)
    if plan.quarantined:
        await tx.execute(
            "insert into quarantine (quarantine_id, topic, partition, record_offset, reason,"
            " explanation, sealed, first_seen)"
            " select i, t, p, o, r, x, s, $8 from unnest($1::uuid[], $2::text[], $3::int[],"
            " $4::bigint[], $5::text[], $6::text[], $7::bytea[]) as q(i, t, p, o, r, x, s)"
            " on conflict do nothing",
            *columns([_quarantine_row(letter) for letter in plan.quarantined], 7),
            plan.now,
        )


def _parked_row(parked: Parked) -> tuple[Any, ...]:
    record = parked.record
    headers = outbox.pack(record.headers)
    return parked.uid, parked.key, record.topic, record.key, headers, record.value, parked.until


def _quarantine_row(letter: Quarantined) -> tuple[Any, ...]:
    record = letter.record
    return (
        letter.quarantine_id,
        record.topic,
        record.partition,
        record.offset,
        letter.reason,
        letter.explanation,
        letter.sealed,
    )
