"""Verbs about telephony: send a recording, and check whether a source says all that the pipeline needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.verbs import FINE, PROBLEM, UNREACHABLE, UP, USAGE, Folder, Json, run, say

telephony_app = typer.Typer(help="Telephony: send a recording, check a source.", no_args_is_help=True)


@telephony_app.command("replay")
def replay(
    file: Annotated[Path, typer.Argument(help="A recording, plain or gzip.", exists=True, dir_okay=False)],
    source: Annotated[str, typer.Option("--source", help="The name of its switch.")] = "recording",
    form: Annotated[str, typer.Option("--format", help="ami or queue_log; without it, guessed.")] = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Send a recorded manager connection, or a queue_log; the same again changes nothing."""
    from cli import listening, show
    from cli.world import World

    found = form or listening.guess(file)
    if found not in ("ami", "queue_log"):
        why = f"{file} is neither a manager connection nor a queue_log" if not form else f"--format {form}"
        raise typer.Exit(say("unknown format", why, "--format ami, or --format queue_log", USAGE))
    recording = listening.Recording(file, source, found)
    try:
        summary = run(listening.send(World(folder), recording, quiet=json))
    except ValueError as error:
        raise typer.Exit(say("the recording cannot be used", str(error), "record again", PROBLEM)) from None
    show.as_json(summary) if json else listening.print_replay(summary)
    raise typer.Exit(FINE)


Sources = Annotated[
    Path | None, typer.Option("--sources", help="The sources file.", envvar="HOTLINE_SOURCES_FILE")
]


@telephony_app.command("dialplan")
def dialplan(
    name: Annotated[str, typer.Argument(metavar="SOURCE", help="A PBX of the sources file.")],
    sources: Sources = None,
    folder: Folder = UP,
) -> None:
    """Print the lines of extensions.conf that let waiting callers be told how they stand."""
    from cli.world import DOOR, World
    from services.intake.door.sources import Pbx, load_sources
    from services.intake.waiting.agi import PORT
    from services.intake.waiting.agi import dialplan as lines

    known = load_sources(sources, "127.0.0.1")
    pbx = known.get(name)
    if not isinstance(pbx, Pbx):
        names = [source.name for source in known.values() if isinstance(source, Pbx)]
        why = f"PBXs: {', '.join(names) or 'none; name the file with --sources'}"
        raise typer.Exit(say(f"{name} is no PBX", why, "--sources FILE", USAGE))
    health = run(World(folder).health(DOOR))
    typer.echo(lines(pbx.system, health.get("agi_port", PORT)), nl=False)
    raise typer.Exit(FINE)


@telephony_app.command("check")
def check(
    name: Annotated[str, typer.Argument(metavar="SOURCE", help="A source of the sources file.")],
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to listen.")] = 30.0,
    sources: Sources = None,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Listen to a source: what arrives, what is missing, and which line adds it."""
    from cli import listening, show
    from cli.world import World
    from services.intake.door.sources import Pbx, load_sources

    known = load_sources(sources, "127.0.0.1")
    source = known.get(name)
    if source is None:
        raise typer.Exit(say("no such source", f"known: {', '.join(known)}", "--sources FILE", USAGE))
    try:
        if isinstance(source, Pbx):
            found = run(listening.check_pbx(source, seconds, quiet=json))
        else:
            found = run(listening.check_webhook(World(folder), source, seconds, quiet=json))
    except listening.CannotHear as error:
        raise typer.Exit(say(f"cannot reach {name}", str(error), error.next, UNREACHABLE)) from None
    show.as_json(found) if json else listening.print_check(found)
    raise typer.Exit(FINE if found["fine"] else PROBLEM)
