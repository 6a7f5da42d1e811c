"""What intake says, and what agents ask of it."""

from typing import Literal
from uuid import UUID

from schemas.case import Case, Category, Completeness, Decision, Language, Severity
from schemas.envelope import (
    Body,
    Cipher,
    Code,
    Identifier,
    Kind,
    Moment,
    Request,
    message,
)

CASES = "intake.cases"
COMMANDS = "intake.commands"


@message("intake.case-recorded", topic=CASES)
class CaseRecorded(Body):
    """A case was written down; a department must be found for it."""

    case_id: UUID
    case: Case


@message("intake.case-answered", topic=CASES)
class CaseAnswered(Body):
    """The agent resolved the case during the call (first contact resolution)."""

    case_id: UUID
    case: Case
    decision: Decision


@message("intake.contact-attached", topic=CASES)
class ContactAttached(Body):
    """The call belongs to a case that was already open.

    `text` is what the customer said this time, sealed with the key of `customer_ref`.
    """

    case_id: UUID
    call_id: Identifier
    repeat_no: int
    agent: Code
    customer_ref: Identifier | None = None
    text: Cipher | None = None


@message("intake.contact-closed", topic=CASES, key="call_id")
class ContactClosed(Body):
    """The call ended without a case, for a stated reason; `not_ours` may name whom the caller was sent to.

    When an answer, or an agent's record, comes to light after telephony's own reason, that holds instead.
    """

    call_id: Identifier
    reason: Code
    queue: Code | None = None
    waited_ms: int | None = None
    referred_to: Code | None = None


@message("intake.contact-continued", topic=CASES, key="call_id")
class ContactContinued(Body):
    """The call goes on: what was told as its end, at `ended_at`, ended one leg of it alone."""

    call_id: Identifier
    ended_at: Moment


@message("intake.recording-overdue", topic=CASES, key="call_id")
class RecordingOverdue(Body):
    """An answered call is over and the wrap-up time too, yet nobody recorded what it was about."""

    call_id: Identifier
    agent: Code | None = None
    ended_at: Moment


@message("intake.repeat-noticed", topic=CASES, key="call_id")
class RepeatNoticed(Body):
    """Somebody calls again from the same number: how often in the last days, and what is still open."""

    call_id: Identifier
    customer_ref: Identifier
    contacts: int
    within_days: int
    open_cases: tuple[UUID, ...] = ()


@message("intake.case-escalated", topic=CASES)
class CaseEscalated(Body):
    """A customer has called so often about one case that somebody senior must look at it."""

    case_id: UUID
    call_id: Identifier
    cause: Literal["repeat_calls"]
    repeat_no: int


@message("intake.callback-scheduled", topic=CASES, key="call_id")
class CallbackScheduled(Body):
    """The caller left the queue and keeps the place: somebody calls back at `due_at`.

    Said again of the same call, when the caller corrects the number or the time, it replaces the earlier.
    """

    call_id: Identifier
    queue: Code
    customer_ref: Identifier | None = None
    number: Cipher | None = None
    due_at: Moment
    waiting_since: Moment


@message("intake.callback-attempted", topic=CASES, key="call_id")
class CallbackAttempted(Body):
    """Somebody called back; `by_call_id` is the new call, when there was one."""

    call_id: Identifier
    attempt: int
    outcome: Literal["answered", "no_answer", "busy", "failed"]
    by_call_id: Identifier | None = None
    next_at: Moment | None = None


@message("intake.callback-overdue", topic=CASES, key="call_id")
class CallbackOverdue(Body):
    """The promised time is over and nobody has called back."""

    call_id: Identifier
    queue: Code
    due_at: Moment


@message("intake.callback-exhausted", topic=CASES, key="call_id")
class CallbackExhausted(Body):
    """Every attempt to call back failed."""

    call_id: Identifier
    attempts: int


@message("intake.callback-cancelled", topic=CASES, key="call_id")
class CallbackCancelled(Body):
    """No callback is needed any more; `by_call_id` is the call with which the customer came first.

    It is the wishing call itself when an agent answered there after all.
    """

    call_id: Identifier
    reason: Literal["customer_called", "customer_asked", "agent_closed"]
    by_call_id: Identifier | None = None


@message("intake.command-refused", topic=CASES, key="subject")
class CommandRefused(Body):
    """The verdict on a command that changed nothing; `causationid` names the command."""

    subject: Identifier
    code: Code
    explanation: str
    current_state: Code


@message("intake.recording-requested", topic=COMMANDS, key="call_id", kind=Kind.COMMAND)
class RecordingRequested(Request):
    """An agent records the case of a call; with `decision`, it is already answered."""

    call_id: Identifier
    agent: Code
    language: Language
    category: Category
    product: Code
    severity: Severity = Severity.NORMAL
    vulnerable: bool = False
    customer_ref: Identifier
    sealed: Cipher
    decision: Decision | None = None
    completeness: Completeness | None = None
    follows: UUID | None = None


@message("intake.attachment-requested", topic=COMMANDS, key="call_id", kind=Kind.COMMAND)
class AttachmentRequested(Request):
    """An agent says that a call belongs to an open case."""

    call_id: Identifier
    agent: Code
    to_case_id: UUID
    repeat_no: int = 2
    customer_ref: Identifier | None = None
    text: Cipher | None = None


@message("intake.closing-requested", topic=COMMANDS, key="call_id", kind=Kind.COMMAND)
class ClosingRequested(Request):
    """An agent closes a contact that needs no case."""

    call_id: Identifier
    agent: Code
    reason: Literal["enquiry_answered", "wrong_number", "silent", "spam", "not_ours"]
    referred_to: Code | None = None


@message("intake.callback-attempt-reported", topic=COMMANDS, key="call_id", kind=Kind.COMMAND)
class CallbackAttemptReported(Request):
    """An agent or a dialler has called back, and says how it went."""

    call_id: Identifier
    agent: Code
    outcome: Literal["answered", "no_answer", "busy", "failed"]
    by_call_id: Identifier | None = None


@message("intake.callback-cancellation-requested", topic=COMMANDS, key="call_id", kind=Kind.COMMAND)
class CallbackCancellationRequested(Request):
    """The customer came first, or does not want to be called any more."""

    call_id: Identifier
    reason: Literal["customer_called", "customer_asked", "agent_closed"]
    by_call_id: Identifier | None = None


@message("intake.timer-fired", topic=COMMANDS, key="subject", kind=Kind.COMMAND)
class TimerFired(Request):
    """A moment that intake had set itself has come."""

    subject: Identifier
    timer: Code
    due_at: Moment
