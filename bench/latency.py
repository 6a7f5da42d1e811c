"""From a call's events to the case in its department's hands, at a steady rate; open loop."""

from __future__ import annotations

import asyncio
import gc
import statistics
from dataclasses import dataclass, field
from typing import Any

from bench.load import Load
from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher, reader
from cli.world import Place, World
from schemas.envelope import BY_BODY
from schemas.resolver import CaseAssigned
from schemas.topics import DEPARTMENTS

WARM_UP = 3.0
_ASSIGNED = BY_BODY[CaseAssigned].wire.encode()


class Behind(Exception):
    """Not every case arrived; such a run has no figures."""


@dataclass(slots=True)
class _Run:
    due: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)


async def latency_at(world: World, place: Place, rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds from the moment a case was due to be sent to its arrival: p50, p90, p99, max.

    The clock starts at the due time, not at the sending, so a late generator counts against us.
    """
    vault = await world.vault(place)
    count = int(rate * (WARM_UP + seconds))
    load = Load(vault, count)
    await load.prepare()
    cases = [load.call(index) for index in range(count)]
    run = _Run()
    publisher = KafkaPublisher(place.kafka, "hotline-bench")
    sink = reader(place.kafka, *(f"departments.{code}" for code in DEPARTMENTS))
    await publisher.start()
    await sink.start()
    await sink.seek_to_end()
    for tp in sink.assignment():
        await sink.position(tp)
    gc.disable()
    reading = asyncio.create_task(_read(sink, run, count))
    try:
        await _send(publisher, cases, [planned.call_id for planned in load.planned], rate, run)
        await asyncio.wait_for(reading, 30)
    except TimeoutError:
        raise Behind(f"{len(run.took)} of {count} cases arrived") from None
    finally:
        gc.enable()
        reading.cancel()
        await publisher.stop()
        await sink.stop()
        await vault.close()
    return _figures(run, rate, count)


async def _send(
    publisher: KafkaPublisher, cases: list[list[Any]], calls: list[str], rate: float, run: _Run
) -> None:
    started = monotonic() + 0.2
    sending: set[asyncio.Task[None]] = set()
    for index, messages in enumerate(cases):
        due = started + index / rate
        run.due[calls[index]] = due
        await asyncio.sleep(max(0.0, due - monotonic()))
        task = asyncio.create_task(publisher.publish(messages))
        sending.add(task)
        task.add_done_callback(sending.discard)
    await asyncio.gather(*sending)


async def _read(sink: Any, run: _Run, count: int) -> None:
    while len(run.took) < count:
        polled = await sink.getmany(timeout_ms=500)
        arrived = monotonic()
        for records in polled.values():
            for record in records:
                if dict(record.headers).get("ce_type") != _ASSIGNED:
                    continue
                call_id = CaseAssigned.parse(record.value).case.call_id
                if call_id in run.due:
                    run.took.setdefault(call_id, arrived - run.due[call_id])


def _figures(run: _Run, rate: float, count: int) -> dict[str, float]:
    warm = list(run.due)[int(rate * WARM_UP) :]
    times = [run.took[call_id] * 1000 for call_id in warm]
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "p50": round(cuts[49], 1),
        "p90": round(cuts[89], 1),
        "p99": round(cuts[98], 1),
        "max": round(max(times), 1),
        "cases": count,
    }
