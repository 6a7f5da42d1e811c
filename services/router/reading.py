"""What decisions need beyond the case: its words, what the models say of them, what is in force."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from chassis.clock import monotonic, utc_now
from chassis.log import get_logger
from chassis.postgres import Tx
from chassis.step import Event
from chassis.vault import ERASED, Vault
from schemas.case import Case, Personal
from schemas.resolver import CaseWithdrawn
from schemas.router import AssignmentRequested
from services.router import store
from services.router.classifier.model import MOST_BYTES, BadModel, Model, load_model, load_models
from services.router.classifier.text import NORMALISER, Language, language_of
from services.router.decision import RULESET_UNAVAILABLE, UNSUPPORTED, Desk, Read, Scored, decide
from services.router.domain import Policy
from services.router.rules import BadRules, Ruleset, parse_rules
from services.router.rules.view import text_of

LOOK_EVERY_S = 1.0
TOO_SLOW_S = 0.05
SHOWN = 5
NOBODY = "none"
"""Stands for a model's hash where somebody has switched the classifier off."""


class Reading:
    """Keeps what is in force, and reads the cases of each batch with it.

    What cannot be loaded changes nothing: what was in force before decides, and `faults` says what and why.
    """

    def __init__(
        self, vault: Vault, desk: Desk, shipped: Mapping[str, Model] | str, folder: Path | None = None
    ) -> None:
        self._vault, self._desk, self._shipped_rules = vault, desk, desk.ruleset
        self._folder = folder
        self._unavailable = shipped if isinstance(shipped, str) else None
        self._shipped = {} if isinstance(shipped, str) else dict(shipped)
        self._active: dict[str, Model] = {}
        self._shadow: dict[str, Model] = {}
        self._off: frozenset[str] = frozenset()
        self._bad_rules: str | None = None
        self._perhaps_not_kept = self._hashes()
        self._looked_at = -LOOK_EVERY_S
        self._log = get_logger(stage="router")
        self.faults: dict[str, str] = {}
        if isinstance(shipped, str):
            self._fault("model", shipped)

    async def look_up(self, tx: Tx, events: Sequence[Event[Any]], policy: Policy) -> Policy:
        """Read what the decisions of a batch need."""
        if monotonic() - self._looked_at >= LOOK_EVERY_S:
            await self.refresh(tx)
        # A withdrawal decides nothing: no words are opened for it, and nothing is scored.
        asked = [event.body for event in events if not isinstance(event.body, CaseWithdrawn)]
        cases = [case for body in asked if (case := getattr(body, "case", None)) is not None]
        ruled = [event.key for event in events if isinstance(event.body, AssignmentRequested)]
        if ruled:
            cases = [*await store.cases_of(tx, ruled), *cases]
        if not cases:
            return replace(policy, desk=self._desk)
        await self._vault.ready([case.customer.customer_ref for case in cases])
        followed = {case.follows for case in cases if case.follows is not None}
        firsts = await store.departments_of(tx, list(followed)) if followed else {}
        read: dict[UUID, Read] = {}
        for case in _forerunners_first({case.case_id: case for case in cases}):
            read[case.case_id] = self._read(case, firsts)
            if case.case_id in followed and case.case_id not in firsts:
                firsts[case.case_id] = self._will_have(case, read[case.case_id])
        return replace(policy, desk=self._desk, read=read)

    def _will_have(self, case: Case, read: Read) -> str:
        """Who gets a case of this very batch: what follows it there must know, as it would a batch later."""
        return decide(case, read, self._desk, utc_now(), cause=case.case_id).department

    def _read(self, case: Case, firsts: Mapping[UUID, str]) -> Read:
        text = self.text_of(case)
        scored, shadow, degraded = None, None, None
        if text is not None:
            began = monotonic()
            language = language_of(text)
            scored = self.score(text, language, self._active)
            if monotonic() - began > TOO_SLOW_S:
                scored, degraded = None, "classifier_slow"
            elif scored is None and self._lacks(language):
                degraded = "classifier_unavailable"
            shadow = self.score(text, language, self._shadow) if self._shadow else None
        follows = firsts.get(case.follows) if case.follows else None
        return Read(text=text, scored=scored, shadow=shadow, degraded=degraded, follows=follows)

    def _lacks(self, language: Language | None) -> bool:
        """Whether a text has no score because something is missing, and not because somebody wants it so."""
        if language is None:
            return self._unavailable is not None and not self._off
        missing = self._unavailable is not None or f"active {language}" in self.faults
        return missing and language not in self._off

    def text_of(self, case: Case) -> str | None:
        """Open the customer's words; None once they are erased. The customer's key must be at hand."""
        opened = self._vault.open(case.customer.customer_ref, case.customer.sealed)
        if opened == ERASED:
            return None
        try:
            personal = Personal.parse(opened)
        except ValueError:
            return None
        return text_of(personal)

    @staticmethod
    def score(text: str, language: Language | None, models: Mapping[str, Model]) -> Scored | None:
        """Score a text with the model of its language; None without one."""
        if language is None:
            return UNSUPPORTED if models else None
        model = models.get(language)
        return scored_by(model, text) if model is not None else None

    # ------------------------------------------------------------ what is in force

    @property
    def zone(self) -> ZoneInfo:
        """The zone of the rules in force."""
        return ZoneInfo(self._desk.ruleset.zone)

    async def refresh(self, tx: Tx) -> None:
        """Take up what is in force by now; what of it cannot be loaded stands in `faults`."""
        rules, models, restricted = await store.in_force(tx)
        self._desk = replace(
            self._desk,
            ruleset=await self._ruleset(tx, rules),
            restricted=restricted,
            normaliser=NORMALISER,
            degraded=RULESET_UNAVAILABLE if "rules" in self.faults else None,
        )
        wanted = {role: {} for role in ("active", "shadow")}  # type: dict[str, dict[str, str]]
        for (role, language), digest in models.items():
            wanted[role][language] = digest
        self._off = frozenset(language for language, digest in wanted["active"].items() if digest == NOBODY)
        self._active = await self._models(tx, "active", wanted["active"], self._shipped, self._active)
        self._shadow = await self._models(tx, "shadow", wanted["shadow"], {}, self._shadow)
        if self._perhaps_not_kept:
            await self._keep_shipped(tx)
        self._looked_at = monotonic()

    def _hashes(self) -> frozenset[str]:
        departments = self._desk.departments
        models = self._shipped.values() if self._folder is not None else ()
        hashes = {self._shipped_rules.sha256, *(model.sha256 for model in models)}
        return frozenset(hashes | ({departments.sha256} if departments else set()))

    async def _keep_shipped(self, tx: Tx) -> None:
        """Keep what came with the installation: what it decides can then be taken again without its files.

        Each statement commits by itself, before the decision is stored; only what an operator sends again is
        handled in one transaction. Whether what was kept has stayed shows at the next look.
        """
        missing = await store.not_kept(tx, sorted(self._perhaps_not_kept))
        rules, departments = self._shipped_rules, self._desk.departments
        if rules.sha256 in missing:
            await store.keep_document(tx, "rules", rules.sha256, rules.ruleset, rules.canonical())
        if departments is not None and departments.sha256 in missing:
            about = departments.sha256, departments.version, departments.canonical
            await store.keep_document(tx, "departments", *about)
        for language, model in self._shipped.items():
            if model.sha256 in missing and not await self._keep_model(tx, language, model):
                missing -= {model.sha256}
        self._perhaps_not_kept = missing

    async def _keep_model(self, tx: Tx, language: str, model: Model) -> bool:
        """Keep a shipped model; False when its files are no longer those that were loaded."""
        assert self._folder is not None
        try:
            content = await asyncio.to_thread(pack, self._folder / language)
            await asyncio.to_thread(unpack, content, model.sha256)
        except (BadModel, OSError) as error:
            self._fault(f"kept {language}", str(error))
            return False
        await store.keep_model(tx, model.sha256, model.card.version, language, content, utc_now())
        return True

    async def _ruleset(self, tx: Tx, digest: str | None) -> Ruleset:
        current = self._desk.ruleset
        shipped = self._shipped_rules
        at_hand = {None: shipped, shipped.sha256: shipped, current.sha256: current}
        if digest is None or digest in at_hand:
            self._bad_rules = None
            self.faults.pop("rules", None)
            return at_hand[digest]
        loaded = await stored_rules(tx, digest)
        if isinstance(loaded, str):
            instead = current if digest == self._bad_rules else await self._newest_sound(tx, at_hand)
            self._bad_rules = digest
            self._fault("rules", f"{loaded}; {instead.ruleset} decides")
            return instead
        self._bad_rules = None
        self.faults.pop("rules", None)
        self._log.info("ruleset_in_force", version=loaded.ruleset, sha256=loaded.sha256)
        return loaded

    async def _newest_sound(self, tx: Tx, at_hand: Mapping[str | None, Ruleset]) -> Ruleset:
        """The rules that were put in force last of those that load, whatever this process has seen."""
        for digest in await store.activated_rules(tx):
            found = at_hand.get(digest) or await stored_rules(tx, digest)
            if isinstance(found, Ruleset):
                return found
        return self._shipped_rules

    async def _models(
        self,
        tx: Tx,
        role: str,
        wanted: Mapping[str, str],
        shipped: Mapping[str, Model],
        current: Mapping[str, Model],
    ) -> dict[str, Model]:
        found = {language: model for language, model in shipped.items() if language not in wanted}
        for language, digest in wanted.items():
            at_hand = [model.get(language) for model in (current, shipped)]
            model = await self._model(tx, role, language, digest, at_hand)
            if model is not None:
                found[language] = model
        return found

    async def _model(
        self, tx: Tx, role: str, language: str, digest: str, at_hand: Sequence[Model | None]
    ) -> Model | None:
        """Take the wanted model; where it cannot be loaded, the first at hand, which was in force, stays."""
        what = f"{role} {language}"
        known = next((model for model in at_hand if model is not None and model.sha256 == digest), None)
        if known is None and digest != NOBODY:
            try:
                known = await asyncio.to_thread(unpack, await store.model(tx, digest), digest)
                _refuse_other(known, language)
            except BadModel as error:
                self._fault(what, str(error))
                return at_hand[0]
            self._log.info("model_in_force", role=role, language=language, sha256=digest)
        self.faults.pop(what, None)
        return known

    def _fault(self, what: str, why: str) -> None:
        if self.faults.get(what) != why:
            self._log.error("not_in_force", what=what, why=why)
        self.faults[what] = why


