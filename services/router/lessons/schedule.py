"""When what runs by the clock is due; pure.

A run is due for a moment, its slot. Whatever was missed is made up by one run, for the newest slot.
"""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def every(period: timedelta, now: datetime) -> datetime:
    """Give the newest slot of what runs once in each period: whole periods since 1970, UTC."""
    return now - (now - _EPOCH) % period


def daily(at: time, zone: ZoneInfo, now: datetime) -> datetime:
    """Give the newest slot of what runs once a day, at a time of the wall clock of a zone."""
    today = now.astimezone(zone).date()
    slots = (datetime.combine(today - timedelta(days=days), at, zone).astimezone(UTC) for days in (0, 1))
    return next(slot for slot in slots if slot <= now)


def is_due(slot: datetime, last: datetime | None, now: datetime) -> bool:
    """Tell whether a slot's run is still to be done; `last`: the slot of the last run, None: none was.

    A last slot that is still to come says nothing: a clock that was ahead has given it.
    """
    return last is None or last < slot or last > now
