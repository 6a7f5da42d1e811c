"""A contact is what its facts say, whatever order they come in; promises to call back are kept or named."""

from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.step import Ignored, Refused, Waiting
from schemas import intake, telephony
from schemas.handoffs import CALL_BACK
from schemas.handoffs import WRAP_UP as ANSWER_WITHIN
from services.intake import domain
from services.intake.contact import Contact
from services.intake.domain import Known, Policy
from tests.given import NOW, SEALED, Life, answered, call, ended, offered


def at(seconds: float) -> dict:
    return {**call(), "occurred_at": NOW + timedelta(seconds=seconds)}


OFFERED = telephony.CallOffered(**at(0), customer_ref="c-1", caller=SEALED, language="zh")
QUEUED = telephony.CallQueued(**at(1), queue="cards", visit=1, position=2)
ANSWERED = telephony.CallAnswered(**at(31), queue="cards", visit=1, agent="agent-1", wait_ms=30_000)
TALKED = telephony.TalkEnded(**at(91), queue="cards", visit=1, agent="agent-1", talk_ms=60_000)
QUEUED_AGAIN = telephony.CallQueued(**at(90), queue="loans", visit=2)
ANSWERED_AGAIN = telephony.CallAnswered(**at(100), queue="loans", visit=2, agent="agent-2", wait_ms=10_000)
TALKED_AGAIN = telephony.TalkEnded(**at(120), queue="loans", visit=2, agent="agent-2", talk_ms=20_000)
HELD = telephony.CallHeld(**at(105), held=True)
RELEASED = telephony.CallHeld(**at(110), held=False)
WRAPPED = telephony.WrapupDone(**at(140), agent="agent-2", acw_ms=15_000)
ENDED = telephony.CallEnded(**at(121), cause="hangup_16")
TRANSFERRED = [
    OFFERED, QUEUED, ANSWERED, TALKED, QUEUED_AGAIN, ANSWERED_AGAIN,
    TALKED_AGAIN, HELD, RELEASED, WRAPPED, ENDED,
]  # fmt: skip

LEFT_UNKNOWN = telephony.QueueLeft(**at(41), queue="cards", visit=1, reason="unknown")
LEFT_TIMEOUT = telephony.QueueLeft(**at(41), queue="cards", visit=1, reason="timeout", wait_ms=40_000)
LEFT_ABANDONED = telephony.QueueLeft(**at(41), queue="cards", visit=1, reason="abandoned", wait_ms=40_000)
UNANSWERED = [OFFERED, QUEUED, LEFT_UNKNOWN, LEFT_ABANDONED, LEFT_TIMEOUT, ENDED]


def lived(bodies, policy=None) -> Life:
    life = Life(domain.DECISIONS, policy or Policy())
    life.everything = []
    for body in bodies:
        life.when(body)
        life.everything += life.said
    return life


def fired(life, timer):
    """Let a timer come, if it is set."""
    if timer in life.timers:
        due = life.timers.pop(timer)
        life.when(intake.TimerFired(subject="call-1", timer=timer, due_at=due))
        life.everything += life.said
    return life


@settings(max_examples=150)
@given(st.permutations(TRANSFERRED), st.lists(st.sampled_from(TRANSFERRED), max_size=5))
def test_any_order_and_any_repetition_gives_the_same_call(order, again):
    assert lived([*order, *again]).state == lived(TRANSFERRED).state


@settings(max_examples=150)
@given(st.permutations(TRANSFERRED), st.lists(st.sampled_from(TRANSFERRED), max_size=5))
def test_any_order_owes_one_record_and_closes_nothing(order, again):
    life = lived([*order, *again])
    assert life.everything == []
    assert life.timers == {"wrap-up": ENDED.occurred_at + timedelta(minutes=10)}


def test_a_transferred_call_knows_both_talks():
    contact: Contact = lived(TRANSFERRED).state
    assert [(visit.agent, visit.wait_ms, visit.talk_ms) for visit in contact.visits] == [
        ("agent-1", 30_000, 60_000),
        ("agent-2", 10_000, 20_000),
    ]
    assert (contact.agent, contact.queue, contact.waited_ms) == ("agent-2", "loans", 30_000)
    assert contact.hold_ms == 5_000
    assert contact.wrapped_up == {"agent-2": 15_000}


