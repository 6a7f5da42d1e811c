"""From a result to a customer who has heard it and judged it; pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field

from chassis.step import (
    Cancel,
    Decisions,
    Event,
    Ignored,
    Outcome,
    Refused,
    Step,
    Task,
    Timer,
    Waiting,
)
from schemas.case import Case, Decision
from schemas.envelope import Body, Moment
from schemas.feedback import (
    CaseClosed,
    CaseOpened,
    CaseReopened,
    CustomerTold,
    CustomerUnreached,
    RatingRequested,
    SatisfactionExpired,
    SatisfactionRecorded,
    TellingAttempted,
    TellingFailed,
    TellingOverdue,
    TimerFired,
)
from schemas.intake import CaseAnswered
from schemas.resolver import CaseResolved, CaseWithdrawn
from schemas.router import CaseRejected

Phase = Literal["due", "told", "unreached", "closed", "reopened"]
TELL, OVERDUE, RATE = "tell", "overdue", "rate"


@dataclass(frozen=True, slots=True)
class Policy:
    """How fast the customer hears, how often we try, how long we wait for a judgement."""

    tell_within: timedelta = timedelta(hours=24)
    tries: int = 3
    retry_after: tuple[timedelta, ...] = (timedelta(hours=4), timedelta(days=1))
    rate_within: timedelta = timedelta(days=7)
    reopen_window: timedelta = timedelta(days=30)


class Telling(Body):
    """One attempt to tell; the rest stands in the case's state."""

    cycle: int
    attempt: int


class Feedback(Body):
    """What feedback knows of one case; a result may be judged until long after `told_at`, or `closed_at`."""

    phase: Phase
    case: Case
    decision: Decision
    department: str | None
    due_at: Moment
    attempts: int = 0
    told_at: Moment | None = None
    rate_due: Moment | None = None
    closed_at: Moment | None = None
    rated: bool = False
    counts: dict[str, int] = Field(default_factory=dict)


def on_result(
    event: Event[CaseResolved | CaseAnswered | CaseRejected | CaseWithdrawn],
    state: Feedback | None,
    now: datetime,
    policy: Policy,
) -> Outcome:
    """A result is in hand: begin to tell the customer, within a time that runs since the decision."""
    body = event.body
    if state is not None and state.case.cycle >= body.case.cycle:
        # Two answers to one question: a person must see it, so it goes to the dead letters.
        first = f"cycle {state.case.cycle} has a result already ({state.decision.outcome})"
        return Refused("second_result", f"{first}; somebody must choose what the customer hears", state.phase)
    due = event.at + policy.tell_within
    opened = Feedback(
        phase="due",
        case=body.case,
        decision=body.decision,
        department=getattr(body, "department", None),
        due_at=due,
        attempts=0,
        told_at=None,
        rated=False,
        counts=_counts(event, state),
    )
    said = CaseOpened(case_id=body.case.case_id, cycle=body.case.cycle, due_at=due)
    return Step(opened, (said,), (Timer(OVERDUE, due), Cancel(RATE)), (_telling(opened, 1, now),))


def _counts(event: Event[Body], state: Feedback | None) -> dict[str, int]:
    known = state.counts if state is not None else {}
    return {**known, event.writer: event.sequence} if event.sequence else known


def _telling(state: Feedback, attempt: int, due: datetime) -> Task:
    return Task(TELL, due, Telling(cycle=state.case.cycle, attempt=attempt))


def on_telling_attempted(
    event: Event[TellingAttempted], state: Feedback | None, now: datetime, policy: Policy
) -> Outcome:
    """One attempt to tell is over: told, tried again later, or given up."""
    body = event.body
    if state is None:
        return Waiting("no_result_yet")
    if body.cycle != state.case.cycle or state.phase != "due":
        return Ignored("telling_is_over")
    if body.delivered:
        return _told(state, body, now, policy)
    if body.attempt >= policy.tries:
        unreached = CustomerUnreached(case_id=body.case_id, cycle=body.cycle, attempts=body.attempt)
        closed = _close(state, now, attempts=body.attempt)
        return Step(closed, (unreached, _closed(closed)), (Cancel(OVERDUE),))
    pause = policy.retry_after[min(body.attempt, len(policy.retry_after)) - 1]
    failed = TellingFailed(
        case_id=body.case_id,
        cycle=body.cycle,
        channel=body.channel,
        attempt=body.attempt,
        reason=body.reason,
        next_at=now + pause,
    )
    again = state.model_copy(update={"attempts": body.attempt})
    return Step(again, (failed,), (), (_telling(again, body.attempt + 1, now + pause),))


