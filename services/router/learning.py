"""What people's corrections teach: what to learn from, how a model did, when it is promoted, what drifts.

Pure. A lesson is a case of which a person has named the right department. One text in five is never learnt
from, whoever corrects it and whenever: models are judged on these.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b, sha256
from math import log
from typing import Literal, TypeAlias
from uuid import UUID

from services.router.classifier.calibration import PRECISION, wilson_lower, wilson_upper
from services.router.classifier.model import LEAST_PRECISION, Model
from services.router.rules import ASSIGNABLE, TRIAGE

# ------------------------------------------------------------ lessons

HELD_OUT = 5
"""Of so many different texts, one is kept for judging."""
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A case, the customer's words, and the right department on a person's word (`source`)."""

    case_id: UUID
    text: str
    department: str
    source: str
    at: datetime

    @property
    def group(self) -> str:
        """What copies of a text have in common: they are learnt from together, or judged on together."""
        # Not the classifier's own folding, and never to be changed: that would move texts between the sides.
        return " ".join(_DIGITS.sub("0", unicodedata.normalize("NFKC", self.text).lower()).split())

    @property
    def held_out(self) -> bool:
        """Whether no model may learn from it; depends on the text alone."""
        digest = blake2b(self.group.encode(), digest_size=8, person=b"held out").digest()
        return int.from_bytes(digest, "big") % HELD_OUT == 0


def split(lessons: Iterable[Lesson]) -> tuple[list[Lesson], list[Lesson]]:
    """Part lessons into those to learn from and those to judge by."""
    sides: tuple[list[Lesson], list[Lesson]] = ([], [])
    for lesson in lessons:
        sides[lesson.held_out].append(lesson)
    return sides


def digest_of(lessons: Iterable[Lesson]) -> str:
    """Say which lessons they are: 16 hexadecimal digits, the same in any order, without any text."""
    lines = sorted(f"{lesson.case_id} {lesson.department}" for lesson in lessons)
    return sha256("\n".join(lines).encode()).hexdigest()[:16]


