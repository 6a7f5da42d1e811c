"""What corrections teach: the split, scores, promotion, daily figures, drift."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import log
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.classifier.calibration import wilson_lower
from services.router.classifier.model import LEAST_PRECISION
from services.router.learning import (
    ALL,
    LEAST_CASES,
    LEAST_JUDGED,
    LIMITS,
    RESTRICTING,
    WATCHED_CASES,
    WATCHED_FOR,
    Both,
    Decided,
    Gauge,
    Judgement,
    Lesson,
    Score,
    Share,
    agreement,
    digest_of,
    figures,
    gauges,
    promotion,
    psi,
    score,
    split,
    windows_before,
)
from services.router.rules import ASSIGNABLE

NOW = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
DAYS = timedelta(days=1)

# ------------------------------------------------------------ lessons


def lesson(text, number=1, department="cards", source="triage", at=NOW):
    return Lesson(UUID(int=number), text, department, source, at)


@given(
    st.text(),
    st.sampled_from(ASSIGNABLE),
    st.sampled_from(["triage", "audit", "transfer", "ruling"]),
    st.datetimes(timezones=st.just(UTC)),
    st.integers(0, 2**100),
)
def test_the_side_of_a_case_depends_on_its_words_alone(text, department, source, at, number):
    """A label made later, another label, or a copy of the case never moves words into training."""
    first, later = lesson(text), lesson(text, number, department, source, at)
    assert first.held_out == later.held_out
    learn, judged = split([first, later])
    assert (learn, judged) in (([first, later], []), ([], [first, later]))


@given(st.text())
def test_copies_stay_together_whatever_their_numbers_width_case_and_blanks(text):
    copy = f"  {text.replace(' ', '  ')}\n"
    assert lesson(copy).group == lesson(text).group
    assert lesson("Card 1234 ＡＢＣ").group == lesson("card  99 abc").group == "card 0 abc"


def test_about_one_text_in_five_is_held_out_and_always_the_same_ones():
    learn, held_out = split([lesson(f"text {'x' * n} {'y' * (n % 7)}", n) for n in range(2_000)])
    assert (len(learn), len(held_out)) == (1_603, 397)


def test_a_digest_names_lessons_in_any_order_and_changes_with_a_label():
    one, two = lesson("a", 1), lesson("b", 2)
    assert digest_of([one, two]) == digest_of([two, one])
    assert (
        len({digest_of([one]), digest_of([one, two]), digest_of([one, replace(two, department="fraud")])})
        == 3
    )


# ------------------------------------------------------------ scores


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_share_lies_between_its_bounds_and_is_none_of_nothing(hits, more):
    share = Share(hits, hits + more)
    if not share.of:
        assert (share.value, share.low, share.high) == (None, None, None)
    else:
        tiny = 1e-12
        assert -tiny <= share.low <= share.value + tiny
        assert share.value - tiny <= share.high <= 1 + tiny
        assert share.low == wilson_lower(hits, hits + more)


def test_a_score_counts_what_was_right_and_what_was_decided():
    found = score(
        [
            Judgement("cards", ("cards", "fraud", "wealth"), decides=True),
            Judgement("cards", ("fraud", "cards", "wealth"), decides=True),
            Judgement("fraud", ("fraud", "cards", "wealth"), decides=False),
            Judgement("lending", ("cards", "fraud", "wealth", "lending"), decides=False),
        ]
    )
    assert (found.accuracy, found.top3) == (Share(2, 4), Share(3, 4))
    assert (found.coverage, found.precision) == (Share(2, 4), Share(1, 2))
    assert found.by_department == {
        "cards": (Share(1, 2), Share(1, 1)),
        "fraud": (Share(1, 1), Share(0, 1)),
        "lending": (Share(0, 1), Share(0, 0)),
    }


def test_a_score_of_nothing_is_nothing():
    found = score([])
    assert found == Score(Share(0, 0), Share(0, 0), Share(0, 0), Share(0, 0), {})


# ------------------------------------------------------------ promotion


def scored(right, of=200, decided=100, decided_right=98):
    return Score(Share(right, of), Share(of, of), Share(decided, of), Share(decided_right, decided), {})


@pytest.mark.parametrize(
    ("days", "seen", "shadow", "active", "verdict", "why"),
    [
        (
            2.9,
            499,
            scored(190),
            scored(180),
            "watch",
            "watched for 2.9 days on 499 cases; it takes 3 days or 500 cases",
        ),
        (
            3.0,
            0,
            scored(190),
            scored(180),
            "promote",
            "right on 190 of 200 held-out lessons, the one before on 180 of 200",
        ),
        (
            0.1,
            500,
            scored(190),
            scored(180),
            "promote",
            "right on 190 of 200 held-out lessons, the one before on 180 of 200",
        ),
        (9.0, 900, scored(99, 99), scored(1, 99), "watch", "99 held-out lessons to judge by; it takes 100"),
        (
            9.0,
            900,
            scored(180),
            scored(180),
            "discard",
            "right on 180 of 200, no more than the one before on 180 of 200",
        ),
        (
            9.0,
            900,
            scored(190, decided=10, decided_right=10),
            scored(180),
            "discard",
            "it would decide 10 cases rightly by itself, the one before 98",
        ),
        (
            9.0,
            900,
            scored(190, decided=110, decided_right=100),
            scored(180),
            "discard",
            "of its own decisions 100 of 110 are right, 94% are demanded",
        ),
        (
            9.0,
            900,
            scored(190, decided=0, decided_right=0),
            None,
            "discard",
            "it would decide nothing by itself",
        ),
        (
            9.0,
            900,
            scored(190),
            None,
            "promote",
            "right on 190 of 200 held-out lessons; no other model decides",
        ),
    ],
)
def test_a_watched_model_is_promoted_only_when_it_is_better(days, seen, shadow, active, verdict, why):
    found = promotion(days * DAYS, seen, shadow, active)
    assert (found.verdict, found.why) == (verdict, (why,))


def test_every_objection_is_named():
    found = promotion(9 * DAYS, 900, scored(170, decided=0, decided_right=0), scored(180))
    assert found.verdict == "discard"
    assert found.why == (
        "it would decide nothing by itself",
        "right on 170 of 200, no more than the one before on 180 of 200",
        "it would decide 0 cases rightly by itself, the one before 98",
    )


def test_what_a_person_has_switched_off_stays_off():
    found = promotion(9 * DAYS, 900, scored(200, decided=200, decided_right=200), None, switched_off=True)
    assert found.verdict == "watch"
    assert found.why == ("somebody has switched the classifier off: only a person switches it on",)


@st.composite
def scores(draw, of):
    decided = draw(st.integers(0, of))
    return scored(draw(st.integers(0, of)), of, decided, draw(st.integers(0, decided)))


@given(st.data(), st.integers(0, 300), st.floats(0, 10), st.integers(0, 1_000), st.booleans())
def test_no_promotion_without_evidence(data, of, days, seen, alone):
    shadow = data.draw(scores(of))
    active = None if alone else data.draw(scores(of))
    found = promotion(days * DAYS, seen, shadow, active)
    assert found.why
    if found.verdict == "promote":
        assert days * DAYS >= WATCHED_FOR or seen >= WATCHED_CASES
        assert of >= LEAST_JUDGED
        assert shadow.precision.value >= LEAST_PRECISION
        assert active is None or shadow.accuracy.hits > active.accuracy.hits
        assert active is None or shadow.precision.hits >= active.precision.hits


def test_two_models_are_compared_where_both_spoke():
    found = agreement(
        [
            Both("cards", "cards", "cards"),
            Both("cards", "fraud", "fraud"),
            Both("cards", "fraud", "cards"),
            Both("fraud", "cards", "wealth"),
            Both("fraud", "fraud", None),
            Both(None, "cards", "cards"),
        ]
    )
    assert found.agreed == Share(2, 5)
    assert found.by_department == {"cards": Share(1, 3), "fraud": Share(1, 2)}
    assert (found.alone, found.labelled) == (1, 4)
    assert (found.both_right, found.only_active, found.only_shadow, found.neither) == (1, 1, 1, 1)


# ------------------------------------------------------------ daily figures


def decided(department="cards", cases=1, **fields):
    plain = {
        "language": "zh",
        "department": department,
        "stage": "model",
        "suggested": department,
        "audit": False,
        "model_sha256": "m",
        "held_by": department,
        "label": None,
        "fresh": True,
        "cases": cases,
        "known": 0.8 * cases,
        "knowing": cases,
    }
    return Decided(**{**plain, **fields})


def sampled(label, cases=1, suggested="cards", **fields):
    return decided(
        "triage",
        cases,
        stage="triage",
        suggested=suggested,
        audit=True,
        held_by=label or "triage",
        label=label,
        **fields,
    )


DAY = [
    decided("cards", 60),
    decided("cards", 3, label="payments", held_by="payments"),
    decided("cards", 1, label="cards"),
    decided("cards", 10, stage="rule", suggested="fraud"),
    decided("cards", 2, stage="safety", suggested="cards", label="fraud", held_by="fraud"),
    sampled("cards", 4),
    sampled("fraud", 1),
    sampled(None, 2),
    decided("triage", 17, stage="triage", suggested="cards", held_by="triage"),
]


def test_a_day_is_counted_over_all_and_by_department():
    by_name = {line.department: line for line in figures(DAY)}
    assert list(by_name) == [ALL, *ASSIGNABLE]
    everything, cards, wealth = by_name[ALL], by_name["cards"], by_name["wealth"]
    assert (everything.cases, everything.coverage) == (100, Share(64, 100))
    assert (everything.triage, cards.triage) == (Share(24, 100), None)
    assert (cards.cases, cards.coverage) == (76, Share(64, 76))
    assert cards.precision == everything.precision == Share(4, 5)
    assert cards.labelled == Share(5, 9)
    assert cards.misrouted == everything.misrouted == Share(5, 76)
    none = Share(0, 0)
    assert (wealth.cases, wealth.coverage, wealth.precision, wealth.misrouted) == (0, none, none, none)


@given(
    st.lists(
        st.builds(
            decided,
            st.sampled_from(ASSIGNABLE),
            st.integers(1, 50),
            stage=st.sampled_from(["model", "rule", "hold"]),
            suggested=st.sampled_from(ASSIGNABLE),
            label=st.sampled_from([None, *ASSIGNABLE]),
        )
    )
)
def test_the_departments_add_up_to_the_whole(day):
    everything, *lines = figures(day)
    assert everything.cases == sum(line.cases for line in lines)
    for name in ("coverage", "labelled", "misrouted"):
        shares = [getattr(line, name) for line in lines]
        whole = getattr(everything, name)
        assert whole == Share(sum(one.hits for one in shares), sum(one.of for one in shares))


# ------------------------------------------------------------ drift

MIXES = st.dictionaries(st.sampled_from(ASSIGNABLE), st.integers(0, 10_000))


@given(MIXES, MIXES)
def test_the_distance_of_two_mixes_is_symmetric_and_never_negative(one, other):
    found = psi(one, other)
    assert (found is None) == (not sum(one.values()) or not sum(other.values()))
    if found is not None:
        assert found >= 0
        assert psi(other, one) == pytest.approx(found)


@given(MIXES.filter(lambda mix: sum(mix.values())), st.integers(1, 50))
def test_equal_mixes_are_not_apart_however_many_cases_they_are(mix, times):
    assert psi(mix, {name: count * times for name, count in mix.items()}) == 0


def test_the_distance_is_the_formula_of_the_field():
    expected = (0.5 - 0.8) * log(0.5 / 0.8) + (0.5 - 0.2) * log(0.5 / 0.2)
    assert psi({"cards": 50, "fraud": 50}, {"cards": 80, "fraud": 20}) == pytest.approx(expected)


def rung(found):
    return [(one.alarm, one.language or one.department) for one in found if one.rings]


def gauge(found, alarm, of) -> Gauge:
    return next(one for one in found if one.alarm == alarm and of in (one.language, one.department))


def test_a_quiet_day_rings_nothing_and_says_what_is_missing():
    found = gauges([decided("cards", 100)], [decided("cards", 400)], [])
    assert rung(found) == []
    assert len(found) == 3 + 2 * len(ASSIGNABLE)
    assert gauge(found, "department_mix", "zh").figure == 0
    assert gauge(found, "audit_precision", "cards").missing == "no blind sample judged"
    assert gauge(found, "misrouted", "cards").figure == 0
    assert gauge(found, "misrouted", "fraud").missing == "the classifier sent 0 cases there: it takes 20"
    assert gauges([], [], [])[0].missing == "no blind sample judged"


def test_few_cases_ring_no_alarm_of_a_language():
    found = gauges([decided("fraud", LEAST_CASES - 1, known=0)], [decided("cards", 400)], [])
    assert rung(found) == []
    for alarm in ("department_mix", "triage_share", "known_share"):
        assert gauge(found, alarm, "zh").missing == "99 cases now, 400 before: it takes 100 of each"


def test_a_language_is_compared_with_itself():
    now = [decided("cards", 100), decided("fraud", 100, language="en")]
    before = [decided("cards", 400), decided("fraud", 400, language="en")]
    assert rung(gauges(now, before, [])) == []
    assert rung(gauges(now, list(reversed([replace(one, language="zh") for one in before])), [])) == [
        ("department_mix", "zh")
    ]


def test_the_mix_is_where_the_cases_are_by_now_without_those_that_wait():
    now = [decided("cards", 100), decided("triage", 50, stage="triage", held_by="triage")]
    found = gauges(now, [decided("lending", 400, held_by="cards")], [])
    assert gauge(found, "department_mix", "zh").figure == 0


@pytest.mark.parametrize(("more", "rings"), [(10, False), (11, True)])
def test_triage_rings_ten_points_above_the_weeks_before(more, rings):
    now = [decided("cards", 80 - more), decided("triage", 20 + more, stage="triage", held_by="triage")]
    before = [decided("cards", 320), decided("triage", 80, stage="triage", held_by="cards")]
    assert rung(gauges(now, before, [])) == ([("triage_share", "zh")] if rings else [])


@pytest.mark.parametrize(("known", "rings"), [(0.751, False), (0.749, True), (0.95, False)])
def test_unknown_words_ring_five_points_below(known, rings):
    found = gauges([decided("cards", 100, known=known * 100)], [decided("cards", 400)], [])
    assert rung(found) == ([("known_share", "zh")] if rings else [])
    assert gauge(found, "known_share", "zh").figure == pytest.approx(known - 0.8)


def test_wrong_samples_take_a_department_from_the_classifier():
    now = [decided("cards", 100)]
    found = gauges(now, [], [sampled("cards", 17), sampled("fraud", 3)])
    alarm = gauge(found, "audit_precision", "cards")
    assert (alarm.rings, alarm.restricts) == (True, True)
    assert alarm.figure == pytest.approx(0.9393, abs=1e-3)
    assert rung(gauges(now, [], [sampled("cards", 18), sampled("fraud", 2)])) == []
    assert rung(gauges(now, [], [sampled("fraud", 1)])) == [], "one mistake alone is no evidence"


def test_only_samples_of_deciding_models_and_since_the_last_return_count():
    now, wrong = [decided("cards", 100)], sampled("fraud", 9)
    assert rung(gauges(now, [], [wrong])) == [("audit_precision", "cards")]
    assert rung(gauges(now, [], [replace(wrong, model_sha256="older")])) == []
    assert rung(gauges(now, [], [replace(wrong, fresh=False)])) == []
    assert rung(gauges([], [], [wrong])) == []


@pytest.mark.parametrize(
    ("wrong", "of", "rings"), [(1, 20, False), (2, 20, True), (5, 100, False), (6, 100, True), (9, 19, False)]
)
def test_corrections_above_one_in_twenty_take_a_department_from_the_classifier(wrong, of, rings):
    now = [decided("cards", of - wrong), decided("cards", wrong, label="fraud", held_by="fraud")]
    assert rung(gauges(now, [], [])) == ([("misrouted", "cards")] if rings else [])
    by_rules = [replace(one, stage="rule") for one in now]
    assert rung(gauges(by_rules, [], [])) == [], "what rules sent there is not the classifier's fault"
    assert rung(gauges([replace(one, fresh=False) for one in now], [], [])) == []


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_more_wrong_decisions_never_silence_an_alarm(right, wrong, more):
    def alarms(count):
        now = [decided("cards", right), decided("cards", count, label="fraud", held_by="fraud")]
        audited = [sampled("cards", right), sampled("fraud", count)]
        return {name for name, _ in rung(gauges(now, [], audited))}

    assert alarms(wrong) <= alarms(wrong + more)


@given(st.integers(0, 200), st.integers(0, 100))
def test_more_triage_never_silences_its_alarm(triaged, more):
    before = [decided("cards", 300), decided("triage", 30, stage="triage", held_by="cards")]

    def figure(count):
        now = [decided("cards", 300 - count), decided("triage", count, stage="triage", held_by="triage")]
        return gauge(gauges(now, before, []), "triage_share", "zh")

    less, most = figure(triaged), figure(min(triaged + more, 300))
    assert most.figure >= less.figure
    assert most.rings >= less.rings


def test_only_what_speaks_against_the_classifier_restricts_it():
    assert set(RESTRICTING) == {"audit_precision", "misrouted"}
    assert not Gauge("department_mix", 9.0, rings=True, language="zh").restricts
    assert not Gauge("misrouted", 0.01, rings=False, department="cards").restricts
    assert Gauge("misrouted", 0.5, rings=True, department="cards").limit == LIMITS["misrouted"] == 0.05


def test_the_weeks_before_are_the_same_weekday_and_hours():
    since, until = NOW - DAYS, NOW
    found = windows_before(since, until)
    assert [(until - end).days for _, end in found] == [7, 14, 21, 28]
    assert {(end - start) for start, end in found} == {DAYS}
