"""Both feeds of a PBX come in through the entry: over cuts, restarts of the door, of PostgreSQL and of the PBX."""

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from heapq import merge
from itertools import repeat

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from chassis.kafka import Connection, KafkaPublisher, apply_topics, whole
from chassis.metrics import StageMetrics
from chassis.relay import Relay
from schemas import telephony
from schemas.envelope import BY_WIRE
from services.intake import contact
from services.intake.app import STAGE
from services.intake.door import switches
from services.intake.door.entry import Entry
from services.intake.door.sources import Pbx
from services.intake.door.switches import Exchange, Switches, log_feed
from services.intake.sources.asterisk import replay
from services.intake.sources.queue_log import QueueLog
from tests.conftest import eventually
from tests.intake.door import DoorRig
from tests.intake.pbx import (
    CRASH,
    CRASH_LOG,
    FLAKY,
    LOG,
    SECRET,
    STEADY,
    USER,
    FakePbx,
    Truth,
    at,
    events,
    moment,
    session,
)

SECOND = timedelta(seconds=1)
MERGES = {
    telephony.CallOffered: contact.offered,
    telephony.CallQueued: contact.queued,
    telephony.CallAnswered: contact.answered,
    telephony.QueueLeft: contact.left,
    telephony.TalkEnded: contact.talked,
    telephony.CallRefused: contact.refused,
    telephony.CallbackRequested: contact.wished,
    telephony.CallEnded: contact.ended,
}


def folded(bodies):
    """The contacts as the stage comes to know them."""
    contacts = {}
    for body in bodies:
        if isinstance(body, telephony.CallEvent):
            known = contact.seen(contacts.get(body.call_id), body)
            merge_in = MERGES.get(type(body))
            contacts[body.call_id] = merge_in(known, body) if merge_in else known
    return contacts


def stays(contacts, contact_of=None):
    """Each call's stays in order: queue, how they ended, wait, agent, talk."""
    found = defaultdict(list)
    for call_id, known in contacts.items():
        found[(contact_of or {}).get(call_id, call_id)] += [
            (one.queue, "answered" if one.answered_at else one.left, one.wait_ms, one.agent, one.talk_ms)
            for one in sorted(
                known.visits, key=lambda stay: stay.queued_at or stay.left_at or stay.talk_ended_at
            )
        ]
    return {call_id: stays for call_id, stays in found.items() if stays}


@pytest.fixture(scope="module")
def truth():
    """What queue_log says of each call, under the id that the manager feed gives it."""
    contact_of = {
        fact.body.leg_id: fact.body.call_id
        for fact in replay(STEADY, "pbx")
        if isinstance(fact.body, telephony.CallQueued)
    }
    by_log = folded(fact.body for fact in QueueLog("pbx").feed(LOG.splitlines()))
    return stays(by_log, contact_of)


