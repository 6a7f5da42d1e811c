"""`python -m bench.waiting`: the wait estimate against a month of a bank's calls; a table, and JSON.

February 1999 of the "Anonymous Bank" (SEELab, Technion; A. Mandelbaum, I. Guedj), read in place. Every
caller who had to wait and was answered is estimated at the moment of joining, from what could be known
then. Nobody is left out for being hard to estimate; where one of the estimators says nothing (no history
yet, or no agent seen for ten minutes) the caller counts as untold, for all of them.

The data's dirt, and what is done about it: a phantom call and a caller who later hangs up hold a place
in the queue, because nobody knew better at the time; an answer is dated by the end of the wait (the
agent's clock runs a second or two ahead of it), and a talk ends no sooner than it was answered;
`NO_SERVER` is an agent unknown, who does not count as staff; times without a date that run past
midnight go on to the next day.

Chosen on days 1-14, reported on days 15-28 too: the constants of `estimate.py` (10 s, 10 minutes, 200
callers, the root of the staff), the lag of 90 s for callers who are not customers, and the length of the
moving average. The credit of 90 s for priority customers is the bank's own rule.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import statistics
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from math import exp, expm1, factorial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.intake.waiting.estimate import (
    ENOUGH,
    OPEN_AT_MOST,
    RECENT,
    Estimate,
    Served,
    Snapshot,
    Standing,
    Stay,
    estimate,
    standing,
)
from services.intake.waiting.queues import PRIORITY_CREDIT

DATA = Path(os.environ.get("HOTLINE_DATA", Path(__file__).parents[2] / "shared" / "data"))
CALLS = DATA / "calls" / "1999-02.tsv.gz"
RESULTS = Path("bench/results/waiting.json")
GOAL_PERCENT = 35
TUNED_UNTIL_DAY = 14
ASKED_AGAIN_AFTER = timedelta(seconds=60)

_STRANGER_LAG = timedelta(seconds=90)
_STRANGERS = {"NW", "IN", "TT"}
_AVERAGED = 3
_HALF_DAY = timedelta(hours=12)
_SECOND = timedelta(seconds=1)
# What happens in one second happens in this order: who leaves makes room before anybody asks.
_HUNG_UP, _ANSWERED, _JOINS, _ASKS = range(4)

ESTIMATE = "the estimate"
MOVING_AVERAGE = f"moving average (last {_AVERAGED} waits)"
LAST_WAIT = "wait of the last caller served"
HELD_OUT, TUNED, WHOLE = "days 15-28, held out", "days 1-14, tuned on", "whole month"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the queue or an agent."""

    stay: Stay
    type: str
    waited: timedelta
    talked: timedelta


@dataclass(frozen=True, slots=True)
class Asked:
    """What each estimator says to one caller, and how long he really waited from then on."""

    day: int
    ahead: int
    waited: timedelta
    said: dict[str, Estimate]

    @property
    def told(self) -> bool:
        """Tell whether every estimator says something."""
        return all(one.expected is not None for one in self.said.values())


def read_calls(path: Path) -> list[Call]:
    """Read the calls of a month that reached the queue or an agent, in the order of queueing."""
    with gzip.open(path, "rt", newline="") as lines:
        calls = [call for row in csv.DictReader(lines, delimiter="\t") if (call := _call(row)) is not None]
    return sorted(calls, key=lambda call: call.stay.queued_at)


def _call(row: dict[str, str]) -> Call | None:
    waited = timedelta(seconds=int(row["q_time"]))
    answered = row["outcome"] == "AGENT"
    if not (waited or answered):
        return None
    entered = _time(row["date"], row["vru_entry"], datetime.min.replace(tzinfo=UTC))
    queued_at = _time(row["date"], row["q_start"] if waited else row["vru_exit"], entered)
    left_queue = queued_at + waited
    stay = Stay(
        queued_at=queued_at,
        rank=queued_at - _credit(row),
        answered_at=left_queue if answered else None,
        left_at=None if answered else left_queue,
        talk_ended_at=max(left_queue, _time(row["date"], row["ser_exit"], entered)) if answered else None,
        agent=row["server"] if answered and row["server"] != "NO_SERVER" else None,
    )
    talked = stay.talk_ended_at - left_queue if stay.talk_ended_at is not None else timedelta(0)
    return Call(stay, row["type"], waited, talked)


def _time(date: str, clock: str, entered: datetime) -> datetime:
    hours, minutes, seconds = map(int, clock.split(":"))
    at = datetime.strptime(f"19{date}", "%Y%m%d").replace(tzinfo=UTC) + timedelta(
        hours=hours, minutes=minutes, seconds=seconds
    )
    return at + timedelta(days=1) if entered - at > _HALF_DAY else at


