"""Verbs of triage: what waits for a person, what was suggested, who has room, and the decision itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

if TYPE_CHECKING:
    from cli.rulings import Verdict

SHIPPED = Path(__file__).parents[1] / "services" / "router" / "departments.yaml"
triage_app = typer.Typer(help="Cases that wait for a person to name the department.", no_args_is_help=True)
# The resolver is told when a case ends; the router is not.
_HELD = (
    "select document::json ->> 'department' as department, count(*)::int as held from entities"
    " where phase in ('delivered', 'in_progress', 'waiting') group by 1"
)
Asked = Annotated[str, typer.Argument(metavar="CASE", help="Case id or number.")]
By = Annotated[str, typer.Option("--by", help="Who decides.")]


@triage_app.command("list")
def list_waiting(folder: Folder = UP, json: Json = False) -> None:
    """Everything that waits, what is due first; of a blind sample the suggestion is not shown."""
    from chassis.clock import utc_now
    from cli import rulings, show
    from cli.world import World

    now = utc_now()
    rows = [one.as_json(now) for one in run(rulings.waiting(World(folder).place()))]
    if json:
        show.as_json(rows)
    elif not rows:
        show.lines(["nothing waits for triage"])
    else:
        show.lines([_line(row, now) for row in rows])
    raise typer.Exit(FINE)


def _line(row: dict[str, Any], now: datetime) -> str:
    due = (
        f"due {datetime.fromisoformat(row['due']).astimezone():%m-%d %H:%M}"
        if row["due"]
        else "due at no time"
    )
    suggested = ", ".join(f"{one['department']} {one['p']:.2f}" for one in row["suggested"]) or "nothing"
    waited = (now - datetime.fromisoformat(row["since"])).total_seconds() / 60
    return (
        f"{row['case_no']}  {due}{' OVERDUE' if row['overdue'] else ''}, {row['state']}, {row['language']},"
        f" here for {waited:.0f} min: {row['why']}; suggested: {suggested}"
    )


@triage_app.command("departments")
def departments(
    file: Annotated[
        Path, typer.Option("--file", help="Departments file.", envvar="HOTLINE_DEPARTMENTS_FILE")
    ] = SHIPPED,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """What each department holds and should at most, whether it works, whether the classifier may decide."""
    from chassis.clock import utc_now
    from cli import show
    from cli.world import World, connected
    from services.router.departments import BadDepartments, load_departments
    from services.router.lessons import restrictions

    async def work() -> tuple[dict[str, int], set[str]]:
        place = World(folder).place()
        async with connected(place, "resolver") as database, database.session() as tx:
            held = {row["department"]: row["held"] for row in await tx.fetch(_HELD)}
        async with connected(place, "router") as database, database.session() as tx:
            return held, {one["department"] for one in await restrictions(tx)}

    try:
        known, now = load_departments(file), utc_now()
    except BadDepartments as error:
        raise typer.Exit(
            say("departments may not be used", str(error), "correct the file", PROBLEM)
        ) from None
    held, restricted = run(work())
    rows = [
        {
            "department": code,
            "open": held.get(code, 0),
            "capacity": profile.capacity,
            "full": profile.capacity is not None and held.get(code, 0) >= profile.capacity,
            "works_now": known.is_open(code, now),
            "takes": profile.takes,
            "classifier_may": code not in restricted,
        }
        for code, profile in known.departments.items()
    ]
    if json:
        show.as_json(rows)
    else:
        show.table("departments · open cases as the resolver knows them", [_in_words(row) for row in rows])
    raise typer.Exit(FINE)


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    words = {True: "yes", False: "no", None: "any number"}
    return {
        name: words[value] if value is None or isinstance(value, bool) else value
        for name, value in row.items()
    }


@triage_app.command("assign")
def assign(
    asked: Asked,
    department: Annotated[str, typer.Argument(help="The responsible department.")],
    by: By,
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for the history; `misrouted` teaches the classifier.")
    ] = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Name the department; done when the department has the case, else the reason why it has not.

    For a case that is parked, waits in triage, or was not accepted in time where it is.
    """
    from cli import rulings
    from cli.world import World
    from schemas.router import AssignmentRequested

    async def work(case_id: UUID) -> rulings.Verdict:
        body = AssignmentRequested(case_id=case_id, department=department, by=by, reason=reason)
        return await rulings.assign(World(folder).place(), body)

    _tell(folder, asked, work, json=json)


@triage_app.command("reject")
def reject(
    asked: Asked,
    by: By,
    text: Annotated[str, typer.Option("--text", help="What the customer is told; it is sealed.")],
    root_cause: Annotated[
        str, typer.Option("--root-cause", help="Why, as a word for statistics.")
    ] = "not_ours",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Answer a case that waits in triage as not the bank's; the customer is told."""
    from cli import rulings
    from cli.world import World

    _tell(
        folder, asked, lambda case_id: rulings.reject(World(folder), case_id, by, text, root_cause), json=json
    )


def _tell(folder: Path, asked: str, work: Callable[[UUID], Awaitable[Verdict]], *, json: bool) -> None:
    from cli import show
    from cli.history import case_id_of
    from cli.model import carried_out
    from cli.world import World

    async def whole() -> Verdict | None:
        case_id = await case_id_of(World(folder).place(), asked)
        return await work(case_id) if case_id else None

    verdict = carried_out(whole())
    if verdict is None:
        raise typer.Exit(
            say("no such case", f"nobody has said anything about {asked}", "hotline triage list", USAGE)
        )
    if json:
        show.as_json(verdict.as_json())
    else:
        show.lines([f"{verdict.outcome}: {verdict.why}"])
    raise typer.Exit(FINE if verdict.outcome == "done" else PROBLEM)
