"""How results look: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console()
err = Console(stderr=True)

_LEDGER = "Ledger · 交接账"
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
    table.add_row(_LEDGER, _ledger(summary["ledger"]))
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


def _ledger(found: dict[str, Any]) -> str:
    counts = "  ".join(f"{word} {found[word]}" for word in ("injected", "found", "false", "recovered"))
    times = found["detection_s"]
    if times["p50"] is None:
        return f"{counts}  {found['edges']} edges, nothing lost"
    return f"{counts}  named within p50 {times['p50']:g} s, max {times['max']:g} s"


def lines(texts: Iterable[str]) -> None:
    """Print whole lines as they are: brackets in them are no markup, and nothing is broken."""
    for text in texts:
        out.print(text, markup=False, highlight=False, soft_wrap=True)


def faults(texts: Iterable[str]) -> None:
    """Print lines that say what is wrong."""
    for text in texts:
        out.print(f"✗ {text}", style="red", markup=False, highlight=False)


_SHORT = {
    "service_level": "SL", "speed_of_answer_s": "ASA s", "handling_time_s": "AHT s", "occupancy": "occ.",
    "longest_wait_s": "longest s", "rostered_required": "to roster",
}  # fmt: skip


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of one day that all have the same fields; a dash stands with its reason below."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0] if rows else ():
        header = _SHORT.get(name, name.replace("_", " "))
        shown.add_column(header, justify="left" if name == "start" else "right", no_wrap=True)
    reasons = set()
    for row in rows:
        cells = []
        for name, value in row.items():
            text = str(value)
            if text.startswith("— "):
                reasons.add(f"{_SHORT.get(name, name)}: {text}")
                text = "—"
            cells.append(text[11:16] if name == "start" else text)
        shown.add_row(*cells)
    out.print(shown)
    for reason in sorted(reasons):
        out.print(f"[dim]{reason}[/dim]")


def status(overview: dict[str, Any], *, hints: bool = False) -> None:
    """Print what runs, where, and how far behind."""
    lines([f"Hotline in {overview['folder']}"])
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("part", "state", "pid", "where", "lag", "handled"):
        table.add_column(column, overflow="fold", no_wrap=column in ("part", "where"))
    for name, piece in overview["stack"].items():
        running = "given" if piece.get("given") else ("running" if piece["running"] else "stopped")
        at = piece.get("at") or (f"127.0.0.1:{piece['port']}" if piece.get("port") else "—")
        table.add_row(name, running, _or_dash(piece.get("pid")), at, "", "")
    for name, stage in overview["stages"].items():
        word = stage["state"] + (f": {stage['waiting_for']}" if stage["waiting_for"] else "")
        table.add_row(
            name,
            word,
            _or_dash(stage["pid"]),
            _file(stage["log"]),
            _or_dash(stage["lag"]),
            _or_dash(stage["handled"]),
        )
    watcher = overview["observer"]
    lost = "" if watcher["lost"] is None else f"{watcher['lost']} lost"
    table.add_row("observer", watcher["state"], _or_dash(watcher["pid"]), _file(watcher["log"]), "", lost)
    for name in ("door", "lessons"):
        beside = overview[name]
        word = beside["state"] + (f": {beside['waiting_for']}" if beside["waiting_for"] else "")
        where = beside.get("http") or _file(beside["log"])
        lag = _or_dash(beside["lag"]) if "lag" in beside else ""
        table.add_row(name, word, _or_dash(beside["pid"]), where, lag, "")
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
    for name, stage in overview["stages"].items():
        if stage["paused"]:
            lines([f"paused: {paused(name, stage['paused'])}", f"  next: hotline group resume {name}"])
    if all(stage["state"] == "stopped" for stage in overview["stages"].values()):
        out.print("next: hotline up")
    if hints:
        out.print(
            "next: hotline status · hotline events tail · hotline case show C-… · stop with hotline down"
        )


def _file(path: str) -> str:
    """A file of the folder that the title names: a whole path would be broken over lines."""
    return path.rsplit("/", 1)[-1]


def _or_dash(value: Any) -> str:
    return "—" if value is None else str(value)


def findings(found: list[tuple[bool, str, str]]) -> None:
    """Print what the doctor found."""
    for fine, what, next_step in found:
        mark = "[green]✓[/green]" if fine else "[red]✗[/red]"
        out.print(f"{mark} {what}" + ("" if fine else f"  → {next_step}"), highlight=False)


def case(found: dict[str, Any]) -> None:
    """Print a case's history."""
    from cli.history import SEALED

    stands = ", ".join(f"{stage}: {phase}" for stage, phase in found["stages"].items())
    out.print(f"case {found['case_id']}  ({stands})", highlight=False)
    table = Table(box=None)
    for column in ("time (UTC)", "after", "stage", "event", "#"):
        table.add_column(column)
    for line in found["history"]:
        after = "" if line["after_ms"] is None else f"+{line['after_ms']:g} ms"
        said = Text(line["event"])
        if not line["sent"]:
            said.append("  not sent yet", "yellow")
        if told := _told(line):
            said.append(f"\n  {told}", "dim")
        table.add_row(line["at"][11:23], after, line["stage"], said, _or_dash(line["sequence"]))
    out.print(table)
    if any(line.get("text") == SEALED for line in found["history"]):
        lines(["next: --reason WHY opens what is sealed"])


