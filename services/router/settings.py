"""What the router reads from its environment."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from chassis.settings import Settings
from schemas.handoffs import ACCEPT


class RouterSettings(Settings):
    """The rules file and the departments' times."""

    rules_file: Path = Path(__file__).with_name("rules.yaml")
    accept_within: timedelta = Field(default=ACCEPT, le=ACCEPT)
    resolve_within: timedelta = timedelta(days=5)
    urgent_within: timedelta = timedelta(days=1)