class Scene:
    """A PBX that is played, its log, and a door that reads both; the door may die and come back."""

    def __init__(self, rig, pbx, folder, **source):
        self.rig, self.pbx, self.log = rig, pbx, folder / "queue_log"
        secret = folder / "secret"
        secret.write_text(f"{SECRET}\n")
        manager = {"host": "127.0.0.1", "port": pbx.port, "username": USER, "secret_file": secret}
        feeds = {**manager, "queue_log": self.log, **source}
        self.source = Pbx(name="pbx", kind="asterisk", **feeds)
        self.exchange, self._tasks = None, []
        self.gauges = CollectorRegistry()
        self._gauges = switches._Gauges(self.gauges)

    async def start(self):
        self.exchange = Exchange(self.rig.house, self.source, self._gauges, waits=lambda: repeat(0.02))
        self._tasks = [
            asyncio.create_task(self.rig.house.entry.run()),
            asyncio.create_task(self.exchange.run()),
        ]
        if self.source.host and not self.pbx.down:
            await self.pbx.ready()
        if self.log.exists():
            await eventually(self._placed, what="a place in the log")

    async def _placed(self):
        return await self.position(log_feed("pbx")) is not None

    async def die(self):
        """End as a kill would: nothing is finished, only the lease is let go so that no test waits for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.pbx.cut()

    async def play(self, steps, restart_at=()):
        """Play (moment, block | line | "connect" | "disconnect"), all as fast as it goes."""
        for number, (now, step) in enumerate(steps):
            if number in restart_at:
                await self.hear(now - 2 * SECOND)
                await eventually(self._log_read, what="the log read")
                await self.die()
                self.pbx.clock = now
                await self.start()
            match step:
                case "disconnect":
                    self.pbx.down = True
                    self.pbx.cut()
                case "connect":
                    self.pbx.clock, self.pbx.down = now, False
                    await self.pbx.ready()
                case dict():
                    self.pbx.say(step)
                    await self.pbx.drain()
                case str():
                    with self.log.open("a") as file:
                        file.write(f"{step}\n")

    async def _log_read(self):
        behind = self.exchange.condition().owed.durable_behind_ms
        return behind is not None and behind < 3000

    async def hear(self, until):
        """The door reads as it comes: what was said by then has been heard; what followed, perhaps."""

        async def heard():
            last = self.exchange.condition().last_event_at
            return last is not None and last >= until

        await eventually(heard, within=60, what=f"all until {until} heard")
        await self._kept()

    async def _kept(self):
        """What was read is on disk as soon as it is the next one's turn."""
        async with self.exchange._turn:
            pass

    async def read_through(self, last):
        """Wait until both feeds were read to their ends and nothing is late any more."""
        if self.source.host:
            self.pbx.say({"Event": "Newstate", "Timestamp": f"{(last + 20 * SECOND).timestamp():.6f}"})

        async def done():
            condition = self.exchange.condition()
            owed = condition.owed
            place = await self.position(log_feed("pbx"))
            end = place is not None and int(place.split(":")[1]) == self.log.stat().st_size
            late = owed is not None and (owed.late_in_fast.count or owed.late_in_durable.count)
            return end and not late and not condition.open_calls

        await eventually(done, within=60, what="both feeds read")
        await self._kept()

    async def position(self, feed):
        rows = await self.rig.rows("select position from feeds where feed = $1", feed)
        return rows[0]["position"] if rows else None

    async def told(self):
        """All facts, as a consumer sees them: the same id twice is once."""
        while await self.rig.relay.relay_once():
            pass
        return as_consumed(self.rig.log.records(telephony.TOPIC))


def as_consumed(records):
    found = {}
    for record in records:
        headers = dict(record.headers)
        kind = BY_WIRE[headers["ce_type"].decode()]
        found.setdefault(headers["ce_id"], kind.body.parse(record.value))
    return list(found.values())


@asynccontextmanager
async def scene(database, vault, folder, **source):
    async with FakePbx() as pbx:
        played = Scene(DoorRig(database, vault), pbx, folder, **source)
        yield played
        await played.die()


@pytest.fixture
async def stage(stage_database, vault, tmp_path):
    async with scene(stage_database, vault, tmp_path) as played:
        yield played


def of_log(text, delay=SECOND):
    return [(moment(line.split("|")[0]) + delay, line) for line in text.splitlines()]


def by_time(feed, text=LOG):
    return list(merge(feed, of_log(text), key=lambda step: step[0]))


STEADY_STEPS = [(at(event), event) for event in events(STEADY)]
LAST = STEADY_STEPS[-1][0]
ENDED = {
    fact.body.call_id: fact.body.cause
    for fact in replay(STEADY, "pbx")
    if isinstance(fact.body, telephony.CallEnded)
}


async def test_both_feeds_together_give_each_call_once_with_the_figures_of_the_log(stage, truth):
    stage.log.touch()
    stage.pbx.clock = STEADY_STEPS[0][0]
    await stage.start()
    await stage.play(by_time(STEADY_STEPS))
    await stage.read_through(LAST)
    told = await stage.told()
    contacts = folded(told)
    assert len(contacts) == 72
    assert {call_id: known.cause for call_id, known in contacts.items()} == ENDED
    assert stays(contacts) == truth
    owed = stage.exchange.condition().owed
    assert (owed.lost_in_fast.count, owed.lost_in_durable.count) == (0, 0)
    assert not [body for body in told if isinstance(body, telephony.SourceInterrupted)]


