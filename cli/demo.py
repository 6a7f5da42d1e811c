"""The main job: a recorded PBX in, told customers out, in a fresh world."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.clock import monotonic, utc_now
from chassis.kafka import KafkaPublisher
from cli.people import People
from cli.proof import Proof
from cli.tally import Counting
from cli.traffic import Telephony, generated, recorded
from cli.world import DOOR, OBSERVER, Place, World
from schemas.topics import STAGES

DEMO_TIMES: Mapping[str, str] = {"HOTLINE_RATE_WITHIN": "PT3S", "HOTLINE_SETTLE": "PT1S"}
"""In the demo customers who stay silent are waited for three seconds instead of seven days."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is played beside the recording."""

    calls: int = 0
    rate: float = 50.0
    seed: int = 1
    drop: int = 0


WATCHING = (OBSERVER, DOOR)
"""What runs beside the stages: no lessons, a demo is over before there is anything to learn."""


class Demo:
    """Plays the hotline once, from the first ring to the last closed case."""

    def __init__(self, folder: Path, load: Load, progress: Any) -> None:
        self._load, self._progress = load, progress
        prefix = f"demo-{utc_now():%H%M%S}." if World(folder).given else ""
        self.world = World(folder, progress, prefix)

    async def run(self, within: float, *, keep: bool) -> dict[str, Any]:
        """Play and count; the summary has `complete` and, if not, what is missing."""
        started = monotonic()
        await asyncio.to_thread(self._fresh)
        try:
            place = await asyncio.to_thread(self.world.start_stack)
            await self.world.prepare(place)
            self._progress("starting the four stages, the door and the observer")
            await asyncio.to_thread(self._start, place)
            await self.world.wait_ready(stages=(*STAGES, *WATCHING))
            ready = monotonic()
            summary = await self._play(place, within)
        finally:
            if not keep:
                self._progress("stopping")
                await asyncio.to_thread(self._down)
        summary["seconds"] = round(monotonic() - started, 1)
        summary["seconds_playing"] = round(monotonic() - ready, 1)
        return summary

    def _start(self, place: Place) -> None:
        if self._load.drop:
            # A failpoint of the router's alone; without the test setting it does not exist.
            swallow = {"HOTLINE_TESTING": "1", "HOTLINE_FAILPOINTS": f"lose_input=first:{self._load.drop}"}
            losses = {"HOTLINE_LOSSES": str(self._losses)}
            self.world.start_stages(place, {**DEMO_TIMES, **swallow, **losses}, ("router",))
        self.world.start_stages(place, DEMO_TIMES)
        for name in WATCHING:
            self.world.start_beside(name, place)

    @property
    def taken(self) -> bool:
        """Whether the folder holds anything that no demo has made: it is never erased."""
        folder = self.world.folder
        return not self._mark.exists() and folder.exists() and any(folder.iterdir())

    @property
    def _mark(self) -> Path:
        return self.world.folder / "demo"

    @property
    def _losses(self) -> Path:
        return self.world.folder / "losses"

    def _fresh(self) -> None:
        self._down()
        self.world.wipe()
        self.world.folder.mkdir(parents=True, exist_ok=True)
        self._mark.touch()

    def _down(self) -> None:
        self.world.stop_stages()
        self.world.stop_stack()

    async def _play(self, place: Place, within: float) -> dict[str, Any]:
        vault = await self.world.vault(place)
        people, counting = People(place, vault), Counting(place)
        publisher = KafkaPublisher(place.kafka, "hotline-telephony")
        await asyncio.gather(people.start(), counting.start(), publisher.start())
        telephony = Telephony(publisher, vault)
        try:
            facts = recorded()
            self._progress(f"replaying the recorded PBX: {len(facts)} call events")
            await telephony.replay(facts)
            playing = asyncio.create_task(self._play_load(telephony))
            ledger = Proof(self.world, place, self._losses, self._progress)
            if self._load.drop:
                await ledger.mend(self._load.drop, within)
            await self._count(counting, playing, within)
            await telephony.manifest()
            found = await ledger.verdict()
        finally:
            await asyncio.gather(people.stop(), counting.stop(), publisher.stop())
            await vault.close()
        return _result(counting, found)

    async def _play_load(self, telephony: Telephony) -> None:
        load = self._load
        if not load.calls:
            return
        self._progress(f"generating {load.calls} more calls, {load.rate:g} a second, seed {load.seed}")
        async for sent in telephony.play(generated(load.calls, load.rate, load.seed)):
            if sent % 5000 < 500:
                self._progress(f"{sent} call events sent")

    async def _count(self, counting: Counting, playing: asyncio.Task[None], within: float) -> None:
        """Count until everything has ended and the log is quiet, or for too long without news."""
        news = told = monotonic()
        while True:
            tally = counting.tally
            if await counting.read_on():
                news = monotonic()
            if monotonic() - told > 2:
                told = monotonic()
                self._progress(
                    f"{len(tally.offered)} calls, {len(tally.recorded)} cases,"
                    f" {len(tally.delivered)} delivered, {len(tally.told)} told, {len(tally.closed)} closed"
                )
            if playing.done():
                playing.result()
                if tally.finished and monotonic() - news > 0.5:
                    return
                if monotonic() - news > within:
                    return


def _result(counting: Counting, ledger: dict[str, Any]) -> dict[str, Any]:
    tally = counting.tally
    summary = {**tally.summary(), "ledger": ledger}
    missing = []
    if ledger["blind"]:
        missing.append(f"the observer is blind: {ledger['blind']}")
    if ledger["false"]:
        missing.append(f"the observer named {ledger['false']} handoffs that were not lost")
    if ledger["found"] < ledger["injected"] or ledger["recovered"] < ledger["found"]:
        missing.append(
            f"of {ledger['injected']} swallowed handoffs {ledger['found']} were named,"
            f" {ledger['recovered']} recovered"
        )
    if tally.offered - tally.ended:
        missing.append(f"{len(tally.offered - tally.ended)} calls did not end")
    if tally.unexplained_calls:
        silent = sorted(tally.unexplained_calls)
        missing.append(f"{len(silent)} calls without case or reason: {silent[:3]}")
    if tally.open_cases:
        missing.append(f"{len(tally.open_cases)} cases not closed: {sorted(tally.open_cases)[:3]}")
    if tally.without_effect:
        missing.append(f"{len(tally.without_effect)} handoffs without effect: {tally.without_effect[:3]}")
    return {**summary, "complete": not missing, "missing": missing}
