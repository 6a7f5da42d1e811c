"""Lessons in the database: labels, what is in force on whose word, where the classifier must not decide.

Whatever changes what is in force is stored together with the record that says so; the running router sends
the record and takes the change up within a second.

`night` judges and trains; `python -m services.router.lessons` does so every night, and looks for drift every
hour.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import UUID

from chassis import outbox
from chassis.message import Writer, time_header
from chassis.postgres import Database, Tx
from chassis.roots import new_batch_id, new_id
from chassis.vault import Vault
from schemas.envelope import BY_BODY, Body
from schemas.router import ModelActivated, ModelRestricted, RulesetActivated
from services.router import store
from services.router.classifier.model import CARD, BadModel, Card, Model, load_model
from services.router.classifier.text import Language, language_of
from services.router.decision import Desk
from services.router.domain import Routing
from services.router.learning import TRAILING, Both, Decided, Gauge, Lesson, gauges, windows_before
from services.router.reading import NOBODY, Reading, pack, stored_rules, unpack
from services.router.rules import BadRules, Ruleset, parse_rules

Role: TypeAlias = Literal["active", "shadow"]
Window: TypeAlias = tuple[datetime, datetime]
PAGE = 500
SHORTEST_HASH = 6
"""So many digits of a hash may stand for it where they name one thing only."""
_writer = Writer("router")


class Refused(Exception):
    """What was asked may not be done: `what` it was, `why` not, and the `next_step`."""

    def __init__(self, what: str, why: str, next_step: str) -> None:
        super().__init__(why)
        self.what, self.why, self.next_step = what, why, next_step


@dataclass(frozen=True, slots=True)
class Act:
    """Who puts something in force, why, and when."""

    by: str
    reason: str
    at: datetime


async def _say(tx: Tx, body: Body, act: Act) -> None:
    key = str(getattr(body, BY_BODY[type(body)].key))
    said = _writer.write(body, uid=new_id(), at=time_header(act.at), correlation=key)
    await outbox.store(tx, new_batch_id(), [said], [None])


# ------------------------------------------------------------ rules


async def activate_rules(tx: Tx, document: str, act: Act) -> tuple[Ruleset, bool]:
    """Put rules in force, as they are written; gives them, and False when they are in force already.

    Refused when they have a fault, or when their version stands for other rules.
    """
    try:
        ruleset = parse_rules(document)
    except BadRules as error:
        raise Refused("rules not activated", str(error), "hotline rules check FILE") from None
    await tx.execute("lock table rulesets in share row exclusive mode")
    await _refuse_reused(tx, ruleset)
    newest = await tx.fetchval("select sha256 from rulesets order by activation_id desc limit 1")
    # What was damaged may be activated again.
    if newest == ruleset.sha256 and isinstance(await stored_rules(tx, newest), Ruleset):
        return ruleset, False
    await tx.execute(
        "insert into rulesets (version, sha256, document, by, reason, activated_at)"
        " values ($1, $2, $3, $4, $5, $6)",
        ruleset.ruleset,
        ruleset.sha256,
        document,
        act.by,
        act.reason,
        act.at,
    )
    body = RulesetActivated(version=ruleset.ruleset, sha256=ruleset.sha256, by=act.by, reason=act.reason)
    await _say(tx, body, act)
    return ruleset, True


async def _refuse_reused(tx: Tx, ruleset: Ruleset) -> None:
    other = await tx.fetchval(
        "select sha256 from rulesets where version = $1 and sha256 <> $2 limit 1",
        ruleset.ruleset,
        ruleset.sha256,
    )
    if other is not None:
        raise Refused(
            "rules not activated",
            f"version {ruleset.ruleset} stands for other rules already (sha256 {other[:12]}…)",
            "raise `ruleset` in the file: decisions name their rules by it",
        )


@dataclass(frozen=True, slots=True)
class ActivatedRules:
    """Rules that were put in force, on whose word and why, and what they are now.

    `state`: the newest that load are `in force`; what is newer and does not load cannot be.
    """

    version: str
    sha256: str
    by: str
    reason: str
    activated_at: datetime
    state: Literal["in force", "cannot be loaded", "before"]


async def activated_rules(tx: Tx, most: int) -> list[ActivatedRules]:
    """List what was put in force, the last first."""
    rows = await tx.fetch(
        "select version, sha256, by, reason, activated_at from rulesets order by activation_id desc limit $1",
        most,
    )
    found = list[ActivatedRules]()
    state: Literal["in force", "cannot be loaded", "before"] = "cannot be loaded"
    for row in rows:
        if state == "in force":
            state = "before"
        elif state == "cannot be loaded" and isinstance(await stored_rules(tx, row["sha256"]), Ruleset):
            state = "in force"
        found.append(ActivatedRules(**row, state=state))
    return found


async def rules_named(tx: Tx, asked: str) -> str:
    """Find rules that were in force once, by version or hash, as they were written.

    Refused when there are none, or several.
    """
    rows = await tx.fetch(
        "select distinct on (sha256) sha256, document from rulesets where version = $1"
        " or (length($1) >= $2 and starts_with(sha256, $1)) order by sha256, activation_id desc",
        asked,
        SHORTEST_HASH,
    )
    document: str = _one(rows, f"ruleset {asked}", "hotline rules activate FILE")["document"]
    return document


def _one(rows: Sequence[Any], what: str, next_step: str) -> Any:
    if not rows:
        raise Refused(f"no such {what.split(maxsplit=1)[0]}", f"here is no {what}", next_step)
    if len(rows) > 1:
        hashes = ", ".join(row["sha256"][:12] for row in rows)
        raise Refused("several have this name", f"{what} may be {hashes}", "name one by its sha256")
    return rows[0]


# ------------------------------------------------------------ models


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A stored model, without its arrays."""

    version: str
    sha256: str
    language: str
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class Activation:
    """Which model has a role for a language, since when, on whose word; hash `none`: no model has it."""

    role: Role
    language: str
    sha256: str
    by: str
    reason: str
    activated_at: datetime


