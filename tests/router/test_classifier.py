"""The classifier: how texts are read, that scores are exact, and which models are refused."""

import hashlib
import io
import json
import math
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.classifier import model as models
from services.router.classifier.calibration import Scale
from services.router.classifier.model import (
    CARD,
    SHOWN,
    VOCABULARY,
    WEIGHTS,
    BadModel,
    Card,
    Metrics,
    build,
    load_model,
    load_models,
    save_model,
)
from services.router.classifier.scorer import FIXED, HEAVIEST, STEEPEST, TF, Features, Limits, Scorer
from services.router.classifier.text import (
    MOST_CHARACTERS,
    fragments,
    grams,
    language_of,
    looks_personal,
    normalise,
    shown_as,
    tokens,
)

SHIPPED = Path(models.__file__).parent / "models"
DEMO_CASES = Path("cli/demo_cases.yaml")
WORDS = ["card", "loan", "fee", "app", "late", "卡", "贷", "款", "0"]
TEXTS = st.lists(st.sampled_from([*WORDS, "unknownword", "cards"]), max_size=30).map(" ".join)


def features(names, idf, weights, shown=None) -> Features:
    return Features(
        {name: row for row, name in enumerate(names)},
        np.array(idf, np.int64),
        np.array(weights, np.int16),
        np.array(shown if shown is not None else [True] * len(names), np.bool_),
    )


def random_features(seed: int, departments: int = 3) -> tuple[Features, Features]:
    """Vocabulary of all words, pairs and fragments that TEXTS can have, weighted at random."""
    dice = random.Random(seed)
    pairs = [f"{one} {two}" for one in WORDS for two in WORDS]
    parts = sorted({part for word in WORDS for part in fragments(word)})

    def of(names):
        return features(
            names,
            [dice.randint(FIXED, 12 * FIXED) for _ in names],
            [[dice.randint(-HEAVIEST, HEAVIEST) for _ in range(departments)] for _ in names],
        )

    return of(WORDS + pairs), of(parts)


def scorer(by_gram, by_fragment=None, departments=("cards", "lending"), scale=None, unit=0.001, bias=None):
    return Scorer(
        departments,
        by_gram,
        by_fragment or features([], [], np.empty((0, len(departments)))),
        bias=bias or [0.0] * len(departments),
        unit=unit,
        scale=scale or Scale(1.0),
    )


# --- texts


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("My  CARD\nwas\tdeclined", "my card was declined"),
        ("ＡＴＭ吞卡，①张", "atm吞卡,0张"),
        ("card 6222 0200-1234.5678 blocked", "card 0 blocked"),
        ("on 03/12/2024 I paid $1,250.00", "on 0 i paid $0"),
        ("call +86 139-1000 5000 or me@bank.example", "call +0 or 0"),
        ("我的邮箱是a.b@c.example吗", "我的邮箱是0吗"),
        ("account xxxx1234, XX/XX/2020, ****", "account 0"),
        ("don\u2019t", "don't"),
        ("exxon and xx", "exxon and 0"),
        ("", ""),
    ],
)
def test_a_text_is_folded_and_its_numbers_are_gone(written, read):
    assert normalise(written) == read


@given(st.text(max_size=200))
def test_no_digit_survives_but_the_mask(text):
    read = normalise(text)
    assert {char for char in read if char.isdecimal()} <= {"0"}
    assert read == read.strip()
    assert "  " not in read


def test_long_texts_are_cut_even_when_folding_makes_them_longer():
    assert (
        len(normalise("\ufdfa " * MOST_CHARACTERS)) <= MOST_CHARACTERS
    )  # one character, eighteen when folded


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("My card was swallowed", "en"),
        ("信用卡年费", "zh"),
        ("我的APP闪退", "zh"),
        ("app login 失败", "en"),
        ("Карта не работает", None),
        ("카드", None),
        ("12345 !?", None),
        ("", None),
    ],
)
def test_the_language_is_told_by_its_letters(text, language):
    assert language_of(text) == language


