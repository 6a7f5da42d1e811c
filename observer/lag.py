"""How far behind a consumer group is, per partition: exact, and one word for it. Pure.

The measure is the age of the oldest record that waits, from its append time at the broker, never an
interpolation. Lag in records explains it and tells how long draining takes. A topic on which nothing
waits is OK, however long it has been idle.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from chassis.transport import Place

IN_FLIGHT_MS = 2_000
"""A younger record is being handled: fetch, transaction, send and commit take their time."""
STALLED_MS = 10_000
"""Without a commit for so long it is no longer one slow batch; a rebalance is mostly over sooner."""
STOPPED_MS = 60_000
"""Longer than a restart or Kafka's session timeout (45 s): nobody is coming back by himself."""
WINDOW_MS = 10_000
"""Rates are taken over this: several commits long, and still what happens now."""
_TREND_MS = 2_000  # over less than this, the steps of single commits would decide what the trend is
_WINDOW_OBSERVATIONS = 64  # the window at 4 observations a second, and room; more often shortens it


class Word(StrEnum):
    """How a group stands on a partition, the least severe first."""

    OK = "ok"
    CATCHING_UP = "catching up"
    FALLING_BEHIND = "falling behind"
    REWOUND = "rewound"
    NO_COMMIT = "no commit"
    STALLED = "stalled"
    PAUSED = "paused"
    BLIND = "blind"
    NO_LEADER = "no leader"
    STOPPED = "stopped"


SEVERITY: Mapping[Word, int] = MappingProxyType({word: rank for rank, word in enumerate(Word)})
"""Rank of each word; the higher, the sooner somebody must look."""


class AppendTimes:
    """Append times (ms, the broker's) of the records of one partition, by offset.

    `first` is the first offset covered: every record from there on was noted. None: no record yet.
    """

    __slots__ = ("_ats", "_lasts", "_newest", "_start", "first")

    def __init__(self) -> None:
        self.first: int | None = None
        self._newest = -1
        # Runs of records with equal time, each by its last offset: so a hole (a transaction marker)
        # needs no entry, and the first run that does not end below an offset has its record.
        self._lasts = array("q")
        self._ats = array("q")
        self._start = 0

    def __len__(self) -> int:
        return len(self._ats) - self._start

    def start_at(self, offset: int) -> None:
        """Declare that noting begins at this offset; what was noted before is forgotten."""
        self.first, self._newest, self._start = offset, offset - 1, 0
        del self._lasts[:], self._ats[:]

    def note(self, offset: int, at_ms: int) -> None:
        """Note the append time of the next record; a repeated or older offset changes nothing."""
        if offset <= self._newest:
            return
        self._newest = offset
        if self._ats and self._ats[-1] == at_ms:
            self._lasts[-1] = offset
            return
        if self.first is None:
            self.first = offset
        self._lasts.append(offset)
        self._ats.append(at_ms)

    def at(self, offset: int) -> int | None:
        """Append time (ms) of the first record at or after an offset; None if none is known."""
        if self.first is None or offset < self.first:
            return None
        run = bisect_left(self._lasts, offset, self._start)
        return self._ats[run] if run < len(self._ats) else None

    def forget_below(self, offset: int) -> None:
        """Drop what no offset from this one on needs."""
        if self.first is None or offset <= self.first:
            return
        self.first = offset
        self._start = bisect_left(self._lasts, offset, self._start)
        if self._start * 2 > len(self._lasts):  # moves fewer entries than it drops
            del self._lasts[: self._start], self._ats[: self._start]
            self._start = 0


