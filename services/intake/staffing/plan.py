"""What staff a day takes, beside what is rostered; and what one agent more or less would do. Pure.

Each slot stands for itself, as if its load had always been so (stationary, independent, period by
period): a queue that is left over from the slot before is not seen.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.case import Language
from services.intake.staffing import erlang
from services.intake.staffing.forecast import Slot
from services.intake.staffing.intervals import WITHIN

NOBODY_CALLS: Mapping[str, str] = MappingProxyType({"zh": "预计没有来电", "en": "no calls expected"})
"""Why a line without calls has no service level and no occupancy."""
NOBODY_THERE: Mapping[str, str] = MappingProxyType({"zh": "没有坐席在岗", "en": "no agent there"})
"""Why a line without agents has no occupancy."""
NO_ROSTER: Mapping[str, str] = MappingProxyType({"zh": "没有排班数据", "en": "no roster given"})
"""Why a line has no gap."""
SHRINKAGE = 0.3
"""Breaks, training, absence where nobody says: agents on the phone are so much fewer than those paid."""
EXAMPLE = """\
aht_s: 180           # talk, hold and work after the call
patience_s: 300      # mean time until a caller gives up; leave out for Erlang C
target: 80/20        # per cent of calls / seconds
shrinkage: 0.3       # breaks, training, absence
max_occupancy: 0.85
roster:
  - {days: [mon, tue, wed, thu, fri], from: 08:00, to: 16:30, agents: 20}
  - {days: [fri, sat], from: 22:00, to: 06:00, agents: 3}
"""
"""A file of assumptions; only `aht_s` must be there."""
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60  # minutes


class Target(NamedTuple):
    """The share of calls to be answered within a time: `80/20` is 0.8 within 20 s."""

    share: float
    within: timedelta

    def __str__(self) -> str:
        return f"{self.share * 100:g}/{self.within.total_seconds():g}"


def parse_target(text: str) -> Target:
    """Read a target such as `80/20`: per cent of calls / seconds. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,2}(?:\.\d{1,3})?)\s*/\s*(\d{1,4})\s*", text, re.ASCII)
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is no service level; give per cent/seconds, such as 80/20")
    return Target(float(found[1]) / 100, timedelta(seconds=int(found[2])))


@dataclass(frozen=True, slots=True)
class Line:
    """One slot of the plan: `load` in erlang, shares 0..1; agents are on the phone, rostered ones paid.

    `service_level` and `occupancy` are what to expect of `agents`: those whom the roster leaves on the
    phone, or `required` without one. They are None when nobody calls (`NOBODY_CALLS`), `occupancy` also
    when nobody is there (`NOBODY_THERE`); `rostered` and `gap` (rostered less `rostered_required`:
    negative is short) when there is no roster (`NO_ROSTER`).
    """

    start: datetime
    end: datetime
    expected: float
    load: float
    required: int
    rostered_required: int
    rostered: int | None
    gap: int | None
    agents: int
    service_level: float | None
    occupancy: float | None


def plan(
    slots: Iterable[Slot],
    aht: timedelta,
    *,
    target: float = 0.8,
    within: timedelta = WITHIN,
    shrinkage: float = 0.0,
    patience: timedelta | None = None,
    max_occupancy: float | None = None,
    rostered: Mapping[datetime, int] | None = None,
) -> list[Line]:
    """Say for every slot how many agents it takes, and what to expect of those rostered.

    Erlang C, or Erlang A with the mean `patience` of callers. However few calls a slot expects, it
    takes an agent: give the slots of opening hours. `rostered` counts by start of slot; a slot that is
    missing there has nobody. Raises ValueError for numbers that cannot be (`erlang`).
    """
    there = None if rostered is None else {at.astimezone(UTC): count for at, count in rostered.items()}
    lines = []
    for slot in slots:
        load = erlang.offered_load(slot.expected, aht, slot.end.astimezone(UTC) - slot.start.astimezone(UTC))
        required = erlang.agents_needed(
            load, aht, target=target, within=within, patience=patience, max_occupancy=max_occupancy
        )
        needed = erlang.rostered(required, shrinkage)
        given = None if there is None else there.get(slot.start.astimezone(UTC), 0)
        agents = required if given is None else erlang.present(given, shrinkage)
        outlook = what_if(load, aht, agents, within=within, patience=patience)
        lines.append(
            Line(
                start=slot.start,
                end=slot.end,
                expected=slot.expected,
                load=load,
                required=required,
                rostered_required=needed,
                rostered=given,
                gap=None if given is None else given - needed,
                agents=agents,
                service_level=outlook.service_level,
                occupancy=outlook.occupancy,
            )
        )
    return lines


