"""The verbs about staffing: figures as people and scripts read them, none of them a zero that is none."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from cli.staffing import staffing_app
from cli.world import connected

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
NINE = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)
"""Nine in the morning in Shanghai."""
DAY = "2026-11-23"


async def intervals(world, *options):
    arguments = ["intervals", "--date", DAY, "--dir", str(world.folder), *options]
    done = await asyncio.to_thread(CliRunner().invoke, staffing_app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


async def queued(world, *stays):
    """Put stays into the reading copy: (minutes after nine, answered after s or None, left after s or None)."""
    async with connected(world.place(), "intake") as database, database.session() as tx:
        for number, (minutes, answered, left) in enumerate(stays):
            at = NINE + timedelta(minutes=minutes)
            after = [at + timedelta(seconds=one) if one is not None else None for one in (answered, left)]
            await tx.execute(
                "insert into visits (call_id, visit, queue, queued_at, answered_at, left_at, left_for, agent,"
                " talk_ended_at, hold_ms, acw_ms) values ($1, 1, 'cards', $2, $3, $4, $5, $6, $7, 0, 0)",
                f"call-{number}",
                at,
                *after,
                "abandoned" if left is not None else None,
                "a-1" if answered is not None else None,
                after[0] + timedelta(minutes=2) if after[0] else None,
            )


async def test_the_answer_rate_is_shown_for_each_half_hour_and_for_the_day(world):
    await queued(world, (1, 10, None), (2, 10, None), (3, None, 60), (31, None, 5), (61, None, None))
    found = json.loads(await intervals(world, "--json"))
    assert found["answer_rate"] == 0.5
    assert [one["answer_rate"] for one in found["intervals"]] == [0.667, 0.0, "— no calls"]
    words = await intervals(world)
    assert "answer rate" in words
    assert "接通率 answer rate: 50.0%" in words
    assert "answer_rate: — no calls" in words


async def test_a_day_without_calls_has_no_answer_rate_and_says_why(world):
    found = json.loads(await intervals(world, "--json"))
    assert (found["answer_rate"], found["intervals"]) == ("— no calls", [])
    words = await intervals(world)
    assert "接通率 answer rate: — 没有可计入的来电 no calls that count" in words
