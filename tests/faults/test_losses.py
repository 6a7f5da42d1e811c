"""Eight kinds of loss in the running pipeline, and everything that must not alarm: none false, none missed."""

import asyncio
import os
import random
import shutil
import signal
import statistics
import tempfile
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete

from chassis.clock import epoch_ms, monotonic, utc_now
from chassis.kafka import KafkaPublisher, lag_of
from chassis.message import Writer, time_header
from chassis.roots import new_id
from chassis.transport import Place as Partition
from cli import ledger, mend
from cli.people import People
from cli.traffic import Telephony, generated
from cli.world import OBSERVER, PROCESSES, World
from deploy.local.stack import LocalStack
from schemas import telephony
from schemas.topics import STAGES, TOPICS, inputs_of
from tests.faults.truth import Truth, read_all

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

TIMES = {"HOTLINE_RATE_WITHIN": "PT3S", "HOTLINE_SETTLE": "PT1S"}


class Watched:
    """A world with an observer in it; stages that a failpoint kills are started again."""

    def __init__(self, folder: Path) -> None:
        self.world, self.stack, self.folder = World(folder), LocalStack(folder), folder
        self.armed: dict[str, str] = {}
        self.down: set[str] = set()
        self.deaths = 0
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        self.place = await asyncio.to_thread(self.world.start_stack)
        await self.world.prepare(self.place)
        await self.raise_the_dead()
        await self.world.wait_ready(stages=(*STAGES, OBSERVER))
        self.vault = await self.world.vault(self.place)
        self.publisher = KafkaPublisher(self.place.kafka, "telephony")
        self.people = People(self.place, self.vault)
        await asyncio.gather(self.people.start(), self.publisher.start())
        self.telephony = Telephony(self.publisher, self.vault)
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        # A start that is under way in its thread goes on when its task is cancelled: let it end first.
        self.down.update(PROCESSES)
        async with self._starting:
            self._supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await self._supervisor
        await asyncio.gather(self.people.stop(), self.publisher.stop())
        await self.vault.close()
        self.world.stop_stages()
        self.world.stop_stack()
        self.world.wipe()

    def _settings(self, stage: str) -> dict[str, str]:
        losses = {"HOTLINE_LOSSES": str(self.folder / "losses")}
        armed = (
            {"HOTLINE_TESTING": "1", "HOTLINE_FAILPOINTS": self.armed[stage]} if stage in self.armed else {}
        )
        return {**TIMES, **losses, **armed}

    async def raise_the_dead(self) -> None:
        async with self._starting:
            await self._raise_the_dead()

    async def _raise_the_dead(self) -> None:
        for stage in STAGES:
            if stage not in self.down and self.world.pid_of(stage) is None:
                self.deaths += 1
                await asyncio.to_thread(self.world.start_stages, self.place, self._settings(stage), (stage,))
        if OBSERVER not in self.down:
            await asyncio.to_thread(
                self.world.start_beside, OBSERVER, self.place, {"HOTLINE_CANARY_EVERY_S": "5"}
            )

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            await self.raise_the_dead()

    async def arm(self, what: str, *stages: str) -> None:
        """Start these stages anew with a failpoint."""
        self.armed.update(dict.fromkeys(stages, what))
        await self.restart(*stages)

    async def disarm(self) -> None:
        stages, self.armed = tuple(self.armed), {}
        await self.restart(*stages)

    async def restart(self, *stages: str) -> None:
        self.down.update(stages)
        await asyncio.to_thread(self.world.stop_stages, stages)
        self.down.difference_update(stages)
        await self.raise_the_dead()
        await self.world.wait_ready(90, stages)

    async def play(self, calls: int, rate: float, seed: int) -> None:
        async for _ in self.telephony.play(generated(calls, rate, seed)):
            pass

    async def quiet(self, within: float = 120, groups=STAGES) -> None:
        """Wait until every group has committed everything and the observer has judged everything."""
        deadline, since = monotonic() + within, monotonic()
        while monotonic() - since < 3.0:
            await asyncio.sleep(0.3)
            if not await self._is_quiet(groups):
                since = monotonic()
            if monotonic() > deadline:
                pytest.fail(f"not quiet within {within} s: {await self._lags(groups)} {await self.seen()}")

    async def _lags(self, groups):
        return {
            group: sum((await lag_of(self.place.kafka, group, inputs_of(group))).values()) for group in groups
        }

    async def _is_quiet(self, groups) -> bool:
        try:
            if any((await self._lags(groups)).values()):
                return False
            seen = await self.seen()
        except Exception:
            return False
        document = seen.document
        return not seen.blind and not document.get("behind_records", 1) and not document.get("pending", 1)

    async def seen(self):
        async with ledger.session(self.place) as tx:
            return await ledger.overview(tx)

    async def named(self, *states: str) -> set[tuple[str, str]]:
        async with ledger.session(self.place) as tx:
            rows = await ledger.listed(tx, states or ledger.LOST_WORDS, limit=100_000)
        return {(row["event_id"], row["group"]) for row in rows if not row["edge"].startswith("number")}

    async def verdicts(self):
        async with ledger.session(self.place) as tx:
            return await tx.fetch(
                "select v.*, h.state as now from verdicts v join handoffs h using (key, grp)"
                " where v.grp <> 'canary' and v.edge not like 'number%'"
            )

    async def judged(self, at_least: int, truth: Truth | None = None, *, calm: bool = True) -> None:
        """The one comparison: what the ledger says is lost is what really has no answer.

        Where not calm, the observer itself and what it stands on were down in between.
        """
        truth = await read_all(self.place, truth)
        named, lost = await self.named(), truth.unanswered
        verdicts = await self.verdicts()
        times = sorted(
            (row["judged_ms"] - row["commit_seen_ms"]) / 1000 for row in verdicts if row["commit_seen_ms"]
        )
        p99 = times[int(len(times) * 0.99)] if times else 0.0
        print(
            f"{sum(truth.records.values())} records, {len(lost)} lost, {len(named)} named, {self.deaths} starts;"
            f" seen to verdict p50 {statistics.median(times or [0]):.2f} s p99 {p99:.2f} s max {max(times or [0]):.2f} s"
        )
        assert named - lost == set(), "named and not lost"
        assert lost - named == set(), "lost and not named"
        assert {
            (ledger.event_id_of(row), row["grp"]) for row in verdicts if row["now"] == row["state"]
        } <= lost
        assert len(lost) >= at_least
        assert p99 <= 2.0 or not calm
        assert max(times or [0]) <= 5.0