@settings(max_examples=100)
@given(st.permutations([fact for fact in UNANSWERED if fact is not ENDED]))
def test_the_reason_that_says_more_is_believed_whatever_came_first(order):
    (closed,) = fired(lived([*order, ENDED]), "settle").everything
    assert (closed.reason, closed.waited_ms, closed.queue) == ("timeout", 40_000, "cards")


@settings(max_examples=100)
@given(st.permutations(UNANSWERED), st.lists(st.sampled_from(UNANSWERED), max_size=4))
def test_an_unanswered_call_is_closed_once_and_its_facts_are_the_same(order, again):
    life = fired(lived([*order, *again]), "settle")
    assert [(type(body), body.reason) for body in life.everything] == [(intake.ContactClosed, "timeout")]
    assert life.state == fired(lived(UNANSWERED), "settle").state
    assert life.timers == {}


def test_an_unknown_reason_waits_for_a_better_one_and_is_told_if_none_comes():
    life = lived([OFFERED, QUEUED, LEFT_UNKNOWN, ENDED])
    assert life.everything == []
    assert "settle" in life.timers
    fired = intake.TimerFired(subject="call-1", timer="settle", due_at=NOW)
    assert life.when(fired).then(intake.ContactClosed).said[0].reason == "unknown"


# The table of delivery row 44: what a call is when its facts contradict each other.
@pytest.mark.parametrize(
    ("facts", "agent", "left"),
    [
        ([OFFERED, ENDED], None, None),
        ([OFFERED, QUEUED, LEFT_ABANDONED, ANSWERED, ENDED], "agent-1", None),
        ([OFFERED, QUEUED, ANSWERED, LEFT_ABANDONED, ENDED], "agent-1", None),
        ([OFFERED, QUEUED, ANSWERED, ANSWERED.model_copy(update={"agent": "agent-9"})], "agent-1", None),
        ([OFFERED, TALKED, ENDED], "agent-1", None),
        ([OFFERED, QUEUED, LEFT_ABANDONED], None, "abandoned"),
        ([ENDED, OFFERED], None, None),
    ],
)
def test_contradicting_facts_have_a_defined_outcome(facts, agent, left):
    contact = lived(facts).state
    assert (contact.agent, contact.left) == (agent, left)


def test_a_talk_without_its_answer_is_an_answered_call():
    life = lived([OFFERED, QUEUED, TALKED, ENDED])
    assert "wrap-up" in life.timers
    assert life.state.answered.answered_at == TALKED.occurred_at - timedelta(seconds=60)


def test_a_call_that_never_ends_is_closed_or_named_after_the_longest_time():
    fired = intake.TimerFired(subject="call-1", timer="lost-track", due_at=NOW)
    life = lived([OFFERED, QUEUED])
    assert life.timers["lost-track"] == NOW + timedelta(hours=4)
    assert life.when(fired).then(intake.ContactClosed).said[0].reason == "end_unknown"
    lived([OFFERED, QUEUED, ANSWERED]).when(fired).then(intake.RecordingOverdue)


def test_a_record_that_is_overdue_is_named_once():
    life = lived([OFFERED, ANSWERED, ENDED])
    fired = intake.TimerFired(subject="call-1", timer="wrap-up", due_at=life.timers.pop("wrap-up"))
    life.when(fired).then(intake.RecordingOverdue)
    life.when(TALKED).then()
    assert "wrap-up" not in life.timers
    life.when(fired).then()


@pytest.mark.parametrize(("late", "due"), [
    (timedelta(), NOW + timedelta(seconds=5)),
    # The ledger gives an end ten minutes: who waits longer for an explanation looks like a lost timer.
    (timedelta(minutes=30), ENDED.occurred_at + ANSWER_WITHIN),
])  # fmt: skip
def test_an_end_that_is_told_late_waits_for_no_explanation_beyond_its_deadline(late, due):
    life = lived([OFFERED])
    life.now += late
    life.when(ENDED)
    assert life.timers["settle"] == due


@settings(max_examples=60)
@given(
    st.permutations(
        [OFFERED, ANSWERED, ENDED, ENDED.model_copy(update={"occurred_at": NOW + timedelta(seconds=99)})]
    )
)
def test_the_record_is_due_from_the_earlier_of_two_ends(order):
    assert lived(order).timers["wrap-up"] == NOW + timedelta(seconds=99) + timedelta(minutes=10)


