"""No false verdict and none missed in a million events; and each part of the rule is needed for that."""

import time
from collections import Counter

import pytest

from observer.ledger import State
from tests.observer.simulation import Rule, Setup, Watch, World, compare, lasting, open_handoffs

SEEDS = 44
KINDS = (
    "output skipped",
    "one lost",
    "row deleted",
    "receipt lost",
    "wrong cause",
    "early commit",
    "operator skip",
    "retention",
    "canary",
    "number",
    "orphan",
    "timer",
    "dead",
)


def setup_of(seed: int) -> Setup:
    """Every world is another: quiet or wild, with transactions or without, longer or shorter."""
    return Setup(
        seed,
        ticks=(700, 900, 1100)[seed % 3],
        calls=(1.5, 2.0, 3.0)[seed // 2 % 3],
        transactions=seed % 2 == 1,
        growth=seed % 5 != 0,
        losses=(0.005, 0.02, 0.04)[seed // 3 % 3],
        trouble=(0.003, 0.008, 0.015)[seed % 3],
        doubled=0.0 if seed % 11 == 0 else 0.01,
    )


@pytest.mark.slow
def test_in_a_million_events_every_loss_is_named_and_nothing_else(capsys):
    events = losses = 0
    kinds: Counter[str] = Counter()
    started, cpu = time.monotonic(), time.process_time()
    for seed in range(SEEDS):
        world = World(setup_of(seed)).run()
        watch = Watch(world, seed).run()
        found = compare(world, watch)
        assert not watch.blind, f"seed {seed}: the reader was outrun, so the truth is not comparable"
        assert not found.false, f"seed {seed}: {len(found.false)} false, such as {next(iter(found.false))}"
        assert not found.missed, (
            f"seed {seed}: {len(found.missed)} missed, such as {next(iter(found.missed))}"
        )
        assert not open_handoffs(watch), f"seed {seed}: everything is committed, so nothing may be open"
        events, losses, kinds = events + watch.read, losses + found.lost, kinds + found.kinds
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    with capsys.disabled():
        print(
            f"\n  {events:,} events, {losses:,} losses, 0 false, 0 missed, {seconds:.1f} s ({cpu:.1f} s of CPU)"
        )
        print("  " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS))
    assert events >= 1_000_000
    assert losses >= 5_000
    assert all(kinds[kind] >= 20 for kind in KINDS), kinds


@pytest.mark.parametrize("seed", range(8))
def test_an_observer_that_is_killed_again_and_again_says_the_same_as_one_that_is_not(seed):
    world = World(setup_of(seed + 100)).run()
    whole, killed = Watch(world, seed).run(), Watch(world, seed + 1, kills=0.02).run()
    found = compare(world, killed)
    assert killed.killed >= 5
    assert not found.false
    assert not found.missed
    assert lasting(killed) == lasting(whole)


def test_a_quiet_world_without_losses_has_no_verdict_but_the_canaries():
    world = World(Setup(7, ticks=300, losses=0.0, trouble=0.0, doubled=0.0)).run()
    watch = Watch(world).run()
    assert not compare(world, watch).false
    named = {(group, state) for _, group, state, _ in watch.store.verdicts}
    assert ("canary", State.DROPPED) in named
    assert not {group for group, state in named if state is State.DROPPED} - {"canary"}


# ------------------------------------------------------------------ each part of the rule is needed


def said_falsely(rule: Rule, *, transactions: bool, kills: float = 0.0) -> int:
    """How many false verdicts a rule gives in worlds in which the right one gives none."""
    false = 0
    for seed in range(3):
        world = World(Setup(seed, ticks=350, transactions=transactions)).run()
        right = Rule(long_memory=rule.long_memory)
        assert not compare(world, Watch(world, seed, right, kills).run()).false
        false += len(compare(world, Watch(world, seed, rule, kills).run()).false)
    return false


def test_ends_that_are_taken_before_the_commits_prove_nothing():
    assert said_falsely(Rule(ends_first=True), transactions=False) > 0


def test_ends_of_the_partitions_that_were_known_before_prove_nothing():
    assert said_falsely(Rule(stale_metadata=True), transactions=False) > 50


def test_last_stable_offsets_prove_nothing_where_producers_use_transactions():
    assert said_falsely(Rule(stable_ends=True), transactions=True) > 500


def test_a_verdict_without_a_look_at_what_was_stored_is_false_for_copies():
    assert said_falsely(Rule(no_lookup=True), transactions=False) > 50


def test_a_store_that_takes_back_what_was_settled_is_fooled_by_copies_that_memory_has_let_go():
    assert said_falsely(Rule(guarded_store=False, long_memory=False), transactions=False, kills=0.02) > 0
