"""What comes in is on disk before it is acknowledged, once, numbered without a gap, sealed."""

import asyncio
from datetime import timedelta

import pytest

from chassis.clock import utc_now
from chassis.faults import Transient
from chassis.memory import MemoryLog
from chassis.metrics import StageMetrics
from chassis.relay import Relay
from chassis.roots import new_id
from chassis.vault import Vault
from schemas import intake, telephony
from services.intake.app import STAGE
from services.intake.door import ledger
from services.intake.door.entry import FEED, MOST_WAITING, Busy, Delivery, Entry, Position, fact_id, sealed
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


async def test_of_two_contents_under_one_name_the_one_that_was_kept_is_the_one_that_is_known(door):
    entry, _, _, _ = door
    contents = (b"first", b"second")

    def deliver(content):
        names = [Delivery.of("twilio", f"d-{n}", content) for n in range(60)]
        return [entry.facts([fact(f"{name.name}-{content}", None)], name) for name in names]

    verdicts = await asyncio.gather(*deliver(contents[0]), *deliver(contents[1]))
    assert verdicts == ["kept"] * 60 + ["conflict"] * 60
    assert set(await asyncio.gather(*deliver(contents[0]))) == {"duplicate"}
    assert set(await asyncio.gather(*deliver(contents[1]))) == {"conflict"}


async def test_one_that_cannot_be_kept_does_not_take_its_neighbours_along(door):
    entry, relay, log, _ = door
    timeless = Mapped("t", telephony.ManifestPublished(
        source="s", from_seq=1, to_seq=1, count=1, period_from=NOW, period_to=NOW
    ))  # fmt: skip
    verdicts = await asyncio.gather(
        *(entry.facts([fact(f"k-{n}") if n != 7 else timeless]) for n in range(20)), return_exceptions=True
    )
    assert isinstance(verdicts.pop(7), Transient)
    assert set(verdicts) == {"kept"}
    assert sorted(int(headers_of(record)["ce_sequence"]) for record in await sent(relay, log)) == list(
        range(1, 20)
    )


async def test_numbers_have_no_gap_and_the_manifest_waits_until_all_is_sent(door):
    entry, relay, log, database = door
    await asyncio.gather(*(entry.facts([fact(f"k-{n}"), fact(f"l-{n}")]) for n in range(40)))
    async with database.session() as tx:
        assert await ledger.published(tx, FEED) == 80
        assert await ledger.declarable(tx, FEED, 80, utc_now() + timedelta(minutes=1)) is None
        records = await sent(relay, log)
        numbers = sorted(int(headers_of(record)["ce_sequence"]) for record in records)
        assert numbers == list(range(1, 81))
        assert await ledger.declarable(tx, FEED, 80, utc_now() + timedelta(minutes=1)) == (1, 80)
        await ledger.declared(tx, FEED, 80)
        assert await ledger.declarable(tx, FEED, 80, utc_now() + timedelta(minutes=1)) is None


async def test_what_is_sent_is_declared_although_there_is_always_something_new(door):
    entry, relay, log, database = door
    await entry.facts([fact("k-1")])
    await sent(relay, log)
    await entry.facts([fact("k-2")])
    now = utc_now()
    async with database.session() as tx:
        assert await ledger.declarable(tx, FEED, 1, now - timedelta(minutes=1)) == (1, 1)
        assert await ledger.declarable(tx, FEED, 2, now + timedelta(minutes=1)) is None


async def test_old_deliveries_go_a_little_at_a_time_until_none_is_left(door):
    _, _, _, database = door
    async with database.session() as tx:
        await tx.execute(
            "insert into deliveries select 's', n::text, ''::bytea, now() - interval '16 days'"
            " from generate_series(1, 5) n"
        )
        keep = timedelta(days=15)
        more = [await ledger.prune(tx, keep, keep, limit=2) for _ in range(3)]
        assert more == [True, True, False]
        assert await tx.fetchval("select count(*) from deliveries") == 0


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


async def test_keys_that_are_asked_for_are_there_however_many_others_come(vault, master_key):
    small = Vault(vault._database, master_key, keys=2)
    await small.ready(["a"], create=True)
    await small.ready(["b"], create=True)
    await small.ready(["a", "c"], create=True)
    assert [small.open(ref, small.seal(ref, "x")) for ref in ("a", "c")] == ["x", "x"]
    await small.ready(["d", "e", "f"], create=True)
    assert [small.open(ref, small.seal(ref, "x")) for ref in ("d", "e", "f")] == ["x"] * 3
    await small.ready(["g"], create=True)
    assert len(small._keys) == 2


async def test_another_number_to_call_back_names_whose_key_opens_it(door, vault):
    entry, relay, log, _ = door
    wish = telephony.CallbackRequested(**call(), queue="cards")
    await entry.facts([Mapped("k", wish, "138 0013 8001")])
    (record,) = await sent(relay, log)
    body = telephony.CallbackRequested.parse(record.value)
    assert vault.open(body.customer_ref, body.number) == "+8613800138001"


@pytest.mark.parametrize(("to", "kind", "kept"), [
    ("13800138000", "external", "138****8000"),
    ("9013800138000", "external", "****00"),
    ("sip:13800138000@trunk", "unknown", "138****8000"),
    ("8001", "unknown", "8001"),
    ("95588", "external", "95588"),
    ("", "unknown", ""),
    ("12345678", "queue", "12345678"),
])  # fmt: skip
def test_where_a_caller_is_passed_on_to_is_no_number_in_clear(vault, to, kind, kept):
    body = telephony.CallTransferred(**call(), mode="blind", to=to, to_kind=kind)
    assert sealed(Mapped("k", body), None).to == kept