REFUSED = telephony.CallRefused(**at(1), queue="cards", reason="full")
QUEUED_ELSEWHERE = telephony.CallQueued(**at(2), queue="loans", visit=1)
GAVE_UP = telephony.QueueLeft(**at(41), queue="loans", visit=1, reason="abandoned", wait_ms=39_000)


@settings(max_examples=60)
@given(st.permutations([OFFERED, REFUSED, QUEUED_ELSEWHERE, ENDED, GAVE_UP]))
def test_who_is_refused_and_then_waits_elsewhere_left_for_what_happened_there(order):
    (closed,) = fired(lived(order), "settle").everything
    assert (closed.reason, closed.queue) == ("abandoned", "loans")


# Two feeds of one switch tell the same facts, the one in milliseconds, the other in whole seconds.
TWICE_TOLD = [
    QUEUED,
    QUEUED.model_copy(update={"occurred_at": NOW + timedelta(seconds=1.7)}),
    ANSWERED,
    ANSWERED.model_copy(update={"occurred_at": NOW + timedelta(seconds=30.2), "wait_ms": 29_200}),
    ANSWERED.model_copy(update={"agent": "agent-9"}),
    TALKED,
    TALKED.model_copy(update={"talk_ms": 61_000, "wait_ms": 31_000}),
    TALKED.model_copy(update={"occurred_at": NOW + timedelta(seconds=90.4), "agent": "agent-9"}),
    LEFT_UNKNOWN,
    LEFT_TIMEOUT,
    LEFT_TIMEOUT.model_copy(update={"wait_ms": None, "occurred_at": NOW + timedelta(seconds=40)}),
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(TWICE_TOLD), min_size=2, max_size=6).flatmap(
    lambda told: st.tuples(st.just(told), st.permutations(told))
))  # fmt: skip
def test_facts_that_differ_by_their_source_give_one_stay_in_any_order(orders):
    one, other = orders
    assert lived(one).state.visits == lived(other).state.visits


MOVED_ON = [
    OFFERED,
    telephony.CallQueued(**at(1), queue="cards", visit=700_000_001),
    telephony.QueueLeft(**at(41), queue="cards", visit=700_000_001, reason="timeout", wait_ms=40_000),
    telephony.CallQueued(**at(42), queue="loans", visit=5_000),
    telephony.QueueLeft(**at(61), queue="loans", visit=5_000, reason="abandoned", wait_ms=19_000),
    ENDED,
]


@given(st.permutations(MOVED_ON))
def test_of_stays_that_nobody_counted_the_last_is_the_one_that_began_last(order):
    contact = lived(order).state
    assert (contact.queue, contact.left, contact.waited_ms) == ("loans", "abandoned", 19_000)


def test_an_unsealed_number_is_refused():
    outcome = lived([telephony.CallOffered(**at(0), caller="13800138000")]).outcome
    assert isinstance(outcome, Refused)
    assert outcome.code == "unsealed_number"
    assert "13800138000" not in outcome.explanation


@pytest.mark.parametrize(("fact", "code"), [
    (telephony.CallbackRequested(**at(0), queue="cards", customer_ref="c-1", number="13800138000"), "unsealed_number"),
    (telephony.ReasonCaptured(**at(0), topic="card_lost", customer_ref="c-1", text="我的卡丢了" * 10), "unsealed_text"),
    (telephony.ReasonCaptured(**at(0), topic="card_lost", customer_ref="c-1", text="a-card-was-stolen"), "unsealed_text"),
])  # fmt: skip
def test_numbers_and_words_that_are_not_sealed_go_no_further(fact, code):
    outcome = lived([OFFERED]).when(fact).outcome
    assert (type(outcome), outcome.code) == (Refused, code)
    assert (fact.number if code == "unsealed_number" else fact.text) not in outcome.explanation


def test_whose_key_opens_the_words_is_kept_with_them():
    said = telephony.ReasonCaptured(**at(5), topic="card_lost", customer_ref="c-of-this-call", text=SEALED)
    assert lived([said, OFFERED]).state.reason.customer_ref == "c-of-this-call"


# ------------------------------------------------------------ callbacks

WISHED = telephony.CallbackRequested(**at(20), queue="cards")
LEFT_BY_KEY = telephony.QueueLeft(**at(20), queue="cards", visit=1, reason="key", wait_ms=19_000)


