"""How the queues did, interval by interval: from visits to the figures of a wallboard. Pure.

A visit belongs to the interval in which it was queued, with all its counts and times. Only the
agents' time is split: it counts where it was spent. What cannot be computed is None and says why.

Handling time runs from the answer to the end of the work after the call; holds lie inside, however
the switch counts them. No switch tells when agents sat down, so an agent counts as staffed in every
interval from the first to the last in which he worked; doing nothing for `AWAY` ends his shift.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from types import MappingProxyType

HALF_HOUR = timedelta(minutes=30)
WITHIN = timedelta(seconds=20)
SHORT = timedelta(seconds=5)
"""Who gives up sooner never gave the hotline a chance: the service level leaves him out."""
AWAY = timedelta(hours=4)
"""Longer than any break, shorter than the time between two shifts."""
ALL_QUEUES = "*"

SERVICE_LEVEL: Mapping[str, str] = MappingProxyType(
    {
        "zh": "限时内接通 ÷(接通 + 放弃 − 短时放弃)",
        "en": "answered within the limit / (answered + abandoned - short abandons)",
    }
)
"""The definition of the service level (of which there are several in the field), to print beside it."""


NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "answer_rate": {"zh": "接通率", "en": "answer rate"},
        "service_level": {"zh": "限时接通率", "en": "service level"},
        "average_speed_of_answer_ms": {"zh": "平均等待时间", "en": "average speed of answer"},
        "longest_wait": {"zh": "最长等待时间", "en": "longest wait"},
        "average_handling_time_ms": {"zh": "平均处理时长", "en": "average handling time"},
        "occupancy": {"zh": "坐席利用率", "en": "occupancy"},
    }
)
"""What the figures of an `Interval` are called, as the field and the regulators print them."""


class Missing(StrEnum):
    """Why a figure cannot be computed."""

    NO_CALLS = "no_calls"
    NONE_ANSWERED = "none_answered"
    NONE_WAITED = "none_waited"
    NOT_HANDLED = "not_handled"
    AGENT_UNKNOWN = "agent_unknown"
    NOBODY_STAFFED = "nobody_staffed"


REASONS: Mapping[Missing, Mapping[str, str]] = MappingProxyType(
    {
        Missing.NO_CALLS: {"zh": "没有可计入的来电", "en": "no calls that count"},
        Missing.NONE_ANSWERED: {"zh": "没有接通的来电", "en": "no call was answered"},
        Missing.NONE_WAITED: {"zh": "没有已知的等待时间", "en": "no wait is known"},
        Missing.NOT_HANDLED: {"zh": "没有处理完的来电", "en": "no call was handled to its end"},
        Missing.AGENT_UNKNOWN: {"zh": "有通话不知由谁接听", "en": "a call names no agent"},
        Missing.NOBODY_STAFFED: {"zh": "没有坐席在岗", "en": "no agent was there"},
    }
)
"""Each reason as agents and supervisors read it beside the dash."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, or why there is none."""

    value: float | None
    missing: Missing | None = None


