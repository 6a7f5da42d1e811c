"""What the router reads from its environment."""

from datetime import timedelta
from pathlib import Path

from chassis.settings import Settings


class RouterSettings(Settings):
    """The rules file and the departments' times."""

    rules_file: Path = Path(__file__).with_name("rules.yaml")
    accept_within: timedelta = timedelta(hours=2)
    resolve_within: timedelta = timedelta(days=5)
    urgent_within: timedelta = timedelta(days=1)
