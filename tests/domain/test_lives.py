"""The lives of a contact and of a case, decided step by step."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.step import Ignored, Step, Waiting
from schemas import feedback, intake, resolver, router, telephony
from services.feedback import domain as feedback_domain
from services.intake import domain as intake_domain
from services.resolver import domain as resolver_domain
from services.router import domain as router_domain
from services.router.decision import Desk
from services.router.rules import load_rules
from services.router.settings import RouterSettings
from tests.given import (
    DECISION,
    NOW,
    SEALED,
    Life,
    a_case,
    answered,
    call,
    ended,
    offered,
    record_request,
    recorded,
    resolved,
    routed,
)


def contact() -> Life:
    return Life(intake_domain.DECISIONS, intake_domain.Policy())


def numbered(event):
    return intake_domain.Policy(numbers={event.uid: 17})


# ------------------------------------------------------------ intake


def test_an_answered_call_ends_in_the_case_that_the_agent_records():
    life = contact().when(offered()).when(answered()).when(ended())
    assert life.timers["wrap-up"] == NOW + timedelta(minutes=10)
    life.when(record_request(), policy=numbered).then(intake.CaseRecorded)
    assert life.said[0].case.case_no.startswith("C-20261124-000017-")
    assert life.timers == {}


def test_a_record_may_come_while_the_caller_still_talks():
    life = contact().when(offered()).when(answered()).when(record_request(), policy=numbered)
    life.then(intake.CaseRecorded).when(ended()).then()
    assert life.timers == {}


def test_a_record_before_its_call_waits_for_it_and_needs_no_other_proof_of_an_answer():
    assert isinstance(contact().when(record_request(), policy=numbered).outcome, Waiting)
    life = contact().when(offered()).when(record_request(), policy=numbered).then(intake.CaseRecorded)
    life.when(answered()).then().when(ended()).then()
    assert (life.state.phase, life.state.agent, life.timers) == ("recorded", "a-1", {})


def test_a_decision_in_the_record_is_first_contact_resolution():
    request = record_request(decision=DECISION)
    contact().when(offered()).when(answered()).when(request, policy=numbered).then(intake.CaseAnswered)


def test_an_unrecorded_call_is_named_and_may_still_be_recorded():
    life = contact().when(offered()).when(answered()).when(ended())
    fired = intake.TimerFired(subject="call-1", timer="wrap-up", due_at=NOW + timedelta(minutes=10))
    life.when(fired, after=timedelta(minutes=10)).then(intake.RecordingOverdue)
    life.when(record_request(), policy=numbered).then(intake.CaseRecorded)


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (telephony.QueueLeft(**call(), queue="q", visit=1, reason="abandoned"), "abandoned"),
        (telephony.QueueLeft(**call(), queue="q", visit=1, reason="timeout"), "timeout"),
        (telephony.CallRefused(**call(), queue="q", reason="full"), "refused_full"),
    ],
)
def test_an_unanswered_call_is_closed_with_its_reason(left, reason):
    life = unanswered(left).then(intake.ContactClosed)
    assert (life.said[0].reason, life.timers) == (reason, {})


def unanswered(left: telephony.CallEvent) -> Life:
    """A call that was closed for what telephony said."""
    life = contact().when(offered()).when(left).when(ended()).then()
    due = life.timers.pop("settle")
    assert due == NOW + timedelta(seconds=5)
    return life.when(intake.TimerFired(subject="call-1", timer="settle", due_at=due))


GAVE_UP = telephony.QueueLeft(**call(), queue="q", visit=1, reason="abandoned")
CLOSING = intake.ClosingRequested(call_id="call-1", agent="a", reason="not_ours", referred_to="police")


def test_whoever_records_what_was_closed_as_unanswered_has_answered_it():
    life = unanswered(GAVE_UP).when(record_request(), policy=numbered).then(intake.CaseRecorded)
    assert (life.state.phase, life.state.closed_for) == ("recorded", None)
    assert life.when(record_request(), policy=numbered).outcome.code == "already_recorded"
    case_id = uuid4()
    attach = intake.AttachmentRequested(call_id="call-1", agent="a", to_case_id=case_id)
    known = intake_domain.Policy(contacts_of={case_id: 1})
    unanswered(GAVE_UP).when(attach, policy=lambda _: known).then(intake.ContactAttached)


def test_whom_an_agent_has_closed_nobody_opens_again():
    life = unanswered(GAVE_UP).when(CLOSING).then(intake.ContactClosed)
    assert (life.said[0].reason, life.said[0].referred_to) == ("not_ours", "police")
    life.when(answered()).then()
    assert (life.state.phase, life.state.closed_for, life.timers) == ("closed", "not_ours", {})
    assert life.when(record_request(), policy=numbered).outcome.code == "contact_closed"


def test_an_answer_that_arrives_after_the_closing_owes_a_record():
    life = unanswered(GAVE_UP).when(answered(), after=timedelta(seconds=3)).then()
    assert (life.state.phase, life.state.closed_for) == ("ended", None)
    assert life.timers == {"wrap-up": NOW + timedelta(minutes=10)}


def test_an_unexplained_end_is_closed_when_no_reason_comes():
    life = contact().when(offered()).when(ended()).then()
    fired = intake.TimerFired(subject="call-1", timer="settle", due_at=life.timers["settle"])
    assert life.when(fired).then(intake.ContactClosed).said[0].reason == "unanswered"


def test_an_answer_that_arrives_after_the_end_still_owes_a_record():
    life = contact().when(offered()).when(ended()).when(answered())
    assert "wrap-up" in life.timers
    life.when(record_request(), policy=numbered).then(intake.CaseRecorded)


def test_a_second_record_is_refused_and_a_closed_contact_too():
    life = contact().when(offered()).when(answered()).when(record_request(), policy=numbered)
    assert life.when(record_request(), policy=numbered).outcome.code == "already_recorded"
    closing = intake.ClosingRequested(call_id="call-1", agent="a", reason="spam")
    life = contact().when(offered()).when(answered()).when(closing).then(intake.ContactClosed)
    assert life.when(record_request(), policy=numbered).outcome.code == "contact_closed"


def test_a_call_attached_to_an_open_case_needs_no_new_one():
    case_id = uuid4()
    attachment = intake.AttachmentRequested(call_id="call-1", agent="a", to_case_id=case_id)

    def known(_):
        return intake_domain.Policy(contacts_of={case_id: 1})

    life = contact().when(offered()).when(answered()).when(attachment, policy=known)
    life.then(intake.ContactAttached).when(ended()).then()
    assert contact().when(offered()).when(answered()).when(attachment).outcome.code == "unknown_case"


_CALL = st.lists(
    st.sampled_from(
        [
            offered(),
            telephony.CallQueued(**call(), queue="q", visit=1),
            answered(),
            telephony.QueueLeft(**call(), queue="q", visit=1, reason="abandoned"),
            telephony.CallRefused(**call(), queue="q", reason="full"),
            ended(),
            record_request(),
            intake.ClosingRequested(call_id="call-1", agent="a", reason="silent"),
            intake.TimerFired(subject="call-1", timer="settle", due_at=NOW),
            intake.TimerFired(subject="call-1", timer="wrap-up", due_at=NOW),
        ]
    ),
    max_size=14,
)


@settings(max_examples=300)
@given(_CALL)
def test_whatever_comes_in_whatever_order_a_contact_ends_once_by_telephony_then_once_by_a_person(bodies):
    life, endings = contact(), []
    for body in bodies:
        life.when(body, policy=numbered)
        endings += [
            isinstance(body, intake.TimerFired)
            for said in life.said
            if isinstance(said, intake.CaseRecorded | intake.CaseAnswered | intake.ContactClosed)
        ]
    assert endings in ([], [True], [False], [True, False])
    assert endings[-1:] != [False] or life.state.settled


@settings(max_examples=200)
@given(st.permutations([offered(), answered(), ended()]), st.integers(0, 3))
def test_in_any_order_of_arrival_an_answered_call_gets_its_case(order, place):
    life, pending = contact(), None
    sequence = [*order[:place], record_request(), *order[place:]]
    for body in sequence:
        life.when(body, policy=numbered)
        if isinstance(life.outcome, Waiting):
            pending = body
        elif pending is not None and isinstance(life.outcome, Step):
            life.when(pending, policy=numbered)
            pending = None if not isinstance(life.outcome, Waiting) else pending
    assert life.state.phase == "recorded"


# ------------------------------------------------------------ router

RULES = load_rules(RouterSettings.model_fields["rules_file"].default)


def routing() -> Life:
    return Life(router_domain.DECISIONS, router_domain.Policy(desk=Desk(RULES)))


def test_a_rule_routes_and_no_rule_means_triage():
    assert routing().when(recorded(a_case())).then(router.CaseRouted).said[0].department == "cards"
    life = routing().when(recorded(a_case(product="parking"))).then(router.CaseRouted)
    assert life.said[0].department == "triage"
    assert life.said[0].why.stage == "triage"


def test_fraud_goes_before_the_product():
    life = routing().when(recorded(a_case(category="fraud", product="mobile_banking")))
    assert life.said[0].department == "fraud"


def returned(life: Life, **fields):
    state = life.state
    return resolver.CaseReturned(
        case_id=state.case.case_id,
        assignment_id=state.assignment_id,
        department=state.department,
        reason="not_ours",
        case=state.case,
        **fields,
    )


def test_a_returned_case_goes_where_the_department_says_else_by_rules_without_it():
    life = routing().when(recorded(a_case()))
    life.when(returned(life, proposed_department="payments")).then(router.CaseRouted)
    assert life.said[0].department == "payments"
    assert [attempt.department for attempt in life.said[0].case.attempts] == ["cards"]
    life = routing().when(recorded(a_case()))
    assert life.when(returned(life)).said[0].department == "triage"


def test_ping_pong_ends_in_a_ruling():
    life = routing().when(recorded(a_case()))
    life.when(returned(life, proposed_department="payments")).then(router.CaseRouted)
    life.when(returned(life, proposed_department="cards")).then(router.CaseParked)
    ruling = router.AssignmentRequested(case_id=life.state.case.case_id, department="lending", by="lead")
    assert life.when(ruling).then(router.CaseRouted).said[0].department == "lending"


def test_a_return_of_an_older_assignment_changes_nothing():
    life = routing().when(recorded(a_case()))
    old = returned(life)
    life.when(returned(life, proposed_department="payments"))
    assert life.when(old).outcome == Ignored("stale_assignment")


def test_a_ruling_needs_a_case_that_nobody_has_taken_and_a_known_department():
    life = routing().when(recorded(a_case()))
    case_id = life.state.case.case_id
    ruling = router.AssignmentRequested(case_id=case_id, department="cards", by="lead")
    assert life.when(ruling).outcome.code == "illegal_in_state"
    unknown = ruling.model_copy(update={"department": "moon"})
    assert life.when(unknown).outcome.code == "unknown_department"
    assert isinstance(routing().when(ruling).outcome, Waiting)


def test_a_reopened_case_returns_to_its_department_once():
    life = routing().when(recorded(a_case()))
    case = life.state.case.model_copy(update={"cycle": 2})
    again = feedback.CaseReopened(
        case_id=case.case_id,
        cycle=2,
        reason="not_solved",
        prior_decision=DECISION,
        department="wealth",
        case=case,
    )
    assert life.when(again).then(router.CaseRouted).said[0].department == "wealth"
    assert life.when(again).outcome == Ignored("cycle_already_routed")


# ------------------------------------------------------------ resolver


def assignment(case=None) -> tuple[Life, dict]:
    life = Life(resolver_domain.DECISIONS, resolver_domain.Policy())
    come = routed(case or a_case())
    life.when(come).then(resolver.CaseDelivered, resolver.CaseAssigned)
    holder = {
        "case_id": come.case_id,
        "assignment_id": come.assignment_id,
        "department": "cards",
        "clerk": "c-1",
    }
    return life, holder


def test_a_department_accepts_pauses_goes_on_and_resolves():
    life, holder = assignment()
    assert set(life.timers) == {"accept", "resolve"}
    life.when(resolver.AcceptanceRequested(**holder)).then(resolver.CaseAccepted)
    assert set(life.timers) == {"resolve"}
    life.when(resolver.ProgressRequested(**holder, note=SEALED)).then(resolver.CaseProgressed)
    until = NOW + timedelta(days=1)
    life.when(resolver.PauseRequested(**holder, reason="awaiting_customer", until=until))
    life.then(resolver.CasePaused).when(resolver.ResumptionRequested(**holder)).then(resolver.CaseResumed)
    life.when(resolver.ResolutionRequested(**holder, decision=DECISION)).then(resolver.CaseResolved)
    assert life.timers == {}


def test_only_the_holder_acts_and_only_where_it_is_legal():
    life, holder = assignment()
    stale = resolver.AcceptanceRequested(**{**holder, "assignment_id": uuid4()})
    assert life.when(stale).outcome.code == "stale_assignment"
    foreign = resolver.AcceptanceRequested(**{**holder, "department": "wealth"})
    assert life.when(foreign).outcome.code == "not_your_dept"
    early = resolver.ResolutionRequested(**holder, decision=DECISION)
    assert life.when(early).outcome.code == "illegal_in_state"
    life.when(resolver.AcceptanceRequested(**holder))
    assert life.when(resolver.AcceptanceRequested(**holder)).outcome.code == "illegal_in_state"


def test_deadlines_are_recorded_once_and_stop_nothing():
    life, holder = assignment()
    case_id = str(holder["case_id"])
    due = life.timers["accept"]
    fired = resolver.TimerFired(subject=case_id, timer="accept", due_at=due)
    life.when(fired, after=timedelta(hours=3)).then(resolver.CaseEscalated)
    assert life.said[0].due_at == due
    life.when(resolver.AcceptanceRequested(**holder)).then(resolver.CaseAccepted)
    assert life.when(fired).outcome == Ignored("no_longer_needed")


def test_a_pause_ends_by_itself():
    life, holder = assignment()
    life.when(resolver.AcceptanceRequested(**holder))
    until = NOW + timedelta(hours=1)
    life.when(resolver.PauseRequested(**holder, reason="awaiting_third_party", until=until))
    fired = resolver.TimerFired(subject=str(holder["case_id"]), timer="pause", due_at=until)
    assert life.when(fired).then(resolver.CaseResumed).said[0].cause == "until_reached"


def test_a_withdrawal_wins_over_the_department_and_a_later_routing():
    case = a_case()
    life, holder = assignment(case)
    back = resolver.WithdrawalRequested(case_id=case.case_id, channel="phone", decision=DECISION)
    life.when(back).then(resolver.CaseWithdrawn)
    assert life.when(resolver.AcceptanceRequested(**holder)).outcome.code == "illegal_in_state"
    assert life.when(routed(case, attempt_no=2)).outcome == Ignored("withdrawn_meanwhile")
    assert life.when(back).outcome.code == "illegal_in_state"


def test_an_older_routing_is_ignored():
    case = a_case()
    life, _ = assignment(case)
    assert life.when(routed(case, attempt_no=1)).outcome == Ignored("older_assignment")


def test_every_command_before_the_case_waits():
    _, holder = assignment()
    for body in (
        resolver.AcceptanceRequested(**holder),
        resolver.ReturnRequested(**holder, reason="x"),
        resolver.ResolutionRequested(**holder, decision=DECISION),
        resolver.WithdrawalRequested(case_id=holder["case_id"], channel="phone", decision=DECISION),
    ):
        assert isinstance(
            Life(resolver_domain.DECISIONS, resolver_domain.Policy()).when(body).outcome, Waiting
        )


# ------------------------------------------------------------ feedback


def telling(case=None, **policy) -> tuple[Life, dict]:
    case = case or a_case()
    life = Life(feedback_domain.DECISIONS, replace(feedback_domain.Policy(), **policy))
    life.when(resolved(case)).then(feedback.CaseOpened)
    assert [task.name for task in life.outcome.tasks] == ["tell"]
    return life, {"case_id": case.case_id, "cycle": case.cycle}


def attempt(base, number=1, *, delivered=True):
    return feedback.TellingAttempted(
        **base,
        attempt=number,
        channel="file",
        delivered=delivered,
        reason="delivered" if delivered else "busy",
        at=NOW,
    )


def test_a_told_customer_who_is_satisfied_closes_the_case():
    life, base = telling()
    life.when(attempt(base)).then(feedback.CustomerTold)
    assert set(life.timers) == {"rate"}
    life.when(feedback.RatingRequested(**base, solved=True, attitude=5, speed=4))
    life.then(feedback.SatisfactionRecorded, feedback.CaseClosed)
    assert life.timers == {}


def test_a_dissatisfied_customer_reopens_even_a_closed_case():
    life, base = telling()
    life.when(attempt(base))
    fired = feedback.TimerFired(subject=str(base["case_id"]), timer="rate", due_at=life.timers["rate"])
    life.when(fired, after=timedelta(days=7)).then(feedback.SatisfactionExpired, feedback.CaseClosed)
    life.when(feedback.RatingRequested(**base, solved=False), after=timedelta(days=6))
    life.then(feedback.SatisfactionRecorded, feedback.CaseReopened)
    assert life.said[1].cycle == 2
    again = life.said[1].case
    life.when(resolved(again)).then(feedback.CaseOpened)


def test_the_reopen_window_ends():
    life, base = telling()
    life.when(attempt(base))
    late = life.when(feedback.RatingRequested(**base, solved=False), after=timedelta(days=40))
    assert late.outcome.code == "reopen_window_over"


def test_telling_is_tried_again_and_given_up_in_the_end():
    life, base = telling()
    life.when(attempt(base, 1, delivered=False)).then(feedback.TellingFailed)
    assert life.outcome.tasks[0].due_at == NOW + timedelta(hours=4)
    life.when(attempt(base, 2, delivered=False)).then(feedback.TellingFailed)
    life.when(attempt(base, 3, delivered=False)).then(feedback.CustomerUnreached, feedback.CaseClosed)
    assert life.said[1].told is False


def test_twenty_four_hours_without_telling_are_named_once():
    life, base = telling()
    due = life.timers["overdue"]
    fired = feedback.TimerFired(subject=str(base["case_id"]), timer="overdue", due_at=due)
    life.when(fired, after=timedelta(hours=24)).then(feedback.TellingOverdue)
    life.when(attempt(base)).then(feedback.CustomerTold)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"cycle": 2}, "stale_cycle"), ({}, "illegal_in_state")],
)
def test_a_rating_needs_the_current_result_to_have_been_told(change, code):
    life, base = telling()
    assert life.when(feedback.RatingRequested(**{**base, **change}, solved=True)).outcome.code == code


def test_a_result_is_judged_once():
    life, base = telling()
    life.when(attempt(base)).when(feedback.RatingRequested(**base, solved=True))
    assert life.when(feedback.RatingRequested(**base, solved=True)).outcome.code == "already_rated"


def test_results_of_every_origin_open_the_same_way():
    case = a_case()
    for body in (
        intake.CaseAnswered(case_id=case.case_id, case=case, decision=DECISION),
        router.CaseRejected(case_id=case.case_id, case=case, decision=DECISION),
        resolver.CaseWithdrawn(case_id=case.case_id, case=case, decision=DECISION),
    ):
        Life(feedback_domain.DECISIONS, feedback_domain.Policy()).when(body).then(feedback.CaseOpened)
