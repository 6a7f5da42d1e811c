"""A text's score for each department by a linear model, how sure that is, and what it saw; numpy only.

Weights, tf and idf are whole numbers (fixed point), so small that every sum of products is exact in a
64-bit float: a text has at most 4 x 16,000 n-grams, and each adds at most 2^8 (one occurrence) x 2^14
(`STEEPEST`) x 2^15 (`HEAVIEST`), together less than 2^53; counting one n-gram twice adds less than two
do. So a score does not depend on the order of summation nor on the library that sums.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.router.classifier.calibration import NEVER, Scale
from services.router.classifier.text import (
    MOST_CHARACTERS,
    fragments,
    grams,
    normalise,
    shown_as,
    tokens,
)

Abstention = Literal["too_short", "unknown_words", "low_confidence", "low_margin"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIXED = 256
"""One, in fixed point: tf and idf are counted in 1/256."""
STEEPEST = 64 * FIXED
"""The largest idf."""
HEAVIEST = 2**15 - 1
"""The largest weight."""
_NONE = np.empty(0, np.int64)
TF = np.rint(FIXED * (1 + np.log(np.arange(1, 4 * MOST_CHARACTERS)))).astype(np.int64)
"""What an n-gram's count of 1, 2, … is worth, in 1/256."""


@dataclass(frozen=True, slots=True)
class Features:
    """One kind of n-grams that a model knows: `vocabulary` maps each to its row.

    `idf` is int [n] in 1/256, `weights` int16 [n, departments], `shown` bool [n]: may people see it?
    """

    vocabulary: dict[str, int]
    idf: Ints
    weights: NDArray[np.int16]
    shown: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on a score decides: shares 0 … 1; `threshold` None = never, `tokens` = shortest text.

    `of_department` holds the thresholds of departments that need a higher one than the others; 1 = never.
    """

    threshold: float | None
    margin: float = 0.15
    known: float = 0.3
    tokens: int = 3
    of_department: Mapping[str, float] = field(default_factory=dict)

    def threshold_of(self, department: str) -> float | None:
        """The least confidence at which a department is decided for; None = never."""
        own = self.of_department.get(department, 0.0)
        return None if self.threshold is None or own >= NEVER else max(self.threshold, own)


@dataclass(frozen=True, slots=True)
class Evidence:
    """An n-gram of the text and what it added to a department's score, in units of the score."""

    gram: str
    weight: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a text has of one kind of n-grams: rows, how often each, tf x idf, and the vector's length."""

    rows: Ints
    counts: Ints
    values: Ints
    length: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """A text as the model sees it.

    `names` are its distinct tokens, then its pairs; `known` the places among them of those in `grams`;
    `parts` the rows of all tokens' fragments, one token after the other, and `part_of` each one's token.
    """

    names: tuple[str, ...]
    counts: Ints
    known: Ints
    grams: _Seen
    parts: Ints
    part_of: Ints
    fragments: _Seen


@dataclass(frozen=True, slots=True)
class Scored:
    """A text's scores; `known` is the share of its tokens and pairs that the model knows, 0 … 1.

    `ranked` holds each department with its probability (6 decimals), the most likely first.
    """

    scores: dict[str, float]
    ranked: tuple[tuple[str, float], ...]
    known: float
    tokens: int
    _reading: _Reading = field(repr=False, compare=False)
    _scorer: "Scorer" = field(repr=False, compare=False)

    @property
    def department(self) -> str:
        """The most likely department."""
        return self.ranked[0][0]

    @property
    def confidence(self) -> float:
        """The most likely department's probability."""
        return self.ranked[0][1]

    @property
    def margin(self) -> float:
        """How far the most likely department is ahead of the next, as a difference of probabilities."""
        return round(self.ranked[0][1] - self.ranked[1][1], 6)

    def abstention(self, limits: Limits) -> Abstention | None:
        """Say why this score is too weak to decide; None: it decides."""
        if self.tokens < limits.tokens:
            return "too_short"
        if self.known < limits.known:
            return "unknown_words"
        threshold = limits.threshold_of(self.department)
        if threshold is None or self.confidence < threshold:
            return "low_confidence"
        return "low_margin" if self.margin < limits.margin else None

    def evidence(self, department: str, most: int = 5) -> tuple[Evidence, ...]:
        """Name what spoke most for a department, strongest first; ValueError for an unknown department.

        Only n-grams of the model that may be shown to people: never a customer's own.
        """
        return self._scorer.evidence(self._reading, department, most)

    def contributions(self, department: str) -> dict[str, float]:
        """Take a department's score apart, exactly: with the bias, they add up to it. Not masked.

        A fragment's part is given to the tokens in which it stands, by how often it stands there, so
        the keys are the text's tokens and pairs. ValueError for an unknown department.
        """
        added = self._scorer.contributions(self._reading, department)
        return dict(zip(self._reading.names, added.tolist(), strict=True))


