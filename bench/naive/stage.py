"""One stage of the baseline: `python -m bench.naive.stage NAME`.

The same decisions, events, tables and durability as the product; only the way of working differs:
per message one transaction (inbox, state, outbox), then publish, mark, acknowledge.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
from faststream import FastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.middlewares import AckPolicy

from chassis.clock import utc_now
from chassis.fold import Fold, Input
from chassis.inbox import digest_of
from chassis.kafka import KafkaPublisher
from chassis.message import Writer, read
from chassis.metrics import StageMetrics
from chassis.outbox import pack
from chassis.plan import Entity, Plan, parked_for, rare_parts, read_timers, timers_text
from chassis.postgres import Database, role_of
from chassis.relay import Relay
from chassis.roots import new_batch_id
from chassis.settings import load_settings
from chassis.stage import Stage
from chassis.statement import execute
from chassis.step import Event
from chassis.transport import partition_for
from chassis.vault import SCHEMA, FileKey, Vault


class NaiveStage:
    """Handles messages one at a time."""

    def __init__(self, stage: Stage, database: Database, broker: KafkaBroker, prefix: str) -> None:
        self._stage, self._database, self._broker, self._prefix = stage, database, broker, prefix
        self._writer, self._handled = Writer(stage.name), stage.handled

    async def on_message(self, message: KafkaMessage) -> None:
        """One message from read to acknowledged."""
        record: Any = message.raw_message
        event = read(record, self._handled)
        if not isinstance(event, Event):
            await message.ack()
            return
        plan = Plan(new_batch_id(), utc_now())
        async with self._database.transaction() as tx:
            fresh = await tx.fetchval(
                "insert into inbox (event_id, batch, digest, outcome) values ($1, $2, $3, 'handled')"
                " on conflict do nothing returning event_id",
                event.uid,
                plan.batch,
                digest_of(record.value),
            )
            if fresh is not None:
                await self._decide(tx, plan, event, record)
        for ordinal, out in enumerate(plan.outgoing):
            await self._broker.publish(
                out.value,
                topic=self._prefix + out.topic,
                key=out.key,
                partition=partition_for(out.key, 4 if not out.topic.endswith("watermarks") else 1),
                headers={name: value.decode() for name, value in out.headers},
            )
            async with self._database.session() as tx:
                await tx.execute(
                    "update naive_outbox set published_at = now() where batch = $1 and ordinal = $2",
                    plan.batch,
                    ordinal,
                )
        await message.ack()

    async def _decide(self, tx: Any, plan: Plan, event: Event[Any], record: Any) -> None:
        row = await tx.fetchrow(
            "select version, sequence, timers, document from entities where key = $1 for update",
            event.key,
        )
        if row is not None:
            state = self._stage.state.parse(row["document"])
            entity = Entity(
                event.key,
                state,
                row["version"],
                row["version"],
                row["sequence"],
                read_timers(row["timers"]),
            )
            plan.entities[event.key] = entity
        fold = Fold(self._stage, self._writer, plan, lambda _: b"")
        waiting = await parked_for(tx, [event.key])
        events = {item.uid: read(item.record, self._handled) for item in waiting}
        fold.expect(waiting, {uid: item for uid, item in events.items() if isinstance(item, Event)})
        policy = self._stage.policy
        if self._stage.prepare is not None:
            policy = await self._stage.prepare(tx, [event, *fold.waiting_events], policy)
        fold.decide_all([Input(record, event)], policy)
        fold.finish()
        await self._store(tx, plan)

    async def _store(self, tx: Any, plan: Plan) -> None:
        for entity in plan.entities.values():
            if entity.changed and entity.state is not None:
                await tx.execute(
                    "insert into entities"
                    " (key, version, sequence, wake_at, updated_at, phase, timers, document)"
                    " values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (key) do update set"
                    " version = excluded.version, sequence = excluded.sequence,"
                    " wake_at = excluded.wake_at, updated_at = excluded.updated_at,"
                    " phase = excluded.phase, timers = excluded.timers, document = excluded.document",
                    entity.key,
                    entity.version,
                    entity.sequence,
                    entity.wake_at,
                    plan.now,
                    self._stage.phase(entity.state),
                    timers_text(entity.timers),
                    entity.state.to_bytes().decode(),
                )
        for ordinal, (out, correlation) in enumerate(zip(plan.outgoing, plan.correlations, strict=True)):
            await tx.execute(
                "insert into naive_outbox (batch, ordinal, topic, key, headers, value, correlation)"
                " values ($1, $2, $3, $4, $5, $6, $7)",
                plan.batch,
                ordinal,
                out.topic,
                out.key,
                pack(out.headers),
                out.value,
                correlation,
            )
        await execute(tx, rare_parts(replace(plan, tasks=[], quarantined=[])))
        for uid, key, task in plan.tasks:
            await tx.execute(
                "insert into tasks (task_id, key, name, due_at, data) values ($1, $2, $3, $4, $5)",
                uid,
                key,
                task.name,
                task.due_at,
                task.data.to_bytes().decode(),
            )


async def run(name: str) -> None:
    """Run one stage of the baseline until it is killed."""
    app_module = importlib.import_module(f"services.{name}.app")
    settings_module = importlib.import_module(f"services.{name}.settings")
    settings = load_settings(getattr(settings_module, f"{name.capitalize()}Settings"))
    url = settings.database_url.get_secret_value()
    vault_schema, schema = settings.schema_of(SCHEMA), settings.schema_of(name)
    vault_database = Database(url, vault_schema, role=role_of(vault_schema), size=2)
    await vault_database.open()
    vault = Vault(vault_database, FileKey.at(settings.master_key_file))
    stage = replace(app_module.build(settings, vault))
    owner = await asyncpg.connect(url)
    await owner.execute(
        f'create table if not exists "{schema}".naive_outbox'
        f' (like "{schema}".outbox including all, published_at timestamptz);'
        f' grant all on "{schema}".naive_outbox to "{role_of(schema)}"'
    )
    await owner.close()
    database = Database(url, schema, role=role_of(schema))
    await database.open()
    broker = KafkaBroker(
        settings.kafka_bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        allow_auto_create_topics=False,
        ack_policy=AckPolicy.MANUAL,
        logger=None,
    )
    naive = NaiveStage(stage, database, broker, settings.kafka_prefix)
    subscriber = broker.subscriber(
        *(settings.kafka_prefix + topic for topic in stage.inputs),
        group_id=settings.kafka_prefix + stage.name,
        auto_offset_reset="earliest",
        no_reply=True,
    )

    async def on_message(body: Any, message: KafkaMessage) -> None:
        await naive.on_message(message)

    subscriber(on_message)

    publisher = KafkaPublisher(settings.kafka, f"naive-{name}")
    relay = Relay(stage, database, publisher, StageMetrics(name))
    tasks = relay.run()
    app = FastStream(broker)

    @app.after_startup
    async def ready() -> None:
        assert settings.port_file is not None
        Path(settings.port_file).write_text(json.dumps({"port": 0}))

    await app.run()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(run(sys.argv[1]))
