"""A connection that closes under a write is a fault of the network, whatever event loop runs."""

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from chassis.kafka import reader

pytestmark = pytest.mark.kafka


class Closed:
    """A writer whose transport the loop has closed, as uvloop reports it."""

    def __init__(self, writer) -> None:
        self._writer = writer

    def write(self, _: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    def close(self) -> None:
        self._writer.close()


async def test_the_metadata_task_outlives_a_write_to_a_closed_transport(kafka):
    consumer = reader(kafka)
    await consumer.start()
    try:
        client = consumer._client
        assert await client.force_metadata_update()
        connection = next(iter(client._conns.values()))
        connection._writer = Closed(connection._writer)
        with pytest.raises(KafkaConnectionError):
            connection.send(MetadataRequest([]))
        assert await client.force_metadata_update()
        assert not client._sync_task.done()
    finally:
        await consumer.stop()
