"""Erlang's formulas against tables, a chain solved by brute force, and a simulated queue."""

import heapq
import math
import random
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.intake.staffing.erlang import (
    MOST_ERLANG,
    ErlangA,
    agents_needed,
    average_speed_of_answer,
    blocking,
    occupancy,
    offered_load,
    present,
    rostered,
    service_level,
    wait_probability,
)


def s(seconds):
    return timedelta(seconds=seconds)


AHT, WITHIN = s(180), s(20)
agents_ = st.integers(1, 60)
loads = st.floats(0.01, 80)
patiences = st.floats(1, 7200).map(s)


# ------------------------------------------------------------------ published values


@pytest.mark.parametrize(
    ("agents", "load"),
    # T. S. Rappaport, Wireless Communications, table "Capacity of an Erlang B system".
    [
        (4, "0.869"),
        (5, "1.36"),
        (10, "4.46"),
        (20, "12.0"),
        (24, "15.3"),
        (40, "29.0"),
        (70, "56.1"),
        (100, "84.1"),
    ],
)
def test_erlang_b_carries_the_traffic_of_the_table_at_one_per_cent_blocking(agents, load):
    low, high = 0.0, float(agents)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if blocking(agents, middle) < 0.01 else (low, middle)
    assert f"{low:#.3g}" == load


@pytest.mark.parametrize(("agents", "load", "share"), [(1, 0.5, 0.5), (2, 1, 1 / 3), (3, 2, 4 / 9)])
def test_erlang_c_of_few_agents_equals_the_fraction_worked_out_by_hand(agents, load, share):
    assert wait_probability(agents, load) == pytest.approx(share, rel=1e-12)


def test_hundred_calls_in_half_an_hour_take_fourteen_agents_and_twenty_rostered():
    # The example that workforce libraries print: 180 s, 80/20, 30 % shrinkage.
    load = offered_load(100, AHT, s(1800))
    assert load == 10
    assert agents_needed(load, AHT, target=0.8, within=WITHIN) == 14
    assert rostered(14, 0.3) == 20
    assert service_level(14, load, AHT, WITHIN) == pytest.approx(0.888, abs=5e-4)
    assert service_level(13, load, AHT, WITHIN) < 0.8
    assert occupancy(14, load) == pytest.approx(0.714, abs=5e-4)


def test_erlang_a_and_c_differ_as_published():
    # 48 calls a minute of one minute, 50 agents, patience 2 minutes: O. Garnett, A. Mandelbaum and
    # M. Reiman 2002, "Designing a call center with impatient customers", table 1.
    queue = ErlangA(50, 48, s(60), s(120))
    assert queue.abandonment == pytest.approx(0.031, abs=5e-4)
    assert queue.average_wait.total_seconds() == pytest.approx(3.7, abs=0.05)
    assert queue.occupancy == pytest.approx(0.93, abs=5e-3)
    assert average_speed_of_answer(50, 48, s(60)).total_seconds() == pytest.approx(20.8, abs=0.05)
    assert occupancy(50, 48) == pytest.approx(0.96)


# ------------------------------------------------------------------ a chain solved by brute force


def chain(agents, load, aht, patience, states):
    """Stationary distribution of callers in the system, and each waiting place's chance to be answered in time."""
    weights = [1.0]
    for n in range(1, states):
        leaving = min(n, agents) / aht + max(0, n - agents) / patience
        weights.append(weights[-1] * (load / aht) / leaving)
    return [weight / sum(weights) for weight in weights]


def answered_within(agents, aht, patience, ahead, within):
    """Chance that a caller with so many waiting ahead is answered in time: a pure death chain, step by step.

    Uniformised: `places[k]` is the chance to have k ahead after each tick of a clock of one rate.
    """
    served, left = agents / aht, 1 / patience
    rate = served + (ahead + 1) * left
    places = [0.0] * ahead + [1.0]
    answered, share, ticks = 0.0, math.exp(-rate * within), 0
    passed, found = share, 0.0
    while passed < 1 - 1e-13 and ticks < 5000:
        after = [0.0] * (ahead + 1)
        for k, chance in enumerate(places):
            forward = (served + k * left) / rate
            after[k] += chance * (1 - forward - left / rate)
            if k:
                after[k - 1] += chance * forward
            else:
                answered += chance * forward
        places, ticks = after, ticks + 1
        share *= rate * within / ticks
        passed += share
        found += share * answered
    return found


@pytest.mark.parametrize(
    ("agents", "load", "patience"),
    [(1, 0.3, 60), (3, 2.5, 300), (5, 7.0, 120), (10, 9.9, 600), (14, 10, 180), (8, 16, 30)],
)
def test_erlang_a_equals_the_chain_solved_by_brute_force(agents, load, patience):
    aht, within = 180, 20
    shares = chain(agents, load, aht, patience, agents + 120)
    queue = ErlangA(agents, load, AHT, s(patience))
    waiting = sum(max(0, n - agents) * share for n, share in enumerate(shares))
    busy = sum(min(n, agents) * share for n, share in enumerate(shares))
    assert queue.wait_probability == pytest.approx(sum(shares[agents:]), rel=1e-9)
    assert queue.abandonment == pytest.approx(waiting / patience / (load / aht), rel=1e-9)
    assert queue.occupancy == pytest.approx(busy / agents, rel=1e-9)
    in_time = sum(shares[:agents]) + sum(
        share * answered_within(agents, aht, patience, ahead, within)
        for ahead, share in enumerate(shares[agents:])
        if share > 1e-12
    )
    assert queue.service_level(s(within)) == pytest.approx(in_time, abs=1e-9)


