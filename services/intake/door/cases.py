"""How each case stands, for agents and callers: a reading copy of what the stages say (group `desk`).

Each stage has a clock of its own, and its words come when they come: so what is later in a case's life
stands, where two words tell their places in it, and only else what is later in time.
A recorded case also tells of its customer: the language, and whether care is needed. A call that was
attached to a case tells what the customer said this time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from chassis.batch import span
from chassis.faults import insist
from chassis.kafka import Connection, Subscription
from chassis.message import read
from chassis.postgres import Database, Tx
from chassis.step import Event
from chassis.transport import Reader, Record
from schemas import feedback, intake, resolver, router
from schemas.case import Case
from schemas.envelope import BY_BODY, Body
from schemas.topics import inputs_of
from services.intake.customers.record import Seen
from services.intake.customers.store import keep_seen

GROUP = "desk"

STATES: dict[type[Body], str] = {
    intake.CaseRecorded: "recorded",
    intake.CaseAnswered: "answered",
    router.CaseRouted: "routed",
    router.CaseParked: "parked",
    router.CaseRejected: "rejected",
    resolver.CaseDelivered: "delivered",
    resolver.CaseAccepted: "in_progress",
    resolver.CasePaused: "waiting",
    resolver.CaseResumed: "in_progress",
    resolver.CaseReturned: "returned",
    resolver.CaseTransferred: "transferred",
    resolver.CaseResolved: "resolved",
    resolver.CaseWithdrawn: "withdrawn",
    feedback.CustomerTold: "told",
    feedback.CustomerUnreached: "unreached",
    feedback.CaseClosed: "closed",
    feedback.CaseReopened: "reopened",
}
"""What a caller may be told after each event; the other events leave a case as it stands."""

_RANK = {
    "recorded": 0,
    "reopened": 0,
    "routed": 1,
    "parked": 1,
    "returned": 1,
    "transferred": 1,
    "answered": 2,
    "rejected": 2,
    "resolved": 2,
    "withdrawn": 2,
    "told": 3,
    "unreached": 3,
    "closed": 4,
}
"""How far in its cycle a case stands so; the other states are told without their cycle."""

_READ: tuple[type[Body], ...] = (*STATES, intake.ContactAttached)
_HANDLED = {BY_BODY[body].wire: BY_BODY[body] for body in _READ}


@dataclass(slots=True)
class Standing:
    """What one batch says of one case; None for what it does not say."""

    case_id: UUID
    case_no: str | None = None
    customer_ref: str | None = None
    call_id: str | None = None
    category: str | None = None
    product: str | None = None
    severity: str | None = None
    completeness: int | None = None
    recorded_at: datetime | None = None
    state: str | None = None
    department: str | None = None
    cycle: int | None = None
    changed_at: datetime | None = None
    told_at: datetime | None = None
    closed_at: datetime | None = None
    customer_told: bool = False


def note(standing: Standing, event: Event[Any]) -> None:
    """Take one event into account: the later word on how a case stands; what it is, any event may tell."""
    body = event.body
    case: Case | None = getattr(body, "case", None)
    if case is not None:
        standing.case_no, standing.call_id = case.case_no, case.call_id
        standing.customer_ref = case.customer.customer_ref
        standing.category, standing.product = case.category.value, case.product
        standing.severity, standing.recorded_at = case.severity.value, case.recorded_at
        standing.completeness = case.completeness.score if case.completeness else None
        standing.customer_told = True
    if isinstance(body, feedback.CustomerTold):
        standing.told_at = max(filter(None, (standing.told_at, body.told_at)))
    state, cycle, department = STATES[type(body)], _cycle(body, case), getattr(body, "department", None)
    if not _later(standing, state, cycle, event.at):
        standing.department, standing.cycle = standing.department or department, standing.cycle or cycle
        return
    standing.changed_at, standing.state = event.at, state
    standing.department, standing.cycle = department or standing.department, cycle or standing.cycle
    standing.closed_at = event.at if isinstance(body, feedback.CaseClosed) else None


def _cycle(body: Body, case: Case | None) -> int | None:
    if isinstance(body, feedback.CaseClosed):
        return body.cycles
    return getattr(body, "cycle", None) or (case.cycle if case else None)


def _later(standing: Standing, state: str, cycle: int | None, at: datetime) -> bool:
    """Whether a word comes after the one that stands, or with it; `_LATER` says the same in SQL."""
    if standing.changed_at is None or standing.state is None:
        return True
    if cycle and standing.cycle and state in _RANK and standing.state in _RANK:
        place, stands = (cycle, _RANK[state]), (standing.cycle, _RANK[standing.state])
        if place != stands:
            return place > stands
    return at >= standing.changed_at


_COLUMNS = [field.name for field in fields(Standing)]
_TYPES = {
    "case_id": "uuid",
    "completeness": "int",
    "cycle": "int",
    "customer_told": "boolean",
    **dict.fromkeys(("recorded_at", "changed_at", "told_at", "closed_at"), "timestamptz"),
}
_LASTING = (
    "case_no",
    "customer_ref",
    "call_id",
    "category",
    "product",
    "severity",
    "completeness",
    "recorded_at",
)
_STANDING = ("state", "changed_at", "closed_at")


def _place(row: str) -> str:
    ranks = " ".join(f"when '{state}' then {rank}" for state, rank in _RANK.items())
    return f"({row}.cycle * {len(_RANK)} + case {row}.state {ranks} end)"


_PLACE, _STANDS = _place("excluded"), _place("c")
_IN_TIME = "coalesce(excluded.changed_at, '-infinity') >= coalesce(c.changed_at, '-infinity')"
# Where a cycle or a rank is not known, the places are neither equal nor unequal, and time decides.
_LATER = f"(case when {_PLACE} <> {_STANDS} then {_PLACE} > {_STANDS} else {_IN_TIME} end)"
_WRITE = (
    f"insert into cases as c ({', '.join(_COLUMNS)}) select * from unnest("
    + ", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(_COLUMNS, 1))
    + ") on conflict (case_id) do update set "
    + ", ".join(f"{name} = coalesce(excluded.{name}, c.{name})" for name in _LASTING)
    + ", told_at = greatest(excluded.told_at, c.told_at)"
    + ", customer_told = excluded.customer_told or c.customer_told, "
    + ", ".join(
        f"{name} = case when {_LATER} then coalesce(excluded.{name}, c.{name})"
        f" else coalesce(c.{name}, excluded.{name}) end"
        for name in ("department", "cycle")
    )
    + ", "
    + ", ".join(f"{name} = case when {_LATER} then excluded.{name} else c.{name} end" for name in _STANDING)
)


_ATTACH = (
    "insert into attached (case_id, call_id, repeat_no, agent, customer_ref, sealed, attached_at)"
    " select * from unnest($1::uuid[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[],"
    " $7::timestamptz[]) on conflict do nothing"
)


async def keep(tx: Tx, events: Sequence[Event[Any]]) -> None:
    """Note what events say of cases, and of whose cases they are: of the customer once for each case.

    Needs a transaction: a case that is marked `customer_told` has told it.
    """
    standings: dict[UUID, Standing] = {}
    told: dict[UUID, Case] = {}
    attached = [event for event in events if isinstance(event.body, intake.ContactAttached)]
    if attached:
        await tx.execute(_ATTACH, *map(list, zip(*map(_attached_row, attached), strict=True)))
    for event in events:
        if isinstance(event.body, intake.ContactAttached):
            continue
        case_id = event.body.case_id
        note(standings.setdefault(case_id, Standing(case_id)), event)
        case: Case | None = getattr(event.body, "case", None)
        if case is not None:
            told[case_id] = case
    for known in await _told_before(tx, list(told)):
        del told[known]
    await keep_seen(
        tx,
        [
            Seen(case.customer.customer_ref, case.recorded_at, case.language, case.vulnerable)
            for case in told.values()
        ],
    )
    if standings:
        rows = [[getattr(standing, name) for standing in standings.values()] for name in _COLUMNS]
        await tx.execute(_WRITE, *rows)


def _attached_row(event: Event[intake.ContactAttached]) -> tuple[Any, ...]:
    body = event.body
    return (
        body.case_id,
        body.call_id,
        body.repeat_no,
        body.agent,
        body.customer_ref,
        body.text,
        event.at,
    )


async def _told_before(tx: Tx, case_ids: Sequence[UUID]) -> list[UUID]:
    rows = await tx.fetch(
        "select case_id from cases where case_id = any($1::uuid[]) and customer_told", case_ids
    )
    return [row["case_id"] for row in rows]


class CaseView:
    """Keeps the table `cases`: read at least once, the same whatever comes twice or late."""

    def __init__(self, connection: Connection, database: Database) -> None:
        self._database = database
        self.subscription = Subscription(connection, GROUP, inputs_of(GROUP), self._insist)

    async def _insist(self, records: Sequence[Record], reader: Reader) -> None:
        await insist(partial(self._handle, records, reader))

    async def _handle(self, records: Sequence[Record], reader: Reader) -> None:
        events = [event for record in records if isinstance(event := read(record, _HANDLED), Event)]
        if events:
            async with self._database.transaction() as tx:
                await keep(tx, events)
        await reader.commit({place: last + 1 for place, (_, last) in span(records).items()})
