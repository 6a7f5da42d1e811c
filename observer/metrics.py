"""What the observer counts, under the names that the alerts, the dashboard and the runbook use."""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from math import isfinite
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chassis.transport import Place

STATUSES = (
    "ok",
    "catching up",
    "falling behind",
    "stalled",
    "paused",
    "stopped",
    "rewound",
    "no commit",
    "no leader",
    "blind",
)
"""The words for how a consumer group is; exactly one holds."""

NO_DEPARTMENT = "-"
"""Stands for the department where agents or customers are asked."""

OUTCOMES = ("discharged", "closed", "dead_lettered", "recovered", "waived")
"""The ways in which a handoff is settled."""

_PLACE = ("group", "topic", "partition")
_DURATIONS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400)
_DETECTIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)


class Durations(Collector):
    """From a handoff to its answer, by edge: a histogram that is cheap to add to.

    The library's own takes three times as long for each value, and there is one for every handoff.
    """

    _BOUNDS_MS = tuple(bound * 1000 for bound in _DURATIONS)
    _BOUNDS = (*(str(float(bound)) for bound in _DURATIONS), "+Inf")

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums_ms: dict[str, int] = {}

    def start(self, edge: str) -> list[int]:
        """Have an edge stand at 0."""
        self._sums_ms[edge] = 0
        counts = self._counts[edge] = [0] * len(self._BOUNDS)
        return counts

    def observe(self, edge: str, ms: int) -> None:
        """Add one duration in milliseconds."""
        counts = self._counts.get(edge) or self.start(edge)
        counts[bisect_left(self._BOUNDS_MS, ms)] += 1
        self._sums_ms[edge] += ms

    def collect(self) -> Iterator[Metric]:
        """Give the metric as it stands, in seconds."""
        family = HistogramMetricFamily(
            "handoff_duration_seconds", "From a handoff to its answer", labels=["edge"]
        )
        for edge, counts in self._counts.items():
            buckets = list(zip(self._BOUNDS, accumulate(counts), strict=True))
            family.add_metric([edge], buckets, self._sums_ms[edge] / 1000)
        yield family


