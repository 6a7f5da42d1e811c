"""Reading what others wrote: strict JSON, fields missed by name, numbers that follow from ids. Pure."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from services.intake.sources.canonical import BadPayload

MAX_DEPTH = 32
"""How deep a payload may be nested; ours are three deep, the deepest foreign ones eight."""
MAX_DIGITS = 18
"""An integer of so many digits still fits PostgreSQL's bigint."""
MOST = 2**31 - 1
"""The largest count or duration that is kept (PostgreSQL's integer; 24 days in milliseconds)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"[A-Za-z_][\w.:-]{0,60}", re.ASCII)
# A string runs to its end even where the closing quote is missing: so one pass is enough for any input.
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*+"?|[][{}:,]', re.DOTALL)
_NUMBER = re.compile(r"\+?\d{3,15}", re.ASCII)


def plausible(at: datetime) -> datetime:
    """Refuse (ValueError) a moment outside the years 2000 … 2099: a clock never set, a unit mistaken."""
    if not 2000 <= at.year < 2100:
        raise ValueError("is not between the years 2000 and 2099")
    return at


Instant = Annotated[AwareDatetime, AfterValidator(plausible)]
"""A moment as a foreign system tells it."""

Count = Annotated[int, Field(ge=0, le=MOST)]
"""A number of things, or of milliseconds."""

Seconds = Annotated[int, Field(ge=0, le=MOST // 1000)]
"""A duration that a foreign system counts in seconds."""


class Payload(BaseModel):
    """A foreign payload, as far as it is used: unknown fields are ignored, content never shows in errors."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)

    @classmethod
    def read(cls, value: object, path: str = "") -> Self:
        """Read the payload that stands at `path`; raises BadPayload naming the first field that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise refused(error, path) from None


def refused(error: ValidationError, path: str = "") -> BadPayload:
    """Name the first field that is wrong, below `path`, and what is wrong with it."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    problem = _PROBLEMS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    return BadPayload(below(path, *fault["loc"]) or "body", problem)


_NO_OBJECT = "is not an object of named fields"
_PROBLEMS = {"missing": "is missing", "model_type": _NO_OBJECT, "dict_type": _NO_OBJECT}


def below(path: str, *steps: str | int) -> str:
    """Write where a field stands: `below("[3]", "data", "queue")` is `[3].data.queue`."""
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            # A name is shown only where it looks like one: it may be anything, a person's number too.
            named = step if _NAME.fullmatch(step) else "?"
            path += f".{named}" if path else named
    return path


# ---------------------------------------------------------------- JSON


