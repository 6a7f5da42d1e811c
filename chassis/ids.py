"""Identity below the roots: deterministic, time-ordered ids, and case numbers for people. Pure."""

from datetime import datetime
from hashlib import blake2b
from uuid import UUID

from stdnum import luhn

_VERSION_8 = 0x8 << 76
_VARIANT = 0x2 << 62
_LOW_62 = (1 << 62) - 1
_LOW_12 = (1 << 12) - 1


def derived_id(cause: UUID, name: str, ordinal: int = 0) -> UUID:
    """Make the id of what `cause` brought about: the same inputs give the same id.

    UUIDv8 (RFC 9562): 48 bits of the cause's time, then 74 bits of BLAKE2b over cause, name, ordinal.
    The time prefix keeps indexes append-only; the hash makes a retry recognisable.
    """
    digest = blake2b(b"%b|%b|%d" % (cause.bytes, name.encode(), ordinal), digest_size=10).digest()
    return _stamped(cause.int >> 80, digest)


def foreign_id(source: str, key: str, at: datetime) -> UUID:
    """Make our id for a fact that somebody else named: the same source, key and time give the same id."""
    digest = blake2b(f"{source}|{key}".encode(), digest_size=10).digest()
    return _stamped(int(at.timestamp() * 1000), digest)


def _stamped(prefix_ms: int, digest: bytes) -> UUID:
    bits = int.from_bytes(digest, "big")
    high = (prefix_ms & 0xFFFFFFFFFFFF) << 80
    return UUID(int=high | _VERSION_8 | ((bits >> 62) & _LOW_12) << 64 | _VARIANT | bits & _LOW_62)


def case_number(day: datetime, counter: int) -> str:
    """Write the number that people say on the phone: `C-20261123-004217-6` (date, counter, Luhn digit)."""
    digits = f"{day:%Y%m%d}{counter:06d}"
    return f"C-{digits[:8]}-{digits[8:]}-{luhn.calc_check_digit(digits)}"


def is_case_number(text: str) -> bool:
    """Tell whether `text` is a case number whose check digit holds."""
    parts = text.strip().upper().split("-")
    digits = "".join(parts[1:])
    if len(parts) != 4 or parts[0] != "C" or len(parts[1]) != 8 or not digits.isdecimal():
        return False
    return bool(luhn.is_valid(digits))
