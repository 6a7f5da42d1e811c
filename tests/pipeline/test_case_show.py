"""What `hotline case show` tells of a case: why it went where, and what the customer said since."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from chassis import outbox
from chassis.clock import utc_now
from chassis.message import Writer, time_header
from chassis.roots import new_batch_id, new_id
from chassis.vault import ERASED
from cli.__main__ import app
from cli.world import connected
from schemas.intake import ContactAttached
from schemas.router import CaseParked, RuleUsed
from tests.given import a_case, recorded, routed

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
SAID = "还没退款"


class Shown:
    """A case of which the stages have said this and that, as the command shows it."""

    def __init__(self, world, vault):
        self.world, self.vault, self.case = world, vault, a_case()
        self.ref = vault.customer_ref("+8613800138000")

    async def said(self, stage, body):
        said = Writer(stage).write(
            body, uid=new_id(), at=time_header(utc_now()), correlation=str(self.case.case_id)
        )
        async with connected(self.world.place(), stage) as database, database.transaction() as tx:
            await outbox.store(tx, new_batch_id(), [said], [str(self.case.case_id)])

    async def ask(self, *options, code=0):
        asked = ["case", "show", str(self.case.case_id), "--dir", str(self.world.folder), *options]
        done = await asyncio.to_thread(CliRunner().invoke, app, asked, env={"COLUMNS": "120"})
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    async def lines(self, *options):
        return {line["event"]: line for line in json.loads(await self.ask("--json", *options))["history"]}

    async def actions(self):
        async with connected(self.world.place(), "intake") as database, database.session() as tx:
            rows = await tx.fetch("select action, by, reason from customer_actions")
        return [tuple(row.values()) for row in rows]


@pytest.fixture
async def shown(world):
    vault = await world.vault(world.place())
    yield Shown(world, vault)
    await vault.close()


async def test_why_a_case_was_routed_and_parked_is_told(shown):
    case = shown.case
    why = RuleUsed(ruleset="1", rule="r", stage="ruling", by="wang", reason="[bold]names a card")
    ruling = routed(case, "cards").model_copy(update={"why": why})
    await shown.said("intake", recorded(case))
    await shown.said("router", CaseParked(case_id=case.case_id, reason="ping_pong", case=case))
    await shown.said("router", ruling)
    found = await shown.lines()
    assert found["router.case-routed.v1"]["why"] == {
        "stage": "ruling", "by": "wang", "reason": "[bold]names a card",
    }  # fmt: skip
    assert found["router.case-parked.v1"]["reason"] == "ping_pong"
    assert not {"why", "reason", "text"} & found["intake.case-recorded.v1"].keys()
    words = await shown.ask()
    assert "ruling by wang: [bold]names a card" in words
    assert "ping_pong" in words


async def test_what_the_customer_said_is_read_for_a_reason_that_is_kept(shown):
    await shown.vault.ready([shown.ref], create=True)
    attached = ContactAttached(
        case_id=shown.case.case_id,
        call_id="call-2",
        repeat_no=2,
        agent="a-1",
        customer_ref=shown.ref,
        text=shown.vault.seal(shown.ref, SAID),
    )
    await shown.said("intake", attached)
    assert (await shown.lines())["intake.contact-attached.v1"]["text"] == "[sealed]"
    words = await shown.ask()
    assert SAID not in words
    assert "--reason WHY" in words
    reading = ("--reason", "asked by the branch", "--by", "wang")
    assert "unknown customer" in await shown.ask(*reading, code=1)
    async with connected(shown.world.place(), "intake") as database, database.session() as tx:
        await tx.execute("insert into customers (customer_ref) values ($1)", shown.ref)
    assert await shown.actions() == []
    assert SAID in await shown.ask(*reading)
    assert (await shown.lines(*reading))["intake.contact-attached.v1"]["text"] == SAID
    assert await shown.actions() == [("viewed", "wang", "asked by the branch")] * 2
    await shown.vault.erase(shown.ref)
    assert (await shown.lines(*reading))["intake.contact-attached.v1"]["text"] == ERASED
