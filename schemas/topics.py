"""Topics as data: who writes, who reads, what the key is, how long records are kept."""

from dataclasses import dataclass
from typing import Final

from schemas import feedback, intake, operations, resolver, router, telephony
from schemas.envelope import BY_WIRE, MessageType

TRIAGE: Final = "triage"
"""The department of people who find the responsible one."""
DEPARTMENTS = ("cards", "fraud", "digital", "lending", "payments", "branches", "wealth", TRIAGE)
STAGES = ("intake", "router", "resolver", "feedback")

_DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """One Kafka topic: partitions, retention in milliseconds, who writes and which groups read it."""

    name: str
    key: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    partitions: int = 4
    retention_ms: int = 14 * _DAY_MS

    @property
    def settings(self) -> dict[str, str]:
        """The topic's configuration as Kafka names it."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",  # a limit by size deletes at a time that nobody can tell
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(1 << 20),
        }


TOPICS: tuple[Topic, ...] = (
    Topic(telephony.TOPIC, "call", ("telephony",), ("intake",)),
    Topic(intake.COMMANDS, "call", ("agents", "intake"), ("intake",)),
    Topic(intake.CASES, "case", ("intake",), ("router", "feedback", "desk")),
    Topic(router.COMMANDS, "case", ("triage", "router"), ("router",)),
    Topic(router.ACTIVATIONS, "kind", ("router",), ("operations",), partitions=1),
    Topic(router.CASES, "case", ("router",), ("resolver", "feedback", "desk")),
    Topic(resolver.COMMANDS, "case", ("departments", "customers", "resolver"), ("resolver",)),
    Topic(resolver.CASES, "case", ("resolver",), ("router", "feedback", "desk")),
    Topic(feedback.COMMANDS, "case", ("customers", "feedback"), ("feedback",)),
    Topic(feedback.CASES, "case", ("feedback",), ("router", "desk")),
    *(Topic(f"departments.{code}", "case", ("resolver",), (f"department.{code}",)) for code in DEPARTMENTS),
    Topic(operations.RECEIPTS, "group", STAGES, ("observer",)),
    Topic(operations.WATERMARKS, "group", STAGES, ("observer",), partitions=1),
    *(Topic(f"{stage}.dead", "as source", (stage,), ("observer",)) for stage in STAGES),
    Topic(operations.VERDICTS, "case", ("observer",), ("operations",)),
    Topic(operations.CANARY, "song", ("observer",), (operations.CANARY_GROUP,), partitions=1),
)

WIRES: frozenset[bytes] = frozenset(wire.encode() for wire in BY_WIRE)
"""Every wire type of the contract, as it stands in a `ce_type` header."""

BY_NAME: dict[str, Topic] = {topic.name: topic for topic in TOPICS}


def inputs_of(group: str) -> tuple[str, ...]:
    """Name the topics that a consumer group reads."""
    return tuple(topic.name for topic in TOPICS if group in topic.read_by)


def messages_on(topic: str) -> tuple[MessageType, ...]:
    """List the message types that may appear on a topic with a fixed name."""
    return tuple(kind for kind in BY_WIRE.values() if kind.topic == topic)
