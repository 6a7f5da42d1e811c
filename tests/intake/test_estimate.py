"""What a waiting caller is told: the estimate, its words, and how both do against real calls."""

import gzip
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import pairwise
from math import asinh, exp, factorial, log
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.waiting import (
    CALLS,
    ESTIMATE,
    LAST_WAIT,
    MOVING_AVERAGE,
    WHOLE,
    Asked,
    Replay,
    backtest,
    figures,
    floor_percent,
    read_calls,
)
from schemas import telephony
from services.intake.sources.asterisk import replay
from services.intake.waiting.estimate import (
    ENOUGH,
    RECENT,
    Estimate,
    Served,
    Snapshot,
    Standing,
    Stay,
    estimate,
    line_of,
    served,
    standing,
)
from services.intake.waiting.wording import BEYOND, STEPS, Told, tell

RECORDING = Path(str(resources.files("cli"))) / "recordings/run2-full/ami-steady.raw.gz"
NINE = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def seconds(value):
    return timedelta(seconds=value)


def after(value):
    return NINE + seconds(value)


def waited(wait, ahead=0, freed=0, staffed=4):
    return Served(Standing(ahead, freed, staffed), seconds(wait))


def stay(queued, answered=None, left=None, ended=None, agent="a1", credit=0):
    times = (None if at is None else after(at) for at in (answered, left, ended))
    return Stay(after(queued), after(queued - credit), *times, agent=agent if answered is not None else None)


# --- how a caller stands ---


def test_those_who_rank_before_and_still_wait_are_ahead():
    stays = [stay(-50), stay(-40, left=-5), stay(-30, answered=-1), stay(10), stay(-20, answered=5)]
    assert standing(stays, after(0), NINE).ahead == 2


def test_a_credit_moves_a_later_caller_ahead_and_him_only():
    stays = [stay(-20), stay(-5, credit=90)]
    assert standing(stays, after(-10), NINE).ahead == 2
    assert standing(stays, after(-10 - 90), NINE).ahead == 0


def test_agents_count_as_at_work_for_ten_minutes_and_as_freed_for_ten_seconds():
    stays = [
        stay(-900, answered=-890, ended=-601, agent="gone"),
        stay(-900, answered=-890, ended=-600, agent="pausing"),
        stay(-900, answered=-890, ended=-10, agent="freed"),
        stay(-900, answered=-890, ended=-11, agent="pausing too"),
        stay(-900, answered=-890, ended=-8, agent="took the next"),
        stay(-300, answered=-4, ended=70, agent="took the next"),
        stay(-300, answered=-200, agent="talking"),
        stay(-300, answered=-200, ended=-5, agent=None),
    ]
    assert standing(stays, after(0), NINE) == Standing(ahead=0, freed=1, staffed=5)


def test_what_happens_at_the_very_moment_has_happened():
    stays = [
        stay(-50, left=0),
        stay(-50, answered=0, agent="a1"),
        stay(-90, answered=-60, ended=0, agent="a2"),
    ]
    assert standing(stays, after(0), NINE) == Standing(ahead=0, freed=1, staffed=2)


def test_a_stay_that_lost_its_end_counts_for_two_hours():
    lost = [stay(-7200), stay(-7201), stay(-7201, answered=-7100, agent="a2")]
    assert standing(lost, after(0), NINE) == Standing(ahead=1)


STAYS = st.builds(
    lambda queued, wait, talk, answers, agent, credit: stay(
        queued,
        answered=queued + wait if answers else None,
        left=None if answers else queued + wait,
        ended=queued + wait + talk if answers else None,
        agent=agent,
        credit=credit,
    ),
    st.integers(-3000, 100),
    st.integers(0, 600),
    st.integers(0, 900),
    st.booleans(),
    st.sampled_from(["a1", "a2", "a3"]),
    st.sampled_from([0, 90]),
)


def as_of_nine(one):
    answered = one.answered_at is not None and one.answered_at <= NINE
    return replace(
        one,
        answered_at=one.answered_at if answered else None,
        left_at=one.left_at if one.left_at is not None and one.left_at <= NINE else None,
        talk_ended_at=one.talk_ended_at if answered and one.talk_ended_at <= NINE else None,
        agent=one.agent if answered else None,
    )


@given(st.lists(STAYS, max_size=30), st.integers(-100, 0))
def test_the_future_changes_nothing(stays, rank):
    known = [as_of_nine(one) for one in stays if one.queued_at <= NINE]
    assert standing(stays, after(rank), NINE) == standing(known, after(rank), NINE)
    assert served(stays, NINE) == served(known, NINE)


