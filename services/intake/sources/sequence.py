"""A feed whose events are numbered: what is missing, since when, and whether it came after all. Pure.

A number that was jumped over may be under way on another connection: it is given `PATIENCE`, then told as
a gap. It stays open until it comes, or a day has passed.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from schemas import telephony
from schemas.envelope import Body, Moment

PATIENCE = timedelta(seconds=10)
"""So late an event may come without its absence having been told."""
KEEP = timedelta(hours=24)
"""For how long a gap stays open."""
MOST_GAPS = 200
"""Open gaps of one feed; beyond, the oldest are told and let go."""
MOST_STARTS = 9
"""Starts that are remembered, those heard last, so that a straggler of one of them is no new start."""


class Place(NamedTuple):
    """Where an event stands in its feed: `sequence` begins again with each start of the switch, a `core`.

    One that has not `come` is only said to be there: by the feed's manifest, which was published at `at`.
    """

    core: str
    sequence: int
    at: datetime
    come: bool = True


class Gap(Body):
    """Numbers `first` … `last` of a start that have not come, and between which moments they should have."""

    core: str
    first: int
    last: int
    gap_from: Moment
    gap_to: Moment
    noticed_at: Moment
    told: bool = False

    def interrupted(self, source: str) -> telephony.SourceInterrupted:
        """Tell of the gap."""
        return telephony.SourceInterrupted(
            source=source,
            reason="seq_jump",
            gap_from=self.gap_from,
            gap_to=self.gap_to,
            from_seq=self.first,
            to_seq=self.last,
        )

    def without(self, place: Place) -> Iterator["Gap"]:
        """Give what is left once a number has come."""
        if place.core != self.core or not self.first <= place.sequence <= self.last:
            yield self
            return
        if self.first < place.sequence:
            yield self.model_copy(update={"last": place.sequence - 1})
        if place.sequence < self.last:
            yield self.model_copy(update={"first": place.sequence + 1})


class Mark(Body):
    """How far one start of a switch has been heard."""

    core: str
    sequence: int
    at: Moment


class Numbers(Body):
    """How far a feed has been heard, and what is missing in it; give each event to `heard`, in any order.

    Each start has a mark of its own, the one heard last stands last: a second switch behind the same
    source is taken for a new start when it is first heard, but its numbers count from then on as well.
    What is numbered before the first word that is heard of a start is not judged.
    """

    marks: tuple[Mark, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def missing(self) -> int:
        """How many events are missing, of all open gaps."""
        return sum(gap.last - gap.first + 1 for gap in self.gaps)

    def heard(
        self, places: Iterable[Place], source: str, now: datetime
    ) -> tuple["Numbers", list[telephony.SourceInterrupted]]:
        """Take what was heard together; gives what is known then, and the gaps that are to be told.

        Nothing heard is time that passed.
        """
        known = self
        told: list[telephony.SourceInterrupted] = []
        for place in places:
            restarted = known._restart(place, source)
            if restarted is not None:
                told.append(restarted)
            known = known._with(place, now)
        known, overdue = _overdue(known, source, now)
        return known, [*told, *overdue]

    def _restart(self, place: Place, source: str) -> telephony.SourceInterrupted | None:
        if not self.marks or self._mark(place.core) is not None:
            return None
        last = self.marks[-1].at
        return telephony.SourceInterrupted(
            source=source, reason="source_restarted", gap_from=last, gap_to=max(place.at, last)
        )

    def _mark(self, core: str) -> Mark | None:
        return next((mark for mark in self.marks if mark.core == core), None)

    def _with(self, place: Place, now: datetime) -> "Numbers":
        gaps = tuple(rest for gap in self.gaps for rest in gap.without(place)) if place.come else self.gaps
        mark = self._mark(place.core)
        if mark is not None and place.sequence <= mark.sequence:
            return self.model_copy(update={"gaps": gaps})
        last_missing = place.sequence - place.come
        if mark is not None and last_missing > mark.sequence:
            missing = Gap(
                core=place.core,
                first=mark.sequence + 1,
                last=last_missing,
                gap_from=min(mark.at, place.at),
                gap_to=place.at,
                noticed_at=now,
            )
            gaps = (*gaps, missing)
        others = [other for other in self.marks if other is not mark]
        newest = Mark(core=place.core, sequence=place.sequence, at=place.at)
        return Numbers(marks=(*others, newest)[-MOST_STARTS:], gaps=gaps)


def _overdue(known: Numbers, source: str, now: datetime) -> tuple[Numbers, list[telephony.SourceInterrupted]]:
    """What has been waited for long enough is told; what has been told long ago is let go."""
    spare = len(known.gaps) - MOST_GAPS
    told: list[telephony.SourceInterrupted] = []
    kept: list[Gap] = []
    for number, gap in enumerate(known.gaps):
        due = number < spare or gap.noticed_at + PATIENCE <= now
        if due and not gap.told:
            told.append(gap.interrupted(source))
        if number >= spare and gap.noticed_at + KEEP > now:
            kept.append(gap.model_copy(update={"told": gap.told or due}))
    return known.model_copy(update={"gaps": tuple(kept)}), told
