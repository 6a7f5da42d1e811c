"""What the bank knows of a customer, and what may be done with it; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter, computed_field, field_validator

from chassis.vault import ERASED
from schemas.case import Language
from schemas.envelope import NO_NUL, Body, Code, Moment, Request
from services.intake.desk import phones
from services.intake.desk.masking import mask

LONGEST_REASON = 500
MOST_CONSENTS = 50


class Refused(Exception):
    """The act would break a rule: `code` for machines, `why` and `next_step` for people."""

    def __init__(self, code: str, why: str, next_step: str) -> None:
        super().__init__(why)
        self.code, self.why, self.next_step = code, why, next_step


class Person(Body):
    """What is inside `Record.sealed`: who the customer is; `phone` is E.164 or a short code."""

    name: str = ""
    phone: str = ""


class Consent(Body):
    """The customer's last word on one purpose (recording, marketing …), and which agent heard it."""

    given: bool
    at: Moment
    by: Code


CONSENTS: TypeAdapter[dict[str, Consent]] = TypeAdapter(dict[str, Consent])


class Change(Request):
    """What an agent corrects: a field that is not named stays; an empty name or phone is removed."""

    name: Annotated[str, StringConstraints(max_length=200, pattern=NO_NUL, strip_whitespace=True)] | None = (
        None
    )
    phone: Annotated[str, StringConstraints(max_length=60)] | None = None
    language: Language | None = None
    vulnerable: bool | None = None
    consents: dict[Code, bool] = Field(default_factory=dict, max_length=MOST_CONSENTS)

    @field_validator("phone")
    @classmethod
    def _normalised(cls, raw: str | None) -> str | None:
        if not raw:
            return raw
        phone = phones.normalise(raw)
        if phone is None:
            raise ValueError("not a telephone number; write it as dialled, or with + and the country code")
        return phone.number


@dataclass(frozen=True, slots=True)
class Record:
    """One row of `customers`; `version` grows with each change, `sealed` is a `Person`.

    `merged_into` points to the record that stands for this one now; `legal_hold` is why it may not be
    erased; `erased_at` is when everything was erased, None again once the customer is seen anew.
    """

    customer_ref: str
    version: int
    language: str | None
    vulnerable: bool
    sealed: str | None
    consents: Mapping[str, Consent]
    merged_into: str | None
    legal_hold: str | None
    erased_at: datetime | None
    first_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Seen:
    """What a recorded case tells of its customer, and when it was recorded."""

    customer_ref: str
    at: datetime
    language: str | None = None
    vulnerable: bool = False


def changed(
    record: Record, person: Person, change: Change, by: str, now: datetime
) -> tuple[Record, Person, tuple[str, ...]]:
    """Apply a change: gives the record (`sealed` still the old), the person, the names of what changed.

    A consent said again as it stands keeps its date. Raises Refused: erased, too many consents.
    """
    if record.erased_at is not None:
        raise Refused(
            "erased",
            "the record was erased: there is no key to seal with",
            "wait for the customer's next call",
        )
    who = {"name": change.name, "phone": change.phone}
    new_person = person.model_copy(update={name: text for name, text in who.items() if text is not None})
    heard = {
        purpose: Consent(given=given, at=now, by=by)
        for purpose, given in change.consents.items()
        if purpose not in record.consents or record.consents[purpose].given is not given
    }
    new = replace(
        record,
        language=change.language or record.language,
        vulnerable=record.vulnerable if change.vulnerable is None else change.vulnerable,
        consents={**record.consents, **heard},
    )
    if len(new.consents) > MOST_CONSENTS:
        raise Refused(
            "too_many_consents",
            f"a record holds at most {MOST_CONSENTS} consents",
            "use the names that exist",
        )
    what = [name for name in ("name", "phone") if getattr(new_person, name) != getattr(person, name)]
    what += [name for name in ("language", "vulnerable") if getattr(new, name) != getattr(record, name)]
    what += [f"consent {purpose}" for purpose in sorted(heard)]
    return new, new_person, tuple(what)


# ---------------------------------------------------------------- what a screen shows


class Reference(Body):
    """One of the customer's references, its number masked; None where none is known any more."""

    customer_ref: str
    name: str | None
    phone: str | None


