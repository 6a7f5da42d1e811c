"""What the router does by the clock: drift every hour, a lesson every night, by one process, with nobody there."""

import asyncio
import json
import re
import threading
import urllib.request
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import asyncpg
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chassis.faults import Misconfigured, Transient
from chassis.postgres import Database, role_of
from chassis.roots import new_id
from cli.world import LESSONS, PROCESSES
from services.router import lessons
from services.router.classifier import training
from services.router.learning import Lesson, score
from services.router.lessons import Act, night, runs
from services.router.lessons.app import ATTEMPTS, LessonMetrics, Schedule
from services.router.lessons.schedule import daily, every, is_due
from services.router.lessons.settings import LessonSettings
from services.router.settings import RouterSettings
from tests.conftest import eventually
from tests.given import NOW
from tests.router.given import RULES_TEXT
from tests.router.test_lessons import seed, write_model
from tests.router.test_model_verbs import Hotline, split_texts, taught

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------ when something is due

MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
TIMES = st.times().map(lambda at: at.replace(second=0, microsecond=0))
ZONES = st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "America/New_York", "UTC"]).map(ZoneInfo)


@given(MOMENTS, TIMES, ZONES)
def test_a_nightly_slot_is_the_last_time_the_wall_clock_showed_its_time(now, at, zone):
    slot = daily(at, zone, now)
    wall = slot.astimezone(zone)
    assert slot <= now < slot + timedelta(hours=25, minutes=1)
    # A time that a change of the clocks leaves out is an hour later on that day.
    assert wall.time() == at or (wall - timedelta(hours=1)).time() == at
    assert daily(at, zone, slot) == slot
    assert daily(at, zone, slot - timedelta(seconds=1)).astimezone(zone).date() < wall.date()


@given(MOMENTS, st.timedeltas(timedelta(minutes=1), timedelta(days=1)))
def test_periods_lie_end_to_end(now, period):
    slot = every(period, now)
    assert slot <= now < slot + period
    assert every(period, slot) == slot
    assert every(period, slot + period) == slot + period


@given(MOMENTS, MOMENTS, st.timedeltas(timedelta(), timedelta(days=1)))
def test_a_slot_is_due_once_and_again_only_when_the_last_is_still_to_come(slot, last, since):
    now = slot + since
    assert is_due(slot, None, now)
    assert is_due(slot, last, now) == (last < slot or last > now)
    assert not is_due(slot, slot, now)


# ------------------------------------------------------------ on a real database, with a clock moved by hand


class Heard:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, said, **fields):
        self.lines.append((said, fields))

    warning = error = info

    def of(self, said, **wanted):
        return [
            fields
            for line, fields in self.lines
            if line == said and all(fields.get(name) == value for name, value in wanted.items())
        ]


class House(Hotline):
    """The router's tables, a clock, and processes that look at both."""

    now = NOW + timedelta(minutes=59)

    def __init__(self, folder, database, vault):
        super().__init__(folder, database, vault)
        (folder / "rules.yaml").write_text(RULES_TEXT, "utf-8")
        self.first = self.process()

    def process(self, database=None, clock=None, **fields):
        """A process of its own, with its own metrics and log."""
        given = {
            "kafka_bootstrap": "x",
            "database_url": "x",
            "master_key_file": self.folder / "master.key",
            "rules_file": self.folder / "rules.yaml",
            "models": self.folder / "nowhere",
            **fields,
        }
        metrics = LessonMetrics()
        own, settings = database or self.database, LessonSettings(**given)
        made = Schedule(own, self.vault, settings, metrics, clock or self.clock)
        made._log, made.metrics = Heard(), metrics
        return made

    async def clock(self, _):
        return self.now

    async def later(self, process=None, **by):
        """Time goes by, and the process looks at the clock."""
        self.now += timedelta(**by)
        await (process or self.first).turn()

    def ran(self, job, process=None):
        return len((process or self.first)._log.of("run", job=job))

    async def store(self, folder, *version):
        model = write_model(folder, *version)
        async with self.database.transaction() as tx:
            await lessons.store_model(tx, folder, self.now)
        return model

    async def give(self, role, model, by="ada"):
        """A role for a stored English model, on a person's word."""
        async with self.database.transaction() as tx:
            stored = await lessons.model_named(tx, model.sha256)
            await lessons.activate_model(tx, stored, role, Act(by, "mine", self.now))

    async def last(self):
        async with self.database.session() as tx:
            return await runs.last(tx)