def promised() -> Life:
    return lived([OFFERED, QUEUED, LEFT_BY_KEY, WISHED, ENDED])


def tried(outcome, **more):
    return intake.CallbackAttemptReported(call_id="call-1", agent="agent-1", outcome=outcome, **more)


def test_a_callback_keeps_the_place_and_the_contact_stays_open():
    life = promised()
    (scheduled,) = life.everything
    assert isinstance(scheduled, intake.CallbackScheduled)
    assert scheduled.waiting_since == QUEUED.occurred_at
    assert (scheduled.number, scheduled.customer_ref) == (SEALED, "c-1")
    assert life.state.phase == "callback"
    assert life.timers == {"callback": scheduled.due_at + timedelta(minutes=30)}


@settings(max_examples=60)
@given(st.permutations([OFFERED, QUEUED, WISHED, ENDED]))
def test_a_callback_is_scheduled_once_in_any_order(order):
    life = lived(order)
    assert [type(body) for body in life.everything] == [intake.CallbackScheduled]
    assert life.state.phase == "callback"


def test_a_wish_beyond_two_days_is_brought_forward_and_a_past_one_is_now():
    far = lived([OFFERED, telephony.CallbackRequested(**at(1), queue="q", due_at=NOW + timedelta(days=9))])
    assert far.said[0].due_at == NOW + timedelta(days=2)
    past = lived([OFFERED, telephony.CallbackRequested(**at(1), queue="q", due_at=NOW - timedelta(days=1))])
    assert past.said[0].due_at == NOW


def test_a_reached_customer_ends_the_contact():
    life = promised().when(tried("answered", by_call_id="call-2"))
    life.then(intake.CallbackAttempted, intake.ContactClosed)
    assert life.said[1].reason == "called_back"
    assert life.timers == {}
    assert life.when(tried("answered")).outcome.code == "callback_over"


def test_three_failed_attempts_exhaust_the_callback():
    life = promised()
    life.when(tried("no_answer")).then(intake.CallbackAttempted)
    assert life.said[0].next_at == NOW + timedelta(minutes=30)
    life.when(tried("busy")).then(intake.CallbackAttempted)
    life.when(tried("failed"))
    life.then(intake.CallbackAttempted, intake.CallbackExhausted, intake.ContactClosed)
    assert [life.said[0].attempt, life.said[1].attempts, life.said[2].reason] == [3, 3, "callback_exhausted"]


def test_a_callback_that_nobody_makes_is_named_and_may_still_be_made():
    life = promised()
    fired = intake.TimerFired(subject="call-1", timer="callback", due_at=life.timers.pop("callback"))
    life.when(fired).then(intake.CallbackOverdue)
    life.when(fired).then()
    life.when(tried("answered")).then(intake.CallbackAttempted, intake.ContactClosed)


def test_a_customer_who_comes_first_need_not_be_called():
    known = {"c-1": Known(contacts=1, callbacks=("call-1",))}
    first = Life(domain.DECISIONS, Policy(known=known))
    second = telephony.CallOffered(**{**at(100), "call_id": "call-2"}, customer_ref="c-1", caller=SEALED)
    first.when(second).then(intake.RepeatNoticed, intake.CallbackCancellationRequested)
    request = first.said[1]
    assert (request.call_id, request.reason, request.by_call_id) == ("call-1", "customer_called", "call-2")
    life = promised().when(request)
    life.then(intake.CallbackCancelled, intake.ContactClosed)
    assert life.said[0].by_call_id == "call-2"
    assert life.when(tried("answered")).outcome.code == "callback_over"


def test_our_own_call_back_does_not_cancel_itself_and_reports_when_answered():
    known = {"c-1": Known(contacts=1, callbacks=("call-1",))}
    ours = Life(domain.DECISIONS, Policy(known=known))
    back = telephony.CallOffered(
        **{**at(100), "call_id": "call-2"}, customer_ref="c-1", caller=SEALED, callback_of="call-1"
    )
    ours.when(back).then(intake.RepeatNoticed)
    ours.when(ANSWERED.model_copy(update={"call_id": "call-2"})).then(intake.CallbackAttemptReported)
    assert (ours.said[0].call_id, ours.said[0].by_call_id) == ("call-1", "call-2")


