"""Which department is responsible, and what happens when departments disagree; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from chassis.ids import derived_id
from chassis.step import Cancel, Decisions, Event, Ignored, Outcome, Refused, Step, Timer, Waiting
from schemas.case import Attempt, Case, Severity
from schemas.envelope import Body, Code, Moment
from schemas.feedback import CaseReopened
from schemas.intake import CaseRecorded
from schemas.resolver import CaseReturned, CaseTransferred, CaseWithdrawn
from schemas.router import (
    AssignmentRequested,
    CaseParked,
    CaseRejected,
    CaseRouted,
    Explanation,
    RejectionRequested,
    RuleUsed,
    RulingLapsed,
    TimerFired,
    TriageOverdue,
)
from schemas.topics import DEPARTMENTS
from services.router.decision import NOTHING_READ, Choice, Desk, Read, Stage, decide, hold
from services.router.rules import TRIAGE

Phase = Literal["routed", "parked", "rejected", "withdrawn"]
RULING = "ruling"
RARELY = timedelta(days=1)
"""No further apart are the reminders of a case that waits for a ruling."""
MISROUTED = frozenset({"not_ours", "misrouted"})
"""Reasons with which a department says that the router was wrong; any other move is no lesson for it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules and scores to decide with, the departments' times, how often a case may be handed back or on.

    `read` is what was read of the cases of this batch, by case.
    """

    desk: Desk = field(default_factory=Desk)
    accept_within: timedelta = timedelta(hours=2)
    triage_within: timedelta = timedelta(minutes=10)
    resolve_within: timedelta = timedelta(days=5)
    urgent_within: timedelta = timedelta(days=1)
    returns_before_ruling: int = 2
    moves_before_ruling: int = 4
    read: Mapping[UUID, Read] = field(default_factory=dict)


class Label(Body):
    """What the right department was, on whose word: a lesson for the classifier."""

    department: Code
    source: Literal["triage", "audit", "transfer", "ruling"]
    at: Moment


class Routing(Body):
    """What the router knows of one case.

    `moves`: so often departments (not triage) have handed it back or on in this cycle; `returns`: those of
    them that said it was not theirs. `act_by`: until then somebody must have accepted it, or ruled.
    """

    phase: Phase
    case: Case
    assignment_id: UUID | None = None
    department: str | None = None
    stage: Stage | None = None
    rule: str | None = None
    attempt_no: int = 0
    moves: int = 0
    returns: int = 0
    changed_at: Moment | None = None
    act_by: Moment | None = None
    explanation: Explanation | None = None
    label: Label | None = None
    reminders: int = 0


def on_recorded(event: Event[CaseRecorded], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """A new case goes where rules or classifier say, else to triage."""
    if state is not None:
        return Ignored("already_routed")
    return _route(event, Routing(phase="parked", case=event.body.case), now, policy)


def on_reopened(event: Event[CaseReopened], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """A reopened case goes back to the department that decided it."""
    body = event.body
    if state is not None and state.case.cycle >= body.cycle:
        return Ignored("cycle_already_routed")
    base = Routing(
        phase="parked",
        case=body.case,
        attempt_no=state.attempt_no if state else 0,
        label=state.label if state else None,
    )
    if body.department in DEPARTMENTS:
        return _keep(event, base, body.department, "hold", "prior_department", now, policy)
    return _route(event, base, now, policy)


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
    proposed = body.proposed_department
    known = proposed in DEPARTMENTS and proposed != body.department
    by_department = body.department != TRIAGE
    base = state.model_copy(
        update={
            "case": case,
            "moves": state.moves + by_department,
            "returns": state.returns + (by_department and (ended == "returned" or body.reason in MISROUTED)),
            "label": (_lesson(body, proposed, now) if known else None) or state.label,
        }
    )
    if base.returns >= policy.returns_before_ruling or base.moves >= policy.moves_before_ruling:
        return _park(base, "too_many_returns", now, policy)
    if known:
        return _keep(event, base, proposed, "hold", "proposed_by_department", now, policy)
    return _route(event, base, now, policy, excluded=_gave_it_back(case) | {body.department})


def _gave_it_back(case: Case) -> frozenset[str]:
    """Who has said that the case is not its own; triage said nothing of the kind, whatever it passed on."""
    return frozenset(one.department for one in case.attempts if one.ended == "returned") - {TRIAGE}


def _lesson(body: Any, proposed: str, now: datetime) -> Label | None:
    """Triage decides by its proposal; of departments' moves only a misrouting teaches."""
    if body.department == TRIAGE:
        return Label(department=proposed, source="triage", at=now)
    if body.reason in MISROUTED and proposed != TRIAGE:
        return Label(department=proposed, source="transfer", at=now)
    return None


