"""Pausing a stage, and letting it go on: one transaction on the chain and the stage's schema."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chassis import pause as stages_word
from chassis.clock import monotonic, utc_now
from chassis.faults import Transient
from chassis.kafka import members_of
from chassis.pause import LOOK_EVERY_S, Pause
from chassis.postgres import Tx
from cli import ledger
from cli.mend import Operator, Refused
from cli.world import OBSERVER, Place, connected
from observer import actions
from schemas.topics import STAGES

FOLLOWED_WITHIN_S = LOOK_EVERY_S + 13.0
"""So long a stage may take to see the word, finish its batch, and leave its group or join it."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What a word to a group has come to: whether it changed anything, and who reads now."""

    group: str
    pause: Pause | None
    changed: bool
    members: int

    @property
    def done(self) -> bool:
        """Whether the group does as it was told: nobody of a paused one reads, somebody of another does."""
        return (self.members == 0) == (self.pause is not None)

    def as_json(self) -> dict[str, Any]:
        """The outcome for a script."""
        return {
            "group": self.group,
            "paused": self.pause.as_json() if self.pause else None,
            "changed": self.changed,
            "members": self.members,
            "done": self.done,
        }


async def pause(place: Place, group: str, operator: Operator, within: float = FOLLOWED_WITHIN_S) -> Followed:
    """Have a stage stop taking records; raises Refused for a group that is not ours to stop."""
    async with ledger.session(place) as tx:
        known = await _pause_of(tx, place, group)
        word = known or Pause(utc_now(), operator.name, operator.reason)
        if known is None:
            await actions.append(tx, operator.name, actions.PAUSE, [{"group": group}], operator.reason)
            await _at(tx, place, group)
            await stages_word.store(tx, word)
    members = await _members(place, group, within, some=False)
    return Followed(group, word, known is None, members)


async def resume(place: Place, group: str, operator: Operator, within: float = FOLLOWED_WITHIN_S) -> Followed:
    """Let a stage go on where it was; raises Refused for a group that is not ours to stop."""
    async with ledger.session(place) as tx:
        known = await _pause_of(tx, place, group)
        if known is not None:
            await actions.append(tx, operator.name, actions.RESUME, [{"group": group}], operator.reason)
            await _at(tx, place, group)
            await stages_word.lift(tx)
    members = await _members(place, group, within, some=True)
    return Followed(group, None, known is not None, members)


async def _pause_of(tx: Tx, place: Place, group: str) -> Pause | None:
    """Read a stage's word in the observer's transaction, so that nobody else gives one until it ends.

    Raises Refused where there can be none.
    """
    if group not in STAGES:
        whose = "a department's own" if group.startswith("department.") else "no stage's"
        raise Refused(f"{group} is {whose} group, not ours to stop: {', '.join(STAGES)} can be paused")
    await actions.alone(tx)
    await _at(tx, place, group)
    if await tx.fetchval("select to_regclass('paused')") is None:
        raise Refused(f"the schema of {group} is older than this command: run `hotline migrate`")
    known = await stages_word.pause_of(tx)
    await _at(tx, place, OBSERVER)
    return known


async def _at(tx: Tx, place: Place, part: str) -> None:
    """Go on in another part's schema, until the transaction ends."""
    await tx.execute("select set_config('search_path', $1, true)", f"{place.database_prefix}{part}")


async def _members(place: Place, group: str, within: float, *, some: bool) -> int:
    """Count who reads for a group, once it is as it should be, or when the time is up; raises Transient."""
    deadline = monotonic() + within
    while True:
        try:
            members = await members_of(place.kafka, group)
        except Transient:
            # The word is given: a coordinator that is away for a moment does not make it undone.
            if monotonic() > deadline:
                raise
        else:
            if (members > 0) == some or monotonic() > deadline:
                return members
        await asyncio.sleep(0.2)


async def pauses(place: Place) -> Mapping[str, Pause]:
    """Read which stages are paused, from their own schemas: what their processes obey."""
    found = {}
    async with connected(place, OBSERVER) as database, database.transaction() as tx:
        for stage in STAGES:
            await _at(tx, place, stage)
            if await tx.fetchval("select to_regclass('paused')") is None:
                continue
            word = await stages_word.pause_of(tx)
            if word is not None:
                found[stage] = word
    return found
