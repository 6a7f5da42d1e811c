"""CloudEvents 1.0 over HTTP: binary, structured and batched; our own call events in them. Pure.

Strict with what makes an event's identity and order (`id`, `source`, `type`, `specversion`, `time`),
lenient with every other attribute. A foreign producer may name a caller in clear, in a field of its
own (`caller_number`, `callback_number`), which is taken out before anything is kept.

One that leaves nothing out numbers its events, by the attribute `sequence` or in `source_seq`: contiguous
integers, for each `source` of its own. Its manifests say how far it has come; they are not numbered.
"""

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote

from pydantic import BeforeValidator, StringConstraints, ValidationError

from schemas import telephony
from schemas.envelope import BY_BODY, BY_WIRE, Body, Identifier
from services.intake.sources import twilio
from services.intake.sources.canonical import BadPayload, Mapped, Reading
from services.intake.sources.foreign import (
    MAX_DIGITS,
    MOST,
    Instant,
    Payload,
    below,
    fields_of,
    plausible,
    read_json,
    refused,
    split_array,
)
from services.intake.sources.sequence import Place

MAX_EVENT = 256 * 1024
MAX_BATCH = 1000

_ESCAPED = re.compile(r"\\(.)")
_PHONE_FIELDS: Mapping[type[Body], str] = {
    telephony.CallOffered: "caller_number",
    telephony.CallbackRequested: "callback_number",
}
_SEALED_FIELDS = ("caller", "number", "text")
_SEALED_BYTES = 12 + 1 + 16  # nonce, at least one byte, tag of AES-GCM
_MAX_PHONE = 64
_MANIFEST = BY_BODY[telephony.ManifestPublished].wire


def _rfc3339(value: object) -> object:
    if not isinstance(value, str) or "T" not in value.upper():
        raise ValueError("is not an RFC 3339 time such as 2026-11-23T09:30:00Z")
    return value


def _number(value: object) -> int | None:
    """Read a number, written as one or as text; None for anything else: whoever does not count may."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    fits = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    return int(text) if fits and isinstance(text, str) else None


class _Attributes(Payload):
    specversion: Literal["1.0"]
    id: Identifier
    source: Annotated[str, StringConstraints(pattern=r"^[^\s\x00]+$", max_length=150)]
    type: Annotated[str, StringConstraints(pattern=r"^[\w./:+-]+$", max_length=120)]
    time: Annotated[Instant, BeforeValidator(_rfc3339)] | None = None
    sequence: Annotated[int | None, BeforeValidator(_number)] = None


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event: its attributes, its data as JSON; `place` is where it stood in a batch, as `[3]`."""

    id: str
    source: str
    type: str
    time: datetime | None
    data: Any
    sequence: int | None = None
    place: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """The event's identity: the same source and id are a duplicate (CloudEvents 1.0, "id")."""
        return f"{self.source} {self.id}"


# ---------------------------------------------------------------- reading HTTP


def read_http(headers: Mapping[str, str], body: bytes) -> list[CloudEvent | BadPayload]:
    """Read the events of one HTTP request; what cannot be read stands in its place as BadPayload.

    Up to 1,000 events of up to 256 KiB each; never raises. One bad element of a batch does not refuse
    its neighbours; a request that cannot be told apart into events gives one BadPayload.
    """
    try:
        return _read({name.lower(): value for name, value in headers.items()}, body)
    except BadPayload as bad:
        return [bad]


def _read(headers: Mapping[str, str], body: bytes) -> list[CloudEvent | BadPayload]:
    mode = headers.get("content-type", "").split(";")[0].strip().lower()
    if mode == "application/cloudevents-batch+json":
        return [_element(element, f"[{index}]") for index, element in enumerate(_split(body))]
    if mode == "application/cloudevents+json":
        return [_structured(body, "")]
    if mode.startswith("application/cloudevents"):
        raise BadPayload("content-type", "names a format that is not read; send the JSON format")
    return [_binary(headers, body)]


def _element(body: bytes, place: str) -> CloudEvent | BadPayload:
    try:
        return _structured(body, place)
    except BadPayload as bad:
        return bad


def _structured(body: bytes, place: str) -> CloudEvent:
    _check_size(body, place)
    envelope = fields_of(read_json(body, place), place)
    if "data_base64" in envelope:
        data = read_json(_decoded(envelope, place), below(place, "data_base64"))
    else:
        data = envelope.get("data")
    return _event(envelope, data, place)


def _check_size(body: bytes, place: str) -> None:
    if len(body) > MAX_EVENT:
        raise BadPayload(place or "body", f"has {len(body)} bytes, at most {MAX_EVENT}")


def _decoded(envelope: Mapping[str, Any], place: str) -> bytes:
    path = below(place, "data_base64")
    if "data" in envelope:
        raise BadPayload(path, "stands beside data; send one of them")
    try:
        return b64decode(envelope["data_base64"], validate=True)
    except (NotBase64, TypeError, ValueError):
        raise BadPayload(path, "is not base64") from None


def _binary(headers: Mapping[str, str], body: bytes) -> CloudEvent:
    _check_size(body, "")
    named = {name: value for name, value in headers.items() if name.startswith("ce-")}
    if not named:
        raise BadPayload("ce-specversion", "is missing; send ce-* headers, or a structured event")
    attributes = {name.removeprefix("ce-"): _unescaped(name, value) for name, value in named.items()}
    # The content type is the data's own here; an odd one is ignored: the data is JSON, or refused.
    data = read_json(body, "data") if body else None
    try:
        return _event(attributes, data, "")
    except BadPayload as bad:
        raise BadPayload(f"ce-{bad.path}", bad.problem) from None