# ------------------------------------------------------------------ a simulated queue


def simulate(agents, load, aht, patience, within, calls, seed):
    """First come first served, callers who give up; shares of calls answered in time, and of those that gave up."""
    dice = random.Random(seed)
    free = [0.0] * agents  # when each agent is free for the next caller
    now, in_time, gave_up = 0.0, 0, 0
    for _ in range(calls):
        now += dice.expovariate(load / aht)
        wait = max(0.0, free[0] - now)
        if wait > dice.expovariate(1 / patience):
            gave_up += 1
            continue
        heapq.heapreplace(free, now + wait + dice.expovariate(1 / aht))
        in_time += wait <= within
    return in_time / calls, gave_up / calls


@pytest.mark.parametrize(("agents", "load", "patience"), [(14, 10, 300), (20, 22, 120)])
def test_erlang_a_equals_a_simulated_queue(agents, load, patience):
    in_time, gave_up = simulate(agents, load, 180, patience, 20, calls=400_000, seed=7)
    queue = ErlangA(agents, load, AHT, s(patience))
    assert queue.service_level(WITHIN) == pytest.approx(in_time, abs=0.01)
    assert queue.abandonment == pytest.approx(gave_up, abs=0.005)


def test_erlang_c_equals_a_simulated_queue():
    in_time, gave_up = simulate(14, 10, 180, 1e12, 20, calls=400_000, seed=7)
    assert gave_up == 0
    assert service_level(14, 10, AHT, WITHIN) == pytest.approx(in_time, abs=0.01)


# ------------------------------------------------------------------ what holds for any numbers


@given(agents_, loads)
def test_the_recursion_equals_the_definition_of_erlang_b(agents, load):
    terms = [1.0]
    for n in range(1, agents + 1):
        terms.append(terms[-1] * load / n)
    assert blocking(agents, load) == pytest.approx(terms[-1] / sum(terms), rel=1e-9)


@given(agents_, loads)
def test_who_may_wait_finds_agents_busy_at_least_as_often_as_who_may_not(agents, load):
    assert blocking(agents, load) <= wait_probability(agents, load) <= 1


@given(agents_, loads, st.none() | patiences, st.floats(0, 600).map(s))
def test_one_agent_more_answers_more_and_is_less_busy(agents, load, patience, within):
    fewer, more = (service_level(n, load, AHT, within, patience) for n in (agents, agents + 1))
    assert 0 <= fewer <= more + 1e-9
    assert more <= 1
    busy = [
        occupancy(n, load) if patience is None else ErlangA(n, load, AHT, patience).occupancy
        for n in (agents, agents + 1)
    ]
    assert 0 <= busy[1] <= busy[0] + 1e-9
    assert busy[0] <= 1


@given(agents_, loads, patiences, st.floats(0, 300), st.floats(0, 300))
def test_more_time_answers_more_and_never_more_than_do_not_give_up(agents, load, patience, one, other):
    queue = ErlangA(agents, load, AHT, patience)
    sooner, later = sorted((one, other))
    assert queue.service_level(s(sooner)) <= queue.service_level(s(later)) + 1e-9
    assert queue.service_level(s(later)) <= 1 - queue.abandonment + 1e-9
    assert queue.service_level(s(0)) == pytest.approx(1 - queue.wait_probability, abs=1e-9)
    assert queue.service_level(s(1e7)) == pytest.approx(1 - queue.abandonment, abs=1e-9)


@given(agents_, loads, patiences)
def test_callers_who_give_up_shorten_the_queue_but_not_below_what_nobody_waiting_gives(
    agents, load, patience
):
    queue = ErlangA(agents, load, AHT, patience)
    blocked = blocking(agents, load)
    assert blocked - 1e-9 <= queue.wait_probability <= wait_probability(agents, load) + 1e-9
    # At least what the agents cannot carry gives up; at most what would if nobody could wait at all.
    assert max(0.0, 1 - agents / load) - 1e-9 <= queue.abandonment <= blocked + 1e-9
    assert queue.average_wait <= patience


@given(agents_, st.floats(0.01, 0.95), st.floats(0, 120).map(s))
def test_erlang_a_of_patient_callers_is_erlang_c(agents, busy, within):
    load = agents * busy
    patient = ErlangA(agents, load, s(1), s(86_400))
    assert patient.wait_probability == pytest.approx(wait_probability(agents, load), abs=2e-3)
    assert patient.service_level(within) == pytest.approx(service_level(agents, load, s(1), within), abs=2e-3)
    assert patient.abandonment < 1e-3


