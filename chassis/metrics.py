"""What a stage counts, under the names that the alerts and dashboards use."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chassis.plan import Plan
from chassis.transport import Place

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class StageMetrics:
    """The counters and gauges of one stage's process."""

    def __init__(self, stage: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._handled = Counter(
            "pipeline_handled_events", "Inputs by outcome", ["stage", "outcome"], registry=registry
        )
        self._said = Counter("pipeline_published_messages", "Messages sent", ["stage"], registry=registry)
        self._repeated = Counter(
            "pipeline_repeated_events", "Redelivered inputs", ["stage"], registry=registry
        )
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
        )
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
        for outcome in ("caused", "noted", "ignored", "refused", "waiting", "dead"):
            self._handled.labels(stage, outcome)
        self._said.labels(stage)
        self._repeated.labels(stage)

    def decided(self, plan: Plan) -> None:
        """Count what a batch came to."""
        outcomes: dict[str, int] = {}
        for _, _, outcome in plan.inbox:
            word = outcome.partition(":")[0]
            outcomes[word] = outcomes.get(word, 0) + 1
        for word, count in outcomes.items():
            self._handled.labels(self._stage, word).inc(count)
        self.handled_total += len(plan.inbox)
        self._said.labels(self._stage).inc(len(plan.outgoing))
        for letter in plan.quarantined:
            self._quarantined.labels(self._stage, letter.reason).inc()

    def passed(self, _: int, seconds: float) -> None:
        """Record how long a pass took."""
        self._duration.labels(self._stage).observe(seconds)

    def repeated(self, count: int) -> None:
        """Count inputs that came again."""
        self._repeated.labels(self._stage).inc(count)

    def retried(self, cause: str) -> None:
        """Count a pass that must be tried again, by cause."""
        self._retried.labels(self._stage, cause).inc()

    def blocked(self, place: Place, *, blocked: bool) -> None:
        """Show whether a partition stands still because a decision raises."""
        self._blocked.labels(self._stage, place.topic, str(place.partition)).set(blocked)
