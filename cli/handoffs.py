"""The operators' verbs: what is lost or late, why that is proved, and what to do about it.

Exit codes: 0 nothing lost, 1 something is lost, 2 usage, or nobody knows what was asked for, 3 cannot
reach, 4 blind: nobody can say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cli import show
from cli.verbs import BLIND, FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

lost_app = typer.Typer(help="Handoffs that are proved to be lost.", no_args_is_help=True)
dead_app = typer.Typer(help="Records that could not be handled.", no_args_is_help=True)
group_app = typer.Typer(help="Consumer groups.", no_args_is_help=True)
canary_app = typer.Typer(help="Losses on purpose: is the observer awake?", no_args_is_help=True)
audit_app = typer.Typer(help="What operators did; the ledger itself, checked.", no_args_is_help=True)

Ids = Annotated[list[str], typer.Argument(metavar="ID…", help="Event ids.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept for ever.", prompt=True)]
Why = Annotated[str, typer.Option("--reason", help="Why.")]
By = Annotated[str, typer.Option("--by", help="Who; the account's name if nobody is named.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(handoffs)
    app.command()(lag)
    app.command()(redrive)
    app.command()(waive)
    app.command()(trace)
    app.add_typer(lost_app, name="lost")
    app.add_typer(dead_app, name="dead")
    app.add_typer(group_app, name="group")
    app.add_typer(canary_app, name="canary")
    app.add_typer(audit_app, name="audit")


def handoffs(
    state: Annotated[str, typer.Option(help="Only these: open, late, waiting, dropped, overdue, …")] = "",
    edge: Annotated[str, typer.Option(help="Only this edge, as intake.case-recorded->router.")] = "",
    limit: Annotated[int, typer.Option(min=1)] = 200,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """What is open, late, lost on each edge; with --state or --edge, the handoffs one by one."""
    from cli import ledger
    from cli.world import World

    wanted = [word.strip() for word in state.split(",") if word.strip()]
    if unknown := set(wanted) - ledger.KNOWN:
        raise typer.Exit(
            say(
                f"no such state: {', '.join(unknown)}", f"one of {', '.join(sorted(ledger.KNOWN))}", "", USAGE
            )
        )
    edge = _edge(edge)

    async def work() -> tuple[Any, list[dict[str, Any]]]:
        async with ledger.session(World(folder).place()) as tx:
            seen = await ledger.overview(tx)
            if wanted or edge:
                return seen, await ledger.listed(tx, wanted or [*ledger.UNSETTLED], edge, limit)
            return seen, await ledger.matrix(tx, seen)

    seen, rows = run(work())
    one_by_one = bool(wanted or edge)
    if json:
        show.as_json({**seen.as_json(), "handoffs" if one_by_one else "edges": rows})
    else:
        show.banner(seen)
        show.handoffs(rows) if one_by_one else show.matrix(rows)
    raise typer.Exit(_code(seen))


def lag(
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second.")] = False,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """How far behind each consumer group is: records, age of the oldest, when it will have caught up."""
    from cli import ledger
    from cli.world import World

    async def work() -> Any:
        async with ledger.session(World(folder).place()) as tx:
            return await ledger.overview(tx)

    while True:
        seen = run(work())
        rows = seen.document.get("lag", [])
        if json:
            show.as_json({**seen.as_json(), "lag": rows})
        else:
            if watch:
                show.out.clear()
            show.banner(seen)
            show.lag(rows)
        if not watch:
            break
        time.sleep(1)
    fine = not seen.blind and all(row["word"] in {"ok", "catching up"} for row in rows)
    raise typer.Exit(BLIND if seen.blind else FINE if fine else PROBLEM)


def _edge(asked: str) -> str:
    """The edge's name as the ledger writes it; exits with USAGE when there is none."""
    from cli import ledger

    edge = ledger.edge_named(asked) if asked else ""
    if edge is None:
        raise typer.Exit(
            say(f"no such edge: {asked}", "no handoff goes over it", "hotline handoffs --json", USAGE)
        )
    return edge


def _code(seen: Any) -> int:
    """What is proved lost stays proved; else who cannot see must not say that nothing is lost."""
    return PROBLEM if seen.lost else BLIND if seen.blind else FINE


# ------------------------------------------------------------------ lost


