"""What the router says, and what triage asks of it."""

from typing import Literal
from uuid import UUID

from schemas.case import Case, Decision
from schemas.envelope import Body, Code, Identifier, Kind, Line, Moment, Request, message

CASES = "router.cases"
COMMANDS = "router.commands"


class RuleUsed(Body):
    """Why this department: the ruleset and the rule that matched."""

    ruleset: Code
    rule: Code
    stage: Literal["hold", "rule", "triage", "ruling"]


@message("router.case-routed", topic=CASES)
class CaseRouted(Body):
    """A department is responsible from now on."""

    case_id: UUID
    assignment_id: UUID
    department: Code
    attempt_no: int
    why: RuleUsed
    accept_due: Moment
    resolve_due: Moment
    case: Case


@message("router.case-parked", topic=CASES)
class CaseParked(Body):
    """Departments disagree; a person must rule who is responsible."""

    case_id: UUID
    reason: Code
    case: Case


@message("router.case-rejected", topic=CASES)
class CaseRejected(Body):
    """The matter is not this bank's; the customer is told why."""

    case_id: UUID
    decision: Decision
    case: Case


@message("router.command-refused", topic=CASES, key="subject")
class CommandRefused(Body):
    """The verdict on a command that changed nothing; `causationid` names the command."""

    subject: Identifier
    code: Code
    explanation: str
    current_state: Code


@message("router.assignment-requested", topic=COMMANDS, kind=Kind.COMMAND)
class AssignmentRequested(Request):
    """A person in triage rules which department is responsible."""

    case_id: UUID
    department: Code
    by: Code
    reason: Line = ""


@message("router.rejection-requested", topic=COMMANDS, kind=Kind.COMMAND)
class RejectionRequested(Request):
    """A person in triage rules that the matter is not this bank's."""

    case_id: UUID
    by: Code
    decision: Decision


@message("router.timer-fired", topic=COMMANDS, key="subject", kind=Kind.COMMAND)
class TimerFired(Request):
    """A moment that the router had set itself has come."""

    subject: Identifier
    timer: Code
    due_at: Moment
