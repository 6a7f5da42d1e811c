"""The observer on a real Kafka and a real PostgreSQL, with groups that a test lets answer, commit or forget."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete

from chassis.clock import epoch_ms, utc_now
from chassis.following import Follower
from chassis.kafka import Offsets, check_topics, whole
from chassis.message import Writer, time_header
from chassis.postgres import migrate
from chassis.roots import new_id
from chassis.transport import Outgoing, Place, partition_for
from cli import canary, evidence, ledger, mend
from observer import actions, store
from observer.app import Observer, Superseded
from observer.contract import contract_of
from observer.deferred import Acts
from observer.headers import Said
from observer.lag import Word
from observer.ledger import Ledger
from schemas.feedback import CaseClosed
from schemas.operations import CanarySung, LetterDied, Receipts, ReceiptsGiven, WatermarkPassed
from schemas.telephony import ManifestPublished
from schemas.topics import BY_NAME

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

RECORDED, ROUTED, DELIVERED = "intake.case-recorded.v1", "router.case-routed.v1", "resolver.case-delivered.v1"
ENDED, OVERDUE = "telephony.call-ended.v1", "intake.recording-overdue.v1"


async def test_a_loss_on_purpose_is_named_to_whoever_asks_and_counts_nowhere(bench):
    async with bench.observer() as observer:
        await bench.until(observer, lambda: _sees(bench))
        watching = asyncio.create_task(bench.watch(observer, 60))
        try:
            sung = await canary.sing(bench.where, within=15)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    assert sung.flagged
    assert 0 < sung.as_json()["detection_s"] < 10
    async with ledger.session(bench.where) as tx:
        assert (await ledger.overview(tx)).lost == 0
        assert await ledger.listed(tx, [*ledger.KNOWN]) == []


async def _sees(bench):
    async with ledger.session(bench.where) as tx:
        return not (await ledger.overview(tx)).blind


async def test_what_was_committed_without_an_answer_is_dropped_with_its_evidence(bench):
    answered = await bench.say("intake.cases", RECORDED)
    await bench.say("router.cases", ROUTED, cause=answered)
    dropped = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("discharged", answered))
        await bench.until(observer, bench.is_("open", dropped))
        await bench.commit_all("router", "intake.cases")
        await bench.until(observer, bench.is_("dropped", dropped))
    async with ledger.session(bench.where) as tx:
        (handoff,) = await ledger.find(tx, dropped)
        (verdict,) = await ledger.verdicts_of(tx, handoff)
        assert (await ledger.overview(tx)).lost == 1
    assert verdict["committed"] > handoff["offset"]
    assert {mark["topic"] for mark in verdict["barrier"]} >= {"router.cases", "ops.receipts", "router.dead"}
    assert all(mark["read"] >= mark["end"] for mark in verdict["barrier"])
    assert await evidence.check_again(bench.where, handoff) == []
    assert any(dropped in line for line in evidence.by_hand(bench.where, handoff, verdict))


async def test_what_is_not_committed_is_late_however_long_and_never_dropped(bench):
    late = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.watch(observer, 2.5)
    async with ledger.session(bench.where) as tx:
        (handoff,) = await ledger.listed(tx, ["late"])
        seen = await ledger.overview(tx)
    assert (handoff["event_id"], handoff["state"]) == (late, "late")
    assert seen.lost == 0
    assert seen.document["edges"]["intake.case-recorded→router"]["oldest_s"] >= 1


async def test_receipts_and_dead_letters_answer_too(bench):
    closed, dead = (
        await bench.say("intake.cases", RECORDED),
        await bench.say("intake.cases", RECORDED, key="case-2"),
    )
    given = Receipts(outcome="ignored", reason="informative", event_ids=(closed,))
    await bench.say_body(ReceiptsGiven(group="router", receipts=(given,)), "router")
    letter = LetterDied(
        group="router",
        event_key="case-2",
        topic="intake.cases",
        partition=0,
        offset=0,
        reason="schema",
        explanation="case: missing",
        quarantine_id=new_id(),
        first_seen=utc_now(),
    )
    writer = Writer("router")
    await bench.publisher.publish(
        [writer.write(letter, uid=new_id(), at=time_header(utc_now()), correlation="-", cause=dead)]
    )
    await bench.commit_all("router", "intake.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("closed", closed))
        await bench.until(observer, bench.is_("dead lettered", dead))


async def test_one_lost_of_two_outputs_is_partial_and_says_which(bench):
    routed = await bench.say("router.cases", ROUTED)
    await bench.say("resolver.cases", DELIVERED, cause=routed, part=(1, 2))
    await bench.commit_all("resolver", "router.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("partial", routed, "resolver"))
        async with ledger.session(bench.where) as tx:
            (handoff,) = await ledger.listed(tx, ["partial"])
        assert handoff["missing"] == [2]
        await bench.say(
            "departments.cards", "resolver.case-assigned.v1", source="resolver", cause=routed, part=(2, 2)
        )
        await bench.until(observer, bench.is_("recovered", routed, "resolver"))
        assert observer.ledger.after_commit["resolver"] == 1


async def test_a_copy_of_what_is_stored_neither_opens_it_again_nor_holds_up_what_comes_with_it(bench):
    event = await bench.say("intake.cases", RECORDED)
    await bench.say("router.cases", ROUTED, cause=event)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("discharged", event))
    copy, fresh = (
        await bench.say("intake.cases", RECORDED, uid=event),
        await bench.say("intake.cases", RECORDED),
    )
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("open", fresh))
        assert await bench.state(copy) == "discharged"
        await bench.commit_all("router", "intake.cases")
        await bench.until(observer, bench.is_("dropped", fresh))
        assert await bench.state(copy) == "discharged"


async def test_half_an_answer_that_is_stored_before_its_cause_grows_by_the_other_half(bench):
    def said(uid, wire, by, cause=b"", part=1, total=1):
        return Said(part, 1, uid, wire.encode(), by, cause, part, total, 0, b"case-1", b"")

    async with bench.observer() as observer:
        for part in (1, 2):
            half = said(b"answer", DELIVERED, b"/hotline/resolver", b"cause", part, 2)
            observer.ledger.take(Place("resolver.cases", 0), half)
            await observer._store([], 1)
    async with bench.observer() as observer:
        observer.ledger.take(Place("router.cases", 0), said(b"cause", ROUTED, b"/hotline/router"))
        await observer._store([], 1)
    assert await bench.state("cause", "resolver") == "discharged"


async def test_an_answer_in_an_open_transaction_is_waited_for(bench):
    event = await bench.say("intake.cases", RECORDED)
    producer = AIOKafkaProducer(bootstrap_servers=bench.kafka.bootstrap, transactional_id=f"tx-{event}")
    await producer.start()
    try:
        await producer.begin_transaction()
        headers = [("ce_id", b"answer"), ("ce_type", ROUTED.encode()), ("ce_source", b"/hotline/router")]
        headers += [("ce_causationid", event.encode()), ("ce_handoffk", b"1"), ("ce_handoffn", b"1")]
        await producer.send_and_wait(f"{bench.kafka.prefix}router.cases", b"{}", key=b"k", headers=headers)
        await bench.commit_all("router", "intake.cases")
        async with bench.observer() as observer:
            await bench.until(observer, _shown(observer, "router.cases", "open_txn"))
            assert observer.metrics.audit_blocked.labels("router.cases", "reading")._value.get() == 0
            assert observer.metrics.audit_blocked.labels("router.dead", "reading")._value.get() == 0
            assert await bench.state(event) == "open"
            await producer.commit_transaction()
            await bench.until(observer, bench.is_("discharged", event))
            await bench.until(observer, _shown(observer, "router.cases", "open_txn", is_=False))
    finally:
        await producer.stop()


def _shown(observer, topic, reason, *, is_=True):
    """Whether verdicts are shown to wait for a topic, for that reason."""

    async def holds():
        labels = {"topic": topic, "reason": reason}
        value = observer.metrics.registry.get_sample_value("handoff_audit_blocked_seconds", labels)
        return bool(value) is is_

    return holds


async def test_a_partition_without_a_leader_holds_up_only_who_answers_there(bench, monkeypatch):
    gone = set()
    monkeypatch.setattr(Offsets, "_is_leaderless", lambda _, place: place.topic in gone)
    waits = await bench.say("intake.cases", RECORDED)
    lost = await bench.say("resolver.cases", "resolver.case-resolved.v1")
    await bench.commit_all("router", "intake.cases")
    await bench.commit_all("feedback", "resolver.cases")
    gone.add("router.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("dropped", lost, "feedback"))
        await bench.until(observer, _shown(observer, "router.cases", "no_leader"))
        assert await bench.state(waits) == "open"
        words = {lag.word for lag in observer._lags if lag.place.topic == "router.cases"}
        assert words == {Word.NO_LEADER}
        gone.clear()
        await bench.until(observer, bench.is_("dropped", waits))
        await bench.until(observer, _shown(observer, "router.cases", "no_leader", is_=False))


async def test_an_aborted_answer_is_none_and_its_marker_does_not_stop_the_proof(bench):
    event = await bench.say("intake.cases", RECORDED)
    producer = AIOKafkaProducer(bootstrap_servers=bench.kafka.bootstrap, transactional_id=f"tx-{event}")
    await producer.start()
    try:
        await producer.begin_transaction()
        headers = [
            ("ce_id", b"answer"),
            ("ce_source", b"/hotline/router"),
            ("ce_causationid", event.encode()),
        ]
        await producer.send_and_wait(f"{bench.kafka.prefix}router.cases", b"{}", key=b"k", headers=headers)
        await producer.abort_transaction()
    finally:
        await producer.stop()
    await bench.commit_all("router", "intake.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("dropped", event))


async def test_an_answer_on_a_partition_that_has_just_appeared_is_found(bench):
    event = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.watch(observer, 0.5)
        admin = AIOKafkaAdminClient(bootstrap_servers=bench.kafka.bootstrap)
        await admin.start()
        topic = f"{bench.kafka.prefix}router.cases"
        await admin.create_partitions({topic: NewPartitions(7)})
        await admin.close()
        producer = AIOKafkaProducer(bootstrap_servers=bench.kafka.bootstrap)
        await producer.start()
        headers = [
            ("ce_id", b"answer"),
            ("ce_source", b"/hotline/router"),
            ("ce_causationid", event.encode()),
        ]
        for _ in range(50):
            try:
                await producer.send_and_wait(topic, b"{}", partition=6, headers=headers)
                break
            except (AssertionError, ValueError):
                await asyncio.sleep(0.1)
                await producer.client.force_metadata_update()
        await producer.stop()
        await bench.commit_all("router", "intake.cases")
        await bench.until(observer, bench.is_("discharged", event))
        await bench.watch(observer, 0.5)
    async with ledger.session(bench.where) as tx:
        assert (await ledger.overview(tx)).lost == 0


async def test_an_observer_without_memory_of_a_log_that_was_cut_claims_nothing_about_its_beginning(bench):
    for _ in range(3):
        await bench.say("intake.cases", RECORDED, number=1)
    await _delete(bench, Place("intake.cases", _partition()), 2)
    async with bench.observer() as observer:
        await bench.watch(observer, 1.2)
        assert not observer._sequences.from_the_beginning
        async with ledger.session(bench.where) as tx:
            seen = await ledger.overview(tx)
        assert (seen.lost, seen.blind, seen.document["blind_ranges"]) == (0, "", [])


def _partition() -> int:
    return partition_for(b"case-1", 4)


async def test_answers_in_records_that_are_gone_leave_handoffs_unprovable(bench):
    event = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("open", event))
    await bench.say("router.cases", ROUTED, cause=event)
    await _delete(bench, Place("router.cases", _partition()), 1)
    await bench.commit_all("router", "intake.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("unprovable", event))
        await bench.watch(observer, 1.2)
        async with ledger.session(bench.where) as tx:
            seen = await ledger.overview(tx)
        assert seen.lost == 0
        assert seen.blind == "records were deleted before they were read: router.cases"
        (gone,) = seen.as_json()["blind_ranges"]
        assert (gone["topic"], gone["from"], gone["to"], gone["reason"]) == (
            "router.cases",
            0,
            1,
            "retention",
        )
        shown = {"topic": "router.cases"}
        assert observer.metrics.registry.get_sample_value("handoff_audit_blind_records", shown) == 1


async def test_what_is_kept_shorter_or_compacted_is_taken_as_it_is(bench):
    await _alter(bench, "intake.cases", {"retention.ms": "3600000"})
    await _alter(bench, "router.cases", {"cleanup.policy": "compact"})
    event = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.watch(observer, 1.2)
        (lag,) = [lag for lag in observer._lags if lag.group == "router" and lag.records]
        assert 3_500_000 < lag.retention_headroom_ms <= 3_600_000
        await bench.commit_all("router", "intake.cases")
        await bench.until(observer, bench.is_("unprovable", event))
        await bench.until(observer, _shown(observer, "router.cases", "compacted"))
        async with ledger.session(bench.where) as tx:
            seen = await ledger.overview(tx)
    assert seen.blind == "compacted, so that silence proves nothing: router.cases"


async def test_where_a_limit_by_size_may_delete_no_time_is_claimed_and_the_check_names_it(bench):
    await _alter(bench, "intake.cases", {"retention.bytes": "1000000"})
    await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.watch(observer, 1.2)
        (lag,) = [lag for lag in observer._lags if lag.group == "router" and lag.records]
        assert lag.retention_headroom_ms is None
        limited = observer.metrics.registry.get_sample_value(
            "pipeline_retention_limited_by_size", {"topic": "intake.cases"}
        )
    assert limited == 1
    async with ledger.session(bench.where) as tx:
        document = (await ledger.overview(tx)).document
    assert document["kept_by_size"] == ["intake.cases"]
    assert {row["topic"] for row in document["lag"] if row["kept_by_size"]} == {"intake.cases"}
    (fault,) = await check_topics(bench.kafka)
    assert fault.startswith("topic intake.cases: retention.bytes is '1000000', declared '-1'")


async def _alter(bench, topic, settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.kafka.bootstrap)
    await admin.start()
    try:
        kept = {**BY_NAME[topic].settings, **settings}
        name = bench.kafka.prefix + topic
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=kept)])
    finally:
        await admin.close()


@pytest.mark.parametrize("remembers", [True, False])
async def test_what_was_said_before_answers_were_deleted_unread_is_never_called_lost(bench, remembers):
    if remembers:
        async with bench.observer() as observer:
            await observer.cycle()
    event = await bench.say("intake.cases", RECORDED)
    await bench.say("router.cases", ROUTED, cause=event)
    await _delete(bench, Place("router.cases", _partition()), 1)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("open", event))
    await bench.commit_all("router", "intake.cases")
    later = await bench.say("intake.cases", RECORDED, key="later")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("unprovable", event))
        await bench.commit_all("router", "intake.cases")
        await bench.until(observer, bench.is_("dropped", later))


async def test_what_retention_deleted_unread_is_expired_and_what_the_observer_missed_is_blind(bench):
    unread = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("open", unread))
        place = next(handoff.place for handoff in observer.ledger._groups["router"].open.values())
        await _delete(bench, place, 1)
        await bench.until(observer, bench.is_("expired unread", unread))
    for _ in range(3):
        await bench.say("intake.cases", RECORDED)
    await _delete(bench, place, 3)

    async def blind():
        async with ledger.session(bench.where) as tx:
            return await tx.fetch("select topic, from_offset, to_offset from blind")

    async with bench.observer() as observer:
        ranges = await bench.until(observer, blind)
    assert [tuple(row) for row in ranges] == [("intake.cases", 1, 3)]


async def _delete(bench, place, before) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.kafka.bootstrap)
    await admin.start()
    try:
        tp = TopicPartition(bench.kafka.prefix + place.topic, place.partition)
        await admin.delete_records({tp: RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


async def test_a_second_observer_takes_over_and_the_first_stops(bench):
    async with bench.observer() as first:
        await first.cycle()
        async with bench.observer() as second:
            await second.cycle()
            await bench.say("intake.cases", RECORDED)
            with pytest.raises(Superseded):
                await bench.watch(first, 3)


async def test_a_killed_observer_goes_on_with_the_same_verdicts_as_one_that_was_never_killed(
    bench, address, prefix
):
    other = type(bench)(address, bench.kafka, f"{prefix}_calm_", bench.settings.master_key_file.parent)
    await migrate(other.where.database_url, f"{other.where.database_prefix}observer", ["observer"])
    expected = {}
    async with other.observer() as calm:
        victim = Observer(bench.settings)
        await victim.start()
        for round_ in range(8):
            for case in range(6):
                key = f"case-{round_}-{case}"
                event = await bench.say("intake.cases", RECORDED, key=key, number=1)
                if case != 3:
                    await bench.say("router.cases", ROUTED, cause=event, key=key, number=1)
                expected[event, "router"] = "dropped" if case == 3 else "discharged"
            if round_ % 2:
                await bench.commit_all("router", "intake.cases")
            await victim.cycle()
            await calm.cycle()
            # Killed: nothing is closed in order, nothing more is written.
            await victim.close()
            victim = Observer(bench.settings)
            await victim.start()
        await bench.watch(victim, 1.5)
        await bench.watch(calm, 1.5)
        await victim.close()
    states = {who: state for who, state in (await bench.states()).items() if who[1] == "router"}
    assert states == expected
    assert await _verdicts(bench) == await _verdicts(other)
    await other.publisher.stop()


async def _verdicts(bench):
    async with ledger.session(bench.where) as tx:
        rows = await tx.fetch("select key, grp, state, topic, partition, record_offset from verdicts")
    return sorted(tuple(row) for row in rows)


async def test_whatever_is_on_a_topic_stops_nobody(bench):
    garbage = [
        Outgoing("intake.cases", b"k", b"{", [("ce_type", RECORDED.encode()), ("ce_id", b"\xff\x00")]),
        Outgoing("intake.cases", b"k", None, []),
        Outgoing("ops.receipts", b"k", b"not json", [("ce_type", b"ops.receipts-given.v1")]),
        Outgoing("ops.watermarks", b"k", b"{}", [("ce_type", b"ops.watermark-passed.v1")]),
        Outgoing("router.dead", b"k", b"[]", [("ce_type", b"ops.letter-died.v1")]),
        Outgoing("router.cases", b"k", b"", [("ce_source", b"/hotline/router"), ("ce_causationid", b"\x00")]),
        Outgoing("router.cases", b"k", b"", [("ce_sequence", b"9" * 40), ("ce_source", b"/hotline/router")]),
    ]
    await bench.publisher.publish(garbage)
    event = await bench.say("intake.cases", RECORDED)
    await bench.commit_all("router", "intake.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("dropped", event))


async def test_a_number_that_never_comes_is_a_gap_and_one_on_another_topic_is_none(bench):
    causes = [await bench.say("router.cases", ROUTED) for _ in range(3)]
    await bench.say("resolver.cases", DELIVERED, cause=causes[0], number=1)
    await bench.say("resolver.cases", DELIVERED, cause=causes[2], number=4)
    await bench.say(
        "departments.cards", "resolver.case-assigned.v1", source="resolver", cause=causes[1], number=2
    )
    await bench.commit_all("resolver", "router.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("sequence gap", "case-1#3", "resolver"))
        assert observer._sequences.missing["resolver"] == 1
        await bench.say("resolver.cases", DELIVERED, cause=causes[2], number=3)
        await bench.until(observer, bench.is_("recovered", "case-1#3", "resolver"))


async def test_what_telephony_says_it_published_and_nobody_read_is_a_gap(bench):
    for number in (1, 2, 4):
        await bench.say("telephony.calls", "telephony.call-offered.v1", key=f"call-{number}", number=number)
    manifest = ManifestPublished(
        source="pbx", from_seq=1, to_seq=6, count=6, period_from=utc_now(), period_to=utc_now()
    )
    await bench.say_body(manifest, "telephony")
    async with bench.observer() as observer:
        for number in (3, 5, 6):
            await bench.until(
                observer, bench.is_("sequence gap", f"/hotline/telephony#{number}", "telephony")
            )
        async with ledger.session(bench.where) as tx:
            (gap,) = await ledger.find(tx, "/hotline/telephony#5")
            (verdict,) = await ledger.verdicts_of(tx, gap)
        assert "manifest up to 6" in verdict["note"]
        await bench.say("telephony.calls", "telephony.call-offered.v1", key="call-5", number=5)
        await bench.until(observer, bench.is_("recovered", "/hotline/telephony#5", "telephony"))


async def test_the_closing_digest_shows_the_last_word_that_was_lost(bench):
    causes = [await bench.say("router.cases", ROUTED) for _ in range(2)]
    case = new_id()
    body = CaseClosed(
        case_id=case,
        cycles=1,
        outcome="upheld",
        told=True,
        rated=False,
        counts={"resolver": 2, "router": 1},
    )
    for number, cause in enumerate(causes, 1):
        await bench.say("resolver.cases", DELIVERED, cause=cause, number=number, key=str(case))
    await bench.say_body(body, "feedback")
    await bench.commit_all("router", "resolver.cases", "feedback.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("sequence gap", f"{case}#1", "router"))
        assert await bench.state(f"{case}#2", "resolver") is None


async def test_a_timer_that_never_fired_is_proved_by_the_stages_watermarks(bench):
    long_ago = utc_now() - timedelta(hours=1)
    ended = await bench.say("telephony.calls", ENDED, key="call-1", at=long_ago)
    held = await bench.say("telephony.calls", ENDED, key="call-2", at=utc_now())
    key = f"{ended}@telephony.call-ended→intake in time"
    async with bench.observer() as observer:
        await bench.until(observer, lambda: _overdue(bench, ended))
        await bench.watch(observer, 0.5)
        assert (await _overdue(bench, ended)) == "overdue", "a deadline alone proves nothing about the timer"
        await bench.commit_all("intake", "telephony.calls")
        for _ in range(3):
            await bench.watch(observer, 0.3)
            now = utc_now()
            passed = WatermarkPassed(group="intake", process="1", timers_through=now, outbox_through=now)
            await bench.say_body(passed, "intake")

        async def lost():
            return await _overdue(bench, ended) == "timer lost"

        await bench.until(observer, lost)
        assert await _overdue(bench, held) == "open", key
        await bench.say("intake.cases", OVERDUE, key="call-1", cause=ended)

        async def recovered():
            return await _overdue(bench, ended) == "recovered"

        await bench.until(observer, recovered)


async def test_a_second_feed_that_tells_the_end_of_a_call_again_has_no_timer_to_lose(bench):
    long_ago = utc_now() - timedelta(hours=1)
    first = await bench.say("telephony.calls", ENDED, key="call-1", at=long_ago)
    await bench.say("intake.cases", RECORDED, key="call-1", cause=first)
    async with bench.observer() as observer:
        await bench.until(observer, lambda: _is_in_time(bench, first, "discharged"))
    again = await bench.say("telephony.calls", ENDED, key="call-1", at=long_ago)
    alone = await bench.say("telephony.calls", ENDED, key="call-2", at=long_ago)
    given = Receipts(outcome="ignored", reason="ended before", event_ids=(again, alone))
    await bench.say_body(ReceiptsGiven(group="intake", receipts=(given,)), "intake")
    await bench.commit_all("intake", "telephony.calls")
    async with bench.observer() as observer:
        await bench.until(observer, lambda: _is_in_time(bench, alone, "overdue"))
        late = {("telephony.call-ended→intake in time", "-"): 1}
        assert observer._deferred.overdue() == late, "what was met is not late, not even for a moment"
        for _ in range(3):
            await bench.watch(observer, 0.3)
            now = utc_now()
            passed = WatermarkPassed(group="intake", process="1", timers_through=now, outbox_through=now)
            await bench.say_body(passed, "intake")
        await bench.until(observer, lambda: _is_in_time(bench, alone, "timer lost"))
    async with ledger.session(bench.where) as tx:
        verdicts = await tx.fetch("select name, state from verdicts")
        assert [tuple(row) for row in verdicts] == [(alone, "timer lost")]
        assert await tx.fetchval("select count(*) from handoffs where subject = 'call-1' and due_ms > 0") == 1


async def _is_in_time(bench, uid, state):
    return await _overdue(bench, uid) == state


async def _overdue(bench, uid):
    """The state of the deferred handoff of an event; None while it is not known."""
    async with ledger.session(bench.where) as tx:
        return await tx.fetchval(
            "select state from handoffs where name = $1 and due_ms is not null and state <> ''", uid
        )


async def test_an_operator_waives_and_the_chain_shows_who_changed_it(bench):
    event = await bench.say("intake.cases", RECORDED)
    await bench.commit_all("router", "intake.cases")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("dropped", event))
        found = await mend.found_or_raise(bench.where, [event])
        waiting = asyncio.create_task(
            mend.end(bench.where, "waive", found, mend.Operator("chen", "told by phone"))
        )
        await bench.until(observer, bench.is_("waived", event))
        assert await waiting
    async with ledger.session(bench.where) as tx:
        assert (await ledger.overview(tx)).lost == 0
        await actions.append(tx, "li", "redrive", [], "second")
        chain = await actions.after(tx, 0)
        assert [(one.actor, one.verb) for one in chain] == [("chen", "waive"), ("li", "redrive")]
        assert actions.broken_links(chain) == []
        await tx.execute("update actions set reason = 'nobody was told' where number = 1")
        assert actions.broken_links(await actions.after(tx, 0)) == [
            "action 1 was changed after it was written"
        ]
        await tx.execute("delete from actions where number = 1")
        assert any("missing" in fault for fault in actions.broken_links(await actions.after(tx, 0)))


async def test_last_actions_that_were_removed_are_missed_and_nobody_takes_their_numbers(bench):
    async with ledger.session(bench.where) as tx:
        for number in range(1, 5):
            await actions.append(tx, "li", "redrive", [], f"{number}")
        await actions.mark_applied(tx, 4)
        await tx.execute("delete from actions where number > 2")
        chain, carried_out = await actions.after(tx, 0), await actions.last_applied(tx)
        assert actions.broken_links(chain) == []
        assert actions.broken_links(chain, carried_out) == [
            "actions 3 to 4 are missing: the observer has carried them out"
        ]
        assert (await actions.append(tx, "li", "waive", [], "after")).number == 5
        assert actions.broken_links(await actions.after(tx, 0), carried_out) == [
            "action 3 is missing before 5"
        ]


async def test_a_verdict_that_the_contract_refuses_holds_up_no_other_and_each_keeps_its_id(bench):
    row = "insert into verdicts (key, grp, edge, state, topic, partition, record_offset, subject, name, judged_ms,"
    row += " barrier, note) values ('\\x00', 'router', 'e', 'dropped', 'intake.cases', 0, 1, 's', $1, $2, '[]', '')"
    async with ledger.session(bench.where) as tx:
        for name in ("n" * 201, "good"):
            await tx.execute(row, name, epoch_ms())
    heard: list[list[str]] = []
    for _ in range(2):
        async with ledger.session(bench.where) as tx:
            await tx.execute("update verdicts set told = false")
        async with bench.observer() as observer:
            telling = asyncio.create_task(observer._tell_verdicts())

            async def all_told():
                async with ledger.session(bench.where) as tx:
                    return not await tx.fetchval("select count(*) from verdicts where not told")

            await bench.until(observer, all_told)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        records = [record async for record in whole(bench.kafka, "ops.verdicts")]
        heard.append([dict(record.headers)["ce_id"].decode() for record in records])
    first, second = heard
    assert len(first) == 1
    assert second == first * 2, "told again after a crash, it has the id that it had"


async def test_the_canary_is_named_and_counts_nowhere(bench):
    async with bench.observer() as observer:
        await bench.watch(observer, 0.3)
        await observer._canary.sing()

        async def flagged():
            return observer._canary.last_flagged_ms

        assert await bench.until(observer, flagged)
        assert 0 <= observer._canary.detection_ms < 5_000
        await bench.watch(observer, 1.2)
        async with ledger.session(bench.where) as tx:
            seen = await ledger.overview(tx)
        assert (seen.lost, seen.blind) == (0, "")
        assert not any("canary" in edge for edge in seen.document["edges"])
        assert observer.metrics.registry.get_sample_value("handoff_canary_detection_seconds") < 5


async def test_lag_is_exact_and_survives_a_restart_of_the_observer(bench):
    await bench.say("intake.cases", RECORDED)
    await bench.commit_all("router", "intake.cases")
    before = utc_now()
    await bench.say("intake.cases", RECORDED)
    for _ in range(2):
        async with bench.observer() as observer:
            await bench.watch(observer, 2.2)
            (row,) = [lag for lag in observer._lags if lag.group == "router" and lag.records]
            elapsed = (utc_now() - before).total_seconds() * 1000
            assert row.records == 1
            assert abs(row.oldest_age_ms - elapsed) < 1_500
            idle = [lag for lag in observer._lags if lag.group == "feedback"]
            assert {lag.word.value for lag in idle} <= {"ok", "no commit"}


async def test_a_skip_is_refused_while_members_live_and_shows_what_it_drops(bench):
    event = await bench.say("intake.cases", RECORDED)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("open", event))
        await migrate(bench.where.database_url, f"{bench.where.database_prefix}router", ["chassis"])
        plan = await mend.plan_skip(bench.where, "router", "intake.cases", None, None)
        assert [drop["event_id"] for drop in plan.drops] == [event]
        assert plan.objections == []
        with pytest.raises(mend.Refused):
            await mend.plan_skip(bench.where, "feedback", "departments.cards", None, None)
        blocked = replace(plan, objections=["router has 1 members"])
        with pytest.raises(mend.Refused):
            await mend.skip(bench.where, blocked, mend.Operator("chen"))
        await mend.skip(bench.where, plan, mend.Operator("chen", "poison"))
        await bench.until(observer, bench.is_("dropped", event))


async def test_nobody_skips_what_the_observer_has_not_read(bench):
    await migrate(bench.where.database_url, f"{bench.where.database_prefix}router", ["chassis"])
    await bench.say("intake.cases", RECORDED)
    await bench.commit_all("router", "intake.cases")
    event = await bench.say("intake.cases", RECORDED)
    plan = await mend.plan_skip(bench.where, "router", "intake.cases", None, None, within=0.1)
    (objection,) = plan.objections
    assert "only up to 0" in objection
    assert not plan.as_json()["all_known"]
    with pytest.raises(mend.Refused):
        await mend.skip(bench.where, plan, mend.Operator("chen"))
    async with bench.observer() as observer:
        reading = asyncio.create_task(bench.until(observer, bench.is_("open", event, "router")))
        plan = await mend.plan_skip(bench.where, "router", "intake.cases", None, None)
        await reading
    assert [drop["event_id"] for drop in plan.drops] == [event]
    assert (plan.objections, plan.all_known) == ([], True)


async def test_a_skip_shows_what_can_no_more_be_proved_and_not_what_must_only_follow_in_time(bench):
    await migrate(bench.where.database_url, f"{bench.where.database_prefix}intake", ["chassis"])
    ended = await bench.say("telephony.calls", ENDED, key="call-1")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("open", ended, "intake"))
    await bench.say("intake.cases", RECORDED, key="call-2")
    await _delete(bench, Place("intake.cases", partition_for(b"call-2", 4)), 1)
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("unprovable", ended, "intake"))
        plan = await mend.plan_skip(bench.where, "intake", "telephony.calls", None, None)
    assert [(drop["event_id"], drop["state"]) for drop in plan.drops] == [(ended, "unprovable")]


class Here:
    """A world that is a test's own topics and tables."""

    def __init__(self, bench) -> None:
        self.place = lambda: bench.where


