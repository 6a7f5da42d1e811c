"""Customer records: who is who, what may be done, what is kept of it, and that erasing leaves nothing readable."""

import asyncio
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import get_args

import asyncpg
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.clock import utc_now
from chassis.health import Health
from chassis.kafka import KafkaPublisher, whole
from chassis.vault import ERASED, Vault
from cli.customers import SEALED as SEALED_FIELDS
from cli.customers import blank
from cli.people import People
from cli.texts import scripts
from schemas import telephony
from schemas.case import Personal
from schemas.envelope import BY_BODY
from schemas.intake import ClosingRequested
from schemas.telephony import QueueLeft
from schemas.topics import TOPICS
from services.feedback.domain import Feedback
from services.feedback.notify import FileChannel, Message
from services.intake.contact import Callback, Phase
from services.intake.contact import Contact as IntakeContact
from services.intake.customers import erasure, store
from services.intake.customers.record import (
    WORDINGS,
    Change,
    Consent,
    Person,
    Record,
    Refused,
    Seen,
    came_to,
    changed,
    held,
    kept_reason,
    merged,
    released,
)
from services.intake.door.access import Access
from services.intake.door.app import api
from services.intake.door.cases import STATES
from services.intake.door.house import House
from services.intake.door.settings import DoorSettings
from services.resolver.domain import Assignment
from services.router.domain import Routing
from tests.conftest import eventually
from tests.given import NOW, message

PHONE, NAME = "+8613800138000", "欧阳若曦"
_fresh = itertools.count(1)


def a_record(ref="c-a", **fields):
    known = dict.fromkeys(("language", "sealed", "merged_into", "legal_hold", "erased_at"))
    return Record(
        **{
            **known,
            "customer_ref": ref,
            "version": 1,
            "vulnerable": False,
            "consents": {},
            "first_at": NOW,
            "updated_at": NOW,
            **fields,
        }
    )


def said(given, hours=0, by="agent-1"):
    return Consent(given=given, at=NOW + timedelta(hours=hours), by=by)


def refusal(work):
    with pytest.raises(Refused) as caught:
        work()
    return caught.value.code


# ------------------------------------------------------------ rules


def test_a_change_names_what_changed_and_leaves_the_rest():
    record = a_record(language="en", consents={"recording": said(given=True)})
    person = Person(name="Felix", phone=PHONE)
    change = Change(phone="139 1000 5000", language="zh", consents={"recording": True, "marketing": False})
    new, who, what = changed(record, person, change, "agent-2", NOW + timedelta(hours=1))
    assert what == ("phone", "language", "consent marketing")
    assert who == Person(name="Felix", phone="+8613910005000")
    assert new.consents == {
        "recording": said(given=True),
        "marketing": said(given=False, hours=1, by="agent-2"),
    }
    assert (new.language, new.vulnerable, new.version) == ("zh", False, 1)


def test_a_change_that_says_nothing_new_changes_nothing():
    record = a_record(language="zh", vulnerable=True, consents={"recording": said(given=False)})
    person = Person(name=NAME, phone=PHONE)
    same = Change(name=NAME, phone=PHONE, language="zh", vulnerable=True, consents={"recording": False})
    assert changed(record, person, same, "agent-2", NOW + timedelta(days=1)) == (record, person, ())


def test_a_name_can_be_taken_away_and_an_erased_record_cannot_be_written():
    assert changed(a_record(), Person(name=NAME), Change(name=""), "a", NOW)[1:] == (Person(), ("name",))
    assert refusal(lambda: changed(a_record(erased_at=NOW), Person(), Change(name="x"), "a", NOW)) == "erased"


def test_consents_are_bounded_however_they_come():
    full = {f"purpose-{number}": said(given=True) for number in range(50)}
    one_more = Change(consents={"one-more": True})
    assert (
        refusal(lambda: changed(a_record(consents=full), Person(), one_more, "a", NOW)) == "too_many_consents"
    )


CONSENTS = st.dictionaries(
    st.sampled_from(["recording", "marketing", "survey"]),
    st.builds(said, st.booleans(), st.integers(0, 3), st.just("agent-1")),
)


@given(CONSENTS, CONSENTS, st.booleans(), st.booleans())
def test_of_two_records_the_careful_word_stands_whichever_survives(ours, theirs, mine, yours):
    one = a_record("c-a", consents=ours, vulnerable=mine, legal_hold="court")
    other = a_record("c-b", consents=theirs, vulnerable=yours, legal_hold="tax")
    both, turned = merged(one, other), merged(other, one)
    assert both.consents == turned.consents
    assert both.vulnerable is turned.vulnerable is (mine or yours)
    for purpose, word in both.consents.items():
        words = [words[purpose] for words in (ours, theirs) if purpose in words]
        last = max(each.at for each in words)
        assert word.at == last
        assert word.given is all(each.given for each in words if each.at == last)
    assert (both.legal_hold, turned.legal_hold) == ("court; tax", "tax; court")


def test_who_may_not_be_merged():
    a, b = a_record("c-a"), a_record("c-b")
    assert refusal(lambda: merged(a, a)) == "same_customer"
    assert refusal(lambda: merged(a, replace(b, merged_into="c-a"))) == "same_customer"
    assert refusal(lambda: merged(a, replace(b, merged_into="c-x"))) == "already_merged"
    assert refusal(lambda: merged(a, replace(b, erased_at=NOW))) == "erased"
    assert refusal(lambda: merged(replace(a, erased_at=NOW), b)) == "erased"


def test_two_reasons_hold_until_both_are_released_and_one_twice_is_one():
    twice = held(held(held(a_record(), "court"), "tax"), "court")
    assert twice.legal_hold == "court; tax"
    assert released(twice).legal_hold is None
    assert refusal(lambda: released(a_record())) == "not_held"
    assert refusal(lambda: held(a_record(erased_at=NOW), "court")) == "erased"


