"""Numbers that must not be read, found and masked: cards, identity cards, IBANs and telephones; pure.

A pattern only proposes; check digits or the numbering plan decide, so order numbers and amounts stay.
Not found, because nothing confirms them: identity numbers of 15 digits, local numbers without an area
code, passports, numbers spelt in words. Service lines (400, 800) and short codes belong to no person
and stay: which hotline a customer was called from is evidence.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache, partial

from stdnum import iban, luhn
from stdnum.cn import ric
from stdnum.exceptions import InvalidComponent

from services.intake.desk import phones


class Kind(StrEnum):
    """What a number is; of two readings that overlap, the earlier in this list is believed."""

    IBAN = "iban"
    ID = "id"
    CARD = "card"
    PHONE = "phone"


@dataclass(frozen=True, slots=True)
class Found:
    """Where a number stood in the unmasked text: characters `start` up to, not including, `end`."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Masked:
    """A text without its numbers, and where they stood."""

    text: str
    found: tuple[Found, ...]


def mask(text: str, keep: frozenset[Kind] = frozenset()) -> Masked:
    """Mask every number but the kinds to `keep`; masking again changes nothing, time is linear in the text.

    Cards become `**** **** **** 1234` whatever their length, telephones `138****8000`, IBANs
    `GB****5432`; identity cards `110***********002X`: no county, no date of birth.
    """
    hits = [hit for hit in _search(_plain(text)) if hit.found.kind not in keep]
    parts, done = [], 0
    for hit in hits:
        parts += [text[done : hit.found.start], hit.shown]
        done = hit.found.end
    return Masked("".join([*parts, text[done:]]), tuple(hit.found for hit in hits))


# ------------------------------------------------------------ plain characters, each in its place


def _plain(text: str) -> str:
    return text if text.isascii() else "".join(map(_ascii, text))


@lru_cache(maxsize=4096)
def _ascii(char: str) -> str:
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    match unicodedata.category(char):
        case "Pd":
            return "-"
        case "Zs" | "Cf":
            return " "
    folded = unicodedata.normalize("NFKC", char)
    return folded if len(folded) == 1 else char


# ------------------------------------------------------------ the search, best proof first


@dataclass(frozen=True, slots=True)
class _Hit:
    found: Found
    shown: str


_SHOWN = re.compile(
    r"\*{4} \*{4} \*{4} [0-9]{4}(?![0-9])"
    r"|(?<![0-9])[0-9]{3}\*{11}[0-9]{3}[0-9X](?![0-9])"
    r"|[A-Z]{2}\*{4}[0-9A-Z]{4}(?![0-9A-Za-z])"
    r"|(?:\+[0-9]{1,3}|(?<![0-9])[0-9]{3,4})\*{4}[0-9]{1,4}(?![0-9])"
)
"""What `mask` leaves. Its visible digits belong to nothing else, or masking again would find more."""


def _search(plain: str) -> list[_Hit]:
    hits: list[_Hit] = []
    closed = [match.span() for match in _SHOWN.finditer(plain)]
    again = True
    while again:  # a number that was found may free another that was joined or glued to it
        again = False
        for finder in _FINDERS:
            new = [hit for start, end in _between(closed, len(plain)) for hit in finder(plain, start, end)]
            closed = sorted([*closed, *((hit.found.start, hit.found.end) for hit in new)])
            hits, again = hits + new, again or bool(new)
    return sorted(hits, key=lambda hit: hit.found.start)


