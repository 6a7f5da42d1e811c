"""Seen once: which inputs this stage has handled, and how each ended."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Seen:
    """An input that was handled before: in which batch, with which content, how it ended, sent or not."""

    batch: int
    digest: int
    outcome: str
    unpublished: bool

    @property
    def dead(self) -> bool:
        """Whether it could not be handled then."""
        return self.outcome.startswith("dead")


def digest_of(value: bytes | None) -> int:
    """Fingerprint a value in 63 bits, to notice that an id was used for other content."""
    return int.from_bytes(blake2b(value or b"", digest_size=8).digest(), "big") >> 1