def test_a_reason_is_one_line_without_numbers_of_people():
    assert kept_reason(f" called\nfrom {PHONE} ") == "called from 138****8000"
    assert len(kept_reason("x" * 900)) == 500


def test_everything_that_a_contact_can_come_to_has_words_in_both_languages():
    phases = {
        came_to(phase, None, state, recorded_it=recorded)
        for phase in get_args(Phase)
        for state in ("wished", "open", "overdue", None)
        for recorded in (True, False)
    }
    assert {"wished", "open", "overdue"} < set(get_args(Callback.model_fields["state"].annotation))
    closings = set(get_args(ClosingRequested.model_fields["reason"].annotation))
    leavings = set(get_args(QueueLeft.model_fields["reason"].annotation)) - {"unknown"}
    refusals = set(get_args(telephony.CallRefused.model_fields["reason"].annotation)) - {"unknown"}
    ours = {"unanswered", "end_unknown", "called_back", "callback_exhausted", "callback_cancelled"}
    codes = (
        phases | closings | leavings | ours | set(STATES.values()) | {f"refused_{one}" for one in refusals}
    )
    assert codes <= set(WORDINGS)
    assert all(re.search("[一-鿿]", zh) and en.isascii() for zh, en in WORDINGS.values())


def test_the_sealed_fields_that_an_export_opens_are_those_of_the_contract():
    found = set()
    for body in [*BY_BODY, IntakeContact, Routing, Assignment, Feedback]:
        schema = body.model_json_schema()
        for model in [schema, *schema.get("$defs", {}).values()]:
            for name, field in model.get("properties", {}).items():
                if any(one.get("pattern") == r"^[\w=-]+$" for one in [field, *field.get("anyOf", [])]):
                    found.add(name)
    assert found == SEALED_FIELDS


# ------------------------------------------------------------ records on PostgreSQL


class Books:
    """A schema of intake with its vault; each record that a test makes has its own reference."""

    def __init__(self, database, vault):
        self.database, self.vault = database, vault

    async def does(self, act, *args, **options):
        async with self.database.transaction() as tx:
            return await act(tx, *args, **options)

    async def customer(self, language=None, **options):
        ref = f"c-{next(_fresh):020d}"
        await self.sees(ref, language, **options)
        return ref

    async def sees(self, ref, language=None, *, vulnerable=False, after=0):
        seen = Seen(ref, NOW + timedelta(minutes=after), language, vulnerable)
        await self.does(store.keep_seen, [seen])

    async def rows(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetch(sql, *args)

    async def a_call(self, ref, name, after=0, phase="closed", **fields):
        row = {
            "call_id": name,
            "source": "pbx",
            "customer_ref": ref,
            "phase": phase,
            "first_at": NOW + timedelta(minutes=after),
            "repeat_no": 0,
            **fields,
        }
        await self._insert("calls", row)

    async def a_case(self, ref, case_id, call_id, after=0, state="in_progress", **fields):
        at = NOW + timedelta(minutes=after)
        row = {
            "case_id": case_id,
            "case_no": f"C-{case_id[-4:]}",
            "customer_ref": ref,
            "call_id": call_id,
            "category": "fraud",
            "product": "credit_card",
            "severity": "urgent",
            "state": state,
            "recorded_at": at,
            "changed_at": at,
            **fields,
        }
        await self._insert("cases", row)

    async def _insert(self, table, row):
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        sql = f"insert into {table} ({', '.join(row)}) values ({places})"
        await self.rows(sql, *row.values())

    async def named(self, ref, name=NAME, phone=PHONE):
        """Write a person into a record, as a correction would."""
        await self.vault.ready([ref], create=True)
        sealed = self.vault.seal(ref, Person(name=name, phone=phone).model_dump_json())
        record = await self.does(store.load, ref)
        assert await self.does(store.save, replace(record, sealed=sealed))


@pytest.fixture
def books(stage_database, vault):
    return Books(stage_database, vault)


async def refused(work):
    with pytest.raises(Refused) as caught:
        await work
    return caught.value.code


async def test_a_caller_gets_a_record_when_it_is_needed_and_nobody_else_does(books):
    await books.a_call("c-caller", "call-1")
    record = await books.does(store.load, "c-caller")
    assert (record.customer_ref, record.version, record.erased_at) == ("c-caller", 1, None)
    assert await refused(books.does(store.load, "c-nobody")) == "unknown_customer"
    assert [row["customer_ref"] for row in await books.rows("select customer_ref from customers")] == [
        "c-caller"
    ]


async def test_to_be_seen_fills_in_and_never_takes_back(books):
    ref = await books.customer("zh")
    await books.sees(ref, "en", vulnerable=True)
    await books.sees(ref)
    record = await books.does(store.load, ref)
    assert (record.language, record.vulnerable, record.version) == ("zh", True, 2)


async def test_what_one_batch_tells_of_one_customer_is_told_together(books):
    mobile, office = await books.customer(), await books.customer()
    await books.does(store.merge, mobile, office, "manager", "same person")
    later = Seen(office, NOW + timedelta(minutes=2), "zh")
    earlier = Seen(mobile, NOW + timedelta(minutes=1), "en", vulnerable=True)
    new = Seen("c-new", NOW, "zh", vulnerable=True)
    await books.does(store.keep_seen, [later, earlier, new, new])
    survivor, merged_one = await books.does(store.family, mobile)
    assert (survivor.customer_ref, survivor.language, survivor.vulnerable) == (office, "en", True)
    assert (merged_one.language, merged_one.vulnerable, merged_one.version) == (None, False, 2)
    (row,) = await books.rows("select * from customers where customer_ref = 'c-new'")
    assert (row["language"], row["vulnerable"], row["version"], row["first_at"]) == ("zh", True, 1, NOW)


async def test_what_was_learnt_before_an_erasure_does_not_come_back_with_what_is_learnt_after(books):
    ref = await books.customer("zh")
    await erased(books, ref)
    await books.sees(ref, "zh", vulnerable=True, after=-5)
    record = await books.does(store.load, ref)
    assert (record.language, record.vulnerable, record.erased_at) == (None, False, NOW)
    before, since = (Seen(ref, NOW + timedelta(minutes=after), None, after < 0) for after in (-5, 5))
    await books.does(store.keep_seen, [before, since])
    record = await books.does(store.load, ref)
    assert (record.vulnerable, record.erased_at) == (False, None)


async def test_who_calls_after_an_erasure_is_a_customer_before_any_case_is_recorded(books):
    ref, other = await books.customer(), await books.customer()
    await books.does(store.merge, ref, other, "manager", "same person")
    await books.a_call(ref, "call-1", after=-1)
    await erased(books, other)
    assert (await books.does(store.load, other)).erased_at == NOW
    await books.a_call(ref, "call-2", after=1)
    record = await books.does(store.load, ref)
    assert (record.customer_ref, record.erased_at) == (other, None)
    assert (await books.does(store.hold, other, "counsel", "court order 9")).legal_hold == "court order 9"


async def test_a_record_that_was_changed_in_between_is_not_overwritten(books):
    ref = await books.customer()
    read = await books.does(store.load, ref)
    assert await books.does(store.save, replace(read, language="zh"))
    assert not await books.does(store.save, replace(read, language="en"))
    assert (await books.does(store.load, ref)).language == "zh"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=16))
