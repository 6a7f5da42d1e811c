"""Intake's own SQL: case numbers, and the reading copy of its contacts (`calls`, `visits`)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from chassis.postgres import Tx, columns
from services.intake.contact import Contact, Visit
from services.intake.domain import Known

_MOST_CONTACTS = 20
_PENDING = "('open', 'overdue')"


async def next_case_numbers(tx: Tx, count: int) -> list[int]:
    """Draw case numbers; a number drawn in a transaction that fails is never used."""
    rows = await tx.fetch("select nextval('case_numbers') as number from generate_series(1, $1)", count)
    return [row["number"] for row in rows]


async def known_callers(tx: Tx, refs: Sequence[str], since: datetime) -> dict[str, Known]:
    """Tell of each caller the contacts since then (at most 20), the open cases, the callbacks owed."""
    rows = await tx.fetch(
        "select ref, (select count(*) from (select 1 from calls where customer_ref = ref and first_at > $2"
        " limit $3) as seen) as contacts,"
        " array(select case_id from cases where customer_ref = ref and closed_at is null"
        " and recorded_at is not null order by recorded_at desc limit 10) as open_cases,"
        " array(select call_id from calls where customer_ref = ref"
        f" and callback_state in {_PENDING} order by first_at limit 10) as callbacks"
        " from unnest($1::text[]) as asked(ref)",
        refs,
        since,
        _MOST_CONTACTS,
    )
    return {
        row["ref"]: Known(row["contacts"], tuple(row["open_cases"]), tuple(row["callbacks"])) for row in rows
    }


async def contacts_of(tx: Tx, cases: Sequence[UUID]) -> dict[UUID, int]:
    """Count the calls about each of these cases, the one that recorded it included."""
    rows = await tx.fetch(
        "select case_id, count(*) as contacts from calls where case_id = any($1::uuid[]) group by case_id",
        cases,
    )
    return {row["case_id"]: row["contacts"] for row in rows}


_WRITE_CALLS = """
with written as (
    insert into calls (call_id, source, customer_ref, language, phase, first_at, ended_at, cause, refused,
        refused_by, closed_for, case_id, repeat_no, reason_topic, reason_text, told_at, told_place, told_ms,
        told_about, told_at_most,
        callback_state, callback_due, callback_queue, callback_ref, callback_number, callback_attempts,
        waiting_since)
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
        $7::timestamptz[], $8::text[], $9::text[], $10::text[], $11::text[], $12::uuid[], $13::int[],
        $14::text[], $15::text[], $16::timestamptz[], $17::int[], $18::int[], $19::int[], $20::int[],
        $21::text[], $22::timestamptz[], $23::text[], $24::text[], $25::text[], $26::int[],
        $27::timestamptz[])
    on conflict (call_id) do update set
        source = excluded.source, customer_ref = excluded.customer_ref, language = excluded.language,
        phase = excluded.phase, first_at = excluded.first_at, ended_at = excluded.ended_at,
        cause = excluded.cause, refused = excluded.refused, refused_by = excluded.refused_by,
        closed_for = excluded.closed_for, case_id = excluded.case_id, repeat_no = excluded.repeat_no,
        reason_topic = excluded.reason_topic, reason_text = excluded.reason_text,
        told_at = excluded.told_at, told_place = excluded.told_place, told_ms = excluded.told_ms,
        told_about = excluded.told_about, told_at_most = excluded.told_at_most,
        callback_state = excluded.callback_state, callback_due = excluded.callback_due,
        callback_queue = excluded.callback_queue, callback_ref = excluded.callback_ref,
        callback_number = excluded.callback_number,
        callback_attempts = excluded.callback_attempts, waiting_since = excluded.waiting_since
)
insert into visits (call_id, visit, queue, priority, queued_at, answered_at, left_at, left_for, agent,
    wait_ms, talk_ms, talk_ended_at, hold_ms, acw_ms)
select * from unnest($28::text[], $29::int[], $30::text[], $31::int[], $32::timestamptz[], $33::timestamptz[],
    $34::timestamptz[], $35::text[], $36::text[], $37::int[], $38::int[], $39::timestamptz[],
    $40::int[], $41::int[])
on conflict (call_id, visit) do update set
    queue = excluded.queue, priority = excluded.priority, queued_at = excluded.queued_at,
    answered_at = excluded.answered_at, left_at = excluded.left_at, left_for = excluded.left_for,
    agent = excluded.agent, wait_ms = excluded.wait_ms, talk_ms = excluded.talk_ms,
    talk_ended_at = excluded.talk_ended_at, hold_ms = excluded.hold_ms, acw_ms = excluded.acw_ms
"""


async def write_calls(tx: Tx, contacts: Sequence[Any]) -> None:
    """Rewrite the reading copy of these contacts, in the transaction that stores them."""
    visits = [(contact, visit) for contact in contacts for visit in contact.visits]
    await tx.execute(
        _WRITE_CALLS,
        *columns([_call_row(contact) for contact in contacts], 27),
        *columns([_visit_row(contact, visit) for contact, visit in visits], 14),
    )


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
    """A stay that was never seen to end, ended with its call; holds belong to the agent who has the call."""
    open_at_the_end = visit.answered_at is None and visit.left_at is None
    mine = visit is contact.answered
    return (
        contact.call_id,
        visit.number,
        visit.queue,
        visit.priority,
        visit.queued_at,
        visit.answered_at,
        contact.ended_at if open_at_the_end else visit.left_at,
        "unknown" if open_at_the_end and contact.ended_at else visit.left,
        visit.agent,
        visit.wait_ms,
        visit.talk_ms,
        visit.talk_ended_at or (contact.ended_at if visit.answered_at else None),
        contact.hold_ms if mine else 0,
        contact.wrapped_up.get(visit.agent or "", 0),
    )
