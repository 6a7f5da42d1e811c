"""What a stage does beside its consumer: send what doors and timers stored, fire timers, do tasks, prune."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chassis import outbox
from chassis.clock import utc_now
from chassis.failpoints import reach
from chassis.faults import backoff, is_transient
from chassis.fold import PARKED
from chassis.ids import derived_id, foreign_id
from chassis.log import get_logger
from chassis.message import Writer, time_header
from chassis.metrics import StageMetrics
from chassis.plan import DueTask, read_timers
from chassis.postgres import Database, Tx
from chassis.roots import batch_id_at, new_batch_id, new_id
from chassis.stage import Stage
from chassis.statement import Part, execute
from chassis.transport import Outgoing, Publisher
from schemas.envelope import BY_BODY, Body
from schemas.operations import WatermarkPassed

STALE = timedelta(seconds=30)
"""A consumer's own batch that is unsent for longer belongs to nobody alive; the relay takes it."""
LEASE = timedelta(seconds=60)
"""How long a fired timer or a claimed task has to come to something before it is taken up again."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How long rows stay after they have served: inputs seen, messages sent, records quarantined."""

    inbox: timedelta = timedelta(days=15)
    outbox: timedelta = timedelta(days=15)
    quarantine: timedelta = timedelta(days=90)


_SOMETHING_DUE = (
    "select exists(select from entities where wake_at <= $1) or exists(select from parked where until <= $1)"
)
_DONE = "delete from tasks where task_id = any($1::uuid[])"


