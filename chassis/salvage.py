"""Fetches again what the Kafka client cannot decode, so that a bad record is quarantined with its bytes.

The client decodes header names strictly and gives up the whole poll for one bad name, also what follows
in the same producer's batch. Here that batch is taken apart by the documented layout (magic 2).
"""

from collections.abc import Iterator
from struct import unpack_from
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.util import decode_varint

from chassis.transport import Refetched

_READ_COMMITTED = 1
_FETCH_BYTES = 2 << 20


async def salvage(consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int) -> list[Refetched]:
    """Fetch the rest of the producer's batch in which an offset lies; raises KafkaError while it fails."""
    client = consumer._client  # noqa: SLF001 - there is no public way to a raw fetch
    wanted = [(tp.topic, [(tp.partition, offset, _FETCH_BYTES)])]
    request = FetchRequest(500, 1, _FETCH_BYTES, _READ_COMMITTED, wanted)
    response = await client.send(client.cluster.leader_for_partition(tp), request)
    for _, partitions in response.topics:
        for _, error_code, _, *_, batches in partitions:
            if error_code == 0:
                for batch in _batches(bytes(batches or b"")):
                    rest = [record for record in _records(batch, tp) if record.offset >= offset]
                    if rest:
                        return rest
    raise KafkaError(f"the broker does not give {tp.topic}/{tp.partition}/{offset} now")


def _batches(data: bytes) -> Iterator[Any]:
    at = 0
    while at + 12 <= len(data):
        end = at + 12 + unpack_from(">i", data, at + 8)[0]
        if end > len(data):
            return
        batch = _DefaultRecordBatchPy(data[at:end])
        if not batch.is_control_batch:
            yield batch
        at = end


def _records(batch: Any, tp: TopicPartition) -> Iterator[Refetched]:
    batch._maybe_uncompress()  # noqa: SLF001 - the client's own decompression
    buffer, at = bytes(batch._buffer), batch._pos  # noqa: SLF001
    for _ in range(batch._num_records):  # noqa: SLF001
        size, at = decode_varint(buffer, at)
        end = at + size
        late, at = decode_varint(buffer, at + 1)
        delta, at = decode_varint(buffer, at)
        key, at = _sized(buffer, at)
        value, at = _sized(buffer, at)
        count, at = decode_varint(buffer, at)
        headers, fault = [], ""
        for _ in range(count):
            name, at = _sized(buffer, at)
            content, at = _sized(buffer, at)
            shown = (name or b"").decode(errors="replace")
            if shown.encode() != name:
                fault = "a header's name is not UTF-8"
            headers.append((shown, content or b""))
        stamp = batch.max_timestamp if batch.timestamp_type else batch.first_timestamp + late
        offset = batch.base_offset + delta
        yield Refetched(tp.topic, tp.partition, offset, stamp, key, value, headers, fault)
        at = end


def _sized(buffer: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(buffer, at)
    return (None, at) if size < 0 else (buffer[at : at + size], at + size)
