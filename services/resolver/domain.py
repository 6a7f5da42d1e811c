"""A case in a department's hands; pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from chassis.step import Cancel, Decisions, Event, Ignored, Outcome, Refused, Step, Timer, Waiting
from schemas.case import Attempt, Case
from schemas.envelope import Body, Moment
from schemas.resolver import (
    AcceptanceRequested,
    Answer,
    CaseAccepted,
    CaseAssigned,
    CaseDelivered,
    CaseEscalated,
    CasePaused,
    CaseProgressed,
    CaseResolved,
    CaseResumed,
    CaseReturned,
    CaseTransferred,
    CaseWithdrawn,
    PauseRequested,
    ProgressRequested,
    ResolutionRequested,
    ResumptionRequested,
    ReturnRequested,
    TimerFired,
    TransferRequested,
    WithdrawalRequested,
)
from schemas.router import CaseRouted

Phase = Literal["delivered", "in_progress", "waiting", "returned", "resolved", "withdrawn"]
ACCEPT, RESOLVE, PAUSE = "accept", "resolve", "pause"
_ALL_TIMERS = (Cancel(ACCEPT), Cancel(RESOLVE), Cancel(PAUSE))


@dataclass(frozen=True, slots=True)
class Policy:
    """Nothing to decide by yet: due times come with the routing."""


class Assignment(Body):
    """What the resolver knows of one case: whose it is now, and how far."""

    phase: Phase
    case: Case
    assignment_id: UUID
    department: str
    attempt_no: int
    accept_due: Moment
    resolve_due: Moment
    clerk: str | None = None
    escalations: int = 0

    @property
    def held(self) -> dict[str, Any]:
        """The fields that every event about the assignment repeats."""
        return {
            "case_id": self.case.case_id,
            "assignment_id": self.assignment_id,
            "department": self.department,
        }


def on_routed(event: Event[CaseRouted], state: Assignment | None, now: datetime, policy: Policy) -> Outcome:
    """Put the case into the department's queue and say so at once."""
    body = event.body
    if state is not None and body.attempt_no <= state.attempt_no:
        return Ignored("older_assignment")
    if state is not None and state.phase == "withdrawn" and body.case.cycle == state.case.cycle:
        return Ignored("withdrawn_meanwhile")
    assignment = Assignment(
        phase="delivered",
        case=body.case,
        assignment_id=body.assignment_id,
        department=body.department,
        attempt_no=body.attempt_no,
        accept_due=body.accept_due,
        resolve_due=body.resolve_due,
        clerk=None,
        escalations=0,
    )
    copy = CaseAssigned(
        **assignment.held,
        accept_due=body.accept_due,
        resolve_due=body.resolve_due,
        attempt_no=body.attempt_no,
        case=body.case,
    )
    delivered = CaseDelivered(**assignment.held, accept_due=body.accept_due)
    timers = (Timer(ACCEPT, body.accept_due), Timer(RESOLVE, body.resolve_due), Cancel(PAUSE))
    return Step(assignment, (delivered, copy), timers)


def _objection(event: Event[Answer], state: Assignment | None, *allowed: Phase) -> Waiting | Refused | None:
    """Only the holder of the current assignment may act, and only where the case stands."""
    if state is None:
        return Waiting("not_delivered_yet")
    if event.body.assignment_id != state.assignment_id:
        return Refused("stale_assignment", f"the case is with {state.department} now", state.phase)
    if event.body.department != state.department:
        return Refused("not_your_dept", f"the assignment is {state.department}'s", state.phase)
    if state.phase not in allowed:
        return Refused("illegal_in_state", f"the case is {state.phase}", state.phase)
    return None


