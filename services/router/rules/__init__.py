"""Routing rules as typed data: loaded from YAML, checked at load, first match by priority wins.

Safety rules have the priorities 0-99, explicit ones 100-899. A rule assigns a department; a veto closes
departments to every rule of a higher number and to the classifier; a narrowing names the only departments
between which the classifier chooses. Nothing that an operator writes is evaluated.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from chassis.wallclock import ZoneName
from schemas.case import Severity
from schemas.envelope import Code, Line
from schemas.topics import DEPARTMENTS, TRIAGE
from services.router.rules.conditions import Condition, Matched, Term, Test, compiled, depth, terms, trace
from services.router.rules.phrases import Phrases
from services.router.rules.sheet import BadSheet, Fault, Part, Place, read_file, read_sheet, refuse
from services.router.rules.view import SEVERITIES, View, meant, view_of

__all__ = [
    "ASSIGNABLE", "TRIAGE", "BadRules", "Department", "Fault", "Matched", "Named", "Narrowing", "Rule",
    "RuleTest", "Ruled", "Ruleset", "Veto", "View", "decide", "load_rules", "parse_rules", "view_of",
]  # fmt: skip

ASSIGNABLE: tuple[str, ...] = tuple(code for code in DEPARTMENTS if code != TRIAGE)
"""The departments between which there is a choice; triage has what none of them may have."""
if TYPE_CHECKING:
    Assignable: TypeAlias = str
    Department: TypeAlias = str
else:
    # Departments are data: whatever is no department is refused when it is read.
    Assignable, Department = Literal[ASSIGNABLE], Literal[DEPARTMENTS]

MOST_RULES, MOST_TERMS, DEEPEST = 1000, 50, 4
LAST_SAFETY, LAST_EXPLICIT = 99, 899


class BadRules(BadSheet):
    """A rules file that may not be used; names every fault with its line."""


class Named(Part):
    """What a rule is called where people read it."""

    zh: Annotated[Line, Field(min_length=1)]
    en: Annotated[Line, Field(min_length=1)]


class Assigning(Part):
    """Who is responsible, who assists, and how severe the case is from now on at least."""

    department: Department
    assist: tuple[Assignable, ...] = Field(default=(), max_length=3)
    severity: Severity | None = None

    @field_validator("assist")
    @classmethod
    def _others(cls, assist: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("department") in assist or len(set(assist)) < len(assist):
            raise ValueError("names other departments than the responsible one, each once")
        return assist


class Vetoing(Part):
    """Departments that may not have the case."""

    veto: tuple[Assignable, ...] = Field(min_length=1)


class Narrowed(Part):
    """The only departments between which the classifier chooses."""

    narrow: tuple[Assignable, ...] = Field(min_length=1)


class _Entry(Part):
    id: Annotated[Code, Field(max_length=60)]
    name: Named
    priority: int = Field(ge=0, le=LAST_EXPLICIT, strict=True)
    when: Condition
    author: Annotated[Line, Field(min_length=1)]
    note: Line = ""

    @field_validator("when")
    @classmethod
    def _bounded(cls, when: Condition) -> Condition:
        count, deep = sum(1 for _ in terms(when)), depth(when)
        if count > MOST_TERMS or deep > DEEPEST:
            raise ValueError(
                f"has {count} terms and is {deep} deep, which nobody can check by reading;"
                f" split the rule: at most {MOST_TERMS} and {DEEPEST}"
            )
        return when

    @property
    def band(self) -> Literal["safety", "explicit"]:
        """Which kind of rule it is, by its priority."""
        return "safety" if self.priority <= LAST_SAFETY else "explicit"


class Rule(_Entry):
    """A rule that assigns; the lowest priority number is tried first."""

    then: Assigning

    @property
    def department(self) -> Department:
        """The department that is responsible."""
        return self.then.department


class Veto(_Entry):
    """Departments closed to a case: for all rules of a higher number, and for the classifier."""

    then: Vetoing


class Narrowing(_Entry):
    """The only departments between which the classifier chooses."""

    then: Narrowed


def _kind(data: Any) -> str:
    then = data.get("then") if isinstance(data, dict) else getattr(data, "then", None)
    keys = then if isinstance(then, dict) else vars(then) if isinstance(then, Part) else ()
    return next((f"<{word}>" for word in ("veto", "narrow") if word in keys), "<assign>")


Entry: TypeAlias = Annotated[
    Annotated[Rule, Tag("<assign>")] | Annotated[Veto, Tag("<veto>")] | Annotated[Narrowing, Tag("<narrow>")],
    Discriminator(_kind),
]


class RuleTest(Part):
    """What the rules must say of a case; triage without a rule: none decides.

    `candidates`: between which departments the classifier may then choose; None: not tested.
    """

    name: Line = ""
    case: View
    department: Department
    rule: Code | None = None
    candidates: tuple[Assignable, ...] | None = None


# ------------------------------------------------------------ the set


@dataclass(frozen=True, slots=True)
class _Ready:
    """A ruleset ready to be asked."""

    rules: tuple[tuple[Rule, Test], ...]
    vetoes: tuple[tuple[Veto, Test], ...]
    narrowings: tuple[tuple[Narrowing, Test], ...]
    phrases: Phrases


class Ruleset(Part):
    """A version of the rules, in the order in which they are tried.

    `words`: all words of a field that is otherwise open, so that a misspelt one is a fault and not a rule
    that never matches. `tests`: run by `hotline rules test`, not when the rules are loaded.
    """

    ruleset: Annotated[Code, Field(max_length=40)]
    zone: ZoneName = "Asia/Shanghai"
    words: dict[Literal["product", "channel", "queue"], tuple[Code, ...]] = Field(default_factory=dict)
    rules: tuple[Entry, ...] = Field(max_length=MOST_RULES)
    tests: tuple[RuleTest, ...] = Field(default=(), max_length=MOST_RULES)

    @field_validator("rules")
    @classmethod
    def _unambiguous(cls, rules: tuple[Entry, ...], info: ValidationInfo) -> tuple[Entry, ...]:
        refuse([*_repeated(rules), *_unknown_words(rules, info.data.get("words", {}))])
        return tuple(sorted(rules, key=lambda rule: rule.priority))

    @model_validator(mode="after")
    def _tests_of_these_rules(self) -> Self:
        departments = {rule.id: rule.department for rule in self.rules if isinstance(rule, Rule)}
        faults: list[tuple[Place, str]] = []
        for index, test in enumerate(self.tests):
            if test.rule is not None and (said := _contradiction(test.rule, test.department, departments)):
                faults.append((("tests", index, "rule"), said))
            for name, words in self.words.items():
                if name in test.case.model_fields_set and (value := getattr(test.case, name)) not in words:
                    said = f"{value!r} is not in words.{name}{meant(str(value), words)}"
                    faults.append((("tests", index, "case", name), said))
        refuse(faults)
        return self

    @cached_property
    def ready(self) -> _Ready:
        """The rules, ready to be asked."""
        asked = [(rule, compiled(rule.when)) for rule in self.rules]
        every = [term for rule in self.rules for _, term in terms(rule.when)]
        return _Ready(
            rules=tuple((rule, test) for rule, test in asked if isinstance(rule, Rule)),
            vetoes=tuple((rule, test) for rule, test in asked if isinstance(rule, Veto)),
            narrowings=tuple((rule, test) for rule, test in asked if isinstance(rule, Narrowing)),
            phrases=Phrases(phrase for term in every if term.op == "contains_any" for phrase in term.value),
        )

    def canonical(self) -> str:
        """Write the rules, without their tests, as JSON that is the same for the same rules."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"tests"})
        return json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @cached_property
    def sha256(self) -> str:
        """The hash of the canonical JSON, hexadecimal; with the version it says which rules decided."""
        return sha256(self.canonical().encode()).hexdigest()

    def phrases_in(self, text: str | None) -> frozenset[str]:
        """Give the keys of the phrases of these rules that a text contains."""
        return self.ready.phrases.found_in(text)


