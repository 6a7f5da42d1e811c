"""The door on a real PostgreSQL, its log in memory: HTTP without a socket."""

import asyncio
from contextlib import asynccontextmanager

import httpx

from chassis.copies import rewriting
from chassis.health import Health
from chassis.memory import MemoryLog
from chassis.metrics import StageMetrics
from chassis.relay import Relay
from chassis.statement import execute
from schemas.envelope import BY_BODY
from services.intake.app import STAGE
from services.intake.door.access import Access
from services.intake.door.app import web
from services.intake.door.assistant import Assistant
from services.intake.door.entry import Entry
from services.intake.door.house import House
from services.intake.door.settings import DoorSettings
from services.intake.door.sources import DEFAULT


class DoorRig:
    """A door: `client()` knocks, `sent(kind)` lists what it has put on the log."""

    def __init__(self, database, vault, sources=DEFAULT):
        self.log, self.database, self.vault, self.sources = MemoryLog(), database, vault, sources
        self.relay = Relay(STAGE, database, self.log, StageMetrics("door"))
        settings = DoorSettings(kafka_bootstrap="-", database_url="-", master_key_file="/dev/null")
        self.house = House(settings, database, vault, Entry(database, vault, self.relay), Access(None))
        self.assistant = Assistant(self.house)

    async def calls(self, *contacts):
        """Put contacts into the reading copy, as the stage would."""
        async with self.database.session() as tx:
            await execute(tx, rewriting(STAGE.copies, contacts))

    async def rows(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetch(sql, *args)

    async def sent(self, kind):
        while await self.relay.relay_once():
            pass
        wire = BY_BODY[kind].wire.encode()
        records = self.log.records(BY_BODY[kind].topic)
        return [kind.parse(one.value) for one in records if dict(one.headers)["ce_type"] == wire]

    @asynccontextmanager
    async def client(self):
        running = asyncio.create_task(self.house.entry.run())
        transport = httpx.ASGITransport(web(self.house, Health(), self.assistant, self.sources))
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            yield client
        running.cancel()
