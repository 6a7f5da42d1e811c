"""What the agent's desk is asked, and what it answers: the forms of its routes."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from chassis.ids import is_case_number
from schemas import intake
from schemas.case import Category, Completeness, Language, Severity
from schemas.envelope import NO_NUL, Code, Identifier, Moment, Paragraph
from services.intake.contact import Told
from services.intake.customers.record import Consent
from services.intake.desk.checklist import (
    Checklist,
    ItemCode,
    Problem,
    Wording,
)
from services.intake.desk.masking import Kind

MOST_ANSWERS = 60

# ---------------------------------------------------------------- what is asked


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _known_category(value: object) -> object:
    # Category reads any unknown word as "other": a misspelt one would pass unseen.
    if value not in set(Category):
        raise ValueError(f"is none of {', '.join(Category)}")
    return value


KnownCategory = Annotated[Category, BeforeValidator(_known_category)]
AnswerText = Annotated[str, StringConstraints(max_length=2000, pattern=NO_NUL)]
Name = Annotated[str, StringConstraints(max_length=200, pattern=NO_NUL)]
PhoneText = Annotated[str, StringConstraints(max_length=60, pattern=NO_NUL)]
Outcome = Literal["answered", "no_answer", "busy", "failed"]


class Draft(_Model):
    """What an agent has written so far; `answers` are those to the checklist, by item code."""

    name: Name = ""
    phone: PhoneText = ""
    summary: Paragraph = ""
    demand: Paragraph = ""
    suggestion: Paragraph = ""
    answers: dict[ItemCode, AnswerText] = Field(default_factory=dict, max_length=MOST_ANSWERS)
    language: Language = "zh"
    category: KnownCategory | None = None
    product: Code | None = None
    severity: Severity = Severity.NORMAL
    vulnerable: bool = False
    read_back: bool = False


class Answered(_Model):
    """The decision of an agent who could resolve the case during the call; `text` is what was said."""

    outcome: Literal["upheld", "partly", "not_upheld", "settled", "answered", "withdrawn", "rejected"]
    text: Annotated[Paragraph, StringConstraints(min_length=1)]
    root_cause: Code
    redress_amount: Annotated[Decimal, Field(ge=0, max_digits=15, decimal_places=2)] | None = None
    redress_currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] | None = None

    @model_validator(mode="after")
    def _whole_redress(self) -> "Answered":
        if (self.redress_amount is None) != (self.redress_currency is None):
            raise ValueError("redress_amount and redress_currency go together")
        return self


class Recording(Draft):
    """A case to record; with `decision` it is already answered; `follows` names an earlier case of it."""

    language: Language
    category: KnownCategory
    product: Code
    decision: Answered | None = None
    follows: UUID | None = None


class Attachment(_Model):
    """The case that a call belongs to, by id or by number; `text` is what the customer said this time."""

    case_id: UUID | None = None
    case_no: Code | None = None
    text: Paragraph = ""

    @model_validator(mode="after")
    def _one_case(self) -> "Attachment":
        if (self.case_id is None) == (self.case_no is None):
            raise ValueError("give either case_id or case_no")
        if self.case_no is not None and not is_case_number(self.case_no):
            raise ValueError("case_no: its check digit does not hold; a digit was misheard or mistyped")
        return self


class Closing(_Model):
    """Why a call needs no case; for one that is `not_ours`, whom the customer was referred to."""

    reason: Literal["enquiry_answered", "wrong_number", "silent", "spam", "not_ours"]
    referred_to: Code | None = None

    @model_validator(mode="after")
    def _referred_elsewhere(self) -> "Closing":
        if self.referred_to is not None and self.reason != "not_ours":
            raise ValueError("referred_to goes with the reason not_ours")
        return self


class CallbackAttempt(_Model):
    """How a callback went; `by_call_id` is the new call, when there was one."""

    outcome: Outcome
    by_call_id: Identifier | None = None


class CallbackCancellation(_Model):
    """Why nobody needs to call back any more."""

    reason: Literal["customer_called", "customer_asked", "agent_closed"]
    by_call_id: Identifier | None = None


# ---------------------------------------------------------------- what is answered


class Denied(BaseModel):
    """Why something was not done and what to do next; `zh` says both for the agent's screen."""

    error: str
    why: str
    next: str
    zh: str | None = None


class Fault(BaseModel):
    """One field that cannot be used: its path, never its content."""

    path: str
    problem: str


class Malformed(BaseModel):
    """A request that cannot be read."""

    error: Literal["malformed"]
    faults: list[Fault]


