"""Departments: who there is, when they work, and why one may not be given a case."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import DEPARTMENTS
from services.router.departments import BadDepartments, load_departments, parse_departments
from services.router.rules import Rule, load_rules
from services.router.settings import RouterSettings

SHIPPED = load_departments()
SHANGHAI = ZoneInfo("Asia/Shanghai")

A_FILE = """\
version: "1"
zone: Asia/Shanghai
closed: [2026-12-25]
worked: {2026-12-26: mon}
hours:
  office: {mon: ["09:00-12:00", "13:30-17:30"], tue: ["09:00-12:00"]}
  always: {mon: ["00:00-24:00"], tue: ["00:00-24:00"], fri: ["00:00-24:00"]}
departments:
  cards: {name: {zh: 卡, en: Cards}, languages: [zh], hours: office, capacity: 2, closed: [2026-12-22]}
  fraud: {name: {zh: 反欺诈, en: Fraud}, languages: [zh, en], hours: always, accept_within: PT30M}
  digital: {name: {zh: 数字, en: Digital}, languages: [zh, en], hours: office, takes: false}
  lending: {name: {zh: 信贷, en: Lending}, languages: [zh, en], hours: office}
  payments: {name: {zh: 支付, en: Payments}, languages: [zh, en], hours: office}
  branches: {name: {zh: 网点, en: Branches}, languages: [zh, en], hours: office}
  wealth: {name: {zh: 理财, en: Wealth}, languages: [zh, en], hours: office}
  triage: {name: {zh: 分派, en: Triage}, languages: [zh, en], hours: always}
