"""The floor is measured on what real cases left, piece by piece, and leaves nothing behind."""

import asyncpg
import pytest

from bench.drain import Incomplete
from bench.floor import floor_of
from bench.load import Load
from bench.measure import Meter
from chassis.kafka import KafkaPublisher

CASES, CALL = 20, 6


@pytest.fixture
async def place(world, vault):
    """A world with calls on its log, of which nothing is handled yet."""
    place = world.start_stack()
    load = Load(vault, CASES)
    await load.prepare()
    publisher = KafkaPublisher(place.kafka, "t")
    await publisher.start()
    await publisher.publish(load.calls())
    await publisher.stop()
    return place


@pytest.fixture
def meter(stack):
    return Meter(stack.postgres.url, stack.postgres.process.pid, stack.kafka.process.pid)


async def test_each_piece_is_measured_and_the_floor_is_their_sum(place, meter):
    connection = await asyncpg.connect(place.database_url)
    schema = f"{place.database_prefix}intake"
    await connection.execute(
        f'insert into "{schema}".inbox (event_id, batch, digest, outcome)'
        " select gen_random_uuid(), 1, 1, 'noted' from generate_series(1, $1)",
        CASES * CALL,
    )
    await connection.execute(
        f'insert into "{schema}".entities (key, version, sequence, updated_at, phase, timers, document)'
        " values ('a', 1, 1, now(), 'ended', '{}', '{}')"
    )

    floor = await floor_of(place, meter)

    assert floor["read_per_event"] == 1, "one group reads them, and all are handled"
    assert floor["said_per_event"] == 0, "no stage has said anything"
    each = floor["pieces_us"]
    assert all(cost > 0 for name, cost in each.items() if name in {"read", "decode", "encode"})
    assert floor["us_per_event"] == pytest.approx(each["read"] + each["decode"] + each["store"], abs=0.2)
    left = await connection.fetchval(
        "select count(*) from pg_namespace where nspname = $1", f"{place.database_prefix}floor"
    )
    await connection.close()
    assert left == 0


async def test_without_a_drain_before_there_is_no_floor(place, meter):
    with pytest.raises(Incomplete, match="run a drain first"):
        await floor_of(place, meter)
