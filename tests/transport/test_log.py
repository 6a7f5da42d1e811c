"""One suite for the log in memory and for Kafka: the fake is trusted because it passes the real one's tests."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import copy_context
from dataclasses import replace

import pytest

from chassis.batch import next_offsets
from chassis.kafka import (
    Connection,
    KafkaPublisher,
    Subscription,
    _until_shown,
    apply_topics,
    check_topics,
    lag_of,
    record_at,
    records_at,
)
from chassis.memory import MemoryLog, MemorySubscription
from chassis.transport import Outgoing, Place, partition_for
from deploy.local.kafka import Broker
from schemas.topics import BY_NAME
from tests.conftest import eventually

TOPIC = "router.commands"


class World:
    """Publishes to and reads from one kind of log."""

    def __init__(self, publish, subscribe, settle):
        self.publish, self.subscribe, self.settle = publish, subscribe, settle


@pytest.fixture
async def memory() -> World:
    log = MemoryLog()

    async def settle(subscription):
        await subscription.drain()

    return World(log.publish, lambda group, handler: MemorySubscription(log, group, [TOPIC], handler), settle)


@pytest.fixture
async def kafka_world(kafka) -> AsyncIterator[World]:
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    publisher = KafkaPublisher(kafka, "tests")
    await publisher.start()

    async def settle(subscription):
        if subscription._subscriber.consumer is None:
            await subscription.start()

        async def no_lag():
            return sum((await lag_of(kafka, subscription.group, [TOPIC])).values()) == 0

        await eventually(no_lag, what="the group has read everything")
        await subscription.stop()

    yield World(
        publisher.publish, lambda group, handler: Subscription(kafka, group, [TOPIC], handler), settle
    )
    await publisher.stop()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def world(request) -> World:
    return request.getfixturevalue("memory" if request.param == "memory" else "kafka_world")


def messages(count: int, keys: int = 7) -> list[Outgoing]:
    return [Outgoing(TOPIC, b"key-%d" % (n % keys), b"%d" % n, [("n", b"%d" % n)]) for n in range(count)]


class Collector:
    def __init__(self):
        self.seen = []

    async def __call__(self, records, reader):
        self.seen += [(record.topic, record.partition, record.key, int(record.value)) for record in records]
        await reader.commit(next_offsets(records))


async def test_every_message_arrives_once_in_order_per_key_on_its_partition(world):
    await world.publish(messages(500))
    collect = Collector()
    await world.settle(world.subscribe("g1", collect))
    assert sorted(n for *_, n in collect.seen) == list(range(500))
    for key in {key for _, _, key, _ in collect.seen}:
        mine = [(partition, n) for _, partition, k, n in collect.seen if k == key]
        assert [n for _, n in mine] == sorted(n for _, n in mine)
        assert {partition for partition, _ in mine} == {partition_for(key, 4)}


@pytest.mark.kafka
async def test_what_a_handler_begins_keeps_nothing_of_its_batch(kafka_world):
    class Beginning(Collector):
        async def __call__(self, records, reader):
            self.context = copy_context()  # what a task or a timer that is begun here holds on to
            await super().__call__(records, reader)

    await kafka_world.publish(messages(3))
    begin = Beginning()
    await kafka_world.settle(kafka_world.subscribe("g1", begin))
    assert len(begin.seen) == 3
    assert dict(begin.context) == {}


async def test_a_group_goes_on_where_it_committed_and_another_begins_at_the_start(world):
    await world.publish(messages(20))
    first, second, other = Collector(), Collector(), Collector()
    await world.settle(world.subscribe("g1", first))
    await world.publish(messages(5))
    await world.settle(world.subscribe("g1", second))
    await world.settle(world.subscribe("g2", other))
    assert (len(first.seen), len(second.seen), len(other.seen)) == (20, 5, 25)


async def test_what_was_not_committed_comes_again(world):
    await world.publish(messages(10))
    seen = []

    async def half(records, reader):
        seen.extend(int(record.value) for record in records)
        if len(seen) > 12:
            await reader.commit(next_offsets(records))

    first = world.subscribe("g1", half)
    if isinstance(first, MemorySubscription):
        await first.drain()
    else:
        await first.start()

        async def all_seen():
            return len(seen) >= 10

        await eventually(all_seen)
        await first.stop()
    collect = Collector()
    await world.settle(world.subscribe("g1", collect))
    assert sorted(n for *_, n in collect.seen) == list(range(10))


async def test_a_blocked_partition_waits_and_the_others_go_on(world):
    await world.publish(messages(40))
    seen, blocked = [], []

    async def handler(records, reader):
        offsets = {}
        for record in records:
            place = Place(record.topic, record.partition)
            if not blocked and place.partition == partition_for(b"key-0", 4):
                reader.block(place, record.offset)
                blocked.append(place)
            if place not in blocked:
                seen.append(int(record.value))
                offsets[place] = record.offset + 1
        await reader.commit(offsets)

    subscription = world.subscribe("g1", handler)
    if isinstance(subscription, MemorySubscription):
        await subscription.drain()
    else:
        await subscription.start()
    expected = [n for n in range(40) if partition_for(b"key-%d" % (n % 7), 4) != partition_for(b"key-0", 4)]

    async def others_done():
        return sorted(seen) == expected

    await eventually(others_done)
    place = blocked.pop()
    blocked.append(Place("none", 0))
    subscription.unblock(place)
    await world.settle(subscription)
    assert sorted(seen) == list(range(40))
    # What was put off may come due when nobody reads any more.
    subscription.unblock(place)


@pytest.mark.kafka
async def test_topics_are_made_and_compared_with_the_contract(kafka):
    assert any("is missing" in fault for fault in await check_topics(kafka, [TOPIC]))
    assert await apply_topics(kafka, [BY_NAME[TOPIC]]) == [f"created {TOPIC}"]
    assert await apply_topics(kafka, [BY_NAME[TOPIC]]) == []
    assert await check_topics(kafka, [TOPIC]) == []


async def test_whoever_makes_topics_waits_until_the_broker_shows_them():
    class Late:
        """A broker that hears from the controller a moment later."""

        asked = 0

        async def describe_topics(self):
            self.asked += 1
            return [{"topic": TOPIC, "partitions": [{}] * (0, 0, 2, 4)[self.asked]}] if self.asked > 1 else []

    late = Late()
    await _until_shown(late, Connection("unused"), [BY_NAME[TOPIC]])
    assert late.asked == 3


@pytest.mark.kafka
async def test_every_setting_is_compared_but_only_what_readers_need_stops_them(kafka):
    topic = BY_NAME[TOPIC]
    await apply_topics(kafka, [replace(topic, retention_ms=3_600_000)])
    assert await check_topics(kafka, [TOPIC]) == [], "who reads it may begin"
    (fault,) = [fault for fault in await check_topics(kafka) if "is missing" not in fault]
    assert fault.startswith(f"topic {TOPIC}: retention.ms is '3600000', declared '{topic.retention_ms}'")
    assert "kafka-configs.sh --alter" in fault


@pytest.mark.kafka
async def test_many_records_are_fetched_with_one_client_and_what_is_gone_is_absent(kafka):
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    publisher = KafkaPublisher(kafka, "tests")
    await publisher.publish([Outgoing(TOPIC, b"key-%d" % (n % 3), b"%d" % n, []) for n in range(2_500)])
    await publisher.stop()
    places = {Place(TOPIC, partition_for(b"key-%d" % n, 4)) for n in range(3)}
    wanted = {place: [0, 1, 800, 2, 10**9] for place in places} | {Place(TOPIC, 3): [5, 7]}
    admin_reads = await records_at(kafka, wanted)
    assert {where[0] for where in admin_reads} <= {*places, Place(TOPIC, 3)}
    for place in places:
        assert {offset for at, offset in admin_reads if at == place} >= {0, 1, 2, 800}
        assert (place, 10**9) not in admin_reads
    for (place, offset), record in admin_reads.items():
        assert (record.topic, record.partition, record.offset) == (*place, offset)
    one = await record_at(kafka, min(places), 800)
    assert one is not None
    assert one.value == admin_reads[min(places), 800].value


@pytest.mark.kafka
async def test_a_batch_larger_than_a_request_is_split_and_kept_in_order(kafka):
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    publisher = KafkaPublisher(kafka, "tests")
    big = [Outgoing(TOPIC, b"one", b"%d" % n + b" " * 100_000, []) for n in range(30)]
    await publisher.publish(big)
    await publisher.stop()
    collect = Collector()
    subscription = Subscription(kafka, "g1", [TOPIC], collect)
    await subscription.start()

    async def done():
        return len(collect.seen) == 30

    await eventually(done)
    await subscription.stop()
    assert [n for *_, n in collect.seen] == list(range(30))


@pytest.mark.kafka
async def test_publishing_survives_the_brokers_death_with_no_loss_and_order_kept(tmp_path):
    # A broker of its own: the one that all tests share has thousands of partitions to read after a kill.
    broker = Broker(tmp_path, lambda _: None, heap_mb=256)
    kafka = Connection(await asyncio.to_thread(broker.start))
    try:
        await _survives(broker, kafka)
    finally:
        await asyncio.to_thread(broker.stop)


async def _survives(broker, kafka):
    await apply_topics(kafka, [BY_NAME[TOPIC]])
    publisher = KafkaPublisher(kafka, "tests")
    await publisher.start()
    await publisher.publish(messages(10, keys=1))
    await asyncio.to_thread(broker.kill)
    sending = asyncio.create_task(_until_sent(publisher, messages(20, keys=1)[10:]))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(broker.start)
    await asyncio.wait_for(sending, 60)
    await publisher.stop()
    collect = Collector()
    subscription = Subscription(kafka, "g1", [TOPIC], collect)
    await subscription.start()

    async def done():
        return {n for *_, n in collect.seen} == set(range(20))

    await eventually(done, 40)
    await subscription.stop()
    firsts = list(dict.fromkeys(n for *_, n in collect.seen))
    assert firsts == list(range(20))


async def _until_sent(publisher, batch):
    from chassis.faults import Transient

    while True:
        try:
            await publisher.publish(batch)
        except Transient:
            await asyncio.sleep(0.2)
        else:
            return
