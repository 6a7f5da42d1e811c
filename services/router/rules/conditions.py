"""Conditions: `field op value`, and, or, not; checked when read, compiled to closures, explained in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from math import inf
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator

from services.router.rules.phrases import key
from services.router.rules.sheet import Part, Place, reason
from services.router.rules.view import OPERATORS, SEVERITIES, Operator, View, meant

MOST_VALUES = 200


class Term(Part):
    """`field op value`; a value that is not known meets no term but `is_null`."""

    field: str
    op: Operator
    value: Any

    @field_validator("field")
    @classmethod
    def _known(cls, field: str) -> str:
        if field not in OPERATORS:
            raise ValueError(f"there is no field {field!r}{meant(field, OPERATORS)}")
        return field

    @field_validator("op")
    @classmethod
    def _applies(cls, op: Operator, info: ValidationInfo) -> Operator:
        field = info.data.get("field")
        if field is not None and op not in OPERATORS[field]:
            raise ValueError(f"{field} takes {', '.join(OPERATORS[field])}, not {op}")
        return op

    @field_validator("value")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.keys() != {"field", "op"}:
            return value  # what is wrong was said there
        return _fitting(info.data["field"], info.data["op"], value)

    @property
    def values(self) -> tuple[Any, ...]:
        """What is compared with, as a list."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    @cached_property
    def key_of(self) -> Mapping[str, str]:
        """The phrases of `contains_any`, each with the key by which it is found."""
        return {phrase: key(phrase) for phrase in self.value}

    @cached_property
    def test(self) -> "Test":
        """The term, ready to be asked."""
        return _compiled_term(self)


def _fitting(field: str, op: Operator, value: Any) -> Any:
    match op:
        case "is_null":
            if value is not True and value is not False:
                raise ValueError("is_null takes true or false")
            return value
        case "contains_any":
            return tuple(_phrase(one) for one in _several(value))
        case "in" | "not_in":
            return tuple(_value(field, one) for one in _several(value))
        case "between":
            ends = tuple(_value(field, one) for one in _several(value))
            if len(ends) != 2 or _rank(ends[0]) > _rank(ends[1]):
                raise ValueError("between takes two values, the lower one first; both are included")
            return ends
    return _value(field, value)


