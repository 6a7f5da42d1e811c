"""What the router says, and what triage asks of it."""

from typing import Literal
from uuid import UUID

from schemas.case import Case, Decision, Severity
from schemas.envelope import Body, Code, Identifier, Kind, Line, Moment, Request, message

CASES = "router.cases"
COMMANDS = "router.commands"


ACTIVATIONS = "router.activations"


class RuleUsed(Body):
    """Why this department: the ruleset and the rule that matched; of a ruling, who ruled and why."""

    ruleset: Code
    rule: Code
    stage: Literal["hold", "safety", "rule", "model", "triage", "ruling"]
    by: Code | None = None
    reason: Line = ""


class Matched(Body):
    """One comparison of the rule that decided: the field, what was expected, the value seen."""

    field: Code
    op: Code
    expected: Line
    seen: Line


class Candidate(Body):
    """A department and its calibrated probability."""

    department: Code
    p: float


class Feature(Body):
    """An n-gram that decided, masked, and what it added to the score."""

    feature: Line
    weight: float


class ModelSaid(Body):
    """What the classifier said, whether it was asked to decide or not."""

    model: Code
    sha256: Code
    language: Code
    top: tuple[Candidate, ...]
    margin: float
    known_share: float
    threshold: float
    evidence: tuple[Feature, ...] = ()
    would_route: bool = False


class Explanation(Body):
    """Why the router decided so: enough to decide it again, and to tell a person.

    `input_sha256` is the digest of exactly what was read; `abstained` says why the classifier did not decide,
    `degraded` what was missing; `audit` marks a blind sample that a person judges without the suggestion.

    What it was decided with beside rules and model: the departments by their hash, those for which the
    classifier might not decide (`restricted`), whether samples were taken (`audits`); what it was decided of:
    the `severity` before a rule raised it, the department of the case that this one `follows`.
    """

    decision_id: UUID
    ruleset: Code
    ruleset_sha256: Code
    normaliser: int
    input_sha256: Code
    matched: tuple[Matched, ...] = ()
    vetoed: tuple[Code, ...] = ()
    candidates: tuple[Code, ...] = ()
    excluded: tuple[Code, ...] = ()
    model: ModelSaid | None = None
    shadow: ModelSaid | None = None
    abstained: Code | None = None
    degraded: Code | None = None
    audit: bool = False
    departments_sha256: Code | None = None
    restricted: tuple[Code, ...] = ()
    audits: bool | None = None
    severity: Severity | None = None
    follows: Code | None = None


@message("router.case-routed", topic=CASES)
class CaseRouted(Body):
    """A department is responsible from now on."""

    case_id: UUID
    assignment_id: UUID
    department: Code
    attempt_no: int
    why: RuleUsed
    accept_due: Moment
    resolve_due: Moment
    case: Case
    explanation: Explanation | None = None
    assisting: tuple[Code, ...] = ()


@message("router.ruling-lapsed", topic=CASES)
class RulingLapsed(Body):
    """A case that waited for a ruling needs none any more."""

    case_id: UUID
    reason: Code


@message("router.triage-overdue", topic=CASES)
class TriageOverdue(Body):
    """A case has waited for a person's decision longer than it may; somebody senior must look."""

    case_id: UUID
    waiting_since: Moment
    level: int


@message("router.ruleset-activated", topic=ACTIVATIONS, key="kind", kind=Kind.RECORD)
class RulesetActivated(Body):
    """From now on these rules decide."""

    kind: Literal["ruleset"] = "ruleset"
    version: Code
    sha256: Code
    by: Code
    reason: Line = ""


@message("router.model-activated", topic=ACTIVATIONS, key="kind", kind=Kind.RECORD)
class ModelActivated(Body):
    """From now on this model decides for its language, or is watched in the shadow; `none`: no model does."""

    kind: Literal["model"] = "model"
    role: Literal["active", "shadow"]
    language: Code
    version: Code
    sha256: Code
    by: Code
    reason: Line = ""


@message("router.model-restricted", topic=ACTIVATIONS, key="kind", kind=Kind.RECORD)
class ModelRestricted(Body):
    """The classifier may no longer (or may again) decide for a department: it was wrong too often."""

    kind: Literal["model"] = "model"
    department: Code
    allowed: bool
    alarm: Code
    figure: float | None = None
    by: Code


@message("router.case-parked", topic=CASES)
class CaseParked(Body):
    """Departments disagree; a person must rule who is responsible."""

    case_id: UUID
    reason: Code
    case: Case


@message("router.case-rejected", topic=CASES)
class CaseRejected(Body):
    """The matter is not this bank's; the customer is told why."""

    case_id: UUID
    decision: Decision
    case: Case


@message("router.command-refused", topic=CASES, key="subject")
class CommandRefused(Body):
    """The verdict on a command that changed nothing; `causationid` names the command."""

    subject: Identifier
    code: Code
    explanation: str
    current_state: Code


@message("router.assignment-requested", topic=COMMANDS, kind=Kind.COMMAND)
class AssignmentRequested(Request):
    """A person in triage rules which department is responsible."""

    case_id: UUID
    department: Code
    by: Code
    reason: Line = ""


@message("router.rejection-requested", topic=COMMANDS, kind=Kind.COMMAND)
class RejectionRequested(Request):
    """A person in triage rules that the matter is not this bank's."""

    case_id: UUID
    by: Code
    decision: Decision


@message("router.timer-fired", topic=COMMANDS, key="subject", kind=Kind.COMMAND)
class TimerFired(Request):
    """A moment that the router had set itself has come."""

    subject: Identifier
    timer: Code
    due_at: Moment
