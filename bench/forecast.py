"""`python -m bench.forecast`: how far the forecast of calls is off, day by day on a real month.

The calls of a bank's telephone centre in February 1999 (Technion SEELab, A. Mandelbaum and I. Guedj)
are read in place. Each day from the 8th on is forecast per half-hour from the days before it alone,
and compared with "as last week": the same slot seven days before. The constants of the forecast
were chosen on the 8th to the 21st; the 22nd to the 28th were not used for that.
"""

import argparse
import csv
import gzip
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table

from services.intake.staffing.forecast import COVERAGE, Slot, forecast
from services.intake.staffing.intervals import HALF_HOUR, interval_of

CALLS = Path(__file__).parents[2] / "shared/data/calls/1999-02.tsv.gz"
TZ = ZoneInfo("Asia/Jerusalem")
WEEK = timedelta(days=7)
SPANS = {"tuned on, 8-21": (8, 21), "held out, 22-28": (22, 28), "all, 8-28": (8, 28)}

Arrivals = Mapping[datetime, int]


def arrivals(path: Path) -> dict[datetime, int]:
    """Count the calls that asked for an agent, by half-hour (aware start); quiet slots are 0.

    Left out: what the centre calls phantoms, and who hung up while still with the voice response unit.
    """
    counts: Counter[datetime] = Counter()
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for call in csv.DictReader(lines, delimiter="\t"):
            queued = call["q_start"] != "0:00:00"
            if call["outcome"] == "PHANTOM" or (call["outcome"] == "HANG" and not queued):
                continue
            came = datetime.strptime(f"{call['date']} {call['vru_entry']}", "%y%m%d %H:%M:%S").replace(
                tzinfo=TZ
            )
            counts[interval_of(came, HALF_HOUR, TZ)[0]] += 1
    days = {at.date() for at in counts}
    return {
        start: counts[start]
        for day in sorted(days)
        for start in (
            datetime(day.year, day.month, day.day, n // 2, n % 2 * 30, tzinfo=TZ) for n in range(48)
        )
    }


@dataclass(frozen=True, slots=True)
class Score:
    """How a span of days went: sum of errors / calls (WAPE), and the share of slots inside the band.

    `held_busy` is that of slots with at least 10 calls expected: quiet slots are easily held.
    """

    calls: int
    wape: float
    wape_last_week: float
    held: float
    held_busy: float


def backtest(calls: Arrivals, days: Sequence[date]) -> dict[date, list[Slot]]:
    """Forecast each day from what came before it, and from nothing else."""
    return {
        day: forecast({at: count for at, count in calls.items() if at.date() < day}, day, TZ) for day in days
    }


def score(calls: Arrivals, forecasts: Mapping[date, Sequence[Slot]]) -> Score:
    """Compare forecasts with what came, and what came with the same slots a week before."""
    slots = [slot for of_day in forecasts.values() for slot in of_day]
    came = sum(calls[slot.start] for slot in slots)
    held = {slot.start: slot.low <= calls[slot.start] <= slot.high for slot in slots}
    busy = [held[slot.start] for slot in slots if slot.expected >= 10]
    return Score(
        calls=came,
        wape=sum(abs(slot.expected - calls[slot.start]) for slot in slots) / came,
        wape_last_week=sum(abs(calls[slot.start - WEEK] - calls[slot.start]) for slot in slots) / came,
        held=sum(held.values()) / len(held),
        held_busy=sum(busy) / len(busy),
    )


def _show(scores: Mapping[str, Score]) -> None:
    table = Table(title="Calls per half-hour, forecast a day ahead", title_justify="left")
    columns = (
        "Feb 1999",
        "calls",
        "error",
        "as last week",
        "of that",
        "in band",
        "in band, busy",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for name, of in scores.items():
        table.add_row(
            name,
            f"{of.calls:,}",
            f"{of.wape:.1%}",
            f"{of.wape_last_week:.1%}",
            f"{of.wape / of.wape_last_week:.0%}",
            f"{of.held:.0%}",
            f"{of.held_busy:.0%}",
        )
    Console().print(table)
    print("error: sum of |forecast - calls| / calls; busy: slots with 10 calls and more expected")
    print(f"the band is meant to hold {COVERAGE:.0%} of the slots")


def main() -> int:
    """Backtest, print the table; 1 when "as last week" was the better forecast of any span."""
    words = argparse.ArgumentParser(prog="python -m bench.forecast", description=__doc__)
    words.add_argument("--calls", type=Path, default=CALLS, help="the month of calls (TSV, gzip)")
    words.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    given = words.parse_args()
    if not given.calls.exists():
        print(f"skipped: {given.calls} is not there; give the month of calls with --calls", file=sys.stderr)
        return 0
    calls = arrivals(given.calls)
    forecasts = backtest(calls, [date(1999, 2, day) for day in range(8, 29)])
    scores = {
        name: score(calls, {day: slots for day, slots in forecasts.items() if first <= day.day <= last})
        for name, (first, last) in SPANS.items()
    }
    if given.json:
        print(json.dumps({name: asdict(of) for name, of in scores.items()}))
    else:
        _show(scores)
    return 0 if all(of.wape < of.wape_last_week for of in scores.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