# ------------------------------------------------------------ how a model did


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many; the share and its bounds are None where there was nothing to count.

    Each bound holds with 95 % (Wilson's score interval, one-sided).
    """

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        """The share, 0 … 1."""
        return self.hits / self.of if self.of else None

    @property
    def low(self) -> float | None:
        """The lower bound."""
        return wilson_lower(self.hits, self.of) if self.of else None

    @property
    def high(self) -> float | None:
        """The upper bound."""
        return wilson_upper(self.hits, self.of) if self.of else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a model says of a lesson: its departments, the likeliest first, and whether it would decide."""

    right: str
    ranked: tuple[str, ...]
    decides: bool

    @property
    def hit(self) -> bool:
        """Whether the likeliest department is the right one."""
        return self.ranked[0] == self.right


@dataclass(frozen=True, slots=True)
class Score:
    """How a model did on lessons; `precision` is that of what it would have decided by itself.

    `by_department`: of the cases that belong there, those it saw; of those it would have sent there, the
    right ones.
    """

    accuracy: Share
    top3: Share
    coverage: Share
    precision: Share
    by_department: Mapping[str, tuple[Share, Share]]


def judge(model: Model, lessons: Iterable[Lesson]) -> list[Judgement]:
    """Ask a model about lessons."""
    said = [(lesson, model.score(lesson.text)) for lesson in lessons]
    return [
        Judgement(
            right=lesson.department,
            ranked=tuple(department for department, _ in scored.ranked),
            decides=scored.abstention(model.limits) is None,
        )
        for lesson, scored in said
    ]


def score(judgements: Sequence[Judgement]) -> Score:
    """Count how a model did."""
    decided = [one for one in judgements if one.decides]
    departments = sorted({one.right for one in judgements} | {one.ranked[0] for one in decided})
    return Score(
        accuracy=_hits(judgements),
        top3=Share(sum(one.right in one.ranked[:3] for one in judgements), len(judgements)),
        coverage=Share(len(decided), len(judgements)),
        precision=_hits(decided),
        by_department={
            name: (
                _hits([one for one in judgements if one.right == name]),
                _hits([one for one in decided if one.ranked[0] == name]),
            )
            for name in departments
        },
    )


def _hits(judgements: Sequence[Judgement]) -> Share:
    return Share(sum(one.hit for one in judgements), len(judgements))


# ------------------------------------------------------------ promotion

WATCHED_FOR, WATCHED_CASES = timedelta(days=3), 500
"""A model is judged when it has been watched so long, or has seen so many cases."""
LEAST_JUDGED = 100
"""On fewer lessons nobody can say which of two models is better."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What becomes of a model that is watched: it decides from now on, is watched on, or is given up; why."""

    verdict: Literal["promote", "watch", "discard"]
    why: tuple[str, ...]


def promotion(
    watched_for: timedelta, seen: int, shadow: Score, active: Score | None, *, switched_off: bool = False
) -> Promotion:
    """Judge the watched model against the one that decides (None: none does), on the same lessons.

    It must have been watched long enough, be right more often, decide no fewer cases rightly, and its own
    decisions must be as precise as an activation demands. What somebody has switched off stays off.
    """
    if switched_off:
        return Promotion("watch", ("somebody has switched the classifier off: only a person switches it on",))
    if watched_for < WATCHED_FOR and seen < WATCHED_CASES:
        waited = f"watched for {watched_for / timedelta(days=1):.1f} days on {seen} cases"
        return Promotion("watch", (f"{waited}; it takes {WATCHED_FOR.days} days or {WATCHED_CASES} cases",))
    if shadow.accuracy.of < LEAST_JUDGED:
        return Promotion(
            "watch", (f"{shadow.accuracy.of} held-out lessons to judge by; it takes {LEAST_JUDGED}",)
        )
    objections = tuple(_objections(shadow, active))
    if objections:
        return Promotion("discard", objections)
    right = f"right on {_of(shadow.accuracy)} held-out lessons"
    before = f", the one before on {_of(active.accuracy)}" if active else "; no other model decides"
    return Promotion("promote", (right + before,))


def _objections(shadow: Score, active: Score | None) -> Iterable[str]:
    precision = shadow.precision.value
    if precision is None:
        yield "it would decide nothing by itself"
    elif precision < LEAST_PRECISION:
        yield f"of its own decisions {_of(shadow.precision)} are right, {LEAST_PRECISION:.0%} are demanded"
    if active is None:
        return
    if shadow.accuracy.hits <= active.accuracy.hits:
        yield f"right on {_of(shadow.accuracy)}, no more than the one before on {_of(active.accuracy)}"
    if shadow.precision.hits < active.precision.hits:
        yield (
            f"it would decide {shadow.precision.hits} cases rightly by itself,"
            f" the one before {active.precision.hits}"
        )


def _of(share: Share) -> str:
    return f"{share.hits} of {share.of}"


# ------------------------------------------------------------ two models on the same cases


@dataclass(frozen=True, slots=True)
class Both:
    """What the deciding model (None: none did) and the watched one said of a case, and what a person said."""

    active: str | None
    shadow: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two models agree, over all and by what the deciding one said; and who was right, if known.

    Cases of which only the watched one has said anything are left out, but for `alone`, their count.
    """

    alone: int
    agreed: Share
    by_department: Mapping[str, Share]
    labelled: int
    both_right: int
    only_active: int
    only_shadow: int

    @property
    def neither(self) -> int:
        """Of how many labelled cases both were wrong."""
        return self.labelled - self.both_right - self.only_active - self.only_shadow


def agreement(cases: Sequence[Both]) -> Agreement:
    """Compare two models over the same cases."""
    both = [one for one in cases if one.active is not None]
    labelled = [one for one in both if one.label is not None]
    right = Counter((one.active == one.label, one.shadow == one.label) for one in labelled)
    return Agreement(
        alone=len(cases) - len(both),
        agreed=_agreed(both),
        by_department={
            name: _agreed([one for one in both if one.active == name])
            for name in sorted({str(one.active) for one in both})
        },
        labelled=len(labelled),
        both_right=right[True, True],
        only_active=right[True, False],
        only_shadow=right[False, True],
    )


def _agreed(cases: Sequence[Both]) -> Share:
    return Share(sum(one.active == one.shadow for one in cases), len(cases))


# ------------------------------------------------------------ daily figures

ALL = "*"


@dataclass(frozen=True, slots=True)
class Decided:
    """So many cases of which the same was decided at first, and the same has become since.

    `department`, `stage`: of the first decision; `suggested`: what the classifier said; `audit`: a blind
    sample; `held_by`: who has them now; `label`: the right department on a person's word; `fresh`: decided
    since the classifier was last allowed again to decide for `suggested`; `known`: sum of the known shares of
    `knowing` cases.
    """

    language: str
    department: str
    stage: str
    suggested: str | None
    audit: bool
    model_sha256: str | None
    held_by: str | None
    label: str | None
    fresh: bool
    cases: int
    known: float = 0.0
    knowing: int = 0

    @property
    def by_model(self) -> bool:
        """Whether the classifier has decided."""
        return self.stage == "model"

    @property
    def triaged(self) -> bool:
        """Whether they went to triage at first."""
        return self.stage == TRIAGE

    @property
    def corrected(self) -> bool:
        """Whether a person has named another department than the one they were sent to."""
        return not self.triaged and self.label not in {None, self.department}


Test: TypeAlias = Callable[[Decided], bool]


@dataclass(frozen=True, slots=True)
class Line:
    """A department's day (`*`: all of them), of the cases that came on it, as far as is known now.

    `coverage`: decided by the classifier, of those sent there (`*`: of all). `precision`: of the blind
    sample, those of which the classifier was right: it does not depend on who complains. `labelled`: the
    same over all that the classifier decided or that were sampled, and that anybody has labelled; people
    label what went wrong, so it lies below. `misrouted`: corrected, of those sent there by anything but
    triage. `triage`: sent to triage at first; None for a single department.
    """

    department: str
    cases: int
    coverage: Share
    precision: Share
    labelled: Share
    misrouted: Share
    triage: Share | None


def figures(decided: Sequence[Decided]) -> list[Line]:
    """Count a day, over all and department by department."""
    return [_line(decided, name) for name in (ALL, *ASSIGNABLE)]


def _line(decided: Sequence[Decided], name: str) -> Line:
    sent = [one for one in decided if name in {ALL, one.department}]
    said = [one for one in decided if name in {ALL, one.suggested}]
    return Line(
        department=name,
        cases=sum(one.cases for one in sent),
        coverage=_share(sent, lambda one: one.by_model),
        precision=_precision(said, lambda one: one.audit),
        labelled=_precision(said, lambda one: one.audit or one.by_model),
        misrouted=_share([one for one in sent if not one.triaged], lambda one: one.corrected),
        triage=_share(sent, lambda one: one.triaged) if name == ALL else None,
    )


def _share(decided: Iterable[Decided], hit: Test) -> Share:
    counted = [(one.cases, hit(one)) for one in decided]
    return Share(sum(cases for cases, hits in counted if hits), sum(cases for cases, _ in counted))


def _precision(decided: Iterable[Decided], judged: Test) -> Share:
    return _share(
        (one for one in decided if judged(one) and one.label is not None),
        lambda one: one.label == one.suggested,
    )


# ------------------------------------------------------------ drift

Alarm = Literal["department_mix", "triage_share", "known_share", "audit_precision", "misrouted"]
LIMITS: Mapping[Alarm, float] = {
    "department_mix": 0.2,
    "triage_share": 0.10,
    "known_share": -0.05,
    "audit_precision": PRECISION,
    "misrouted": 0.05,
}
"""PSI; rise and fall of a share; least upper bound of the precision; greatest share corrected."""
RESTRICTING: frozenset[Alarm] = frozenset({"audit_precision", "misrouted"})
"""After these the classifier decides nothing more for the department."""
LEAST_CASES = 100
"""A mix or a share of fewer cases moves by chance as far as the limits."""
LEAST_SENT, LEAST_WRONG = 20, 2
"""One wrong decision alone takes no department from the classifier."""
RARE = 1e-4
"""What a share counts at least in the PSI, which knows no zero."""
TRAILING = timedelta(days=28)


@dataclass(frozen=True, slots=True)
class Gauge:
    """One figure that is watched, and whether its alarm rings; `figure` None: `missing` says why."""

    alarm: Alarm
    figure: float | None
    rings: bool
    language: str | None = None
    department: str | None = None
    missing: str | None = None

    @property
    def limit(self) -> float:
        """From where on the alarm rings."""
        return LIMITS[self.alarm]

    @property
    def restricts(self) -> bool:
        """Whether the classifier must not decide for the department from now on."""
        return self.rings and self.alarm in RESTRICTING


def psi(now: Mapping[str, int], before: Mapping[str, int]) -> float | None:
    """Say how far two mixes are apart: Σ (p - q) ln(p / q) (PSI); None: one of them is empty."""
    whole_now, whole_before = sum(now.values()), sum(before.values())
    if not whole_now or not whole_before:
        return None
    shares = [
        (max(now.get(name, 0) / whole_now, RARE), max(before.get(name, 0) / whole_before, RARE))
        for name in sorted({*now, *before})
    ]
    return sum((p - q) * log(p / q) for p, q in shares)


def windows_before(since: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    """The same time of the same weekday in each of the 28 days before."""
    weeks = range(1, TRAILING // timedelta(weeks=1) + 1)
    return [(since - timedelta(weeks=week), until - timedelta(weeks=week)) for week in weeks]


def gauges(now: Sequence[Decided], before: Sequence[Decided], audited: Sequence[Decided]) -> list[Gauge]:
    """Compare the last hour or day with the same ones before; `audited` are those of the last 28 days.

    Mix, triage and known words are compared language by language. Of the audits those count whose model still
    decides. What was decided before a department was given back to the classifier is not held against it.
    """
    languages = sorted({one.language for one in now})
    models = {one.model_sha256 for one in now} - {None}
    of_models = [one for one in audited if one.model_sha256 in models]
    return [
        *(gauge for language in languages for gauge in _of_language(language, now, before)),
        *(_audits(name, of_models) for name in ASSIGNABLE),
        *(_corrections(name, now) for name in ASSIGNABLE),
    ]


def _of_language(language: str, now: Sequence[Decided], before: Sequence[Decided]) -> list[Gauge]:
    here, there = ([one for one in side if one.language == language] for side in (now, before))
    return [
        _compared("department_mix", language, _mix(here), _mix(there), psi),
        _compared("triage_share", language, _stages(here), _stages(there), _rise),
        _knowledge(language, here, there),
    ]


def _compared(
    alarm: Alarm,
    language: str,
    now: Counter[str],
    before: Counter[str],
    figure_of: Callable[[Counter[str], Counter[str]], float | None],
) -> Gauge:
    few = _too_few(now.total(), before.total())
    figure = None if few else figure_of(now, before)
    return Gauge(
        alarm, figure, rings=figure is not None and figure > LIMITS[alarm], language=language, missing=few
    )


def _mix(decided: Iterable[Decided]) -> Counter[str]:
    """Where the cases are by now: what the bank is asked, whoever sent them there."""
    counts: Counter[str] = Counter()
    for one in decided:
        if one.held_by not in {None, TRIAGE}:
            counts[str(one.held_by)] += one.cases
    return counts


def _stages(decided: Iterable[Decided]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for one in decided:
        counts[one.stage] += one.cases
    return counts


def _rise(now: Counter[str], before: Counter[str]) -> float:
    return now[TRIAGE] / now.total() - before[TRIAGE] / before.total()


def _knowledge(language: str, now: Sequence[Decided], before: Sequence[Decided]) -> Gauge:
    cases_now, cases_before = (sum(one.knowing for one in side) for side in (now, before))
    few = _too_few(cases_now, cases_before)
    if few:
        return Gauge("known_share", None, rings=False, language=language, missing=few)
    figure = sum(one.known for one in now) / cases_now - sum(one.known for one in before) / cases_before
    return Gauge("known_share", figure, rings=figure < LIMITS["known_share"], language=language)


def _too_few(now: int, before: int) -> str | None:
    if min(now, before) >= LEAST_CASES:
        return None
    return f"{now} cases now, {before} before: it takes {LEAST_CASES} of each"


def _audits(department: str, audited: Iterable[Decided]) -> Gauge:
    counted = _precision(
        (one for one in audited if one.suggested == department and one.fresh), lambda one: one.audit
    )
    high = counted.high
    rings = high is not None and high < PRECISION and counted.of - counted.hits >= LEAST_WRONG
    missing = "no blind sample judged" if high is None else None
    return Gauge("audit_precision", high, rings=rings, department=department, missing=missing)


def _corrections(department: str, now: Iterable[Decided]) -> Gauge:
    sent = _share(
        (one for one in now if one.by_model and one.department == department and one.fresh),
        lambda one: one.corrected,
    )
    if sent.of < LEAST_SENT:
        few = f"the classifier sent {sent.of} cases there: it takes {LEAST_SENT}"
        return Gauge("misrouted", None, rings=False, department=department, missing=few)
    share = sent.hits / sent.of
    return Gauge("misrouted", share, rings=share > LIMITS["misrouted"], department=department)