async def test_any_merges_leave_one_survivor_for_everybody_and_no_circle(books, pairs):
    refs = [await books.customer() for _ in range(6)]
    parents = list(range(6))

    def root(one):
        return one if parents[one] == one else root(parents[one])

    for one, into in pairs:
        work = books.does(store.merge, refs[one], refs[into], "manager", "same person")
        if root(into) in (one, parents[one]):
            assert await refused(work) == "same_customer"
        elif parents[one] != one:
            assert await refused(work) == "already_merged"
        else:
            assert (await work).customer_ref == refs[root(into)]
            parents[one] = root(into)
    for one, ref in enumerate(refs):
        assert await books.does(store.survivor_of, ref) == refs[root(one)]
        group = {refs[other] for other in range(6) if root(other) == one}
        if root(one) == one:
            names = await books.does(store.references, ref)
            assert (names[0], set(names)) == (ref, group)
    noted = await books.rows("select 1 from customer_actions where customer_ref = any($1::text[])", refs)
    assert len(noted) == sum(parent != one for one, parent in enumerate(parents))


async def test_of_merges_in_opposite_directions_at_once_one_is_refused(books):
    one, other = await books.customer(), await books.customer()
    works = [books.does(store.merge, *pair, "manager", "same") for pair in [(one, other), (other, one)] * 3]
    results = await asyncio.gather(*works, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Record"] + ["Refused"] * 5
    assert await books.does(store.survivor_of, one) == await books.does(store.survivor_of, other)


async def test_a_merge_that_waits_for_another_joins_the_survivor_of_both(books):
    one, other, third = [await books.customer() for _ in range(3)]
    await books.does(store.hold, one, "counsel", "court order 7")

    async def waits():
        return await books.rows("select 1 from pg_locks where not granted and pid <> pg_backend_pid()")

    async with books.database.transaction() as tx:
        await store.merge(tx, other, third, "manager", "same")
        late = asyncio.create_task(books.does(store.merge, one, other, "manager", "same"))
        await eventually(waits, what="the second merge waits for the first")
    assert (await late).customer_ref == third
    assert (await books.does(store.load, one)).legal_hold == "court order 7"


async def test_a_merge_shows_everything_under_the_survivor_and_leaves_every_case_whose_it_was(books):
    mobile, office = await books.customer("en"), await books.customer("zh", vulnerable=True)
    await books.a_call(mobile, "call-1", after=0, closed_for="abandoned")
    await books.a_call(
        office, "call-2", after=10, phase="recorded", case_id="00000000-0000-4000-8000-000000000001"
    )
    await books.a_case(office, "00000000-0000-4000-8000-000000000001", "call-2", after=15)
    await books.does(store.merge, mobile, office, "manager-1", "she said so, from 13800138000")
    lines = await books.does(store.history, await books.does(store.references, office))
    assert [(line.kind, line.customer_ref, line.came_to) for line in lines] == [
        ("case", office, "in_progress"),
        ("call", office, "case_recorded"),
        ("call", mobile, "abandoned"),
    ]
    assert lines[2].came_to_zh == "客户放弃等待"
    survivor = await books.does(store.load, mobile)
    assert (survivor.customer_ref, survivor.vulnerable, survivor.language) == (office, True, "zh")
    assert [row["customer_ref"] for row in await books.rows("select customer_ref from cases")] == [office]
    (act,) = await books.does(store.actions, [mobile, office])
    assert (act["customer_ref"], act["action"], act["by"]) == (mobile, "merged", "manager-1")
    assert act["reason"] == f"into {office}: she said so, from 138****8000"


async def test_history_goes_on_where_it_was_left_and_tells_attached_from_recorded(books):
    ref = await books.customer()
    case = "00000000-0000-4000-8000-000000000002"
    for number in range(6):
        await books.a_call(ref, f"call-{number}", phase="recorded", case_id=case)  # all at the same moment
    await books.a_case(ref, case, "call-0", after=1)
    await books._insert(
        "visits",
        {"call_id": "call-3", "visit": 1, "queue": "cards", "agent": "a-7", "answered_at": NOW, "wait_ms": 4000,
         "talk_ms": 61000, "hold_ms": 0, "acw_ms": 0},
    )  # fmt: skip
    await books._insert(
        "visits", {"call_id": "call-3", "visit": 2, "queue": "fraud", "hold_ms": 0, "acw_ms": 0}
    )
    whole_list = await books.does(store.history, [ref])
    paged, before = [], None
    while page := await books.does(store.history, [ref], 2, before):
        paged += page
        before = (page[-1].at, page[-1].id)
    assert paged == whole_list
    assert [line.id for line in paged] == [case, *(f"call-{number}" for number in range(5, -1, -1))]
    assert [line.came_to for line in paged[1:]] == ["case_attached"] * 5 + ["case_recorded"]
    talked, waited_for_nothing = paged[3], paged[4]
    assert (talked.queue, talked.agent, talked.wait_ms, talked.talk_ms) == ("cards", "a-7", 4000, 61000)
    assert (waited_for_nothing.queue, waited_for_nothing.wait_ms) == (None, None)


# ------------------------------------------------------------ holding and erasing


async def erased(books, ref, vault=None):
    return await erasure.erase(books.database, vault or books.vault, ref, "officer", "asked by letter", NOW)


async def test_nothing_is_erased_while_a_legal_hold_is_set_on_any_of_the_merged(books):
    one, other = await books.customer(), await books.customer()
    await books.named(one)
    await books.does(store.hold, one, "counsel", "court order 7")
    await books.does(store.merge, one, other, "manager", "same person")
    with pytest.raises(Refused, match="court order 7") as caught:
        await erased(books, other)
    assert caught.value.code == "legal_hold"
    record = (await books.does(store.family, other))[1]
    assert books.vault.open(one, record.sealed) != ERASED
    await books.does(store.release, one, "counsel", "case 7 is over")
    assert (await erased(books, one)).keys == 1
    assert await refused(books.does(store.hold, one, "counsel", "too late")) == "erased"


async def test_erasing_takes_all_references_and_drafts_and_again_changes_nothing(books):
    one, other = await books.customer("zh", vulnerable=True), await books.customer()
    for ref in (one, other):
        await books.named(ref)
        await books._insert(
            "drafts",
            {"call_id": f"call-{ref}", "version": 1, "agent": "a-1", "customer_ref": ref,
             "sealed": books.vault.seal(ref, "half a case")},
        )  # fmt: skip
    await books.a_call(one, "call-1")
    await books.does(store.merge, one, other, "manager", "same person")
    sealed = {record.customer_ref: record.sealed for record in await books.does(store.family, other)}
    first = await erased(books, one)
    assert (first.customer_ref, set(first.references)) == (other, {one, other})
    assert (first.keys, first.drafts, first.calls_remaining, first.cases_remaining) == (2, 2, 1, 0)
    records = await books.does(store.family, other)
    for record in records:
        assert (record.sealed, record.language, record.vulnerable, record.erased_at) == (
            None,
            None,
            False,
            NOW,
        )
        assert books.vault.open(record.customer_ref, sealed[record.customer_ref]) == ERASED
    assert await books.rows("select 1 from drafts") == []
    again = await erased(books, other)
    assert again == replace(first, keys=0, drafts=0)
    assert await books.does(store.family, other) == records
    acts = await books.does(store.actions, [one, other])
    assert [(act["action"], act["by"], act["reason"]) for act in acts[:2]] == [
        ("erased", "officer", "asked by letter")
    ] * 2


async def test_erasing_takes_what_nobody_known_said_about_a_case_and_nothing_of_another_customer(books):
    ref, other, nobody = (
        await books.customer(),
        await books.customer(),
        books.vault.customer_ref("call:call-2"),
    )
    case = "00000000-0000-4000-8000-000000000001"
    await books.a_case(ref, case, "call-1")
    await books.vault.ready([nobody, other], create=True)
    said = {who: books.vault.seal(who, "my card, too") for who in (nobody, other)}
    for number, who in enumerate((nobody, other), 2):
        row = {"case_id": case, "call_id": f"call-{number}", "repeat_no": number - 1, "agent": "a-1",
               "customer_ref": who, "sealed": said[who], "attached_at": NOW}  # fmt: skip
        await books._insert("attached", row)
    await erased(books, ref)
    assert books.vault.open(nobody, said[nobody]) == ERASED
    assert books.vault.open(other, said[other]) == "my card, too"


async def test_who_calls_again_after_an_erasure_is_a_customer_again_with_a_new_key(books):
    ref, other = await books.customer(), await books.customer()
    await books.named(ref)
    await books.does(store.merge, ref, other, "manager", "same person")
    before = (await books.does(store.family, other))[1].sealed
    await erased(books, ref)
    await books.sees(ref, "en", after=1)
    assert [record.erased_at for record in await books.does(store.family, other)] == [None, None]
    vault = Vault(books.vault._database, books.vault._master)  # another process
    await vault.ready([ref], create=True)
    assert vault.open(ref, vault.seal(ref, "a new matter")) == "a new matter"
    assert vault.open(ref, before) == ERASED
    second = await erasure.erase(books.database, vault, ref, "officer", "again", NOW + timedelta(days=1))
    assert (second.keys, second.erased_at) == (1, NOW + timedelta(days=1))


async def test_a_half_done_erasure_is_finished_by_the_next(books):
    ref = await books.customer()
    await books.named(ref)
    await books.vault.erase(ref)  # the process died here: the key is gone, the record not marked
    done = await erased(books, ref)
    assert (done.keys, done.erased_at) == (0, NOW)
    assert (await books.does(store.load, ref)).sealed is None


async def test_a_hold_and_an_erasure_at_once_leave_either_the_hold_or_nothing(books):
    for _ in range(8):
        ref = await books.customer()
        await books.named(ref)
        hold = books.does(store.hold, ref, "counsel", "court")
        results = await asyncio.gather(erased(books, ref), hold, return_exceptions=True)
        record = await books.does(store.load, ref)
        if isinstance(results[0], erasure.Erased):
            assert (record.legal_hold, record.erased_at, record.sealed) == (None, NOW, None)
            assert results[1].code == "erased"
        else:
            assert (results[0].code, record.legal_hold, record.erased_at) == ("legal_hold", "court", None)
            assert books.vault.open(ref, record.sealed) != ERASED


async def test_messages_of_the_file_channel_are_blanked_in_place_and_the_channel_goes_on(tmp_path):
    told = tmp_path / "told.jsonl"
    channel = FileChannel(told)
    ids = [call_uuid() for _ in range(3)]
    texts = [
        "您好，编号 C-20261124-000001-9 已办结",
        "Your case C-20261124-000002-7 has a result",
        "C-20261124-000001-9",
    ]
    messages = [Message(uid, PHONE, text) for uid, text in zip(ids, texts, strict=True)]
    await channel.send(messages)
    size = told.stat().st_size
    assert blank(told, ["C-20261124-000001-9"]) == 2
    assert told.stat().st_size == size
    kept = [json.loads(line) for line in told.read_text().splitlines()]
    assert [(one["to"], one["text"]) for one in kept] == [("", ""), (PHONE, texts[1]), ("", "")]
    assert blank(told, ["C-20261124-000001-9"]) == 0
    await FileChannel(told).send([*messages, Message(call_uuid(), PHONE, "one more")])
    assert [json.loads(line)["message_id"] for line in told.read_text().splitlines()[:3]] == [
        str(uid) for uid in ids
    ]
    assert len(told.read_text().splitlines()) == 4


def call_uuid():
    from chassis.roots import new_id

    return new_id()


# ------------------------------------------------------------ over HTTP


class Client:
    """Speaks ASGI to the door's application, as one visitor."""

    def __init__(self, app: FastAPI, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, method, path, body=None, **headers):
        query = path.partition("?")[2]
        sent = {"authorization": f"Bearer {self.token}", "content-type": "application/json", **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path.partition("?")[0], "raw_path": path.encode(), "query_string": query.encode(),
            "root_path": "", "server": ("door", 80), "client": ("127.0.0.1", 1),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()],
        }  # fmt: skip
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answers = []

        async def receive():
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(part):
            answers.append(part)

        await self.app(scope, receive, send)
        text = b"".join(part.get("body", b"") for part in answers)
        got = {name.decode(): value.decode() for name, value in answers[0]["headers"]}
        return answers[0]["status"], json.loads(text), got


