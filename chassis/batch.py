"""One pass of a stage: read a batch, decide, store once, send, mark, commit."""

import asyncio
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from chassis import failpoints, outbox, plan
from chassis.clock import monotonic, utc_now
from chassis.failpoints import reach
from chassis.faults import Bug, backoff, is_data_fault, is_transient
from chassis.fold import Fold, Input
from chassis.inbox import Seen, digest_of
from chassis.log import get_logger
from chassis.message import PASSED_OVER, PassedOver, Poison, Writer, read
from chassis.metrics import StageMetrics
from chassis.plan import Plan
from chassis.postgres import Database, Tx
from chassis.roots import new_batch_id
from chassis.stage import Stage
from chassis.step import Event
from chassis.transport import SENT_AGAIN, Outgoing, Place, Publisher, Reader, Record
from chassis.vault import SealRecord

ACKNOWLEDGE_EVERY = 0.05
"""Seconds for which what was sent may stay unmarked and uncommitted: one round trip for many batches."""
_UNACKNOWLEDGED_AT_MOST = 200


class _Stored(NamedTuple):
    """A batch that is in the database: what must be sent, then marked, then committed."""

    batch: int
    outgoing: list[Outgoing]
    resend: list[int]
    offsets: dict[Place, int]
    repeat: dict[int, set[str]]


@dataclass(slots=True)
class _Blocked:
    """A partition that stands at a record whose decision raises, and how often it has."""

    offset: int
    times: int = 0