@asynccontextmanager
async def watching():
    folder = Path(tempfile.mkdtemp(prefix="hotline-faults-"))
    folder.chmod(0o755)
    watched = Watched(folder)
    await watched.start()
    try:
        yield watched
    finally:
        await watched.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def watched():
    async with watching() as everything:
        yield everything


async def test_skipped_outputs_are_named_and_what_was_stored_is_sent_again(watched):
    await watched.arm("lose_output=every:17", *STAGES)
    await watched.play(700, 120, seed=41)
    await watched.quiet()
    await watched.judged(at_least=250)
    await watched.disarm()
    for _ in range(4):
        async with ledger.session(watched.place) as tx:
            lost = [
                row
                for row in await ledger.listed(tx, ledger.LOST_WORDS, limit=10_000)
                if "number" not in row["edge"]
            ]
        if not lost:
            break
        lines = await mend.redrive(watched.world, lost, mend.Operator("test"), dry_run=False)
        assert all(line["sent"] for line in lines)
        await watched.quiet()
    assert await watched.named() == set()
    assert (await read_all(watched.place)).unanswered == set()


async def test_one_of_several_outputs_lost_is_partial(watched):
    await watched.arm("lose_part=every:4", "resolver", "feedback")
    await watched.play(700, 120, seed=42)
    await watched.quiet()
    await watched.judged(at_least=150)
    partial = await watched.named("partial")
    assert partial == await watched.named()


@pytest.mark.parametrize(("kind", "seed", "every"), [("commit", 43, 18), ("rest", 44, 13)])
async def test_commits_before_the_work_lose_what_was_not_done(watched, kind, seed, every):
    """`commit`: the batch is committed and the process dies; `rest`: half of it was done before."""
    await watched.arm(f"lose_{kind}=every:{every}", *STAGES)
    await watched.play(3_000, 150, seed=seed)
    await watched.quiet(300)
    await watched.judged(at_least=150)
    assert watched.deaths > 20


async def test_an_operators_skip_drops_what_it_passes(watched):
    for round_, stage in enumerate(("router", "resolver", "intake")):
        watched.down.add(stage)
        await asyncio.to_thread(watched.world.stop_stages, (stage,))
        await watched.play(120, 120, seed=45 + round_)
        await watched.quiet(groups=[other for other in STAGES if other != stage])
        drops = []
        for topic in inputs_of(stage):
            plan = await mend.plan_skip(watched.place, stage, topic, None, None)
            drops += plan.drops
            await mend.skip(watched.place, plan, mend.Operator("test", "poison"))
        expected = {(drop["event_id"], drop["group"]) for drop in drops}
        watched.down.discard(stage)
        await watched.quiet()
        assert expected
        assert expected <= await watched.named()
    await watched.judged(at_least=150)


