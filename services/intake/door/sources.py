"""Which switches and webhooks there are: one YAML list, checked entry by entry when it is read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from chassis.faults import Misconfigured
from chassis.settings import LOOPBACK
from schemas.envelope import Code

Name = Annotated[Code, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,60}$")]


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name


class Webhook(_Source):
    """Telephony that calls us: what it speaks, and how it proves who it is.

    `standard` and `twilio` need `secret_files`, one secret each, the newest first; `bearer` is a token
    with the role telephony; `none` is for loopback. `url` is the address that Twilio calls. `every_event`
    says that a sender of numbered CloudEvents, or a forwarder of FreeSWITCH, leaves nothing out, so that a
    number which does not come is missing.
    """

    kind: Literal["cloudevents", "connect", "connect_records", "twilio", "genesys", "freeswitch"]
    auth: Literal["standard", "twilio", "bearer", "none"] = "bearer"
    secret_files: tuple[Path, ...] = ()
    url: str | None = None
    every_event: bool = False

    def secrets(self) -> tuple[str, ...]:
        """Read the secrets, so that a changed file counts at once; raises OSError."""
        return tuple(path.read_text("utf-8").strip() for path in self.secret_files)


class Pbx(_Source):
    """An Asterisk that we connect to; `system` makes its call ids unique among several.

    `host` is its manager interface, `queue_log` the path of its log where we can read it: either or both.
    `tls_ca_file` holds the authorities (PEM) that alone may vouch for its certificate; without it, those
    that this machine knows.
    """

    kind: Literal["asterisk"]
    host: str | None = None
    port: int = Field(default=5038, ge=1, le=65535)
    username: str = ""
    secret_file: Path | None = None
    tls: bool = False
    tls_ca_file: Path | None = None
    system: str = Field(default="", pattern=r"^[\w.-]{0,40}$")
    queue_log: Path | None = None

    def secret(self) -> str:
        """Read the manager's secret; raises OSError."""
        return self.secret_file.read_text("utf-8").strip() if self.secret_file else ""


NUMBERED = ("cloudevents", "freeswitch")
"""The kinds that may number all their events; Twilio numbers those of each call alone, others none."""
Source = Annotated[Webhook | Pbx, Field(discriminator="kind")]
_SOURCE: TypeAdapter[Webhook | Pbx] = TypeAdapter(Source)
DEFAULT: Mapping[str, Webhook | Pbx] = {"events": Webhook(name="events", kind="cloudevents")}
"""Without a file: CloudEvents at `/telephony/events`."""


def load_sources(path: Path | None, http_host: str) -> Mapping[str, Webhook | Pbx]:
    """Read the sources; raises Misconfigured naming the file, the entry and what is wrong with it."""
    if path is None:
        return DEFAULT
    try:
        listed = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise Misconfigured(f"sources file {path}: {type(error).__name__}: {error}") from None
    if not isinstance(listed, list):
        raise Misconfigured(f"sources file {path}: not a list; each entry is {{name, kind, …}}")
    sources: dict[str, Webhook | Pbx] = {}
    for number, entry in enumerate(listed, 1):
        source = _read(path, number, entry)
        fault = "the name is taken" if source.name in sources else _fault(source, http_host)
        if fault:
            raise Misconfigured(f"sources file {path}: entry {number} ({source.name}): {fault}")
        sources[source.name] = source
    return sources


def _read(path: Path, number: int, entry: object) -> Webhook | Pbx:
    try:
        return _SOURCE.validate_python(entry)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "entry"
        raise Misconfigured(f"sources file {path}: entry {number}: {field}: {first['msg']}") from None


def _fault(source: Webhook | Pbx, http_host: str) -> str:
    rules = _faults_of_pbx(source) if isinstance(source, Pbx) else _faults_of_webhook(source, http_host)
    return next((fault for broken, fault in rules if broken), "")


def _faults_of_pbx(source: Pbx) -> Iterator[tuple[bool, str]]:
    neither = source.host is None and source.queue_log is None
    yield neither, "give host (the manager interface), queue_log (a path), or both"
    yield bool(source.host and not source.secret_file), "host needs username and secret_file"
    unused = source.tls_ca_file is not None and not source.tls
    yield unused, "tls_ca_file needs tls: true; without it nothing is encrypted"


def _faults_of_webhook(source: Webhook, http_host: str) -> Iterator[tuple[bool, str]]:
    unsigned = source.auth in ("standard", "twilio") and not source.secret_files
    yield unsigned, f"auth {source.auth} needs secret_files"
    nowhere = source.auth == "twilio" and source.url is None
    yield nowhere, "auth twilio needs url, the address that Twilio calls"
    unnumbered = source.every_event and source.kind not in NUMBERED
    yield unnumbered, f"every_event is for {' and '.join(NUMBERED)}; {source.kind} does not number its events"
    yield source.auth == "none" and http_host not in LOOPBACK, "auth none is for loopback only"
