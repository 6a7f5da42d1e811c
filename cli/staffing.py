"""Verbs about load and staffing: what happened per interval, what to expect, what staff it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from chassis.clock import utc_now
from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

if TYPE_CHECKING:
    from services.intake.staffing.forecast import WeekdayOf

staffing_app = typer.Typer(help="Load and staffing: intervals, forecast, plan.", no_args_is_help=True)

Queue = Annotated[str, typer.Option("--queue", help="Only this queue; all together without it.")]
Zone = Annotated[str, typer.Option("--zone", help="Time zone of the day.")]
Hours = Annotated[
    Path | None,
    typer.Option("--hours", help="Opening hours, with holidays (YAML).", envvar="HOTLINE_HOURS_FILE"),
]
Day = Annotated[str, typer.Option("--date", help="Day, YYYY-MM-DD; today without it.")]
HISTORY = timedelta(weeks=8)


def _day(text: str, zone: str) -> tuple[date, ZoneInfo]:
    why = ""
    try:
        tz = ZoneInfo(zone)
        day = date.fromisoformat(text) if text else utc_now().astimezone(tz).date()
    except (ValueError, ZoneInfoNotFoundError) as error:
        why = str(error)
    else:
        if 2000 <= day.year < 2100:
            return day, tz
        why = f"{day} is not between the years 2000 and 2099"
    raise typer.Exit(say("not a day or zone", why, "--date 2026-12-01 --zone Asia/Shanghai", USAGE))


def _bounds(day: date, tz: ZoneInfo) -> tuple[datetime, datetime]:
    midnight = datetime(day.year, day.month, day.day, tzinfo=tz)
    following = date.fromordinal(day.toordinal() + 1)
    return midnight, datetime(following.year, following.month, following.day, tzinfo=tz)


@staffing_app.command("intervals")
def intervals(
    day: Day = "",
    queue: Queue = "",
    zone: Zone = "Asia/Shanghai",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """What happened per half-hour: offered, answered, abandoned, answer rate, service level, speeds."""
    from cli import show
    from cli.world import World, connected
    from services.intake.staffing import store
    from services.intake.staffing.intervals import answer_rate, by_interval

    which, tz = _day(day, zone)
    since, until = _bounds(which, tz)

    async def work() -> Any:
        async with connected(World(folder).place(), "intake") as database, database.session() as tx:
            # A day before and after: agents who worked around midnight were there.
            rows = await store.visits(tx, since - timedelta(days=1), until + timedelta(days=1))
            return rows, await store.refusals(tx, since, until)

    rows, refused = run(work())
    # All rows, whatever queue is asked for: its agents also worked in others.
    found = by_interval(rows, refused, since=since, until=until, tz=tz, merged=not queue)
    busy = [one for one in found if (one.offered or one.refused) and queue in ("", one.queue)]
    document = [_interval(one) for one in busy]
    rate = answer_rate(busy)
    if json:
        head = {"date": str(which), "zone": zone, "queue": queue or "*", "answer_rate": _figure(rate)}
        show.as_json({**head, "intervals": document})
    elif not document:
        show.lines([f"no calls on {which} ({zone})", _in_words("answer_rate", rate)])
    else:
        title = f"{queue or 'all queues'} · {which} {zone}"
        show.table(title, document)
        show.lines([_in_words("answer_rate", rate)])
    raise typer.Exit(FINE)


def _in_words(name: str, figure: Any) -> str:
    """Write a share as per cent under its names, or the dash with its reason."""
    from services.intake.staffing.intervals import NAMES, REASONS

    if figure.value is None:
        reason = REASONS[figure.missing]
        said = f"— {reason['zh']} {reason['en']}"
    else:
        said = f"{figure.value:.1%}"
    return f"{NAMES[name]['zh']} {NAMES[name]['en']}: {said}"


def _interval(one: Any) -> dict[str, Any]:
    return {
        "start": one.start.isoformat(timespec="minutes"),
        "offered": one.offered,
        "answered": one.answered,
        "abandoned": one.abandoned,
        "refused": one.refused,
        "answer_rate": _figure(one.answer_rate),
        "service_level": _figure(one.service_level),
        "speed_of_answer_s": _figure(one.average_speed_of_answer_ms, 1000),
        "handling_time_s": _figure(one.average_handling_time_ms, 1000),
        "occupancy": _figure(one.occupancy),
        "longest_wait_s": _figure(one.longest_wait, 1000),
    }


def _figure(figure: Any, unit: float = 1.0) -> float | str:
    """A number, or the dash with its reason: never a zero that is none."""
    if figure.value is None:
        return f"— {figure.missing.value.replace('_', ' ')}"
    return round(float(figure.value / unit), 3)


@staffing_app.command("forecast")
def forecast(
    day: Day = "",
    queue: Queue = "",
    zone: Zone = "Asia/Shanghai",
    hours: Hours = None,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Calls to expect per half-hour of a day, with a band and how far to trust it."""
    from cli import show

    which, tz = _day(day, zone)
    slots, trust, _ = _expected(folder, which, tz, queue, hours)
    document = [
        {
            "start": slot.start.isoformat(timespec="minutes"),
            "expected": round(slot.expected, 1),
            "low": round(slot.low, 1),
            "high": round(slot.high, 1),
        }
        for slot in slots
    ]
    if json:
        show.as_json(
            {"date": str(which), "zone": zone, "trust": trust.word, "why": trust.en, "slots": document}
        )
    else:
        show.table(f"calls expected · {which} {zone} · trust {trust.word}: {trust.en}", document)


