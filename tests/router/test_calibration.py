"""What a score is worth: probabilities, the error of confidence, bounds, thresholds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.classifier import calibration
from services.router.classifier.calibration import (
    NEVER,
    ONE_SIDED_95,
    PRECISION,
    Scale,
    calibrate,
    department_thresholds,
    expected_calibration_error,
    fit_scale,
    log_loss,
    probabilities,
    realised,
    safe_threshold,
    wilson_lower,
    wilson_upper,
)

HIGHEST = math.nextafter(1, 0)


def drawn(scale: Scale, texts: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels drawn with exactly the probabilities that the scale gives them."""
    dice = np.random.default_rng(seed)
    scores = dice.normal(size=(texts, 4))
    cumulated = probabilities(scores, scale).cumsum(axis=1)
    return scores, (dice.random((texts, 1)) > cumulated).sum(axis=1).clip(max=3)


def test_probabilities_are_a_softmax_with_a_floor_of_noise():
    scores = np.array([[math.log(3), 0.0]])
    assert probabilities(scores, Scale(1.0))[0] == pytest.approx([0.75, 0.25])
    assert probabilities(scores, Scale(0.5))[0] == pytest.approx([0.9, 0.1])
    assert probabilities(scores, Scale(1.0, noise=0.2))[0] == pytest.approx([0.7, 0.3])


def test_log_loss_is_the_mean_surprise():
    scores = np.array([[math.log(3), 0.0], [math.log(3), 0.0]])
    assert log_loss(scores, np.array([0, 1]), Scale(1.0)) == pytest.approx(-math.log(0.75 * 0.25) / 2)


@pytest.mark.parametrize("temperature", [0.4, 0.6, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    scores, labels = drawn(Scale(temperature), 20_000)
    found = fit_scale(scores, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.noise <= 0.005


def test_a_model_that_was_never_wrong_is_not_taken_for_infallible():
    scores = np.tile([[6.0, 0.0], [0.0, 6.0]], (100, 1))
    found = fit_scale(scores, np.tile([0, 1], 100))
    assert found.temperature == pytest.approx(10**-0.5, rel=0.01)
    assert probabilities(np.array([[0.6, 0.0]]), found).max() < 0.9  # hardly a lead


def test_wrong_labels_are_told_from_unsure_ones():
    scores, labels = drawn(Scale(0.4, noise=0.05), 20_000)
    found = fit_scale(scores, labels)
    assert found.temperature == pytest.approx(0.4, rel=0.06)
    assert found.noise == pytest.approx(0.05, abs=0.0101)
    assert log_loss(scores, labels, found) < log_loss(scores, labels, Scale(found.temperature)) - 0.01


def test_the_error_of_confidence_is_weighted_by_bin():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    correct = np.array([True, True, True, False, True, False])
    assert expected_calibration_error(confidence, correct) == pytest.approx(4 / 6 * 0.15)
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_wilson_bounds_as_in_the_book():
    # 81 of 263, two-sided 95 %: Newcombe, Two-sided confidence intervals (1998), table I
    assert wilson_lower(81, 263, z=1.959964) == pytest.approx(0.2553, abs=5e-5)
    assert wilson_upper(81, 263, z=1.959964) == pytest.approx(0.3662, abs=5e-5)
    assert (wilson_lower(0, 0), wilson_upper(0, 0)) == (0, 1)
    assert wilson_lower(10, 10) == pytest.approx(10 / (10 + ONE_SIDED_95**2))


@given(st.integers(1, 5_000), st.data())
def test_a_share_lies_between_its_bounds(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_lower(successes, trials), wilson_upper(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_it_takes_52_texts_to_trust_a_faultless_model():
    sure = np.linspace(0.5, 0.99, 52)
    assert safe_threshold(sure[1:], np.ones(51, bool)) is None
    assert safe_threshold(sure, np.ones(52, bool)) == 0.5


def test_texts_of_equal_confidence_are_trusted_together_or_not_at_all():
    confidence = np.array([0.9] * 60 + [0.8] * 60)
    assert safe_threshold(confidence, np.array([True] * 60 + [False] * 10 + [True] * 50)) == 0.9
    assert safe_threshold(confidence, np.array([False] * 10 + [True] * 50 + [True] * 60)) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=200), st.floats(0.3, 0.95))
def test_the_threshold_is_the_lowest_safe_one(texts, precision):
    confidence = np.array([at / 20 for at, _ in texts])
    correct = np.array([right for _, right in texts])
    safe = [
        at
        for at in np.unique(confidence)
        if wilson_lower(int(correct[confidence >= at].sum()), int((confidence >= at).sum())) >= precision
    ]
    assert safe_threshold(confidence, correct, precision) == (min(safe[0], HIGHEST) if safe else None)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2), st.booleans()), min_size=1, max_size=200))
