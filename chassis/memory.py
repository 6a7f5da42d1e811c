"""The log in memory, for tests of a stage: it passes the same suite as Kafka (tests/transport)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chassis.clock import epoch_ms
from chassis.transport import Handler, Headers, Outgoing, Place, Settle, partition_for


@dataclass(slots=True)
class MemoryRecord:
    """A record as a consumer sees it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class MemoryLog:
    """Topics with partitions, and the committed offsets of groups."""

    partitions: int = 4
    places: dict[Place, list[MemoryRecord]] = field(default_factory=lambda: defaultdict(list))
    committed: dict[tuple[str, Place], int] = field(default_factory=dict)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Append messages, in order per partition."""
        for message in messages:
            self.append(message)

    def append(self, message: Outgoing) -> MemoryRecord:
        """Append one message and give its record."""
        place = Place(message.topic, partition_for(message.key, self.partitions))
        queue = self.places[place]
        record = MemoryRecord(
            *place, len(queue), epoch_ms(), message.key, message.value, list(message.headers)
        )
        queue.append(record)
        return record

    def records(self, topic: str) -> list[MemoryRecord]:
        """List a topic's records, partition by partition."""
        return [
            record for place in sorted(self.places) if place.topic == topic for record in self.places[place]
        ]


class MemorySubscription:
    """One member of a consumer group on a log in memory; read only when told to."""

    def __init__(
        self,
        log: MemoryLog,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        settle: Settle | None = None,
    ) -> None:
        self._log, self.group, self._topics, self._handler = log, group, set(topics), handler
        self._settle = settle
        self._position: dict[Place, int] = {}
        self._blocked: set[Place] = set()

    async def drain(self, max_records: int = 1000) -> int:
        """Hand over batches until nothing is left to read; returns how many records were read."""
        total = 0
        while batch := self._poll(max_records):
            total += len(batch)
            await self._handler(batch, self)
            if self._settle is not None:
                await self._settle()
        return total

    def _poll(self, max_records: int) -> list[MemoryRecord]:
        batch: list[MemoryRecord] = []
        for place, queue in sorted(self._log.places.items()):
            if place.topic not in self._topics or place in self._blocked:
                continue
            start = self._position.get(place, self._log.committed.get((self.group, place), 0))
            taken = queue[start : start + max_records - len(batch)]
            self._position[place] = start + len(taken)
            batch += taken
        return batch

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        """Commit exactly these next offsets."""
        for place, offset in offsets.items():
            self._log.committed[self.group, place] = offset

    def block(self, place: Place, offset: int) -> None:
        """Stop reading a partition at an offset until it is unblocked."""
        self._position[place] = offset
        self._blocked.add(place)

    def unblock(self, place: Place) -> None:
        """Read a blocked partition again from where it stopped."""
        self._blocked.discard(place)