def folders_in(folder: Path) -> list[Path]:
    """List the models of a folder: itself, or one folder per language; Refused when there is none."""
    found = (
        [folder] if (folder / CARD).is_file() else sorted(card.parent for card in folder.glob(f"*/{CARD}"))
    )
    if not found:
        raise Refused("no model", f"{folder}: no {CARD} in it, nor in a folder below", "hotline model train")
    return found


def checked(folder: Path) -> Model:
    """Load a model that somebody wants to use; Refused when it is damaged or not good enough."""
    try:
        return load_model(folder)
    except BadModel as error:
        raise Refused("model refused", str(error), "hotline model list") from None


async def store_model(tx: Tx, folder: Path, now: datetime) -> tuple[Model, bool]:
    """Keep a model whole; False when it is kept already. Refused when it may not be used."""
    model = checked(folder)
    content = pack(folder)
    _usable(content, model.sha256)
    card = model.card
    return model, await store.keep_model(tx, model.sha256, card.version, card.language, content, now)


def _usable(content: bytes | None, sha256: str) -> Model:
    try:
        return unpack(content, sha256)
    except BadModel as error:
        raise Refused("model refused", str(error), "hotline model list") from None


async def stored_models(tx: Tx, most: int) -> list[tuple[StoredModel, Card | str]]:
    """List what is stored, the newest first, each with its card, or why it may not be used."""
    rows = await tx.fetch(
        "select version, sha256, language, stored_at from models order by stored_at desc, sha256 limit $1",
        most,
    )
    found = [StoredModel(**row) for row in rows]
    return [(one, await _card(tx, one.sha256)) for one in found]


async def _card(tx: Tx, sha256: str) -> Card | str:
    try:
        return unpack(await store.model(tx, sha256), sha256).card
    except BadModel as error:
        return str(error)


async def model_named(tx: Tx, asked: str, language: str | None = None) -> StoredModel:
    """Find a stored model by version or hash; Refused when there is none, or several."""
    rows = await tx.fetch(
        "select version, sha256, language, stored_at from models where ($3::text is null or language = $3)"
        " and (version = $1 or (length($1) >= $2 and starts_with(sha256, $1)))",
        asked,
        SHORTEST_HASH,
        language,
    )
    what = f"model {asked}" + (f" for {language}" if language else "")
    return StoredModel(**_one(rows, what, "hotline model list"))


async def loaded(tx: Tx, sha256: str) -> Model:
    """Load a stored model; Refused when it may not be used."""
    return _usable(await store.model(tx, sha256), sha256)


async def activations(tx: Tx) -> dict[tuple[str, str], Activation]:
    """Read who has which role for which language; what was never activated is missing."""
    rows = await tx.fetch(
        "select distinct on (role, language) role, language, sha256, by, reason, activated_at"
        " from model_activations order by role, language, activation_id desc"
    )
    return {(row["role"], row["language"]): Activation(**row) for row in rows}


