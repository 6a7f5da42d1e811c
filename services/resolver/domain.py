"""A case in a department's hands; pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
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
    CaseShared,
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
from schemas.topics import TRIAGE

Phase = Literal["delivered", "in_progress", "waiting", "returned", "resolved", "withdrawn"]
ACCEPT, RESOLVE, PAUSE = "accept", "resolve", "pause"
_ALL_TIMERS = (Cancel(ACCEPT), Cancel(RESOLVE), Cancel(PAUSE))


@dataclass(frozen=True, slots=True)
class Policy:
    """Nothing to decide by yet: due times come with the routing."""


class Assignment(Body):
    """What the resolver knows of one case: whose it is now, and how far.

    `assisting` are departments that were informed and own nothing. `resolve_due` stays through hand-overs
    within a cycle and stands still from `paused_at` on; `overdue` tells that its passing was recorded.
    """

    phase: Phase
    case: Case
    assignment_id: UUID
    department: str
    attempt_no: int
    accept_due: Moment
    resolve_due: Moment
    clerk: str | None = None
    escalations: int = 0
    assisting: tuple[str, ...] = ()
    overdue: bool = False
    paused_at: Moment | None = None
    paused_until: Moment | None = None

    def resolve_due_at(self, now: datetime) -> datetime:
        """When the case must be resolved, with the pause that it is in, as far as that has lasted by now."""
        began, until = self.paused_at, self.paused_until
        if began is None or until is None or self.resolve_due <= began:
            return self.resolve_due
        return self.resolve_due + max(timedelta(), min(now, until) - began)

    @property
    def held(self) -> dict[str, Any]:
        """The fields that every event about the assignment repeats."""
        return {
            "case_id": self.case.case_id,
            "assignment_id": self.assignment_id,
            "department": self.department,
        }


def on_routed(event: Event[CaseRouted], state: Assignment | None, now: datetime, policy: Policy) -> Outcome:
    """Put the case into the department's queue and say so at once; those that assist are informed."""
    body = event.body
    if state is not None and body.attempt_no <= state.attempt_no:
        return Ignored("older_assignment")
    before = state if state is not None and body.case.cycle <= state.case.cycle else None
    if before is not None and before.phase in ("resolved", "withdrawn"):
        # The cycle is over: only the customer's word opens the next one.
        return Ignored(f"{before.phase}_meanwhile")
    assignment = _assigned(body, before, now)
    copy = CaseAssigned(
        **assignment.held,
        accept_due=body.accept_due,
        resolve_due=assignment.resolve_due,
        attempt_no=body.attempt_no,
        case=body.case,
        assisting=body.assisting,
        suggested=_suggested(body),
    )
    delivered = CaseDelivered(**assignment.held, accept_due=body.accept_due)
    clocks: tuple[Timer | Cancel, ...] = (Timer(ACCEPT, body.accept_due), *_resolve_timer(assignment))
    return Step(assignment, (delivered, copy, *_copies(assignment)), (*clocks, Cancel(PAUSE)))


def _assigned(body: CaseRouted, before: Assignment | None, now: datetime) -> Assignment:
    """Hand the case over; a hand-over within a cycle never gives more time to resolve than there was."""
    due = min(body.resolve_due, before.resolve_due_at(now)) if before else body.resolve_due
    return Assignment(
        phase="delivered",
        case=body.case,
        assignment_id=body.assignment_id,
        department=body.department,
        attempt_no=body.attempt_no,
        accept_due=body.accept_due,
        resolve_due=due,
        assisting=body.assisting,
        overdue=before.overdue if before else False,
    )


def _suggested(body: CaseRouted) -> tuple[str, ...]:
    """What the classifier made of a case that triage gets; a blind sample is judged without it."""
    told = body.explanation
    if body.department != TRIAGE or told is None or told.model is None or told.audit:
        return ()
    return tuple(candidate.department for candidate in told.model.top)


def _resolve_timer(state: Assignment) -> tuple[Timer, ...]:
    """The alarm of the resolve clock, unless it has rung: its passing is recorded once in a cycle."""
    return () if state.overdue else (Timer(RESOLVE, state.resolve_due),)


def _copies(state: Assignment) -> tuple[CaseShared, ...]:
    """Inform the departments that assist; the copy names no assignment, so it gives no right to act."""
    return tuple(
        CaseShared(
            case_id=state.case.case_id,
            assistant=code,
            department=state.department,
            resolve_due=state.resolve_due,
            case=state.case,
        )
        for code in state.assisting
    )


def _objection(event: Event[Answer], state: Assignment | None, *allowed: Phase) -> Waiting | Refused | None:
    """Only the holder of the current assignment may act, and only where the case stands."""
    if state is None:
        return Waiting("not_delivered_yet")
    if event.body.assignment_id != state.assignment_id:
        return Refused("stale_assignment", f"the case is with {state.department} now", state.phase)
    if event.body.department != state.department:
        role = " and you assist" if event.body.department in state.assisting else ""
        return Refused("not_your_dept", f"the assignment is {state.department}'s{role}", state.phase)
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
    """The department waits for somebody else, until a stated moment; the resolve clock stands still."""
    objection = _objection(event, state, "in_progress")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    body = event.body
    if body.until <= now:
        return Refused("until_is_past", "the stated moment has passed already", state.phase)
    said = CasePaused(**state.held, reason=body.reason, until=body.until)
    waiting = state.model_copy(update={"phase": "waiting", "paused_at": now, "paused_until": body.until})
    # A moment that has come already is recorded, even where the pause came before its timer.
    timers: tuple[Timer | Cancel, ...] = (Timer(PAUSE, body.until),)
    if state.resolve_due > now:
        timers = (*timers, Cancel(RESOLVE))
    return Step(waiting, (said,), timers)


def on_resumption(
    event: Event[ResumptionRequested], state: Assignment | None, now: datetime, policy: Policy
) -> Outcome:
    """The department goes on."""
    objection = _objection(event, state, "waiting")
    if objection is not None or state is None:
        return objection or Waiting("not_delivered_yet")
    return _resumed(state, "department", now)


def _resumed(state: Assignment, cause: str, now: datetime) -> Step:
    """Go on, with the resolve clock pushed by the pause."""
    due = state.resolve_due_at(now)
    going_on = {"phase": "in_progress", "resolve_due": due, "paused_at": None, "paused_until": None}
    taken_up = state.model_copy(update=going_on)
    said = CaseResumed(**state.held, cause=cause, resolve_due=due)
    return Step(taken_up, (said,), (Cancel(PAUSE), *_resolve_timer(taken_up)))


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
    if name == PAUSE and state.phase == "waiting" and state.paused_until in (None, due):
        return _resumed(state, "until_reached", now)
    if name == ACCEPT and state.phase == "delivered" and due == state.accept_due:
        return _escalated(state, "accept_overdue", due)
    held = state.phase in ("delivered", "in_progress", "waiting")
    if name == RESOLVE and held and due == state.resolve_due_at(now):
        return _escalated(state, "resolve_overdue", due)
    return Ignored("no_longer_needed")


def _escalated(state: Assignment, cause: Literal["accept_overdue", "resolve_overdue"], due: datetime) -> Step:
    level = state.escalations + 1
    said = CaseEscalated(**state.held, cause=cause, due_at=due, level=level)
    overdue = state.overdue or cause == "resolve_overdue"
    return Step(state.model_copy(update={"escalations": level, "overdue": overdue}), (said,))


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