async def test_deleted_outbox_rows_are_found(watched):
    connection = await asyncpg.connect(watched.place.database_url)
    for round_ in range(6):
        for stage in STAGES:
            watched.down.add(stage)
            await asyncio.to_thread(watched.world.stop_stages, (stage,))
            watched.armed[stage] = "after_store=kill:3"
            await asyncio.to_thread(
                watched.world.start_stages, watched.place, watched._settings(stage), (stage,)
            )
            playing = asyncio.create_task(watched.play(60, 150, seed=100 + round_ * 10 + STAGES.index(stage)))
            while watched.world.pid_of(stage) is not None:
                await asyncio.sleep(0.05)
            await playing
            await connection.execute(f'set search_path to "{stage}"')
            await connection.execute("delete from outbox where batch in (select batch from unpublished)")
            await connection.execute("delete from unpublished")
            watched.armed.pop(stage)
            watched.down.discard(stage)
    await connection.close()
    await watched.quiet()
    await watched.judged(at_least=100)


async def test_what_retention_deletes_unread_is_expired(watched):
    truth = Truth()
    for round_, stage in enumerate(("router", "resolver", "feedback")):
        watched.down.add(stage)
        await asyncio.to_thread(watched.world.stop_stages, (stage,))
        await watched.play(80, 120, seed=60 + round_)
        await watched.quiet(groups=[other for other in STAGES if other != stage])
        await read_all(watched.place, truth)
        admin = AIOKafkaAdminClient(bootstrap_servers=watched.place.bootstrap)
        await admin.start()
        topics = {topic: await _ends(watched, topic) for topic in inputs_of(stage)}
        await admin.delete_records(
            {
                TopicPartition(topic, partition): RecordsToDelete(before_offset=end)
                for topic, ends in topics.items()
                for partition, end in ends.items()
                if end
            }
        )
        await admin.close()
        watched.down.discard(stage)
        await watched.quiet()
    expired = await watched.named("expired unread")
    await watched.judged(at_least=100, truth=truth)
    assert len(expired) >= 100


async def _ends(watched, topic) -> dict[int, int]:
    from chassis.kafka import Offsets

    offsets = Offsets(watched.place.kafka)
    await offsets.start()
    try:
        return {
            place.partition: end
            for place, end in (await offsets.highs(await offsets.partitions([topic]))).items()
        }
    finally:
        await offsets.stop()


async def test_lost_timers_are_proved_and_fired_ones_are_not(watched):
    """Calls that ended an hour ago and that nobody records; half of the timers vanish from the table."""
    await watched.people.stop()
    connection = await asyncpg.connect(watched.place.database_url)
    await connection.execute(
        'create function "intake".forget() returns trigger language plpgsql as $$ begin'
        " if new.key like '%-lost' then new.wake_at := null; end if; return new; end $$;"
        ' create trigger forget before insert or update on "intake".entities'
        ' for each row execute function "intake".forget()'
    )
    calls = [f"call-{number}-{'lost' if number % 2 else 'kept'}" for number in range(240)]
    writer, at = Writer("telephony"), utc_now() - timedelta(hours=1)
    events = {}
    for call in calls:
        fields = {"call_id": call, "source": "pbx", "occurred_at": at}
        bodies = [
            telephony.CallOffered(**fields),
            telephony.CallAnswered(**fields, queue="q", visit=1, agent="a", wait_ms=10),
            telephony.CallEnded(**fields, cause="normal"),
        ]
        messages = [writer.write(body, uid=new_id(), at=time_header(at), correlation=call) for body in bodies]
        events[call] = dict(messages[-1].headers)["ce_id"].decode()
        await watched.publisher.publish(messages)
    await watched.quiet()
    wanted = {events[call] for call in calls if call.endswith("-lost")}
    deadline = monotonic() + 60
    while await _timers_lost(connection) != wanted and monotonic() < deadline:
        await asyncio.sleep(0.5)
    assert await _timers_lost(connection) == wanted
    assert len(wanted) == 120
    rows = await connection.fetch(
        "select name, state from observer.handoffs where due_ms is not null and state <> 'timer lost'"
    )
    assert {row["name"] for row in rows if row["state"] == "overdue"} == set(events.values()) - wanted
    await connection.close()
    await watched.people.start()


async def _timers_lost(connection) -> set[str]:
    rows = await connection.fetch("select name from observer.handoffs where state = 'timer lost'")
    return {row["name"] for row in rows}


