"""The verbs about staffing: figures as people and scripts read them, none of them a zero that is none."""

import asyncio
import json
from datetime import UTC, date, datetime, timedelta

import pytest
from typer.testing import CliRunner

from cli.staffing import _assumptions, _calendar, staffing_app
from cli.verbs import USAGE
from cli.world import connected
from services.intake.staffing.plan import SHRINKAGE, Target

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


async def queued_for_weeks(world):
    """One call on each of the 55 days before."""
    async with connected(world.place(), "intake") as database, database.session() as tx:
        await tx.execute(
            "insert into visits (call_id, visit, queue, queued_at, hold_ms, acw_ms)"
            " select 'old-' || n, 1, 'cards', $1::timestamptz - n * interval '1 day', 0, 0"
            " from generate_series(1, 55) n",
            NINE,
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


async def test_what_is_expected_goes_by_the_hours_file(world, tmp_path):
    await queued(world, (1, 10, None), (8 * 60, 10, None))
    hours = tmp_path / "hours.yaml"

    async def foreseen(*closed, known_until="2030-12-31"):
        always = ", ".join(
            f"{day}: ['00:00-24:00']" for day in ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
        )
        hours.write_text(
            f"version: 'ours'\nknown_until: {known_until}\ndefault:\n  tz: Asia/Shanghai\n"
            f"  week: {{{always}}}\n  closed: [{', '.join(closed)}]\n"
        )
        arguments = ["forecast", "--date", "2026-11-24", "--dir", str(world.folder), "--json"]
        done = await asyncio.to_thread(
            CliRunner().invoke, staffing_app, arguments, env={"HOTLINE_HOURS_FILE": str(hours)}
        )
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return sum(slot["expected"] for slot in found["slots"]), found["why"]

    assert (await foreseen())[0] == pytest.approx(2, abs=0.1)
    holiday = "{first: 2026-11-24, last: 2026-11-24, zh: 休息, en: a holiday of ours}"
    assert await foreseen(holiday) == (0, "nobody answers that day")
    # With a day or two of calls every forecast is doubtful; what is known of holidays is the smaller doubt.
    assert "less than two weeks" in (await foreseen(known_until="2026-11-23"))[1]
    await queued_for_weeks(world)
    assert (await foreseen(known_until="2026-11-24"))[1].startswith("earlier days of this weekday")
    assert (await foreseen(known_until="2026-11-23"))[1] == "holidays are not known after 2026-11-23"


def test_our_hours_say_which_days_count_as_what():
    weekday_of, _ = _calendar(None)
    holiday, worked, sunday = date(2026, 10, 1), date(2026, 10, 10), date(2026, 11, 29)
    assert [weekday_of("loans", day) for day in (holiday, worked, sunday)] == [None, 4, None]
    assert [weekday_of("fraud", day) for day in (holiday, worked, sunday)] == [3, 5, 6]
    assert weekday_of("", sunday) == 6


@pytest.mark.parametrize("day", ["9999-12-31", "0001-01-01", "tomorrow"])
def test_a_day_that_cannot_be_planned_is_a_usage_error(day):
    done = CliRunner().invoke(staffing_app, ["intervals", "--date", day])
    assert done.exit_code == USAGE


UNSAID = {"target": None, "shrinkage": None, "aht_s": None, "patience_s": None}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (180, Target(0.9, timedelta(seconds=10)), SHRINKAGE, 300)),
        ({"target": "80/20"}, (180, Target(0.8, timedelta(seconds=20)), SHRINKAGE, 300)),
        ({"shrinkage": 0.0, "aht_s": 60.0}, (60, Target(0.9, timedelta(seconds=10)), 0, 300)),
        ({"patience_s": 0.0, "aht_s": 0.0}, (180, Target(0.9, timedelta(seconds=10)), SHRINKAGE, None)),
    ],
)
def test_what_is_said_counts_before_the_file_and_the_file_before_what_is_usual(tmp_path, said, expected):
    file = tmp_path / "staffing.yaml"
    file.write_text("{aht_s: 180, target: 90/10, patience_s: 300}")
    given = _assumptions(file, {**UNSAID, **said}, 45_000)
    assert (given.aht_s, given.target, given.shrinkage, given.patience_s) == expected


def test_without_a_file_the_handling_time_is_as_measured_and_the_shrinkage_the_same():
    given = _assumptions(None, UNSAID, 45_000)
    assert (given.aht_s, given.shrinkage, given.patience_s) == (45, SHRINKAGE, None)
    assert _assumptions(None, {**UNSAID, "aht_s": 60.0}, None).aht_s == 60
    with pytest.raises(ValueError, match="give --aht"):
        _assumptions(None, UNSAID, None)
