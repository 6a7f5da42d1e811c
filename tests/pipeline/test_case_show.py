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

    async def attached(self, call_id, ref, text):
        """A call about the case, with what was said in it."""
        await self.vault.ready([ref], create=True)
        sealed = self.vault.seal(ref, text)
        given = {"case_id": self.case.case_id, "call_id": call_id, "repeat_no": 2, "agent": "a-1"}
        await self.said("intake", ContactAttached(**given, customer_ref=ref, text=sealed))

    async def keep(self, sql, *values):
        async with connected(self.world.place(), "intake") as database, database.session() as tx:
            await tx.execute(sql, *values)

    async def customer(self, ref):
        await self.keep("insert into customers (customer_ref) values ($1)", ref)

    async def owner(self, ref):
        """Whose the case is, as the desk has heard."""
        sql = "insert into cases (case_id, customer_ref, recorded_at) values ($1, $2, now())"
        await self.keep(sql, self.case.case_id, ref)

    async def actions(self):
        async with connected(self.world.place(), "intake") as database, database.session() as tx:
            rows = await tx.fetch(
                "select customer_ref, action, by, reason from customer_actions order by action_id"
            )
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


READING = ("--reason", "asked by the branch", "--by", "wang")
KEPT = ("viewed", "wang", "asked by the branch")


async def test_what_the_customer_said_is_read_for_a_reason_that_is_kept(shown):
    await shown.customer(shown.ref)
    await shown.attached("call-2", shown.ref, SAID)
    assert (await shown.lines())["intake.contact-attached.v1"]["text"] == "[sealed]"
    words = await shown.ask()
    assert SAID not in words
    assert "--reason WHY" in words
    assert await shown.actions() == []
    assert SAID in await shown.ask(*READING)
    assert (await shown.lines(*READING))["intake.contact-attached.v1"]["text"] == SAID
    assert await shown.actions() == [(shown.ref, *KEPT)] * 2
    await shown.vault.erase(shown.ref)
    assert (await shown.lines(*READING))["intake.contact-attached.v1"]["text"] == ERASED
    assert len(await shown.actions()) == 2, "nothing was read"


async def test_words_of_a_call_without_a_number_are_read_as_those_of_the_cases_customer(shown):
    owner, survivor = (shown.vault.customer_ref(number) for number in ("+8613800138001", "+8613800138002"))
    for ref in (shown.ref, owner, survivor):
        await shown.customer(ref)
    await shown.keep("update customers set merged_into = $2 where customer_ref = $1", owner, survivor)
    await shown.owner(owner)
    await shown.attached("call-2", shown.ref, SAID)
    await shown.attached("call-3", shown.vault.customer_ref("call:call-3"), "number withheld")
    await shown.attached("call-4", shown.vault.customer_ref("call:call-4"), "withheld again")
    words = await shown.ask(*READING)
    assert all(text in words for text in (SAID, "number withheld", "withheld again"))
    assert await shown.actions() == [(ref, *KEPT) for ref in sorted([shown.ref, survivor])]


async def test_words_about_a_case_that_the_desk_has_not_heard_of_are_read_under_their_own_reference(shown):
    ref = shown.vault.customer_ref("call:call-2")
    await shown.attached("call-2", ref, SAID)
    assert SAID in await shown.ask(*READING)
    assert await shown.actions() == [(ref, *KEPT)]


async def test_where_one_reading_cannot_be_kept_none_is_and_nothing_is_shown(shown):
    refs = sorted([shown.ref, shown.vault.customer_ref("+8613800138001")])
    for ref in refs:
        await shown.customer(ref)
        await shown.attached(f"call-{ref}", ref, SAID)
    await shown.keep(f"alter table customer_actions add check (customer_ref <> '{refs[1]}')")
    assert SAID not in await shown.ask(*READING, code=1)
    assert await shown.actions() == []