def shown(process, name, **labels):
    return process.metrics.registry.get_sample_value(name, labels or None)


@pytest.fixture
def house(database, vault, tmp_path):
    return House(tmp_path, database, vault)


@pytest.fixture
async def elsewhere(address, house):
    """The connections of another process."""
    schema = house.database.schema
    database = Database(address.database_url, schema, role=role_of(schema))
    await database.open()
    yield database
    await database.close()


@pytest.mark.postgres
async def test_a_department_is_taken_from_the_classifier_with_nobody_there(house):
    await seed(house.database, NOW, 18)
    await seed(house.database, NOW, 2, label="fraud", source="transfer")
    await house.first.turn()
    assert (await house.in_force())[2] == {"cards"}
    (told,) = await house.said()
    assert (told["department"], told["allowed"], told["alarm"], told["by"]) == (
        "cards",
        False,
        "misrouted",
        "watch",
    )
    log = house.first._log
    assert [one["window"] for one in log.of("drift", alarm="misrouted", of="cards")] == ["hour", "day"]
    assert log.of("department_restricted") == [{"department": "cards", "window": "hour"}]
    for window, ringing in (("hour", 1), ("day", 1)):
        assert shown(house.first, "router_drift_alarms", alarm="misrouted", window=window) == ringing
        assert shown(house.first, "router_drift_alarms", alarm="known_share", window=window) == 0
    assert shown(house.first, "router_restricted_departments") == 1
    assert shown(house.first, "router_last_run_timestamp_seconds", task="watch") == house.now.timestamp()
    assert shown(house.first, "router_last_run_failed", task="watch") == 0

    await house.later(hours=2)
    assert shown(house.first, "router_drift_alarms", alarm="misrouted", window="hour") == 0
    assert shown(house.first, "router_drift_alarms", alarm="misrouted", window="day") == 1
    assert len(await house.said()) == 1


@pytest.mark.postgres
async def test_drift_is_looked_for_once_in_an_hour_and_a_missed_hour_is_made_up_once(house):
    await house.first.turn()
    await house.later(seconds=59)
    assert house.ran("watch") == 1
    await house.later(seconds=1)
    assert house.ran("watch") == 2, "10:00: the next hour has begun"
    await house.later(hours=5, minutes=30)
    await house.later(minutes=29)
    assert house.ran("watch") == 3, "five hours were missed"
    await house.later(minutes=1)
    assert house.ran("watch") == 4


@pytest.mark.postgres
async def test_what_was_missed_while_no_process_ran_is_made_up_by_the_next(house):
    await house.first.turn()
    house.now += timedelta(days=3)
    later = house.process()
    await later.turn()
    await later.turn()
    assert (house.ran("watch", later), house.ran("retrain", later)) == (1, 1)


@pytest.mark.postgres
async def test_the_lesson_is_at_night_by_the_clock_of_the_rules_in_force(house):
    house.now = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
    await house.first.turn()
    assert house.ran("retrain") == 1
    await house.later(hours=14, minutes=59)
    assert house.ran("retrain") == 1, "01:59 in Shanghai"
    await house.later(minutes=1)
    assert house.ran("retrain") == 2
    assert (await house.last())["retrain"].slot == datetime(2026, 11, 24, 18, 0, tzinfo=UTC)

    in_berlin = RULES_TEXT.replace('ruleset: "1"', 'ruleset: "2"\nzone: Europe/Berlin')
    async with house.database.transaction() as tx:
        await lessons.activate_rules(tx, in_berlin, Act("ada", "we have moved", house.now))
    await house.later(hours=6, minutes=59)
    assert house.ran("retrain") == 2, "01:59 in Berlin"
    await house.later(minutes=1)
    assert house.ran("retrain") == 3
    assert (await house.last())["retrain"].slot == datetime(2026, 11, 25, 1, 0, tzinfo=UTC)