class CustomerView(Body):
    """The record as a screen shows it; `customer_ref` is the survivor's, whichever was asked for.

    `references` are all that it stands for, itself first. With `erased_at`, name and phone are None for
    that reason.
    """

    customer_ref: str
    version: int
    name: str | None
    phone: str | None
    language: str | None
    vulnerable: bool
    consents: dict[str, Consent]
    references: tuple[Reference, ...]
    legal_hold: str | None
    erased_at: Moment | None
    first_at: Moment
    updated_at: Moment


def person_of(record: Record, open_sealed: Callable[[str, str], str]) -> Person:
    """Open who the customer is; nobody, where nothing was written down or the key is gone."""
    if record.sealed is None:
        return Person()
    opened = open_sealed(record.customer_ref, record.sealed)
    return Person() if opened == ERASED else Person.parse(opened)


def view(records: Sequence[Record], open_sealed: Callable[[str, str], str]) -> CustomerView:
    """Lay out a record for a screen; `records` are the survivor's and those of all it stands for."""
    survivor = records[0]
    references = tuple(_reference(record, person_of(record, open_sealed)) for record in records)
    return CustomerView(
        customer_ref=survivor.customer_ref,
        version=survivor.version,
        name=references[0].name,
        phone=references[0].phone,
        language=survivor.language,
        vulnerable=survivor.vulnerable,
        consents=dict(survivor.consents),
        references=references,
        legal_hold=survivor.legal_hold,
        erased_at=survivor.erased_at,
        first_at=survivor.first_at,
        updated_at=survivor.updated_at,
    )


def _reference(record: Record, person: Person) -> Reference:
    phone = phones.normalise(person.phone)
    return Reference(
        customer_ref=record.customer_ref, name=person.name or None, phone=phone.masked if phone else None
    )


# ---------------------------------------------------------------- merging


def merged(into: Record, record: Record) -> Record:
    """Give the surviving record of two that a person found to be one customer.

    Caution wins: vulnerable if either is, held if either is, of each consent the later word, of two at
    once the refusal. Raises Refused unless both stand for themselves and neither was erased.
    """
    if into.customer_ref in {record.customer_ref, record.merged_into}:
        raise Refused("same_customer", "both references are one customer already", "nothing is left to do")
    if record.merged_into is not None:
        raise Refused(
            "already_merged",
            f"{record.customer_ref} was merged before and no longer stands for itself",
            f"merge {record.merged_into} instead, if that is meant",
        )
    for one in (record, into):
        if one.erased_at is not None:
            raise Refused(
                "erased",
                f"{one.customer_ref} was erased: nobody can tell any more who it was",
                "leave them apart",
            )
    return replace(
        into,
        language=into.language or record.language,
        vulnerable=into.vulnerable or record.vulnerable,
        consents=_last_words(into.consents, record.consents),
        legal_hold=_both(into.legal_hold, record.legal_hold),
    )


def _last_words(one: Mapping[str, Consent], other: Mapping[str, Consent]) -> dict[str, Consent]:
    words = dict(one)
    for purpose, consent in other.items():
        known = words.get(purpose)
        if known is None or (consent.at, not consent.given) > (known.at, not known.given):
            words[purpose] = consent
    return words


# ---------------------------------------------------------------- holding and erasing


def held(record: Record, reason: str) -> Record:
    """Forbid erasing for one more reason; raises Refused when nothing is left to hold."""
    if record.erased_at is not None:
        raise Refused(
            "erased", "the record was erased: nothing is left to hold", "tell who asked for the hold"
        )
    return replace(record, legal_hold=_both(record.legal_hold, reason))


def released(record: Record) -> Record:
    """Allow erasing again; raises Refused when nothing holds the record."""
    if record.legal_hold is None:
        raise Refused("not_held", "no legal hold is set on this customer", "nothing is left to do")
    return replace(record, legal_hold=None)


def may_be_erased(record: Record) -> None:
    """Raise Refused while a legal hold is set."""
    if record.legal_hold is not None:
        raise Refused(
            "legal_hold",
            f"a legal hold is set on this customer: {record.legal_hold}",
            "hotline customer release, once whoever asked for the hold agrees",
        )


def _both(one: str | None, other: str | None) -> str | None:
    """Two reasons hold until both are released; the same one twice is one."""
    reasons = [*one.split("; ")] if one else []
    reasons += [reason for reason in (other.split("; ") if other else []) if reason not in reasons]
    return "; ".join(reasons) or None


