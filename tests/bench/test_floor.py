"""The floor is measured on what real cases left, piece by piece, and leaves no table behind."""

from collections import Counter

import asyncpg
import pytest

from bench.drain import Incomplete
from bench.floor import _sample, floor_of
from bench.load import Load
from bench.measure import Meter
from chassis.kafka import KafkaPublisher
from chassis.message import Writer, time_header
from chassis.roots import new_id
from tests.given import NOW, a_case, recorded, resolved

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
    await publisher.publish(_said(CASES))
    await publisher.stop()
    return place


def _said(cases):
    """What stages say: of each case that it was recorded and resolved, both read by two other stages."""
    writer, at = Writer("intake"), time_header(NOW)
    bodies = [body for case in (a_case() for _ in range(cases)) for body in (recorded(case), resolved(case))]
    return [writer.write(body, uid=new_id(), at=at, correlation="-") for body in bodies]


@pytest.fixture
def meter(stack):
    return Meter.of(stack)


async def _handle(place):
    """Have intake's inbox hold as many events as the calls have."""
    connection = await asyncpg.connect(place.database_url)
    await connection.execute(
        f'insert into "{place.database_prefix}intake".inbox (event_id, batch, digest, outcome)'
        " select gen_random_uuid(), 1, 1, 'noted' from generate_series(1, $1)",
        CASES * CALL,
    )
    await connection.close()


async def test_each_piece_is_measured_and_the_floor_is_their_sum(place, meter):
    await _handle(place)
    connection = await asyncpg.connect(place.database_url)
    schema = f"{place.database_prefix}intake"
    await connection.execute(
        f'insert into "{schema}".entities (key, version, sequence, updated_at, phase, timers, document)'
        " values ('a', 1, 1, now(), 'ended', '{}', '{}')"
    )

    floor = await floor_of(place, meter)

    handled, said = CASES * CALL, CASES * 2
    assert floor["read_per_event"] == round((handled + said * 2) / handled, 2)
    assert floor["said_per_event"] == round(said / handled, 2)
    each = floor["pieces_us"]
    assert all(cost > 0 for name, cost in each.items() if name in {"read", "decode", "encode"})
    read = each["read"] * (handled + said * 2) / handled
    saying = (each["encode"] + each["send"]) * said / handled
    assert floor["us_per_event"] == pytest.approx(read + each["decode"] + each["store"] + saying, abs=0.2)
    left = await connection.fetchval(
        "select count(*) from pg_namespace where nspname = $1", f"{place.database_prefix}floor"
    )
    await connection.close()
    assert left == 0


async def test_of_a_large_log_every_topic_gives_its_share_and_every_case_all_or_nothing(place):
    await _handle(place)
    whole = await _sample(place, 10**6)
    some = await _sample(place, len(whole.records) // 4)

    every = Counter(record.key for record in whole.records)
    taken = Counter(record.key for record in some.records)
    assert len(whole.records) == CASES * (CALL + 2)
    assert 0 < len(taken) < len(every)
    assert all(every[key] == count for key, count in taken.items()), "a case's events stay together"
    assert (some.read, some.said) == (whole.read, whole.said), "counted on all, not on the sample"


async def test_without_a_drain_before_there_is_no_floor(place, meter):
    with pytest.raises(Incomplete, match="run a drain first"):
        await floor_of(place, meter)