async def test_an_outage_is_late_with_its_exact_age_and_nothing_is_called_lost(watched):
    """Ten minutes in compressed form: the resolver is frozen, then goes on."""
    playing = asyncio.create_task(watched.play(1_500, 50, seed=71))
    await asyncio.sleep(5)
    pid = watched.world.pid_of("resolver")
    os.kill(pid, signal.SIGSTOP)
    errors, words = [], set()
    for _ in range(20):
        await asyncio.sleep(1)
        seen = await watched.seen()
        assert seen.lost == 0
        lags = [lag for lag in seen.document["lag"] if lag["group"] == "resolver" and lag["records"]]
        words |= {lag["word"] for lag in lags}
        errors += [await _age_error(watched, lag, seen.at_ms) for lag in lags[:2]]
    os.kill(pid, signal.SIGCONT)
    await playing
    await watched.quiet()
    print(f"{len(errors)} ages compared, largest error {max(errors):.3f} s, words {sorted(words)}")
    assert max(errors) <= 1.0
    assert {"stalled"} <= words
    await watched.judged(at_least=0)
    assert await watched.named() == set()
    assert await watched.verdicts() == []


async def _age_error(watched, lag, at_ms) -> float:
    from chassis.kafka import record_at

    record = None
    offset = lag["commit"]
    while record is None and offset < lag["end"]:
        record = await record_at(watched.place.kafka, Partition(lag["topic"], lag["partition"]), offset)
        offset += 1
    # What the observer has not read yet has no age to show: it must be new.
    return abs((at_ms - record.timestamp) / 1000 - (lag["oldest_age_s"] or 0.0)) if record else 0.0


async def test_everything_at_once_names_exactly_what_is_lost(watched):
    """Kills, restarts of all parts, rebalances, growth, repeats, clocks five minutes off: and losses among them."""
    dice = random.Random(81)
    await watched.arm("lose_output=every:211", "router", "feedback")
    playing = [
        asyncio.create_task(watched.play(4_000, 70, seed=82)),
        asyncio.create_task(_skewed_repeats(watched)),
    ]

    async def disturb() -> None:
        acts = ["kill"] * 6 + ["observer"] * 3 + ["postgres", "broker", "second", "grow"]
        dice.shuffle(acts)
        for act in acts:
            await asyncio.sleep(dice.uniform(2.0, 4.0))
            print(f"{epoch_ms()} {act}")
            if act == "kill":
                watched.world.kill_stage(dice.choice(STAGES))
            elif act == "observer":
                watched.world.kill_stage(OBSERVER)
            elif act == "postgres":
                await asyncio.to_thread(watched.stack.postgres.restart_immediate)
            elif act == "broker":
                await asyncio.to_thread(watched.stack.kafka.restart)
            elif act == "second":
                await _second_member(watched, "resolver")
            elif act == "grow":
                await _grow(watched, "router.cases", 6)

    await disturb()
    await asyncio.gather(*playing)
    await watched.quiet(300)
    truth = await read_all(watched.place)
    await watched.judged(at_least=50, truth=truth, calm=False)
    injected = {line.split()[1] for line in (watched.folder / "losses").read_text().splitlines()}
    assert {event for event, _ in truth.unanswered} <= injected


async def _skewed_repeats(watched) -> None:
    """A telephony that repeats itself, with a clock five minutes ahead or behind."""
    writer = Writer("telephony")
    for number in range(300):
        at = utc_now() + timedelta(minutes=5 if number % 2 else -5)
        fields = {"call_id": f"skewed-{number}", "source": "pbx", "occurred_at": at}
        bodies = [telephony.CallOffered(**fields), telephony.CallRefused(**fields, queue="q", reason="full")]
        bodies.append(telephony.CallEnded(**fields, cause="normal"))
        messages = [writer.write(body, uid=new_id(), at=time_header(at), correlation="-") for body in bodies]
        for _ in range(2):
            with suppress(Exception):
                await watched.publisher.publish(messages)
        await asyncio.sleep(0.1)


async def _second_member(watched, stage) -> None:
    """Another process of the same stage joins the group, and leaves it again."""
    import subprocess
    import sys

    environment = {**watched.world.environment(watched.place), **TIMES}
    environment["HOTLINE_PORT_FILE"] = str(watched.folder / "second.port")
    with (watched.folder / "second.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", f"services.{stage}"],
            env=environment,
            cwd=watched.folder,
            stdout=log,
            stderr=log,
        )
    await asyncio.sleep(8)
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait, 60)


async def _grow(watched, topic, partitions) -> None:
    assert any(entry.name == topic for entry in TOPICS)
    admin = AIOKafkaAdminClient(bootstrap_servers=watched.place.bootstrap)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(partitions)})
    finally:
        await admin.close()
