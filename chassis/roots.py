"""Identity of what begins here: fresh ids, and the numbers of outgoing batches."""

import secrets
from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

from chassis.clock import epoch_ms


def new_id() -> UUID:
    """Make the id of a root event or command (UUIDv7)."""
    return uuid7()


def new_batch_id() -> int:
    """Number a batch of outgoing messages: time-ordered, 64 bits.

    A collision is refused by the outbox's primary key, and the batch is tried again under another.
    """
    return epoch_ms() << 21 | secrets.randbits(21)


def batch_id_at(at: datetime) -> int:
    """Give the smallest batch number that can have been made at `at`; for pruning by age."""
    return int(at.timestamp() * 1000) << 21
