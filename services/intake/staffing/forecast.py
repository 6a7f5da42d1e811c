"""How many calls to expect per half-hour of a day, from the days before it. Pure.

Seasonal-naive, made robust: the mean of earlier same weekdays, helped by weekdays of like shape (one
Monday is mostly noise, five working days are not), after single slots far off have been pulled in.
The band is what the same method, applied to the last days as they came, was wrong by.

The constants were chosen on 8 to 21 February 1999 of a bank's calls (`bench/forecast.py`), where
none of them matters much: halved or doubled, each changes the error by less than half a per cent of
the calls.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from statistics import fmean, median, variance
from types import MappingProxyType
from typing import Literal

from services.intake.staffing.intervals import HALF_HOUR, interval_of, intervals_between

WEEKS = 8
"""Older days tell more of another season than of this day."""
COVERAGE = 0.8
"""Share of slots that the band is meant to hold."""
_ALIKE = 0.2  # share of calls at other times, beyond chance, up to which two weekdays have one shape
_HELP = 4  # weekdays of like shape weigh as much as so many same weekdays
_FAR = 3.0  # standard deviations from the median beyond which a count is pulled in
_ABOUT = 3  # days on either side that say what was usual about a day
_STEADY = 0.05  # of a day's calls: no two days are more alike, whatever a few of them say
_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations
_LATELY = timedelta(days=14)  # whole weeks, so that every weekday counts alike
_FOLLOWED = 0.5  # of the change lately: a trend goes on, a busy fortnight does not
_TRIED_DAYS = 14  # last days on which the method is tried, to learn its errors
_NEIGHBOURS = 100  # errors of slots of like size that make one band
_NO_HOLIDAYS: Mapping[date, float] = MappingProxyType({})

Arrivals = Mapping[datetime, int]
"""Calls by the start of the slot in which they came."""
WeekdayOf = Callable[[str, date], int | None]
"""Says as which weekday (0 is Monday) a day of a queue counts: a day worked for a holiday as another than
its own. None when nobody answers that day."""

_Counts = Sequence[float]
_Days = Mapping[date, _Counts]


@dataclass(frozen=True, slots=True)
class Slot:
    """Calls to expect in [start, end), aware in the zone asked for; the band holds `COVERAGE` of slots."""

    start: datetime
    end: datetime
    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trust:
    """How far to rely on a forecast, and why, for those who plan with it."""

    word: Literal["low", "fair", "good"]
    zh: str
    en: str


def forecast(
    history: Mapping[datetime, int],
    day: date,
    tz: tzinfo,
    *,
    every: timedelta = HALF_HOUR,
    holidays: Mapping[date, float] = _NO_HOLIDAYS,
) -> list[Slot]:
    """Say how many calls to expect in each slot of a local day; only earlier days of `history` are used.

    `history` counts arrivals by start of slot (aware). A day without any entry was not observed; in a
    day with one, a slot without an entry had no calls. Days must be complete. `holidays` gives, for
    days unlike their weekday, past or coming, the factor of their calls: 0 is closed. Raises ValueError
    when no earlier day within `WEEKS` was observed, or a time of `history` is naive or no start of a slot.
    """
    days = _observed(history, day, tz, every, holidays)
    if not days:
        raise ValueError(
            f"no day in the {WEEKS} weeks before {day} was observed; import earlier calls, then forecast"
        )
    means = _expected(days, day)
    errors = _errors(days, day - max(days))
    slots = []
    for start, end in intervals_between(_midnight(day, tz), _midnight(day + _DAY, tz), every, tz):
        mean = means[_place(start, every)]
        low, high = _band(errors, mean)
        factor = holidays.get(day, 1.0)
        slots.append(Slot(start, end, mean * factor, low * factor, high * factor))
    return slots


def trust(
    history: Mapping[datetime, int], day: date, tz: tzinfo, *, holidays: Mapping[date, float] = _NO_HOLIDAYS
) -> Trust:
    """Say how far to rely on `forecast` with the same arguments.

    Low: less than two weeks, or fewer than two same weekdays. Good: four same weekdays, the newest day
    at most a week before, and no holiday.
    """
    days = {at.astimezone(tz).date() for at in history}
    days = {at for at in days if day - timedelta(weeks=WEEKS) <= at < day and holidays.get(at, 1.0) > 0}
    same = sum(at.weekday() == day.weekday() for at in days)
    if not days or max(days) - min(days) + _DAY < timedelta(weeks=2):
        return Trust("low", "历史不足两周", "less than two weeks of history")
    if same < 2:
        return Trust("low", f"只有 {same} 个相同星期几的历史日", f"earlier days of this weekday: only {same}")
    if day in holidays:
        return Trust("fair", "节假日，按给定系数估算", "a holiday, by the factor given")
    if day - max(days) > timedelta(weeks=1):
        return Trust("fair", "最近一周没有数据", "the last week was not observed")
    if same < 4:
        return Trust(
            "fair", f"只有 {same} 个相同星期几的历史日", f"earlier days of this weekday: only {same}"
        )
    return Trust("good", f"有 {same} 个相同星期几的历史日", f"earlier days of this weekday: {same}")


def forecast_queues(
    histories: Mapping[str, Arrivals], day: date, tz: tzinfo, weekday_of: WeekdayOf
) -> tuple[list[Slot], Trust]:
    """Say how many calls to expect in all of these queues together, by the calendar of each, and trust it so.

    Holidays, and days worked for them, teach nothing. On a day that counts as another weekday each queue is
    forecast by itself, and they are added, bands too. Raises ValueError as `forecast` does.
    """
    open_queues = {
        queue: _before(history, day, tz)
        for queue, history in histories.items()
        if weekday_of(queue, day) is not None
    }
    if histories and not open_queues:
        return _added([], day, tz), Trust("good", "当日无人接听", "nobody answers that day")

    def odd_days(queues: Iterable[str]) -> dict[date, float]:
        known = {at.astimezone(tz).date() for queue in queues for at in open_queues[queue]}
        return {at: 0.0 for at in known if any(weekday_of(queue, at) != at.weekday() for queue in queues)}

    if all(weekday_of(queue, day) == day.weekday() for queue in open_queues):
        together: dict[datetime, int] = defaultdict(int)
        for history in open_queues.values():
            for at, calls in history.items():
                together[at] += calls
        holidays = odd_days(open_queues)
        return forecast(together, day, tz, holidays=holidays), trust(together, day, tz, holidays=holidays)
    parts: list[list[Slot]] = []
    trusts: list[Trust] = []
    for queue, history in open_queues.items():
        weekday, holidays = weekday_of(queue, day), odd_days([queue])
        assert weekday is not None
        alike = day + timedelta(days=(weekday - day.weekday()) % 7)
        parts.append(_moved(forecast(history, alike, tz, holidays=holidays), day, tz))
        trusts.append(trust(history, alike, tz, holidays=holidays))
    low = next((part for part in trusts if part.word == "low"), None)
    return _added(parts, day, tz), low or Trust("fair", "调休，按另一星期几估算", "worked as another weekday")


def _before(history: Arrivals, day: date, tz: tzinfo) -> Arrivals:
    return {at: calls for at, calls in history.items() if at.astimezone(tz).date() < day}


def _moved(slots: Iterable[Slot], day: date, tz: tzinfo) -> list[Slot]:
    """Take a day's slots for those of another day, by the clock's face."""
    by_place = {_place(slot.start, HALF_HOUR): slot for slot in slots}
    return [
        replace(by_place[place], start=slot.start, end=slot.end) if place in by_place else slot
        for slot in _added([], day, tz)
        for place in [_place(slot.start, HALF_HOUR)]
    ]


def _added(parts: Sequence[Sequence[Slot]], day: date, tz: tzinfo) -> list[Slot]:
    """Add slot by slot, from nothing at all; the band is wide, as if all were wrong in one way."""
    bounds = intervals_between(_midnight(day, tz), _midnight(day + _DAY, tz), HALF_HOUR, tz)
    return [
        Slot(
            start,
            end,
            sum(part[place].expected for part in parts),
            sum(part[place].low for part in parts),
            sum(part[place].high for part in parts),
        )
        for place, (start, end) in enumerate(bounds)
    ]


_DAY = timedelta(days=1)


def _midnight(day: date, tz: tzinfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=tz)


def _place(start: datetime, every: timedelta) -> int:
    """Number of a slot by the clock's face: callers go by it, also on the day it changes."""
    return timedelta(hours=start.hour, minutes=start.minute, seconds=start.second) // every