@dataclass(frozen=True, slots=True)
class VisitRow:
    """One visit of a call to a queue; times are aware, durations whole milliseconds.

    `left_reason` is that of `telephony.queue-left`. A switch's own `wait_ms` goes before the difference
    of times; `talk_ms` and `hold_ms` are needed only where `talk_ended_at` is unknown. `agent` answered.
    """

    call_id: str
    queue: str
    queued_at: datetime
    answered_at: datetime | None = None
    left_at: datetime | None = None
    left_reason: str | None = None
    talk_ended_at: datetime | None = None
    wait_ms: int | None = None
    talk_ms: int | None = None
    hold_ms: int = 0
    acw_ms: int = 0
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A call that a queue did not take."""

    call_id: str
    queue: str
    refused_at: datetime


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened in one queue in one interval [start, end): counts, and sums in whole milliseconds.

    offered = answered + abandoned + left_otherwise + waiting. `answered_waits` and `handled` are the
    calls behind `wait_ms` and `handle_ms`. `agents_busy_ms` and `staffed_ms` are of the agents who
    answered in this queue, in whatever queue they worked; None: a call names no agent.
    """

    start: datetime
    end: datetime
    queue: str
    offered: int
    answered: int
    answered_within: int
    abandoned: int
    abandoned_short: int
    left_otherwise: int
    waiting: int
    refused: int
    answered_waits: int
    wait_ms: int
    handled: int
    handle_ms: int
    longest_wait_ms: int | None
    agents_busy_ms: int | None
    staffed_ms: int | None

    @property
    def answer_rate(self) -> Figure:
        """Share 0..1 of the calls that no longer wait which an agent answered."""
        return answer_rate([self])

    @property
    def service_level(self) -> Figure:
        """Share 0..1 as `SERVICE_LEVEL` defines it."""
        return _ratio(
            self.answered_within, self.answered + self.abandoned - self.abandoned_short, Missing.NO_CALLS
        )

    @property
    def average_speed_of_answer_ms(self) -> Figure:
        """Mean wait of the answered calls."""
        return _ratio(self.wait_ms, self.answered_waits, Missing.NONE_ANSWERED)

    @property
    def average_handling_time_ms(self) -> Figure:
        """Mean of talk, hold and work after the call, over the calls handled to their end."""
        return _ratio(self.handle_ms, self.handled, Missing.NOT_HANDLED)

    @property
    def longest_wait(self) -> Figure:
        """Longest wait that ended, in milliseconds, whether in an answer or not."""
        return Figure(self.longest_wait_ms, None if self.longest_wait_ms is not None else Missing.NONE_WAITED)

    @property
    def occupancy(self) -> Figure:
        """Share 0..1 of the staffed time that the agents were busy."""
        if self.agents_busy_ms is None or self.staffed_ms is None:
            return Figure(None, Missing.AGENT_UNKNOWN)
        return _ratio(self.agents_busy_ms, self.staffed_ms, Missing.NOBODY_STAFFED)


def interval_of(at: datetime, every: timedelta, tz: tzinfo) -> tuple[datetime, datetime]:
    """Give start and end (aware, in `tz`) of the interval that a moment lies in.

    Intervals are counted from local midnight on the day's real length: a day of a clock change has
    more or fewer of them. Raises ValueError when `every` does not divide a day, or the time is naive.
    """
    if every <= timedelta() or timedelta(days=1) % every:
        raise ValueError(f"intervals of {every} do not divide a day; give one such as 30 min")
    if at.tzinfo is None:
        raise ValueError(f"{at} has no time zone; read times as aware datetimes")
    # Through UTC: between two times of one zone Python counts on the clock's face, not what elapsed.
    midnight = _midnight(at.astimezone(tz), tz)
    start = midnight + (at.astimezone(UTC) - midnight) // every * every
    end = min(start + every, _midnight(midnight.astimezone(tz) + timedelta(days=1), tz))
    return start.astimezone(tz), end.astimezone(tz)


def intervals_between(
    since: datetime, until: datetime, every: timedelta, tz: tzinfo
) -> Iterator[tuple[datetime, datetime]]:
    """Give the intervals that overlap [since, until), one after the other; errors as `interval_of`."""
    start, end = interval_of(since, every, tz)
    while start.astimezone(UTC) < until.astimezone(UTC):
        yield start, end
        start, end = interval_of(end, every, tz)


def answer_rate(intervals: Iterable[Interval]) -> Figure:
    """Share 0..1 of the calls that no longer wait which an agent answered, over all these intervals."""
    counted = list(intervals)
    settled = sum(one.offered - one.waiting for one in counted)
    return _ratio(sum(one.answered for one in counted), settled, Missing.NO_CALLS)


