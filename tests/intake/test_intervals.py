"""Figures per interval: worked out by hand, conserved however intervals are cut, equal to the switch's."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import telephony
from services.intake.sources.asterisk import replay
from services.intake.staffing.intervals import (
    ALL_QUEUES,
    AWAY,
    NAMES,
    REASONS,
    SERVICE_LEVEL,
    Figure,
    Missing,
    RefusedRow,
    VisitRow,
    by_interval,
    interval_of,
    intervals_between,
    total,
)

SHANGHAI = ZoneInfo("Asia/Shanghai")
HALF_HOUR, QUARTER = timedelta(minutes=30), timedelta(minutes=15)
NINE = datetime(2026, 11, 23, 9, 0, tzinfo=SHANGHAI)
MINUTE = 60_000


def at(minutes, seconds=0):
    return NINE + timedelta(minutes=minutes, seconds=seconds)


def answered(queued, wait_s, talk_s, agent="0417", queue="cards", **more):
    began = queued + timedelta(seconds=wait_s)
    ended = began + timedelta(seconds=talk_s)
    return VisitRow("c", queue, queued, answered_at=began, talk_ended_at=ended, agent=agent, **more)


def left(queued, wait_s, reason="abandoned", queue="cards"):
    return VisitRow("c", queue, queued, left_at=queued + timedelta(seconds=wait_s), left_reason=reason)


def count(*rows, refused=(), minutes=60, since=NINE, **more):
    more = {"tz": SHANGHAI, **more}
    return by_interval(rows, refused, since=since, until=since + timedelta(minutes=minutes), **more)


# ------------------------------------------------------------------ by hand


def test_an_interval_counts_what_was_queued_in_it():
    first, second = count(
        answered(at(1), 10, 120, acw_ms=30_000),
        answered(at(5), 40, 60),
        left(at(6), 4),
        left(at(7), 90),
        left(at(8), 60, "timeout"),
        VisitRow("c", "cards", at(29)),
        answered(at(29, 59), 25, 60),
        answered(at(30), 0, 60),
        refused=[RefusedRow("d", "cards", at(12))],
    )
    assert (first.start, first.end, first.queue) == (at(0), at(30), "cards")
    assert (first.offered, first.answered, first.answered_within) == (7, 3, 1)
    assert (first.abandoned, first.abandoned_short, first.left_otherwise, first.waiting) == (2, 1, 1, 1)
    assert first.refused == 1
    assert first.answer_rate == Figure(3 / 6)
    assert first.service_level == Figure(1 / (3 + 2 - 1))
    assert first.average_speed_of_answer_ms == Figure(25_000)
    assert first.average_handling_time_ms == Figure(90_000)
    assert first.longest_wait == Figure(90_000)
    assert (second.offered, second.answered_within, second.service_level) == (1, 1, Figure(1.0))


def test_the_limits_are_the_ones_asked_for_and_count_inclusive_for_answers_exclusive_for_short():
    rows = answered(at(1), 20, 60), answered(at(1), 21, 60), left(at(2), 5), left(at(2), 4)
    interval = count(*rows, minutes=30)[0]
    assert (interval.answered_within, interval.abandoned_short) == (1, 1)
    stricter = count(*rows, minutes=30, within=timedelta(seconds=15), short=timedelta(seconds=6))[0]
    assert (stricter.answered_within, stricter.abandoned_short) == (0, 2)


def test_the_switch_s_own_wait_goes_before_the_difference_of_times():
    assert count(answered(at(1), 10, 60, wait_ms=12_000), minutes=30)[0].wait_ms == 12_000


def test_two_clocks_that_disagree_make_no_negative_time():
    row = VisitRow(
        "c", "cards", at(2), answered_at=at(1), talk_ended_at=at(0), agent="0417", acw_ms=5_000, wait_ms=-3
    )
    interval = count(row, minutes=30)[0]
    assert (interval.wait_ms, interval.handle_ms, interval.agents_busy_ms) == (0, 5_000, 5_000)


def test_the_agents_time_is_split_where_it_was_spent():
    # Answered at 09:20, 30 min of talk, 5 min of work after it: 10 min before the half hour, 25 after.
    first, second, third = count(answered(at(20), 0, 1800, acw_ms=5 * MINUTE), minutes=90)
    assert (first.agents_busy_ms, second.agents_busy_ms) == (10 * MINUTE, 25 * MINUTE)
    assert (first.handle_ms, second.handle_ms) == (35 * MINUTE, 0)
    assert first.occupancy == Figure(10 / 30)
    assert second.occupancy == Figure(25 / 30)
    assert third.occupancy == Figure(None, Missing.NOBODY_STAFFED)


def test_a_hold_lies_inside_the_talk_and_is_counted_once():
    seen = answered(at(0), 0, 300, hold_ms=60_000, talk_ms=240_000)
    told = VisitRow(
        "c", "cards", at(0), answered_at=at(0), talk_ms=240_000, hold_ms=60_000, agent="0417", acw_ms=0
    )
    for row in (seen, told):
        assert count(row, minutes=30)[0].average_handling_time_ms == Figure(300_000)


def test_work_after_a_call_that_runs_into_the_next_is_one_agent_s_time():
    interval = count(answered(at(0), 0, 600, acw_ms=10 * MINUTE), answered(at(15), 0, 600), minutes=30)[0]
    assert interval.handle_ms == 30 * MINUTE
    assert interval.agents_busy_ms == 25 * MINUTE


def test_an_agent_is_staffed_from_his_first_to_his_last_interval_of_work():
    intervals = count(answered(at(20), 0, 60), answered(at(130), 0, 60), minutes=240)
    assert [interval.staffed_ms // MINUTE for interval in intervals] == [30, 30, 30, 30, 30, 0, 0, 0]


def test_work_that_ends_with_an_interval_staffs_no_other():
    intervals = count(answered(at(0), 0, 1800), minutes=60)
    assert [(one.agents_busy_ms, one.staffed_ms) for one in intervals] == [(30 * MINUTE, 30 * MINUTE), (0, 0)]


def test_a_long_silence_ends_a_shift():
    later = AWAY // timedelta(minutes=1) + 61
    intervals = count(answered(at(0), 0, 60), answered(at(later), 0, 60), minutes=later + 29)
    staffed = [interval.staffed_ms // MINUTE for interval in intervals]
    assert staffed == [30, *[0] * (len(staffed) - 2), 30]


def test_an_agent_of_two_queues_is_as_busy_in_both_as_he_is():
    rows = (
        answered(at(0), 0, 600),
        answered(at(10), 0, 600, queue="loans"),
        answered(at(0), 0, 300, agent="0418"),
    )
    cards, loans = count(*rows, minutes=30)
    assert (cards.queue, loans.queue) == ("cards", "loans")
    assert loans.occupancy == Figure(20 / 30)
    assert cards.occupancy == Figure(25 / 60)
    merged = count(*rows, minutes=30, merged=True)
    assert [(one.queue, one.occupancy) for one in merged] == [(ALL_QUEUES, Figure(25 / 60))]


def test_what_cannot_be_computed_is_none_with_a_reason_in_both_languages():
    empty = count(left(at(1), 2), minutes=30)[0]
    assert empty.service_level == Figure(None, Missing.NO_CALLS)
    assert empty.average_speed_of_answer_ms == Figure(None, Missing.NONE_ANSWERED)
    assert empty.average_handling_time_ms == Figure(None, Missing.NOT_HANDLED)
    assert empty.occupancy == Figure(None, Missing.NOBODY_STAFFED)
    waiting = count(VisitRow("c", "cards", at(1)), minutes=30)[0]
    assert waiting.longest_wait == Figure(None, Missing.NONE_WAITED)
    unnamed = count(answered(at(1), 0, 60, agent=None), answered(at(2), 0, 60), minutes=60)
    assert unnamed[0].occupancy == Figure(None, Missing.AGENT_UNKNOWN)
    assert total(unnamed).occupancy == Figure(None, Missing.AGENT_UNKNOWN)
    assert all(isinstance(getattr(empty, name), Figure) for name in NAMES)
    assert waiting.answer_rate == Figure(None, Missing.NO_CALLS)
    assert set(REASONS) == set(Missing)
    assert all(
        set(words) == {"zh", "en"} and all(words.values())
        for words in [*REASONS.values(), *NAMES.values(), SERVICE_LEVEL]
    )


def test_a_talk_that_has_not_ended_is_answered_and_nobody_s_time():
    row = VisitRow("c", "cards", at(1), answered_at=at(1, 5), agent="0417")
    interval = count(row, minutes=30)[0]
    assert (interval.answered, interval.average_speed_of_answer_ms) == (1, Figure(5_000))
    assert interval.average_handling_time_ms == Figure(None, Missing.NOT_HANDLED)


def test_calls_queued_before_count_only_for_the_agents():
    interval = count(answered(at(-5), 0, 600), minutes=30)[0]
    assert (interval.offered, interval.handle_ms) == (0, 0)
    assert interval.agents_busy_ms == 5 * MINUTE


def test_nothing_in_nothing_out():
    assert count() == []


# ------------------------------------------------------------------ intervals of real days


def test_an_interval_begins_on_the_local_half_hour_also_where_the_zone_is_a_quarter_off():
    kathmandu = ZoneInfo("Asia/Kathmandu")  # 5:45 ahead
    start, end = interval_of(datetime(2026, 11, 23, 4, 0, tzinfo=UTC), HALF_HOUR, kathmandu)
    assert (start.isoformat(), end.isoformat()) == ("2026-11-23T09:30:00+05:45", "2026-11-23T10:00:00+05:45")


@pytest.mark.parametrize(
    ("day", "zone", "count"),
    [
        (date(2026, 3, 29), "Europe/Berlin", 46),  # 02:00 is 03:00
        (date(2026, 10, 25), "Europe/Berlin", 50),  # 02:00 to 03:00 is there twice
        (date(2026, 11, 23), "Asia/Shanghai", 48),
        (date(2026, 3, 29), "Asia/Beirut", 46),  # there is no midnight: 00:00 is 01:00
    ],
)
def test_a_day_of_a_clock_change_has_its_real_number_of_intervals(day, zone, count):
    tz = ZoneInfo(zone)
    midnight, next_ = (datetime(d.year, d.month, d.day, tzinfo=tz) for d in (day, day + timedelta(days=1)))
    intervals = [
        (start.astimezone(UTC), end.astimezone(UTC))
        for start, end in intervals_between(midnight, next_, HALF_HOUR, tz)
    ]
    assert len(intervals) == count
    assert all(end - start == HALF_HOUR for start, end in intervals)
    assert all(before[1] == after[0] for before, after in pairwise(intervals))


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))
zones = st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]).map(
    ZoneInfo
)
lengths = st.sampled_from([5, 15, 30, 60, 120, 360]).map(lambda minutes: timedelta(minutes=minutes))


@given(moments, lengths, zones)
def test_every_moment_lies_in_exactly_the_interval_it_is_given(moment, every, tz):
    start, end = (edge.astimezone(UTC) for edge in interval_of(moment, every, tz))
    assert start <= moment < end
    assert end - start <= every
    for edge, same in ((start, True), (end - timedelta(microseconds=1), True), (end, False)):
        assert (interval_of(edge, every, tz)[0].astimezone(UTC) == start) is same


def test_intervals_that_do_not_divide_a_day_and_naive_times_are_refused():
    with pytest.raises(ValueError, match="do not divide a day"):
        interval_of(NINE, timedelta(minutes=7), SHANGHAI)
    with pytest.raises(ValueError, match="do not divide a day"):
        interval_of(NINE, timedelta(), SHANGHAI)
    with pytest.raises(ValueError, match="no time zone"):
        interval_of(datetime(2026, 11, 23), HALF_HOUR, SHANGHAI)


# ------------------------------------------------------------------ conservation


@st.composite
def visits(draw):
    queued = NINE + timedelta(seconds=draw(st.integers(-3600, 6 * 3600)))
    queue = draw(st.sampled_from(["cards", "loans", "fraud"]))
    wait = draw(st.integers(0, 300))
    kind = draw(st.sampled_from(["answered", "talking", "left", "waiting"]))
    if kind == "left":
        return left(queued, wait, draw(st.sampled_from(["abandoned", "timeout", "key", "unknown"])), queue)
    if kind == "waiting":
        return VisitRow("c", queue, queued)
    agent = draw(st.sampled_from(["1", "2", "3", "4"]))
    if kind == "talking":
        return VisitRow("c", queue, queued, answered_at=queued + timedelta(seconds=wait), agent=agent)
    acw = draw(st.integers(0, 120_000))
    return answered(queued, wait, draw(st.integers(0, 5400)), agent, queue, acw_ms=acw)


refusals = st.builds(
    RefusedRow,
    st.just("c"),
    st.sampled_from(["cards", "fraud", "branch"]),
    st.integers(-60, 420).map(at),
)
facts = st.lists(visits(), max_size=25), st.lists(refusals, max_size=5)
COUNTS = (
    "offered",
    "answered",
    "answered_within",
    "abandoned",
    "abandoned_short",
    "left_otherwise",
    "waiting",
    "refused",
)
SUMS = (*COUNTS, "answered_waits", "wait_ms", "handled", "handle_ms")


def sums(intervals, names=SUMS):
    return {name: sum(getattr(one, name) for one in intervals) for name in names}


@given(*facts)
def test_every_visit_and_refusal_of_the_period_is_counted_once(rows, refused):
    intervals = count(*rows, refused=refused, minutes=360)
    inside = [row for row in rows if NINE <= row.queued_at < at(360)]
    assert sum(one.offered for one in intervals) == len(inside)
    assert sum(one.refused for one in intervals) == sum(NINE <= row.refused_at < at(360) for row in refused)
    by_queue = Counter(row.queue for row in inside)
    assert {
        queue: sum(one.offered for one in intervals if one.queue == queue) for queue in by_queue
    } == by_queue


@given(*facts)
def test_who_was_offered_was_answered_or_left_or_waits(rows, refused):
    for one in count(*rows, refused=refused, minutes=360):
        assert one.offered == one.answered + one.abandoned + one.left_otherwise + one.waiting
        assert one.answered_within <= one.answered
        assert one.abandoned_short <= one.abandoned
        assert one.handled <= one.answered
        for share in (one.service_level, one.occupancy):
            assert (share.value is None) is (share.missing is not None)
            assert share.value is None or 0 <= share.value <= 1


@given(*facts)
def test_the_time_of_agents_is_conserved_over_intervals(rows, refused):
    merged = count(*rows, refused=refused, since=NINE - timedelta(hours=1), minutes=600, merged=True)
    # Second by second, each agent is busy or not; the period holds all of it.
    busy = {
        (row.agent, second)
        for row in rows
        if row.talk_ended_at is not None
        for second in range(
            int(row.answered_at.timestamp() * 1000),
            int(row.talk_ended_at.timestamp() * 1000) + row.acw_ms,
            1000,
        )
    }
    seconds = sum(one.agents_busy_ms for one in merged) / 1000
    assert abs(seconds - len(busy)) <= len(rows)  # the last second of a piece of work may not be whole


@given(*facts)
def test_merging_queues_adds_up_their_calls_and_counts_agents_once(rows, refused):
    apart = count(*rows, refused=refused, minutes=360)
    merged = count(*rows, refused=refused, minutes=360, merged=True)
    for one in merged:
        same = [other for other in apart if other.start == one.start]
        assert sums([one]) == sums(same)
        assert one.staffed_ms <= sum(other.staffed_ms for other in same)
        waits = [other.longest_wait_ms for other in same if other.longest_wait_ms is not None]
        assert one.longest_wait_ms == max(waits, default=None)


@given(*facts)
def test_halving_the_intervals_moves_no_call_and_no_busy_time(rows, refused):
    halves = count(*rows, refused=refused, minutes=360, every=QUARTER)
    for whole in count(*rows, refused=refused, minutes=360):
        parts = [one for one in halves if one.queue == whole.queue and whole.start <= one.start < whole.end]
        joined = total(parts)
        assert (joined.start, joined.end) == (whole.start, whole.end)
        assert sums([joined]) == sums([whole])
        assert joined.agents_busy_ms == whole.agents_busy_ms
        assert joined.longest_wait_ms == whole.longest_wait_ms
        assert joined.staffed_ms <= whole.staffed_ms  # a finer cut knows better when a shift began


@given(*facts, st.randoms())
def test_the_order_of_facts_does_not_matter(rows, refused, dice):
    mixed, turned_away = list(rows), list(refused)
    dice.shuffle(mixed)
    dice.shuffle(turned_away)
    assert count(*rows, refused=refused, minutes=360) == count(*mixed, refused=turned_away, minutes=360)


def test_intervals_of_several_queues_or_none_are_not_added_up():
    with pytest.raises(ValueError, match="2 queues"):
        total(count(left(at(0), 9), left(at(0), 9, queue="loans"), minutes=30))
    with pytest.raises(ValueError, match="0 queues"):
        total([])


# ------------------------------------------------------------------ the recorded switch

RUN2 = Path(str(resources.files("cli"))) / "recordings/run2-full/ami-steady.raw.gz"


def test_the_figures_equal_what_the_switch_reported():
    visits: dict[tuple[str, int], dict] = {}
    refused, talks, waits = [], [], []
    for body in (fact.body for fact in replay(RUN2, "pbx")):
        if isinstance(body, telephony.CallQueued):
            visits[body.call_id, body.visit] = {"queue": body.queue, "queued_at": body.occurred_at}
        elif isinstance(body, telephony.CallAnswered):
            visits[body.call_id, body.visit] |= {"answered_at": body.occurred_at, "wait_ms": body.wait_ms}
            visits[body.call_id, body.visit]["agent"] = body.agent
            waits.append(body.wait_ms)
        elif isinstance(body, telephony.QueueLeft):
            visits[body.call_id, body.visit] |= {"left_at": body.occurred_at, "left_reason": body.reason}
        elif isinstance(body, telephony.TalkEnded):
            visits[body.call_id, body.visit] |= {"talk_ended_at": body.occurred_at, "talk_ms": body.talk_ms}
            talks.append(body.talk_ms)
        elif isinstance(body, telephony.CallRefused):
            refused.append(RefusedRow(body.call_id, body.queue, body.occurred_at))
    rows = [VisitRow(call_id, **row) for (call_id, _), row in visits.items()]
    since = min(row.queued_at for row in rows)
    whole = total(
        by_interval(
            rows,
            refused,
            since=since,
            until=max(row.queued_at for row in rows) + HALF_HOUR,
            tz=SHANGHAI,
            merged=True,
        )
    )
    assert (whole.offered, whole.answered, whole.abandoned, whole.left_otherwise, whole.refused) == (
        63,
        50,
        5,
        8,
        8,
    )
    assert whole.average_speed_of_answer_ms.value == sum(waits) / len(waits)
    # The switch reports whole seconds of talk; the times it stamps are finer.
    assert whole.average_handling_time_ms.value == pytest.approx(sum(talks) / len(talks), abs=1000)
    assert 0 < whole.occupancy.value < 1