@given(
    st.floats(0, 200),
    st.floats(0.01, 0.99),
    st.none() | patiences,
    st.none() | st.floats(0.1, 1),
)
@example(load=10.0, target=0.8, patience=None, most=0.7)
def test_the_agents_needed_are_enough_and_one_less_is_not(load, target, patience, most):
    def enough(agents):
        busy = occupancy(agents, load) if patience is None else ErlangA(agents, load, AHT, patience).occupancy
        level = service_level(agents, load, AHT, WITHIN, patience)
        return level >= target and (most is None or busy is None or busy <= most)

    needed = agents_needed(load, AHT, target=target, within=WITHIN, patience=patience, max_occupancy=most)
    if load == 0:
        assert needed == 0
        return
    assert enough(needed)
    assert not enough(needed - 1)


def test_a_target_that_is_met_exactly_is_met():
    assert agents_needed(10, AHT, target=service_level(14, 10, AHT, WITHIN), within=WITHIN) == 14


def test_a_limit_on_occupancy_takes_more_agents():
    assert agents_needed(10, AHT, target=0.8, within=WITHIN, max_occupancy=0.6) == 17  # 10 / 0.6, rounded up


@given(st.integers(0, 5000), st.decimals(0, "0.95", places=2))
def test_those_rostered_are_the_fewest_of_whom_enough_are_there(agents, shrinkage):
    shrinkage = float(shrinkage)
    count = rostered(agents, shrinkage)
    assert present(count, shrinkage) >= agents
    assert agents == 0 or present(count - 1, shrinkage) < agents


def test_shrinkage_is_taken_as_it_is_written():
    assert rostered(7, 0.3) == 10
    assert present(10, 0.3) == 7
    assert rostered(9, 0.1) == 10
    assert rostered(0, 0.3) == 0


# ------------------------------------------------------------------ large, empty and impossible


@pytest.mark.parametrize("patience", [None, s(300), s(86_400)])
def test_five_thousand_erlang_are_computed_like_ten(patience):
    needed = agents_needed(5000, AHT, target=0.8, within=WITHIN, patience=patience)
    level = service_level(needed, 5000, AHT, WITHIN, patience)
    assert 0.8 <= level < 0.82
    assert service_level(needed - 1, 5000, AHT, WITHIN, patience) < 0.8


def test_a_large_overload_loses_exactly_what_the_agents_cannot_carry():
    queue = ErlangA(4000, 5000, AHT, s(86_400))
    assert queue.abandonment == pytest.approx(0.2, abs=1e-9)
    assert queue.occupancy == pytest.approx(1, abs=1e-9)
    assert queue.service_level(WITHIN) == pytest.approx(0, abs=1e-8)


def test_a_queue_that_grows_without_end_has_no_mean_wait():
    assert wait_probability(10, 10) == 1
    assert service_level(10, 10, AHT, WITHIN) == 0
    assert average_speed_of_answer(10, 10, AHT) is None
    assert occupancy(10, 12) == 1


def test_without_agents_nobody_is_answered_and_without_calls_nobody_waits():
    assert service_level(0, 1, AHT, WITHIN) == 0
    assert occupancy(0, 1) is None
    nobody = ErlangA(0, 1, AHT, s(60))
    assert (nobody.wait_probability, nobody.abandonment, nobody.occupancy) == (1, 1, None)
    assert nobody.service_level(WITHIN) == 0
    assert nobody.average_wait == s(60)
    assert offered_load(0, AHT, s(1800)) == 0
    assert service_level(1, 0, AHT, WITHIN) == 1
    idle = ErlangA(1, 0, AHT, s(60))
    assert (idle.wait_probability, idle.abandonment, idle.occupancy) == (0, 0, 0)
    assert idle.service_level(WITHIN) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: blocking(-1, 1), "-1 agents"),
        (lambda: blocking(1, math.nan), "load of nan"),
        (lambda: blocking(1, MOST_ERLANG * 2), "calls x handling time / interval"),
        (lambda: service_level(1, 2, s(0), WITHIN), "aht is"),
        (lambda: service_level(1, 2, AHT, s(-1)), "give 0 s or more"),
        (lambda: service_level(1, -2, AHT, WITHIN), "load of -2"),
        (lambda: ErlangA(1, 1, AHT, s(0)), "patience is"),
        (lambda: ErlangA(1, 1, AHT, s(90_000)), "Erlang C"),
        (lambda: offered_load(-1, AHT, s(1800)), "-1 calls"),
        (lambda: offered_load(1, AHT, s(0)), "interval is"),
        (lambda: agents_needed(1, AHT, target=1, within=WITHIN), "0.8"),
        (lambda: agents_needed(1, AHT, target=0.8, within=WITHIN, max_occupancy=0), "0.85"),
        (lambda: agents_needed(1, AHT, target=0.8, within=WITHIN, max_occupancy=1.5), "0.85"),
        (lambda: rostered(1, 1), "leaves nobody"),
        (lambda: present(1, -0.1), "leaves nobody"),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_what_to_give_instead(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_bounds_on_load_hold_for_agents_needed():
    with pytest.raises(ValueError, match="not one of a hotline"):
        agents_needed(-1, AHT, target=0.8, within=WITHIN)
