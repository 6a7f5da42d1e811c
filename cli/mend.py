"""What operators do about losses: send again, waive, discard, skip; every act goes into the chain first."""

from __future__ import annotations

import asyncio
import base64
import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias
from uuid import UUID

from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher, Offsets, commit_for, members_of, records_at
from chassis.message import Poison, read
from chassis.postgres import columns
from chassis.step import Event
from chassis.transport import SENT_AGAIN, Outgoing, Record, Refetched
from chassis.transport import Place as Partition
from cli import ledger
from cli.world import NotFound, Place, World, connected
from observer import actions
from observer.headers import key_of
from observer.ledger import LOST, State
from observer.reading import ID_REUSED
from schemas.envelope import BY_WIRE
from schemas.topics import BY_NAME, STAGES

_CANNOT = {
    State.TIMER_LOST.value: "a timer cannot be sent again: do by hand what was due, then `hotline waive`",
    State.SEQUENCE_GAP.value: "nobody has this record: ask its writer, then `hotline waive`",
    State.ORPHAN.value: "its cause does not exist: nothing to send",
}
MOST_AT_ONCE = 100_000
_PUBLISHED_AT_ONCE = 500
SENDABLE = tuple(state.value for state in LOST if state.value not in _CANNOT)


_UNANSWERED = (State.OPEN.value, State.UNPROVABLE.value)
"""What a group has not answered: before its commit nothing more is said of it."""


class Refused(Exception):
    """The act would do harm, or cannot be done; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why."""

    name: str
    reason: str = ""

    @classmethod
    def named(cls, by: str, reason: str = "") -> Operator:
        """The person who was named, else the account that runs the command."""
        return cls(by or getpass.getuser(), reason)


async def redrive(
    world: World, handoffs: Sequence[Mapping[str, Any]], operator: Operator, *, dry_run: bool
) -> list[dict[str, Any]]:
    """Send records again under their own ids; gives one line per handoff: sent, or why not.

    A dead letter that this release cannot read either is not sent: it would only come back. One that can
    be read now, and was named by its place before, goes on as the event that it is, and the letter ends.
    """
    place = world.place()
    records = await _records(world, place, [one for one in handoffs if one["state"] not in _CANNOT])
    letters = await letters_of(place, [one for one in handoffs if one["state"] == ledger.DEAD])
    lines: list[dict[str, Any]] = []
    sent: list[tuple[dict[str, Any], Record]] = []
    for handoff in handoffs:
        about, record = _about(handoff), records.get(_where(handoff))
        why = _CANNOT.get(handoff["state"]) or _why_not(handoff, record, letters)
        lines.append({**about, "sent": why is None and not dry_run, "why_not": why})
        if why is None and record is not None:
            sent.append((about, record))
    if sent and not dry_run:
        await _send(place, sent, operator)
    return lines


async def _send(place: Place, sent: Sequence[tuple[dict[str, Any], Record]], operator: Operator) -> None:
    async with ledger.session(place) as tx:
        targets = [about for about, _ in sent]
        action = await actions.append(tx, operator.name, "redrive", targets, operator.reason)
    mark = (SENT_AGAIN, str(action.number).encode())
    publisher = KafkaPublisher(place.kafka, "hotline-redrive")
    try:
        for first in range(0, len(sent), _PUBLISHED_AT_ONCE):
            await publisher.publish(
                [_again(record, mark) for _, record in sent[first : first + _PUBLISHED_AT_ONCE]]
            )
    finally:
        await publisher.stop()
    renamed = [{**about, "goes_on_as": name} for about, record in sent if (name := _renamed(about, record))]
    if renamed:
        async with ledger.session(place) as tx:
            why = f"can be read now: action {action.number} has sent it again under its own id"
            await actions.append(tx, operator.name, "discard", renamed, why)


