"""Who may decide on a case, and until when: rulings, withdrawals, returns that end in a ruling; pure."""

from datetime import timedelta

import pytest

from chassis.step import Ignored, Refused, Waiting
from schemas import resolver, router
from services.router.decision import Desk
from services.router.domain import DECISIONS, Policy
from tests.given import DECISION, Life, a_case, recorded
from tests.router.given import RULES, reopened, returned, ruling, transferred


def life(**fields):
    """A case that was recorded; by the rules of these tests fees go to payments, the rest to triage."""
    return Life(DECISIONS, Policy(desk=Desk(RULES))).when(recorded(a_case(**fields)))


def parked():
    found = life(product="fee")
    for to in ("wealth", "cards"):
        found.when(returned(found.said[0], to=to))
    return found.then(router.CaseParked)


def withdrawn(case):
    return resolver.CaseWithdrawn(case_id=case.case_id, decision=DECISION, case=case)


def rejection(case):
    return router.RejectionRequested(case_id=case.case_id, by="lead", decision=DECISION)


def fired(found):
    return router.TimerFired(
        subject=str(found.state.case.case_id), timer="ruling", due_at=found.timers["ruling"]
    )


# ------------------------------------------------------------ a withdrawal ends it


@pytest.mark.parametrize(("held", "says"), [(life, []), (parked, [router.RulingLapsed])])
def test_nobody_rules_on_what_the_customer_took_back(held, says):
    found = held()
    case = found.state.case
    found.when(withdrawn(case)).then(*says)
    assert (found.state.phase, found.timers) == ("withdrawn", {})
    for asked in (ruling(case.case_id, "cards"), rejection(case)):
        refused = found.when(asked).outcome
        assert (refused.code, refused.explanation) == ("illegal_in_state", "the case is withdrawn")


def test_a_reopened_case_may_be_ruled_on_again_and_an_old_withdrawal_means_the_cycle_before():
    found = life(product="fee")
    first = found.said[0]
    found.when(withdrawn(first.case)).when(reopened(first)).then(router.CaseRouted)
    assert (found.state.phase, found.state.department) == ("routed", "payments")
    assert found.when(withdrawn(first.case)).outcome == Ignored("earlier_cycle")
    found.when(ruling(first.case_id, "cards"), after=timedelta(days=1)).then(router.CaseRouted)
    assert found.said[0].case.cycle == 2


def test_a_withdrawal_of_a_case_that_has_not_come_yet_waits():
    assert isinstance(Life(DECISIONS, Policy()).when(withdrawn(a_case())).outcome, Waiting)


# ------------------------------------------------------------ any case can be moved


def test_a_case_at_a_department_that_never_answers_can_be_moved_and_teaches_only_what_was_wrong():
    found = life(product="fee")
    case_id = found.state.case.case_id
    refused = found.when(ruling(case_id, "cards"), after=timedelta(minutes=119)).outcome
    assert refused.explanation == "the case is with payments, who has until 11:00 UTC to accept it"
    found.when(ruling(case_id, "cards"), after=timedelta(minutes=1)).then(router.CaseRouted)
    assert (found.said[0].department, found.said[0].attempt_no) == ("cards", 2)
    assert found.state.label is None
    asked = ruling(case_id, "wealth").model_copy(update={"reason": "misrouted"})
    found.when(asked, after=timedelta(days=3)).then(router.CaseRouted)
    assert (found.state.label.department, found.state.label.source) == ("wealth", "ruling")


def test_who_has_a_case_is_not_given_it_again():
    found = life(product="fee")
    refused = found.when(ruling(found.state.case.case_id, "payments")).outcome
    assert (refused.code, refused.explanation) == ("illegal_in_state", "the case is with payments already")


def test_a_ruling_says_who_ruled_and_why():
    found = life(product="other")
    asked = ruling(found.state.case.case_id, "cards").model_copy(update={"reason": "he means his card"})
    why = found.when(asked).then(router.CaseRouted).said[0].why
    assert (why.stage, why.rule, why.by, why.reason) == (
        "ruling",
        "ruling_by_lead",
        "lead",
        "he means his card",
    )


def test_whoever_holds_a_case_answers_it_and_nobody_rejects_it_meanwhile():
    for product, holder in (("fee", "payments"), ("other", "triage")):
        found = life(product=product)
        refused = found.when(rejection(found.state.case)).outcome
        assert isinstance(refused, Refused)
        assert refused.explanation == f"the case is with {holder}, who answers it"
    parked().when(rejection(found.state.case)).then(router.CaseRejected)


# ------------------------------------------------------------ returns end in a ruling


def test_two_returns_are_one_too_many_and_a_part_that_is_done_is_no_return():
    found = life(product="fee")
    found.when(transferred(found.said[0], to="cards")).when(transferred(found.said[0], to="wealth"))
    found.then(router.CaseRouted).when(returned(found.said[0], to="lending")).then(router.CaseRouted)
    assert (found.state.moves, found.state.returns) == (3, 1)
    found.when(transferred(found.said[0], to="cards", reason="misrouted")).then(router.CaseParked)


def test_even_work_that_is_done_does_not_go_round_for_ever():
    found = life(product="fee")
    for to in ("cards", "wealth", "cards"):
        found.when(transferred(found.said[0], to=to)).then(router.CaseRouted)
    found.when(transferred(found.said[0], to="wealth")).then(router.CaseParked)


def test_what_triage_passes_on_does_not_count():
    found = life(product="other")
    for to in ("lending", "triage", "wealth", "triage"):
        found.when(transferred(found.said[0], to=to)).then(router.CaseRouted)
    assert (found.state.moves, found.state.returns) == (2, 0)


# ------------------------------------------------------------ nothing waits unseen


def test_whoever_waits_for_a_ruling_is_named_for_ever_further_and_further_apart():
    found, apart = parked(), []
    since = found.state.changed_at
    for level in range(1, 100):
        due = found.timers["ruling"]
        found.when(fired(found), after=due - found.now).then(router.TriageOverdue)
        assert (found.said[0].level, found.said[0].waiting_since) == (level, since)
        apart.append(found.timers["ruling"] - due)
    assert apart[:3] == [timedelta(minutes=20), timedelta(minutes=40), timedelta(minutes=80)]
    assert set(apart[8:]) == {timedelta(days=1)}
    found.when(ruling(found.state.case.case_id, "lending"))
    assert (found.state.reminders, found.timers) == (0, {})
