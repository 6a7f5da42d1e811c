"""How each case stands, for agents and callers: a reading copy of what the stages say (group `desk`).

Each stage has a clock of its own, and its words come when they come, so two things are kept of a case: its
last *step*, by the place in the case's life that such a word tells, and the last word on the *work* on it by
time, which tells no place. The later of the two in time is how the case stands, but no work follows a result.
A recorded case also tells of its customer: the language, and whether care is needed. A call that was
attached to a case tells what the customer said this time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from chassis.batch import next_offsets
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
"""How far in its cycle a step is; the other states are work on a case, told without its cycle."""
_RESULT = 2
"""From this rank on there is nothing left to work on."""

_READ: tuple[type[Body], ...] = (*STATES, intake.ContactAttached)
_HANDLED = {BY_BODY[body].wire: BY_BODY[body] for body in _READ}


@dataclass(slots=True)
class Standing:
    """What is known of one case: a row of the table `cases`; None for what nobody has said."""

    case_id: UUID
    case_no: str | None = None
    customer_ref: str | None = None
    call_id: str | None = None
    category: str | None = None
    product: str | None = None
    severity: str | None = None
    completeness: int | None = None
    recorded_at: datetime | None = None
    step: str | None = None
    step_at: datetime | None = None
    cycle: int | None = None
    work: str | None = None
    work_at: datetime | None = None
    state: str | None = None
    department: str | None = None
    changed_at: datetime | None = None
    told_at: datetime | None = None
    closed_at: datetime | None = None
    customer_told: bool = False


def note(standing: Standing, event: Event[Any]) -> None:
    """Take one event into account: how a case stands does not depend on the order in which events come."""
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
    state, department = STATES[type(body)], getattr(body, "department", None)
    _hear(standing, state, _cycle(body, case), event.at)
    standing.state, standing.changed_at = _stands(standing)
    standing.closed_at = standing.changed_at if standing.state == "closed" else None
    stands = (standing.state, standing.changed_at) == (state, event.at)
    if department and (stands or standing.department is None):
        standing.department = department


def _cycle(body: Body, case: Case | None) -> int:
    if isinstance(body, feedback.CaseClosed):
        return body.cycles
    return getattr(body, "cycle", None) or (case.cycle if case else 1)


def _hear(standing: Standing, state: str, cycle: int, at: datetime) -> None:
    """Keep the last step by its place, in one place by time, or the last word on the work by time."""
    if state not in _RANK:
        if (
            standing.work is None
            or standing.work_at is None
            or (at, state) > (standing.work_at, standing.work)
        ):
            standing.work, standing.work_at = state, at
        return
    if standing.step is not None and standing.step_at is not None:
        kept = (standing.cycle or 1, _RANK[standing.step], standing.step_at, standing.step)
        if kept >= (cycle, _RANK[state], at, state):
            return
    standing.step, standing.step_at, standing.cycle = state, at, cycle


def _stands(standing: Standing) -> tuple[str | None, datetime | None]:
    step, work = (standing.step, standing.step_at), (standing.work, standing.work_at)
    if standing.step is None or standing.step_at is None:
        return work
    if standing.work_at is None or _RANK[standing.step] >= _RESULT:
        return step
    return work if standing.work_at >= standing.step_at else step


_COLUMNS = [field.name for field in fields(Standing)]
_TYPES = {
    "case_id": "uuid",
    "completeness": "int",
    "cycle": "int",
    "customer_told": "boolean",
    **dict.fromkeys(
        ("recorded_at", "step_at", "work_at", "changed_at", "told_at", "closed_at"), "timestamptz"
    ),
}
# Two doors may hear of one case at once: the row is there and locked before either reads it.
_BEGIN = "insert into cases (case_id) select unnest($1::uuid[]) on conflict do nothing"
_KNOWN = (
    f"select {', '.join(_COLUMNS)} from cases where case_id = any($1::uuid[]) order by case_id for update"
)
_WRITE = (
    f"update cases as c set {', '.join(f'{name} = said.{name}' for name in _COLUMNS[1:])} from unnest("
    + ", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(_COLUMNS, 1))
    + f") as said ({', '.join(_COLUMNS)}) where c.case_id = said.case_id"
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
    attached = [event for event in events if isinstance(event.body, intake.ContactAttached)]
    if attached:
        await tx.execute(_ATTACH, *map(list, zip(*map(_attached_row, attached), strict=True)))
    words = [event for event in events if not isinstance(event.body, intake.ContactAttached)]
    standings = await _known(tx, {event.body.case_id for event in words})
    told_before = {case_id for case_id, standing in standings.items() if standing.customer_told}
    told: dict[UUID, Case] = {}
    for event in words:
        case_id = event.body.case_id
        note(standings[case_id], event)
        case: Case | None = getattr(event.body, "case", None)
        if case is not None and case_id not in told_before:
            told[case_id] = case
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


async def _known(tx: Tx, case_ids: Collection[UUID]) -> dict[UUID, Standing]:
    if not case_ids:
        return {}
    await tx.execute(_BEGIN, sorted(case_ids))
    rows = await tx.fetch(_KNOWN, list(case_ids))
    return {row["case_id"]: Standing(**row) for row in rows}


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
        await reader.commit(next_offsets(records))
