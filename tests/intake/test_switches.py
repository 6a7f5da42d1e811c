"""Both feeds of a PBX come in through the entry: over cuts, restarts of the door, of PostgreSQL and of the PBX."""

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from datetime import timedelta
from heapq import merge
from itertools import repeat

import pytest

from schemas import telephony
from schemas.envelope import BY_WIRE
from services.intake import contact
from services.intake.door.sources import Pbx
from services.intake.door.switches import Exchange, log_feed
from services.intake.sources.asterisk import replay
from services.intake.sources.queue_log import QueueLog
from tests.conftest import eventually
from tests.intake.door import DoorRig
from tests.intake.pbx import (
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
            for one in sorted(known.visits, key=lambda stay: stay.queued_at)
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

    async def start(self):
        self.exchange = Exchange(self.rig.house, self.source, waits=lambda: repeat(0.02))
        self._tasks = [
            asyncio.create_task(self.rig.house.entry.run()),
            asyncio.create_task(self.exchange.run()),
        ]
        if self.source.host and not self.pbx.down:
            await self.pbx.ready()

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

        await eventually(done, what="both feeds read")

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
