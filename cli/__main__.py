"""The `hotline` command: verbs, their options and exit codes; the work is in the rooms beside."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chassis.faults import Misconfigured, Transient

FINE, PROBLEM, USAGE, UNREACHABLE = 0, 1, 2, 3

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

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Folder = Annotated[Path, typer.Option("--dir", help="Where this hotline keeps its files.", envvar="HOTLINE_DIR")]
_UP = Path(".run/up")
_DEMO = Path(".run/demo")


@app.command()
def demo(
    calls: Annotated[int, typer.Option(min=0, help="Calls to generate beyond the recording.")] = 0,
    rate: Annotated[float, typer.Option(min=0.1, help="Generated calls per second, on average.")] = 50.0,
    seed: Annotated[int, typer.Option(help="Seed of the generated calls.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards.")] = False,
    within: Annotated[float, typer.Option(min=5, help="Give up after so many seconds without news.")] = 20.0,
    folder: Folder = _DEMO,
    json: Json = False,
) -> None:
    """Play the hotline once: a recorded PBX in, told customers out."""
    from cli import show
    from cli.demo import Demo, Load

    summary = _run(Demo(folder, Load(calls, rate, seed), show.progress).run(within, keep=keep))
    show.as_json(summary) if json else show.demo_summary(summary)
    raise typer.Exit(FINE if summary["complete"] else PROBLEM)


def _run(work: Any) -> Any:
    """Run asynchronous work quietly."""
    import logging

    from chassis.log import configure

    configure("WARNING")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return asyncio.run(work)


def main() -> None:
    """Run the command; every error a user can meet is three lines, not a traceback."""
    from cli.world import CannotReach

    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        code = done.exit_code
    except typer.Abort:
        code = PROBLEM
    except Misconfigured as error:
        code = _say("not usable as configured", str(error), "hotline doctor", USAGE)
    except (CannotReach, Transient, ConnectionError, TimeoutError) as error:
        code = _say("cannot reach a part", str(error) or type(error).__name__, "hotline status", UNREACHABLE)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
            error.show()
            code = USAGE
        elif type(error).__name__ == "StackError":
            code = _say("the local stack did not start", str(error), "hotline doctor", UNREACHABLE)
        else:
            if os.environ.get("HOTLINE_DEBUG"):
                raise
            code = _say(type(error).__name__, str(error)[:500], "HOTLINE_DEBUG=1 shows where", PROBLEM)
    else:
        code = FINE
    sys.stdout.flush()
    sys.exit(code)


def _say(what: str, why: str, next_step: str, code: int) -> int:
    print(f"hotline: {what}\n  {why}\n  next: {next_step}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
