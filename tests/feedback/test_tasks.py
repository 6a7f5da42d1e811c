"""Tasks on a real PostgreSQL: a task goes when its result is kept, and only then."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from asyncpg import UniqueViolationError

from chassis import relay
from chassis.batch import Pass
from chassis.ids import derived_id
from chassis.memory import MemoryLog, MemorySubscription
from chassis.metrics import StageMetrics
from chassis.plan import DueTask
from chassis.postgres import Database
from chassis.relay import Relay
from chassis.roots import new_batch_id
from chassis.vault import FileKey, Vault
from schemas.envelope import Body
from schemas.feedback import COMMANDS, TellingAttempted
from services.feedback.app import STAGE
from services.feedback.domain import Feedback
from tests.given import NOW, a_case, headers_of, message, resolved


async def _told(tasks: Sequence[DueTask]) -> list[Body]:
    case_ids = [Feedback.parse(task.document).case.case_id for task in tasks]
    return [
        TellingAttempted(case_id=one, cycle=1, attempt=1, channel="sent", delivered=True, at=NOW)
        for one in case_ids
    ]


class Rig:
    """Feedback with a worker that always succeeds, and some cases that have their results."""

    def __init__(self, database: Database, master_key: FileKey) -> None:
        stage = replace(STAGE, workers={"tell": _told})
        self.database, self.log, metrics = database, MemoryLog(), StageMetrics("feedback")
        handle = Pass(stage, database, self.log, Vault(database, master_key).seal_record, metrics)
        self.relay = Relay(stage, database, self.log, metrics)
        self.subscription = MemorySubscription(self.log, "feedback", stage.inputs, handle, handle.settle)

    async def resolve(self, cases: int) -> None:
        for _ in range(cases):
            self.log.append(message(resolved(a_case())))
        await self.subscription.drain()

    async def count(self, rows: str) -> int:
        async with self.database.session() as tx:
            return int(await tx.fetchval(f"select count(*) from {rows}"))


@pytest.fixture
def rig(stage_database: Database, master_key: FileKey) -> Rig:
    return Rig(stage_database, master_key)


async def test_the_results_of_all_due_tasks_come_back_each_to_its_own_case(rig: Rig) -> None:
    await rig.resolve(5)
    assert await rig.count("tasks") == 5
    assert not await rig.relay.do_tasks_once()
    assert await rig.count("tasks") == await rig.count("unpublished") == 0
    keys = [record.key for record in rig.log.records(COMMANDS)]
    assert len(set(keys)) == 5
    stored = "outbox where topic = 'customers.replies' and convert_from(key, 'utf8') = correlation"
    assert await rig.count(stored) == 5
    await rig.subscription.drain()
    assert await rig.count("entities where phase = 'told'") == 5


async def test_where_a_result_cannot_be_kept_its_task_stays_and_is_done_again_under_the_same_id(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.resolve(2)
    async with rig.database.session() as tx:
        await tx.execute("insert into unpublished (batch, relay) values (7, false)")
    monkeypatch.setattr(relay, "new_batch_id", lambda: 7)
    with pytest.raises(UniqueViolationError):
        await rig.relay.do_tasks_once()
    assert await rig.count("tasks where due_at > now()") == 2, "they wait out their lease"
    assert await rig.count("outbox where batch = 7") == 0
    assert rig.log.records(COMMANDS) == []
    async with rig.database.session() as tx:
        wanted = {row["task_id"] for row in await tx.fetch("select task_id from tasks")}
        await tx.execute("update tasks set due_at = now()")
    monkeypatch.setattr(relay, "new_batch_id", new_batch_id)
    await rig.relay.do_tasks_once()
    said = {headers_of(record)["ce_id"] for record in rig.log.records(COMMANDS)}
    assert said == {str(derived_id(task_id, "done")) for task_id in wanted}
    assert await rig.count("tasks") == 0
