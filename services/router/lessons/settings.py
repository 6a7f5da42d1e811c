"""What the process of the lessons reads from its environment."""

from datetime import time, timedelta
from pathlib import Path

from pydantic import Field

from chassis.settings import Settings

_ROUTER = Path(__file__).parents[1]


class LessonSettings(Settings):
    """How often it looks for drift, at what time of the rules' zone it learns; the router's own files."""

    rules_file: Path = _ROUTER / "rules.yaml"
    models: Path = _ROUTER / "classifier" / "models"
    watch_every: timedelta = Field(default=timedelta(hours=1), ge=timedelta(minutes=1))
    retrain_at: time = time(2, 0)
