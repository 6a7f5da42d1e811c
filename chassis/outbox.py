"""Said once: the messages of a stage, kept with the state change that caused them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from chassis.postgres import Tx
from chassis.statement import Part, execute
from chassis.transport import Headers, Outgoing


def pack(headers: Headers) -> bytes:
    """Write headers as one value; the inverse of `unpack`."""
    packed = b"\x1e".join([_named(name) + (value or b"") for name, value in headers])
    if packed.count(b"\x1e") < max(1, len(headers)):
        return packed
    # Somebody else's value holds our separator (ours never do): shown as a question mark.
    return b"\x1e".join([_named(name) + (value or b"").replace(b"\x1e", b"?") for name, value in headers])


@lru_cache(maxsize=256)
def _named(name: str) -> bytes:
    return name.encode().replace(b"\x1e", b"?").replace(b"\x1f", b"?") + b"\x1f"


def unpack(packed: bytes) -> list[tuple[str, bytes]]:
    """Read headers that `pack` wrote."""
    if not packed:
        return []
    pairs = (entry.split(b"\x1f", 1) for entry in packed.split(b"\x1e"))
    return [(name.decode(), value) for name, value in pairs]


_SAID = (
    "insert into outbox (batch, ordinal, topic, key, headers, value, correlation)"
    " select $1, o, t, k, h, b, c from unnest($2::int[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[],"
    " $7::text[]) as x(o, t, k, h, b, c)"
)
_PENDING = "insert into unpublished (batch, relay) values ($1, $2)"


def parts(
    batch: int, messages: Sequence[Outgoing], correlations: Sequence[str | None], *, for_relay: bool
) -> list[Part]:
    """Keep messages, to be sent in this order: by the relay, or by the caller after its commit."""
    said = [
        batch,
        list(range(len(messages))),
        [message.topic for message in messages],
        [message.key for message in messages],
        [pack(message.headers) for message in messages],
        [message.value for message in messages],
        correlations,
    ]
    return [Part("said", _SAID, said), Part("pending", _PENDING, [batch, for_relay])]


async def store(
    tx: Tx,
    batch: int,
    messages: Sequence[Outgoing],
    correlations: Sequence[str | None],
    *,
    for_relay: bool = True,
) -> None:
    """Keep messages as `parts` does, in a statement of their own."""
    await execute(tx, parts(batch, messages, correlations, for_relay=for_relay))


async def messages_of(tx: Tx, batches: Sequence[int]) -> list[Outgoing]:
    """Read the messages of those batches that are still unsent, in the order in which they were said."""
    rows = await tx.fetch(
        "select topic, key, headers, value from outbox join unpublished using (batch)"
        " where batch = any($1::bigint[]) order by batch, ordinal",
        batches,
    )
    return [Outgoing(row["topic"], row["key"], row["value"], unpack(row["headers"])) for row in rows]


async def said_for(tx: Tx, causes: Mapping[int, set[str]]) -> list[Outgoing]:
    """Read what was said, sent or not, on account of certain inputs; `causes` names them by their batch.

    A batch's receipts are one message for many inputs: it comes along with any of them.
    """
    rows = await tx.fetch(
        "select batch, topic, key, headers, value from outbox where batch = any($1::bigint[])"
        " order by batch, ordinal",
        list(causes),
    )
    found = []
    for row in rows:
        headers = unpack(row["headers"])
        cause = dict(headers).get("ce_causationid")
        if cause is None or cause.decode(errors="replace") in causes[row["batch"]]:
            found.append(Outgoing(row["topic"], row["key"], row["value"], headers))
    return found


async def mark_published(tx: Tx, batches: Sequence[int]) -> None:
    """Note that Kafka has acknowledged every message of these batches."""
    await tx.execute("delete from unpublished where batch = any($1::bigint[])", batches)


async def claim_unpublished(tx: Tx, stale_before: int, limit: int = 50) -> list[int]:
    """Lock batches that nobody is sending: those of doors and timers, and what a dead process left."""
    rows = await tx.fetch(
        "select batch from unpublished where relay or batch < $1"
        " order by batch limit $2 for update skip locked",
        stale_before,
        limit,
    )
    return [row["batch"] for row in rows]