class Scorer:
    """Scores texts; `bias` in units of the score, `unit` the worth of weight 1 in it.

    score = bias + unit x Σ over the two kinds of Σ over n-grams of weight x tf x idf / ‖tf x idf‖,
    tf = 1 + ln(count) (sublinear tf-idf with cosine normalisation, as in Manning et al., Introduction
    to Information Retrieval, §6.4).
    """

    def __init__(
        self,
        departments: Sequence[str],
        by_gram: Features,
        by_fragment: Features,
        *,
        bias: Sequence[float],
        unit: float,
        scale: Scale,
    ) -> None:
        self.departments = tuple(departments)
        self.by_gram, self.by_fragment = by_gram, by_fragment
        self.bias = tuple(bias)
        self._unit, self._scale = unit, scale
        self._parts_of: dict[str, Ints] = {}

    def score(self, text: str) -> Scored:
        """Score a text; any text will do, the empty one too (it has the bias alone)."""
        words = tokens(normalise(text))
        reading = self._read(words)
        sums = self._sum(self.by_gram, reading.grams) + self._sum(self.by_fragment, reading.fragments)
        scores = (np.array(self.bias) + sums).tolist()
        return Scored(
            scores=dict(zip(self.departments, scores, strict=True)),
            ranked=self._ranked(scores),
            known=round(int(reading.grams.counts.sum()) / max(int(reading.counts.sum()), 1), 6),
            tokens=len(words),
            _reading=reading,
            _scorer=self,
        )

    def _read(self, words: Sequence[str]) -> _Reading:
        counted = Counter(grams(words))
        counts = np.fromiter(counted.values(), np.int64, len(counted))
        found_or_not = map(self.by_gram.vocabulary.get, counted, repeat(-1))
        rows = np.fromiter(found_or_not, np.int64, len(counted))
        known = (rows >= 0).nonzero()[0]
        parts, part_of = self._parts(dict.fromkeys(words))
        often = np.bincount(parts, weights=counts[part_of], minlength=len(self.by_fragment.idf))
        found = (often > 0).nonzero()[0]
        return _Reading(
            names=tuple(counted),
            counts=counts,
            known=known,
            grams=_seen(self.by_gram, rows[known], counts[known]),
            parts=parts,
            part_of=part_of,
            fragments=_seen(self.by_fragment, found, often[found].astype(np.int64)),
        )

    def _parts(self, words: Iterable[str]) -> tuple[Ints, Ints]:
        """Look up the fragments of each word, one word after the other; and of which word each is."""
        if not self.by_fragment.vocabulary:
            return _NONE, _NONE
        remembered = self._parts_of
        rows = [remembered[word] if word in remembered else self._parts_of_word(word) for word in words]
        sizes = list(map(len, rows))
        return np.concatenate([*rows, _NONE]), np.arange(len(rows)).repeat(sizes)

    def _parts_of_word(self, word: str) -> Ints:
        """Remembered for the words of the model: those are so many, and none is a customer's own."""
        found = map(self.by_fragment.vocabulary.get, fragments(word))
        rows = np.array([row for row in found if row is not None], np.int64)
        if word in self.by_gram.vocabulary:
            self._parts_of[word] = rows
        return rows

    def _sum(self, of: Features, seen: _Seen) -> Floats:
        if not len(seen.rows):
            return np.zeros(len(self.departments))
        summed: Floats = seen.values.astype(np.float64).dot(of.weights[seen.rows])
        return summed * self._unit / seen.length

    def _ranked(self, scores: Sequence[float]) -> tuple[tuple[str, float], ...]:
        highest, noise = max(scores), self._scale.noise
        raised = [math.exp((score - highest) / self._scale.temperature) for score in scores]
        whole = math.fsum(raised)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return tuple(
            (self.departments[at], round((1 - noise) * raised[at] / whole + noise / len(scores), 6))
            for at in order
        )

    def contributions(self, reading: _Reading, department: str) -> Floats:
        """What each of a reading's names adds to a department's score; see `Scored.contributions`."""
        added = np.zeros(len(reading.names))
        added[reading.known] = self._each(self.by_gram, reading.grams, department)
        if len(reading.parts):
            seen = reading.fragments
            each = self._each(self.by_fragment, seen, department) / seen.counts
            places = seen.rows.searchsorted(reading.parts)
            weights = each[places] * reading.counts[reading.part_of]
            of_words = np.bincount(reading.part_of, weights=weights)
            added[: len(of_words)] += of_words
        return added

    def _each(self, of: Features, seen: _Seen, department: str) -> Floats:
        if department not in self.departments:
            raise ValueError(
                f"no department {department!r} in this model: it knows {', '.join(self.departments)}"
            )
        weights = of.weights[seen.rows, self.departments.index(department)]
        added: Floats = seen.values * weights * (self._unit / seen.length)
        return added

    def evidence(self, reading: _Reading, department: str, most: int) -> tuple[Evidence, ...]:
        """See `Scored.evidence`."""
        added = self.contributions(reading, department)[reading.known].round(6)
        spoke = (self.by_gram.shown[reading.grams.rows] & (added > 0)).nonzero()[0]
        strongest = spoke[(-added[spoke]).argsort(kind="stable")[:most]]
        return tuple(
            Evidence(shown_as(reading.names[reading.known[at]]), float(added[at])) for at in strongest
        )


def _seen(of: Features, rows: Ints, counts: Ints) -> _Seen:
    values = TF[counts - 1] * of.idf[rows]
    return _Seen(rows, counts, values, math.sqrt(int(values.dot(values))) or 1.0)
