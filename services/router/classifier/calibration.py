"""What a score is worth: from scores to probabilities, and from which one on to trust them; pure.

Everything here is fitted on out-of-fold scores: those of models that had not seen the text. Arrays:
`scores` float [texts, departments], `labels` int [texts] (columns of `scores`), `folds` int [texts],
`confidence` float [texts] = the highest probability, `correct` bool [texts].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PRECISION = 0.95
"""What the lower bound of all automatic decisions' precision must reach, and the share of each department."""
ONE_SIDED_95 = 1.6448536269514722
"""The standard normal's 95 % quantile."""
LEAST_OF_DEPARTMENT = 100
"""So many texts, of which it was the most likely, give a department a limit of its own."""
NEVER = 1.0
"""A department's own limit that no confidence reaches, not even a softmax that has run into 1."""
_HIGHEST = math.nextafter(NEVER, 0)
BINS = 15
_COLDEST, _HOTTEST = -0.5, 2.0  # log10 of the temperature; colder is only what no real text is: never wrong
_NOISES = np.arange(21) / 200  # 0 … 10 %
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Scale:
    """How scores become probabilities: a `temperature` > 0, and the share of labels that are `noise`.

    p = (1 - noise) x softmax(score / temperature) + noise / departments. Where some labels are wrong, no
    text is certain: by a temperature alone, the surest come out too sure and the middle not sure enough.
    """

    temperature: float
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Realised:
    """How automatic decisions went: shares 0 … 1; `precision` is None when nothing was decided."""

    decided: int
    coverage: float
    precision: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted, and what it held on texts that it was not fitted on.

    `threshold` is None when no confidence is high enough: the model then only suggests. `of_department`
    holds the limit of each department (by its column) that needs a higher one, or `NEVER`. `ece` and
    `realised` are cross-checked: each fold was judged by what was fitted on the others.
    """

    scale: Scale
    threshold: float | None
    of_department: Mapping[int, float]
    ece: float
    realised: Realised


def probabilities(scores: Floats, scale: Scale) -> Floats:
    """Probabilities of each row, see `Scale`; each row adds up to 1."""
    raised = np.exp((scores - scores.max(axis=1, keepdims=True)) / scale.temperature)
    shares = raised / raised.sum(axis=1, keepdims=True)
    mixed: Floats = (1 - scale.noise) * shares + scale.noise / scores.shape[1]
    return mixed


def log_loss(scores: Floats, labels: Ints, scale: Scale) -> float:
    """Mean negative log-likelihood of the right department, in nats."""
    right = probabilities(scores, scale)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, 1e-15)).mean())


def fit_scale(scores: Floats, labels: Ints) -> Scale:
    """Find temperature and noise of least log loss.

    Temperature scaling is due to Guo et al., On Calibration of Modern Neural Networks (2017), §4.2: a
    golden-section search along log10(temperature), to 0.001; each time with the best noise of 0 … 10 %.
    """

    def loss(exponent: float) -> tuple[float, float]:
        right = probabilities(scores, Scale(10**exponent))[np.arange(len(labels)), labels]
        losses = [
            float(-np.log(np.maximum((1 - noise) * right + noise / scores.shape[1], 1e-15)).mean())
            for noise in _NOISES
        ]
        best = int(np.argmin(losses))
        return losses[best], float(_NOISES[best])

    low, high = _COLDEST, _HOTTEST
    while high - low > 1e-3:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    middle = (low + high) / 2
    return Scale(float(10**middle), loss(middle)[1])


def expected_calibration_error(confidence: Floats, correct: Bools) -> float:
    """Mean |confidence - share correct| over 15 bins of equal width, weighted by their texts (ECE)."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def wilson_lower(successes: int, trials: int, z: float = ONE_SIDED_95) -> float:
    """Lower bound of a share (Wilson's score interval); 0 of 0 gives 0."""
    if trials == 0:
        return 0.0
    share, square = successes / trials, z * z
    centre = share + square / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return max(0.0, (centre - spread) / (1 + square / trials))


def wilson_upper(successes: int, trials: int, z: float = ONE_SIDED_95) -> float:
    """Upper bound of a share (Wilson's score interval); 0 of 0 gives 1."""
    return 1 - wilson_lower(trials - successes, trials, z)


