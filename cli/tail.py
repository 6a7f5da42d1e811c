"""Events as they lie on the topics, newest last."""

from __future__ import annotations

from typing import Any

from chassis.clock import monotonic
from chassis.kafka import reader
from cli import show
from cli.history import case_id_of
from cli.world import NotFound, Place
from schemas.topics import TOPICS

_FIELDS = ("ce_time", "ce_type", "ce_id", "ce_correlationid", "ce_causationid", "ce_sequence")


async def tail(place: Place, case: str, *, follow: bool, limit: int, as_json: bool) -> None:
    """Print events in the order of their time; with `follow`, until interrupted."""
    wanted = ""
    if case:
        found = await case_id_of(place, case)
        if found is None:
            raise NotFound(f"nobody has said anything about {case}: hotline events tail")
        wanted = str(found)
    consumer = reader(place.kafka, *(topic.name for topic in TOPICS if not topic.name.startswith("ops.")))
    await consumer.start()
    try:
        await _print_on(consumer, wanted, follow=follow, limit=limit, as_json=as_json)
    finally:
        await consumer.stop()


async def _print_on(consumer: Any, wanted: str, *, follow: bool, limit: int, as_json: bool) -> None:
    quiet_since = monotonic()
    kept: list[dict[str, Any]] = []
    while follow or monotonic() - quiet_since < 1.0:
        polled = await consumer.getmany(timeout_ms=300)
        rows = [_row(record) for records in polled.values() for record in records]
        rows = [row for row in rows if not wanted or row["ce_correlationid"] == wanted]
        if polled:
            quiet_since = monotonic()
        if follow:
            show.events(sorted(rows, key=lambda row: row["ce_time"]), as_json=as_json)
        else:
            kept = sorted([*kept, *rows], key=lambda row: row["ce_time"])[-limit:]
    show.events(kept, as_json=as_json)


def _row(record: Any) -> dict[str, Any]:
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return {**{name: headers.get(name, "") for name in _FIELDS}, **place}