@pytest.fixture
def clients(books, tmp_path):
    from hashlib import sha256

    tokens = tmp_path / "tokens.yaml"
    people = {"mia": ["agent"], "max": ["agent", "manager"], "bot": ["telephony"]}
    tokens.write_text(
        json.dumps(
            [
                {"name": name, "roles": roles, "token_sha256": sha256(name.encode()).hexdigest()}
                for name, roles in people.items()
            ]
        )
    )
    settings_ = DoorSettings.model_construct()
    house = House(settings_, books.database, books.vault, None, Access.at(tokens))
    app = api(house, Health(), None)
    return {name: Client(app, name) for name in people}


async def test_an_agent_finds_reads_and_corrects_a_record_and_every_look_is_kept(books, clients):
    agent = clients["mia"]
    ref = books.vault.customer_ref(PHONE)
    await books.a_call(ref, "call-1", after=1, closed_for="abandoned")
    status, shown, headers = await agent(
        "POST", "/customers/find", {"phone": "138 0013 8000", "reason": "call-1"}
    )
    assert (status, shown["customer_ref"], shown["name"], headers["etag"]) == (200, ref, None, '"1"')
    change = {
        "name": NAME,
        "phone": "13800138000",
        "vulnerable": True,
        "consents": {"recording": True},
        "reason": "r",
    }
    status, shown, headers = await agent("PATCH", f"/customers/{ref}", change, if_match='"1"')
    assert (status, headers["etag"]) == (200, '"2"')
    assert (shown["name"], shown["phone"], shown["vulnerable"]) == (NAME, "138****8000", True)
    assert (shown["consents"]["recording"]["given"], shown["consents"]["recording"]["by"]) == (True, "mia")
    status, again, _ = await agent("GET", f"/customers/{ref}?reason=call-1")
    assert (status, again) == (200, shown)
    status, page, _ = await agent("GET", f"/customers/{ref}/history?reason=call-1")
    assert (status, page["before"]) == (200, None)
    assert [(line["id"], line["came_to_zh"]) for line in page["contacts"]] == [("call-1", "客户放弃等待")]
    acts = [(act["action"], act["by"], act["reason"]) for act in await books.does(store.actions, [ref])][-4:]
    assert acts == [
        ("viewed history", "mia", "call-1"),
        ("viewed", "mia", "call-1"),
        ("changed", "mia", "name, phone, vulnerable, consent recording: r"),
        ("found", "mia", "call-1"),
    ]
    (row,) = await books.rows("select sealed from customers")
    assert json.loads(books.vault.open(ref, row["sealed"])) == {"name": NAME, "phone": PHONE}


