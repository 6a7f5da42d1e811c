"""One department's responsibility: handed over, paused, shared, ended; no move buys time to resolve."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.step import Ignored
from schemas import resolver, router
from schemas.case import Case
from schemas.envelope import BY_BODY
from services.resolver.domain import DECISIONS, Policy
from tests.given import DECISION, NOW, Life, a_case, routed

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Held(Life):
    """A case that the router has routed once."""

    def __init__(self, department: str = "cards", **fields: object) -> None:
        super().__init__(DECISIONS, Policy())
        self.case = a_case()
        self.route(department, **fields)

    def route(
        self,
        department: str = "cards",
        case: Case | None = None,
        after: timedelta = timedelta(),
        **fields: object,
    ) -> "Held":
        attempt = self.state.attempt_no + 1 if self.state else 1
        times = {"accept_due": self.now + after + 2 * HOUR, "resolve_due": self.now + after + 5 * DAY}
        body = routed(case or self.case, department, attempt).model_copy(update={**times, **fields})
        return self.when(body, after=after)  # type: ignore[return-value]

    def ask(
        self,
        kind: type[resolver.Answer],
        after: timedelta = timedelta(),
        department: str = "",
        **fields: object,
    ) -> "Held":
        department = department or self.state.department
        body = kind.model_validate({**self.state.held, "department": department, "clerk": "c-1", **fields})
        return self.when(body, after=after)  # type: ignore[return-value]

    def accept(self) -> "Held":
        return self.ask(resolver.AcceptanceRequested)

    def hand_back(self, after: timedelta = timedelta()) -> "Held":
        return self.ask(resolver.ReturnRequested, after, reason="not_ours")

    def pause(self, until: datetime, after: timedelta = timedelta()) -> "Held":
        return self.ask(resolver.PauseRequested, after, reason="awaiting_customer", until=until)

    def resume(self, after: timedelta = timedelta()) -> "Held":
        return self.ask(resolver.ResumptionRequested, after)

    def fire(self, name: str, due: datetime) -> "Held":
        """Let a timer come, no earlier than it is due; one that was set is gone then."""
        fired = resolver.TimerFired(subject=str(self.case.case_id), timer=name, due_at=due)
        if self.timers.get(name) == due:
            del self.timers[name]
        return self.when(fired, after=max(timedelta(), due - self.now))  # type: ignore[return-value]


# ------------------------------------------------------------ a cycle has one result


@pytest.mark.parametrize("ended", ["resolved", "withdrawn"])
def test_a_case_that_is_over_is_not_taken_back_into_work_until_it_is_reopened(ended: str):
    held = Held("triage").accept()
    if ended == "resolved":
        held.ask(resolver.ResolutionRequested, decision=DECISION).then(resolver.CaseResolved)
    else:
        back = resolver.WithdrawalRequested(case_id=held.case.case_id, channel="phone", decision=DECISION)
        held.when(back).then(resolver.CaseWithdrawn)
    assert held.route("cards").outcome == Ignored(f"{ended}_meanwhile")
    again = held.case.model_copy(update={"cycle": 2})
    held.route("cards", again).then(resolver.CaseDelivered, resolver.CaseAssigned)
    assert held.timers["resolve"] == NOW + 5 * DAY


# ------------------------------------------------------------ the resolve clock


def test_hand_overs_within_a_cycle_put_the_resolve_clock_off_by_nothing():
    held = Held()
    for department in ("wealth", "payments", "lending"):
        held.hand_back(after=DAY).route(department)
        assert held.timers["resolve"] == held.said[1].resolve_due == NOW + 5 * DAY
    again = held.case.model_copy(update={"cycle": 2})
    held.accept().ask(resolver.ResolutionRequested, decision=DECISION)
    assert held.route("cards", again).said[1].resolve_due == NOW + 8 * DAY


def test_a_hand_over_to_a_stricter_department_shortens_it():
    held = Held("triage").hand_back().route("fraud", resolve_due=NOW + DAY)
    assert held.said[1].resolve_due == NOW + DAY
    assert held.hand_back().route("cards").said[1].resolve_due == NOW + DAY


def test_a_due_moment_that_passed_between_departments_is_recorded_once():
    held = Held().hand_back().route("wealth", after=6 * DAY)
    assert held.timers["resolve"] == NOW + 5 * DAY
    held.fire("resolve", NOW + 5 * DAY).then(resolver.CaseEscalated)
    assert (held.said[0].due_at, held.said[0].department) == (NOW + 5 * DAY, "wealth")
    assert "resolve" not in held.hand_back().route("cards").timers


def test_the_resolve_clock_stands_still_in_a_pause_and_goes_on_with_what_was_left():
    held = Held().accept().pause(NOW + 30 * DAY, after=DAY)
    assert set(held.timers) == {"pause"}
    held.fire("resolve", NOW + 5 * DAY)
    assert held.outcome == Ignored("no_longer_needed")
    held.resume(after=16 * DAY).then(resolver.CaseResumed)
    assert held.said[0].resolve_due == held.timers["resolve"] == NOW + 5 * DAY + 20 * DAY
    held.fire("resolve", NOW + 25 * DAY).then(resolver.CaseEscalated)


def test_a_pause_counts_until_its_end_however_late_that_is_heard_of():
    held = Held().accept().pause(NOW + DAY)
    held.when(
        resolver.TimerFired(subject=str(held.case.case_id), timer="pause", due_at=NOW + DAY), after=3 * DAY
    ).then(resolver.CaseResumed)
    assert held.timers["resolve"] == NOW + 6 * DAY


def test_a_pause_after_the_due_moment_neither_hides_nor_repeats_it():
    held = Held().accept().pause(NOW + 9 * DAY, after=6 * DAY)
    assert held.timers["resolve"] == NOW + 5 * DAY
    held.fire("resolve", NOW + 5 * DAY).then(resolver.CaseEscalated)
    assert held.resume(after=DAY).said[0].resolve_due == NOW + 5 * DAY
    assert held.timers == {}


def test_a_paused_case_that_a_ruling_moves_keeps_what_was_left():
    held = Held().accept().pause(NOW + 30 * DAY, after=4 * DAY).route("wealth", after=DAY)
    assert held.timers == {"accept": NOW + 5 * DAY + 2 * HOUR, "resolve": NOW + 6 * DAY}


def test_the_timer_of_an_earlier_pause_does_not_end_a_later_one():
    held = Held().accept().pause(NOW + HOUR)
    held.resume(after=HOUR).pause(NOW + 3 * DAY)
    assert held.fire("pause", NOW + HOUR).outcome == Ignored("no_longer_needed")
    assert held.timers["pause"] == NOW + 3 * DAY
    held.fire("pause", NOW + 3 * DAY).then(resolver.CaseResumed)


def test_a_pause_of_which_an_earlier_release_kept_no_times_ends_too():
    held = Held().accept().pause(NOW + HOUR)
    held.state = held.state.model_copy(update={"paused_at": None, "paused_until": None})
    assert held.fire("pause", NOW + HOUR).then(resolver.CaseResumed).said[0].resolve_due == NOW + 5 * DAY


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["route", "back", "accept", "pause", "resume"]), st.integers(0, 72)),
        max_size=12,
    )
)
def test_whatever_departments_do_the_due_moment_moves_by_the_pauses_and_by_nothing_else(
    acts: list[tuple[str, int]],
):
    held, paused, began = Held(), timedelta(), None
    for act, hours in acts:
        after = hours * HOUR
        waited = held.state.phase == "waiting"
        if act == "route":
            held.route("wealth", after=after, resolve_due=NOW + 1000 * DAY)
        elif act == "back":
            held.hand_back(after)
        elif act == "accept":
            held.ask(resolver.AcceptanceRequested, after)
        elif act == "pause":
            held.pause(held.now + after + 500 * DAY, after)
        else:
            held.resume(after)
        waits = held.state.phase == "waiting"
        if waits and not waited:
            began = held.now if held.now < held.state.resolve_due else None
        elif waited and not waits and began is not None:
            paused, began = paused + (held.now - began), None
        assert held.state.resolve_due == NOW + 5 * DAY + paused
        runs = held.state.phase in ("delivered", "in_progress")
        assert not runs or held.timers["resolve"] == held.state.resolve_due


# ------------------------------------------------------------ those that assist


def test_those_that_assist_are_informed_and_own_nothing():
    held = Held("cards", assisting=("fraud", "payments"))
    held.then(resolver.CaseDelivered, resolver.CaseAssigned, resolver.CaseShared, resolver.CaseShared)
    assert held.said[1].assisting == ("fraud", "payments")
    topics = [BY_BODY[type(body)].topic_of(body) for body in held.said]
    assert topics == ["resolver.cases", "departments.cards", "departments.fraud", "departments.payments"]
    for copy in held.said[2:]:
        assert (copy.department, copy.case, copy.resolve_due) == ("cards", held.case, NOW + 5 * DAY)
        assert "assignment_id" not in type(copy).model_fields
    assert Held("cards").said[1].assisting == ()


@pytest.mark.parametrize(
    "answer",
    [
        (resolver.AcceptanceRequested, {}),
        (resolver.ReturnRequested, {"reason": "not_ours"}),
        (resolver.ResolutionRequested, {"decision": DECISION}),
    ],
    ids=lambda answer: answer[0].__name__,
)
def test_an_assistant_that_learnt_the_assignment_can_still_not_answer(answer):
    kind, fields = answer
    held = Held("cards", assisting=("fraud",))
    refused = held.ask(kind, department="fraud", **fields).outcome
    assert (refused.code, refused.explanation) == (
        "not_your_dept",
        "the assignment is cards's and you assist",
    )
    assert held.state.phase == "delivered"
    guessed = {"assignment_id": UUID(int=1)}
    assert held.ask(kind, department="fraud", **fields, **guessed).outcome.code == "stale_assignment"


def test_who_assists_comes_with_each_routing():
    held = Held("cards", assisting=("fraud",)).hand_back().route("payments")
    assert held.said[1].assisting == held.state.assisting == ()
    body = router.CaseRouted.parse(routed(held.case, attempt_no=9).to_bytes())
    assert held.when(body).state.assisting == ()


def _explained(*, audit: bool) -> router.Explanation:
    top = tuple(router.Candidate(department=code, p=p) for code, p in (("wealth", 0.6), ("cards", 0.3)))
    said = router.ModelSaid(
        model="m", sha256="m", language="en", top=top, margin=0.3, known_share=1, threshold=0.8
    )
    return router.Explanation(
        decision_id=UUID(int=1), ruleset="r", ruleset_sha256="r", normaliser=1, input_sha256="i", model=said,
        audit=audit,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("department", "why", "suggested"),
    [
        ("triage", _explained(audit=False), ("wealth", "cards")),
        ("triage", _explained(audit=True), ()),
        ("triage", None, ()),
        ("cards", _explained(audit=False), ()),
    ],
)
def test_triage_is_told_what_the_classifier_made_of_a_case_unless_it_judges_blind(department, why, suggested):
    assert Held(department, explanation=why).said[1].suggested == suggested