def _told(line: dict[str, Any]) -> str:
    """Say what one event tells: why a case was routed or parked, what the customer said."""
    why = line.get("why")
    if why is None:
        return line.get("reason") or line.get("text") or ""
    by, reason = why["by"], why["reason"]
    return f"{why['stage']}{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"


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


# ------------------------------------------------------------------ handoffs and lag


def banner(seen: Any) -> None:
    """Print the verdict on the whole: lost, blind, or nothing lost."""
    if seen.lost:
        out.print(f"[bold red]{seen.lost} LOST[/bold red]  → hotline lost list · hotline lost explain ID")
    if seen.blind:
        blind(seen.blind)
        ranges = seen.blind_ranges
        lines(
            f"  {entry['topic']}/{entry['partition']} {entry['from']}…{entry['to'] - 1}: deleted unread"
            f" ({entry['reason']}), noticed {entry['seen_at']}"
            for entry in ranges[:_RANGES]
        )
        if len(ranges) > _RANGES:
            lines([f"  and {len(ranges) - _RANGES} more: --json lists them all"])
    elif not seen.lost:
        out.print(f"[green]NOTHING LOST[/green]{_canary(seen)}", highlight=False)
    if seen.dead:
        out.print(f"[yellow]{seen.dead} dead letters[/yellow]  → hotline dead list")
    for group, entry in seen.paused.items():
        out.print("[yellow]PAUSED[/yellow]", end=" ")
        lines([f"{paused(group, entry)}; what waits for it is late, not lost"])
        lines([f"  next: hotline group resume {group}"])


_RANGES = 12


def blind(why: str) -> None:
    """Say that the observer cannot tell, and why."""
    out.print("[bold yellow]BLIND[/bold yellow]", end=" ")
    lines([f"{why}; nobody can say that nothing is lost"])


def paused(group: str, entry: Mapping[str, Any]) -> str:
    """Say in one line who has paused a group, since when, and why."""
    return f"{group} by {entry['by']} since {entry['since'][:19]}: {entry['reason']}"


def _canary(seen: Any) -> str:
    canary = seen.document.get("canary") or {}
    if not canary.get("flagged_ms"):
        return " · the canary has not sung yet"
    ago = (seen.at_ms - canary["flagged_ms"]) / 1000
    took = canary.get("detection_ms")
    found = "" if took is None else f", named in {took / 1000:.1f} s"
    return f" · the observer lives (canary {ago:.0f} s ago{found})"


