"""Which department gets a case, and why: rules, then the classifier, else a person. Pure.

The first that decides wins: a person's word (`hold`, `ruling`), safety rules, explicit rules, the
classifier if it is sure enough, triage. What the classifier would have said is kept in any case. The
same case, text, moment, rules and scores give the same decision, whenever it is taken again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b, sha256
from typing import Literal, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from chassis.ids import derived_id
from schemas.case import Case, Severity
from schemas.router import Candidate, Explanation, Feature, ModelSaid
from schemas.router import Matched as Comparison
from services.router.classifier.scorer import Limits
from services.router.departments import Departments
from services.router.rules import TRIAGE, Ruled, Ruleset, view_of
from services.router.rules import decide as rule

Stage: TypeAlias = Literal["hold", "safety", "rule", "model", "triage", "ruling"]
SHOWN, WIDEST = 3, 40
_DIGESTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True)
RULESET_UNAVAILABLE = "ruleset_unavailable"
AUDITED = 50
"""Of so many cases that the classifier would route, a person judges one without seeing what it said."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says of one text: a calibrated probability per department, the n-grams that decided.

    `limits`: from when on it may decide in this language; `abstains`: why it may not decide at all
    (`too_short`, `unknown_words`, `language_unsupported`).
    """

    model: str
    sha256: str
    language: str
    probabilities: Mapping[str, float]
    known_share: float
    limits: Limits
    evidence: tuple[tuple[str, float], ...] = ()
    abstains: str | None = None


UNSUPPORTED = Scored("-", "-", "-", {}, 0.0, Limits(None), abstains="language_unsupported")
"""What is said of a text in a language that no model reads."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is read of a case beside its fields: its words, what models say of them, its first department.

    `degraded` says why there are no scores although there should be; `follows` is the department of the
    case that this one follows.
    """

    text: str | None = None
    scored: Scored | None = None
    shadow: Scored | None = None
    degraded: str | None = None
    follows: str | None = None


NOTHING_READ = Read()


@dataclass(frozen=True, slots=True)
class Desk:
    """What decisions are taken with: the rules, the departments, and where the classifier may not decide.

    `degraded` says that these are not the rules that somebody has put in force.
    """

    ruleset: Ruleset = field(default_factory=lambda: Ruleset(ruleset="empty", rules=()))
    departments: Departments | None = None
    restricted: frozenset[str] = frozenset()
    normaliser: int = 0
    audits: bool = True
    degraded: str | None = None

    @property
    def shut(self) -> frozenset[str]:
        """The departments that take no case for the time being, neither by rule nor by classifier."""
        profiles = self.departments.departments if self.departments else {}
        return frozenset(code for code, profile in profiles.items() if not profile.takes)


@dataclass(frozen=True, slots=True)
class Choice:
    """The department, on whose word, and why; `severity` is that of the case from now on."""

    department: str
    stage: Stage
    rule: str
    explanation: Explanation
    assisting: tuple[str, ...] = ()
    severity: Severity = Severity.NORMAL


@dataclass(slots=True)
class _Verdict:
    """What the classifier comes to: a department, or why it abstains."""

    department: str | None = None
    abstained: str | None = None
    margin: float = 0.0
    threshold: float | None = None
    audit: bool = False
    ordered: list[tuple[str, float]] = field(default_factory=list)


def decide(
    case: Case,
    read: Read,
    desk: Desk,
    now: datetime,
    *,
    cause: UUID,
    excluded: AbstractSet[str] = frozenset(),
) -> Choice:
    """Choose the department of a case that nobody has assigned; `excluded` are those that gave it back."""
    view = view_of(case, ZoneInfo(desk.ruleset.zone), text=read.text)
    ruled = rule(view, desk.ruleset, excluded | desk.shut)
    verdict = _judge(case, read, ruled, desk, now)
    shadow = _verdict(case, read.shadow, ruled, desk, now) if read.shadow else None
    explanation = _explain(case, read, ruled, verdict, shadow, desk, cause, excluded)
    severity = ruled.severity or case.severity
    if ruled.rule is not None and ruled.rule.band == "safety":
        return Choice(ruled.department, "safety", ruled.rule.id, explanation, ruled.assist, severity)
    if ruled.rule is not None:
        return Choice(ruled.department, "rule", ruled.rule.id, explanation, ruled.assist, severity)
    if read.follows in ruled.candidates and read.follows is not None:
        return Choice(read.follows, "hold", "follows_earlier_case", explanation, (), severity)
    if verdict.department is not None:
        return Choice(verdict.department, "model", "classifier", explanation, (), severity)
    return Choice(TRIAGE, "triage", verdict.abstained or "no_rule", explanation, (), severity)


def hold(
    case: Case,
    department: str,
    stage: Stage,
    why: str,
    read: Read,
    desk: Desk,
    now: datetime,
    *,
    cause: UUID,
    excluded: AbstractSet[str] = frozenset(),
) -> Choice:
    """Keep a person's word; what rules and classifier would have said is recorded beside it."""
    # Who passes a case on has seen what was said of it: only a ruling can judge a sample blind.
    asked = desk if stage == "ruling" else replace(desk, audits=False)
    alone = decide(case, read, asked, now, cause=cause, excluded=excluded)
    return Choice(department, stage, why, alone.explanation, (), alone.severity)


