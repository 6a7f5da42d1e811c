"""A plan of a day: what it takes, what the roster leaves short, and one agent more or less."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.intake.staffing.erlang import ErlangA, service_level
from services.intake.staffing.forecast import Slot
from services.intake.staffing.plan import (
    EXAMPLE,
    Assumptions,
    Target,
    in_words,
    parse_assumptions,
    parse_target,
    peak_gaps,
    plan,
    what_if,
)

SHANGHAI = ZoneInfo("Asia/Shanghai")
AHT, WITHIN, HALF_HOUR = timedelta(seconds=180), timedelta(seconds=20), timedelta(minutes=30)
MONDAY = datetime(2026, 11, 23, tzinfo=SHANGHAI)


def slot(hour, calls=100.0, day=MONDAY):
    start = day + timedelta(hours=hour)
    return Slot(start, start + HALF_HOUR, calls, calls * 0.8, calls * 1.2)


# ------------------------------------------------------------------ the plan


def test_a_line_says_what_a_slot_takes():
    (line,) = plan([slot(9)], AHT, shrinkage=0.3)
    assert (line.start, line.end, line.expected, line.load) == (
        MONDAY + timedelta(hours=9),
        slot(9).end,
        100,
        10,
    )
    assert (line.required, line.rostered_required, line.agents) == (14, 20, 14)
    assert (line.rostered, line.gap) == (None, None)
    assert line.service_level == pytest.approx(0.888, abs=5e-4)
    assert line.occupancy == pytest.approx(0.714, abs=5e-4)


def test_a_roster_shows_the_gap_and_what_to_expect_of_those_there():
    roster = {slot(9).start: 20, slot(10).start: 17}
    enough, short, nobody = plan([slot(9), slot(10), slot(11)], AHT, shrinkage=0.3, rostered=roster)
    assert (enough.gap, enough.agents) == (0, 14)
    assert (short.rostered, short.gap, short.agents) == (17, -3, 11)
    assert short.service_level == service_level(11, 10, AHT, WITHIN)
    assert (nobody.rostered, nobody.gap, nobody.agents) == (0, -20, 0)
    assert (nobody.service_level, nobody.occupancy) == (0, None)


def test_a_roster_in_another_zone_is_the_same_roster():
    roster = {slot(9).start.astimezone(UTC): 20}
    assert plan([slot(9)], AHT, rostered=roster)[0].rostered == 20


def test_when_nobody_calls_nobody_is_needed_and_there_is_no_service_level():
    (line,) = plan([slot(3, calls=0.0)], AHT, rostered={slot(3).start: 2})
    assert (line.required, line.gap) == (0, 2)
    assert (line.service_level, line.occupancy) == (None, None)


def test_patience_and_a_limit_on_occupancy_reach_the_formulas():
    patience = timedelta(minutes=5)
    (line,) = plan([slot(9)], AHT, patience=patience)
    queue = ErlangA(13, 10, AHT, patience)
    assert (line.required, line.service_level) == (13, queue.service_level(WITHIN))
    assert line.occupancy == queue.occupancy
    assert plan([slot(9)], AHT, max_occupancy=0.6)[0].required == 17


def test_a_slot_that_spans_a_clock_change_is_as_long_as_it_was():
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)  # the first of two
    end = datetime(2026, 10, 25, 2, 0, tzinfo=berlin, fold=1)
    assert plan([Slot(start, end, 100, 80, 120)], AHT)[0].load == 10


def test_the_worst_gaps_come_first_and_full_slots_not_at_all():
    slots = [slot(9), slot(10), slot(11), slot(12)]
    roster = {slot(9).start: 10, slot(10).start: 14, slot(11).start: 8, slot(12).start: 10}
    lines = plan(slots, AHT, rostered=roster)
    worst_first = [(11, -6), (9, -4), (12, -4)]
    assert [(line.start.hour, line.gap) for line in peak_gaps(lines, count=9)] == worst_first
    assert [line.start.hour for line in peak_gaps(lines, count=1)] == [11]
    assert len(peak_gaps(plan(slots, AHT, rostered={}))) == 3
    assert peak_gaps(plan(slots, AHT)) == []


@given(st.floats(0, 500), st.integers(0, 80), st.sampled_from([0.0, 0.15, 0.3]))
def test_no_gap_means_the_target_is_met(calls, rostered, shrinkage):
    (line,) = plan([slot(9, calls)], AHT, shrinkage=shrinkage, rostered={slot(9).start: rostered})
    if line.load == 0:
        assert line.gap == rostered
    else:
        assert (line.gap >= 0) is (line.service_level >= 0.8)


# ------------------------------------------------------------------ one agent more or less


def test_one_agent_less_is_said_in_both_languages():
    fourteen, thirteen, ten = (what_if(10, AHT, agents) for agents in (14, 13, 10))
    assert (
        in_words(fourteen, thirteen, language="en") == "14 agents answer 88.8 % within 20 s; with 13: 79.6 %"
    )
    assert in_words(fourteen, thirteen, language="zh") == "14 名坐席可在 20 秒内接通 88.8 %；13 名：79.6 %"
    assert (
        in_words(fourteen, ten, language="en")
        == "14 agents answer 88.8 % within 20 s; with 10: the queue grows without end"
    )
    assert (
        in_words(ten, fourteen, language="en")
        == "with 10 agents the queue grows without end; with 14: 88.8 %"
    )
    assert in_words(ten, language="zh") == "10 名坐席：排队会不断变长"


def test_an_outlook_says_none_for_what_does_not_exist():
    overloaded = what_if(10, AHT, 10)
    assert overloaded.overloaded
    assert (overloaded.average_speed_of_answer, overloaded.abandonment) == (None, None)
    assert what_if(0.5, AHT, 0).overloaded
    idle = what_if(0, AHT, 3)
    assert (idle.service_level, idle.occupancy, idle.overloaded) == (None, None, False)
    assert in_words(idle, language="en") == "no calls expected"
    assert in_words(idle, language="zh") == "预计没有来电"


def test_callers_who_give_up_keep_a_queue_from_growing_without_end():
    outlook = what_if(12, AHT, 10, patience=timedelta(minutes=5))
    queue = ErlangA(10, 12, AHT, timedelta(minutes=5))
    assert not outlook.overloaded
    assert outlook.abandonment == queue.abandonment > 1 / 6
    assert outlook.average_speed_of_answer == queue.average_wait


# ------------------------------------------------------------------ targets and assumptions


@pytest.mark.parametrize(
    ("text", "share", "seconds"), [("80/20", 0.8, 20), (" 99.5 / 15 ", 0.995, 15), ("90/0", 0.9, 0)]
)
def test_a_target_is_per_cent_and_seconds(text, share, seconds):
    assert parse_target(text) == Target(pytest.approx(share), timedelta(seconds=seconds))


def test_a_target_is_printed_as_it_is_written():
    assert [str(parse_target(text)) for text in ("80/20", "99.5/15")] == ["80/20", "99.5/15"]


@pytest.mark.parametrize(
    "text", ["", "80", "80-20", "100/20", "0/20", "-80/20", "80/20s", "８０/20", "80/99999"]
)
def test_what_is_no_target_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 80/20"):
        parse_target(text)


def test_the_example_of_assumptions_plans_a_day():
    known = parse_assumptions(EXAMPLE, "staffing.yaml")
    assert (known.aht_s, known.target, known.shrinkage) == (180, Target(0.8, WITHIN), 0.3)
    lines = known.plan([slot(7), slot(8), slot(16), slot(16.5)])
    assert [line.rostered for line in lines] == [0, 20, 20, 0]
    assert lines[1].service_level == ErlangA(14, 10, AHT, timedelta(minutes=5)).service_level(WITHIN)


def test_a_shift_past_midnight_belongs_to_the_day_it_began():
    known = parse_assumptions(EXAMPLE, "staffing.yaml")
    saturday, sunday = MONDAY + timedelta(days=5), MONDAY + timedelta(days=6)
    slots = [
        slot(22, day=MONDAY),
        slot(3, day=saturday),
        slot(22, day=saturday),
        slot(23.5, day=saturday),
        slot(0, day=sunday),
        slot(5.5, day=sunday),
        slot(6, day=sunday),
        slot(22, day=sunday),
    ]
    assert list(known.rostered(slots).values()) == [0, 3, 3, 3, 3, 3, 0, 0]


def test_a_shift_from_a_time_to_the_same_time_is_around_the_clock():
    shift = {"days": ["mon"], "from": "08:00", "to": "08:00", "agents": 2}
    known = Assumptions.model_validate({"aht_s": 180, "roster": [shift]})
    slots = [slot(7.5), slot(8), slot(23), slot(31), slot(32)]
    assert list(known.rostered(slots).values()) == [0, 2, 2, 2, 0]


def test_a_shift_counts_only_where_it_is_there_for_the_whole_slot():
    late = {"days": ["mon"], "from": "09:15", "to": "24:00", "agents": 4}
    early = {"days": ["mon"], "from": "00:00", "to": "02:45", "agents": 1}
    known = Assumptions.model_validate({"aht_s": 180, "roster": [late, late, early]})
    slots = [slot(0), slot(2), slot(2.5), slot(9), slot(9.5), slot(23.5)]
    assert list(known.rostered(slots).values()) == [1, 1, 0, 0, 8, 8]


def test_without_a_roster_there_is_none_rather_than_an_empty_one():
    known = parse_assumptions("aht_s: 180", "staffing.yaml")
    assert known.rostered([slot(9)]) is None
    assert known.plan([slot(9)])[0].gap is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aht_s: 0", r"staffing\.yaml: aht_s: .*greater than 0"),
        ("aht_s: nan", r"staffing\.yaml: aht_s"),
        ("shrinkage: 0.3", r"staffing\.yaml: aht_s: .*required"),
        ("aht_s: 180\ntarget: 80", r"staffing\.yaml: target: .*such as 80/20"),
        ("aht_s: 180\nmax_occupancy: 2", r"staffing\.yaml: max_occupancy"),
        ("aht_s: 180\nshrinkage: 1", r"staffing\.yaml: shrinkage"),
        ("aht_s: 180\npatiense_s: 1", r"staffing\.yaml: patiense_s"),
        ("aht_s: 180\nroster: [{days: [], from: 08:00, to: 09:00, agents: 1}]", r"roster\.0\.days"),
        ("aht_s: 180\nroster: [{days: [mo], from: 08:00, to: 09:00, agents: 1}]", r"roster\.0\.days\.0"),
        ("aht_s: 180\nroster: [{days: [mon], from: 8, to: 09:00, agents: 1}]", r"roster\.0\.from: .*08:30"),
        ("aht_s: 180\nroster: [{days: [mon], from: 08:00, to: 24:30, agents: 1}]", r"roster\.0\.to: .*24:00"),
        ("aht_s: 180\nroster: [{days: [mon], from: 08:00, to: 09:00, agents: -1}]", r"roster\.0\.agents"),
        ("[", r"staffing\.yaml: not YAML"),
        ("", r"staffing\.yaml: the file"),
    ],
)
def test_wrong_assumptions_are_refused_by_file_and_entry(text, says):
    with pytest.raises(ValueError, match=says):
        parse_assumptions(text, "staffing.yaml")
