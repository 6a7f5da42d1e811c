"""The port to the log: what the chassis needs of Kafka, no more; `kafka.py` and `memory.py` fill it."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import unpack_from
from typing import Any, NamedTuple, Protocol, TypeAlias

Headers: TypeAlias = Sequence[tuple[str, bytes]]


SENT_AGAIN = "hotline-redrive"
"""A header that says: an operator sends this record again, because its effect is missing."""


class Place(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Record(Protocol):
    """A consumed record, as the Kafka client hands it over."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


@dataclass(slots=True)
class Refetched:
    """A record that we took apart ourselves, because the client could not decode its producer's batch.

    `fault` says what is wrong with this one, and is empty for its innocent neighbours.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    fault: str


class Outgoing(NamedTuple):
    """A message on its way out; `key` also decides the partition."""

    topic: str
    key: bytes
    value: bytes | None
    headers: Headers


class Publisher(Protocol):
    """Appends messages to the log."""

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Return when every message is acknowledged, in order per partition; raises Transient."""
        ...


class Reader(Protocol):
    """The consumer's controls that a pass needs."""

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        """Commit exactly these next offsets; a lost assignment is logged, not raised."""
        ...

    def block(self, place: Place, offset: int) -> None:
        """Stop reading a partition at an offset until it is unblocked."""
        ...

    def unblock(self, place: Place) -> None:
        """Read a blocked partition again from where it stopped."""
        ...


Handler: TypeAlias = Callable[[Sequence[Record], Reader], Coroutine[Any, Any, None]]
Settle: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until everything that a handler has begun is sent and committed."""


@lru_cache(maxsize=1 << 16)
def partition_for(key: bytes, partitions: int) -> int:
    """Choose the partition of a key as Kafka's default partitioner does (MurmurHash2, seed 0x9747b28c).

    The same function as the Java client's, so that departments and telephony that write with
    their own clients put a case on the partition on which the stage's own timers put it.
    """
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    length = len(data)
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ length
    whole = length & ~3
    for word in unpack_from(f"<{whole >> 2}I", data):
        k = word * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)