async def _dead(bench, observer, message) -> dict[str, object]:
    """Put a record on the router's topic that it could not read, and wait for its dead letter."""
    await bench.publisher.publish([message])
    partition = partition_for(message.key, 4)
    letter = LetterDied(
        group="router",
        event_key="",
        topic=message.topic,
        partition=partition,
        offset=0,
        reason="unknown_type",
        explanation="",
        quarantine_id=new_id(),
        first_seen=utc_now(),
    )
    cause = f"{message.topic}/{partition}/0"
    writer = Writer("router")
    await bench.publisher.publish(
        [writer.write(letter, uid=new_id(), at=time_header(utc_now()), correlation="-", cause=cause)]
    )
    await bench.commit_all("router", message.topic)

    async def dead():
        async with ledger.session(bench.where) as tx:
            return await ledger.listed(tx, [ledger.DEAD])

    (found,) = await bench.until(observer, dead)
    return found


async def test_a_letter_that_is_still_unreadable_is_not_sent_so_it_cannot_multiply(bench):
    async with bench.observer() as observer:
        dead = await _dead(bench, observer, Outgoing("router.commands", b"k", b'{"x":1}', []))
        for _ in range(2):
            (line,) = await mend.redrive(Here(bench), [dead], mend.Operator("chen"), dry_run=False)
            assert not line["sent"]
            assert line["why_not"].startswith("still unreadable (headers: header ce_type is missing)")
    assert len([record async for record in whole(bench.kafka, "router.commands")]) == 1
    async with ledger.session(bench.where) as tx:
        assert await actions.after(tx, 0) == []


