"""The case as it travels: one snapshot that every stage passes on, so nobody has to call back."""

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from schemas.envelope import Body, Cipher, Code, Identifier, Moment


class Category(StrEnum):
    """What kind of matter it is."""

    ENQUIRY = "enquiry"
    HELP = "help"
    COMPLAINT = "complaint"
    DISPUTE = "dispute"
    FRAUD = "fraud"
    SUGGESTION = "suggestion"
    OTHER = "other"

    @classmethod
    def _missing_(cls, _: object) -> "Category":
        return cls.OTHER


class Severity(StrEnum):
    """How much harm waiting does."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


Language = Literal["zh", "en"]


class Customer(Body):
    """Who called: an opaque reference, and the person's data sealed with the person's own key.

    The sealed JSON is `schemas.case.Personal`.
    """

    customer_ref: Identifier
    sealed: Cipher


class Personal(Body):
    """What is inside `Customer.sealed`; never logged, never sent unsealed.

    `demand` and `suggestion` are in the customer's own words; `answers` are those to the checklist.
    """

    name: str = ""
    phone: str = ""
    summary: str = ""
    demand: str = ""
    suggestion: str = ""
    answers: dict[str, str] = Field(default_factory=dict)


class Completeness(Body):
    """How much of what its category needs was recorded: `score` 0 … 100, and the names of what is missing."""

    score: int
    missing: tuple[Code, ...] = ()
    checklist: Code
    read_back: bool = False


class Attempt(Body):
    """One department's earlier go at the case, and why it ended."""

    department: Code
    assignment_id: UUID
    ended: Literal["returned", "transferred", "resolved"]
    reason: Code
    note: Cipher | None = None


class Case(Body):
    """Everything a department needs to work the case; `follows` names an earlier case of the same matter."""

    case_id: UUID
    case_no: Code
    cycle: int = 1
    call_id: Identifier
    channel: Code = "phone"
    queue: Code | None = None
    agent: Code
    language: Language
    category: Category
    product: Code
    severity: Severity
    vulnerable: bool = False
    customer: Customer
    recorded_at: Moment
    completeness: Completeness | None = None
    follows: UUID | None = None
    attempts: tuple[Attempt, ...] = ()


class Decision(Body):
    """A department's result, as the customer will hear it; the text is sealed like the rest."""

    outcome: Literal["upheld", "partly", "not_upheld", "settled", "answered", "withdrawn", "rejected"]
    text: Cipher
    root_cause: Code
    redress_amount: str | None = None
    redress_currency: Code | None = None
