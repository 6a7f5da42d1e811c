"""All SQL of the ledger: what was read and what is proved go into one transaction."""

from __future__ import annotations

import json
from binascii import hexlify
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chassis.postgres import Tx, columns
from chassis.transport import Place
from observer import actions
from observer.barrier import Barrier
from observer.contract import Contract, Owed
from observer.deferred import RECENT_MS, REMEMBERED, Acts, Deferred, Waiting
from observer.headers import Said, key_of, shown
from observer.ledger import SETTLED, WATCHED, Changes, Effect, Handoff, Opened, Settled, State, Verdict
from observer.sequences import Count

PLANNING = {"enable_hashjoin": "off", "enable_mergejoin": "off"}
"""Rows are joined by their keys: any other join reads all handoffs for each pass that settles thousands."""
OPEN = (State.OPEN.value, State.OVERDUE.value)
_SETTLED = ", ".join(f"'{state.value}'" for state in sorted(SETTLED))
_OVER = f"{_SETTLED}, '{State.ORPHAN.value}', '{State.UNPROVABLE.value}'"
_UNSETTLED = (*OPEN, *(state.value for state in WATCHED))


@dataclass(slots=True)
class Writing:
    """Everything that one pass stores."""

    changes: Changes
    counts: list[Count]
    acts: Acts
    positions: dict[Place, tuple[int, int]]
    commits: dict[tuple[str, Place], int]
    candidates: list[Verdict]
    now_ms: int
    blind: list[tuple[Place, int, int, str]] = field(default_factory=list)
    applied: int | None = None
    blinded: frozenset[str] = frozenset()


@dataclass(slots=True)
class Restored:
    """What an earlier process had stored."""

    positions: dict[Place, tuple[int, int]]
    commits: dict[tuple[str, Place], int]
    handoffs: list[Handoff]
    waiting: list[Waiting]
    effects: list[Effect]
    counts: list[Count]
    acts: list[tuple[str, bytes, int]]
    met: list[bytes]


_COLUMNS = (
    "key",
    "grp",
    "edge",
    "topic",
    "partition",
    "record_offset",
    "at_ms",
    "subject",
    "name",
    "due_ms",
    "sequence",
    "state",
    "parts",
    "total",
    "answer",
    "settled_ms",
)


_UNIQUE_VIOLATION = "23505"
_STAGING = """
create temporary table if not exists incoming (like handoffs including defaults) on commit delete rows;
create temporary table if not exists ending (key bytea, grp text, state text, answer bytea, settled_ms bigint,
                                             parts bigint, total integer) on commit delete rows;
create temporary table if not exists counted (like counts) on commit delete rows
"""


async def prepare(tx: Tx) -> None:
    """Make this connection's staging tables: rows arrive by COPY, then merge in one statement."""
    if await tx.fetchval("select to_regclass('pg_temp.incoming')") is None:
        await tx.execute(_STAGING)


async def write(tx: Any, writing: Writing) -> list[Verdict]:
    """Store a pass; gives the verdicts that stand, because nothing stored says otherwise."""
    await _write_handoffs(tx, writing.changes)
    await _write_early(tx, writing.changes)
    if writing.blinded:
        await tx.execute("delete from counts where writer = any($1::text[])", list(writing.blinded))
    await _write_counts(tx, writing.counts, writing.now_ms)
    await _write_acts(tx, writing.acts)
    standing = await _write_verdicts(tx, writing)
    await _write_places(tx, writing)
    if writing.applied is not None:
        await actions.mark_applied(tx, writing.applied)
    return standing


