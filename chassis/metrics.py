"""What a stage counts, under the names that the alerts and dashboards use."""

from collections import Counter as Counted

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chassis.plan import Plan
from chassis.transport import Place

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

OUTCOMES = ("caused", "noted", "ignored", "refused", "waiting", "dead")
"""What becomes of an input: the first word of what the inbox says of it."""


class StageMetrics:
    """The counters and gauges of one stage's process."""

    def __init__(self, stage: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        handled = Counter(
            "pipeline_handled_events", "Inputs by outcome", ["stage", "outcome"], registry=registry
        )
        self._handled = {outcome: handled.labels(stage, outcome) for outcome in OUTCOMES}
        self._said = Counter(
            "pipeline_published_messages", "Messages sent", ["stage"], registry=registry
        ).labels(stage)
        self._repeated = Counter(
            "pipeline_repeated_events", "Redelivered inputs", ["stage"], registry=registry
        ).labels(stage)
        self._retried = Counter(
            "pipeline_retries", "Passes tried again", ["stage", "cause"], registry=registry
        )
        self._quarantined = Counter(
            "pipeline_quarantined_records", "Records put aside", ["stage", "reason"], registry=registry
        )
        self._blocked = Gauge(
            "pipeline_partition_blocked",
            "1 while a decision raises",
            ["stage", "topic", "partition"],
            registry=registry,
        )
        self._duration = Histogram(
            "pipeline_pass_seconds", "Duration of a pass", ["stage"], buckets=_SECONDS, registry=registry
        ).labels(stage)
        self.outbox_age = Gauge(
            "pipeline_outbox_oldest_unpublished_seconds",
            "Age of the oldest unsent batch",
            ["service"],
            registry=registry,
        ).labels(stage)
        self.outbox_rows = Gauge(
            "pipeline_outbox_pending_rows", "Batches not sent yet", ["service"], registry=registry
        ).labels(stage)
        self.lag = Gauge(
            "pipeline_consumer_lag_records",
            "Records not committed yet",
            ["group", "topic", "partition"],
            registry=registry,
        )
        self._stage = stage
        self.handled_total = 0

    def decided(self, plan: Plan) -> None:
        """Count what a batch came to."""
        for outcome, count in Counted(outcome for _, _, outcome in plan.inbox).items():
            self._handled[outcome.partition(":")[0]].inc(count)
        self.handled_total += len(plan.inbox)
        self._said.inc(len(plan.outgoing))
        for letter in plan.quarantined:
            self._quarantined.labels(self._stage, letter.reason).inc()

    def passed(self, _: int, seconds: float) -> None:
        """Record how long a pass took."""
        self._duration.observe(seconds)

    def repeated(self, count: int) -> None:
        """Count inputs that came again."""
        self._repeated.inc(count)

    def retried(self, cause: str) -> None:
        """Count a pass that must be tried again, by cause."""
        self._retried.labels(self._stage, cause).inc()

    def blocked(self, place: Place, *, blocked: bool) -> None:
        """Show whether a partition stands still because a decision raises."""
        self._blocked.labels(self._stage, place.topic, str(place.partition)).set(blocked)
