"""The desk's SQL: drafts, requests by their key, verdicts on commands, and what is known of a caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from chassis.faults import is_transient
from chassis.log import get_logger
from chassis.outbox import unpack
from chassis.postgres import Database, Tx
from schemas import intake
from schemas.envelope import BY_WIRE, Body
from services.intake.contact import Contact
from services.intake.customers.families import OPEN_CASES

# ---------------------------------------------------------------- drafts


@dataclass(frozen=True, slots=True)
class Kept:
    """A draft as it is kept: which version, who wrote it when, sealed with whose key."""

    version: int
    agent: str
    customer_ref: str
    sealed: str
    updated_at: datetime


async def draft_of(tx: Tx, call_id: str) -> Kept | None:
    """Read the draft of a call."""
    row = await tx.fetchrow(
        "select version, agent, customer_ref, sealed, updated_at from drafts where call_id = $1", call_id
    )
    return Kept(*row.values()) if row else None


async def keep_draft(
    tx: Tx, call_id: str, *, over: int, agent: str, customer_ref: str, sealed: str
) -> Kept | None:
    """Keep the version after `over` (0: the first); None when another version stands there by now."""
    sql = (
        "insert into drafts (call_id, version, agent, customer_ref, sealed)"
        " values ($1, $2 + 1, $3, $4, $5) on conflict do nothing"
    )
    if over > 0:
        sql = (
            "update drafts set version = $2 + 1, agent = $3, customer_ref = $4, sealed = $5,"
            " updated_at = now() where call_id = $1 and version = $2"
        )
    row = await tx.fetchrow(
        f"{sql} returning version, agent, customer_ref, sealed, updated_at",
        call_id,
        over,
        agent,
        customer_ref,
        sealed,
    )
    return Kept(*row.values()) if row else None


async def drop_draft(tx: Tx, call_id: str) -> None:
    """Forget the draft of a call about which an agent has decided."""
    await tx.execute("delete from drafts where call_id = $1", call_id)


# ---------------------------------------------------------------- requests by their key


@dataclass(frozen=True, slots=True)
class Claim:
    """Which command a key stands for; `fresh` for the request that came first with it."""

    command_id: UUID
    digest: bytes
    created_at: datetime
    fresh: bool


async def claim(tx: Tx, key: str, digest: bytes, command_id: UUID, call_id: str) -> Claim:
    """Bind a key to a command before the command is kept; of many at once, one comes first."""
    row = await tx.fetchrow(
        "insert into idempotency as i (idempotency_key, digest, command_id, call_id)"
        " values ($1, $2, $3, $4)"
        # An update that changes nothing makes the row visible that another has just written.
        " on conflict (idempotency_key) do update set idempotency_key = i.idempotency_key"
        " returning command_id, digest, created_at",
        key,
        digest,
        command_id,
        call_id,
    )
    return Claim(row["command_id"], row["digest"], row["created_at"], row["command_id"] == command_id)


async def call_of(tx: Tx, command_id: UUID) -> str | None:
    """Name the call that a command of the desk is about."""
    found: str | None = await tx.fetchval("select call_id from idempotency where command_id = $1", command_id)
    return found


# ---------------------------------------------------------------- verdicts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the stage made of a command: `said` on its account, or `why` there is nothing yet."""

    command_id: UUID
    call_id: str
    outcome: Literal["pending", "done", "refused"]
    why: str | None = None
    said: tuple[Body, ...] = ()

    @property
    def refusal(self) -> intake.CommandRefused | None:
        """Why it changed nothing."""
        return next((body for body in self.said if isinstance(body, intake.CommandRefused)), None)


async def verdict_on(tx: Tx, command_id: UUID, call_id: str) -> Verdict:
    """Read how a command ended and what was said on its account; pending until it is decided."""
    row = await tx.fetchrow(
        "select outcome, p.event_id is not null as parked from inbox left join parked p using (event_id)"
        " where event_id = $1",
        command_id,
    )
    if row is None:
        return Verdict(command_id, call_id, "pending", "not_read_yet")
    outcome, _, why = row["outcome"].partition(":")
    if row["parked"]:
        return Verdict(command_id, call_id, "pending", why)
    said = await _said(tx, command_id, call_id)
    if not said and outcome in ("refused", "dead"):
        said = (_refused(call_id, why),)
    refused = any(isinstance(body, intake.CommandRefused) for body in said)
    return Verdict(command_id, call_id, "refused" if refused else "done", said=said)


