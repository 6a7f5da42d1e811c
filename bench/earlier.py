"""Fills the stages' tables with cases that came earlier: copies of finished ones, with older ids."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg

from cli.world import Place
from schemas.topics import STAGES

_STEP_MS = 600_000
"""Each copy of everything is ten minutes older than the one before."""

_FROM = "from originals, (select $1::int as copy, $1::bigint * $2::bigint as older_ms) as c"

# The first 48 bits of an id are its time; the rest of a copy's id is a hash of the original and the copy.
_ID = """(lpad(to_hex(('x' || left(replace({0}::text, '-', ''), 12))::bit(48)::bigint - older_ms), 12, '0')
          || '8' || substr(md5({0}::text || copy), 1, 3)
          || '8' || substr(md5({0}::text || copy), 4, 15))::uuid"""


def _copies(stage: str) -> dict[str, str]:
    key = "key || '.' || copy" if stage == "intake" else _ID.format("key") + "::text"
    return {
        "entities": f"select {key}, version, sequence, wake_at, updated_at, phase, timers, document {_FROM}",
        "inbox": f"select {_ID.format('event_id')}, batch - (older_ms << 21), digest, outcome {_FROM}",
        "outbox": "select batch - (older_ms << 21), ordinal, topic, key, headers, value,"
        f" case when correlation is not null then md5(correlation || copy) end {_FROM}",
    }


async def add_earlier(place: Place, cases: int, progress: Callable[[str], None]) -> int:
    """Multiply what the stages hold by copies until at least `cases` more are there; gives how many.

    The stages must be down. What is copied is real work: same sizes, same mixture; each id is as old
    as its copy.
    """
    connection = await asyncpg.connect(place.database_url)
    try:
        present = await connection.fetchval(f'select count(*) from "{place.database_prefix}router".entities')
        copies = -(-cases // present)
        await connection.execute("set synchronous_commit = off")
        for stage in STAGES:
            await connection.execute(f'set search_path to "{place.database_prefix}{stage}"')
            for table, copy in _copies(stage).items():
                await connection.execute(f"create temporary table originals as select * from {table}")
                for number in range(1, copies + 1):
                    await connection.execute(f"insert into {table} {copy}", number, _STEP_MS)
                await connection.execute("drop table originals")
                await connection.execute(f"vacuum analyze {table}")
                progress(f"earlier cases: {stage}.{table} has those of {present * (copies + 1):,} cases")
        await connection.execute("checkpoint")
    finally:
        await connection.close()
    return int(present * copies)
