"""What rules may see of a case, and what they may ask of each field."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemas.case import Case, Category, Language, Personal, Severity
from schemas.envelope import Code

CATEGORIES = tuple(word.value for word in Category)
SEVERITIES = tuple(word.value for word in Severity)
"""In rising order: they can be compared."""

Operator = Literal[
    "eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "between", "prefix", "contains_any", "is_null"
]


def meant(value: str, words: Iterable[str]) -> str:
    """Ask whether a similar word was meant; empty when none is similar."""
    close = get_close_matches(value, list(words), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _among(words: tuple[str, ...], value: str) -> str:
    if value not in words:
        raise ValueError(f"{value!r} is none of {', '.join(words)}{meant(value, words)}")
    return value


class View(BaseModel):
    """What rules see of a case; None: not known.

    `text`: the customer's words, searched for phrases and never quoted; `completeness`: 0 … 100;
    `received_hour`: 0 … 23, in the zone of the rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    category: Annotated[str, AfterValidator(partial(_among, CATEGORIES))] = Category.OTHER.value
    product: Code = "other"
    severity: Annotated[str, AfterValidator(partial(_among, SEVERITIES))] = Severity.NORMAL.value
    language: Annotated[str, AfterValidator(partial(_among, get_args(Language)))] = "zh"
    vulnerable: bool = False
    channel: Code = "phone"
    queue: Code | None = None
    agent: Code | None = None
    cycle: Annotated[int, Field(ge=1)] = 1
    attempts: Annotated[int, Field(ge=0)] = 0
    completeness: Annotated[int, Field(ge=0, le=100)] | None = None
    received_hour: Annotated[int, Field(ge=0, le=23)] | None = None
    text: str | None = None


def text_of(personal: Personal) -> str | None:
    """Give what the customer said, as it is searched; None when nothing was written down."""
    said = (personal.summary, personal.demand, personal.suggestion)
    return "\n".join(part for part in said if part) or None


_SAME: tuple[Operator, ...] = ("eq", "ne", "in", "not_in")
_ORDER: tuple[Operator, ...] = ("lt", "le", "gt", "ge", "between")
OPERATORS: Mapping[str, tuple[Operator, ...]] = {
    "category": _SAME,
    "product": (*_SAME, "prefix"),
    "severity": (*_SAME, *_ORDER),
    "language": _SAME,
    "vulnerable": ("eq", "ne"),
    "channel": (*_SAME, "prefix"),
    "queue": (*_SAME, "prefix", "is_null"),
    "agent": (*_SAME, "prefix", "is_null"),
    "cycle": (*_SAME, *_ORDER),
    "attempts": (*_SAME, *_ORDER),
    "completeness": (*_SAME, *_ORDER, "is_null"),
    "received_hour": (*_SAME, *_ORDER, "is_null"),
    "text": ("contains_any", "is_null"),
}
"""What may be asked of each field of a view."""


def view_of(case: Case, zone: ZoneInfo, *, text: str | None = None) -> View:
    """Take from a case what rules may see; the opened text comes from elsewhere."""
    # Nothing is checked again: a case was checked when it was read, and this is done for each decision.
    return View.model_construct(
        category=case.category.value,
        product=case.product,
        severity=case.severity.value,
        language=case.language,
        vulnerable=case.vulnerable,
        channel=case.channel,
        queue=case.queue,
        agent=case.agent,
        cycle=case.cycle,
        attempts=len(case.attempts),
        completeness=case.completeness.score if case.completeness else None,
        received_hour=case.recorded_at.astimezone(zone).hour,
        text=text,
    )
