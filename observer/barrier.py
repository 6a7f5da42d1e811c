"""The order of steps that turns "not seen yet" into "does not exist": commits, then ends, then reading. Pure.

A barrier first waits, where it must, until a group has committed past what the log held when the
suspicion arose. Then it takes fresh high watermarks of the topics on which an answer could be. When
everything below them has been read, what was not seen does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chassis.transport import Place

READING, OPEN_TRANSACTION, NO_LEADER = "reading", "open_txn", "no_leader"
"""Why a topic keeps verdicts waiting."""


@dataclass(slots=True, eq=False)
class Barrier:
    """One set of suspects, and what must happen before they may be judged.

    `topics` must be read to their ends; `after` names topics whose ends, taken first, the group must
    have committed past. `commits` is what was committed when the suspicion arose: part of the evidence.
    `note` says of what retention deleted that it was deleted.
    """

    group: str
    topics: frozenset[str]
    suspects: list[Any]
    commits: dict[Place, int] = field(default_factory=dict)
    after: frozenset[str] = frozenset()
    not_before_ms: int = 0
    note: str = ""
    to_commit: dict[Place, int] | None = None
    to_read: dict[Place, int] | None = None
    read: dict[Place, int] = field(default_factory=dict)
    raised_ms: int = 0
    ends_at_ms: int = 0

    @property
    def wants(self) -> frozenset[str]:
        """The topics whose high watermarks are needed for the next step; empty while it waits."""
        if self.after and self.to_commit is None:
            return self.after
        return self.topics if self.to_read is None and not self.waits_for_commit else frozenset()

    @property
    def waits_for_commit(self) -> bool:
        """Whether the group has not come past the first ends yet."""
        return bool(self.to_commit)


class Barriers:
    """All barriers under way; judged in the order in which they are passed."""

    def __init__(self) -> None:
        self._waiting: list[Barrier] = []

    def raise_(self, barrier: Barrier, now_ms: int) -> None:
        """Begin; the high watermarks must be read after this call."""
        barrier.raised_ms = now_ms
        self._waiting.append(barrier)

    @property
    def wants(self) -> frozenset[str]:
        """The topics whose high watermarks must be read now, with fresh metadata."""
        return frozenset().union(*(barrier.wants for barrier in self._waiting))

    def committed(
        self,
        group: str,
        commits: Mapping[Place, int],
        positions: Mapping[Place, int],
        last: Mapping[Place, int],
    ) -> None:
        """Note a group's commits: read them before the ends that `ends` is told of.

        `last` is the offset after the last record read: behind it there may be markers of transactions,
        which nobody commits past.
        """
        for barrier in self._waiting:
            if barrier.group == group and barrier.to_commit:
                barrier.commits.update(commits)
                barrier.to_commit = {
                    place: end
                    for place, end in barrier.to_commit.items()
                    if commits.get(place, -1) < end
                    and not (positions.get(place, 0) >= end and commits.get(place, 0) >= last.get(place, 0))
                }

    def ends(self, highs: Mapping[Place, int | None], now_ms: int, asked: Iterable[str]) -> None:
        """Set the marks of every barrier that wants them; `highs` covers all partitions of `asked`.

        A barrier that wants the end of a partition without a leader (None) goes on waiting.
        """
        known = frozenset(asked)
        for barrier in self._waiting:
            wanted = barrier.wants
            if not wanted or not wanted <= known or now_ms < barrier.not_before_ms:
                continue  # what may still come while it waits must lie below its ends
            known_ends = {place: high for place, high in highs.items() if place.topic in wanted}
            marks = {place: high for place, high in known_ends.items() if high is not None}
            if len(marks) < len(known_ends):
                continue
            if barrier.after and barrier.to_commit is None:
                barrier.to_commit = {place: high for place, high in marks.items() if high > 0}
            else:
                barrier.to_read, barrier.ends_at_ms = marks, now_ms

    def passed(self, positions: Mapping[Place, int], now_ms: int) -> list[Barrier]:
        """Give the barriers that have been read past, with the positions as evidence, and forget them."""
        done, waiting = [], []
        for barrier in self._waiting:
            marks = barrier.to_read
            if marks is None or now_ms < barrier.not_before_ms or not _reached(positions, marks):
                waiting.append(barrier)
                continue
            barrier.read = {place: positions.get(place, 0) for place in marks}
            done.append(barrier)
        self._waiting = waiting
        return done

    def blocked(
        self, positions: Mapping[Place, int], held: Mapping[Place, int], leaderless: Mapping[Place, int]
    ) -> dict[str, dict[str, int]]:
        """Since when (ms) verdicts wait for a topic, by the reason: what they wait for is not read.

        `held` are last stable offsets in front of open transactions; `leaderless` has since when (ms).
        """
        found: dict[str, dict[str, int]] = {}

        def note(topic: str, reason: str, since_ms: int) -> None:
            reasons = found.setdefault(topic, {})
            reasons[reason] = min(since_ms, reasons.get(reason, since_ms))

        for barrier in self._waiting:
            wanted = barrier.wants
            for place, since_ms in leaderless.items():
                if place.topic in wanted:
                    note(place.topic, NO_LEADER, since_ms)
            for place, mark in (barrier.to_read or {}).items():
                position = positions.get(place, 0)
                if place in leaderless:
                    reason = NO_LEADER
                else:
                    reason = OPEN_TRANSACTION if held.get(place, mark) <= position else READING
                if position < mark:
                    note(place.topic, reason, barrier.ends_at_ms)
        return found

    @property
    def unmarked(self) -> int:
        """How many barriers have no ends yet."""
        return sum(bool(barrier.wants) for barrier in self._waiting)

    @property
    def suspects(self) -> int:
        """How many suspects wait for a verdict."""
        return sum(len(barrier.suspects) for barrier in self._waiting)


def _reached(positions: Mapping[Place, int], marks: Mapping[Place, int]) -> bool:
    return all(positions.get(place, 0) >= mark for place, mark in marks.items())
