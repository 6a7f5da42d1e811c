"""Intake's own SQL: case numbers, and the reading copy of its contacts (`calls`, `visits`)."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from chassis.copies import Copy
from chassis.postgres import Tx
from services.intake.contact import Contact, Visit
from services.intake.customers.families import KIN, OPEN_CASES
from services.intake.domain import Known

_MOST_CONTACTS = 20


_AT_LEAST = 20
"""Case numbers drawn at a time: a round trip for many small batches."""


class CaseNumbers:
    """Numbers for cases; those drawn for a batch that is not stored, or left at the end, are never used."""

    def __init__(self) -> None:
        self._left: deque[int] = deque()

    async def draw(self, tx: Tx, count: int) -> list[int]:
        """Give so many numbers that nobody else has or will get."""
        if len(self._left) < count:
            wanted = max(count - len(self._left), _AT_LEAST)
            rows = await tx.fetch(
                "select nextval('case_numbers') as number from generate_series(1, $1)", wanted
            )
            self._left.extend(row["number"] for row in rows)
        return [self._left.popleft() for _ in range(count)]


# One look through an index for each reference: with arrays of references the planner reads whole tables.
_KNOWN_CALLERS = f"""{KIN}
select asked, ref, min(ref) over (partition by asked) as family,
    (select count(*) from (
        select 1 from calls where customer_ref = ref and first_at > $2 limit $3
    ) as seen) as contacts,
    array(
        select case_id from ({OPEN_CASES}) as open where recorded_at is not null
        order by recorded_at desc limit 10
    ) as open_cases,
    array(
        select call_id from calls where customer_ref = ref and callback_state in ('open', 'overdue')
        order by first_at limit 10
    ) as callbacks
from kin
"""


async def known_callers(
    tx: Tx, refs: Sequence[str], since: datetime
) -> tuple[dict[str, Known], dict[str, str]]:
    """Tell of each caller the contacts since then, the open cases, the callbacks owed; then who are one.

    What was merged with the caller's reference counts, too: of each reference at most 20, 10 and 10. Those
    that are one customer have one name, the least of their references.
    """
    known: dict[str, Known] = {}
    families: dict[str, str] = {}
    for row in await tx.fetch(_KNOWN_CALLERS, refs, since, _MOST_CONTACTS):
        one = Known(row["contacts"], tuple(row["open_cases"]), tuple(row["callbacks"]))
        asked = row["asked"]
        known[asked] = known[asked].plus(one) if asked in known else one
        families[row["ref"]] = row["family"]
    return known, families


async def known_calls(tx: Tx, call_ids: Sequence[str]) -> dict[str, str]:
    """Tell whose calls these are, of those that are known already with their customer."""
    rows = await tx.fetch(
        "select call_id, customer_ref from calls"
        " where call_id = any($1::text[]) and customer_ref is not null",
        call_ids,
    )
    return {row["call_id"]: row["customer_ref"] for row in rows}


async def contacts_of(tx: Tx, cases: Sequence[UUID]) -> dict[UUID, int]:
    """Count the calls about each of these cases, the one that recorded it included."""
    rows = await tx.fetch(
        "select case_id, count(*) as contacts from calls where case_id = any($1::uuid[]) group by case_id",
        cases,
    )
    return {row["case_id"]: row["contacts"] for row in rows}


def _call_row(contact: Contact) -> tuple[Any, ...]:
    told, reason, callback = contact.told, contact.reason, contact.callback
    return (
        contact.call_id,
        contact.source,
        contact.customer_ref,
        contact.language,
        contact.phase,
        contact.first_at,
        contact.ended_at,
        contact.cause,
        contact.refused,
        contact.refused_by,
        contact.closed_for,
        contact.case_id,
        contact.repeat,
        reason.topic if reason else None,
        reason.text if reason else None,
        told.at if told else None,
        told.position if told else None,
        told.estimate_ms if told else None,
        told.about_ms if told else None,
        told.at_most_ms if told else None,
        callback.state if callback else None,
        callback.due_at if callback else None,
        callback.queue if callback else None,
        (callback.customer_ref or contact.customer_ref) if callback else None,
        (callback.number or contact.caller) if callback else None,
        callback.attempts if callback else None,
        callback.waiting_since if callback else None,
    )


def _visit_row(contact: Contact, visit: Visit) -> tuple[Any, ...]:
    """Holds belong to the agent who has the call."""
    left_at = contact.left_at(visit)
    mine = visit is contact.answered
    return (
        contact.call_id,
        visit.number,
        visit.queue,
        visit.priority,
        visit.queued_at,
        visit.answered_at,
        left_at,
        visit.left or (left_at and "unknown"),
        visit.agent,
        visit.wait_ms,
        visit.talk_ms,
        visit.talk_ended_at or (contact.ended_at if visit.answered_at else None),
        contact.hold_ms if mine else 0,
        contact.wrapped_up.get(visit.agent or "", 0),
        visit.place,
        visit.placed_at,
    )


_CALLS = {
    "call_id": "text", "source": "text", "customer_ref": "text", "language": "text", "phase": "text",
    "first_at": "timestamptz", "ended_at": "timestamptz", "cause": "text", "refused": "text",
    "refused_by": "text", "closed_for": "text", "case_id": "uuid", "repeat_no": "int",
    "reason_topic": "text", "reason_text": "text", "told_at": "timestamptz", "told_place": "int",
    "told_ms": "int", "told_about": "int", "told_at_most": "int", "callback_state": "text",
    "callback_due": "timestamptz", "callback_queue": "text", "callback_ref": "text",
    "callback_number": "text", "callback_attempts": "int", "waiting_since": "timestamptz",
}  # fmt: skip
_VISITS = {
    "call_id": "text", "visit": "int", "queue": "text", "priority": "int", "queued_at": "timestamptz",
    "answered_at": "timestamptz", "left_at": "timestamptz", "left_for": "text", "agent": "text",
    "wait_ms": "int", "talk_ms": "int", "talk_ended_at": "timestamptz", "hold_ms": "int", "acw_ms": "int",
    "place": "int", "placed_at": "timestamptz",
}  # fmt: skip
COPIES = (
    Copy("calls", ("call_id",), _CALLS, lambda contact: [_call_row(contact)]),
    Copy(
        "visits",
        ("call_id", "visit"),
        _VISITS,
        lambda contact: [_visit_row(contact, visit) for visit in contact.visits],
    ),
)
"""Intake's reading copies of its contacts."""
