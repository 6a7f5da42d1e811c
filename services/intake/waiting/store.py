"""What the assistant reads of the queues and of one caller."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from chassis.postgres import Tx
from services.intake.waiting.estimate import OPEN_AT_MOST

HISTORY = timedelta(days=14)
MOST_STAYS = 600
_STAY = (
    "call_id, visit, queued_at, priority, answered_at, left_at, talk_ended_at, agent, wait_ms, talk_ms,"
    " place, placed_at"
)


async def stays(tx: Tx, queue: str, now: datetime) -> list[Any]:
    """Read the newest stays of one queue, oldest first; at most so many, and everybody who waits."""
    return list(
        await tx.fetch(
            f"select * from (select {_STAY} from visits where queue = $1 and queued_at >= $2"
            " order by queued_at desc limit $3) newest"
            f" union select {_STAY} from visits where queue = $1 and queued_at >= $4"
            " and answered_at is null and left_at is null order by queued_at",
            queue,
            now - HISTORY,
            MOST_STAYS,
            now - OPEN_AT_MOST,
        )
    )


async def caller(tx: Tx, call_id: str, queue: str) -> Any:
    """Read a call, where it waits in that queue (any without one), and what it was told; None if unknown."""
    return await tx.fetchrow(
        "select c.*, v.visit, v.queue, v.queued_at, v.priority, v.place from calls c left join lateral"
        " (select * from visits where call_id = c.call_id and $2 in ('', queue)"
        " and answered_at is null and left_at is null"
        " order by visit desc limit 1) v on true where c.call_id = $1",
        call_id,
        queue,
    )


async def open_case(tx: Tx, refs: Sequence[str]) -> Any:
    """Read a customer's newest case that is not closed, with how it stands; None without one."""
    return await tx.fetchrow(
        "select case_no, state, department, changed_at from cases where customer_ref = any($1::text[])"
        " and closed_at is null and case_no is not null order by recorded_at desc limit 1",
        refs,
    )


async def busy_queues(tx: Tx, since: datetime) -> list[str]:
    """Name the queues in which somebody waited lately."""
    # From name to name through the index, one look at each: there are few queues and many visits.
    rows = await tx.fetch(
        "with recursive names as ((select min(queue) as queue from visits) union all"
        " select (select min(queue) from visits where queue > names.queue) from names"
        " where names.queue is not null)"
        " select queue from names where exists (select from visits v where v.queue = names.queue"
        " and v.queued_at >= $1) order by queue",
        since,
    )
    return [row["queue"] for row in rows]
