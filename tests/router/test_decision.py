"""Who decides: a person, safety rules, rules, the classifier, else triage; and what is said of it."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from types import MappingProxyType
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.case import Severity
from schemas.topics import DEPARTMENTS
from services.router.classifier.scorer import Limits
from services.router.decision import AUDITED, NOTHING_READ, Desk, Read, Scored, decide, hold
from services.router.departments import load_departments
from services.router.reading import scored_by
from services.router.rules import ASSIGNABLE, load_rules, parse_rules
from services.router.rules.conditions import terms
from services.router.settings import RouterSettings
from tests.given import a_case
from tests.router.given import RULES, RULES_TEXT, SURE, sealed_model

CAUSE = UUID("019387d2-0000-7000-8000-00000000c0de")
OPEN = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)  # Tuesday, 14:00 in Shanghai
NIGHT = datetime(2026, 11, 24, 18, 0, tzinfo=UTC)
TAKEN, SAMPLED = UUID(int=1), UUID(int=143)
"""Two cases: the second is one of those of which a person judges blind."""
DESK = Desk(RULES, load_departments())
PLAIN = {"product": "other", "category": "complaint"}


def scored(*shares, abstains=None, language="en", threshold=0.8, of_department=MappingProxyType({})):
    """What a model says: shares of cards, payments, lending …"""
    names = ("cards", "payments", "lending", "digital", "fraud", "wealth", "branches")
    return Scored(
        model="en-1",
        sha256="5" * 64,
        language=language,
        probabilities=dict(zip(names, shares, strict=False)),
        known_share=0.9,
        limits=Limits(threshold, margin=0.15, of_department=of_department),
        abstains=abstains,
    )


SURE_OF_CARDS = scored(0.9, 0.05, 0.03)
SURE_OF_LENDING = scored(0.02, 0.02, 0.92)
SURE_OF_FRAUD = scored(0.02, 0.02, 0.02, 0.02, 0.92)


def asked(read=NOTHING_READ, desk=DESK, now=OPEN, excluded=frozenset(), case_id=TAKEN, **fields):
    case = a_case(case_id, **{**PLAIN, **fields})
    return decide(case, read, desk, now, cause=CAUSE, excluded=excluded)


# ------------------------------------------------------------ the order


@pytest.mark.parametrize(
    ("fields", "read", "stage", "department", "why"),
    [
        ({"product": "fee"}, Read("I lost my card", SURE_OF_FRAUD), "safety", "cards", "lost"),
        ({"product": "fee"}, Read("I kill myself", SURE_OF_CARDS), "safety", "triage", "threat"),
        ({"product": "fee"}, Read("x", SURE_OF_CARDS, follows="wealth"), "rule", "payments", "fees"),
        ({}, Read("x", SURE_OF_CARDS, follows="wealth"), "hold", "wealth", "follows_earlier_case"),
        ({}, Read("x", SURE_OF_CARDS, follows="triage"), "model", "cards", "classifier"),
        ({}, Read("x", SURE_OF_CARDS), "model", "cards", "classifier"),
        ({}, Read("x", scored(0.5, 0.3)), "triage", "triage", "low_confidence"),
        ({}, Read("x"), "triage", "triage", "no_rule"),
        ({}, Read(), "triage", "triage", "no_rule"),
    ],
)
def test_the_first_that_decides_wins(fields, read, stage, department, why):
    choice = asked(read, **fields)
    assert (choice.stage, choice.department, choice.rule) == (stage, department, why)


def test_what_the_classifier_would_have_said_is_kept_when_a_rule_decides():
    said = asked(Read("x", SURE_OF_CARDS), product="fee").explanation.model
    assert (said.top[0].department, said.top[0].p, said.would_route) == ("cards", 0.9, True)


@pytest.mark.parametrize(("stage", "why"), [("hold", "proposed_by_department"), ("ruling", "ruling_by_lead")])
def test_a_persons_word_is_kept_and_the_routers_recorded_beside_it(stage, why):
    case = a_case(TAKEN, **PLAIN)
    read = Read("I lost my card", SURE_OF_FRAUD)
    kept = hold(case, "wealth", stage, why, read, DESK, OPEN, cause=CAUSE)
    assert (kept.department, kept.stage, kept.rule) == ("wealth", stage, why)
    assert kept.severity is Severity.URGENT
    # Who keeps a case or passes it on has seen what was said of it: nobody is asked blind.
    expected = asked(read).explanation.model_copy(update={"audits": stage == "ruling"})
    assert kept.explanation == expected


def test_what_it_was_decided_with_is_in_the_explanation():
    desk = replace(DESK, restricted=frozenset({"wealth", "cards"}))
    read = Read("I lost my card", SURE_OF_FRAUD, follows="lending")
    choice = asked(read, desk, severity="low")
    why = choice.explanation
    assert (choice.severity, why.severity) == (Severity.URGENT, Severity.LOW)
    assert (why.departments_sha256, why.restricted) == (DESK.departments.sha256, ("cards", "wealth"))
    assert (why.audits, why.follows) == (True, "lending")
    bare = asked(Read(), Desk(RULES, audits=False)).explanation
    assert (bare.departments_sha256, bare.restricted, bare.audits, bare.follows) == (None, (), False, None)


# ------------------------------------------------------------ the classifier abstains

RESTRICTED = replace(DESK, restricted=frozenset({"cards"}))


@pytest.mark.parametrize(
    ("read", "desk", "now", "reason"),
    [
        (Read("x", scored(0.9, abstains="too_short")), DESK, OPEN, "too_short"),
        (Read("x", scored(0.9, abstains="unknown_words")), DESK, OPEN, "unknown_words"),
        (Read("x", scored(abstains="language_unsupported")), DESK, OPEN, "language_unsupported"),
        (Read("x", scored(0.79, 0.1)), DESK, OPEN, "low_confidence"),
        (Read("x", scored(0.55, 0.41, threshold=0.5)), DESK, OPEN, "low_margin"),
        (Read("x", SURE_OF_CARDS), RESTRICTED, OPEN, "department_restricted"),
        (Read("x", SURE_OF_LENDING), DESK, NIGHT, "department_outside_hours"),
        (Read("x", degraded="classifier_slow"), DESK, OPEN, "classifier_unavailable"),
    ],
)
def test_each_abstention_sends_the_case_to_triage_and_says_why(read, desk, now, reason):
    choice = asked(read, desk, now)
    assert (choice.department, choice.stage, choice.rule) == ("triage", "triage", reason)
    assert choice.explanation.abstained == reason
    assert choice.explanation.degraded == read.degraded
    if choice.explanation.model is not None:
        assert choice.explanation.model.would_route is False


def test_a_text_in_no_language_suggests_nothing():
    assert asked(Read("x", scored(abstains="language_unsupported"))).explanation.model.top == ()


def test_a_department_that_does_not_speak_the_language_is_not_chosen_by_the_classifier():
    departments = DESK.departments.model_copy(
        update={
            "departments": {
                **DESK.departments.departments,
                "cards": DESK.departments["cards"].model_copy(update={"languages": ("zh",)}),
            }
        }
    )
    desk = replace(DESK, departments=departments)
    assert asked(Read("x", SURE_OF_CARDS), desk).rule == "department_language_not_spoken"
    assert asked(Read("x", SURE_OF_CARDS), desk, language="zh").department == "cards"


def taking_none(*codes):
    profiles = {
        code: profile.model_copy(update={"takes": code not in codes})
        for code, profile in DESK.departments.departments.items()
    }
    return replace(DESK, departments=DESK.departments.model_copy(update={"departments": profiles}))


def test_a_department_that_takes_no_case_gets_none_by_rule_by_classifier_or_by_an_earlier_case():
    assert asked(desk=taking_none("payments"), product="fee").department == "branches"
    assert asked(desk=taking_none("payments", "branches"), product="fee").department == "triage"
    choice = asked(Read("x", SURE_OF_CARDS, follows="cards"), taking_none("cards"))
    assert (choice.department, choice.rule) == ("triage", "low_confidence")
    kept = hold(
        a_case(), "cards", "ruling", "ruling_by_lead", Read(), taking_none("cards"), OPEN, cause=CAUSE
    )
    assert kept.department == "cards"


# ------------------------------------------------------------ what rules leave to choose between


def test_a_narrowing_leaves_only_its_departments_to_the_classifier():
    choice = asked(Read("x", scored(0.5, 0.45, 0.01, threshold=0.4)), category="dispute")
    assert (choice.department, choice.stage) == ("payments", "model")
    assert choice.explanation.candidates == ("lending", "payments")
    assert [one.department for one in choice.explanation.model.top] == ["payments", "lending"]
    assert choice.explanation.model.margin == 0.44


def test_an_earlier_case_does_not_lead_out_of_the_candidates():
    assert asked(Read("x", follows="wealth"), category="dispute").department == "triage"
    assert asked(Read("x", follows="lending"), category="dispute").department == "lending"


def test_a_veto_closes_the_department_to_later_rules_and_to_the_classifier():
    choice = asked(Read("x", SURE_OF_FRAUD), category="suggestion")
    assert (choice.department, choice.rule) == ("triage", "low_confidence")
    assert choice.explanation.vetoed == ("fraud",)
    assert "fraud" not in choice.explanation.candidates


def test_who_gave_the_case_back_does_not_get_it_again():
    choice = asked(Read("x", SURE_OF_CARDS), product="fee", excluded=frozenset({"payments"}))
    assert (choice.department, choice.rule) == ("branches", "fees-too")
    choice = asked(Read("x", SURE_OF_CARDS), product="fee", excluded=frozenset({"payments", "branches"}))
    assert (choice.department, choice.stage) == ("cards", "model")
    assert choice.explanation.excluded == ("branches", "payments")
    choice = asked(Read("x", SURE_OF_CARDS), excluded=frozenset({"cards"}))
    assert (choice.department, choice.rule) == ("triage", "low_confidence")


def test_more_is_asked_of_a_department_that_is_often_wrong_and_of_no_other():
    wary = {"of_department": {"cards": 0.95}}
    choice = asked(Read("x", scored(0.9, 0.05, 0.03, **wary)))
    assert (choice.department, choice.rule) == ("triage", "low_confidence")
    assert choice.explanation.model.threshold == 0.95
    assert asked(Read("x", scored(0.96, 0.02, **wary))).stage == "model"
    choice = asked(Read("x", scored(0.02, 0.02, 0.92, **wary)))
    assert (choice.department, choice.explanation.model.threshold) == ("lending", 0.8)


def test_a_departments_own_limit_of_one_is_never_reached_not_even_by_certainty():
    choice = asked(Read("x", scored(1.0, 0.0, 0.0, of_department={"cards": 1.0})))
    assert (choice.department, choice.rule) == ("triage", "low_confidence")
    assert choice.explanation.model.threshold == 1.0
    assert asked(Read("x", scored(1.0, 0.0, 0.0, of_department={"lending": 1.0}))).stage == "model"


def test_a_threshold_is_that_of_who_is_left_to_choose():
    wary = {"of_department": {"payments": 0.5}}
    read = Read("x", scored(0.5, 0.45, 0.01, threshold=0.4, **wary))
    choice = asked(read, category="dispute")  # not for cards
    assert (choice.department, choice.rule) == ("triage", "low_confidence")
    assert choice.explanation.model.threshold == 0.5


def test_without_a_candidate_nobody_is_suggested():
    choice = asked(Read("x", SURE_OF_CARDS), excluded=frozenset(ASSIGNABLE))
    assert (choice.rule, choice.explanation.model.top) == ("no_candidate", ())


def test_a_rule_raises_the_severity_and_never_lowers_it():
    assert asked(product="fee", severity="low").severity is Severity.HIGH
    assert asked(product="fee", severity="urgent").severity is Severity.URGENT
    assert asked(Read("I lost my card")).assisting == ("fraud",)


# ------------------------------------------------------------ the blind sample


def ids(count):
    dice = Random(7)
    return [UUID(int=dice.getrandbits(128)) for _ in range(count)]


def test_one_case_in_fifty_is_judged_by_a_person_whatever_the_classifier_says():
    many = ids(20_000)
    sampled = [one for one in many if asked(Read("x", SURE_OF_CARDS), case_id=one).explanation.audit]
    expected = len(many) / AUDITED
    assert abs(len(sampled) - expected) < 4 * (expected * (1 - 1 / AUDITED)) ** 0.5
    again = [one for one in many if asked(Read("y", SURE_OF_FRAUD), case_id=one).explanation.audit]
    assert again == sampled


def test_a_sampled_case_goes_to_triage_although_the_classifier_is_sure():
    choice = asked(Read("x", SURE_OF_CARDS), case_id=SAMPLED)
    assert (choice.department, choice.rule, choice.explanation.audit) == ("triage", "audit_sample", True)
    assert choice.explanation.model.would_route is True
    assert asked(Read("x", SURE_OF_CARDS), replace(DESK, audits=False), case_id=SAMPLED).department == "cards"
    assert asked(Read("x", SURE_OF_CARDS), case_id=SAMPLED, cycle=2).department == "cards"


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (Read("x", SURE_OF_CARDS), {"product": "fee"}),
        (Read("x", SURE_OF_CARDS, follows="wealth"), {}),
        (Read("x", scored(0.5, 0.4)), {}),
        (Read("x", degraded="classifier_slow"), {}),
    ],
)
def test_only_what_the_classifier_would_decide_is_sampled(read, fields):
    assert asked(read, case_id=SAMPLED, **fields).explanation.audit is False


def test_a_department_that_passes_a_case_on_has_not_judged_it_blind():
    case, read = a_case(SAMPLED, **PLAIN), Read("x", SURE_OF_CARDS)
    moved = hold(case, "cards", "hold", "proposed_by_department", read, DESK, OPEN, cause=CAUSE)
    ruled = hold(case, "cards", "ruling", "ruling_by_lead", read, DESK, OPEN, cause=CAUSE)
    assert (moved.explanation.audit, ruled.explanation.audit) == (False, True)


# ------------------------------------------------------------ the explanation

SAID = "My name is Zhang Wei and the machine at Nanjing Road swallowed my card, call 13912345678"


def test_the_explanation_is_small_and_quotes_no_customer():
    model = sealed_model()[0]
    read = Read(SAID, scored_by(model, SAID), shadow=scored_by(model, SAID))
    explanation = asked(read).explanation
    written = explanation.model_dump_json()
    evidence = {one.feature for said in (explanation.model, explanation.shadow) for one in said.evidence}
    assert evidence == {"machine", "swallowed", "card"}
    assert len(written.encode()) <= 2048
    quoted = {word for word in SAID.lower().split() if f'"{word}"' in written.lower()}
    assert quoted == {"machine", "swallowed"}
    assert not any(secret in written for secret in ("Zhang", "Nanjing", "13912345678", SAID))


def test_the_longest_explanation_that_the_shipped_rules_give_is_small_too():
    rules = load_rules(RouterSettings.model_fields["rules_file"].default)
    desk = Desk(rules, load_departments(), restricted=frozenset(ASSIGNABLE))
    phrases = [
        phrase
        for rule in rules.rules
        for _, term in terms(rule.when)
        if term.op == "contains_any"
        for phrase in term.value
    ]
    evidence = tuple((f"{'n' * 60}{number}", 1.23456) for number in range(5))
    said = replace(scored(0.2, 0.2, 0.2, 0.2, 0.1, 0.1), evidence=evidence)
    sizes = [
        len(asked(Read(phrase, said, said), desk, category=category).explanation.model_dump_json().encode())
        for phrase in [*phrases, " ".join(phrases)]
        for category in ("fraud", "dispute", "enquiry")
    ]
    assert max(sizes) <= 2048


def test_the_shadow_is_judged_like_the_one_that_decides_and_decides_nothing():
    explanation = asked(Read("x", scored(0.4, 0.3), shadow=SURE_OF_CARDS)).explanation
    assert explanation.shadow.would_route is True
    assert explanation.shadow.margin == 0.85
    assert explanation.abstained == "low_confidence"


def test_what_was_read_changes_the_identity_of_the_decision():
    other_rules = replace(DESK, ruleset=parse_rules(RULES_TEXT.replace("kill myself", "kill you")))
    choices = [
        asked(Read("x", SURE_OF_CARDS)),
        asked(Read("y", SURE_OF_CARDS)),
        asked(Read("x", replace(SURE_OF_CARDS, sha256="6" * 64))),
        asked(Read("x", SURE_OF_CARDS), severity="low"),
        asked(Read("x", SURE_OF_CARDS), excluded=frozenset({"wealth"})),
        asked(Read("x", SURE_OF_CARDS), other_rules),
    ]
    assert {choice.department for choice in choices} == {"cards"}
    assert len({choice.explanation.decision_id for choice in choices}) == len(choices)


# ------------------------------------------------------------ properties

SHARES = st.lists(st.floats(0, 1), min_size=7, max_size=7)
READS = st.builds(
    lambda text, shares, abstains, follows, degraded, shadow: Read(
        text=text,
        scored=None if degraded else scored(*shares, abstains=abstains),
        shadow=scored(*reversed(shares)) if shadow else None,
        degraded="classifier_slow" if degraded else None,
        follows=follows,
    ),
    st.none() | st.sampled_from(["x", "I lost my card", "卡丢了", "kill myself", SURE["en"]]),
    SHARES,
    st.sampled_from([None, None, "too_short", "unknown_words"]),
    st.none() | st.sampled_from([*DEPARTMENTS, "moon"]),
    st.booleans(),
    st.booleans(),
)
CASES = st.fixed_dictionaries(
    {
        "case_id": st.uuids(),
        "product": st.sampled_from(["fee", "other"]),
        "category": st.sampled_from(["complaint", "dispute", "suggestion"]),
        "severity": st.sampled_from(["low", "normal", "high", "urgent"]),
        "cycle": st.integers(1, 3),
    }
)
EXCLUDED = st.frozensets(st.sampled_from(DEPARTMENTS))
DESKS = st.builds(
    lambda restricted, audits, shut: replace(taking_none(*shut), restricted=restricted, audits=audits),
    st.frozensets(st.sampled_from(ASSIGNABLE)),
    st.booleans(),
    st.frozensets(st.sampled_from(ASSIGNABLE)),
)
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))


@settings(max_examples=300)
@given(CASES, READS, DESKS, MOMENTS, EXCLUDED)
def test_there_is_exactly_one_department_and_it_is_known(fields, read, desk, now, excluded):
    choice = asked(read, desk, now, excluded, **fields)
    assert choice.department in DEPARTMENTS
    assert choice.department == "triage" or choice.department not in excluded | desk.shut
    assert (choice.stage == "triage") == (
        choice.rule not in {r.id for r in RULES.rules} | {"classifier", "follows_earlier_case"}
    )
    if choice.stage == "model":
        assert choice.department not in desk.restricted
        assert desk.departments.is_open(choice.department, now)
    if choice.explanation.audit:
        assert (choice.stage, choice.department) == ("triage", "triage")


def turned(shares: dict, dice: Random) -> dict:
    names = list(shares)
    dice.shuffle(names)
    return {name: shares[name] for name in names}


@settings(max_examples=200)
@given(CASES, READS, DESKS, MOMENTS, EXCLUDED, st.randoms(use_true_random=False))
def test_the_same_inputs_give_the_same_decision_in_whatever_order_they_are_held(
    fields, read, desk, now, excluded, dice
):
    first = asked(read, desk, now, excluded, **fields)
    other = read
    if read.scored is not None:
        other = replace(
            other, scored=replace(read.scored, probabilities=turned(read.scored.probabilities, dice))
        )
    if read.shadow is not None:
        other = replace(
            other, shadow=replace(read.shadow, probabilities=turned(read.shadow.probabilities, dice))
        )
    case = a_case(**{**PLAIN, **fields})
    read_again = type(case).model_validate_json(json.dumps(turned(json.loads(case.model_dump_json()), dice)))
    again = decide(
        read_again, other, desk, now, cause=CAUSE, excluded=frozenset(sorted(excluded, reverse=True))
    )
    assert again == first
