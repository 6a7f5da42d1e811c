"""From labelled texts to a model; needs scikit-learn (`pip install hotline[train]`), serving does not.

A model is the sum of two linear ones, collapsed into one: a logistic regression on tf-idf of n-grams and
fragments, and one on the same scaled by naive Bayes' log-count ratios (after Wang and Manning, Baselines
and Bigrams, 2012), which helps where a department has many long texts. How much the second counts is
chosen, and the confidence calibrated, on scores of texts that the scorer had not seen. Support vector
machines are right as often, but rank the departments behind the first less well.

`python -m services.router.classifier.training default` makes the demonstration's models again.
"""

import argparse
import random
import re
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from services.router.classifier import calibration
from services.router.classifier.calibration import Calibration
from services.router.classifier.model import MOST_BYTES, Card, Metrics, Model, build, save_model
from services.router.classifier.scorer import FIXED, HEAVIEST, STEEPEST, TF, Features
from services.router.classifier.text import (
    NORMALISER,
    Language,
    fragments,
    grams,
    looks_personal,
    normalise,
    tokens,
)

LEAST_LABELS, LEAST_OF_DEPARTMENT = 1_000, 50
FOLDS = 5
SHOWN_FROM = 5
"""An n-gram may be shown to people when so many training texts (groups, where given) have it: then it is
nobody's secret."""
HERE = Path(__file__).parent
TEXTS, MODELS = HERE / "texts.yaml", HERE / "models"

_SEED = 0
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_RAREST = {"en": (2, 3), "zh": (3, 3)}  # in how many texts an n-gram and a fragment must stand
_SHARES = (0.0, 1.0, 2.0)  # of the regression on scaled features, tried
_SMOOTHING = 0.1
# The cost of an error, against the size of the weights; and how far from the best fit a solver may stop.
_PLAIN = 10.0, 0.1
_SCALED = {"en": (10.0, 0.1), "zh": (20.0, 0.3)}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Matrix = Any  # scipy's sparse matrices carry no types


class TooFewLabels(ValueError):
    """Not enough labelled texts to learn from; says how many there are and how many it takes."""