def _told(state: Feedback, body: TellingAttempted, now: datetime, policy: Policy) -> Step:
    said = CustomerTold(
        case_id=body.case_id,
        cycle=body.cycle,
        channel=body.channel,
        attempt=body.attempt,
        told_at=body.at,
        late=body.at > state.due_at,
    )
    due = now + policy.rate_within
    change = {"phase": "told", "attempts": body.attempt, "told_at": body.at, "rate_due": due}
    return Step(state.model_copy(update=change), (said,), (Cancel(OVERDUE), Timer(RATE, due)))


def on_rating(
    event: Event[RatingRequested], state: Feedback | None, now: datetime, policy: Policy
) -> Outcome:
    """The customer judges: solved closes the case, not solved reopens it, also after "solved"."""
    objection = _objection(event.body, state, now, policy)
    if objection is not None or state is None:
        return objection or Waiting("no_result_yet")
    body = event.body
    recorded = SatisfactionRecorded(
        case_id=body.case_id,
        cycle=body.cycle,
        solved=body.solved,
        attitude=body.attitude,
        speed=body.speed,
        comment=body.comment,
    )
    if not body.solved:
        return _reopened(state, recorded)
    if state.phase == "closed":
        return Step(state.model_copy(update={"rated": True}), (recorded,))
    closed = _close(state, now, rated=True)
    return Step(closed, (recorded, _closed(closed)), (Cancel(RATE),))


def _objection(
    body: RatingRequested, state: Feedback | None, now: datetime, policy: Policy
) -> Waiting | Refused | None:
    if state is None:
        return Waiting("no_result_yet")
    if body.cycle != state.case.cycle:
        return Refused("stale_cycle", f"the case is in cycle {state.case.cycle}", state.phase)
    if state.phase == "reopened" or (state.rated and body.solved):
        return Refused("already_rated", "this result was judged before", state.phase)
    if state.phase == "due":
        return Refused("illegal_in_state", "the customer has not been told yet", state.phase)
    # Whom no message reached may have heard by another way, and has as long as others.
    if now > (state.told_at or state.closed_at or state.due_at) + policy.reopen_window:
        return Refused("reopen_window_over", "too late to reopen; a new case is needed", state.phase)
    return None


def _reopened(state: Feedback, recorded: SatisfactionRecorded) -> Step:
    case = state.case.model_copy(update={"cycle": state.case.cycle + 1})
    said = CaseReopened(
        case_id=case.case_id,
        cycle=case.cycle,
        reason="not_solved",
        prior_decision=state.decision,
        department=state.department,
        case=case,
    )
    change = {"phase": "reopened", "rated": True}
    return Step(state.model_copy(update=change), (recorded, said), (Cancel(RATE),))


def on_timer(event: Event[TimerFired], state: Feedback | None, now: datetime, policy: Policy) -> Outcome:
    """The customer stayed silent, or has not heard the result in time."""
    if state is None:
        return Ignored("no_longer_needed")
    case = state.case
    name, due = event.body.timer, event.body.due_at
    if name == RATE and state.phase == "told" and state.rate_due in (None, due):
        closed = _close(state, now)
        expired = SatisfactionExpired(case_id=case.case_id, cycle=case.cycle)
        return Step(closed, (expired, _closed(closed)))
    if name == OVERDUE and state.phase == "due" and due == state.due_at:
        return Step(state, (TellingOverdue(case_id=case.case_id, cycle=case.cycle, due_at=state.due_at),))
    return Ignored("no_longer_needed")


def _close(state: Feedback, now: datetime, **change: Any) -> Feedback:
    return state.model_copy(update={"phase": "closed", "closed_at": now, **change})


def _closed(state: Feedback) -> CaseClosed:
    return CaseClosed(
        case_id=state.case.case_id,
        cycles=state.case.cycle,
        outcome=state.decision.outcome,
        told=state.told_at is not None,
        rated=state.rated,
        counts=state.counts or None,
    )


DECISIONS: Decisions = {
    CaseResolved: on_result,
    CaseAnswered: on_result,
    CaseRejected: on_result,
    CaseWithdrawn: on_result,
    TellingAttempted: on_telling_attempted,
    RatingRequested: on_rating,
    TimerFired: on_timer,
}


def wording(language: Literal["zh", "en"], case_no: str, text: str) -> str:
    """Word the message that tells the result, in the customer's language."""
    if language == "zh":
        return (
            f"您好，您反映的问题（编号 {case_no}）已有处理结果：{text} 如未解决，请直接回复，我们会重新办理。"
        )
    return f"Your case {case_no} has a result: {text} If this does not solve it, just reply and we reopen it."