def test_words_and_han_characters_are_tokens():
    assert tokens("don't 吞卡,atm_0") == ["don't", "吞", "卡", "atm", "0"]
    assert list(grams(["my", "card", "my"])) == ["my", "card", "my", "my card", "card my"]
    assert list(grams([])) == []


def test_fragments_know_the_edges_of_a_word():
    assert Counter(fragments("fee")) == Counter(
        [" f", "fe", "ee", "e ", " fe", "fee", "ee ", " fee", "fee ", " fee "]
    )
    assert fragments("a") == [" a", "a ", " a "]


def test_what_people_see_of_an_ngram():
    assert shown_as("年 费") == "年费"
    assert shown_as("card fee") == "card fee"
    hidden = ["0", "card 0", "mr smith", "my name", "王 先", "先 生", "老 李", "a@b"]
    assert [gram for gram in hidden if not looks_personal(gram)] == []
    assert [gram for gram in ["annual fee", "年 费", "drive", "missed"] if looks_personal(gram)] == []


# --- scores


def test_a_score_is_the_textbook_sum():
    by_gram = features(
        ["card", "fee", "card fee"], [2 * FIXED, FIXED, 3 * FIXED], [[100, -50], [10, 20], [5, 7]]
    )
    scored = scorer(by_gram, bias=[0.25, -0.5], unit=0.01).score("Card fee, card?")
    twice = round((1 + math.log(2)) * FIXED) / FIXED  # "card" stands there twice
    vector = {"card": twice * 2, "fee": 1.0, "card fee": 3.0}
    length = math.sqrt(sum(value**2 for value in vector.values()))
    cards = (vector["card"] * 100 + 10 + 3 * 5) * 0.01 / length + 0.25
    lending = (vector["card"] * -50 + 20 + 3 * 7) * 0.01 / length - 0.5
    assert scored.scores == pytest.approx({"cards": cards, "lending": lending})
    sure = 1 / (1 + math.exp(lending - cards))
    assert scored.ranked == (("cards", round(sure, 6)), ("lending", round(1 - sure, 6)))
    assert scored.margin == pytest.approx(2 * sure - 1, abs=2e-6)
    assert scored.known == pytest.approx(4 / 5)  # "fee card" is not known
    assert scored.tokens == 3


def test_temperature_and_noise_soften_a_score():
    by_gram = features(["card"], [FIXED], [[1_000, 0]])
    sure = scorer(by_gram, scale=Scale(0.5)).score("card").confidence
    noisy = scorer(by_gram, scale=Scale(0.5, noise=0.1)).score("card").confidence
    assert sure == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    assert noisy == pytest.approx(0.9 * sure + 0.05, abs=2e-6)


@given(TEXTS, st.integers(0, 50))
def test_contributions_add_up_to_the_score(text, seed):
    departments = ("cards", "lending", "wealth")
    bias = [0.1, -0.2, 0.3]
    scored = scorer(*random_features(seed), departments, bias=bias, unit=1e-4).score(text)
    for department, at in zip(departments, bias, strict=True):
        added = math.fsum(scored.contributions(department).values())
        assert added + at == pytest.approx(scored.scores[department], abs=1e-9)


@given(TEXTS, st.integers(0, 50), st.randoms(use_true_random=False))
def test_the_order_of_summation_changes_nothing(text, seed, dice):
    by_gram, by_fragment = random_features(seed)

    def shuffled(of: Features) -> Features:
        names = list(of.vocabulary)
        dice.shuffle(names)
        rows = [of.vocabulary[name] for name in names]
        return features(names, of.idf[rows], of.weights[rows], of.shown[rows])

    departments = ("cards", "lending", "wealth")
    one = scorer(by_gram, by_fragment, departments).score(text)
    other = scorer(shuffled(by_gram), shuffled(by_fragment), departments).score(text)
    assert (one.scores, one.ranked, one.known) == (other.scores, other.ranked, other.known)  # to the last bit
    for department in departments:
        assert [found.weight for found in one.evidence(department)] == pytest.approx(
            [found.weight for found in other.evidence(department)], abs=1e-6
        )