class ObserverMetrics:
    """The metrics of handoffs and lag; everything that can be counted stands at 0 from the start.

    `increase()` does not see the step of a counter that is born at 1. What must be measured (lag,
    headroom, time to drain) is absent until it is known, because a 0 would be a claim, and a group
    is "blind" until somebody has looked. No label ever holds a case or an event.
    """

    def __init__(
        self, edges: Iterable[str], groups: Iterable[str], topics: Iterable[str], services: Iterable[str]
    ) -> None:
        self.registry = CollectorRegistry()
        self._measure_lag()
        self._count_handoffs()
        self._watch_the_watcher()
        self._departments: dict[str, set[str]] = {}
        self._reasons: dict[str, set[str]] = {}
        self._start_edges(tuple(edges))
        for group in groups:
            self.status(group, "blind")
            self.effect_after_commit.labels(group)
        self._topics = tuple(topics)
        for topic in self._topics:
            self.orphans.labels(topic)
        self.blind(())
        for service in services:
            self.sequence_gaps.labels(service)

    def _measure_lag(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.lag_seconds = gauge(
            "pipeline_consumer_lag_seconds", "Age of the oldest record that is not committed", _PLACE
        )
        self.lag_records = gauge("pipeline_consumer_lag_records", "Records not committed yet", _PLACE)
        self.drain_eta = gauge(
            "pipeline_consumer_drain_eta_seconds", "Time until nothing waits, at the present rates", ["group"]
        )
        self.consumer_status = gauge(
            "pipeline_consumer_status", "1 at the word that holds", ["group", "status"]
        )
        self.retention_headroom = gauge(
            "pipeline_retention_headroom_seconds",
            "Time until retention deletes the oldest record that is not committed",
            ["group", "topic"],
        )
        self.limited_by_size = gauge(
            "pipeline_retention_limited_by_size",
            "1 where a limit by size may delete records at any time, whatever the time says",
            ["topic"],
        )

    def _count_handoffs(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        self.settled = counter("handoff_settled", "Handoffs settled, by outcome", ["edge", "outcome"])
        self.open = gauge("handoff_open", "Handoffs not answered yet", ["edge"])
        self.oldest_open = gauge("handoff_oldest_open_seconds", "Age of the oldest open handoff", ["edge"])
        self.dropped = counter("handoff_dropped", "Handoffs proved to be dropped", ["edge"])
        self.dropped_open = gauge(
            "handoff_dropped_open", "Dropped handoffs neither recovered nor waived", ["edge"]
        )
        self.recovered = counter("handoff_recovered", "Dropped handoffs answered after all", ["edge"])
        self.dead_lettered_open = gauge(
            "handoff_dead_lettered_open", "Dead letters neither sent again nor discarded", ["edge"]
        )
        self.overdue_open = gauge(
            "handoff_overdue_open", "Handoffs on which a person has not acted in time", ["edge", "department"]
        )
        self.timer_lost_open = gauge(
            "handoff_timer_lost_open", "Deadlines that passed, proved, without the stage's alarm", ["edge"]
        )
        self.orphans = counter("handoff_orphans", "Effects whose cause does not exist", ["topic"])
        self.effect_after_commit = counter(
            "handoff_effect_after_commit", "Effects published after their cause was committed", ["group"]
        )
        self.sequence_gaps = counter(
            "handoff_sequence_gaps", "Numbers that a service gave and nobody read", ["service"]
        )
        self.durations = Durations()
        self.registry.register(self.durations)

    def _watch_the_watcher(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.detection = Histogram(
            "handoff_detection_seconds",
            "From the sight of a commit to the verdict",
            buckets=_DETECTIONS,
            registry=self.registry,
        )
        self.audit_read_lag = gauge(
            "handoff_audit_read_lag_seconds", "How far the observer's reading is behind", ["topic"]
        )
        self.audit_blocked = gauge(
            "handoff_audit_blocked_seconds", "How long verdicts have waited, and why", ["topic", "reason"]
        )
        self.audit_blind = gauge(
            "handoff_audit_blind_records", "Records that the observer can never read", ["topic"]
        )
        self.last_pass = gauge("handoff_audit_last_pass_timestamp_seconds", "When the observer last judged")
        self.canary_last_flagged = gauge(
            "handoff_canary_last_flagged_timestamp_seconds", "When a canary was last named as dropped"
        )
        self.canary_detection = gauge(
            "handoff_canary_detection_seconds", "From the last canary's song to its verdict"
        )

    def _start_edges(self, edges: tuple[str, ...]) -> None:
        for edge in edges:
            for outcome in OUTCOMES:
                self.settled.labels(edge, outcome)
            for metric in (self.dropped, self.recovered):
                metric.labels(edge)
            for gauge in (self.open, self.dropped_open, self.dead_lettered_open, self.timer_lost_open):
                gauge.labels(edge)
            self.oldest_open.labels(edge)
            self.durations.start(edge)
            self.overdue(edge, {NO_DEPARTMENT: 0})

    # ------------------------------------------------------------ what takes more than one label set

    def status(self, group: str, word: str) -> None:
        """Say how a group is: its word becomes 1, all others 0; raises ValueError at an unknown word."""
        if word not in STATUSES:
            raise ValueError(f"{word!r} is no status; one of {', '.join(STATUSES)}")
        for status in STATUSES:
            self.consumer_status.labels(group, status).set(status == word)

    def lag(self, group: str, place: Place, records: float | None, seconds: float | None) -> None:
        """Say how far a group is behind on a partition; None where it is not known."""
        labels = (group, place.topic, str(place.partition))
        _show(self.lag_records, records, *labels)
        _show(self.lag_seconds, seconds, *labels)

    def drains_in(self, group: str, seconds: float | None) -> None:
        """Say when a group will have caught up; None when it is not known or it falls behind."""
        _show(self.drain_eta, seconds, group)

    def headroom(self, group: str, topic: str, seconds: float | None) -> None:
        """Say how long retention leaves a group's oldest record; None when it is not known."""
        _show(self.retention_headroom, seconds, group, topic)

    def kept_by_size(self, topics: Iterable[str]) -> None:
        """Say which topics have a limit by size; no other has."""
        limited = set(topics)
        for topic in self._topics:
            self.limited_by_size.labels(topic).set(topic in limited)

    def overdue(self, edge: str, by_department: Mapping[str, int]) -> None:
        """Say how many handoffs of an edge are overdue; a department that is not named has none."""
        known = self._departments.setdefault(edge, set())
        known.update(by_department)
        for department in known:
            self.overdue_open.labels(edge, department).set(by_department.get(department, 0))

    def read_lag(self, topic: str, seconds: float | None) -> None:
        """Say how far the observer's own reading of a topic is behind; None when it is not known."""
        _show(self.audit_read_lag, seconds, topic)

    def blind(self, ranges: Iterable[Mapping[str, Any]]) -> None:
        """Say how many records of each topic nobody can read any more; of one not named, all were read."""
        records: Tally[str] = Tally()
        for gone in ranges:
            # A topic made anew begins below: how much of the old one was unread, nobody knows.
            records[gone["topic"]] += max(1, gone["to"] - gone["from"])
        for topic in self._topics:
            self.audit_blind.labels(topic).set(records[topic])

    def blocked(self, topic: str, by_reason: Mapping[str, float]) -> None:
        """Say for how many seconds verdicts have waited for a topic; a reason not named does not hold."""
        known = self._reasons.setdefault(topic, set())
        known.update(by_reason)
        for reason in known:
            self.audit_blocked.labels(topic, reason).set(by_reason.get(reason, 0))


def _show(gauge: Gauge, value: float | None, *labels: str) -> None:
    """Show a measurement, or nothing: NaN and infinity would be drawn, compared and summed."""
    if value is None or not isfinite(value):
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
