"""One stage as a process: it stops cleanly, gives up when it must, and notices that it stands still."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from subprocess import Popen

import asyncpg
import pytest

from chassis.clock import monotonic
from chassis.kafka import KafkaPublisher
from cli.world import DOOR, World
from tests.conftest import eventually
from tests.given import message, offered

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]


class Alone:
    """The intake stage alone, as a child of the test, so that its exit code can be read."""

    def __init__(self, world: World, place) -> None:
        self.world, self.place = world, place
        self.log = world.folder / "alone.log"

    def start(self, program: Sequence[str] = ("-m", "services.intake"), **settings: str) -> Popen[bytes]:
        environment = {
            **self.world.environment(self.place),
            "HOTLINE_PORT_FILE": str(self.world.folder / "intake.port"),
            **settings,
        }
        with self.log.open("ab") as log:
            return Popen(
                [sys.executable, *program],
                env=environment,
                cwd=self.world.folder,
                stdout=log,
                stderr=log,
            )

    async def ready(self) -> None:
        async def is_ready():
            return (await self.world.health("intake")).get("ready")

        await eventually(is_ready, 30, "intake is ready")

    async def say(self, *names: str) -> None:
        publisher = KafkaPublisher(self.place.kafka, "tests")
        await publisher.publish([message(offered(name)) for name in names])
        await publisher.stop()

    async def value(self, sql: str):
        connection = await asyncpg.connect(self.place.database_url)
        try:
            await connection.execute(f'set search_path to "{self.place.database_prefix}intake"')
            return await connection.fetchval(sql)
        finally:
            await connection.close()


@pytest.fixture
async def alone(world):
    return Alone(world, world.place())


async def _ended(process: Popen[bytes], within: float) -> int:
    return await asyncio.to_thread(process.wait, within)


async def test_a_stage_that_is_told_to_stop_finishes_its_batch_and_exits_0(alone):
    process = alone.start()
    await alone.ready()
    await alone.say(*(f"call-{number}" for number in range(2000)))
    process.send_signal(signal.SIGTERM)
    assert await _ended(process, 25) == 0
    assert await alone.value("select count(*) from unpublished") == 0
    handled = await alone.value("select count(*) from entities")
    again = alone.start()
    await alone.ready()

    async def all_handled():
        return await alone.value("select count(*) from entities") == 2000

    await eventually(all_handled, 20, f"the rest of 2000 is handled after {handled}")
    again.send_signal(signal.SIGTERM)
    assert await _ended(again, 25) == 0


async def test_a_stage_that_stands_still_while_records_wait_exits_70(alone):
    process = alone.start(
        HOTLINE_TESTING="1", HOTLINE_FAILPOINTS="before_store=hang", HOTLINE_STALLED_AFTER_S="3"
    )
    await alone.ready()
    await alone.say("call-1")
    began = monotonic()
    assert await _ended(process, 60) == 70
    assert monotonic() - began > 3
    words = [json.loads(line) for line in alone.log.read_text().splitlines() if line.startswith("{")]
    assert any(word["event"] == "stalled" and word["lag"] == 1 for word in words)


RAISING = """
from chassis.process import run_stage
from schemas.telephony import CallOffered
from services.intake.app import STAGE, build
from services.intake.settings import IntakeSettings

decide = STAGE.decisions[CallOffered]

def explode(event, *given):
    if event.key == "bad":
        raise ZeroDivisionError
    return decide(event, *given)

STAGE.decisions[CallOffered] = explode
run_stage(build, IntakeSettings)
"""


async def test_a_stage_without_work_but_what_raises_is_never_called_stalled(alone):
    process = alone.start(["-c", RAISING], HOTLINE_STALLED_AFTER_S="1")
    await alone.ready()
    await alone.say("bad")
    await asyncio.sleep(8)
    assert process.poll() is None
    assert "decision_raised" in alone.log.read_text()
    process.send_signal(signal.SIGTERM)
    assert await _ended(process, 25) == 0


async def test_a_stage_on_a_schema_that_is_not_up_to_date_says_so_and_exits_78(alone):
    await alone.value("delete from migrations where name like 'chassis/0002%'")
    process = alone.start()
    assert await _ended(process, 30) == 78
    assert "lacks chassis/0002_concurrent.sql: run `hotline up`" in alone.log.read_text()


async def test_what_runs_beside_the_stages_has_settings_of_its_own(alone, monkeypatch, unused_tcp_port):
    monkeypatch.setenv("HOTLINE_DOOR__HTTP_PORT", str(unused_tcp_port))
    monkeypatch.setenv("HOTLINE_OBSERVER__HTTP_PORT", "1")
    await asyncio.to_thread(alone.world.start_beside, DOOR, alone.place)
    await alone.world.wait_ready(stages=(DOOR,))
    assert alone.world.port_of(DOOR) == unused_tcp_port


async def test_a_failpoint_outside_tests_does_nothing(alone):
    process = alone.start(HOTLINE_FAILPOINTS="before_store=kill")
    await alone.ready()
    await alone.say("call-1")

    async def handled():
        return await alone.value("select count(*) from entities") == 1

    await eventually(handled, 20, "the call is handled")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert await _ended(process, 25) == 0


async def test_no_log_line_names_a_person(alone):
    """Numbers and names of the load's customers appear in no log, whatever went wrong."""
    process = alone.start(HOTLINE_LOG_LEVEL="DEBUG")
    await alone.ready()
    publisher = KafkaPublisher(alone.place.kafka, "tests")
    secret = "+8613912345678"
    bad = message(offered("call-1"))
    await publisher.publish(
        [
            bad._replace(value=json.dumps({"call_id": 7, "dialled": secret, "source": "x"}).encode()),
            bad._replace(headers=[*bad.headers[:1], ("ce_type", secret.encode())]),
            bad._replace(key=secret.encode(), value=secret.encode()),
        ]
    )
    await publisher.stop()

    async def quarantined():
        return await alone.value("select count(*) from quarantine") == 3

    await eventually(quarantined, 20, "three records are quarantined")
    process.send_signal(signal.SIGTERM)
    assert await _ended(process, 25) == 0
    assert secret not in alone.log.read_text()
    assert secret[3:] not in alone.log.read_text()
    assert await alone.value("select count(*) from quarantine where explanation like '%139%'") == 0
    assert os.environ.get("HOTLINE_TESTING") != "1"