def test_served_tells_how_each_stood_when_he_joined_in_the_order_of_answers():
    stays = [
        stay(-500, answered=-500, ended=-200, agent="a1"),
        stay(-400, answered=-190, ended=-100, agent="a1"),
        stay(-195, answered=-90, agent="a1"),
        stay(-180, left=-120),
        stay(-80, answered=-77, agent="a2"),
        stay(-60, answered=5, agent="a2"),
    ]
    assert served(stays, NINE, at_once=seconds(3)) == (
        Served(Standing(ahead=0, freed=0, staffed=1), seconds(210)),
        Served(Standing(ahead=1, freed=1, staffed=1), seconds(105)),
    )
    assert len(served(stays, NINE)) == 3


def test_only_the_last_two_hundred_answers_are_told():
    stays = [stay(10 * n - 3000, answered=10 * n - 2999 + n % 2) for n in range(RECENT + 1)]
    assert [one.wait for one in served(stays, NINE)] == [seconds(2), seconds(1)] * (RECENT // 2)


# --- the estimate ---


def test_the_pace_of_those_served_is_multiplied_by_the_places():
    history = [waited(30 * (ahead + 1), ahead) for ahead in (0, 1, 2, 3) for _ in range(10)]
    assert estimate(Snapshot(Standing(2, 0, 4), history)) == Estimate(seconds(90), seconds(90), "history")


def test_the_bound_comes_from_how_far_the_pace_missed_and_narrows_with_the_places():
    history = [waited(10 * n) for n in range(1, 22)]
    # 21 waits of 10 to 210 s: the median is 110, and nine in ten are no longer than the 19th, 190.
    assert estimate(Snapshot(Standing(0, 0, 4), history)) == Estimate(seconds(110), seconds(190), "history")
    assert estimate(Snapshot(Standing(3, 0, 4), history)) == Estimate(seconds(440), seconds(600), "history")


def test_an_agent_just_freed_takes_a_place_off_but_never_the_last_half():
    history = [waited(40)] * ENOUGH
    expected = {freed: estimate(Snapshot(Standing(1, freed, 4), history)).expected for freed in range(4)}
    assert expected == {0: seconds(80), 1: seconds(40), 2: seconds(20), 3: seconds(20)}


def test_four_times_the_agents_halve_the_wait_and_an_unknown_number_is_the_usual_one():
    history = [waited(40, staffed=4)] * 21
    assert estimate(Snapshot(Standing(1, 0, 16), history)).expected == seconds(40)
    assert estimate(Snapshot(Standing(0, 0, 0), history)).expected == seconds(40)


def test_only_the_last_two_hundred_served_count():
    history = [waited(900)] * 500 + [waited(40)] * RECENT
    assert estimate(Snapshot(Standing(0, 0, 4), history)) == Estimate(seconds(40), seconds(40), "history")


def test_without_history_the_talks_of_the_agents_serve():
    # Two departures at random, one each 120/4 = 30 s: Erlang of order 2, median 1.678 x 30, 90 % 3.890 x 30.
    told = estimate(Snapshot(Standing(1, 0, 4), [waited(40)] * (ENOUGH - 1), [seconds(120)] * ENOUGH))
    assert told.basis == "agents"
    assert told.expected.total_seconds() == pytest.approx(1.678 * 30, rel=0.01)
    assert told.at_most.total_seconds() == pytest.approx(3.890 * 30, rel=0.01)


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (Snapshot(Standing(0)), "no_history"),
        (Snapshot(Standing(2, 0, 3)), "no_history"),
        (Snapshot(Standing(0), (), [seconds(100)] * 50), "no_history"),
        (
            Snapshot(Standing(2, 0, 3), [waited(40)] * (ENOUGH - 1), [seconds(100)] * (ENOUGH - 1)),
            "no_history",
        ),
        (Snapshot(Standing(1, 0, 0), [waited(40)] * 100, [seconds(100)] * 50), "no_agent_seen"),
    ],
)
def test_what_is_not_known_is_not_told(snapshot, reason):
    assert estimate(snapshot) == Estimate(None, None, "unknown", reason)


SERVED = st.builds(waited, st.integers(0, 900), st.integers(0, 12), st.integers(0, 3), st.integers(0, 12))
SNAPSHOTS = st.builds(
    Snapshot,
    st.builds(Standing, st.integers(0, 30), st.integers(0, 3), st.integers(1, 12)),
    st.lists(SERVED, max_size=40),
    st.lists(st.integers(0, 4000).map(seconds), min_size=ENOUGH, max_size=40),
)


