"""A recorded decision taken again, with what it was taken with or with other rules or models; pure.

What a decision depended on is in its event: the case, the moment, and its explanation, which names rules,
model and departments by their hashes. Only the customer's words are not; the digest of what was read tells
whether those that are known now are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.case import Case
from schemas.router import CaseRouted, Explanation
from services.router.decision import (
    RULESET_UNAVAILABLE,
    Choice,
    Desk,
    Read,
    Scored,
    decide,
    hold,
    input_sha256,
)

FOLLOWED = "follows_earlier_case"
Gap = Literal[
    "erased",
    "departments_unnamed",
    "no_explanation",
    "inputs_unknown",
    "ruleset_unknown",
    "model_unknown",
    "departments_unknown",
]
"""Why a decision cannot be taken again; `departments_unnamed`: it is older than the naming of departments."""
EXPECTED: frozenset[Gap] = frozenset({"erased", "departments_unnamed"})
"""Gaps that are as they should be, and no fault of what is kept."""
_NOT_COMPARED = frozenset({"shadow"})  # it decides nothing, and its model may be long gone


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as it was said; `cause`: the id of its input, None where that was no UUID."""

    routed: CaseRouted
    at: datetime
    cause: UUID | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was read when the decision was taken."""

    case: Case
    text: str | None


def inputs_of(routed: CaseRouted, why: Explanation, text: str | None) -> Inputs | None:
    """Find what was read; None when nothing that is known gives its digest.

    `text` are the customer's words now; None: there are none, or none any more.
    """
    case = routed.case
    if why.severity is not None:
        case = case.model_copy(update={"severity": why.severity})
    # A decision may also have been taken without the words that are known now.
    for words in dict.fromkeys((text, None)):
        read = Read(text=words, follows=why.follows)
        if input_sha256(case, read, frozenset(why.excluded)) == why.input_sha256:
            return Inputs(case, words)
    return None


def again(
    recorded: Recorded,
    why: Explanation,
    inputs: Inputs,
    desk: Desk,
    scored: Scored | None,
    degraded: str | None,
) -> Choice:
    """Take the decision again; what a person had decided stays, as it did then.

    `desk` has the rules and the departments; the explanation has what else was in force.
    """
    routed, stage = recorded.routed, recorded.routed.why.stage
    of_rules = degraded if degraded == RULESET_UNAVAILABLE else None
    of_words = degraded if of_rules is None else None
    read = Read(text=inputs.text, scored=scored, degraded=of_words, follows=why.follows)
    restricted = frozenset(why.restricted)
    then = replace(desk, restricted=restricted, audits=bool(why.audits), degraded=of_rules)
    excluded, cause = frozenset(why.excluded), recorded.cause or UUID(int=0)
    if stage == "ruling" or (stage == "hold" and routed.why.rule != FOLLOWED):
        word = routed.department, stage, routed.why.rule
        return hold(inputs.case, *word, read, then, recorded.at, cause=cause, excluded=excluded)
    return decide(inputs.case, read, then, recorded.at, cause=cause, excluded=excluded)


# ------------------------------------------------------------ what differs


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that came out otherwise: what was said, what would be, and which parts of it differ."""

    case_no: str
    at: datetime
    was: str
    would_be: str
    parts: tuple[str, ...]


def difference(recorded: Recorded, why: Explanation, choice: Choice, *, same: bool) -> Difference | None:
    """Compare a decision with what it comes to now; None: it is the same.

    `same`: it was taken again with the same rules and model, so its explanation must be the same as well.
    """
    parts = [*_of_decision(recorded.routed, choice)]
    if same:
        parts += _of_explanation(why, choice.explanation, known_cause=recorded.cause is not None)
    if not parts:
        return None
    routed = recorded.routed
    was = _said(routed.department, routed.why.stage, routed.why.rule, why)
    would_be = _said(choice.department, choice.stage, choice.rule, choice.explanation)
    return Difference(routed.case.case_no, recorded.at, was, would_be, tuple(parts))


def _of_decision(routed: CaseRouted, choice: Choice) -> Iterator[str]:
    pairs = {
        "department": (routed.department, choice.department),
        "stage": (routed.why.stage, choice.stage),
        "rule": (routed.why.rule, choice.rule),
        "assisting": (routed.assisting, choice.assisting),
        "severity": (routed.case.severity, choice.severity),
    }
    for name, (was, would_be) in pairs.items():
        # Why a case was left to people is part of the explanation; that it was, is the decision.
        left = name == "rule" and routed.why.stage == choice.stage == "triage"
        if was != would_be and not left:
            yield name


def _of_explanation(was: Explanation, would_be: Explanation, *, known_cause: bool) -> Iterator[str]:
    passed_over = _NOT_COMPARED | (frozenset() if known_cause else {"decision_id"})
    for name in Explanation.model_fields:
        if name not in passed_over and getattr(was, name) != getattr(would_be, name):
            yield f"explanation.{name}"


def _said(department: str, stage: str, rule: str, why: Explanation) -> str:
    first = next(iter(why.model.top), None) if why.model else None
    likely = f"{first.department} {first.p:.2f}" if first else "—"
    match stage:
        case "model":
            return f"{department} by classifier ({likely})"
        case "triage":
            return f"{department} because of {rule} ({likely})"
    return f"{department} by {stage} {rule}"