"""
GIVEN = parse_departments(A_FILE)


def at(day, clock):
    return datetime.fromisoformat(f"2026-12-{day:02}T{clock}").replace(tzinfo=SHANGHAI)


def test_the_shipped_file_has_every_department_and_names_it_in_both_languages():
    assert set(SHIPPED.departments) == set(DEPARTMENTS)
    assert {code for code, one in SHIPPED.departments.items() if set(one.languages) != {"zh", "en"}} == set()
    assert (SHIPPED["cards"].name.zh, SHIPPED["cards"].name.en) == ("银行卡部", "Cards")


URGENT = {
    rule.department
    for rule in load_rules(RouterSettings.model_fields["rules_file"].default).rules
    if isinstance(rule, Rule) and rule.band == "safety"
}


@pytest.mark.parametrize("code", sorted({"triage"} | URGENT))
def test_somebody_is_always_there_for_what_cannot_wait(code):
    """Rules do not ask for opening hours: where a safety rule sends a case, somebody must see it at once."""
    shut = [
        hour
        for hour in range(24 * 7)
        if not SHIPPED.is_open(code, datetime(2026, 11, 23, tzinfo=UTC) + timedelta(hours=hour))
    ]
    assert shut == []


@pytest.mark.parametrize(
    ("moment", "open_"),
    [
        (at(21, "08:59:59"), False),
        (at(21, "09:00:00"), True),
        (at(21, "12:00:00"), False),
        (at(21, "13:30:00"), True),
        (at(21, "17:29:59"), True),
        (at(21, "17:30:00"), False),
        (at(23, "10:00:00"), False),  # a day that is not named
        (at(22, "10:00:00"), False),  # the department's own free day
        (at(26, "10:00:00"), True),  # a Saturday worked like a Monday
        (datetime(2026, 12, 21, 1, 0, tzinfo=UTC), True),
    ],
)
def test_a_department_works_by_the_wall_clock_of_the_bank(moment, open_):
    assert GIVEN.is_open("cards", moment) is open_


def test_on_the_banks_closed_days_nobody_works():
    assert not any(GIVEN.is_open(code, at(25, "10:00")) for code in DEPARTMENTS)
    assert GIVEN.is_open("lending", at(22, "10:00"))


@given(st.datetimes(datetime(2026, 12, 14), datetime(2026, 12, 20)), st.sampled_from(DEPARTMENTS))
def test_the_zone_of_the_question_makes_no_difference(moment, code):
    there = moment.replace(tzinfo=SHANGHAI)
    assert GIVEN.is_open(code, there) == GIVEN.is_open(code, there.astimezone(UTC))


@pytest.mark.parametrize(
    ("code", "language", "moment", "why"),
    [
        ("cards", "zh", at(21, "10:00"), None),
        ("cards", "zh", at(21, "12:30"), "outside_hours"),
        ("cards", "en", at(21, "12:30"), "language_not_spoken"),
        ("digital", "zh", at(21, "10:00"), "takes_none"),
        ("fraud", "en", at(21, "03:00"), None),
    ],
)
def test_why_a_department_may_not_be_given_a_case(code, language, moment, why):
    assert GIVEN.why_not(code, language, moment) == why


@pytest.mark.parametrize("departments", [SHIPPED, GIVEN], ids=["shipped", "given"])
def test_what_is_kept_of_departments_reads_as_the_file_does(departments):
    again = parse_departments(departments.canonical)
    assert again == departments
    assert again.sha256 == departments.sha256
    assert again.is_open("fraud", at(25, "10:00")) == departments.is_open("fraud", at(25, "10:00"))


def test_another_capacity_is_another_hash_and_another_order_is_not():
    assert parse_departments(A_FILE.replace("capacity: 2", "capacity: 3")).sha256 != GIVEN.sha256
    days = [f"2026-{month:02}-{day:02}" for month in range(1, 12) for day in range(1, 29)]
    forwards, backwards = (
        parse_departments(A_FILE.replace("[2026-12-25]", f"[{', '.join(order)}]"))
        for order in (days, days[::-1])
    )
    assert forwards.sha256 == backwards.sha256


def test_own_times_stand_beside_those_of_the_bank():
    assert GIVEN["fraud"].accept_within == timedelta(minutes=30)
    assert (GIVEN["cards"].accept_within, GIVEN["cards"].resolve_within) == (None, None)


@pytest.mark.parametrize(
    ("old", "new", "line", "where", "reason"),
    [
        (
            "  wealth: {name: {zh: 理财, en: Wealth}, languages: [zh, en], hours: office}\n",
            "",
            8,
            "departments",
            "without wealth: a case sent there would be nobody's",
        ),
        (
            "  wealth:",
            "  welth:",
            15,
            "departments.welth",
            "Input should be 'cards', 'fraud', 'digital', 'lending', 'payments', 'branches', 'wealth' or 'triage'",
        ),
        (
            "hours: office, takes",
            "hours: nine, takes",
            11,
            "departments.digital.hours",
            "there are no hours 'nine'",
        ),
        (
            "languages: [zh]",
            "languages: [fr]",
            9,
            "departments.cards.languages.0",
            "Input should be 'zh' or 'en'",
        ),
        (
            "capacity: 2",
            "capacity: 0",
            9,
            "departments.cards.capacity",
            "Input should be greater than or equal to 1",
        ),
        (
            '09:00-12:00", "13:30',
            '9-12", "13:30',
            6,
            "hours.office.mon.0",
            "'9-12' is no interval; write it like \"08:30-17:30\"",
        ),
        (
            '"09:00-12:00"]',
            '"22:00-06:00"]',
            6,
            "hours.office.tue.0",
            "'22:00-06:00' does not end after it begins, on the same day; split it at midnight",
        ),
        ('"13:30-17:30"', '"11:30-17:30"', 6, "hours.office.mon", "intervals overlap or are not in order"),
        ("2026-12-25", "2026-12-26", 4, "worked.2026-12-26", "is closed as well"),
        (
            "en: Triage}",
            "en: Triage}, capacity: 5",
            16,
            "departments.triage",
            "takes every case, without limit: there is nobody behind it",
        ),
        (
            "PT30M",
            "PT3H",
            10,
            "departments.fraud.accept_within",
            "Input should be less than or equal to 2 hours",
        ),
        (
            "PT30M",
            "30",
            10,
            "departments.fraud.accept_within",
            "30 is no ISO 8601 duration; write PT30M, or P1D",
        ),
        (
            "PT30M",
            "'0:30'",
            10,
            "departments.fraud.accept_within",
            "'0:30' is no ISO 8601 duration; write PT30M, or P1D",
        ),
        ("zone: Asia/Shanghai", "zone: Moon", 2, "zone", "'Moon' is no time zone of the IANA database"),
    ],
)
def test_a_fault_is_told_with_its_line_its_place_and_its_reason(old, new, line, where, reason):
    assert old in A_FILE
    with pytest.raises(BadDepartments) as caught:
        parse_departments(A_FILE.replace(old, new, 1), "d.yaml")
    assert (line, where, reason) in caught.value.faults
    assert f"d.yaml:{line}: {where}: {reason}" in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(BadDepartments, match="No such file or directory"):
        load_departments(tmp_path / "none.yaml")