def _repeated(rules: Sequence[Entry]) -> list[tuple[Place, str]]:
    faults: list[tuple[Place, str]] = []
    for name in ("id", "priority"):
        counted = Counter(getattr(rule, name) for rule in rules)
        for index, rule in enumerate(rules):
            value = getattr(rule, name)
            if counted[value] > 1:
                said = f"{name} {value!r} is used by {counted[value]} rules; it must be unique"
                faults.append(((index, name), said))
    return faults


def _unknown_words(rules: Sequence[Entry], known: Mapping[str, tuple[str, ...]]) -> list[tuple[Place, str]]:
    placed = [pair for index, rule in enumerate(rules) for pair in terms(rule.when, (index, "when"))]
    return [
        ((*at, "value"), f"{value!r} is not in words.{term.field}{meant(value, known[term.field])}")
        for at, term in placed
        if term.field in known and term.op != "is_null"
        for value in term.values
        if not _names(term, value, known[term.field])
    ]


def _names(term: Term, value: str, words: Sequence[str]) -> bool:
    return any(word.startswith(value) for word in words) if term.op == "prefix" else value in words


def _contradiction(rule: str, department: str, departments: Mapping[str, str]) -> str | None:
    if rule not in departments:
        return f"no rule {rule!r} assigns a department{meant(rule, departments)}"
    if departments[rule] != department:
        return f"{rule} assigns {departments[rule]}, not {department}"
    return None