def _again(record: Record, mark: tuple[str, bytes]) -> Outgoing:
    headers = [*(header for header in record.headers if header[0] != SENT_AGAIN), mark]
    return Outgoing(record.topic, record.key or b"", record.value, headers)


def _why_not(handoff: Mapping[str, Any], record: Record | None, letters: Letters) -> str | None:
    if record is None:
        return "its bytes are gone from the topic and are not in quarantine"
    letter = letters.get(_where(handoff))
    if letter is not None and letter["reason"] == ID_REUSED:
        return (
            "its id was used before for other content, so it would only come back: have its writer send it"
            " under an id of its own, and `hotline dead discard`"
        )
    found = read(record, BY_WIRE) if handoff["state"] == ledger.DEAD else None
    if not isinstance(found, Poison):
        return None
    return (
        f"still unreadable ({found.reason}: {found.explanation}): mend the reader, or `hotline dead discard`"
    )


def _renamed(about: Mapping[str, Any], record: Record) -> str:
    """Name the event of a record whose handoff has another name: until now only its place could be told."""
    found = read(record, BY_WIRE)
    named = isinstance(found, Event) and key_of(found.name.encode()).hex() != about["key"]
    return found.name if isinstance(found, Event) and named else ""


def _about(handoff: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: handoff[name] for name in ("event_id", "key", "group", "edge", "topic", "partition", "offset")
    }


def _where(handoff: Mapping[str, Any]) -> tuple[str, Partition, int]:
    return handoff["group"], Partition(handoff["topic"], handoff["partition"]), handoff["offset"]


async def _records(
    world: World, place: Place, handoffs: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, Partition, int], Record]:
    """The records as they were: from their topics, else from the groups' quarantines."""
    asked = [_where(handoff) for handoff in handoffs]
    offsets: dict[Partition, list[int]] = {}
    for _, at, offset in asked:
        offsets.setdefault(at, []).append(offset)
    kept = await records_at(place.kafka, offsets) if offsets else {}
    found = {(group, at, offset): kept[at, offset] for group, at, offset in asked if (at, offset) in kept}
    for name in STAGES:
        gone = [(at, offset) for group, at, offset in asked if group == name and (at, offset) not in kept]
        if gone:
            quarantined = await _from_quarantine(world, place, name, gone)
            found |= {(name, at, offset): record for (at, offset), record in quarantined.items()}
    return found


async def _from_quarantine(
    world: World, place: Place, stage: str, gone: Sequence[tuple[Partition, int]]
) -> dict[tuple[Partition, int], Record]:
    async with connected(place, stage) as database, database.session() as tx:
        rows = await tx.fetch(
            "select topic, partition, record_offset, sealed from quarantine"
            " join unnest($1::text[], $2::int[], $3::bigint[]) as x(t, p, o)"
            " on topic = t and partition = p and record_offset = o",
            *columns([(*at, offset) for at, offset in gone], 3),
        )
    if not rows:
        return {}
    vault = await world.vault(place)
    try:
        return {
            (Partition(topic, partition), offset): _opened(
                topic, partition, offset, vault.open_record(sealed)
            )
            for topic, partition, offset, sealed in (row.values() for row in rows)
        }
    finally:
        await vault.close()


def _opened(topic: str, partition: int, offset: int, kept: Any) -> Record:
    headers = [(name, _bytes(value) or b"") for name, value in kept["headers"]]
    return Refetched(topic, partition, offset, 0, _bytes(kept["key"]), _bytes(kept["value"]), headers, "")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


Letters: TypeAlias = Mapping[tuple[str, Partition, int], Any]
"""Rows of quarantines, by group and by where the record lies."""


