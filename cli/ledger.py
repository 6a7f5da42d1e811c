"""What the observer has proved, as the commands show it: read from its tables, never from memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from chassis.clock import epoch_ms
from chassis.postgres import Tx
from cli.evidence import NOBODY, NUMBER, UNREADABLE
from cli.world import OBSERVER, CannotReach, Place, connected
from observer.contract import contract_of
from observer.headers import key_of
from observer.ledger import LOST, SETTLED, UPSTREAM, State, parts_missing
from schemas import operations

BLIND_AFTER_MS = 10_000
"""An observer that has shown nothing for so long proves nothing now."""
LOST_WORDS = tuple(state.value for state in LOST)
"""The states that mean: something is missing, and that is proved."""
DEAD = State.DEAD_LETTERED.value
_SETTLED = tuple(state.value for state in SETTLED)
UNSETTLED = tuple(state.value for state in State if state not in SETTLED)
"""The states in which somebody still has to do something."""
LATE, WAITING = "late", "waiting"
"""Two ways of being open: nobody has read it yet; or it was read, and what it wants is not due yet."""
KNOWN = {LATE, WAITING, *(state.value for state in State)}
_LATE = "h.state = 'open' and h.due_ms is null and coalesce(c.committed, 0) <= h.record_offset"
_WAITING = "h.state = 'open' and h.due_ms is not null"
_NOT_CANARY = f"grp <> '{operations.CANARY_GROUP}'"


@dataclass(frozen=True, slots=True)
class Overview:
    """The observer's last look: whether it can be believed, and what is lost."""

    at_ms: int | None
    blind: str
    document: Mapping[str, Any]
    lost: int
    dead: int

    def as_json(self) -> dict[str, Any]:
        """The overview for a script."""
        return {
            "at": moment(self.at_ms),
            "blind": self.blind or None,
            "blind_ranges": self.blind_ranges,
            "lost": self.lost,
            "dead_lettered": self.dead,
            "canary": self.document.get("canary"),
            "pending": self.document.get("pending"),
            "paused": self.paused,
        }

    @property
    def paused(self) -> dict[str, dict[str, Any]]:
        """The groups that an operator has paused: who, since when, why."""
        return {
            group: {"by": entry["by"], "since": moment(entry["since_ms"]), "reason": entry["reason"]}
            for group, entry in self.document.get("paused", {}).items()
        }

    @property
    def blind_ranges(self) -> list[dict[str, Any]]:
        """The records that were deleted before the observer read them, lately: nothing is proved of them."""
        return [
            {name: value for name, value in entry.items() if name != "seen_ms"}
            | {"seen_at": moment(entry["seen_ms"])}
            for entry in self.document.get("blind_ranges", ())
        ]


@asynccontextmanager
async def session(place: Place) -> AsyncIterator[Tx]:
    """A short-lived connection to the observer's schema; raises CannotReach when it was never made."""
    async with connected(place, OBSERVER) as database, database.transaction() as tx:
        if await tx.fetchval("select to_regclass('handoffs')") is None:
            raise CannotReach("the observer has no tables here: run `hotline up` or `hotline migrate`")
        yield tx


async def overview(tx: Tx) -> Overview:
    """Read the observer's last look, and count what is lost."""
    row = await tx.fetchrow("select at_ms, document from status")
    counts = {
        found["state"]: found["count"]
        for found in await tx.fetch(
            f"select state, count(*) as count from handoffs where state <> all($1::text[]) and {_NOT_CANARY}"
            " group by state",
            [*_SETTLED, State.OPEN.value],
        )
    }
    lost = sum(counts.get(state, 0) for state in LOST_WORDS)
    dead = counts.get(DEAD, 0)
    if row is None:
        return Overview(None, "no observer has ever judged here", {}, lost, dead)
    document = json.loads(row["document"])
    silent = epoch_ms() - row["at_ms"]
    blind = document["blind"]
    if silent > BLIND_AFTER_MS:
        blind = f"the observer has judged nothing for {silent / 1000:.0f} s"
    return Overview(row["at_ms"], blind, document, lost, dead)