@lost_app.command("list")
def lost_list(
    edge: Annotated[str, typer.Option(help="Only this edge.")] = "",
    limit: Annotated[int, typer.Option(min=1)] = 200,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Every handoff that is proved lost and neither recovered nor waived."""
    from cli import ledger

    _listing(ledger.LOST_WORDS, _edge(edge), limit, folder, _code, json=json)


def _listing(
    states: Sequence[str],
    edge: str,
    limit: int,
    folder: Any,
    code: Any,
    *,
    json: bool,
) -> None:
    from cli import ledger
    from cli.world import World

    async def work() -> tuple[Any, list[dict[str, Any]]]:
        async with ledger.session(World(folder).place()) as tx:
            return await ledger.overview(tx), await ledger.listed(tx, states, edge, limit)

    seen, rows = run(work())
    if json:
        show.as_json({**seen.as_json(), "handoffs": rows})
    else:
        show.banner(seen)
        show.handoffs(rows)
    raise typer.Exit(code(seen))


@lost_app.command("show")
def lost_show(ids: Ids, folder: Folder = UP, json: Json = False) -> None:
    """Where handoffs stand, with every verdict that was given on them."""
    _explained(ids, folder, json, by_hand=False, check=False)


@lost_app.command("explain")
def lost_explain(
    ids: Ids,
    check: Annotated[bool, typer.Option("--check", help="Read every answer topic again, now.")] = False,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Why a loss is proved: the commit, the ends taken after it, how far was read; how to check by hand."""
    _explained(ids, folder, json, by_hand=True, check=check)


def _explained(ids: Sequence[str], folder: Any, json: bool, *, by_hand: bool, check: bool) -> None:  # noqa: FBT001
    from cli import evidence, ledger, mend
    from cli.world import World

    async def work() -> tuple[list[dict[str, Any]], str]:
        place = World(folder).place()
        found = await mend.found_or_raise(place, ids)
        async with ledger.session(place) as tx:
            seen = await ledger.overview(tx)
            for handoff in found:
                handoff["verdicts"] = await ledger.verdicts_of(tx, handoff)
        for handoff in found:
            if by_hand and handoff["verdicts"]:
                handoff["by_hand"] = evidence.by_hand(place, handoff, handoff["verdicts"][-1])
            if check:
                handoff["answers_found"] = await evidence.check_again(place, handoff)
        return found, seen.blind

    found, blind = run(work())
    show.as_json(found) if json else show.explained(found, blind)
    lost = any(handoff["state"] in ledger.LOST_WORDS for handoff in found)
    raise typer.Exit(PROBLEM if lost else BLIND if blind else FINE)


def trace(
    event: Annotated[str, typer.Argument(metavar="EVENT-ID", help="An event's id.")],
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """One event's causes and effects: where each lies, how long each took, who had it; what is missing."""
    from cli import trace as arrows
    from cli.world import World

    found = run(arrows.trace(World(folder).place(), event))
    show.as_json(found.as_json()) if json else show.trace(found)
    raise typer.Exit(PROBLEM if found.lost else BLIND if found.blind else FINE)


# ------------------------------------------------------------------ mending


def redrive(
    ids: Annotated[list[str], typer.Argument(metavar="[ID…]", help="Event ids.")] = [],  # noqa: B006 - typer reads it
    lost: Annotated[bool, typer.Option("--lost", help="Everything that is lost.")] = False,
    dead: Annotated[bool, typer.Option("--dead", help="Every dead letter.")] = False,
    dry_run: DryRun = False,
    reason: Why = "",
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Send records again under their own ids: twice changes nothing more than once."""
    from cli import ledger

    states = [*(ledger.LOST_WORDS if lost else ()), *((ledger.DEAD,) if dead else ())]
    if bool(ids) == bool(states):
        raise typer.Exit(
            say("nothing to send", "name event ids, or --lost, or --dead", "hotline lost list", USAGE)
        )
    _redrive(ids, states, dry_run, reason, by, folder, json)


def _redrive(ids: Any, states: Any, dry_run: bool, reason: str, by: str, folder: Any, json: bool) -> None:  # noqa: FBT001
    from cli import ledger, mend
    from cli.world import World

    async def work() -> list[dict[str, Any]]:
        world = World(folder)
        place = world.place()
        if ids:
            chosen = await mend.found_or_raise(place, ids, (*ledger.LOST_WORDS, ledger.DEAD))
        else:
            async with ledger.session(place) as tx:
                chosen = await ledger.listed(tx, states, limit=mend.MOST_AT_ONCE)
        return await mend.redrive(world, chosen, mend.Operator.named(by, reason), dry_run=dry_run)

    lines = run(work())
    show.as_json(lines) if json else show.redriven(lines, dry_run=dry_run)
    if not ids and len(lines) == mend.MOST_AT_ONCE:
        why = f"one command takes the oldest {mend.MOST_AT_ONCE}, there may be more"
        raise typer.Exit(
            say("not all were taken", why, "the same command again, once they are settled", PROBLEM)
        )
    raise typer.Exit(FINE if all(line["why_not"] is None for line in lines) else PROBLEM)


def waive(ids: Ids, reason: Reason, by: By = "", folder: Folder = UP, json: Json = False) -> None:
    """Say that a loss needs no repair any more, and why."""
    _end("waive", ids, reason, by, folder, json)


def _end(verb: str, ids: Sequence[str], reason: str, by: str, folder: Any, json: bool) -> None:  # noqa: FBT001
    from cli import ledger, mend
    from cli.world import World

    states = (ledger.DEAD,) if verb == "discard" else (*ledger.LOST_WORDS, ledger.DEAD)

    async def work() -> tuple[int, bool]:
        place = World(folder).place()
        chosen = await mend.found_or_raise(place, ids, states)
        done = await mend.end(place, verb, chosen, mend.Operator.named(by, reason)) if chosen else True
        return len(chosen), done

    count, done = run(work())
    if json:
        show.as_json({"verb": verb, "handoffs": count, "carried_out": done})
    elif not count:
        show.out.print("nothing to end: it is not lost, or it has ended already")
    else:
        show.out.print(f"{count} ended" if done else "noted; it takes effect when the observer runs")
    raise typer.Exit(FINE if done else BLIND)


@dead_app.command("list")
def dead_list(
    each: Annotated[bool, typer.Option("--each", help="One by one, not by what is wrong with them.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 10_000,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Dead letters that were neither sent again nor discarded, by what is wrong with them."""
    from cli import ledger, mend
    from cli.world import World

    async def work() -> tuple[Any, list[dict[str, Any]]]:
        place = World(folder).place()
        async with ledger.session(place) as tx:
            seen, rows = await ledger.overview(tx), await ledger.listed(tx, [ledger.DEAD], limit=limit)
        return seen, await mend.with_letters(place, rows)

    seen, rows = run(work())
    kinds = mend.alike(rows)
    if json:
        show.as_json({**seen.as_json(), "kinds": kinds, "handoffs": rows})
    else:
        show.banner(seen)
        show.letters(rows) if each else show.kinds(kinds)
    raise typer.Exit(PROBLEM if seen.dead else BLIND if seen.blind else FINE)


@dead_app.command("show")
def dead_show(ids: Ids, folder: Folder = UP, json: Json = False) -> None:
    """Why a record could not be handled; its content stays sealed in the quarantine."""
    from cli import ledger, mend
    from cli.world import World

    async def work() -> list[dict[str, Any]]:
        place = World(folder).place()
        found = await mend.found_or_raise(place, ids, (ledger.DEAD,))
        return await mend.with_letters(place, found)

    found = run(work())
    show.as_json(found) if json else show.letters(found)


@dead_app.command("redrive")
def dead_redrive(
    ids: Annotated[list[str], typer.Argument(metavar="[ID…]")] = [],  # noqa: B006 - typer reads it
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    dry_run: DryRun = False,
    reason: Why = "",
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Send dead letters again, for example after the reason was mended."""
    if bool(ids) == every:
        raise typer.Exit(say("nothing to send", "name event ids, or --all", "hotline dead list", USAGE))
    from cli import ledger

    _redrive(ids, [ledger.DEAD], dry_run, reason, by, folder, json)


@dead_app.command("discard")
def dead_discard(ids: Ids, reason: Reason, by: By = "", folder: Folder = UP, json: Json = False) -> None:
    """Say that a dead letter needs no handling, and why."""
    _end("discard", ids, reason, by, folder, json)


# ------------------------------------------------------------------ groups, audit


@group_app.command("skip")
def group_skip(
    group: Annotated[str, typer.Argument(help="The consumer group, for example router.")],
    topic: Annotated[str, typer.Option(help="The topic on which it stands still.")],
    reason: Reason,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    to: Annotated[
        int | None, typer.Option(min=0, help="The next offset to read; the end if not given.")
    ] = None,
    by: By = "",
    dry_run: DryRun = False,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Move a group past records that it cannot handle; what becomes dropped is shown, and can be sent again.

    Refuses unless the group is not running and everything that it stored is sent.
    """
    from cli import mend
    from cli.world import World

    async def work() -> tuple[Any, str]:
        place = World(folder).place()
        plan = await mend.plan_skip(place, group, topic, partition, to)
        if dry_run or plan.objections:
            return plan, "; ".join(plan.objections)
        await mend.skip(place, plan, mend.Operator.named(by, reason))
        return plan, ""

    try:
        plan, refused = run(work())
    except mend.Refused as error:
        raise typer.Exit(say("refused", str(error), "hotline group skip --help", USAGE)) from None
    show.as_json({**plan.as_json(), "done": not (dry_run or refused)}) if json else show.skip(
        plan, dry_run=dry_run
    )
    raise typer.Exit(PROBLEM if refused else FINE)


@group_app.command("pause")
def group_pause(
    group: Annotated[str, typer.Argument(help="The stage's consumer group, for example router.")],
    reason: Reason,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Have a stage take no new records until it is resumed.

    What comes meanwhile waits: late, not lost. What was decided is still sent. A restart changes nothing.
    """
    from cli import pause

    _followed(lambda place, operator: pause.pause(place, group, operator), reason, by, folder, json)


@group_app.command("resume")
def group_resume(
    group: Annotated[str, typer.Argument(help="The stage's consumer group, for example router.")],
    reason: Why = "",
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Let a paused stage go on where it was."""
    from cli import pause

    _followed(lambda place, operator: pause.resume(place, group, operator), reason, by, folder, json)


def _followed(act: Any, reason: str, by: str, folder: Any, json: bool) -> None:  # noqa: FBT001
    from cli import mend
    from cli.world import World

    try:
        done = run(act(World(folder).place(), mend.Operator.named(by, reason)))
    except mend.Refused as error:
        raise typer.Exit(say("refused", str(error), "hotline group --help", USAGE)) from None
    show.as_json(done.as_json()) if json else show.followed(done)
    raise typer.Exit(FINE if done.done else PROBLEM)


@canary_app.command("run")
def canary_run(
    within: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the verdict.")] = 10.0,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Drop a handoff on purpose, now, and wait until the observer names it; it counts in no figure."""
    from cli import canary
    from cli.world import World

    sung = run(canary.sing(World(folder).place(), within))
    show.as_json(sung.as_json()) if json else show.sung(sung)
    raise typer.Exit(FINE if sung.flagged else BLIND if sung.blind else PROBLEM)


@audit_app.command("verify")
def audit_verify(folder: Folder = UP, json: Json = False) -> None:
    """Check that nobody has changed or removed what operators did, and the observer has carried out."""
    chain, faults = run(_chain(folder))
    if json:
        show.as_json({"actions": len(chain), "faults": faults})
    else:
        show.lines(faults or [f"{len(chain)} actions, every link holds"])
    raise typer.Exit(PROBLEM if faults else FINE)


@audit_app.command("scrub")
def audit_scrub(
    hours: Annotated[float, typer.Option(min=0.01, max=336, help="So many hours back from now.")] = 24.0,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Read the last hours of all topics again into an empty ledger, and compare it with the stored one.

    Finds what the observer cannot see: records that vanished after it had read them, rows that were changed.
    """
    from cli import ledger
    from cli.world import OBSERVER, World, connected
    from observer.scrub import Scrub, Scrubber

    async def work() -> Scrub:
        place = World(folder).place()
        async with ledger.session(place):
            pass  # says so where there is no ledger
        async with connected(place, OBSERVER) as database:
            return await Scrubber(place.kafka, database.session).run(hours)

    # It takes a core for a while: whoever else needs one goes first.
    os.nice(10)
    found = run(work())
    show.as_json(found.as_json()) if json else show.scrub(found)
    raise typer.Exit(PROBLEM if found.differences else BLIND if found.behind else FINE)


@audit_app.command("list")
def audit_list(folder: Folder = UP, json: Json = False) -> None:
    """What operators did, oldest first."""
    chain, _ = run(_chain(folder))
    show.as_json([show.action(one) for one in chain]) if json else show.actions(chain)


async def _chain(folder: Any) -> tuple[list[Any], list[str]]:
    from cli import ledger
    from cli.world import World
    from observer import actions

    async with ledger.session(World(folder).place()) as tx:
        carried_out = await actions.last_applied(tx)
        chain = await actions.after(tx, 0)
    return chain, actions.broken_links(chain, carried_out)