def test_a_departments_threshold_is_its_own_lowest_safe_one(texts):
    confidence = np.array([at / 20 for at, _, _ in texts])
    said = np.array([department for _, department, _ in texts])
    correct = np.array([right for _, _, right in texts])
    found = department_thresholds(confidence, said, correct, least=20)
    for department in range(3):
        mine = said == department
        safe = [
            at for at in np.unique(confidence[mine]) if correct[mine & (confidence >= at)].mean() >= PRECISION
        ]
        limit = min(safe[0], HIGHEST) if safe else NEVER
        assert found.get(department) == (limit if mine.sum() >= 20 else None)


def test_a_department_that_is_wrong_when_certain_is_never_decided_for(monkeypatch):
    """A softmax reaches 1: where no limit is good enough, neither is that."""
    monkeypatch.setattr(calibration, "fit_scale", lambda *_: Scale(1.0))
    at = np.arange(1_200)
    scores = np.where(at[:, None] % 3 == np.arange(3), np.where(at % 3 == 2, 50.0, 5.0)[:, None], 0.0)
    labels = np.where(at % 30 == 2, 0, at % 3)  # of the last one's, one in ten
    assert probabilities(scores, Scale(1.0)).max() == 1
    found = calibrate(scores, labels, at // 30 % 5)
    assert found.of_department == {2: 1.0}
    assert (found.realised.decided, found.realised.precision) == (800, 1.0)


def test_a_department_that_is_right_only_when_certain_is_decided_for():
    said, certain = np.zeros(200, np.int64), np.arange(200) < 100
    confidence = np.where(certain, 1.0, 0.9)
    limit = department_thresholds(confidence, said, certain)[0]
    assert 0.9 < limit < NEVER
    assert safe_threshold(confidence, certain) == limit


def counted(correct: np.ndarray) -> tuple[int, int]:
    return int(correct.sum()), len(correct)


def wrong_about(department: int, texts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and labels as drawn, but of those given to one department one in twelve belongs elsewhere."""
    scores, labels = drawn(Scale(0.3), texts)
    dice = np.random.default_rng(7)
    confidence = probabilities(scores, Scale(0.3)).max(axis=1)
    unsure = dice.random(texts) < np.where(confidence < 0.99, 1 / 8, 1 / 50)
    taken = (scores.argmax(axis=1) == department) & unsure
    return scores, np.where(taken, (labels + 1) % 4, labels), np.arange(texts) % 5


def test_a_department_that_is_wrong_more_often_has_to_be_surer():
    scores, labels, folds = wrong_about(2, 8_000)
    found = calibrate(scores, labels, folds)
    assert found.threshold is not None
    assert all(own > found.threshold for own in found.of_department.values())
    assert found.of_department[2] > found.threshold + 0.05
    assert all(found.of_department.get(at, 0) < found.threshold + 0.05 for at in (0, 1, 3))


def test_the_bounds_hold_together_on_the_texts_of_calibration():
    """The common limit is found for what the departments' own let through: both promises are kept."""
    scores, labels, folds = wrong_about(2, 8_000)
    found = calibrate(scores, labels, folds)
    confidence, said = probabilities(scores, found.scale).max(axis=1), scores.argmax(axis=1)
    assert found.threshold is not None
    limits = np.array([found.of_department.get(at, found.threshold) for at in range(4)])
    decided, correct = confidence >= limits[said], said == labels
    assert wilson_lower(*counted(correct[decided])) >= PRECISION
    for department in range(4):
        mine = decided & (said == department)
        assert correct[mine].mean() >= PRECISION


def test_nothing_decided_has_no_precision():
    none, half = np.array([False, False]), np.array([True, False])
    assert realised(none, half).precision is None
    assert (realised(none, half).coverage, realised(half, half).precision) == (0, 1.0)


def test_calibration_judges_each_fold_by_the_others():
    scores, labels = drawn(Scale(0.4), 6_000)
    folds = np.arange(6_000) % 5
    found = calibrate(scores, labels, folds)
    assert found.scale.temperature == pytest.approx(0.4, rel=0.1)
    assert found.ece < 0.03
    assert found.threshold is not None
    assert found.realised.precision == pytest.approx(0.955, abs=0.01)
    # a fold whose labels are upside down is seen for what it is: the others' threshold holds nothing there
    wrong = np.where(folds == 4, (labels + 1) % 4, labels)
    assert calibrate(scores, wrong, folds).realised.precision < 0.9


def test_copies_are_one_witness():
    scores = np.tile([[2.0, 0.0]], (400, 1)) + np.linspace(0, 1, 400)[:, None] * [1, 0]
    labels, folds = np.zeros(400, np.int64), np.arange(400) % 5
    assert calibrate(scores, labels, folds).threshold is not None
    witnesses = np.arange(400) % 10 == 0  # 40 texts, ten copies each
    assert calibrate(scores, labels, folds, witnesses).threshold is None