def _several(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_VALUES:
        raise ValueError(f"takes a list of 1 to {MOST_VALUES} values")
    written = [repr(one) for one in value]
    twice = next((one for one in written if written.count(one) > 1), None)
    if twice:
        raise ValueError(f"names {twice[:100]} twice")
    return value


def _value(field: str, value: Any) -> Any:
    if value is None:
        raise ValueError("null is not a value; ask with is_null")
    try:
        return getattr(View.model_validate({field: value}), field)
    except ValidationError as error:
        raise ValueError(reason(error.errors(include_url=False)[0])) from None


def _phrase(phrase: Any) -> str:
    if not isinstance(phrase, str) or not 2 <= len(key(phrase)) <= 100:
        raise ValueError(f"{str(phrase)[:100]!r} is no phrase: 2 to 100 letters, in quotes if only digits")
    return phrase


def _rank(value: Any) -> int:
    return SEVERITIES.index(value) if isinstance(value, str) else int(value)


class And(Part):
    """Holds when every part does."""

    parts: tuple["Condition", ...] = Field(alias="and", min_length=1)


class Or(Part):
    """Holds when at least one part does."""

    parts: tuple["Condition", ...] = Field(alias="or", min_length=1)


class Not(Part):
    """Holds when its part does not."""

    part: "Condition" = Field(alias="not")


_WRITTEN: dict[type, str] = {And: "and", Or: "or", Not: "not", Term: "term"}


def _shape(data: Any) -> str | None:
    if isinstance(data, dict):
        word = next((word for word in ("and", "or", "not") if word in data), "term")
    else:
        word = _WRITTEN.get(type(data), "")
    return f"<{word}>" if word else None


Condition: TypeAlias = Annotated[
    Annotated[And, Tag("<and>")]
    | Annotated[Or, Tag("<or>")]
    | Annotated[Not, Tag("<not>")]
    | Annotated[Term, Tag("<term>")],
    Discriminator(
        _shape,
        custom_error_type="condition",
        custom_error_message="a condition is {field, op, value}, or one of and, or, not",
    ),
]
for _model in (And, Or, Not):
    _model.model_rebuild()


def terms(condition: Condition, at: Place = ()) -> Iterator[tuple[Place, Term]]:
    """List the terms of a condition, each with its place."""
    match condition:
        case Term():
            yield at, condition
        case Not(part=part):
            yield from terms(part, (*at, "not"))
        case And(parts=parts) | Or(parts=parts):
            for index, part in enumerate(parts):
                yield from terms(part, (*at, _WRITTEN[type(condition)], index))


def depth(condition: Condition) -> int:
    """Count how deep a condition is; a term alone is 1."""
    return 1 + max(sum(isinstance(step, str) for step in at) for at, _ in terms(condition))


# ------------------------------------------------------------ asked

Test: TypeAlias = Callable[[Mapping[str, Any], AbstractSet[str]], bool]
"""A condition ready to be asked of a view's fields, and of the phrases that were found in its text."""


def compiled(condition: Condition) -> Test:
    """Turn a condition into a closure."""
    match condition:
        case Term():
            return condition.test
        case Not(part=part):
            test = compiled(part)
            return lambda fields, found: not test(fields, found)
        case And(parts=parts) | Or(parts=parts):
            return _compiled_parts(tuple(map(compiled, parts)), decisive=isinstance(condition, Or))


def _compiled_parts(tests: tuple[Test, ...], *, decisive: bool) -> Test:
    def asked(fields: Mapping[str, Any], found: AbstractSet[str]) -> bool:
        for test in tests:
            if test(fields, found) is decisive:
                return decisive
        return not decisive

    return asked


def _compiled_term(term: Term) -> Test:
    get, value = itemgetter(term.field), term.value
    match term.op:
        case "is_null":
            return lambda fields, _: (get(fields) is None) is value
        case "contains_any":
            keys = frozenset(term.key_of.values())
            return lambda _, found: not keys.isdisjoint(found)
        case "prefix":
            return lambda fields, _: (seen := get(fields)) is not None and seen.startswith(value)
        case "eq" | "in":
            wanted = frozenset(term.values)
            return lambda fields, _: get(fields) in wanted
        case "ne" | "not_in":
            unwanted = frozenset({None, *term.values})
            return lambda fields, _: get(fields) not in unwanted
    return _compiled_order(term)


def _compiled_order(term: Term) -> Test:
    get, (low, high) = itemgetter(term.field), _bounds(term)
    if term.field == "severity":
        wanted = frozenset(word for rank, word in enumerate(SEVERITIES) if low <= rank <= high)
        return lambda fields, _: get(fields) in wanted
    return lambda fields, _: (seen := get(fields)) is not None and low <= seen <= high


def _bounds(term: Term) -> tuple[float, float]:
    """The lowest and the highest rank that meet a term."""
    first, last = _rank(term.values[0]), _rank(term.values[-1])
    bounds = {"lt": (-inf, first - 1), "le": (-inf, first), "gt": (first + 1, inf), "ge": (first, inf)}
    return bounds.get(term.op, (first, last))


# ------------------------------------------------------------ explained


class Matched(NamedTuple):
    """A term and what was seen; the op begins with "not " when the term did not hold.

    Of the text only the operator's own phrases are named, never the customer's words.
    """

    field: str
    op: str
    expected: str
    seen: str | None


def trace(condition: Condition, view: View, found: AbstractSet[str]) -> tuple[bool, tuple[Matched, ...]]:
    """Tell whether a condition holds, and the terms that made it so."""
    match condition:
        case Term():
            held = condition.test(vars(view), found)
            return held, (_matched(condition, view, found, held=held),)
        case Not(part=part):
            held, said = trace(part, view, found)
            return not held, said
        case And(parts=parts) | Or(parts=parts):
            told = [trace(part, view, found) for part in parts]
            held = (any if isinstance(condition, Or) else all)(one for one, _ in told)
            return held, tuple(line for one, said in told if one is held for line in said)


def _matched(term: Term, view: View, found: AbstractSet[str], *, held: bool) -> Matched:
    seen: Sequence[Any]
    if term.op == "contains_any":
        seen = [phrase for phrase, of in term.key_of.items() if of in found]
    else:
        value = getattr(view, term.field)
        # That there is a text may be told; what it says may not.
        seen = [] if value is None else ["known"] if term.field == "text" else [value]
    op = term.op if held else f"not {term.op}"
    return Matched(term.field, op, _brief(term.values), _brief(seen) or None)


def _brief(values: Sequence[Any], most: int = 4) -> str:
    shown = [str(value).lower() if isinstance(value, bool) else str(value) for value in values[:most]]
    more = len(values) - most
    return ", ".join([*shown, f"… {more} more"] if more > 0 else shown)
