"""A paused stage takes nothing and loses nothing: what comes meanwhile is late, and it goes on where it was."""

import asyncio

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from chassis.kafka import KafkaPublisher, members_of
from cli import ledger, mend, pause
from cli.__main__ import app
from cli.status import code_of, overview
from observer import actions
from observer.app import Observer
from observer.settings import ObserverSettings
from tests.conftest import eventually
from tests.given import message, offered

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

PROBLEM = 1
WHO = mend.Operator("lin", "the classifier is being replaced")


async def say(place, *names):
    publisher = KafkaPublisher(place.kafka, "tests")
    await publisher.publish([message(offered(name)) for name in names])
    await publisher.stop()


async def handled(world):
    return (await world.health("intake")).get("handled")


async def test_a_paused_stage_takes_nothing_even_after_a_restart_and_goes_on_where_it_was(world):
    place = world.place()
    await asyncio.to_thread(world.start_stages, place, None, ("intake",))
    await world.wait_ready(stages=("intake",))
    await say(place, "call-1")
    await eventually(lambda: _is(handled(world), 1), 15, "the first call is handled")

    done = await pause.pause(place, "intake", WHO)
    assert (done.changed, done.done, done.members) == (True, True, 0)
    assert (await pause.pause(place, "intake", WHO)).changed is False, "once is enough"
    await say(place, "call-2", "call-3")
    seen = await overview(world)
    stage = seen["stages"]["intake"]
    assert (stage["state"], stage["paused"]["by"], stage["lag"]) == ("paused", "lin", 2)
    assert code_of(seen) == PROBLEM

    await asyncio.to_thread(world.stop_stages, ("intake",))
    await asyncio.to_thread(world.start_stages, place, None, ("intake",))
    await world.wait_ready(stages=("intake",))
    assert await members_of(place.kafka, "intake") == 0
    assert await handled(world) == 0

    done = await pause.resume(place, "intake", WHO)
    assert (done.changed, done.done) == (True, True)
    await eventually(lambda: _is(handled(world), 2), 15, "what came meanwhile is handled")
    assert (await overview(world))["stages"]["intake"]["paused"] is None
    async with ledger.session(place) as tx:
        chain = await actions.after(tx, 0)
        assert await actions.paused(tx) == {}
    assert [(action.verb, action.actor, action.groups) for action in chain] == [
        ("pause", "lin", ["intake"]),
        ("resume", "lin", ["intake"]),
    ]
    assert actions.broken_links(chain) == []


async def _is(value, expected):
    return await value == expected


async def test_the_observer_says_that_a_group_is_paused_and_calls_nothing_lost(world, tmp_path):
    place = world.place()
    settings = ObserverSettings(
        kafka_bootstrap=place.bootstrap,
        kafka_prefix=place.kafka_prefix,
        database_url=SecretStr(place.database_url),
        database_prefix=place.database_prefix,
        master_key_file=tmp_path / "unused.key",
        judge_every_s=0.1,
        canary_every_s=0,
    )
    await say(place, "call-1")
    await pause.pause(place, "intake", WHO)
    observer = Observer(settings)
    await observer.start()

    async def words():
        await observer.cycle()
        async with ledger.session(place) as tx:
            seen = await ledger.overview(tx)
            late = await ledger.listed(tx, [ledger.LATE])
        return seen, {row["word"] for row in seen.document.get("lag", ()) if row["group"] == "intake"}, late

    async def are(expected):
        seen, found, late = await words()
        return found == expected and len(late) == 1 and not (seen.lost or seen.blind) and seen

    async def is_paused():
        return await are({"paused"})

    async def is_late():
        return "paused" not in (await words())[1]

    try:
        await eventually(is_paused, 15, "the word is paused")
        seen = await is_paused()
        assert seen.paused["intake"]["by"] == "lin"
        assert seen.paused["intake"]["reason"] == WHO.reason
        shown = await asyncio.to_thread(hotline, world, "lag")
        assert "paused" in shown
        assert "intake by lin since" in shown
        assert "late, not lost" in shown
        await pause.resume(place, "intake", WHO, within=0)
        await eventually(is_late, 15, "the word is paused no more")
        await pause.pause(place, "intake", WHO)
        await observer.close()
        observer = Observer(settings)
        await observer.start()
        await eventually(is_paused, 15, "a new observer knows it too")
    finally:
        await observer.close()


def hotline(world, *words):
    done = CliRunner().invoke(app, [*words, "--dir", str(world.folder)], env={"COLUMNS": "100"})
    assert done.exit_code == PROBLEM, (done.stdout, done.exception)
    return done.stdout


async def test_nobody_elses_group_is_stopped(world):
    for group in ("department.cards", "desk", "observer", "nobody"):
        with pytest.raises(mend.Refused, match="not ours to stop"):
            await pause.pause(world.place(), group, WHO)
    async with ledger.session(world.place()) as tx:
        assert await actions.after(tx, 0) == []


@pytest.mark.parametrize(("word", "within"), [(pause.pause, 15), (pause.resume, 0)])
async def test_of_two_operators_with_the_same_word_at_once_one_changes_something(world, word, within):
    place = world.place()
    if word is pause.resume:
        await pause.pause(place, "intake", WHO)
    async with ledger.session(place) as tx:
        before = len(await actions.after(tx, 0))
        await actions.alone(tx)
        mine = await tx.fetchval("select pg_backend_pid()")

        async def both_wait():
            waiting = "select count(*) from pg_locks where not granted and $1 = any(pg_blocking_pids(pid))"
            return await tx.fetchval(waiting, mine) == 2

        told = [asyncio.create_task(word(place, "intake", WHO, within)) for _ in range(2)]
        await eventually(both_wait, 15, "both wait for the chain")
    done = await asyncio.gather(*told)
    assert sorted(one.changed for one in done) == [False, True]
    assert done[0].pause == done[1].pause
    async with ledger.session(place) as tx:
        chain = await actions.after(tx, 0)
    assert len(chain) == before + 1
    assert actions.broken_links(chain) == []
