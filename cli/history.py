"""The history of one case, from what each stage said and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from chassis.ids import is_case_number
from chassis.outbox import unpack
from chassis.vault import ERASED
from cli.world import Place, connected
from schemas.envelope import BY_WIRE, Body
from schemas.intake import ContactAttached
from schemas.router import CaseParked, CaseRouted
from schemas.topics import STAGES

if TYPE_CHECKING:
    from chassis.postgres import Tx
    from cli.world import World

SEALED = "[sealed]"
"""Stands for what a customer said, until somebody says why he reads it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was said about a case; `tells` is what a person asks of it.

    `words`: whose, and what the customer said, sealed.
    """

    at: datetime
    stage: str
    event: str
    sequence: int | None
    event_id: str
    cause: str | None
    topic: str
    sent: bool
    tells: dict[str, Any]
    words: tuple[str, str] | None = None

    def as_json(self, before: datetime | None) -> dict[str, Any]:
        """The line for a script; `after_ms` is the time since the line before."""
        after = None if before is None else round((self.at - before).total_seconds() * 1000, 1)
        return {
            "at": self.at.isoformat(),
            "stage": self.stage,
            "event": self.event,
            "sequence": self.sequence,
            "after_ms": after,
            "event_id": self.event_id,
            "cause": self.cause,
            "topic": self.topic,
            "sent": self.sent,
            **self.tells,
        }


async def case_id_of(place: Place, asked: str) -> UUID | None:
    """Find the case behind an id, a case number or a call id; None when nobody knows it."""
    try:
        return UUID(asked)
    except ValueError:
        pass
    async with connected(place, "intake") as database, database.session() as tx:
        if is_case_number(asked):
            found = await _by_number(place, asked.strip().upper())
            return UUID(found) if found else None
        found = await tx.fetchval("select document::json->>'case_id' from entities where key = $1", asked)
    return UUID(found) if found else None


async def _by_number(place: Place, number: str) -> str | None:
    for stage in ("router", "feedback"):
        async with connected(place, stage) as database, database.session() as tx:
            found = await tx.fetchval(
                "select key from entities where document::json->'case'->>'case_no' = $1", number
            )
        if found:
            return str(found)
    return None


async def history(place: Place, case_id: UUID) -> list[Line]:
    """Everything the four stages said about a case, in the order of time."""
    lines: list[Line] = []
    for stage in STAGES:
        async with connected(place, stage) as database, database.session() as tx:
            rows = await tx.fetch(
                "select topic, headers, value, u.batch is null as sent from outbox"
                " left join unpublished u using (batch) where correlation = $1",
                str(case_id),
            )
        lines += [_line(stage, row) for row in rows]
    stages = {stage: index for index, stage in enumerate(STAGES)}
    return sorted(lines, key=lambda line: (line.at, stages[line.stage], line.sequence or 0))


def _line(stage: str, row: Any) -> Line:
    headers = {name: value.decode() for name, value in unpack(row["headers"])}
    sequence = headers.get("ce_sequence")
    kind = BY_WIRE.get(headers["ce_type"])
    said = kind.body.parse(row["value"]) if kind is not None and kind.body in _TELLING else None
    return Line(
        datetime.fromisoformat(headers["ce_time"]),
        stage,
        headers["ce_type"],
        int(sequence) if sequence else None,
        headers["ce_id"],
        headers.get("ce_causationid"),
        row["topic"],
        row["sent"],
        _tells(said),
        _words(said),
    )


_TELLING = (CaseRouted, CaseParked, ContactAttached)


def _tells(said: Body | None) -> dict[str, Any]:
    match said:
        case CaseRouted(why=why):
            return {"why": why.model_dump(include={"stage", "by", "reason"})}
        case CaseParked(reason=reason):
            return {"reason": reason}
        case ContactAttached(text=text):
            return {"text": SEALED if text else None}
    return {}


def _words(said: Body | None) -> tuple[str, str] | None:
    match said:
        case ContactAttached(customer_ref=str(ref), text=str(text)):
            return ref, text
    return None


async def opened(world: World, case_id: UUID, lines: Sequence[Line], by: str, reason: str) -> list[Line]:
    """Open what customers said; before any of it is given, who reads it, and why, is kept with each of them.

    `[erased]` where the key is gone: nobody reads that.
    """
    from cli.mend import Operator
    from services.intake.customers import store

    place = world.place()
    vault = await world.vault(place)
    try:
        await vault.ready(sorted({line.words[0] for line in lines if line.words}))
        found = [(line, vault.open(*line.words) if line.words else None) for line in lines]
    finally:
        await vault.close()
    read = {line.words[0] for line, text in found if line.words and text != ERASED}
    async with connected(place, "intake") as database, database.transaction() as tx:
        for ref in sorted({await _whose(tx, ref, case_id) for ref in read}):
            await store.note(tx, ref, "viewed", Operator.named(by).name, reason)
    return [
        line if text is None else replace(line, tells={**line.tells, "text": text}) for line, text in found
    ]


async def _whose(tx: Tx, ref: str, case_id: UUID) -> str:
    """Whose record keeps a reading: a call without a number has no customer but that of its case."""
    from services.intake.customers import store
    from services.intake.customers.record import Refused

    try:
        return (await store.load(tx, ref)).customer_ref
    except Refused:
        owner = await tx.fetchval("select customer_ref from cases where case_id = $1", case_id)
        return await store.survivor_of(tx, owner or ref)


async def state(place: Place, case_id: UUID) -> dict[str, str]:
    """Where each stage stands with a case; a stage that does not know it is left out."""
    phases = {}
    for stage in STAGES[1:]:
        async with connected(place, stage) as database, database.session() as tx:
            phase = await tx.fetchval("select phase from entities where key = $1", str(case_id))
        if phase:
            phases[stage] = str(phase)
    return phases