@given(SNAPSHOTS)
def test_never_negative_and_the_bound_never_below_the_estimate(snapshot):
    told = estimate(snapshot)
    assert timedelta(0) <= told.expected <= told.at_most


@given(SNAPSHOTS)
def test_one_more_ahead_is_never_sooner(snapshot):
    longer = replace(snapshot, standing=replace(snapshot.standing, ahead=snapshot.standing.ahead + 1))
    told, later = estimate(snapshot), estimate(longer)
    assert told.basis == later.basis
    assert told.expected <= later.expected
    assert told.at_most <= later.at_most


# --- the words ---


def likely(expected, at_most):
    return Estimate(seconds(expected), seconds(at_most), "history")


@pytest.mark.parametrize(
    ("told", "ahead", "en", "zh"),
    [
        (
            likely(95, 250),
            2,
            "You are number 3 in the queue. The wait is about 2 minutes, most likely less than 5 minutes.",
            "您前面还有2位。预计等待约2分钟，一般不超过5分钟。",
        ),
        (
            likely(25, 60),
            0,
            "You are next. The wait is about 30 seconds, most likely less than 1 minute.",
            "下一位就是您。预计等待约30秒，一般不超过1分钟。",
        ),
        (
            likely(10, 30),
            0,
            "You are next. The wait is most likely less than 30 seconds.",
            "下一位就是您。预计等待不超过30秒。",
        ),
        (
            likely(2000, 3601),
            40,
            "You are number 41 in the queue. The wait is about 45 minutes, perhaps more.",
            "您前面还有40位。预计等待约45分钟，也可能更久。",
        ),
        (
            likely(3601, 9000),
            70,
            "You are number 71 in the queue. The wait is likely more than an hour.",
            "您前面还有70位。预计还要等待1小时以上。",
        ),
        (
            Estimate(None, None, "unknown", "no_history"),
            1,
            "You are number 2 in the queue. We cannot say yet how long it takes: too few calls have been answered lately.",
            "您前面还有1位。近期接通的电话太少，暂时无法估计等待时间。",
        ),
        (
            Estimate(None, None, "unknown", "no_agent_seen"),
            1,
            "You are number 2 in the queue. We cannot say how long it takes: no agent has answered for some minutes.",
            "您前面还有1位。最近几分钟没有坐席接听，暂时无法估计等待时间。",
        ),
    ],
)
def test_what_the_caller_hears(told, ahead, en, zh):
    assert tell(told, ahead, "en").text == en
    assert tell(told, ahead, "zh").text == zh


def test_what_was_named_is_kept_in_milliseconds():
    told = tell(likely(95, 250), 2, "en")
    assert (told.position, told.about, told.at_most_ms) == (3, seconds(120), 300_000)
    assert tell(likely(3601, 9000), 2, "en").at_most_ms is None
    assert tell(Estimate(None, None, "unknown", "no_history"), 2, "en").at_most_ms is None


def test_a_little_better_changes_nothing_and_clearly_better_does():
    before = tell(likely(130, 310), 2, "en")
    assert (before.about, before.at_most) == (seconds(180), seconds(600))
    little = tell(likely(110, 290), 2, "en", before, seconds(20))
    assert (little.about, little.at_most) == (seconds(180), seconds(600))
    clearly = tell(likely(90, 240), 1, "en", before, seconds(40))
    assert (clearly.about, clearly.at_most) == (seconds(120), seconds(300))


def test_a_promise_that_will_not_hold_is_owned():
    before = tell(likely(50, 170), 2, "en")
    assert before.at_most == seconds(180)
    holds = tell(likely(60, 200), 1, "en", before, seconds(120))
    breaks = tell(likely(110, 200), 1, "en", before, seconds(120))
    assert "longer than we said" not in holds.text
    assert breaks.text == (
        "You are number 2 in the queue. We are sorry, it takes longer than we said."
        " The wait is about 2 minutes, most likely less than 5 minutes."
    )
    assert "比刚才告知的要长" in tell(likely(110, 200), 1, "zh", before, seconds(120)).text


@given(st.sampled_from([step / timedelta(seconds=1) for step in STEPS]))
def test_the_same_wait_told_again_a_moment_later_breaks_no_promise(wait):
    first = tell(likely(wait, wait), 2, "en")
    again = tell(likely(wait, wait), 2, "en", first, seconds(1))
    assert again.text == first.text


