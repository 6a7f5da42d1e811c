"""The reading copies: calls and visits as the stage knows them, cases as the other stages say."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.batch import Pass
from chassis.memory import MemoryLog, MemorySubscription
from chassis.metrics import StageMetrics
from chassis.roots import new_id
from chassis.vault import Vault
from schemas import feedback, intake, resolver, telephony
from services.intake import store
from services.intake.app import STAGE
from services.intake.contact import Contact, Visit
from services.intake.domain import Policy
from services.intake.door.cases import STATES, Standing, keep, note
from tests.given import (
    DECISION,
    NOW,
    SEALED,
    a_case,
    call,
    ended,
    event,
    looked_up,
    message,
    record_request,
    recorded,
    resolved,
    routed,
)

STORED = replace(STAGE, policy=Policy(), prepare=looked_up)


class Rig:
    def __init__(self, database, master_key):
        self.database, self.log = database, MemoryLog()
        handle = Pass(
            STORED, database, self.log, Vault(database, master_key).seal_record, StageMetrics("intake")
        )
        self.subscription = MemorySubscription(self.log, "intake", STORED.inputs, handle, handle.settle)

    async def take(self, *bodies):
        for body in bodies:
            self.log.append(message(body))
        await self.subscription.drain()

    async def row(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetchrow(sql, *args)


@pytest.fixture
def rig(stage_database, master_key):
    return Rig(stage_database, master_key)


def at(seconds, call_id="call-1"):
    return {**call(call_id), "occurred_at": NOW + timedelta(seconds=seconds)}


def known_call(call_id="call-1", ref="c-1"):
    return telephony.CallOffered(**at(0, call_id), customer_ref=ref, caller=SEALED)


async def test_a_call_and_its_stays_are_readable_as_they_happen(rig):
    await rig.take(known_call(), telephony.CallQueued(**at(1), queue="cards", visit=1, priority=2))
    waiting = await rig.row("select * from visits where answered_at is null and left_at is null")
    assert (waiting["queue"], waiting["priority"], waiting["queued_at"]) == (
        "cards", 2, NOW + timedelta(seconds=1),
    )  # fmt: skip
    await rig.take(
        telephony.CallAnswered(**at(11), queue="cards", visit=1, agent="agent-1", wait_ms=10_000),
        telephony.CallHeld(**at(15), held=True),
        telephony.CallHeld(**at(18), held=False),
        telephony.TalkEnded(**at(41), queue="cards", visit=1, agent="agent-1", talk_ms=30_000),
        telephony.WrapupDone(**at(50), agent="agent-1", acw_ms=9_000),
        ended(),
    )
    visit = await rig.row("select * from visits")
    assert (visit["agent"], visit["wait_ms"], visit["talk_ms"], visit["hold_ms"], visit["acw_ms"]) == (
        "agent-1", 10_000, 30_000, 3_000, 9_000,
    )  # fmt: skip
    assert (await rig.row("select phase, customer_ref from calls")) == ("ended", "c-1")


async def test_a_stay_without_an_end_ends_with_its_call(rig):
    await rig.take(
        telephony.CallQueued(**at(1), queue="cards", visit=1), telephony.CallEnded(**at(30), cause="x")
    )
    row = await rig.row("select left_at, left_for from visits")
    assert row == (NOW + timedelta(seconds=30), "unknown")


async def test_who_waits_elsewhere_waits_no_longer_where_nobody_said_so(rig):
    await rig.take(
        telephony.CallQueued(**at(1), queue="cards", visit=9),
        telephony.CallQueued(**at(30), queue="loans", visit=7),
    )
    async with rig.database.session() as tx:
        rows = await tx.fetch("select queue, left_at, left_for from visits order by queue")
    left_at = NOW + timedelta(seconds=30)
    assert [tuple(row) for row in rows] == [("cards", left_at, "unknown"), ("loans", None, None)]


@pytest.mark.parametrize(("first", "second"), [(9, 7), (7, 9)])
def test_of_two_stays_that_began_in_one_second_the_second_is_not_over(first, second):
    stays = (
        Visit(number=first, queue="cards", queued_at=NOW),
        Visit(number=second, queue="loans", queued_at=NOW + timedelta(seconds=0.5)),
    )
    contact = Contact(call_id="call-1", first_at=NOW, visits=stays)
    assert contact.left_at(stays[1]) is None


async def test_who_called_before_is_known_with_open_cases_and_callbacks(rig):
    case_id = uuid4()
    await rig.take(known_call(), telephony.CallbackRequested(**at(5), queue="cards"), ended())
    await rig.take(known_call("call-2"), known_call("call-3", "c-2"))
    async with rig.database.session() as tx:
        await tx.execute(
            "insert into cases (case_id, customer_ref, recorded_at) values ($1, 'c-1', now())", case_id
        )
        known, families = await store.known_callers(tx, ["c-1", "c-2", "c-9"], NOW - timedelta(days=7))
        later, _ = await store.known_callers(tx, ["c-1"], NOW + timedelta(days=1))
    assert families == {"c-1": "c-1", "c-2": "c-2", "c-9": "c-9"}
    assert known["c-1"].contacts == 2
    assert known["c-1"].open_cases == (case_id,)
    assert known["c-9"] == type(known["c-9"])()
    assert later["c-1"].contacts == 0
    # The second call came first: the callback of the first was cancelled by command, decided at once.
    await rig.subscription.drain()
    assert (await rig.row("select callback_state, closed_for from calls where call_id = 'call-1'")) == (
        "cancelled", "callback_cancelled",
    )  # fmt: skip


async def test_contacts_about_a_case_are_counted_and_the_third_is_escalated(rig):
    async def record(call_id):
        await rig.take(
            known_call(call_id),
            telephony.CallAnswered(**at(2, call_id), queue="q", visit=1, agent="a", wait_ms=0),
        )

    await record("call-1")
    await rig.take(record_request("call-1"))
    case_id = (await rig.row("select case_id from calls"))["case_id"]
    for number in (2, 3):
        await record(f"call-{number}")
        await rig.take(intake.AttachmentRequested(call_id=f"call-{number}", agent="a", to_case_id=case_id))
    said = [
        intake.CaseEscalated.parse(one.value)
        for one in rig.log.records("intake.cases")
        if dict(one.headers)["ce_type"] == b"intake.case-escalated.v1"
    ]
    assert [(one.case_id, one.call_id, one.repeat_no) for one in said] == [(case_id, "call-3", 3)]


async def test_contacts_of_one_batch_are_counted_one_after_the_other(rig):
    for number in range(1, 5):
        call_id = f"call-{number}"
        await rig.take(telephony.CallAnswered(**at(2, call_id), queue="q", visit=1, agent="a", wait_ms=0))
    await rig.take(record_request("call-1"))
    case_id = (await rig.row("select case_id from calls where case_id is not null"))["case_id"]
    attach = [
        intake.AttachmentRequested(call_id=f"call-{n}", agent="a", to_case_id=case_id) for n in (2, 3, 4)
    ]
    # The second of them twice, as a hurried agent clicks.
    await rig.take(attach[0], attach[1], attach[1], attach[2])
    attached = [
        intake.ContactAttached.parse(one.value)
        for one in rig.log.records("intake.cases")
        if dict(one.headers)["ce_type"] == b"intake.contact-attached.v1"
    ]
    assert sorted(one.repeat_no for one in attached) == [2, 3, 4]


# ------------------------------------------------------------ cases


def stamped(body, seconds):
    return event(body)._replace(at=NOW + timedelta(seconds=seconds))


def history():
    record = recorded(a_case())
    case = record.case
    told = feedback.CustomerTold(
        case_id=case.case_id,
        cycle=1,
        channel="sms",
        attempt=1,
        told_at=NOW + timedelta(seconds=3),
        late=False,
    )
    return [
        stamped(record, 0),
        stamped(routed(case), 1),
        stamped(told, 3),
        stamped(
            feedback.CaseClosed(case_id=case.case_id, cycles=1, outcome="upheld", told=True, rated=False), 4
        ),
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(4)), st.lists(st.integers(0, 3), max_size=4))
def test_a_case_stands_as_the_latest_says_in_any_order(order, again):
    events = history()
    standing = Standing(events[0].body.case_id)
    for index in [*order, *again]:
        note(standing, events[index])
    case = events[0].body.case
    assert (standing.state, standing.closed_at) == ("closed", NOW + timedelta(seconds=4))
    assert (standing.case_no, standing.customer_ref) == (case.case_no, case.customer.customer_ref)
    assert standing.told_at == NOW + timedelta(seconds=3)


def twice_around():
    """A case that is resolved, told and opened again, as stages tell it whose clocks disagree."""
    first = a_case()
    second = first.model_copy(update={"cycle": 2})
    where = {"case_id": first.case_id, "department": "cards"}
    held = {**where, "assignment_id": new_id()}
    reopened = feedback.CaseReopened(
        **where, cycle=2, reason="not_solved", prior_decision=DECISION, case=second
    )
    told = feedback.CustomerTold(
        case_id=first.case_id, cycle=1, channel="sms", attempt=1, told_at=NOW, late=False
    )
    return [
        stamped(recorded(first), 9),
        stamped(routed(first), 8),  # The router's clock is fast: it says so after the result.
        stamped(resolver.CaseDelivered(**held, accept_due=NOW), 2),
        stamped(resolved(first), 4),
        stamped(told, 3),
        stamped(reopened, 12),
        stamped(routed(second, "loans"), 11),
        stamped(resolved(second, "loans"), 10),
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(8)), st.integers(1, 8), st.lists(st.integers(0, 7), max_size=4))
def test_a_case_stands_as_the_last_of_its_life_says_whatever_the_clocks(order, upto, again):
    events = twice_around()
    heard = [*order[:upto], *again]
    standing = Standing(events[0].body.case_id)
    for index in heard:
        note(standing, events[index])
    last = max(set(heard) - {2}, default=2)  # Its word has no cycle: against the others time decides.
    assert standing.state == STATES[type(events[last].body)]
    assert standing.cycle == {2: None}.get(last, 1 if last < 5 else 2)


def worked_on(delivered, accepted):
    """The same, and what its department says of the work on it: without its cycle, at whatever times."""
    events = twice_around()
    body = events[2].body
    held = {"case_id": body.case_id, "assignment_id": body.assignment_id, "department": "cards"}
    work = resolver.CaseAccepted(**held, clerk="clerk-1")
    events[2] = stamped(body, delivered)
    return [*events, stamped(work, accepted)]


SECONDS = st.tuples(st.integers(0, 14), st.integers(0, 14))


@settings(max_examples=300)
@given(st.permutations(range(9)), st.permutations(range(9)), st.integers(1, 9), SECONDS)
def test_how_a_case_stands_depends_on_what_was_said_and_never_on_its_order(one, other, upto, times):
    events, said = worked_on(*times), one[:upto]
    stand = [Standing(events[0].body.case_id) for _ in range(2)]
    for standing, order in zip(stand, (said, [index for index in other if index in said]), strict=True):
        for index in [*order, order[0]]:
            note(standing, events[index])
    assert len({(one.state, one.changed_at, one.cycle, one.closed_at) for one in stand}) == 1


def test_a_result_stands_whatever_work_is_told_later_until_the_case_is_opened_again():
    events = worked_on(13, 14)
    standing = Standing(events[0].body.case_id)
    stood = []
    for index in (0, 1, 8, 3, 2, 5):
        note(standing, events[index])
        stood.append(standing.state)
    assert stood == ["recorded", "routed", "in_progress", "resolved", "resolved", "in_progress"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.permutations(range(9)), st.sets(st.integers(1, 8)), SECONDS)
async def test_the_table_of_cases_says_what_the_rule_says_however_words_are_batched(rig, order, cuts, times):
    events = worked_on(*times)
    standing = Standing(events[0].body.case_id)
    ends = [*sorted(cuts), len(order)]
    for begin, end in zip([0, *ends], ends, strict=False):
        batch = [events[index] for index in order[begin:end]]
        for word in batch:
            note(standing, word)
        async with rig.database.transaction() as tx:
            await keep(tx, batch)
    row = await rig.row(
        "select state, changed_at, cycle, department, closed_at from cases where case_id = $1",
        standing.case_id,
    )
    assert tuple(row) == (
        standing.state, standing.changed_at, standing.cycle, standing.department, standing.closed_at,
    )  # fmt: skip


KEPT_WAITING = (
    "select count(*) from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))"
)


@pytest.mark.parametrize("known", [False, True])
async def test_two_doors_that_hear_of_one_case_at_once_keep_both_words(rig, known):
    record, first, _, closed = history()
    if known:
        async with rig.database.transaction() as tx:
            await keep(tx, [first])

    async def hear(event):
        async with rig.database.transaction() as tx:
            await keep(tx, [event])

    async with rig.database.transaction() as tx:
        # Of a row that is known already, the other door can wait first where it reads it.
        await (tx.execute("select from cases for update") if known else keep(tx, [closed]))
        other = asyncio.create_task(hear(stamped(record.body, 0)))
        while not await tx.fetchval(KEPT_WAITING):
            assert not other.done()
            await asyncio.sleep(0)
        await keep(tx, [closed])
    await other
    row = await rig.row("select state, case_no, recorded_at, closed_at from cases")
    case = record.body.case
    assert tuple(row) == ("closed", case.case_no, case.recorded_at, closed.at)


async def test_a_recorded_case_tells_of_its_customer_once_and_whoever_corrects_it_has_the_last_word(rig):
    events = history()
    case = events[0].body.case.model_copy(update={"language": "en", "vulnerable": True})
    record = intake.CaseRecorded(case_id=case.case_id, case=case)
    told = [stamped(record, 0), stamped(routed(case), 1)]
    async with rig.database.transaction() as tx:
        await keep(tx, told)
    customer = await rig.row("select * from customers")
    assert (customer["customer_ref"], customer["language"], customer["vulnerable"], customer["version"]) == (
        case.customer.customer_ref, "en", True, 1,
    )  # fmt: skip
    await rig.row("update customers set language = null, vulnerable = false")
    async with rig.database.transaction() as tx:
        await keep(tx, [*told, *events[1:]])
    customer = await rig.row("select * from customers")
    assert (customer["language"], customer["vulnerable"]) == (None, False)
    assert (await rig.row("select state from cases"))["state"] == "closed"


async def test_a_case_noted_before_cases_told_of_customers_tells_once_it_is_read_again(rig):
    events = history()
    case = events[0].body.case.model_copy(update={"language": "en", "vulnerable": True})
    record = stamped(intake.CaseRecorded(case_id=case.case_id, case=case), 0)
    await rig.row(
        "insert into cases (case_id, customer_ref, recorded_at, state, changed_at)"
        " values ($1, $2, $3, 'recorded', $3)",
        case.case_id,
        case.customer.customer_ref,
        case.recorded_at,
    )
    for language in ("en", None):
        async with rig.database.transaction() as tx:
            await keep(tx, [record])
        assert (await rig.row("select language from customers"))["language"] == language
        async with rig.database.transaction() as tx:
            await keep(tx, events[2:])  # What names no case says nothing of its customer.
        await rig.row("update customers set language = null")


async def test_a_case_and_what_it_tells_of_its_customer_are_kept_together_or_not_at_all(rig):
    record = history()[0]

    async def dies():
        async with rig.database.transaction() as tx:
            await keep(tx, [record])
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await dies()
    counts = "select (select count(*) from cases) as cases, (select count(*) from customers) as customers"
    assert tuple((await rig.row(counts)).values()) == (0, 0)
    async with rig.database.transaction() as tx:
        await keep(tx, [record])
    assert tuple((await rig.row(counts)).values()) == (1, 1)


def rings(seconds, call_id, ref="c-1"):
    return telephony.CallOffered(**at(seconds, call_id), customer_ref=ref, caller=SEALED)


async def test_rings_of_one_batch_see_each_other_in_the_order_of_their_time(rig):
    await rig.take(rings(0, "call-0"), rings(0, "other", "c-2"))
    twin = rings(10, "call-1").model_copy(update={"leg_id": "the other feed"})
    again = rings(0, "call-0").model_copy(update={"leg_id": "the other feed"})
    later = (rings(30, "call-3"), rings(20, "call-2"), rings(40, "other-2", "c-2"), rings(50, "new", "c-3"))
    await rig.take(*later, rings(10, "call-1"), twin, again)
    noticed = [
        intake.RepeatNoticed.parse(one.value)
        for one in rig.log.records("intake.cases")
        if dict(one.headers)["ce_type"] == b"intake.repeat-noticed.v1"
    ]
    assert sorted((body.call_id, body.contacts) for body in noticed) == [
        ("call-1", 2), ("call-2", 3), ("call-3", 4), ("other-2", 2),
    ]  # fmt: skip


async def merged(rig):
    async with rig.database.session() as tx:
        await tx.execute(
            "insert into customers (customer_ref, merged_into)"
            " values ('c-0', null), ('c-1', 'c-0'), ('c-2', 'c-1')"
        )


async def test_rings_of_merged_numbers_see_each_other_in_one_batch(rig):
    await merged(rig)
    await rig.take(rings(20, "call-2", "c-2"), rings(10, "call-1"), rings(30, "call-3", "c-0"))
    noticed = [
        intake.RepeatNoticed.parse(one.value)
        for one in rig.log.records("intake.cases")
        if dict(one.headers)["ce_type"] == b"intake.repeat-noticed.v1"
    ]
    assert sorted((body.call_id, body.contacts) for body in noticed) == [("call-2", 2), ("call-3", 3)]


async def test_a_wish_under_one_merged_number_is_cancelled_by_a_call_from_another_in_its_batch(rig):
    await merged(rig)
    await rig.take(rings(0, "call-1", "c-2"))
    wish = telephony.CallbackRequested(**at(5, "call-1"), queue="cards")
    await rig.take(wish, rings(60, "call-2", "c-1"))
    await rig.subscription.drain()
    assert (await rig.row("select callback_state from calls where call_id = 'call-1'"))[0] == "cancelled"


async def test_a_callback_wished_in_a_batch_is_cancelled_by_a_later_call_in_it(rig):
    wish = telephony.CallbackRequested(**at(5, "call-1"), queue="cards")
    await rig.take(rings(0, "call-1"), wish, rings(60, "call-2"))
    await rig.subscription.drain()
    assert (await rig.row("select callback_state from calls where call_id = 'call-1'"))[0] == "cancelled"


@pytest.mark.parametrize("named", [None, "c-1", "c-9"], ids=["unnamed", "the caller's", "another's number"])
async def test_a_wish_of_an_earlier_batchs_call_is_cancelled_by_a_later_call_of_its_customer(rig, named):
    await rig.take(rings(0, "call-1"))
    wish = telephony.CallbackRequested(**at(5, "call-1"), queue="cards", customer_ref=named)
    await rig.take(wish, rings(60, "call-2"))
    await rig.subscription.drain()
    assert (await rig.row("select callback_state from calls where call_id = 'call-1'"))[0] == "cancelled"


async def test_a_wish_is_its_callers_whoever_else_rings_beside_it(rig):
    await rig.take(rings(0, "call-1"))
    wish = telephony.CallbackRequested(**at(5, "call-1"), queue="cards")
    await rig.take(wish, rings(1, "call-2"), rings(60, "call-3", "c-2"))
    await rig.subscription.drain()
    assert (await rig.row("select callback_state from calls where call_id = 'call-1'"))[0] == "open"


async def test_a_wish_of_a_withheld_number_is_theirs_whose_number_it_names(rig):
    await rig.take(rings(0, "call-1", None))
    wish = telephony.CallbackRequested(**at(5, "call-1"), queue="cards", customer_ref="c-1", number=SEALED)
    await rig.take(wish, rings(60, "call-2"))
    await rig.subscription.drain()
    assert (await rig.row("select callback_state from calls where call_id = 'call-1'"))[0] == "cancelled"


async def test_rings_of_different_customers_ask_for_nothing_more(rig, monkeypatch):
    asked = []
    known_calls = store.known_calls

    async def counted(tx, call_ids):
        asked.append(call_ids)
        return await known_calls(tx, call_ids)

    monkeypatch.setattr(store, "known_calls", counted)
    await rig.take(rings(0, "call-1"), rings(0, "call-2", "c-2"))
    assert asked == []
    await rig.take(rings(1, "call-3"), rings(2, "call-4"))
    assert asked == [["call-3", "call-4"]]
