"""Connections to PostgreSQL: what is lent, what is kept, how it plans."""

import asyncio
from contextlib import suppress

import asyncpg
import pytest

from chassis.postgres import BY_KEY, Database


async def backend(line):
    async with line.session() as tx:
        return await tx.fetchval("select pg_backend_pid()")


async def test_a_line_keeps_its_connection_beside_the_pool(stage_database):
    line = stage_database.line()
    first = await backend(line)
    async with stage_database.session() as tx:
        lent = await tx.fetchval("select pg_backend_pid()")
    assert await backend(line) == first != lent


async def test_a_refused_statement_leaves_a_line_as_it_is(stage_database):
    line = stage_database.line()
    first = await backend(line)
    with pytest.raises(asyncpg.UndefinedTableError):
        async with line.session() as tx:
            await tx.execute("select from nowhere")
    assert await backend(line) == first


async def test_a_line_that_the_server_has_cut_is_made_anew(address, stage_database):
    line = stage_database.line()
    first = await backend(line)
    admin = await asyncpg.connect(address.database_url)
    await admin.execute("select pg_terminate_backend($1)", first)
    await admin.close()
    with suppress(Exception):
        await backend(line)  # the client may hear of it only when it speaks
    assert await backend(line) != first


async def test_who_was_interrupted_does_not_speak_on_the_same_connection(stage_database):
    line = stage_database.line()
    first = await backend(line)

    async def dawdle():
        async with line.session() as tx:
            began.set()
            await tx.execute("select pg_sleep(60)")

    began = asyncio.Event()
    task = asyncio.create_task(dawdle())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await backend(line) != first


async def test_a_line_of_a_closed_database_makes_no_connection(stage_database):
    line = stage_database.line()
    first = await backend(line)
    await stage_database.close()
    with pytest.raises(asyncpg.InterfaceError, match="closed"):
        await backend(line)
    await stage_database.open()
    assert await backend(line) != first


async def test_a_plan_made_for_an_empty_table_finds_rows_by_key_in_a_full_one(address, stage_database):
    database = Database(address.database_url, stage_database.schema, planning=BY_KEY)
    await database.open()
    line = database.line()
    found = "select count(*) from entities where key = any($1::text[])"
    async with line.session() as tx:
        await tx.execute("prepare found as " + found.replace("$1::text[]", "$1"), timeout=5)
        for _ in range(6):
            await tx.execute("execute found(array['1'])")
        await tx.execute(
            "insert into entities (key, version, sequence, updated_at, phase, timers, document)"
            " select n::text, 1, 1, now(), 'x', '{}', '{}' from generate_series(1, 3000) n"
        )
        plan = "\n".join(row[0] for row in await tx.fetch("explain execute found(array['1'])"))
        plans = await tx.fetchrow(
            "select generic_plans, custom_plans from pg_prepared_statements where name = 'found'"
        )
    await database.close()
    assert "Seq Scan" not in plan
    assert (plans["generic_plans"] > 0, plans["custom_plans"]) == (True, 0)
