"""Which department is responsible, and what happens when departments disagree; pure."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from chassis.ids import derived_id
from chassis.step import Decisions, Event, Ignored, Outcome, Refused, Step, Waiting
from schemas.case import Attempt, Case, Severity
from schemas.envelope import Body
from schemas.feedback import CaseReopened
from schemas.intake import CaseRecorded
from schemas.resolver import CaseReturned, CaseTransferred
from schemas.router import (
    AssignmentRequested,
    CaseParked,
    CaseRejected,
    CaseRouted,
    RejectionRequested,
    RuleUsed,
    TimerFired,
)
from schemas.topics import DEPARTMENTS
from services.router.rules import TRIAGE, Ruleset, assign

Phase = Literal["routed", "parked", "rejected"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in force, the departments' times, and how often a case may be handed back."""

    ruleset: Ruleset = field(default_factory=lambda: Ruleset(ruleset="empty", rules=()))
    accept_within: timedelta = timedelta(hours=2)
    resolve_within: timedelta = timedelta(days=5)
    urgent_within: timedelta = timedelta(days=1)
    moves_before_ruling: int = 2


class Routing(Body):
    """What the router knows of one case."""

    phase: Phase
    case: Case
    assignment_id: UUID | None = None
    department: str | None = None
    attempt_no: int = 0
    moves: int = 0


def on_recorded(event: Event[CaseRecorded], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """A new case goes where the rules say, else to triage."""
    if state is not None:
        return Ignored("already_routed")
    return _route_by_rules(event, Routing(phase="parked", case=event.body.case), now, policy)


def on_reopened(event: Event[CaseReopened], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """A reopened case goes back to the department that decided it."""
    body = event.body
    if state is not None and state.case.cycle >= body.cycle:
        return Ignored("cycle_already_routed")
    base = Routing(phase="parked", case=body.case, attempt_no=state.attempt_no if state else 0)
    if body.department in DEPARTMENTS:
        return _route(event, base, body.department, "prior_department", "hold", now, policy)
    return _route_by_rules(event, base, now, policy)


def on_returned(event: Event[CaseReturned], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """A department says the case is not its own."""
    return _moved(event, state, "returned", now, policy)


def on_transferred(
    event: Event[CaseTransferred], state: Routing | None, now: datetime, policy: Policy
) -> Outcome:
    """A department has done its part and passes the case on."""
    return _moved(event, state, "transferred", now, policy)


def _moved(
    event: Event[Any],
    state: Routing | None,
    ended: Literal["returned", "transferred"],
    now: datetime,
    policy: Policy,
) -> Outcome:
    body = event.body
    if state is None:
        return Waiting("not_recorded_yet")
    if body.assignment_id != state.assignment_id:
        return Ignored("stale_assignment")
    attempt = Attempt(
        department=body.department, assignment_id=body.assignment_id, ended=ended, reason=body.reason
    )
    case = body.case.model_copy(update={"attempts": (*body.case.attempts, attempt)})
    base = state.model_copy(update={"case": case, "moves": state.moves + 1})
    if base.moves > policy.moves_before_ruling:
        return _park(event, base, "too_many_returns")
    proposed = body.proposed_department
    if proposed in DEPARTMENTS and proposed != body.department:
        return _route(event, base, proposed, "proposed_by_department", "hold", now, policy)
    return _route_by_rules(event, base, now, policy, excluded=frozenset({body.department}))


def on_assignment_requested(
    event: Event[AssignmentRequested], state: Routing | None, now: datetime, policy: Policy
) -> Outcome:
    """A person rules who is responsible."""
    if state is None:
        return Waiting("not_recorded_yet")
    if event.body.department not in DEPARTMENTS:
        return Refused("unknown_department", f"{event.body.department} is not a department", state.phase)
    if not _may_be_ruled(state):
        return Refused("illegal_in_state", f"the case is with {state.department}", state.phase)
    return _route(event, state, event.body.department, f"ruling_by_{event.body.by}", "ruling", now, policy)


def on_rejection_requested(
    event: Event[RejectionRequested], state: Routing | None, now: datetime, policy: Policy
) -> Outcome:
    """A person rules that the matter is not this bank's."""
    if state is None:
        return Waiting("not_recorded_yet")
    if not _may_be_ruled(state):
        return Refused("illegal_in_state", f"the case is with {state.department}", state.phase)
    said = CaseRejected(case_id=state.case.case_id, decision=event.body.decision, case=state.case)
    return Step(state.model_copy(update={"phase": "rejected"}), (said,))


def _may_be_ruled(state: Routing) -> bool:
    return state.phase == "parked"


def on_timer(event: Event[TimerFired], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """The router sets no timers of its own yet; only waiting commands use them."""
    return Ignored("no_longer_needed")


def _route_by_rules(
    event: Event[Any],
    base: Routing,
    now: datetime,
    policy: Policy,
    excluded: frozenset[str] = frozenset(),
) -> Step:
    rule = assign(base.case, policy.ruleset, excluded=excluded)
    if rule is None:
        return _route(event, base, TRIAGE, "no_rule", "triage", now, policy)
    return _route(event, base, rule.department, rule.id, "rule", now, policy)


def _route(
    event: Event[Any],
    base: Routing,
    department: str,
    rule: str,
    stage: Literal["hold", "rule", "triage", "ruling"],
    now: datetime,
    policy: Policy,
) -> Step:
    case = base.case
    urgent = case.severity is Severity.URGENT
    assignment_id = derived_id(event.uid, "assignment")
    said = CaseRouted(
        case_id=case.case_id,
        assignment_id=assignment_id,
        department=department,
        attempt_no=base.attempt_no + 1,
        why=RuleUsed(ruleset=policy.ruleset.ruleset, rule=rule, stage=stage),
        accept_due=now + policy.accept_within,
        resolve_due=now + (policy.urgent_within if urgent else policy.resolve_within),
        case=case,
    )
    state = base.model_copy(
        update={
            "phase": "routed",
            "assignment_id": assignment_id,
            "department": department,
            "attempt_no": base.attempt_no + 1,
        }
    )
    return Step(state, (said,))


def _park(event: Event[Any], base: Routing, reason: str) -> Step:
    said = CaseParked(case_id=base.case.case_id, reason=reason, case=base.case)
    return Step(base.model_copy(update={"phase": "parked", "assignment_id": None}), (said,))


DECISIONS: Decisions = {
    CaseRecorded: on_recorded,
    CaseReturned: on_returned,
    CaseTransferred: on_transferred,
    CaseReopened: on_reopened,
    AssignmentRequested: on_assignment_requested,
    RejectionRequested: on_rejection_requested,
    TimerFired: on_timer,
}