BACK = telephony.CallOffered(
    **{**at(100), "call_id": "call-2"}, customer_ref="c-1", caller=SEALED, callback_of="call-1"
)


@settings(max_examples=60)
@given(
    st.permutations([
        BACK,
        ANSWERED.model_copy(update={"call_id": "call-2"}),
        TALKED.model_copy(update={"call_id": "call-2"}),
        ENDED.model_copy(update={"call_id": "call-2"}),
    ]),
    st.booleans(),
)  # fmt: skip
def test_a_kept_promise_is_reported_once_in_any_order_even_if_the_answer_itself_was_lost(order, lost):
    said = lived(
        [fact for fact in order if not lost or not isinstance(fact, telephony.CallAnswered)]
    ).everything
    (reported,) = [body for body in said if isinstance(body, intake.CallbackAttemptReported)]
    assert (reported.call_id, reported.agent, reported.by_call_id) == ("call-1", "agent-1", "call-2")


def test_a_timer_of_an_earlier_promise_says_nothing_about_the_next():
    life = promised()
    fired = intake.TimerFired(subject="call-1", timer="callback", due_at=life.timers["callback"])
    life.when(tried("no_answer"), after=timedelta(minutes=39))
    assert life.when(fired).outcome == Ignored("no_longer_needed")
    assert life.state.callback.state == "open"
    again = intake.TimerFired(subject="call-1", timer="callback", due_at=life.timers["callback"])
    life.when(again).then(intake.CallbackOverdue)


@settings(max_examples=60)
@given(st.permutations([OFFERED, QUEUED, telephony.CallQueued(**at(5), queue="cards", visit=2), WISHED]))
def test_the_place_is_kept_from_the_last_stay_before_the_wish_in_any_order(order):
    assert lived(order).state.callback.waiting_since == NOW + timedelta(seconds=5)


@given(st.none() | st.timedeltas(min_value=timedelta(days=-9), max_value=timedelta(days=99)))
def test_whatever_is_wished_the_stage_speaks_before_the_ledger_must(wish):
    due = None if wish is None else NOW + wish
    life = lived([OFFERED, telephony.CallbackRequested(**at(1), queue="q", due_at=due)])
    assert life.timers["callback"] < NOW + CALL_BACK


def test_commands_about_a_callback_that_is_not_there():
    assert isinstance(Life(domain.DECISIONS, Policy()).when(tried("answered")).outcome, Waiting)
    assert lived([OFFERED]).when(tried("answered")).outcome.code == "no_callback"


def test_a_callback_wished_while_an_agent_talks_is_owed_beside_the_record():
    wish = telephony.CallbackRequested(**at(50), queue="cards")
    life = lived([OFFERED, QUEUED, ANSWERED, wish, ENDED])
    assert life.state.phase == "ended"
    assert {"wrap-up", "callback"} <= set(life.timers)
    life.when(tried("answered")).then(intake.CallbackAttempted)
    assert life.state.phase == "ended"


@settings(max_examples=60)
@given(st.permutations([OFFERED, QUEUED, WISHED, ANSWERED, ENDED]))
def test_whom_an_agent_answers_after_the_wish_nobody_calls_back(order):
    life = lived(order)
    said = [type(body) for body in life.everything]
    assert said in ([], [intake.CallbackScheduled, intake.CallbackCancelled])
    assert all(body.by_call_id == "call-1" for body in life.everything[1:])
    assert (life.state.phase, life.state.callback.state) == ("ended", "cancelled")
    assert set(life.timers) == {"wrap-up"}
    assert life.when(tried("answered")).outcome.code == "callback_over"


CORRECTED = telephony.CallbackRequested(
    **at(30), queue="cards", number=SEALED, customer_ref="c-2", due_at=NOW + timedelta(hours=5)
)


@settings(max_examples=60)
@given(st.permutations([OFFERED, QUEUED, WISHED, CORRECTED, ENDED]), st.sampled_from([WISHED, CORRECTED]))
def test_the_last_wish_counts_and_keeps_the_place_in_any_order(order, again):
    life = lived([*order, again])
    last = life.everything[-1]
    assert [type(body) for body in life.everything] in ([type(last)], [type(last)] * 2)
    assert (last.number, last.customer_ref, last.due_at) == (SEALED, "c-2", CORRECTED.due_at)
    assert life.state.callback.waiting_since == QUEUED.occurred_at
    assert life.timers == {"callback": CORRECTED.due_at + timedelta(minutes=30)}


