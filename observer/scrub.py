"""The last hours once more: the topics are read again into a ledger that begins empty, and both are compared.

The ledger reads each record once, and believes what it has stored. What happens to the log afterwards (an
unclean election, a disk that forgets) or to the tables (a restore, a hand in them) it does not see. A scrub
does. It says only what holds whenever it is asked: an answer is appended after what it answers, so whoever
reads everything since a time has every answer to what was appended since then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from chassis.clock import epoch_ms, monotonic
from chassis.kafka import Connection, Offsets, records_at
from chassis.postgres import Tx, columns
from chassis.transport import Place, Record
from observer import store
from observer.app import AUDITED
from observer.barrier import Barrier
from observer.contract import CLOCKS_APART_MS, contract_of
from observer.deferred import Deferred
from observer.headers import shown
from observer.ledger import SETTLED, WATCHED, Handoff, Ledger, State, Verdict
from observer.reading import Desk
from observer.rereading import Rereading, offsets_since
from observer.sequences import Sequences
from schemas import telephony
from schemas.operations import CANARY_GROUP

CAUGHT_UP_WITHIN_S = 30.0
"""So long the observer may take to read what the log holds now; before that, nothing can be compared."""
JUDGED_WITHIN_S = 10.0
"""So long it may take to say of a loss that it is one."""
GONE = "not on the log"
_STRETCH_MS = 5 * 60 * 1000
_STANDS = {State.WAIVED.value, State.UNPROVABLE.value}
"""Words that no reading contradicts: an operator's, and that nothing is claimed."""
_UNANSWERED = {State.DROPPED.value, State.PARTIAL.value, *_STANDS}
_AGREE = {
    State.DROPPED: _UNANSWERED,
    State.PARTIAL: _UNANSWERED,
    State.DEAD_LETTERED: {State.DEAD_LETTERED.value, *_STANDS},
}
"""What the store may say of what was found: a part of an answer may come after a verdict."""