async def _write_handoffs(tx: Any, changes: Changes) -> None:
    if changes.opened:
        await _write_opened(tx, [_row(opened) for opened in changes.opened])
    if changes.settled:
        await prepare(tx)
        last = {(settled.handoff.key, settled.handoff.owed.group): settled for settled in changes.settled}
        await tx.copy_records_to_table("ending", records=[_ending(settled) for settled in last.values()])
        await tx.execute(
            "update handoffs h set state = e.state, answer = e.answer, settled_ms ="
            " e.settled_ms, parts = e.parts,"
            " total = e.total from ending e where h.key = e.key and h.grp = e.grp"
            # Copies of what was settled long ago, and that memory has let go, change nothing.
            f" and h.state not in ({_SETTLED})"
        )


async def _write_opened(tx: Any, rows: list[tuple[Any, ...]]) -> None:
    """Copy new rows straight into the table, which takes half as long; by the way round if some are there."""
    try:
        async with tx.transaction():
            await tx.copy_records_to_table("handoffs", records=rows, columns=_COLUMNS)
    except Exception as error:
        if getattr(error, "sqlstate", "") != _UNIQUE_VIOLATION:
            raise
        await prepare(tx)
        await tx.copy_records_to_table("incoming", records=rows, columns=_COLUMNS)
        names = ", ".join(_COLUMNS)
        await tx.execute(
            f"insert into handoffs ({names}) select {names} from incoming on conflict do nothing"
        )


def _row(opened: Opened) -> tuple[Any, ...]:
    handoff, said = opened.handoff, opened.said
    owed, place = handoff.owed, handoff.place
    return (
        handoff.key,
        owed.group,
        owed.edge,
        place.topic,
        place.partition,
        handoff.offset,
        handoff.at_ms,
        shown(opened.subject or said.key),
        _name(handoff.key, said),
        opened.due_ms or None,
        said.sequence,
        handoff.state,
        handoff.parts,
        handoff.total,
        key_of(opened.answer) if opened.answer else None,
        opened.settled_ms or None,
    )


def _name(key: bytes, said: Said) -> str | None:
    """The event's id, where the key does not show it."""
    if said.event_id.replace(b"-", b"") == hexlify(key):
        return None
    return shown(said.event_id)


def _ending(settled: Settled) -> tuple[Any, ...]:
    handoff = settled.handoff
    answer = key_of(settled.answer) if settled.answer else None
    ended = None if handoff.state is State.OPEN else settled.at_ms
    return handoff.key, handoff.owed.group, handoff.state, answer, ended, handoff.parts, handoff.total


async def _write_early(tx: Any, changes: Changes) -> None:
    matched: dict[str, list[bytes]] = {}
    for effect in changes.matched:
        matched.setdefault(effect.group, []).append(effect.key)
    for group, keys in matched.items():
        await tx.execute("delete from early where grp = $1 and key = any($2::bytea[])", group, keys)
    if changes.early:
        await tx.copy_records_to_table("early", records=[_early_row(effect) for effect in changes.early])
    grown = [(effect.key, effect.group, effect.parts, effect.total) for effect in changes.grown]
    if grown:
        await tx.execute(
            "update early e set parts = x.p, total = x.t"
            " from unnest($1::bytea[], $2::text[], $3::bigint[], $4::int[]) as x(k, g, p, t)"
            " where e.key = x.k and e.grp = x.g",
            *columns(grown, 4),
        )


def _early_row(effect: Effect) -> tuple[Any, ...]:
    place = effect.place
    return (
        effect.key,
        effect.group,
        effect.state,
        place.topic,
        place.partition,
        effect.offset,
        effect.at_ms,
        effect.answer,
        effect.parts,
        effect.total,
    )


async def _write_counts(tx: Any, counts: Sequence[Count], now_ms: int) -> None:
    if counts:
        await prepare(tx)
        await tx.copy_records_to_table(
            "counted",
            records=[
                (count.writer, count.subject, count.following, sorted(count.missing), now_ms, count.first)
                for count in counts
            ],
        )
        await tx.execute(
            "insert into counts (writer, subject, following, missing, changed_ms, first) select"
            " * from counted"
            " on conflict (writer, subject) do update set following = excluded.following,"
            " missing = excluded.missing, changed_ms = excluded.changed_ms, first = excluded.first"
        )


