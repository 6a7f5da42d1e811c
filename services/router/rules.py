"""Routing rules as typed data: loaded from YAML, checked at load, first match by priority wins."""

from collections import Counter
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.case import Case

TRIAGE = "triage"
Department = Literal["cards", "fraud", "digital", "lending", "payments", "branches", "wealth", "triage"]


class BadRules(ValueError):
    """A rules file that may not be used; says where and why."""


class Condition(BaseModel):
    """Every field that is named must have one of the listed values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: frozenset[str] | None = None
    product: frozenset[str] | None = None
    severity: frozenset[str] | None = None
    language: frozenset[str] | None = None
    queue: frozenset[str] | None = None
    vulnerable: bool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("a rule without a condition would match everything")
        return self

    def matches(self, case: Case) -> bool:
        """Tell whether a case meets every condition."""
        for name in self.model_fields_set:
            wanted, seen = getattr(self, name), getattr(case, name)
            if (seen not in wanted) if isinstance(wanted, frozenset) else (seen != wanted):
                return False
        return True


class Rule(BaseModel):
    """One rule: lower priority number first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=60)
    priority: int = Field(ge=0, le=899)
    department: Department
    when: Condition


class Ruleset(BaseModel):
    """A version of the rules, in the order in which they are tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ruleset: str = Field(min_length=1, max_length=40)
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        for name in ("id", "priority"):
            counted = Counter(getattr(rule, name) for rule in self.rules)
            twice = [value for value, count in counted.items() if count > 1]
            if twice:
                raise ValueError(
                    f"{name} {twice[0]!r} is used by {counted[twice[0]]} rules; it must be unique"
                )
        return self

    def ordered(self) -> list[Rule]:
        """List the rules by priority."""
        return sorted(self.rules, key=lambda rule: rule.priority)


def assign(case: Case, ruleset: Ruleset, *, excluded: frozenset[str] = frozenset()) -> Rule | None:
    """Choose the first rule that matches and names no excluded department; None means triage."""
    for rule in ruleset.rules:
        if rule.department not in excluded and rule.when.matches(case):
            return rule
    return None


def load_rules(path: Path) -> Ruleset:
    """Read a rules file; raises BadRules with the file, the field's path and the reason."""
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        ruleset = Ruleset.model_validate(raw)
    except (OSError, yaml.YAMLError) as error:
        raise BadRules(f"{path}: {error}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise BadRules(f"{path}: {faults}") from None
    return ruleset.model_copy(update={"rules": tuple(ruleset.ordered())})