def _between(closed: list[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    done = 0
    for start, end in [*closed, (length, length)]:
        yield done, start
        done = end


# ------------------------------------------------------------ letters and digits: IBAN

_WORD = re.compile(r"[0-9A-Za-z]+")
_IBAN_START = re.compile(r"[A-Za-z]{2}[0-9]{2}")


def _ibans(plain: str, start: int, end: int) -> Iterator[_Hit]:
    words = list(_WORD.finditer(plain, start, end))
    at = 0
    while at < len(words):
        last = _last_word(plain, words, at)
        if last is not None:
            begin, stop = words[at].start(), words[last].end()
            number = iban.compact(plain[begin:stop])
            yield _Hit(Found(Kind.IBAN, begin, stop), f"{number[:2]}****{number[-4:]}")
            at = last
        at += 1


def _last_word(plain: str, words: list[re.Match[str]], first: int) -> int | None:
    """Find the word with which the IBAN that starts with word `first` ends; a country has one length."""
    number = ""
    if not _IBAN_START.match(words[first].group()):
        return None
    for at in range(first, len(words)):
        if at > first and plain[words[at - 1].end() : words[at].start()] not in {" ", "-"}:
            return None
        number += words[at].group()
        if len(number) > 34:
            return None
        if len(number) >= 15 and iban.is_valid(number, check_country=False):
            return at
    return None


# ------------------------------------------------------------ digits: the rest


@dataclass(frozen=True, slots=True)
class _Group:
    """Digits in a row; `joined` to the group before when only separators stand between."""

    start: int
    end: int
    digits: str
    joined: bool


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Neighbouring groups that may be one number; `alone` when no further group joins them."""

    start: int
    end: int
    digits: str
    sizes: tuple[int, ...]
    alone: bool

    @property
    def regular(self) -> bool:
        """Tell a number written in blocks, or dictated in ones and twos, from a row of other numbers."""
        return min(self.sizes[:-1], default=3) >= 3 or (self.alone and max(self.sizes) <= 2)


@dataclass(frozen=True, slots=True)
class _Sought:
    """How one kind is written: so many digits, with such separators between; and what confirms it.

    Of two readings that overlap, the first is believed; where that could be the wrong one, `both` go.
    """

    lengths: range
    joint: re.Pattern[str]
    confirm: Callable[[str, _Candidate], _Hit | None]
    both: bool = False


_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def _numbers(sought: _Sought, plain: str, start: int, end: int) -> list[_Hit]:
    groups = _groups(sought.joint, plain, start, end)
    hits: list[_Hit] = []
    for first in range(len(groups)):
        candidates = reversed(_candidates(groups, first, sought.lengths))
        hit = next(filter(None, (sought.confirm(plain, candidate) for candidate in candidates)), None)
        if hit is None:
            continue
        if not hits or hit.found.start >= hits[-1].found.end:
            hits.append(hit)
        elif sought.both:
            hits[-1] = _merged(hits[-1], hit)
    return hits


def _merged(one: _Hit, other: _Hit) -> _Hit:
    longer = max(one, other, key=lambda hit: hit.found.end)
    return _Hit(replace(longer.found, start=one.found.start), longer.shown)


def _groups(joint: re.Pattern[str], plain: str, start: int, end: int) -> list[_Group]:
    """Cut the digits; a token with a single point is a decimal: no number, and none goes across it."""
    groups: list[_Group] = []
    done = start
    for token in _TOKEN.finditer(plain, start, end):
        parts = token.group().split(".")
        if len(parts) == 2:
            continue
        at = token.start()
        joined = bool(groups and joint.fullmatch(plain, done, at))
        for part in parts:
            groups.append(_Group(at, at + len(part), part, joined))
            at, joined = at + len(part) + 1, True
        done = token.end()
    return groups


def _candidates(groups: list[_Group], first: int, lengths: range) -> list[_Candidate]:
    """List what may start with group `first`, the shortest first."""
    candidates: list[_Candidate] = []
    digits = ""
    sizes: tuple[int, ...] = ()
    for at in range(first, len(groups)):
        group = groups[at]
        digits, sizes = digits + group.digits, (*sizes, len(group.digits))
        if (at > first and not group.joined) or len(digits) > lengths[-1]:
            break
        if len(digits) in lengths:
            after = at + 1 < len(groups) and groups[at + 1].joined
            alone = not groups[first].joined and not after
            candidates.append(_Candidate(groups[first].start, group.end, digits, sizes, alone))
    return candidates


# ------------------------------------------------------------ what confirms a number

_PROVINCES = frozenset(
    f"{region}{number}"
    for region, last in {1: 5, 2: 3, 3: 7, 4: 6, 5: 4, 6: 5, 7: 1, 8: 3, 9: 1}.items()
    for number in range(0 if region == 5 else 1, last + 1)
)
"""First two digits of an identity number, by GB/T 2260. Counties come and go, so they prove nothing."""


def _identity(plain: str, candidate: _Candidate) -> _Hit | None:
    """GB 11643: province, county, date of birth, order, check digit; the last may be X."""
    number, end = candidate.digits, candidate.end
    if len(number) == 17 and plain[end : end + 1] in {"X", "x"}:
        number, end = number + "X", end + 1
    if len(number) != 18 or not candidate.regular or number[:2] not in _PROVINCES:
        return None
    if number[-1] != ric.calc_check_digit(number) or not _birth_date(number):
        return None
    return _Hit(Found(Kind.ID, candidate.start, end), f"{number[:3]}{'*' * 11}{number[-4:]}")


def _birth_date(number: str) -> bool:
    try:
        return 1800 <= ric.get_birth_date(number).year < 2100
    except InvalidComponent:
        return False


_ISSUERS = re.compile(
    r"""
      4\d{12}(?:\d{3}){0,2}                                              # Visa
    | (?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12} # Mastercard
    | 3[47]\d{13}                                                       # American Express
    | 3(?:0[0-5]|[689]\d)\d{11}(?:\d{2,5})?                             # Diners Club
    | 35(?:2[89]|[3-8]\d)\d{12,15}                                      # JCB
    | (?:62|81)\d{14,17}                                                # UnionPay
    | (?:6[013-9]|5[06-9])\d{14,17}                # Discover, Maestro, RuPay, older Chinese debit cards
    | 9558\d{15}                                                        # older debit cards of ICBC
    | 220[0-4]\d{12,15}                                                 # Mir
    """,
    re.VERBOSE,
)
"""Issuers' first digits and card lengths (ISO/IEC 7812), as the schemes use them."""


def _card(plain: str, candidate: _Candidate) -> _Hit | None:
    digits = candidate.digits
    if not candidate.regular or not _ISSUERS.fullmatch(digits) or not luhn.is_valid(digits):
        return None
    return _Hit(Found(Kind.CARD, candidate.start, candidate.end), f"**** **** **** {digits[-4:]}")


_DIALLED = re.compile(r"(?:(?:00)?86)?(?:0?1[3-9]\d{9}|0[1-9]\d{8,10})|00[1-9]\d{6,14}")
"""As dialled in China: a mobile, a landline with its area code, a number abroad."""


def _phone(plain: str, candidate: _Candidate) -> _Hit | None:
    plus = plain[candidate.start - 1 : candidate.start] == "+"
    phone = phones.normalise(f"+{candidate.digits}") if plus else None
    if phone is None and _dialled(candidate):
        phone = phones.normalise(candidate.digits)
    if phone is None or not phone.personal:
        return None
    start = candidate.start - plus
    if plain[start - 1 : start] == "(" and ")" in plain[start : candidate.end]:
        start -= 1
    return _Hit(Found(Kind.PHONE, start, candidate.end), phone.masked)


def _dialled(candidate: _Candidate) -> bool:
    after_country = candidate.sizes[0] == 2 and candidate.digits.startswith("86")
    blocks = replace(candidate, sizes=candidate.sizes[1:]) if after_country else candidate
    return blocks.regular and bool(_DIALLED.fullmatch(candidate.digits))


_BLOCKS, _DIALLED_BLOCKS = re.compile(r"[ -]{1,3}"), re.compile(r"[ ()-]{1,3}")
_FINDERS: tuple[Callable[[str, int, int], Iterable[_Hit]], ...] = (
    _ibans,
    partial(_numbers, _Sought(range(17, 19), _BLOCKS, _identity)),
    partial(_numbers, _Sought(range(13, 20), _BLOCKS, _card, both=True)),
    partial(_numbers, _Sought(range(7, 18), _DIALLED_BLOCKS, _phone)),
)
