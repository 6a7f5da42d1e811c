"""One event's causes up to its root and its effects down to the last, with who had custody of each how long.

What stages said is read from their outboxes, what others said from the log; where an event lies and whom it
obliges, from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from chassis.clock import epoch_ms, monotonic
from chassis.ids import foreign_id
from chassis.kafka import Offsets, records_at
from chassis.outbox import unpack
from chassis.postgres import Tx
from chassis.roots import batch_id_at
from chassis.transport import Place as Partition
from cli import ledger
from cli.world import NotFound, Place, connected
from observer.contract import CLOCKS_APART_MS, contract_of
from observer.headers import key_of, time_ms
from observer.ledger import LOST, SETTLED, State
from observer.rereading import Rereading, offsets_since
from schemas.topics import STAGES

MOST_EVENTS = 500
"""A trace of more is cut, and says so."""
SEARCH_S = 10.0
"""So long the log is searched for what the ledger does not place: what obliges nobody."""
_LOST = frozenset(state.value for state in LOST)
_SETTLED = frozenset(state.value for state in SETTLED)
_MISSING = _LOST | {State.DEAD_LETTERED.value}
_CONTRACT = contract_of()


@dataclass(slots=True)
class Node:
    """One event: what it says of itself, where it lies (None: nobody knows), and who owed an answer.

    `appended_ms` is the broker's time, `said_ms` the writer's. `sent` is False for what its stage has stored
    and Kafka has not acknowledged.
    """

    event_id: str
    headers: Mapping[str, str]
    topic: str
    key: bytes = b""
    partition: int | None = None
    offset: int | None = None
    appended_ms: int | None = None
    sent: bool = True
    depth: int = 0
    custody: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cause(self) -> str:
        """The id of what brought it about; empty for a root."""
        return self.headers.get("ce_causationid", "")

    @property
    def said_ms(self) -> int:
        """When its writer said it."""
        return time_ms(self.headers.get("ce_time", "").encode())

    @property
    def uid(self) -> UUID:
        """The id under which stages know it."""
        try:
            return UUID(self.event_id)
        except ValueError:
            at = datetime.fromtimestamp(self.said_ms / 1000, tz=UTC)
            return foreign_id(self.headers.get("ce_source", ""), self.event_id, at)

    def as_json(self, cause: Node | None) -> dict[str, Any]:
        """The event for a script; `after_cause_ms` is the time between the two on the log."""
        return {
            "event_id": self.event_id,
            "event": self.headers.get("ce_type", ""),
            "source": self.headers.get("ce_source", ""),
            "cause": self.cause or None,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "appended_at": ledger.moment(self.appended_ms),
            "after_cause_ms": _between(cause, self),
            "sent": self.sent,
            "depth": self.depth,
            "custody": self.custody,
        }


def _between(cause: Node | None, effect: Node) -> int | None:
    if cause is None or cause.appended_ms is None or effect.appended_ms is None:
        return None
    return effect.appended_ms - cause.appended_ms


@dataclass(frozen=True, slots=True)
class Trace:
    """The causes of an event, root first, the event itself, and its effects, each behind its cause.

    `missing` names every arrow that should be there and is not, with what proves it; `cut` tells whether
    there are more effects than are shown; `blind` why nobody can say that nothing is missing.
    """

    causes: list[Node]
    event: Node
    effects: list[Node]
    missing: list[dict[str, Any]]
    cut: bool
    blind: str

    @property
    def lost(self) -> bool:
        """Whether an arrow is proved to be missing."""
        return any(arrow["state"] in _LOST for arrow in self.missing)

    def as_json(self) -> dict[str, Any]:
        """The trace for a script."""
        known = {node.event_id: node for node in (*self.causes, self.event, *self.effects)}
        causes, event, effects = (
            [node.as_json(known.get(node.cause)) for node in nodes]
            for nodes in (self.causes, [self.event], self.effects)
        )
        return {
            "causes": causes,
            "event": event[0],
            "effects": effects,
            "missing": self.missing,
            "cut": self.cut,
            "blind": self.blind or None,
        }


async def trace(place: Place, asked: str) -> Trace:
    """Follow the arrows from one event, both ways; raises NotFound where nobody knows it."""
    found = await _event(place, asked)
    if found is None:
        raise NotFound(f"neither the ledger nor a stage knows an event {asked}: hotline events tail")
    causes, unknown = await _causes(place, found)
    found.depth = len(causes)
    effects, cut = await _effects(place, found)
    nodes = [*causes, found, *effects]
    async with ledger.session(place) as tx:
        seen = await ledger.overview(tx)
        missing = await _custody(tx, nodes)
        if unknown:
            missing.insert(0, await _orphaned(tx, nodes[0]))
        missing += await _gaps(tx, nodes)
    await _locate(place, nodes)
    return Trace(causes, found, _in_order(found, effects), missing, cut, seen.blind)


def _in_order(root: Node, effects: Sequence[Node]) -> list[Node]:
    """Put each effect behind its cause, with all that came of it, in the order of time."""
    by_cause: dict[str, list[Node]] = {}
    for node in effects:
        by_cause.setdefault(node.cause, []).append(node)
    ordered: list[Node] = []

    def descend(node: Node) -> None:
        for child in sorted(by_cause.get(node.event_id, ()), key=lambda one: (one.said_ms, one.event_id)):
            ordered.append(child)
            descend(child)

    descend(root)
    return ordered


# ------------------------------------------------------------------ finding events


async def _event(place: Place, asked: str) -> Node | None:
    """Find one event: on the log, where the ledger knows its place; else among what stages said."""
    async with ledger.session(place) as tx:
        places = await _places(tx, [asked])
    if asked in places:
        node = await _at(place, asked, places[asked])
        if node is not None:
            return node
    for stage in STAGES:
        async with connected(place, stage) as database, database.session() as tx:
            rows = await tx.fetch(
                f"{_SAID} where batch >= $1 and position($2::bytea in headers) > 0",
                _not_before(asked),
                f"ce_id\x1f{asked}".encode(),
            )
        nodes = [node for node in map(_said, rows) if node.event_id == asked]
        if nodes:
            return nodes[0]
    return None


_SAID = (
    "select topic, key, headers, u.batch is null as sent from outbox left join unpublished u using (batch)"
)


def _said(row: Any) -> Node:
    headers = {name: value.decode(errors="replace") for name, value in unpack(row["headers"])}
    return Node(headers.get("ce_id", ""), headers, row["topic"], row["key"], sent=row["sent"])


def _not_before(asked: str) -> int:
    """The first batch in which an event can have been said: our ids begin with their cause's time."""
    try:
        born_ms = UUID(asked).int >> 80
    except ValueError:
        return 0
    if born_ms > epoch_ms() + CLOCKS_APART_MS:
        return 0  # somebody else's id, which begins with something else
    return batch_id_at(datetime.fromtimestamp(max(0, born_ms - CLOCKS_APART_MS) / 1000, tz=UTC))