async def _write_acts(tx: Any, acts: Acts) -> None:
    if acts.removed:
        await tx.execute(
            "delete from acts a using unnest($1::text[], $2::bytea[]) as x(e, s)"
            " where a.edge = x.e and a.subject = x.s",
            *columns(acts.removed, 2),
        )
    if acts.added:
        await tx.execute(
            "insert into acts (edge, subject, at_ms) select * from unnest($1::text[],"
            " $2::bytea[], $3::bigint[])"
            " on conflict do nothing",
            *columns([(*name, at_ms) for name, at_ms in acts.added.items()], 3),
        )


async def _write_verdicts(tx: Tx, writing: Writing) -> list[Verdict]:
    candidates = writing.candidates
    if not candidates:
        return []
    rows = await tx.fetch(
        "select h.key, h.grp, h.state from handoffs h join unnest($1::bytea[], $2::text[]) as x(k, g)"
        " on h.key = x.k and h.grp = x.g",
        *columns([(verdict.handoff.key, verdict.handoff.owed.group) for verdict in candidates], 2),
    )
    stored = {(row["key"], row["grp"]): row["state"] for row in rows}
    standing = [
        verdict
        for verdict in candidates
        if stored.get((verdict.handoff.key, verdict.handoff.owed.group), OPEN[0]) in OPEN
    ]
    if not standing:
        return []
    await tx.execute(_JUDGED, *columns([_verdict_row(verdict) for verdict in standing], 12), writing.now_ms)
    await tx.execute(
        "insert into verdicts (key, grp, edge, state, topic, partition, record_offset, subject,"
        " name, judged_ms,"
        " commit_seen_ms, committed, barrier, note)"
        " select k, g, h.edge, s, h.topic, h.partition, h.record_offset, h.subject, h.name, $5, c, m, b, n"
        " from unnest($1::bytea[], $2::text[], $3::text[], $4::bigint[], $6::bigint[],"
        " $7::text[], $8::text[])"
        " as x(k, g, s, c, m, b, n) join handoffs h on h.key = k and h.grp = g",
        [verdict.handoff.key for verdict in standing],
        [verdict.handoff.owed.group for verdict in standing],
        [verdict.state.value for verdict in standing],
        [verdict.barrier.raised_ms if verdict.barrier else None for verdict in standing],
        writing.now_ms,
        [verdict.commit if verdict.commit >= 0 else None for verdict in standing],
        [evidence(verdict.barrier) for verdict in standing],
        [verdict.note for verdict in standing],
    )
    return standing


_JUDGED = """
insert into handoffs (key, grp, edge, topic, partition, record_offset, at_ms, subject, name, state, parts,
                      total, settled_ms)
select k, g, e, t, p, o, a, s, nullif(i, ''), w, m, n, $13
from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::int[], $6::bigint[], $7::bigint[],
            $8::text[], $9::text[], $10::text[], $11::bigint[], $12::int[])
    as x(k, g, e, t, p, o, a, s, i, w, m, n)
on conflict (key, grp) do update set state = excluded.state, settled_ms = excluded.settled_ms
"""


def _verdict_row(verdict: Verdict) -> tuple[Any, ...]:
    handoff = verdict.handoff
    place = handoff.place
    return (
        handoff.key,
        handoff.owed.group,
        handoff.owed.edge,
        place.topic,
        place.partition,
        handoff.offset,
        handoff.at_ms,
        verdict.subject,
        verdict.name,
        verdict.state.value,
        handoff.parts,
        handoff.total,
    )


def evidence(barrier: Barrier | None) -> str:
    """Write a barrier as JSON: the ends that were taken after the commit, and how far was read."""
    if barrier is None or barrier.to_read is None:
        return "[]"
    return json.dumps(
        [
            {
                "topic": place.topic,
                "partition": place.partition,
                "end": end,
                "read": barrier.read.get(place, 0),
            }
            for place, end in sorted(barrier.to_read.items())
        ]
    )


