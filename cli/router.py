"""The verb that takes recorded routing decisions again.

Exit codes: 0 every decision is the same, 1 some differ or cannot be taken again, 2 usage, 3 cannot reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import show
from cli.verbs import FINE, PROBLEM, UP, USAGE, Folder, Json, run, say

if TYPE_CHECKING:
    from chassis.postgres import Database
    from chassis.vault import Vault
    from cli.world import World
    from schemas.router import Explanation
    from services.router.classifier.model import Model
    from services.router.decision import Scored
    from services.router.departments import Departments
    from services.router.reading import Reading
    from services.router.replay import Difference, Inputs, Recorded
    from services.router.rules import Ruleset

router_app = typer.Typer(help="What the router decided, and would decide.", no_args_is_help=True)
PAGE, PROGRESS_EVERY = 500, 5_000


@router_app.callback()
def _several() -> None:
    """Keep `replay` a verb: an app with a single command has none."""


@router_app.command("replay")
def replay(
    since: Annotated[str, typer.Option("--from", help="ISO time with zone: the first decisions to take.")],
    until: Annotated[str, typer.Option("--to", help="ISO time with zone: those before it; now.")] = "",
    ruleset: Annotated[
        str, typer.Option(metavar="FILE|SHA", help="Other rules than those that decided.")
    ] = "",
    model: Annotated[
        str,
        typer.Option(metavar="FOLDER|SHA", help="Another model, for its language, than that which scored."),
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Take at most so many decisions; 0: all.")] = 0,
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Take recorded decisions again, with what they were taken with or with other rules or another model."""
    from chassis.clock import utc_now
    from cli.world import World
    from services.router.classifier.model import BadModel
    from services.router.rules.sheet import BadSheet

    span = _moment(since, "--from"), _moment(until, "--to") if until else utc_now()
    try:
        found: Tally = run(_replayed(World(folder), span, ruleset, model, limit))
    except (BadSheet, BadModel) as error:
        next_step = "hotline rules check FILE, hotline model list"
        raise typer.Exit(say("these may not be used", str(error), next_step, USAGE)) from None
    if json:
        show.as_json(found.as_json())
    else:
        show.out.print("\n".join(found.lines()), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(FINE if found.fine else PROBLEM)


def _moment(text: str, option: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        why = f"{option} {text!r} is no time with a zone"
        raise typer.Exit(say("not understood", why, "write it like 2026-11-24T09:00:00+08:00", USAGE))
    return at.astimezone(UTC)


# ------------------------------------------------------------ what came of it


@dataclass(slots=True)
class Tally:
    """How many decisions were taken again, which came out otherwise, and which could not be taken again.

    `kept_since`: when what the router keeps begins, where earlier decisions were asked for; None elsewhere.
    """

    kept_since: datetime | None = None
    same: int = 0
    differences: list[Difference] = field(default_factory=list)
    gaps: Counter[str] = field(default_factory=Counter)

    @property
    def taken(self) -> int:
        """How many decisions were looked at."""
        return self.same + len(self.differences) + self.gaps.total()

    @property
    def fine(self) -> bool:
        """Whether nothing differs, and nothing is missing that should be there."""
        from services.router.replay import EXPECTED

        return not self.differences and set(self.gaps) <= EXPECTED

    def as_json(self) -> dict[str, Any]:
        """The result for a script."""
        return {
            "kept_since": self.kept_since.isoformat() if self.kept_since else None,
            "decisions": self.taken,
            "same": self.same,
            "different": len(self.differences),
            "not_replayable": dict(self.gaps),
            "differences": [
                {
                    "case_no": one.case_no,
                    "at": one.at.isoformat(),
                    "was": one.was,
                    "would_be": one.would_be,
                    "differs_in": list(one.parts),
                }
                for one in self.differences
            ],
        }

    def lines(self) -> list[str]:
        """The result for people."""
        listed = [
            f"{one.case_no}  {one.at:%Y-%m-%d %H:%M:%S}  {one.was} → {one.would_be}; {', '.join(one.parts)}"
            for one in self.differences
        ]
        gaps = [
            f"{count} not replayable: {gap.replace('_', ' ')}" for gap, count in sorted(self.gaps.items())
        ]
        begin = [
            f"the router keeps what it said since {self.kept_since:%Y-%m-%d %H:%M:%S} UTC; nothing earlier"
        ]
        return [
            *listed,
            *(begin if self.kept_since else []),
            f"{self.taken} decisions: {self.same} the same, {len(self.differences)} different",
            *gaps,
        ]


# ------------------------------------------------------------ the work


async def _replayed(
    world: World, span: tuple[datetime, datetime], ruleset: str, model: str, limit: int
) -> Tally:
    from cli.world import connected
    from services.router.decision import Desk
    from services.router.reading import Reading

    place = world.place()
    vault = await world.vault(place)
    try:
        async with connected(place, "router") as database:
            versions = await Versions.of(database, ruleset, model)
            again = Again(vault, Reading(vault, Desk(), {}), versions)
            again.tally.kept_since = await _kept_since(database, span[0])
            async for page in _decisions(database, span, limit):
                before = again.tally.taken // PROGRESS_EVERY
                await again.take(page)
                if again.tally.taken // PROGRESS_EVERY > before:
                    show.progress(
                        f"{again.tally.taken:,} decisions, {len(again.tally.differences)} different"
                    )
            return again.tally
    finally:
        await vault.close()


async def _kept_since(database: Database, since: datetime) -> datetime | None:
    """Tell when what is kept begins, if that is later than what is asked for."""
    from chassis.roots import batch_id_at

    epoch = datetime.fromtimestamp(0, UTC)
    async with database.session() as tx:
        first = await tx.fetchval("select min(batch) from outbox")
    if first is None or first < batch_id_at(since):
        return None
    a_millisecond = batch_id_at(epoch + timedelta(milliseconds=1))
    return epoch + timedelta(milliseconds=first // a_millisecond)


async def _decisions(
    database: Database, span: tuple[datetime, datetime], limit: int
) -> AsyncIterator[Sequence[Recorded]]:
    """Read what was decided in a span of time, in order, from what the router keeps of what it said."""
    from chassis.roots import batch_id_at
    from schemas.router import CASES

    since, until = span
    after, left = (batch_id_at(since - timedelta(seconds=1)), -1), limit or None
    before = batch_id_at(until + timedelta(seconds=1))
    while left is None or left > 0:
        async with database.session() as tx:
            rows = await tx.fetch(
                "select batch, ordinal, headers, value from outbox"
                " where (batch, ordinal) > ($1, $2) and batch < $3 and topic = $4"
                " order by batch, ordinal limit $5",
                *after,
                before,
                CASES,
                PAGE,
            )
        if not rows:
            return
        after = rows[-1]["batch"], rows[-1]["ordinal"]
        read = [one for row in rows if (one := _recorded(row)) is not None and since <= one.at < until]
        yield read if left is None else read[:left]
        left = None if left is None else left - len(read)


def _recorded(row: Any) -> Recorded | None:
    from uuid import UUID

    from chassis.outbox import unpack
    from schemas.envelope import BY_BODY
    from schemas.router import CaseRouted
    from services.router.replay import Recorded

    headers = {name: value.decode() for name, value in unpack(row["headers"])}
    if headers["ce_type"] != BY_BODY[CaseRouted].wire:
        return None
    try:
        cause = UUID(headers["ce_causationid"])
    except ValueError:
        cause = None
    return Recorded(CaseRouted.parse(row["value"]), datetime.fromisoformat(headers["ce_time"]), cause)


class Versions:
    """The rules, departments and models that decided, by their hashes; or those that shall decide instead."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rulesets: dict[str, Ruleset | None] = {}
        self._departments: dict[str, Departments | None] = {}
        self._models: dict[str, Model | None] = {}
        self.ruleset: Ruleset | None = None
        self.models: Mapping[str, Model] = {}

    @classmethod
    async def of(cls, database: Database, ruleset: str, model: str) -> Versions:
        """Have at hand what was asked for, if anything; BadRules, BadModel."""
        versions = cls(database)
        if ruleset:
            versions.ruleset = await versions._asked_rules(ruleset)
        if model:
            versions.models = {one.card.language: one for one in await versions._asked_models(model)}
        return versions

    @property
    def as_recorded(self) -> bool:
        """Whether nothing else than what decided was asked for."""
        return self.ruleset is None and not self.models

    async def _asked_rules(self, asked: str) -> Ruleset:
        from services.router.rules import BadRules, Fault, load_rules

        if Path(asked).is_file():
            return load_rules(Path(asked))
        kept = "(select sha256 from rulesets union select sha256 from documents where kind = 'rules')"
        found = await self.ruleset_of(await self._whole(kept, asked))
        if found is None:
            raise BadRules(
                asked, [Fault(0, "ruleset", "is neither a file nor the hash of rules in force once")]
            )
        return found

    async def _asked_models(self, asked: str) -> Sequence[Model]:
        from services.router.classifier.model import CARD, BadModel, load_model, load_models

        if (Path(asked) / CARD).is_file():
            return [load_model(Path(asked))]
        if Path(asked).is_dir():
            models = load_models(Path(asked))
            if not models:
                raise BadModel(f"{asked}: holds no model; give the folder of a model or of a bundle")
            return list(models.values())
        found = await self.model_of(await self._whole("(select sha256 from models)", asked))
        if found is None:
            raise BadModel(f"{asked}: is neither a folder nor the hash of a model that is stored")
        return [found]

    async def _whole(self, kept: str, asked: str) -> str:
        """Complete the beginning of a hash; what cannot be completed stays as it is."""
        async with self._database.session() as tx:
            rows = await tx.fetch(f"select sha256 from {kept} k where starts_with(sha256, $1) limit 2", asked)
        return str(rows[0]["sha256"]) if len(rows) == 1 else asked

    async def ruleset_of(self, sha256: str) -> Ruleset | None:
        """Give the rules of this hash; None when they are kept nowhere, or cannot be read any more."""
        from services.router.reading import stored_rules

        if sha256 not in self._rulesets:
            async with self._database.session() as tx:
                found = await stored_rules(tx, sha256)
            self._rulesets[sha256] = None if isinstance(found, str) else found
        return self._rulesets[sha256]

    async def departments_of(self, sha256: str) -> Departments | None:
        """Give the departments of this hash; None when they are kept nowhere, or cannot be read any more."""
        from services.router import store
        from services.router.departments import BadDepartments, parse_departments

        if sha256 not in self._departments:
            async with self._database.session() as tx:
                document = await store.departments(tx, sha256)
            try:
                found = parse_departments(document or "")
            except BadDepartments:
                found = None
            self._departments[sha256] = found if found and found.sha256 == sha256 else None
        return self._departments[sha256]

    async def model_of(self, sha256: str) -> Model | None:
        """Give the model of this hash; None when it is kept nowhere, or cannot be read any more."""
        from services.router import store
        from services.router.classifier.model import BadModel
        from services.router.reading import unpack

        if sha256 not in self._models:
            async with self._database.session() as tx:
                content = await store.model(tx, sha256)
            try:
                self._models[sha256] = unpack(content, sha256)
            except BadModel:
                self._models[sha256] = None
        return self._models[sha256]


class _Gap(Exception):
    """Why a decision cannot be taken again."""


class Again:
    """Takes decisions again, page by page, and counts."""

    def __init__(self, vault: Vault, reading: Reading, versions: Versions) -> None:
        self._vault, self._reading, self._versions = vault, reading, versions
        self.tally = Tally()

    async def take(self, page: Sequence[Recorded]) -> None:
        """Take these decisions again."""
        await self._vault.ready(sorted({one.routed.case.customer.customer_ref for one in page}))
        for recorded in page:
            try:
                found = await self._again(recorded)
            except _Gap as gap:
                self.tally.gaps[str(gap)] += 1
                continue
            if found is None:
                self.tally.same += 1
            else:
                self.tally.differences.append(found)

    async def _again(self, recorded: Recorded) -> Difference | None:
        from chassis.vault import ERASED
        from services.router.classifier.text import NORMALISER
        from services.router.decision import Desk
        from services.router.replay import again, difference, inputs_of

        why = recorded.routed.explanation
        if why is None:
            raise _Gap("no_explanation")
        if why.departments_sha256 is None:
            raise _Gap("departments_unnamed")
        case = recorded.routed.case
        inputs = inputs_of(recorded.routed, why, self._reading.text_of(case))
        if inputs is None:
            gone = self._vault.open(case.customer.customer_ref, case.customer.sealed) == ERASED
            raise _Gap("erased" if gone else "inputs_unknown")
        ruleset = self._versions.ruleset or await self._versions.ruleset_of(why.ruleset_sha256)
        if ruleset is None:
            raise _Gap("ruleset_unknown")
        departments = await self._versions.departments_of(why.departments_sha256)
        if departments is None:
            raise _Gap("departments_unknown")
        desk = Desk(ruleset, departments, normaliser=NORMALISER)
        scored, degraded = await self._scored(inputs, why)
        choice = again(recorded, why, inputs, desk, scored, degraded)
        return difference(recorded, why, choice, same=self._versions.as_recorded)

    async def _scored(self, inputs: Inputs, why: Explanation) -> tuple[Scored | None, str | None]:
        """What the model says of the words, and why none says anything although one should."""
        from services.router.classifier.text import language_of
        from services.router.decision import UNSUPPORTED
        from services.router.reading import scored_by

        language = language_of(inputs.text) if inputs.text is not None else None
        instead = self._versions.models.get(language or "")
        if instead is not None and inputs.text is not None:
            return scored_by(instead, inputs.text), None
        if why.model is None:
            return None, why.degraded
        if why.model.sha256 == UNSUPPORTED.sha256:
            return UNSUPPORTED, why.degraded
        model = await self._versions.model_of(why.model.sha256)
        if model is None or inputs.text is None:
            raise _Gap("model_unknown")
        return scored_by(model, inputs.text), why.degraded