async def test_what_the_link_missed_is_told_from_the_log_and_the_gaps_are_facts(stage, truth):
    stage.pbx.truth = Truth()
    stage.pbx.down = True
    steps = by_time(session(FLAKY))
    stage.pbx.clock = steps[0][0]
    await stage.start()
    await stage.play(steps)
    await stage.pbx.reopen(LAST)
    await stage.read_through(LAST)
    told = await stage.told()
    contacts = folded(told)
    gaps = [body for body in told if isinstance(body, telephony.SourceInterrupted)]
    assert [gap.reason for gap in gaps] == ["disconnected"] * 6
    assert stays(contacts) == truth
    ended = {call_id: known.cause for call_id, known in contacts.items() if known.ended_at}
    assert ended.keys() == contacts.keys()
    differing = {call_id for call_id, cause in ended.items() if ENDED[call_id] != cause}
    assert {ended[call_id] for call_id in differing} == {"ended_during_gap"}
    assert stage.exchange.condition().owed.lost_in_durable.count == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_door_that_dies_again_and_again_tells_no_stay_twice_and_forgets_none(stage, truth, seed):
    stage.pbx.truth = Truth()
    steps = by_time(STEADY_STEPS)
    stage.pbx.clock = steps[0][0]
    stage.log.touch()
    await stage.start()
    await stage.play(steps, restart_at=range(seed * 97, len(steps), 701))
    await stage.read_through(LAST)
    contacts = folded(await stage.told())
    assert stays(contacts) == truth
    assert len([one for one in contacts.values() if one.ended_at]) == len(contacts)


async def test_a_restarted_pbx_ends_what_was_under_way_even_what_only_the_stage_knows(stage):
    steps = [(at(event), event) for event in events(CRASH)]
    back = moment(next(line for line in CRASH_LOG.splitlines() if "QUEUESTART" in line).split("|")[0])
    stage.pbx.clock, stage.pbx.booted = steps[0][0], steps[0][0] - 843 * SECOND
    forgotten = contact.Contact(call_id="forgotten", source="pbx", first_at=steps[0][0] - 3600 * SECOND)
    elsewhere = forgotten.model_copy(update={"call_id": "elsewhere", "source": "another"})
    later = forgotten.model_copy(update={"call_id": "later", "first_at": back + SECOND})
    await stage.rig.calls(forgotten, elsewhere, later)
    stage.log.touch()
    await stage.start()
    await stage.play([step for step in by_time(steps, CRASH_LOG) if step[0] <= back])
    await stage.hear(steps[-1][0])
    before = folded(await stage.told())
    stage.pbx.down = True
    stage.pbx.cut()
    stage.pbx.truth, stage.pbx.booted = None, back
    await stage.pbx.reopen(back + 2 * SECOND)
    await stage.play([step for step in of_log(CRASH_LOG) if back < step[0] <= back + SECOND])
    await stage.read_through(back)
    told = await stage.told()
    contacts = folded(told)
    cut_off = {call_id for call_id, known in before.items() if known.ended_at is None}
    assert len(cut_off) == 6
    assert {
        call_id for call_id, known in contacts.items() if known.cause == "source_restarted"
    } == cut_off | {"forgotten"}
    assert len([call_id for call_id in cut_off if contacts[call_id].answered]) == 3
    restarts = [body for body in told if isinstance(body, telephony.SourceInterrupted)]
    assert sorted(one.reason for one in restarts) == ["disconnected", "source_restarted"]


async def test_what_is_told_outlives_a_restart_of_postgresql(stage, truth, stack):
    steps = by_time(STEADY_STEPS)
    stage.log.touch()
    await stage.start()
    half = len(steps) // 2
    await stage.play(steps[:half])
    stack.postgres.stop()
    await stage.play(steps[half : half + 500])
    await asyncio.to_thread(stack.start)
    await stage.play(steps[half + 500 :])
    await stage.read_through(LAST)
    contacts = folded(await stage.told())
    assert stays(contacts) == truth
    assert {call_id: known.cause for call_id, known in contacts.items()} == ENDED
    assert stage.pbx.sessions == 1