def _forerunners_first(cases: Mapping[UUID, Case]) -> Iterable[Case]:
    """Order the cases of a batch so that none comes before the one that it follows, if that is there."""
    ordered: dict[UUID, Case] = {}
    for case in cases.values():
        chain: dict[UUID, Case] = {}
        one: Case | None = case
        while one is not None and one.case_id not in ordered and one.case_id not in chain:
            chain[one.case_id] = one
            one = cases.get(one.follows) if one.follows else None
        ordered.update(reversed(chain.items()))
    return ordered.values()


async def stored_rules(tx: Tx, digest: str) -> Ruleset | str:
    """Load rules that were activated, or say why not."""
    try:
        found = parse_rules(await store.ruleset(tx, digest) or "", f"ruleset {digest[:12]}")
    except BadRules as error:
        return str(error)
    other = f"ruleset {digest[:12]}: what is stored has another hash; activate it again"
    return found if found.sha256 == digest else other


def scored_by(model: Model, text: str) -> Scored:
    """Say what a model makes of a text, as decisions read it."""
    scored, limits = model.score(text), model.limits
    weak = scored.abstention(limits)
    return Scored(
        model=model.card.version,
        sha256=model.sha256,
        language=model.card.language,
        probabilities=dict(scored.ranked),
        known_share=scored.known,
        limits=limits,
        evidence=tuple((one.gram, one.weight) for one in scored.evidence(scored.department, SHOWN)),
        abstains=_abstains(model, weak),
    )


