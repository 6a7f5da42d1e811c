"""What staffing reads of the calls: visits with their talks, refusals, arrivals by the minute."""

from collections import defaultdict
from datetime import datetime

from chassis.postgres import Tx
from services.intake.staffing.intervals import RefusedRow, VisitRow


async def visits(tx: Tx, since: datetime, until: datetime) -> list[VisitRow]:
    """Read the visits of all queues that were queued, or whose talk went on, between two moments."""
    rows = await tx.fetch(
        "select call_id, queue, queued_at, answered_at, left_at, left_for as left_reason, talk_ended_at,"
        " wait_ms, talk_ms, hold_ms, acw_ms, agent from visits"
        " where queued_at < $2 and (queued_at >= $1 or talk_ended_at >= $1) and queued_at is not null",
        since,
        until,
    )
    return [VisitRow(**dict(row)) for row in rows]


async def refusals(tx: Tx, since: datetime, until: datetime) -> list[RefusedRow]:
    """Read the calls that a queue did not take between two moments."""
    rows = await tx.fetch(
        "select call_id, refused_by as queue, first_at as refused_at from calls"
        " where refused is not null and first_at >= $1 and first_at < $2",
        since,
        until,
    )
    return [RefusedRow(**dict(row)) for row in rows]


async def arrivals(
    tx: Tx, since: datetime, until: datetime, queue: str | None
) -> dict[str, dict[datetime, int]]:
    """Count who came to each queue (or to one), by the minute: who queued, and who was refused."""
    rows = await tx.fetch(
        "select queue, minute, count(*) as calls from ("
        " select queue, date_trunc('minute', queued_at) as minute from visits"
        " where queued_at >= $1 and queued_at < $2 and ($3::text is null or queue = $3)"
        " union all select coalesce(refused_by, ''), date_trunc('minute', first_at) from calls"
        " where refused is not null and first_at >= $1 and first_at < $2"
        " and ($3::text is null or refused_by = $3)) as came group by queue, minute",
        since,
        until,
        queue,
    )
    found: dict[str, dict[datetime, int]] = defaultdict(dict)
    for row in rows:
        found[row["queue"]][row["minute"]] = row["calls"]
    return found


async def mean_handling_ms(tx: Tx, since: datetime, queue: str | None) -> float | None:
    """Give the mean from the answer to the end of the work after it, in milliseconds; None without talks."""
    mean: float | None = await tx.fetchval(
        "select avg(extract(epoch from talk_ended_at - answered_at) * 1000 + acw_ms)::float8"
        " from visits where answered_at >= $1"
        " and talk_ended_at is not null and ($2::text is null or queue = $2)",
        since,
        queue,
    )
    return mean
