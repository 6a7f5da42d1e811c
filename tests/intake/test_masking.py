"""What must not be stored is found in any notation and masked; everything else stays as it was written."""

import sys
from datetime import date

import phonenumbers
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.cn import ric

from services.intake.desk.masking import Found, Kind, Masked, mask

WIDE = {ord("0") + n: 0xFF10 + n for n in range(10)}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("我的卡4111111111111111被盗刷", "我的卡**** **** **** 1111被盗刷"),
        ("卡号：６２２２ ０２１２ ３４５６ ７８９０ １２８，谢谢", "卡号：**** **** **** 0128，谢谢"),
        ("Visa 4111-1111-1111-1111 (exp 12/27)", "Visa **** **** **** 1111 (exp 12/27)"),
        ("amex 3782 822463 10005.", "amex **** **** **** 0005."),
        ("4222222222222", "**** **** **** 2222"),
        ("6-2-2-2-0-2-1-2-3-4-5-6-7-8-9-0-1-2-8", "**** **** **** 0128"),
        ("卡6222　0212　3456　7890　128", "卡**** **** **** 0128"),
        ("身份证11010519491231002X，", "身份证110***********002X，"),
        ("身份证110105 19491231 002ｘ。", "身份证110***********002X。"),
        ("ID 440524188001010014", "ID 440***********0014"),
        ("GB82 WEST 1234 5698 7654 32 please", "GB****5432 please"),
        ("账号gb82west12345698765432。", "账号GB****5432。"),
        ("BE41539007547035", "BE****7035"),  # Belgium's own check fails, the international one holds
        ("打13800138000找我", "打138****8000找我"),
        ("（＋８６）１３８－００１３－８０００", "138****8000"),
        ("86 138 0013 8000", "138****8000"),
        ("0086-13800138000", "138****8000"),
        ("138.0013.8000", "138****8000"),
        ("1 3 8 0 0 1 3 8 0 0 0", "138****8000"),
        ("62 22 02 12 34 56 78 90 12 8。", "**** **** **** 0128。"),
        ("(010) 6234 5678转8001", "010****5678转8001"),
        ("座机0571—87654321。", "座机0571****4321。"),
        ("+44 20 7946 0958 or +33 1 42 68 53 00", "+44****0958 or +33****5300"),
        ("13800138000/13900139000", "138****8000/139****9000"),
        ("6200000000000005DE36000000000000000000", "**** **** **** 0005DE****0000"),
        ("SC18SSCB11010000000000001497USD13800138000", "SC****7USD138****8000"),
        ("6222021200014111 1111 1111 1111", "**** **** **** 4111 1111 1111 1111"),
        ("4111 1111 1111 1111 003", "**** **** **** 1003"),  # also a card of sixteen digits
        ("13800138000 6222021234567890128", "138****8000 **** **** **** 0128"),
    ],
)
def test_numbers_are_masked(text, masked):
    assert mask(text).text == masked
    assert mask(masked).text == masked


@pytest.mark.parametrize(
    "text",
    [
        "卡号4111111111111112",  # Luhn fails
        "9999 9999 9999 9995",  # Luhn holds, no issuer
        "11010519491231002X"[:-1] + "1",  # check digit fails
        "110105194913310021",  # the check digit holds, there is no such day
        "4111 11 1111 111004",  # Luhn holds, written as no card is
        "GB82WEST12345698765433",
        "订单号20261124103015123456，金额1,380.00元",
        "订单 10000120261124000123",
        "共计13800138000.00元",
        "150 200 30 400",
        "1 3 8 0 0 1 3 8 0 0 0 5 5 5",  # a row of small numbers
        "C-20261123-004217-6",
        "2026-11-24 10:30:15",
        "192.168.100.100",
        "16800000000",  # shaped like a mobile, in no plan
        "从400 810 0000、+86 400 810 0000和95588打来的",
        "我什么号码都没说。No numbers here.",
        "",
    ],
)
def test_the_rest_stays(text):
    assert mask(text) == Masked(text, ())


