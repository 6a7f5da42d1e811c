"""From a result to the customer's word: what counts, from when, and for how long."""

from datetime import datetime, timedelta

import pytest

from chassis.step import Ignored, Refused
from schemas import feedback, router
from services.feedback.domain import DECISIONS, Policy
from tests.given import DECISION, NOW, Life, a_case, resolved

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Result(Life):
    """A case with a result that feedback has heard of so long after it was decided."""

    def __init__(self, heard_after: timedelta = timedelta()) -> None:
        super().__init__(DECISIONS, Policy())
        self.case = a_case()
        self.when(resolved(self.case), after=heard_after)

    def try_to_tell(
        self, attempt: int = 1, *, delivered: bool = True, after: timedelta = timedelta()
    ) -> "Result":
        body = feedback.TellingAttempted(
            case_id=self.case.case_id,
            cycle=self.state.case.cycle,
            attempt=attempt,
            channel="file",
            delivered=delivered,
            reason="delivered" if delivered else "busy",
            at=self.now + after,
        )
        return self.when(body, after=after)  # type: ignore[return-value]

    def give_up(self) -> "Result":
        for attempt in (1, 2, 3):
            self.try_to_tell(attempt, delivered=False, after=10 * HOUR)
        return self

    def judge(self, *, solved: bool, after: timedelta = timedelta()) -> "Result":
        body = feedback.RatingRequested(case_id=self.case.case_id, cycle=self.state.case.cycle, solved=solved)
        return self.when(body, after=after)  # type: ignore[return-value]

    def fire(self, name: str, due: datetime, after: timedelta = timedelta()) -> "Result":
        fired = feedback.TimerFired(subject=str(self.case.case_id), timer=name, due_at=due)
        return self.when(fired, after=after)  # type: ignore[return-value]


def test_the_customers_day_begins_with_the_decision_and_not_when_feedback_hears_of_it():
    result = Result(heard_after=30 * HOUR)
    assert result.said[0].due_at == result.timers["overdue"] == NOW + DAY
    result.fire("overdue", NOW + DAY).then(feedback.TellingOverdue)
    assert result.try_to_tell().said[0].late


def test_who_said_solved_may_say_not_solved_while_the_window_is_open():
    result = Result().try_to_tell().judge(solved=True, after=DAY)
    result.then(feedback.SatisfactionRecorded, feedback.CaseClosed)
    assert result.judge(solved=True).outcome.code == "already_rated"
    result.judge(solved=False, after=5 * DAY).then(feedback.SatisfactionRecorded, feedback.CaseReopened)
    assert [result.judge(solved=word).outcome.code for word in (False, True)] == ["already_rated"] * 2


def test_the_window_of_a_told_customer_runs_since_the_telling():
    result = Result().try_to_tell().judge(solved=True, after=6 * DAY)
    assert result.judge(solved=False, after=25 * DAY).outcome.code == "reopen_window_over"


def test_whom_no_message_reached_may_judge_too():
    result = Result().give_up().then(feedback.CustomerUnreached, feedback.CaseClosed)
    result.judge(solved=True, after=DAY).then(feedback.SatisfactionRecorded)
    result.judge(solved=False, after=28 * DAY).then(feedback.SatisfactionRecorded, feedback.CaseReopened)


def test_whom_no_message_reached_has_as_long_as_others():
    late = Result().give_up().judge(solved=False, after=31 * DAY)
    assert late.outcome.code == "reopen_window_over"


def test_the_timer_of_an_earlier_cycle_does_not_end_the_later_one():
    result = Result().try_to_tell()
    due = result.timers["rate"]
    again = result.judge(solved=False, after=DAY).said[1].case
    result.when(resolved(again)).try_to_tell()
    assert result.fire("rate", due).outcome == Ignored("no_longer_needed")
    result.fire("rate", result.timers["rate"]).then(feedback.SatisfactionExpired, feedback.CaseClosed)


def test_a_case_of_which_an_earlier_release_kept_fewer_times_is_closed_and_judged_too():
    result = Result().try_to_tell()
    result.state = result.state.model_copy(update={"rate_due": None})
    result.fire("rate", result.timers["rate"]).then(feedback.SatisfactionExpired, feedback.CaseClosed)
    result = Result().give_up()
    result.state = result.state.model_copy(update={"closed_at": None})
    result.judge(solved=False, after=DAY).then(feedback.SatisfactionRecorded, feedback.CaseReopened)


@pytest.mark.parametrize("told", ["due", "told", "closed", "reopened"])
def test_a_second_result_of_one_cycle_is_put_before_a_person(told: str):
    result = Result()
    if told != "due":
        result.try_to_tell()
    if told in ("closed", "reopened"):
        result.judge(solved=told == "closed")
    second = router.CaseRejected(case_id=result.case.case_id, case=result.case, decision=DECISION)
    outcome = result.when(second).outcome
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.current_state) == ("second_result", told)
    assert "upheld" in outcome.explanation
