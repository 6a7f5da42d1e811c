"""What a caller can be told without an agent: articles as typed data, and the search among them.

Search is BM25 (S. Robertson, H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009)
over stems of words where the script is Latin and over single characters and pairs where it is Han. One
article in one language is one document; its fields count with weights, as the same paper's BM25F has it.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chassis.faults import Misconfigured
from schemas.case import Language
from schemas.envelope import Code

OTHER = "other"
"""The topic of whatever fits no other."""

KNOWLEDGE = Path(__file__).with_name("knowledge.yaml")

_K1, _B = 1.2, 0.75
_LONGEST_QUESTION = 500
# A question of one frequent word says too little to be sure of, whatever it matches.
_EVIDENCE = 20.0
# Chosen on the tests' questions, related and not; of letters to a city hall, 1 in 140 finds an article.
_ENOUGH = 0.135
_VOWEL = re.compile(r"[aeiouy]")
_RUN = re.compile(r"[\u3400-\u9fff]+|[^\W_\u3400-\u9fff]+")

Digit = Annotated[str, Field(pattern=r"^\d$")]
Spoken = Annotated[str, Field(min_length=1, max_length=400)]


class BadKnowledge(Misconfigured):
    """A knowledge file that may not be used; says where and why."""


class Wording(BaseModel):
    """An article in one language: how callers ask for it, and what they are told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Spoken
    answer: Spoken
    questions: tuple[Spoken, ...] = Field(min_length=1)
    keywords: tuple[Spoken, ...] = ()


class Article(BaseModel):
    """One matter and its answer; `version` rises with every change, so what was told can be looked up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Code
    topic: Code
    version: int = Field(ge=1)
    zh: Wording
    en: Wording

    def wording(self, language: Language) -> Wording:
        """Give the article in a language."""
        return self.zh if language == "zh" else self.en


class Topic(BaseModel):
    """A reason to call, as a digit of the menu."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Code
    digit: Digit
    zh: Spoken
    en: Spoken


class Book(BaseModel):
    """The content of a knowledge file. `ignored` are words that say nothing about the matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Code
    callback_digit: Digit
    ignored: dict[Language, tuple[str, ...]]
    topics: tuple[Topic, ...] = Field(min_length=1)
    articles: tuple[Article, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        digits = [self.callback_digit, *(topic.digit for topic in self.topics)]
        codes = [topic.code for topic in self.topics]
        _once("article id", (article.id for article in self.articles))
        _once("topic code", codes)
        _once("digit", digits)
        if OTHER not in codes:
            raise ValueError(f"topic {OTHER!r} is missing; whatever fits no topic needs it")
        for article in self.articles:
            if article.topic not in codes:
                raise ValueError(
                    f"article {article.id!r} has topic {article.topic!r}, which is not in topics"
                )
        return self


def _once(what: str, values: Iterable[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{what} {value!r} is used {count} times; it must be unique")


@dataclass(frozen=True, slots=True)
class Hit:
    """An article that answers a question; `score` 0 … 1 is the part of the question it accounts for."""

    id: str
    title: str
    answer: str
    score: float


class Knowledge:
    """The articles, ready to be searched."""

    def __init__(self, book: Book) -> None:
        self.version = book.version
        self.callback_digit = book.callback_digit
        self.topics = book.topics
        self.articles: Mapping[str, Article] = {article.id: article for article in book.articles}
        self._indexes = {
            language: _Index(self.articles.values(), language, book.ignored.get(language, ()))
            for language in ("zh", "en")
        }

    def search(self, text: str, language: Language, limit: int = 3) -> list[Hit]:
        """Give the articles that answer a question, best first; none when nothing fits well enough."""
        scores = self._indexes[language].scores(text[:_LONGEST_QUESTION])
        ranked = sorted(scores.items(), key=lambda scored: (-scored[1], scored[0]))
        return [
            Hit(id_, wording.title, wording.answer, round(score, 4))
            for id_, score in ranked[:limit]
            if score >= _ENOUGH
            for wording in (self.articles[id_].wording(language),)
        ]

    def topic_of_digit(self, digit: str) -> str:
        """Name the topic behind a digit of the menu; a digit without one is "other"."""
        return next((topic.code for topic in self.topics if topic.digit == digit), OTHER)


class _Index:
    """The documents of one language."""

    def __init__(self, articles: Iterable[Article], language: Language, ignored: Iterable[str]) -> None:
        self._terms = _Terms(ignored)
        self._counts = {article.id: self._weighted(article.wording(language)) for article in articles}
        self._lengths = {id_: sum(counts.values()) for id_, counts in self._counts.items()}
        self._mean_length = sum(self._lengths.values()) / len(self._lengths)
        self._frequency = Counter(term for counts in self._counts.values() for term in counts)

    def scores(self, text: str) -> dict[str, float]:
        """Score every document that has a term of the text: its BM25 by the highest possible and evidence."""
        asked = dict.fromkeys(self._terms.of(text))  # in order: so sums are the same in every process
        possible = sum(self._rarity(term) * (_K1 + 1) for term in asked)
        scores = {}
        for id_, counts in self._counts.items():
            norm = _K1 * (1 - _B + _B * self._lengths[id_] / self._mean_length)
            score = sum(
                self._rarity(term) * counts[term] * (_K1 + 1) / (counts[term] + norm)
                for term in asked
                if term in counts
            )
            if score:
                scores[id_] = score / (possible + _EVIDENCE)
        return scores

    def _weighted(self, wording: Wording) -> dict[str, float]:
        fields = (
            (2.0, (wording.title, *wording.questions)),
            (1.0, wording.keywords),
            (0.5, (wording.answer,)),  # also speaks of neighbouring matters
        )
        counts: dict[str, float] = defaultdict(float)
        for weight, texts in fields:
            for term in self._terms.of("\n".join(texts)):
                counts[term] += weight
        return dict(counts)

    def _rarity(self, term: str) -> float:
        """Inverse document frequency, in the form that is never negative."""
        found = self._frequency[term]
        return log(1 + (len(self._counts) - found + 0.5) / (found + 0.5))


class _Terms:
    """Cuts a text into the terms of the search."""

    def __init__(self, ignored: Iterable[str]) -> None:
        words = sorted(ignored, key=len, reverse=True)
        self._words = frozenset(words)
        self._han = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def of(self, text: str) -> list[str]:
        """Stems of Latin words, characters and pairs of Han text; without ignored ones."""
        terms: list[str] = []
        for run in _RUN.findall(unicodedata.normalize("NFKC", text).casefold()):
            if "\u3400" <= run[0] <= "\u9fff":
                for part in self._han.split(run):
                    terms += part
                    terms += map("".join, pairwise(part))
            elif run not in self._words:
                terms.append(_stem(run))
        return terms


def _stem(word: str) -> str:
    """Drop plural -s, -ing, -ed, a last e and a doubled letter; a stem need not be a word.

    Step 1 of M. Porter, "An algorithm for suffix stripping" (1980), made blunt.
    """
    if word.endswith("s") and not word.endswith(("us", "ss")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if len(stem) >= 3 and _VOWEL.search(stem):
            word = stem
    word = word.removesuffix("e")
    if word.endswith("y"):
        word = word[:-1] + "i"
    return word[:-1] if word[-2:-1] == word[-1:] else word


def load_knowledge(path: Path | None = None) -> Knowledge:
    """Read a knowledge file, ours without one; raises BadKnowledge: the file, the entry, the reason."""
    path = path or KNOWLEDGE
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        return Knowledge(Book.model_validate(raw))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadKnowledge(f"{path}: {error}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise BadKnowledge(f"{path}: {faults}") from None