@pytest.mark.postgres
async def test_the_time_of_the_lesson_and_the_interval_are_settings(house):
    often = house.process(watch_every=timedelta(minutes=10), retrain_at=time(18, 0))
    await often.turn()
    assert (await house.last())["retrain"].slot == datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
    await house.later(often, minutes=1)
    assert (house.ran("watch", often), house.ran("retrain", often)) == (2, 2)
    await house.later(often, minutes=10)
    assert house.ran("watch", often) == 3


@pytest.mark.postgres
async def test_rules_that_cannot_be_read_leave_the_zone_as_it_was_and_are_shown_until_they_can(house):
    async with house.database.session() as tx:
        await tx.execute(
            "insert into rulesets (version, sha256, document, by, reason) values ('x', 'x', '[', 'x', 'x')"
        )
    assert shown(house.first, "router_not_in_force", what="rules") == 0
    await house.first.turn()
    assert (await house.last())["retrain"].slot.hour == 18
    assert shown(house.first, "router_not_in_force", what="rules") == 1
    assert shown(house.first, "router_not_in_force", what="model") == 1, "there is no folder of models"
    async with house.database.transaction() as tx:
        await lessons.activate_rules(tx, RULES_TEXT, Act("ada", "as before", house.now))
    await house.first.turn()
    assert shown(house.first, "router_not_in_force", what="rules") == 0


@pytest.mark.postgres
async def test_a_model_is_trained_watched_for_three_days_and_decides_with_nobody_there(house):
    pytest.importorskip("sklearn", reason="training needs scikit-learn")
    await taught(house)
    await house.first.turn()
    (model,) = house.first._log.of("trained", language="en")
    assert (await house.in_force())[1] == {("shadow", "en"): model["model"]}
    await house.later(days=1)
    assert [one["verdict"] for one in house.first._log.of("judged")] == ["watch"]
    await house.later(days=2)
    (_, promoted) = house.first._log.of("judged")
    assert promoted["verdict"] == "promote", promoted["why"]
    assert (await house.in_force())[1] == {("active", "en"): model["model"], ("shadow", "en"): "none"}
    said = json.dumps(house.first._log.lines, default=str)
    assert "Zhang" not in said
    assert "13912345678" not in said
    assert "please" not in said


@pytest.mark.postgres
async def test_what_is_not_trained_is_said_once_with_its_reason(house, monkeypatch):
    def absent(*_):
        raise ModuleNotFoundError("training needs scikit-learn")

    await taught(house)
    monkeypatch.setattr(training, "train", absent)
    await house.first.turn()
    await house.later(days=1)
    assert house.ran("retrain") == 2
    assert house.first._log.of("not_trained", language="en") == [
        {"language": "en", "why": "training needs scikit-learn", "next": "pip install hotline[train]"}
    ]
    assert len(house.first._log.of("not_trained", language="zh")) == 1
    assert (await house.in_force())[1] == {}
    assert shown(house.first, "router_last_run_failed", task="retrain") == 0, "nobody has to install it"


@pytest.mark.postgres
async def test_a_training_that_should_have_been_and_was_not_is_a_run_that_failed(house, monkeypatch):
    def refused(*_):
        raise lessons.Refused("model refused", "its confidence is off", "x")

    await taught(house)
    monkeypatch.setattr(training, "train", refused)
    for _ in range(2):
        await house.first.turn()
    await house.later(days=1)
    told = {"language": "en", "why": "its confidence is off", "next": night._TRIAGE}
    assert house.first._log.of("training_failed") == [told, told]
    assert shown(house.first, "router_last_run_failed", task="retrain") == 1
    assert house.ran("retrain") == 0


@pytest.mark.postgres
async def test_whatever_ails_the_training_of_one_language_the_other_has_its_night(house, monkeypatch):
    nights = []

    def broken(*_):
        raise ValueError("my card 6222 is gone")

    async def train(_, language, *rest, **__):
        nights.append(language)
        return await asyncio.to_thread(night._fitted, language, [lesson()], NOW)

    monkeypatch.setattr(training, "train", broken)
    monkeypatch.setattr(night, "train", train)
    await house.first.turn()
    assert sorted(nights) == ["en", "zh"]
    told = house.first._log.of("training_failed")
    assert len(told) == 2
    assert all(
        one["why"].startswith("training ended with ValueError in broken, test_schedule.py:") for one in told
    )
    assert "6222" not in str(told)
    assert shown(house.first, "router_last_run_failed", task="retrain") == 1