async def _said(tx: Tx, command_id: UUID, call_id: str) -> tuple[Body, ...]:
    # What is said of a call is filed under the call, or under the case that the call came to.
    rows = await tx.fetch(
        "select headers, value from outbox where correlation = $1"
        " or correlation = (select case_id::text from calls where call_id = $1) order by batch, ordinal",
        call_id,
    )
    said: list[Body] = []
    for row in rows:
        headers = dict(unpack(row["headers"]))
        if headers.get("ce_causationid") == str(command_id).encode():
            said.append(BY_WIRE[headers["ce_type"].decode()].body.parse(row["value"]))
    return tuple(said)


def _refused(call_id: str, code: str) -> intake.CommandRefused:
    return intake.CommandRefused(
        subject=call_id,
        code=code or "not_handled",
        explanation="the explanation is no longer kept",
        current_state="unknown",
    )


class Verdicts:
    """Waits for the outcomes of many commands at once: one query for all of them, every few milliseconds."""

    _SOONEST, _SLOWEST = 0.01, 0.05

    def __init__(self, database: Database) -> None:
        self._database = database
        self._awaited: dict[asyncio.Future[None], UUID] = {}
        self._polling: asyncio.Task[None] | None = None
        self._pause = self._SOONEST
        self._log = get_logger(part="desk")

    async def wait(self, command_id: UUID, within: timedelta) -> bool:
        """Return once the command is decided; false when that did not happen in time."""
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited[decided] = command_id
        self._pause = self._SOONEST
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(within.total_seconds()):
                await decided
        except TimeoutError:
            return False
        finally:
            del self._awaited[decided]
        return True

    async def _poll(self) -> None:
        while self._awaited:
            try:
                await self._look()
            except Exception as error:
                # Whoever waits learns in time that there is no verdict yet.
                if is_transient(error):
                    self._log.warning("verdicts_unread", error=type(error).__name__)
                else:
                    self._log.error("verdicts_unread", exc_info=error)
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 1.5, self._SLOWEST)

    async def _look(self) -> None:
        async with self._database.session() as tx:
            rows = await tx.fetch(
                "select event_id from inbox i where event_id = any($1::uuid[])"
                " and not exists (select from parked p where p.event_id = i.event_id)",
                list(set(self._awaited.values())),
            )
        decided = {row["event_id"] for row in rows}
        for future, command_id in self._awaited.items():
            if command_id in decided and not future.done():
                future.set_result(None)


# ---------------------------------------------------------------- cases


async def find_case(tx: Tx, case_id: UUID | None, case_no: str | None) -> Any:
    """Find a case by its id or number: case_id, case_no, closed_at; None when the desk knows it not."""
    return await tx.fetchrow(
        "select case_id, case_no, closed_at from cases where case_id = $1 or case_no = $2", case_id, case_no
    )


async def case_of_call(tx: Tx, call_id: str) -> tuple[UUID, str | None] | None:
    """Name the case that a call came to, by id and number."""
    case_id: UUID | None = await tx.fetchval("select case_id from calls where call_id = $1", call_id)
    return (case_id, await number_of(tx, case_id)) if case_id else None


async def number_of(tx: Tx, case_id: UUID) -> str | None:
    """Give the number of a case, also of one that was recorded this moment."""
    known: str | None = await tx.fetchval("select case_no from cases where case_id = $1", case_id)
    if known is not None:
        return known
    values = await tx.fetch("select value from outbox where correlation = $1", str(case_id))
    for row in values:
        with suppress(ValueError):
            return intake.CaseRecorded.parse(row["value"]).case.case_no
    return None


# ---------------------------------------------------------------- who calls


async def contact_of(tx: Tx, call_id: str) -> Contact | None:
    """Read what is known of a call, as its last step left it."""
    document = await tx.fetchval(
        "select document from entities where key = $1 and document <> 'null'", call_id
    )
    return Contact.parse(document) if document else None


