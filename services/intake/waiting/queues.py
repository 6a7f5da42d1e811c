"""What is known of each queue now: who waits, who talks, how long it took; remembered for a second. Pure."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from services.intake.waiting.estimate import (
    OPEN_AT_MOST,
    Estimate,
    Served,
    Snapshot,
    Standing,
    Stay,
    estimate,
    line_of,
    served,
    standing,
)

PRIORITY_CREDIT = timedelta(seconds=90)
"""So much earlier counts a caller per step of priority (the bank of 1999 gave its best customers 90 s)."""
_AT_ONCE = timedelta(milliseconds=999)  # who waited under a second says nothing about waiting
_REMEMBERED = 5_000


def rank_of(queued_at: datetime, priority: int | None) -> datetime:
    """Give the moment by which a waiting caller is ordered."""
    return queued_at - PRIORITY_CREDIT * max(0, priority or 0)


def stay_of(row: Any) -> Stay:
    """Read a stay from a row of `visits`."""
    return Stay(
        queued_at=row["queued_at"],
        rank=rank_of(row["queued_at"], row["priority"]),
        answered_at=row["answered_at"],
        left_at=row["left_at"],
        talk_ended_at=row["talk_ended_at"],
        agent=row["agent"],
        place=row["place"],
        placed_at=row["placed_at"],
    )


@dataclass(slots=True)
class Queue:
    """One queue as of `at`; `joined` keeps how each caller stood on joining, which never changes.

    `ahead` tells how many stand before each stay (call and visit), where the switch says anything of places.
    """

    at: datetime
    stays: Sequence[Stay] = ()
    served: Sequence[Served] = ()
    talks: Sequence[timedelta] = ()
    ahead: dict[tuple[str, int], int] = field(default_factory=dict)
    joined: OrderedDict[tuple[datetime, datetime], Standing] = field(default_factory=OrderedDict)

    def refresh(self, rows: Sequence[Any], at: datetime) -> None:
        """Take the newest rows of `visits`, oldest first."""
        self.at, self.stays = at, [stay_of(row) for row in rows]
        self.ahead = self._places(rows)
        self.served = served(self.stays, at, _AT_ONCE, self._joined)
        ended = sorted((row for row in rows if row["talk_ended_at"]), key=lambda row: row["talk_ended_at"])
        self.talks = [timedelta(milliseconds=row["talk_ms"]) for row in ended if row["talk_ms"]]

    def _joined(self, rank: datetime, queued_at: datetime) -> Standing:
        where = (rank, queued_at)
        if where not in self.joined:
            self.joined[where] = standing(self.stays, rank, queued_at)
            while len(self.joined) > _REMEMBERED:
                self.joined.popitem(last=False)
        return self.joined[where]

    def _places(self, rows: Sequence[Any]) -> dict[tuple[str, int], int]:
        if all(stay.place is None for stay in self.stays):
            return {}
        names = {id(stay): (row["call_id"], row["visit"]) for stay, row in zip(self.stays, rows, strict=True)}
        return {names[id(stay)]: ahead for ahead, stay in enumerate(line_of(self.stays, self.at))}

    def standing(
        self, rank: datetime, at: datetime, stay: tuple[str, int] | None = None, place: int | None = None
    ) -> Standing:
        """Tell how a caller of that rank stands now; the switch's own word on `stay`, or `place`, goes first.

        `place` is what it told of a caller who came after this queue was read.
        """
        where = standing(self.stays, rank, at)
        ahead = self.ahead.get(stay) if stay is not None else None
        if ahead is None and place is not None:
            ahead = place - 1
        return where if ahead is None else replace(where, ahead=ahead)

    def estimate(self, where: Standing) -> Estimate:
        """Estimate the wait of a caller who stands there."""
        return estimate(Snapshot(where, self.served, self.talks))

    def waiting(self, at: datetime) -> list[Stay]:
        """Those who wait, the first to be served first."""
        return sorted((stay for stay in self._lately(at) if stay.waits(at)), key=lambda stay: stay.rank)

    def talking(self, at: datetime) -> int:
        """How many agents talk."""
        return len(
            {
                stay.agent
                for stay in self._lately(at)
                if stay.answered_at is not None and (stay.talk_ended_at is None or stay.talk_ended_at > at)
            }
        )

    def _lately(self, at: datetime) -> list[Stay]:
        """Without what seems to last for ever because its end was lost."""
        return [stay for stay in self.stays if stay.queued_at >= at - OPEN_AT_MOST]
