"""An operator's pause of a stage: its processes leave their group, and go on where it was when they may.

The word stands in the stage's own schema, so it outlives every process. A paused group has no member: what it
has committed stays, and what comes waits on its topics. What was decided before is still sent, and timers
still fire: as commands, which wait with the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from chassis.kafka import Subscription
from chassis.log import get_logger
from chassis.postgres import Database, Tx

LOOK_EVERY_S = 2.0
"""So long after the operator's word a stage may go on reading."""
_log = get_logger(part="pause")


@dataclass(frozen=True, slots=True)
class Pause:
    """Who has paused a stage, since when, and why."""

    since: datetime
    actor: str
    reason: str

    def as_json(self) -> dict[str, str]:
        """Give what screens and scripts show; `since` as RFC 3339."""
        return {"by": self.actor, "since": self.since.isoformat(timespec="seconds"), "reason": self.reason}


async def pause_of(tx: Tx) -> Pause | None:
    """Read whether the stage of this schema is paused."""
    row = await tx.fetchrow("select since, actor, reason from paused")
    return None if row is None else Pause(*row.values())


async def store(tx: Tx, pause: Pause) -> None:
    """Pause the stage of this schema; one that is paused already stays as it is."""
    await tx.execute(
        "insert into paused (since, actor, reason) values ($1, $2, $3) on conflict do nothing",
        pause.since,
        pause.actor,
        pause.reason,
    )


async def lift(tx: Tx) -> None:
    """Let the stage of this schema read again."""
    await tx.execute("delete from paused")


class Reading:
    """A stage's subscription, for as long as nobody has paused the stage."""

    def __init__(self, database: Database, subscribe: Callable[[], Subscription]) -> None:
        self._database, self._subscribe = database, subscribe
        self.subscription: Subscription | None = None
        self._left: Subscription | None = None
        self.pause: Pause | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin as `look` has found, then follow the schema; raises Transient while Kafka is away."""
        await self.obey()
        self._following = asyncio.create_task(self._go_on_following())

    async def stop(self) -> None:
        """Finish the batch under way, leave the group."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._leave()

    async def look(self) -> None:
        """See whether the stage is paused; raises what the database raises while it is away."""
        async with self._database.session() as tx:
            pause = await pause_of(tx)
        if pause != self.pause:
            _log.info("paused" if pause else "resumed")
        self.pause = pause

    async def obey(self) -> None:
        """Join the group or leave it, as was seen last; raises Transient while Kafka is away."""
        if self.pause is not None:
            await self._leave()
        elif self._left is not None and self._left.busy:
            # Two batches at once would be two minds; when this one is done, it is read from there.
            _log.warning("not_resumed", why="the batch under way at the pause is still being tried")
        elif self.subscription is None:
            subscription = self._subscribe()
            try:
                await subscription.start()
                self.subscription = subscription
            finally:
                if self.subscription is None:
                    await subscription.stop()

    async def _leave(self) -> None:
        if self.subscription is not None:
            await self.subscription.stop()
            self._left, self.subscription = self.subscription, None

    async def _go_on_following(self) -> None:
        """Look every few seconds; whoever cannot be asked has changed nothing."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
                await self.obey()
            except Exception as error:
                _log.warning("pause_not_followed", error=type(error).__name__, why=str(error)[:200])
