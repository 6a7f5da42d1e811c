"""What rules do to cases: their tests, why each was passed over, which never decide, what a change moves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

from services.router.rules import Matched, Narrowing, Rule, Ruled, Ruleset, RuleTest, Veto, decide, vetoed
from services.router.rules.conditions import trace
from services.router.rules.view import View

# ------------------------------------------------------------ tests


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that did not come out as it says."""

    number: int
    test: RuleTest
    found: Ruled


def failures(ruleset: Ruleset) -> list[Failure]:
    """Run the tests that stand beside the rules; gives those that fail, numbered from 1."""
    ran = [(number, test, decide(test.case, ruleset)) for number, test in enumerate(ruleset.tests, 1)]
    return [Failure(*one) for one in ran if not _passes(one[1], one[2])]


def _passes(test: RuleTest, found: Ruled) -> bool:
    return (
        found.department == test.department
        and test.rule in {None, rule_of(found)}
        and (test.candidates is None or set(found.candidates) == set(test.candidates))
    )


# ------------------------------------------------------------ one case

Fate = Literal["decides", "no match", "excluded", "vetoed", "vetoes", "narrows"]


@dataclass(frozen=True, slots=True)
class Tried:
    """A rule that was tried, what became of it, and the terms that made it so."""

    rule: Rule | Veto | Narrowing
    fate: Fate
    terms: tuple[Matched, ...]


def tried(view: View, ruleset: Ruleset, excluded: AbstractSet[str] = frozenset()) -> list[Tried]:
    """List the rules in the order in which they were tried, up to the one that decides, and all that
    veto or narrow: those count even after it.
    """
    found, vetoes, lines, decided = ruleset.phrases_in(view.text), list[Veto](), list[Tried](), False
    for rule in ruleset.rules:
        if decided and isinstance(rule, Rule):
            continue
        held, said = trace(rule.when, view, found)
        fate: Fate = _fate(rule, vetoes, excluded) if held else "no match"
        lines.append(Tried(rule, fate, said))
        decided = decided or fate == "decides"
        if held and isinstance(rule, Veto):
            vetoes.append(rule)
    return lines


def _fate(rule: Rule | Veto | Narrowing, vetoes: Sequence[Veto], excluded: AbstractSet[str]) -> Fate:
    match rule:
        case Veto():
            return "vetoes"
        case Narrowing():
            return "narrows"
    if rule.department in excluded:
        return "excluded"
    return "vetoed" if vetoed(rule, vetoes) else "decides"


# ------------------------------------------------------------ many cases


@dataclass(slots=True)
class Use:
    """What one rule did: on how many cases it holds, how many it decides, and which rules took the others."""

    rule: Rule | Veto | Narrowing
    holds: int = 0
    decides: int = 0
    taken_by: Counter[str] = field(default_factory=Counter)

    @property
    def verdict(self) -> Literal["used", "never matches", "shadowed"]:
        """Whether the rule does anything on these cases; a veto or narrowing does when it holds."""
        if not self.holds:
            return "never matches"
        return "used" if self.decides or not isinstance(self.rule, Rule) else "shadowed"


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the rules did over some cases."""

    uses: tuple[Use, ...]
    cases: int
    without_rule: int

    @property
    def share_without_rule(self) -> float | None:
        """The share of cases that no rule decides, 0 … 1; None when there was no case."""
        return self.without_rule / self.cases if self.cases else None


def cover(ruleset: Ruleset, cases: Mapping[str, View]) -> Coverage:
    """Count over cases what each rule does."""
    uses = {rule.id: Use(rule) for rule in ruleset.rules}
    without = 0
    for view in cases.values():
        ruled, found = decide(view, ruleset), ruleset.phrases_in(view.text)
        without += ruled.rule is None
        for use in uses.values():
            if not trace(use.rule.when, view, found)[0]:
                continue
            use.holds += 1
            if isinstance(use.rule, Rule):
                _count(use, ruled)
    return Coverage(tuple(uses.values()), len(cases), without)


def _count(use: Use, ruled: Ruled) -> None:
    if ruled.rule is use.rule:
        use.decides += 1
    else:
        earlier = ruled.rule is not None and ruled.rule.priority < use.rule.priority
        use.taken_by[ruled.rule.id if ruled.rule and earlier else "a veto"] += 1


# ------------------------------------------------------------ two versions


@dataclass(frozen=True, slots=True)
class Moved:
    """A case of which two versions of the rules say different things."""

    case: str
    before: Ruled
    after: Ruled


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two versions, as ids of rules and as cases.

    `moved`: in the priority; `changed`: in anything else; `rerouted`: to another department; `explained`: to
    the same one, by another rule; `reused`: the version's name is the same although the rules are not.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[str, ...]
    rerouted: tuple[Moved, ...]
    explained: tuple[Moved, ...]
    reused: bool


def compare(before: Ruleset, after: Ruleset, cases: Mapping[str, View]) -> Difference:
    """Compare two versions, by their rules and by what they say of cases."""
    old, new = ({rule.id: rule for rule in one.rules} for one in (before, after))
    both = [name for name in new if name in old]
    ruled = [Moved(key, decide(view, before), decide(view, after)) for key, view in cases.items()]
    stayed = [one for one in ruled if one.before.department == one.after.department]
    return Difference(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name in both if _but_priority(old[name]) != _but_priority(new[name])),
        moved=tuple(name for name in both if old[name].priority != new[name].priority),
        rerouted=tuple(one for one in ruled if one.before.department != one.after.department),
        explained=tuple(one for one in stayed if rule_of(one.before) != rule_of(one.after)),
        reused=before.ruleset == after.ruleset and before.sha256 != after.sha256,
    )


def _but_priority(rule: Rule | Veto | Narrowing) -> dict[str, object]:
    return rule.model_dump(exclude={"priority"})


def rule_of(ruled: Ruled) -> str | None:
    """Name the rule that decided; None where none did."""
    return ruled.rule.id if ruled.rule else None
