"""What really happened: the whole log and the four stages' tables, compared hop by hop."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import asyncpg

from chassis.kafka import KafkaPublisher, whole
from chassis.outbox import unpack
from chassis.transport import Outgoing
from cli.world import Place
from schemas.topics import STAGES, TOPICS
from services.feedback.app import STAGE as FEEDBACK
from services.intake.app import STAGE as INTAKE
from services.resolver.app import STAGE as RESOLVER
from services.router.app import STAGE as ROUTER

_BY_NAME = {stage.name: stage for stage in (INTAKE, ROUTER, RESOLVER, FEEDBACK)}


class Said(NamedTuple):
    """One record of the log, without its value."""

    topic: str
    partition: int
    offset: int
    event_id: str
    wire: str
    source: str
    cause: str
    part: str
    sequence: int
    key: str


@dataclass
class Evidence:
    """Everything that was said, and what each stage has handled and owes."""

    log: list[Said] = field(default_factory=list)
    handled: dict[str, set[str]] = field(default_factory=dict)
    outbox: dict[str, set[str]] = field(default_factory=dict)
    unpublished: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)

    def problems(self, acknowledged: Iterable[tuple[str, str]]) -> list[str]:
        """Name whatever was lost, doubled or out of order; an empty list is the only good one."""
        return [
            *self._inputs_lost(acknowledged),
            *self._handoffs_lost(),
            *self._messages_lost(),
            *self._effects_doubled(),
            *self._order_broken(),
            *(
                f"{stage} has {count} batches unpublished"
                for stage, count in self.unpublished.items()
                if count
            ),
            *(f"{stage} quarantined {count}" for stage, count in self.quarantined.items() if count),
        ]

    def _inputs_lost(self, acknowledged: Iterable[tuple[str, str]]) -> list[str]:
        """What Kafka acknowledged to somebody outside is in the log and was handled by its reader."""
        present = {(said.topic, said.event_id) for said in self.log}
        readers = {topic.name: topic.read_by for topic in TOPICS}
        lost = []
        for topic, event_id in acknowledged:
            if (topic, event_id) not in present:
                lost.append(f"acknowledged {event_id} is not on {topic}")
            lost += [
                f"acknowledged {event_id} on {topic} was not handled by {group}"
                for group in readers[topic]
                if group in self.handled and event_id not in self.handled[group]
            ]
        return lost

    def _handoffs_lost(self) -> list[str]:
        """Each event that a stage handles by contract, it has handled."""
        reads = {topic.name: topic.read_by for topic in TOPICS}
        return [
            f"{said.wire} {said.event_id} on {said.topic} was not handled by {group}"
            for said in self.log
            for group in reads[said.topic]
            if group in _BY_NAME
            and said.wire in _BY_NAME[group].handled
            and said.event_id not in self.handled[group]
        ]

    def _messages_lost(self) -> list[str]:
        """What a stage stored it said, and it said nothing that it did not store."""
        said: dict[str, set[str]] = defaultdict(set)
        for entry in self.log:
            said[entry.source].add(entry.event_id)
        found = []
        for stage, stored in self.outbox.items():
            mine = said[f"/hotline/{stage}"] - self._watermarks(stage)
            found += [f"{stage} stored {event_id} and never said it" for event_id in stored - mine]
            found += [f"{stage} said {event_id} without storing it" for event_id in mine - stored]
        return found

    def _watermarks(self, stage: str) -> set[str]:
        source = f"/hotline/{stage}"
        return {
            said.event_id for said in self.log if said.topic == "ops.watermarks" and said.source == source
        }

    def _effects_doubled(self) -> list[str]:
        """One cause has, for each part of its answer, one event: repeats carry the same id."""
        ids: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
        for said in self.log:
            if said.cause and said.topic.split(".")[0] in STAGES and said.sequence:
                ids[said.source, said.cause, said.part, said.wire].add(said.event_id)
        return [f"{cause} has {len(found)} effects" for cause, found in ids.items() if len(found) > 1]

    def _order_broken(self) -> list[str]:
        """Per stage and case: numbered without a gap, and in order wherever they share a partition."""
        numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
        last: dict[tuple[str, str, str, int], int] = {}
        seen: set[tuple[str, str]] = set()
        broken = []
        for said in sorted(self.log, key=lambda said: (said.topic, said.partition, said.offset)):
            if not said.sequence or (said.topic, said.event_id) in seen:
                continue
            seen.add((said.topic, said.event_id))
            if said.sequence in numbers[said.source, said.key]:
                broken.append(f"{said.source} {said.key} has number {said.sequence} twice")
            numbers[said.source, said.key].add(said.sequence)
            before = last.get((said.source, said.key, said.topic, said.partition), 0)
            if said.sequence <= before:
                broken.append(
                    f"{said.source} {said.key}: {said.sequence} came after {before} on {said.topic}"
                )
            last[said.source, said.key, said.topic, said.partition] = said.sequence
        return broken + [
            f"{source} {key} lacks a number: {sorted(found)}"
            for (source, key), found in numbers.items()
            if found != set(range(1, max(found) + 1))
        ]

    @property
    def counts(self) -> Counter[str]:
        """How many records of each type, for a run's own report."""
        return Counter(said.wire for said in self.log)


async def gather(place: Place) -> Evidence:
    """Read everything once; the stages must be idle."""
    evidence = Evidence(log=await _log(place))
    connection = await asyncpg.connect(place.database_url)
    try:
        for stage in STAGES:
            await connection.execute(f'set search_path to "{place.database_prefix}{stage}"')
            inbox = await connection.fetch("select event_id from inbox")
            evidence.handled[stage] = {str(row["event_id"]) for row in inbox}
            headers = await connection.fetch("select headers from outbox")
            evidence.outbox[stage] = {dict(unpack(row["headers"]))["ce_id"].decode() for row in headers}
            evidence.unpublished[stage] = await connection.fetchval("select count(*) from unpublished")
            evidence.quarantined[stage] = await connection.fetchval("select count(*) from quarantine")
    finally:
        await connection.close()
    return evidence


async def _log(place: Place) -> list[Said]:
    cut = len(place.kafka_prefix)
    return [_said(record, cut) async for record in whole(place.kafka, *(topic.name for topic in TOPICS))]


def _said(record, cut: int) -> Said:
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    return Said(
        record.topic[cut:],
        record.partition,
        record.offset,
        headers.get("ce_id", ""),
        headers.get("ce_type", ""),
        headers.get("ce_source", ""),
        headers.get("ce_causationid", ""),
        headers.get("ce_handoffk", ""),
        int(headers.get("ce_sequence", 0)),
        headers.get("ce_sequenceof") or (record.key or b"").decode(errors="replace"),
    )


class Acknowledged(KafkaPublisher):
    """A publisher that remembers what Kafka acknowledged."""

    def __init__(self, connection, client_id: str) -> None:
        super().__init__(connection, client_id)
        self.acknowledged: list[tuple[str, str]] = []

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        await super().publish(messages)
        self.acknowledged += [
            (message.topic, dict(message.headers)["ce_id"].decode()) for message in messages
        ]
