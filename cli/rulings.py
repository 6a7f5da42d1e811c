"""What waits for a person in triage, and what becomes of a ruling: asked of the stages, one after the other.

Who has a case only the resolver knows, why the router sent it where it is only the router: both are asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from chassis.clock import utc_now
from chassis.ids import derived_id
from chassis.outbox import unpack
from cli.world import Place, World, connected
from schemas import resolver, router
from schemas.case import Case, Decision
from schemas.envelope import BY_BODY, Body
from schemas.topics import TRIAGE

if TYPE_CHECKING:
    from chassis.postgres import Database
    from services.router.domain import Routing

HELD = ("delivered", "in_progress", "waiting")
"""The resolver's words for a case that a department has."""
WORKED_ON = ("in_progress", "waiting")
ENDED = ("resolved", "withdrawn")
STATES = {
    "parked": "needs a ruling",
    "delivered": "not accepted",
    "in_progress": "in work",
    "waiting": "paused",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A case that waits in triage; `suggested`: departments and probabilities, none of a blind sample."""

    case_id: UUID
    case_no: str
    language: str
    state: str
    why: str
    moves: int
    since: datetime
    due: datetime | None
    suggested: tuple[tuple[str, float], ...]

    @property
    def margin(self) -> float:
        """How far the likeliest department lies before the next; 0 where nothing is suggested."""
        (_, first), (_, second) = (*self.suggested, ("", 0.0), ("", 0.0))[:2]
        return first - second

    def as_json(self, now: datetime) -> dict[str, Any]:
        """The line for a script."""
        return {
            "case_no": self.case_no,
            "case_id": str(self.case_id),
            "state": self.state,
            "since": self.since.isoformat(timespec="seconds"),
            "due": self.due.isoformat(timespec="seconds") if self.due else None,
            "overdue": self.due is not None and self.due < now,
            "language": self.language,
            "why": self.why,
            "moves": self.moves,
            "suggested": [{"department": department, "p": p} for department, p in self.suggested],
        }


_PARKED = (
    "select key, 'parked' as state, (document::json ->> 'act_by')::timestamptz as due from entities"
    " where phase = 'parked'"
)
# The resolver is told when a case ends; the router is not.
_WITH_TRIAGE = (
    "select key, phase as state, (document::json ->> case phase when 'delivered' then 'accept_due'"
    " else 'resolve_due' end)::timestamptz as due from entities"
    " where phase = any($1::text[]) and document::json ->> 'department' = $2"
)
_ROUTINGS = (
    "select case_id, case_no, language, phase, rule, changed_at, audit, top, moves from routings"
    " where case_id = any($1::uuid[])"
)


async def waiting(place: Place) -> list[Waiting]:
    """List what waits in triage: what is due first comes first, within a minute what is least clear."""
    async with connected(place, "resolver") as database, database.session() as tx:
        rows = list(await tx.fetch(_WITH_TRIAGE, HELD, TRIAGE))
    async with connected(place, "router") as database, database.session() as tx:
        rows += await tx.fetch(_PARKED)
        known = {
            str(row["case_id"]): row for row in await tx.fetch(_ROUTINGS, [UUID(row["key"]) for row in rows])
        }
    found = [_waiting(row, known[row["key"]]) for row in rows if row["key"] in known]
    return sorted(found, key=_urgency)


def _waiting(row: Any, known: Any) -> Waiting:
    return Waiting(
        case_id=known["case_id"],
        case_no=known["case_no"],
        language=known["language"],
        state=STATES[row["state"]],
        why="departments disagree" if row["state"] == "parked" else known["rule"],
        moves=known["moves"],
        since=known["changed_at"],
        due=row["due"],
        # Who judges a blind sample must not be led: that is what the sample is for.
        suggested=() if known["audit"] else tuple((one, p) for one, p in json.loads(known["top"])),
    )


def _urgency(one: Waiting) -> tuple[datetime, float, datetime]:
    due = one.due or datetime.max.replace(tzinfo=UTC)
    return due.replace(second=0, microsecond=0), one.margin, one.since


# ------------------------------------------------------------ where a case stands


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a case is: the router's word, and the resolver's where a department has it or had it last."""

    case: Case
    routed: str
    held: str | None
    department: str | None
    assignment_id: UUID | None

    @property
    def ended(self) -> bool:
        """Whether this cycle of the case is over."""
        return self.held in ENDED or self.routed in ("withdrawn", "rejected")


async def standing(place: Place, case_id: UUID) -> Standing | None:
    """Ask router and resolver; None when the router does not know the case."""
    routing, found = await routing_of(place, case_id), await _document(place, "resolver", case_id)
    if routing is None:
        return None
    held = json.loads(found) if found else None
    if held is None or held["case"]["cycle"] < routing.case.cycle:
        return Standing(routing.case, routing.phase, None, None, None)
    return Standing(
        routing.case, routing.phase, held["phase"], held["department"], UUID(held["assignment_id"])
    )


async def routing_of(place: Place, case_id: UUID) -> Routing | None:
    """What the router knows of a case; None when it does not know it."""
    from services.router.domain import Routing

    found = await _document(place, "router", case_id)
    return Routing.parse(found) if found else None


async def _document(place: Place, stage: str, case_id: UUID) -> str | None:
    async with connected(place, stage) as database, database.session() as tx:
        found: str | None = await tx.fetchval("select document from entities where key = $1", str(case_id))
    return found


# ------------------------------------------------------------ asking


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a command: `done` when it has its effect, and why not where it has none."""

    outcome: Literal["done", "refused", "ignored", "waiting"]
    why: str
    command_id: UUID | None = None

    def as_json(self) -> dict[str, Any]:
        """The verdict for a script."""
        command = str(self.command_id) if self.command_id else None
        return {"outcome": self.outcome, "why": self.why, "command_id": command}


async def assign(place: Place, body: router.AssignmentRequested, *, within: float = 10.0) -> Verdict:
    """Have the router give a case to a department, and see it delivered; TimeoutError if nobody answers."""
    now = await standing(place, body.case_id)
    if now is not None and now.ended:
        return Verdict("refused", f"the case is {_how_ended(now)}: only the customer's word opens it again")
    if now is not None and now.department != TRIAGE and now.held in WORKED_ON:
        return Verdict("refused", f"{now.department} has accepted the case: who works on it passes it on")
    async with asyncio.timeout(within):
        (command,) = await _say(place, "triage", body)
        verdict = await _verdict(place, "router", command, body.case_id)
        if verdict.outcome != "done":
            return verdict
        routed = derived_id(command, BY_BODY[router.CaseRouted].wire, 1)
        delivered = await _verdict(place, "resolver", routed, body.case_id)
    if delivered.outcome == "done":
        return Verdict("done", f"{body.department} has the case", command)
    return Verdict("refused", f"{delivered.why}: nothing has changed for the customer", command)


async def reject(
    world: World, case_id: UUID, by: str, text: str, root_cause: str, *, within: float = 10.0
) -> Verdict:
    """Answer a case that waits in triage as not the bank's; `text` is what the customer is told.

    A parked case is rejected by the router; one that triage holds is resolved by triage, as any
    department resolves its own.
    """
    place = world.place()
    now = await standing(place, case_id)
    if now is None:
        return Verdict("refused", "the router does not know the case")
    holds = now.held in HELD and now.department == TRIAGE
    if now.routed != "parked" and not holds:
        where = f"is {_how_ended(now)}" if now.ended else f"is with {now.department or 'nobody yet'}"
        return Verdict("refused", f"the case {where}: triage answers only what waits for it")
    decision = await _decision(world, place, now.case, text, root_cause)
    if decision is None:
        return Verdict("refused", "the customer was erased: there is nobody to tell")
    async with asyncio.timeout(within):
        if now.routed == "parked":
            asked = router.RejectionRequested(case_id=case_id, by=by, decision=decision)
            verdict = await _verdict(place, "router", (await _say(place, "triage", asked))[0], case_id)
        else:
            verdict = await _resolved(place, now, by, decision)
    told = "rejected: the customer is told"
    return Verdict("done", told, verdict.command_id) if verdict.outcome == "done" else verdict


async def _resolved(place: Place, now: Standing, by: str, decision: Decision) -> Verdict:
    holder = {
        "case_id": now.case.case_id,
        "assignment_id": now.assignment_id,
        "department": TRIAGE,
        "clerk": by,
    }
    accepting = [resolver.AcceptanceRequested.model_validate(holder)] if now.held == "delivered" else []
    resolving = resolver.ResolutionRequested.model_validate({**holder, "decision": decision})
    commands = await _say(place, "departments", *accepting, resolving)
    return await _verdict(place, "resolver", commands[-1], now.case.case_id)


def _how_ended(now: Standing) -> str:
    return now.held if now.held in ENDED and now.held else now.routed


async def _decision(world: World, place: Place, case: Case, text: str, root_cause: str) -> Decision | None:
    vault, ref = await world.vault(place), case.customer.customer_ref
    try:
        await vault.ready([ref])
        return Decision(outcome="rejected", text=vault.seal(ref, text), root_cause=root_cause)
    except KeyError:
        return None
    finally:
        await vault.close()


async def _say(place: Place, writer: str, *bodies: Body) -> list[UUID]:
    from chassis.kafka import KafkaPublisher
    from chassis.message import Writer, time_header
    from chassis.roots import new_id

    ids, said = [new_id() for _ in bodies], Writer(writer)
    publisher = KafkaPublisher(place.kafka, "hotline-triage")
    await publisher.start()
    try:
        await publisher.publish(
            [
                said.write(
                    body, uid=uid, at=time_header(utc_now()), correlation=str(getattr(body, "case_id", "-"))
                )
                for uid, body in zip(ids, bodies, strict=True)
            ]
        )
    finally:
        await publisher.stop()
    return ids


async def _verdict(place: Place, stage: str, asked: UUID, case_id: UUID) -> Verdict:
    """Wait until a stage has handled an input, and say what came of it."""
    async with connected(place, stage) as database:
        while True:
            async with database.session() as tx:
                outcome = await tx.fetchval("select outcome from inbox where event_id = $1", asked)
            if outcome is not None:
                break
            await asyncio.sleep(0.05)
        word, _, code = outcome.partition(":")
        if word in ("caused", "noted"):
            return Verdict("done", "", asked)
        why = await _explained(database, asked, case_id) if word == "refused" else None
    known: tuple[Literal["refused", "ignored", "waiting"], ...] = ("refused", "ignored", "waiting")
    return Verdict(
        next((one for one in known if one == word), "refused"), why or code.replace("_", " "), asked
    )


async def _explained(database: Database, asked: UUID, case_id: UUID) -> str | None:
    """Find what a stage said when it refused."""
    async with database.session() as tx:
        rows: Sequence[Any] = await tx.fetch(
            "select headers, value from outbox where correlation = $1 order by batch desc", str(case_id)
        )
    for row in rows:
        if (f"{asked}").encode() == dict(unpack(row["headers"])).get("ce_causationid"):
            said: str | None = json.loads(row["value"]).get("explanation")
            return said
    return None