def by_interval(
    visits: Iterable[VisitRow],
    refused: Iterable[RefusedRow],
    *,
    since: datetime,
    until: datetime,
    tz: tzinfo,
    every: timedelta = HALF_HOUR,
    within: timedelta = WITHIN,
    short: timedelta = SHORT,
    merged: bool = False,
) -> list[Interval]:
    """Count every queue over every interval that overlaps [since, until), in order of queue and time.

    Visits queued outside count for the agents' time alone: give those too whose agents still worked
    then. A talk that has not ended counts as answered, and as nobody's time. `merged` makes all queues
    one (`ALL_QUEUES`). Raises ValueError as `interval_of` does.
    """
    rows, refusals = list(visits), list(refused)
    grid = _Grid(list(intervals_between(since, until, every, tz)))
    agents = _agents_times(rows, grid, every, tz)
    visits_of: dict[str, list[VisitRow]] = defaultdict(list)
    for row in rows:
        visits_of[ALL_QUEUES if merged else row.queue].append(row)
    turned_away = Counter(
        (ALL_QUEUES if merged else row.queue, grid.place(row.refused_at)) for row in refusals
    )
    found = []
    for queue in sorted(visits_of.keys() | {queue for queue, _ in turned_away}):
        mine = visits_of.get(queue, [])
        queued: dict[int | None, list[VisitRow]] = defaultdict(list)
        for row in mine:
            queued[grid.place(row.queued_at)].append(row)
        crew = [agents[name] for name in {row.agent for row in mine} if name in agents]
        nameless = grid.spread(span for row in mine if not row.agent and (span := _handling(row)))
        for place, (start, end) in enumerate(grid.intervals):
            known = not nameless[place]
            found.append(
                Interval(
                    start=start,
                    end=end,
                    queue=queue,
                    **_counts(queued[place], within, short),
                    refused=turned_away[queue, place],
                    longest_wait_ms=_longest(queued[place]),
                    agents_busy_ms=sum(agent.busy[place] for agent in crew) if known else None,
                    staffed_ms=sum(agent.staffed[place] for agent in crew) if known else None,
                )
            )
    return found


def total(intervals: Sequence[Interval]) -> Interval:
    """Add up intervals of one queue: its hour, day or month.

    Raises ValueError without intervals, or with those of several queues: their agents are the same
    people, so counting them twice would be wrong (`by_interval(..., merged=True)` does it right).
    """
    queues = {interval.queue for interval in intervals}
    if len(queues) != 1:
        raise ValueError(
            f"cannot add up the intervals of {len(queues)} queues; give those of one, or count merged"
        )
    waits = [one.longest_wait_ms for one in intervals if one.longest_wait_ms is not None]
    return Interval(
        start=min((one.start for one in intervals), key=_ms),
        end=max((one.end for one in intervals), key=_ms),
        queue=queues.pop(),
        **{name: sum(getattr(one, name) for one in intervals) for name in _SUMS},
        longest_wait_ms=max(waits, default=None),
        agents_busy_ms=_sum_if_known(one.agents_busy_ms for one in intervals),
        staffed_ms=_sum_if_known(one.staffed_ms for one in intervals),
    )


_Span = tuple[int, int]  # milliseconds since the epoch, the end not included
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUMS = (
    "offered",
    "answered",
    "answered_within",
    "abandoned",
    "abandoned_short",
    "left_otherwise",
    "waiting",
    "refused",
    "answered_waits",
    "wait_ms",
    "handled",
    "handle_ms",
)


class _Grid:
    """Intervals one after the other, and what falls into each."""

    def __init__(self, intervals: list[tuple[datetime, datetime]]) -> None:
        self.intervals = intervals
        self._bounds = [_ms(start) for start, _ in intervals] + [_ms(end) for _, end in intervals[-1:]]

    def place(self, at: datetime) -> int | None:
        """Give the number of the interval that a moment lies in; None outside."""
        place = bisect_right(self._bounds, _ms(at)) - 1
        return place if 0 <= place < len(self.intervals) else None

    def spread(self, spans: Iterable[_Span]) -> list[int]:
        """Give the milliseconds of the spans that lie in each interval."""
        spent = [0] * len(self.intervals)
        for start, end in spans:
            place = max(0, bisect_right(self._bounds, start) - 1)
            while place < len(spent) and self._bounds[place] < end:
                spent[place] += max(0, min(end, self._bounds[place + 1]) - max(start, self._bounds[place]))
                place += 1
        return spent


