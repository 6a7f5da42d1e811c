"""The verbs about classifiers: which decide, how good they are, how they learn, when they must not decide.

Exit codes: 0 fine, 1 refused or an alarm rings, 2 usage, 3 cannot reach.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli import show
from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

if TYPE_CHECKING:
    from datetime import timedelta

    from chassis.postgres import Database, Tx
    from chassis.vault import Vault
    from services.router.classifier.model import Card, Model
    from services.router.classifier.text import Language
    from services.router.learning import Agreement, Gauge, Lesson, Line, Score, Share
    from services.router.lessons import Act, Activation, Role, StoredModel, Window
    from services.router.lessons.night import Night, NotTrained, Trained
    from services.router.lessons.runs import Job

model_app = typer.Typer(
    help="The classifier: what decides, how good it is, how it learns.", no_args_is_help=True
)

SHIPPED = Path(__file__).parents[1] / "services" / "router" / "classifier" / "models"
LISTED = 20
LANGUAGES: tuple[Language, ...] = ("zh", "en")
ROLES: tuple[Role, ...] = ("active", "shadow")
_NONE = "none"
T = TypeVar("T")

Asked = Annotated[str, typer.Argument(metavar="SHA|VERSION", help="A stored model.")]
By = Annotated[str, typer.Option("--by", help="Who decides; your account's name without it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for those who ask later.")]
OfLanguage = Annotated[str, typer.Option("--language", metavar="zh|en", help="Of this language.")]
Installed = Annotated[
    Path, typer.Option("--shipped", help="The installation's own models.", envvar="HOTLINE_MODELS")
]


# ------------------------------------------------------------ how a verb runs


def carried_out(work: Coroutine[Any, Any, T]) -> T:
    """Do the work; what is refused ends the command in three lines."""
    from pydantic import ValidationError

    from services.router.lessons import Refused

    try:
        return run(work)  # type: ignore[no-any-return]
    except Refused as refused:
        raise typer.Exit(say(refused.what, refused.why, refused.next_step, PROBLEM)) from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise typer.Exit(say("not a name or a reason", why, "--by NAME --reason TEXT", USAGE)) from None


@asynccontextmanager
async def _router(folder: Path) -> AsyncIterator[Database]:
    from cli.world import World, connected

    async with connected(World(folder).place(), "router") as database:
        yield database


@asynccontextmanager
async def _with_vault(folder: Path) -> AsyncIterator[tuple[Database, Vault]]:
    from cli.world import World

    world = World(folder)
    vault = await world.vault(world.place())
    try:
        async with _router(folder) as database:
            yield database, vault
    finally:
        await vault.close()


@asynccontextmanager
async def _alone(folder: Path, job: Job, what: str) -> AsyncIterator[None]:
    """Do by hand what runs by the clock; refused while somebody else is at it."""
    from services.router.lessons import Refused, runs

    async with _router(folder) as database:
        async with runs.alone(database, job) as mine:
            if mine is not None:
                yield
                return
        async with database.session() as tx:
            session = await runs.at_work(tx, job)
    why = f"the process of the lessons is at it, or another hand: session {session} of PostgreSQL"
    raise Refused(f"{what} already", why, "ask again when it has ended, or docs/runbook/LessonsStopped.md")


def in_router(folder: Path, work: Callable[[Tx], Coroutine[Any, Any, T]]) -> T:
    """Do the work in one transaction on the router's tables; what is refused ends the command."""

    async def whole() -> T:
        async with _router(folder) as database, database.transaction() as tx:
            return await work(tx)

    return carried_out(whole())


def act_of(by: str, reason: str) -> Act:
    """Say who acts now, and why: the person who was named, else the account that runs the command."""
    from chassis.clock import utc_now
    from cli.mend import Operator
    from services.router.lessons import Act

    return Act(Operator.named(by).name, reason, utc_now())


def _language(word: str) -> Language:
    for one in LANGUAGES:
        if one == word:
            return one
    raise typer.Exit(say("no such language", word or "none was given", "--language zh, or en", USAGE))


def _role(word: str) -> Role:
    for one in ROLES:
        if one == word:
            return one
    raise typer.Exit(say("no such role", word, "--role active, or --role shadow", USAGE))


# ------------------------------------------------------------ what decides


