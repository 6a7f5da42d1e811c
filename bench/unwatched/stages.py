"""Run stages that nobody could watch: `python -m bench.unwatched.stages intake router …`.

They are the product's own processes (`python -m services`), forked after the chassis was told to leave out
what the observer alone needs. Left out is all of `LEFT_OUT`, and somewhat more than the ledger's own share:
causes and numbers have other readers too (a command's verdict, `hotline case show`), so the difference to
the product is an upper bound. What stays: the row of an input seen, the outbox, acknowledgement by all
replicas. They are needed to lose nothing; the ledger only proves it. The count in each case's row stays too:
four bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from chassis import message
from chassis.batch import Pass
from chassis.fold import Fold
from chassis.kafka import Subscription
from chassis.relay import Relay
from chassis.transport import Place
from services import __main__ as services
from services.feedback import domain as feedback


def _trace_nothing(
    cause: str | None, part: tuple[int, int], sequence: int | None, numbered_for: str, key: str
) -> list[tuple[str, bytes]]:
    return []


def _read_no_number(headers: dict[str, bytes]) -> int:
    return 0


def _give_no_receipt(self: Fold, event: Any, outcome: str, reason: str) -> None:
    """What came to nothing is in the inbox; nobody is told."""


async def _say_no_watermark(self: Relay) -> bool:
    return False


def _count_nothing(event: Any, state: Any) -> dict[str, int]:
    return {}


_send_then_acknowledge = Pass._send_then_acknowledge  # noqa: SLF001 - what is replaced


async def _commit_when_stored(self: Any, stored: Any, reader: Any) -> None:
    """What is stored will be sent, by the relay at last: only a proof needs the commit to wait for it."""
    self._offsets.update(stored.offsets)
    await _send_then_acknowledge(self, stored._replace(offsets={}), reader)


_commit = Subscription.commit


async def _commit_what_there_is(self: Subscription, offsets: Mapping[Place, int]) -> None:
    """Offsets come before what is sent here, so there may be something to mark and nothing to commit."""
    if offsets:
        await _commit(self, offsets)


LEFT_OUT: tuple[tuple[Any, str, Any], ...] = (
    (message, "_traced", _trace_nothing),
    (message, "_sequence", _read_no_number),
    (Fold, "_receipt", _give_no_receipt),
    (Relay, "watermark_once", _say_no_watermark),
    (feedback, "_counts", _count_nothing),
    (Pass, "_send_then_acknowledge", _commit_when_stored),
    (Subscription, "commit", _commit_what_there_is),
)
"""Whose function, its name, what stands in its place."""


def leave_out() -> None:
    """Put everything in its place; raises AttributeError where the product has no such function any more."""
    for owner, name, instead in LEFT_OUT:
        getattr(owner, name)
        setattr(owner, name, instead)


if __name__ == "__main__":
    leave_out()
    sys.exit(services.main(sys.argv[1:]))
