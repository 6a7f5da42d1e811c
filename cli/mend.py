"""What operators do about losses: send again, waive, discard, skip; every act goes into the chain first."""

from __future__ import annotations

import asyncio
import base64
import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from chassis.kafka import KafkaPublisher, Offsets, commit_for, members_of, record_at
from chassis.transport import SENT_AGAIN, Outgoing
from chassis.transport import Place as Partition
from cli import ledger
from cli.world import CannotReach, Place, World, connected
from observer import actions
from observer.ledger import LOST, State
from schemas.topics import BY_NAME, STAGES

_CANNOT = {
    State.TIMER_LOST.value: "a timer cannot be sent again: do by hand what was due, then `hotline waive`",
    State.SEQUENCE_GAP.value: "nobody has this record: ask its writer, then `hotline waive`",
    State.ORPHAN.value: "its cause does not exist: nothing to send",
}
SENDABLE = tuple(state.value for state in LOST if state.value not in _CANNOT)


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
    """Send records again under their own ids; gives one line per handoff: sent, or why not."""
    place = world.place()
    lines, outgoing = [], []
    for handoff in handoffs:
        why = _CANNOT.get(handoff["state"])
        message = await _message(world, place, handoff) if why is None else None
        if message is None and why is None:
            why = "its bytes are gone from the topic and are not in quarantine"
        lines.append({**_about(handoff), "sent": message is not None and not dry_run, "why_not": why})
        if message is not None:
            outgoing.append((handoff, message))
    if dry_run or not outgoing:
        return lines
    async with ledger.session(place) as tx:
        target = [_about(handoff) for handoff, _ in outgoing]
        action = await actions.append(tx, operator.name, "redrive", target, operator.reason)
    publisher = KafkaPublisher(place.kafka, "hotline-redrive")
    try:
        mark = (SENT_AGAIN, str(action.number).encode())
        await publisher.publish(
            [
                message._replace(headers=[*(h for h in message.headers if h[0] != SENT_AGAIN), mark])
                for _, message in outgoing
            ]
        )
    finally:
        await publisher.stop()
    return lines


def _about(handoff: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: handoff[name] for name in ("event_id", "key", "group", "edge", "topic", "partition", "offset")
    }


async def _message(world: World, place: Place, handoff: Mapping[str, Any]) -> Outgoing | None:
    """The record as it was: from its topic, else from the group's quarantine."""
    topic = handoff["topic"]
    record = await record_at(place.kafka, Partition(topic, handoff["partition"]), handoff["offset"])
    if record is not None:
        return Outgoing(topic, record.key or b"", record.value, list(record.headers))
    return await _from_quarantine(world, place, handoff)


async def _from_quarantine(world: World, place: Place, handoff: Mapping[str, Any]) -> Outgoing | None:
    letter = await letter_of(place, handoff)
    if letter is None:
        return None
    vault = await world.vault(place)
    try:
        opened: Any = vault.open_record(letter["sealed"])
    finally:
        await vault.close()
    headers = [(name, _bytes(value) or b"") for name, value in opened["headers"]]
    return Outgoing(handoff["topic"], _bytes(opened["key"]) or b"", _bytes(opened["value"]), headers)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


async def letter_of(place: Place, handoff: Mapping[str, Any]) -> Any:
    """Read a dead letter of a handoff from its group's quarantine; None when there is none."""
    if handoff["group"] not in STAGES:
        return None
    async with connected(place, handoff["group"]) as database, database.session() as tx:
        return await tx.fetchrow(
            "select quarantine_id, reason, explanation, first_seen, sealed from quarantine"
            " where topic = $1 and partition = $2 and record_offset = $3",
            handoff["topic"],
            handoff["partition"],
            handoff["offset"],
        )


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
    """What a skip would do: from where to where, and which handoffs it would drop."""

    group: str
    moves: dict[Partition, tuple[int, int]]
    drops: list[dict[str, Any]]
    objections: list[str]

    def as_json(self) -> dict[str, Any]:
        """The plan for a script."""
        return {
            "group": self.group,
            "moves": [
                {"topic": p.topic, "partition": p.partition, "from": a, "to": b}
                for p, (a, b) in self.moves.items()
            ],
            "drops": self.drops,
            "objections": self.objections,
        }


async def plan_skip(place: Place, group: str, topic: str, partition: int | None, to: int | None) -> Skip:
    """Say what a skip to `to` (None: the end) would do, and what speaks against it."""
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
    async with ledger.session(place) as tx:
        waiting = await ledger.listed(tx, ["open"], limit=1_000_000, group=group)
    drops = [
        handoff
        for handoff in waiting
        if (move := moves.get(Partition(handoff["topic"], handoff["partition"]))) is not None
        and move[0] <= handoff["offset"] < move[1]
    ]
    return Skip(group, moves, drops, await _objections(place, group))


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
    """Find the handoffs of these event ids; raises CannotReach for one that nobody knows."""
    found: list[dict[str, Any]] = []
    async with ledger.session(place) as tx:
        for one in asked:
            handoffs = await ledger.find(tx, one)
            if not handoffs:
                raise CannotReach(
                    f"the ledger has no handoff of event {one}: hotline lost list, hotline dead list"
                )
            found += [handoff for handoff in handoffs if not states or handoff["state"] in states]
    return found


def shown_letter(letter: Any) -> dict[str, Any] | None:
    """Write a quarantine row without its bytes."""
    if letter is None:
        return None
    return {
        "quarantine_id": str(UUID(str(letter["quarantine_id"]))),
        "reason": letter["reason"],
        "explanation": letter["explanation"],
        "first_seen": letter["first_seen"].isoformat(),
    }