def _abstains(model: Model, weak: str | None) -> str | None:
    """Why a model may not decide, however sure it is; one that learned from invented texts never may."""
    if model.card.demonstration:
        return "demonstration_model"
    return weak if weak in ("too_short", "unknown_words") or model.limits.threshold is None else None


def _refuse_other(model: Model, language: str) -> None:
    if model.card.language != language:
        raise BadModel(
            f"model {model.sha256[:12]} reads {model.card.language!r}, not {language!r}:"
            " activate it for its own language"
        )


def pack(folder: Path) -> bytes:
    """Put a model's files into one value, the inverse of `unpack`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


def unpack(content: bytes | None, sha256: str) -> Model:
    """Load a model that was stored; raises BadModel when it is gone, damaged or not the one that is meant."""
    if content is None:
        raise BadModel(f"model {sha256[:12]} is not stored: `hotline model store` it again")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _refuse_strange(archive, sha256)
                archive.extractall(folder)
        except BadModel:
            raise
        except Exception as error:  # zipfile raises a dozen kinds for bytes that are no archive
            raise BadModel(f"model {sha256[:12]}: its archive is damaged ({type(error).__name__})") from None
        try:
            return load_model(Path(folder), sha256)
        except BadModel as error:
            # The folder has another name each time; what is wrong is the same.
            raise BadModel(str(error).replace(folder, f"model {sha256[:12]}")) from None


def _refuse_strange(archive: zipfile.ZipFile, sha256: str) -> None:
    if any("/" in name or name.startswith(".") for name in archive.namelist()):
        raise BadModel(f"model {sha256[:12]}: its archive names other folders")
    if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
        raise BadModel(f"model {sha256[:12]}: its archive holds more than {MOST_BYTES:,} bytes")


def load_shipped(folder: Path) -> Mapping[str, Model] | str:
    """Load the models of the installation, or say why not: then cases go to triage, and say so."""
    try:
        return load_models(folder) or f"{folder}: holds no model; train one, or install the shipped ones"
    except (BadModel, OSError) as error:
        return str(error)