def on_withdrawn(
    event: Event[CaseWithdrawn], state: Routing | None, now: datetime, policy: Policy
) -> Outcome:
    """The customer took the matter back: nobody need decide any more, unless the case is reopened."""
    if state is None:
        return Waiting("not_recorded_yet")
    if event.body.case.cycle < state.case.cycle:
        return Ignored("earlier_cycle")
    lapsed = RulingLapsed(case_id=state.case.case_id, reason="withdrawn")
    said = (lapsed,) if state.phase == "parked" else ()
    ended = state.model_copy(update={"phase": "withdrawn", "assignment_id": None, "changed_at": now})
    return Step(ended, said, (Cancel(RULING),))


def on_assignment_requested(
    event: Event[AssignmentRequested], state: Routing | None, now: datetime, policy: Policy
) -> Outcome:
    """A person decides who has a case that is parked, waits in triage, or was not accepted in time.

    The router does not hear of acceptances and results: the resolver lets no routing undo a result.
    """
    if state is None:
        return Waiting("not_recorded_yet")
    body = event.body
    if body.department not in DEPARTMENTS or body.department == TRIAGE:
        said = f"{body.department} is not a department to assign to"
        return Refused("unknown_department", said, state.phase)
    if state.phase not in ("parked", "routed"):
        return Refused("illegal_in_state", f"the case is {state.phase}", state.phase)
    if objection := _still_theirs(state, body.department, now):
        return Refused("illegal_in_state", objection, state.phase)
    base = state.model_copy(update={"label": _taught(state, body, now) or state.label})
    why = f"ruling_by_{body.by}"[:80]
    return _keep(event, base, body.department, "ruling", why, now, policy)


def _still_theirs(state: Routing, wanted: str, now: datetime) -> str | None:
    """Why a case may not be taken from whoever holds it; None: it may."""
    if state.phase != "routed" or state.department == TRIAGE:
        return None
    if state.department == wanted:
        return f"the case is with {wanted} already"
    if state.act_by is not None and now < state.act_by:
        return f"the case is with {state.department}, who has until {state.act_by:%H:%M} UTC to accept it"
    return None


def _taught(state: Routing, body: AssignmentRequested, now: datetime) -> Label | None:
    """Who decides what nobody else could teaches; who takes a case away, only if it was wrong there."""
    if state.phase == "parked" or state.department == TRIAGE:
        audit = state.explanation is not None and state.explanation.audit
        asked: Literal["ruling", "triage"] = "ruling" if state.phase == "parked" else "triage"
        return Label(department=body.department, source="audit" if audit else asked, at=now)
    wrong = body.reason in MISROUTED
    return Label(department=body.department, source="ruling", at=now) if wrong else None


def on_rejection_requested(
    event: Event[RejectionRequested], state: Routing | None, now: datetime, policy: Policy
) -> Outcome:
    """A person rules that the matter is not this bank's; whoever holds a case resolves it as rejected."""
    if state is None:
        return Waiting("not_recorded_yet")
    if state.phase != "parked":
        where = f"with {state.department}, who answers it" if state.phase == "routed" else state.phase
        return Refused("illegal_in_state", f"the case is {where}", state.phase)
    said = CaseRejected(case_id=state.case.case_id, decision=event.body.decision, case=state.case)
    rejected = state.model_copy(update={"phase": "rejected", "changed_at": now})
    return Step(rejected, (said,), (Cancel(RULING),))


