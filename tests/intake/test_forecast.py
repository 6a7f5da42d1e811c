"""The forecast on days made for it: it follows what lasts, ignores what does not, and knows no future."""

import math
import random
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.intake.staffing.forecast import COVERAGE, WEEKS, forecast, forecast_queues, trust

SHANGHAI = ZoneInfo("Asia/Shanghai")
MONDAY = date(2026, 11, 23)
DAY = timedelta(days=1)
SHAPE = (
    [0.0] * 16 + [10, 20, 40, 60, 60, 50, 40, 40, 50, 60, 60, 50, 40, 30, 20, 20, 10, 10, 5, 5] + [0.0] * 12
)
SATURDAY = [0.0] * 36 + [15, 20, 25, 20, 15, 10] + [0.0] * 6


def poisson(mean, dice):
    limit, calls, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        calls += 1
        product *= dice.random()
    return calls


def history(days, mean=lambda day: SHAPE, seed=None, until=MONDAY, tz=SHANGHAI):
    """Calls by slot of so many days before `until`: exactly the mean, or by chance about it."""
    dice = random.Random(seed)
    calls = {}
    for day in (until - n * DAY for n in range(days, 0, -1)):
        for slot, often in enumerate(mean(day)):
            start = datetime(day.year, day.month, day.day, slot // 2, slot % 2 * 30, tzinfo=tz)
            calls[start] = round(often) if seed is None else poisson(often, dice)
    return calls


def expected(slots):
    return [slot.expected for slot in slots]


def week(day):
    """Busy on Mondays, another shape on Saturdays, closed on Sundays."""
    if day.weekday() == 6:
        return [0.0] * 48
    return SATURDAY if day.weekday() == 5 else [often * (1.6 if day.weekday() == 0 else 1) for often in SHAPE]


# ------------------------------------------------------------------ what lasts is followed


def test_what_repeats_exactly_is_forecast_exactly():
    for day in (MONDAY, MONDAY - 2 * DAY, MONDAY - DAY):
        slots = forecast(history(28, week, until=day), day, SHANGHAI)
        assert expected(slots) == pytest.approx([round(often) for often in week(day)], abs=1e-9)
        assert [slot.low for slot in slots] == pytest.approx(expected(slots), abs=1e-9)
        assert [slot.high for slot in slots] == pytest.approx(expected(slots), abs=1e-9)


def test_a_slot_is_a_half_hour_of_the_zone_asked_for():
    slots = forecast(history(14), MONDAY, SHANGHAI)
    assert slots[0].start.isoformat() == "2026-11-23T00:00:00+08:00"
    assert slots[-1].end.isoformat() == "2026-11-24T00:00:00+08:00"
    assert len(slots) == 48
    assert all(slot.end - slot.start == timedelta(minutes=30) for slot in slots)


@pytest.mark.parametrize("hours", [1, 12, 24])
def test_slots_may_be_as_long_as_a_day(hours):
    calls = {}
    for start, count in history(28, week).items():
        at = start.replace(hour=start.hour // hours * hours, minute=0)
        calls[at] = calls.get(at, 0) + count
    slots = forecast(calls, MONDAY, SHANGHAI, every=timedelta(hours=hours))
    assert len(slots) == 24 // hours
    assert sum(expected(slots)) == pytest.approx(sum(round(often) for often in week(MONDAY)))


def test_weekdays_keep_their_own_level_shape_and_closing():
    calls = history(42, week, seed=1)
    monday = sum(expected(forecast(calls, MONDAY, SHANGHAI)))
    tuesday = sum(expected(forecast(calls, MONDAY + DAY, SHANGHAI)))
    assert monday / sum(SHAPE) == pytest.approx(1.6, abs=0.08)
    assert tuesday / sum(SHAPE) == pytest.approx(1.0, abs=0.06)
    saturday = expected(forecast(calls, MONDAY + 5 * DAY, SHANGHAI))
    assert sum(saturday[:36]) == 0
    assert saturday == pytest.approx(SATURDAY, abs=5)
    assert expected(forecast(calls, MONDAY + 6 * DAY, SHANGHAI)) == [0.0] * 48


def test_days_of_one_kind_help_each_other_against_chance():
    """With one week behind it, five alike working days are worth more than the one same weekday."""
    mean = SHAPE
    helped = alone = 0.0
    for seed in range(10):
        calls = history(7, seed=seed)
        same = [calls[slot.start - 7 * DAY] for slot in forecast(calls, MONDAY, SHANGHAI)]
        alone += sum(abs(count - often) for count, often in zip(same, mean, strict=True))
        helped += sum(
            abs(slot - often)
            for slot, often in zip(expected(forecast(calls, MONDAY, SHANGHAI)), mean, strict=True)
        )
    assert helped < 0.6 * alone


def test_a_weekday_keeps_a_peak_of_its_own_though_others_help_it():
    def mean(day):
        return [often * (1.5 if day.weekday() == 0 and slot == 20 else 1) for slot, often in enumerate(SHAPE)]

    calls = history(56, mean)
    monday, tuesday = (forecast(calls, day, SHANGHAI)[20].expected for day in (MONDAY, MONDAY + DAY))
    assert monday == pytest.approx(SHAPE[20] * (1 + 0.5 * 8 / 12), rel=0.05)  # 8 Mondays, and the help of 4
    assert tuesday == pytest.approx(SHAPE[20], rel=0.05)


def test_half_of_the_last_fortnight_s_change_is_followed():
    def grown(day):
        return [often * (2.0 if (MONDAY - day).days <= 14 else 1.0) for often in SHAPE]

    # Over 8 weeks the mean is 1.25; lately it was 2.0, which is 1.6 of that.
    level = sum(expected(forecast(history(56, grown), MONDAY, SHANGHAI))) / sum(SHAPE)
    assert level == pytest.approx(1.25 * math.sqrt(1.6), abs=0.02)


# ------------------------------------------------------------------ what does not last is not


def test_a_spike_of_one_hour_does_not_come_back():
    calls = history(28, seed=3)
    before = forecast(calls, MONDAY, SHANGHAI)
    noon = datetime(2026, 11, 16, 13, 0, tzinfo=SHANGHAI)
    calls[noon], calls[noon + timedelta(minutes=30)] = 260, 234
    after = forecast(calls, MONDAY, SHANGHAI)
    assert after[26].expected == pytest.approx(before[26].expected, rel=0.15)
    assert sum(expected(after)) == pytest.approx(sum(expected(before)), rel=0.03)


def test_a_spike_in_the_only_week_there_is_does_not_come_back_either():
    calls = history(7, seed=3)
    calls[datetime(2026, 11, 16, 13, 0, tzinfo=SHANGHAI)] = 500
    assert forecast(calls, MONDAY, SHANGHAI)[26].expected < 1.5 * SHAPE[26]


def test_a_day_on_which_everybody_called_is_pulled_in():
    calls = history(56, seed=4)
    before = sum(expected(forecast(calls, MONDAY, SHANGHAI)))
    for start in [start for start in calls if start.date() == MONDAY - 14 * DAY]:
        calls[start] *= 5
    assert sum(expected(forecast(calls, MONDAY, SHANGHAI))) == pytest.approx(before, rel=0.05)


def test_a_holiday_teaches_nothing_false_and_is_forecast_by_its_factor():
    holiday = MONDAY - 7 * DAY

    def quiet(day):
        return [often * (0.5 if day == holiday else 1) for often in SHAPE]

    plain = forecast(history(28), MONDAY, SHANGHAI)
    taught = forecast(history(28, quiet), MONDAY, SHANGHAI, holidays={holiday: 0.5})
    assert expected(taught) == pytest.approx(expected(plain), rel=0.06)  # 5 calls halved are 2
    halved = forecast(history(28), MONDAY, SHANGHAI, holidays={MONDAY: 0.5})
    assert expected(halved) == pytest.approx([often / 2 for often in expected(plain)])
    closed = forecast(history(28), MONDAY, SHANGHAI, holidays={MONDAY: 0.0, holiday: 0.0})
    assert [(slot.low, slot.expected, slot.high) for slot in closed] == [(0.0, 0.0, 0.0)] * 48


def test_the_day_itself_and_later_days_are_not_looked_at():
    calls = history(28, seed=5)
    later = {start + 28 * DAY: 999 for start in calls}
    assert forecast(calls | later, MONDAY, SHANGHAI) == forecast(calls, MONDAY, SHANGHAI)


def test_days_of_another_season_are_not_looked_at():
    calls = history(7 * WEEKS, seed=5)
    older = history(70, lambda day: [300.0] * 48, until=MONDAY - timedelta(weeks=WEEKS))
    assert forecast(calls | older, MONDAY, SHANGHAI) == forecast(calls, MONDAY, SHANGHAI)


def test_a_weekday_never_seen_is_forecast_from_all_days():
    calls = {start: count for start, count in history(28).items() if start.weekday() != 0}
    assert expected(forecast(calls, MONDAY, SHANGHAI)) == pytest.approx(SHAPE)


# ------------------------------------------------------------------ the band


def test_the_band_holds_its_share_of_what_comes():
    held = slots = 0
    for seed in range(12):
        calls = history(43, seed=seed, until=MONDAY + DAY)
        for slot in forecast({at: n for at, n in calls.items() if at.date() < MONDAY}, MONDAY, SHANGHAI):
            if slot.expected >= 1:
                slots += 1
                held += slot.low <= calls[slot.start] <= slot.high
    assert slots == 12 * 20
    assert held / slots == pytest.approx(COVERAGE, abs=0.08)


def test_the_band_is_that_of_slots_of_like_size():
    dice = random.Random(8)
    calls = history(56, lambda day: [*[10.0] * 24, *[dice.gauss(100, 30) for _ in range(24)]])
    slots = forecast(calls, MONDAY, SHANGHAI)
    assert all(slot.high - slot.low < 1 for slot in slots[:24])
    wide = sum(slot.high - slot.low for slot in slots[24:]) / 24
    assert wide == pytest.approx(2 * 1.2816 * 30, rel=0.15)


def test_without_errors_to_learn_from_the_band_is_twice_the_variance_of_chance():
    for days in (3, 7):  # in its first week, no weekday was there before
        noon = forecast(history(days, seed=9), MONDAY, SHANGHAI)[20]
        assert noon.high - noon.expected == pytest.approx(1.2816 * math.sqrt(2 * noon.expected))
        assert noon.expected - noon.low == pytest.approx(noon.high - noon.expected)


# ------------------------------------------------------------------ clocks, trust, refusals


def test_the_day_of_a_clock_change_follows_the_clock_s_face():
    berlin = ZoneInfo("Europe/Berlin")
    for day, slots, hour in ((date(2026, 3, 29), 46, 16 - 2), (date(2026, 10, 25), 50, 16 + 2)):
        found = forecast(history(28, until=day, tz=berlin), day, berlin)
        assert len(found) == slots
        assert (found[hour].start.hour, found[hour].start.minute) == (8, 0)
        assert sum(expected(found)) == pytest.approx(sum(SHAPE))
    # The hour that was there twice counts once.
    after = date(2026, 10, 26)
    calls = history(28, lambda day: [10.0] * 48, until=after, tz=berlin)
    twice = {datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=1).astimezone(UTC): 10}
    later = forecast(calls | twice, date(2026, 11, 1), berlin)
    assert expected(later) == pytest.approx([10.0] * 48)


def test_any_zone_may_name_the_moments_of_history():
    calls = history(21, seed=6)
    told = {start.astimezone(UTC): count for start, count in calls.items()}
    assert forecast(told, MONDAY, SHANGHAI) == forecast(calls, MONDAY, SHANGHAI)


@pytest.mark.parametrize(
    ("days", "word", "en"),
    [
        (0, "low", "less than two weeks of history"),
        (13, "low", "less than two weeks of history"),
        (14, "fair", "earlier days of this weekday: only 2"),
        (27, "fair", "earlier days of this weekday: only 3"),
        (28, "good", "earlier days of this weekday: 4"),
        (300, "good", "earlier days of this weekday: 8"),
    ],
)
def test_trust_grows_with_the_weeks_that_were_seen(days, word, en):
    found = trust(history(days), MONDAY, SHANGHAI)
    assert (found.word, found.en) == (word, en)
    assert found.zh


def test_trust_is_less_for_holidays_gaps_and_weekdays_never_seen():
    calls = history(56)
    assert trust(calls, MONDAY, SHANGHAI, holidays={MONDAY: 0.4}).word == "fair"
    closed = {MONDAY - n * 7 * DAY: 0.0 for n in range(1, 8)}
    assert trust(calls, MONDAY, SHANGHAI, holidays=closed).en == "earlier days of this weekday: only 1"
    assert trust(calls, MONDAY + 14 * DAY, SHANGHAI).en == "the last week was not observed"
    without = {start: count for start, count in calls.items() if start.weekday() != 0}
    assert trust(without, MONDAY, SHANGHAI).en == "earlier days of this weekday: only 0"


def test_what_cannot_be_forecast_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="import earlier calls"):
        forecast({}, MONDAY, SHANGHAI)
    with pytest.raises(ValueError, match="no start of a slot"):
        forecast({datetime(2026, 11, 22, 9, 10, tzinfo=SHANGHAI): 1}, MONDAY, SHANGHAI)
    with pytest.raises(ValueError, match="no time zone"):
        forecast({datetime(2026, 11, 22, 9, 0): 1}, MONDAY, SHANGHAI)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 400), min_size=4, max_size=4), min_size=1, max_size=24),
    st.integers(0, 6),
)
def test_any_history_gives_a_band_about_what_is_expected(counts, weekday):
    day = MONDAY + weekday * DAY
    calls = {}
    for n, of_day in enumerate(counts, 1):
        midnight = datetime(MONDAY.year, MONDAY.month, MONDAY.day, tzinfo=SHANGHAI) - n * DAY
        for quarter, count in enumerate(of_day):
            calls[midnight + quarter * timedelta(hours=6)] = count
    slots = forecast(calls, day, SHANGHAI, every=timedelta(hours=6))
    assert len(slots) == 4
    for slot in slots:
        assert 0 <= slot.low <= slot.expected <= slot.high
        assert math.isfinite(slot.high)
    assert max(expected(slots)) <= 3 * sum(max(of_day) for of_day in zip(*counts, strict=True))