def kept_reason(reason: str) -> str:
    """Write a reason as it may be kept for ever: one line, at most 500 characters, numbers masked."""
    return mask(" ".join(reason.split())).text[:LONGEST_REASON]


# ---------------------------------------------------------------- what contacts came to


class Contact(Body):
    """One line of a customer's history: a call or a case, when it began, and what it came to (a code).

    `id` is the call's or the case's own; `wait_ms` and `talk_ms` are None where nobody measured them,
    and always for a case.
    """

    kind: Literal["call", "case"]
    id: str
    customer_ref: str
    at: Moment
    came_to: str
    case_no: str | None = None
    case_id: str | None = None
    category: str | None = None
    product: str | None = None
    queue: str | None = None
    agent: str | None = None
    department: str | None = None
    wait_ms: int | None = None
    talk_ms: int | None = None
    closed_at: Moment | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def came_to_zh(self) -> str:
        """What it came to, in Chinese; a code that is new to this release is shown as it is."""
        return WORDINGS.get(self.came_to, (self.came_to, self.came_to))[0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def came_to_en(self) -> str:
        """What it came to, in English; a code that is new to this release is shown as it is."""
        return WORDINGS.get(self.came_to, (self.came_to, self.came_to))[1]


def came_to(phase: str, closed_for: str | None, callback: str | None, *, recorded_it: bool) -> str:
    """Say in one code what a call came to, or how it stands; `recorded_it`: its case began with it."""
    if phase == "recorded":
        return "case_recorded" if recorded_it else "case_attached"
    if phase == "closed":
        return closed_for or "closed"
    if phase == "callback":
        return f"callback_{callback or 'open'}"
    return {"answered": "talking", "ended": "record_owed"}.get(phase, "in_line")


WORDINGS: dict[str, tuple[str, str]] = {
    # calls
    "in_line": ("排队中", "waiting in line"),
    "talking": ("通话中", "talking to an agent"),
    "record_owed": ("通话结束，尚未登记", "ended, not recorded yet"),
    "case_recorded": ("已登记工单", "a case was recorded"),
    "case_attached": ("并入已有工单", "about a case that was open"),
    "callback_wished": ("已请求回拨", "a callback was asked for"),
    "callback_open": ("待回拨", "to be called back"),
    "callback_overdue": ("回拨已超时", "callback overdue"),
    "called_back": ("已回拨", "called back"),
    "callback_exhausted": ("多次回拨未接通", "not reached by callbacks"),
    "callback_cancelled": ("回拨已取消", "callback cancelled"),
    "abandoned": ("客户放弃等待", "gave up waiting"),
    "timeout": ("等待超时", "waited too long for the queue"),
    "empty": ("无坐席，退出队列", "no agent was there"),
    "key": ("按键离开队列", "left the queue by a key"),
    "withdrawn": ("已撤回", "withdrawn"),
    "overflow": ("溢出到其他队列", "overflowed to elsewhere"),
    "unanswered": ("无人接听", "nobody answered"),
    "end_unknown": ("结束情况不明", "how it ended is not known"),
    "refused_full": ("队列已满", "the queue was full"),
    "refused_joinempty": ("队列无坐席", "the queue had no agent"),
    "refused_closed": ("非服务时间", "outside opening hours"),
    "enquiry_answered": ("咨询已答复", "enquiry answered"),
    "wrong_number": ("打错电话", "wrong number"),
    "silent": ("无声来电", "silent call"),
    "spam": ("骚扰电话", "spam"),
    "not_ours": ("不属本行业务", "not for this bank"),
    # cases
    "recorded": ("已登记，待派单", "recorded, to be routed"),
    "answered": ("当场答复", "answered on the call"),
    "routed": ("已派单", "routed"),
    "parked": ("待人工派单", "to be routed by hand"),
    "rejected": ("不予受理", "rejected"),
    "delivered": ("已送达部门", "with the department"),
    "in_progress": ("办理中", "being worked on"),
    "waiting": ("等待补充材料", "waiting for documents"),
    "returned": ("被退单", "returned by the department"),
    "transferred": ("转办", "transferred"),
    "resolved": ("已办结，待告知", "resolved, to be told"),
    "told": ("已告知客户", "the customer was told"),
    "unreached": ("未能联系到客户", "the customer was not reached"),
    "closed": ("已关闭", "closed"),
    "reopened": ("已重新办理", "reopened"),
}
"""What a screen shows for each code, in Chinese and English."""