@pytest.mark.parametrize("now", [likely(1, 5), Estimate(None, None, "unknown", "no_agent_seen")])
def test_a_promise_whose_time_is_over_is_broken(now):
    before = tell(likely(50, 170), 2, "en")
    assert "longer than we said" in tell(now, 0, "en", before, seconds(181)).text
    assert "longer than we said" not in tell(now, 0, "en", before, seconds(179)).text


ESTIMATES = st.tuples(st.integers(0, 5000), st.integers(0, 5000)).map(
    lambda pair: likely(min(pair), max(pair))
)
BEFORE = st.none() | st.builds(tell, ESTIMATES, st.integers(0, 30), st.just("en"))


@given(ESTIMATES, BEFORE)
def test_nothing_named_is_shorter_than_it_was_estimated(told, before):
    said = tell(told, 3, "en", before)
    assert told.expected <= said.about <= said.at_most
    assert told.at_most <= said.at_most
    assert {said.about, said.at_most} <= {*STEPS, BEYOND}


@given(st.integers(30, 4000), st.lists(st.floats(0.9, 1.1), min_size=2, max_size=20))
def test_an_estimate_that_trembles_is_never_told_better_and_then_worse(wait, tremble):
    told: list[Told] = []
    for factor in tremble:
        told.append(tell(likely(wait * factor, wait * factor), 3, "en", told[-1] if told else None))
    assert all(earlier.about <= later.about for earlier, later in pairwise(told))


# --- against real calls ---

HEAD = "vru+line call_id customer_id priority type date vru_entry vru_exit vru_time q_start q_exit q_time outcome ser_start ser_exit ser_time server"
ROWS = """
AA0101 1 0 0 PS 990203 9:00:00 9:00:09 9 0:00:00 0:00:00 0 AGENT 9:00:08 9:05:00 292 ANNA
AA0101 2 7 2 PS 990203 9:00:00 9:00:10 10 9:00:10 9:01:00 50 AGENT 9:00:59 9:00:30 0 NO_SERVER
AA0101 3 0 0 NW 990203 9:00:00 9:00:05 5 9:00:05 9:00:45 40 HANG 0:00:00 0:00:00 0 NO_SERVER
AA0101 4 8 1 PS 990203 9:00:00 9:00:07 7 9:00:07 9:00:27 20 PHANTOM 0:00:00 0:00:30 30 NO_SERVER
AA0101 5 0 0 PS 990203 9:00:00 9:00:07 7 0:00:00 0:00:00 0 HANG 0:00:00 0:00:00 0 NO_SERVER
AA0101 6 9 1 PS 990203 23:59:40 23:59:50 10 23:59:50 0:00:20 30 AGENT 0:00:19 0:03:20 181 BERT
AA0101 7 9 1 PS 990203 23:59:55 0:00:02 7 0:00:02 0:00:50 48 AGENT 0:00:49 0:02:50 121 CARL
"""


def test_dirty_rows_are_read_as_the_backtest_says(tmp_path):
    path = tmp_path / "calls.tsv.gz"
    path.write_bytes(gzip.compress("\n".join([HEAD, *ROWS.split("\n")[1:-1]]).replace(" ", "\t").encode()))
    calls = read_calls(path)

    def clock(at):
        return None if at is None else f"{at:%d %H:%M:%S}"

    assert [
        (
            clock(one.stay.queued_at),
            (one.stay.queued_at - one.stay.rank).total_seconds(),
            clock(one.stay.answered_at),
            clock(one.stay.left_at),
            clock(one.stay.talk_ended_at),
            one.stay.agent,
        )
        for one in calls
    ] == [
        ("03 09:00:05", -90, None, "03 09:00:45", None, None),
        ("03 09:00:07", 0, None, "03 09:00:27", None, None),
        ("03 09:00:09", 0, "03 09:00:09", None, "03 09:05:00", "ANNA"),
        ("03 09:00:10", 90, "03 09:01:00", None, "03 09:01:00", None),
        ("03 23:59:50", 0, "04 00:00:20", None, "04 00:03:20", "BERT"),
        ("04 00:00:02", 0, "04 00:00:50", None, "04 00:02:50", "CARL"),
    ]


def test_figures_are_what_they_are_called():
    asked = [
        Asked(1, 0, seconds(wait), {"x": Estimate(seconds(50), seconds(bound), "history")})
        for wait, bound in ((10, 60), (40, 60), (60, 60), (70, 60), (100, 120))
    ]
    # Errors 40, 10, 10, 20, 50 around a median wait of 60.
    assert figures(asked, "x") == {
        "n": 5,
        "median_wait_s": 60.0,
        "median_error_s": 20.0,
        "median_error_percent": 33.3,
        "mean_error_s": 26.0,
        "p90_error_s": 46.0,
        "within_estimate": 0.4,
        "within_bound": 0.8,
    }


