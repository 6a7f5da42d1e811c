"""What the observer takes from a record: its headers, and nothing of what customers said. Pure, hot."""

from binascii import Error as NotHex
from binascii import unhexlify
from datetime import datetime
from hashlib import blake2b
from typing import NamedTuple

from chassis.transport import Record
from schemas.envelope import ID_LENGTH

NOTHING = b""
MOST_PARTS = 62
"""Parts are bits of a number that the store keeps in 64."""


class Said(NamedTuple):
    """What matters of one record, as bytes: `key` is its case or call, `subject` what `sequence` counts."""

    offset: int
    at_ms: int
    event_id: bytes
    wire: bytes
    source: bytes
    cause: bytes
    part: int
    total: int
    sequence: int
    subject: bytes
    time: bytes
    key: bytes = NOTHING


def read_said(record: Record) -> Said:
    """Read one record's headers; whatever is missing or odd is empty or zero, nothing is raised."""
    of = dict(record.headers).get if record.headers else _none
    cause = of("ce_causationid") or NOTHING
    key = record.key or NOTHING
    part = total = 1
    if cause and of("ce_handoffn") != b"1":
        part, total = _number(of("ce_handoffk"), 1), _number(of("ce_handoffn"), 1)
        if not 0 < part <= total <= MOST_PARTS:
            part = total = 1
    # Made as the tuple that it is: this runs for every record, and `Said(…)` takes twice as long.
    said: Said = tuple.__new__(
        Said,
        (
            record.offset,
            record.timestamp,
            of("ce_id") or NOTHING,
            of("ce_type") or NOTHING,
            of("ce_source") or NOTHING,
            cause,
            part,
            total,
            _number(of("ce_sequence"), 0),
            of("ce_sequenceof") or key,
            of("ce_time") or NOTHING,
            key,
        ),
    )
    return said


def _none(_: str) -> None:
    return None


def _number(value: bytes | None, otherwise: int) -> int:
    if not value or len(value) > 18 or not value.isdigit():
        return otherwise
    return int(value)


def key_of(name: bytes) -> bytes:
    """Make 16 bytes of an event's id: a UUID's own, else a BLAKE2b digest of whatever it is."""
    if len(name) == 36:
        try:
            key = unhexlify(name.replace(b"-", b""))
        except NotHex:
            key = NOTHING
        if len(key) == 16:
            return key
    return blake2b(name, digest_size=16).digest()


def time_ms(text: bytes) -> int:
    """Read `ce_time` as milliseconds since 1970; 0 when it is none."""
    try:
        at = datetime.fromisoformat(text.decode())
    except ValueError:
        return 0
    return int(at.timestamp() * 1000) if at.tzinfo is not None else 0


def shown(name: bytes) -> str:
    """Write a header's bytes for people and tables: no NUL, bounded."""
    return name.decode(errors="replace").replace("\x00", "?")[:ID_LENGTH]