async def test_a_letter_that_can_be_read_now_goes_on_as_its_event_and_ends(bench):
    body = CanarySung(song="a song", sung_at=utc_now())
    written = Writer("elsewhere").write(body, uid=new_id(), at=time_header(utc_now()), correlation="-")
    name = dict(written.headers)["ce_id"].decode()
    message = written._replace(topic="router.commands")
    observer = Observer(bench.settings, replace(contract_of(), owed={}))  # a release that knows less
    await observer.start()
    try:
        dead = await _dead(bench, observer, message)
        (line,) = await mend.redrive(Here(bench), [dead], mend.Operator("chen"), dry_run=False)
        assert (line["sent"], line["why_not"]) == (True, None)
        await bench.until(observer, bench.is_("waived", dead["event_id"]))
    finally:
        await observer.close()
    again = [record async for record in whole(bench.kafka, "router.commands")]
    assert [dict(record.headers)["ce_id"].decode() for record in again] == [name, name]
    async with ledger.session(bench.where) as tx:
        sent, ended = await actions.after(tx, 0)
        assert (await ledger.overview(tx)).dead == 0
    assert (sent.verb, ended.verb) == ("redrive", "discard")
    assert f'"goes_on_as": "{name}"' in ended.target


async def test_who_follows_knows_how_many_records_still_wait(bench):
    await bench.publisher.publish([Outgoing("intake.cases", b"case-1", b"{}", []) for _ in range(300)])
    follower, taken = Follower(bench.kafka), []
    await follower.start()
    try:
        follower.follow({Place("intake.cases", _partition()): 0})
        while not taken:
            taken += await follower.poll(1.0, 100)
        assert (len(taken), follower.waiting()) == (100, 200)
        while len(taken) < 300:
            taken += await follower.poll(1.0, 1_000)
        assert follower.waiting() == 0
    finally:
        await follower.stop()


