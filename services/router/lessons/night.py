"""One night: the watched model decides from now on if it is better; then the next one is trained and watched.

While a model is watched no other is trained: it would never be watched for long enough. Training needs
scikit-learn (`pip install hotline[train]`), judging does not.
"""

import asyncio
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, TypeGuard, get_args

from chassis.postgres import Database, Tx
from chassis.vault import Vault
from services.router import lessons
from services.router.classifier import training
from services.router.classifier.model import Model, save_model
from services.router.classifier.text import Language
from services.router.learning import Lesson, Promotion, Score, digest_of, judge, promotion, score, split
from services.router.lessons import Act, Activation, Refused, Role
from services.router.lessons.runs import Clock
from services.router.reading import NOBODY, load_shipped

LANGUAGES: tuple[Language, ...] = get_args(Language)
ROLES: tuple[Role, ...] = get_args(Role)
LISTED = 20
"""So many stored models are asked whether they have learnt from the same lessons."""
_TRIAGE = "hotline triage list: each decision there is a lesson"
_TRAIN = "pip install hotline[train]"
_BUG = "tell the router's developers: docs/runbook/LessonsStopped.md"
_MEANWHILE = "somebody has activated another model meanwhile"

Progress: TypeAlias = Callable[[str], None]
InForce: TypeAlias = Mapping[Role, Activation | None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that was trained and stored, from how many lessons, and how it did on those held out.

    `watched`: from now on; a model that nobody has activated is stored and does nothing.
    """

    model: Model
    learnt_from: int
    held_out: Score
    watched: bool = False


@dataclass(frozen=True, slots=True)
class NotTrained:
    """Why no model was trained, and the next step; `failed`: it should have been.

    `installed`: False where training is not, as an installation may want it.
    """

    why: str
    next_step: str
    failed: bool = False
    installed: bool = True


@dataclass(frozen=True, slots=True)
class Night:
    """What became of the watched model of a language (its hash; None: none was), and of the next one."""

    language: Language
    watched: str | None = None
    judged: Promotion | None = None
    trained: Trained | NotTrained | None = None

    @property
    def failed(self) -> bool:
        """Whether no model was trained that should have been, though training is installed."""
        return isinstance(self.trained, NotTrained) and self.trained.failed and self.trained.installed


async def nights(
    database: Database, vault: Vault, shipped: Path, clock: Clock, progress: Progress = lambda _: None
) -> list[Night]:
    """Do the nightly job for each language; `shipped` is the folder of the installation's own models."""
    found = await lessons.labelled(database, vault, lambda count: progress(f"{count} lessons read"))
    return [await _night(database, one, found.get(one, ()), shipped, clock, progress) for one in LANGUAGES]


async def _night(
    database: Database,
    language: Language,
    found: Sequence[Lesson],
    shipped: Path,
    clock: Clock,
    progress: Progress,
) -> Night:
    async with database.session() as tx:
        given, now = await _in_force(tx, language), await clock(tx)
    watched, judged = given["shadow"], None
    if _is_there(watched):
        judged = await _judged(database, watched, given["active"], found, shipped, now, progress)
        judged, given = await _concluded(database, given, watched, judged, clock)
        if judged.verdict == "watch":
            return Night(language, watched.sha256, judged)
    trained = await _next(database, language, given, found, clock, progress)
    return Night(language, watched.sha256 if watched and judged else None, judged, trained)


async def _in_force(tx: Tx, language: str) -> InForce:
    given = await lessons.activations(tx)
    return {role: given.get((role, language)) for role in ROLES}


def _is_there(given: Activation | None) -> TypeGuard[Activation]:
    return given is not None and given.sha256 != NOBODY


# ------------------------------------------------------------ the model that is watched


async def _judged(
    database: Database,
    watched: Activation,
    active: Activation | None,
    found: Sequence[Lesson],
    shipped: Path,
    now: datetime,
    progress: Progress,
) -> Promotion:
    held_out = split(found)[1]
    seen = len(await lessons.said_by_shadow(database, watched))
    async with database.session() as tx:
        try:
            shadow = await lessons.loaded(tx, watched.sha256)
        except Refused as refused:
            return Promotion("discard", (refused.why,))
        deciding = await _deciding(tx, active, watched.language, shipped, progress)
    return promotion(
        now - watched.activated_at,
        seen,
        await _scored(shadow, held_out),
        await _scored(deciding, held_out) if deciding else None,
        switched_off=active is not None and active.sha256 == NOBODY,
    )


async def _scored(model: Model, held_out: Sequence[Lesson]) -> Score:
    """Judge beside the event loop, which must go on answering: thousands of lessons take seconds."""
    return score(await asyncio.to_thread(judge, model, held_out))


async def _deciding(
    tx: Tx, active: Activation | None, language: str, shipped: Path, progress: Progress
) -> Model | None:
    """The model that decides: the one activated, else the installation's; None: none, or it is unusable."""
    if active is None:
        own = load_shipped(shipped)
        return None if isinstance(own, str) else own.get(language)
    try:
        return None if active.sha256 == NOBODY else await lessons.loaded(tx, active.sha256)
    except Refused as refused:
        progress(f"{language}: the active model may not be used: {refused.why}")
        return None


async def _concluded(
    database: Database,
    given: InForce,
    watched: Activation,
    judged: Promotion,
    clock: Clock,
) -> tuple[Promotion, InForce]:
    """Do what the judgement says, unless a person has acted meanwhile; tells what is in force then."""
    if judged.verdict == "watch":
        return judged, given
    language = watched.language
    async with database.transaction() as tx:
        act = await _act(tx, language, given, "; ".join(judged.why)[:500], clock)
        if act is None:
            return Promotion("watch", (_MEANWHILE,)), given
        if judged.verdict == "promote":
            model = await lessons.model_named(tx, watched.sha256)
            await lessons.activate_model(tx, model, "active", act)
        else:
            await lessons.switch_off(tx, language, act, "shadow")
        return judged, await _in_force(tx, language)


async def _act(tx: Tx, language: str, given: InForce, reason: str, clock: Clock) -> Act | None:
    """Hold everybody still, and act now; None: what is in force is not what was given any more."""
    await lessons.hold_still(tx)
    if await _in_force(tx, language) != given:
        return None
    return Act("retrain", reason, await clock(tx))


# ------------------------------------------------------------ the next one


async def _next(
    database: Database,
    language: Language,
    given: InForce,
    found: Sequence[Lesson],
    clock: Clock,
    progress: Progress,
) -> Trained | NotTrained:
    """Train the next model and have it watched, unless a person has activated another one meanwhile.

    The same lessons would give the same model again.
    """
    digest = digest_of(split(found)[0])
    async with database.session() as tx:
        stored, now = await lessons.stored_models(tx, LISTED), await clock(tx)
    if any(not isinstance(card, str) and digest in card.data for _, card in stored):
        return NotTrained("no lesson is new since the last training", _TRIAGE)
    trained = await train(database, language, found, now, progress=progress)
    if isinstance(trained, NotTrained):
        return trained
    async with database.transaction() as tx:
        act = await _act(tx, language, given, "trained on new lessons", clock)
        if act is not None:
            model = await lessons.model_named(tx, trained.model.sha256)
            await lessons.activate_model(tx, model, "shadow", act)
    return replace(trained, watched=act is not None)


async def train(
    database: Database,
    language: Language,
    found: Sequence[Lesson],
    now: datetime,
    *,
    least: int = training.LEAST_LABELS,
    out: Path | None = None,
    progress: Progress = lambda _: None,
) -> Trained | NotTrained:
    """Learn from lessons, judge on those held out, and store the model; its files are kept in `out`, too."""
    learn, held_out = split(found)
    if len(learn) < least:
        return NotTrained(f"{len(learn):,} lessons to learn from, {least:,} are demanded", _TRIAGE)
    progress(f"{language}: learning from {len(learn):,} lessons, {len(held_out):,} held out")
    trained = await asyncio.to_thread(_fitted, language, learn, now)
    if isinstance(trained, NotTrained):
        return trained
    try:
        with TemporaryDirectory() as here:
            place = out / language if out else Path(here)
            save_model(trained.files, place)
            async with database.transaction() as tx:
                model, _ = await lessons.store_model(tx, place, now)
    except Refused as refused:
        return NotTrained(refused.why, _TRIAGE, failed=True)
    return Trained(model, len(learn), await _scored(model, held_out))


def _fitted(language: Language, learn: Sequence[Lesson], now: datetime) -> training.Trained | NotTrained:
    """Fit a model, or say why not: whatever ails one language, the other has its night."""
    try:
        return _fit(language, learn, now)
    except training.TooFewLabels as error:
        return NotTrained(str(error), _TRIAGE)
    except ModuleNotFoundError as error:
        return NotTrained(str(error), _TRAIN, failed=True, installed=False)
    except Refused as refused:
        return NotTrained(refused.why, _TRIAGE, failed=True)
    except Exception as error:
        # What a library says may quote the texts: only what it was, and where.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"
        return NotTrained(f"training ended with {where}", _BUG, failed=True)


def _fit(language: Language, learn: Sequence[Lesson], now: datetime) -> training.Trained:
    newest = max(one.at for one in learn)
    about = training.About(
        version=f"{language}-{now:%Y%m%d.%H%M%S}",
        what="Trained on what people of this hotline have corrected.",
        data=f"{len(learn)} lessons up to {newest:%Y-%m-%d}, digest {digest_of(learn)}",
        created_at=now,
    )
    texts, labels = [one.text for one in learn], [one.department for one in learn]
    return training.train(texts, labels, language, about, [one.group for one in learn])
