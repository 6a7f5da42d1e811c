"""One batch: what is known of it, looked up in one query, and what it will write, stored in one statement."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from chassis import outbox
from chassis.copies import Copy, rewriting
from chassis.inbox import Seen
from chassis.postgres import Tx, columns
from chassis.statement import Part, execute
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
    """Everything that one pass stores and then sends.

    `revived` are inputs that were dead, and are decided anew.
    """

    batch: int
    now: datetime
    inbox: list[tuple[UUID, int, str]] = field(default_factory=list)
    revived: set[UUID] = field(default_factory=set)
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


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a batch's inputs: those handled before, the cases, keys for which inputs wait."""

    seen: dict[UUID, Seen]
    entities: dict[str, Entity]
    awaited: list[str]


async def look(tx: Tx, event_ids: Sequence[UUID], keys: Sequence[str], state: type[Body]) -> Found:
    """Find what is known of these inputs and of these keys, in one round trip."""
    rows = await tx.fetch(
        "select key, version, sequence, timers, document, null::uuid as event_id, null::bigint as batch,"
        " null::bigint as digest, null as outcome, null::boolean as unpublished"
        " from entities where key = any($1::text[])"
        " union all select distinct key, null::int, null::int, null, null, null::uuid, null::bigint,"
        " null::bigint, null, null::boolean from parked where key = any($1::text[])"
        " union all select null, null, null, null, null, event_id, batch, digest, outcome,"
        " u.batch is not null from inbox left join unpublished u using (batch)"
        " where event_id = any($2::uuid[])",
        keys,
        event_ids,
    )
    found = Found({}, {}, [])
    for key, version, sequence, timers, document, event_id, *seen in rows:
        if event_id is not None:
            found.seen[event_id] = Seen(*seen)
        elif version is None:
            found.awaited.append(key)
        else:
            found.entities[key] = Entity(
                key, state.parse(document), version, version, sequence, read_timers(timers)
            )
    return found


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


_SEEN = (
    "insert into inbox (event_id, batch, digest, outcome)"
    " select e, $1, d, r from unnest($2::uuid[], $3::bigint[], $4::text[]) as x(e, d, r)"
    " on conflict do nothing"
)
_SEEN_AGAIN = (
    "update inbox set batch = $1, digest = d, outcome = r"
    " from unnest($2::uuid[], $3::bigint[], $4::text[]) as x(e, d, r)"
    " where event_id = e and outcome like 'dead%'"
)
_CREATED = (
    "insert into entities (key, version, sequence, wake_at, updated_at, phase, timers, document)"
    " select k, v, s, w, $1, p, t, j from unnest($2::text[], $3::int[], $4::int[], $5::timestamptz[],"
    " $6::text[], $7::text[], $8::text[]) as x(k, v, s, w, p, t, j) on conflict do nothing"
)
_MOVED = (
    "update entities"
    " set version = v, sequence = s, wake_at = w, updated_at = $1, phase = p, timers = t, document = j"
    " from unnest($2::text[], $3::int[], $4::int[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],"
    " $9::int[]) as x(k, v, s, w, p, t, j, base) where key = k and version = base"
)
_TASKED = (
    "insert into tasks (task_id, key, name, due_at, data)"
    " select * from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[])"
)
_PARKED = (
    "insert into parked (event_id, key, topic, message_key, headers, value, until)"
    " select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[],"
    " $7::timestamptz[])"
)
_UNPARKED = "delete from parked where event_id = any($1::uuid[])"
_QUARANTINED = (
    "insert into quarantine (quarantine_id, topic, partition, record_offset, reason, explanation, sealed,"
    " first_seen) select i, t, p, o, r, x, s, $1 from unnest($2::uuid[], $3::text[], $4::int[],"
    " $5::bigint[], $6::text[], $7::text[], $8::bytea[]) as q(i, t, p, o, r, x, s) on conflict do nothing"
)


async def write(tx: Tx, plan: Plan, phase: Callable[[Any], str], copies: Sequence[Copy]) -> None:
    """Store a plan and the reading copies of what it changes.

    Raises ConcurrentWriter, and stores nothing, when another process handled or changed the same.
    """
    changed = [entity for entity in plan.entities.values() if entity.changed]
    new = [entity for entity in changed if entity.base is None]
    old = [entity for entity in changed if entity.base is not None]
    parts = []
    seen = [row for row in plan.inbox if row[0] not in plan.revived]
    if seen:
        parts.append(Part("seen", _SEEN, [plan.batch, *columns(seen, 3)], len(seen)))
    if plan.revived:
        again = [row for row in plan.inbox if row[0] in plan.revived]
        parts.append(Part("seen_again", _SEEN_AGAIN, [plan.batch, *columns(again, 3)], len(again)))
    if new:
        parts.append(Part("created", _CREATED, [plan.now, *_entity_columns(new, phase)], len(new)))
    if old:
        moved = [plan.now, *_entity_columns(old, phase), [entity.base for entity in old]]
        parts.append(Part("moved", _MOVED, moved, len(old)))
    if plan.outgoing:
        parts += outbox.parts(plan.batch, plan.outgoing, plan.correlations, for_relay=False)
    states = [entity.state for entity in changed if entity.state is not None]
    await execute(tx, [*parts, *rare_parts(plan), *rewriting(copies, states)])


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


def rare_parts(plan: Plan) -> list[Part]:
    """What most batches do not have: tasks, parked inputs, quarantined records."""
    parts = []
    if plan.tasks:
        rows = [
            (uid, key, task.name, task.due_at, task.data.to_bytes().decode()) for uid, key, task in plan.tasks
        ]
        parts.append(Part("tasked", _TASKED, columns(rows, 5)))
    if plan.parked:
        parts.append(Part("parking", _PARKED, columns(map(_parked_row, plan.parked.values()), 7)))
    if plan.unparked:
        parts.append(Part("unparked", _UNPARKED, [plan.unparked]))
    if plan.quarantined:
        letters = columns(map(_quarantine_row, plan.quarantined), 7)
        parts.append(Part("quarantined", _QUARANTINED, [plan.now, *letters]))
    return parts


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
