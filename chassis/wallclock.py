"""Times of day as people write them in files: intervals such as "08:30-17:30", and zones. Pure."""

import re
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""As `date.weekday` counts them."""
DAY = 24 * 60
"""Minutes."""
_INTERVAL = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


def _minutes(text: object) -> object:
    found = _INTERVAL.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{text!r} is no interval; write it like "08:30-17:30"')
    numbers = [int(part) for part in found.groups()]
    first, last = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if not first < last <= DAY:
        raise ValueError(f"{text!r} does not end after it begins, on the same day; split it at midnight")
    return first, last


Interval = Annotated[tuple[int, int], BeforeValidator(_minutes)]
"""Minutes of the wall clock: from, and up to but not with."""


def zone(name: object) -> ZoneInfo:
    """Give a time zone of the IANA database; raises ValueError for another name."""
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone of the IANA database") from None


def _known(name: str) -> str:
    zone(name)
    return name


ZoneName = Annotated[str, AfterValidator(_known)]
"""The name of a time zone that exists."""
