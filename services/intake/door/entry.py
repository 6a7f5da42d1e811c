"""What comes in is kept before it is acknowledged; many at once, in one transaction."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal, TypeAlias
from uuid import UUID

from chassis import outbox
from chassis.clock import utc_now
from chassis.faults import Transient, is_transient
from chassis.ids import foreign_id
from chassis.log import get_logger
from chassis.message import Writer, time_header
from chassis.postgres import Database, Tx
from chassis.relay import Relay
from chassis.roots import new_batch_id
from chassis.transport import Outgoing
from chassis.vault import Vault
from schemas import telephony
from schemas.envelope import BY_BODY, Body
from services.intake.desk.phones import normalise
from services.intake.door import ledger
from services.intake.sources.canonical import Mapped
from services.intake.sources.sequence import Numbers, Place

Kept: TypeAlias = Literal["kept", "duplicate", "conflict"]
FEED = "door"
MOST_WAITING = 2_000
MOST_AT_ONCE = 500
_DIGITS = re.compile(r"\d{7,}")
COLLECT_S = 0.008
"""While deliveries come faster than one by one, so long is waited for company: fewer transactions."""


class Busy(Transient):
    """More has come in than can be kept at once; the same may be sent again in a moment."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a source delivered at once; `name` is its own id, `digest` the digest of its bytes."""

    source: str
    name: str
    digest: bytes

    @classmethod
    def of(cls, source: str, name: str, content: bytes) -> Delivery:
        """Take the digest of what came."""
        return cls(source[:200], name[:400], blake2b(content, digest_size=16).digest())


@dataclass(frozen=True, slots=True)
class Position:
    """How far the reader of a feed has come, kept together with what it has read."""

    feed: str
    text: str


@dataclass(frozen=True, slots=True)
class Numbered:
    """Where an event stands in a source that numbers all that it sends; without `place`, time has passed."""

    source: str
    place: Place | None = None


@dataclass(slots=True, eq=False)
class _Item:
    facts: Sequence[Mapped]
    commands: Sequence[tuple[UUID, Body]]
    delivery: Delivery | None
    position: Position | None
    numbered: Numbered | None
    done: asyncio.Future[Kept] = field(repr=False)


class Entry:
    """The only way in: facts and commands go to the outbox of intake, and from there to Kafka."""

    def __init__(self, database: Database, vault: Vault, relay: Relay) -> None:
        self._database, self._vault, self._relay = database, vault, relay
        self._telephony, self._agents = Writer(FEED), Writer("agents")
        self.missing: dict[str, int] = {}
        """Of each numbered source, how many events had not come when it was last looked at here."""
        self._waiting: list[_Item] = []
        self._there = asyncio.Event()
        self._log = get_logger(part="door")

    async def facts(
        self,
        facts: Sequence[Mapped],
        delivery: Delivery | None = None,
        position: Position | None = None,
        numbered: Numbered | None = None,
    ) -> Kept:
        """Keep the facts of one delivery; returns once they are on disk.

        A delivery that was kept before is a `duplicate`, the same name with other content a `conflict`;
        neither keeps anything, but that the number has come. Raises Busy when too much waits,
        Transient while PostgreSQL is away.
        """
        return await self._keep([identified(fact) for fact in facts], (), delivery, position, numbered)

    async def command(self, command_id: UUID, body: Body) -> None:
        """Keep one command; the verdict will name `command_id` as its cause. Raises like `facts`."""
        await self._keep((), ((command_id, body),), None, None, None)

    async def _keep(
        self,
        facts: Sequence[Mapped],
        commands: Sequence[tuple[UUID, Body]],
        delivery: Delivery | None,
        position: Position | None,
        numbered: Numbered | None,
    ) -> Kept:
        if len(self._waiting) >= MOST_WAITING:
            raise Busy(f"{len(self._waiting)} deliveries wait to be kept; send this one again in a second")
        done: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Item(facts, commands, delivery, position, numbered, done))
        self._there.set()
        return await done

    async def run(self) -> None:
        """Keep what waits, batch by batch, for ever; cancel to stop."""
        busy = False
        while True:
            await self._there.wait()
            if busy:
                await asyncio.sleep(COLLECT_S)
            self._there.clear()
            busy = len(self._waiting) > 1
            while self._waiting:
                items, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                await self._keep_all(items)

    async def _keep_all(self, items: Sequence[_Item]) -> None:
        try:
            verdicts = await self._store(items)
        except Exception as error:
            if not is_transient(error) and len(items) > 1:
                # It is one of them: its neighbours must not wait for it for ever.
                middle = len(items) // 2
                await self._keep_all(items[:middle])
                await self._keep_all(items[middle:])
                return
            if not is_transient(error):
                self._log.error("entry_failed", exc_info=error, items=len(items))
            for item in items:
                if not item.done.done():
                    item.done.set_exception(
                        Transient(f"what came in could not be kept: {type(error).__name__}")
                    )
            return
        self._relay.wake()
        for item, kept in zip(items, verdicts, strict=True):
            if not item.done.done():
                item.done.set_result(kept)

    async def _store(self, items: Sequence[_Item]) -> list[Kept]:
        numbers = {fact.phone for item in items for fact in item.facts if fact.phone}
        refs = [self._vault.customer_ref(number) for number in numbers]
        if refs:
            await self._vault.ready(refs, create=True)
        async with self._database.transaction() as tx:
            verdicts = await self._verdicts(tx, items)
            fresh = [item for item, kept in zip(items, verdicts, strict=True) if kept == "kept"]
            gaps, missing = await self._gaps(tx, items)
            await self._write(tx, fresh, gaps)
        self.missing |= missing
        return verdicts

    async def _gaps(self, tx: Tx, items: Sequence[_Item]) -> tuple[list[Mapped], dict[str, int]]:
        """Note which numbers have come; gives the gaps that are to be told, and how many are missing."""
        places: dict[str, list[Place]] = defaultdict(list)
        for item in items:
            if item.numbered is not None:
                heard = places[item.numbered.source]
                heard += [item.numbered.place] if item.numbered.place else []
        gaps: list[Mapped] = []
        missing: dict[str, int] = {}
        for source, heard in sorted(places.items()):
            feed = numbers_feed(source)
            text = await ledger.hold_position(tx, feed)
            before = Numbers.parse(text) if text else Numbers()
            known, told = before.heard(heard, source, utc_now())
            gaps += [Mapped(_gap_key(gap), gap) for gap in told]
            missing[source] = known.missing
            if known != before:
                await ledger.move(tx, feed, known.to_bytes().decode())
        return gaps, missing

    async def _verdicts(self, tx: Tx, items: Sequence[_Item]) -> list[Kept]:
        named = [item.delivery for item in items if item.delivery is not None]
        if not named:
            return ["kept"] * len(items)
        fresh, digests = await ledger.note_deliveries(
            tx, [(delivery.source, delivery.name, delivery.digest) for delivery in named]
        )
        verdicts: list[Kept] = []
        for item in items:
            delivery = item.delivery
            if delivery is None:
                verdicts.append("kept")
                continue
            name = (delivery.source, delivery.name)
            if name in fresh:
                # The first of this batch is kept; another of the same name in it is a repetition.
                fresh.discard(name)
                digests[name] = delivery.digest
                verdicts.append("kept")
            else:
                verdicts.append("duplicate" if digests[name] == delivery.digest else "conflict")
        return verdicts

    async def _write(self, tx: Tx, items: Sequence[_Item], gaps: Sequence[Mapped]) -> None:
        facts = [*(fact for item in items for fact in item.facts), *gaps]
        last = await ledger.number(tx, FEED, len(facts)) if facts else 0
        messages = [self._fact(fact, last - len(facts) + ordinal) for ordinal, fact in enumerate(facts, 1)]
        messages += [self._command(uid, body) for item in items for uid, body in item.commands]
        if messages:
            await outbox.store(tx, new_batch_id(), messages, [None] * len(messages))
        for item in items:
            if item.position is not None:
                await ledger.move(tx, item.position.feed, item.position.text)

    def _fact(self, fact: Mapped, number: int) -> Outgoing:
        body = sealed(fact, self._vault)
        at = getattr(body, "occurred_at", None) or utc_now()
        return self._telephony.write(
            body,
            uid=fact_id(fact),
            at=time_header(at),
            correlation=str(getattr(body, BY_BODY[type(body)].key)),
            sequence=number,
            numbered_for=FEED,
        )

    def _command(self, uid: UUID, body: Body) -> Outgoing:
        key = str(getattr(body, BY_BODY[type(body)].key))
        return self._agents.write(body, uid=uid, at=time_header(utc_now()), correlation=key)