async def test_a_long_history_is_read_page_by_page(books, clients):
    ref = await books.customer()
    for number in range(5):
        await books.a_call(ref, f"call-{number}", after=number // 2, closed_for="abandoned")
    seen, before = [], ""
    while before is not None:
        status, page, _ = await clients["mia"]("GET", f"/customers/{ref}/history?reason=r&limit=2{before}")
        assert status == 200
        seen += [line["id"] for line in page["contacts"]]
        before = page["before"] and f"&before={page['before']}"
    assert seen == ["call-4", "call-3", "call-2", "call-1", "call-0"]


async def test_of_two_agents_who_correct_at_once_the_second_is_told_who_was_first(books, clients):
    ref = await books.customer()
    status, _, _ = await clients["max"](
        "PATCH", f"/customers/{ref}", {"name": "A", "reason": "r"}, if_match='"1"'
    )
    assert status == 200
    status, no, _ = await clients["mia"](
        "PATCH", f"/customers/{ref}", {"name": "B", "reason": "r"}, if_match='"1"'
    )
    assert (status, no["error"]) == (412, "version_stale")
    assert re.fullmatch(r"you read version 1; it is 2 since .*, last changed by max", no["why"])
    for missing in ({}, {"if_match": "*"}, {"if_match": '"x"'}):
        status, no, _ = await clients["mia"](
            "PATCH", f"/customers/{ref}", {"name": "B", "reason": "r"}, **missing
        )
        assert (status, no["error"]) == (428, "version_missing")
    # Ten at once under one version: one is written.
    works = [
        clients["mia"]("PATCH", f"/customers/{ref}", {"name": f"N{number}", "reason": "r"}, if_match='"2"')
        for number in range(10)
    ]
    assert sorted([status for status, _, _ in await asyncio.gather(*works)]) == [200] + [412] * 9


async def test_saying_what_is_known_already_makes_no_new_version(books, clients):
    ref = await books.customer("zh")
    status, shown, _ = await clients["mia"](
        "PATCH", f"/customers/{ref}", {"language": "zh", "reason": "r"}, if_match='"1"'
    )
    assert (status, shown["version"]) == (200, 1)
    assert await books.does(store.actions, [ref]) == []


async def test_managers_merge_and_hold_and_agents_neither_do_nor_see_a_hold(books, clients):
    one, other = await books.customer(), await books.customer()
    for path, body in (
        ("merge", {"into": other, "reason": "r"}),
        ("hold", {"reason": "r"}),
        ("release", {"reason": "r"}),
    ):
        status, _, _ = await clients["mia"]("POST", f"/customers/{one}/{path}", body)
        assert status == 403
    status, shown, _ = await clients["max"](
        "POST", f"/customers/{one}/merge", {"into": other, "reason": "passport"}
    )
    assert (status, shown["customer_ref"]) == (200, other)
    assert [each["customer_ref"] for each in shown["references"]] == [other, one]
    status, no, _ = await clients["max"](
        "POST", f"/customers/{other}/merge", {"into": one, "reason": "passport"}
    )
    assert (status, no["error"], no["next"]) == (409, "same_customer", "nothing is left to do")
    status, shown, _ = await clients["max"]("POST", f"/customers/{one}/hold", {"reason": "court order 7"})
    assert (status, shown["legal_hold"]) == (200, "court order 7")
    _, seen, _ = await clients["mia"]("GET", f"/customers/{one}?reason=call-1")
    assert (seen["customer_ref"], seen["legal_hold"]) == (other, None)
    status, shown, _ = await clients["max"]("POST", f"/customers/{one}/release", {"reason": "over"})
    assert (status, shown["legal_hold"]) == (200, None)
    status, _, _ = await clients["bot"]("GET", f"/customers/{one}?reason=call-1")
    assert status == 403
    assert await books.rows("select 1 from customer_actions where by = 'bot'") == []


async def test_what_is_wrong_is_answered_with_its_place_and_never_with_its_content(books, clients):
    agent, ref = clients["mia"], await books.customer()
    secret = "138001380012345"
    wrong = [
        ("POST", "/customers/find", {"phone": secret, "reason": "call-1"}, 422),
        ("POST", "/customers/find", {"phone": 5, "reason": "call-1", "number": secret}, 422),
        ("POST", "/customers/find", {"phone": "\x00" + secret, "reason": "call-1"}, 422),
        ("POST", "/customers/find", b'{"phone": "\\ud800 138001380012345", "reason": "call-1"}', 422),
        ("POST", "/customers/find", b'{"phone": "138001380012345', 422),
        ("PATCH", f"/customers/{ref}", {"phone": secret, "reason": "r"}, 422),
        ("PATCH", f"/customers/{ref}", {"name": "x\x00" + secret, "reason": "r"}, 422),
        ("PATCH", f"/customers/{ref}", {"nmae": secret, "reason": "r"}, 422),
        ("POST", "/customers/find", {"phone": "13910005000", "reason": "r", secret: 1}, 422),
        ("PATCH", f"/customers/{ref}", {"name": secret}, 422),
        ("GET", f"/customers/{ref}", None, 422),
        ("GET", f"/customers/{ref}/history?reason=r&before={secret}", None, 422),
        ("GET", f"/customers/{ref}/history?reason=r&limit=0", None, 422),
        ("GET", "/customers/c-nobody?reason=call-1", None, 404),
        ("POST", "/customers/find", {"phone": "13910005000", "reason": "call-1"}, 404),
    ]
    for method, path, body, expected in wrong:
        status, answer, _ = await agent(method, path, body, if_match='"1"')
        assert (status, "138001" in json.dumps(answer)) == (expected, False), (path, body, answer)
        assert answer["error"]
    assert (await books.does(store.load, ref)).version == 1


@pytest.mark.parametrize(
    ("token", "path", "expected", "most_read"),
    [
        ("nobody", "/customers/find", (401, "unauthenticated"), 0),
        ("bot", "/customers/find", (403, "forbidden"), 0),
        ("mia", "/customers/c-1/hold", (403, "forbidden"), 0),
        ("mia", "/customers/find", (413, "too_large"), 2),
    ],
)
async def test_who_may_not_ask_is_not_read_and_who_may_is_read_within_bounds(
    clients, token, path, expected, most_read
):
    chunk, read, answers = b"1" * (1 << 16), [], []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("door", 80),
        "client": ("127.0.0.1", 1), "headers": [(b"authorization", f"Bearer {token}".encode())],
    }  # fmt: skip

    async def receive():
        read.append(len(chunk))
        return {"type": "http.request", "body": chunk, "more_body": len(read) < 100}

    async def send(part):
        answers.append(part)

    await clients["mia"].app(scope, receive, send)
    assert (answers[0]["status"], json.loads(answers[1]["body"])["error"]) == expected
    assert len(read) <= most_read