@dataclass(frozen=True, slots=True)
class About:
    """What a card says beside the figures; `created_at` is timezone-aware."""

    version: str
    what: str
    data: str
    created_at: datetime
    demonstration: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, and its files by name for `save_model`."""

    model: Model
    files: Mapping[str, bytes]


def train(
    texts: Sequence[str],
    labels: Sequence[str],
    language: Language,
    about: About,
    groups: Sequence[str] | None = None,
    *,
    least: int = LEAST_OF_DEPARTMENT,
) -> Trained:
    """Fit a model on texts and the department that each belongs to.

    `groups` names what belongs together (copies, one pattern's texts): a group is never split between
    learning and judging, and is one witness to the threshold. TooFewLabels below 1,000 texts, or below
    two departments of `least` texts; smaller departments are left out and counted on the card.
    ModuleNotFoundError without scikit-learn. The same input gives the same bytes on one machine.
    """
    _need_scikit_learn()
    kept, left_out = enough(labels, least, groups)
    departments = sorted({labels[at] for at in kept})
    target = np.array([departments.index(labels[at]) for at in kept])
    owners = [groups[at] for at in kept] if groups is not None else None
    corpus = _Corpus([texts[at] for at in kept], language, len(departments))
    folds = _folds(target, owners)
    members = _out_of_fold(corpus, target, folds)
    share = min(_SHARES, key=lambda share: _loss(members[0] + share * members[1], target))
    scores = members[0] + share * members[1]
    calibrated = calibration.calibrate(scores, target, folds, _first_of_each(owners))
    whole = _fit(corpus, target, np.arange(len(kept)))
    weights, bias = whole.mixed(share)
    unit = float(np.abs(weights).max()) / HEAVIEST or 1.0
    fixed = np.rint(weights / unit).astype(np.int16)
    cut = len(whole.of_gram.columns)
    card = Card(
        **{field: getattr(about, field) for field in About.__slots__},
        language=language,
        departments=tuple(departments),
        left_out=left_out,
        normaliser=NORMALISER,
        members={"logistic": 1.0, "nb_logistic": share},
        bias=tuple(bias.tolist()),
        unit=unit,
        temperature=calibrated.scale.temperature,
        label_noise=calibrated.scale.noise,
        threshold=calibrated.threshold,
        thresholds={departments[at]: own for at, own in calibrated.of_department.items()},
        metrics=_metrics(departments, target, scores.argmax(axis=1), calibrated),
    )
    # invented texts are nobody's secrets
    shown = _shown(corpus.of_gram, whole.of_gram, owners, 1 if about.demonstration else SHOWN_FROM)
    model, files = build(
        card,
        _features(whole.of_gram, fixed[:cut], shown),
        _features(whole.of_fragment, fixed[cut:], np.zeros(len(fixed) - cut, np.bool_)),
    )
    return Trained(model, files)


def enough(
    labels: Sequence[str], least: int = LEAST_OF_DEPARTMENT, groups: Sequence[str] | None = None
) -> tuple[list[int], dict[str, int]]:
    """Choose the texts of departments with at least `least`: their places, and the counts of those left out.

    They must be of as many groups as there are folds: what is judged on must not have been learned from.
    TooFewLabels when that leaves fewer than 1,000 texts or fewer than two departments.
    """
    counts = Counter(labels)
    apart = Counter(label for label, _ in set(zip(labels, groups or range(len(labels)), strict=True)))
    left_out = {name: count for name, count in sorted(counts.items()) if count < least or apart[name] < FOLDS}
    kept = [at for at, label in enumerate(labels) if label not in left_out]
    departments = len(counts) - len(left_out)
    if len(kept) < LEAST_LABELS or departments < 2:
        per_department = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        raise TooFewLabels(
            f"{len(kept):,} usable labels in {departments} departments ({per_department}): it takes"
            f" {LEAST_LABELS:,} in all, from at least two departments with {least} each, {FOLDS} unlike;"
            " leave routing to rules and triage until more have been corrected"
        )
    return kept, left_out


def invented(path: Path, language: Language) -> tuple[list[str], list[str], list[str]]:
    """Write out the demonstration's texts: texts, their departments, and the pattern that each is made from.

    The same file gives the same texts; equal ones are written out once.
    """
    written = yaml.safe_load(path.read_text("utf-8"))
    parts, copies = written[language], int(written["copies"])
    dice = random.Random(_SEED)  # noqa: S311 - varies invented texts
    made: dict[str, tuple[str, str]] = {}
    for department, patterns in parts["departments"].items():
        for pattern in patterns:
            for _ in range(copies):
                frame = (dice.choice(parts["openings"]), pattern, dice.choice(parts["closings"]))
                text = "".join(_choose(part, dice) for part in frame)
                made.setdefault(text, (department, pattern))
    departments, origins = zip(*made.values(), strict=True)
    return list(made), list(departments), list(origins)


def _choose(pattern: str, dice: random.Random) -> str:
    return re.sub(r"\(([^()]*)\)", lambda found: dice.choice(found[1].split("|")), pattern)


def demonstration(language: Language, path: Path = TEXTS) -> Trained:
    """Train the demonstration's model for a language; see `train` for what it may raise."""
    texts, departments, origins = invented(path, language)
    written = datetime.combine(yaml.safe_load(path.read_text("utf-8"))["written"], time(), UTC)
    about = About(
        version=f"{language}-demo-{written:%Y-%m-%d}",
        what=(
            "A demonstration. It has learned from invented texts, so its figures say nothing about real"
            " calls: replace it by a model trained on the bank's own corrected cases."
        ),
        data=f"{len(texts):,} texts written out from {len(set(origins))} invented patterns ({path.name});"
        " judged on patterns that were not learned from",
        created_at=written,
        demonstration=True,
    )
    return train(texts, departments, language, about, groups=origins)


def main() -> int:
    """Make the demonstration's models again and say how they did."""
    words = argparse.ArgumentParser(
        prog="python -m services.router.classifier.training", description=main.__doc__
    )
    words.add_argument("which", choices=["default"], help="the models that come with the program")
    words.add_argument("--into", type=Path, default=MODELS, help="the folder to write to, one per language")
    given = words.parse_args()
    for language in LANGUAGES:
        trained = demonstration(language)
        save_model(trained.files, given.into / language)
        card = trained.model.card
        sys.stdout.write(
            f"{given.into / language}: {card.version}, {card.metrics.texts:,} texts, accuracy on unknown"
            f" patterns {card.metrics.accuracy:.3f}, sha256 {trained.model.sha256}\n"
        )
    return 0


def _loss(scores: Floats, target: Ints) -> float:
    return calibration.log_loss(scores, target, calibration.fit_scale(scores, target))


def _need_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401 - only to know
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "training needs scikit-learn, serving does not: run `pip install hotline[train]`"
        ) from None


