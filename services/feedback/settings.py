"""What feedback reads from its environment."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from chassis.settings import Settings
from schemas.handoffs import TELL


class FeedbackSettings(Settings):
    """The channel's file, and the times that the hotline manager decides."""

    told_file: Path = Path("told.jsonl")
    tell_within: timedelta = Field(default=TELL, le=TELL)
    rate_within: timedelta = timedelta(days=7)
    reopen_window: timedelta = timedelta(days=30)
