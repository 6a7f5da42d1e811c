"""The negative canary: a handoff that is dropped on purpose, so that silence of the observer is noticed.

It goes the whole way: a real record, a real commit past it, no effect. If it is not named as dropped
within seconds, the observer does not prove anything any more. It counts in no business figure.
"""

from __future__ import annotations

import asyncio

from chassis.clock import epoch_ms, utc_now
from chassis.kafka import Connection, KafkaPublisher, Offsets, commit_for
from chassis.log import get_logger
from chassis.message import Writer, time_header
from chassis.roots import new_id
from chassis.transport import Place
from observer.headers import key_of
from schemas.operations import CANARY, CANARY_GROUP, CanarySung

FLAGGED_WITHIN_MS = 10_000
SUNG_AGAIN_S = 5.0
_PLACE = Place(CANARY, 0)


class Canary:
    """Sings at a steady pace, and remembers what was not named."""

    def __init__(self, connection: Connection, publisher: KafkaPublisher, offsets: Offsets) -> None:
        self._connection, self._publisher, self.offsets = connection, publisher, offsets
        self._writer = Writer("observer")
        self._sung: dict[bytes, int] = {}
        self._every_ms = self._since_ms = 0
        self.last_flagged_ms = 0
        self.detection_ms: int | None = None
        self._log = get_logger(part="canary")

    async def sing(self) -> str:
        """Publish one song and commit past it; gives its id; raises Transient."""
        uid = new_id()
        now = utc_now()
        body = CanarySung(song=str(uid), sung_at=now)
        message = self._writer.write(body, uid=uid, at=time_header(now), correlation=str(uid))
        await self._publisher.publish([message])
        ends = await self.offsets.highs([_PLACE])
        await commit_for(self._connection, CANARY_GROUP, ends)
        self._sung[key_of(str(uid).encode())] = epoch_ms()
        return str(uid)

    async def sing_every(self, seconds: float) -> None:
        """Sing until cancelled; a fault of the infrastructure puts a song off, and the gap tells."""
        self._every_ms, self._since_ms = int(seconds * 1000), epoch_ms()
        while True:
            try:
                await self.sing()
            except Exception as error:
                self._log.warning("canary_not_sung", error=type(error).__name__)
                await asyncio.sleep(min(seconds, SUNG_AGAIN_S))
            else:
                await asyncio.sleep(seconds)

    def flagged(self, key: bytes, now_ms: int) -> None:
        """Note that a song was named as dropped at `now_ms`, a time after its commit."""
        self.last_flagged_ms = now_ms
        sung = self._sung.pop(key, None)
        if sung is not None:
            self.detection_ms = max(0, now_ms - sung)

    def silent_for_ms(self, now_ms: int) -> int:
        """How long no song was named that should have been, unsung ones too; 0 when none is late."""
        waiting = now_ms - min(self._sung.values(), default=now_ms)
        silence = now_ms - max(self.last_flagged_ms, self._since_ms) if self._since_ms else 0
        is_late = max(waiting, silence - self._every_ms) > FLAGGED_WITHIN_MS
        return max(waiting, silence) if is_late else 0