async def open_cases(tx: Tx, refs: Sequence[str]) -> Sequence[Any]:
    """List the newest ten cases that are not closed: a customer's own, and those that he called about.

    Those may be filed under another number, which he gave.
    """
    return await tx.fetch(
        "select case_id, case_no, coalesce(state, 'recorded') as state, department, category, product,"
        " severity, coalesce(cycle, 1) as cycle, recorded_at, told_at from cases where case_id in"
        " (select case_id from unnest($1::text[]) as mine(ref), lateral"
        f" ({OPEN_CASES}) as found) order by recorded_at desc limit 10",
        refs,
    )


async def attached(tx: Tx, cases: Sequence[UUID]) -> Sequence[Any]:
    """List the last five calls that were attached to each of these cases, the newest first."""
    return await tx.fetch(
        "select found.* from unnest($1::uuid[]) as asked(id), lateral (select * from attached"
        " where case_id = asked.id order by attached_at desc, call_id limit 5) as found",
        cases,
    )


async def earlier_contacts(tx: Tx, refs: Sequence[str], besides: str) -> Sequence[Any]:
    """List the last five calls of a customer but one, and what each came to."""
    return await tx.fetch(
        "select c.call_id, c.first_at, c.phase, c.closed_for, c.callback_state, c.reason_topic, k.case_no,"
        " k.call_id is not distinct from c.call_id as recorded_it, v.queue, v.agent"
        " from calls c left join cases k on k.case_id = c.case_id"
        " left join lateral (select queue, agent from visits where visits.call_id = c.call_id"
        " order by answered_at desc nulls last, visit desc limit 1) v on true"
        " where c.customer_ref = any($1::text[]) and c.call_id <> $2 order by c.first_at desc limit 5",
        refs,
        besides,
    )


_CALLBACK = (
    "c.call_id, c.callback_ref as customer_ref, c.language, c.reason_topic, c.callback_queue as queue,"
    " c.callback_state as state, c.callback_due as due_at, c.waiting_since,"
    " c.callback_attempts as attempts, c.callback_number as number"
)
_OWED = "c.callback_state in ('open', 'overdue')"


async def callbacks(tx: Tx, queue: str | None, after: str | None, limit: int) -> Sequence[Any]:
    """List who must be called back, the longest wait first, behind the call that the last page ended with.

    `place` counts within a queue; `ready` when nobody who still waits in that queue has waited longer.
    """
    return await tx.fetch(
        "select *, not exists (select from visits v join calls w using (call_id)"
        " where v.queue = page.queue and v.answered_at is null and v.left_at is null"
        " and v.queued_at < page.waiting_since and w.ended_at is null and w.phase <> 'closed') as ready"
        f" from (select * from (select {_CALLBACK},"
        " row_number() over (partition by c.callback_queue order by c.waiting_since, c.call_id) as place"
        f" from calls c where {_OWED} and ($1::text is null or c.callback_queue = $1)) as owed"
        " where $2::text is null or (waiting_since, call_id) >"
        " (select waiting_since, call_id from calls where call_id = $2)"
        " order by waiting_since, call_id limit $3) as page order by waiting_since, call_id",
        queue,
        after,
        limit,
    )


async def callbacks_owed(tx: Tx, refs: Sequence[str], call_id: str) -> Sequence[Any]:
    """List what is still owed to a customer, and on account of one call."""
    return await tx.fetch(
        f"select {_CALLBACK} from calls c where {_OWED}"
        " and (c.customer_ref = any($1::text[]) or c.call_id = $2) order by c.callback_due limit 10",
        refs,
        call_id,
    )


async def note_views(tx: Tx, views: Sequence[tuple[str, str]], by: str) -> None:
    """Note who looked at which customers, and why; the same look within an hour is one."""
    await tx.execute(
        "insert into customer_actions (customer_ref, action, by, reason)"
        " select ref, 'viewed', $3, why from unnest($1::text[], $2::text[]) as looked(ref, why)"
        " where not exists (select from customer_actions a where a.customer_ref = ref and a.action = 'viewed'"
        " and a.by = $3 and a.reason = why and a.at > now() - interval '1 hour')",
        [ref for ref, _ in views],
        [why for _, why in views],
        by,
    )