def test_the_largest_sum_is_exact_in_a_float():
    ngrams = 4 * MOST_CHARACTERS
    assert ngrams * FIXED * STEEPEST * HEAVIEST < 2**53
    assert len(TF) >= ngrams - 1
    assert all(
        TF[count - 1] <= FIXED * count for count in range(1, 1_000)
    )  # many of one weigh less than many
    exact = FIXED * (1 + np.log(np.arange(1, ngrams)))
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-9  # far from a tie: every machine rounds alike


def test_the_same_text_scores_the_same_again():
    one, other = scorer(*random_features(3), ("a", "b", "c")), scorer(*random_features(3), ("a", "b", "c"))
    first = one.score("card loan fee unknownword 卡")
    assert one.score("card loan fee unknownword 卡") == first  # words are remembered by now
    assert other.score("card loan fee unknownword 卡") == first


@pytest.mark.parametrize("text", ["", "   ", "!?", "unknownword", "\x00\ud7ff", "卡" * 20_000, "a " * 20_000])
def test_any_text_has_a_score(text):
    scored = scorer(*random_features(1), ("a", "b", "c"), bias=[0.0, 1.0, 0.5]).score(text)
    assert sum(share for _, share in scored.ranked) == pytest.approx(1, abs=3e-6)
    assert 0 <= scored.known <= 1


def test_a_text_without_words_has_the_bias_alone():
    scored = scorer(*random_features(1), ("a", "b", "c"), bias=[0.0, 1.0, 0.5]).score("!?")
    assert scored.scores == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert scored.known == 0
    assert scored.evidence("b") == ()


def test_a_draw_goes_to_the_first_department():
    by_gram = features(["card"], [FIXED], [[5, 5]])
    assert scorer(by_gram).score("card").ranked == (("cards", 0.5), ("lending", 0.5))


@pytest.mark.parametrize(
    ("text", "limits", "reason"),
    [
        ("card card card", Limits(0.6), None),
        ("card card card", Limits(0.99), "low_confidence"),
        ("card card card", Limits(None), "low_confidence"),
        ("card card card", Limits(0.6, margin=0.9), "low_margin"),
        ("card card card", Limits(0.6, of_department={"cards": 0.99}), "low_confidence"),
        ("card card card", Limits(0.6, of_department={"lending": 0.99}), None),
        ("card card", Limits(0.6), "too_short"),
        ("card nobody knows these words", Limits(0.0), "unknown_words"),
    ],
)
def test_why_a_score_does_not_decide(text, limits, reason):
    by_gram = features(["card", "card card"], [FIXED, FIXED], [[1_000, 0], [0, 0]])
    assert scorer(by_gram, scale=Scale(0.5)).score(text).abstention(limits) == reason


def test_evidence_is_the_strongest_that_may_be_shown():
    names = ["card", "fee", "secret", "loan", "card fee"]
    by_gram = features(
        names,
        [FIXED] * 5,
        [[100, 0], [300, 0], [900, 0], [-50, 0], [200, 0]],
        [True, True, False, True, True],
    )
    scored = scorer(by_gram).score("card fee secret loan")
    shown = scored.evidence("cards")
    assert [found.gram for found in shown] == ["fee", "card fee", "card"]
    assert [found.weight for found in scored.evidence("cards", most=1)] == [shown[0].weight]
    assert shown[0].weight == pytest.approx(scored.contributions("cards")["fee"], abs=1e-6)
    assert scored.evidence("lending") == ()


def test_fragments_speak_through_known_words_only():
    by_gram = features(["card"], [FIXED], [[0, 0]])
    by_fragment = features([" ca", "rd "], [FIXED, FIXED], [[100, 0], [100, 0]])
    scored = scorer(by_gram, by_fragment).score("card carters")
    assert scored.contributions("cards")["carters"] > 0
    assert [found.gram for found in scored.evidence("cards")] == ["card"]


