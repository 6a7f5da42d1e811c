"""What a bank gives instead of ours: opening hours, articles, checklists; each as the door would read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

from chassis.clock import utc_now
from chassis.faults import Misconfigured
from chassis.settings import apart
from cli.world import DOOR

Checked = tuple[bool, str, str]
"""Whether a part is fine, what it is, what to do."""
SOON = 60
"""Days before the last known holiday from which on the next ones are asked for."""


def own_files() -> list[Checked]:
    """Check the files that the door's settings name; without one it is ours, and sound."""
    from services.intake.desk.checklist import load_checklists
    from services.intake.waiting.hours import load_hours
    from services.intake.waiting.knowledge import load_knowledge

    def calendar(path: Path | None) -> str:
        return _known_until(load_hours(path).known_until, path)

    def articles(path: Path | None) -> str:
        return f"knowledge: version {load_knowledge(path).version}"

    def lists(path: Path | None) -> str:
        return f"checklists: version {load_checklists(path).version}"

    door = apart(os.environ, DOOR)
    files = {"HOURS": calendar, "KNOWLEDGE": articles, "CHECKLISTS": lists}
    return [
        _checked(name, door.get(name, ""), load)
        for name, load in ((f"HOTLINE_{word}_FILE", load) for word, load in files.items())
    ]


def _checked(name: str, given: str, load: Callable[[Path | None], str]) -> Checked:
    path = Path(given) if given else None
    if path is not None and not path.is_absolute():
        return False, f"{name}={given}", "give the whole path: processes run in a folder of their own"
    try:
        return True, f"{load(path)}{f' ({path})' if path else ''}", ""
    except Misconfigured as error:
        return False, f"{name}: {error}", "correct the file, or unset the variable: then ours is used"


def _known_until(until: date, path: Path | None) -> str:
    days = (until - utc_now().date()).days
    left = f"{days} days" if days >= 0 else "over: only weekly hours count since then"
    # A word of warning, not a fault of this machine.
    where = path or "a file of your own, named by HOTLINE_HOURS_FILE"
    hint = "" if days >= SOON else f"; enter the next ones in {where}"
    return f"opening hours: holidays and swapped days are known until {until} ({left}){hint}"
