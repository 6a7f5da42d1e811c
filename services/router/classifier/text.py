"""From a text to what a model counts: normalising, the language, n-grams; pure.

Training and scoring both read texts here, so they cannot differ. A token is a Latin word or one Han
character: word n-grams and character n-grams are then the same thing, and Chinese needs no segmenter.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Literal

NORMALISER = 1
"""The version of everything in this module: a model only reads texts as it was trained to read them."""
MOST_CHARACTERS = 16_000
"""What stands further back is not read: it bounds the time of a decision, and its sums."""

Language = Literal["zh", "en"]

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff"
_ADDRESS = re.compile(r"[a-z0-9._%+-]{1,64}@[a-z0-9.-]+")
_MASKED = re.compile(r"\*{2,}|(?<![a-z])x{2,}(?![a-z])")  # what others have masked before us
_NUMBER = re.compile(r"\d+(?:[ ./:,-]{1,2}\d+)*")
_TOKEN = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+(?:'[a-z]+)?")
_LETTERS = re.compile(r"[^\W\d_]+")
_HAN_LETTERS = re.compile(f"[{_HAN}]+")
_LATIN_LETTERS = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_BLANK_BETWEEN_HAN = re.compile(rf"(?<=[{_HAN}]) (?=[{_HAN}])")
_FRAGMENTS = (2, 5)
_PERSONAL = re.compile(
    r"[\d@]|\b(?:mr|mrs|ms|miss|mx|dr|name)\b|先|女士|小姐|太太|姓|叫|氏|[老小][王李张刘陈杨赵黄周吴]"
)


def normalise(text: str) -> str:
    """Fold a text: NFKC, lower case, one blank for white space; numbers, masks and addresses become `0`.

    A run of digits with separators is one number, so cards, phones, identities, dates and sums all
    read `0` and none of them can become part of a model.
    """
    folded = unicodedata.normalize("NFKC", text[:MOST_CHARACTERS]).lower().replace("\u2019", "'")
    if "@" in folded:
        folded = _ADDRESS.sub("0", folded)
    if "xx" in folded or "**" in folded:
        folded = _MASKED.sub("0", folded)
    return " ".join(_NUMBER.sub("0", folded).split())[:MOST_CHARACTERS]


def language_of(text: str) -> Language | None:
    """Tell Chinese (more than a third of the letters are Han) from English (most are Latin).

    None: neither, or no letters at all. Other languages in Latin letters count as English; the model
    does not know their words, and abstains.
    """
    letters = _count(_LETTERS, text)
    if 3 * _count(_HAN_LETTERS, text) > letters:
        return "zh"
    return "en" if 2 * _count(_LATIN_LETTERS, text) > letters else None


def _count(runs: re.Pattern[str], text: str) -> int:
    return sum(map(len, runs.findall(text)))


def tokens(normalised: str) -> list[str]:
    """Cut a normalised text into Latin words and single Han characters; punctuation is dropped."""
    return _TOKEN.findall(normalised)


def grams(words: Sequence[str]) -> Iterator[str]:
    """All tokens, then all pairs of neighbours as `one two`."""
    return chain(words, map(" ".join, pairwise(words)))


def fragments(word: str) -> list[str]:
    """All runs of 2 to 5 characters of a word, its edges marked by blanks; repeated ones too."""
    marked = f" {word} "
    shortest, longest = _FRAGMENTS
    return [
        marked[at : at + size]
        for size in range(shortest, min(longest, len(marked)) + 1)
        for at in range(len(marked) - size + 1)
    ]


def shown_as(gram: str) -> str:
    """Write an n-gram as people read it: no blank between Han characters."""
    return _BLANK_BETWEEN_HAN.sub("", gram)


def looks_personal(gram: str) -> bool:
    """Tell whether an n-gram has digits or stands where names stand: such are never shown to anybody."""
    return _PERSONAL.search(shown_as(gram)) is not None