def peak_gaps(lines: Iterable[Line], count: int = 3) -> list[Line]:
    """Give the slots that are shortest of agents, the worst first, the earlier first among equals."""
    short = [line for line in lines if line.gap is not None and line.gap < 0]
    return sorted(short, key=lambda line: (line.gap, line.start.astimezone(UTC)))[:count]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What so many agents make of a load (erlang); shares are 0..1.

    None: `service_level` when nobody calls; `occupancy` then too, or without agents;
    `average_speed_of_answer` (of all calls) also where the queue grows without end; `abandonment` when
    no patience was given.
    """

    agents: int
    load: float
    within: timedelta
    service_level: float | None
    occupancy: float | None
    average_speed_of_answer: timedelta | None
    abandonment: float | None

    @property
    def overloaded(self) -> bool:
        """Whether the queue grows without end, because nobody gives up and the agents cannot keep up."""
        return self.abandonment is None and self.agents <= self.load > 0


def what_if(
    load: float,
    aht: timedelta,
    agents: int,
    *,
    within: timedelta = WITHIN,
    patience: timedelta | None = None,
) -> Outlook:
    """Say what to expect of so many agents; load in erlang. Raises ValueError for bad numbers (`erlang`)."""
    level = erlang.service_level(agents, load, aht, within, patience)
    if load == 0:
        return Outlook(agents, load, within, None, None, None, None)
    if patience is None:
        wait = erlang.average_speed_of_answer(agents, load, aht)
        return Outlook(agents, load, within, level, erlang.occupancy(agents, load), wait, None)
    queue = erlang.ErlangA(agents, load, aht, patience)
    return Outlook(agents, load, within, level, queue.occupancy, queue.average_wait, queue.abandonment)


def in_words(outlook: Outlook, *others: Outlook, language: Language) -> str:
    """Say in one sentence what each number of agents makes of the same load."""
    zh = language == "zh"
    if outlook.service_level is None:
        return NOBODY_CALLS[language]
    seconds = f"{outlook.within.total_seconds():g}"
    share = _outcome(outlook, language)
    if outlook.overloaded:
        first = f"{outlook.agents} 名坐席：{share}" if zh else f"with {outlook.agents} agents {share}"
    elif zh:
        first = f"{outlook.agents} 名坐席可在 {seconds} 秒内接通 {share}"
    else:
        first = f"{outlook.agents} agents answer {share} within {seconds} s"
    rest = (
        f"{other.agents} 名：{_outcome(other, language)}"
        if zh
        else f"with {other.agents}: {_outcome(other, language)}"
        for other in others
    )
    return ("；" if zh else "; ").join((first, *rest))


def _outcome(outlook: Outlook, language: Language) -> str:
    if outlook.overloaded:
        return "排队会不断变长" if language == "zh" else "the queue grows without end"
    return "—" if outlook.service_level is None else f"{outlook.service_level * 100:.1f} %"


def _minutes(text: object) -> int:
    found = re.fullmatch(r"(\d{1,2}):([0-5]\d)", text, re.ASCII) if isinstance(text, str) else None
    minutes = int(found[1]) * 60 + int(found[2]) if found else -1
    if not 0 <= minutes <= _DAY:
        raise ValueError(f"{text!r} is no time of day; write it as 08:30, the end of a day as 24:00")
    return minutes


_Clock = Annotated[int, BeforeValidator(_minutes)]
_Target = Annotated[Target, BeforeValidator(lambda text: parse_target(str(text)))]


class Shift(BaseModel):
    """So many agents rostered on these weekdays between two times of day; `to` may be the next day's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(min_length=1)
    from_: _Clock = Field(alias="from")
    to: _Clock
    agents: int = Field(ge=0)

    def covers(self, slot: Slot) -> bool:
        """Whether the shift is there for the whole slot, by the clock's face where the slot is."""
        start = slot.start.hour * 60 + slot.start.minute
        length = (slot.end.astimezone(UTC) - slot.start.astimezone(UTC)) // timedelta(minutes=1)
        until = self.to if self.to > self.from_ else self.to + _DAY
        # A slot after midnight belongs to the shift that began the day before.
        return any(
            _WEEKDAYS[(slot.start.weekday() - day) % 7] in self.days
            and self.from_ <= start + day * _DAY
            and start + day * _DAY + length <= until
            for day in (0, 1)
        )


class Assumptions(BaseModel):
    """What a plan takes as given, from a file such as `EXAMPLE`; durations are seconds, shares 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aht_s: float = Field(gt=0, le=86_400)
    patience_s: float | None = Field(default=None, gt=0, le=86_400)
    target: _Target = Target(0.8, WITHIN)
    shrinkage: float = Field(default=SHRINKAGE, ge=0, lt=1)
    max_occupancy: float | None = Field(default=None, gt=0, le=1)
    roster: tuple[Shift, ...] | None = None

    def rostered(self, slots: Iterable[Slot]) -> dict[datetime, int] | None:
        """Count who is rostered for the whole of each slot, by its start; None without a roster."""
        if self.roster is None:
            return None
        return {
            slot.start: sum(shift.agents for shift in self.roster if shift.covers(slot)) for slot in slots
        }

    def plan(self, slots: Iterable[Slot]) -> list[Line]:
        """Plan the slots under these assumptions; raises ValueError as `plan` does."""
        known = list(slots)
        return plan(
            known,
            timedelta(seconds=self.aht_s),
            target=self.target.share,
            within=self.target.within,
            shrinkage=self.shrinkage,
            patience=None if self.patience_s is None else timedelta(seconds=self.patience_s),
            max_occupancy=self.max_occupancy,
            rostered=self.rostered(known),
        )


def parse_assumptions(text: str, name: str, instead: Mapping[str, Any] = MappingProxyType({})) -> Assumptions:
    """Read assumptions from YAML, some of them taken `instead` from elsewhere.

    Raises ValueError naming the file, the entry and what is wrong with it.
    """
    try:
        # Every scalar as text: YAML 1.1 would read 16:00 as the number 960.
        given: Any = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - builds nothing but text
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML, mend it there: {error}") from error
    try:
        return Assumptions.model_validate({**given, **instead} if isinstance(given, dict) else given)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{name}: {entry}: {first['msg']}") from error
