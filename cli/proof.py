"""Shows that the ledger finds what was swallowed: waits for the verdicts, explains, sends again, counts."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chassis.clock import monotonic
from chassis.postgres import Tx
from cli import evidence, ledger, mend
from cli.world import Place, Progress, World
from schemas.operations import CANARY_GROUP


class Proof:
    """One demo's losses, as they were injected and as the observer has named them."""

    def __init__(self, world: World, place: Place, losses: Path, progress: Progress) -> None:
        self._world, self._place, self._losses, self._progress = world, place, losses, progress

    @property
    def _injected(self) -> set[str]:
        """The truth: the failpoint's own list of what it has swallowed."""
        if not self._losses.exists():
            return set()
        return {line.split()[1] for line in self._losses.read_text().splitlines()}

    async def mend(self, count: int, within: float) -> None:
        """Wait until so many losses are named, explain one, check it by hand, and send all again."""
        lost = await self._named(count, within)
        if not lost:
            return
        async with ledger.session(self._place) as tx:
            verdicts = await ledger.verdicts_of(tx, lost[0])
        last = verdicts[-1]
        self._progress(
            f"LOST {lost[0]['edge']} {lost[0]['event_id']}: the group committed"
            f" {last['committed']}, the event"
            f" is {lost[0]['topic']}/{lost[0]['partition']}/{lost[0]['offset']}, and no answer names it on"
            f" {len(last['barrier'])} partitions that were read to their ends"
        )
        again = await evidence.check_again(self._place, lost[0])
        self._progress(f"checked again by reading everything: {len(again)} answers found")
        await mend.redrive(
            self._world, lost, mend.Operator.named("demo", "swallowed on purpose"), dry_run=False
        )
        self._progress(f"{len(lost)} sent again under their own ids")
        await self._recovered(within)

    async def _named(self, count: int, within: float) -> list[dict[str, Any]]:
        deadline = monotonic() + within
        while True:
            async with ledger.session(self._place) as tx:
                lost = await ledger.listed(tx, ledger.LOST_WORDS)
            if len(lost) >= count or monotonic() > deadline:
                self._progress(f"{len(self._injected)} handoffs swallowed, {len(lost)} named as lost")
                return lost
            await asyncio.sleep(0.1)

    async def _recovered(self, within: float) -> None:
        deadline = monotonic() + within
        while monotonic() < deadline:
            async with ledger.session(self._place) as tx:
                if not await ledger.listed(tx, ledger.LOST_WORDS):
                    self._progress("all of them recovered")
                    return
            await asyncio.sleep(0.1)

    async def verdict(self, within: float = 10.0) -> dict[str, Any]:
        """Count what was injected, named, recovered, and how fast, once the observer has read everything."""
        deadline = monotonic() + within
        while True:
            async with ledger.session(self._place) as tx:
                seen = await ledger.overview(tx)
                rows = await _named_ever(tx)
            quiet = (
                not seen.blind
                and not seen.document.get("behind_records")
                and not seen.document.get("pending")
            )
            if quiet or monotonic() > deadline:
                return self._counted(seen, rows)
            await asyncio.sleep(0.1)

    def _counted(self, seen: ledger.Overview, rows: Sequence[Any]) -> dict[str, Any]:
        injected = self._injected
        named = {ledger.event_id_of(row) for row in rows}
        recovered = {ledger.event_id_of(row) for row in rows if row["now"] == "recovered"}
        times = [(row["judged_ms"] - row["commit_seen_ms"]) / 1000 for row in rows if row["commit_seen_ms"]]
        return {
            "injected": len(injected),
            "found": len(named & injected),
            "false": len(named - injected),
            "recovered": len(recovered),
            "detection_s": {
                "p50": statistics.median(times) if times else None,
                "max": max(times) if times else None,
            },
            "edges": len(seen.document.get("edges", {})),
            "blind": seen.blind,
        }


async def _named_ever(tx: Tx) -> Sequence[Any]:
    """Every verdict of loss, whatever became of it since."""
    return await tx.fetch(
        "select v.key, v.name, v.judged_ms, v.commit_seen_ms, h.state as now from verdicts v"
        " join handoffs h using (key, grp) where v.state = any($1::text[]) and v.grp <> $2",
        list(ledger.LOST_WORDS),
        CANARY_GROUP,
    )
