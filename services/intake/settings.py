"""What intake reads from its environment."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from chassis.settings import Settings
from schemas.handoffs import WRAP_UP


class IntakeSettings(Settings):
    """Times that the hotline manager decides; nobody is called back outside the hours of `hours_file`."""

    wrap_up: timedelta = Field(default=WRAP_UP, le=WRAP_UP)
    settle: timedelta = timedelta(seconds=5)
    callback_after: timedelta = timedelta(minutes=10)
    callback_spacing: timedelta = timedelta(minutes=30)
    callback_attempts: int = Field(default=3, ge=1, le=10)
    repeat_within: timedelta = timedelta(days=7)
    hours_file: Path | None = None