Session = Callable[[], AbstractAsyncContextManager[Tx]]
Stored = Mapping[tuple[bytes, str], Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """A handoff on which the two ledgers disagree: `stored` is None where the old one has never seen it."""

    event_id: str
    group: str
    edge: str
    place: Place
    offset: int
    at_ms: int
    stored: str | None
    found: str
    why: str


@dataclass(slots=True)
class Scrub:
    """What a scrub has read and compared; `behind` says why nothing could be compared, if so.

    `since_ms` is later than asked for where the log does not reach back so far.
    """

    since_ms: int
    records: int = 0
    handoffs: int = 0
    differences: list[Difference] = field(default_factory=list)
    behind: str = ""

    def as_json(self) -> dict[str, Any]:
        """The outcome for a script; times are milliseconds since 1970."""
        return {
            "since_ms": self.since_ms,
            "records": self.records,
            "handoffs": self.handoffs,
            "behind": self.behind or None,
            "differences": [
                {**asdict(one), "topic": one.place.topic, "partition": one.place.partition}
                for one in self.differences
            ],
        }


class Scrubber:
    """One scrub: reads, compares what is settled as it goes, and what is not at the end."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self._connection, self._session = connection, session
        self._scrub = Scrub(0)
        self._contract = contract_of()
        self._ledger = Ledger(self._contract)
        self._sequences = Sequences(self._contract, self._ledger, telephony.TOPIC)
        self._deferred = Deferred(self._contract, self._ledger)
        self._desk = Desk(self._contract, self._ledger, self._sequences, self._deferred)
        self._commits: dict[str, dict[Place, int]] = {}
        self._barriers: list[Barrier] = []
        self._met = _Marks()
        self._settled = _Marks()
        self._edges = {owed.edge for owes in self._contract.owed.values() for owed in owes}

    async def run(self, hours: float) -> Scrub:
        """Read the last hours again and compare; raises Transient."""
        now_ms = epoch_ms()
        asked_ms = now_ms - int(hours * 3_600_000)
        # A little earlier: clocks of two brokers differ, and what was sent then is answered later.
        begin = await offsets_since(self._connection, dict.fromkeys(AUDITED, asked_ms - CLOCKS_APART_MS))
        offsets = Offsets(self._connection)
        await offsets.start()
        try:
            scrub = self._scrub = Scrub(await self._reaches_back(offsets, begin, asked_ms))
            await self._restore(asked_ms - CLOCKS_APART_MS)
            # Commits first, ends second, as in the ledger itself.
            await self._note_commits(offsets)
            ends = await offsets.highs(list(begin))
            scrub.behind = await self._catches_up(ends)
            if not scrub.behind:
                async for records in self._between(begin, ends):
                    self._desk.take(records)
                    await self._compare_settled()
                scrub.records = self._desk.read
                await self._compare_open(offsets, begin, ends)
                await self._compare_gone(begin, ends)
        finally:
            await offsets.stop()
        return scrub

    async def _between(
        self, begin: Mapping[Place, int], ends: Mapping[Place, int]
    ) -> AsyncIterator[list[Record]]:
        """Read what lies between these offsets, and nothing that came later: the store may not know that."""
        reading = Rereading(self._connection, {place: begin[place] for place in ends})
        await reading.start()
        try:
            async for records in reading.up_to(ends):
                yield [one for one in records if one.offset < ends[Place(one.topic, one.partition)]]
        finally:
            await reading.stop()

    async def _reaches_back(self, offsets: Offsets, begin: Mapping[Place, int], asked_ms: int) -> int:
        """Since when everything is on the log: later than asked where a log has been cut since."""
        starts = await offsets.starts(list(begin))
        cut = {place: [start] for place, start in starts.items() if start and start == begin[place]}
        first = await records_at(self._connection, cut) if cut else {}
        return max([asked_ms, *(record.timestamp for record in first.values())])

    async def _restore(self, before_ms: int) -> None:
        """Take over what is lost or missing from before, so that an answer to it is noticed too."""
        async with self._session() as tx:
            restored = await store.restore(tx, self._contract, self._deferred, epoch_ms())
        lost = [
            handoff
            for handoff in restored.handoffs
            if handoff.state in WATCHED and (handoff.at_ms < before_ms or handoff.state is State.SEQUENCE_GAP)
        ]
        self._ledger.restore(lost, [], {})
        self._deferred.restore([one for one in restored.waiting if one.handoff.at_ms < before_ms], [])
        self._sequences.restore(restored.counts)
        self._sequences.from_the_beginning = False

    async def _note_commits(self, offsets: Offsets) -> None:
        async with self._session() as tx:
            rows = await tx.fetch("select grp, topic, partition, committed from commits")
        for row in rows:
            known = self._commits.setdefault(row["grp"], {})
            known[Place(row["topic"], row["partition"])] = row["committed"]
        for group in self._contract.groups:
            known = self._commits.setdefault(group, {})
            for place, offset in (await offsets.commits(group)).items():
                known[place] = max(offset, known.get(place, 0))

    async def _catches_up(self, ends: Mapping[Place, int]) -> str:
        """Wait until the observer has stored what lies below these ends; says what it has not by then."""
        deadline = monotonic() + CAUGHT_UP_WITHIN_S
        while True:
            async with self._session() as tx:
                rows = await tx.fetch("select topic, partition, position from positions")
            read = {Place(row["topic"], row["partition"]): row["position"] for row in rows}
            short = [place for place, end in ends.items() if read.get(place, 0) < end]
            if not short:
                return ""
            if monotonic() > deadline:
                place = short[0]
                return (
                    f"the observer has read {place.topic}/{place.partition} only up to {read.get(place, 0)}"
                    f" of {ends[place]}, and {len(short) - 1} more partitions not to their ends"
                )
            await asyncio.sleep(0.2)

    # ------------------------------------------------------------ what is settled, as it goes

    async def _compare_settled(self) -> None:
        """Compare what has been read since the last call, and let go of what is settled."""
        for group, commits in self._commits.items():
            if group in self._contract.groups:
                barrier = self._ledger.commit(group, commits)
                if barrier is not None:
                    self._barriers.append(barrier)
        for _ in self._ledger.effects_without_cause():
            pass  # their causes may lie before the window
        self._deferred.barriers()
        self._sequences.recall({})
        self._sequences.drain()
        self._deferred.drain()
        changes = self._ledger.drain()
        said = {_name(entry.handoff): shown(entry.said.event_id) for entry in changes.opened}
        # One by one, not by name: a copy that was published twice is another handoff here.
        handoffs = dict.fromkeys(
            handoff
            for handoff in (
                *(entry.handoff for entry in changes.opened),
                *(entry.handoff for entry in changes.settled),
            )
            if handoff.owed.group != CANARY_GROUP
        )
        stored = await self._stored(set(map(_name, handoffs)))
        for handoff in handoffs:
            name = _name(handoff)
            row, begins = stored.get(name), name in said and handoff.at_ms >= self._scrub.since_ms
            self._scrub.handoffs += begins
            self._mark(handoff, row)
            if row is None and begins:
                self._differ(handoff, said[name], None, "the ledger has never seen it")
            elif row is not None and handoff.state in SETTLED and not _is_over(row["state"]):
                self._differ(handoff, _event_id(row), row["state"], "what is missing is on the log")

    def _mark(self, handoff: Handoff, row: Any) -> None:
        if handoff.place.partition < 0 or handoff.owed.edge not in self._edges:
            return
        if row is not None and (row["topic"], row["partition"], row["record_offset"]) == (
            *handoff.place,
            handoff.offset,
        ):
            self._met.add(handoff.place, handoff.offset)
        if handoff.state in SETTLED:
            self._settled.add(handoff.place, handoff.offset)

    async def _stored(self, names: Iterable[tuple[bytes, str]]) -> Stored:
        wanted = list(names)
        if not wanted:
            return {}
        async with self._session() as tx:
            rows = await tx.fetch(
                "select h.key, h.grp, h.name, h.state, h.topic, h.partition, h.record_offset, h.at_ms"
                " from handoffs h join unnest($1::bytea[], $2::text[]) as x(k, g)"
                " on h.key = x.k and h.grp = x.g",
                *columns(wanted, 2),
            )
        return {(row["key"], row["grp"]): row for row in rows}

    def _differ(
        self, handoff: Handoff, event_id: str, stored: str | None, why: str, found: str | None = None
    ) -> None:
        self._scrub.differences.append(
            Difference(
                event_id,
                handoff.owed.group,
                handoff.owed.edge,
                handoff.place,
                handoff.offset,
                handoff.at_ms,
                stored,
                found or handoff.state.value,
                why,
            )
        )

    # ------------------------------------------------------------ what is not, at the end

    async def _compare_open(
        self, offsets: Offsets, begin: Mapping[Place, int], ends: Mapping[Place, int]
    ) -> None:
        """Compare what is committed and not answered; whatever the store says of it now was read by it.

        So the ends are taken once more after the store was asked: an answer that it knows lies below them.
        """
        verdicts = [verdict for barrier in self._barriers for verdict in self._ledger.judge(barrier)]
        verdicts += [
            Verdict(handoff, handoff.state, -1, None)
            for handoff in self._ledger.watched()
            if handoff.state is State.DEAD_LETTERED
        ]
        suspects = {
            _name(verdict.handoff): verdict
            for verdict in verdicts
            if verdict.handoff.owed.group != CANARY_GROUP and verdict.handoff.at_ms >= self._scrub.since_ms
        }
        stored = await self._until_judged(suspects)
        async for records in self._between(ends, await offsets.highs(list(ends))):
            self._desk.take(records)
        for name, verdict in suspects.items():
            row, handoff = stored.get(name), verdict.handoff
            if row is None or handoff.state in SETTLED or self._is_a_copy(handoff, row, begin):
                continue
            if row["state"] not in _AGREE[verdict.state]:
                over = _is_over(row["state"])
                why = "its answer is not on the log" if over else "it is committed and has no answer"
                self._differ(handoff, _event_id(row), row["state"], why, verdict.state.value)

    def _is_a_copy(self, handoff: Handoff, row: Any, begin: Mapping[Place, int]) -> bool:
        """Whether it is a repetition of what was answered: the first one counts, and stands elsewhere."""
        place, offset = Place(row["topic"], row["partition"]), row["record_offset"]
        if (place, offset) == (handoff.place, handoff.offset):
            return False
        return offset < begin.get(place, 0) or self._settled.has(place, offset)

    async def _until_judged(self, suspects: Mapping[tuple[bytes, str], Verdict]) -> Stored:
        """What the store says of suspects, once it has said something of each, or when its time is up."""
        deadline = monotonic() + JUDGED_WITHIN_S
        while True:
            stored = await self._stored(suspects)
            waits = any(row["state"] == State.OPEN.value for row in stored.values())
            if not waits or monotonic() > deadline:
                return stored
            await asyncio.sleep(0.2)

    # ------------------------------------------------------------ what is on the log no more

    async def _compare_gone(self, begin: Mapping[Place, int], ends: Mapping[Place, int]) -> None:
        """Name what the store has and the log has not, though it lies where everything was read."""
        async for row in self._stored_since(self._scrub.since_ms):
            place, offset = Place(row["topic"], row["partition"]), row["record_offset"]
            within = place in begin and begin[place] <= offset < ends.get(place, 0)
            if within and row["edge"] in self._edges and not self._met.has(place, offset):
                self._scrub.differences.append(
                    Difference(
                        _event_id(row),
                        row["grp"],
                        row["edge"],
                        place,
                        offset,
                        row["at_ms"],
                        row["state"],
                        GONE,
                        "the record is not on the log, or has changed",
                    )
                )

    async def _stored_since(self, since_ms: int) -> AsyncIterator[Any]:
        """Give the stored handoffs, a stretch at a time: their index knows times, and roughly."""
        for from_ms in range(since_ms, epoch_ms() + CLOCKS_APART_MS, _STRETCH_MS):
            async with self._session() as tx:
                rows = await tx.fetch(
                    "select key, grp, name, edge, state, topic, partition, record_offset, at_ms from handoffs"
                    " where at_ms >= $1 and at_ms < $2 and due_ms is null and grp <> $3",
                    from_ms,
                    from_ms + _STRETCH_MS,
                    CANARY_GROUP,
                )
            for row in rows:
                yield row


def _name(handoff: Handoff) -> tuple[bytes, str]:
    return handoff.key, handoff.owed.group


def _event_id(row: Any) -> str:
    return row["name"] or str(UUID(bytes=row["key"]))


def _is_over(state: str) -> bool:
    """Whether a stored word says that nothing is missing, or claims nothing."""
    return state in {settled.value for settled in SETTLED} or state == State.UNPROVABLE.value


class _Marks:
    """Offsets of partitions, a bit each: millions of records in little memory."""

    def __init__(self) -> None:
        self._bits: dict[Place, tuple[int, bytearray]] = {}

    def add(self, place: Place, offset: int) -> None:
        """Mark an offset; what lies below the first one that was marked of its partition is put in front."""
        base, bits = self._bits.setdefault(place, (offset & ~7, bytearray()))
        if offset < base:
            bits[:0] = bytes((base - (offset & ~7)) >> 3)
            base = offset & ~7
            self._bits[place] = base, bits
        index = (offset - base) >> 3
        if index >= len(bits):
            bits.extend(bytes(index + 1 - len(bits)))
        bits[index] |= 1 << (offset & 7)

    def has(self, place: Place, offset: int) -> bool:
        """Tell whether an offset is marked."""
        base, bits = self._bits.get(place, (0, bytearray()))
        index = (offset - base) >> 3
        return 0 <= index < len(bits) and bool(bits[index] >> (offset & 7) & 1)
