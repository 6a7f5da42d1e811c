"""What the observer reads from its environment."""

from datetime import timedelta

from pydantic import Field

from chassis.settings import Settings


class ObserverSettings(Settings):
    """How often it judges and sings, how much it gives way, and how long settled rows stay."""

    judge_every_s: float = Field(default=0.25, gt=0, le=5)
    canary_every_s: float = Field(default=60.0, ge=0)
    niceness: int = Field(default=10, ge=0, le=19)
    keep: timedelta = timedelta(days=15)