class Pass:
    """Handles batches for one stage; safe to cancel at any point, nothing is lost."""

    def __init__(
        self,
        stage: Stage,
        database: Database,
        publisher: Publisher,
        seal: SealRecord,
        metrics: StageMetrics,
    ) -> None:
        self._stage, self._database, self._publisher = stage, database, publisher
        self._storing, self._marking = database.line(), database.line()
        self._seal, self._metrics = seal, metrics
        self._writer = Writer(stage.name)
        self._handled = stage.handled
        self._log = get_logger(stage=stage.name)
        self._sending: asyncio.Task[None] | None = None
        self._acknowledging: asyncio.Task[None] | None = None
        self._at_once = asyncio.Event()
        self._sent: list[int] = []
        self._offsets: dict[Place, int] = {}
        self._unblocking: set[asyncio.Task[None]] = set()
        self._blocked: dict[Place, _Blocked] = {}

    async def __call__(self, records: Sequence[Record], reader: Reader) -> None:
        """Store a batch and begin to send it; returns when the batch before is sent.

        So the next batch is read and decided while this one travels. What was sent is marked and
        committed a moment later, for several batches at once. Faults of the infrastructure are
        retried for ever; nothing is acknowledged meanwhile.
        """
        started = monotonic()
        if failpoints.ARMED:
            await self._commit_too_early(records, reader)
        for wait in backoff():
            try:
                await self._handle(records, reader)
            except Exception as error:
                await self._before_retry(error, wait)
            else:
                self._metrics.passed(len(records), monotonic() - started)
                return

    async def _commit_too_early(self, records: Sequence[Record], reader: Reader) -> None:
        """In a test, be what this class exists not to be: commit before the work, or halfway, and die."""
        handled = records[: len(records) // 2] if failpoints.loses("rest", "batch") else []
        if handled or failpoints.loses("commit", "batch"):
            await self.settle()
            if handled:
                await self._handle(handled, reader)
                await self.settle()
            await reader.commit(next_offsets(records))
            failpoints.die()

    async def settle(self) -> None:
        """Return when everything that was stored is sent, marked and committed."""
        if self._sending is not None:
            await asyncio.shield(self._sending)
        if self._acknowledging is not None:
            self._at_once.set()
            await asyncio.shield(self._acknowledging)

    async def _before_retry(self, error: Exception, wait: float) -> None:
        name = type(error).__name__
        if is_transient(error):
            self._log.warning("pass_retried", error=name, why=str(error)[:200], wait_s=round(wait, 2))
        else:
            self._log.error("pass_failed", error=name, wait_s=round(wait, 2), exc_info=error)
        self._metrics.retried(name)
        await asyncio.sleep(wait)

    async def _handle(self, records: Sequence[Record], reader: Reader) -> None:
        try:
            stored = await self._store(records)
        except Bug as bug:
            await self._around(bug, records, reader)
            return
        except Exception as error:
            if not is_data_fault(error):
                raise
            await self._bisect(records, reader, error)
            return
        await self._then_send(stored, reader)

    async def _then_send(self, stored: _Stored, reader: Reader) -> None:
        self._passed(stored.offsets)
        if len(self._sent) > _UNACKNOWLEDGED_AT_MOST:
            await self.settle()
        if self._sending is not None:
            await asyncio.shield(self._sending)
        self._sending = asyncio.create_task(self._send_then_acknowledge(stored, reader))

    async def _send_then_acknowledge(self, stored: _Stored, reader: Reader) -> None:
        """Send until it works; only then may the batch be marked, and its offsets be committed."""
        for wait in backoff():
            try:
                self._sent += await self._send(stored)
            except Exception as error:
                await self._before_retry(error, wait)
            else:
                break
        self._offsets.update(stored.offsets)
        if self._acknowledging is None or self._acknowledging.done():
            self._at_once.clear()
            self._acknowledging = asyncio.create_task(self._acknowledge_soon(reader))

    async def _acknowledge_soon(self, reader: Reader) -> None:
        waits = backoff()
        while self._sent or self._offsets:
            with suppress(TimeoutError):
                async with asyncio.timeout(ACKNOWLEDGE_EVERY):
                    await self._at_once.wait()
            try:
                await self._acknowledge(reader)
            except Exception as error:
                await self._before_retry(error, next(waits))

    async def _acknowledge(self, reader: Reader) -> None:
        """Mark, then commit, what has been sent up to now; what is sent meanwhile waits for its turn."""
        sent, offsets = self._sent[:], dict(self._offsets)
        if sent:
            async with self._marking.session() as tx:
                await outbox.mark_published(tx, sent)
            del self._sent[: len(sent)]
            await reach("after_mark")
        await reader.commit(offsets)
        for place, offset in offsets.items():
            if self._offsets[place] == offset:
                del self._offsets[place]
        await reach("after_commit")

    async def _bisect(self, records: Sequence[Record], reader: Reader, error: Exception) -> None:
        """PostgreSQL refused the data of one record: find it, quarantine it, spare its neighbours."""
        if len(records) > 1:
            middle = len(records) // 2
            await self._handle(records[:middle], reader)
            await self._handle(records[middle:], reader)
            return
        refused = Poison("database_refused", f"{type(error).__name__}: the database refused the data")
        await self._then_send(await self._store(records, {0: refused}), reader)

    async def _around(self, bug: Bug, records: Sequence[Record], reader: Reader) -> None:
        """A decision raised: block its partition at that record, handle everything else."""
        place = Place(bug.topic, bug.partition)
        self._block(place, bug, reader)
        rest = [
            record
            for record in records
            if (record.topic, record.partition) != place or record.offset < bug.offset
        ]
        if rest:
            await self._handle(rest, reader)

    def _block(self, place: Place, bug: Bug, reader: Reader) -> None:
        blocked = self._blocked.setdefault(place, _Blocked(bug.offset))
        wait = min(2.0**blocked.times, 60.0)
        blocked.offset, blocked.times = bug.offset, blocked.times + 1
        self._metrics.blocked(place, blocked=True)
        self._log.error(
            "decision_raised",
            topic=bug.topic,
            partition=bug.partition,
            offset=bug.offset,
            error=type(bug.cause).__name__,
            retry_in_s=wait,
            exc_info=bug.cause,
        )
        reader.block(place, bug.offset)
        task = asyncio.create_task(self._unblock_later(place, wait, reader))
        self._unblocking.add(task)
        task.add_done_callback(self._unblocking.discard)

    async def _unblock_later(self, place: Place, wait: float, reader: Reader) -> None:
        await asyncio.sleep(wait)
        reader.unblock(place)

    def blocked(self, assigned: AbstractSet[Place]) -> frozenset[Place]:
        """Name the partitions that stand at a record whose decision raises; of those still assigned."""
        for place in self._blocked.keys() - assigned:
            self._unblocked(place)
        return frozenset(self._blocked)

    def _passed(self, offsets: dict[Place, int]) -> None:
        """Once the record is decided, its partition is blocked no more."""
        for place in [place for place, at in self._blocked.items() if offsets.get(place, 0) > at.offset]:
            self._unblocked(place)

    def _unblocked(self, place: Place) -> None:
        del self._blocked[place]
        self._metrics.blocked(place, blocked=False)

    async def _store(self, records: Sequence[Record], condemned: dict[int, Poison] | None = None) -> _Stored:
        offsets = next_offsets(records)
        readable = [read(record, self._handled) for record in records]
        for index, poison in (condemned or {}).items():
            readable[index] = poison
        if failpoints.ARMED:
            readable = [_unless_lost(item) for item in readable]
        if all(isinstance(item, PassedOver) for item in readable):
            return _Stored(0, [], [], offsets, {})
        current = Plan(new_batch_id(), utc_now())
        # No transaction: storing is one statement, whole or not at all.
        async with self._storing.session() as tx:
            resend, repeat = await self._decide(tx, current, records, readable)
            await reach("before_store")
            await plan.write(tx, current, self._stage.phase, self._stage.copies)
        await reach("after_store")
        self._metrics.decided(current)
        return _Stored(current.batch, current.outgoing, resend, offsets, repeat)

    async def _decide(
        self,
        tx: Tx,
        current: Plan,
        records: Sequence[Record],
        readable: Sequence[Event[Any] | Poison | PassedOver],
    ) -> tuple[list[int], dict[int, set[str]]]:
        fold = Fold(self._stage, self._writer, current, self._seal)
        inputs, repeated = _distinct(records, readable)
        uids, keys = [item.event.uid for item in inputs], list({item.event.key for item in inputs})
        found = await plan.look(tx, uids, keys, self._stage.state)
        current.entities, seen = found.entities, found.seen
        current.revived, repeat = self._sent_again(inputs, seen)
        fresh = [item for item in inputs if item.event.uid not in seen]
        repeated += [item for item in inputs if item.event.uid in seen]
        if found.awaited:
            await self._expect_parked(tx, fold, found.awaited)
        for record, poison in zip(records, readable, strict=True):
            if isinstance(poison, Poison):
                fold.quarantine(record, poison)
        policy = self._stage.policy
        if self._stage.prepare is not None and fresh:
            deciding = [*(item.event for item in fresh), *fold.waiting_events]
            policy = await self._stage.prepare(tx, deciding, policy)
        fold.decide_all(fresh, policy)
        for item in _reused(inputs, repeated, seen):
            reuse = Poison("id_reuse", "this id was used before for other content", item.event.key)
            fold.quarantine(item.record, reuse, item.event)
        fold.finish()
        self._metrics.repeated(len(repeated))
        return sorted({known.batch for known in seen.values() if known.unpublished}), repeat

    @staticmethod
    def _sent_again(inputs: Sequence[Input], seen: dict[UUID, Seen]) -> tuple[set[UUID], dict[int, set[str]]]:
        """What an operator sends again: dead inputs are decided anew, others' effects are said again."""
        revived: set[UUID] = set()
        repeat: dict[int, set[str]] = {}
        for item in inputs:
            known = seen.get(item.event.uid)
            if known is None or SENT_AGAIN not in dict(item.record.headers):
                continue
            if known.dead:
                del seen[item.event.uid]
                revived.add(item.event.uid)
            else:
                repeat.setdefault(known.batch, set()).add(item.event.name)
        return revived, repeat

    async def _expect_parked(self, tx: Tx, fold: Fold, keys: list[str]) -> None:
        """Waiting inputs matter when their case appears, or when their time is up."""
        parked = await plan.parked_for(tx, keys)
        events = {}
        for item in parked:
            event = read(item.record, self._handled)
            if isinstance(event, Event):
                events[item.uid] = event
        fold.expect([item for item in parked if item.uid in events], events)

    async def _send(self, stored: _Stored) -> list[int]:
        """Publish what a batch says, after what a dead process left unsent; gives the batches to mark."""
        batches = [*stored.resend]
        messages: list[Outgoing] = []
        if stored.resend:
            # Handled before, but not sent: a dead process left them. Before anything newer.
            async with self._database.session() as tx:
                messages += await outbox.messages_of(tx, stored.resend)
        if stored.repeat:
            async with self._database.session() as tx:
                messages += await outbox.said_for(tx, stored.repeat)
        if stored.outgoing:
            messages += stored.outgoing
            batches.append(stored.batch)
        if failpoints.ARMED:
            messages = failpoints.survivors(messages)
        if messages:
            await self._publisher.publish(messages)
            await reach("after_publish")
        return batches


def _unless_lost(item: Event[Any] | Poison | PassedOver) -> Event[Any] | Poison | PassedOver:
    """In a test, a stage may swallow what it should handle."""
    return PASSED_OVER if isinstance(item, Event) and failpoints.loses("input", item.name) else item


def _distinct(
    records: Sequence[Record], readable: Sequence[Event[Any] | Poison | PassedOver]
) -> tuple[list[Input], list[Input]]:
    """Separate the first sight of each event in this batch from its repetitions."""
    first: dict[object, Input] = {}
    repeated: list[Input] = []
    for record, item in zip(records, readable, strict=True):
        if isinstance(item, Event):
            candidate = Input(record, item)
            if item.uid in first:
                repeated.append(candidate)
            else:
                first[item.uid] = candidate
    return list(first.values()), repeated


def _reused(inputs: Sequence[Input], repeated: Sequence[Input], seen: dict[UUID, Seen]) -> Iterator[Input]:
    """Find repetitions whose content is not what was handled under the same id."""
    digests = {item.event.uid: digest_of(item.record.value) for item in inputs} if repeated else {}
    digests.update({uid: known.digest for uid, known in seen.items()})
    for item in repeated:
        if digest_of(item.record.value) != digests[item.event.uid]:
            yield item


def next_offsets(records: Sequence[Record]) -> dict[Place, int]:
    """Say what to commit when a batch is done: the offset behind the last of each partition's records."""
    last = {(record.topic, record.partition): record.offset for record in records}
    return {Place(*place): offset + 1 for place, offset in last.items()}
