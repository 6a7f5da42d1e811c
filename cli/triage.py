"""Verbs of triage: what waits for a person, what was suggested, who has room, and the decision itself."""

from __future__ import annotations

import asyncio
import json as json_text
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

SHIPPED = Path(__file__).parents[1] / "services" / "router" / "departments.yaml"
triage_app = typer.Typer(help="Cases that wait for a person to name the department.", no_args_is_help=True)
_WAITING = (
    "select case_id, case_no, language, phase, stage, rule, changed_at, abstained, audit, top, moves"
    " from routings where (phase = 'parked' or (phase = 'routed' and department = 'triage'))"
)

# The resolver is told when a case ends; the router is not.
_HELD = (
    "select document::json ->> 'department' as department, count(*)::int as held from entities"
    " where phase in ('delivered', 'in_progress', 'waiting') group by 1"
)


@triage_app.command("list")
def list_waiting(folder: Folder = UP, json: Json = False) -> None:
    """Everything that waits, the longest first; of a blind sample the suggestion is not shown."""
    from cli import show
    from cli.world import World, connected

    async def work() -> list[Any]:
        async with connected(World(folder).place(), "router") as database, database.session() as tx:
            return list(await tx.fetch(f"{_WAITING} order by changed_at"))

    rows = [_line(row) for row in run(work())]
    if json:
        show.as_json(rows)
    elif not rows:
        show.lines(["nothing waits for triage"])
    else:
        show.table(
            "waiting for a department", [{**row, "suggested": _words(row["suggested"])} for row in rows]
        )
    raise typer.Exit(FINE)


def _line(row: Any) -> dict[str, Any]:
    # Who judges a blind sample must not be led: that is what the sample is for.
    suggested = [] if row["audit"] else json_text.loads(row["top"])
    return {
        "case_no": row["case_no"],
        "case_id": str(row["case_id"]),
        "since": row["changed_at"].isoformat(timespec="seconds"),
        "language": row["language"],
        "why": "departments disagree" if row["phase"] == "parked" else row["rule"],
        "moves": row["moves"],
        "suggested": [{"department": department, "p": p} for department, p in suggested],
    }


def _words(suggested: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['department']} {one['p']:.2f}" for one in suggested) or "— none"


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
    asked: Annotated[str, typer.Argument(metavar="CASE", help="Case id or number.")],
    department: Annotated[str, typer.Argument(help="The responsible department.")],
    by: Annotated[str, typer.Option("--by", help="Who decides.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the history.")] = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Name the department; prints the router's verdict."""
    from cli import show
    from cli.history import case_id_of
    from cli.world import World
    from schemas.router import AssignmentRequested

    async def work() -> dict[str, Any] | None:
        world = World(folder)
        place = world.place()
        case_id = await case_id_of(place, asked)
        if case_id is None:
            return None
        body = AssignmentRequested(case_id=case_id, department=department, by=by, reason=reason)
        return await _verdict(place, case_id, body)

    verdict = run(work())
    if verdict is None:
        raise typer.Exit(
            say("no such case", f"nobody has said anything about {asked}", "hotline triage list", USAGE)
        )
    if json:
        show.as_json(verdict)
    else:
        show.lines([f"{verdict['outcome']}: {verdict['why']}"])
    raise typer.Exit(FINE if verdict["outcome"] == "done" else PROBLEM)


async def _verdict(place: Any, case_id: UUID, body: Any, within: float = 10.0) -> dict[str, Any]:
    """Send the command and wait for what the router makes of it."""
    from chassis.clock import utc_now
    from chassis.kafka import KafkaPublisher
    from chassis.message import Writer, time_header
    from chassis.roots import new_id
    from cli.world import connected

    command_id = new_id()
    publisher = KafkaPublisher(place.kafka, "hotline-triage")
    await publisher.start()
    try:
        message = Writer("triage").write(
            body, uid=command_id, at=time_header(utc_now()), correlation=str(case_id)
        )
        await publisher.publish([message])
    finally:
        await publisher.stop()
    outcome = None
    async with asyncio.timeout(within), connected(place, "router") as database:
        while outcome is None:
            async with database.session() as tx:
                outcome = await tx.fetchval("select outcome from inbox where event_id = $1", command_id)
            if outcome is None:
                await asyncio.sleep(0.05)
    word, _, code = outcome.partition(":")
    done = word in ("caused", "noted")
    return {
        "outcome": "done" if done else word,
        "why": f"{body.department} has the case" if done else code.replace("_", " "),
        "command_id": str(command_id),
    }
