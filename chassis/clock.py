"""The only place that reads the computer's clock."""

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """Tell the time, in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds that never jump; only differences mean anything."""
    return time.monotonic()


def epoch_ms() -> int:
    """Milliseconds since 1970, the unit of Kafka's and UUIDv7's timestamps."""
    return time.time_ns() // 1_000_000
