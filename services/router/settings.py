"""What the router reads from its environment."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from chassis.settings import Settings
from schemas.handoffs import ACCEPT

_HERE = Path(__file__).parent


class RouterSettings(Settings):
    """The files of the installation, and the departments' times.

    Rules and models that were activated by a command go before the files.
    """

    rules_file: Path = _HERE / "rules.yaml"
    departments_file: Path = _HERE / "departments.yaml"
    models: Path = _HERE / "classifier" / "models"
    audits: bool = True
    accept_within: timedelta = Field(default=ACCEPT, le=ACCEPT)
    triage_within: timedelta = Field(default=timedelta(minutes=10), le=ACCEPT)
    resolve_within: timedelta = timedelta(days=5)
    urgent_within: timedelta = timedelta(days=1)
