"""Kafka: the only place that builds brokers, consumers and producers, with the settings that lose nothing.

FastStream runs the subscription. Its batch subscriber sleeps `batch_timeout_ms` after every empty
poll, so a record that comes just then waits for nothing (p99 of 200 ms at 50 events/s, measured);
`chassis/polling.py` polls again instead. Decision 11 has the figures.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import wraps
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
)
from faststream.kafka import KafkaBroker
from faststream.message import StreamMessage
from faststream.middlewares import AckPolicy

from chassis.clock import monotonic
from chassis.faults import Misconfigured, Transient
from chassis.log import get_logger
from chassis.polling import MAX_BATCH, PROGRESS, Progress, PromptSubscriber, take
from chassis.transport import Handler, Outgoing, Place, Record, Settle, partition_for
from schemas.topics import BY_NAME, TOPICS, Topic

PUBLISH_WITHIN = 20.0
_SHOWN_WITHIN = 15.0
QUIET_WITHIN = 20.0
"""Seconds that a batch under way has to come to its end when its process leaves the group."""
_BATCH_BYTES = 512 * 1024
_FETCH_BYTES = 128 * 1024
_log = get_logger(part="kafka")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where Kafka is, and a prefix that sets worlds apart on one cluster (tests, demos)."""

    bootstrap: str
    prefix: str = ""


def _say_what_broke(send: Callable[..., Any]) -> Callable[..., Any]:
    """Make a write to a closed transport the fault that the client expects.

    uvloop raises RuntimeError there, asyncio's own loop nothing, and the client knows OSError only: one
    such write in a moment when the broker goes away ends the client's metadata and group tasks for good.
    """

    @wraps(send)
    def sent(self: AIOKafkaConnection, *args: Any, **options: Any) -> Any:
        try:
            return send(self, *args, **options)
        except RuntimeError as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection was closed: {error}") from error

    return sent


AIOKafkaConnection.send = _say_what_broke(AIOKafkaConnection.send)


# ------------------------------------------------------------------ topics


async def apply_topics(connection: Connection, topics: Sequence[Topic] = TOPICS) -> list[str]:
    """Create missing topics and add missing partitions; returns what was done."""
    admin = await _admin(connection)
    try:
        existing = await _described(admin)
        missing = [topic for topic in topics if connection.prefix + topic.name not in existing]
        if missing:
            # Three copies where there are three brokers, and an acknowledgement means two have it.
            copies = min(3, len((await admin.describe_cluster())["brokers"]))
            safety = {"min.insync.replicas": str(max(1, copies - 1))}
            await admin.create_topics(
                [
                    NewTopic(
                        connection.prefix + topic.name,
                        topic.partitions,
                        copies,
                        topic_configs={**topic.settings, **safety},
                    )
                    for topic in missing
                ]
            )
        grown = await _grow(admin, connection, topics, existing)
        if missing or grown:
            await _until_shown(admin, connection, topics)
    finally:
        await admin.close()
    return [f"created {topic.name}" for topic in missing] + grown


async def _grow(
    admin: AIOKafkaAdminClient,
    connection: Connection,
    topics: Sequence[Topic],
    existing: Mapping[str, Any],
) -> list[str]:
    small = [
        topic
        for topic in topics
        if (entry := existing.get(connection.prefix + topic.name))
        and len(entry["partitions"]) < topic.partitions
    ]
    if small:
        await admin.create_partitions(
            {connection.prefix + topic.name: NewPartitions(topic.partitions) for topic in small}
        )
    return [f"grew {topic.name} to {topic.partitions} partitions" for topic in small]


async def _until_shown(admin: AIOKafkaAdminClient, connection: Connection, topics: Sequence[Topic]) -> None:
    """Wait until a broker shows what the controller has made: who starts next asks it; raises Transient."""
    deadline = monotonic() + _SHOWN_WITHIN
    while True:
        existing = await _described(admin)
        hidden = [
            topic.name
            for topic in topics
            if _shape_faults(topic, existing.get(connection.prefix + topic.name))
        ]
        if not hidden:
            return
        if monotonic() > deadline:
            raise Transient(f"kafka has made {', '.join(hidden)}, and does not show them: try again")
        await asyncio.sleep(0.05)