def numbers_feed(source: str) -> str:
    """Name the feed whose position is what is known of a source's numbers."""
    return f"sequence:{source}"


def _gap_key(gap: telephony.SourceInterrupted) -> str:
    return f"{gap.source}|{gap.reason}|{gap.gap_from.isoformat()}|{gap.from_seq}|{gap.to_seq}"


def fact_id(fact: Mapped) -> UUID:
    """Give the identity of a fact: the same source, key and time give the same, whoever reads it."""
    at = getattr(fact.body, "occurred_at", None) or getattr(fact.body, "gap_to", None)
    assert at is not None, f"{type(fact.body).__name__} says no time"
    return foreign_id("telephony", fact.key, at)


def number_of(raw: str | None) -> str | None:
    """Write a number in the one way by which its owner is found (E.164); an extension stays as it is.

    None for what is no number: all who withhold theirs would be one customer.
    """
    phone = normalise(raw) if raw else None
    if phone is not None:
        return phone.number
    return raw.strip() if raw and raw.strip().isascii() and raw.strip().isdigit() else None


def _masked(to: str) -> str:
    """Hide what may be a person's number; service lines and the house's own short numbers stay."""
    phone = normalise(to)
    return phone.masked if phone else _DIGITS.sub(lambda digits: f"****{digits[0][-2:]}", to)


def identified(fact: Mapped) -> Mapped:
    """Write the fact's number as `number_of` does."""
    number = number_of(fact.phone)
    return fact if number == fact.phone else replace(fact, phone=number)


def sealed(fact: Mapped, vault: Vault) -> Body:
    """Put an identified fact's number into the body, sealed; its key must be at hand (`Vault.ready`).

    Where a caller was passed on to outside is kept without a person's number.
    """
    body, number = fact.body, fact.phone
    if isinstance(body, telephony.CallTransferred) and body.to_kind not in ("queue", "agent"):
        return body.model_copy(update={"to": _masked(body.to)})
    if number is None:
        return body
    ref = vault.customer_ref(number)
    cipher = vault.seal(ref, number)
    if isinstance(body, telephony.CallOffered):
        return body.model_copy(update={"customer_ref": ref, "caller": cipher})
    if isinstance(body, telephony.CallbackRequested):
        return body.model_copy(update={"customer_ref": ref, "number": cipher})
    return body