def lesson():
    return Lesson(new_id(), "about the fee", "payments", "triage", NOW)


def trained_while(monkeypatch, house, folder, meanwhile):
    """Let a training take half an hour, in which somebody does something; gives what it trains."""
    model = write_model(folder, "9")

    async def train(database, language, *_, **__):
        if language == "zh":
            return night.NotTrained("x", "y")
        async with database.transaction() as tx:
            await lessons.store_model(tx, folder, house.now)
        house.now += timedelta(minutes=30)
        await meanwhile()
        return night.Trained(model, 1000, score([]))

    monkeypatch.setattr(night, "train", train)
    return model


@pytest.mark.postgres
async def test_a_trained_model_is_watched_from_the_end_of_its_training(house, tmp_path, monkeypatch):
    async def nothing():
        pass

    model = trained_while(monkeypatch, house, tmp_path / "new", nothing)
    await house.first.turn()
    (row,) = await house.rows("select role, sha256, activated_at from model_activations")
    assert row == {"role": "shadow", "sha256": model.sha256, "activated_at": house.now}


@pytest.mark.postgres
@pytest.mark.parametrize("role", ["shadow", "active"])
async def test_what_a_person_activates_while_a_model_is_trained_stands(house, tmp_path, monkeypatch, role):
    theirs = await house.store(tmp_path / "theirs", "1")
    ours = trained_while(monkeypatch, house, tmp_path / "new", lambda: house.give(role, theirs))
    await house.first.turn()
    assert (await house.in_force())[1] == {(role, "en"): theirs.sha256}
    assert house.first._log.of("trained") == [{"language": "en", "model": ours.sha256, "watched": False}]


@pytest.mark.postgres
async def test_a_model_is_trained_and_watched_after_the_one_before_was_promoted(house, tmp_path, monkeypatch):
    async def nothing():
        pass

    first = await house.store(tmp_path / "first", "1")
    await house.give("shadow", first)
    await house.learn(split_texts("card", 120, held_out=True), "cards")
    second = trained_while(monkeypatch, house, tmp_path / "new", nothing)
    await house.later(days=4)
    assert (await house.in_force())[1] == {("active", "en"): first.sha256, ("shadow", "en"): second.sha256}


@pytest.mark.postgres
async def test_models_are_judged_beside_the_event_loop(house, tmp_path, monkeypatch):
    where, judge = [], night.judge
    monkeypatch.setattr(night, "judge", lambda *of: where.append(threading.current_thread()) or judge(*of))
    await house.give("active", await house.store(tmp_path / "1", "1"))
    await house.give("shadow", await house.store(tmp_path / "2", "2"))
    await house.learn(split_texts("card", 3, held_out=True), "cards")
    await house.first.turn()
    assert len(where) == 2
    assert threading.main_thread() not in where


@pytest.mark.postgres
async def test_lessons_are_compared_once_with_what_stored_models_have_learnt_from(
    house, tmp_path, monkeypatch
):
    asked, digest_of = [], night.digest_of
    monkeypatch.setattr(night, "digest_of", lambda learn: asked.append(learn) or digest_of(learn))
    for number in "123":
        await house.store(tmp_path / number, number)
    await house.first.turn()
    assert len(asked) == len(night.LANGUAGES)


@pytest.mark.postgres
async def test_a_run_that_fails_is_told_and_done_again_at_its_next_time_only(house, monkeypatch):
    await seed(house.database, NOW, 18)
    await seed(house.database, NOW, 2, label="fraud", source="transfer")
    await house.first.turn()

    async def broken(*_):
        raise ZeroDivisionError

    supervise = lessons.supervise
    monkeypatch.setattr(lessons, "supervise", broken)
    await house.later(minutes=1)
    await house.later(minutes=1)
    assert len(house.first._log.of("run_failed", job="watch")) == 1
    assert shown(house.first, "router_last_run_failed", task="watch") == 1
    assert shown(house.first, "router_drift_alarms", alarm="misrouted", window="day") == 1, "as it was"
    assert house.ran("retrain") == 1, "the other job is not touched"
    fresh = house.process()
    await fresh.turn()
    assert shown(fresh, "router_drift_alarms", alarm="misrouted", window="day") == 1, "as it was found"
    monkeypatch.setattr(lessons, "supervise", supervise)
    await house.later(hours=1)
    assert shown(house.first, "router_last_run_failed", task="watch") == 0