def _observed(
    history: Mapping[datetime, int], day: date, tz: tzinfo, every: timedelta, holidays: Mapping[date, float]
) -> dict[date, list[float]]:
    """Calls by day and slot before `day`, as if no day had been a holiday; closed days are left out."""
    counts: dict[date, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for at, calls in history.items():
        start, _ = interval_of(at, every, tz)
        if start.astimezone(UTC) != at.astimezone(UTC):
            raise ValueError(f"{at} in the history is no start of a slot of {every}; count by `interval_of`")
        of = start.date()
        if day - timedelta(weeks=WEEKS) <= of < day and holidays.get(of, 1.0) > 0:
            counts[of][_place(start, every)].append(calls)
    return {
        of: [
            # Where the clock is put back, an hour is there twice: one number on its face, two slots.
            fmean(slots[place]) / holidays.get(of, 1.0) if place in slots else 0.0
            for place in range(_DAY // every)
        ]
        for of, slots in sorted(counts.items())
    }


def _expected(days: _Days, day: date) -> list[float]:
    """Mean calls by slot: the shape of like weekdays, at the level of this weekday, as of lately."""
    alike = _calm(_alike(days, day))
    same = [counts for at, counts in alike.items() if at.weekday() == day.weekday()]
    level = _level(alike, day.weekday()) * _lately(alike, max(days))
    pooled = _scaled(_means(alike.values()), level)
    if not same:
        return pooled
    own = _scaled(_means(same), level)
    return [
        (len(same) * of_day + _HELP * of_all) / (len(same) + _HELP)
        for of_day, of_all in zip(own, pooled, strict=True)
    ]


def _alike(days: _Days, day: date) -> _Days:
    """Choose the days of weekdays whose calls come at the same times; all, if none was this weekday."""
    by_weekday: dict[int, list[_Counts]] = defaultdict(list)
    for at, counts in days.items():
        by_weekday[at.weekday()].append(counts)
    mine = by_weekday.get(day.weekday())
    if mine is None:
        return days
    chosen = {weekday for weekday, of in by_weekday.items() if of is mine or _apart(mine, of) <= _ALIKE}
    return {at: counts for at, counts in days.items() if at.weekday() in chosen}


def _apart(these: Sequence[_Counts], those: Sequence[_Counts]) -> float:
    """Share of calls that come at other times of day (total variation), less what chance alone shows.

    The hour in which they differ most is left out: it may be a spike. Chance is the mean difference
    of two Poisson counts (half-normal).
    """
    one, other = ([median(slot) for slot in zip(*days, strict=True)] for days in (these, those))
    level = _weighted_median(one, other)
    slots = sorted(
        (
            abs(left - level * right),
            math.sqrt(2 / math.pi * (left / len(these) + level**2 * right / len(those))),
            left + level * right,
        )
        for left, right in zip(one, other, strict=True)
    )
    differences, chances, calls = (
        sum(of) for of in zip(*slots[: len(slots) - len(slots) // 24], strict=True)
    )
    return (differences - chances) / calls if calls else 1.0


def _calm(days: _Days) -> dict[date, list[float]]:
    """Pull in what is far from usual: single slots first, then single days."""
    usual = [median(slot) for slot in zip(*days.values(), strict=True)]
    levels = {at: _weighted_median(counts, usual) or 1.0 for at, counts in days.items()}
    calm: dict[date, list[float]] = {at: [] for at in days}
    for place, middle in enumerate(usual):
        levelled = {at: counts[place] / levels[at] for at, counts in days.items()}
        spread = max(1.0, math.sqrt(middle), _deviation(levelled.values(), middle))
        for at, count in levelled.items():
            calm[at].append(levels[at] * _within(count, middle, _FAR * spread))
    return {
        at: _scaled(counts, total)
        for (at, counts), total in zip(calm.items(), _calm_totals(calm), strict=True)
    }


def _calm_totals(days: _Days) -> list[float]:
    """Calls of each day, an exceptional one pulled in to what the days about it were for their weekdays.

    About it, not ever (a running median, F. Hampel): a new level that lasts is nothing exceptional.
    """
    by_weekday = _totals_by_weekday(days)
    usual = {weekday: median(totals) or 1.0 for weekday, totals in by_weekday.items()}
    levels = [sum(counts) / usual[at.weekday()] for at, counts in days.items()]
    calm = []
    for place, (at, level) in enumerate(zip(days, levels, strict=True)):
        about = levels[max(0, place - _ABOUT) : place + _ABOUT + 1]
        middle = median(about)
        far = _FAR * max(_STEADY, _deviation(about, middle))
        calm.append(_within(level, middle, far) * usual[at.weekday()])
    return calm


def _totals_by_weekday(days: _Days) -> dict[int, list[float]]:
    totals: dict[int, list[float]] = defaultdict(list)
    for at, counts in days.items():
        totals[at.weekday()].append(sum(counts))
    return totals


def _level(days: _Days, weekday: int) -> float:
    """Calls of a whole day: its weekday's mean, drawn to that of all as far as weekdays do not differ.

    Empirical Bayes (B. Efron and C. Morris 1975): the variance between weekdays against the variance
    of days of one weekday.
    """
    by_weekday = _totals_by_weekday(days)
    means = {of: fmean(totals) for of, totals in by_weekday.items()}
    everybody = fmean(means.values())
    if weekday not in means or len(means) == 1:
        return means.get(weekday, everybody)
    spare = len(days) - len(means)
    if not spare:
        return everybody  # one day of each: what differs may as well be chance
    within = sum((total - means[of]) ** 2 for of, totals in by_weekday.items() for total in totals) / spare
    chance = within * fmean(1 / len(totals) for totals in by_weekday.values())
    between = max(0.0, variance(means.values()) - chance)
    noise = within / len(by_weekday[weekday])
    own = between / (between + noise) if between + noise else 1.0
    return everybody + own * (means[weekday] - everybody)


def _lately(days: _Days, newest: date) -> float:
    """Level of the last two weeks against what their weekdays have as a rule, as far as it is followed."""
    by_weekday = _totals_by_weekday(days)
    recent = [at for at in days if newest - at < _LATELY]
    usual = sum(fmean(by_weekday[at.weekday()]) for at in recent)
    calls = sum(sum(days[at]) for at in recent)
    return float((calls / usual) ** _FOLLOWED) if usual and calls else 1.0


@dataclass(frozen=True, slots=True)
class _Errors:
    """What the method was wrong by, in roots of what was expected (Poisson: about 1), by size of slot."""

    sizes: list[float]
    errors: list[float]


def _errors(days: _Days, lead: timedelta) -> _Errors:
    """Forecast the last days from those before them, as far ahead as now."""
    found: list[tuple[float, float]] = []
    for tried in sorted(days)[-_TRIED_DAYS:]:
        earlier = {at: counts for at, counts in days.items() if at <= tried - lead}
        if any(at.weekday() == tried.weekday() for at in earlier):
            for mean, count in zip(_expected(earlier, tried), days[tried], strict=True):
                found.append((mean, (count - mean) / _scale(mean)))
    found.sort()
    return _Errors([mean for mean, _ in found], [error for _, error in found])


def _band(errors: _Errors, mean: float) -> tuple[float, float]:
    """Give the band about a mean: the quantiles of the errors of slots of like size."""
    if len(errors.sizes) < _NEIGHBOURS:
        # Too few to learn from: twice the variance of chance alone.
        far = 1.2816 * math.sqrt(2 * mean)
        return max(0.0, mean - far), mean + far
    middle = bisect_left(errors.sizes, mean)
    first = min(max(0, middle - _NEIGHBOURS // 2), len(errors.sizes) - _NEIGHBOURS)
    near = sorted(errors.errors[first : first + _NEIGHBOURS])
    tail = round((1 - COVERAGE) / 2 * _NEIGHBOURS)
    low, high = (mean + error * _scale(mean) for error in (near[tail], near[-1 - tail]))
    return min(mean, max(0.0, low)), max(mean, high)


def _scale(mean: float) -> float:
    return math.sqrt(max(1.0, mean))


def _means(days: Iterable[_Counts]) -> list[float]:
    return [fmean(slot) for slot in zip(*days, strict=True)]


def _scaled(counts: _Counts, total: float) -> list[float]:
    calls = sum(counts)
    return [count / calls * total for count in counts] if calls else [0.0] * len(counts)


def _within(value: float, middle: float, far: float) -> float:
    return min(max(value, middle - far), middle + far)


def _deviation(values: Iterable[float], middle: float) -> float:
    return _SIGMA * median(abs(value - middle) for value in values)


def _weighted_median(counts: _Counts, usual: _Counts) -> float:
    """A day's level against the usual one: the ratio that half of the usual calls lie below."""
    ratios = sorted((count / often, often) for count, often in zip(counts, usual, strict=True) if often)
    half = sum(often for _, often in ratios) / 2
    for ratio, often in ratios:
        half -= often
        if half <= 0:
            return ratio
    return 0.0