def _expected(
    folder: Path, day: date, tz: ZoneInfo, queue: str, hours: Path | None
) -> tuple[Sequence[Any], Any, float | None]:
    from cli.world import World, connected
    from services.intake.staffing import store
    from services.intake.staffing.forecast import Trust, forecast_queues
    from services.intake.staffing.intervals import HALF_HOUR, interval_of

    # Whole days only: today is not over.
    until = min(_bounds(day, tz)[0], _bounds(utc_now().astimezone(tz).date(), tz)[0])

    async def work() -> tuple[dict[str, dict[datetime, int]], float | None]:
        async with connected(World(folder).place(), "intake") as database, database.session() as tx:
            since = until - HISTORY
            handling = await store.mean_handling_ms(tx, since, queue or None)
            return await store.arrivals(tx, since, until, queue or None), handling

    weekday_of, known_until = _calendar(hours)
    arrivals, handling = run(work())
    histories: dict[str, dict[datetime, int]] = {}
    for name, minutes in arrivals.items():
        history = histories[name] = {}
        for minute, calls in minutes.items():
            start, _ = interval_of(minute.astimezone(UTC), HALF_HOUR, tz)
            history[start] = history.get(start, 0) + calls
    try:
        slots, trust = forecast_queues(histories, day, tz, weekday_of)
    except ValueError as error:
        raise typer.Exit(say("no forecast", str(error), "hotline staffing intervals", PROBLEM)) from None
    if day > known_until and trust.word == "good" and any(slot.expected for slot in slots):
        trust = Trust(
            "fair", f"{known_until} 之后的节假日未知", f"holidays are not known after {known_until}"
        )
    return slots, trust, handling


def _calendar(path: Path | None) -> tuple[WeekdayOf, date]:
    """Read the holidays of each queue and the days worked for them; and until when they are known."""
    from chassis.wallclock import WEEKDAYS
    from services.intake.waiting.hours import load_hours

    hours = load_hours(path)

    def weekday_of(queue: str, day: date) -> int | None:
        weekday = hours.calendar(queue).weekday_of(day)
        return WEEKDAYS.index(weekday) if weekday else None

    return weekday_of, hours.known_until