async def test_an_erased_customer_is_shown_as_erased_and_cannot_be_written(books, clients):
    ref = await books.customer()
    await books.named(ref)
    await erased(books, ref, Vault(books.vault._database, books.vault._master))  # by the command line
    status, shown, _ = await clients["mia"]("GET", f"/customers/{ref}?reason=call-1")
    assert (status, shown["name"], shown["phone"], shown["erased_at"][:10]) == (200, None, None, "2026-11-24")
    version = f'"{shown["version"]}"'
    status, no, _ = await clients["mia"](
        "PATCH", f"/customers/{ref}", {"name": "x", "reason": "r"}, if_match=version
    )
    assert (status, no["error"]) == (409, "erased")


# ------------------------------------------------------------ a whole hotline

FINE, PROBLEM, USAGE, UNREACHABLE = range(4)


def hotline(folder, *words, code=FINE, text="", form=("--json",)):
    """Run `hotline customer …`; gives what it printed as JSON, and all of its output as text."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "customer", *words, "--dir", str(folder), *form],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, (words, done.returncode, done.stdout[-500:], done.stderr[-800:])
    return json.loads(done.stdout) if done.stdout and form else None, done.stdout + done.stderr


def test_the_command_says_when_nothing_runs_and_what_is_missing(tmp_path):
    hotline(tmp_path, "show", "c-x", "--reason", "r", code=UNREACHABLE)
    for missing in (["--reason", "r"], ["--by", "officer"], []):
        hotline(tmp_path, "erase", "c-x", *missing, code=USAGE)
    hotline(tmp_path, "export", "c-x", "--reason", "r", code=USAGE)


@pytest.fixture
async def world(world):
    world.start_stages(world.place(), {"HOTLINE_RATE_WITHIN": "PT2S", "HOTLINE_SETTLE": "PT1S"})
    await world.wait_ready()
    return world


class Life:
    """Two customers call, are recorded, worked on, told and asked; then everything about them is looked for."""

    def __init__(self, world):
        self.world, self.place = world, world.place()

    async def plays(self):
        vault = await self.world.vault(self.place)
        people, publisher = People(self.place, vault), KafkaPublisher(self.place.kafka, "tests")
        await asyncio.gather(people.start(), publisher.start())
        refs = []
        for number, script in enumerate(scripts()[:2]):
            ref = vault.customer_ref(script.phone)
            refs.append(ref)
            await vault.ready([ref], create=True)
            await publisher.publish(
                [message(fact) for fact in self._call(vault, ref, script, f"call-{number}")]
            )
            await eventually(partial(self._closed, number + 1), 60, f"case {number} is closed")
        await asyncio.gather(people.stop(), publisher.stop())
        await vault.close()
        return refs

    @staticmethod
    def _call(vault, ref, script, name):
        at = {"call_id": name, "source": "pbx", "occurred_at": utc_now()}
        offered = telephony.CallOffered(**at, customer_ref=ref, caller=vault.seal(ref, script.phone))
        captured = telephony.ReasonCaptured(**at, topic="cards", text=vault.seal(ref, script.summary))
        answered = telephony.CallAnswered(**at, queue="cards", visit=1, agent="a-1", wait_ms=4000)
        return [offered, captured, answered, telephony.CallEnded(**at, cause="normal")]

    async def _closed(self, count):
        rows = await self.rows("feedback", "select key from entities where phase = 'closed'")
        return len(rows) == count

    async def rows(self, stage, sql, *args):
        connection = await asyncpg.connect(self.place.database_url)
        try:
            await connection.execute(f'set search_path to "{self.place.database_prefix}{stage}"')
            return await connection.fetch(sql, *args)
        finally:
            await connection.close()

    async def every_byte(self):
        """All topics from their beginnings, all tables of all schemas, all files: by name of the place."""
        places = {}
        async for record in whole(self.place.kafka, *(topic.name for topic in TOPICS)):
            headers = b" ".join(name.encode() + b"=" + (value or b"") for name, value in record.headers)
            places[f"{record.topic}/{record.partition}/{record.offset}"] = b" ".join(
                [record.key or b"", record.value or b"", headers]
            )
        tables = await self.rows(
            "intake",
            "select table_schema as s, table_name as t from information_schema.tables"
            " where starts_with(table_schema, $1)",
            self.place.database_prefix,
        )
        for table in tables:
            rows = await self.rows("intake", f'select * from "{table["s"]}"."{table["t"]}"')
            places[f"{table['s']}.{table['t']}"] = b"\n".join(
                _raw(value) for row in rows for value in row.values()
            )
        for path in self.world.folder.rglob("*"):
            if path.is_file():
                places[path.name] = path.read_bytes()
        return places


def _raw(value):
    return value if isinstance(value, bytes) else str(value).encode()


def _places_of(places, *texts):
    """Where any of these texts stands: as it is, and as JSON may write it."""
    needles = [needle for text in texts for needle in (text.encode(), json.dumps(text)[1:-1].encode())]
    return {place for place, content in places.items() if any(needle in content for needle in needles)}


_SEALED = re.compile(rb'"(?:%s)":\s?"([\w=-]{32,})"' % "|".join(sorted(SEALED_FIELDS)).encode())


async def _opened(world, places, ref):
    """Every sealed field anywhere that a fresh process can open for this customer."""
    vault = await world.vault(world.place())
    await vault.ready([ref])
    ciphers = {found.decode() for content in places.values() for found in _SEALED.findall(content)}
    texts = [text for cipher in ciphers if (text := vault.open(ref, cipher)) != ERASED]
    await vault.close()
    return sorted(texts)


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.slow
async def test_after_an_erasure_no_topic_no_table_and_no_file_shows_the_person(world, tmp_path):
    life = Life(world)
    mine, other = await life.plays()
    me, them = scripts()[:2]
    personal = (me.name, me.phone, me.phone.removeprefix("+86"), me.summary, me.demand, me.resolution)

    vault = await world.vault(life.place)
    await vault.ready([mine])
    person = vault.seal(mine, Person(name=me.name, phone=me.phone).model_dump_json())
    draft = vault.seal(mine, me.summary)
    await life.rows("intake", "insert into customers (customer_ref, sealed) values ($1, $2)", mine, person)
    await life.rows("intake", "insert into drafts values ('call-9', 1, 'a-1', $1, $2)", mine, draft)
    await vault.close()

    # The person may see everything.
    out = tmp_path / "export.json"
    done, words = await asyncio.to_thread(
        hotline,
        world.folder,
        "export",
        "-",
        "--out",
        str(out),
        "--reason",
        "art. 15",
        "--by",
        "officer",
        text=me.phone,
    )
    assert (done, oct(out.stat().st_mode)[-3:]) == (
        {"file": str(out), "contacts": 1, "cases": 1, "messages": 1},
        "600",
    )
    export = json.loads(out.read_text())
    (case,), (contact,) = export["cases"], export["contacts"]
    said = Personal.model_validate(case["case"]["customer"]["sealed"])
    assert (said.name, said.phone, said.summary, said.demand) == (me.name, me.phone, me.summary, me.demand)
    assert case["stages"]["feedback"]["decision"]["text"] == me.resolution
    assert set(case["stages"]) == {"router", "resolver", "feedback"}
    events = [line["event"] for line in case["said"]]
    assert (events[0], events[-1]) == ("intake.case-recorded.v1", "feedback.case-closed.v1")
    assert (contact["caller"], contact["reason"]["text"]) == (me.phone, me.summary)
    assert me.resolution in export["messages"][0]["text"]
    assert (export["drafts"][0]["sealed"], export["record"]["name"]) == (me.summary, me.name)
    assert export["record"]["actions"][0]["by"] == "officer"
    assert them.name not in out.read_text()
    assert not any(text in words for text in personal)
    await asyncio.to_thread(
        hotline, world.folder, "export", mine, "--out", str(out), "--reason", "again", code=PROBLEM
    )
    out.unlink()

    before = await life.every_byte()
    assert _places_of(before, *personal) == {"told.jsonl"}, "the gateway's copy is the only open one"
    opened = await _opened(world, before, mine)
    assert {me.phone, me.summary, me.resolution} < set(opened)
    assert [text for text in opened if me.name in text]
    theirs = await _opened(world, before, other)

    # A hold stands above it.
    hotline(world.folder, "hold", mine, "--reason", "court order 7", "--by", "counsel")
    _, words = hotline(world.folder, "erase", mine, "--reason", "asked", "--by", "officer", code=PROBLEM)
    assert "legal hold" in words
    assert "court order 7" in words
    assert await _opened(world, await life.every_byte(), mine) == opened
    hotline(world.folder, "release", mine, "--reason", "over", "--by", "counsel")

    done, words = hotline(world.folder, "erase", mine, "--reason", "asked by letter", "--by", "officer")
    assert (done["keys"], done["drafts"], done["messages"], done["calls_remaining"]) == (1, 1, 1, 1)
    after = await life.every_byte()
    assert set(before) <= set(after), "nothing is rewritten or removed, on no topic and in no table"
    assert _places_of(after, *personal) == set()
    assert not any(text in words for text in personal)
    assert await _opened(world, after, mine) == []
    assert await _opened(world, after, other) == theirs
    assert _places_of(after, them.phone) == {"told.jsonl"}, "others keep theirs"

    again, _ = hotline(world.folder, "erase", mine, "--reason", "asked again", "--by", "officer")
    assert (again["keys"], again["drafts"], again["messages"]) == (0, 0, 0)
    assert again["erased_at"] == done["erased_at"]
    shown, _ = hotline(world.folder, "show", "call-0", "--reason", "audit", "--by", "auditor")
    assert (shown["customer_ref"], shown["name"], shown["erased_at"][:10]) == (
        mine,
        None,
        done["erased_at"][:10],
    )
    assert [act["action"] for act in shown["actions"]] == [
        "viewed", "erased", "erased", "released", "held", "exported",
    ]  # fmt: skip
    lines, _ = hotline(world.folder, "history", mine, "--reason", "audit")
    assert [(line["kind"], line["came_to"]) for line in lines][-1] == ("call", "case_recorded")

    # The same for people's eyes.
    for verb, *options in (["show"], ["history"], ["erase", "--by", "officer"]):
        _, words = hotline(world.folder, verb, mine, "--reason", "audit", *options, form=())
        assert {"show": "known since", "history": "已登记工单", "erase": "remains: "}[verb] in words
    _, words = hotline(world.folder, "show", other, "--reason", "audit", "--by", "auditor", form=())
    assert "viewed by auditor: audit" in words

    # Who calls again begins anew: a new key, and what was before stays shut.
    vault = await world.vault(life.place)
    await vault.ready([mine], create=True)
    assert vault.open(mine, vault.seal(mine, "a new matter")) == "a new matter"
    await vault.close()
    assert await _opened(world, after, mine) == []

    # Nobody can tell any more who it was: joined to nobody.
    _, words = hotline(world.folder, "merge", mine, other, "--reason", "married", code=PROBLEM)
    assert f"{mine} was erased" in words
    hotline(world.folder, "show", "c-nobody", "--reason", "audit", code=PROBLEM)
