"""How far behind a group is: exact against a model log, and never a false word."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.transport import Place
from observer.lag import SEVERITY, AppendTimes, Lag, LagWatch, Word, paused, worst

PLACE = Place("intake.cases", 0)
WEEK_MS = 7 * 86_400_000
POLL_MS = 250
T0 = 1_700_000_000_000


class Model:
    """One partition as a sorted list of append times (its index is the offset), one group, one watch."""

    def __init__(self, times: Iterable[int] = ()):
        self.times = list(times)
        self.markers = 0
        self.start = 0
        self.commit: int | None = 0
        self.unread = 0
        self.read_from: int | None = None
        self.leaderless = False
        self.watch = LagWatch()

    def produce(self, *at_ms: int) -> None:
        self.times += at_ms

    def append_time(self, offset: int) -> int | None:
        first = self.start if self.read_from is None else self.read_from
        return self.times[offset] if first <= offset < len(self.times) - self.unread else None

    def observe(self, now_ms: int, retention_ms: int | None = WEEK_MS) -> Lag:
        end = len(self.times) + self.markers
        [lag] = self.watch.observe(
            "router",
            {} if self.commit is None else {PLACE: self.commit},
            {PLACE: None if self.leaderless else end},
            {PLACE: self.start},
            lambda _, offset: self.append_time(offset),
            now_ms,
            lambda _: retention_ms,
            {PLACE: end - self.unread},
            {} if self.read_from is None else {PLACE: self.read_from},
        )
        return lag

    def run(self, from_ms: int, to_ms: int, step_ms: int = POLL_MS) -> list[Word]:
        """Let time go by and nothing else; gives the words without repetition."""
        return told(self.observe(now).word for now in range(from_ms, to_ms + 1, step_ms))


def told(words: Iterable[Word]) -> list[Word]:
    said: list[Word] = []
    for word in words:
        if said[-1:] != [word]:
            said.append(word)
    return said


# ---------------------------------------------------------------- append times

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["note"] * 8 + ["forget", "again", "start"]), st.integers(0, 4)), max_size=120
)


@given(OPERATIONS, st.booleans())
@settings(max_examples=150)
def test_append_times_answer_as_a_plain_dict_of_all_records_would(operations, declared):
    times, noted, newest, at_ms, first = AppendTimes(), {}, -1, T0, None
    if declared:
        times.start_at(first := 3)
        newest = 2
    for what, number in operations:
        if what == "note":
            # Holes of 0 to 4 offsets, and times that repeat, or go back as a broker's clock may.
            newest, at_ms = newest + 1 + number, at_ms + (number - 2) * (number != 3)
            times.note(newest, at_ms)
            noted[newest] = at_ms
            first = newest if first is None else first
        elif what == "again":
            times.note(newest - number, at_ms + 7)
        elif what == "forget":
            below = newest - 3 * number + 4
            times.forget_below(below)
            first = None if first is None else max(first, below)
        elif number == 0:
            times.start_at(first := newest + 6)
            noted, newest = {}, newest + 5
        assert times.first == first
    for offset in range(newest + 8):
        known = first is not None and offset >= first
        right = next((at for at_offset, at in sorted(noted.items()) if at_offset >= offset), None)
        assert times.at(offset) == (right if known else None)


def test_append_times_know_nothing_before_the_first_record():
    times = AppendTimes()
    times.forget_below(5)
    assert (times.first, times.at(0), len(times)) == (None, None, 0)


def test_a_run_of_equal_append_times_is_one_entry_and_what_is_forgotten_leaves_memory():
    times = AppendTimes()
    for offset in range(10_000):
        times.note(offset, T0 + offset // 100)
    times.note(9_999, T0)
    assert len(times) == 100
    for offset in range(0, 10_000, 7):
        times.forget_below(offset)
        assert times.at(offset) == T0 + offset // 100
        assert len(times._lasts) <= 2 * len(times)
    times.forget_below(20_000)
    assert (len(times), len(times._ats)) == (0, 0)
    times.note(20_000, T0)
    assert times.at(20_000) == T0


# ---------------------------------------------------------------- no false word

DAY_MS = 86_400_000


def idle(**how: object) -> Model:
    model = Model(T0 + i for i in range(100))
    for name, value in {"commit": 100, **how}.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"times": [], "commit": None},
        {"start": 100, "commit": None},
        {"start": 100, "commit": 40},
        {"markers": 1},
        {"markers": 3, "commit": 101},
        {"markers": 2, "read_from": 100},
    ],
    ids=lambda how: " ".join(f"{name}={value}" for name, value in how.items()) or "caught up",
)
def test_an_idle_topic_is_ok_for_a_whole_day(how):
    model = idle(**how)
    for now in range(T0 + 1000, T0 + 1000 + DAY_MS, 5_000):
        lag = model.observe(now)
        assert (lag.word, lag.records, lag.oldest_age_ms, lag.drain_eta_ms) == (Word.OK, 0, 0, 0)
        assert lag.retention_headroom_ms is None


def test_records_that_are_handled_within_two_seconds_are_ok_after_any_idle_time():
    model = idle()
    model.run(T0, T0 + 3_600_000, 5_000)
    for now in range(T0 + 3_600_000, T0 + 3_660_000, 2_000):
        model.produce(now)
        assert model.run(now, now + 1750) == [Word.OK]
        model.commit = len(model.times)


def test_a_watcher_a_moment_behind_a_busy_group_is_not_blind():
    """What the group had all of at the last observation can only wait since then."""
    model = idle()
    model.observe(T0 + 1000)
    model.produce(T0 + 1100)
    model.unread = 1
    lag = model.observe(T0 + 1250)
    assert (lag.word, lag.records, lag.oldest_age_ms) == (Word.OK, 1, None)
    assert model.run(T0 + 1500, T0 + 4000) == [Word.OK, Word.BLIND]


def test_a_group_without_any_place_is_ok():
    assert worst([]) is Word.OK


# ---------------------------------------------------------------- each word


def test_no_commit_is_a_word_of_its_own_and_counts_from_the_log_start():
    model = idle(commit=None, start=60)
    lag = model.observe(T0 + 5000)
    assert (lag.word, lag.commit, lag.records, lag.oldest_age_ms) == (Word.NO_COMMIT, None, 40, 4940)
    assert (lag.drain_eta_ms, lag.commit_age_ms) == (None, None)


def test_a_group_whose_commits_expired_has_no_commit_and_begins_anew():
    model = idle(commit=90)
    model.observe(T0 + 1000)
    model.commit = None
    assert model.observe(T0 + 2000).word is Word.NO_COMMIT
    model.commit = 10
    lag = model.observe(T0 + 20_000)
    assert (lag.word, lag.commit_age_ms) == (Word.FALLING_BEHIND, 0)


def test_a_commit_below_the_log_start_is_no_phantom_lag():
    model = idle(commit=10, start=95)
    lag = model.observe(T0 + 100)
    assert (lag.commit, lag.records, lag.oldest_age_ms) == (10, 5, 5)


def test_a_place_without_a_leader_has_no_numbers_and_spoils_no_other():
    other = Place("intake.cases", 1)
    lags = LagWatch().observe(
        "router",
        {PLACE: 1, other: 1},
        {PLACE: None, other: 1},
        {},
        lambda *_: None,
        T0,
        lambda _: WEEK_MS,
        {},
    )
    assert [lag.word for lag in lags] == [Word.NO_LEADER, Word.OK]
    assert lags[0] == Lag("router", PLACE, 1, None, None, None, None, None, None, Word.NO_LEADER)


def test_a_watcher_that_has_not_read_what_waits_is_blind():
    model = idle(commit=50, unread=60)
    lag = model.observe(T0 + 9000)
    assert (lag.word, lag.records, lag.oldest_age_ms) == (Word.BLIND, 50, None)
    model.unread = 0
    assert model.observe(T0 + 9250).oldest_age_ms == 9200


def test_a_watcher_that_began_to_read_after_the_commit_is_blind_not_ok():
    """Read up to the end, it knows of no record at the commit: because it never read there."""
    model = idle(commit=50, read_from=100)
    lag = model.observe(T0 + 9000)
    assert (lag.word, lag.records, lag.oldest_age_ms) == (Word.BLIND, 50, None)
    model.commit = 100
    assert model.observe(T0 + 9250).word is Word.OK


def test_a_rewound_group_is_rewound_until_it_regains_its_highest_commit():
    model = idle(commit=90)
    model.observe(T0 + 1000)
    said = []
    for step, model.commit in enumerate([20, 50, 89, 90, 100]):
        said.append(model.observe(T0 + 5000 + step * POLL_MS).word)
    assert said == [Word.REWOUND] * 3 + [Word.CATCHING_UP, Word.OK]


def test_a_topic_made_anew_leaves_nothing_to_regain():
    model = idle()
    model.observe(T0)
    model.times = [T0 + 1000]
    assert model.observe(T0 + 1000).word is Word.OK
    model.produce(T0 + 1100)
    model.commit = 1
    assert model.observe(T0 + 1250).word is Word.OK


def test_stopped_is_not_said_before_a_minute_was_watched():
    model = idle(commit=50)
    begin = T0 + 3_600_000
    assert model.run(begin, begin + 59_750) == [Word.FALLING_BEHIND, Word.STALLED]
    assert model.run(begin + 60_000, begin + 90_000) == [Word.STOPPED]


def test_stalled_and_stopped_need_an_old_record_not_only_an_old_commit():
    model = idle()
    model.run(T0, T0 + 600_000, 5_000)
    model.produce(late := T0 + 600_000)
    assert model.run(late, late + 2000) == [Word.OK]
    assert model.run(late + 2250, late + 9750) == [Word.FALLING_BEHIND]
    assert model.run(late + 10_000, late + 59_750) == [Word.STALLED]
    assert model.run(late + 60_000, late + 600_000) == [Word.STOPPED]


@pytest.mark.parametrize(("taken", "word"), [(12, Word.CATCHING_UP), (8, Word.FALLING_BEHIND)])
def test_a_backlog_that_shrinks_is_catching_up_and_one_that_grows_is_falling_behind(taken, word):
    """The backlog is five minutes old; 10 records come in every poll, `taken` are committed."""
    model = Model(T0 + i * 25 for i in range(12_000))
    now = T0 + 300_000
    said = []
    for _ in range(120):
        now += POLL_MS
        model.produce(*[now - 25 * i for i in reversed(range(10))])
        model.commit += taken
        said.append(model.observe(now).word)
    assert told(said[20:]) == [word]


def test_a_group_whose_oldest_record_gets_younger_is_catching_up_though_a_burst_comes_in():
    model = Model(T0 + i * 1000 for i in range(300))
    now = T0 + 300_000
    for _ in range(40):
        now += POLL_MS
        model.produce(*[now] * 10)
        model.commit += 1
        lag = model.observe(now)
    assert (lag.word, lag.drain_eta_ms) == (Word.CATCHING_UP, None)


def test_a_backlog_that_shrinks_is_catching_up_though_its_oldest_record_gets_older():
    """It came in at 100 a second and goes out at 40; nothing comes in any more."""
    model = Model(T0 + i * 10 for i in range(12_000))
    now = T0 + 120_000
    for _ in range(40):
        now += POLL_MS
        model.commit += 10
        lag = model.observe(now)
    assert (lag.word, lag.drain_eta_ms) == (Word.CATCHING_UP, lag.records * 1000 // 40)


def test_the_first_commits_that_are_seen_count_as_catching_up_until_there_is_a_trend():
    model = Model(T0 + i * 100 for i in range(1200))
    now, said = T0 + 120_000, []
    for _ in range(16):
        model.produce(*[now] * 20)
        said.append(model.observe(now).word)
        model.commit += 1
        now += POLL_MS
    assert said == [Word.FALLING_BEHIND, *[Word.CATCHING_UP] * 7, *[Word.FALLING_BEHIND] * 8]


def test_what_retention_deletes_counts_as_nobodys_progress():
    model = idle(commit=5)
    for step in range(9):
        model.start = 10 * step
        lag = model.observe(T0 + 30_000 + step * 1000)
        assert (lag.word, lag.drain_eta_ms) == (Word.FALLING_BEHIND, None)


def test_draining_takes_the_backlog_over_what_it_shrinks_by():
    model = Model([T0] * 1000)
    model.observe(T0 + 60_000)
    model.commit = 50
    model.produce(*[T0 + 64_000] * 10)
    lag = model.observe(T0 + 64_000)
    assert lag.records == 960
    assert lag.drain_eta_ms == 960 * 4000 // 40
    assert model.observe(T0 + 200_000).drain_eta_ms is None


@pytest.mark.parametrize("step_ms", [0, -1000])
def test_a_clock_that_stands_or_goes_back_gives_no_drain_eta(step_ms):
    model = Model([T0] * 1000)
    model.observe(T0 + 60_000)
    model.commit = 50
    assert model.observe(T0 + 60_000 + step_ms).drain_eta_ms is None


def test_retention_headroom_is_what_the_oldest_record_has_left():
    model = idle(commit=50)
    assert model.observe(T0 + 5050, retention_ms=8000).retention_headroom_ms == 3000
    assert model.observe(T0 + 9050, retention_ms=8000).retention_headroom_ms == 0
    assert model.observe(T0 + 9050, retention_ms=-1).retention_headroom_ms is None
    assert model.observe(T0 + 9050, retention_ms=None).retention_headroom_ms is None, "by size"


def test_commit_age_counts_from_the_last_move_that_was_seen():
    model = idle(commit=50)
    assert model.observe(T0).commit_age_ms == 0
    assert model.observe(T0 + 4000).commit_age_ms == 4000
    model.commit = 60
    assert model.observe(T0 + 5000).commit_age_ms == 0
    assert model.observe(T0 + 4000).commit_age_ms == 0


def test_a_broker_whose_clock_is_ahead_makes_no_negative_age():
    model = Model([T0 + 5000])
    assert model.observe(T0).oldest_age_ms == 0


def test_a_lag_is_shown_in_seconds():
    model = idle(commit=98)
    lag = model.observe(T0 + 1598, retention_ms=10_000)
    assert json.loads(json.dumps(lag.as_json())) == {
        "group": "router",
        "topic": "intake.cases",
        "partition": 0,
        "commit": 98,
        "end": 100,
        "records": 2,
        "oldest_age_s": 1.5,
        "drain_eta_s": None,
        "retention_headroom_s": 8.5,
        "word": "ok",
    }


@pytest.mark.parametrize("word", list(Word))
def test_a_paused_group_stands_because_it_is_paused_unless_nobody_can_see(word):
    lag = paused(replace(idle(commit=9).observe(T0), word=word))
    assert lag.word is (word if word in (Word.BLIND, Word.NO_LEADER) else Word.PAUSED)


def test_the_word_of_a_group_is_its_worst():
    lags = [idle(commit=100).observe(T0), idle(commit=None).observe(T0 + 5000), idle(commit=9).observe(T0)]
    assert worst(lags) is Word.NO_COMMIT
    ranked = sorted(SEVERITY, key=SEVERITY.get)
    assert (ranked[0], ranked[-1]) == (Word.OK, Word.STOPPED)


def test_memory_stays_the_same_however_long_and_often_one_watches():
    model = idle(commit=1)
    for now in range(T0, T0 + 30_000, 10):
        model.observe(now)
    [course] = model.watch._courses.values()
    assert len(course.recent) <= 64


# ---------------------------------------------------------------- against a model log


def test_in_a_ten_minute_outage_the_age_is_exact_and_the_words_tell_its_story():
    """20 records a second; the group commits every second, is gone for 10 minutes, drains at 200/s."""
    times = [T0 + i * 50 for i in range(20 * 1200)]
    gone, back, over = T0 + 60_000, T0 + 660_000, T0 + 1_200_000
    model, said, worst_error, reached = Model(), [], 0, 0.0
    for now in range(T0, over, POLL_MS):
        model.produce(*times[len(model.times) : bisect_right(times, now)])
        if not gone <= now < back:
            reached = min(reached + 200 * POLL_MS / 1000, len(model.times))
            model.commit = int(reached) if (now - T0) % 1000 == 0 else model.commit
        lag = model.observe(now)
        true_age = now - times[model.commit] if model.commit < len(model.times) else 0
        worst_error = max(worst_error, abs(lag.oldest_age_ms - true_age))
        said.append(lag.word)
    assert worst_error == 0  # to the moment of the observation; between two, at most the poll interval
    assert told(said) == [
        Word.OK,
        Word.FALLING_BEHIND,
        Word.STALLED,
        Word.STOPPED,
        Word.CATCHING_UP,
        Word.OK,
    ]
    stopped = T0 + said.index(Word.STOPPED) * POLL_MS
    assert gone + 60_000 <= stopped + 1000 <= gone + 62_000


# Bursts (0), a steady flow, idle hours and everything between.
GAPS = st.lists(st.sampled_from([0, 0, 0, 1, 50, 400, 3_000, 90_000, 7_200_000]), min_size=1, max_size=60)
# Per observation: time since the one before, and the share of what waits that the group commits.
VISITS = st.lists(
    st.tuples(st.sampled_from([0, 250, 5000, 600_000]), st.sampled_from([0, 0, 0.1, 0.5, 1])), max_size=60
)


@given(GAPS, VISITS, st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_the_age_is_that_of_the_oldest_waiting_record_to_the_millisecond(gaps, visits, stride):
    """`stride` leaves holes between offsets, as transaction markers do; the log may end with one."""
    appended = [(i * stride, at) for i, at in enumerate(accumulate(gaps, initial=T0))]
    offsets, ats = zip(*appended, strict=True)
    times, watch, now, commit, read = AppendTimes(), LagWatch(), T0, 0, 0
    times.start_at(0)
    for pause, share in visits:
        now += pause
        there = bisect_right(ats, now)
        for offset, at in appended[read:there]:
            times.note(offset, at)
        read, end = there, there * stride
        commit += int(share * (end - commit))
        times.forget_below(commit)
        commits, ends, read_from = {PLACE: commit}, {PLACE: end}, {PLACE: times.first}
        [lag] = watch.observe(
            "router",
            commits,
            ends,
            {PLACE: 0},
            lambda _, offset: times.at(offset),
            now,
            lambda _: WEEK_MS,
            ends,
            read_from,
        )
        oldest = bisect_left(offsets, commit)
        waits = oldest < there
        assert lag.oldest_age_ms == (now - ats[oldest] if waits else 0)
        assert lag.records == (end - commit if waits else 0)
        assert lag.word not in {Word.BLIND, Word.NO_COMMIT, Word.REWOUND, Word.NO_LEADER}
        assert (lag.word is Word.OK) == (lag.oldest_age_ms <= 2000)


NUMBER = st.integers(0, 12)
MAYBE = st.none() | NUMBER
CHAOS = st.lists(
    st.tuples(st.integers(-3000, 90_000), MAYBE, MAYBE, NUMBER, NUMBER, NUMBER, st.booleans()), max_size=30
)


@given(CHAOS)
@settings(max_examples=200, deadline=None)
def test_whatever_is_observed_no_number_is_negative_or_nan_and_no_word_contradicts_the_numbers(chaos):
    """Clocks that go back, logs that are cut or made anew, commits beyond the end: all of it."""
    watch, now = LagWatch(), T0
    for pause, commit, end, start, read_from, read_to, known in chaos:
        now += pause
        commits = {} if commit is None else {PLACE: commit}
        [lag] = watch.observe(
            "router",
            commits,
            {PLACE: end},
            {PLACE: start},
            lambda _, offset, known=known: T0 + 1000 * offset if known else None,
            now,
            lambda _: 5000,
            {PLACE: read_to},
            {PLACE: read_from},
        )
        shown = json.loads(json.dumps(lag.as_json(), allow_nan=False))
        assert all(value is None or value >= 0 for value in shown.values() if not isinstance(value, str))
        assert lag.commit_age_ms is None or lag.commit_age_ms >= 0
        assert (lag.word is Word.NO_LEADER) == (lag.records is None) == (end is None)
        if lag.records == 0:
            assert (lag.word, lag.oldest_age_ms, lag.drain_eta_ms) == (Word.OK, 0, 0)
        if lag.word in {Word.STALLED, Word.STOPPED}:
            assert min(lag.oldest_age_ms, lag.commit_age_ms) >= 10_000
        if lag.word is Word.BLIND:
            assert lag.oldest_age_ms is None


@given(st.lists(st.integers(0, 40), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_drain_eta_is_given_only_while_the_backlog_shrinks(takes):
    """20 records come in every poll; the window of ten seconds holds all of these polls."""
    model = Model([T0] * 5000)
    backlogs = []
    for step, take in enumerate(takes):
        model.produce(*[T0 + step] * 20)
        model.commit += take
        lag = model.observe(T0 + 60_000 + step * POLL_MS)
        backlogs.append(lag.records)
        assert (lag.drain_eta_ms is not None) == (backlogs[0] > lag.records)
    assert all(after - before <= 20 for before, after in pairwise(backlogs))