def _credit(row: dict[str, str]) -> timedelta:
    """How much earlier a caller counts as queued; strangers count later, as overtaking shows (98 %)."""
    if row["priority"] == "2":
        return PRIORITY_CREDIT
    if row["priority"] == "0" and row["type"] in _STRANGERS:
        return -_STRANGER_LAG
    return timedelta(0)


class Replay:
    """The month once more, in time order, knowing at each moment what was known then."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._starts = [call.stay.queued_at for call in calls]
        self._joined: dict[int, Standing] = {}
        self._served: deque[Served] = deque(maxlen=RECENT)
        self._served_by_type: dict[str, deque[Served]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._talks: deque[timedelta] = deque(maxlen=RECENT)

    def asked(self, after: timedelta = timedelta(0)) -> Iterator[Asked]:
        """Ask for each caller who is still waiting so long after joining, and is answered later."""
        steps = [step for number, call in enumerate(self._calls) for step in _steps(number, call, after)]
        for at, kind, number in sorted(steps):
            call = self._calls[number]
            if kind == _ASKS:
                now = self._standing(call, at)
                yield Asked(at.day, now.ahead, call.waited - after, self._say(call, now))
            elif kind == _JOINS:
                self._joined[number] = self._standing(call, at)
            elif kind == _ANSWERED:
                served = Served(self._joined[number], call.waited)
                self._served.append(served)
                self._served_by_type[call.type].append(served)
            else:
                self._talks.append(call.talked)

    def _standing(self, call: Call, at: datetime) -> Standing:
        known = slice(bisect_left(self._starts, at - OPEN_AT_MOST), bisect_right(self._starts, at))
        return standing((other.stay for other in self._calls[known]), call.stay.rank, at)

    def _say(self, call: Call, now: Standing) -> dict[str, Estimate]:
        served, talks = tuple(self._served), tuple(self._talks)
        own = tuple(self._served_by_type[call.type])
        waits = [one.wait for one in served[-_AVERAGED:]]
        return {
            ESTIMATE: estimate(Snapshot(now, served, talks)),
            "from callers of the same service": estimate(
                Snapshot(now, own if len(own) >= ENOUGH else served, talks)
            ),
            "agents and talks only (Erlang)": estimate(Snapshot(now, (), talks)),
            MOVING_AVERAGE: _plain(sum(waits, timedelta(0)) / len(waits) if waits else None),
            LAST_WAIT: _plain(waits[-1] if waits else None),
        }


def _steps(number: int, call: Call, after: timedelta) -> Iterator[tuple[datetime, int, int]]:
    stay = call.stay
    if call.waited:
        yield stay.queued_at, _JOINS, number
        if stay.answered_at is not None:
            yield stay.answered_at, _ANSWERED, number
            if call.waited > after:
                yield stay.queued_at + after, _ASKS, number
    if stay.agent is not None and stay.talk_ended_at is not None:
        yield stay.talk_ended_at, _HUNG_UP, number


def _plain(wait: timedelta | None) -> Estimate:
    return Estimate(wait, None, "history" if wait is not None else "unknown")


def figures(asked: Sequence[Asked], name: str) -> dict[str, float | int | None]:
    """Give how far one estimator was off: seconds, percent of the median wait, shares who waited less."""
    errors, within, waits, shorter = [], [], [], []
    for one in asked:
        said = one.said[name]
        assert said.expected is not None
        errors.append(abs(said.expected - one.waited) / _SECOND)
        waits.append(one.waited / _SECOND)
        shorter.append(one.waited <= said.expected)
        if said.at_most is not None:
            within.append(one.waited <= said.at_most)
    off, wait = statistics.median(errors), statistics.median(waits)
    return {
        "n": len(asked),
        "median_wait_s": round(wait, 1),
        "median_error_s": round(off, 1),
        "median_error_percent": round(100 * off / wait, 1),
        "mean_error_s": round(statistics.fmean(errors), 1),
        "p90_error_s": round(statistics.quantiles(errors, n=10, method="inclusive")[-1], 1),
        "within_estimate": round(statistics.fmean(shorter), 3),
        "within_bound": round(statistics.fmean(within), 3) if within else None,
    }


def floor_percent(asked: Sequence[Asked]) -> dict[str, float]:
    """Give the errors (percent of the median wait) that would stay if the rate of departures were known.

    Departures at random make the wait of a caller with k-1 ahead Erlang of order k. `median_told` tells each
    caller its median. `best_point` tells the middle of the likeliest interval as wide as twice the error:
    a median error of t needs half of the callers within t of what they are told, and no other point has
    as many there. Computed for the same numbers of callers ahead, at one rate.
    """
    orders = Counter(one.ahead + 1 for one in asked)
    longest = 2.0 * max(orders) + 10
    medians = {order: _half(partial(_erlang, order), longest) for order in orders}

    def half(share: Callable[[int, float], float]) -> float:
        """Find where the share, over all callers, is one half."""
        return _half(lambda x: sum(n * share(order, x) for order, n in orders.items()) / len(asked), longest)

    def near_median(order: int, off: float) -> float:
        return _erlang(order, medians[order] + off) - _erlang(order, medians[order] - off)

    wait = half(_erlang)
    return {
        "median_told": round(100 * half(near_median) / wait, 1),
        "best_point": round(100 * half(_likeliest) / wait, 1),
    }


def _erlang(order: int, wait: float) -> float:
    """Share of the waits for so many departures, one per unit of time, that are no longer than this."""
    if wait <= 0:
        return 0.0
    return 1 - exp(-wait) * sum(wait**n / factorial(n) for n in range(order))


def _likeliest(order: int, off: float) -> float:
    """Share of those waits in the likeliest interval of width 2 x off: its ends are equally dense."""
    width = 2 * off
    start = width / expm1(width / (order - 1)) if order > 1 and width else 0.0
    return _erlang(order, start + width) - _erlang(order, start)


def _half(share: Callable[[float], float], longest: float) -> float:
    """Find where a growing share is one half."""
    low, high = 0.0, longest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < 0.5 else (low, middle)
    return low


def backtest(calls: Sequence[Call]) -> dict[str, Any]:
    """Replay the calls; figures per period and estimator."""
    every = list(Replay(calls).asked())
    told = [one for one in every if one.told]
    again = [one for one in Replay(calls).asked(ASKED_AGAIN_AFTER) if one.told]
    periods = {
        HELD_OUT: [one for one in told if one.day > TUNED_UNTIL_DAY],
        TUNED: [one for one in told if one.day <= TUNED_UNTIL_DAY],
        WHOLE: told,
        "whole month, asked again 60 s after joining": again,
    }
    return {
        "goal_percent": GOAL_PERCENT,
        "floor_percent": floor_percent(told),
        "untold": len(every) - len(told),
        "periods": {
            period: {name: figures(asked, name) for name in asked[0].said}
            for period, asked in periods.items()
            if len(asked) > 1
        },
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(title="What callers are told, against how long they waited", title_justify="left")
    for column in (
        "",
        "n",
        "median wait",
        "median error",
        "of it",
        "mean error",
        "p90 error",
        "within it",
        "within bound",
    ):
        table.add_column(column, justify="right" if column else "left")
    for period, rows in report["periods"].items():
        table.add_section()
        table.add_row(f"[bold]{period}[/bold]")
        for name, row in rows.items():
            within = row["within_bound"]
            table.add_row(
                name,
                f"{row['n']:,}",
                *(f"{row[key]:.1f} s" for key in ("median_wait_s", "median_error_s")),
                f"{row['median_error_percent']:.1f} %",
                *(f"{row[key]:.1f} s" for key in ("mean_error_s", "p90_error_s")),
                f"{row['within_estimate']:.1%}",
                "—" if within is None else f"{within:.1%}",
            )
    Console(width=150).print(table)
    reached = report["periods"][WHOLE][ESTIMATE]["median_error_percent"]
    print(f"Goal: at most {GOAL_PERCENT} % of the median wait. Reached: {reached} % over the whole month.")
    floor = report["floor_percent"]
    print(
        f"Were the rate of departures known exactly, {floor['median_told']} % would stay with the median"
        f" told, {floor['best_point']} % with the point that suits this figure best: they come at random, and"
        f" most callers have at most one before them. Untold callers: {report['untold']}."
    )


def main() -> int:
    """Run the backtest, print the table, keep the figures."""
    words = argparse.ArgumentParser(prog="python -m bench.waiting", description=__doc__)
    words.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    given = words.parse_args()
    if not CALLS.exists():
        print(
            f"skipped: {CALLS} is not there; set HOTLINE_DATA to the folder that holds calls/1999-02.tsv.gz"
        )
        return 0
    report = backtest(read_calls(CALLS))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2))
    if given.json:
        print(json.dumps(report))
    else:
        _show(report)
        print(f"all figures: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