def test_an_unknown_department_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no department 'vault' .* cards, lending"):
        scorer(features(["card"], [FIXED], [[1, 0]])).score("card").evidence("vault")


# --- models


def card(**changes) -> Card:
    given = {
        "version": "en-1",
        "what": "a test",
        "data": "none",
        "demonstration": False,
        "created_at": datetime(2026, 11, 25, tzinfo=UTC),
        "language": "en",
        "departments": ("cards", "lending"),
        "normaliser": 1,
        "members": {"logistic": 1.0},
        "bias": (0.1, -0.1),
        "unit": 0.001,
        "temperature": 0.5,
        "label_noise": 0.01,
        "threshold": 0.7,
        "metrics": measured(),
    }
    return Card.model_validate(given | changes)


def measured(**changes) -> Metrics:
    given = {
        "texts": 1_000,
        "texts_of": {"cards": 500, "lending": 500},
        "accuracy": 0.9,
        "macro_f1": 0.9,
        "ece": 0.02,
        "coverage": 0.8,
        "precision": 0.96,
    }
    return Metrics.model_validate(given | changes)


def saved(folder: Path, **changes) -> models.Model:
    by_gram, by_fragment = random_features(7, departments=2)
    model, files = build(card(**changes), by_gram, by_fragment)
    save_model(files, folder)
    return model