def on_timer(event: Event[TimerFired], state: Routing | None, now: datetime, policy: Policy) -> Outcome:
    """A parked case has waited for a ruling: say so, and again after twice the time, daily in the end.

    Whoever waits in triage is watched by the resolver's clock.
    """
    if state is None or state.phase != "parked" or event.body.timer != RULING:
        return Ignored("no_longer_needed")
    level = state.reminders + 1
    said = TriageOverdue(
        case_id=state.case.case_id, waiting_since=state.changed_at or state.case.recorded_at, level=level
    )
    again = Timer(RULING, now + min(policy.triage_within * 2 ** min(level, 10), RARELY))
    return Step(state.model_copy(update={"reminders": level}), (said,), (again,))


def _route(
    event: Event[Any],
    base: Routing,
    now: datetime,
    policy: Policy,
    excluded: frozenset[str] = frozenset(),
) -> Step:
    case = base.case
    read = policy.read.get(case.case_id, NOTHING_READ)
    choice = decide(case, read, policy.desk, now, cause=event.uid, excluded=excluded)
    return _routed(event, base, choice, now, policy)


def _keep(
    event: Event[Any],
    base: Routing,
    department: str,
    stage: Stage,
    why: str,
    now: datetime,
    policy: Policy,
) -> Step:
    read = policy.read.get(base.case.case_id, NOTHING_READ)
    choice = hold(base.case, department, stage, why, read, policy.desk, now, cause=event.uid)
    return _routed(event, base, choice, now, policy)


def _routed(event: Event[Any], base: Routing, choice: Choice, now: datetime, policy: Policy) -> Step:
    case = base.case
    if choice.severity is not case.severity:
        case = case.model_copy(update={"severity": choice.severity})
    accept, resolve = _times(choice.department, case, policy)
    assignment_id = derived_id(event.uid, "assignment")
    said = CaseRouted(
        case_id=case.case_id,
        assignment_id=assignment_id,
        department=choice.department,
        attempt_no=base.attempt_no + 1,
        why=_why(event.body, choice, policy.desk),
        accept_due=now + accept,
        resolve_due=now + resolve,
        case=case,
        explanation=choice.explanation,
        assisting=choice.assisting,
    )
    state = base.model_copy(
        update={
            "phase": "routed",
            "case": case,
            "assignment_id": assignment_id,
            "department": choice.department,
            "stage": choice.stage,
            "rule": choice.rule,
            "attempt_no": base.attempt_no + 1,
            "changed_at": now,
            "act_by": now + accept,
            "explanation": choice.explanation,
            "reminders": 0,
        }
    )
    return Step(state, (said,), (Cancel(RULING),))


def _why(asked: Body, choice: Choice, desk: Desk) -> RuleUsed:
    used = RuleUsed(ruleset=desk.ruleset.ruleset, rule=choice.rule, stage=choice.stage)
    if isinstance(asked, AssignmentRequested):
        return used.model_copy(update={"by": asked.by, "reason": asked.reason})
    return used


def _times(department: str, case: Case, policy: Policy) -> tuple[timedelta, timedelta]:
    """How long the department has to accept and to resolve: its own times, else the bank's."""
    profile = policy.desk.departments[department] if policy.desk.departments else None
    usual = policy.triage_within if department == TRIAGE else policy.accept_within
    accept = (profile.accept_within if profile else None) or usual
    resolve = (profile.resolve_within if profile else None) or policy.resolve_within
    if case.severity is Severity.URGENT:
        resolve = min(resolve, policy.urgent_within)
    return accept, resolve


def _park(base: Routing, reason: str, now: datetime, policy: Policy) -> Step:
    said = CaseParked(case_id=base.case.case_id, reason=reason, case=base.case)
    due = now + policy.triage_within
    fields = {"phase": "parked", "assignment_id": None, "changed_at": now, "act_by": due, "reminders": 0}
    return Step(base.model_copy(update=fields), (said,), (Timer(RULING, due),))


DECISIONS: Decisions = {
    CaseRecorded: on_recorded,
    CaseReturned: on_returned,
    CaseTransferred: on_transferred,
    CaseWithdrawn: on_withdrawn,
    CaseReopened: on_reopened,
    AssignmentRequested: on_assignment_requested,
    RejectionRequested: on_rejection_requested,
    TimerFired: on_timer,
}