async def _write_places(tx: Tx, writing: Writing) -> None:
    if writing.positions:
        await tx.execute(
            "insert into positions (topic, partition, position, last)"
            " select * from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[])"
            " on conflict (topic, partition) do update set position = excluded.position, last ="
            " excluded.last",
            *columns([(*place, *moved) for place, moved in writing.positions.items()], 4),
        )
    if writing.commits:
        await tx.execute(
            "insert into commits (grp, topic, partition, committed)"
            " select * from unnest($1::text[], $2::text[], $3::int[], $4::bigint[])"
            " on conflict (grp, topic, partition) do update set committed = excluded.committed",
            *columns([(group, *place, at) for (group, place), at in writing.commits.items()], 4),
        )
    for place, first, last, reason in writing.blind:
        await tx.execute(
            "insert into blind (topic, partition, from_offset, to_offset, seen_ms, reason)"
            " values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
            *place,
            first,
            last,
            writing.now_ms,
            reason,
        )


# ------------------------------------------------------------------ restart


async def take_over(tx: Tx) -> int:
    """Become the only writer: whoever wrote before finds another token and stops."""
    return int(
        await tx.fetchval(
            "insert into writer (one, token) values (true, 1)"
            " on conflict (one) do update set token = writer.token + 1 returning token"
        )
    )


async def token(tx: Tx) -> int:
    """Read who may write, and hold it until this transaction ends."""
    return int(await tx.fetchval("select token from writer for update"))


async def restore(tx: Tx, contract: Contract, deferred: Deferred, now_ms: int) -> Restored:
    """Read what an earlier process had stored; all that it wrote belongs together."""
    places = await tx.fetch(
        "select topic, partition, position, last from positions where topic <> $1", actions.APPLIED[0]
    )
    commits = await tx.fetch("select grp, topic, partition, committed from commits")
    rows = await tx.fetch(
        "select * from handoffs where state = any($1::text[]) order by grp, topic, partition, record_offset",
        _UNSETTLED,
    )
    effects = await tx.fetch("select * from early")
    counts = await tx.fetch(
        "select writer, subject, following, missing, first from counts where cardinality(missing) > 0"
    )
    acts = await tx.fetch("select edge, subject, at_ms from acts")
    met = await tx.fetch(
        f"select key from handoffs where at_ms > $1 and due_ms > 0 and state in ({_SETTLED})"
        " order by at_ms desc limit $2",
        now_ms - RECENT_MS,
        REMEMBERED,
    )
    waiting: list[Waiting] = []
    handoffs: list[Handoff] = []
    for row in rows:
        handoff = _handoff(row)
        later = deferred.later_of(handoff.owed.edge)
        if later is not None and (handoff.state.value in OPEN or handoff.state is State.TIMER_LOST):
            waiting.append(
                Waiting(handoff, later, row["subject"].encode(), row["sequence"], row["due_ms"] or 0)
            )
        if later is None or handoff.state in WATCHED:
            handoffs.append(handoff)
    return Restored(
        {Place(row["topic"], row["partition"]): (row["position"], row["last"]) for row in places},
        {(row["grp"], Place(row["topic"], row["partition"])): row["committed"] for row in commits},
        handoffs,
        waiting,
        [_effect(row) for row in effects],
        [
            Count(row["writer"], row["subject"], row["following"], set(row["missing"]), first=row["first"])
            for row in counts
        ],
        [(row["edge"], row["subject"], row["at_ms"]) for row in acts],
        [row["key"] for row in reversed(met)],
    )


def _handoff(row: Mapping[str, Any]) -> Handoff:
    return Handoff(
        row["key"],
        Place(row["topic"], row["partition"]),
        row["record_offset"],
        row["at_ms"],
        Owed(row["edge"], row["grp"]),
        row["parts"],
        row["total"],
        State(row["state"]),
    )