async def matrix(tx: Tx, seen: Overview) -> list[dict[str, Any]]:
    """Count each edge by state; the oldest open one's age in seconds."""
    rows = await tx.fetch(
        "select edge, state, count(*) as count, min(at_ms) as oldest from handoffs"
        f" where state <> all($1::text[]) and {_NOT_CANARY} group by edge, state",
        _SETTLED,
    )
    edges: dict[str, dict[str, Any]] = {
        edge: {"edge": edge, "open": found["open"], "oldest_s": found["oldest_s"]}
        for edge, found in seen.document.get("edges", {}).items()
    }
    for row in rows:
        entry = edges.setdefault(row["edge"], {"edge": row["edge"], "open": 0, "oldest_s": None})
        if row["state"] != State.OPEN.value:
            entry[row["state"]] = row["count"]
        elif not entry["open"]:
            entry["open"], entry["oldest_s"] = row["count"], (epoch_ms() - row["oldest"]) / 1000
    return list(edges.values())


async def listed(
    tx: Tx, states: Sequence[str], edge: str = "", limit: int = 200, group: str = ""
) -> list[dict[str, Any]]:
    """List handoffs in these states, oldest first; `late` and `waiting` are parts of `open`."""
    rows = await tx.fetch(
        "select h.*, c.committed from handoffs h left join commits c using (grp, topic, partition)"
        f" where (h.state = any($1::text[]) or ($2 and {_LATE}) or ($6 and {_WAITING}))"
        f" and ($3 = '' or h.edge = $3) and {_NOT_CANARY}"
        " and ($5 = '' or h.grp = $5)"
        " order by h.at_ms limit $4",
        [state for state in states if state not in (LATE, WAITING)],
        LATE in states,
        edge,
        limit,
        group,
        WAITING in states,
    )
    return [shown(row) for row in rows]


def edge_named(asked: str) -> str | None:
    """Find an edge by its name, its arrow written `->` too; None when there is no such edge."""
    contract = contract_of()
    named = asked.replace("->", "→")
    groups = (*contract.groups, UPSTREAM)
    own = {f"{what}→{group}" for what in (NUMBER, NOBODY, UNREADABLE) for group in groups}
    return named if named in own or named in contract.edges else None


def _word(row: Any) -> str:
    """A row's state, and of an open one how it is open."""
    if row["state"] != State.OPEN.value:
        return str(row["state"])
    if row["due_ms"] is not None:
        return WAITING
    return LATE if (row["committed"] or 0) <= row["record_offset"] else State.OPEN.value


def shown(row: Any) -> dict[str, Any]:
    """Write a row of handoffs (with its group's commit) as screens and scripts show it."""
    return {
        "event_id": event_id_of(row),
        "key": row["key"].hex(),
        "group": row["grp"],
        "edge": row["edge"],
        "state": _word(row),
        "subject": row["subject"],
        "topic": row["topic"],
        "partition": row["partition"],
        "offset": row["record_offset"],
        "at": moment(row["at_ms"] or None),
        "due": moment(row["due_ms"]),
        "sequence": row["sequence"],
        "missing": parts_missing(row["parts"], row["total"]),
        "settled_at": moment(row["settled_ms"]),
    }


def event_id_of(row: Any) -> str:
    """Tell the event's id, from a row with `key` and `name`."""
    return row["name"] or str(UUID(bytes=row["key"]))


async def find(tx: Tx, asked: str) -> list[dict[str, Any]]:
    """Find the handoffs of an event id (one per group that owes an answer)."""
    keys = {key_of(asked.encode())}
    with_name = await tx.fetch("select key from handoffs where name = $1", asked)
    keys |= {row["key"] for row in with_name}
    rows = await tx.fetch(
        "select h.*, c.committed from handoffs h left join commits c using (grp, topic, partition)"
        " where h.key = any($1::bytea[]) order by h.edge",
        list(keys),
    )
    return [shown(row) for row in rows]


async def verdicts_of(tx: Tx, handoff: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read every verdict on a handoff with its evidence, oldest first."""
    rows = await tx.fetch(
        "select * from verdicts where key = $1 and grp = $2 order by verdict_id",
        bytes.fromhex(handoff["key"]),
        handoff["group"],
    )
    return [
        {
            "verdict": row["verdict_id"],
            "state": row["state"],
            "judged_at": moment(row["judged_ms"]),
            "commit_seen_at": moment(row["commit_seen_ms"]),
            "committed": row["committed"],
            "barrier": json.loads(row["barrier"]),
            "note": row["note"],
        }
        for row in rows
    ]


def moment(ms: int | None) -> str | None:
    """Write milliseconds since 1970 as RFC 3339 in UTC."""
    return (
        None if ms is None else datetime.fromtimestamp(ms / 1000, tz=UTC).isoformat(timespec="milliseconds")
    )