def matrix(rows: list[dict[str, Any]]) -> None:
    """Print every edge with what is open, late, lost on it; quiet edges in one line."""
    columns = [
        "dropped",
        "partial",
        "expired unread",
        "dead lettered",
        "overdue",
        "timer lost",
        "sequence gap",
    ]
    busy = [row for row in rows if row["open"] or any(row.get(name) for name in columns)]
    columns = [name for name in columns if any(row.get(name) for row in busy)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("edge", no_wrap=True, overflow="fold")
    for name in ("open", "oldest", *columns):
        table.add_column(name, justify="right")
    for row in sorted(busy, key=lambda row: (-sum(row.get(name, 0) for name in columns), row["edge"])):
        oldest = "" if row["oldest_s"] is None else f"{row['oldest_s']:.1f} s"
        table.add_row(
            row["edge"], str(row["open"]), oldest, *(str(row.get(name, "") or "") for name in columns)
        )
    if busy:
        out.print(table)
    out.print(f"{len(rows) - len(busy)} edges have nothing open", highlight=False)


def handoffs(rows: list[dict[str, Any]]) -> None:
    """Print handoffs one by one, two lines each: what an operator copies is never cut, on any screen."""
    for row in rows:
        state = row["state"] + (f" {row['missing']}" if row["missing"] else "")
        # A gap from before a restart: which record has shown it was not kept.
        where = f"{row['topic']}/{row['partition']}/{row['offset']}" if row["partition"] >= 0 else "—"
        since = (row["at"] or "—")[:19]
        lines(
            [
                f"{row['event_id']}  {state}  {row['edge']}",
                f"    since {since}  of {row['subject']}  at {where}",
            ]
        )
    if not rows:
        out.print("none")


def lag(rows: list[dict[str, Any]]) -> None:
    """Print each group's lag, summed over its partitions, the worst word first."""
    from observer.lag import SEVERITY, Word

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    table = Table()
    table.add_column("group", no_wrap=True)
    for column in ("status", "records", "oldest waits", "caught up in", "retention leaves"):
        table.add_column(column)
    for group, parts in sorted(groups.items()):
        word = max((Word(part["word"]) for part in parts), key=SEVERITY.__getitem__)
        table.add_row(
            group,
            word.value if word is Word.OK else f"[yellow]{word.value}[/yellow]",
            _summed([part["records"] for part in parts]),
            _longest([part["oldest_age_s"] for part in parts]),
            _longest([part["drain_eta_s"] for part in parts]),
            _left(parts),
        )
    out.print(table)


def _summed(values: list[int | None]) -> str:
    return "—" if any(value is None for value in values) else str(sum(value or 0 for value in values))


def _longest(values: list[float | None]) -> str:
    return "—" if any(value is None for value in values) else f"{max(value or 0.0 for value in values):.1f} s"


def _left(parts: list[dict[str, Any]]) -> str:
    """Say how long retention leaves what waits; where a limit by size deletes, nobody can tell."""
    if any(part["records"] and part.get("kept_by_size") for part in parts):
        return "[red]unknown: by size[/red]"
    known = [part["retention_headroom_s"] for part in parts if part["retention_headroom_s"] is not None]
    return f"{min(known) / 3600:.1f} h" if known else "—"


def explained(found: list[dict[str, Any]], why_blind: str = "") -> None:
    """Print handoffs with their verdicts and the evidence."""
    if why_blind:
        blind(why_blind)
    for handoff in found:
        handoffs([handoff])
        for verdict in handoff["verdicts"]:
            committed = "—" if verdict["committed"] is None else verdict["committed"]
            seen = f"; the group stood at {committed}, seen {verdict['commit_seen_at']}"
            lines(
                [
                    f"verdict {verdict['verdict']}: {verdict['state']} at {verdict['judged_at']}{seen}",
                    *([f"  {verdict['note']}"] if verdict["note"] else []),
                    *(
                        f"  read {mark['topic']}/{mark['partition']} to {mark['read']}, its end"
                        f" was {mark['end']}"
                        for mark in verdict["barrier"]
                    ),
                ]
            )
        lines(handoff.get("by_hand", []))
        if "answers_found" in handoff:
            lines(["checked again now, found: " + (", ".join(handoff["answers_found"]) or "nothing")])


def trace(found: Any) -> None:
    """Print an event's causes and effects as a tree, a line or two each; what is missing in red."""
    if found.blind:
        blind(found.blind)
    nodes = (*found.causes, found.event, *found.effects)
    known = {node.event_id: node for node in nodes}
    for node in nodes:
        entry = node.as_json(known.get(node.cause))
        indent = "  " * node.depth
        mark = "▶" if node is found.event else "└" if node.depth else "·"
        took = "" if entry["after_cause_ms"] is None else f"  +{entry['after_cause_ms']} ms"
        where = f"{node.topic}/{_or_dash(node.partition)}/{_or_dash(node.offset)}"
        unsent = "" if node.sent else "  not sent yet"
        lines([f"{indent}{mark} {entry['event']}  {node.event_id}"])
        lines([f"{indent}  {where}  {(entry['appended_at'] or '—')[11:23]}{took}{unsent}"])
        for had in node.custody:
            _had(indent, had)
    for arrow in found.missing:
        faults(_missing(arrow))
    if found.cut:
        lines(["there is more: only so many effects are shown"])


def _had(indent: str, had: dict[str, Any]) -> None:
    """Print who had an event, and for how long: red where the answer is missing, yellow where it is late."""
    style = {"late": "yellow", "overdue": "yellow", "recovered": "yellow", "dead lettered": "red"}.get(
        had["state"], "" if had["until"] or had["state"] in ("waiting", "open") else "red"
    )
    parts = f", parts {had['missing_parts']} are missing" if had["missing_parts"] else ""
    due = f", due {had['due'][:19]}" if had["due"] and not had["until"] else ""
    text = f"{indent}    {had['edge']}: {had['state']}, had it {_length(had['for_ms'])}{parts}{due}"
    out.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)


def _missing(arrow: dict[str, Any]) -> list[str]:
    """Name one missing arrow, with what proves it."""
    proof = arrow["evidence"]
    what = f"missing: {arrow['edge']} of {arrow['event_id']}: {arrow['state']}"
    if proof is None:
        return [what]
    committed = "" if proof["committed"] is None else f"the group stood at {proof['committed']}; "
    read = f"{len(proof['barrier'])} partitions were read to their ends, taken after it"
    note = f" ({proof['note']})" if proof["note"] else ""
    return [
        f"{what}{note}",
        f"  verdict {proof['verdict']} at {proof['judged_at']}: {committed}{read}",
        f"  next: hotline lost explain {arrow['event_id']}",
    ]


