"""Takes batches from the Kafka client: at once when there is something, and nothing is lost when it fails.

The client moves its position while it decodes. When it then raises, what it had decoded is gone and the
next poll goes on behind it. So a failed poll goes back to what was handed out last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerStoppedError, TopicPartition
from aiokafka.errors import KafkaError
from faststream.kafka.subscriber.usecase import BatchSubscriber

from chassis.clock import monotonic
from chassis.log import get_logger
from chassis.salvage import salvage
from chassis.transport import Place

MAX_BATCH = 250
FULL_ENOUGH_TO_COLLECT = 8
"""A batch of more records says that work comes faster than it is done: then waiting a little saves CPU.
Fewer may be one call's own events."""
_COLLECT_SECONDS = 0.004
_log = get_logger(part="kafka")


@dataclass(slots=True)
class Progress:
    """How far one consumer is: what the watchdog looks at, and what a failed poll goes back to.

    `handed` holds, per partition, the offset after the last record that was handed out; `gather` is how
    many seconds records may gather even when work is slack.
    """

    polled_at: float
    committed_at: float
    assigned: frozenset[Place] = frozenset()
    committed: int = 0
    busy: bool = False
    handed: dict[TopicPartition, int] = field(default_factory=dict)
    astray: bool = False
    gather: float = 0.0


PROGRESS: dict[int, Progress] = {}
"""By consumer: FastStream makes the subscriber, whose slots allow no attribute."""


class PromptSubscriber(BatchSubscriber):
    """FastStream's batch subscriber without the sleep, and with an adaptive collect window."""

    __slots__ = ()

    async def get_msg(self, consumer: AIOKafkaConsumer) -> tuple[Any, ...]:
        """Wait for records and take them; raises KafkaError, after which nothing is skipped."""
        while self.running:
            progress = PROGRESS.get(id(consumer))
            if progress is None:
                # The group was joined a moment before the subscription has noted it.
                await asyncio.sleep(0.001)
                continue
            records = await gather(consumer, progress)
            progress.polled_at = monotonic()
            if records:
                return tuple(records)
        return ()


async def gather(consumer: AIOKafkaConsumer, progress: Progress) -> list[Any]:
    """Wait for records half a second at most, then a moment for more where that spares polls."""
    records = await take(consumer, progress, 500, MAX_BATCH)
    window = max(progress.gather, _COLLECT_SECONDS if progress.busy else 0.0)
    if window and 0 < len(records) < MAX_BATCH:
        await asyncio.sleep(window)
        # What is in hand counts as handed out: it must not go down with a poll that fails. The fault is met
        # again at the next one.
        with suppress(KafkaError):
            records += await take(consumer, progress, 0, MAX_BATCH - len(records))
    progress.busy = len(records) > FULL_ENOUGH_TO_COLLECT
    return records


async def take(consumer: AIOKafkaConsumer, progress: Progress, timeout_ms: int, most: int) -> list[Any]:
    """Poll once; what the client cannot decode comes as `Refetched`; raises KafkaError."""
    found: list[Any] = []
    try:
        if progress.astray:
            await _go_back(consumer, progress)
        try:
            _hand_out(await consumer.getmany(timeout_ms=timeout_ms, max_records=most), progress, found)
        except UnicodeDecodeError:
            await _go_back(consumer, progress)
            await _one_partition_at_a_time(consumer, progress, most, found)
    except ConsumerStoppedError:
        raise
    except Exception as error:
        progress.astray = True
        if found:
            # They count as handed out, so they are; what failed is met again at the next poll.
            return found
        if isinstance(error, KafkaError):
            raise
        raise KafkaError(f"the client failed: {type(error).__name__}") from error
    return found


def _hand_out(polled: Mapping[TopicPartition, Sequence[Any]], progress: Progress, found: list[Any]) -> None:
    for tp, taken in polled.items():
        progress.handed[tp] = taken[-1].offset + 1
        found += taken


async def _go_back(consumer: AIOKafkaConsumer, progress: Progress) -> None:
    """Set every partition to where reading stopped: behind what was handed out, else at the commit."""
    for tp in consumer.assignment():
        offset = progress.handed.get(tp)
        if offset is None:
            offset = await consumer.committed(tp)
        if offset is None:
            offset = (await consumer.beginning_offsets([tp]))[tp]
        consumer.seek(tp, offset)
        progress.handed[tp] = offset
    progress.astray = False


async def _one_partition_at_a_time(
    consumer: AIOKafkaConsumer, progress: Progress, most: int, found: list[Any]
) -> None:
    """Find the record that cannot be decoded, without holding up the other partitions."""
    for tp in sorted(consumer.assignment() - consumer.paused()):
        room = most - len(found)
        if room <= 0:
            return
        try:
            _hand_out(await consumer.getmany(tp, timeout_ms=50, max_records=room), progress, found)
        except UnicodeDecodeError:
            consumer.seek(tp, progress.handed[tp])
            await _up_to_the_bad_one(consumer, progress, tp, most, found)


async def _up_to_the_bad_one(
    consumer: AIOKafkaConsumer, progress: Progress, tp: TopicPartition, most: int, found: list[Any]
) -> None:
    """Step record by record to the one that cannot be decoded, and take its batch apart ourselves."""
    while len(found) < most:
        try:
            polled = await consumer.getmany(tp, timeout_ms=1000, max_records=1)
        except UnicodeDecodeError:
            rest = await salvage(consumer, tp, progress.handed[tp])
            for bad in (record for record in rest if record.fault):
                _log.error("undecodable_record", topic=tp.topic, partition=tp.partition, offset=bad.offset)
            consumer.seek(tp, rest[-1].offset + 1)
            _hand_out({tp: rest}, progress, found)
            return
        if not polled:
            return
        _hand_out(polled, progress, found)
