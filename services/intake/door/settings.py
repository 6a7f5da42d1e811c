"""What the door reads from its environment."""

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from chassis.settings import LOOPBACK, Settings


class DoorSettings(Settings):
    """How the door listens, whom it believes, and which feeds it reads.

    `sources_file` names switches and webhooks (`services/intake/door/sources.py`), `tokens_file` people
    and machines (`services/intake/door/access.py`). Without an `agi_port` FastAGI listens on 4573, or on a
    free port where that is taken; 0 is always a free one. `hours_file`, `knowledge_file` and
    `checklists_file` are the bank's own opening hours, articles and checklists instead of ours.
    """

    agi_host: str = "127.0.0.1"
    agi_port: int | None = Field(default=None, ge=0, le=65535)
    tokens_file: Path | None = None
    sources_file: Path | None = None
    hours_file: Path | None = None
    knowledge_file: Path | None = None
    checklists_file: Path | None = None
    callback_after: timedelta = timedelta(minutes=10)
    verdict_within: timedelta = Field(default=timedelta(seconds=2), gt=timedelta(0), le=timedelta(seconds=30))
    keep_deliveries: timedelta = timedelta(days=15)
    keep_refused: timedelta = timedelta(days=30)

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        """Instead of what stages ask for: here the tokens file says who may come in.

        Metrics and readiness are nobody's in it: from elsewhere they need the `http_token_file`, too.
        """
        if self.http_host not in LOOPBACK and self.tokens_file is None:
            raise ValueError(
                "HOTLINE_HTTP_HOST is not loopback: set HOTLINE_TOKENS_FILE, or listen on 127.0.0.1"
            )
        if self.agi_host not in LOOPBACK:
            raise ValueError(
                "HOTLINE_AGI_HOST is not loopback: FastAGI knows no authentication; use a tunnel"
            )
        return self
