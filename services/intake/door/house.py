"""What the rooms of the door share: the databases, the vault, the way in, who may knock."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chassis.postgres import Database
from chassis.vault import Vault
from services.intake.door.access import Access
from services.intake.door.entry import Entry
from services.intake.door.settings import DoorSettings
from services.intake.waiting.agi import OUTCOMES

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5)


class DoorMetrics:
    """What the door counts; labels are bounded: sources and kinds are configured or ours."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.received = Counter(
            "door_deliveries_total", "Deliveries by source and outcome", ["source", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.facts = Counter(
            "door_facts_total", "Call events kept, by source and type", ["source", "type"],
            registry=self.registry,
        )  # fmt: skip
        self.repeated = Counter(
            "door_repeated_facts_total", "Call events that were kept before, by source and type",
            ["source", "type"], registry=self.registry,
        )  # fmt: skip
        self.unknown = Counter(
            "door_unknown_types_total", "Well-formed events of a type that means nothing to us", ["source"],
            registry=self.registry,
        )  # fmt: skip
        self.missing = Gauge(
            "door_missing_events", "Events of a numbered source that have not come", ["source"],
            registry=self.registry,
        )  # fmt: skip
        self.sessions = Counter(
            "door_agi_sessions_total", "FastAGI sessions, by how they ended", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        for outcome in OUTCOMES:
            self.sessions.labels(outcome)
        self.latency = Histogram(
            "door_request_seconds",
            "From request to answer",
            ["room"],
            buckets=_BUCKETS,
            registry=self.registry,
        )


@dataclass(slots=True)
class House:
    """Everything that a room of the door may use."""

    settings: DoorSettings
    database: Database
    vault: Vault
    entry: Entry
    access: Access
    metrics: DoorMetrics = field(default_factory=DoorMetrics)