def _judge(case: Case, read: Read, ruled: Ruled, desk: Desk, now: datetime) -> _Verdict:
    if read.scored is None:
        return _Verdict(abstained="classifier_unavailable" if read.degraded else None)
    verdict = _verdict(case, read.scored, ruled, desk, now)
    asked = ruled.rule is None and read.follows not in ruled.candidates
    if asked and verdict.department and desk.audits and _audited(case.case_id, case.cycle):
        verdict.department, verdict.abstained, verdict.audit = None, "audit_sample", True
    return verdict


def _verdict(case: Case, scored: Scored, ruled: Ruled, desk: Desk, now: datetime) -> _Verdict:
    ordered = sorted(
        ((one, p) for one, p in scored.probabilities.items() if one in ruled.candidates),
        key=lambda pair: (-pair[1], pair[0]),
    )
    if not ordered:
        return _Verdict(abstained=scored.abstains or "no_candidate", threshold=scored.limits.threshold)
    (first, best), following = ordered[0], ordered[1][1] if len(ordered) > 1 else 0.0
    margin = best - following
    abstained = _abstention(scored, first, best, margin, desk, case, now)
    threshold = scored.limits.threshold_of(first)
    return _Verdict(None if abstained else first, abstained, margin, threshold, ordered=ordered)


def _abstention(
    scored: Scored, first: str, best: float, margin: float, desk: Desk, case: Case, now: datetime
) -> str | None:
    if scored.abstains is not None:
        return scored.abstains
    threshold = scored.limits.threshold_of(first)
    if threshold is None or best < threshold:
        return "low_confidence"
    if margin < scored.limits.margin:
        return "low_margin"
    if first in desk.restricted:
        return "department_restricted"
    closed = desk.departments.why_not(first, case.language, now) if desk.departments else None
    return f"department_{closed}" if closed is not None else None


def _audited(case_id: UUID, cycle: int) -> bool:
    digest = blake2b(case_id.bytes + b"%d" % cycle, digest_size=8, person=b"audit").digest()
    return int.from_bytes(digest, "big") % AUDITED == 0


def _explain(
    case: Case,
    read: Read,
    ruled: Ruled,
    verdict: _Verdict,
    shadow: _Verdict | None,
    desk: Desk,
    cause: UUID,
    excluded: AbstractSet[str],
) -> Explanation:
    ruleset = desk.ruleset
    digest = input_sha256(case, read, excluded)
    versions = f"{ruleset.sha256}|{read.scored.sha256 if read.scored else '-'}"
    return Explanation(
        decision_id=derived_id(cause, f"decision|{digest}|{versions}"),
        ruleset=ruleset.ruleset,
        ruleset_sha256=ruleset.sha256,
        normaliser=desk.normaliser,
        input_sha256=digest,
        matched=tuple(
            Comparison(field=one.field, op=one.op, expected=one.expected[:200], seen=(one.seen or "—")[:200])
            for one in ruled.matched
        ),
        vetoed=ruled.vetoed,
        candidates=ruled.candidates,
        excluded=tuple(sorted(excluded)),
        model=_said(read.scored, verdict) if read.scored else None,
        # What decides nothing need not be taken apart: the explanation stays small.
        shadow=_said(replace(read.shadow, evidence=()), shadow) if read.shadow and shadow else None,
        abstained=verdict.abstained,
        degraded=read.degraded or desk.degraded,
        audit=verdict.audit,
        departments_sha256=desk.departments.sha256 if desk.departments else None,
        restricted=tuple(sorted(desk.restricted)),
        audits=desk.audits,
        severity=case.severity,
        follows=read.follows,
    )


def _said(scored: Scored, verdict: _Verdict) -> ModelSaid:
    return ModelSaid(
        model=scored.model,
        sha256=scored.sha256,
        language=scored.language,
        top=tuple(Candidate(department=one, p=round(p, 4)) for one, p in verdict.ordered[:SHOWN]),
        margin=round(verdict.margin, 4),
        known_share=round(scored.known_share, 4),
        threshold=1.0 if verdict.threshold is None else round(verdict.threshold, 4),
        evidence=tuple(
            Feature(feature=name[:WIDEST], weight=round(weight, 4)) for name, weight in scored.evidence
        ),
        would_route=verdict.department is not None or verdict.audit,
    )


def input_sha256(case: Case, read: Read, excluded: AbstractSet[str]) -> str:
    """Digest exactly what was read: the fields that rules see, the text, the departments that are out."""
    fields = {
        "case": str(case.case_id),
        "cycle": case.cycle,
        "category": case.category,
        "product": case.product,
        "severity": case.severity,
        "language": case.language,
        "vulnerable": case.vulnerable,
        "channel": case.channel,
        "queue": case.queue,
        "agent": case.agent,
        "attempts": len(case.attempts),
        "completeness": case.completeness.score if case.completeness else None,
        "recorded_at": case.recorded_at.isoformat(),
        "text": read.text,
        "follows": read.follows,
        "repeat": None,  # what older decisions digested
        "excluded": sorted(excluded),
    }
    return sha256(_DIGESTED.encode(fields).encode()).hexdigest()