# ------------------------------------------------------------ decisions


@dataclass(frozen=True, slots=True)
class Ruled:
    """What the rules say of a case.

    `candidates`: between which departments the classifier may choose where no rule decides; none: it may
    not. `severity`: to what the case is raised; None: it stays as it is.
    """

    rule: Rule | None
    matched: tuple[Matched, ...]
    vetoed: tuple[str, ...]
    candidates: tuple[str, ...]
    assist: tuple[str, ...]
    severity: Severity | None

    @property
    def department(self) -> str:
        """The department that the rules name, else triage."""
        return self.rule.department if self.rule else TRIAGE


def decide(view: View, ruleset: Ruleset, excluded: AbstractSet[str] = frozenset()) -> Ruled:
    """Choose the first rule that matches and whose department is neither excluded nor vetoed before it."""
    ready = ruleset.ready
    fields, found = vars(view), ready.phrases.found_in(view.text)
    vetoes = [veto for veto, test in ready.vetoes if test(fields, found)]
    closed = frozenset(department for veto in vetoes for department in veto.then.veto)
    rule = next(
        (
            rule
            for rule, test in ready.rules
            if test(fields, found) and rule.department not in excluded and not vetoed(rule, vetoes)
        ),
        None,
    )
    candidates = frozenset(ASSIGNABLE) - closed - excluded
    for narrowing, test in ready.narrowings:
        if test(fields, found):
            candidates &= frozenset(narrowing.then.narrow)
    return Ruled(
        rule=rule,
        matched=trace(rule.when, view, found)[1] if rule else (),
        vetoed=_in_order(closed),
        candidates=_in_order(candidates),
        assist=tuple(one for one in rule.then.assist if one not in closed | excluded) if rule else (),
        severity=_raised(view, rule),
    )


def vetoed(rule: Rule, vetoes: Sequence[Veto]) -> bool:
    """Tell whether one of the vetoes that hold closes the department to this rule."""
    return any(veto.priority < rule.priority and rule.department in veto.then.veto for veto in vetoes)


def _in_order(departments: AbstractSet[str]) -> tuple[str, ...]:
    return tuple(one for one in ASSIGNABLE if one in departments)


def _raised(view: View, rule: Rule | None) -> Severity | None:
    wanted = rule.then.severity if rule else None
    return wanted if wanted and SEVERITIES.index(wanted) > SEVERITIES.index(view.severity) else None


# ------------------------------------------------------------ files


def parse_rules(text: str, source: str = "rules") -> Ruleset:
    """Read rules; raises BadRules with every fault, its line and its reason."""
    return read_sheet(Ruleset, text, source, BadRules)


def load_rules(path: Path) -> Ruleset:
    """Read a rules file; raises BadRules with every fault, its line and its reason."""
    return parse_rules(read_file(path, BadRules), str(path))