_NEEDED = frozenset({"cleanup.policy", "message.timestamp.type"})
"""Settings without which nobody should begin to read: records would vanish, or their times mean nothing."""


async def check_topics(connection: Connection, names: Sequence[str] | None = None) -> list[str]:
    """Compare the cluster's topics with `schemas/topics.py`; returns one line per difference.

    Of topics by `names` only what their readers cannot do without: longer retention stops nobody.
    """
    wanted = [BY_NAME[name] for name in names] if names is not None else list(TOPICS)
    admin = await _admin(connection)
    try:
        existing = await _described(admin)
        faults = [
            fault
            for topic in wanted
            for fault in _shape_faults(topic, existing.get(connection.prefix + topic.name))
        ]
        present = [topic for topic in wanted if connection.prefix + topic.name in existing]
        found = await _settings(admin, connection, [topic.name for topic in present])
        for topic in present:
            faults += _setting_faults(topic, found.get(topic.name, {}), everything=names is None)
    finally:
        await admin.close()
    return faults


def _shape_faults(topic: Topic, entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return [f"topic {topic.name} is missing: run `hotline topics apply`"]
    have = len(entry["partitions"])
    if have < topic.partitions:
        missing = f"topic {topic.name} has {have} of {topic.partitions} declared partitions"
        return [f"{missing}: run `hotline topics apply`"]
    return []


def _setting_faults(topic: Topic, have: Mapping[str, str], *, everything: bool) -> list[str]:
    return [
        f"topic {topic.name}: {name} is {have.get(name)!r}, declared {value!r}:"
        f" set it with kafka-configs.sh --alter --add-config {name}={value}"
        for name, value in topic.settings.items()
        if have.get(name) != value and (everything or name in _NEEDED)
    ]


async def _settings(
    admin: AIOKafkaAdminClient, connection: Connection, topics: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Read the settings that topics really have, by topic."""
    cut = len(connection.prefix)
    resources = [ConfigResource(ConfigResourceType.TOPIC, connection.prefix + topic) for topic in topics]
    if not resources:
        return {}
    return {
        name[cut:]: {entry[0]: entry[1] for entry in entries}
        for response in await admin.describe_configs(resources)
        for error, _, _, name, entries in response.resources
        if not error
    }


async def _described(admin: AIOKafkaAdminClient) -> dict[str, Any]:
    """Read the topics that a broker shows, by their whole names."""
    return {entry["topic"]: entry for entry in await admin.describe_topics()}


async def _admin(connection: Connection) -> AIOKafkaAdminClient:
    admin = AIOKafkaAdminClient(bootstrap_servers=connection.bootstrap, request_timeout_ms=15000)
    try:
        await admin.start()
    except KafkaConnectionError as error:
        with suppress(Exception):
            await admin.close()
        raise Transient(f"kafka is not reachable at {connection.bootstrap}") from error
    return admin


# ------------------------------------------------------------------ publishing


class KafkaPublisher:
    """Sends whole batches per partition with the idempotent producer; rebuilds it when it breaks."""

    def __init__(self, connection: Connection, client_id: str) -> None:
        self._connection, self._client_id = connection, client_id
        self._producer: AIOKafkaProducer | None = None
        self._partitions: dict[str, tuple[float, int]] = {}
        self._one_at_a_time = asyncio.Lock()
        self.rebuilt = 0

    async def start(self) -> None:
        """Connect; raises Transient when Kafka is away."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self._connection.bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=1 << 20,
            request_timeout_ms=15000,
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await abandon(producer)
            raise Transient(f"kafka is not reachable at {self._connection.bootstrap}") from error
        self._producer = producer

    async def stop(self, within: float = 5.0) -> None:
        """Close, giving what is under way a moment; the outbox keeps what is not acknowledged."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await abandon(producer, within)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Return when every message is acknowledged, in order per partition; raises Transient."""
        async with self._one_at_a_time:
            if self._producer is None:
                await self.start()
            try:
                async with asyncio.timeout(PUBLISH_WITHIN):
                    await self._send(messages)
            except (TimeoutError, KafkaError, OSError) as error:
                self.rebuilt += 1
                broken, self._producer = self._producer, None
                if broken is not None:
                    await abandon(broken, 1.0)
                raise Transient(f"publishing failed: {type(error).__name__}: {error}") from error

    async def _send(self, messages: Sequence[Outgoing]) -> None:
        by_place: dict[TopicPartition, list[Outgoing]] = defaultdict(list)
        for message in messages:
            topic = self._connection.prefix + message.topic
            partition = partition_for(message.key, await self._count(topic))
            by_place[TopicPartition(topic, partition)].append(message)
        acknowledged = []
        for place, queue in by_place.items():
            acknowledged += await self._send_to(place, queue)
        await asyncio.gather(*acknowledged)

    async def _send_to(self, place: TopicPartition, queue: Sequence[Outgoing]) -> list[Any]:
        producer = self._producer
        assert producer is not None
        futures = []
        batch = producer.create_batch()
        for message in queue:
            while not batch.append(
                key=message.key, value=message.value, timestamp=None, headers=message.headers
            ):
                if batch.record_count() == 0:
                    raise Misconfigured(f"a message for {place.topic} is larger than {_BATCH_BYTES} bytes")
                futures.append(await self._submit(producer, batch, place))
                batch = producer.create_batch()
        futures.append(await self._submit(producer, batch, place))
        return futures

    async def _submit(self, producer: AIOKafkaProducer, batch: Any, place: TopicPartition) -> Any:
        batch.close()
        return await producer.send_batch(batch, place.topic, partition=place.partition)

    async def _count(self, topic: str) -> int:
        """Count a topic's partitions; looked up again every minute, so growth is noticed."""
        known = self._partitions.get(topic)
        if known is not None and monotonic() - known[0] < 60:
            return known[1]
        assert self._producer is not None
        count = len(await self._producer.partitions_for(topic))
        self._partitions[topic] = (monotonic(), count)
        return count


async def abandon(client: AIOKafkaProducer | AIOKafkaConsumer, within: float = 2.0) -> None:
    """Stop a client, by force after `within` seconds: an idempotent flush can hang for ever."""
    try:
        async with asyncio.timeout(within):
            await client.stop()
    except (TimeoutError, KafkaError, OSError, asyncio.CancelledError) as error:
        # When the broker is gone, the client lets its own task's cancellation out: not everyone's is ours.
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        sender = getattr(client, "_sender", None)
        with suppress(Exception):
            if sender is not None and sender.sender_task is not None:
                sender.sender_task.cancel()
            async with asyncio.timeout(1.0):
                await client.client.close()


# ------------------------------------------------------------------ consuming


class Subscription(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka carries no types
    """One consumer group's reading of some topics: batches of raw records, explicit commits."""

    def __init__(
        self,
        connection: Connection,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        settle: Settle | None = None,
        gather: float = 0.0,
    ) -> None:
        self._connection, self.group = connection, group
        self._handler, self._settle = handler, settle
        self._settled = asyncio.Event()
        self._settled.set()
        self._left = False
        self.progress = Progress(monotonic(), monotonic(), gather=gather)
        self.broker = KafkaBroker(
            connection.bootstrap,
            client_id=f"hotline-{group}",
            consumer_only=True,
            allow_auto_create_topics=False,
            ack_policy=AckPolicy.MANUAL,
            graceful_timeout=15,
            apply_types=False,
            logger=None,
        )
        subscriber = self.broker.subscriber(
            *(connection.prefix + topic for topic in topics),
            batch=True,
            max_records=MAX_BATCH,
            group_id=connection.prefix + group,
            auto_offset_reset="earliest",
            no_reply=True,
            session_timeout_ms=6000,
            heartbeat_interval_ms=1500,
            max_poll_interval_ms=300_000,
            isolation_level="read_committed",
            partition_assignment_strategy=[RangePartitionAssignor],
            # What waits in memory: a few batches per partition, not the default megabytes.
            max_partition_fetch_bytes=_FETCH_BYTES,
            listener=self,
            parser=_raw,
            decoder=_undecoded,
        )
        subscriber.__class__ = PromptSubscriber
        subscriber(self._on_batch)
        self._subscriber: Any = subscriber

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The client underneath; raises Transient while it is not connected."""
        if self._subscriber.consumer is None:
            raise Transient("the consumer is not connected")
        return self._subscriber.consumer

    async def start(self) -> None:
        """Join the group and read; raises Transient while Kafka is away."""
        try:
            await self.broker.start()
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka is not reachable at {self._connection.bootstrap}") from error
        PROGRESS[id(self.consumer)] = self.progress

    async def stop(self) -> None:
        """Finish the batch under way if that is possible, leave the group in any case; see `busy`."""
        consumer = self._subscriber.consumer
        self._subscriber.running = False
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(QUIET_WITHIN):
                await self._quiet()
        self._left = True
        if self.busy and consumer is not None:
            await abandon(consumer)  # FastStream would wait for the batch; others shall not
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(5):
                await self.broker.stop()
        PROGRESS.pop(id(consumer), None)

    @property
    def busy(self) -> bool:
        """Whether a batch is under way: one that is tried again and again outlives the stop."""
        return not self._settled.is_set()

    async def _on_batch(self, records: Any) -> None:
        self._settled.clear()
        # In a context of its own: FastStream's holds the batch, and whatever is begun there (a connection's
        # idle timer, a task that sends) would keep the batch in memory for as long as it lasts.
        handling = self._handler(self._bare(records), self)
        try:
            await asyncio.create_task(handling, context=Context())
        finally:
            self._settled.set()

    def _bare(self, records: Sequence[Any]) -> Sequence[Record]:
        if not self._connection.prefix:
            return records
        cut = len(self._connection.prefix)
        for record in records:
            object.__setattr__(record, "topic", record.topic[cut:])
        return records

    # what a pass may ask of its reader

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        """Commit exactly these next offsets; a lost assignment is logged, not raised."""
        if self._left:
            _log.warning("commit_lost", group=self.group, error="the group was left")
            return
        try:
            await self.consumer.commit({self._tp(place): offset for place, offset in offsets.items()})
        except (CommitFailedError, IllegalStateError) as error:
            _log.warning("commit_lost", group=self.group, error=type(error).__name__)
            return
        self.progress.committed_at = monotonic()
        self.progress.committed += 1

    def block(self, place: Place, offset: int) -> None:
        """Stop reading a partition at an offset until it is unblocked."""
        with suppress(IllegalStateError):
            self.consumer.seek(self._tp(place), offset)
            self.progress.handed[self._tp(place)] = offset
            self.consumer.pause(self._tp(place))

    def unblock(self, place: Place) -> None:
        """Read a blocked partition again from where it stopped; nothing to do once reading has ended."""
        with suppress(IllegalStateError, Transient):
            self.consumer.resume(self._tp(place))

    def _tp(self, place: Place) -> TopicPartition:
        return TopicPartition(self._connection.prefix + place.topic, place.partition)

    # what the group tells

    async def on_partitions_revoked(self, _: Sequence[TopicPartition]) -> None:
        """Let the batch under way finish before the partitions go to somebody else."""
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await self._quiet()
        self.progress.assigned = frozenset()
        self.progress.handed.clear()

    async def _quiet(self) -> None:
        """Wait for the batch under way, and for what its handler still has to send."""
        await self._settled.wait()
        if self._settle is not None:
            await self._settle()

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Note what this process reads from now on."""
        cut = len(self._connection.prefix)
        self.progress.handed.clear()
        self.progress.assigned = frozenset(Place(tp.topic[cut:], tp.partition) for tp in assigned)
        _log.info("assigned", group=self.group, partitions=len(assigned))

    async def lag(self) -> dict[Place, int]:
        """Ask Kafka how many records of each assigned partition are not committed yet."""
        cut = len(self._connection.prefix)
        tps = list(self.consumer.assignment())
        if not tps:
            return {}
        committed = {tp: await self.consumer.committed(tp) for tp in tps}
        ends = await self.consumer.end_offsets(tps)
        starts = await self.consumer.beginning_offsets(tps)
        return {
            Place(tp.topic[cut:], tp.partition): max(0, ends[tp] - max(committed[tp] or 0, starts[tp]))
            for tp in tps
        }


async def _raw(records: tuple[Any, ...]) -> StreamMessage[Any]:
    """Wrap a batch without looking at it: FastStream's own parser raises on odd headers."""
    return StreamMessage(raw_message=records, body=b"")


async def _undecoded(message: StreamMessage[Any]) -> Any:
    return message.raw_message


def reader(
    connection: Connection,
    *topics: str,
    group: str | None = None,
    read_committed: bool = True,
    auto_offset_reset: str = "earliest",
    **settings: Any,
) -> AIOKafkaConsumer:
    """Build a plain consumer for tools: no automatic commits, from the beginning."""
    return AIOKafkaConsumer(
        *(connection.prefix + topic for topic in topics),
        bootstrap_servers=connection.bootstrap,
        group_id=connection.prefix + group if group else None,
        enable_auto_commit=False,
        auto_offset_reset=auto_offset_reset,
        isolation_level="read_committed" if read_committed else "read_uncommitted",
        **settings,
    )


class Offsets:
    """Asks Kafka how far things are: groups' commits, high watermarks, log starts; never a group's member."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self) -> None:
        """Connect; raises Transient while Kafka is away."""
        self._admin = await _admin(self._connection)
        # Read uncommitted, so that ends are high watermarks: a barrier at the last stable offset
        # would stop short of what an open transaction already wrote.
        self._consumer = reader(self._connection, read_committed=False)
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka is not reachable at {self._connection.bootstrap}") from error

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await abandon(self._consumer)
        if self._admin is not None:
            await self._admin.close()

    async def commits(self, group: str) -> dict[Place, int]:
        """Give the committed offset of each partition of a group; a partition without one is absent."""
        assert self._admin is not None
        try:
            found = await self._admin.list_consumer_group_offsets(self._connection.prefix + group)
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka does not tell the offsets of {group}: {type(error).__name__}") from error
        return {self._place(tp): meta.offset for tp, meta in found.items() if meta.offset >= 0}

    async def settings(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        """Give the settings that topics have now, as Kafka names them; a missing topic is absent."""
        assert self._admin is not None
        try:
            return await _settings(self._admin, self._connection, topics)
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka does not tell the topics' settings: {type(error).__name__}") from error

    async def partitions(self, topics: Sequence[str]) -> list[Place]:
        """List the partitions that these topics have now: metadata is asked for, not remembered."""
        assert self._consumer is not None
        client = self._consumer._client  # noqa: SLF001 - the only way to fresh metadata
        try:
            await client.set_topics({self._connection.prefix + topic for topic in topics})
            if not await client.force_metadata_update():
                raise Transient("kafka does not give its metadata")
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka does not give its metadata: {type(error).__name__}") from error
        places = []
        for topic in topics:
            known = self._consumer.partitions_for_topic(self._connection.prefix + topic) or set()
            places += [Place(topic, partition) for partition in sorted(known)]
        return places

    async def highs(self, places: Sequence[Place]) -> dict[Place, int]:
        """Give the high watermark of each partition, the offset that the next record will get.

        A partition that has no leader now is absent, here and in `starts`: nobody answers for it.
        """
        return await self._ask("end_offsets", places)

    async def starts(self, places: Sequence[Place]) -> dict[Place, int]:
        """Give the first offset that each partition still holds."""
        return await self._ask("beginning_offsets", places)

    async def _ask(self, question: str, places: Sequence[Place]) -> dict[Place, int]:
        assert self._consumer is not None
        prefix = self._connection.prefix
        led = [place for place in places if not self._is_leaderless(place)]
        tps = [TopicPartition(prefix + place.topic, place.partition) for place in led]
        if not tps:
            return {}
        try:
            found = await getattr(self._consumer, question)(tps)
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka does not tell offsets: {type(error).__name__}") from error
        return {self._place(tp): offset for tp, offset in found.items()}

    def _is_leaderless(self, place: Place) -> bool:
        assert self._consumer is not None
        cluster = self._consumer._client.cluster  # noqa: SLF001 - no other way to what the metadata said
        led = cluster.available_partitions_for_topic(self._connection.prefix + place.topic)
        return led is not None and place.partition not in led

    def _place(self, tp: TopicPartition) -> Place:
        return Place(tp.topic[len(self._connection.prefix) :], tp.partition)


async def commit_for(connection: Connection, group: str, offsets: Mapping[Place, int]) -> None:
    """Commit offsets in the name of a group that has no members; raises Transient, e.g. when it has some."""
    if not offsets:
        return
    consumer = reader(connection, group=group)
    try:
        await consumer.start()
        wanted = {
            TopicPartition(connection.prefix + place.topic, place.partition): at
            for place, at in offsets.items()
        }
        consumer.assign(list(wanted))
        await consumer.commit(wanted)
    except (KafkaError, OSError) as error:
        raise Transient(f"kafka does not take the offsets of {group}: {type(error).__name__}") from error
    finally:
        await abandon(consumer)


async def members_of(connection: Connection, group: str) -> int:
    """Count the members of a consumer group; raises Transient."""
    admin = await _admin(connection)
    try:
        answers = await admin.describe_consumer_groups([connection.prefix + group])
    except (KafkaError, OSError) as error:
        raise Transient(f"kafka does not tell about {group}: {type(error).__name__}") from error
    finally:
        await admin.close()
    return sum(len(found[5]) for answer in answers for found in answer.groups)


_NEARBY = 1_000
"""Reading on over so many records costs no more than a fetch from a new offset."""


async def record_at(connection: Connection, place: Place, offset: int) -> Record | None:
    """Fetch one record; None when the log does not hold it any more; raises Transient."""
    return (await records_at(connection, {place: [offset]})).get((place, offset))


async def records_at(
    connection: Connection, wanted: Mapping[Place, Sequence[int]]
) -> dict[tuple[Place, int], Record]:
    """Fetch records by their offsets; what the log does not hold any more is absent; raises Transient."""
    # A partition is asked for only behind the fetch that waits for more of the one before.
    consumer = reader(connection, auto_offset_reset="none", fetch_max_wait_ms=20)
    tps = {place: TopicPartition(connection.prefix + place.topic, place.partition) for place in wanted}
    found: dict[tuple[Place, int], Record] = {}
    try:
        await consumer.start()
        starts = await consumer.beginning_offsets(list(tps.values()))
        ends = await consumer.end_offsets(list(tps.values()))
        for place, tp in tps.items():
            held = {offset for offset in wanted[place] if starts[tp] <= offset < ends[tp]}
            for record in await _at_offsets(consumer, tp, held):
                object.__setattr__(record, "topic", place.topic)
                found[place, record.offset] = record
    except (KafkaError, OSError) as error:
        raise Transient(f"kafka does not give records of {', '.join(p.topic for p in wanted)}") from error
    finally:
        await abandon(consumer)
    return found


async def _at_offsets(consumer: AIOKafkaConsumer, tp: TopicPartition, wanted: set[int]) -> list[Any]:
    left, found = deque(sorted(wanted)), []
    consumer.assign([tp])
    progress = Progress(0.0, 0.0)
    while left:
        if tp not in progress.handed or left[0] - progress.handed[tp] >= _NEARBY:
            consumer.seek(tp, left[0])
            progress.handed[tp] = left[0]
        polled = await take(consumer, progress, 5000, MAX_BATCH)
        if not polled:
            break  # only markers of transactions are left
        found += [record for record in polled if record.offset in wanted]
        while left and left[0] < progress.handed[tp]:
            left.popleft()
    return found


async def lag_of(connection: Connection, group: str, topics: Sequence[str]) -> dict[Place, int]:
    """Count the records that a group has not committed, by partition; raises Transient.

    Commits are read first, ends second, so the figure is never negative. A group without a commit
    counts from the beginning.
    """
    offsets = Offsets(connection)
    try:
        await offsets.start()
        commits = await offsets.commits(group)
        places = await offsets.partitions(topics)
        ends, starts = await offsets.highs(places), await offsets.starts(places)
    finally:
        await offsets.stop()
    return {place: max(0, ends[place] - max(commits.get(place, 0), starts[place])) for place in places}


async def whole(connection: Connection, *topics: str) -> AsyncIterator[Any]:
    """Read topics once, from their first records to the ends that they have now."""
    consumer = reader(connection, *topics)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    yield record
    finally:
        await consumer.stop()
