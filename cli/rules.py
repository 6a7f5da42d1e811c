"""The verbs about routing rules: check, test, explain, compare, find idle ones, put in force.

Exit codes: 0 fine, 1 the rules or a test have a fault, 2 usage, 3 cannot reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.model import By, Reason, act_of, in_router
from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

if TYPE_CHECKING:
    from uuid import UUID

    from chassis.postgres import Tx
    from chassis.vault import Vault
    from cli.world import World
    from schemas.case import Case
    from services.router.coverage import Difference, Failure, Moved, Tried, Use
    from services.router.rules import Fault, Matched, Ruled, Ruleset, View

rules_app = typer.Typer(help="Routing rules: check, test, explain, compare.", no_args_is_help=True)

SHIPPED = Path(__file__).parents[1] / "services" / "router" / "rules.yaml"
NONE = "— no rule"


File = Annotated[Path, typer.Argument(metavar="FILE", help="Rules file.", envvar="HOTLINE_RULES_FILE")]
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


def _usable(file: Path) -> Ruleset:
    """Read rules for a verb that needs them; a bad file ends the command."""
    from services.router.rules import BadRules, load_rules

    try:
        return load_rules(file)
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
    file: Annotated[Path, typer.Option("--file", help="Rules file.", envvar="HOTLINE_RULES_FILE")] = SHIPPED,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Tell which rules were tried on a case, which one decides, and why those before it did not."""
    from services.router.coverage import tried
    from services.router.rules import decide

    ruleset = _usable(file)
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
    view = _recorded_view(folder, asked, ruleset) if asked else _invented(field or [], text)
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
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Rules file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Rules file.")],
    recorded: Recorded = 0,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Compare two versions: rules added, removed, changed, moved, and the cases they send elsewhere."""
    from services.router.coverage import compare

    before, after = _usable(old), _usable(new)
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
def coverage(file: File = SHIPPED, recorded: Recorded = 0, folder: Folder = UP, json: Json = False) -> None:
    """Tell which rules never match or are shadowed by earlier ones, and how many cases no rule decides."""
    from services.router.coverage import cover

    ruleset = _usable(file)
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

        return run(_recorded(World(folder), ruleset, most=recorded))  # type: ignore[no-any-return]
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


def _recorded_view(folder: Path, asked: str, ruleset: Ruleset) -> View:
    from cli.history import case_id_of
    from cli.world import World

    world = World(folder)

    async def work() -> Mapping[str, View]:
        case_id = await case_id_of(world.place(), asked)
        return await _recorded(world, ruleset, case_id=case_id) if case_id else {}

    found: Mapping[str, View] = run(work())
    if not found:
        raise typer.Exit(
            say("no such case", f"the router knows no case {asked}", "hotline events tail", PROBLEM)
        )
    return next(iter(found.values()))


async def _recorded(
    world: World, ruleset: Ruleset, *, case_id: UUID | None = None, most: int = 1
) -> Mapping[str, View]:
    """Read cases as the router knows them, by number; the text of an erased customer is not known."""
    import json
    from zoneinfo import ZoneInfo

    from cli.world import connected
    from schemas.case import Case
    from services.router.rules import view_of

    place = world.place()
    async with connected(place, "router") as database, database.session() as tx:
        rows = await tx.fetch(
            "select document from entities where $1::text is null or key = $1"
            " order by updated_at desc limit $2",
            str(case_id) if case_id else None,
            most,
        )
    cases = [Case.model_validate(json.loads(row["document"])["case"]) for row in rows]
    vault = await world.vault(place)
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
