"""Between bytes and events: a total reader that never raises, and the writer of our headers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from asyncpg.pgproto import pgproto
from pydantic import ValidationError

from chassis.ids import foreign_id
from chassis.step import Event
from chassis.transport import Outgoing, Record, Refetched
from schemas.envelope import BY_BODY, ID_LENGTH, Body, MessageType
from schemas.topics import WIRES

MAX_HEADERS = 32
MAX_VALUE = 256 * 1024
_TYPE_SHAPE = re.compile(r"[a-z][a-z-]{0,40}(\.[a-z][a-z-]{0,40}){1,5}(\.v\d{1,3})?")
_JSON = ("content-type", b"application/json")
_SPEC = ("ce_specversion", b"1.0")
_id_of: Callable[[str], UUID] = pgproto.UUID
"""Reads a uuid.UUID written in C, several times faster; the locked database client gives the same ones."""


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that cannot become an event: a reason code, and an explanation without its content."""

    reason: str
    explanation: str
    event_key: str = ""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A well-formed record of a type that obliges this group to nothing."""


PASSED_OVER = PassedOver()


class _Unreadable(Exception):
    def __init__(self, reason: str, explanation: str) -> None:
        super().__init__(reason)
        self.poison = Poison(reason, explanation)


def read(record: Record, handled: dict[str, MessageType]) -> Event[Any] | Poison | PassedOver:
    """Turn a record into an event, into a reason why not, or pass it over; never raises."""
    for name, value in record.headers:
        if name == "ce_type":
            # Most records on a shared topic are for another group: find out before anything else.
            if value in WIRES and value.decode() not in handled:
                return PASSED_OVER
            break
    if isinstance(record, Refetched) and record.fault:
        return Poison("headers", record.fault, _key_text(record))
    try:
        return _read(record, handled)
    except _Unreadable as unreadable:
        return unreadable.poison
    except ValidationError as error:
        return Poison("schema", _paths(error), _key_text(record))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        return Poison("unreadable", type(error).__name__, _key_text(record))


def _read(record: Record, handled: dict[str, MessageType]) -> Event[Any] | Poison | PassedOver:
    if len(record.headers) > MAX_HEADERS:
        raise _Unreadable("headers", f"{len(record.headers)} headers, at most {MAX_HEADERS}")
    headers = dict(record.headers)
    if b"cloudevents" in headers.get("content-type", b""):
        raise _Unreadable(
            "structured_mode", "a structured CloudEvent; send binary mode: who watches reads only headers"
        )
    wire = _text(headers, "ce_type")
    kind = handled.get(wire)
    if kind is None:
        # Anybody may have written anything there: only what has a type's shape is repeated.
        named = repr(wire) if _TYPE_SHAPE.fullmatch(wire) else "in header ce_type"
        raise _Unreadable("unknown_type", f"type {named} is not in the contract")
    value = record.value
    if not value:
        raise _Unreadable("empty", "the record has no value")
    if len(value) > MAX_VALUE:
        raise _Unreadable("too_large", f"{len(value)} bytes, at most {MAX_VALUE}")
    name, at = _text(headers, "ce_id"), _time(headers)
    if len(name) > ID_LENGTH:
        # Receipts and verdicts name the event by it, as an `Identifier`.
        raise _Unreadable("headers", f"header ce_id is longer than {ID_LENGTH} characters")
    body = kind.body.parse(value)
    key = str(getattr(body, kind.key))
    return Event(
        uid=_uid(name, headers, at),
        name=name,
        kind=kind,
        key=key,
        body=body,
        at=at,
        correlation=_optional(headers, "ce_correlationid") or key,
        traceparent=headers.get("traceparent"),
        sequence=_sequence(headers),
    )


def _sequence(headers: dict[str, bytes]) -> int:
    """The writer's count for the record's own key; a number that counts for something else is none."""
    raw = headers.get("ce_sequence")
    if not raw or len(raw) > 18 or not raw.isdigit() or "ce_sequenceof" in headers:
        return 0
    return int(raw)


def _text(headers: dict[str, bytes], name: str) -> str:
    raw = headers.get(name)
    if not raw:
        raise _Unreadable("headers", f"header {name} is missing")
    return _decoded(name, raw)


def _optional(headers: dict[str, bytes], name: str) -> str | None:
    raw = headers.get(name)
    return _decoded(name, raw) if raw else None


def _decoded(name: str, raw: bytes) -> str:
    if len(raw) > 512:
        raise _Unreadable("headers", f"header {name} is longer than 512 bytes")
    if b"\x00" in raw:
        raise _Unreadable("headers", f"header {name} has a NUL")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _Unreadable("headers", f"header {name} is not UTF-8") from None


def _time(headers: dict[str, bytes]) -> datetime:
    text = _text(headers, "ce_time")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _Unreadable("headers", "header ce_time is not an RFC 3339 time") from None
    if at.tzinfo is None:
        raise _Unreadable("headers", "header ce_time has no zone")
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _uid(name: str, headers: dict[str, bytes], at: datetime) -> UUID:
    """Our own ids are UUIDs already; anybody else's get one, from source and id (CloudEvents 1.0)."""
    try:
        return own_id(name)
    except ValueError:
        return foreign_id(_optional(headers, "ce_source") or "", name, at)