class ReadingLag:
    """How far the watcher's own reading is behind, by topic: the greatest age of what it has not read yet."""

    def __init__(self) -> None:
        self._level_ms: dict[Place, int] = {}

    def observe(
        self,
        ends: Mapping[Place, int],
        positions: Mapping[Place, int],
        newest: Mapping[Place, int],
        now_ms: int,
    ) -> dict[str, int | None]:
        """Give each topic's lag in ms, at most one look too much; None where it cannot be said.

        What is not read yet is younger than the last record that was (`newest`: its append time, ms), and
        younger than the last look at which nothing was left to read. `positions` were taken before `ends`.
        """
        lags: dict[str, int | None] = {}
        for place, end in ends.items():
            age: int | None = 0
            if positions.get(place, 0) >= end:
                self._level_ms[place] = now_ms
            else:
                since_ms = max(self._level_ms.get(place, 0), newest.get(place, 0))
                age = max(0, now_ms - since_ms) if since_ms else None
            worst = lags.get(place.topic, 0)
            lags[place.topic] = None if age is None or worst is None else max(age, worst)
        return lags


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a group is on one partition; offsets, records, and milliseconds. None: cannot say.

    `drain_eta_ms` is None too while the backlog does not shrink, `retention_headroom_ms` while nothing
    waits, the topic keeps its records for ever, or a limit by size may delete them sooner;
    `commit_age_ms` counts from the commit's last move that this watcher has seen.
    """

    group: str
    place: Place
    commit: int | None
    end: int | None
    records: int | None
    oldest_age_ms: int | None
    drain_eta_ms: int | None
    retention_headroom_ms: int | None
    commit_age_ms: int | None
    word: Word

    def as_json(self) -> dict[str, str | int | float | None]:
        """Give what screens and scripts show: offsets, records, and seconds."""
        return {
            "group": self.group,
            "topic": self.place.topic,
            "partition": self.place.partition,
            "commit": self.commit,
            "end": self.end,
            "records": self.records,
            "oldest_age_s": _seconds(self.oldest_age_ms),
            "drain_eta_s": _seconds(self.drain_eta_ms),
            "retention_headroom_s": _seconds(self.retention_headroom_ms),
            "word": self.word.value,
        }


def paused(lag: Lag) -> Lag:
    """Say that a group stands because an operator has paused it; what nobody sees stays unseen."""
    return lag if lag.word in (Word.BLIND, Word.NO_LEADER) else replace(lag, word=Word.PAUSED)


def worst(lags: Iterable[Lag]) -> Word:
    """Give the most severe word; OK where there is nothing to be behind on."""
    return max((lag.word for lag in lags), key=SEVERITY.__getitem__, default=Word.OK)


class _Sight(NamedTuple):
    """One observation of a partition: `position` is where the group goes on, `age_ms` None if unknown."""

    now_ms: int
    start: int
    position: int
    end: int
    age_ms: int | None


@dataclass(slots=True)
class _Course:
    """What this watcher has seen of a group's commits on one partition."""

    commit: int
    highest: int
    moved_ms: int
    recent: deque[_Sight] = field(default_factory=lambda: deque(maxlen=_WINDOW_OBSERVATIONS))

    def move(self, commit: int, now_ms: int) -> None:
        """Take the commit that was read now."""
        # A rate across a rewind or a standstill is not the rate of now: the window begins here.
        if commit < self.commit:
            self.recent.clear()
        resumes = commit > self.commit and now_ms - self.moved_ms >= STALLED_MS
        oldest_ms = now_ms if resumes else now_ms - WINDOW_MS
        while len(self.recent) > 1 and self.recent[0].now_ms < oldest_ms:
            self.recent.popleft()
        if commit != self.commit:
            self.commit, self.moved_ms = commit, now_ms
            self.highest = max(self.highest, commit)

    def gain(self, sight: _Sight) -> tuple[int, int]:
        """Records by which the backlog shrank in the window (negative: grew), and its length in ms."""
        if not self.recent:
            return 0, 0
        then = self.recent[0]
        # From the log's start of now: what retention deleted in between was not consumed.
        consumed = sight.position - max(then.position, sight.start)
        return consumed - (sight.end - then.end), sight.now_ms - then.now_ms

    def word(self, sight: _Sight) -> Word:
        """Name how the group stands, when records wait."""
        if self.commit < self.highest:
            return Word.REWOUND
        if sight.age_ms is None:
            # What the group had all of a moment ago can only wait since then, read by us or not.
            fresh = any(
                then.end <= sight.position and sight.now_ms - then.now_ms <= IN_FLIGHT_MS
                for then in self.recent
            )
            return Word.OK if fresh else Word.BLIND
        if sight.age_ms <= IN_FLIGHT_MS:
            return Word.OK
        late = min(sight.age_ms, sight.now_ms - self.moved_ms)
        if late >= STALLED_MS:
            return Word.STOPPED if late >= STOPPED_MS else Word.STALLED
        return Word.CATCHING_UP if self._gains(sight, sight.age_ms) else Word.FALLING_BEHIND

    def _gains(self, sight: _Sight, age_ms: int) -> bool:
        gained, span = self.gain(sight)
        if not self.recent or sight.position <= max(self.recent[0].position, sight.start):
            return False
        age_then = self.recent[0].age_ms
        return span < _TREND_MS or gained > 0 or (age_then is not None and age_ms < age_then)


