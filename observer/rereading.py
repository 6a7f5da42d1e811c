"""Reads stretches of the log again, from a time on: for those who check what was concluded from them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from chassis.faults import Transient
from chassis.following import Follower
from chassis.kafka import Connection, abandon, reader
from chassis.transport import Place, Record

_AT_ONCE = 4_000
_WAIT_S = 0.2


async def offsets_since(connection: Connection, since_ms: Mapping[str, int]) -> dict[Place, int]:
    """Give the first offset of each topic's partitions that was appended at its time (ms) or later.

    Of a partition without such a record it is the end. Raises Transient while Kafka does not answer.
    """
    consumer, cut = reader(connection, *since_ms), len(connection.prefix)
    try:
        await consumer.start()
        asked = {tp: since_ms[tp.topic[cut:]] for tp in consumer.assignment()}
        found = await consumer.offsets_for_times(asked)
        ends = await consumer.end_offsets(list(asked))
    except Exception as error:
        raise Transient(f"kafka does not tell where a time begins: {type(error).__name__}") from error
    finally:
        await abandon(consumer)
    return {
        Place(tp.topic[cut:], tp.partition): ends[tp] if at is None else at.offset for tp, at in found.items()
    }


class Rereading:
    """One pass over stretches of the log; `positions` tells up to where each was read."""

    def __init__(self, connection: Connection, begin: Mapping[Place, int]) -> None:
        self._follower, self._begin = Follower(connection), begin
        self.positions: dict[Place, int] = dict(begin)

    async def start(self) -> None:
        """Connect; raises Transient while Kafka is away."""
        await self._follower.start()
        self._follower.follow(self._begin)

    async def stop(self) -> None:
        """Disconnect."""
        await self._follower.stop()

    async def up_to(self, ends: Mapping[Place, int]) -> AsyncIterator[Sequence[Record]]:
        """Give the records below these ends, and perhaps some behind them; raises Transient."""
        while any(self.positions.get(place, end) < end for place, end in ends.items()):
            records = await self._follower.poll(_WAIT_S, _AT_ONCE)
            self.positions |= await self._follower.positions()
            if records:
                yield records