async def hold_still(tx: Tx) -> None:
    """Let nobody else activate a model until this transaction ends; the router goes on reading."""
    await tx.execute("lock table model_activations in share row exclusive mode")


async def activate_model(tx: Tx, model: StoredModel, role: Role, act: Act) -> bool:
    """Give a stored model a role; False when it has it. Who decides is not watched as well.

    Refused when the model may not be used.
    """
    await loaded(tx, model.sha256)
    changed = await _give(tx, role, model.language, model.version, model.sha256, act)
    shadow = (await activations(tx)).get(("shadow", model.language))
    if role == "active" and shadow is not None and shadow.sha256 == model.sha256:
        await _give(tx, "shadow", model.language, NOBODY, NOBODY, act)
    return changed


async def switch_off(tx: Tx, language: str, act: Act, role: Role = "active") -> bool:
    """Let no model have a role for a language; False when none has it."""
    return await _give(tx, role, language, NOBODY, NOBODY, act)


async def _give(tx: Tx, role: Role, language: str, version: str, sha256: str, act: Act) -> bool:
    await hold_still(tx)
    now_has = (await activations(tx)).get((role, language))
    if now_has is not None and now_has.sha256 == sha256:
        return False
    await tx.execute(
        "insert into model_activations (role, language, sha256, by, reason, activated_at)"
        " values ($1, $2, $3, $4, $5, $6)",
        role,
        language,
        sha256,
        act.by,
        act.reason,
        act.at,
    )
    body = ModelActivated(
        role=role, language=language, version=version, sha256=sha256, by=act.by, reason=act.reason
    )
    await _say(tx, body, act)
    return True


async def before(tx: Tx, language: str) -> str:
    """Name the hash of what decided before what decides now; Refused when nothing did.

    Before the first activation that is the installation's own model, if it has said anything.
    """
    found: str | None = await tx.fetchval(
        "with history as (select activation_id, sha256, activated_at from model_activations"
        " where role = 'active' and language = $1),"
        " now as (select sha256 from history order by activation_id desc limit 1),"
        " own as (select sha256 from first_decisions join models on sha256 = model_sha256"
        " and models.language = $1 where at < (select min(activated_at) from history)"
        " order by at desc limit 1),"
        " every as (select activation_id, sha256 from history union all select 0, sha256 from own)"
        " select sha256 from every where sha256 <> (select sha256 from now)"
        " order by activation_id desc limit 1",
        language,
    )
    if found is None:
        raise Refused(
            "nothing to go back to",
            f"for {language} no other model has decided before",
            "hotline model store FOLDER of the installation's models, then hotline model activate",
        )
    return found


# ------------------------------------------------------------ labels


async def labelled(
    database: Database, vault: Vault, progress: Callable[[int], None] = lambda _: None
) -> dict[Language, list[Lesson]]:
    """Read every lesson, by the language of its words; erased customers teach nothing any more."""
    # `text_of` opens the words exactly as the router did when it decided.
    words, found, seen = Reading(vault, Desk(), {}).text_of, dict[Language, list[Lesson]](), 0
    async for rows in _pages(
        database,
        "select case_id, label, label_source, label_at, document from routings"
        " join entities on key = case_id::text where label is not null and case_id > $1"
        " order by case_id limit $2",
    ):
        cases = [Routing.parse(row["document"]).case for row in rows]
        await vault.ready([case.customer.customer_ref for case in cases])
        for row, case in zip(rows, cases, strict=True):
            text = words(case)
            language = language_of(text) if text else None
            if text and language:
                lesson = Lesson(case.case_id, text, row["label"], row["label_source"], row["label_at"])
                found.setdefault(language, []).append(lesson)
        progress(seen := seen + len(rows))
    return found


async def _pages(database: Database, sql: str, *args: object) -> AsyncIterator[Sequence[Any]]:
    last = UUID(int=0)
    while True:
        async with database.session() as tx:
            rows = await tx.fetch(sql, last, PAGE, *args)
        if rows:
            yield rows
            last = rows[-1]["case_id"]
        if len(rows) < PAGE:
            return


