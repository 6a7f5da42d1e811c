"""What intake reads from its environment."""

from datetime import timedelta

from chassis.settings import Settings


class IntakeSettings(Settings):
    """Times that the hotline manager decides."""

    wrap_up: timedelta = timedelta(minutes=10)
    settle: timedelta = timedelta(seconds=5)
