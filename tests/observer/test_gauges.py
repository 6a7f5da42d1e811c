"""What the gauges say of the observer itself: how far its reading is behind, and what it could never read."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from chassis.transport import Place
from observer.canary import FLAGGED_WITHIN_MS, Canary
from observer.gauges import Gauges
from observer.lag import ReadingLag
from observer.metrics import Durations, ObserverMetrics

ROUTED, CASES = Place("router.cases", 0), Place("intake.cases", 0)
NOW_MS = 1_790_000_000_000


def _document(**more):
    canary = {"flagged_ms": None, "detection_ms": None}
    nothing = {"edges": {}, "blocked": {}, "blind_ranges": [], "kept_by_size": []}
    return {**nothing, "canary": canary, **more}


@pytest.fixture
def metrics():
    return ObserverMetrics((), (), ("router.cases", "intake.cases"), ())


def _value(metrics, name, topic="router.cases"):
    return metrics.registry.get_sample_value(name, {"topic": topic})


def _gone(first, following):
    return {
        "topic": "router.cases",
        "partition": 0,
        "from": first,
        "to": following,
        "reason": "",
        "seen_ms": 1,
    }


def test_records_that_could_not_be_read_are_shown_and_are_gone_when_nobody_lists_them(metrics):
    gauges = Gauges(metrics)
    gauges.show(_document(blind_ranges=[_gone(0, 7), _gone(9, 10)]), [], {}, {}, NOW_MS)
    assert _value(metrics, "handoff_audit_blind_records") == 8
    gauges.show(_document(), [], {}, {}, NOW_MS)
    assert _value(metrics, "handoff_audit_blind_records") == 0


def test_a_limit_by_size_is_shown_as_long_as_there_is_one(metrics):
    gauges, name = Gauges(metrics), "pipeline_retention_limited_by_size"
    gauges.show(_document(kept_by_size=["router.cases"]), [], {}, {}, NOW_MS)
    assert (_value(metrics, name), _value(metrics, name, "intake.cases")) == (1, 0)
    gauges.show(_document(), [], {}, {}, NOW_MS)
    assert _value(metrics, name) == 0


def test_durations_fall_into_the_bucket_whose_bound_they_do_not_exceed():
    edge, registry = "intake.case-recorded→router", CollectorRegistry()
    durations = Durations()
    durations.start("never")
    registry.register(durations)
    for ms in (0, 50, 51, 2_500, 86_400_001):
        durations.observe(edge, ms)
    durations.observe("new", 7)

    def value(what, edge=edge, **bound):
        return registry.get_sample_value(f"handoff_duration_seconds_{what}", {"edge": edge, **bound})

    counts = {le: value("bucket", le=le) for le in ("0.05", "0.1", "1.0", "2.5", "86400.0", "+Inf")}
    assert counts == {"0.05": 2, "0.1": 3, "1.0": 3, "2.5": 4, "86400.0": 4, "+Inf": 5}
    assert (value("count"), value("sum")) == (5, 86_402.602)
    assert (value("count", "never"), value("sum", "never"), value("count", "new")) == (0, 0, 1)


def test_a_topic_that_was_made_anew_is_shown_too(metrics):
    Gauges(metrics).show(_document(blind_ranges=[_gone(7, 0)]), [], {}, {}, NOW_MS)
    assert _value(metrics, "handoff_audit_blind_records") == 1


def test_reading_is_as_far_behind_as_what_it_has_not_read_is_old(metrics):
    lag = ReadingLag()
    behind = lag.observe({ROUTED: 1_000_000}, {ROUTED: 10}, {ROUTED: NOW_MS - 3_600_000}, NOW_MS)
    Gauges(metrics).show(_document(), [], {}, behind, NOW_MS)
    assert _value(metrics, "handoff_audit_read_lag_seconds") == 3_600


def test_one_fresh_record_after_an_idle_day_is_not_a_day_behind():
    lag = ReadingLag()
    newest = {ROUTED: NOW_MS - 86_400_000}
    assert lag.observe({ROUTED: 10}, {ROUTED: 10}, newest, NOW_MS - 1_000) == {"router.cases": 0}
    assert lag.observe({ROUTED: 11}, {ROUTED: 10}, newest, NOW_MS) == {"router.cases": 1_000}


def test_what_is_not_known_is_not_shown_as_nothing(metrics):
    gauges, lag = Gauges(metrics), ReadingLag()
    worst = {ROUTED: 5, Place("router.cases", 1): 5, CASES: 0}
    behind = lag.observe(worst, {}, {ROUTED: NOW_MS - 2_000}, NOW_MS)
    assert behind == {"router.cases": None, "intake.cases": 0}
    gauges.show(_document(), [], {}, behind, NOW_MS)
    assert _value(metrics, "handoff_audit_read_lag_seconds") is None
    assert _value(metrics, "handoff_audit_read_lag_seconds", "intake.cases") == 0


class Mute:
    """A log that takes nothing."""

    async def publish(self, _):
        raise OSError("cannot write ops.canary")


async def _sung(canary, seconds):
    singing = asyncio.create_task(canary.sing_every(seconds))
    await asyncio.sleep(0)
    singing.cancel()
    await asyncio.gather(singing, return_exceptions=True)
    return canary._since_ms


async def test_a_canary_that_cannot_be_sung_is_as_late_as_one_that_nobody_names():
    canary = Canary(None, Mute(), None)
    assert canary.silent_for_ms(NOW_MS) == 0, "nobody sings: nothing is late"
    began_ms = await _sung(canary, 60.0)
    due_ms = began_ms + 60_000 + FLAGGED_WITHIN_MS
    assert canary.silent_for_ms(due_ms) == 0
    assert canary.silent_for_ms(due_ms + 1) == due_ms + 1 - began_ms
    canary.flagged(b"a song of the process before", due_ms)
    assert canary.silent_for_ms(due_ms + 1) == 0
