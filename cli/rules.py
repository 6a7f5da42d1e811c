"""The verbs about routing rules: check, test, explain, compare, find idle ones, put in force, see what is.

Exit codes: 0 fine, 1 the rules or a test have a fault, 2 usage, 3 cannot reach.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.model import By, Reason, act_of, in_router
from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

if TYPE_CHECKING:
    from chassis.postgres import Tx
    from chassis.vault import Vault
    from cli.world import World
    from schemas.case import Case
    from services.router.coverage import Difference, Failure, Moved, Tried, Use
    from services.router.domain import Routing
    from services.router.lessons import ActivatedRules
    from services.router.rules import Fault, Matched, Ruled, Ruleset, View

rules_app = typer.Typer(help="Routing rules: check, test, explain, compare.", no_args_is_help=True)

SHIPPED = Path(__file__).parents[1] / "services" / "router" / "rules.yaml"
NONE = "— no rule"


File = Annotated[Path, typer.Argument(metavar="FILE", help="Rules file.", envvar="HOTLINE_RULES_FILE")]
_KEPT = "Rules file, or rules that were in force once."
Kept = Annotated[Path, typer.Argument(metavar="FILE|SHA|VERSION", help=_KEPT, envvar="HOTLINE_RULES_FILE")]
Recorded = Annotated[
    int,
    typer.Option(
        "--recorded", min=0, help="Take so many recorded cases, newest first; 0: the demo's invented ones."
    ),
]


# ------------------------------------------------------------ check and test


@rules_app.command("check")
def check(file: File = SHIPPED, json: Json = False) -> None:
    """Read a rules file and run its tests; names every fault with its line."""
    from services.router.rules import BadRules, load_rules

    try:
        ruleset = load_rules(file)
        faults = _failed(ruleset, file)
        summary = _identity(ruleset)
    except BadRules as error:
        faults, summary = list(error.faults), {}
    if json:
        show.as_json({"file": str(file), **summary, "faults": [fault._asdict() for fault in faults]})
    elif not faults:
        show.lines([f"{file}: fine; {_in_words(summary)}"])
    else:
        _refuse(file, faults)
    raise typer.Exit(PROBLEM if faults else FINE)


def _failed(ruleset: Ruleset, file: Path) -> list[Fault]:
    from services.router.coverage import failures
    from services.router.rules.sheet import fault_in

    text = file.read_text("utf-8")
    return [fault_in(text, ("tests", failure.number - 1), _said_of(failure)) for failure in failures(ruleset)]


def _said_of(failure: Failure) -> str:
    test = failure.test
    expected = test.department + (f" by {test.rule}" if test.rule else "")
    if test.candidates is not None:
        expected += f", candidates {', '.join(test.candidates) or '—'}"
    return f"expected {expected}, found {_verdict(failure.found, candidates=test.candidates is not None)}"


def _verdict(ruled: Ruled, *, candidates: bool = False) -> str:
    said = f"{ruled.department} by {ruled.rule.id}" if ruled.rule else f"{ruled.department} ({NONE})"
    return said + (f", candidates {', '.join(ruled.candidates) or '—'}" if candidates else "")


def _identity(ruleset: Ruleset) -> dict[str, Any]:
    return {
        "ruleset": ruleset.ruleset,
        "sha256": ruleset.sha256,
        "rules": len(ruleset.rules),
        "tests": len(ruleset.tests),
    }


def _in_words(summary: dict[str, Any]) -> str:
    version = f"version {summary['ruleset']}, sha256 {summary['sha256'][:12]}…"
    return f"{version}, {summary['rules']} rules, {summary['tests']} tests"


def _refuse(file: Path, faults: Sequence[Fault]) -> None:
    from services.router.rules import BadRules

    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    say(
        f"rules may not be used: {count}",
        "\n  ".join(BadRules(str(file), faults).lines()),
        f"correct the file, then hotline rules check {file}",
        PROBLEM,
    )


def _usable(file: Path, folder: Path | None = None) -> Ruleset:
    """Read rules for a verb that needs them; a bad file ends the command.

    With a folder, a hash or a version also names rules that were in force once.
    """
    from services.router import lessons
    from services.router.rules import BadRules, load_rules, parse_rules

    try:
        if folder is None or file.exists() or file.suffix in (".yaml", ".yml") or file.parent != Path():
            return load_rules(file)
        return parse_rules(in_router(folder, lambda tx: lessons.rules_named(tx, str(file))), str(file))
    except BadRules as error:
        _refuse(file, error.faults)
        raise typer.Exit(PROBLEM) from None


@rules_app.command("test")
def run_tests(file: File = SHIPPED, json: Json = False) -> None:
    """Run the tests that stand beside the rules."""
    ruleset = _usable(file)
    faults = _failed(ruleset, file)
    count = len(ruleset.tests)
    if json:
        failed = [fault._asdict() for fault in faults]
        show.as_json({**_identity(ruleset), "passed": count - len(faults), "failed": failed})
    elif faults:
        _refuse(file, faults)
    elif not count:
        say("nothing was tested", f"{file} has no tests", "write some under `tests:`", PROBLEM)
    else:
        show.lines([f"{file}: {count} of {count} tests pass"])
    raise typer.Exit(FINE if count and not faults else PROBLEM)


# ------------------------------------------------------------ explain


@rules_app.command("explain")
def explain(
    asked: Annotated[str, typer.Argument(metavar="CASE", help="Case id, number C-…, or call id.")] = "",
    field: Annotated[
        list[str] | None, typer.Option("--field", metavar="NAME=VALUE", help="A field of a case; repeat.")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="What the customer says; not printed again.")] = "",
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="DEPARTMENT", help="It has given the case back.")
    ] = None,
    file: Annotated[
        str, typer.Option("--file", metavar="FILE|SHA|VERSION", help="Other rules than those that decided.")
    ] = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Tell which rules were tried on a case, which one decides, and why those before it did not.

    A recorded case is explained as it was decided last: by those rules, with that severity, without the
    departments that had given it back. An invented one by $HOTLINE_RULES_FILE, or the shipped rules.
    """
    from services.router.coverage import tried
    from services.router.rules import decide

    excluded = frozenset(_departments(exclude or []))
    if bool(asked) == bool(field or text):
        raise typer.Exit(
            say(
                "nothing to explain",
                "either a recorded case, or --field and --text of an invented one",
                "hotline rules explain --field product=atm --field category=complaint",
                USAGE,
            )
        )
    if asked:
        ruleset, view, before = _as_decided(folder, asked, file)
        excluded = excluded or before
    else:
        ruleset = _usable(Path(file or os.environ.get("HOTLINE_RULES_FILE", SHIPPED)), folder)
        view = _invented(field or [], text)
    ruled, lines = decide(view, ruleset, excluded), tried(view, ruleset, excluded)
    if json:
        show.as_json(
            {
                **_identity(ruleset),
                "case": _shown(view),
                "tried": [_line(line) for line in lines],
                "decision": _decision(ruled),
            }
        )
    else:
        _print_explained(ruleset, view, lines, ruled)
    raise typer.Exit(FINE)