def test_an_identity_number_without_a_known_county_is_still_one():
    """The list of counties in stdnum is neither complete nor what people were given at birth."""
    number = "110000199001010010"
    number = number[:-1] + ric.calc_check_digit(number)
    assert mask(number).text == f"110***********{number[-4:]}"


def test_the_better_proof_wins_where_readings_overlap():
    assert mask("138 6222 0212 3456 7890 128").text == "138 **** **** **** 0128"
    gansu = "62010219900101001"
    gansu += ric.calc_check_digit(gansu + "0")
    assert [found.kind for found in mask(gansu).found] == [Kind.ID]


def test_where_two_cards_may_be_meant_both_are_masked():
    """34608596200000 0 is a card number as well as the one after it; eight digits of either must not stay."""
    assert mask("1300 3460 859 6200 0000 0000 0005").text == "1300 **** **** **** 0005"
    assert mask("1300 3460 859（6200 0000 0000 0005").text == "130****0859（**** **** **** 0005"


def test_what_was_found_and_where():
    text = "卡6222021234567890128，电话+86 138 0013 8000，证件11010519491231002X"
    found = mask(text).found
    assert found == (Found(Kind.CARD, 1, 20), Found(Kind.PHONE, 23, 40), Found(Kind.ID, 43, 61))
    assert [text[it.start : it.end] for it in found] == [
        "6222021234567890128",
        "+86 138 0013 8000",
        "11010519491231002X",
    ]


def test_a_kept_kind_stays_and_is_not_taken_for_another():
    text = "卡6222021234567890128，电话13800138000"
    assert mask(text, frozenset({Kind.PHONE})).text == "卡**** **** **** 0128，电话13800138000"
    assert mask(text, frozenset({Kind.CARD})).text == "卡6222021234567890128，电话138****8000"
    overlapping = "138 6222 0212 3456 7890 128"
    assert mask(overlapping, frozenset({Kind.CARD})).text == overlapping
    assert mask(text, frozenset(Kind)) == Masked(text, ())


# ------------------------------------------------------------ properties


def digits(count):
    return st.text("0123456789", min_size=count, max_size=count)


ISSUED = "62:16 62:19 81:16 4:16 4:13 53:16 37:15 36:14 3528:16 6011:16 601382:19 9558:19 2201:16 2720:16"


@st.composite
def cards(draw):
    prefix, length = draw(st.sampled_from(ISSUED.split())).split(":")
    body = prefix + draw(digits(int(length) - len(prefix) - 1))
    return Kind.CARD, body + luhn.calc_check_digit(body)


@st.composite
def identities(draw):
    place = draw(st.sampled_from(["1101", "3101", "4405", "5002", "6201", "6501", "8100"])) + draw(digits(2))
    born = draw(st.dates(date(1900, 1, 1), date(2026, 11, 24)))
    body = place + born.strftime("%Y%m%d") + draw(digits(3))
    return Kind.ID, body + ric.calc_check_digit(body + "0")


@st.composite
def ibans(draw):
    country, bank = draw(st.sampled_from([("DE", ""), ("GB", "WEST"), ("FR", "")]))
    length = {"DE": 18, "GB": 14, "FR": 23}[country]
    body = bank + draw(digits(length))
    return Kind.IBAN, f"{country}{iban.calc_check_digits(f'{country}00{body}')}{body}"


@st.composite
def mobiles(draw):
    number = "1" + draw(digits(10))
    assume(phonenumbers.is_valid_number(phonenumbers.parse(f"+86{number}")))
    return Kind.PHONE, number


