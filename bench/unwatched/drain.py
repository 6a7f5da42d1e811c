"""Drains by turns: two kinds of stages stand ready on one Kafka and one PostgreSQL, each in its own world."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.drain import Drain, Drained, Incomplete, Variant
from bench.measure import Cost, Meter, cpu_of
from chassis.clock import monotonic
from chassis.roots import new_batch_id
from chassis.transport import Outgoing
from cli.world import Place, World
from schemas.topics import STAGES

PRODUCT, UNWATCHED = "services", "bench.unwatched.stages"
"""What is started: the product's stages, or the same without what they do for the ledger alone."""


class StandingDrain(Drain):
    """Drains whose stages stay up in between, so that the turns of two kinds can be short.

    What slows a shared machine for a while then slows both alike. The stages are held while their
    backlog is published, and checked for completeness after each drain, as everywhere.
    """

    def __init__(self, world: World, place: Place, meter: Meter, module: str, cases: int) -> None:
        super().__init__(world, place, meter, "product", cases)
        self._module = module
        self._pids: list[int] = []

    async def start(self) -> None:
        """Make the world's topics and schemas, start the stages, and handle what the first turns need."""
        self._world.folder.mkdir(parents=True, exist_ok=True)
        await self._world.prepare(self._place)
        self._pids = await asyncio.to_thread(self._started)
        await self._world.wait_ready()
        await self.prime()

    def _started(self) -> list[int]:
        self._world.start_stages(self._place, {"PYTHONPATH": str(Path.cwd())}, program=self._module)
        return [pid for stage in STAGES if (pid := self._world.pid_of(stage))]

    async def _drain(self, variant: Variant, backlog: list[Outgoing], expected: int) -> Drained:
        since, done_before = new_batch_id(), await self._done_so_far(variant, 0)
        with _held(self._pids):
            await self._publish(backlog)
            before, each_before = await self._meter.read(self._pids), [cpu_of(pid) for pid in self._pids]
            started = monotonic()
        while not (await self._done_so_far(variant, 0) - done_before >= expected and await self._idle()):
            await asyncio.sleep(0.1)
            if monotonic() - started > 300:
                raise Incomplete(f"{await self._handled_since(since)} of {expected} handled after 300 s")
        seconds, cost = monotonic() - started, await self._meter.read(self._pids) - before
        spent = [cpu_of(pid) - earlier for pid, earlier in zip(self._pids, each_before, strict=True)]
        if (handled := await self._handled_since(since)) != expected:
            raise Incomplete(f"{handled} inputs handled, {expected} expected")
        return Drained(self._cases, handled, seconds, cost, 0.0, dict(zip(STAGES, spent, strict=True)))

    async def _handled_since(self, batch: int) -> int:
        return sum([await self._count(stage, batch) for stage in STAGES])


@contextmanager
def _held(pids: Sequence[int]) -> Iterator[None]:
    """Let these processes stand still for a moment; shorter than Kafka's patience with them."""
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def together(turns: Sequence[Drained]) -> Drained:
    """Several drains as one."""
    cost = Cost(
        sum(turn.cost.workers for turn in turns),
        sum(turn.cost.postgres for turn in turns),
        sum(turn.cost.broker for turn in turns),
        sum(turn.cost.wal for turn in turns),
    )
    each = {stage: sum(turn.each[stage] for turn in turns) for stage in STAGES}
    return Drained(
        sum(turn.cases for turn in turns),
        sum(turn.handled for turn in turns),
        sum(turn.seconds for turn in turns),
        cost,
        max(turn.pss_mib for turn in turns),
        each,
    )
