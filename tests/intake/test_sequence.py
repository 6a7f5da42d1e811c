"""Numbered feeds: a gap is told once it has been waited for, and is open until what is missing has come."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.intake.sources.sequence import KEEP, MOST_GAPS, MOST_STARTS, PATIENCE, Numbers, Place
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
    assert (told, known.missing) == ([], 0)


def test_two_switches_behind_one_source_are_each_heard_by_their_own_numbers():
    known = Numbers()
    told = []
    for minute, (core, number) in enumerate(
        [("a", 1), ("a", 2), ("b", 1), ("a", 3), ("a", 9), ("b", 2), ("a", 20)]
    ):
        known, said = hear(known, number, core=core, after=timedelta(minutes=minute))
        told += said
    assert known.missing == 5 + 10
    known, said = hear(known, after=timedelta(minutes=10))
    assert [(gap.reason, gap.from_seq, gap.to_seq) for gap in [*told, *said]] == [
        ("source_restarted", None, None), ("seq_jump", 4, 8), ("seq_jump", 10, 19),
    ]  # fmt: skip


def test_a_switch_that_goes_on_speaking_is_not_forgotten_for_one_that_starts_often():
    known, _ = hear(Numbers(), 1, core="steady")
    for start in range(3 * MOST_STARTS):
        known, (restart,) = hear(known, 1, core=f"core-{start}")
        assert restart.reason == "source_restarted"
        known, told = hear(known, start + 2, core="steady")
        assert (told, known.missing) == ([], 0)
    assert len(known.marks) == MOST_STARTS


def test_a_storm_of_gaps_is_bounded_and_none_of_them_is_silent():
    known, told = hear(Numbers(), *range(1, 2 * MOST_GAPS + 22, 2))
    assert len(known.gaps) == MOST_GAPS
    assert [gap.from_seq for gap in told] == list(range(2, 21, 2))


def test_a_manifest_shows_what_was_lost_before_a_silence_and_comes_late_or_early():
    known, _ = hear(Numbers(), 7, 8)
    manifest = Place("core-1", 12, place(12).at, come=False)
    known, told = known.heard([manifest, manifest], "fs", NOW)
    assert (told, known.missing) == ([], 4)
    known, told = hear(known, 10, after=timedelta(seconds=1))  # it was under way
    known, told = hear(known, after=PATIENCE)
    assert [(gap.from_seq, gap.to_seq) for gap in told] == [(9, 9), (11, 12)]
    assert hear(known, 13)[0].missing == 3, "the next number shows no other gap"
    first, _ = Numbers().heard([manifest], "fs", NOW)
    assert first.missing == 0, "what was before the first word is not judged"


EVENTS = [(core, number) for core in ("a", "b") for number in range(1, 10)]


@given(st.permutations(EVENTS), st.sets(st.sampled_from(EVENTS), max_size=12))
def test_gaps_cover_exactly_what_is_missing_in_any_order_and_any_batches(order, lost):
    known = Numbers()
    heard = {"a": [], "b": []}
    for core, number in order:
        if (core, number) not in lost:
            heard[core].append(number)
            known, told = hear(known, number, core=core)
            assert {gap.reason for gap in told} <= {"source_restarted"}
            known = Numbers.parse(known.to_bytes())  # another door goes on
    known, told = hear(known, after=PATIENCE)
    missing = sorted(number for gap in told for number in range(gap.from_seq, gap.to_seq + 1))
    assert missing == sorted(
        number for core, number in lost if heard[core] and heard[core][0] < number < max(heard[core])
    )
    assert known.missing == len(missing)
