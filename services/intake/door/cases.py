"""How each case stands, for agents and callers: a reading copy of what the stages say (group `desk`).

A recorded case also tells of its customer: the language, and whether care is needed.
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

_HANDLED = {BY_BODY[body].wire: BY_BODY[body] for body in STATES}


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
    """Take one event into account: what is later in time stands; what a case is, any event may tell."""
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
    if standing.changed_at is not None and standing.changed_at > event.at:
        return
    standing.changed_at, standing.state = event.at, STATES[type(body)]
    standing.department = getattr(body, "department", None) or standing.department
    standing.cycle = getattr(body, "cycle", None) or (case.cycle if case else standing.cycle)
    standing.closed_at = event.at if isinstance(body, feedback.CaseClosed) else None


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
_LATER = "coalesce(excluded.changed_at, '-infinity') >= coalesce(c.changed_at, '-infinity')"
_WRITE = (
    f"insert into cases as c ({', '.join(_COLUMNS)}) select * from unnest("
    + ", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(_COLUMNS, 1))
    + ") on conflict (case_id) do update set "
    + ", ".join(f"{name} = coalesce(excluded.{name}, c.{name})" for name in _LASTING)
    + ", told_at = greatest(excluded.told_at, c.told_at)"
    + ", customer_told = excluded.customer_told or c.customer_told, "
    + ", ".join(
        f"{name} = case when {_LATER} then coalesce(excluded.{name}, c.{name}) else c.{name} end"
        for name in ("department", "cycle")
    )
    + ", "
    + ", ".join(f"{name} = case when {_LATER} then excluded.{name} else c.{name} end" for name in _STANDING)
)


async def keep(tx: Tx, events: Sequence[Event[Any]]) -> None:
    """Note what events say of cases, and of whose cases they are: of the customer once for each case.

    Needs a transaction: a case that is marked `customer_told` has told it.
    """
    standings: dict[UUID, Standing] = {}
    told: dict[UUID, Case] = {}
    for event in events:
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
