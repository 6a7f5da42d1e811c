"""What every verb of the command shares: options, exit codes, how it runs and how it says what is wrong."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

FINE, PROBLEM, USAGE, UNREACHABLE, BLIND = 0, 1, 2, 3, 4
UP = Path(".run/up")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Folder = Annotated[
    Path, typer.Option("--dir", help="Where this hotline keeps its files.", envvar="HOTLINE_DIR")
]


def run(work: Any) -> Any:
    """Run asynchronous work quietly."""
    import logging

    from chassis.log import configure

    configure("WARNING")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return asyncio.run(work)


def say(what: str, why: str, next_step: str, code: int) -> int:
    """Tell what failed, why, and the next step, on standard error; gives the exit code back."""
    print(f"hotline: {what}\n  {why}" + (f"\n  next: {next_step}" if next_step else ""), file=sys.stderr)
    return code
