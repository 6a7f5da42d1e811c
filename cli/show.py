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
        table.add_row(
            name, "  ".join(f"{word.replace('_', ' ')} {count}" for word, count in summary[key].items())
        )
    for milestone, times in summary["latency_ms"].items():
        figures = "  ".join(
            f"{name} {value:g} ms" if value is not None else f"{name} — (too few cases)"
            for name, value in times.items()
        )
        table.add_row(milestone.replace("_", " "), figures)
    table.add_row("seconds", f"{summary['seconds']:g} in all, {summary['seconds_playing']:g} playing")
    out.print(table)
    if summary["complete"]:
        out.print(
            "[green]✓ every call ended in a case or a closed contact; every handoff has its effect[/green]"
        )
    for line in summary["missing"]:
        out.print(f"[red]✗ {line}[/red]")


def lines(texts: list[str]) -> None:
    """Print plain lines."""
    for text in texts:
        out.print(text, highlight=False)


def status(overview: dict[str, Any], *, hints: bool = False) -> None:
    """Print what runs, where, and how far behind."""
    table = Table(title=f"Hotline in {overview['folder']}", title_justify="left")
    for column in ("part", "state", "pid", "where", "lag (records)", "handled"):
        table.add_column(column)
    for name, piece in overview["stack"].items():
        running = "given" if piece.get("given") else ("running" if piece["running"] else "stopped")
        port = piece.get("port")
        table.add_row(name, running, _or_dash(piece.get("pid")), f"127.0.0.1:{port}" if port else "—", "", "")
    for name, stage in overview["stages"].items():
        word = stage["state"] + (f": {stage['waiting_for']}" if stage["waiting_for"] else "")
        table.add_row(
            name,
            word,
            _or_dash(stage["pid"]),
            stage["log"],
            _or_dash(stage["lag"]),
            _or_dash(stage["handled"]),
        )
    for code, lag in overview["departments"].items():
        table.add_row(
            f"department.{code}",
            "ok" if lag == 0 else "—" if lag is None else "behind",
            "",
            "",
            _or_dash(lag),
            "",
        )
    out.print(table)
    if hints:
        out.print(
            "next: hotline status · hotline events tail · hotline case show C-… · stop with hotline down"
        )


def _or_dash(value: Any) -> str:
    return "—" if value is None else str(value)


def findings(found: list[tuple[bool, str, str]]) -> None:
    """Print what the doctor found."""
    for fine, what, next_step in found:
        mark = "[green]✓[/green]" if fine else "[red]✗[/red]"
        out.print(f"{mark} {what}" + ("" if fine else f"  → {next_step}"), highlight=False)


def case(found: dict[str, Any]) -> None:
    """Print a case's history."""
    stands = ", ".join(f"{stage}: {phase}" for stage, phase in found["stages"].items())
    out.print(f"case {found['case_id']}  ({stands})", highlight=False)
    table = Table(box=None)
    for column in ("time (UTC)", "after", "stage", "event", "#"):
        table.add_column(column)
    for line in found["history"]:
        after = "" if line["after_ms"] is None else f"+{line['after_ms']:g} ms"
        sent = "" if line["sent"] else "  [yellow]not sent yet[/yellow]"
        table.add_row(
            line["at"][11:23], after, line["stage"], line["event"] + sent, _or_dash(line["sequence"])
        )
    out.print(table)


def events(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print events, one line each."""
    for row in rows:
        if as_json:
            sys.stdout.write(json.dumps(row) + "\n")
        else:
            where = f"{row['topic']}/{row['partition']}/{row['offset']}"
            out.print(
                f"{row['ce_time'][11:23]} {row['ce_type']:38} {row['ce_correlationid']:36} {where}",
                highlight=False,
                soft_wrap=True,
            )