@model_app.command("store")
def store_model(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model, or one folder per language.")],
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Check a model and keep it whole, so that it can be activated; a weak or damaged one is refused."""
    from chassis.clock import utc_now
    from services.router import lessons

    async def work(tx: Tx) -> list[tuple[Model, bool]]:
        return [await lessons.store_model(tx, one, utc_now()) for one in lessons.folders_in(source)]

    stored = in_router(folder, work)
    if json:
        show.as_json([{**_shown(model.card, model.sha256), "new": new} for model, new in stored])
    else:
        show.lines(
            [
                f"{'stored' if new else 'stored already'}: {model.card.version} ({model.card.language}),"
                f" sha256 {model.sha256}"
                for model, new in stored
            ]
        )
    raise typer.Exit(FINE)


@model_app.command("activate")
def activate(
    asked: Asked,
    reason: Reason,
    role: Annotated[
        str, typer.Option("--role", metavar="active|shadow", help="It decides, or is only watched.")
    ] = "active",
    language: OfLanguage = "",
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Let a stored model decide for its language, or be watched; the router takes it up within a second."""
    from services.router import lessons

    given = _role(role)

    async def work(tx: Tx) -> tuple[StoredModel, bool]:
        model = await lessons.model_named(tx, asked, _language(language) if language else None)
        return model, await lessons.activate_model(tx, model, given, act_of(by, reason))

    model, changed = in_router(folder, work)
    _tell(model, given, changed=changed, json=json)


def _tell(model: StoredModel, role: str, *, changed: bool, json: bool) -> None:
    if json:
        show.as_json(
            {
                "role": role,
                "language": model.language,
                "version": model.version,
                "sha256": model.sha256,
                "changed": changed,
            }
        )
    else:
        word = "is from now on" if changed else "was already"
        show.lines([f"{model.version} {word} the {role} model for {model.language} ({model.sha256[:12]}…)"])
    raise typer.Exit(FINE)


@model_app.command("rollback")
def rollback(
    language: OfLanguage,
    reason: Reason,
    to: Annotated[
        str, typer.Option("--to", metavar="SHA|VERSION", help="Which; the one before without it.")
    ] = "",
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Let the model decide that decided before, or one that is named."""
    from services.router import lessons

    which = _language(language)

    async def work(tx: Tx) -> tuple[StoredModel | None, bool]:
        act = act_of(by, reason)
        asked = to or await lessons.before(tx, which)
        if asked == _NONE:
            return None, await lessons.switch_off(tx, which, act)
        model = await lessons.model_named(tx, asked, which)
        return model, await lessons.activate_model(tx, model, "active", act)

    model, changed = in_router(folder, work)
    if model is None:
        _tell_off(which, "active", changed=changed, json=json)
    else:
        _tell(model, "active", changed=changed, json=json)


@model_app.command("off")
def switch_off(
    language: OfLanguage,
    reason: Reason,
    role: Annotated[
        str, typer.Option("--role", metavar="active|shadow", help="Which of the two.")
    ] = "active",
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Let no model decide for a language: rules and triage do, until one is activated again."""
    from services.router import lessons

    which, given = _language(language), _role(role)

    async def work(tx: Tx) -> bool:
        return await lessons.switch_off(tx, which, act_of(by, reason), given)

    _tell_off(which, given, changed=in_router(folder, work), json=json)


def _tell_off(language: str, role: str, *, changed: bool, json: bool) -> None:
    if json:
        show.as_json(
            {"role": role, "language": language, "version": _NONE, "sha256": _NONE, "changed": changed}
        )
    else:
        show.lines([f"{'from now on' if changed else 'as before,'} there is no {role} model for {language}"])
    raise typer.Exit(FINE)


@model_app.command("list")
def list_models(shipped: Installed = SHIPPED, folder: Folder = UP, json: Json = False) -> None:
    """What decides, what is watched, what is stored and how good it is, where none may decide."""
    from services.router import lessons
    from services.router.reading import load_shipped

    async def work(tx: Tx) -> tuple[Any, ...]:
        return (
            await lessons.activations(tx),
            await lessons.stored_models(tx, LISTED),
            await lessons.restrictions(tx),
        )

    given, stored, restricted = in_router(folder, work)
    own = load_shipped(shipped)
    roles = [_given(one) for one in given.values()]
    if not isinstance(own, str):
        roles += [
            {"role": "active", "language": language, "sha256": model.sha256, "by": "installation"}
            for language, model in own.items()
            if ("active", language) not in given
        ]
    document = {
        "roles": roles,
        "stored": [_stored(one, card) for one, card in stored],
        "restricted": [{**one, "since": one["since"].isoformat(timespec="seconds")} for one in restricted],
        "shipped": own if isinstance(own, str) else [_shown(one.card, one.sha256) for one in own.values()],
    }
    if json:
        show.as_json(document)
    else:
        _print_list(document)
    raise typer.Exit(FINE)


def _given(one: Activation) -> dict[str, Any]:
    return {
        "role": one.role,
        "language": one.language,
        "sha256": one.sha256,
        "by": one.by,
        "reason": one.reason,
        "since": one.activated_at.isoformat(timespec="seconds"),
    }


def _stored(one: StoredModel, card: Card | str) -> dict[str, Any]:
    since = {"stored_at": one.stored_at.isoformat(timespec="seconds")}
    if isinstance(card, str):
        return {"version": one.version, "sha256": one.sha256, "language": one.language, **since, "bad": card}
    return {**_shown(card, one.sha256), **since}


def _shown(card: Card, sha256: str) -> dict[str, Any]:
    return {
        "version": card.version,
        "sha256": sha256,
        "language": card.language,
        "what": card.what,
        "data": card.data,
        "demonstration": card.demonstration,
        **_limits(card),
        "metrics": card.metrics.model_dump(),
    }


def _limits(card: Card) -> dict[str, Any]:
    """From which confidence on it decides: `thresholds` of the departments that need a higher one."""
    return {"threshold": card.threshold, "thresholds": dict(card.thresholds)}


def _said_of(limits: dict[str, Any]) -> str:
    if limits["threshold"] is None:
        return "decides nothing: no confidence was safe"
    own = [
        f"{department} never" if limit >= 1 else f"{department} {limit:.3f}"
        for department, limit in limits["thresholds"].items()
    ]
    return ", ".join([f"decides from confidence {limits['threshold']:.3f}", *own])


def _print_list(document: dict[str, Any]) -> None:
    printed = [
        f"{one['language']} {one['role']}: {one['sha256'][:12]} by {one['by']}"
        + (f", {one['since']}: {one['reason']}" if "since" in one else "")
        for one in document["roles"]
    ] or ["no model decides"]
    if isinstance(document["shipped"], str):
        printed.append(f"the installation has no model: {document['shipped']}")
    for one in document["stored"]:
        printed.append(f"stored {one['version']} ({one['language']}) {one['sha256'][:12]} {one['stored_at']}")
        printed += [f"  may not be used: {one['bad']}"] if "bad" in one else _of_card(one)
    printed += [
        f"not for {one['department']}, since {one['since']}: {one['alarm']} {_number(one['figure'])}"
        for one in document["restricted"]
    ]
    show.lines(printed)


def _of_card(one: dict[str, Any]) -> list[str]:
    found = one["metrics"]
    good = f"accuracy {found['accuracy']:.3f}, macro-F1 {found['macro_f1']:.3f}, ECE {found['ece']:.3f}"
    decides = f"coverage {found['coverage']:.3f}, precision {_number(found['precision'])}"
    figures = f"  {good}, {decides}, on {found['texts']} texts"
    return [f"  {one['what']}", f"  {one['data']}", figures, f"  {_said_of(one)}"]


def _number(figure: float | None) -> str:
    return "— none" if figure is None else f"{figure:.3f}"


# ------------------------------------------------------------ how good it is


def _share(share: Share, missing: str) -> dict[str, Any]:
    if share.of == 0:
        return {"value": None, "missing": missing, "hits": 0, "of": 0}
    return {
        "value": _rounded(share.value),
        "low": _rounded(share.low),
        "high": _rounded(share.high),
        "hits": share.hits,
        "of": share.of,
    }


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)


def _percent(share: dict[str, Any]) -> str:
    if share["value"] is None:
        return f"— {share['missing']}"
    return f"{share['value']:.1%} ({share['low']:.1%}-{share['high']:.1%} of {share['of']})"


def _score(found: Score) -> dict[str, Any]:
    none = "nothing labelled"
    return {
        "accuracy": _share(found.accuracy, none),
        "top3": _share(found.top3, none),
        "coverage": _share(found.coverage, none),
        "precision": _share(found.precision, "it would decide nothing"),
        "departments": {
            name: {
                "seen": _share(seen, "no case belongs there"),
                "precision": _share(precise, "it would send nothing there"),
            }
            for name, (seen, precise) in found.by_department.items()
        },
    }


def _print_score(found: dict[str, Any], title: str) -> None:
    show.lines(
        [
            title,
            *(f"  {name}: {_percent(found[name])}" for name in ("accuracy", "top3", "coverage", "precision")),
        ]
    )
    rows = [
        {"department": name, "seen": _percent(one["seen"]), "precision": _percent(one["precision"])}
        for name, one in found["departments"].items()
    ]
    if rows:
        show.table("by department", rows)


@model_app.command("evaluate")
def evaluate(
    asked: Annotated[str, typer.Argument(metavar="SHA|VERSION|FOLDER", help="A stored model, or a folder.")],
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Tell how a model does on the labelled cases from which none may learn."""
    from services.router import learning, lessons

    async def work() -> tuple[Model, Sequence[Lesson]]:
        async with _with_vault(folder) as (database, vault):
            model = await _either(database, asked)
            found = await lessons.labelled(database, vault, _counted("lessons read"))
        return model, learning.split(found.get(model.card.language, ()))[1]

    model, held_out = carried_out(work())
    found = _score(learning.score(learning.judge(model, held_out)))
    limits = _limits(model.card)
    if json:
        show.as_json({"version": model.card.version, "sha256": model.sha256, **limits, **found})
    else:
        _print_score(found, f"{model.card.version} on {len(held_out)} held-out cases")
        show.lines([_said_of(limits)])
    raise typer.Exit(FINE if held_out else PROBLEM)


async def _either(database: Database, asked: str) -> Model:
    from services.router import lessons
    from services.router.classifier.model import CARD

    if (Path(asked) / CARD).is_file():
        return lessons.checked(Path(asked))
    async with database.session() as tx:
        return await lessons.loaded(tx, (await lessons.model_named(tx, asked)).sha256)


def _counted(what: str) -> Callable[[int], None]:
    return lambda count: show.progress(f"{count} {what}")


@model_app.command("shadow")
def compare_shadow(folder: Folder = UP, json: Json = False) -> None:
    """Compare what the watched models said with what the deciding ones said, on the recorded decisions."""
    from services.router import learning, lessons

    async def work() -> dict[Activation, Agreement]:
        async with _router(folder) as database:
            async with database.session() as tx:
                given = await lessons.activations(tx)
            watched = [one for one in given.values() if one.role == "shadow" and one.sha256 != _NONE]
            return {one: learning.agreement(await lessons.said_by_shadow(database, one)) for one in watched}

    found = [(_given(one), _agreement(together)) for one, together in carried_out(work()).items()]
    if json:
        show.as_json([{**given, **together} for given, together in found])
    elif not found:
        show.lines(["no model is watched: hotline model activate SHA --role shadow"])
    for given, together in [] if json else found:
        _print_agreement(given, together)
    raise typer.Exit(FINE)


_RIGHT = ("both_right", "only_active_right", "only_shadow_right", "neither_right")


def _agreement(found: Agreement) -> dict[str, Any]:
    none = "no case of which both have said something"
    return {
        "agreed": _share(found.agreed, none),
        "departments": {name: _share(one, none) for name, one in found.by_department.items()},
        "only_watched": found.alone,
        "labelled": found.labelled,
        "both_right": found.both_right,
        "only_active_right": found.only_active,
        "only_shadow_right": found.only_shadow,
        "neither_right": found.neither,
    }


def _print_agreement(given: dict[str, Any], found: dict[str, Any]) -> None:
    right = "  ".join(f"{name.replace('_', ' ')} {found[name]}" for name in _RIGHT)
    show.lines(
        [
            f"{given['language']} shadow {given['sha256'][:12]}, watched since {given['since']}",
            f"  agrees: {_percent(found['agreed'])}; alone on {found['only_watched']}",
            *(f"    {name}: {_percent(one)}" for name, one in found["departments"].items()),
            f"  of {found['labelled']} labelled: {right}",
        ]
    )


# ------------------------------------------------------------ how it learns


@model_app.command("train")
def train(
    language: OfLanguage = "",
    least: Annotated[int, typer.Option("--min", min=1000, help="Refuse to learn from fewer labels.")] = 1000,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the files here, by language.")] = None,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Learn from what people have corrected, judge on cases not learnt from, and store the model."""
    from chassis.clock import utc_now
    from services.router import lessons
    from services.router.lessons import night

    languages = (_language(language),) if language else LANGUAGES

    async def work() -> list[dict[str, Any]]:
        async with _with_vault(folder) as (database, vault):
            found = await lessons.labelled(database, vault, _counted("lessons read"))
            done = []
            for one in languages:
                trained = await night.train(
                    database, one, found.get(one, ()), utc_now(), least=least, out=out, progress=show.progress
                )
                done.append(_trained(one, trained))
            return done

    done = carried_out(work())
    if json:
        show.as_json(done)
    else:
        _print_trained(done)
    raise typer.Exit(FINE if any("sha256" in one for one in done) else PROBLEM)


def _print_trained(done: Sequence[dict[str, Any]]) -> None:
    for one in done:
        if "sha256" in one:
            show.lines([f"{one['language']}: stored {one['version']}, sha256 {one['sha256']}"])
            _print_score(one["held_out"], "on the cases that it has not learnt from")
        else:
            say(f"{one['language']}: not trained", one["why"], one["next"], PROBLEM)


def _trained(language: str, found: Trained | NotTrained) -> dict[str, Any]:
    from services.router.lessons.night import NotTrained

    if isinstance(found, NotTrained):
        return {"language": language, "why": found.why, "next": found.next_step, "failed": found.failed}
    card = found.model.card
    return {
        "language": language,
        "version": card.version,
        "sha256": found.model.sha256,
        "watched": found.watched,
        "learnt_from": found.learnt_from,
        "held_out": _score(found.held_out),
        "metrics": card.metrics.model_dump(),
    }


@model_app.command("retrain")
def retrain(shipped: Installed = SHIPPED, folder: Folder = UP, json: Json = False) -> None:
    """The nightly job: judge the watched model and let it decide if it is better; then train the next one.

    While a model is watched no other is trained: it would never be watched for long enough. Under
    `hotline up` it is done each night without anybody, and refused here while it is.
    """
    from services.router.lessons import runs
    from services.router.lessons.night import nights

    async def work() -> list[dict[str, Any]]:
        async with _alone(folder, "retrain", "learning"), _with_vault(folder) as (database, vault):
            done = await nights(database, vault, shipped, runs.now, show.progress)
        return [_night(one) for one in done]

    done = carried_out(work())
    if json:
        show.as_json(done)
    else:
        show.lines([line for one in done for line in _of_night(one)])
    failed = any(one["trained"] and one["trained"].get("failed") for one in done)
    raise typer.Exit(PROBLEM if failed else FINE)


_UNWATCHED = (
    "is stored and not watched: somebody has activated another model meanwhile;"
    " hotline model activate --role shadow has it watched"
)


def _of_night(one: dict[str, Any]) -> list[str]:
    printed = []
    if one["watched"]:
        word = {"promote": "decides from now on", "watch": "is watched on", "discard": "is given up"}
        printed.append(f"{one['language']}: {one['watched'][:12]} {word[one['verdict']]}: {one['why']}")
    trained = one["trained"]
    if trained and "sha256" in trained:
        state = "is watched now" if trained["watched"] else _UNWATCHED
        printed.append(f"{one['language']}: {trained['version']} ({trained['sha256'][:12]}) {state}")
    elif trained:
        printed.append(f"{one['language']}: nothing trained: {trained['why']}")
    return printed


def _night(one: Night) -> dict[str, Any]:
    done: dict[str, Any] = {"language": one.language, "watched": one.watched, "trained": None}
    if one.judged is not None:
        done |= {"verdict": one.judged.verdict, "why": "; ".join(one.judged.why)}
    if one.trained is not None:
        done["trained"] = _trained(one.language, one.trained)
    return done


# ------------------------------------------------------------ figures, drift, restrictions


@model_app.command("figures")
def daily(
    day: Annotated[str, typer.Option("--date", help="Day, YYYY-MM-DD; today without it.")] = "",
    zone: Annotated[str, typer.Option("--zone", help="Time zone of the day.")] = "Asia/Shanghai",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """A day's cases by department: coverage and precision of the classifier, triage, misrouting."""
    from services.router import learning, lessons

    window = _day(day, zone)
    found = learning.figures(in_router(folder, lambda tx: lessons.decided(tx, [window])))
    rows = [_figures(line) for line in found]
    if json:
        show.as_json({"date": str(window[0].date()), "zone": zone, "lines": rows})
    else:
        shown = [
            {name: _percent(value) if isinstance(value, dict) else value for name, value in row.items()}
            for row in rows
        ]
        show.table(f"routing · {window[0].date()} {zone}", shown)
    raise typer.Exit(FINE)


def _day(text: str, zone: str) -> Window:
    from datetime import date, datetime, timedelta
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from chassis.clock import utc_now

    try:
        tz = ZoneInfo(zone)
        day = date.fromisoformat(text) if text else utc_now().astimezone(tz).date()
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise typer.Exit(
            say("not a day or zone", str(error), "--date 2026-12-01 --zone Asia/Shanghai", USAGE)
        ) from None
    midnight = datetime(day.year, day.month, day.day, tzinfo=tz)
    following = day + timedelta(days=1)
    return midnight, datetime(following.year, following.month, following.day, tzinfo=tz)


def _figures(line: Line) -> dict[str, Any]:
    return {
        "department": line.department,
        "cases": line.cases,
        "coverage": _share(line.coverage, "no cases"),
        "precision": _share(line.precision, "no blind sample judged"),
        "labelled": _share(line.labelled, "nothing labelled"),
        "misrouted": _share(line.misrouted, "nothing sent there"),
        "triage": _share(line.triage, "no cases")
        if line.triage
        else {"value": None, "missing": "counted over all"},
    }


@model_app.command("watch")
def watch(
    window: Annotated[
        str, typer.Option("--window", metavar="day|hour", help="What is compared with the weeks before.")
    ] = "day",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Look for drift; where the classifier is wrong too often, it decides no more for that department.

    It stays so until `hotline model allow`; meanwhile its alarm goes on ringing. Under `hotline up` it is
    done each hour without anybody, and refused here while it is.
    """
    from services.router import lessons

    length = lessons.WINDOWS.get(window)
    if length is None:
        raise typer.Exit(say("no such window", window, "--window day, or --window hour", USAGE))
    act = act_of("watch", f"alarm of the last {window}")
    found, restricted = carried_out(_supervised(folder, length, act))
    if json:
        show.as_json(
            {
                "at": act.at.isoformat(),
                "window": window,
                "samples": [_sample(one) for one in found],
                "restricted": restricted,
            }
        )
    else:
        _print_gauges(found, restricted)
    raise typer.Exit(PROBLEM if any(one.rings for one in found) else FINE)


async def _supervised(folder: Path, length: timedelta, act: Act) -> tuple[list[Gauge], list[str]]:
    from services.router import lessons

    async with (
        _alone(folder, "watch", "looking for drift"),
        _router(folder) as database,
        database.transaction() as tx,
    ):
        return await lessons.supervise(tx, length, act)


def _sample(gauge: Gauge) -> dict[str, Any]:
    labels = {"language": gauge.language, "department": gauge.department}
    return {
        "name": f"router_{gauge.alarm}",
        "labels": {name: value for name, value in labels.items() if value is not None},
        "value": _rounded(gauge.figure),
        "missing": gauge.missing,
        "limit": gauge.limit,
        "alarm": int(gauge.rings),
    }


def _print_gauges(found: Sequence[Gauge], restricted: Sequence[str]) -> None:
    rows = [
        {
            "alarm": ("! " if one.rings else "") + one.alarm,
            "of": one.language or one.department,
            "figure": f"— {one.missing}" if one.figure is None else f"{one.figure:.3f}",
            "limit": one.limit,
        }
        for one in found
    ]
    show.table("drift · the last window against the weeks before", rows)
    show.lines(
        [
            f"the classifier decides no more for {name}: hotline model allow {name} when that is mended"
            for name in restricted
        ]
    )


@model_app.command("allow")
def allow(
    department: Annotated[str, typer.Argument(help="For which the classifier may decide again.")],
    reason: Reason,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Let the classifier decide for a department again; what it did before no longer counts against it."""
    from services.router import lessons

    in_router(folder, lambda tx: lessons.allow(tx, department, act_of(by, reason)))
    if json:
        show.as_json({"department": department, "allowed": True})
    else:
        show.lines([f"the classifier may decide for {department} again"])
    raise typer.Exit(FINE)