def _paths(error: ValidationError) -> str:
    """Say which fields are wrong and how; never what was in them."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)[:8]
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'body'}: {fault['type']}" for fault in faults
    )


def _key_text(record: Record) -> str:
    return (record.key or b"").decode(errors="replace").replace("\x00", "?")[:200]


def own_id(text: str) -> UUID:
    """Read one of our ids as `str` writes it; raises ValueError."""
    if len(text) != 36:
        raise ValueError("an id has 36 characters")
    return _id_of(text)


class Writer:
    """Builds outgoing messages for one producer of events."""

    def __init__(self, source: str) -> None:
        self._source = ("ce_source", f"/hotline/{source}".encode())
        self._types = {kind.body: ("ce_type", kind.wire.encode()) for kind in BY_BODY.values()}

    def write(
        self,
        body: Body,
        *,
        uid: UUID,
        at: bytes,
        correlation: str,
        cause: str | None = None,
        sequence: int | None = None,
        numbered_for: str = "",
        part: tuple[int, int] = (1, 1),
        traceparent: bytes | None = None,
    ) -> Outgoing:
        """Make the message of a body: CloudEvents 1.0 binary mode with our extensions."""
        kind = BY_BODY[type(body)]
        headers = [
            _SPEC,
            ("ce_id", str(uid).encode()),
            self._types[kind.body],
            self._source,
            ("ce_time", at),
            _JSON,
            ("ce_correlationid", correlation.encode()),
        ]
        key = str(getattr(body, kind.key))
        headers += _traced(cause, part, sequence, numbered_for, key)
        if traceparent is not None:
            headers.append(("traceparent", traceparent))
        return Outgoing(
            kind.topic_of(body),
            key.encode(),
            body.to_bytes(),
            headers,
        )


def _traced(
    cause: str | None, part: tuple[int, int], sequence: int | None, numbered_for: str, key: str
) -> list[tuple[str, bytes]]:
    """The headers by which a loss is proved: what caused it, which part of how many, the writer's number."""
    headers = []
    if cause is not None:
        headers.append(("ce_causationid", cause.encode()))
        if part[1] > 1:  # one of one goes without saying: two headers less to write, keep and read
            headers.append(("ce_handoffk", b"%d" % part[0]))
            headers.append(("ce_handoffn", b"%d" % part[1]))
    if sequence is not None:
        headers.append(("ce_sequence", b"%010d" % sequence))
        if numbered_for != key:
            # Said of one thing (a case), numbered with what is said of another (its call).
            headers.append(("ce_sequenceof", numbered_for.encode()))
    return headers


def time_header(at: datetime) -> bytes:
    """Write a time as RFC 3339 in UTC, for `ce_time`."""
    return at.astimezone(UTC).isoformat().encode()
