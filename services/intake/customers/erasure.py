"""Erasing a customer: the keys are destroyed, so that no copy anywhere can be read again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from chassis.postgres import Database
from chassis.vault import Vault
from services.intake.customers import store
from services.intake.customers.record import may_be_erased


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure came to; `keys` and `drafts` are those that it destroyed, none when repeated.

    What remains names no person: sealed bytes that nobody can open, and the calls and cases themselves.
    """

    customer_ref: str
    references: tuple[str, ...]
    erased_at: datetime
    keys: int
    drafts: int
    calls_remaining: int
    cases_remaining: int


async def erase(database: Database, vault: Vault, ref: str, by: str, reason: str, now: datetime) -> Erased:
    """Erase the customer behind a reference, with all that was merged; again, it changes nothing.

    Who asked and why is kept before anything is destroyed. Processes that had a key in memory forget it
    within a minute. Raises Refused: legal hold, unknown customer.
    """
    async with database.transaction() as tx:
        await store.decide_alone(tx)
        record = await store.load(tx, ref)
        may_be_erased(record)
        await store.note(tx, record.customer_ref, "erased", by, reason)
    async with database.transaction() as tx:
        # A hold that came in between is seen here; none can come while the keys go.
        await store.decide_alone(tx)
        record = await store.load(tx, ref, lock=True)
        may_be_erased(record)
        refs = await store.references(tx, record.customer_ref)
        drafts = await store.delete_drafts(tx, refs)
        words = await store.words_of_nobody(tx, refs)
        keys = sum([await vault.erase(one) for one in (*refs, *words)])
        erased_at = record.erased_at
        if keys or drafts or erased_at is None:
            await store.clear(tx, refs, now)
            erased_at = now
        calls, cases = await store.counts(tx, refs)
    return Erased(record.customer_ref, tuple(refs), erased_at, keys, drafts, calls, cases)