async def test_a_log_that_is_rotated_in_between_is_read_on(stage, truth):
    steps = by_time(STEADY_STEPS)
    stage.log.touch()
    await stage.start()
    for number, start in enumerate(range(0, len(steps), 1000), 1):
        await stage.play(steps[start : start + 1000])
        stage.log.rename(stage.log.with_name(f"queue_log.{number}"))
        stage.log.touch()
    await stage.play([(LAST, f"{LAST.timestamp():.0f}|NONE|NONE|NONE|CONFIGRELOAD|")])
    await stage.read_through(LAST)
    assert stays(folded(await stage.told())) == truth
    owed = stage.exchange.condition().owed
    assert (owed.lost_in_fast.count, owed.lost_in_durable.count) == (0, 0)


async def test_a_log_that_loses_lines_is_named_and_one_that_is_behind_is_only_late(stage):
    steps = by_time(STEADY_STEPS)
    lines = [step for step in steps if isinstance(step[1], str)]
    await stage.start()
    await stage.play([step for step in steps if isinstance(step[1], dict)])
    await stage.hear(LAST)

    async def late():
        owed = stage.exchange.condition().owed
        return owed.late_in_durable.count > 150

    await eventually(late, what="lateness")
    assert stage.exchange.condition().owed.lost_in_durable.count == 0
    assert "is not there (yet)" in stage.exchange.condition().log_trouble
    lost = [step for step in lines if "|1795479586.351|" in step[1]]
    await stage.play([step for step in lines if step not in lost])
    await stage.read_through(LAST)
    owed = stage.exchange.condition().owed
    assert len(lost) == 3
    assert {(one.call_id, one.kind) for one in owed.lost_in_durable.named} == {
        ("1795479586.350", kind) for kind in ("queued", "answered", "talk_ended")
    }

    async def shown():
        gauge = 'door_pbx_owed_facts{feed="queue_log",source="pbx",state="lost"} 3.0'
        return gauge in generate_latest(stage.gauges).decode()

    await eventually(shown, what="the gauge of lost facts")


async def test_only_a_manager_link(stage_database, vault, tmp_path):
    async with scene(stage_database, vault, tmp_path, queue_log=None) as stage:
        await stage.start()
        await stage.play(STEADY_STEPS)
        await stage.hear(LAST)

        async def all_over():
            return not stage.exchange.condition().open_calls

        await eventually(all_over, what="the end of the last call")
        assert stage.exchange.condition().owed is None
        expected = folded(fact.body for fact in replay(STEADY, "pbx"))
        contacts = folded(await stage.told())
        assert stays(contacts) == stays(expected)
        assert contacts.keys() == ENDED.keys()


async def test_only_a_log_read_twice_by_two_doors_in_turn(stage_database, vault, tmp_path):
    async with scene(stage_database, vault, tmp_path, host=None) as stage:
        lines = of_log(LOG)
        stage.log.touch()
        await stage.start()
        await stage.play(lines[:100])
        await stage.read_through(LAST)
        await stage.die()
        await stage.play(lines[100:])
        await stage.start()
        await stage.read_through(LAST)
        expected = folded(fact.body for fact in QueueLog("pbx").feed(LOG.splitlines()))
        assert stays(folded(await stage.told())) == stays(expected)
        assert stage.exchange.condition().away == ""


async def test_calls_of_a_system_carry_its_name(stage_database, vault, tmp_path):
    async with scene(stage_database, vault, tmp_path, system="north") as stage:
        stage.log.touch()
        await stage.start()
        await stage.play(by_time(STEADY_STEPS)[:1500])
        await stage.hear(STEADY_STEPS[1300][0])
        calls = folded(await stage.told())
        assert len(calls) > 10
        assert all(call_id.startswith("north-1795479") for call_id in calls)


async def test_one_door_reads_and_another_takes_over_when_it_falls_silent(stage, monkeypatch):
    monkeypatch.setattr(switches, "RENEW_EVERY", 0.02)
    await stage.start()
    second = Exchange(stage.rig.house, stage.source, waits=lambda: repeat(0.02))
    waiting = asyncio.create_task(second.run())
    await stage.play(STEADY_STEPS[:500])
    await stage.hear(STEADY_STEPS[490][0])
    assert second.condition().connected_since is None
    assert stage.pbx.sessions == 1

    async def away():
        raise ConnectionError

    async def other():
        return second.condition().connected_since is not None

    with monkeypatch.context() as silent:
        silent.setattr(stage.exchange, "_lead", away)
        await stage.rig.rows(
            "update feeds set moved_at = now() - interval '1 minute' where feed = 'reader:pbx'"
        )
        await eventually(other, what="the other door's turn")

    async def hidden():
        return 'source="pbx"' not in generate_latest(stage.gauges).decode()

    await eventually(hidden, what="the first door's silence")
    assert stage.exchange.condition().connected_since is None
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


