"""Topics, tables, and groups that a test lets answer, commit or forget: what the observer is tried on."""

from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from chassis.clock import monotonic, utc_now
from chassis.kafka import KafkaPublisher, Offsets, apply_topics, commit_for
from chassis.message import Writer, time_header
from chassis.postgres import migrate
from chassis.roots import new_id
from chassis.transport import Outgoing, Place
from cli import ledger
from cli.world import Place as Where
from observer.app import Observer
from observer.settings import ObserverSettings


class Bench:
    """Topics, tables, and everybody who writes; one observer at a time."""

    def __init__(self, address, kafka, prefix, tmp_path) -> None:
        self.kafka, self.where = (
            kafka,
            Where(address.kafka_bootstrap, address.database_url, kafka.prefix, prefix),
        )
        self.settings = ObserverSettings(
            kafka_bootstrap=address.kafka_bootstrap,
            kafka_prefix=kafka.prefix,
            database_url=SecretStr(address.database_url),
            database_prefix=prefix,
            master_key_file=tmp_path / "unused.key",
            judge_every_s=0.1,
            canary_every_s=0,
        )
        self.publisher = KafkaPublisher(kafka, "tests")
        self.ends: dict[Place, int] = {}

    async def prepare(self) -> None:
        await apply_topics(self.kafka)
        await migrate(self.where.database_url, f"{self.where.database_prefix}observer", ["observer"])

    async def say(
        self, topic, wire, *, source="", cause=None, part=(1, 1), key="case-1", uid=None, number=None, at=None
    ):
        uid = uid or str(new_id())
        headers = [
            ("ce_id", uid),
            ("ce_type", wire),
            ("ce_source", f"/hotline/{source or wire.split('.')[0]}"),
        ]
        headers += [("ce_time", (at or utc_now()).isoformat())]
        if cause is not None:
            headers += [
                ("ce_causationid", cause),
                ("ce_handoffk", str(part[0])),
                ("ce_handoffn", str(part[1])),
            ]
        if number is not None:
            headers += [("ce_sequence", f"{number:010d}")]
        message = Outgoing(topic, key.encode(), b"{}", [(name, value.encode()) for name, value in headers])
        await self.publisher.publish([message])
        return uid

    async def say_body(self, body, source) -> None:
        writer = Writer(source)
        await self.publisher.publish(
            [writer.write(body, uid=new_id(), at=time_header(utc_now()), correlation="-")]
        )

    async def commit_all(self, group, *topics) -> None:
        """Commit to the end of these topics, as the group itself would after its work."""

        offsets = Offsets(self.kafka)
        await offsets.start()
        try:
            ends = await offsets.highs(await offsets.partitions(topics))
        finally:
            await offsets.stop()
        await commit_for(self.kafka, group, {place: end for place, end in ends.items() if end})

    @asynccontextmanager
    async def observer(self):
        observer = Observer(self.settings)
        await observer.start()
        try:
            yield observer
        finally:
            await observer.close()

    async def watch(self, observer, seconds=1.0) -> None:
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            await observer.cycle()

    async def until(self, observer, condition, within=15.0):
        deadline = monotonic() + within
        while True:
            await observer.cycle()
            found = await condition()
            if found:
                return found
            if monotonic() > deadline:
                pytest.fail(f"not within {within} s; states: {await self.states()}")

    async def states(self) -> dict[str, str]:
        async with ledger.session(self.where) as tx:
            rows = await tx.fetch("select key, name, grp, state from handoffs")
        return {(ledger.event_id_of(row), row["grp"]): row["state"] for row in rows}

    async def state(self, uid, group="router"):
        return (await self.states()).get((uid, group))

    def is_(self, state, uid, group="router"):
        async def holds():
            return await self.state(uid, group) == state

        return holds


@pytest.fixture
async def bench(address, kafka, prefix, tmp_path):
    bench = Bench(address, kafka, f"{prefix}_", tmp_path)
    await bench.prepare()
    yield bench
    await bench.publisher.stop()
