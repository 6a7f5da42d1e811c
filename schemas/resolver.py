"""What the resolver says, what departments receive, and what they answer."""

from typing import Literal
from uuid import UUID

from schemas.case import Case, Decision
from schemas.envelope import Body, Cipher, Code, Identifier, Kind, Moment, Request, message

CASES = "resolver.cases"
COMMANDS = "departments.commands"


class Held(Body):
    """The part every event about a delivered case has: which case, whose assignment."""

    case_id: UUID
    assignment_id: UUID
    department: Code


@message("resolver.case-delivered", topic=CASES)
class CaseDelivered(Held):
    """The case lies in the department's queue: custody is acknowledged."""

    accept_due: Moment


@message("resolver.case-assigned", topic=lambda body: f"departments.{body.department}")
class CaseAssigned(Held):
    """The department's copy: the whole case, its due times and the answers that are allowed.

    No hand-over within a cycle puts `resolve_due` off, only pauses do. `assisting` are the departments that
    were informed and may be asked. `suggested`, for triage alone: where the classifier would have sent it,
    the likeliest first; nothing where it read nothing, or a person is to judge blind.
    """

    accept_due: Moment
    resolve_due: Moment
    attempt_no: int
    case: Case
    answers: tuple[Code, ...] = ("accept", "return", "progress", "pause", "resume", "transfer", "resolve")
    answer_topic: Code = COMMANDS
    assisting: tuple[Code, ...] = ()
    suggested: tuple[Code, ...] = ()


@message("resolver.case-shared", topic=lambda body: f"departments.{body.assistant}")
class CaseShared(Body):
    """A copy for a department that assists the responsible one: to know of, and to be ready when asked.

    It names no assignment, so nothing can be answered to it: the case is `department`'s alone.
    """

    case_id: UUID
    assistant: Code
    department: Code
    resolve_due: Moment
    case: Case


@message("resolver.case-accepted", topic=CASES)
class CaseAccepted(Held):
    """A clerk has taken the case."""

    clerk: Code


@message("resolver.case-returned", topic=CASES)
class CaseReturned(Held):
    """The department says that the case is not its own; the router must find another."""

    reason: Code
    proposed_department: Code | None = None
    case: Case


@message("resolver.case-transferred", topic=CASES)
class CaseTransferred(Held):
    """The department worked on the case and passes it on; the router must find another."""

    reason: Code
    proposed_department: Code | None = None
    case: Case


@message("resolver.case-progressed", topic=CASES)
class CaseProgressed(Held):
    """The department did something worth telling."""

    note: Cipher


@message("resolver.case-paused", topic=CASES)
class CasePaused(Held):
    """The department waits for somebody else."""

    reason: Literal["awaiting_customer", "awaiting_third_party"]
    until: Moment


@message("resolver.case-resumed", topic=CASES)
class CaseResumed(Held):
    """The department goes on; the pause has pushed `resolve_due` to this moment."""

    cause: Code
    resolve_due: Moment | None = None


@message("resolver.case-escalated", topic=CASES)
class CaseEscalated(Held):
    """A deadline passed, recorded once at the due moment; the case goes on."""

    cause: Literal["accept_overdue", "resolve_overdue"]
    due_at: Moment
    level: int


@message("resolver.case-resolved", topic=CASES)
class CaseResolved(Held):
    """The department has decided; the customer must be told."""

    decision: Decision
    clerk: Code
    case: Case


@message("resolver.case-withdrawn", topic=CASES)
class CaseWithdrawn(Body):
    """The customer took the matter back; telling is still owed."""

    case_id: UUID
    decision: Decision
    case: Case


@message("resolver.command-refused", topic=CASES, key="subject")
class CommandRefused(Body):
    """The verdict on a command that changed nothing; `causationid` names the command."""

    subject: Identifier
    code: Code
    explanation: str
    current_state: Code


class Answer(Request):
    """The part every answer of a department has; only the holder of the assignment may act."""

    case_id: UUID
    assignment_id: UUID
    department: Code
    clerk: Code


@message("department.acceptance-requested", topic=COMMANDS, kind=Kind.COMMAND)
class AcceptanceRequested(Answer):
    """A clerk takes the case."""


@message("department.return-requested", topic=COMMANDS, kind=Kind.COMMAND)
class ReturnRequested(Answer):
    """The department hands the case back as not its own."""

    reason: Code
    proposed_department: Code | None = None


@message("department.transfer-requested", topic=COMMANDS, kind=Kind.COMMAND)
class TransferRequested(Answer):
    """The department passes an accepted case on."""

    reason: Code
    proposed_department: Code | None = None


@message("department.progress-requested", topic=COMMANDS, kind=Kind.COMMAND)
class ProgressRequested(Answer):
    """The department reports what it did."""

    note: Cipher


@message("department.pause-requested", topic=COMMANDS, kind=Kind.COMMAND)
class PauseRequested(Answer):
    """The department waits for somebody else until a stated moment."""

    reason: Literal["awaiting_customer", "awaiting_third_party"]
    until: Moment


@message("department.resumption-requested", topic=COMMANDS, kind=Kind.COMMAND)
class ResumptionRequested(Answer):
    """The department goes on before the stated moment."""


@message("department.resolution-requested", topic=COMMANDS, kind=Kind.COMMAND)
class ResolutionRequested(Answer):
    """The department decides the case."""

    decision: Decision


@message("customer.withdrawal-requested", topic=COMMANDS, kind=Kind.COMMAND)
class WithdrawalRequested(Request):
    """The customer takes the matter back."""

    case_id: UUID
    channel: Code
    decision: Decision


@message("resolver.timer-fired", topic=COMMANDS, key="subject", kind=Kind.COMMAND)
class TimerFired(Request):
    """A moment that the resolver had set itself has come."""

    subject: Identifier
    timer: Code
    due_at: Moment
