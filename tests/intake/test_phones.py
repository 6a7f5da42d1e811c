"""One person, one number: every way in which a switch or a caller writes it gives the same E.164."""

import phonenumbers
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.intake.desk.phones import Phone, normalise

MOBILE = Phone("+8613800138000", "mobile", "138****8000")


@pytest.mark.parametrize(
    "raw",
    [
        "13800138000",
        " 138 0013 8000 ",
        "138-0013-8000",
        "+8613800138000",
        "+86 138-0013-8000",
        "(+86) 138 0013 8000",
        "8613800138000",
        "008613800138000",
        "013800138000",
        "17951 13800138000",
        "１３８００１３８０００",
        "tel:+86-138-0013-8000",
        "sip:13800138000@10.0.0.1:5060",
        "<sip:+8613800138000@pbx.bank>",
    ],
)
def test_a_mobile_has_one_spelling(raw):
    assert normalise(raw) == MOBILE


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("010-12378", Phone("+861012378", "landline", "010****8")),
        ("(010) 6234 5678", Phone("+861062345678", "landline", "010****5678")),
        ("010-62345678转8001", Phone("+861062345678", "landline", "010****5678")),
        ("0571-87654321", Phone("+8657187654321", "landline", "0571****4321")),
        ("400 810 0000", Phone("+864008100000", "service", "400 810 0000")),
        ("800-810-0000", Phone("+868008100000", "service", "800 810 0000")),
        ("12378", Phone("12378", "short", "12378")),
        ("95588", Phone("95588", "short", "95588")),
        ("+44 7911 123456", Phone("+447911123456", "mobile", "+44****3456")),
        ("001 650 253 0000", Phone("+16502530000", "other", "+1****0000")),
        ("+298 211234", Phone("+298211234", "mobile", "+298****34")),
    ],
)
def test_other_lines(raw, expected):
    assert normalise(raw) == expected


def test_lines_of_no_person_are_told_apart():
    kinds = {raw: normalise(raw).personal for raw in ("13800138000", "010-62345678", "400 810 0000", "12378")}
    assert kinds == {"13800138000": True, "010-62345678": True, "400 810 0000": False, "12378": False}


@pytest.mark.parametrize(
    "raw",
    [
        *("", " ", "0", "00000000", "-1", "+", "s", "1"),
        *("anonymous", "Anonymous", "unknown", "Unavailable", "Restricted", "Private", "withheld", "N/A"),
        "sip:anonymous@anonymous.invalid",
        "+266696687",  # what the letters of ANONYMOUS dial
        "62345678",  # no area code: whose?
        "16800000000",  # shaped like a mobile, in no plan
        "13800138000/13900139000",
        "9" * 400,
        "\ud800",
    ],
)
def test_nobody_to_call_back(raw):
    assert normalise(raw) is None


def test_a_number_at_home_elsewhere():
    assert normalise("650 253 0000", region="US").number == "+16502530000"
    assert normalise("13800138000", region="US") is None
    assert normalise("+86 138 0013 8000", region="US").masked == "+86****8000"


@st.composite
def mobiles(draw):
    digits = f"1{draw(st.integers(min_value=3_000_000_000, max_value=9_999_999_999))}"
    assume(phonenumbers.is_valid_number(phonenumbers.parse(f"+86{digits}")))
    return digits


SPELLINGS = (
    lambda d: d,
    lambda d: f"+86{d}",
    lambda d: f"0086{d}",
    lambda d: f"86 {d}",
    lambda d: f"0{d}",
    lambda d: f"{d[:3]}-{d[3:7]}-{d[7:]}",
    lambda d: f"（＋86）{d[:3]} {d[3:7]} {d[7:]}",
    " ".join,
    lambda d: d.translate({ord("0") + n: 0xFF10 + n for n in range(10)}),
    lambda d: f"tel:+86-{d}",
    lambda d: f"sip:+86{d}@host;user=phone",
)


@given(mobiles(), st.sampled_from(SPELLINGS))
def test_any_notation_gives_the_same_number(digits, spelling):
    phone = normalise(spelling(digits))
    assert phone == Phone(f"+86{digits}", "mobile", f"{digits[:3]}****{digits[7:]}")
    assert normalise(phone.number) == phone


@given(st.text(max_size=40))
def test_any_text_is_a_number_or_nothing(raw):
    phone = normalise(raw)
    assert phone is None or normalise(phone.number) == phone