@dataclass(frozen=True, slots=True)
class _AgentTimes:
    """One agent's milliseconds in each interval."""

    busy: list[int]
    staffed: list[int]


def _agents_times(
    rows: Iterable[VisitRow], grid: _Grid, every: timedelta, tz: tzinfo
) -> dict[str, _AgentTimes]:
    worked: dict[str, list[_Span]] = defaultdict(list)
    for row in rows:
        span = _handling(row)
        if row.agent and span:
            worked[row.agent].append(span)
    times = {}
    for agent, spans in worked.items():
        shifts = _joined(spans, AWAY // _MS)
        staffed = [
            (_ms(interval_of(_time(first), every, tz)[0]), _ms(interval_of(_time(last), every, tz)[1]))
            for first, last in ((start, max(start, end - 1)) for start, end in shifts)
        ]
        # Work after one call while the next is talked is still one agent's time.
        times[agent] = _AgentTimes(grid.spread(_joined(spans, 0)), grid.spread(_joined(staffed, 0)))
    return times


def _joined(spans: Iterable[_Span], gap_ms: int) -> list[_Span]:
    """Make one span of those that overlap, touch, or are no more than a gap apart."""
    joined: list[_Span] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= gap_ms:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _counts(visits: Sequence[VisitRow], within: timedelta, short: timedelta) -> dict[str, int]:
    answered = [row for row in visits if row.answered_at is not None]
    left = [row for row in visits if row.answered_at is None and (row.left_at or row.left_reason)]
    abandoned = [row for row in left if row.left_reason == "abandoned"]
    waits = [wait for row in answered if (wait := _wait(row)) is not None]
    gave_up = [wait for row in abandoned if (wait := _wait(row)) is not None]
    handled = [end - start for start, end in filter(None, map(_handling, answered))]
    return {
        "offered": len(visits),
        "answered": len(answered),
        "answered_within": sum(wait <= within // _MS for wait in waits),
        "abandoned": len(abandoned),
        "abandoned_short": sum(wait < short // _MS for wait in gave_up),
        "left_otherwise": len(left) - len(abandoned),
        "waiting": len(visits) - len(answered) - len(left),
        "answered_waits": len(waits),
        "wait_ms": sum(waits),
        "handled": len(handled),
        "handle_ms": sum(handled),
    }


def _longest(visits: Iterable[VisitRow]) -> int | None:
    return max((wait for row in visits if (wait := _wait(row)) is not None), default=None)


def _wait(row: VisitRow) -> int | None:
    """How long the visit waited; None while it does. Clocks may disagree, but no wait is less than 0."""
    if row.wait_ms is not None:
        return max(0, row.wait_ms)
    ended_at = row.answered_at or row.left_at
    return None if ended_at is None else max(0, _ms(ended_at) - _ms(row.queued_at))


def _handling(row: VisitRow) -> _Span | None:
    """When the agent was busy with the call; None if he was not, or its end is unknown."""
    if row.answered_at is None:
        return None
    start = _ms(row.answered_at)
    if row.talk_ended_at is not None:
        talked_to = _ms(row.talk_ended_at)
    elif row.talk_ms is not None:
        talked_to = start + row.talk_ms + row.hold_ms
    else:
        return None
    return start, max(start, talked_to) + row.acw_ms


def _ratio(part: int, whole: int, missing: Missing) -> Figure:
    return Figure(part / whole) if whole else Figure(None, missing)


def _sum_if_known(values: Iterable[int | None]) -> int | None:
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _midnight(at: datetime, tz: tzinfo) -> datetime:
    return datetime(at.year, at.month, at.day, tzinfo=tz).astimezone(UTC)


_MS = timedelta(milliseconds=1)


def _ms(at: datetime) -> int:
    return (at - _EPOCH) // _MS


def _time(ms: int) -> datetime:
    return _EPOCH + ms * _MS