class LagWatch:
    """Watches the commits of groups, and says how far behind they are."""

    def __init__(self) -> None:
        self._courses: dict[tuple[str, Place], _Course] = {}

    def observe(
        self,
        group: str,
        commits: Mapping[Place, int],
        ends: Mapping[Place, int | None],
        starts: Mapping[Place, int],
        ages: Callable[[Place, int], int | None],
        now_ms: int,
        retention_ms: Callable[[str], int | None],
        read_to: Mapping[Place, int],
        read_from: Mapping[Place, int] = MappingProxyType({}),
    ) -> list[Lag]:
        """Say how far behind a group is on each place of `ends`; None there: it has no leader.

        `commits` must have been read before `ends`. `ages` gives the append time (ms) of the first
        record at or after an offset; `retention_ms` is None for a topic with a limit by size. The watcher
        has read everything in `read_from`..`read_to`; a place missing in `read_from` was read from the
        log's start on.
        """
        lags = []
        for place, end in ends.items():
            commit, start = commits.get(place), starts.get(place, 0)
            course = self._course((group, place), commit, now_ms)
            if end is None:
                lags.append(Lag(group, place, commit, None, None, None, None, None, None, Word.NO_LEADER))
                continue
            position = max(start, commit or 0)
            appended = ages(place, position) if position < end else None
            all_read = read_from.get(place, start) <= position and read_to.get(place, 0) >= end
            # All read and none known: the log ends with transaction markers, offsets without a record.
            waits = position < end and (appended is not None or not all_read)
            age = 0 if not waits else None if appended is None else max(0, now_ms - appended)
            sight = _Sight(now_ms, start, position, end, age)
            kept_ms = retention_ms(place.topic)
            if course is not None and course.highest > end:
                course.highest = course.commit  # the log was cut or made anew: nothing to regain
            lags.append(
                Lag(
                    group,
                    place,
                    commit,
                    end,
                    end - position if waits else 0,
                    age,
                    _drain_eta(course, sight) if waits else 0,
                    _headroom(kept_ms, age) if waits else None,
                    None if course is None else max(0, now_ms - course.moved_ms),
                    _word(course, sight) if waits else Word.OK,
                )
            )
            if course is not None:
                course.recent.append(sight)
        return lags

    def _course(self, key: tuple[str, Place], commit: int | None, now_ms: int) -> _Course | None:
        if commit is None:  # never was one, or it expired: a commit that comes later begins anew
            self._courses.pop(key, None)
            return None
        course = self._courses.get(key)
        if course is None:
            course = self._courses[key] = _Course(commit, commit, now_ms)
        course.move(commit, now_ms)
        return course


def _word(course: _Course | None, sight: _Sight) -> Word:
    return Word.NO_COMMIT if course is None else course.word(sight)


def _drain_eta(course: _Course | None, sight: _Sight) -> int | None:
    gained, span = course.gain(sight) if course is not None else (0, 0)
    return (sight.end - sight.position) * span // gained if gained > 0 and span > 0 else None


def _headroom(kept_ms: int | None, age_ms: int | None) -> int | None:
    if kept_ms is None or kept_ms < 0 or age_ms is None:
        return None
    return max(0, kept_ms - age_ms)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000
