"""One handoff dropped on purpose, now: whether the observer names it, and how fast."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher, Offsets
from cli import ledger
from cli.world import Place
from observer.canary import FLAGGED_WITHIN_MS, Canary
from observer.headers import key_of
from observer.ledger import State
from schemas.operations import CANARY_GROUP

WITHIN_S = FLAGGED_WITHIN_MS / 1000
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Sung:
    """What became of one song: what was said of it and after how many seconds; why nobody could see it."""

    song: str
    state: str | None
    after_s: float
    blind: str

    @property
    def flagged(self) -> bool:
        """Whether it was named as what it is: dropped."""
        return self.state == State.DROPPED.value

    def as_json(self) -> dict[str, Any]:
        """The outcome for a script."""
        return {
            "song": self.song,
            "flagged": self.flagged,
            "verdict": self.state,
            "detection_s": round(self.after_s, 3) if self.flagged else None,
            "waited_s": round(self.after_s, 3),
            "blind": self.blind or None,
        }


async def sing(place: Place, within: float = WITHIN_S) -> Sung:
    """Drop a handoff, and wait until the observer says so; raises Transient, and CannotReach.

    The time runs from the commit past it to the verdict in the observer's table, on one clock: this one's.
    """
    # Read committed: each look sees what the observer has written meanwhile. Without tables nothing is sent.
    async with ledger.session(place) as tx:
        song = await _one(place)
        sung_at = monotonic()
        while True:
            state = await tx.fetchval(
                "select state from verdicts where key = $1 and grp = $2",
                key_of(song.encode()),
                CANARY_GROUP,
            )
            after_s = monotonic() - sung_at
            if state is not None or after_s > within:
                seen = await ledger.overview(tx)
                return Sung(song, state, after_s, seen.blind)
            await asyncio.sleep(_LOOK_EVERY_S)


async def _one(place: Place) -> str:
    publisher, offsets = KafkaPublisher(place.kafka, "hotline-canary"), Offsets(place.kafka)
    try:
        await offsets.start()
        return await Canary(place.kafka, publisher, offsets).sing()
    finally:
        await publisher.stop()
        await offsets.stop()
