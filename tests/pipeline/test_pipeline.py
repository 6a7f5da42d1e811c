"""Four processes, a real Kafka, a real PostgreSQL: the main job, and that crashes change nothing."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.batch import Pass
from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher, Subscription, apply_topics, whole
from chassis.metrics import StageMetrics
from chassis.transport import Outgoing
from chassis.vault import Vault
from cli.people import People
from cli.tally import Counting
from cli.traffic import Telephony, generated, recorded
from schemas.topics import STAGES
from services.intake.app import STAGE as INTAKE
from tests.conftest import eventually
from tests.given import message, offered

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]


def hotline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.slow
def test_the_demo_ends_with_every_call_explained_and_every_case_told(tmp_path):
    tmp_path.chmod(0o755)
    done = hotline("demo", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["calls"] == {"offered": 72, "answered": 47, "abandoned": 5, "refused": 8, "ended": 72}
    cases = summary["cases"]
    assert cases["recorded"] == cases["told"] == cases["closed"] == 47
    assert summary["contacts_closed"] == 25
    assert summary["handoffs"]["without_effect"] == 0
    assert cases["returned"] > 0
    assert cases["reopened"] > 0
    assert cases["withdrawn"] > 0
    assert summary["missing"] == []


class Running:
    """A world with its stages up, and everybody who plays in it."""

    def __init__(self, world, place):
        self.world, self.place = world, place

    async def __aenter__(self):
        self.vault = await self.world.vault(self.place)
        self.people, self.counting = People(self.place, self.vault), Counting(self.place)
        self.publisher = KafkaPublisher(self.place.kafka, "tests")
        await asyncio.gather(self.people.start(), self.counting.start(), self.publisher.start())
        self.telephony = Telephony(self.publisher, self.vault)
        return self

    async def __aexit__(self, *error):
        await asyncio.gather(self.people.stop(), self.counting.stop(), self.publisher.stop())
        await self.vault.close()

    async def until_finished(self, within=60.0):
        news = monotonic()
        while not (self.counting.tally.finished and monotonic() - news > 1.0):
            if await self.counting.read_on():
                news = monotonic()
            if monotonic() - news > within:
                tally = self.counting.tally
                pytest.fail(f"{tally.summary()} {tally.without_effect[:5]} {sorted(tally.open_cases)[:5]}")


@pytest.fixture
async def running(world):
    place = world.place()
    world.start_stages(place, {"HOTLINE_RATE_WITHIN": "PT2S", "HOTLINE_SETTLE": "PT1S"})
    await world.wait_ready()
    async with Running(world, place) as everything:
        yield everything


@pytest.mark.slow
async def test_replaying_a_recording_twice_changes_nothing(running):
    facts = recorded()
    await running.telephony.replay(facts)
    await running.until_finished()
    first = running.counting.tally.summary()
    assert first["dead_letters"] == 0
    await running.telephony.replay(facts)
    await running.until_finished()
    second = running.counting.tally.summary()
    assert second == first
    assert all(not (running.world.folder / f"{stage}.log").read_text().count('"error"') for stage in STAGES)


@pytest.mark.slow
async def test_killing_stages_in_the_middle_loses_nothing_and_repeats_nothing(running):
    world, place = running.world, running.place
    schedule = list(generated(240, 60.0, seed=5))
    playing = asyncio.create_task(_play(running, schedule))
    for stage in ("router", "intake", "resolver", "feedback"):
        await asyncio.sleep(0.7)
        world.kill_stage(stage)
        world.start_stages(place, {"HOTLINE_RATE_WITHIN": "PT2S", "HOTLINE_SETTLE": "PT1S"})
    await playing
    await running.until_finished()
    tally = running.counting.tally
    assert len(tally.offered) == 240
    assert tally.dead == 0
    told = [json.loads(line)["message_id"] for line in world.told_file.read_text().splitlines()]
    assert len(told) == len(set(told))
    # What was published and not marked before the kill is published again, under the same ids.
    opened = {
        headers["ce_id"]
        async for record in whole(place.kafka, "feedback.cases")
        if (headers := dict(record.headers))["ce_type"] == b"feedback.case-opened.v1"
    }
    assert len(told) == len(opened)


async def _play(running, schedule):
    async for _ in running.telephony.play(schedule):
        pass


@pytest.mark.slow
def test_up_status_show_down_and_up_again(tmp_path):
    tmp_path.chmod(0o755)
    up = hotline("up", "--json", cwd=tmp_path)
    assert up.returncode == 0, up.stderr
    try:
        status = hotline("status", "--json", cwd=tmp_path)
        assert status.returncode == 0
        stages = json.loads(status.stdout)["stages"]
        assert {stage["state"] for stage in stages.values()} == {"ok"}
        doctor = hotline("doctor", "--json", cwd=tmp_path)
        assert doctor.returncode == 0, doctor.stdout
        assert hotline("topics", "check", cwd=tmp_path).returncode == 0
        assert hotline("case", "show", "C-20261123-004217-6", cwd=tmp_path).returncode == 1
        before = json.loads(up.stdout)["stages"]["intake"]["pid"]
        assert hotline("down", cwd=tmp_path).returncode == 0
        assert hotline("status", cwd=tmp_path).returncode == 1
        again = hotline("up", "--json", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["stages"]["intake"]["pid"] != before
    finally:
        assert hotline("down", cwd=tmp_path).returncode == 0


def test_a_misconfigured_stage_says_which_setting_in_one_line_and_exits_78(tmp_path):
    import os

    env = {name: value for name, value in os.environ.items() if not name.startswith("HOTLINE_")}
    env |= {
        "HOTLINE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "HOTLINE_HTTP_HOST": "0.0.0.0",
        "HOTLINE_HTTP_PORT": "99999999",
    }
    done = subprocess.run(
        [sys.executable, "-m", "services.router"],
        env=env,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 78
    assert "HOTLINE_DATABASE_URL" in done.stderr
    assert "HOTLINE_HTTP_PORT" in done.stderr
    assert "Traceback" not in done.stderr


# The first regression: what FastStream's defaults lose (one bad record out of ten) is kept here.


BAD = {
    "handler raises": None,
    "broken json": Outgoing("telephony.calls", b"k", b"{", message(offered()).headers),
    "schema mismatch": Outgoing("telephony.calls", b"k", b'{"call_id": 5}', message(offered()).headers),
    "non-UTF-8 header": Outgoing("telephony.calls", b"k", b"{}", [("ce_type", b"\xff"), ("ce_id", b"1")]),
}


@pytest.mark.parametrize("name", BAD)
async def test_one_bad_record_out_of_ten_loses_none(name, kafka, stage_database, master_key):
    from dataclasses import replace

    from schemas.telephony import CallOffered

    await apply_topics(kafka)
    stage, failures = INTAKE, []

    def fails_twice(event, state, now, policy):
        if event.body.call_id == "call-4" and len(failures) < 2:
            failures.append(1)
            raise RuntimeError
        return INTAKE.decisions[CallOffered](event, state, now, policy)

    if BAD[name] is None:
        stage = replace(INTAKE, decisions={**INTAKE.decisions, CallOffered: fails_twice})
    publisher = KafkaPublisher(kafka, "tests")
    messages = [message(offered(f"call-{n}")) for n in range(10)]
    if BAD[name] is not None:
        messages[4] = BAD[name]
    await publisher.publish(messages)
    metrics = StageMetrics("intake")
    handle = Pass(stage, stage_database, publisher, Vault(stage_database, master_key).seal_record, metrics)
    subscription = Subscription(kafka, "intake", stage.inputs, handle, handle.settle)
    await subscription.start()

    async def all_committed():
        return sum((await subscription.lag()).values()) == 0

    await eventually(all_committed, 30, "the group has committed everything")
    await subscription.stop()
    await publisher.stop()
    async with stage_database.session() as tx:
        handled = {row["key"] for row in await tx.fetch("select key from entities")}
        kept = await tx.fetchval("select count(*) from quarantine")
    expected = {f"call-{n}" for n in range(10)} - ({"call-4"} if BAD[name] else set())
    assert handled == expected
    assert kept == (1 if BAD[name] else 0)
    assert len(failures) == (0 if BAD[name] else 2)