@pytest.mark.postgres
async def test_what_the_database_interrupts_is_done_again_at_once_and_stops_nothing_else(house, monkeypatch):
    async def away(*_):
        raise Transient("postgres is away")

    supervise = lessons.supervise
    monkeypatch.setattr(lessons, "supervise", away)
    await house.first.turn()
    assert list(await house.last()) == ["retrain"]
    assert shown(house.first, "router_last_run_failed", task="retrain") == 0
    monkeypatch.setattr(lessons, "supervise", supervise)
    await house.first.turn()
    assert house.ran("watch") == 1


@pytest.mark.postgres
@pytest.mark.parametrize("error", [asyncpg.QueryCanceledError("statement timeout"), TimeoutError()])
async def test_a_run_that_is_interrupted_each_time_rests_longer_each_time_and_has_failed_in_the_end(
    house, monkeypatch, error
):
    looks, begun, supervise = 0, [], lessons.supervise

    async def too_slow(*_):
        begun.append(looks)
        raise error

    monkeypatch.setattr(lessons, "supervise", too_slow)
    for looks in range(200):  # noqa: B007 - what is interrupted notes when
        await house.first.turn()
        assert (shown(house.first, "router_last_run_failed", task="watch") == 1) == (len(begun) == ATTEMPTS)
    assert begun == [0, 1, 3, 7, 15, 31, 63, 127]
    put_off = house.first._log.of("run_put_off", job="watch", why=type(error).__name__)
    assert [one["again_in_s"] for one in put_off] == [5, 10, 20, 40, 80, 160, 320]
    assert len(house.first._log.of("run_failed", job="watch")) == 1
    assert house.ran("retrain") == 1, "the other job is not touched"

    monkeypatch.setattr(lessons, "supervise", supervise)
    await house.later(hours=1)
    assert shown(house.first, "router_last_run_failed", task="watch") == 0


@pytest.mark.postgres
async def test_a_run_that_cannot_be_noted_rests_as_well(house, monkeypatch):
    asked, note = [], runs.note

    async def read_only(tx, job, *run):
        if job == "watch":
            raise asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT")
        await note(tx, job, *run)

    async def supervise(*_):
        asked.append(1)
        return [], []

    monkeypatch.setattr(runs, "note", read_only)
    monkeypatch.setattr(lessons, "supervise", supervise)
    for _ in range(300):
        with suppress(asyncpg.ReadOnlySQLTransactionError):
            await house.first.turn()
    windows = len(lessons.WINDOWS)
    assert len(asked) == (ATTEMPTS + 1) * windows
    assert house.ran("retrain") == 1


@pytest.mark.postgres
async def test_one_process_whose_clock_is_ahead_does_not_silence_the_others(house):
    async def ahead(_):
        return house.now + timedelta(days=30)

    await house.first.turn()
    await house.process(clock=ahead).turn()
    for _ in range(48):
        await house.later(hours=1)
    assert (house.ran("watch"), house.ran("retrain")) == (1 + 48, 1 + 3)
    assert shown(house.first, "router_last_run_timestamp_seconds", task="watch") == house.now.timestamp()


@pytest.mark.postgres
async def test_the_clock_is_that_of_the_database_and_not_of_the_host(house, monkeypatch):
    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=30)

    monkeypatch.setattr("chassis.clock.datetime", Ahead)
    house.first._clock = Schedule.__init__.__defaults__[0]
    await house.first.turn()
    (row,) = await house.rows(
        "select max(abs(extract(epoch from now() - ran_at))) as off from scheduled_runs"
    )
    assert row["off"] < 3600