def _departments(named: Sequence[str]) -> Sequence[str]:
    from schemas.topics import DEPARTMENTS

    for code in named:
        if code not in DEPARTMENTS:
            raise typer.Exit(say("no such department", code, f"one of {', '.join(DEPARTMENTS)}", USAGE))
    return named


def _invented(fields: Sequence[str], text: str) -> View:
    from pydantic import ValidationError

    from services.router.rules.view import OPERATORS, View

    try:
        given = dict(_pair(one) for one in fields) | ({"text": text} if text else {})
        return View.model_validate_strings(given, strict=False)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
    except ValueError as error:
        why = str(error)
    names = ", ".join(name for name in OPERATORS if name != "text")
    raise typer.Exit(say("no such case", why, f"--field NAME=VALUE, of {names}", USAGE))


def _pair(written: str) -> tuple[str, str]:
    name, equals, value = written.partition("=")
    if not equals:
        raise ValueError(f"{written!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def _shown(view: View) -> dict[str, Any]:
    return {**view.model_dump(exclude={"text"}), "text": "known" if view.text else None}


def _line(line: Tried) -> dict[str, Any]:
    return {
        "rule": line.rule.id,
        "priority": line.rule.priority,
        "fate": line.fate,
        "because": [term._asdict() for term in line.terms],
    }


def _decision(ruled: Ruled) -> dict[str, Any]:
    return {
        "department": ruled.department,
        "rule": ruled.rule.id if ruled.rule else None,
        "assist": ruled.assist,
        "severity_raised_to": ruled.severity,
        "vetoed": ruled.vetoed,
        "candidates": ruled.candidates,
        "matched": [term._asdict() for term in ruled.matched],
    }


def _print_explained(ruleset: Ruleset, view: View, lines: Sequence[Tried], ruled: Ruled) -> None:
    seen = "  ".join(f"{name} {value}" for name, value in _shown(view).items() if value is not None)
    printed = [f"ruleset {ruleset.ruleset}", f"case: {seen}"]
    for line in lines:
        mark = {"decides": "→", "vetoes": "!", "narrows": "!"}.get(line.fate, "·")
        printed.append(f"{mark} {line.rule.priority:3} {line.rule.id}: {line.fate}{_because(line)}")
    printed.append(f"decision: {_verdict(ruled, candidates=ruled.rule is None)}")
    if ruled.assist:
        printed.append(f"assisting: {', '.join(ruled.assist)}")
    if ruled.severity:
        printed.append(f"severity raised to {ruled.severity}")
    show.lines(printed)


def _because(line: Tried) -> str:
    from services.router.rules import Rule

    terms = "; ".join(map(_asked, line.terms))
    if line.fate in {"excluded", "vetoed"} and isinstance(line.rule, Rule):
        return f" ({line.rule.department}): {terms}"
    return f": {terms}"


def _asked(term: Matched) -> str:
    mark = "✗" if term.op.startswith("not ") else "✓"
    return f"{mark} {term.field} {term.op.removeprefix('not ')} [{term.expected}], seen {term.seen or '—'}"


# ------------------------------------------------------------ diff and coverage


@rules_app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help=_KEPT)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help=_KEPT)],
    recorded: Recorded = 0,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Compare two versions: rules added, removed, changed, moved, and the cases they send elsewhere."""
    from services.router.coverage import compare

    before, after = _usable(old, folder), _usable(new, folder)
    cases = _cases(folder, recorded, after)
    found = compare(before, after, cases)
    if json:
        show.as_json({"old": _identity(before), "new": _identity(after), **_difference(found, len(cases))})
    else:
        _print_difference(found, len(cases))
    raise typer.Exit(FINE)


def _difference(found: Difference, cases: int) -> dict[str, Any]:
    return {
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "moved": found.moved,
        "cases": cases,
        "rerouted": [_moved(one) for one in found.rerouted],
        "same_department_other_rule": [_moved(one) for one in found.explained],
        "version_reused": found.reused,
    }


def _moved(one: Moved) -> dict[str, Any]:
    return {"case": one.case, "before": _verdict(one.before), "after": _verdict(one.after)}


def _print_difference(found: Difference, cases: int) -> None:
    printed = [
        f"{word}: {', '.join(names) or '—'}"
        for word, names in (
            ("added", found.added),
            ("removed", found.removed),
            ("changed", found.changed),
            ("moved", found.moved),
        )
    ]
    printed.append(f"{len(found.rerouted)} of {cases} cases go elsewhere")
    printed += [f"  {one.case}: {_verdict(one.before)} → {_verdict(one.after)}" for one in found.rerouted]
    printed.append(f"{len(found.explained)} of {cases} stay, by another rule")
    printed += [f"  {one.case}: {_verdict(one.before)} → {_verdict(one.after)}" for one in found.explained]
    if found.reused:
        printed.append("both have the same version although they differ: raise `ruleset` in the new file")
    show.lines(printed)


@rules_app.command("coverage")
def coverage(file: Kept = SHIPPED, recorded: Recorded = 0, folder: Folder = UP, json: Json = False) -> None:
    """Tell which rules never match or are shadowed by earlier ones, and how many cases no rule decides."""
    from services.router.coverage import cover

    ruleset = _usable(file, folder)
    found = cover(ruleset, _cases(folder, recorded, ruleset))
    share = found.share_without_rule
    if json:
        show.as_json(
            {
                **_identity(ruleset),
                "cases": found.cases,
                "without_rule": found.without_rule,
                "share_without_rule": None if share is None else round(share, 4),
                "use": [_use(use) for use in found.uses],
            }
        )
    else:
        left = f"{found.without_rule}, " + ("— no cases" if share is None else f"{share:.1%}")
        title = f"ruleset {ruleset.ruleset} over {found.cases} cases; without rule {left}"
        show.lines([title, *map(_in_a_line, found.uses)])
    raise typer.Exit(FINE)


def _use(use: Use) -> dict[str, Any]:
    return {
        "rule": use.rule.id,
        "priority": use.rule.priority,
        "holds": use.holds,
        "decides": use.decides,
        "verdict": use.verdict,
        "taken_by": dict(use.taken_by),
    }


def _in_a_line(use: Use) -> str:
    taken = ", ".join(f"{name} {count}" for name, count in use.taken_by.items())
    counts = f"holds {use.holds:4}  decides {use.decides:4}  {use.verdict}"
    return f"{use.rule.priority:3} {use.rule.id:24} {counts}" + (f"; taken by {taken}" if taken else "")


# ------------------------------------------------------------ cases


def _cases(folder: Path, recorded: int, ruleset: Ruleset) -> Mapping[str, View]:
    """The cases over which rules are looked at: recorded ones, else those of the demo."""
    if recorded:
        from cli.world import World

        return run(_recorded(World(folder), ruleset, recorded))  # type: ignore[no-any-return]
    from cli.texts import scripts
    from services.router.rules import View

    return {
        script.key: View(
            category=script.category,
            product=script.product,
            severity=script.severity,
            language=script.language,
            vulnerable=script.vulnerable,
            text=f"{script.summary}\n{script.demand}",
        )
        for script in scripts()
    }


def _as_decided(folder: Path, asked: str, file: str) -> tuple[Ruleset, View, frozenset[str]]:
    """Take a recorded case as it was decided: the rules, what they saw of it, and who had given it back.

    Rules that are named go before those that decided.
    """
    from cli.history import case_id_of
    from cli.rulings import routing_of
    from cli.world import World

    world = World(folder)

    async def known() -> Routing | None:
        case_id = await case_id_of(world.place(), asked)
        return await routing_of(world.place(), case_id) if case_id else None

    routing: Routing | None = run(known())
    if routing is None:
        raise typer.Exit(
            say("no such case", f"the router knows no case {asked}", "hotline events tail", PROBLEM)
        )
    why = routing.explanation
    if file or why is None:
        ruleset = _usable(Path(file or os.environ.get("HOTLINE_RULES_FILE", SHIPPED)), folder)
    else:
        ruleset = _stored(folder, why.ruleset_sha256)
    case = routing.case
    if why is not None and why.severity is not None:
        case = case.model_copy(update={"severity": why.severity})
    view = run(_viewed(world, ruleset, [case]))[case.case_no]
    return ruleset, view, frozenset(why.excluded if why else ())


def _stored(folder: Path, sha256: str) -> Ruleset:
    from services.router.reading import stored_rules

    found: Ruleset | str = in_router(folder, lambda tx: stored_rules(tx, sha256))
    if isinstance(found, str):
        why = f"ruleset {sha256[:12]}, which decided, is not kept or is damaged"
        raise typer.Exit(say("cannot explain", why, "--file FILE", PROBLEM))
    return found


async def _recorded(world: World, ruleset: Ruleset, most: int) -> Mapping[str, View]:
    """Read the newest cases as the router knows them, by number."""
    import json

    from cli.world import connected
    from schemas.case import Case

    async with connected(world.place(), "router") as database, database.session() as tx:
        rows = await tx.fetch("select document from entities order by updated_at desc limit $1", most)
    return await _viewed(
        world, ruleset, [Case.model_validate(json.loads(row["document"])["case"]) for row in rows]
    )


async def _viewed(world: World, ruleset: Ruleset, cases: Sequence[Case]) -> Mapping[str, View]:
    """What rules see of cases, by number; the text of an erased customer is not known."""
    from zoneinfo import ZoneInfo

    from services.router.rules import view_of

    vault = await world.vault(world.place())
    try:
        await vault.ready(sorted({case.customer.customer_ref for case in cases}))
        zone = ZoneInfo(ruleset.zone)
        return {case.case_no: view_of(case, zone, text=_text(vault, case)) for case in cases}
    finally:
        await vault.close()


def _text(vault: Vault, case: Case) -> str | None:
    from chassis.vault import ERASED
    from schemas.case import Personal
    from services.router.rules.view import text_of

    opened = vault.open(case.customer.customer_ref, case.customer.sealed)
    return None if opened == ERASED else text_of(Personal.model_validate_json(opened))


# ------------------------------------------------------------ in force


@rules_app.command("list")
def list_activated(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """What was put in force, by whom and why, the last first; what of it decides, what cannot be loaded."""
    from services.router import lessons

    found = in_router(folder, lambda tx: lessons.activated_rules(tx, limit))
    if json:
        show.as_json([_activated(one) for one in found])
    elif found:
        show.lines([_in_one_line(one) for one in found])
    if not json and not any(one.state == "in force" for one in found):
        show.lines(
            ["none of them decides: the installation's own rules do ($HOTLINE_RULES_FILE, or the shipped)"]
        )
    raise typer.Exit(PROBLEM if any(one.state == "cannot be loaded" for one in found) else FINE)


def _in_one_line(one: ActivatedRules) -> str:
    since = one.activated_at.astimezone()
    why = f": {one.reason}" if one.reason else ""
    return f"{one.version}  {one.sha256[:12]}  {one.state}; {since:%Y-%m-%d %H:%M}, {one.by}{why}"


def _activated(one: ActivatedRules) -> dict[str, Any]:
    return {
        "version": one.version,
        "sha256": one.sha256,
        "since": one.activated_at.isoformat(timespec="seconds"),
        "by": one.by,
        "reason": one.reason,
        "state": one.state,
    }


@rules_app.command("activate")
def activate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rules file.")],
    reason: Reason,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Check a rules file, run its tests, and put it in force; the router takes it up within a second."""
    from services.router import lessons

    faults = _failed(_usable(file), file)
    if faults:
        _refuse(file, faults)
        raise typer.Exit(PROBLEM)
    document = file.read_text("utf-8")
    done = in_router(folder, lambda tx: lessons.activate_rules(tx, document, act_of(by, reason)))
    _tell(*done, json=json)


@rules_app.command("rollback")
def rollback(
    to: Annotated[str, typer.Option("--to", metavar="SHA|VERSION", help="Rules that were in force once.")],
    reason: Reason,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Put rules in force again that were in force once, as they were written then."""
    from services.router import lessons

    async def work(tx: Tx) -> tuple[Ruleset, bool]:
        return await lessons.activate_rules(tx, await lessons.rules_named(tx, to), act_of(by, reason))

    _tell(*in_router(folder, work), json=json)


def _tell(ruleset: Ruleset, changed: bool, *, json: bool) -> None:  # noqa: FBT001 - a pair taken apart
    if json:
        show.as_json({**_identity(ruleset), "changed": changed})
    else:
        word = "in force from now on" if changed else "in force already"
        show.lines([f"{word}: {_in_words(_identity(ruleset))}"])
    raise typer.Exit(FINE)