def monday(queue, when):
    """Open from nine on the next Monday."""
    return (when + timedelta(days=7 - when.weekday())).replace(hour=9, minute=0) if queue == "loans" else when


def test_nobody_is_called_back_nor_waited_for_while_the_queue_is_closed():
    policy = Policy(opens=monday)
    opening = NOW + timedelta(days=6)
    assert opening.weekday() == 0
    wish = telephony.CallbackRequested(**at(20), queue="loans")
    life = lived([OFFERED, wish, ENDED], policy)
    assert life.everything[0].due_at == opening
    assert life.timers["callback"] == opening + timedelta(minutes=30)
    life.when(tried("no_answer")).then(intake.CallbackAttempted)
    assert life.said[0].next_at == opening
    assert domain.promised_for(opening, "cards", NOW, policy) == NOW + timedelta(days=2)
    assert domain.promised_for(None, "cards", NOW, policy) == NOW + timedelta(minutes=10)


@given(st.none() | st.timedeltas(min_value=timedelta(days=-9), max_value=timedelta(days=99)), st.booleans())
def test_what_was_promised_once_is_promised_again(wish, closed):
    policy = Policy(opens=(lambda _, when: None) if closed else domain.Policy().opens)
    promised = domain.promised_for(None if wish is None else NOW + wish, "q", NOW, policy)
    assert NOW <= promised < NOW + CALL_BACK
    assert domain.promised_for(promised, "q", NOW, policy) == promised


# ------------------------------------------------------------ what comes late

LEFT_GENERAL = telephony.QueueLeft(**at(61), queue="general", visit=1, reason="timeout", wait_ms=60_000)
OVERFLOWED = [
    OFFERED, telephony.CallQueued(**at(1), queue="general", visit=1), LEFT_GENERAL,
    QUEUED_AGAIN, ANSWERED_AGAIN, TALKED_AGAIN, ENDED,
]  # fmt: skip


@settings(max_examples=200)
@given(st.permutations(OVERFLOWED))
def test_an_end_before_a_later_stay_closes_nothing(order):
    life = lived(order)
    assert life.everything == []
    assert life.state == lived(OVERFLOWED).state
    assert life.timers == {"wrap-up": ENDED.occurred_at + timedelta(minutes=10)}


@settings(max_examples=100)
@given(st.permutations(OVERFLOWED), st.integers(1, 7))
def test_an_answer_after_the_closing_owes_the_record_all_the_same(order, settled):
    life = lived(order[:settled])
    fired(life, "settle")
    fired(life, "lost-track")
    closed = life.state.phase == "closed"
    for body in order[settled:]:
        life.when(body)
    # Whom the lost end was told of has been told.
    assert life.state.model_copy(update={"overdue": False}) == lived(OVERFLOWED).state
    assert not closed or life.timers == {"wrap-up": ENDED.occurred_at + timedelta(minutes=10)}
    life.when(intake.ClosingRequested(call_id="call-1", agent="a", reason="silent")).then(
        intake.ContactClosed
    )


def test_a_call_that_was_given_up_and_is_answered_after_all_is_watched_again():
    life = fired(lived([OFFERED, QUEUED]), "lost-track")
    assert life.state.closed_for == "end_unknown"
    life.when(ANSWERED, after=timedelta(minutes=1))
    assert (life.state.phase, life.state.closed_for) == ("answered", None)
    assert life.timers == {"lost-track": life.now + timedelta(hours=4)}


# ------------------------------------------------------------ legs that end each by itself

FIRST, SECOND = {"leg_id": "call-1"}, {"leg_id": "leg-2", "queue": "loans", "visit": 77}
MOVED = [
    OFFERED, telephony.CallQueued(**at(1), **FIRST, queue="cards", visit=1),
    telephony.CallTransferred(**at(40), leg_id="leg-2", mode="unknown"),
    telephony.QueueLeft(**at(41), **FIRST, queue="cards", visit=1, reason="unknown"),
    telephony.CallEnded(**at(41), **FIRST, cause="disconnected", leg_only=True),
    telephony.CallQueued(**at(50), **SECOND),
    telephony.QueueLeft(**at(90), **SECOND, reason="abandoned"),
    telephony.CallEnded(**at(90), leg_id="leg-2", cause="customer", leg_only=True),
]  # fmt: skip
CONSULTED = [
    OFFERED, QUEUED, ANSWERED,
    telephony.CallTransferred(**at(60), leg_id="leg-2", mode="unknown"),
    telephony.CallEnded(**at(80), leg_id="leg-2", cause="agent", leg_only=True),
    TALKED,
    telephony.CallEnded(**at(121), **FIRST, cause="hangup_16", leg_only=True, next_leg_id="leg-2"),
]  # fmt: skip