@pytest.mark.postgres
async def test_one_process_acts_and_all_show_what_it_found(house, elsewhere, monkeypatch):
    await seed(house.database, NOW, 18)
    await seed(house.database, NOW, 2, label="fraud", source="transfer")
    begun, go_on, supervise = asyncio.Event(), asyncio.Event(), lessons.supervise

    async def slowly(*asked):
        begun.set()
        await go_on.wait()
        return await supervise(*asked)

    monkeypatch.setattr(lessons, "supervise", slowly)
    second = house.process(elsewhere)
    acting = asyncio.create_task(house.first.turn())
    await begun.wait()
    await second.turn()
    assert (house.ran("watch", second), house.ran("retrain", second)) == (0, 1)
    assert shown(second, "router_last_run_timestamp_seconds", task="watch") is None
    go_on.set()
    await acting
    await second.turn()
    assert (house.ran("watch"), house.ran("watch", second)) == (1, 0)
    assert (house.ran("retrain"), house.ran("retrain", second)) == (0, 1)
    assert shown(second, "router_drift_alarms", alarm="misrouted", window="hour") == 1
    assert len(await house.said()) == 1


@pytest.mark.postgres
async def test_what_was_stopped_halfway_is_done_by_the_next(house, elsewhere, monkeypatch):
    begun, supervise = asyncio.Event(), lessons.supervise

    async def for_ever(*_):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(lessons, "supervise", for_ever)
    stopped = asyncio.create_task(house.first.turn())
    await begun.wait()
    stopped.cancel()
    with suppress(asyncio.CancelledError):
        await stopped
    monkeypatch.setattr(lessons, "supervise", supervise)
    second = house.process(elsewhere)
    await second.turn()
    assert house.ran("watch", second) == 1


@pytest.mark.postgres
async def test_what_another_process_has_done_since_is_not_done_again(house, elsewhere, monkeypatch):
    alone, second = runs.alone, house.process(elsewhere)

    @asynccontextmanager
    async def after_the_other(*asked):
        monkeypatch.setattr(runs, "alone", alone)
        await house.first.turn()
        async with alone(*asked) as tx:
            yield tx

    monkeypatch.setattr(runs, "alone", after_the_other)
    await second.turn()
    assert (house.ran("watch"), house.ran("watch", second)) == (1, 0)


def test_rules_that_may_not_be_used_are_a_fault_of_the_configuration(tmp_path):
    (tmp_path / "rules.yaml").write_text("ruleset: [", "utf-8")
    given = LessonSettings(
        kafka_bootstrap="x", database_url="x", master_key_file=tmp_path, rules_file=tmp_path / "rules.yaml"
    )
    with pytest.raises(Misconfigured, match=r"rules\.yaml"):
        Schedule(None, None, given, LessonMetrics())


def test_the_files_are_those_of_the_router():
    for name in ("rules_file", "models"):
        assert LessonSettings.model_fields[name].default == RouterSettings.model_fields[name].default


# ------------------------------------------------------------ the process, and who is woken


@pytest.mark.kafka
async def test_the_process_starts_beside_the_stages_tells_of_itself_and_stops(world, monkeypatch):
    assert LESSONS in PROCESSES
    place = world.place()
    await asyncio.to_thread(world.start_beside, LESSONS, place)
    await world.wait_ready(stages=(LESSONS,))
    assert (await world.health(LESSONS))["part"] == "lessons"
    port = world.port_of(LESSONS)

    def metrics():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    async def both_done():
        said = await asyncio.to_thread(metrics)
        return all(f'router_last_run_failed{{task="{job}"}} 0.0' in said for job in ("watch", "retrain"))

    await eventually(both_done, what="a first run of both jobs")
    assert await asyncio.to_thread(world.stop_stages, (LESSONS,)) == []
    log = [json.loads(line) for line in (world.folder / "lessons.log").read_text().splitlines()]
    assert [line["event"] for line in log] == ["started", "run", "not_trained", "not_trained", "run"]


def test_the_alerts_of_the_router_read_what_the_process_exports():
    groups = yaml.safe_load((ROOT / "deploy/prometheus/hotline.rules.yml").read_text())["groups"]
    rules = [rule["expr"] for group in groups if group["name"] == "router" for rule in group["rules"]]
    exported = {family.name for family in LessonMetrics().registry.collect()}
    named = {name for expr in rules for name in re.findall(r"router_\w+", expr)}
    assert named == exported - {"router_restricted_departments"}