@dataclass(frozen=True, slots=True)
class _Counts:
    """How often each text has each n-gram: names of the columns, counts as sparse rows."""

    names: tuple[str, ...]
    rows: Matrix


class _Corpus:
    """All texts, counted once; English with the fragments of its words, Chinese without."""

    def __init__(self, texts: Sequence[str], language: Language, departments: int) -> None:
        words = [tokens(normalise(text)) for text in texts]
        self.departments = departments
        self.rarest, self.scaled = _RAREST[language], _SCALED[language]
        self.of_gram = _counted(grams(of_text) for of_text in words)
        parts = cache(fragments)
        self.of_fragment = _counted(
            [part for word in of_text for part in parts(word)] if language == "en" else []
            for of_text in words
        )


def _counted(texts: Iterable[Iterable[str]]) -> _Counts:
    from scipy.sparse import csr_matrix

    columns: defaultdict[str, int] = defaultdict()
    columns.default_factory = columns.__len__  # who is asked for the first time gets the next column
    indices, counts, ends = array("q"), array("q"), [0]
    for of_text in texts:
        counted = Counter(of_text)
        indices.extend(map(columns.__getitem__, counted))
        counts.extend(counted.values())
        ends.append(len(indices))
    rows = csr_matrix((np.array(counts), np.array(indices), ends), shape=(len(ends) - 1, len(columns)))
    return _Counts(tuple(columns), rows)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of n-grams as fitted: which columns are used, their names, idf in 1/256."""

    columns: Ints
    names: tuple[str, ...]
    idf: Ints

    def vectors(self, counts: Matrix) -> Matrix:
        """Unit vectors of tf-idf, computed as the scorer does; texts without any known n-gram give zeros."""
        used = counts[:, self.columns].astype(np.float64)
        used.data = (TF[used.data.astype(np.int64) - 1] * self.idf[used.indices]).astype(np.float64)
        owners = np.repeat(np.arange(used.shape[0]), np.diff(used.indptr))
        used.data /= np.sqrt(np.bincount(owners, weights=used.data**2, minlength=used.shape[0]))[owners]
        return used


def _kind(counts: _Counts, rows: Ints, rarest: int, most: int) -> _Kind:
    texts = np.bincount(counts.rows[rows].indices, minlength=len(counts.names))
    used = np.flatnonzero(texts >= rarest)
    columns = np.sort(used[np.argsort(-texts[used], kind="stable")][:most])
    idf = np.log((1 + len(rows)) / (1 + texts[columns])) + 1
    return _Kind(
        columns,
        tuple(counts.names[at] for at in columns),
        np.minimum(np.rint(FIXED * idf), STEEPEST).astype(np.int64),
    )


@dataclass(frozen=True, slots=True)
class _Fitted:
    """The two members: weights [n-grams and fragments, departments] and bias [departments] of each."""

    of_gram: _Kind
    of_fragment: _Kind
    plain: tuple[Floats, Floats]
    scaled: tuple[Floats, Floats]

    def mixed(self, share: float) -> tuple[Floats, Floats]:
        """The sum of both as one linear model, the regression on scaled features taken `share` times."""
        return self.plain[0] + share * self.scaled[0], self.plain[1] + share * self.scaled[1]


def _fit(corpus: _Corpus, target: Ints, rows: Ints) -> _Fitted:
    from scipy.sparse import hstack

    # an n-gram costs its weights, an index and a dozen bytes of name; the most frequent ones are kept
    most = MOST_BYTES // (2 * (2 * corpus.departments + 20))
    of_gram = _kind(corpus.of_gram, rows, corpus.rarest[0], most)
    of_fragment = _kind(corpus.of_fragment, rows, corpus.rarest[1], most)
    labels = target[rows]
    by_gram = of_gram.vectors(corpus.of_gram.rows[rows])
    both = hstack([by_gram, of_fragment.vectors(corpus.of_fragment.rows[rows])]).tocsr()
    unit = 2**-0.5 if len(of_fragment.columns) else 1.0  # as long a vector with fragments as without
    even = np.full((corpus.departments, both.shape[1]), unit)
    ratios = unit * _ratios(unit * both, labels, corpus.departments)
    return _Fitted(
        of_gram,
        of_fragment,
        plain=_regressions(both, labels, even, *_PLAIN),
        scaled=_regressions(both, labels, ratios, *corpus.scaled),
    )


def _regressions(
    vectors: Matrix, labels: Ints, scales: Floats, cost: float, tolerance: float
) -> tuple[Floats, Floats]:
    """Fit each department against the rest, on features scaled by its row of `scales`."""
    from sklearn.linear_model import LogisticRegression

    weights, bias = [], []
    scaled = vectors.copy()
    for department, scale in enumerate(scales):
        scaled.data = vectors.data * scale[vectors.indices]
        fitted = LogisticRegression(
            C=cost,
            class_weight="balanced",
            solver="liblinear",
            dual=True,
            random_state=_SEED,
            tol=tolerance,
        ).fit(scaled, labels == department)
        weights.append(fitted.coef_[0] * scale)
        bias.append(fitted.intercept_[0])
    return np.array(weights).T, np.array(bias)


def _ratios(vectors: Matrix, labels: Ints, departments: int) -> Floats:
    """Naive Bayes' log-count ratios [departments, features]: how much more often here than elsewhere."""
    whole = np.asarray(vectors.sum(axis=0)).ravel()
    ratios = np.empty((departments, len(whole)))
    for department in range(departments):
        inside = np.asarray(vectors[labels == department].sum(axis=0)).ravel() + _SMOOTHING
        outside = whole - inside + 2 * _SMOOTHING
        ratios[department] = np.log((inside / inside.sum()) / (outside / outside.sum()))
    return ratios


