"""Reads whole topics without a consumer group, from where the caller says: for those who watch.

What the log no longer holds is told, not skipped; a record that the client cannot decode comes like any
other; partitions that appear are taken up from their first record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from chassis.clock import monotonic
from chassis.faults import Transient
from chassis.kafka import Connection, abandon, reader
from chassis.polling import Progress, take
from chassis.transport import Place, Record

_FETCH_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Unread:
    """Records that are gone: deleted by retention before they were read, or with their whole topic."""

    place: Place
    first: int
    following: int
    recreated: bool = False


class Follower:
    """Follows every partition that it was given; positions are offsets of the next record to read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._consumer: AIOKafkaConsumer | None = None
        self._progress = Progress(monotonic(), monotonic())
        self._places: dict[TopicPartition, Place] = {}
        self._unread: list[Unread] = []

    async def start(self) -> None:
        """Connect; raises Transient while Kafka is away."""
        consumer = reader(
            self._connection,
            auto_offset_reset="none",
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=100,
        )
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            with suppress(Exception):
                await abandon(consumer)
            raise Transient(f"kafka is not reachable at {self._connection.bootstrap}") from error
        self._consumer = consumer

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await abandon(consumer)

    def follow(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions too, each from its position; those that are followed already go on."""
        assert self._consumer is not None
        for place, offset in positions.items():
            tp = TopicPartition(self._connection.prefix + place.topic, place.partition)
            if tp not in self._places:
                self._places[tp] = place
                self._progress.handed[tp] = offset
        self._consumer.assign(list(self._places))
        for tp in self._places:
            self._consumer.seek(tp, self._progress.handed[tp])

    @property
    def followed(self) -> frozenset[Place]:
        """The partitions that are read."""
        return frozenset(self._places.values())

    async def poll(self, seconds: float, most: int) -> Sequence[Record]:
        """Take up to `most` records, in order per partition; raises Transient, and skips nothing then."""
        assert self._consumer is not None
        try:
            records = await take(self._consumer, self._progress, int(seconds * 1000), most)
        except OffsetOutOfRangeError:
            await self._find_what_is_gone()
            return []
        except (KafkaError, OSError) as error:
            raise Transient(f"reading failed: {type(error).__name__}: {error}") from error
        cut = len(self._connection.prefix)
        if cut:
            for record in records:
                object.__setattr__(record, "topic", record.topic[cut:])
        return records

    async def _find_what_is_gone(self) -> None:
        assert self._consumer is not None
        try:
            starts = await self._consumer.beginning_offsets(list(self._places))
            ends = await self._consumer.end_offsets(list(self._places))
        except (KafkaError, OSError) as error:
            raise Transient(f"kafka does not tell offsets: {type(error).__name__}") from error
        for tp, place in self._places.items():
            position = self._progress.handed[tp]
            if position < starts[tp] or position > ends[tp]:
                made_anew = position > ends[tp]
                self._unread.append(Unread(place, position, starts[tp], made_anew))
                self._progress.handed[tp] = starts[tp]
        self._progress.astray = True

    def unread(self) -> list[Unread]:
        """Hand over what could not be read since the last call."""
        unread, self._unread = self._unread, []
        return unread

    def held(self) -> dict[Place, int]:
        """Give the last stable offset of each partition where a transaction behind it is still open."""
        assert self._consumer is not None
        found = {}
        for tp, place in self._places.items():
            stable, high = self._consumer.last_stable_offset(tp), self._consumer.highwater(tp)
            if stable is not None and high is not None and 0 <= stable < high:
                found[place] = stable
        return found

    def waiting(self) -> int:
        """Count the records that the last answers of Kafka have announced and nobody has taken."""
        assert self._consumer is not None
        handed = self._progress.handed
        ends = ((tp, self._consumer.last_stable_offset(tp)) for tp in self._places)
        return sum(max(0, end - handed[tp]) for tp, end in ends if end is not None)

    async def positions(self) -> dict[Place, int]:
        """Tell up to where each partition is read, past markers of transactions too."""
        assert self._consumer is not None
        found = {}
        for tp, place in self._places.items():
            found[place] = handed = self._progress.handed[tp]
            if not self._progress.astray:
                found[place] = max(handed, await self._consumer.position(tp))
        return found