def replaced(folder: Path, name: str, content: bytes) -> None:
    """Put other content in a model's file, and its hash on the card as if it belonged there."""
    (folder / name).write_bytes(content)
    written = json.loads((folder / CARD).read_bytes())
    written["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / CARD).write_text(json.dumps(written), "utf-8")


def npy(array, **options) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


@settings(deadline=None, max_examples=20)
@given(TEXTS)
def test_a_loaded_model_decides_as_the_one_that_was_saved(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("model")
    made = saved(folder)
    loaded = load_model(folder, made.sha256)
    assert (loaded.card, loaded.sha256, loaded.limits) == (made.card, made.sha256, made.limits)
    assert loaded.score(text) == made.score(text)


@given(st.none() | st.floats(0, 1), st.dictionaries(st.sampled_from(["cards", "lending"]), st.floats(0, 1)))
def test_no_departments_threshold_is_below_the_common_one(threshold, own):
    limits = Limits(threshold, of_department=own)
    for department in ("cards", "lending", "another"):
        found = limits.threshold_of(department)
        if threshold is None or own.get(department) == 1:
            assert found is None
        else:
            assert found == (own[department] if own.get(department, 0) > threshold else threshold)


def test_a_departments_own_limit_of_one_is_never_reached_not_even_by_certainty():
    by_gram = features(["card", "card card"], [FIXED, FIXED], [[HEAVIEST, 0], [0, 0]])
    sure = scorer(by_gram, scale=Scale(0.01)).score("card card card")
    assert sure.confidence == 1
    assert sure.abstention(Limits(1.0, of_department={"lending": 1.0})) is None
    assert sure.abstention(Limits(0.6, of_department={"cards": 1.0})) == "low_confidence"


def test_a_model_from_before_departments_had_thresholds_decides_as_it_did(tmp_path):
    made = saved(tmp_path)
    written = json.loads((tmp_path / CARD).read_bytes())
    del written["thresholds"]
    (tmp_path / CARD).write_text(json.dumps(written), "utf-8")
    old = load_model(tmp_path)
    assert {old.limits.threshold_of(name) for name in old.card.departments} == {old.card.threshold}
    for text in ("card loan fee", "late app card", "fee"):
        assert old.score(text) == made.score(text)
        assert old.score(text).abstention(old.limits) == made.score(text).abstention(made.limits)


def test_thresholds_of_departments_are_part_of_the_model(tmp_path):
    own = {"cards": 0.91}
    made = saved(tmp_path / "own", threshold=0.7, thresholds=own)
    loaded = load_model(tmp_path / "own", made.sha256)
    assert (loaded.limits.threshold_of("cards"), loaded.limits.threshold_of("lending")) == (0.91, 0.7)
    assert made.sha256 != saved(tmp_path / "common", threshold=0.7).sha256


def test_equal_models_have_equal_bytes_and_any_change_another_hash(tmp_path):
    first = saved(tmp_path / "one").sha256
    assert saved(tmp_path / "two").sha256 == first
    assert saved(tmp_path / "three", threshold=0.71).sha256 != first
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()
    }


def test_another_model_than_the_activated_one_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(BadModel, match=r"this is model .* that was activated; restore"):
        load_model(tmp_path, "0" * 64)


@pytest.mark.parametrize("name", models.FILES)
def test_a_missing_file_is_named(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BadModel, match=f"{name}: No such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [name for name in models.FILES if name != CARD])
def test_one_changed_byte_is_found(tmp_path, name):
    saved(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadModel, match=f"{name}: its sha256 is not the one in model.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"normaliser": 99}, "as version 99 reads them, this program reads them as version 1"),
        ({"metrics": measured(ece=0.051)}, r"off by 0.051 \(ECE\), 0.05 is allowed"),
        (
            {"metrics": measured(precision=0.939)},
            "0.939 of its automatic decisions were right, 0.94 are demanded",
        ),
        ({"bias": (0.1,)}, "do not belong together"),
        ({"departments": ("cards", "cards")}, "do not belong together"),
    ],
)
def test_a_model_that_is_not_good_enough_is_refused(tmp_path, changes, complaint):
    by_gram, by_fragment = random_features(7, departments=2)
    sealed = card()
    _, files = build(sealed, by_gram, by_fragment)
    save_model(files, tmp_path)
    written = json.loads((tmp_path / CARD).read_bytes()) | json.loads(
        card(**changes).model_dump_json(include=changes.keys())
    )
    (tmp_path / CARD).write_text(json.dumps(written), "utf-8")
    with pytest.raises(BadModel, match=complaint):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("threshold", "own", "complaint"),
    [
        (0.7, {"nobody": 0.99}, "thresholds: 'nobody' is none of the departments"),
        (0.7, {"cards": 0.7}, "thresholds: 'cards' needs more than the common 0.7"),
        (0.7, {"cards": 1.1}, "thresholds: 'cards' needs more than the common 0.7"),
        (None, {"cards": 0.9}, "thresholds: 'cards' needs more than the common None"),
    ],
)
def test_thresholds_of_departments_that_make_no_sense_are_refused(tmp_path, threshold, own, complaint):
    saved(tmp_path)
    written = json.loads((tmp_path / CARD).read_bytes()) | {"threshold": threshold, "thresholds": own}
    (tmp_path / CARD).write_text(json.dumps(written), "utf-8")
    with pytest.raises(BadModel, match=complaint):
        load_model(tmp_path)


def test_a_model_at_the_limits_is_good_enough(tmp_path):
    saved(tmp_path / "edge", metrics=measured(ece=0.05, precision=0.94))
    assert load_model(tmp_path / "edge").card.metrics.ece == 0.05
    saved(tmp_path / "silent", threshold=None, metrics=measured(coverage=0, precision=None))
    silent = load_model(tmp_path / "silent")
    assert silent.score("card loan fee").abstention(silent.limits) == "low_confidence"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (WEIGHTS, npy(np.array([{"any": "thing"}]), allow_pickle=True), "its arrays cannot be read"),
        (WEIGHTS, b"not an array", "its arrays cannot be read"),
        (WEIGHTS, npy(np.zeros((3, 2), np.int16)), "do not belong together"),
        (WEIGHTS, npy(np.zeros((3, 2), np.float32)), "do not belong together"),
        (SHOWN, npy(np.zeros(3, np.int16)), "do not belong together"),
        (VOCABULARY, b'{"grams": ["card", "card"], "fragments": []}', "do not belong together"),
        (VOCABULARY, b'{"grams": 5}', "its arrays cannot be read"),
    ],
)
def test_files_that_are_no_model_are_refused(tmp_path, name, content, complaint):
    saved(tmp_path)
    replaced(tmp_path, name, content)
    with pytest.raises(BadModel, match=complaint):
        load_model(tmp_path)


