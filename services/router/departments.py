"""The departments: what they are called, when and in which language they work, how much they may hold."""

import json
from datetime import date, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from chassis.wallclock import WEEKDAYS, Interval, Weekday, ZoneName
from schemas.case import Language
from schemas.envelope import Code
from schemas.handoffs import ACCEPT
from schemas.topics import DEPARTMENTS
from services.router.rules import TRIAGE, Department, Named
from services.router.rules.sheet import BadSheet, Part, Place, read_file, read_sheet, refuse

FILE = Path(__file__).with_name("departments.yaml")


class BadDepartments(BadSheet):
    """A departments file that may not be used; names every fault with its line."""


def _in_order(intervals: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    if any(earlier[1] > later[0] for earlier, later in pairwise(intervals)):
        raise ValueError("intervals overlap or are not in order")
    return intervals


def _written(intervals: tuple[tuple[int, int], ...]) -> list[str]:
    return ["-".join(f"{at // 60:02}:{at % 60:02}" for at in interval) for interval in intervals]


Intervals = Annotated[tuple[Interval, ...], AfterValidator(_in_order), PlainSerializer(_written)]
Days = Annotated[frozenset[date], PlainSerializer(lambda days: sorted(map(str, days)))]


class Week(Part):
    """When a department works; a day that is not named is free."""

    mon: Intervals = ()
    tue: Intervals = ()
    wed: Intervals = ()
    thu: Intervals = ()
    fri: Intervals = ()
    sat: Intervals = ()
    sun: Intervals = ()


class Profile(Part):
    """One department.

    `hours`: the name of a week of the file; `closed`: its own free days, beside the bank's; `capacity`: how
    many open cases it should hold at most, None for any number: people see it, no decision depends on it; the
    times: None for those of the bank; `takes`: whether it takes cases at all for the time being.
    """

    name: Named
    languages: tuple[Language, ...] = Field(min_length=1)
    hours: Code
    closed: Days = frozenset()
    capacity: int | None = Field(default=None, ge=1, strict=True)
    accept_within: timedelta | None = Field(default=None, gt=timedelta(), le=ACCEPT)
    resolve_within: timedelta | None = Field(default=None, gt=timedelta())
    takes: bool = Field(default=True, strict=True)

    @field_validator("accept_within", "resolve_within", mode="before")
    @classmethod
    def _iso(cls, value: object) -> object:
        """Refuse a bare number, which would count as seconds."""
        if isinstance(value, timedelta | None) or str(value).startswith("P"):
            return value
        raise ValueError(f"{value!r} is no ISO 8601 duration; write PT30M, or P1D")


Closed = Literal["takes_none", "language_not_spoken", "outside_hours"]
"""Why the classifier may not give a department a case now."""


class Departments(Part):
    """All departments, in one zone, with the bank's closed days.

    `worked`: days worked in exchange for a holiday, each with the weekday whose hours it has.
    """

    version: Annotated[Code, Field(max_length=40)]
    zone: ZoneName = "Asia/Shanghai"
    closed: Days = frozenset()
    worked: dict[date, Weekday] = Field(default_factory=dict)
    hours: dict[Code, Week]
    departments: dict[Department, Profile]

    @field_validator("departments")
    @classmethod
    def _all_there(cls, departments: dict[Department, Profile]) -> dict[Department, Profile]:
        missing = [code for code in DEPARTMENTS if code not in departments]
        if missing:
            raise ValueError(f"without {', '.join(missing)}: a case sent there would be nobody's")
        return departments

    @model_validator(mode="after")
    def _sound(self) -> Self:
        faults: list[tuple[Place, str]] = [
            (("departments", code, "hours"), f"there are no hours {profile.hours!r}")
            for code, profile in self.departments.items()
            if profile.hours not in self.hours
        ]
        faults += [(("worked", str(day)), "is closed as well") for day in self.worked if day in self.closed]
        triage = self.departments[TRIAGE]
        if not triage.takes or triage.capacity is not None:
            said = "takes every case, without limit: there is nobody behind it"
            faults.append((("departments", TRIAGE), said))
        refuse(faults)
        return self

    def __getitem__(self, code: str) -> Profile:
        """Give a department's profile; raises KeyError for an unknown one."""
        return self.departments[code]

    @cached_property
    def canonical(self) -> str:
        """The departments as JSON that is the same for the same departments, and reads as a file does."""
        plain = self.model_dump(mode="json")
        return json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @cached_property
    def sha256(self) -> str:
        """The hash of the canonical JSON, hexadecimal: it says which departments a decision knew."""
        return sha256(self.canonical.encode()).hexdigest()

    def is_open(self, code: str, at: datetime) -> bool:
        """Tell whether a department works at a moment, by the wall clock of the bank's zone."""
        profile, wall = self[code], at.astimezone(ZoneInfo(self.zone))
        if wall.date() in self.closed | profile.closed:
            return False
        weekday = self.worked.get(wall.date(), WEEKDAYS[wall.weekday()])
        today: tuple[tuple[int, int], ...] = getattr(self.hours[profile.hours], weekday)
        minute = wall.hour * 60 + wall.minute
        return any(first <= minute < last for first, last in today)

    def why_not(self, code: str, language: Language, at: datetime) -> Closed | None:
        """Say why the classifier may not give a department a case now; None: it may."""
        profile = self[code]
        if not profile.takes:
            return "takes_none"
        if language not in profile.languages:
            return "language_not_spoken"
        if not self.is_open(code, at):
            return "outside_hours"
        return None


def parse_departments(text: str, source: str = "departments") -> Departments:
    """Read departments; raises BadDepartments with every fault, its line and its reason."""
    return read_sheet(Departments, text, source, BadDepartments)


def load_departments(path: Path = FILE) -> Departments:
    """Read a departments file; raises BadDepartments with every fault, its line and its reason."""
    return parse_departments(read_file(path, BadDepartments), str(path))
