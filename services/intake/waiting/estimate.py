"""How long a caller who waits will wait: a median, and a bound that nine in ten keep. Pure.

A caller's wait is as many departures as there are places to the front, and departures come almost at
random. So the pace (wait per place) is taken from what callers of this queue really waited lately; it
contains talks, pauses and overtaking by priority without a model of any of them. It knows only the
waits that ended in an answer: how long those who gave up would have waited, nobody knows.

Tried on a bank's month of calls (`python -m bench.waiting` shows the result): how long the talks in
progress have lasted improves nothing, nor do the last few waits; an agent who has just hung up, and the
number of agents at work, do. That number counts by its root, because it is known badly.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import sqrt
from operator import itemgetter
from statistics import fmean, median
from typing import Literal

FREED_WITHIN = timedelta(seconds=10)
"""An agent who hung up so lately takes the next caller more often than not; after that he is pausing."""
STAFFED_WITHIN = timedelta(minutes=10)
"""An agent who talked so lately is at work."""
OPEN_AT_MOST = timedelta(hours=2)
"""A stay or talk that seems to last longer has lost its end on the way, and does not count."""
RECENT = 200
"""So many callers who were served last make the pace."""
ENOUGH = 20
"""Fewer callers (or talks) than this give no pace."""

_SHARE = 0.9  # of callers who wait no longer than the bound
_NORMAL_AT_SHARE = 1.2816  # the standard normal quantile of that share
_LEAST_PLACES = 0.5  # a freed agent may still pause: the next departure is near, not here


@dataclass(frozen=True, slots=True)
class Stay:
    """One stay in a queue, and the talk it led to, as a row of `visits` has it; a time unknown is None.

    `rank` orders those who wait: `queued_at`, less the credit that a priority gives. `place` is where the
    switch said that the caller stood, at `placed_at`. Times must be aware.
    """

    queued_at: datetime
    rank: datetime
    answered_at: datetime | None = None
    left_at: datetime | None = None
    talk_ended_at: datetime | None = None
    agent: str | None = None
    place: int | None = None
    placed_at: datetime | None = None

    def waits(self, at: datetime) -> bool:
        """Tell whether the caller is still in the queue at that moment."""
        return all(end is None or end > at for end in (self.answered_at, self.left_at))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands: callers before him, agents just freed, agents at work (0: none seen lately)."""

    ahead: int
    freed: int = 0
    staffed: int = 0

    @property
    def places(self) -> float:
        """Departures until the caller's turn, his own included."""
        return max(_LEAST_PLACES, self.ahead + 1 - self.freed)


