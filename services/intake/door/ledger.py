"""The door's SQL about what came in: deliveries, numbers, positions, what was refused."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from chassis.postgres import Tx
from chassis.roots import batch_id_at
from services.intake.contact import BY_AGENTS

Name = tuple[str, str]
ABANDONED = timedelta(days=7)
"""A draft that nobody has touched for so long is forgotten, also when its call was never decided."""


async def note_deliveries(
    tx: Tx, deliveries: Sequence[tuple[str, str, bytes]]
) -> tuple[set[Name], dict[Name, bytes]]:
    """Note deliveries by (source, name, digest); gives those that are new, and the digests of the others.

    Of several with one name the first is noted.
    """
    columns = [list(column) for column in zip(*deliveries, strict=True)]
    rows = await tx.fetch(
        "insert into deliveries (source, delivery, digest)"
        " select distinct on (s, d) s, d, g"
        " from unnest($1::text[], $2::text[], $3::bytea[]) with ordinality as x(s, d, g, place)"
        " order by s, d, place"
        " on conflict do nothing returning source, delivery",
        *columns,
    )
    fresh = {(row["source"], row["delivery"]) for row in rows}
    if len(fresh) == len(deliveries):
        return fresh, {}
    known = await tx.fetch(
        "select source, delivery, digest from deliveries"
        " where (source, delivery) in (select * from unnest($1::text[], $2::text[]))",
        *columns[:2],
    )
    return fresh, {(row["source"], row["delivery"]): row["digest"] for row in known}


async def number(tx: Tx, feed: str, count: int) -> int:
    """Draw `count` numbers without a gap; gives the last. A transaction that fails draws none."""
    last: int = await tx.fetchval(
        "insert into feeds as f (feed, published) values ($1, $2)"
        " on conflict (feed) do update set published = f.published + $2, moved_at = now()"
        " returning published",
        feed,
        count,
    )
    return last


async def move(tx: Tx, feed: str, position: str) -> None:
    """Keep where the reader of a feed stands."""
    await tx.execute(
        "insert into feeds (feed, position) values ($1, $2)"
        " on conflict (feed) do update set position = $2, moved_at = now()",
        feed,
        position,
    )


async def position(tx: Tx, feed: str) -> str | None:
    """Tell where the reader of a feed stood."""
    found: str | None = await tx.fetchval("select position from feeds where feed = $1", feed)
    return found


async def hold_position(tx: Tx, feed: str) -> str | None:
    """Tell where the reader of a feed stood; until this transaction ends nobody else moves it."""
    found: str | None = await tx.fetchval(
        "insert into feeds as f (feed) values ($1) on conflict (feed) do update set feed = f.feed"
        " returning position",
        feed,
    )
    return found


async def published(tx: Tx, feed: str) -> int:
    """Tell the last number that was given to a fact of a feed; 0 before the first."""
    found: int | None = await tx.fetchval("select published from feeds where feed = $1", feed)
    return found or 0


async def declarable(tx: Tx, feed: str, through: int, made_before: datetime) -> tuple[int, int] | None:
    """Give the numbers (from, to) up to `through` that are sent and not yet declared; None without any.

    They are sent when nothing that was made before that moment is unsent: choose one after which none of
    them can have been made. What is newer may be unsent, for at a busy hour something always is.
    """
    row = await tx.fetchrow(
        "select declared, exists (select from unpublished where relay and batch < $2) as unsent"
        " from feeds where feed = $1",
        feed,
        batch_id_at(made_before),
    )
    if row is None or row["unsent"] or through <= row["declared"]:
        return None
    return row["declared"] + 1, through


async def declared(tx: Tx, feed: str, through: int) -> None:
    """Note up to which number a manifest was sent."""
    await tx.execute("update feeds set declared = greatest(declared, $2) where feed = $1", feed, through)


async def refuse(tx: Tx, source: str, reason: str, explanation: str, sealed: bytes | None) -> None:
    """Keep what could not be accepted, with the reason."""
    await tx.execute(
        "insert into refused_deliveries (source, reason, explanation, sealed) values ($1, $2, $3, $4)",
        source[:200],
        reason,
        explanation[:2000],
        sealed,
    )


async def prune(tx: Tx, deliveries: timedelta, refused: timedelta, limit: int = 20_000) -> bool:
    """Forget up to `limit` deliveries, requests, refusals and drafts each that have served their time.

    A draft has once its call was decided, or after a week. Tells whether there may be more.
    """
    done = [
        await tx.execute(
            "delete from drafts where ctid = any(array(select d.ctid from drafts d left join calls using"
            " (call_id) where updated_at < now() - $1::interval or (case_id is not null or"
            " closed_for = any($3::text[])) and updated_at < now() - interval '1 hour' limit $2))",
            ABANDONED,
            limit,
            sorted(BY_AGENTS),
        )
    ]
    done += [
        await tx.execute(
            f"delete from {table} where ctid = any(array(select ctid from {table}"
            f" where {column} < now() - $1::interval limit $2))",
            keep,
            limit,
        )
        for table, column, keep in (
            ("deliveries", "received_at", deliveries),
            ("idempotency", "created_at", deliveries),
            ("refused_deliveries", "received_at", refused),
        )
    ]
    return any(int(status.rpartition(" ")[2]) >= limit for status in done)


async def open_calls(tx: Tx, source: str, before: Any) -> list[str]:
    """Name the calls of a switch that began before a moment and have no end."""
    rows = await tx.fetch(
        "select call_id from calls where source = $1 and ended_at is null and first_at < $2"
        " and phase not in ('closed')",
        source,
        before,
    )
    return [row["call_id"] for row in rows]
