"""Which runs were done, by one clock for all processes, and that one process at a time does one."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from chassis.postgres import Database, Tx

Job: TypeAlias = Literal["watch", "retrain"]
Clock: TypeAlias = Callable[[Tx], Awaitable[datetime]]
_KEY = "hashtextextended(current_schema() || '.' || $1, 0)"


@dataclass(frozen=True, slots=True)
class Run:
    """The last run of a job: for which slot, when, whether it failed; what the last good one has found."""

    slot: datetime
    ran_at: datetime
    failed: bool
    found: dict[str, Any]


async def now(tx: Tx) -> datetime:
    """Tell the time by PostgreSQL's clock, UTC: one host whose own is wrong must not silence the others."""
    told: datetime = await tx.fetchval("select clock_timestamp()")
    return told


async def last(tx: Tx) -> dict[Job, Run]:
    """Read the last run of each job; a job that never ran is missing."""
    rows = await tx.fetch("select job, slot, ran_at, failed, found from scheduled_runs")
    return {
        row["job"]: Run(row["slot"], row["ran_at"], row["failed"], json.loads(row["found"])) for row in rows
    }


async def note(tx: Tx, job: Job, slot: datetime, ran_at: datetime, found: dict[str, Any] | None) -> None:
    """Note that a job was done for a slot, and what it found; None: it failed."""
    await tx.execute(
        "insert into scheduled_runs as known (job, slot, ran_at, failed, found)"
        " values ($1, $2, $3, $4::text is null, coalesce($4, '{}')) on conflict (job) do update set"
        " slot = excluded.slot, ran_at = excluded.ran_at, failed = excluded.failed,"
        " found = coalesce($4, known.found)",
        job,
        slot,
        ran_at,
        None if found is None else json.dumps(found),
    )


@asynccontextmanager
async def alone(database: Database, job: Job) -> AsyncIterator[Tx | None]:
    """Do a job while no other process does; gives None while one does.

    The lock is the connection's: it ends with the process that holds it, however that ends.
    """
    async with database.session() as tx:
        held = await tx.fetchval(f"select pg_try_advisory_lock({_KEY})", job)
        try:
            yield tx if held else None
        finally:
            if held:
                await tx.execute(f"select pg_advisory_unlock({_KEY})", job)


async def at_work(tx: Tx, job: Job) -> int | None:
    """Tell which session of PostgreSQL does a job now, by its process id; None: nobody does."""
    pid: int | None = await tx.fetchval(
        "select pid from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
        " and database = (select oid from pg_database where datname = current_database())"
        f" and (classid::bigint << 32) | objid::bigint = {_KEY} limit 1",
        job,
    )
    return pid