def test_the_floor_for_callers_with_nobody_ahead_is_that_of_an_exponential_wait():
    # Of waits with mean 1, half are within asinh(1/2) of the median ln 2, and half within ln(2)/2 of ln(2)/2.
    alone = [Asked(1, 0, seconds(1), {})] * 3
    assert floor_percent(alone) == {"median_told": round(100 * asinh(0.5) / log(2), 1), "best_point": 50.0}


def erlang(order, wait):
    return 1 - sum(exp(-wait) * wait**n / factorial(n) for n in range(order))


@pytest.mark.parametrize("ahead", [[0], [1], [5], [0, 0, 1, 3]])
def test_whatever_callers_are_told_no_more_than_half_are_within_the_floor(ahead):
    floor = floor_percent([Asked(1, one, seconds(1), {}) for one in ahead])
    orders, times = [one + 1 for one in ahead], [n / 100 for n in range(1500)]
    wait = next(x for x in times if fmean(erlang(order, x) for order in orders) >= 0.5)
    width = 2 * floor["best_point"] / 100 * wait
    within = [max(erlang(order, x + width) - erlang(order, x) for x in times) for order in orders]
    assert fmean(within) == pytest.approx(0.5, abs=0.005)
    assert floor["best_point"] < floor["median_told"]


@pytest.fixture(scope="module")
def first_days():
    if not CALLS.exists():
        pytest.skip(f"{CALLS} is not there")
    return [call for call in read_calls(CALLS) if call.stay.queued_at.day <= 4]


def test_real_callers_are_told_better_than_by_earlier_waits_and_the_bound_holds(first_days):
    report = backtest(first_days)
    rows = report["periods"][WHOLE]
    assert rows[ESTIMATE]["n"] == 2831
    assert report["untold"] == 3
    assert rows[ESTIMATE]["median_error_s"] < 0.75 * rows[MOVING_AVERAGE]["median_error_s"]
    assert rows[ESTIMATE]["median_error_s"] < 0.75 * rows[LAST_WAIT]["median_error_s"]
    assert rows[ESTIMATE]["mean_error_s"] < 0.80 * rows[MOVING_AVERAGE]["mean_error_s"]
    assert 0.45 <= rows[ESTIMATE]["within_estimate"] <= 0.55
    assert 0.88 <= rows[ESTIMATE]["within_bound"] <= 0.92


def test_the_replay_sees_what_the_rows_of_the_past_say(first_days):
    morning = first_days[:250]
    replay = Replay(morning)
    assert list(replay.asked())
    stays = [call.stay for call in morning]
    assert tuple(replay._served) == served(stays, max(one.answered_at for one in stays if one.answered_at))


# ------------------------------------------------------------ where the switch says that callers stand


def test_without_places_the_line_is_ordered_by_rank():
    stays = [stay(-30), stay(-20, credit=90), stay(-10), stay(-40, left=-5), stay(5), stay(-9000)]
    assert line_of(stays, NINE) == [stays[1], stays[0], stays[2]]


def recorded_stays():
    """The stays of a real PBX with priorities that it does not tell, and the places that it told later."""
    facts = [fact.body for fact in replay(RECORDING, "pbx")]
    ends = {
        (body.call_id, body.visit): body.occurred_at
        for body in reversed(facts)
        if isinstance(body, telephony.CallAnswered | telephony.QueueLeft)
    }
    stays = {}
    for body in facts:
        if isinstance(body, telephony.CallQueued):
            at, name = body.occurred_at, (body.call_id, body.visit)
            stay = Stay(at, at, left_at=ends.get(name), place=body.position, placed_at=at)
            stays.setdefault(body.queue, {})[name] = stay
    told = [body for body in facts if isinstance(body, telephony.CallPositioned)]
    return stays, told


def test_the_line_of_a_real_queue_stands_as_the_switch_says_and_not_first_come_first_served():
    stays, told = recorded_stays()
    right = by_rank = seen = 0
    for body in told:
        queue, at = stays[body.queue], body.occurred_at + timedelta(milliseconds=50)
        stay = queue.get((body.call_id, body.visit))
        if stay is None or not stay.waits(at):
            continue
        seen += 1
        line = line_of(queue.values(), at)
        right += [one is stay for one in line].index(True) + 1 == body.position
        by_rank += standing(queue.values(), stay.rank, at).ahead + 1 == body.position
    assert (seen, by_rank) == (88, 42)
    assert right >= 86