@staffing_app.command("plan")
def plan(
    day: Day = "",
    sl: Annotated[
        str | None, typer.Option("--sl", help="Target: per cent of calls / seconds; 80/20 if nobody says.")
    ] = None,
    shrinkage: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Breaks, training, absence, 0..1; 0.3 if nobody says."),
    ] = None,
    aht: Annotated[
        float | None, typer.Option("--aht", min=0, help="Handling time, s; 0 or without: as measured.")
    ] = None,
    patience: Annotated[float | None, typer.Option(min=0, help="Mean patience, s; 0: Erlang C.")] = None,
    what_if: Annotated[int, typer.Option("--what-if", min=0, help="And with so many agents?")] = 0,
    assumptions: Annotated[
        Path | None,
        typer.Option("--file", help="Assumptions and roster (YAML); options count before it."),
    ] = None,
    queue: Queue = "",
    zone: Zone = "Asia/Shanghai",
    hours: Hours = None,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Agents needed per half-hour of a day, the peak gaps, and what one agent more or less would do."""
    from cli import show
    from services.intake.staffing import plan as planning

    which, tz = _day(day, zone)
    slots, trust, measured = _expected(folder, which, tz, queue, hours)
    said = {"target": sl, "shrinkage": shrinkage, "aht_s": aht, "patience_s": patience}
    try:
        given = _assumptions(assumptions, said, measured)
        lines = [line for line in given.plan(slots) if line.expected >= 0.05]
    except (OSError, ValueError) as error:
        raise typer.Exit(say("no plan", str(error), "hotline staffing plan --help", USAGE)) from None
    gaps = planning.peak_gaps(lines)
    busiest = max(lines, key=lambda line: line.load, default=None)
    document: dict[str, Any] = {
        "date": str(which),
        "zone": zone,
        "queue": queue or "*",
        "target": str(given.target),
        "aht_s": round(given.aht_s, 1),
        "shrinkage": given.shrinkage,
        "trust": {"word": trust.word, "why": trust.en},
        "lines": [_line(line) for line in lines],
        "peak_gaps": [_line(line) for line in gaps],
        "what_if": _sentence(busiest, given, what_if) if busiest else None,
    }
    show.as_json(document) if json else _show_plan(document)
    raise typer.Exit(PROBLEM if gaps else FINE)


def _assumptions(path: Path | None, said: Mapping[str, Any], measured_ms: float | None) -> Any:
    """What is said counts before what stands in the file, that before what was measured, or is usual."""
    from services.intake.staffing.plan import Assumptions, parse_assumptions

    # 0 says as measured, and that nobody gives up.
    instead = {
        name: value for name, value in said.items() if value is not None and (name, value) != ("aht_s", 0)
    }
    if instead.get("patience_s") == 0:
        instead["patience_s"] = None
    if path is not None:
        return parse_assumptions(path.read_text("utf-8"), str(path), instead)
    values = {"aht_s": (measured_ms or 0) / 1000, **instead}
    if values["aht_s"] <= 0:
        raise ValueError("no call was handled yet, so no handling time is known: give --aht SECONDS")
    return Assumptions.model_validate(values)


def _line(line: Any) -> dict[str, Any]:
    return {
        "start": line.start.isoformat(timespec="minutes"),
        "expected": round(line.expected, 1),
        "erlang": round(line.load, 2),
        "required": line.required,
        "rostered_required": line.rostered_required,
        "rostered": line.rostered if line.rostered is not None else "— no roster",
        "gap": line.gap if line.gap is not None else "— no roster",
        "service_level": round(line.service_level, 3) if line.service_level is not None else "— no calls",
        "occupancy": round(line.occupancy, 3) if line.occupancy is not None else f"— {_why_none(line)}",
    }


def _why_none(line: Any) -> str:
    from services.intake.staffing import plan as planning

    return (planning.NOBODY_CALLS if line.service_level is None else planning.NOBODY_THERE)["en"]


def _sentence(line: Any, given: Any, what_if: int) -> dict[str, str]:
    from services.intake.staffing import plan as planning

    def outlook(agents: int) -> Any:
        patience = timedelta(seconds=given.patience_s) if given.patience_s else None
        aht = timedelta(seconds=given.aht_s)
        return planning.what_if(line.load, aht, agents, within=given.target.within, patience=patience)

    asked = what_if or max(1, line.agents - 1)
    first, other = outlook(line.agents), outlook(asked)
    when = line.start.isoformat(timespec="minutes")
    return {
        "busiest": when,
        "en": planning.in_words(first, other, language="en"),
        "zh": planning.in_words(first, other, language="zh"),
    }


def _show_plan(document: dict[str, Any]) -> None:
    from cli import show

    trust = document["trust"]
    title = (
        f"staff · {document['date']} {document['zone']} · {document['target']} · handling time"
        f" {document['aht_s']} s · forecast trust {trust['word']}: {trust['why']}"
    )
    show.table(title, document["lines"])
    if document["what_if"]:
        said = document["what_if"]
        show.lines([f"busiest {said['busiest']}: {said['en']} · {said['zh']}"])
    for gap in document["peak_gaps"]:
        show.lines([f"short at {gap['start']}: {gap['gap']} of {gap['rostered_required']} rostered"])
