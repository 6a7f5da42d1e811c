"""The `hotline` command: verbs, their options and exit codes; the work is in the rooms beside."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chassis.faults import Misconfigured, Transient
from cli import handoffs
from cli.customers import customer_app
from cli.model import model_app
from cli.router import router_app
from cli.rules import rules_app
from cli.staffing import staffing_app
from cli.telephony import telephony_app
from cli.triage import triage_app
from cli.verbs import FINE, PROBLEM, UNREACHABLE, UP, USAGE, Folder, Json, run, say

app = typer.Typer(
    name="hotline",
    help="A bank's telephone hotline as an event pipeline: run it, watch it, ask it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
case_app = typer.Typer(help="Ask about one case.", no_args_is_help=True)
events_app = typer.Typer(help="Look at events.", no_args_is_help=True)
topics_app = typer.Typer(help="Kafka topics as the contract declares them.", no_args_is_help=True)
app.add_typer(case_app, name="case")
app.add_typer(events_app, name="events")
app.add_typer(topics_app, name="topics")
handoffs.register(app)
app.add_typer(customer_app, name="customer")
app.add_typer(staffing_app, name="staffing")
app.add_typer(rules_app, name="rules")
app.add_typer(triage_app, name="triage")
app.add_typer(model_app, name="model")
app.add_typer(router_app, name="router")
app.add_typer(telephony_app, name="telephony")

_DEMO = Path(".run/demo")
DemoFolder = Annotated[Path, typer.Option("--dir", help="Where the demo keeps its files, erased first.")]
"""Never that of the other verbs (HOTLINE_DIR): who set it for `up` would have it erased."""


@app.command()
def demo(
    calls: Annotated[int, typer.Option(min=0, help="Calls to generate beyond the recording.")] = 0,
    rate: Annotated[float, typer.Option(min=0.1, help="Generated calls per second, on average.")] = 50.0,
    seed: Annotated[int, typer.Option(help="Seed of the generated calls.")] = 1,
    drop: Annotated[int, typer.Option(min=0, help="Let the router swallow so many handoffs.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards.")] = False,
    within: Annotated[float, typer.Option(min=5, help="Give up after so many seconds without news.")] = 20.0,
    folder: DemoFolder = _DEMO,
    json: Json = False,
) -> None:
    """Play the hotline once: a recorded PBX in, told customers out."""
    from cli import show
    from cli.demo import Demo, Load

    play = Demo(folder, Load(calls, rate, seed, drop), show.progress)
    if play.taken:
        why = f"{folder} holds something that no demo has made, and a demo begins by erasing its folder"
        raise typer.Exit(say("nothing was touched", why, "name another folder with --dir", USAGE))
    summary = run(play.run(within, keep=keep))
    show.as_json(summary) if json else show.demo_summary(summary)
    raise typer.Exit(FINE if summary["complete"] else PROBLEM)


@app.command()
def up(folder: Folder = UP, json: Json = False) -> None:
    """Start the stack, the stages and what runs beside them in the background; again: go on where it was."""
    from cli import show
    from cli.status import overview, until_seeing
    from cli.world import BESIDE, PROCESSES, World

    world = World(folder, show.progress)

    async def work() -> dict[str, Any]:
        place = await asyncio.to_thread(world.start_stack)
        await world.prepare(place)
        show.progress("starting the stages that do not run")
        await asyncio.to_thread(world.start_stages, place)
        for name in BESIDE:
            await asyncio.to_thread(world.start_beside, name, place)
        await world.wait_ready(stages=PROCESSES)
        await until_seeing(world)
        return await overview(world)

    seen = run(work())
    show.as_json(seen) if json else show.status(seen, hints=True)


@app.command()
def down(folder: Folder = UP, json: Json = False) -> None:
    """Stop the stages and the stack; what is not finished goes on at the next `up`."""
    from cli import show
    from cli.world import World

    world = World(folder, show.progress)
    killed = world.stop_stages()
    world.stop_stack()
    if json:
        show.as_json({"stopped": True, "killed": killed})
    else:
        show.out.print("stopped" + (f"; had to be killed: {', '.join(killed)}" if killed else ""))
    raise typer.Exit(PROBLEM if killed else FINE)


@app.command()
def status(folder: Folder = UP, json: Json = False) -> None:
    """What runs, where, lag per group, and whether each process makes progress."""
    from cli import show
    from cli.status import code_of, overview
    from cli.world import World

    seen = run(overview(World(folder)))
    show.as_json(seen) if json else show.status(seen)
    raise typer.Exit(code_of(seen))


@app.command()
def doctor(folder: Folder = UP, json: Json = False) -> None:
    """Check this machine and the configuration; says what is wrong and what to do."""
    from cli import show
    from cli.status import examine
    from cli.world import World

    found = run(examine(World(folder)))
    if json:
        show.as_json(
            [{"fine": fine, "what": what, "next": "" if fine else next_} for fine, what, next_ in found]
        )
    else:
        show.findings(found)
    raise typer.Exit(FINE if all(fine for fine, _, _ in found) else PROBLEM)


@app.command()
def migrate(folder: Folder = UP, json: Json = False) -> None:
    """Bring the topics and the database schemas up to date."""
    from cli import show
    from cli.world import World

    world = World(folder, show.progress)
    done = run(world.prepare(world.place()))
    if json:
        show.as_json(done)


@case_app.command("show")
def case_show(
    asked: Annotated[str, typer.Argument(metavar="ID|NUMBER", help="Case id, case number C-…, or call id.")],
    reason: Annotated[
        str, typer.Option("--reason", help="Why you read what the customer said since; kept for ever.")
    ] = "",
    by: Annotated[str, typer.Option("--by", help="Who reads; the account's name if nobody is named.")] = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Print a case's history in order, with the time between steps, and why it was routed or parked."""
    from cli import show
    from cli.history import case_id_of, history, opened, state
    from cli.world import World

    async def work() -> dict[str, Any] | None:
        world = World(folder)
        place = world.place()
        case_id = await case_id_of(place, asked)
        lines = await history(place, case_id) if case_id else []
        if not lines or case_id is None:
            return None
        if reason:
            lines = await opened(world, case_id, lines, by, reason)
        before = [None, *(line.at for line in lines)]
        return {
            "case_id": str(case_id),
            "stages": await state(place, case_id),
            "history": [line.as_json(at) for line, at in zip(lines, before, strict=False)],
        }

    found = run(work())
    if found is None:
        raise typer.Exit(
            say("no such case", f"nobody has said anything about {asked}", "hotline events tail", PROBLEM)
        )
    show.as_json(found) if json else show.case(found)