async def test_a_pbx_that_does_not_let_us_ask_ends_nobody(stage):
    stage.pbx.refused = {"QueueStatus", "CoreShowChannels"}
    stage.log.touch()
    await stage.start()
    await stage.play(STEADY_STEPS[:2000])
    await stage.hear(STEADY_STEPS[1990][0])
    open_calls = stage.exchange.condition().open_calls
    stage.pbx.cut()
    await stage.pbx.ready()
    await stage.play(STEADY_STEPS[2000:2010])
    await stage.hear(STEADY_STEPS[2009][0])
    assert stage.exchange.condition().open_calls == open_calls > 3


async def test_the_gauges_tell_how_each_pbx_stands_and_nothing_that_is_not_known(stage):
    stage.pbx.down = True
    await stage.start()

    def shown():
        return generate_latest(stage.gauges).decode()

    async def away():
        return 'door_pbx_connected{source="pbx"} 0.0' in shown()

    await eventually(away, what="the gauge of the link")
    assert "door_pbx_last_event_seconds{" not in shown()
    assert "door_pbx_behind_seconds{" not in shown()
    assert "is not a manager interface" in stage.exchange.condition().away
    await stage.pbx.reopen(STEADY_STEPS[0][0])
    await stage.play(STEADY_STEPS[:300])
    await stage.hear(STEADY_STEPS[299][0])

    async def up():
        return 'door_pbx_connected{source="pbx"} 1.0' in shown() and "door_pbx_last_event_seconds{" in shown()

    await eventually(up, what="the gauge of the link")


async def test_switches_read_each_pbx_of_the_sources_and_say_how_it_stands(stage):
    switched = Switches(stage.rig.house, {"pbx": stage.source, **stage.rig.sources})
    running = [asyncio.create_task(one) for one in (stage.rig.house.entry.run(), switched.run())]
    await stage.pbx.ready()
    await stage.play(STEADY_STEPS[:300])
    stage.exchange = switched._exchanges["pbx"]
    await stage.hear(STEADY_STEPS[299][0])
    assert switched.condition().keys() == {"pbx"}
    facts = stage.rig.house.metrics.facts.labels("pbx", "telephony.call-offered")

    async def counted():
        return facts._value.get() > 0

    await eventually(counted, what="the count of facts")
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.kafka
async def test_from_the_sockets_to_kafka_though_it_is_away_in_between(
    stage_database, vault, tmp_path, address, prefix, stack, truth
):
    kafka = Connection(address.kafka_bootstrap, f"{prefix}.")
    await apply_topics(kafka)
    publisher = KafkaPublisher(kafka, "door")
    await publisher.start()
    async with scene(stage_database, vault, tmp_path) as stage:
        relay = Relay(STAGE, stage_database, publisher, StageMetrics("door"))
        stage.rig.house.entry = Entry(stage_database, vault, relay)
        relaying = relay.run_relay()
        steps = by_time(STEADY_STEPS)
        stage.log.touch()
        await stage.start()
        third = len(steps) // 3
        await stage.play(steps[:third])
        await asyncio.to_thread(stack.kafka.stop)
        await stage.play(steps[third : 2 * third])
        await asyncio.to_thread(stack.start)
        await stage.play(steps[2 * third :])
        await stage.read_through(LAST)

        async def all_sent():
            return not await stage.rig.rows("select from unpublished")

        await eventually(all_sent, within=60, what="everything sent")
        relaying.cancel()
        await publisher.stop()
        records = [record async for record in whole(kafka, telephony.TOPIC)]
    contacts = folded(as_consumed(records))
    assert stays(contacts) == truth
    assert {call_id: known.cause for call_id, known in contacts.items()} == ENDED