def test_an_idf_that_could_spoil_a_sum_is_refused(tmp_path):
    saved(tmp_path)
    steep = np.load(tmp_path / "idf.npy")
    steep[0] = STEEPEST + 1
    replaced(tmp_path, "idf.npy", npy(steep))
    with pytest.raises(BadModel, match="do not belong together"):
        load_model(tmp_path)


def test_a_number_that_is_none_is_refused(tmp_path):
    saved(tmp_path)
    written = (tmp_path / CARD).read_text("utf-8")
    (tmp_path / CARD).write_text(written.replace("-0.1", "NaN"), "utf-8")
    with pytest.raises(BadModel, match=r"bias.1: Input should be a finite number"):
        load_model(tmp_path)


def test_a_broken_card_is_explained(tmp_path):
    saved(tmp_path)
    (tmp_path / CARD).write_text('{"version": "x"}', "utf-8")
    with pytest.raises(BadModel, match=r"model.json: what: Field required.*train the model again"):
        load_model(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setattr(models, "MOST_BYTES", 2_000)
    with pytest.raises(BadModel, match="larger than 2,000 bytes"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="2,000 are allowed"):
        build(card(), *random_features(7, departments=2))


def test_a_bundle_has_a_model_for_each_language(tmp_path):
    saved(tmp_path / "en")
    chinese = saved(tmp_path / "zh", language="zh")
    loaded = load_models(tmp_path, {"zh": chinese.sha256})
    assert {language: model.card.language for language, model in loaded.items()} == {"en": "en", "zh": "zh"}
    with pytest.raises(BadModel, match="that was activated"):
        load_models(tmp_path, {"zh": "0" * 64})
    (tmp_path / "zh").rename(tmp_path / "fr")
    with pytest.raises(BadModel, match="this model reads 'zh'"):
        load_models(tmp_path)
    with pytest.raises(BadModel, match="no such folder"):
        load_models(tmp_path / "nowhere")


# --- the models that come with the program


def shipped_cases():
    for case in yaml.safe_load(DEMO_CASES.read_text("utf-8"))["cases"]:
        if case["department"] != "triage":
            yield case["language"], f"{case['summary']} {case['demand']}", case["department"]


def test_the_shipped_models_say_what_they_are():
    for language, model in load_models(SHIPPED).items():
        assert model.card.demonstration
        assert "invented texts" in model.card.what
        assert model.card.version.startswith(language)
        assert set(model.card.metrics.texts_of) == set(model.card.departments)
        assert min(model.card.metrics.texts_of.values()) >= 150
        assert sum(path.stat().st_size for path in (SHIPPED / language).iterdir()) < 1_000_000


def test_the_shipped_models_tell_most_demo_cases_apart():
    shipped = load_models(SHIPPED)
    told = [(shipped[language].score(text), department) for language, text, department in shipped_cases()]
    right = sum(scored.department == department for scored, department in told)
    among_three = sum(department in {name for name, _ in scored.ranked[:3]} for scored, department in told)
    assert right / len(told) >= 0.75
    assert among_three / len(told) >= 0.9


def test_no_evidence_of_the_shipped_models_is_personal():
    for model in load_models(SHIPPED).values():
        of = model.scorer.by_gram
        assert [gram for gram, row in of.vocabulary.items() if of.shown[row] and looks_personal(gram)] == []


def test_each_language_leaves_the_other_alone():
    shipped = load_models(SHIPPED)
    assert (
        shipped["en"].score("信用卡被取款机吞了，怎么办").abstention(shipped["en"].limits) == "unknown_words"
    )
    assert shipped["zh"].score("the machine has swallowed my card").abstention(shipped["zh"].limits) == (
        "unknown_words"
    )