async def _places(tx: Tx, names: Iterable[str]) -> dict[str, tuple[Partition, int, int]]:
    """Tell where events lie that oblige somebody: partition, offset, append time (ms)."""
    keys = {key_of(name.encode()): name for name in names}
    rows = await tx.fetch(
        "select key, topic, partition, record_offset, at_ms from handoffs"
        " where key = any($1::bytea[]) and edge not like 'nobody→%' and partition >= 0",
        list(keys),
    )
    return {
        keys[row["key"]]: (Partition(row["topic"], row["partition"]), row["record_offset"], row["at_ms"])
        for row in rows
    }


async def _at(place: Place, name: str, where: tuple[Partition, int, int]) -> Node | None:
    partition, offset, at_ms = where
    record = (await records_at(place.kafka, {partition: [offset]})).get((partition, offset))
    if record is None:
        return None
    headers = {header: value.decode(errors="replace") for header, value in record.headers}
    if headers.get("ce_id", "") != name:
        return None
    return Node(name, headers, partition.topic, record.key or b"", partition.partition, offset, at_ms)


async def _causes(place: Place, event: Node) -> tuple[list[Node], bool]:
    """Give the causes, root first, and whether the first one names a cause that nobody knows."""
    chain: list[Node] = []
    node, names = event, {event.event_id}
    while node.cause and node.cause not in names and len(chain) < MOST_EVENTS:
        above = await _event(place, node.cause)
        if above is None:
            break
        names.add(above.event_id)
        chain.insert(0, above)
        node = above
    for depth, one in enumerate(chain):
        one.depth = depth
    top = (chain[0] if chain else event).cause
    return chain, bool(top) and top not in names


async def _effects(place: Place, event: Node) -> tuple[list[Node], bool]:
    """Give all that came of an event, level by level, and whether there is more."""
    found: dict[str, Node] = {}
    frontier = [event]
    while frontier and len(found) < MOST_EVENTS:
        frontier = [
            node
            for stage in STAGES
            for node in await _children(place, stage, frontier)
            if node.event_id not in found and node.event_id != event.event_id
        ]
        found |= {node.event_id: node for node in frontier}
    return list(found.values()), bool(frontier)


async def _children(place: Place, stage: str, causes: Sequence[Node]) -> list[Node]:
    """Read what a stage said on account of events, at once or, about the same case, later."""
    by_id = {cause.event_id: cause for cause in causes}
    async with connected(place, stage) as database, database.session() as tx:
        rows = await tx.fetch(
            f"{_SAID} where batch in (select batch from inbox where event_id = any($1::uuid[]))",
            [cause.uid for cause in causes],
        )
        # What waited for its case was decided in another batch; it is found by what it is about.
        rows = [
            *rows,
            *await tx.fetch(
                f"{_SAID} where correlation = any($1::text[])",
                list({cause.headers.get("ce_correlationid", "") for cause in causes}),
            ),
        ]
    found = {node.event_id: node for node in map(_said, rows) if node.cause in by_id}
    for node in found.values():
        node.depth = by_id[node.cause].depth + 1
    return list(found.values())


