"""One stage on a real PostgreSQL with the log in memory: what a pass keeps, sends, refuses, survives."""

import asyncio
import json
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from chassis import failpoints, outbox
from chassis.batch import Pass
from chassis.memory import MemoryLog, MemorySubscription
from chassis.metrics import StageMetrics
from chassis.relay import Keep, Relay, prune
from chassis.roots import new_batch_id, new_id
from chassis.transport import SENT_AGAIN, Outgoing, Place, partition_for
from chassis.vault import Vault
from schemas.intake import RecordingRequested
from schemas.operations import LetterDied, ReceiptsGiven
from services.intake.app import STAGE
from services.intake.domain import Policy
from tests.given import (
    answered,
    call,
    ended,
    headers_of,
    looked_up,
    message,
    offered,
    record_request,
    types_on,
)

INTAKE = replace(STAGE, policy=Policy(), prepare=looked_up)


class Rig:
    """Intake, its database, its log."""

    def __init__(self, database, master_key, stage=INTAKE):
        self.database, self.log, self.stage = database, MemoryLog(), stage
        self.vault = Vault(database, master_key)
        self.metrics = StageMetrics("intake")
        self.relay = Relay(stage, database, self.log, self.metrics)
        self.life()

    def life(self):
        """A new process: nothing in memory but what the log and the database hold."""
        self.handle = Pass(self.stage, self.database, self.log, self.vault.seal_record, self.metrics)
        self.subscription = MemorySubscription(
            self.log, "intake", self.stage.inputs, self.handle, self.handle.settle
        )

    def put(self, *messages):
        return [self.log.append(item) for item in messages]

    async def keep(self, command):
        """Store a command as a door does: for the relay to send."""
        uid = new_id()
        async with self.database.transaction() as tx:
            await outbox.store(tx, new_batch_id(), [message(command, uid)], [None])
        return uid

    async def drain(self, **options):
        return await self.subscription.drain(**options)

    def is_blocked(self, place):
        labels = {"stage": "intake", "topic": place.topic, "partition": str(place.partition)}
        return self.metrics.registry.get_sample_value("pipeline_partition_blocked", labels)

    async def rows(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetch(sql, *args)

    async def outcomes(self):
        return Counter(row["outcome"] for row in await self.rows("select outcome from inbox"))

    def receipts(self):
        return {
            event_id: given.reason
            for record in self.log.records("ops.receipts")
            for given in ReceiptsGiven.parse(record.value).receipts
            for event_id in given.event_ids
        }

    def dead(self):
        return [LetterDied.parse(record.value) for record in self.log.records("intake.dead")]


@pytest.fixture
def rig(stage_database, master_key):
    return Rig(stage_database, master_key)


def a_call(name="call-1"):
    return [message(offered(name)), message(answered(name)), message(ended(name))]


async def test_a_case_is_said_once_with_its_cause_its_number_and_its_place(rig):
    request = message(record_request())
    rig.put(*a_call(), request)
    await rig.drain()
    (record,) = rig.log.records("intake.cases")
    headers = headers_of(record)
    assert headers["ce_type"] == "intake.case-recorded.v1"
    assert headers["ce_causationid"] == dict(request.headers)["ce_id"].decode()
    assert headers["ce_sequence"] == "0000000001"
    assert headers.keys().isdisjoint({"ce_handoffk", "ce_handoffn"}), "one of one goes without saying"
    body = json.loads(record.value)
    assert headers["ce_correlationid"] == body["case_id"] == record.key.decode()
    assert body["case"]["case_no"].startswith("C-20")
    assert await rig.rows("select 1 from unpublished") == []


async def test_every_input_without_an_event_gets_a_receipt(rig):
    records = rig.put(*a_call())
    await rig.drain()
    assert set(rig.receipts()) == {headers_of(record)["ce_id"] for record in records}


async def test_the_whole_log_again_changes_nothing(rig):
    rig.put(*a_call(), message(record_request()))
    await rig.drain()
    before = (
        len(rig.log.records("intake.cases")),
        await rig.rows("select key, version, document from entities"),
    )
    rig.log.committed.clear()
    rig.life()
    await rig.drain()
    after = (
        len(rig.log.records("intake.cases")),
        await rig.rows("select key, version, document from entities"),
    )
    assert before == after
    assert sum((await rig.outcomes()).values()) == 4


async def test_the_same_event_five_times_in_one_batch_counts_once(rig):
    one = message(offered())
    rig.put(*[one] * 5, *a_call()[1:])
    await rig.drain()
    assert sum((await rig.outcomes()).values()) == 3
    assert rig.dead() == []


POISON = {
    "broken json": (b'{"call_id": ', "schema"),
    "empty": (b"", "empty"),
    "tombstone": (None, "empty"),
    "null": (b"null", "schema"),
    "missing field": (b'{"call_id": "x"}', "schema"),
    "one MiB": (b'"' + b"x" * (1 << 20) + b'"', "too_large"),
    "gzip garbage": (b"\x1f\x8b\x08\x00garbage", "schema"),
    "deep": (b'{"call_id":' + b"[" * 100_000, "schema"),
    "NUL": (
        json.dumps({**call(occurred_at="2026-11-24T09:00:00Z"), "dialled": "a\u0000b"}).encode(),
        "schema",
    ),
    "NaN": (b'{"call_id":"x","source":"p","occurred_at":"2026-11-24T09:00:00Z","source_seq":NaN}', "schema"),
    "lone surrogate": (b'{"call_id":"\\ud800","source":"p","occurred_at":"2026-11-24T09:00:00Z"}', "schema"),
    "5000 digits": (
        b'{"call_id":"x","source":"p","occurred_at":"2026-11-24T09:00:00Z","source_seq":'
        + b"9" * 5000
        + b"}",
        "schema",
    ),
}


@pytest.mark.parametrize("name", POISON)
async def test_a_bad_body_is_kept_with_its_reason_and_its_neighbours_are_handled(rig, name):
    value, reason = POISON[name]
    good = message(offered("good"))
    rig.put(message(offered("before")), Outgoing(good.topic, b"good", value, good.headers), *a_call("good"))
    await rig.drain()
    (letter,) = rig.dead()
    assert letter.reason == reason
    assert await rig.outcomes() == {"noted": 4}
    (row,) = await rig.rows("select * from quarantine")
    kept = rig.vault.open_record(row["sealed"])
    from base64 import b64decode

    assert (None if kept["value"] is None else b64decode(kept["value"])) == value
    ends = {place: len(queue) for place, queue in rig.log.places.items() if place.topic == "telephony.calls"}
    assert {place: rig.log.committed[("intake", place)] for place in ends} == ends


HEADERS = {
    "not UTF-8": (
        [("ce_type", b"\xff\xfe"), ("ce_id", b"1"), ("ce_time", b"2026-11-24T09:00:00Z")],
        "headers",
    ),
    "a thousand": ([(f"h{n}", b"x") for n in range(1000)], "headers"),
    "an id that no receipt can name": (
        [
            ("ce_type", b"telephony.call-offered.v1"),
            ("ce_id", b"4" * 201),
            ("ce_source", b"/pbx/1"),
            ("ce_time", b"2026-11-24T09:00:00Z"),
        ],
        "headers",
    ),
    "structured": (
        [("content-type", b"application/cloudevents+json; charset=utf-8"), ("ce_type", b"x.y-z.v1")],
        "structured_mode",
    ),
    "no type": ([("ce_id", b"1"), ("ce_time", b"2026-11-24T09:00:00Z")], "headers"),
    "unknown type": ([("ce_type", b"telephony.call-sung.v1"), ("ce_id", b"1")], "unknown_type"),
    "newer version": ([("ce_type", b"telephony.call-offered.v9"), ("ce_id", b"1")], "unknown_type"),
    "no zone": (
        [("ce_type", b"telephony.call-offered.v1"), ("ce_id", b"1"), ("ce_time", b"2026-11-24T09:00:00")],
        "headers",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_bad_headers_are_kept_with_their_reason(rig, name):
    headers, reason = HEADERS[name]
    rig.put(Outgoing("telephony.calls", b"x", offered("x").to_bytes(), headers), message(offered("y")))
    await rig.drain()
    assert [letter.reason for letter in rig.dead()] == [reason]
    assert await rig.outcomes() == {"noted": 1}


async def test_an_unknown_field_is_ignored_and_a_foreign_id_is_accepted(rig):
    body = {**json.loads(offered().to_bytes()), "colour": "green"}
    headers = [
        ("ce_type", b"telephony.call-offered.v1"),
        ("ce_id", b"PBX/4711"),
        ("ce_source", b"/pbx/1"),
        ("ce_time", b"2026-11-24T17:00:00+08:00"),
    ]
    twice = Outgoing("telephony.calls", b"call-1", json.dumps(body).encode(), headers)
    rig.put(twice, twice)
    await rig.drain()
    assert await rig.outcomes() == {"noted": 1}
    assert rig.receipts() == {"PBX/4711": "offered"}


async def test_one_id_with_two_contents_keeps_the_first_and_shows_the_second(rig):
    uid = new_id()
    rig.put(message(offered("call-1"), uid))
    await rig.drain()
    rig.put(message(offered("call-2"), uid))
    await rig.drain()
    assert [letter.reason for letter in rig.dead()] == ["id_reuse"]
    assert [row["key"] for row in await rig.rows("select key from entities")] == ["call-1"]


async def test_a_command_before_its_call_waits_and_gets_its_verdict(rig):
    request = message(record_request())
    rig.put(request)
    await rig.drain()
    assert set(rig.receipts().values()) == {"no_such_call_yet"}
    rig.put(*a_call())
    await rig.drain()
    (record,) = rig.log.records("intake.cases")
    assert headers_of(record)["ce_causationid"] == dict(request.headers)["ce_id"].decode()
    assert await rig.rows("select 1 from parked") == []


async def test_a_command_whose_call_never_comes_is_refused(stage_database, master_key):
    rig = Rig(stage_database, master_key, replace(INTAKE, wait_at_most=timedelta(0)))
    request = message(record_request("never"))
    rig.put(request)
    await rig.drain()
    await rig.relay.fire_timers_once()
    await rig.relay.relay_once()
    await rig.drain()
    (record,) = rig.log.records("intake.cases")
    assert headers_of(record)["ce_type"] == "intake.command-refused.v1"
    assert headers_of(record)["ce_causationid"] == dict(request.headers)["ce_id"].decode()
    assert json.loads(record.value)["code"] == "unknown_case"
    assert await rig.rows("select 1 from parked") == []


async def test_a_refused_command_gets_one_verdict_also_when_asked_twice(rig):
    second = message(record_request())
    rig.put(*a_call(), message(record_request()))
    await rig.drain()
    rig.put(second, second)
    await rig.drain()
    assert types_on(rig.log, "intake.cases").count("intake.command-refused.v1") == 1


async def test_a_timer_fires_once_after_its_time_even_if_fired_twice(stage_database, master_key):
    rig = Rig(stage_database, master_key, replace(INTAKE, policy=Policy(wrap_up=timedelta(0))))
    rig.put(*a_call())
    await rig.drain()
    for _ in range(3):
        await rig.relay.fire_timers_once()
        await rig.relay.relay_once()
        await rig.drain()
        async with rig.database.session() as tx:
            await tx.execute("update entities set wake_at = now() where wake_at is not null")
    assert types_on(rig.log, "intake.cases") == ["intake.recording-overdue.v1"]


async def test_a_decision_that_raises_blocks_its_partition_only(stage_database, master_key):
    from schemas.telephony import CallAnswered

    decisions = dict(INTAKE.decisions)

    def explode(event, state, now, policy):
        if event.body.call_id == "bad":
            raise ZeroDivisionError
        return INTAKE.decisions[CallAnswered](event, state, now, policy)

    rig = Rig(stage_database, master_key, replace(INTAKE, decisions={**decisions, CallAnswered: explode}))
    names = [f"call-{n}" for n in range(12)]
    rig.put(*a_call("bad"))
    for name in names:
        rig.put(*a_call(name))
    await rig.drain()
    bad = partition_for(b"bad", 4)
    elsewhere = [name for name in names if partition_for(name.encode(), 4) != bad]
    handled = {row["key"] for row in await rig.rows("select key from entities where phase = 'ended'")}
    assert handled == set(elsewhere)
    assert rig.dead() == []
    assert rig.log.committed[("intake", Place("telephony.calls", bad))] == 1
    assert rig.is_blocked(Place("telephony.calls", bad)) == 1
    assert rig.handle.blocked(set()) == set(), "whoever got the partition says it now"
    assert rig.is_blocked(Place("telephony.calls", bad)) == 0


async def test_a_decision_that_raises_on_what_waited_blocks_the_partition_of_what_woke_it(
    stage_database, master_key
):
    decide = INTAKE.decisions[RecordingRequested]
    mended = False

    def explode(event, state, now, policy):
        if state is not None and event.body.call_id == "bad" and not mended:
            raise ZeroDivisionError
        return decide(event, state, now, policy)

    decisions = {**INTAKE.decisions, RecordingRequested: explode}
    rig = Rig(stage_database, master_key, replace(INTAKE, decisions=decisions))
    rig.put(message(record_request("bad")))
    await rig.drain()
    names = [f"call-{n}" for n in range(12)]
    for name in ("bad", *names):
        rig.put(*a_call(name))
    await rig.drain()
    bad = Place("telephony.calls", partition_for(b"bad", 4))
    handled = {row["key"] for row in await rig.rows("select key from entities where phase = 'ended'")}
    assert handled == {name for name in names if partition_for(name.encode(), 4) != bad.partition}
    assert rig.handle.blocked({bad}) == {bad}
    mended = True
    rig.subscription.unblock(bad)
    await rig.drain()
    handled = {row["key"] for row in await rig.rows("select key from entities where phase = 'ended'")}
    assert handled >= set(names)
    assert rig.handle.blocked({bad}) == set()
    assert rig.is_blocked(bad) == 0
    assert await rig.rows("select from parked") == []


async def test_what_the_database_refuses_is_found_and_the_rest_is_kept(rig):
    async with rig.database.session() as tx:
        await tx.execute("select 1")
    too_long = message(offered("x" * 200))
    rig.put(*a_call("a"), too_long, *a_call("b"))
    owner = rig.database
    rig.handle._storing = Refusing(owner, "x" * 200)
    await rig.drain()
    assert [letter.reason for letter in rig.dead()] == ["database_refused"]
    assert await rig.outcomes() == {"noted": 6}


class Refusing:
    """A database that answers one entity as PostgreSQL answers data it cannot store."""

    def __init__(self, database, key):
        self._database, self._key = database, key

    @asynccontextmanager
    async def session(self):
        async with self._database.session() as tx:
            yield RefusingTx(tx, self._key)


class RefusingTx:
    def __init__(self, tx, key):
        self._tx, self._key = tx, key
        self.fetch, self.execute = tx.fetch, tx.execute

    async def fetchval(self, sql, *args):
        if any(isinstance(arg, list) and self._key in arg for arg in args):
            await self._tx.fetchval("select 'abc\\'::bytea")
        return await self._tx.fetchval(sql, *args)


@pytest.mark.parametrize(
    "point", ["before_store", "after_store", "after_publish", "after_mark", "after_commit"]
)
async def test_a_crash_at_any_point_loses_nothing_and_says_nothing_twice(rig, point):
    rig.put(*a_call(), message(record_request()))
    failpoints.arm(point, "hang")
    dying = asyncio.create_task(rig.drain())
    await asyncio.sleep(0.3)
    dying.cancel()
    for task in (rig.handle._sending, rig.handle._acknowledging):
        if task is not None:
            task.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    rig.life()
    await rig.drain()
    ids = [headers_of(record)["ce_id"] for record in rig.log.records("intake.cases")]
    assert len(set(ids)) == 1
    assert sum((await rig.outcomes()).values()) == 4
    assert await rig.rows("select 1 from unpublished") == []


async def test_a_transient_fault_is_retried_until_it_passes(rig):
    failpoints.arm("before_store", "raise")
    rig.put(*a_call())
    await rig.drain()
    assert sum((await rig.outcomes()).values()) == 3
    assert rig.metrics.registry.get_sample_value(
        "pipeline_retries_total", {"stage": "intake", "cause": "Injected"}
    )


async def test_a_stored_command_of_a_door_reaches_the_topic_once(rig):
    command = record_request()
    uid = await rig.keep(command)
    assert await rig.relay.relay_once()
    assert not await rig.relay.relay_once()
    (record,) = rig.log.records("intake.commands")
    assert headers_of(record)["ce_id"] == str(uid)


async def test_old_rows_are_pruned_and_unsent_ones_stay(rig):
    from chassis.clock import utc_now

    rig.put(*a_call(), message(record_request()))
    await rig.drain()
    await rig.keep(record_request("unsent"))
    async with rig.database.session() as tx:
        await prune(tx, utc_now() + timedelta(days=20), Keep())
        counts = await tx.fetchrow(
            "select (select count(*) from inbox) as inbox, (select count(*) from outbox) as outbox,"
            " (select count(*) from entities) as entities"
        )
    assert (counts["inbox"], counts["outbox"], counts["entities"]) == (0, 1, 1)


async def test_a_thousand_bad_records_stop_nobody(rig):
    good = message(offered("good"))
    rig.put(*(Outgoing(good.topic, b"k%d" % n, b"{", good.headers) for n in range(1000)), *a_call("good"))
    await rig.drain()
    assert len(rig.dead()) == 1000
    assert await rig.outcomes() == {"noted": 3}


async def test_two_processes_on_the_same_inputs_have_one_effect(rig):
    rig.put(*a_call(), message(record_request()))
    other = MemorySubscription(rig.log, "intake", INTAKE.inputs, rig.handle, rig.handle.settle)
    second = Pass(INTAKE, rig.database, rig.log, rig.vault.seal_record, rig.metrics)
    other = MemorySubscription(rig.log, "intake", INTAKE.inputs, second, second.settle)
    await asyncio.gather(rig.drain(max_records=2), other.drain(max_records=2))
    ids = {headers_of(record)["ce_id"] for record in rig.log.records("intake.cases")}
    assert len(ids) == 1
    assert sum((await rig.outcomes()).values()) == 4


async def test_a_case_that_moved_after_it_was_read_is_read_and_decided_again(rig):
    reading, may_store = asyncio.Event(), asyncio.Event()

    async def dawdle(tx, events, policy):
        reading.set()
        await may_store.wait()
        return await looked_up(tx, events, policy)

    slow_stage = replace(INTAKE, prepare=dawdle)
    slow = Pass(slow_stage, rig.database, rig.log, rig.vault.seal_record, rig.metrics)
    slower = MemorySubscription(rig.log, "intake", INTAKE.inputs, slow, slow.settle)
    rig.put(*a_call(), message(record_request()))
    dawdling = asyncio.create_task(slower.drain())
    await reading.wait()
    await rig.drain()
    may_store.set()
    await dawdling
    retries = {"stage": "intake", "cause": "ConcurrentWriter"}
    assert rig.metrics.registry.get_sample_value("pipeline_retries_total", retries) == 1
    assert len({headers_of(record)["ce_id"] for record in rig.log.records("intake.cases")}) == 1
    assert sum((await rig.outcomes()).values()) == 4


def again(item):
    return item._replace(headers=[*item.headers, (SENT_AGAIN, b"1")])


async def test_what_an_operator_sends_again_is_said_again_under_the_same_ids_and_changes_nothing(rig):
    request = message(record_request())
    rig.put(*a_call())
    await rig.drain()
    rig.put(request)
    await rig.drain()
    (first,) = rig.log.records("intake.cases")
    rig.put(again(request))
    rig.put(again(request))
    await rig.drain()
    said = rig.log.records("intake.cases")
    assert {headers_of(record)["ce_id"] for record in said} == {headers_of(first)["ce_id"]}
    assert len(said) >= 2
    assert (await rig.outcomes())["caused"] == 1
    assert await rig.rows("select 1 from unpublished") == []


async def test_a_receipt_that_was_lost_is_given_again(rig):
    call = message(offered())
    rig.put(call)
    await rig.drain()
    rig.log.places = {
        place: [] if place.topic == "ops.receipts" else kept for place, kept in rig.log.places.items()
    }
    rig.log.places = defaultdict(list, rig.log.places)
    rig.put(again(call))
    await rig.drain()
    assert dict(call.headers)["ce_id"].decode() in rig.receipts()


async def test_a_dead_input_that_is_sent_again_is_decided_anew(rig):
    call = message(offered())
    rig.put(call)
    await rig.drain()
    async with rig.database.session() as tx:
        await tx.execute("update inbox set outcome = 'dead:because'")
    rig.put(again(call))
    await rig.drain()
    assert await rig.outcomes() == Counter({"ignored:offered": 1}) or (await rig.outcomes())["noted"] == 1


async def test_a_test_can_make_a_stage_lose_and_knows_what_it_lost(rig, monkeypatch, tmp_path):
    monkeypatch.setenv("HOTLINE_LOSSES", str(tmp_path / "losses"))
    monkeypatch.setattr(failpoints, "ARMED", {"lose_input": "first:1", "lose_output": "every:1"})
    monkeypatch.setattr(failpoints, "_counted", {})
    ring, request = message(offered()), message(record_request())
    rig.put(ring)
    await rig.drain()
    rig.put(message(answered()), message(ended()))
    await rig.drain()
    rig.put(request)
    await rig.drain()
    lost = dict(line.split() for line in (tmp_path / "losses").read_text().splitlines())
    ids = {"input": ring, "output": request}
    assert lost == {kind: dict(item.headers)["ce_id"].decode() for kind, item in ids.items()}
    assert rig.log.records("intake.cases") == []
    assert lost["input"] not in rig.receipts()