def _effect(row: Mapping[str, Any]) -> Effect:
    return Effect(
        row["key"],
        row["grp"],
        State(row["state"]),
        Place(row["topic"], row["partition"]),
        row["record_offset"],
        row["at_ms"],
        row["answer"],
        row["parts"],
        row["total"],
    )


# ------------------------------------------------------------------ beside the ledger


async def write_status(tx: Tx, now_ms: int, document: str) -> None:
    """Keep what the commands show: one row, replaced."""
    await tx.execute(
        "insert into status (one, at_ms, document) values (true, $1, $2)"
        " on conflict (one) do update set at_ms = excluded.at_ms, document = excluded.document",
        now_ms,
        document,
    )


BLIND_FOR_MS = 24 * 60 * 60 * 1000
"""How long a stretch that could not be read is shown: nothing is proved about its handoffs."""


BEFORE = "deleted before the ledger began"
"""Why an observer's very first look misses the beginning of a log: known, and no alarm."""


async def blind_ranges(tx: Tx, now_ms: int) -> list[dict[str, Any]]:
    """List what could not be read lately: topic, partition, offsets `from` up to `to`, why, when (ms)."""
    rows = await tx.fetch(
        "select topic, partition, from_offset, to_offset, reason, seen_ms from blind where seen_ms > $1"
        f" and reason <> '{BEFORE}' order by seen_ms, topic, partition, from_offset",
        now_ms - BLIND_FOR_MS,
    )
    names = ("topic", "partition", "from", "to", "reason", "seen_ms")
    return [dict(zip(names, row.values(), strict=True)) for row in rows]


async def untold(tx: Tx, limit: int = 500) -> Sequence[Any]:
    """Read verdicts that were not published yet, oldest first."""
    return await tx.fetch(
        "select verdict_id, key, grp, edge, state, topic, partition, record_offset, subject,"
        " name, judged_ms, note"
        " from verdicts where not told order by verdict_id limit $1",
        limit,
    )


async def mark_told(tx: Tx, verdict_ids: Sequence[int]) -> None:
    """Note that Kafka has acknowledged these verdicts."""
    await tx.execute("update verdicts set told = true where verdict_id = any($1::bigint[])", verdict_ids)


async def prune(tx: Tx, before_ms: int, long_before_ms: int, limit: int = 20_000) -> None:
    """Delete old settled rows, a little at a time, never open or lost ones; counts stay longer."""
    for table, condition in (
        ("handoffs", f"at_ms < $1 and state in ({_OVER})"),
        ("acts", "at_ms < $1"),
        ("verdicts", "judged_ms < $1 and told"),
    ):
        await tx.execute(
            f"delete from {table} where ctid = any(array(select ctid from {table} where"
            f" {condition} limit $2))",
            before_ms,
            limit,
        )
    await tx.execute("delete from blind where seen_ms < $1", long_before_ms)
    await tx.execute(
        "delete from counts where ctid = any(array(select ctid from counts where changed_ms < $1"
        " and cardinality(missing) = 0 limit $2))",
        long_before_ms,
        limit,
    )


async def recall(tx: Tx, counts: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], int]:
    """Read the next numbers of counts that memory does not hold; one that was never stored is absent."""
    rows = await tx.fetch(
        "select c.writer, c.subject, c.following from counts c join unnest($1::text[],"
        " $2::bytea[]) as x(w, s)"
        " on c.writer = x.w and c.subject = x.s",
        *columns(counts, 2),
    )
    return {(row["writer"], row["subject"]): row["following"] for row in rows}


async def blind_topics(tx: Tx) -> dict[str, int]:
    """Tell on which topics anything was deleted before it was read, and when (ms) that was last noticed."""
    rows = await tx.fetch("select topic, max(seen_ms) as seen_ms from blind group by topic")
    return {row["topic"]: row["seen_ms"] for row in rows}