@events_app.command("tail")
def events_tail(
    case: Annotated[str, typer.Option("--case", help="Only this case.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing what comes.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Print at most so many.")] = 200,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Print events as they are on the topics: headers only, no personal data."""
    from cli.tail import tail
    from cli.world import World

    run(tail(World(folder).place(), case, follow=follow, limit=limit, as_json=json))


@topics_app.command("apply")
def topics_apply(folder: Folder = UP, json: Json = False) -> None:
    """Create missing topics and partitions."""
    from chassis.kafka import apply_topics
    from cli import show
    from cli.world import World

    done = run(apply_topics(World(folder).place().kafka))
    show.as_json(done) if json else show.lines(done or ["nothing to do"])


@topics_app.command("check")
def topics_check(folder: Folder = UP, json: Json = False) -> None:
    """Compare the cluster's topics with the contract."""
    from chassis.kafka import check_topics
    from cli import show
    from cli.world import World

    faults = run(check_topics(World(folder).place().kafka))
    show.as_json(faults) if json else show.lines(faults or ["topics are as declared"])
    raise typer.Exit(PROBLEM if faults else FINE)


def main() -> None:
    """Run the command; every error a user can meet is three lines, not a traceback."""
    from cli.world import CannotReach, NotFound

    try:
        # Without its own error pages the command gives the code of typer.Exit as its result.
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else FINE
    except typer.Abort:
        code = PROBLEM
    except Misconfigured as error:
        code = say("not usable as configured", str(error), "hotline doctor", USAGE)
    except NotFound as error:
        what, _, next_step = str(error).partition(": ")
        code = say("nobody knows that", what, next_step, USAGE)
    except (CannotReach, Transient, ConnectionError, TimeoutError) as error:
        code = say("cannot reach a part", str(error) or type(error).__name__, "hotline status", UNREACHABLE)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
            error.show()
            code = USAGE
        elif type(error).__name__ == "StackError":
            code = say("the local stack did not start", str(error), "hotline doctor", UNREACHABLE)
        else:
            if os.environ.get("HOTLINE_DEBUG"):
                raise
            code = say(type(error).__name__, str(error)[:500], "HOTLINE_DEBUG=1 shows where", PROBLEM)
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