async def letters_of(place: Place, handoffs: Sequence[Mapping[str, Any]]) -> Letters:
    """Read the dead letters of handoffs from their groups' quarantines; what is not there is absent."""
    found: dict[tuple[str, Partition, int], Any] = {}
    for stage in STAGES:
        wanted = [(*at, offset) for group, at, offset in map(_where, handoffs) if group == stage]
        if not wanted:
            continue
        async with connected(place, stage) as database, database.session() as tx:
            if await tx.fetchval("select to_regclass('quarantine')") is None:
                continue
            rows = await tx.fetch(
                "select topic, partition, record_offset, quarantine_id, reason, explanation, first_seen"
                " from quarantine join unnest($1::text[], $2::int[], $3::bigint[]) as x(t, p, o)"
                " on topic = t and partition = p and record_offset = o",
                *columns(wanted, 3),
            )
        for row in rows:
            found[stage, Partition(row["topic"], row["partition"]), row["record_offset"]] = row
    return found


async def with_letters(place: Place, handoffs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give dead handoffs with what their quarantines say of them; `letter` is None where there is nothing."""
    letters = await letters_of(place, handoffs)
    return [{**one, "letter": _shown_letter(letters.get(_where(one)))} for one in handoffs]


def alike(dead: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put dead letters with the same fault together, the most first, each kind with one for an example.

    The same fault: of one group, for one reason, with one explanation but for its numbers and ids.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for one in dead:
        kinds.setdefault(_fingerprint(one), []).append(one)
    return [
        {
            "fingerprint": fingerprint,
            "group": ones[0]["group"],
            "reason": _said_of(ones[0], "reason"),
            "explanation": _said_of(ones[0], "explanation"),
            "count": len(ones),
            "first": min(str(one["at"]) for one in ones),
            "last": max(str(one["at"]) for one in ones),
            "example": {name: ones[0][name] for name in ("event_id", "topic", "partition", "offset")},
        }
        for fingerprint, ones in sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    ]


_CHANGING = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\d+")


def _fingerprint(one: Mapping[str, Any]) -> str:
    explained = _CHANGING.sub("#", _said_of(one, "explanation"))
    text = "|".join((one["group"], _said_of(one, "reason"), explained))
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _said_of(one: Mapping[str, Any], name: str) -> str:
    return str(one["letter"][name]) if one["letter"] else "not in quarantine"


async def end(
    place: Place, verb: str, handoffs: Sequence[Mapping[str, Any]], operator: Operator, within: float = 5.0
) -> bool:
    """Waive or discard: the observer carries it out; tells whether it has done so `within` seconds."""
    async with ledger.session(place) as tx:
        action = await actions.append(
            tx, operator.name, verb, [_about(handoff) for handoff in handoffs], operator.reason
        )
    for _ in range(int(within / 0.1)):
        async with ledger.session(place) as tx:
            if await actions.last_applied(tx) >= action.number:
                return True
        await asyncio.sleep(0.1)
    return False


# ------------------------------------------------------------------ skipping


@dataclass(frozen=True, slots=True)
class Skip:
    """What a skip would do: from where to where, and which handoffs it would drop.

    `all_known` tells whether the observer has read all that would be skipped: else there may be more.
    """

    group: str
    moves: dict[Partition, tuple[int, int]]
    drops: list[dict[str, Any]]
    objections: list[str]
    all_known: bool = True

    def as_json(self) -> dict[str, Any]:
        """The plan for a script."""
        return {
            "group": self.group,
            "moves": [
                {"topic": p.topic, "partition": p.partition, "from": a, "to": b}
                for p, (a, b) in self.moves.items()
            ],
            "drops": self.drops,
            "all_known": self.all_known,
            "objections": self.objections,
        }


async def plan_skip(
    place: Place, group: str, topic: str, partition: int | None, to: int | None, within: float = 5.0
) -> Skip:
    """Say what a skip to `to` (None: the end) would do, and what speaks against it.

    Gives the observer `within` seconds to read what would be skipped: only it knows what is owed there.
    """
    if topic not in BY_NAME or group not in BY_NAME[topic].read_by:
        raise Refused(f"{group} does not read {topic}: see schemas/topics.py")
    offsets = Offsets(place.kafka)
    await offsets.start()
    try:
        commits = await offsets.commits(group)
        places = [p for p in await offsets.partitions([topic]) if partition in (None, p.partition)]
        ends, starts = await offsets.highs(places), await offsets.starts(places)
    finally:
        await offsets.stop()
    if mute := [f"{p.topic}/{p.partition}" for p in places if p not in ends]:
        raise Refused(f"{', '.join(mute)} has no leader now, so nobody knows where it ends: try again later")
    moves = {
        p: (max(commits.get(p, 0), starts[p]), min(ends[p] if to is None else to, ends[p])) for p in places
    }
    moves = {p: (now, then) for p, (now, then) in moves.items() if then > now}
    unread = await _unread(place, moves, within) if group in STAGES else []
    async with ledger.session(place) as tx:
        waiting = await ledger.listed(tx, _UNANSWERED, limit=1_000_000, group=group)
    drops = [
        handoff
        for handoff in waiting
        if handoff["due"] is None  # what must follow in time does not hang on this commit
        and (move := moves.get(Partition(handoff["topic"], handoff["partition"]))) is not None
        and move[0] <= handoff["offset"] < move[1]
    ]
    return Skip(group, moves, drops, [*unread, *await _objections(place, group)], all_known=not unread)


async def _unread(place: Place, moves: Mapping[Partition, tuple[int, int]], within: float) -> list[str]:
    """Object where the observer has not read what would be skipped: nobody could say what is dropped."""
    deadline = monotonic() + within
    while True:
        async with ledger.session(place) as tx:
            read_to = {
                Partition(topic, partition): position
                for topic, partition, position in await tx.fetch(
                    "select topic, partition, position from positions"
                )
            }
        unread = [
            f"the observer has read {p.topic}/{p.partition} only up to {read_to.get(p, 0)}, and nobody knows"
            f" what is owed from there to {then}: let it catch up (hotline status)"
            for p, (_, then) in moves.items()
            if read_to.get(p, 0) < then
        ]
        if not unread or monotonic() > deadline:
            return unread
        await asyncio.sleep(0.1)


async def _objections(place: Place, group: str) -> list[str]:
    found = []
    members = await members_of(place.kafka, group)
    if members:
        found.append(f"{group} has {members} members: stop it first, a commit under its feet is overwritten")
    if group in STAGES:
        async with connected(place, group) as database, database.session() as tx:
            pending = await tx.fetchval("select count(*) from unpublished")
        if pending:
            found.append(
                f"{group} has {pending} batches unsent: start it until its outbox is drained, then stop it"
            )
    return found


async def skip(place: Place, plan: Skip, operator: Operator) -> None:
    """Commit past records for a group that is not running; raises Refused on any objection."""
    if plan.objections:
        raise Refused("; ".join(plan.objections))
    async with ledger.session(place) as tx:
        await actions.append(tx, operator.name, "skip", [plan.as_json()], operator.reason)
    await commit_for(place.kafka, plan.group, {p: then for p, (_, then) in plan.moves.items()})


async def found_or_raise(
    place: Place, asked: Sequence[str], states: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Find the handoffs of these event ids; raises NotFound for one that nobody knows."""
    found: list[dict[str, Any]] = []
    async with ledger.session(place) as tx:
        for one in asked:
            handoffs = await ledger.find(tx, one)
            if not handoffs:
                raise NotFound(
                    f"the ledger has no handoff of event {one}: hotline lost list, hotline dead list"
                )
            found += [handoff for handoff in handoffs if not states or handoff["state"] in states]
    return found


def _shown_letter(letter: Any) -> dict[str, Any] | None:
    """Write a quarantine row without its bytes."""
    if letter is None:
        return None
    return {
        "quarantine_id": str(UUID(str(letter["quarantine_id"]))),
        "reason": letter["reason"],
        "explanation": letter["explanation"],
        "first_seen": letter["first_seen"].isoformat(),
    }
