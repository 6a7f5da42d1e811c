"""What a process reads from its environment; every name begins with `HOTLINE_`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.faults import Misconfigured
from chassis.kafka import Connection

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST_TOKEN = 16


class Settings(BaseSettings):
    """Where the infrastructure is, and how this process listens.

    Whoever asks from another machine shows the token that `http_token_file` holds (`chassis/health.py`).
    """

    model_config = SettingsConfigDict(
        env_prefix="HOTLINE_", extra="ignore", hide_input_in_errors=True, secrets_dir=None
    )

    kafka_bootstrap: str = Field(min_length=1)
    kafka_prefix: str = Field(default="", pattern=r"^[a-z0-9._-]{0,40}$")
    database_url: SecretStr
    database_prefix: str = Field(default="", pattern=r"^[a-z0-9_]{0,30}$")
    master_key_file: Path
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535)
    http_token_file: Path | None = None
    port_file: Path | None = None
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    stalled_after_s: float = Field(default=60, gt=0)

    @field_validator("http_token_file")
    @classmethod
    def _holds_a_token(cls, path: Path | None) -> Path | None:
        """A process that nobody could ask is found out when it starts, not at the first question."""
        try:
            token = path.read_text("ascii").strip() if path is not None else None
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {type(error).__name__}; give a readable file with one token") from None
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise ValueError(
                f"{path}: its token has fewer than {SHORTEST_TOKEN} characters; make a longer one"
            )
        return path

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if self.http_host not in LOOPBACK and self.http_token_file is None:
            raise ValueError(
                "HOTLINE_HTTP_HOST is not loopback: set HOTLINE_HTTP_TOKEN_FILE, or listen on 127.0.0.1"
            )
        return self

    @property
    def kafka(self) -> Connection:
        """Where Kafka is."""
        return Connection(self.kafka_bootstrap, self.kafka_prefix)

    def schema_of(self, part: str) -> str:
        """Name the PostgreSQL schema of a stage or of the vault in this world."""
        return f"{self.database_prefix}{part}"


def apart(environment: Mapping[str, str], process: str) -> dict[str, str]:
    """Give one process's environment: in it alone `HOTLINE_<PROCESS>__NAME` stands for `HOTLINE_NAME`."""
    mark = f"HOTLINE_{process.upper()}__"
    own = {name.removeprefix(mark): value for name, value in environment.items() if name.startswith(mark)}
    return {**environment, **{f"HOTLINE_{name}": value for name, value in own.items()}}


S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S]) -> S:
    """Read the environment; raises Misconfigured with one line that names each bad key."""
    try:
        return kind()
    except ValidationError as error:
        faults = "; ".join(_line(fault) for fault in error.errors(include_url=False, include_input=False))
        raise Misconfigured(f"settings: {faults}") from None


def _line(fault: object) -> str:
    entry = dict(fault)  # type: ignore[call-overload]
    name = "_".join(str(part) for part in entry["loc"]).upper()
    return f"HOTLINE_{name}: {entry['msg']}" if name else str(entry["msg"])
