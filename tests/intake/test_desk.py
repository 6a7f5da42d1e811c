"""The agent's desk: what an agent sees, drafts that never overwrite, one case per request, one verdict per command."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from stdnum import luhn

from chassis.batch import Pass
from chassis.clock import utc_now
from chassis.faults import Transient
from chassis.health import Health
from chassis.kafka import KafkaPublisher, Subscription, apply_topics
from chassis.memory import MemoryLog, MemorySubscription
from chassis.message import read
from chassis.metrics import StageMetrics
from chassis.relay import Relay
from chassis.roots import new_id
from chassis.step import Event
from chassis.vault import ERASED
from schemas import intake, telephony
from schemas.case import Personal
from schemas.envelope import BY_WIRE
from services.intake import store
from services.intake.app import STAGE
from services.intake.customers import store as customers
from services.intake.customers.erasure import erase
from services.intake.customers.record import Person
from services.intake.desk.checklist import load_checklists
from services.intake.domain import Known, Policy
from services.intake.door import app as door_app
from services.intake.door import cases, desk, drafts, ledger
from services.intake.door.access import Access, Visitor
from services.intake.door.entry import Entry
from services.intake.door.house import House
from services.intake.door.settings import DoorSettings
from services.intake.sources.canonical import Mapped
from tests.conftest import eventually
from tests.given import headers_of, looked_up

pytestmark = pytest.mark.postgres

PHONE = "+8613800138000"
CARD = "6222021234567894"
assert luhn.is_valid(CARD)
INTAKE = replace(STAGE, policy=Policy(), prepare=looked_up)
CASE = {
    "language": "zh",
    "category": "dispute",
    "product": "credit_card",
    "summary": f"卡号{CARD}被扣两次",
    "demand": "退款",
    "read_back": True,
}


class Answer(NamedTuple):
    status: int
    headers: dict
    text: str

    @property
    def body(self):
        return json.loads(self.text)


class Client:
    """Calls an ASGI application as a server would."""

    def __init__(self, app, agent="zhang"):
        self.app, self.agent = app, agent

    async def __call__(self, method, path, body=None, *, raw=None, **headers):
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        sent = {"content-type": "application/json", "x-agent": self.agent, **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.replace("_", "-").encode(), text.encode()) for name, text in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        incoming = [{"type": "http.request", "body": content, "more_body": False}]
        outgoing = []

        async def receive():
            return incoming.pop() if incoming else {"type": "http.disconnect"}

        async def send(message):
            outgoing.append(message)

        await self.app(scope, receive, send)
        start, *rest = outgoing
        text = b"".join(message.get("body", b"") for message in rest).decode()
        return Answer(
            start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, text
        )


class LiveLog(MemoryLog):
    """A log in memory that says when there is news."""

    def __init__(self):
        super().__init__()
        self.news = asyncio.Event()

    async def publish(self, messages):
        await super().publish(messages)
        self.news.set()


class Rig:
    """The desk with its door and, once `working`, the stage behind it."""

    def __init__(self, database, vault, access=None, within=timedelta(seconds=20)):
        self.database, self.vault, self.log = database, vault, LiveLog()
        metrics = StageMetrics("intake")
        self.handle = Pass(INTAKE, database, self.log, vault.seal_record, metrics)
        self.subscription = MemorySubscription(
            self.log, "intake", INTAKE.inputs, self.handle, self.handle.settle
        )
        relay = Relay(STAGE, database, self.log, metrics)
        self.entry = Entry(database, vault, relay)
        settings = DoorSettings(
            kafka_bootstrap="-",
            database_url=SecretStr("-"),
            master_key_file=Path("-"),
            verdict_within=within,
        )
        self.house = House(settings, database, vault, self.entry, access or Access(None))
        self.app = door_app.api(self.house, Health(), None)
        self.ask = Client(self.app)
        self.tasks = [asyncio.create_task(self.entry.run()), relay.run_relay()]

    def work(self):
        """Let the stage read."""
        self.tasks.append(asyncio.create_task(self._work()))

    async def _work(self):
        while True:
            await self.subscription.drain()
            await self.log.news.wait()
            self.log.news.clear()

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def rows(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetch(sql, *args)

    async def value(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetchval(sql, *args)

    async def tell(self, *facts):
        await self.entry.facts(facts)

    async def until(self, phase, call_id="call-1"):
        async def there():
            return await self.value("select phase from calls where call_id = $1", call_id) == phase

        await eventually(there, what=f"{call_id} {phase}")

    async def answered(self, call_id="call-1", phone=PHONE):
        """A call that an agent has taken."""
        await self.tell(*ringing(call_id, phone), answer(call_id))
        await self.until("answered", call_id)

    async def view_cases(self):
        """Let the door read, from the beginning, what the stage says of cases."""
        records = self.log.records("intake.cases")
        events = [event for record in records if isinstance(event := read(record, BY_WIRE), Event)]
        async with self.database.transaction() as tx:
            kinds = (*cases.STATES, intake.ContactAttached)
            await cases.keep(tx, [event for event in events if isinstance(event.body, kinds)])

    def customer_in(self, call_id):
        recorded = [intake.CaseRecorded.parse(record.value).case for record in self.said("case-recorded")]
        return next(case.customer for case in recorded if case.call_id == call_id)

    def said(self, kind):
        wire = f"intake.{kind}.v1"
        return [
            record for record in self.log.records("intake.cases") if headers_of(record)["ce_type"] == wire
        ]


def fact(kind, call_id, phone=None, at=None, **fields):
    at = at or utc_now()
    body = kind(call_id=call_id, source="pbx", occurred_at=at, **fields)
    return Mapped(f"{call_id}/{kind.__name__}/{at.isoformat()}", body, phone)


def ringing(call_id="call-1", phone=PHONE, queue="cards", at=None):
    return (
        fact(telephony.CallOffered, call_id, phone, at, language="zh"),
        fact(telephony.CallQueued, call_id, None, at, queue=queue, visit=1),
    )


def answer(call_id="call-1"):
    return fact(telephony.CallAnswered, call_id, queue="cards", visit=1, agent="zhang", wait_ms=4000)


@asynccontextmanager
async def opened(database, vault, **more):
    rig = Rig(database, vault, **more)
    yield rig
    await rig.stop()


@pytest.fixture
async def idle(stage_database, vault):
    """The desk while the stage is away."""
    async with opened(stage_database, vault, within=timedelta(milliseconds=120)) as rig:
        yield rig


@pytest.fixture
async def rig(stage_database, vault):
    async with opened(stage_database, vault) as rig:
        rig.work()
        yield rig


def key(text="key-1"):
    return {"idempotency-key": text}


# ---------------------------------------------------------------- recording


async def test_a_record_makes_a_case_with_everything_sealed_and_no_card_number(rig):
    await rig.answered()
    done = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    assert done.status == 201
    (record,) = rig.said("case-recorded")
    case = intake.CaseRecorded.parse(record.value).case
    assert done.body["case_id"] == str(case.case_id)
    assert done.body["case_no"] == case.case_no
    assert done.body["completeness"] == case.completeness.model_dump(mode="json")
    assert case.completeness.checklist.startswith("dispute")
    assert "summary" not in case.completeness.missing
    assert (case.agent, case.language, case.category, case.queue) == ("zhang", "zh", "dispute", "cards")
    assert case.customer.customer_ref == rig.vault.customer_ref(PHONE)
    personal = Personal.parse(rig.vault.open(case.customer.customer_ref, case.customer.sealed))
    assert personal.summary == "卡号**** **** **** 7894被扣两次"
    assert personal.demand == "退款"
    assert personal.phone == PHONE, "the bank holds the caller's number: nobody has to ask for it"


async def test_a_hundred_requests_with_one_key_make_one_case(rig):
    await rig.answered()
    answers = await asyncio.gather(
        *(rig.ask("POST", "/calls/call-1/record", CASE, **key()) for _ in range(100))
    )
    assert Counter(answer.status for answer in answers) == {201: 100}
    assert len({answer.text for answer in answers}) == 1
    assert len(rig.said("case-recorded")) == 1
    assert rig.said("command-refused") == []
    assert await rig.value("select count(*) from idempotency") == 1
    assert await rig.value("select count(*) from quarantine") == 0


async def test_a_key_means_one_request_of_one_agent(rig):
    await rig.answered()
    first = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    other = await rig.ask("POST", "/calls/call-1/record", {**CASE, "demand": "道歉"}, **key())
    assert (other.status, other.body["error"]) == (422, "idempotency_mismatch")
    reordered = dict(reversed(CASE.items()))
    again = await rig.ask("POST", "/calls/call-1/record", reordered, **key())
    assert (again.status, again.body) == (201, first.body)
    await rig.answered("call-2", "+8613900139000")
    colleague = Client(rig.app, "li")
    assert (await colleague("POST", "/calls/call-2/record", CASE, **key())).status == 201


async def test_who_records_twice_is_told_which_case_there_is(rig):
    await rig.answered()
    first = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    second = await rig.ask("POST", "/calls/call-1/record", CASE, **key("key-2"))
    assert (second.status, second.body["error"]) == (409, "already_recorded")
    assert (second.body["case_no"], second.body["case_id"]) == (first.body["case_no"], first.body["case_id"])
    assert first.body["case_no"] in second.body["why"]
    assert second.body["next"]
    assert second.body["zh"]
    repeated = await rig.ask("POST", "/calls/call-1/record", CASE, **key("key-2"))
    assert (repeated.status, repeated.body) == (409, second.body)
    verdict = await rig.ask("GET", f"/commands/{second.body['command_id']}")
    assert (verdict.body["verdict"], verdict.body["refusal"]["code"]) == ("refused", "already_recorded")


async def test_a_case_that_the_agent_resolves_is_answered_and_the_words_are_sealed(rig):
    await rig.answered()
    decision = {
        "outcome": "settled",
        "text": f"已退回{CARD}",
        "root_cause": "double_charge",
        "redress_amount": "12.5",
        "redress_currency": "CNY",
    }
    done = await rig.ask("POST", "/calls/call-1/record", {**CASE, "decision": decision}, **key())
    assert done.status == 201
    (record,) = rig.said("case-answered")
    body = intake.CaseAnswered.parse(record.value)
    assert (body.decision.redress_amount, body.decision.redress_currency) == ("12.50", "CNY")
    opened_text = rig.vault.open(body.case.customer.customer_ref, body.decision.text)
    assert opened_text == "已退回**** **** **** 7894"


async def test_a_customer_is_who_the_given_number_belongs_to(rig):
    await rig.answered()
    asked = {**CASE, "name": "王芳", "phone": "139 0013 9000"}
    assert (await rig.ask("POST", "/calls/call-1/record", asked, **key())).status == 201
    (record,) = rig.said("case-recorded")
    customer = intake.CaseRecorded.parse(record.value).case.customer
    assert customer.customer_ref == rig.vault.customer_ref("+8613900139000")
    personal = Personal.parse(rig.vault.open(customer.customer_ref, customer.sealed))
    assert (personal.name, personal.phone) == ("王芳", "+8613900139000")


async def test_what_the_bank_holds_is_filled_in_and_not_missing(rig):
    await rig.answered()
    ref = rig.vault.customer_ref(PHONE)
    sealed = rig.vault.seal(ref, Person(name="王芳", phone=PHONE).model_dump_json())
    await rig.rows("insert into customers (customer_ref, sealed) values ($1, $2)", ref, sealed)
    asked = {**CASE, "category": "complaint"}
    done = await rig.ask("POST", "/calls/call-1/record", asked, **key())
    assert {"name", "phone"}.isdisjoint(done.body["completeness"]["missing"])
    (record,) = rig.said("case-recorded")
    customer = intake.CaseRecorded.parse(record.value).case.customer
    assert Personal.parse(rig.vault.open(ref, customer.sealed)).name == "王芳"


async def test_an_anonymous_caller_gets_a_reference_of_the_call(rig):
    await rig.answered(phone=None)
    pop = (await rig.ask("GET", "/calls/call-1/pop")).body
    assert pop["customer"] is None
    assert await rig.value("select count(*) from customer_actions") == 0
    draft = await rig.ask("PUT", "/calls/call-1/draft", {"summary": "无号码"})
    assert draft.status == 200
    assert (await rig.ask("POST", "/calls/call-1/record", CASE, **key())).status == 201
    (record,) = rig.said("case-recorded")
    customer = intake.CaseRecorded.parse(record.value).case.customer
    assert customer.customer_ref == rig.vault.customer_ref("call:call-1")
    assert Personal.parse(rig.vault.open(customer.customer_ref, customer.sealed)).phone == ""


async def test_a_death_between_key_and_command_neither_loses_nor_doubles(rig, monkeypatch):
    await rig.answered()
    keep = rig.entry.command
    dying = [Transient("the process died here")]

    async def command(command_id, body):
        if dying:
            raise dying.pop()
        await keep(command_id, body)

    monkeypatch.setattr(rig.entry, "command", command)
    died = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    assert (died.status, died.body["error"]) == (503, "try_again")
    bound = await rig.value("select command_id from idempotency")
    rig.house.settings = rig.house.settings.model_copy(update={"verdict_within": timedelta(seconds=2)})
    done = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    assert done.status == 201
    (record,) = rig.said("case-recorded")
    assert headers_of(record)["ce_causationid"] == str(bound)


async def test_while_the_stage_is_away_the_command_is_kept_and_its_verdict_can_be_asked_for(idle):
    asking = ("POST", "/calls/call-1/record", CASE)
    first = await idle.ask(*asking, **key())
    second = await idle.ask(*asking, **key())
    assert (first.status, first.body) == (202, second.body)
    assert (first.body["why"], first.headers["location"]) == ("not_read_yet", first.body["verdict"])
    pending = (await idle.ask("GET", first.body["verdict"])).body
    assert (pending["verdict"], pending["call_id"]) == ("pending", "call-1")
    idle.work()

    async def parked():
        return (await idle.ask("GET", first.body["verdict"])).body["why"] == "no_such_call_yet"

    await eventually(parked, what="the command waits for its call")
    await idle.tell(*ringing(), answer())

    async def done():
        return (await idle.ask("GET", first.body["verdict"])).body["verdict"] == "done"

    await eventually(done, what="the verdict")
    facts = (await idle.ask("GET", first.body["verdict"])).body["facts"]
    third = await idle.ask(*asking, **key())
    assert (third.status, third.body) == (201, facts)
    assert len({headers_of(record)["ce_id"] for record in idle.said("case-recorded")}) == 1
    assert await idle.value("select count(*) from quarantine") == 0


async def test_a_request_whose_verdict_is_no_longer_kept_says_so_and_changes_nothing(rig):
    await rig.answered()
    done = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    await rig.rows("delete from outbox")
    late = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    assert (done.status, late.status, late.body["error"]) == (201, 410, "no_longer_kept")
    assert len(rig.said("case-recorded")) == 1


@pytest.mark.kafka
async def test_over_the_real_kafka_a_record_gets_its_case_and_tells_of_its_customer(
    kafka, stage_database, vault
):
    await apply_topics(kafka)
    publisher, metrics = KafkaPublisher(kafka, "tests"), StageMetrics("intake")
    await publisher.start()
    handle = Pass(INTAKE, stage_database, publisher, vault.seal_record, metrics)
    subscription = Subscription(kafka, "intake", INTAKE.inputs, handle, handle.settle)
    async with opened(stage_database, vault) as rig:
        relay = Relay(STAGE, stage_database, publisher, metrics)
        rig.entry._relay = relay
        rig.tasks[1].cancel()
        rig.tasks.append(relay.run_relay())
        view = cases.CaseView(kafka, stage_database)
        await asyncio.gather(subscription.start(), view.subscription.start())
        await rig.answered()
        asked = {**CASE, "language": "en", "vulnerable": True}
        answers = await asyncio.gather(
            *(rig.ask("POST", "/calls/call-1/record", asked, **key()) for _ in range(20))
        )
        assert {answer.status for answer in answers} == {201}
        assert len({answer.body["case_no"] for answer in answers}) == 1

        async def told():
            customer = (await rig.ask("GET", "/calls/call-1/pop")).body["customer"]
            return (customer["language"], customer["vulnerable"]) == ("en", True)

        await eventually(told, what="the customer is known as the case tells")
        await asyncio.gather(subscription.stop(), view.subscription.stop())
    await publisher.stop()
    async with stage_database.session() as tx:
        assert await tx.fetchval("select count(*) from calls where case_id is not null") == 1
        assert await tx.fetchval("select count(*) from quarantine") == 0


# ---------------------------------------------------------------- drafts


async def test_a_draft_grows_by_versions_and_is_never_overwritten_unseen(rig):
    await rig.answered()
    li = Client(rig.app, "li")
    first = await rig.ask("PUT", "/calls/call-1/draft", {"summary": "一"})
    assert (first.status, first.headers["etag"], first.body["version"]) == (200, '"1"', 1)
    second = await li("PUT", "/calls/call-1/draft", {"summary": "二"}, if_match='"1"')
    assert second.headers["etag"] == '"2"'
    stale = await rig.ask("PUT", "/calls/call-1/draft", {"summary": "三"}, if_match='"1"')
    assert (stale.status, stale.body["error"]) == (412, "stale_draft")
    assert (stale.body["by"], stale.body["version"]) == ("li", 2)
    assert stale.body["at"] in stale.body["why"]
    without = await rig.ask("PUT", "/calls/call-1/draft", {"summary": "四"})
    assert without.status == 412
    read = await rig.ask("GET", "/calls/call-1/draft")
    assert (read.body["draft"]["summary"], read.body["agent"], read.headers["etag"]) == ("二", "li", '"2"')


async def test_of_many_first_drafts_one_is_kept(rig):
    await rig.answered()
    answers = await asyncio.gather(
        *(rig.ask("PUT", "/calls/call-1/draft", {"summary": str(n)}) for n in range(20))
    )
    assert Counter(answer.status for answer in answers) == {200: 1, 412: 19}
    (kept,) = [answer.body["draft"]["summary"] for answer in answers if answer.status == 200]
    assert (await rig.ask("GET", "/calls/call-1/draft")).body["draft"]["summary"] == kept


async def test_a_draft_says_what_was_masked_and_what_is_missing(rig):
    await rig.answered()
    asked = {"summary": f"卡号{CARD}", "category": "fraud", "product": "credit_card"}
    fraud = load_checklists().checklist_for("fraud", "credit_card")
    (asks_phone,) = [item.code for item in fraud.items if item.kind == "phone" and item.code != "phone"]
    asked["answers"] = {"contacted_by": "call", asks_phone: "13912345678", "basis": "打给13912345678"}
    kept = (await rig.ask("PUT", "/calls/call-1/draft", asked)).body
    assert kept["draft"]["summary"] == "卡号**** **** **** 7894"
    assert kept["draft"]["answers"][asks_phone] == "13912345678", "the checklist asks for this number"
    assert kept["draft"]["answers"]["basis"] == "打给139****5678"
    assert [(hidden["field"], hidden["kind"]) for hidden in kept["masked"]] == [
        ("summary", "card"),
        ("answers.basis", "phone"),
    ]
    assert kept["masked"][0]["start"] == 2
    assert kept["completeness"]["checklist"].startswith("fraud")
    missing = kept["completeness"]["missing"]
    assert [problem["code"] for problem in kept["problems"]] == missing
    assert "read_back" in missing
    assert "summary" not in missing
    assert all(problem["zh"] and problem["en"] for problem in kept["problems"])
    assert kept["read_back_text"]
    (row,) = await rig.rows("select customer_ref, sealed from drafts")
    plain = rig.vault.open(row["customer_ref"], row["sealed"])
    assert row["customer_ref"] == rig.vault.customer_ref(PHONE)
    assert CARD not in plain
    assert "7894" in plain


async def test_nothing_is_judged_before_a_category_is_chosen(rig):
    await rig.answered()
    kept = (await rig.ask("PUT", "/calls/call-1/draft", {})).body
    assert (kept["completeness"], kept["problems"], kept["read_back_text"]) == (None, [], None)


async def test_a_draft_ends_with_the_case(rig):
    await rig.answered()
    await rig.ask("PUT", "/calls/call-1/draft", {"summary": "一"})
    await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    gone = await rig.ask("GET", "/calls/call-1/draft")
    assert (gone.status, gone.body["error"]) == (404, "no_draft")
    late = await rig.ask("PUT", "/calls/call-1/draft", {"summary": "二"}, if_match='"1"')
    assert (late.status, late.body["error"]) == (412, "stale_draft")


async def test_a_draft_of_an_erased_customer_cannot_be_opened(rig):
    await rig.answered()
    await rig.ask("PUT", "/calls/call-1/draft", {"summary": "秘密"})
    await rig.vault.erase(rig.vault.customer_ref(PHONE))
    gone = await rig.ask("GET", "/calls/call-1/draft")
    assert (gone.status, gone.body["error"], gone.body["version"]) == (410, "erased", 1)


@pytest.mark.parametrize("if_match", ["one", 'W/"1"', '"1", "2"', "-1", "*"])
async def test_a_version_that_is_none_is_refused(rig, if_match):
    await rig.answered()
    refused = await rig.ask("PUT", "/calls/call-1/draft", {}, if_match=if_match)
    assert (refused.status, refused.body["faults"][0]["path"]) == (422, "header.if-match")


async def test_texts_that_would_not_fit_are_refused_before_anything_is_bound(rig):
    await rig.answered()
    long = {**CASE, "summary": "长" * 8000, "demand": "长" * 8000, "suggestion": "x" * 8000}
    for method, path in (("PUT", "draft"), ("POST", "record")):
        refused = await rig.ask(method, f"/calls/call-1/{path}", long, **key())
        assert (refused.status, refused.body["error"]) == (413, "too_large")
    huge = await rig.ask("PUT", "/calls/call-1/draft", raw=b'"' + b"x" * 70_000 + b'"')
    assert (huge.status, huge.body["error"]) == (413, "too_large")
    assert await rig.value("select count(*) from idempotency") == 0


@given(
    field=st.sampled_from(["name", "summary", "demand", "suggestion", "answers"]),
    digits=st.integers(0, 10**9 - 1),
    before=st.text("卡号是 ：a", max_size=20),
    after=st.text("，谢谢 b", max_size=20),
)
def test_no_card_number_survives_in_any_field(field, digits, before, after):
    number = f"622202{digits:09d}"
    number += luhn.calc_check_digit(number)
    text = before + number + after
    draft, hidden = desk._masked(
        desk.Draft(**{field: {"basis": text} if field == "answers" else text}), checklist=None
    )
    assert number not in draft.model_dump_json()
    (found,) = hidden
    assert text[found.start : found.end] == number


# ---------------------------------------------------------------- the screen pop


async def test_an_agent_sees_the_caller_before_the_answer(rig):
    ref = rig.vault.customer_ref(PHONE)
    await rig.vault.ready([ref], create=True)
    began = utc_now() - timedelta(minutes=2)
    reason = fact(
        telephony.ReasonCaptured,
        "call-1",
        topic="card_lost",
        customer_ref=ref,
        text=rig.vault.seal(ref, "我的卡丢了"),
    )
    told = fact(telephony.PositionTold, "call-1", queue="cards", visit=1, position=3, estimate_ms=90_000)
    await rig.tell(*ringing(at=began), reason, told)
    await rig.until("queued")
    sealed = rig.vault.seal(ref, Person(name="王芳", phone=PHONE).model_dump_json())
    consents = {"recording": {"given": True, "at": began.isoformat(), "by": "zhang"}}
    await rig.rows(
        "insert into customers (customer_ref, language, vulnerable, sealed, consents)"
        " values ($1, 'zh', true, $2, $3)",
        ref,
        sealed,
        json.dumps(consents),
    )
    case_id = new_id()
    await a_case(rig, case_id, ref)
    answer = await rig.ask("GET", "/calls/call-1/pop?category=dispute&product=credit_card")
    assert answer.status == 200
    pop = answer.body
    call = pop["call"]
    assert (call["queue"], call["phase"], call["language"], call["waiting"]) == (
        "cards",
        "queued",
        "zh",
        True,
    )
    assert 120_000 <= call["waited_ms"] < 180_000
    assert (call["waited_unknown"], call["agent"]) == (None, None)
    customer = pop["customer"]
    assert (customer["name"], customer["number"], customer["vulnerable"]) == ("王芳", "138****8000", True)
    assert customer["consents"]["recording"]["given"] is True
    assert PHONE[3:] not in answer.text
    (case,) = pop["open_cases"]
    assert (case["case_no"], case["state"], case["department"]) == ("C-20261124-000001-8", "routed", "cards")
    assert case["stands"]["en"] == "routed"
    assert pop["learnt"] == {"topic": "card_lost", "text": "我的卡丢了"}
    assert (pop["told"]["position"], pop["told"]["estimate_ms"]) == (3, 90_000)
    assert pop["checklist"]["name"].startswith("dispute")
    assert "summary" in pop["checklist"]["required"]
    assert {"code", "ask", "why"} <= set(pop["checklist"]["items"][0])
    assert (pop["contacts"], pop["callbacks"], pop["draft"]) == ([], [], None)


async def a_case(rig, case_id, ref, *, number="C-20261124-000001-8", closed=False):
    now = utc_now()
    await rig.rows(
        "insert into cases (case_id, case_no, customer_ref, call_id, category, product, severity, state,"
        " department, recorded_at, changed_at, closed_at)"
        " values ($1, $2, $3, 'call-0', 'dispute', 'credit_card', 'normal', 'routed', 'cards', $4, $4, $5)",
        case_id,
        number,
        ref,
        now,
        now if closed else None,
    )


async def test_every_look_is_noted_and_the_same_look_once(rig):
    await rig.answered()
    for agent in ("zhang", "zhang", "li"):
        assert (await Client(rig.app, agent)("GET", "/calls/call-1/pop")).status == 200
    rows = await rig.rows("select customer_ref, action, by, reason from customer_actions order by by")
    assert [(row["by"], row["action"], row["reason"]) for row in rows] == [
        ("li", "viewed", "screen pop of call call-1"),
        ("zhang", "viewed", "screen pop of call call-1"),
    ]
    assert {row["customer_ref"] for row in rows} == {rig.vault.customer_ref(PHONE)}


async def test_a_repeat_shows_the_earlier_contacts_and_what_they_came_to(rig):
    await rig.answered("call-1")
    first = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    await rig.answered("call-2")
    await rig.ask("POST", "/calls/call-2/close", {"reason": "enquiry_answered"})
    await rig.answered("call-3")
    await rig.ask("PUT", "/calls/call-3/draft", {})
    pop = (await rig.ask("GET", "/calls/call-3/pop")).body
    assert pop["call"]["repeat_no"] == 3
    assert [(contact["call_id"], contact["came_to"]) for contact in pop["contacts"]] == [
        ("call-2", "enquiry_answered"),
        ("call-1", "case_attached"),
    ], "without the case's row nobody can tell whose case it was"
    await a_case(rig, first.body["case_id"], rig.vault.customer_ref(PHONE))
    await rig.rows("update cases set call_id = 'call-1'")
    pop = (await rig.ask("GET", "/calls/call-3/pop")).body
    assert pop["contacts"][1]["came_to"] == "case_recorded"
    assert pop["contacts"][1]["case_no"] == "C-20261124-000001-8"
    assert (pop["draft"]["version"], pop["draft"]["agent"]) == (1, "zhang")


async def test_what_a_case_tells_of_the_customer_is_seen_at_the_next_call(rig):
    await rig.answered()
    asked = {**CASE, "language": "en", "vulnerable": True}
    assert (await rig.ask("POST", "/calls/call-1/record", asked, **key())).status == 201
    await rig.view_cases()
    await rig.answered("call-2")
    customer = (await rig.ask("GET", "/calls/call-2/pop")).body["customer"]
    assert (customer["language"], customer["vulnerable"]) == ("en", True)


async def test_who_calls_again_after_an_erasure_is_new_and_what_was_before_stays_shut(rig):
    await rig.answered()
    vulnerable = {**CASE, "language": "en", "vulnerable": True, "name": "王芳"}
    assert (await rig.ask("POST", "/calls/call-1/record", vulnerable, **key())).status == 201
    await rig.view_cases()
    past = rig.customer_in("call-1")
    await erase(rig.database, rig.vault, past.customer_ref, "officer", "by letter", utc_now())
    erased = (await rig.ask("GET", "/calls/call-1/pop")).body["customer"]
    assert (erased["number_unknown"], erased["name_unknown"]) == ("erased", "erased")

    await rig.answered("call-2")
    customer = (await rig.ask("GET", "/calls/call-2/pop")).body["customer"]
    assert (customer["number"], customer["name_unknown"]) == ("138****8000", "not_recorded")
    assert (customer["language"], customer["vulnerable"]) == ("zh", False), "only what this call says"
    assert (await rig.ask("POST", "/calls/call-2/record", CASE, **key("key-2"))).status == 201
    await rig.view_cases()
    now = rig.customer_in("call-2")
    assert now.customer_ref == past.customer_ref
    assert Personal.parse(rig.vault.open(now.customer_ref, now.sealed)).phone == PHONE
    assert rig.vault.open(past.customer_ref, past.sealed) == ERASED
    (row,) = await rig.rows("select language, vulnerable, erased_at from customers")
    assert tuple(row.values()) == ("zh", False, None)


async def test_what_was_merged_is_shown_under_the_survivor(rig):
    await rig.answered()
    other = rig.vault.customer_ref("+8613900139000")
    await rig.rows("insert into customers (customer_ref, language) values ($1, 'en')", other)
    await rig.rows(
        "insert into customers (customer_ref, merged_into) values ($1, $2)",
        rig.vault.customer_ref(PHONE),
        other,
    )
    await a_case(rig, new_id(), other)
    pop = (await rig.ask("GET", "/calls/call-1/pop")).body
    assert (pop["customer"]["customer_ref"], pop["customer"]["language"]) == (other, "en")
    assert pop["customer"]["number"] == "138****8000"
    assert len(pop["open_cases"]) == 1


async def test_a_case_under_another_number_is_known_when_the_caller_comes_again(rig):
    await rig.answered()
    other = {**CASE, "phone": "139 0013 9000"}
    assert (await rig.ask("POST", "/calls/call-1/record", other, **key())).status == 201
    await rig.view_cases()
    case_id = str(await rig.value("select case_id from cases"))
    await rig.answered("call-2")
    pop = (await rig.ask("GET", "/calls/call-2/pop")).body
    assert [case["case_id"] for case in pop["open_cases"]] == [case_id]
    (record,) = rig.said("repeat-noticed")
    assert [str(one) for one in intake.RepeatNoticed.parse(record.value).open_cases] == [case_id]
    await rig.rows("update cases set closed_at = now()")
    assert (await rig.ask("GET", "/calls/call-2/pop")).body["open_cases"] == []


async def test_who_was_merged_is_one_customer_also_for_the_stage_and_the_assistant(rig):
    other = "+8613900139000"
    await rig.answered()
    assert (await rig.ask("POST", "/calls/call-1/record", CASE, **key())).status == 201
    await rig.view_cases()
    await a_wish(rig, "owed", PHONE, utc_now())
    await rig.answered("call-0", other)
    mine, theirs = rig.vault.customer_ref(PHONE), rig.vault.customer_ref(other)
    async with rig.database.transaction() as tx:
        await customers.merge(tx, theirs, mine, "chen", "the same person")
    await rig.answered("call-2", other)
    noticed = [intake.RepeatNoticed.parse(record.value) for record in rig.said("repeat-noticed")]
    (body,) = [body for body in noticed if body.call_id == "call-2"]
    assert (body.contacts, len(body.open_cases)) == (4, 1)

    async def cancelled():
        return bool(rig.said("callback-cancelled"))

    await eventually(cancelled, what="the callback of the same customer")
    async with rig.database.session() as tx:
        known, families = await store.known_callers(tx, [mine, theirs, "c-9"], utc_now() - timedelta(days=1))
    assert families == {mine: min(mine, theirs), theirs: min(mine, theirs), "c-9": "c-9"}
    assert (known[mine].contacts, known[theirs].contacts, known["c-9"]) == (4, 4, Known())


async def test_a_call_that_nobody_has_heard_of_is_not_found(rig):
    for method, path, body in (
        ("GET", "/calls/nobody/pop", None),
        ("PUT", "/calls/nobody/draft", {}),
        ("GET", f"/commands/{new_id()}", None),
    ):
        answer = await rig.ask(method, path, body)
        assert answer.status == 404
        assert set(answer.body) == {"error", "why", "next", "zh"}
        assert all(answer.body.values())


async def test_the_id_of_a_call_may_hold_a_slash(rig):
    await rig.answered("pbx/1/call")
    assert (await rig.ask("GET", "/calls/pbx/1/call/pop")).body["call"]["call_id"] == "pbx/1/call"


# ---------------------------------------------------------------- attaching and closing


async def test_the_third_call_about_a_case_is_escalated(rig):
    await rig.answered("call-1")
    case = (await rig.ask("POST", "/calls/call-1/record", CASE, **key())).body
    await rig.answered("call-2")
    second = await rig.ask("POST", "/calls/call-2/attach", {"case_id": case["case_id"]})
    assert (second.status, second.body) == (
        200,
        {"case_id": case["case_id"], "case_no": case["case_no"], "repeat_no": 2, "escalated": False},
    )
    await a_case(rig, case["case_id"], rig.vault.customer_ref(PHONE), number=case["case_no"])
    await rig.answered("call-3")
    third = await rig.ask("POST", "/calls/call-3/attach", {"case_no": case["case_no"]}, **key("a"))
    assert (third.body["repeat_no"], third.body["escalated"]) == (3, True)
    (record,) = rig.said("case-escalated")
    assert intake.CaseEscalated.parse(record.value).repeat_no == 3
    again = await rig.ask("POST", "/calls/call-3/attach", {"case_no": case["case_no"]}, **key("a"))
    assert again.body == third.body


async def test_a_call_is_attached_to_open_cases_that_exist(rig):
    await rig.answered()
    ref = rig.vault.customer_ref(PHONE)
    await a_case(rig, new_id(), ref, closed=True)
    for asked, status, error in (
        ({"case_no": "C-20261124-000001-8"}, 409, "case_closed"),
        ({"case_no": "C-20261124-000002-6"}, 404, "unknown_case"),
        ({"case_id": str(new_id())}, 409, "unknown_case"),
    ):
        answer = await rig.ask("POST", "/calls/call-1/attach", asked)
        assert (answer.status, answer.body["error"]) == (status, error)
    for asked in ({}, {"case_no": "C-20261124-000001-3"}, {"case_no": "x", "case_id": str(new_id())}):
        assert (await rig.ask("POST", "/calls/call-1/attach", asked)).status == 422


async def test_what_the_customer_says_of_an_open_case_goes_with_the_call_and_its_draft_ends(rig):
    await rig.answered()
    case = (await rig.ask("POST", "/calls/call-1/record", CASE, **key())).body
    await rig.answered("call-2")
    await rig.ask("PUT", "/calls/call-2/draft", {"summary": "还没退款"})
    asked = {"case_id": case["case_id"], "text": f"还没退款，卡号{CARD}"}
    done = [await rig.ask("POST", "/calls/call-2/attach", asked, **key("a")) for _ in range(2)]
    assert [(one.status, one.body) for one in done] == [(200, done[0].body)] * 2
    (record,) = rig.said("contact-attached")
    body = intake.ContactAttached.parse(record.value)
    assert rig.vault.open(body.customer_ref, body.text) == "还没退款，卡号**** **** **** 7894"
    assert body.customer_ref == rig.vault.customer_ref(PHONE)
    assert await rig.value("select count(*) from drafts") == 0
    await rig.answered("call-3", None)
    await rig.ask("POST", "/calls/call-3/attach", {"case_id": case["case_id"]})
    silent = intake.ContactAttached.parse(rig.said("contact-attached")[1].value)
    assert (silent.customer_ref, silent.text) == (None, None)


async def test_the_next_agent_reads_what_was_said_of_an_open_case_since(rig):
    await rig.answered()
    case = (await rig.ask("POST", "/calls/call-1/record", CASE, **key())).body
    for number, text in ((2, "还没退款"), (3, "")):
        await rig.answered(f"call-{number}")
        asked = {"case_id": case["case_id"], **({"text": text} if text else {})}
        await rig.ask("POST", f"/calls/call-{number}/attach", asked, **key(str(number)))
    for _ in range(2):
        await rig.view_cases()
    await rig.answered("call-4")

    async def added():
        (found,) = (await rig.ask("GET", "/calls/call-4/pop")).body["open_cases"]
        return [(call["call_id"], call["repeat_no"], call["text"]) for call in found["added"]]

    assert await added() == [("call-3", 3, None), ("call-2", 2, "还没退款")]
    ref = rig.vault.customer_ref(PHONE)
    assert "还没退款" not in str(await rig.rows("select * from attached"))
    await erase(rig.database, rig.vault, ref, "officer", "asked", utc_now())
    assert "还没退款" not in (await rig.ask("GET", "/calls/call-4/pop")).text


async def test_a_draft_ends_with_its_call_whoever_asks_for_the_verdict_and_is_not_kept_for_ever(rig):
    for number in (1, 2, 3, 4):
        await rig.answered(f"call-{number}")
        await rig.ask("PUT", f"/calls/call-{number}/draft", {"summary": "一"})
    assert (await rig.ask("POST", "/calls/call-1/close", {"reason": "silent"})).status == 200
    assert await rig.value("select count(*) from drafts where call_id = 'call-1'") == 0
    await rig.tell(fact(telephony.CallEnded, "call-4", cause="normal"))
    unread = intake.ClosingRequested(call_id="call-2", agent="zhang", reason="silent")
    await rig.entry.command(new_id(), unread)
    await rig.until("closed", "call-2")

    async def pruned(**age):
        await rig.rows("update drafts set updated_at = now() - $1::interval", timedelta(**age))
        async with rig.database.session() as tx:
            await ledger.prune(tx, timedelta(days=15), timedelta(days=30))
        return [row["call_id"] for row in await rig.rows("select call_id from drafts order by call_id")]

    assert await pruned(minutes=50) == ["call-2", "call-3", "call-4"]
    assert await pruned(hours=2) == ["call-3", "call-4"]
    assert await pruned(days=8) == []


async def test_who_is_sent_elsewhere_is_closed_with_the_place(rig):
    await rig.answered()
    wrong = await rig.ask("POST", "/calls/call-1/close", {"reason": "spam", "referred_to": "police"})
    assert (wrong.status, wrong.body["faults"][0]["path"]) == (422, "body")
    asked = {"reason": "not_ours", "referred_to": "police"}
    closed = await rig.ask("POST", "/calls/call-1/close", asked)
    assert closed.body == {"call_id": "call-1", **asked}
    (record,) = rig.said("contact-closed")
    assert intake.ContactClosed.parse(record.value).referred_to == "police"


async def test_an_agent_records_while_the_answer_itself_is_late(rig):
    await rig.tell(*ringing())
    await rig.until("queued")
    done = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    assert done.status == 201
    ended = fact(telephony.CallEnded, "call-1", cause="normal")
    await rig.tell(fact(telephony.QueueLeft, "call-1", queue="cards", visit=1, reason="abandoned"), ended)
    await rig.tell(answer())
    await eventually(lambda: rig.value("select agent from visits"), what="the answer")
    (row,) = await rig.rows("select phase, closed_for, case_no from calls left join cases using (case_id)")
    assert (row["phase"], row["closed_for"]) == ("recorded", None)
    assert rig.said("command-refused") == rig.said("contact-closed") == []


async def test_a_closed_contact_takes_no_record(rig):
    await rig.answered()
    closed = await rig.ask("POST", "/calls/call-1/close", {"reason": "wrong_number"})
    assert (closed.status, closed.body) == (
        200,
        {"call_id": "call-1", "reason": "wrong_number", "referred_to": None},
    )
    late = await rig.ask("POST", "/calls/call-1/record", CASE, **key())
    assert (late.status, late.body["error"]) == (409, "contact_closed")
    assert "wrong_number" in late.body["why"]


# ---------------------------------------------------------------- callbacks


async def a_wish(rig, call_id, phone, began, queue="cards"):
    await rig.tell(
        *ringing(call_id, phone, queue, at=began),
        fact(telephony.CallbackRequested, call_id, phone, queue=queue, due_at=utc_now()),
        fact(telephony.QueueLeft, call_id, queue=queue, visit=1, reason="key"),
        fact(telephony.CallEnded, call_id, cause="normal"),
    )
    await rig.until("callback", call_id)


async def test_callbacks_keep_their_places_and_are_ready_when_nobody_has_waited_longer(rig):
    now = utc_now()
    await a_wish(rig, "late", "+8613900139002", now - timedelta(minutes=5))
    await a_wish(rig, "early", "+8613900139001", now - timedelta(minutes=20))
    await a_wish(rig, "loans", "+8613900139003", now - timedelta(minutes=9), queue="loans")
    await rig.tell(*ringing("waits", "+8613900139004", at=now - timedelta(minutes=10)))
    await rig.until("queued", "waits")
    listed = (await rig.ask("GET", "/callbacks?queue=cards")).body["callbacks"]
    assert [(one["call_id"], one["place"], one["ready"]) for one in listed] == [
        ("early", 1, True),
        ("late", 2, False),
    ]
    assert [one["number"] for one in listed] == ["+8613900139001", "+8613900139002"]
    await rig.tell(answer("waits"))
    await rig.until("answered", "waits")
    everybody = (await rig.ask("GET", "/callbacks")).body["callbacks"]
    assert [(one["call_id"], one["place"], one["ready"]) for one in everybody] == [
        ("early", 1, True),
        ("loans", 1, True),
        ("late", 2, True),
    ]
    noted = await rig.rows("select by, reason from customer_actions where action = 'viewed' order by reason")
    assert [(row["by"], row["reason"]) for row in noted] == [
        ("zhang", f"number of callback {name}") for name in ("early", "late", "loans")
    ]
    pop = (await rig.ask("GET", "/calls/early/pop")).body
    assert [one["call_id"] for one in pop["callbacks"]] == ["early"]


async def test_attempts_count_once_each_and_end_the_callback(rig):
    await a_wish(rig, "call-1", PHONE, utc_now())
    path, missed = "/callbacks/call-1/attempts", {"outcome": "no_answer"}
    first = [await rig.ask("POST", path, missed, **key("one")) for _ in range(2)]
    assert first[0].body == first[1].body
    assert (first[0].body["attempt"], first[0].body["exhausted"]) == (1, False)
    assert first[0].body["next_at"] is not None
    second = await rig.ask("POST", path, {**missed, "by_call_id": "call-9"})
    last = await rig.ask("POST", path, {"outcome": "busy"})
    assert (second.body["attempt"], last.body["attempt"]) == (2, 3)
    assert (last.body["exhausted"], last.body["next_at"]) == (True, None)
    over = await rig.ask("POST", "/callbacks/call-1/cancel", {"reason": "customer_asked"})
    assert (over.status, over.body["error"]) == (409, "callback_over")
    assert (await rig.ask("GET", "/callbacks")).body == {"callbacks": [], "next": None}


async def test_callbacks_come_page_by_page(rig, monkeypatch):
    monkeypatch.setattr(desk, "MOST_CALLBACKS", 2)
    now = utc_now()
    for number in range(5):
        await a_wish(rig, f"call-{number}", f"+861390013900{number}", now - timedelta(minutes=9 - number))
    pages, after = [], ""
    while after is not None:
        page = (await rig.ask("GET", f"/callbacks?queue=cards{after and '&after=' + after}")).body
        pages.append([(one["call_id"], one["place"], one["ready"]) for one in page["callbacks"]])
        after = page["next"]
    assert pages == [
        [("call-0", 1, True), ("call-1", 2, True)],
        [("call-2", 3, True), ("call-3", 4, True)],
        [("call-4", 5, True)],
    ]
    nothing = await rig.ask("GET", "/callbacks?after=nobody")
    assert (nothing.status, nothing.body["faults"][0]["path"]) == (422, "query.after")


async def test_a_callback_can_be_cancelled_where_there_is_one(rig):
    await a_wish(rig, "call-1", PHONE, utc_now())
    done = await rig.ask("POST", "/callbacks/call-1/cancel", {"reason": "customer_asked"})
    assert (done.status, done.body) == (200, {"call_id": "call-1", "reason": "customer_asked"})
    await rig.answered("call-2", "+8613900139000")
    none = await rig.ask("POST", "/callbacks/call-2/cancel", {"reason": "customer_asked"})
    assert (none.status, none.body["error"]) == (409, "no_callback")


# ---------------------------------------------------------------- who may ask, and what no answer tells


async def test_only_agents_may_ask(stage_database, vault):
    from hashlib import sha256

    def hashed(token):
        return sha256(token.encode()).hexdigest()

    access = Access(
        {
            hashed("of-li"): Visitor("li", frozenset({"agent"})),
            hashed("of-chen"): Visitor("chen", frozenset({"manager"})),
        }
    )
    async with opened(stage_database, vault, access=access) as rig:
        nobody = await rig.ask("GET", "/callbacks")
        manager = await rig.ask("GET", "/callbacks", authorization="Bearer of-chen")
        agent = await rig.ask("GET", "/callbacks", authorization="Bearer of-li")
    assert (nobody.status, nobody.body["error"]) == (401, "unauthenticated")
    assert nobody.headers["www-authenticate"] == "Bearer"
    assert (manager.status, manager.body["error"]) == (403, "forbidden")
    assert (agent.status, agent.body) == (200, {"callbacks": [], "next": None})


BAD = {
    "an answer that is none": ({**CASE, "answers": {"amount": {"n": "13800138000"}}}, "body.answers.amount"),
    "an answer's code": ({**CASE, "answers": {"13800138000": "x"}}, "body.answers.?.[key]"),
    "a field of one's own": ({**CASE, "13800138000": 1}, "body.?"),
    "an unknown category": ({**CASE, "category": "13800138000"}, "body.category"),
    "an unknown severity": ({**CASE, "severity": "13800138000"}, "body.severity"),
    "a product with odd letters": ({**CASE, "product": "13800138000\n!"}, "body.product"),
    "NUL": ({**CASE, "summary": "13800138000\x00"}, "body.summary"),
    "half a character": ({**CASE, "summary": "13800138000\ud800"}, "body.summary"),
    "too long": ({**CASE, "name": "13800138000" * 20}, "body.name"),
    "a number with a digit too few": ({**CASE, "phone": "1380013800"}, "body.phone"),
    "redress without currency": (
        {
            **CASE,
            "decision": {
                "outcome": "settled",
                "text": "13800138000",
                "root_cause": "x",
                "redress_amount": "1.00",
            },
        },
        "body.decision",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_wrong_input_is_named_by_its_path_and_never_repeated(rig, name, capsys):
    body, path = BAD[name]
    answer = await rig.ask("POST", "/calls/call-1/record", body, **key())
    assert answer.status == 422
    assert [fault["path"] for fault in answer.body["faults"]] == [path]
    said = answer.text + "".join(capsys.readouterr())
    assert "1380013800" not in said
    assert await rig.value("select count(*) from idempotency") == 0


async def test_a_misspelt_category_is_not_read_as_other(rig):
    await rig.answered()
    answer = await rig.ask("GET", "/calls/call-1/pop?category=frod")
    assert (answer.status, answer.body["faults"][0]["path"]) == (422, "query.category")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"text"', b"\xff"])
async def test_a_body_that_is_none_is_refused(rig, raw):
    answer = await rig.ask("POST", "/calls/call-1/close", raw=raw)
    assert answer.status in (400, 422)
    assert answer.body["error"] in ("malformed", "bad_request")


async def test_a_key_is_needed_to_record(rig):
    answer = await rig.ask("POST", "/calls/call-1/record", CASE)
    assert (answer.status, answer.body["faults"][0]["path"]) == (422, "header.idempotency-key")


async def test_an_agent_has_a_name(rig):
    answer = await Client(rig.app, "a;b")("GET", "/callbacks")
    assert (answer.status, answer.body["faults"][0]["path"]) == (422, "header.x-agent")


async def test_no_refusal_of_the_stage_and_no_log_tells_a_number(rig, capsys):
    await rig.answered()
    asked = {**CASE, "name": "王芳", "phone": "13900139000", "summary": f"{CARD} 13900139000"}
    answers = [
        await rig.ask("PUT", "/calls/call-1/draft", {**asked, "summary": "x"}),
        await rig.ask("PUT", "/calls/call-1/draft", asked),
        await rig.ask("POST", "/calls/call-1/record", asked, **key()),
        await rig.ask("POST", "/calls/call-1/record", asked, **key("key-2")),
        await rig.ask("POST", "/calls/call-1/record", {**asked, "demand": ""}, **key()),
    ]
    assert [answer.status for answer in answers] == [200, 412, 201, 409, 422]
    said = "".join(answer.text for answer in answers[1:]) + "".join(capsys.readouterr())
    assert not [secret for secret in ("13900139000", "13800138000", CARD, "王芳") if secret in said]


async def test_while_postgresql_is_away_the_agent_is_asked_to_try_again(rig, stage_database):
    await stage_database.close()
    answer = await rig.ask("GET", "/calls/call-1/pop")
    assert (answer.status, answer.body["error"], answer.headers["retry-after"]) == (503, "try_again", "1")
    await stage_database.open()


async def test_the_contract_is_complete(rig):
    contract = rig.app.openapi()
    operations = [
        (path, method, operation)
        for path, methods in contract["paths"].items()
        for method, operation in methods.items()
        if "desk" in operation.get("tags", ())
    ]
    assert len(operations) == 10
    for path, method, operation in operations:
        assert operation["summary"], path
        good = operation["responses"]["201" if path.endswith("/record") else "200"]
        assert good["content"]["application/json"]["schema"], (path, method)
        assert {"401", "403", "422", "503"} <= set(operation["responses"])


# ---------------------------------------------------------------- waiting for verdicts


class CountingDatabase:
    """Counts the queries, and knows which commands are decided."""

    def __init__(self):
        self.queries, self.decided = 0, set()

    @asynccontextmanager
    async def session(self):
        yield self

    async def fetch(self, _, ids):
        self.queries += 1
        return [{"event_id": uid} for uid in ids if uid in self.decided]


async def test_hundreds_wait_with_one_query_for_all_of_them():
    database = CountingDatabase()
    verdicts = drafts.Verdicts(database)
    ids = [new_id() for _ in range(300)]
    waiting = [asyncio.create_task(verdicts.wait(uid, timedelta(seconds=10))) for uid in ids]
    while database.queries < 2:
        await asyncio.sleep(0)
    database.decided = set(ids)
    assert await asyncio.gather(*waiting) == [True] * 300
    assert database.queries <= 10
    asked = database.queries
    await verdicts._polling
    assert database.queries == asked, "nobody waits, nobody asks"
    assert not await verdicts.wait(new_id(), timedelta(milliseconds=30))
