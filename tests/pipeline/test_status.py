"""What `hotline status` shows where parts are away: each part's state, never only that one is away."""

import asyncio
import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from chassis.kafka import KafkaPublisher, commit_for
from chassis.transport import Place as Partition
from cli.__main__ import app
from cli.status import code_of, group_lags, overview, until_seeing
from cli.world import Place, World
from schemas.topics import DEPARTMENTS, STAGES
from tests.conftest import eventually
from tests.given import a_case, message, recorded

FINE, PROBLEM, BLIND = 0, 1, 4


@pytest.fixture
def nothing_named(monkeypatch):
    for name in ("HOTLINE_KAFKA_BOOTSTRAP", "HOTLINE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def status(folder, *options, columns=80):
    return CliRunner().invoke(app, ["status", "--dir", str(folder), *options], env={"COLUMNS": str(columns)})


def test_where_nothing_ever_ran_everything_is_stopped(tmp_path, nothing_named):
    folder = tmp_path / "nowhere"
    seen = status(folder, "--json")
    assert (seen.exit_code, seen.exception is None or isinstance(seen.exception, SystemExit)) == (
        PROBLEM,
        True,
    )
    shown = json.loads(seen.stdout)
    assert {stage["state"] for stage in shown["stages"].values()} == {"stopped"}
    assert {part["running"] for part in shown["stack"].values()} == {False}
    assert (shown["observer"]["state"], shown["door"]["state"]) == ("stopped", "stopped")
    assert "next: hotline up" in status(folder).stdout
    assert not folder.exists(), "who looks makes nothing"


def test_where_kafka_and_postgres_are_away_the_rest_is_shown(tmp_path, nothing_named, monkeypatch):
    away = Place("127.0.0.1:1", "postgresql://hotline:x@127.0.0.1:1/hotline")
    (tmp_path / "world.json").write_text(json.dumps(asdict(away)))
    monkeypatch.setattr(World, "pid_of", lambda self, name: 4711 if name in ("router", "observer") else None)
    seen = status(tmp_path, "--json")
    assert seen.exit_code == PROBLEM
    shown = json.loads(seen.stdout)
    assert shown["stages"]["router"]["state"] == "not answering"
    assert shown["stages"]["intake"]["state"] == "stopped"
    assert shown["observer"]["state"].startswith("blind")
    assert [shown["stages"][stage]["lag"] for stage in STAGES] == [None] * 4
    assert shown["door"]["lag"] is None
    assert set(shown["departments"]) == set(DEPARTMENTS)


def test_an_address_is_never_broken_over_two_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("HOTLINE_KAFKA_BOOTSTRAP", "127.0.0.1:34609")
    monkeypatch.setenv("HOTLINE_DATABASE_URL", "postgresql://hotline:x@127.0.0.1:34610/hotline")
    seen = status(tmp_path / "a" / ("deep" * 20))
    assert "127.0.0.1:34609" in seen.stdout
    assert "127.0.0.1:34610/hotline" in seen.stdout
    assert "router.log" in seen.stdout


@pytest.mark.parametrize(
    ("router", "observer", "lessons", "code"),
    [
        ("ok", "ok", "not started", FINE),
        ("catching up", "ok", "ok", FINE),
        ("stopped", "ok", "ok", PROBLEM),
        ("ok", "lost", "ok", PROBLEM),
        ("ok", "blind: the observer has judged nothing for 12 s", "ok", BLIND),
        ("not moving", "blind: it reads", "ok", PROBLEM),
        ("ok", "ok", "waiting", PROBLEM),
    ],
)
def test_the_exit_code_says_the_worst(router, observer, lessons, code):
    stages = {stage: {"state": "ok"} for stage in STAGES} | {"router": {"state": router}}
    beside = {"observer": observer, "door": "ok", "lessons": lessons}
    assert code_of({"stages": stages, **{name: {"state": state} for name, state in beside.items()}}) == code


@pytest.mark.parametrize(
    ("looks", "left"),
    [
        ([("blind: catching up", []), ("ok", []), ("ok", [])], 1),
        ([("blind: deleted unread", [{"topic": "router.cases"}]), ("ok", [])], 1),
    ],
)
async def test_up_waits_for_an_observer_that_reads_not_for_what_is_gone(looks, left, monkeypatch):
    async def look(_):
        state, ranges = looks.pop(0)
        return {"state": state, "blind_ranges": ranges}

    monkeypatch.setattr("cli.status.observer_status", look)
    await until_seeing(None)
    assert len(looks) == left


@pytest.mark.kafka
@pytest.mark.postgres
async def test_the_lag_of_every_group_is_counted_the_desks_too(world):
    place = world.place()

    async def nothing_waits():
        return (await group_lags(world))["router"] == 0

    await eventually(nothing_waits, 20, "a new broker knows its groups")
    assert (await group_lags(world))["desk"] is None, "it has never read"
    publisher = KafkaPublisher(place.kafka, "tests")
    await publisher.publish([message(recorded(a_case())) for _ in range(3)])
    await publisher.stop()
    assert (await group_lags(world))["router"] == 3
    await commit_for(place.kafka, "desk", {Partition("intake.cases", 0): 0})
    seen = await overview(world)
    assert (seen["door"]["lag"], seen["stages"]["feedback"]["lag"]) == (3, 3)
    assert await asyncio.to_thread(world.pid_of, "router") is None
