"""The SQL of customer records: found, followed, changed, joined; and who did what, for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from datetime import datetime
from typing import Any

from chassis.postgres import Tx
from services.intake.customers import record as rules
from services.intake.customers.record import CONSENTS, Contact, Record, Refused, Seen, kept_reason

_WHO_IS_WHO = 0x637573746F6D6572  # "customer": one decision about identity at a time
_PATH = (
    'with recursive path(ref) as (select $1::text collate "C" union'
    " select merged_into from customers join path on customer_ref = ref where merged_into is not null)"
)
_GROUP = (
    'with recursive members(ref) as (select $1::text collate "C" union'
    " select customer_ref from customers join members on merged_into = ref)"
)


async def survivor_of(tx: Tx, ref: str) -> str:
    """Follow a reference through every merge to the one that stands for it now; itself if never merged."""
    found: str = await tx.fetchval(
        f"{_PATH} select ref from path left join customers on customer_ref = ref where merged_into is null",
        ref,
    )
    return found


async def references(tx: Tx, survivor: str) -> list[str]:
    """Name every reference that a survivor stands for, itself first."""
    rows = await tx.fetch(f"{_GROUP} select ref from members order by ref <> $1, ref", survivor)
    return [row["ref"] for row in rows]


async def words_of_nobody(tx: Tx, refs: Sequence[str]) -> list[str]:
    """Name the references that stand for one call each, about a case of these customers: nobody else's.

    Who calls without a number is nobody known; what he says about a case is sealed for that call alone.
    """
    rows = await tx.fetch(
        "select distinct a.customer_ref as ref from attached a join cases c using (case_id)"
        " where c.customer_ref = any($1::text[])"
        " and not exists (select from customers where customer_ref = a.customer_ref)"
        " and not exists (select from calls where customer_ref = a.customer_ref)"
        " and not exists (select from cases where customer_ref = a.customer_ref) order by 1",
        list(refs),
    )
    return [row["ref"] for row in rows if row["ref"] is not None]


async def load(tx: Tx, ref: str, *, lock: bool = False) -> Record:
    """Read the record that stands for a reference; a caller without a record gets one.

    Whoever came again after an erasure is a customer again. Raises Refused `unknown_customer` for a
    reference that nobody has called or recorded under.
    """
    return await _row(tx, await survivor_of(tx, ref), lock=lock)


async def _row(tx: Tx, ref: str, *, lock: bool = False) -> Record:
    sql = "select * from customers where customer_ref = $1" + (" for update" if lock else "")
    row = await tx.fetchrow(sql, ref)
    if row is None:
        if not await _has_contacts(tx, ref):
            raise Refused(
                "unknown_customer",
                "nobody has ever called or recorded a case under this reference",
                "look the customer up by telephone number",
            )
        await tx.execute("insert into customers (customer_ref) values ($1) on conflict do nothing", ref)
        row = await tx.fetchrow(sql, ref)
    elif row["erased_at"] is not None:
        row = await _came_again(tx, ref) or row
    return _record(row)


async def family(tx: Tx, ref: str) -> list[Record]:
    """Read the record that stands for a reference, then those that it stands for; raises like `load`."""
    survivor = await load(tx, ref)
    refs = await references(tx, survivor.customer_ref)
    found = await tx.fetch("select * from customers where customer_ref = any($1::text[])", refs[1:])
    return [survivor, *sorted((_record(row) for row in found), key=lambda one: refs.index(one.customer_ref))]


def _record(row: Any) -> Record:
    known: dict[str, Any] = {name: row[name] for name in Record.__slots__}
    return Record(**{**known, "consents": CONSENTS.validate_json(row["consents"])})


async def _has_contacts(tx: Tx, ref: str) -> bool:
    return bool(
        await tx.fetchval(
            "select exists (select from calls where customer_ref = $1)"
            " or exists (select from cases where customer_ref = $1)",
            ref,
        )
    )


async def _came_again(tx: Tx, survivor: str) -> Any:
    """End the erasure of whoever has called, or had a case recorded, since; None while nobody has."""
    return await tx.fetchrow(
        "update customers c set version = version + 1, erased_at = null, updated_at = now()"
        " where customer_ref = $1 and (exists (select from calls where customer_ref = any($2::text[])"
        " and first_at > c.erased_at) or exists (select from cases where customer_ref = any($2::text[])"
        " and recorded_at > c.erased_at)) returning *",
        survivor,
        await references(tx, survivor),
    )


_KEEP_SEEN = """
with recursive seen(ref, at, language, vulnerable) as (
    select ref collate "C", at, language, vulnerable
    from unnest($1::text[], $2::timestamptz[], $3::text[], $4::boolean[]) as t(ref, at, language, vulnerable)
    union
    select merged_into, at, s.language, s.vulnerable from customers join seen s on customer_ref = ref
    where merged_into is not null
), news as (
    select ref, min(at) as at,
        (array_agg(s.language order by at) filter (where s.language is not null and merged_into is null))[1]
            as language,
        coalesce(bool_or(s.vulnerable) filter (where merged_into is null), false) as vulnerable
    from seen s left join customers on customer_ref = ref
    where erased_at is null or at > erased_at
    group by ref
)
insert into customers as c (customer_ref, language, vulnerable, first_at)
select ref, language, vulnerable, at from news order by ref
on conflict (customer_ref) do update set version = c.version + 1,
    language = coalesce(c.language, excluded.language), vulnerable = c.vulnerable or excluded.vulnerable,
    erased_at = null, updated_at = now()