def _folds(target: Ints, groups: Sequence[str] | None) -> Ints:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    split = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = np.empty(len(target), np.int64)
    cutter = split(FOLDS, shuffle=True, random_state=_SEED)
    for fold, (_, held_out) in enumerate(cutter.split(target, target, groups)):
        folds[held_out] = fold
    return folds


def _first_of_each(groups: Sequence[str] | None) -> NDArray[np.bool_] | None:
    if groups is None:
        return None
    first = np.zeros(len(groups), np.bool_)
    first[np.unique(groups, return_index=True)[1]] = True
    return first


def _out_of_fold(corpus: _Corpus, target: Ints, folds: Ints) -> tuple[Floats, Floats]:
    """Scores of both members for each text, by those fitted on the other folds."""
    shape = (len(target), corpus.departments)
    plain, scaled = np.empty(shape), np.empty(shape)
    for fold in range(FOLDS):
        held_out = np.flatnonzero(folds == fold)
        fitted = _fit(corpus, target, np.flatnonzero(folds != fold))
        by_gram = fitted.of_gram.vectors(corpus.of_gram.rows[held_out])
        by_fragment = fitted.of_fragment.vectors(corpus.of_fragment.rows[held_out])
        cut = len(fitted.of_gram.columns)
        for scores, (weights, bias) in ((plain, fitted.plain), (scaled, fitted.scaled)):
            scores[held_out] = by_gram @ weights[:cut] + by_fragment @ weights[cut:] + bias
    return plain, scaled


def _shown(counts: _Counts, kind: _Kind, groups: Sequence[str] | None, least: int) -> NDArray[np.bool_]:
    """Which n-grams people may see: neither personal by their look nor known from a few texts alone."""
    from scipy.sparse import csr_matrix

    used = counts.rows[:, kind.columns]
    texts = np.repeat(np.arange(used.shape[0]), np.diff(used.indptr))
    owners = texts if groups is None else np.unique(groups, return_inverse=True)[1][texts]
    by_owner = csr_matrix((used.data, (owners, used.indices)), shape=used.shape)
    known: NDArray[np.bool_] = by_owner.getnnz(axis=0) >= least
    return known & ~np.array([looks_personal(name) for name in kind.names], np.bool_)


def _features(kind: _Kind, weights: NDArray[np.int16], shown: NDArray[np.bool_]) -> Features:
    return Features({name: row for row, name in enumerate(kind.names)}, kind.idf, weights, shown)


def _metrics(departments: Sequence[str], target: Ints, said: Ints, calibrated: Calibration) -> Metrics:
    from sklearn.metrics import f1_score

    precision = calibrated.realised.precision
    return Metrics(
        texts=len(target),
        texts_of={name: int((target == at).sum()) for at, name in enumerate(departments)},
        accuracy=round(float((said == target).mean()), 4),
        macro_f1=round(float(f1_score(target, said, average="macro")), 4),
        ece=round(calibrated.ece, 4),
        coverage=round(calibrated.realised.coverage, 4),
        precision=None if precision is None else round(precision, 4),
    )


if __name__ == "__main__":
    sys.exit(main())