@pytest.mark.parametrize("facts", [MOVED, CONSULTED], ids=["moved", "consulted"])
@settings(max_examples=150)
@given(st.data())
def test_a_call_is_over_with_the_last_of_its_legs_in_any_order(facts, data):
    order, again = data.draw(st.permutations(facts)), data.draw(st.lists(st.sampled_from(facts), max_size=4))
    contact = lived([*order, *again]).state
    assert contact == lived(facts).state
    end = facts[-1]
    assert (contact.phase, contact.ended_at, contact.cause) == ("ended", end.occurred_at, end.cause)


def test_a_call_that_is_moved_on_is_not_closed_and_the_ledger_hears_why():
    life = lived(MOVED[:5])
    life.then(intake.ContactContinued)
    assert (life.state.phase, life.state.ended_at) == ("queued", None)
    assert life.timers == {"lost-track": NOW + timedelta(hours=4)}
    fired(lived(MOVED), "settle").then(intake.ContactClosed)


def test_of_a_leg_that_ends_while_another_goes_on_no_record_is_owed():
    life = lived(CONSULTED[:-1])
    assert (life.everything, life.timers) == (
        [intake.ContactContinued(call_id="call-1", ended_at=at(80)["occurred_at"])],
        {"lost-track": NOW + timedelta(hours=4)},
    )
    assert life.when(CONSULTED[4]).said == []
    assert life.when(CONSULTED[-1]).timers == {"wrap-up": at(121)["occurred_at"] + timedelta(minutes=10)}


def test_a_call_closed_for_the_end_of_a_leg_goes_on_with_the_next():
    unheard = [fact for fact in MOVED if not isinstance(fact, telephony.CallTransferred)]
    life = fired(lived(unheard[:4]), "settle").then(intake.ContactClosed)
    life.when(unheard[4]).then(intake.ContactContinued)
    assert (life.state.phase, life.state.closed_for) == ("queued", None)
    assert life.timers == {"lost-track": life.now + timedelta(hours=4)}
    for fact in unheard[5:]:
        life.when(fact)
    closed = fired(life, "settle").then(intake.ContactClosed).said[0]
    assert (closed.queue, closed.reason) == ("loans", "abandoned")


def test_an_answered_call_that_goes_on_owes_its_record_when_it_is_over():
    life = lived([OFFERED, QUEUED, ANSWERED, CONSULTED[-1].model_copy(update={"next_leg_id": None})])
    assert set(life.timers) == {"wrap-up"}
    life.when(telephony.CallQueued(**at(122), **SECOND)).then(intake.ContactContinued)
    assert set(life.timers) == {"lost-track"}


def test_a_leg_that_is_only_named_as_the_next_one_keeps_no_call_open():
    """Connect names a promised call back as the next contact, which is a call of its own."""
    named = MOVED[4].model_copy(update={"next_leg_id": "call-back"})
    life = lived([MOVED[0], MOVED[1], MOVED[3], MOVED[4], named])
    assert (life.everything, life.state.ended_at) == ([], named.occurred_at)
    fired(life, "settle").then(intake.ContactClosed)