NUMBERS = st.one_of(cards(), identities(), ibans(), mobiles())
SPELLINGS = st.sampled_from(
    [
        lambda n: n,
        lambda n: " ".join(n[at : at + 4] for at in range(0, len(n), 4)),
        lambda n: "-".join(n[at : at + 4] for at in range(0, len(n), 4)),
        lambda n: n.translate(WIDE),
        lambda n: "　".join(n[at : at + 4] for at in range(0, len(n), 4)).translate(WIDE),
    ]
)
WORDS = st.sampled_from(["卡号", "，", "。请回电", "：", "、", "\n", "（", "）我的", "；金额一百元，"])


@given(st.lists(st.tuples(WORDS, NUMBERS, SPELLINGS), min_size=1, max_size=4), WORDS)
def test_every_number_is_found_in_its_place_and_does_not_survive(pieces, last):
    text, expected = "", []
    for word, (kind, number), spelling in pieces:
        text += word
        expected.append(Found(kind, len(text), len(text) + len(spelling(number))))
        text += spelling(number)
    masked = mask(text + last)
    assert masked.found == tuple(expected)
    left = "".join(char for char in masked.text.translate({v: k for k, v in WIDE.items()}) if char.isalnum())
    assert not [number for _, (_, number), _ in pieces if number in left]
    assert mask(masked.text) == Masked(masked.text, ())


LEFTOVERS = ["138****8000", "**** **** **** 1234", "110***********002X", "GB****5432", "+44****0958", "****"]
PARTS = [
    "SC18SSCB11010000000000001497USD",
    "SC18",
    "4111",
    "+",
    "00",
    "86",
    "1",
    "X",
    "(",
    ")",
    ".",
    "-",
    "卡",
]
SCRAPS = st.one_of(
    NUMBERS.map(lambda it: it[1]),
    st.sampled_from([*LEFTOVERS, *PARTS]),
    st.text("0123456789*+-.() X", max_size=8),
)


@given(st.lists(SCRAPS, max_size=8).map("".join), st.frozensets(st.sampled_from(Kind)))
@example("SC18SSCB11010000000000001497USD4111111111111111", frozenset())
@example("SC18SSCB11010000000000001497USD13800138000", frozenset())
@example("6200000000000005DE36000000000000000000", frozenset())
@example("11010519491231002X4111111111111111", frozenset())
@example("4111 1111 1111 1111 1111 1111 1111", frozenset())
@example("**** **** 4111 1111 1111 1111 1234", frozenset())
@example("1.13800138000.50", frozenset())
@example("1 3 8 0 0 1 3 8 0 0 0 13900139000 6222021234567890128", frozenset())
@example("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 13900139000", frozenset())
@example("138****13800138000", frozenset())
def test_masking_again_changes_nothing(text, keep):
    once = mask(text, keep)
    assert mask(once.text, keep) == Masked(once.text, ())


@given(st.text(st.characters(exclude_categories=["Nd"]), max_size=200))
def test_text_without_digits_is_unchanged(text):
    assert mask(text) == Masked(text, ())


@given(st.integers(min_value=13, max_value=19).flatmap(digits), st.sampled_from(["", "订单", "no. "]))
def test_digits_that_fail_their_check_are_unchanged(number, before):
    assume(not luhn.is_valid(number))
    assume(len(number) != 18 or number[-1] != ric.calc_check_digit(number))
    assume(not number.startswith(("0", "86")))
    assert mask(before + number).text == before + number


@pytest.mark.parametrize(
    "scrap", ["4 ", "1 3 ", "001 ", "+49 30 12 ", "6222 ", "GB82 1 ", "1.1.", "13800138001 ", "**** ", "4"]
)
def test_work_grows_no_faster_than_the_text(scrap):
    def steps(length):
        count = 0

        def seen(_frame, event, _arg):
            nonlocal count
            count += event in {"call", "c_call"}

        text = (scrap * length)[:length]
        mask(text)  # what is cached once does not count
        sys.setprofile(seen)
        try:
            mask(text)
        finally:
            sys.setprofile(None)
        return count

    assert steps(4000) <= 2.2 * steps(2000)