async def test_a_pass_that_settles_thousands_looks_them_up_by_their_keys(bench):
    room, place, routed = Ledger(contract_of()), Place("intake.cases", 0), Place("router.cases", 0)
    causes = [
        Said(n, 1, str(new_id()).encode(), RECORDED.encode(), b"", b"", 1, 1, 0, b"c", b"")
        for n in range(5_000)
    ]

    async def stores(tx):
        await store.write(tx, store.Writing(room.drain(), [], Acts(), {}, {}, [], 1))

    async with bench.observer() as observer:
        for cause in causes:
            room.take(place, cause)
        async with observer._database.transaction() as tx:
            await stores(tx)
        async with observer._database.session() as tx:
            await tx.execute("analyze handoffs")
        for cause in causes[:2_000]:
            room.take(routed, cause._replace(wire=b"", source=b"/hotline/router", cause=cause.event_id))
        async with observer._database.transaction() as tx:
            await stores(tx)
            read = await tx.fetchval(
                "select seq_tup_read from pg_stat_xact_user_tables where relid = 'handoffs'::regclass"
            )
            settled = await tx.fetchval("select count(*) from handoffs where state = 'discharged'")
    assert (settled, read) == (2_000, 0)


async def test_old_settled_rows_are_pruned_and_open_or_lost_ones_stay(bench):
    settled, lost = (
        await bench.say("intake.cases", RECORDED),
        await bench.say("intake.cases", RECORDED, key="b"),
    )
    await bench.say("router.cases", ROUTED, cause=settled)
    await bench.commit_all("router", "intake.cases")
    await bench.say("intake.cases", RECORDED, key="c")
    async with bench.observer() as observer:
        await bench.until(observer, bench.is_("dropped", lost))
        async with observer._database.session() as tx:
            now_ms = int(utc_now().timestamp() * 1000) + 60_000
            await store.prune(tx, now_ms, now_ms)
    assert sorted(state for (_, group), state in (await bench.states()).items() if group == "router") == [
        "dropped",
        "open",
    ]