def _length(ms: int) -> str:
    return f"{ms} ms" if ms < 10_000 else f"{ms / 1000:.0f} s" if ms < 600_000 else f"{ms / 60_000:.0f} min"


def redriven(rows: list[dict[str, Any]], *, dry_run: bool) -> None:
    """Print what was sent again, and what could not be."""
    for row in rows:
        word = "would be sent" if dry_run and not row["why_not"] else "sent" if row["sent"] else "not sent"
        lines(
            [f"{word}  {row['event_id']}  {row['edge']}" + (f"  {row['why_not']}" if row["why_not"] else "")]
        )
    if not rows:
        lines(["nothing to send"])


def kinds(found: list[dict[str, Any]]) -> None:
    """Print dead letters by what is wrong with them: how many, since when, one for an example."""
    for kind in found:
        one = kind["example"]
        where = f"{one['topic']}/{one['partition']}/{one['offset']}"
        lines(
            [
                f"{kind['count']} × {kind['group']}: {kind['reason']}: {kind['explanation']}",
                f"    from {kind['first'][:19]} to {kind['last'][:19]}",
                f"    for example {one['event_id']}  at {where}",
            ]
        )
    lines(["next: hotline dead show ID · hotline dead list --each"] if found else ["none"])


def letters(found: list[dict[str, Any]]) -> None:
    """Print dead letters with their reasons."""
    for handoff in found:
        letter = handoff["letter"] or {"reason": "—", "explanation": "not in quarantine", "first_seen": "—"}
        where = f"{handoff['topic']}/{handoff['partition']}/{handoff['offset']}"
        lines([f"{handoff['event_id']}  {where}", f"  {letter['reason']}: {letter['explanation']}"])


def scrub(found: Any) -> None:
    """Print what a second reading has found."""
    since = datetime.fromtimestamp(found.since_ms / 1000, tz=UTC).isoformat(timespec="seconds")
    if found.behind:
        blind(found.behind)
        return
    for one in found.differences:
        where = f"{one.place.topic}/{one.place.partition}/{one.offset}"
        faults(
            [
                f"{one.event_id}  {one.edge}  at {where}",
                f"  stored: {one.stored or 'nothing'}; read again: {one.found}: {one.why}",
            ]
        )
    count = len(found.differences) or "no"
    lines([f"{found.records} records since {since}, {found.handoffs} handoffs: {count} differences"])


def sung(song: Any) -> None:
    """Print whether a loss on purpose was named, and how fast."""
    if song.flagged:
        lines([f"named as dropped after {song.after_s:.2f} s"])
        return
    if song.blind:
        blind(song.blind)
    said = f"said to be {song.state}" if song.state else "not named"
    lines([f"{said} after {song.after_s:.1f} s: {song.song}", "next: hotline status · hotline handoffs"])


def followed(done: Any) -> None:
    """Print what a pause, or its end, has come to."""
    if done.pause is not None:
        lines([f"paused: {paused(done.group, done.pause.as_json())}"])
        if not done.done:
            lines([f"{done.members} of it still read: they finish what they have", "next: hotline status"])
        else:
            lines([f"next: hotline lag · hotline group resume {done.group}"])
        return
    lines([f"{done.group} {'goes on where it was' if done.changed else 'was not paused'}"])
    if not done.done:
        lines(["nobody reads for it yet", "next: hotline status · hotline up"])


def skip(plan: Any, *, dry_run: bool) -> None:
    """Print what a skip does."""
    for place, (now, then) in plan.moves.items():
        lines([f"{place.topic}/{place.partition}: from {now} to {then}"])
    word = "would become dropped" if dry_run or plan.objections else "become dropped"
    count = f"{len(plan.drops)} handoffs" if plan.all_known else f"at least {len(plan.drops)} handoffs"
    lines([f"{count} {word}"])
    handoffs(plan.drops)
    for objection in plan.objections:
        out.print(f"[red]refused:[/red] {objection}")


def action(one: Any) -> dict[str, Any]:
    """Write an operator's action for a script."""
    return {
        "number": one.number,
        "at_ms": one.at_ms,
        "actor": one.actor,
        "verb": one.verb,
        "target": json.loads(one.target),
        "reason": one.reason,
        "hash": one.hash,
    }


def actions(chain: list[Any]) -> None:
    """Print what operators did."""
    table = Table("number", "time (UTC)", "who", "verb", "what", "why")
    for one in chain:
        at = datetime.fromtimestamp(one.at_ms / 1000, tz=UTC).isoformat(timespec="seconds")
        what = ", ".join(one.groups) or f"{len(json.loads(one.target))} handoffs"
        table.add_row(str(one.number), at, one.actor, one.verb, what, one.reason)
    out.print(table if chain else "nobody has done anything")
