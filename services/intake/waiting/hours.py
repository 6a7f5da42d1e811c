"""When agents answer, per queue: weekly hours, holidays, and days worked in exchange for one.

A queue is open while the wall clock of its zone shows a time within one of the day's intervals. So where
clocks are put forward, hours that do not exist are not open; where they are put back, they are open twice.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from chassis.faults import Misconfigured
from chassis.wallclock import WEEKDAYS, Interval, Weekday, zone
from schemas.case import Language

HOURS = Path(__file__).with_name("hours.yaml")
LOOK_AHEAD = timedelta(days=400)
"""A queue that does not open for so long has no next opening."""

_SPOKEN_DAYS = {
    "zh": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}
# Not from strftime, which speaks the language of the machine.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class BadHours(Misconfigured):
    """An hours file that may not be used; says where and why."""


class Closed(BaseModel):
    """Days on which nobody answers, both ends included, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: date
    last: date
    zh: str
    en: str

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last day {self.last} is before the first, {self.first}")
        return self


class Working(BaseModel):
    """A day worked in exchange for a holiday; it has the hours of a weekday."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: date
    like: Weekday


class Calendar(BaseModel):
    """One queue's hours."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    tz: Annotated[ZoneInfo, BeforeValidator(zone)]
    week: dict[Weekday, tuple[Interval, ...]]
    closed: tuple[Closed, ...] = ()
    working: tuple[Working, ...] = ()

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        for day in WEEKDAYS:
            if day not in self.week:
                raise ValueError(f"week.{day} is missing; a day without hours is []")
        for day, intervals in self.week.items():
            if any(earlier[1] > later[0] for earlier, later in pairwise(intervals)):
                raise ValueError(f"week.{day}: intervals overlap or are not in order")
        for worked in self.working:
            if self.closure(worked.date):
                raise ValueError(f"{worked.date} is both worked and closed; remove it from one of them")
        return self

    def closure(self, day: date) -> Closed | None:
        """Say why the queue is closed on a day; None when it is an ordinary one."""
        return next((closed for closed in self.closed if closed.first <= day <= closed.last), None)

    def weekday_of(self, day: date) -> Weekday | None:
        """Say which weekday's hours a day has; None when it has none."""
        like = next((worked.like for worked in self.working if worked.date == day), None)
        weekday = like or WEEKDAYS[day.weekday()]
        return weekday if self.week[weekday] and not self.closure(day) else None

    def intervals(self, day: date) -> tuple[Interval, ...]:
        """List the intervals of a day, in minutes of the wall clock."""
        weekday = self.weekday_of(day)
        return self.week[weekday] if weekday else ()

    def is_open(self, at: datetime) -> bool:
        """Tell whether agents answer at a moment."""
        wall = at.astimezone(self.tz)
        minute = wall.hour * 60 + wall.minute
        return any(first <= minute < last for first, last in self.intervals(wall.date()))

    def next_opening(self, at: datetime) -> datetime | None:
        """Give the first open moment at or after this one, in the queue's zone; None if none in 400 days."""
        if self.is_open(at):
            return at.astimezone(self.tz)
        today = at.astimezone(self.tz).date()
        for days in range(LOOK_AHEAD.days + 1):
            for moment in self._candidates(today + timedelta(days=days)):
                if moment > at and self.is_open(moment):
                    return moment.astimezone(self.tz)
        return None

    def _candidates(self, day: date) -> Iterator[datetime]:
        """Moments of a day at which the queue may open, in order."""
        midnight = _instant(day, self.tz)
        length = _instant(day + timedelta(days=1), self.tz) - midnight
        if length == timedelta(days=1):
            yield from (midnight + timedelta(minutes=first) for first, _ in self.intervals(day))
        else:  # clocks are changed on this day: hours are skipped or repeated, so every minute is looked at
            yield from (
                midnight + timedelta(minutes=minute) for minute in range(length // timedelta(minutes=1))
            )


def _instant(day: date, tz: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), tz).astimezone(UTC)


class Hours:
    """The hours of all queues; a queue that is not named has those of `default`."""

    def __init__(
        self, version: str, known_until: date, default: Calendar, queues: dict[str, Calendar]
    ) -> None:
        self.version, self.known_until = version, known_until
        self._default, self._queues = default, queues

    def calendar(self, queue: str) -> Calendar:
        """Give a queue's own hours."""
        return self._queues.get(queue, self._default)

    def is_open(self, queue: str, at: datetime) -> bool:
        """Tell whether agents of a queue answer at a moment."""
        return self.calendar(queue).is_open(at)

    def next_opening(self, queue: str, at: datetime) -> datetime | None:
        """Give the first open moment at or after this one, in the queue's zone; None if none in 400 days."""
        return self.calendar(queue).next_opening(at)


def opening_words(language: Language, opens_at: datetime | None, now: datetime) -> str:
    """Say that nobody answers now, and when somebody will; `opens_at` in the zone of the queue."""
    if opens_at is None:
        return {
            "zh": "现在是非工作时间，暂时无法告知人工服务何时恢复。",
            "en": "Our agents are not at work now, and we cannot say when they will be.",
        }[language]
    opening = _spoken_moment(language, opens_at, now)
    if language == "zh":
        return f"现在是非工作时间，人工服务将于{opening}开始。"
    return f"Our agents are not at work now. They are back {opening}."


def callback_words(language: Language, due_at: datetime, now: datetime) -> str:
    """Say when somebody will call back; `due_at` in the zone of the queue."""
    due = _spoken_moment(language, due_at, now)
    if language == "zh":
        return f"好的，我们会在{due}给您回电，您的排队位置已保留。"
    return f"Thank you. We call you back {due}; you keep your place."


def _spoken_moment(language: Language, at: datetime, now: datetime) -> str:
    days = (at.date() - now.astimezone(at.tzinfo).date()).days
    weekday = _SPOKEN_DAYS[language][at.weekday()]
    date_, clock = spoken_date(language, at.date()), f"{at:%H:%M}"
    if language == "zh":
        return {0: "今天", 1: f"明天（{date_}{weekday}）"}.get(days, f"{date_}{weekday}") + clock
    day = {0: "today", 1: f"tomorrow, {weekday} {date_},"}.get(days, f"on {weekday} {date_}")
    return f"{day} at {clock}"


def spoken_date(language: Language, day: date) -> str:
    """Say a date of about this year."""
    return f"{day.month}月{day.day}日" if language == "zh" else f"{day.day} {_MONTHS[day.month - 1]}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    known_until: date
    default: dict[str, object]
    queues: dict[str, dict[str, object]] = Field(default_factory=dict)


def load_hours(path: Path | None = None) -> Hours:
    """Read an hours file, ours without one; raises BadHours: the file, the queue, the field, the reason."""
    path = path or HOURS
    try:
        file = _File.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadHours(f"{path}: {error}") from None
    except ValidationError as error:
        raise BadHours(f"{path}: {_faults(error)}") from None
    calendars = {}
    for queue, own in {"default": {}, **file.queues}.items():
        try:
            calendars[queue] = Calendar.model_validate({**file.default, **own})
        except ValidationError as error:
            raise BadHours(f"{path}: {queue}: {_faults(error)}") from None
    return Hours(file.version, file.known_until, calendars.pop("default"), calendars)


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
        for fault in error.errors(include_url=False)
    )