class Relay:
    """The background work of one stage; every loop backs off by itself and never gives up."""

    def __init__(
        self,
        stage: Stage,
        database: Database,
        publisher: Publisher,
        metrics: StageMetrics,
        *,
        process: str = "-",
        keep: Keep | None = None,
    ) -> None:
        self._stage, self._database, self._publisher = stage, database, publisher
        self._metrics, self._process, self._keep = metrics, process, keep or Keep()
        self._writer = Writer(stage.name)
        self._wake = asyncio.Event()
        self._log = get_logger(stage=stage.name, part="relay")

    def run(self) -> list[asyncio.Task[None]]:
        """Start every loop; cancel the tasks to stop."""
        loops: list[tuple[Callable[[], Awaitable[bool]], float]] = [
            (self.relay_once, 0.5),
            (self.fire_timers_once, 0.25),
            (self.watermark_once, 5.0),
            (self.prune_once, 60.0),
        ]
        if self._stage.workers:
            loops.append((self.do_tasks_once, 0.1))
        return [asyncio.create_task(self._loop(work, pause)) for work, pause in loops]

    async def _loop(
        self, work: Callable[[], Awaitable[bool]], pause: float, *, wakeable: bool = False
    ) -> None:
        waits = backoff(0.2, 10.0)
        while True:
            try:
                more = await work()
            except Exception as error:
                self._log.warning("background_retried", error=type(error).__name__, work=work.__name__)
                if not is_transient(error):
                    self._log.error("background_failed", exc_info=error, work=work.__name__)
                await asyncio.sleep(next(waits))
                continue
            waits = backoff(0.2, 10.0)
            if not more:
                await self._rest(pause, wakeable=wakeable or work == self.relay_once)

    async def _rest(self, pause: float, *, wakeable: bool) -> None:
        if not wakeable:
            await asyncio.sleep(pause)
            return
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    # ------------------------------------------------------------ sending

    def wake(self) -> None:
        """Send soon what was just stored for the relay."""
        self._wake.set()

    def run_relay(self, collect: float = 0.0) -> asyncio.Task[None]:
        """Start only the loop that sends; for a process that stores messages and decides nothing.

        After each sending so many seconds are left for others to gather: fewer, larger requests.
        """

        async def relay_some() -> bool:
            more = await self.relay_once()
            await asyncio.sleep(collect)
            return more

        return asyncio.create_task(self._loop(relay_some, 0.5, wakeable=True))

    async def relay_once(self) -> bool:
        """Send the batches that no consumer will bring back; tells whether there may be more."""
        async with self._database.transaction() as tx:
            batches = await outbox.claim_unpublished(tx, batch_id_at(utc_now() - STALE))
            if not batches:
                return False
            await self._publisher.publish(await outbox.messages_of(tx, batches))
            await reach("relay_after_publish")
            await outbox.mark_published(tx, batches)
        return True

    async def _send(self, batch: int, messages: Sequence[Outgoing]) -> None:
        """Send what was just stored; if that fails or we die, `relay_once` finds it stale."""
        await self._publisher.publish(messages)
        async with self._database.session() as tx:
            await outbox.mark_published(tx, [batch])

    def _message(self, body: Body, uid: UUID, at: bytes) -> Outgoing:
        key = str(getattr(body, BY_BODY[type(body)].key))
        return self._writer.write(body, uid=uid, at=at, correlation=key)

    # ------------------------------------------------------------ timers

    async def fire_timers_once(self, limit: int = 1000) -> bool:
        """Turn timers that are due into commands to the stage itself; tells whether there are more.

        The case keeps the timer until the command is decided; if that does not happen within the
        lease, the timer is fired again under the same id.
        """
        now = utc_now()
        async with self._database.session() as tx:
            # Mostly nothing is due: one look, and no transaction.
            if not await tx.fetchval(_SOMETHING_DUE, now):
                return False
        async with self._database.transaction() as tx:
            rows = await tx.fetch(
                "update entities set wake_at = $2 where key in (select key from entities"
                " where wake_at <= $1 order by wake_at limit $3 for update skip locked)"
                " returning key, timers",
                now,
                now + LEASE,
                limit,
            )
            due = [
                (row["key"], name, at)
                for row in rows
                for name, at in read_timers(row["timers"]).items()
                if at <= now
            ]
            due += await self._ended_waits(tx, now, limit)
            if not due:
                return False
            batch, at = new_batch_id(), time_header(utc_now())
            messages = [self._fired(*timer, at) for timer in due]
            await outbox.store(tx, batch, messages, [key for key, _, _ in due], for_relay=False)
        await self._send(batch, messages)
        return len(rows) == limit

    async def _ended_waits(self, tx: Tx, now: datetime, limit: int) -> list[tuple[str, str, datetime]]:
        rows = await tx.fetch(
            "update parked set until = $2 where event_id in (select event_id from parked"
            " where until <= $1 limit $3 for update skip locked) returning event_id, key",
            now,
            now + LEASE,
            limit,
        )
        return [(row["key"], f"{PARKED}{row['event_id']}", now) for row in rows]

    def _fired(self, key: str, name: str, due_at: datetime, at: bytes) -> Outgoing:
        body = self._stage.timer_fired.model_validate({"subject": key, "timer": name, "due_at": due_at})
        return self._message(body, derived_id(foreign_id(self._stage.name, key, due_at), name), at)

    # ------------------------------------------------------------ tasks

    async def do_tasks_once(self, limit: int = 1000) -> bool:
        """Do tasks that are due and send their results as commands; tells whether there are more."""
        now = utc_now()
        async with self._database.session() as tx:
            rows = await tx.fetch(
                "with claimed as (update tasks set due_at = $2 where task_id in (select task_id"
                " from tasks where due_at <= $1 order by due_at limit $3 for update skip locked)"
                " returning task_id, key, name, data)"
                " select c.*, e.document from claimed c join entities e using (key)",
                now,
                now + LEASE,
                limit,
            )
        if not rows:
            return False
        tasks = [DueTask(*row.values()) for row in rows]
        messages = await self._work_on(tasks)
        await reach("task_done")
        batch = new_batch_id()
        said = outbox.parts(batch, messages, [task.key for task in tasks], for_relay=False)
        async with self._database.session() as tx:
            # One statement: a task is gone if and only if its result is there.
            await execute(tx, [*said, Part("done", _DONE, [[task.task_id for task in tasks]])])
        await self._send(batch, messages)
        return len(rows) == limit

    async def _work_on(self, tasks: Sequence[DueTask]) -> list[Outgoing]:
        messages: list[Outgoing] = []
        for name, worker in self._stage.workers.items():
            mine = [task for task in tasks if task.name == name]
            if mine:
                results = await worker(mine)
                at = time_header(utc_now())
                messages += [
                    self._message(result, derived_id(task.task_id, "done"), at)
                    for task, result in zip(mine, results, strict=True)
                ]
        return messages

    # ------------------------------------------------------------ watermarks and pruning

    async def watermark_once(self) -> bool:
        """Say up to when every timer has fired and every message is sent."""
        now = utc_now()
        async with self._database.session() as tx:
            row = await tx.fetchrow(
                "select (select min(wake_at) from entities where wake_at is not null) as timer,"
                " (select min(batch) from unpublished) as batch,"
                " (select count(*) from unpublished) as pending"
            )
        oldest = _time_of(row["batch"]) if row["batch"] is not None else now
        self._metrics.outbox_age.set(max(0.0, (now - oldest).total_seconds()))
        self._metrics.outbox_rows.set(row["pending"])
        body = WatermarkPassed(
            group=self._stage.name,
            process=self._process,
            timers_through=min(row["timer"] or now, now),
            outbox_through=min(oldest, now),
        )
        await self._publisher.publish([self._message(body, new_id(), time_header(utc_now()))])
        return False

    async def prune_once(self) -> bool:
        """Delete rows that have served their time, a little at a time."""
        now = utc_now()
        async with self._database.session() as tx:
            return await prune(tx, now, self._keep)


async def prune(tx: Tx, now: datetime, keep: Keep, limit: int = 20_000) -> bool:
    """Delete up to `limit` rows of each table that are older than `keep`; tells whether there are more.

    Messages that Kafka has not acknowledged stay, however old.
    """
    done: list[Any] = [
        await tx.execute(
            "delete from inbox where ctid = any(array(select ctid from inbox where batch < $1 limit $2))",
            batch_id_at(now - keep.inbox),
            limit,
        ),
        await tx.execute(
            "delete from outbox where ctid = any(array(select o.ctid from outbox o where batch < $1"
            " and not exists (select from unpublished u where u.batch = o.batch) limit $2))",
            batch_id_at(now - keep.outbox),
            limit,
        ),
        await tx.execute(
            "delete from quarantine where ctid = any(array(select ctid from quarantine"
            " where first_seen < $1 limit $2))",
            now - keep.quarantine,
            limit,
        ),
    ]
    return any(int(status.rpartition(" ")[2]) >= limit for status in done)


def _time_of(batch: int) -> datetime:
    return datetime.fromtimestamp((batch >> 21) / 1000, tz=utc_now().tzinfo)
