"""What a failing client does to reading: nothing is skipped, and one bad record stops nobody."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from hypothesis import given
from hypothesis import strategies as st

from chassis.batch import next_offsets
from chassis.kafka import Subscription, apply_topics, lag_of, members_of
from chassis.message import Poison, read
from chassis.polling import FULL_ENOUGH_TO_COLLECT, MAX_BATCH, Progress, gather, take
from chassis.transport import Refetched
from schemas.topics import BY_NAME
from tests.conftest import eventually

TOPIC = "router.commands"


@dataclass
class Taken:
    """A record of the fake."""

    offset: int
    tp: TopicPartition


class Forgetful:
    """Fails as aiokafka 0.14 does: it has moved its positions before it raises."""

    def __init__(self, lengths, failures, each=1000):
        self.each = each
        self.ends = {TopicPartition("t", number): length for number, length in enumerate(lengths)}
        self.positions = dict.fromkeys(self.ends, 0)
        self.failures = list(failures)

    async def getmany(self, *, timeout_ms, max_records):
        polled = {}
        max_records = min(max_records, self.each)
        for tp, end in self.ends.items():
            start = self.positions[tp]
            stop = min(end, start + max_records)
            if stop > start:
                polled[tp] = [Taken(offset, tp) for offset in range(start, stop)]
                max_records -= stop - start
            self.positions[tp] = stop
            fault = self.failures.pop(0) if self.failures else None
            if fault is not None:
                raise fault("as asked")
        return polled

    def assignment(self):
        return set(self.ends)

    async def committed(self, tp):
        return None

    async def beginning_offsets(self, tps):
        return dict.fromkeys(tps, 0)

    def seek(self, tp, offset):
        self.positions[tp] = offset


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.lists(st.sampled_from([None, KafkaError, ValueError]), max_size=12),
    st.integers(1, 20),
)
def test_whenever_the_client_fails_each_record_is_handed_out_once_and_in_order(lengths, failures, most):
    consumer, progress, got = Forgetful(lengths, failures), Progress(0, 0), defaultdict(list)

    async def drain():
        failed = 0
        while failed <= len(failures) and progress.handed != {tp: n for tp, n in consumer.ends.items() if n}:
            before = dict(progress.handed)
            try:
                await take(consumer, progress, 0, most)
            except KafkaError:
                failed += 1
            for tp, after in progress.handed.items():
                got[tp] += range(before.get(tp, 0), after)
            progress.handed = {tp: after for tp, after in progress.handed.items() if after}

    asyncio.run(drain())
    assert {tp: list(range(n)) for tp, n in consumer.ends.items() if n} == {
        tp: offsets for tp, offsets in got.items() if offsets
    }


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.lists(st.sampled_from([None, KafkaError, ValueError]), max_size=12),
)
def test_whenever_the_client_fails_each_record_that_gathers_is_given_once_and_in_order(lengths, failures):
    consumer, progress, got = (
        Forgetful(lengths, failures, each=4),
        Progress(0, 0, gather=1e-6),
        defaultdict(list),
    )

    async def drain():
        failed = 0
        while failed <= len(failures) and sum(map(len, got.values())) < sum(lengths):
            try:
                for record in await gather(consumer, progress):
                    got[record.tp].append(record.offset)
            except KafkaError:
                failed += 1

    asyncio.run(drain())
    assert got == {tp: list(range(n)) for tp, n in consumer.ends.items() if n}


class BadName(str):
    """A header name that is not UTF-8 once it is on the wire."""

    __slots__ = ()

    def encode(self, *_):
        return b"\xff\xfe"


async def _write(bootstrap, topic, partition, *records):
    """Append batches with a client that lets us write such names."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    batch = producer.create_batch()
    batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 100_000)
    for value, headers in records:
        batch.append(key=b"k", value=value, timestamp=None, headers=headers)
    batch.close()
    await (await producer.send_batch(batch, topic, partition=partition))
    await producer.stop()


