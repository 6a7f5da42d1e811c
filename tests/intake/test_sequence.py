"""Numbered feeds: a gap is told once it has been waited for, and is open until what is missing has come."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.intake.sources.sequence import KEEP, MOST_GAPS, PATIENCE, Numbers, Place
from tests.given import NOW


def place(number, core="core-1"):
    return Place(core, number, NOW + timedelta(seconds=number))


def hear(known, *numbers, core="core-1", after=timedelta()):
    return known.heard([place(number, core) for number in numbers], "fs", NOW + after)


def test_a_jump_is_told_after_a_while_and_only_once():
    known, told = hear(Numbers(), 7, 8, 11)
    assert (told, known.missing) == ([], 2)
    known, (gap,) = hear(known, 12, after=PATIENCE)
    assert (gap.source, gap.reason, gap.from_seq, gap.to_seq) == ("fs", "seq_jump", 9, 10)
    assert (gap.gap_from, gap.gap_to) == (place(8).at, place(11).at)
    known, told = hear(known, 13, after=2 * PATIENCE)
    assert (told, known.missing) == ([], 2)


def test_a_straggler_in_time_is_no_gap_and_a_late_one_closes_it():
    known, _ = hear(Numbers(), 7, 10)
    known, told = hear(known, 8, after=PATIENCE - timedelta(seconds=1))
    assert told == []
    known, (gap,) = hear(known, 11, after=PATIENCE)
    assert (gap.from_seq, gap.to_seq) == (9, 9)
    known, told = hear(known, 9, after=timedelta(hours=1))
    assert (told, known.missing) == ([], 0)


def test_what_never_comes_is_let_go_after_a_day():
    known, _ = hear(Numbers(), 7, 9)
    known, _ = hear(known, 10, after=KEEP - timedelta(seconds=1))
    assert known.missing == 1
    known, _ = hear(known, 11, after=KEEP)
    assert known.missing == 0


def test_a_new_start_is_told_at_once_and_a_straggler_of_the_old_one_is_no_new_start():
    known, _ = hear(Numbers(), 7, 9)
    known, (restart,) = hear(known, 3, core="core-2")
    assert (restart.reason, restart.from_seq, restart.gap_from) == ("source_restarted", None, place(9).at)
    known, told = hear(known, 8, core="core-1")
    assert (told, known.missing, known.core, known.sequence) == ([], 0, "core-2", 3)


def test_a_storm_of_gaps_is_bounded_and_none_of_them_is_silent():
    known, told = hear(Numbers(), *range(1, 2 * MOST_GAPS + 22, 2))
    assert len(known.gaps) == MOST_GAPS
    assert [gap.from_seq for gap in told] == list(range(2, 21, 2))


@given(st.permutations(range(1, 13)), st.sets(st.integers(2, 11)))
def test_gaps_cover_exactly_what_is_missing_in_any_order_and_any_batches(order, lost):
    known = Numbers()
    for number in order:
        if number not in lost:
            known, told = hear(known, number)
            assert told == []
            known = Numbers.parse(known.to_bytes())  # another door goes on
    heard = [number for number in order if number not in lost]
    first = heard[0]
    known, told = hear(known, after=PATIENCE)
    missing = {number for gap in told for number in range(gap.from_seq, gap.to_seq + 1)}
    assert missing == {number for number in lost if first < number < max(heard)}
    assert known.missing == len(missing)