@dataclass(frozen=True, slots=True)
class Served:
    """A caller who had to wait and was answered: how he stood when he joined, and how long it took."""

    standing: Standing
    wait: timedelta


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a queue at the moment a caller asks.

    `served` (newest last, the last 200 count) holds no one who was answered at once: that says nothing
    about waiting. `talks`, lengths of recent talks, serve only while too few callers have been served.
    """

    standing: Standing
    served: Sequence[Served] = ()
    talks: Sequence[timedelta] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """The wait from now on: half wait no longer than `expected`, nine in ten no longer than `at_most`.

    `basis` says whence: `history` of waits, `agents` and their talks, or `unknown`: then both are None
    and `reason` tells why.
    """

    expected: timedelta | None
    at_most: timedelta | None
    basis: Literal["history", "agents", "unknown"]
    reason: Literal["no_history", "no_agent_seen"] | None = None


def standing(stays: Iterable[Stay], rank: datetime, at: datetime) -> Standing:
    """Tell how a caller of this rank stands at a moment.

    Nothing later than `at` counts, even where the rows tell it; so a replay sees what could be seen.
    """
    ahead, talking, freed, seen = 0, set[str](), set[str](), set[str]()
    for stay in stays:
        if not at - OPEN_AT_MOST <= stay.queued_at <= at:
            continue
        if stay.waits(at):
            ahead += stay.rank < rank
        elif stay.agent is not None and stay.answered_at is not None:
            if stay.talk_ended_at is None or stay.talk_ended_at > at:
                talking.add(stay.agent)
            elif stay.talk_ended_at >= at - STAFFED_WITHIN:
                seen.add(stay.agent)
                if stay.talk_ended_at >= at - FREED_WITHIN:
                    freed.add(stay.agent)
    return Standing(ahead, len(freed - talking), len(seen | talking))


def line_of(stays: Iterable[Stay], at: datetime) -> list[Stay]:
    """Order those who wait at a moment, the next to be served first: where the switch put each of them.

    It told where they came in; whoever leaves lets the others move up. Of whom it told nothing, the rank
    decides: the switch may know of priorities that it does not tell.
    """
    line: list[Stay] = []
    for when, move, stay in sorted(_moves(stays, at), key=itemgetter(0, 1)):
        if when > at:
            break
        if move == _CAME:
            line.insert(sum(other.rank < stay.rank for other in line), stay)
            continue
        index = next((index for index, other in enumerate(line) if other is stay), None)
        if index is None:
            continue
        del line[index]
        if move == _PLACED and stay.place is not None:
            line.insert(stay.place - 1, stay)
    return line


_LEFT, _CAME, _PLACED = range(3)


def _moves(stays: Iterable[Stay], at: datetime) -> Iterator[tuple[datetime, int, Stay]]:
    for stay in stays:
        if stay.queued_at < at - OPEN_AT_MOST:
            continue
        yield stay.queued_at, _CAME, stay
        if stay.placed_at is not None:
            yield max(stay.placed_at, stay.queued_at), _PLACED, stay
        for end in (stay.answered_at, stay.left_at):
            if end is not None:
                yield end, _LEFT, stay


def served(
    stays: Sequence[Stay],
    at: datetime,
    at_once: timedelta = timedelta(0),
    joined: Callable[[datetime, datetime], Standing] | None = None,
) -> tuple[Served, ...]:
    """Tell of the last 200 who were answered by then how they stood and waited, newest last.

    Waits no longer than `at_once` (how long a free agent's telephone rings) are left out. It costs a look
    at every stay per caller (33 ms for 500 stays); the past does not change, so it is worth keeping:
    `joined` tells how one of that rank stood at that moment, where somebody keeps it.
    """
    stood = joined or partial(standing, stays)
    answered = sorted(
        (stay.answered_at, stay.queued_at, stay.rank)
        for stay in stays
        if stay.answered_at is not None and stay.answered_at <= at
        if stay.answered_at - stay.queued_at > at_once
    )
    return tuple(
        Served(stood(rank, queued_at), answered_at - queued_at)
        for answered_at, queued_at, rank in answered[-RECENT:]
    )


def estimate(snapshot: Snapshot) -> Estimate:
    """Estimate the wait; the more callers ahead, the longer."""
    now = snapshot.standing
    if now.ahead and not now.staffed:
        return Estimate(None, None, "unknown", "no_agent_seen")
    if len(snapshot.served) >= ENOUGH:
        return _from_history(now, snapshot.served[-RECENT:])
    if now.staffed and len(snapshot.talks) >= ENOUGH:
        return _from_talks(now, snapshot.talks[-RECENT:])
    return Estimate(None, None, "unknown", "no_history")


def _from_history(now: Standing, served: Sequence[Served]) -> Estimate:
    """Median pace of those served lately, times the places; the bound from how far they missed it.

    A wait of k departures at random spreads by 1/√k of itself (Erlang), so misses are compared times √k.
    """
    usual = median([one.standing.staffed for one in served if one.standing.staffed] or [1])

    def effort(place: Standing) -> float:
        return place.places / sqrt(place.staffed or usual)

    paces = [one.wait / timedelta(seconds=1) / effort(one.standing) for one in served]
    pace = median(paces)
    misses = sorted(
        (one_pace - pace) * sqrt(one.standing.places) for one_pace, one in zip(paces, served, strict=True)
    )
    miss = misses[int(_SHARE * len(misses))] / sqrt(now.places)
    return Estimate(
        timedelta(seconds=pace * effort(now)), timedelta(seconds=(pace + miss) * effort(now)), "history"
    )


def _from_talks(now: Standing, talks: Sequence[timedelta]) -> Estimate:
    """Wait for k departures from agents who are all talking: Erlang of order k.

    Its median is about k - 1/3 steps, its quantiles follow Wilson and Hilferty (1931).
    """
    step = timedelta(seconds=fmean(talk / timedelta(seconds=1) for talk in talks)) / now.staffed
    k = now.places
    bound = k * (1 - 1 / (9 * k) + _NORMAL_AT_SHARE / (3 * sqrt(k))) ** 3
    return Estimate(step * (k - 1 / 3), step * bound, "agents")