async def said_by_shadow(database: Database, watched: Activation) -> list[Both]:
    """Read what a watched model has said beside the deciding one, as each case's last decision has it."""
    found = []
    async for rows in _pages(
        database,
        "select case_id, label, document from routings join entities on key = case_id::text"
        " where case_id > $1 and updated_at >= $3 and strpos(document, $4) > 0 order by case_id limit $2",
        watched.activated_at,
        watched.sha256,
    ):
        for row in rows:
            why = Routing.parse(row["document"]).explanation
            shadow = why.shadow if why else None
            if why is not None and shadow is not None and shadow.sha256 == watched.sha256 and shadow.top:
                active = why.model.top[0].department if why.model and why.model.top else None
                found.append(Both(active, shadow.top[0].department, row["label"]))
    return found


# ------------------------------------------------------------ what was decided, and drift


async def decided(tx: Tx, windows: Sequence[Window]) -> list[Decided]:
    """Count first decisions in these windows (from, up to but not with), and what became of the cases."""
    rows = await tx.fetch(
        "select f.language, f.department, f.stage, f.suggested, f.audit, f.model_sha256,"
        " r.department as held_by, r.label, coalesce(f.at >= a.at, true) as fresh, count(*)::int as cases,"
        " coalesce(sum(f.known_share), 0) as known, count(f.known_share)::int as knowing"
        " from unnest($1::timestamptz[], $2::timestamptz[]) as w(since, until)"
        " join first_decisions f on f.at >= w.since and f.at < w.until join routings r using (case_id)"
        " left join (select department, max(at) as at from restriction_acts where allowed"
        " group by department) a on a.department = f.suggested"
        " group by 1, 2, 3, 4, 5, 6, 7, 8, 9",
        [since for since, _ in windows],
        [until for _, until in windows],
    )
    return [Decided(**row) for row in rows]


async def watch(tx: Tx, window: timedelta, now: datetime) -> list[Gauge]:
    """Compare the last hour or day with the weeks before; reads only."""
    since = now - window
    return gauges(
        await decided(tx, [(since, now)]),
        await decided(tx, windows_before(since, now)),
        await decided(tx, [(now - TRAILING, now)]),
    )


WINDOWS: Mapping[str, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
"""What is compared with the weeks before; corrections come too late to show in an hour."""


async def supervise(tx: Tx, window: timedelta, act: Act) -> tuple[list[Gauge], list[str]]:
    """Watch, and let the classifier decide no more for whichever department it is wrong too often.

    Gives everything that was watched, and the departments that are taken from it now.
    """
    found = await watch(tx, window, act.at)
    taken = {str(one.department) for one in found if one.restricts and await restrict(tx, one, act)}
    return found, sorted(taken)


async def restrict(tx: Tx, gauge: Gauge, act: Act) -> bool:
    """Let the classifier decide nothing more for a department; False when it may not already."""
    assert gauge.department is not None
    done = await tx.execute(
        "insert into restrictions (department, alarm, figure, by, since) values ($1, $2, $3, $4, $5)"
        " on conflict do nothing",
        gauge.department,
        gauge.alarm,
        gauge.figure,
        act.by,
        act.at,
    )
    if done.endswith(" 0"):
        return False
    await _note(tx, gauge.department, gauge.alarm, gauge.figure, act, allowed=False)
    return True


async def allow(tx: Tx, department: str, act: Act) -> None:
    """Let the classifier decide again for a department; what was before is not held against it any more.

    Refused when it may decide.
    """
    row = await tx.fetchrow(
        "delete from restrictions where department = $1 returning alarm, figure", department
    )
    if row is None:
        raise Refused("nothing to allow", f"the classifier may decide for {department}", "hotline model list")
    await _note(tx, department, row["alarm"], row["figure"], act, allowed=True)


async def _note(
    tx: Tx, department: str, alarm: str, figure: float | None, act: Act, *, allowed: bool
) -> None:
    await tx.execute(
        "insert into restriction_acts (department, allowed, alarm, figure, by, reason, at)"
        " values ($1, $2, $3, $4, $5, $6, $7)",
        department,
        allowed,
        alarm,
        figure,
        act.by,
        act.reason,
        act.at,
    )
    body = ModelRestricted(department=department, allowed=allowed, alarm=alarm, figure=figure, by=act.by)
    await _say(tx, body, act)


async def restrictions(tx: Tx) -> list[dict[str, Any]]:
    """List the departments for which the classifier must not decide, and why."""
    rows = await tx.fetch("select department, alarm, figure, by, since from restrictions order by department")
    return [dict(row) for row in rows]