# ------------------------------------------------------------------ holidays and days worked for them

HOLIDAYS = (date(2026, 10, 1), date(2026, 10, 7))
SWAPPED = date(2026, 10, 10)
"""A Saturday that is worked like a Friday."""


def weekday_of(queue, day):
    if queue == "fraud":
        return day.weekday()
    weekday = 4 if day == SWAPPED else day.weekday()
    return None if HOLIDAYS[0] <= day <= HOLIDAYS[1] or weekday > 4 else weekday


def loans(day):
    """Weekdays only, and as the calendar says."""
    return [0.0] * 48 if weekday_of("loans", day) is None else SHAPE


def foreseen(day, **means):
    # A day without calls has no entry: nobody knows whether it was observed.
    histories = {
        queue: {at: calls for at, calls in history(56, mean, until=day).items() if calls}
        for queue, mean in means.items()
    }
    slots, word = forecast_queues(histories, day, SHANGHAI, weekday_of)
    assert [slot.start.date() for slot in slots] == [day] * 48
    return slots, word


@pytest.mark.parametrize("day", [HOLIDAYS[0], MONDAY - 2 * DAY])
def test_on_a_holiday_or_a_day_without_hours_nobody_is_expected(day):
    slots, word = foreseen(day, loans=loans)
    assert {(slot.expected, slot.low, slot.high) for slot in slots} == {(0, 0, 0)}
    assert (word.word, word.en) == ("good", "nobody answers that day")