@pytest.mark.kafka
async def test_a_header_name_that_is_not_utf8_stops_nobody_and_is_kept_with_its_bytes(kafka):
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    got = []

    async def collect(records, reader):
        got.extend(records)
        await reader.commit(next_offsets(records))

    topic = kafka.prefix + TOPIC
    odd = (b"2", [("before", b"x"), (BadName("b"), b"\x00\xff"), ("after", b"y")])
    await _write(kafka.bootstrap, topic, 0, (b"1", [("a", b"1")]), odd, (b"3", []))
    await _write(kafka.bootstrap, topic, 1, (b"4", []), (b"5", []))
    await _write(kafka.bootstrap, topic, 2, (b"6", [(BadName("b"), b"")]))
    subscription = Subscription(kafka, "g", [TOPIC], collect)
    await subscription.start()

    async def six():
        return len(got) >= 6

    async def seven():
        return len(got) >= 7

    await eventually(six, 30, "six records")
    await _write(kafka.bootstrap, topic, 0, (b"7", []))
    await eventually(seven, 30, "the one after")
    await subscription.stop()
    assert sorted(record.value for record in got) == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
    assert [record.value for record in got if record.partition == 0] == [b"1", b"2", b"3", b"7"]
    bad = [record for record in got if isinstance(record, Refetched) and record.fault]
    assert {record.value for record in bad} == {b"2", b"6"}
    kept = next(record for record in bad if record.value == b"2")
    assert kept.topic == TOPIC
    assert (kept.offset, kept.key) == (1, b"k")
    assert kept.headers == [("before", b"x"), ("\ufffd\ufffd", b"\x00\xff"), ("after", b"y")]
    assert read(kept, {}) == Poison("headers", "a header's name is not UTF-8", "k")


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_whatever_compression_a_foreign_producer_chooses_is_read(kafka, codec):
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    got = []

    async def collect(records, reader):
        got.extend(records)

    async def arrived():
        return len(got) == 50

    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type=codec, linger_ms=20)
    subscription = Subscription(kafka, "g", [TOPIC], collect)
    # A library that is missing fails here, in the producer, or in the reading.
    await producer.start()
    await subscription.start()
    sent = [await producer.send(kafka.prefix + TOPIC, b"v" * 200, b"%d" % n) for n in range(50)]
    await asyncio.gather(*sent)
    await producer.stop()
    await eventually(arrived, 20, f"fifty records in {codec}")
    await subscription.stop()


class Trickling:
    """Has so many more records at each poll."""

    def __init__(self, *counts):
        self.counts, self.offset = list(counts), 0

    async def getmany(self, *, timeout_ms, max_records):
        count = min(self.counts.pop(0), max_records)
        self.offset += count
        tp = TopicPartition("t", 0)
        taken = [Taken(offset, tp) for offset in range(self.offset - count, self.offset)]
        return {tp: taken} if taken else {}


@pytest.mark.parametrize(
    ("waits", "busy", "counts", "taken"),
    [
        (0.0, False, (3, 5), 3),  # slack: at once
        (0.0, True, (3, 5), 8),  # work comes faster than it is done
        (0.001, False, (3, 5), 8),  # a stage that may let records gather
        (0.001, True, (MAX_BATCH, 5), MAX_BATCH),  # full
        (0.001, True, (0, 5), 0),  # nothing to wait with
    ],
)
async def test_records_gather_where_that_spares_polls(waits, busy, counts, taken):
    progress = Progress(0.0, 0.0, busy=busy, gather=waits)
    assert len(await gather(Trickling(*counts), progress)) == taken
    assert progress.busy == (taken > FULL_ENOUGH_TO_COLLECT)


@pytest.mark.kafka
async def test_a_batch_that_does_not_end_keeps_nobody_in_the_group(kafka, monkeypatch):
    monkeypatch.setattr("chassis.kafka.QUIET_WITHIN", 0.1)
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def tried_again_and_again(records, reader):
        begun.set()
        await may_end.wait()
        await reader.commit(next_offsets(records))
        ended.set()

    await _write(kafka.bootstrap, kafka.prefix + TOPIC, 0, (b"1", []))
    subscription = Subscription(kafka, "g", [TOPIC], tried_again_and_again)
    await subscription.start()
    await asyncio.wait_for(begun.wait(), 30)
    await subscription.stop()
    assert subscription.busy
    assert await members_of(kafka, "g") == 0
    may_end.set()
    await asyncio.wait_for(ended.wait(), 10)
    assert sum((await lag_of(kafka, "g", [TOPIC])).values()) == 1, "what was not committed is read again"