def _unescaped(name: str, value: str) -> str:
    """Undo quotes, then percent-encoding (CloudEvents HTTP protocol binding 1.0.2, section 3.1.3.2)."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _ESCAPED.sub(r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise BadPayload(name, "is not percent-encoded UTF-8") from None


def _event(attributes: Mapping[str, Any], data: Any, place: str) -> CloudEvent:
    read = _Attributes.read(attributes, place)
    return CloudEvent(read.id, read.source, read.type, read.time, data, read.sequence, place)


def _split(body: bytes) -> list[bytes]:
    elements = list(islice(split_array(body), MAX_BATCH + 1))
    if len(elements) > MAX_BATCH:
        raise BadPayload("body", f"has more than {MAX_BATCH} events in a batch")
    return elements


# ---------------------------------------------------------------- what an event says


def facts(event: CloudEvent, heard_at: datetime | None = None) -> Reading:
    """Tell what an event says: our own `telephony.*.v1`, or Twilio's `com.twilio.taskrouter.*`.

    Any other type is `unknown`. Raises BadPayload with the field's path (`[3].data.queue`); also for a
    caller's number or words where only a sealed value may stand. `heard_at` is when an event of a source
    came that leaves nothing out: then its place is told too, whatever it says, and a manifest is read.
    """
    place = _place(event, heard_at) if heard_at else None
    try:
        if heard_at and event.type == _MANIFEST:
            return _manifest(event)
        return replace(_facts(event), place=place)
    except BadPayload as bad:
        raise BadPayload(bad.path, bad.problem, place) from None


def _place(event: CloudEvent, heard_at: datetime) -> Place | None:
    number = event.sequence
    if number is None and isinstance(event.data, Mapping):
        number = _number(event.data.get("source_seq"))
    return None if number is None else Place(event.source, number, event.time or heard_at)


def _manifest(event: CloudEvent) -> Reading:
    """A manifest is no fact of a call: it says which numbers there are, come or not."""
    path = below(event.place, "data")
    if event.sequence is not None:
        raise BadPayload(below(event.place, "sequence"), "stands in a manifest, which has no number itself")
    body = _body(telephony.ManifestPublished, event.data, path)
    if not 0 <= body.from_seq <= body.to_seq or body.count != body.to_seq - body.from_seq + 1:
        raise BadPayload(below(path, "count"), "is not that of the numbers from_seq to to_seq")
    return Reading(event.key, place=Place(event.source, body.to_seq, body.period_to, come=False))


def _facts(event: CloudEvent) -> Reading:
    if event.type.startswith(twilio.STREAM):
        return twilio.facts_of_stream(event.type, event.data, event.key, below(event.place, "data"))
    kind = BY_WIRE.get(event.type)
    if kind is None or not issubclass(kind.body, telephony.CallEvent | telephony.SourceInterrupted):
        return Reading(event.key, unknown=event.type)
    if event.time is None:
        raise BadPayload(below(event.place, "time"), "is missing")
    path = below(event.place, "data")
    data = fields_of(event.data, path)
    phone = _phone(kind.body, data, path)
    _refuse_unsealed(kind.body, data, path)
    body = _body(kind.body, data, path)
    return Reading(event.key, (Mapped(event.key, body, phone),))


B = TypeVar("B", bound=Body)


def _body(kind: type[B], data: Any, path: str) -> B:
    try:
        body = kind.model_validate(fields_of(data, path))
    except ValidationError as error:
        raise refused(error, path) from None
    _refuse_implausible(body, path)
    return body


def _phone(kind: type[Body], data: Mapping[str, Any], path: str) -> str | None:
    name = _PHONE_FIELDS.get(kind)
    number = data.get(name) if name else None
    if name is None or number is None:
        return None
    if not isinstance(number, str) or len(number) > _MAX_PHONE or not number.isprintable():
        raise BadPayload(below(path, name), f"is not a telephone number of at most {_MAX_PHONE} characters")
    if data.get("caller") or data.get("number"):
        raise BadPayload(below(path, name), "stands beside a sealed number; send one of them")
    return number.strip() or None


def _refuse_unsealed(kind: type[Body], data: Mapping[str, Any], path: str) -> None:
    """Tell a sealed value by its shape; whether it opens, only the holder of the key can tell."""
    for name in _SEALED_FIELDS:
        if name not in kind.model_fields or data.get(name) is None:
            continue
        try:
            sealed = b64decode(data[name], altchars=b"-_", validate=True)
        except (NotBase64, TypeError, ValueError):
            sealed = b""
        if len(sealed) < _SEALED_BYTES:
            instead = _PHONE_FIELDS.get(kind)
            hint = f"; send it as {instead}" if instead else ""
            raise BadPayload(below(path, name), f"is not sealed{hint}")


def _refuse_implausible(body: Body, path: str) -> None:
    for name, value in body:
        if isinstance(value, int) and not name.endswith("_seq") and not 0 <= value <= MOST:
            raise BadPayload(below(path, name), f"is not between 0 and {MOST}")
        if isinstance(value, datetime):
            try:
                plausible(value)
            except ValueError as error:
                raise BadPayload(below(path, name), str(error)) from None
