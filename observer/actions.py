"""What operators did, in order: append only, each row holding the hash of the row before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chassis.clock import epoch_ms
from chassis.postgres import Tx

ENDING = frozenset({"waive", "discard"})
"""Verbs that end a watched handoff; the observer carries them out."""
PAUSE, RESUME = "pause", "resume"
"""Verbs that stop a group and let it go on; the row in its stage's schema is what the stage itself obeys."""
_LOCK = 0x616374696F6E73  # "actions": one appends at a time
_BEGINNING = "0" * 64
APPLIED = ("operator.actions", 0)


class Target(NamedTuple):
    """A handoff that an action is about."""

    key: bytes
    group: str


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that an operator did."""

    number: int
    at_ms: int
    actor: str
    verb: str
    target: str
    reason: str
    before: str
    hash: str

    @property
    def groups(self) -> list[str]:
        """The consumer groups that it is about, where it is about whole groups."""
        return [
            entry["group"]
            for entry in json.loads(self.target)
            if isinstance(entry, dict) and "group" in entry and "key" not in entry
        ]

    @property
    def targets(self) -> list[Target]:
        """The handoffs that it is about."""
        return [
            Target(bytes.fromhex(entry["key"]), entry["group"])
            for entry in json.loads(self.target)
            if isinstance(entry, dict) and "key" in entry
        ]


async def alone(tx: Tx) -> None:
    """Wait until nobody else adds to the chain; until this transaction ends nobody else can."""
    await tx.execute("select pg_advisory_xact_lock($1)", _LOCK)


async def append(tx: Tx, actor: str, verb: str, target: Sequence[object], reason: str) -> Action:
    """Add an action to the chain, inside the caller's transaction; no number is ever given twice."""
    await alone(tx)
    last = await tx.fetchrow("select number, hash from actions order by number desc limit 1")
    number, before = (last["number"], last["hash"]) if last else (0, _BEGINNING)
    # Somebody may have removed the last ones: whoever came after them must not take their place.
    number = max(number, await last_applied(tx)) + 1
    text = json.dumps(list(target), ensure_ascii=False, sort_keys=True)
    at_ms = epoch_ms()
    mark = _hash(number, at_ms, actor, verb, text, reason, before)
    action = Action(number, at_ms, actor, verb, text, reason, before, mark)
    await tx.execute(
        "insert into actions (number, at_ms, actor, verb, target, reason, before, hash)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8)",
        number,
        at_ms,
        actor,
        verb,
        text,
        reason,
        before,
        mark,
    )
    return action


async def after(tx: Tx, number: int) -> list[Action]:
    """Read the actions behind a number, in order."""
    rows = await tx.fetch(
        "select number, at_ms, actor, verb, target, reason, before, hash from actions"
        " where number > $1 order by number",
        number,
    )
    return [Action(*row.values()) for row in rows]


async def paused(tx: Tx) -> dict[str, Action]:
    """Tell which groups are paused, each with the action that paused it."""
    rows = await tx.fetch(
        "select number, at_ms, actor, verb, target, reason, before, hash from actions"
        " where verb = $1 or verb = $2 order by number",
        PAUSE,
        RESUME,
    )
    found: dict[str, Action] = {}
    for row in rows:
        note_pause(found, Action(*row.values()))
    return found


def note_pause(paused: dict[str, Action], action: Action) -> None:
    """Bring what is known of paused groups up to date with one more action, in order."""
    for group in action.groups:
        if action.verb == PAUSE:
            paused[group] = action
        elif action.verb == RESUME:
            paused.pop(group, None)


async def last_applied(tx: Tx) -> int:
    """Tell which action the observer carried out last: the log of actions has a position like a topic."""
    found = await tx.fetchval("select position from positions where topic = $1 and partition = $2", *APPLIED)
    return int(found or 0)


async def mark_applied(tx: Tx, number: int) -> None:
    """Note that the observer has carried out everything up to a number."""
    await tx.execute(
        "insert into positions (topic, partition, position, last) values ($1, $2, $3, $3)"
        " on conflict (topic, partition) do update set position = excluded.position, last = excluded.last",
        *APPLIED,
        number,
    )


def broken_links(chain: Sequence[Action], carried_out: int = 0) -> list[str]:
    """Name every row that does not follow from the row before it; an intact chain gives [].

    It must reach to the last action that the observer has `carried_out`.
    """
    faults, before, number = [], _BEGINNING, 0
    for action in chain:
        mark = _hash(
            action.number,
            action.at_ms,
            action.actor,
            action.verb,
            action.target,
            action.reason,
            action.before,
        )
        if action.number != number + 1:
            faults.append(f"action {number + 1} is missing before {action.number}")
        if action.before != before:
            faults.append(f"action {action.number} does not follow the row before it")
        if action.hash != mark:
            faults.append(f"action {action.number} was changed after it was written")
        before, number = action.hash, action.number
    if number < carried_out:
        faults.append(f"actions {number + 1} to {carried_out} are missing: the observer has carried them out")
    return faults


def _hash(number: int, at_ms: int, *texts: str) -> str:
    content = json.dumps([number, at_ms, *texts], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
