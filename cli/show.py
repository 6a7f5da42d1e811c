"""How results look: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

out = Console()
err = Console(stderr=True)

_NAMES = {
    "calls": "Calls · 来电",
    "cases": "Cases · 工单",
    "routed": "Routed to · 派单",
    "contacts_closed_for": "Contacts closed without a case · 无工单结束",
    "handoffs": "Handoffs · 交接",
}


def progress(line: str) -> None:
    """Tell the person who waits what is going on; on standard error, so that pipes stay clean."""
    err.print(f"[dim]· {line}[/dim]", highlight=False)


def as_json(data: Any) -> None:
    """Print for a script."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")


def demo_summary(summary: dict[str, Any]) -> None:
    """Print what the demo came to."""
    table = Table(title="One pass of the hotline", show_header=False, title_justify="left")
    table.add_column("what", style="bold")
    table.add_column("counts")
    for key, name in _NAMES.items():
        table.add_row(name, "  ".join(f"{word.replace('_', ' ')} {count}" for word, count in summary[key].items()))
    for milestone, times in summary["latency_ms"].items():
        figures = "  ".join(
            f"{name} {value:g} ms" if value is not None else f"{name} — (too few cases)"
            for name, value in times.items()
        )
        table.add_row(milestone.replace("_", " "), figures)
    table.add_row("seconds", f"{summary['seconds']:g} in all, {summary['seconds_playing']:g} playing")
    out.print(table)
    if summary["complete"]:
        out.print("[green]✓ every offered call ended in a case or a closed contact; no handoff lacks an effect[/green]")
    for line in summary["missing"]:
        out.print(f"[red]✗ {line}[/red]")
