"""Crashes in the middle of work, on the real parts: nothing lost, nothing twice, order kept."""

import asyncio
import json
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from chassis.clock import monotonic
from chassis.relay import STALE
from cli.people import People
from cli.tally import Counting
from cli.traffic import Telephony, generated
from cli.world import World
from deploy.local.stack import LocalStack
from schemas.topics import STAGES
from tests.faults.evidence import Acknowledged, Evidence, gather

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

TIMES = {"HOTLINE_RATE_WITHIN": "PT3S", "HOTLINE_SETTLE": "PT1S"}


class Running:
    """A world of its own with everybody in it, and what was acknowledged to whom."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.stack = LocalStack(folder)

    async def __aenter__(self):
        self.place = await asyncio.to_thread(self.world.start_stack)
        await self.world.prepare(self.place)
        self.start_stages()
        await self.world.wait_ready()
        self.vault = await self.world.vault(self.place)
        self.outside = Acknowledged(self.place.kafka, "telephony")
        self.inside = Acknowledged(self.place.kafka, "people")
        self.people = People(self.place, self.vault, self.inside)
        self.counting = Counting(self.place)
        await asyncio.gather(self.people.start(), self.counting.start(), self.outside.start())
        self.telephony = Telephony(self.outside, self.vault)
        return self

    async def __aexit__(self, *error):
        await asyncio.gather(self.people.stop(), self.counting.stop(), self.outside.stop())
        await self.vault.close()
        self.world.stop_stages()
        self.world.stop_stack()
        self.world.wipe()

    def start_stages(self) -> None:
        self.world.start_stages(self.place, TIMES)

    async def play(self, calls: int, rate: float, seed: int) -> None:
        async for _ in self.telephony.play(generated(calls, rate, seed)):
            pass

    async def until_finished(self, calls: int, within: float) -> None:
        news = told = monotonic()
        tally = self.counting.tally
        while not (len(tally.offered) == calls and tally.finished and monotonic() - news > 2.0):
            if await self.counting.read_on():
                news = monotonic()
            if monotonic() - told > 10:
                told = monotonic()
                print(f"{len(tally.offered)} calls, {len(tally.recorded)} cases, {len(tally.closed)} closed")
            if monotonic() - news > within:
                pytest.fail(f"no news for {within} s: {tally.summary()} {sorted(tally.open_cases)[:5]}")

    async def _settled(self) -> Evidence:
        """What a dead process had sent from a timer or a task, and not marked, the relay sends again."""
        deadline = monotonic() + STALE.total_seconds() + 15
        while True:
            evidence = await gather(self.place)
            if not any(evidence.unpublished.values()) or monotonic() > deadline:
                return evidence
            await asyncio.sleep(1)

    async def verdict(self, calls: int) -> list[str]:
        """Everything that is wrong, at every hop."""
        tally = self.counting.tally
        evidence = await self._settled()
        problems = evidence.problems([*self.outside.acknowledged, *self.inside.acknowledged])
        told = [json.loads(line)["message_id"] for line in self.world.told_file.read_text().splitlines()]
        if len(told) != len(set(told)):
            problems.append(f"{len(told) - len(set(told))} customers were told twice")
        # A message that was sent and not yet marked when its stage died is sent again: one id, two records.
        opened = {said.event_id for said in evidence.log if said.wire == "feedback.case-opened.v1"}
        if len(told) != len(opened):
            problems.append(f"{len(told)} told of {len(opened)} to be told")
        if len(tally.offered) != calls:
            problems.append(f"{len(tally.offered)} calls offered of {calls}")
        problems += [f"without effect: {name}" for name in tally.without_effect]
        counts = evidence.counts
        print(f"{sum(counts.values())} records, {len(told)} customers told, {len(problems)} problems")
        return problems


@pytest.fixture
async def running():
    folder = Path(tempfile.mkdtemp(prefix="hotline-faults-"))
    folder.chmod(0o755)
    async with Running(folder) as everything:
        yield everything
    shutil.rmtree(folder, ignore_errors=True)


async def _ready_again(running: Running) -> None:
    await asyncio.to_thread(running.start_stages)
    await running.world.wait_ready(90)


async def test_ten_kills_of_each_stage_during_twenty_thousand_cases(running):
    calls, dice = 22_500, random.Random(11)
    playing = asyncio.create_task(running.play(calls, 250.0, seed=7))
    victims = list(STAGES) * 10
    dice.shuffle(victims)

    async def kill() -> None:
        for victim in victims:
            await asyncio.sleep(dice.uniform(0.5, 2.0))
            await asyncio.to_thread(running.world.kill_stage, victim)
            await _ready_again(running)

    killing = asyncio.create_task(kill())
    await running.until_finished(calls, 90)
    await asyncio.gather(playing, killing)
    assert len(running.counting.tally.recorded) >= 20_000
    assert await running.verdict(calls) == []


async def test_postgres_crashes_in_the_middle(running):
    calls, dice = 4_000, random.Random(12)
    playing = asyncio.create_task(running.play(calls, 120.0, seed=8))
    for _ in range(5):
        await asyncio.sleep(dice.uniform(2.0, 4.0))
        await asyncio.to_thread(running.stack.postgres.restart_immediate)
    await running.until_finished(calls, 90)
    await playing
    assert await running.verdict(calls) == []


async def test_the_broker_is_killed_in_the_middle(running):
    calls, dice = 4_000, random.Random(13)
    playing = asyncio.create_task(running.play(calls, 80.0, seed=9))
    for _ in range(3):
        await asyncio.sleep(dice.uniform(4.0, 7.0))
        await asyncio.to_thread(running.stack.kafka.restart)
    await running.until_finished(calls, 120)
    await playing
    assert await running.verdict(calls) == []


POINTS = ("before_store", "after_store", "after_publish", "after_mark", "after_commit")


@pytest.mark.parametrize(
    ("stage", "point"),
    [*((stage, point) for stage in STAGES for point in POINTS), ("feedback", "task_done")],
)
async def test_a_stage_dies_at_a_point_of_its_pass(running, stage, point):
    """Before and after the database's commit, the send, the mark, Kafka's commit: three times each."""
    calls = 100
    for round_ in range(3):
        running.world.stop_stages((stage,))
        armed = {"HOTLINE_TESTING": "1", "HOTLINE_FAILPOINTS": f"{point}=kill:{round_ * 2 + 1}"}
        running.world.start_stages(running.place, {**TIMES, **armed}, (stage,))
        playing = asyncio.create_task(running.play(calls, 150.0, seed=20 + round_))
        await _dead(running, stage)
        await playing
        await _ready_again(running)
        await running.until_finished(calls * (round_ + 1), 90)
    assert await running.verdict(calls * 3) == []


async def _dead(running: Running, stage: str) -> None:
    deadline = monotonic() + 60
    while running.world.pid_of(stage) is not None:
        await running.counting.read_on(0.05)
        if monotonic() > deadline:
            pytest.fail(f"{stage} did not reach its failpoint: {running.counting.tally.summary()}")