class _Unfit:
    """Stands where a number was that cannot be kept, until its path is known."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


class _Repeated(dict[str, Any]):
    """An object that had a name twice, until its path is known."""

    name = ""


def read_json(body: bytes, path: str = "") -> Any:
    """Read JSON (RFC 8259) that stands at `path`, as strictly as what is kept for ever must be read.

    Raises BadPayload with the field's path for NUL, lone surrogates, NaN and infinities, integers of
    more than 18 digits, a name twice in an object, nesting deeper than 32; and for what is no JSON.
    """
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(body, path)
    try:
        value = _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise BadPayload(path or "body", "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadPayload(path or "body", f"is not JSON: {error.msg} at character {error.pos}") from None
    fault = _fault_in(value)
    if fault:
        steps, problem = fault
        raise BadPayload(below(path, *reversed(steps)) or "body", problem)
    return value


def _check_depth(body: bytes, path: str) -> None:
    """Follow the brackets alone: a parser would recurse, and die of what it is asked to judge."""
    steps: list[str | int] = []
    text = b""
    for found in _TOKEN.finditer(body):
        token = found[0]
        if token in b"[{":
            steps.append(0 if token == b"[" else "")
            if len(steps) > MAX_DEPTH:
                raise BadPayload(below(path, *steps[:-1]), f"is nested deeper than {MAX_DEPTH}")
        elif not steps:
            continue
        elif token in b"]}":
            steps.pop()
        elif token == b":":
            steps[-1] = text.decode(errors="replace")
        elif token == b",":
            last = steps[-1]
            steps[-1] = last + 1 if isinstance(last, int) else ""
        else:
            text = token[1:-1]


def split_array(body: bytes) -> Iterator[bytes]:
    """Cut a JSON array into its elements by brackets alone, so that each can be judged by itself.

    Raises BadPayload where brackets do not tell one whole array.
    """
    body = body.strip()
    if not body.startswith(b"["):
        raise BadPayload("body", "is not a JSON array")
    depth, start, last = 0, 1, b""
    for found in _TOKEN.finditer(body):
        token = last = found[0]
        depth += (token in b"[{") - (token in b"]}")
        if depth == 0 or (depth == 1 and token == b","):
            element = body[start : found.start()]
            # An array of nothing has no element; between two commas stands an empty one.
            if depth or start > 1 or element.strip():
                yield element
            start = found.end()
        if depth == 0:
            break
    if last != b"]" or start != len(body):
        raise BadPayload("body", "is not one whole JSON array")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) == len(pairs):
        return names
    twice = _Repeated(names)
    ((twice.name, _),) = Counter(name for name, _ in pairs).most_common(1)
    return twice


def _integer(digits: str) -> int | _Unfit:
    fits = len(digits.lstrip("-")) <= MAX_DIGITS
    return int(digits) if fits else _Unfit(f"has more than {MAX_DIGITS} digits")


def _float(text: str) -> float | _Unfit:
    number = float(text)
    return number if abs(number) != float("inf") else _Unfit("is too large a number")


def _constant(name: str) -> _Unfit:
    return _Unfit("is not a number of JSON (NaN, Infinity)")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
_Fault = tuple[list[str | int], str]
"""What is wrong with a value, and the way to it, from the inside out."""


def _fault_in(value: Any) -> _Fault | None:
    if isinstance(value, str):
        return _fault_of_text(value)
    if isinstance(value, dict):
        if isinstance(value, _Repeated):
            return [value.name], "is there twice"
        return _first_fault(value.items())
    if isinstance(value, list):
        return _first_fault(enumerate(value))
    return ([], value.problem) if isinstance(value, _Unfit) else None


def _first_fault(inner: Iterable[tuple[str | int, Any]]) -> _Fault | None:
    for step, value in inner:
        fault = (_fault_of_text(step) if isinstance(step, str) else None) or _fault_in(value)
        if fault:
            fault[0].append(step)
            return fault
    return None


def _fault_of_text(text: str) -> _Fault | None:
    if "\x00" in text:
        return [], "has a NUL character"
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return [], "has half of a surrogate pair"
    return None


# ---------------------------------------------------------------- values


def visit_of(entry: str) -> int:
    """Number a queue visit by the foreign system's own id of it, where nobody can count: 2 … 2^31 - 1.

    The same entry has the same number in every event, feed and repetition; 1 stays free for a visit
    that is known to be the first. Two of one call collide with a probability of 2^-31.
    """
    digest = blake2b(entry.encode(), digest_size=8).digest()
    return 2 + int.from_bytes(digest, "big") % (MOST - 1)


def between(start: datetime, end: datetime) -> int:
    """Tell the whole milliseconds from `start` to `end`; never negative, though two clocks may disagree."""
    return min(MOST, max(0, (end - start) // timedelta(milliseconds=1)))


def from_epoch(count: int, unit: timedelta) -> datetime:
    """Tell the moment `count` units after 1970 (UTC); raises ValueError beyond the calendar."""
    try:
        return _EPOCH + count * unit
    except OverflowError:
        raise ValueError("is beyond the calendar") from None


def phone_of(text: str | None) -> str | None:
    """Give the caller's number as a switch names it (`tel:` cut off); None when withheld, or no number."""
    number = (text or "").removeprefix("tel:")
    return number if _NUMBER.fullmatch(number) else None


def fields_of(payload: object, path: str) -> Mapping[str, Any]:
    """Take a payload for the object of named fields that it must be; raises BadPayload otherwise."""
    if not isinstance(payload, Mapping):
        raise BadPayload(path or "body", _NO_OBJECT)
    return payload