where excluded.first_at > c.erased_at or c.erased_at is null
    and (c.language is null and excluded.language is not null or excluded.vulnerable and not c.vulnerable)
"""


async def keep_seen(tx: Tx, seen: Sequence[Seen]) -> None:
    """Keep what was learnt of customers; whoever has no record gets one.

    Fills in the `language` that is not known yet, and never takes `vulnerable` back. Who is seen after an
    erasure is a customer again; what was learnt before it does not come back.
    """
    if seen:
        refs, times, languages, vulnerable = zip(*map(astuple, seen), strict=True)
        await tx.execute(_KEEP_SEEN, refs, times, languages, vulnerable)


async def save(tx: Tx, record: Record) -> bool:
    """Write a record if it still has the version that was read; tells whether it had."""
    written = await tx.fetchval(
        "update customers set version = version + 1, language = $3, vulnerable = $4, sealed = $5,"
        " consents = $6, legal_hold = $7, updated_at = now()"
        " where customer_ref = $1 and version = $2 returning version",
        record.customer_ref,
        record.version,
        record.language,
        record.vulnerable,
        record.sealed,
        CONSENTS.dump_json(dict(record.consents)).decode(),
        record.legal_hold,
    )
    return written is not None


# ---------------------------------------------------------------- decisions about identity and holds


async def decide_alone(tx: Tx) -> None:
    """Wait until nobody else merges, holds or erases; until this transaction ends nobody else can."""
    await tx.execute("select pg_advisory_xact_lock($1)", _WHO_IS_WHO)


async def merge(tx: Tx, ref: str, into: str, by: str, reason: str) -> Record:
    """Let `into` stand for `ref` from now on, because a person found that both are one; gives the survivor.

    Cases stay what they are and whose they were. Raises Refused: itself, merged before, erased, unknown.
    """
    await decide_alone(tx)
    record, survivor = await _row(tx, ref, lock=True), await load(tx, into, lock=True)
    await save(tx, rules.merged(survivor, record))
    await tx.execute(
        "update customers set merged_into = $2, legal_hold = null, version = version + 1,"
        " updated_at = now() where customer_ref = $1",
        record.customer_ref,
        survivor.customer_ref,
    )
    await note(tx, ref, "merged", by, f"into {survivor.customer_ref}: {reason}")
    return await load(tx, into)


async def hold(tx: Tx, ref: str, by: str, reason: str) -> Record:
    """Forbid erasing a customer, for a reason; raises Refused: erased, unknown."""
    await decide_alone(tx)
    record = await load(tx, ref, lock=True)
    await save(tx, rules.held(record, kept_reason(reason)))
    await note(tx, record.customer_ref, "held", by, reason)
    return await load(tx, ref)


async def release(tx: Tx, ref: str, by: str, reason: str) -> Record:
    """Allow erasing again; raises Refused: not held, unknown."""
    await decide_alone(tx)
    record = await load(tx, ref, lock=True)
    await save(tx, rules.released(record))
    await note(tx, record.customer_ref, "released", by, reason)
    return await load(tx, ref)


async def clear(tx: Tx, refs: Sequence[str], now: datetime) -> None:
    """Empty the records of these references and mark them erased."""
    await tx.execute(
        "update customers set version = version + 1, language = null, vulnerable = false, sealed = null,"
        " consents = '{}', erased_at = $2, updated_at = $2 where customer_ref = any($1::text[])",
        refs,
        now,
    )


async def delete_drafts(tx: Tx, refs: Sequence[str]) -> int:
    """Delete what agents had written so far about calls of these references; gives how many drafts."""
    gone = await tx.fetch("delete from drafts where customer_ref = any($1::text[]) returning 1", refs)
    return len(gone)


# ---------------------------------------------------------------- who did what


async def note(tx: Tx, ref: str, action: str, by: str, reason: str) -> None:
    """Keep who looked at a customer or did something, and why; the reason without numbers of people."""
    await tx.execute(
        "insert into customer_actions (customer_ref, action, by, reason) values ($1, $2, $3, $4)",
        ref,
        action,
        by,
        kept_reason(reason),
    )


async def last_changed_by(tx: Tx, refs: Sequence[str]) -> str | None:
    """Name who last changed a customer of these references; None when no person ever did."""
    by: str | None = await tx.fetchval(
        "select by from customer_actions where customer_ref = any($1::text[])"
        " and action in ('changed', 'merged', 'held', 'released') order by action_id desc limit 1",
        refs,
    )
    return by


async def actions(tx: Tx, refs: Sequence[str]) -> list[dict[str, Any]]:
    """List who looked or acted and why, newest first: at, customer_ref, action, by, reason."""
    found = await tx.fetch(
        "select at, customer_ref, action, by, reason from customer_actions"
        " where customer_ref = any($1::text[]) order by action_id desc",
        refs,
    )
    return [dict(row) for row in found]


# ---------------------------------------------------------------- history

_HISTORY = """
select * from (
    select 'call' as kind, c.call_id as id, c.customer_ref, c.first_at as at, c.phase, c.closed_for,
        c.callback_state, coalesce(k.call_id = c.call_id, true) as recorded_it, k.case_no,
        c.case_id::text as case_id, null as category, null as product, v.queue, v.agent, null as department,
        v.wait_ms, v.talk_ms, c.ended_at as closed_at
    from calls c
    left join cases k on k.case_id = c.case_id
    left join lateral (
        select queue, agent, wait_ms, talk_ms from visits where call_id = c.call_id
        order by answered_at desc nulls last, visit desc limit 1
    ) v on true
    where c.customer_ref = any($1::text[])
    union all
    select 'case', case_id::text, customer_ref, recorded_at, state, null, null, true, case_no, case_id::text,
        category, product, null, null, department, null, null, closed_at
    from cases where customer_ref = any($1::text[])
) as contacts
where $2::timestamptz is null or (at, id collate "C") < ($2, $3)
order by at desc, id collate "C" desc limit $4
"""
_AS_IT_IS = frozenset(Contact.model_fields) - {"came_to"}


async def history(
    tx: Tx, refs: Sequence[str], limit: int = 50, before: tuple[datetime, str] | None = None
) -> list[Contact]:
    """List calls and cases of these references, newest first; `before` is (at, id) of the last one seen.

    Queue, agent and times of a call are those of its last answered stay, else of its last stay. A case
    that the table `cases` does not have yet counts as recorded by the call that names it.
    """
    at, last = before or (None, "")
    return [_contact(row) for row in await tx.fetch(_HISTORY, refs, at, last, limit)]


def _contact(row: Mapping[str, Any]) -> Contact:
    end = row["phase"]
    if row["kind"] == "call":
        end = rules.came_to(end, row["closed_for"], row["callback_state"], recorded_it=row["recorded_it"])
    return Contact(**{name: row[name] for name in _AS_IT_IS}, came_to=end)


async def counts(tx: Tx, refs: Sequence[str]) -> tuple[int, int]:
    """Count the calls and the cases of these references."""
    row = await tx.fetchrow(
        "select (select count(*) from calls where customer_ref = any($1::text[])) as calls,"
        " (select count(*) from cases where customer_ref = any($1::text[])) as cases",
        refs,
    )
    return row["calls"], row["cases"]
