"""What comes in is on disk before it is acknowledged, once, numbered without a gap, sealed."""

import asyncio
from datetime import timedelta

import pytest

from chassis.faults import Transient
from chassis.memory import MemoryLog
from chassis.metrics import StageMetrics
from chassis.relay import Relay
from chassis.roots import new_id
from schemas import intake, telephony
from services.intake.app import STAGE
from services.intake.door import ledger
from services.intake.door.entry import FEED, MOST_WAITING, Busy, Delivery, Entry, Position, fact_id
from services.intake.sources.canonical import Mapped
from tests.given import NOW, call, headers_of

PHONE = "+8613800138000"


@pytest.fixture
async def door(stage_database, vault):
    log = MemoryLog()
    relay = Relay(STAGE, stage_database, log, StageMetrics("door"))
    entry = Entry(stage_database, vault, relay)
    running = asyncio.create_task(entry.run())
    yield entry, relay, log, stage_database
    running.cancel()


def fact(key="k-1", phone=PHONE, **more):
    return Mapped(key, telephony.CallOffered(**{**call(), **more}), phone)


async def sent(relay, log, topic="telephony.calls"):
    while await relay.relay_once():
        pass
    return log.records(topic)


async def test_a_fact_is_sealed_numbered_and_named_the_same_whoever_reads_it(door, vault):
    entry, relay, log, _ = door
    assert await entry.facts([fact()]) == "kept"
    (record,) = await sent(relay, log)
    headers = headers_of(record)
    assert headers["ce_id"] == str(fact_id(fact()))
    assert (headers["ce_sequence"], headers["ce_sequenceof"]) == ("0000000001", FEED)
    assert PHONE[1:].encode() not in record.value
    body = telephony.CallOffered.parse(record.value)
    assert vault.open(body.customer_ref, body.caller) == PHONE
    assert body.customer_ref == vault.customer_ref(PHONE)


async def test_the_same_delivery_again_is_a_duplicate_and_other_content_a_conflict(door):
    entry, relay, log, _ = door
    first = Delivery.of("twilio", "d-1", b"content")
    assert await entry.facts([fact()], first) == "kept"
    assert await entry.facts([fact()], first) == "duplicate"
    assert await entry.facts([fact("other")], Delivery.of("twilio", "d-1", b"changed")) == "conflict"
    assert await entry.facts([fact("k-2")], Delivery.of("connect", "d-1", b"other source")) == "kept"
    assert len(await sent(relay, log)) == 2


async def test_a_hundred_at_once_of_one_delivery_keep_it_once(door):
    entry, relay, log, _ = door
    delivery = Delivery.of("twilio", "d-1", b"content")
    verdicts = await asyncio.gather(*(entry.facts([fact()], delivery) for _ in range(100)))
    assert sorted(verdicts) == ["duplicate"] * 99 + ["kept"]
    assert len(await sent(relay, log)) == 1


async def test_numbers_have_no_gap_and_the_manifest_waits_until_all_is_sent(door):
    entry, relay, log, database = door
    await asyncio.gather(*(entry.facts([fact(f"k-{n}"), fact(f"l-{n}")]) for n in range(40)))
    async with database.session() as tx:
        assert await ledger.declarable(tx, FEED) is None
        records = await sent(relay, log)
        numbers = sorted(int(headers_of(record)["ce_sequence"]) for record in records)
        assert numbers == list(range(1, 81))
        assert await ledger.declarable(tx, FEED) == (1, 80)
        await ledger.declared(tx, FEED, 80)
        assert await ledger.declarable(tx, FEED) is None


async def test_a_position_is_kept_with_what_was_read(door):
    entry, _, _, database = door
    await entry.facts([fact()], position=Position("queue_log:pbx", "77:4096"))
    async with database.session() as tx:
        assert await ledger.position(tx, "queue_log:pbx") == "77:4096"
        assert await ledger.position(tx, "another") is None


async def test_a_command_keeps_its_own_id(door):
    entry, relay, log, _ = door
    command_id = new_id()
    await entry.command(command_id, intake.ClosingRequested(call_id="call-1", agent="a", reason="spam"))
    (record,) = await sent(relay, log, "intake.commands")
    assert headers_of(record)["ce_id"] == str(command_id)
    assert "ce_sequence" not in headers_of(record)


async def test_too_much_at_once_is_refused_with_a_reason_and_nothing_waits_for_ever(stage_database, vault):
    relay = Relay(STAGE, stage_database, MemoryLog(), StageMetrics("door"))
    entry = Entry(stage_database, vault, relay)
    waiting = [asyncio.create_task(entry.facts([fact(f"k-{n}", None)])) for n in range(MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="send this one again"):
        await entry.facts([fact("one too many")])
    running = asyncio.create_task(entry.run())
    assert set(await asyncio.gather(*waiting)) == {"kept"}
    running.cancel()


async def test_a_failed_transaction_acknowledges_nothing_and_draws_no_number(door, monkeypatch):
    entry, relay, log, _ = door

    async def away(*_):
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr("chassis.outbox.store", away)
        with pytest.raises(Transient, match="could not be kept"):
            await entry.facts([fact()], Delivery.of("s", "d", b""))
    assert await entry.facts([fact()], Delivery.of("s", "d", b"")) == "kept"
    (record,) = await sent(relay, log)
    assert headers_of(record)["ce_sequence"] == "0000000001"


def test_ids_of_facts_differ_by_key_and_time_only():
    later = fact(occurred_at=NOW + timedelta(seconds=1))
    assert fact_id(fact()) == fact_id(fact(phone=None, dialled="95000"))
    assert len({fact_id(fact()), fact_id(fact("k-2")), fact_id(later)}) == 3


async def test_a_customer_who_was_unknown_or_erased_gets_a_key_when_one_is_wanted(vault):
    ref = vault.customer_ref(PHONE)
    await vault.ready([ref])
    await vault.ready([ref], create=True)
    assert vault.open(ref, vault.seal(ref, "before")) == "before"
    await vault.erase(ref)
    await vault.ready([ref], create=True)
    assert vault.open(ref, vault.seal(ref, "after")) == "after"


async def test_another_number_to_call_back_names_whose_key_opens_it(door, vault):
    entry, relay, log, _ = door
    wish = telephony.CallbackRequested(**call(), queue="cards")
    await entry.facts([Mapped("k", wish, "138 0013 8001")])
    (record,) = await sent(relay, log)
    body = telephony.CallbackRequested.parse(record.value)
    assert vault.open(body.customer_ref, body.number) == "+8613800138001"