def safe_threshold(
    confidence: Floats, correct: Bools, precision: float = PRECISION, z: float = ONE_SIDED_95
) -> float | None:
    """Find the lowest confidence from which on the precision's one-sided lower bound is high enough, below 1.

    None when there is none, which at 95 % is always so with fewer than 52 texts. `z` 0: the precision itself.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, right = confidence[order], np.cumsum(correct[order])
    last_of_its_value = np.append(ranked[1:] < ranked[:-1], True)[: len(ranked)]
    for at in np.flatnonzero(last_of_its_value)[::-1]:
        if wilson_lower(int(right[at]), int(at) + 1, z) >= precision:
            return min(float(ranked[at]), _HIGHEST)
    return None


def realised(decided: Bools, correct: Bools) -> Realised:
    """Count what was decided, and how often that was right."""
    count = int(decided.sum())
    return Realised(
        decided=count,
        coverage=count / len(decided),
        precision=float(correct[decided].mean()) if count else None,
    )


def department_thresholds(
    confidence: Floats, said: Ints, correct: Bools, least: int = LEAST_OF_DEPARTMENT
) -> dict[int, float]:
    """Find, by department, the lowest confidence from which on it alone is right often enough; else `NEVER`.

    `said` int [texts] is each text's most likely department; those with fewer than `least` texts have no
    limit of their own. The share itself must suffice, not its bound: with a 95 % bound for each, up to 7
    points less were decided in cross-validation; the bound for all together is kept by the common limit.
    """
    found = {}
    for department in np.flatnonzero(np.bincount(said) >= least).tolist():
        mine = said == department
        limit = safe_threshold(confidence[mine], correct[mine], z=0)
        found[department] = NEVER if limit is None else limit
    return found


def calibrate(scores: Floats, labels: Ints, folds: Ints, witnesses: Bools | None = None) -> Calibration:
    """Fit scale and thresholds on all texts; judge them fold by fold, as fitted on the others.

    `witnesses` bool [texts] marks one text of each group of copies: a bound that counted copies as if
    they had spoken independently would be no bound. None: all speak for themselves.
    """
    heard = np.ones(len(labels), np.bool_) if witnesses is None else witnesses
    correct = scores.argmax(axis=1) == labels
    held_out = np.zeros(len(labels))
    decided = np.zeros(len(labels), np.bool_)
    for fold in np.unique(folds):
        here, there = folds == fold, folds != fold
        fitted = _fit(scores[there], labels[there], heard[there])
        held_out[here] = probabilities(scores[here], fitted.scale).max(axis=1)
        decided[here] = fitted.decides(held_out[here], scores[here].argmax(axis=1))
    whole = _fit(scores, labels, heard)
    return Calibration(
        scale=whole.scale,
        threshold=whole.threshold,
        of_department={} if whole.threshold is None else whole.higher(whole.threshold),
        ece=expected_calibration_error(held_out, correct),
        realised=realised(decided, correct),
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """Scale and limits, fitted together."""

    scale: Scale
    threshold: float | None
    own: Mapping[int, float]

    def decides(self, confidence: Floats, said: Ints) -> Bools:
        """Tell which texts would be decided."""
        if self.threshold is None:
            return np.zeros(len(said), np.bool_)
        return (confidence >= self.threshold) & _passed(self.own, confidence, said)

    def higher(self, threshold: float) -> dict[int, float]:
        """Keep the departments' limits that ask for more than the common one."""
        return {department: own for department, own in self.own.items() if own > threshold}


def _fit(scores: Floats, labels: Ints, heard: Bools) -> _Fit:
    """The common limit is the lowest that is safe for what the departments' own let through."""
    scale = fit_scale(scores, labels)
    confidence = probabilities(scores[heard], scale).max(axis=1)
    said = scores[heard].argmax(axis=1)
    correct = said == labels[heard]
    own = department_thresholds(confidence, said, correct)
    passed = _passed(own, confidence, said)
    return _Fit(scale, safe_threshold(confidence[passed], correct[passed]), own)


def _passed(own: Mapping[int, float], confidence: Floats, said: Ints) -> Bools:
    """Tell which texts the departments' own limits let through."""
    limits = np.array([own.get(department, 0.0) for department in said.tolist()])
    return (confidence >= limits) & (limits < NEVER)