def on_acceptance(
    event: Event[AcceptanceRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """A clerk takes the case; the accept clock stops."""
    objection = _objection(event, state, "delivered")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    taken = state.model_copy(update={"phase": "in_progress", "clerk": event.body.clerk})
    said = CaseAccepted(**state.held, clerk=event.body.clerk)
    return Step(taken, (said,), (Cancel(ACCEPT),))


def on_return(
    event: Event[ReturnRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department says the case is not its own; the router finds another."""
    objection = _objection(event, state, "delivered")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    return _handed_back(event, state, CaseReturned)


def on_transfer(
    event: Event[TransferRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department has done its part; the router finds the next."""
    objection = _objection(event, state, "in_progress")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    return _handed_back(event, state, CaseTransferred)


def _handed_back(
    event: Event[Any], state: Assignment, kind: type[CaseReturned] | type[CaseTransferred]
) -> Step:
    body = event.body
    said = kind(
        **state.held, reason=body.reason, proposed_department=body.proposed_department, case=state.case
    )
    return Step(state.model_copy(update={"phase": "returned"}), (said,), _ALL_TIMERS)


def on_progress(
    event: Event[ProgressRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department reports what it did."""
    objection = _objection(event, state, "in_progress", "waiting")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    return Step(state, (CaseProgressed(**state.held, note=event.body.note),))


def on_pause(
    event: Event[PauseRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department waits for somebody else, until a stated moment."""
    objection = _objection(event, state, "in_progress")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    body = event.body
    if body.until <= now:
        return Refused("until_is_past", "the stated moment has passed already", state.phase)
    said = CasePaused(**state.held, reason=body.reason, until=body.until)
    return Step(state.model_copy(update={"phase": "waiting"}), (said,), (Timer(PAUSE, body.until),))


def on_resumption(
    event: Event[ResumptionRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department goes on."""
    objection = _objection(event, state, "waiting")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    return _resumed(state, "department")


def _resumed(state: Assignment, cause: str) -> Step:
    said = CaseResumed(**state.held, cause=cause)
    return Step(state.model_copy(update={"phase": "in_progress"}), (said,), (Cancel(PAUSE),))


def on_resolution(
    event: Event[ResolutionRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department decides; the customer must be told."""
    objection = _objection(event, state, "in_progress", "waiting")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    attempt = Attempt(
        department=state.department,
        assignment_id=state.assignment_id,
        ended="resolved",
        reason=event.body.decision.root_cause,
    )
    case = state.case.model_copy(update={"attempts": (*state.case.attempts, attempt)})
    said = CaseResolved(**state.held, decision=event.body.decision, clerk=event.body.clerk, case=case)
    return Step(state.model_copy(update={"phase": "resolved", "case": case}), (said,), _ALL_TIMERS)


def on_withdrawal(
    event: Event[WithdrawalRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The customer takes the matter back, wherever it is."""
    if state is None:
        return Waiting("not_delivered_yet")
    if state.phase in ("resolved", "withdrawn"):
        return Refused("illegal_in_state", f"the case is {state.phase}", state.phase)
    said = CaseWithdrawn(case_id=state.case.case_id, decision=event.body.decision, case=state.case)
    return Step(state.model_copy(update={"phase": "withdrawn"}), (said,), _ALL_TIMERS)


def on_timer(event: Event[TimerFired], state: Assignment | None, now: datetime, policy: Policy) -> Outcome:
    """A deadline has come: record it once, and let the work go on."""
    if state is None:
        return Ignored("no_longer_needed")
    name, due = event.body.timer, event.body.due_at
    if name == PAUSE and state.phase == "waiting":
        return _resumed(state, "until_reached")
    if name == ACCEPT and state.phase == "delivered" and due == state.accept_due:
        return _escalated(state, "accept_overdue", due)
    if (
        name == RESOLVE
        and state.phase in ("delivered", "in_progress", "waiting")
        and due == state.resolve_due
    ):
        return _escalated(state, "resolve_overdue", due)
    return Ignored("no_longer_needed")


def _escalated(state: Assignment, cause: Literal["accept_overdue", "resolve_overdue"], due: datetime) -> Step:
    level = state.escalations + 1
    said = CaseEscalated(**state.held, cause=cause, due_at=due, level=level)
    return Step(state.model_copy(update={"escalations": level}), (said,))


DECISIONS: Decisions = {
    CaseRouted: on_routed,
    AcceptanceRequested: on_acceptance,
    ReturnRequested: on_return,
    TransferRequested: on_transfer,
    ProgressRequested: on_progress,
    PauseRequested: on_pause,
    ResumptionRequested: on_resumption,
    ResolutionRequested: on_resolution,
    WithdrawalRequested: on_withdrawal,
    TimerFired: on_timer,
}