STAY = {"queue": "cards", "visit": 1}
HALF_TOLD = [
    telephony.CallQueued(**at(1), **STAY, leg_id="leg-3"),
    telephony.CallPositioned(**at(2), **STAY, position=2),
    telephony.CallAnswered(**at(3), **STAY, agent="agent-1", wait_ms=2_000, leg_id="leg-2"),
    telephony.QueueLeft(**at(5), **STAY, reason="unknown", leg_id="call-1"),
    telephony.TalkEnded(**at(6), **STAY, agent="agent-1", talk_ms=3_000),
    telephony.CallEnded(**at(6), leg_id="leg-2", cause="customer", leg_only=True, next_leg_id="leg-9"),
    telephony.CallEnded(**at(7), leg_id="call-1", cause="agent", leg_only=True),
]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(HALF_TOLD), min_size=2, max_size=7, unique_by=id).flatmap(
        lambda told: st.tuples(st.just(told), st.permutations(told))
    ),
    st.lists(st.integers(0, 1), max_size=3),
)
def test_facts_that_name_a_leg_and_facts_that_name_none_give_one_call_in_any_order(orders, again):
    one, other = orders
    assert lived(one).state == lived([*other, *(other[index] for index in again)]).state


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_a_stay_is_on_the_leg_that_any_of_its_facts_names(order):
    told = [
        telephony.CallQueued(**at(1), **STAY, leg_id="leg-2"),
        telephony.QueueLeft(**at(5), **STAY, reason="abandoned"),
        telephony.CallEnded(**at(6), leg_id="leg-2", cause="customer", leg_only=True),
    ]
    contact = lived([told[index] for index in order]).state
    assert (contact.visits[0].leg, contact.ended_at) == ("leg-2", told[2].occurred_at)


def test_who_tells_the_end_of_the_call_itself_is_believed_whatever_legs_tell():
    for order in ([ENDED, *MOVED], [*MOVED, ENDED], [*MOVED[:5], ENDED, *MOVED[5:]]):
        assert lived(order).state.ended_at == ENDED.occurred_at
        assert lived(order).state.legs == {}


TOLD_TWICE = [
    telephony.CallRefused(**at(1), queue="vip", reason="joinempty"),
    telephony.CallRefused(**at(9), queue="cards", reason="full"),
    telephony.CallRefused(**at(12), queue="loans", reason="unknown"),
    telephony.CallOffered(**at(1), language="zh"),
    telephony.CallOffered(**at(2), customer_ref="c-b", caller=SEALED, language="en"),
    telephony.CallOffered(**at(3), customer_ref="c-a", caller=SEALED, callback_of="call-0"),
    telephony.CallPositioned(**at(4), queue="cards", visit=1, position=4),
    telephony.CallPositioned(**at(8), queue="cards", visit=1, position=2),
]


@settings(max_examples=200)
@given(st.permutations(TOLD_TWICE), st.lists(st.sampled_from(TOLD_TWICE), max_size=3))
def test_of_two_words_the_time_decides_and_not_the_reading(order, again):
    contact = lived([*order, *again]).state
    assert (contact.refused, contact.refused_by) == ("full", "cards")
    assert (contact.customer_ref, contact.caller, contact.language) == ("c-b", SEALED, "zh")
    assert (contact.callback_of, contact.offered_at) == ("call-0", NOW + timedelta(seconds=1))
    assert [(visit.place, visit.placed_at) for visit in contact.visits] == [(2, NOW + timedelta(seconds=8))]
    assert contact == lived(TOLD_TWICE).state


def test_a_place_that_is_only_inferred_is_worth_no_write():
    inferred = telephony.CallPositioned(**at(4), queue="cards", visit=1, position=1, inferred=True)
    assert lived([OFFERED, QUEUED, inferred]).outcome == Ignored("informative")
    assert lived([OFFERED, QUEUED]).state.visits[0].place == 2


# ------------------------------------------------------------ who calls again


def test_a_second_call_is_noticed_with_what_is_open():
    case_id = uuid4()
    policy = Policy(known={"c-1": Known(contacts=1, open_cases=(case_id,))})
    life = Life(domain.DECISIONS, policy).when(OFFERED).then(intake.RepeatNoticed)
    assert (life.said[0].contacts, life.said[0].open_cases) == (2, (case_id,))
    assert life.state.repeat == 2
    life.when(OFFERED).then()


def test_the_third_contact_about_a_case_is_escalated_the_second_is_not():
    case_id = uuid4()
    attach = intake.AttachmentRequested(call_id="call-1", agent="a", to_case_id=case_id)
    second = Life(domain.DECISIONS, Policy(contacts_of={case_id: 1})).when(offered()).when(answered())
    second.when(attach).then(intake.ContactAttached)
    assert second.said[0].repeat_no == 2
    third = Life(domain.DECISIONS, Policy(contacts_of={case_id: 2})).when(offered()).when(answered())
    third.when(attach).then(intake.ContactAttached, intake.CaseEscalated)
    assert third.said[1].repeat_no == 3
    third.when(ended()).then()