def test_a_day_worked_for_a_holiday_is_forecast_as_the_weekday_whose_hours_it_has():
    slots, word = foreseen(SWAPPED, loans=loans)
    assert sum(expected(slots)) == pytest.approx(sum(SHAPE), rel=0.01)
    assert word.word == "fair"


@pytest.mark.parametrize("day", [date(2026, 10, 12), date(2026, 10, 15)])
def test_holidays_and_days_worked_for_them_teach_nothing(day):
    quiet = {day: loans(day) for day in [HOLIDAYS[0] + n * DAY for n in range(7)]}

    def answered(day):
        return (
            [5.0] * 48 if day in quiet else [often * 3 for often in SHAPE] if day == SWAPPED else loans(day)
        )

    slots, _ = foreseen(day, loans=answered)
    assert sum(expected(slots)) == pytest.approx(sum(loans(day)), rel=0.01, abs=0.5)


def test_where_one_queue_has_a_holiday_the_others_are_expected_as_ever():
    slots, word = foreseen(HOLIDAYS[0], loans=loans, fraud=lambda _: SHAPE)
    assert sum(expected(slots)) == pytest.approx(sum(SHAPE), rel=0.01)
    assert word.word == "good"
    both, word = foreseen(SWAPPED, loans=loans, fraud=lambda _: SHAPE)
    assert sum(expected(both)) == pytest.approx(2 * sum(SHAPE), rel=0.01)
    assert word.word == "fair"
    together, _ = foreseen(date(2026, 11, 5), loans=loans, fraud=lambda _: SHAPE)
    assert sum(expected(together)) == pytest.approx(2 * sum(SHAPE), rel=0.01)


def test_without_an_ordinary_day_there_is_no_forecast_but_of_a_holiday():
    only = {datetime(2026, 10, 2, 9, tzinfo=SHANGHAI): 5}
    for histories in ({}, {"loans": only}):
        with pytest.raises(ValueError, match="import earlier calls"):
            forecast_queues(histories, date(2026, 10, 12), SHANGHAI, weekday_of)
    slots, _ = forecast_queues({"loans": only}, HOLIDAYS[1], SHANGHAI, weekday_of)
    assert sum(expected(slots)) == 0
