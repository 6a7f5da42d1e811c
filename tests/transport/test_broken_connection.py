"""A connection that closes under a write is a fault of the network, whatever event loop runs."""

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from chassis.kafka import abandon, reader


class Closed:
    """A writer whose transport the loop has closed, as uvloop reports it."""

    def __init__(self, writer) -> None:
        self._writer = writer

    def write(self, _: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    def close(self) -> None:
        self._writer.close()


@pytest.mark.kafka
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


class Stopping:
    """A client whose `stop` ends as it does once the broker is dead, or hangs."""

    def __init__(self, *, hangs: bool) -> None:
        self.client, self.closed, self._hangs, self.stopping = self, False, hangs, asyncio.Event()

    async def stop(self) -> None:
        self.stopping.set()
        if self._hangs:
            await asyncio.sleep(3600)
        raise asyncio.CancelledError

    async def close(self) -> None:
        self.closed = True


async def test_a_cancellation_that_the_client_lets_out_ends_nobody():
    client = Stopping(hangs=False)
    await abandon(client)
    assert client.closed


async def test_whoever_is_cancelled_while_abandoning_a_client_is_cancelled():
    client = Stopping(hangs=True)
    task = asyncio.create_task(abandon(client, 3600))
    await client.stopping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
