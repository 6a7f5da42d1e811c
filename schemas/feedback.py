"""What feedback says, and what customers answer."""

from typing import Literal
from uuid import UUID

from schemas.case import Case, Decision
from schemas.envelope import Body, Cipher, Code, Identifier, Kind, Moment, Request, message

CASES = "feedback.cases"
COMMANDS = "customers.replies"


@message("feedback.case-opened", topic=CASES)
class CaseOpened(Body):
    """The result is in hand and telling has begun: custody is acknowledged."""

    case_id: UUID
    cycle: int
    due_at: Moment


@message("feedback.customer-told", topic=CASES)
class CustomerTold(Body):
    """The customer has been sent the result."""

    case_id: UUID
    cycle: int
    channel: Code
    attempt: int
    told_at: Moment
    late: bool


@message("feedback.telling-failed", topic=CASES)
class TellingFailed(Body):
    """One attempt to tell the customer failed; the next one is set."""

    case_id: UUID
    cycle: int
    channel: Code
    attempt: int
    reason: Code
    next_at: Moment | None


@message("feedback.customer-unreached", topic=CASES)
class CustomerUnreached(Body):
    """All attempts failed."""

    case_id: UUID
    cycle: int
    attempts: int


@message("feedback.telling-overdue", topic=CASES)
class TellingOverdue(Body):
    """The customer has not heard the result within 24 hours; recorded once, telling goes on."""

    case_id: UUID
    cycle: int
    due_at: Moment


@message("feedback.satisfaction-recorded", topic=CASES)
class SatisfactionRecorded(Body):
    """The customer judged the result."""

    case_id: UUID
    cycle: int
    solved: bool
    attitude: int | None
    speed: int | None
    comment: Cipher | None = None


@message("feedback.satisfaction-expired", topic=CASES)
class SatisfactionExpired(Body):
    """The customer was asked and did not answer in time."""

    case_id: UUID
    cycle: int


@message("feedback.case-reopened", topic=CASES)
class CaseReopened(Body):
    """The customer is not satisfied; the case goes round again under the next cycle number."""

    case_id: UUID
    cycle: int
    reason: Code
    prior_decision: Decision
    department: Code | None
    case: Case


@message("feedback.case-closed", topic=CASES)
class CaseClosed(Body):
    """The case is over; `counts` says how much each stage had said of it when feedback last heard of it."""

    case_id: UUID
    cycles: int
    outcome: Code
    told: bool
    rated: bool
    counts: dict[Code, int] | None = None


@message("feedback.command-refused", topic=CASES, key="subject")
class CommandRefused(Body):
    """The verdict on a command that changed nothing; `causationid` names the command."""

    subject: Identifier
    code: Code
    explanation: str
    current_state: Code


@message("customer.rating-requested", topic=COMMANDS, kind=Kind.COMMAND)
class RatingRequested(Request):
    """The customer answers the question whether the matter is solved."""

    case_id: UUID
    cycle: int
    solved: bool
    attitude: Literal[1, 2, 3, 4, 5] | None = None
    speed: Literal[1, 2, 3, 4, 5] | None = None
    comment: Cipher | None = None


@message("feedback.telling-attempted", topic=COMMANDS, kind=Kind.COMMAND)
class TellingAttempted(Request):
    """The notifier reports what became of one attempt to tell the customer."""

    case_id: UUID
    cycle: int
    attempt: int
    channel: Code
    delivered: bool
    reason: Code = "delivered"
    at: Moment


@message("feedback.timer-fired", topic=COMMANDS, key="subject", kind=Kind.COMMAND)
class TimerFired(Request):
    """A moment that feedback had set itself has come."""

    subject: Identifier
    timer: Code
    due_at: Moment