# ------------------------------------------------------------------ where they lie, and who had them


async def _custody(tx: Tx, nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Say of each event whom it obliged, and how that ended; gives the arrows that are missing."""
    keys = {key: node for node in nodes for key in _keys(node)}
    rows = await tx.fetch(
        "select h.*, c.committed from handoffs h left join commits c using (grp, topic, partition)"
        " where h.key = any($1::bytea[]) order by h.due_ms nulls first, h.edge",
        list(keys),
    )
    missing: list[dict[str, Any]] = []
    for row in rows:
        node, shown = keys[row["key"]], ledger.shown(row)
        if row["due_ms"] is None and row["partition"] >= 0:
            node.partition, node.offset = row["partition"], row["record_offset"]
            node.appended_ms = row["at_ms"]
        entry = _had(row, shown)
        node.custody.append(entry)
        if shown["state"] in _MISSING:
            verdicts = await ledger.verdicts_of(tx, shown)
            missing.append({**shown, "evidence": verdicts[-1] if verdicts else None})
    return missing


def _keys(node: Node) -> set[bytes]:
    """The keys of an event's handoffs: of the one that is owed at once, and of what must follow in time."""
    name, keys = node.event_id.encode(), {key_of(node.event_id.encode())}
    later = _CONTRACT.later.get(node.headers.get("ce_type", "").encode())
    if later is not None:
        keys.add(key_of((name if later.numbered else node.key) + b"@" + later.edge.encode()))
    return keys


def _had(row: Any, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Who had an event, and for how long: from its append to its answer's, or until now."""
    over = row["settled_ms"] if shown["state"] in _SETTLED else None
    return {
        "group": shown["group"],
        "edge": shown["edge"],
        "state": shown["state"],
        "for_ms": max(0, (over or epoch_ms()) - row["at_ms"]),
        "until": ledger.moment(over),
        "due": shown["due"],
        "missing_parts": shown["missing"],
    }


async def _orphaned(tx: Tx, top: Node) -> dict[str, Any]:
    """The arrow from a cause that nobody knows: an orphan, if the ledger has proved that."""
    known = [one for one in await ledger.find(tx, top.cause) if one["state"] == State.ORPHAN.value]
    verdicts = await ledger.verdicts_of(tx, known[0]) if known else []
    return {
        "event_id": top.cause,
        "edge": known[0]["edge"] if known else f"nobody→{top.headers.get('ce_source', '')}",
        "group": known[0]["group"] if known else "",
        "state": State.ORPHAN.value if known else "not found",
        "missing": [],
        "evidence": verdicts[-1] if verdicts else None,
    }


async def _gaps(tx: Tx, nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Numbers that a stage gave to something about these cases, and that are nowhere."""
    subjects = {node.headers.get("ce_sequenceof") or node.key.decode(errors="replace") for node in nodes}
    rows = await tx.fetch(
        "select h.*, null as committed from handoffs h where grp = any($1::text[]) and state = $2"
        " and subject = any($3::text[]) order by grp, sequence",
        list(STAGES),
        State.SEQUENCE_GAP.value,
        list(subjects),
    )
    gaps = []
    for row in rows:
        shown = ledger.shown(row)
        verdicts = await ledger.verdicts_of(tx, shown)
        gaps.append({**shown, "evidence": verdicts[-1] if verdicts else None})
    return gaps


async def _locate(place: Place, nodes: Sequence[Node]) -> None:
    """Find on the log what the ledger does not place, behind its cause; what is not found stays without."""
    known = {node.event_id: node for node in nodes}
    wanted = {node.event_id: node for node in nodes if node.partition is None and node.sent}
    if not wanted:
        return
    since: dict[str, int] = {}
    for node in wanted.values():
        cause = known.get(node.cause)
        placed = cause.appended_ms if cause is not None else None
        # An effect is appended after its cause, by the same clock; else only the writer's clock is known.
        at_ms = placed if placed is not None else node.said_ms - CLOCKS_APART_MS
        since[node.topic] = min(at_ms, since.get(node.topic, at_ms))
    begin = await offsets_since(place.kafka, since)
    ends, deadline = await _ends(place, begin), monotonic() + SEARCH_S
    reading = Rereading(place.kafka, begin)
    await reading.start()
    try:
        async for records in reading.up_to(ends):
            for record in records:
                name = dict(record.headers).get("ce_id", b"").decode(errors="replace")
                if name in wanted and wanted[name].topic == record.topic:
                    found = wanted.pop(name)
                    found.partition, found.offset = record.partition, record.offset
                    found.appended_ms = record.timestamp
            if not wanted or monotonic() > deadline:
                break
    finally:
        await reading.stop()


async def _ends(place: Place, begin: Mapping[Partition, int]) -> dict[Partition, int]:
    offsets = Offsets(place.kafka)
    await offsets.start()
    try:
        return await offsets.highs(list(begin))
    finally:
        await offsets.stop()