class CallFacts(_Model):
    """The call as far as it is known; `waited_ms` counts on while the caller waits, None with the reason."""

    call_id: str
    phase: str
    queue: str | None
    agent: str | None
    language: str | None
    first_at: Moment
    waited_ms: int | None
    waited_unknown: Literal["never_queued", "not_said"] | None
    waiting: bool
    callback_of: str | None
    repeat_no: int


class CustomerFacts(_Model):
    """Who calls, as far as the bank knows; `number_unknown` and `name_unknown` say why there is none."""

    customer_ref: str
    version: int
    number: str | None
    number_unknown: Literal["unreadable", "erased"] | None
    name: str | None
    name_unknown: Literal["not_recorded", "erased"] | None
    language: str | None
    vulnerable: bool
    consents: Mapping[str, Consent]


class Added(_Model):
    """A later call about a case; `text` is what the customer said, None where nothing is or any more."""

    call_id: str
    repeat_no: int
    agent: str
    attached_at: Moment
    text: str | None


class OpenCase(_Model):
    """A case of this customer that is not closed; `stands` says its state for people.

    `added` are the last five calls that were attached to it, the newest first.
    """

    case_id: UUID
    case_no: str
    state: str
    stands: Wording
    department: str | None
    category: str
    product: str
    severity: str
    cycle: int
    recorded_at: Moment
    told_at: Moment | None
    added: list[Added]


class EarlierContact(_Model):
    """An earlier call of this customer, and what it came to."""

    call_id: str
    first_at: Moment
    queue: str | None
    agent: str | None
    reason_topic: str | None
    came_to: str
    wording: Wording
    case_no: str | None


class Learnt(_Model):
    """Why the caller calls, as the voice assistant understood it; `text` is None where none was kept."""

    topic: str
    text: str | None


class Callback(_Model):
    """Somebody who must be called back."""

    call_id: str
    queue: str
    state: Literal["open", "overdue"]
    due_at: Moment
    due: bool
    waiting_since: Moment
    attempts: int


class CallbackDue(Callback):
    """Somebody to call back, with the kept place in the queue; `number_unknown` says why there is none."""

    place: int
    ready: bool
    language: str | None
    reason_topic: str | None
    number: str | None
    number_unknown: Literal["withheld", "unreadable"] | None


class Callbacks(_Model):
    """Who must be called back, the longest wait first; `next`, where there are more, is their `after`."""

    callbacks: list[CallbackDue]
    next: str | None


class DraftStands(_Model):
    """That somebody has written something already."""

    version: int
    agent: str
    updated_at: Moment


class ScreenPop(_Model):
    """All that an agent sees before saying the first word; `customer` is None for a withheld number."""

    call: CallFacts
    customer: CustomerFacts | None
    open_cases: list[OpenCase]
    contacts: list[EarlierContact]
    learnt: Learnt | None
    told: Told | None
    callbacks: list[Callback]
    draft: DraftStands | None
    checklist: Checklist | None


class Hidden(_Model):
    """A number that was masked: in which field, of which kind, at which characters of what was sent."""

    field: str
    kind: Kind
    start: int
    end: int


class DraftKept(DraftStands):
    """A draft as it is kept, and what its case still lacks; nothing is judged before a category is chosen."""

    draft: Draft
    masked: list[Hidden]
    completeness: Completeness | None
    problems: list[Problem]
    read_back_text: str | None


class Recorded(_Model):
    """The case of the call."""

    case_id: UUID
    case_no: str
    completeness: Completeness | None


class Attached(_Model):
    """The case that the call was added to; `escalated` when the customer has called too often about it."""

    case_id: UUID
    case_no: str | None
    repeat_no: int
    escalated: bool


class Closed(_Model):
    """The call that was closed without a case."""

    call_id: str
    reason: str
    referred_to: str | None


class Attempted(_Model):
    """One attempt to call back; `next_at` is None when the callback is over."""

    call_id: str
    attempt: int
    outcome: Outcome
    next_at: Moment | None
    exhausted: bool


class Cancelled(_Model):
    """The callback that nobody needs to make any more."""

    call_id: str
    reason: str


Facts: TypeAlias = Recorded | Attached | Closed | Attempted | Cancelled


class Pending(_Model):
    """The command is kept and will be decided; `verdict` is where to ask, `why` what it waits for."""

    command_id: UUID
    verdict: str
    why: str


class CommandVerdict(_Model):
    """What became of a command: `facts` when done, `refusal` when refused, `why` while pending."""

    command_id: UUID
    call_id: str
    verdict: Literal["pending", "done", "refused"]
    facts: Facts | None = None
    refusal: intake.CommandRefused | None = None
    why: str | None = None
