"""A model as files: arrays, a vocabulary, and a card that says what it is and holds the others' hashes.

One folder per model, one model per language. The card's own sha256 is the model's: it covers every byte
that a decision depends on. Nothing in the files can run: numbers and JSON, no pickles.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from services.router.classifier.calibration import Scale
from services.router.classifier.scorer import STEEPEST, Features, Limits, Scored, Scorer
from services.router.classifier.text import NORMALISER, Language

CARD, VOCABULARY, IDF, WEIGHTS, SHOWN = "model.json", "vocabulary.json", "idf.npy", "weights.npy", "shown.npy"
MOST_BYTES = 20 * 1024 * 1024
MOST_ECE = 0.05
LEAST_PRECISION = 0.94
FILES = (CARD, VOCABULARY, IDF, WEIGHTS, SHOWN)


class BadModel(ValueError):
    """A model that may not be used; says which file, why, and what to do."""


class Metrics(BaseModel):
    """How a model did on texts that it had not seen (out of fold); shares 0 … 1.

    `coverage` and `precision` are those of automatic decisions; precision None = none were made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    texts: int = Field(ge=1)
    texts_of: dict[str, int]
    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)
    ece: float = Field(ge=0, le=1)
    coverage: float = Field(ge=0, le=1)
    precision: float | None = Field(ge=0, le=1)


class Card(BaseModel):
    """What a model is: for whom, from which texts, how good, and the numbers beside its arrays.

    `left_out` counts the texts of departments that had too few to learn from; `members` says how much
    each of the linear models counts whose sum this is; `files` holds each file's sha256. `thresholds` holds
    those of departments that need a higher one than `threshold`, 1 = never; older models have none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: str = Field(min_length=1, max_length=40)
    what: str = Field(min_length=1, max_length=500)
    data: str = Field(min_length=1, max_length=500)
    demonstration: bool
    created_at: AwareDatetime
    language: Language
    departments: tuple[str, ...] = Field(min_length=2, max_length=200)
    left_out: dict[str, int] = Field(default_factory=dict)
    normaliser: int
    members: dict[str, float]
    bias: tuple[float, ...]
    unit: float = Field(gt=0)
    temperature: float = Field(gt=0)
    label_noise: float = Field(ge=0, lt=1)
    threshold: float | None = Field(ge=0, le=1)
    thresholds: dict[str, float] = Field(default_factory=dict)
    margin: float = Field(default=0.15, ge=0, le=1)
    known: float = Field(default=0.3, ge=0, le=1)
    tokens: int = Field(default=3, ge=1)
    metrics: Metrics
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _own_thresholds_are_higher(self) -> Self:
        for department, threshold in self.thresholds.items():
            if department not in self.departments:
                raise ValueError(f"thresholds: {department!r} is none of the departments")
            if self.threshold is None or not self.threshold < threshold <= 1:
                raise ValueError(
                    f"thresholds: {department!r} needs more than the common {self.threshold}, at most 1"
                )
        return self


class _Vocabulary(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    grams: tuple[str, ...]
    fragments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that may decide: its card, its hash, its scorer."""

    card: Card
    sha256: str
    scorer: Scorer

    @property
    def limits(self) -> Limits:
        """From when on its scores decide."""
        card = self.card
        return Limits(card.threshold, card.margin, card.known, card.tokens, card.thresholds)

    def score(self, text: str) -> Scored:
        """Score a text; see `Scorer.score`."""
        return self.scorer.score(text)


def build(card: Card, by_gram: Features, by_fragment: Features) -> tuple[Model, dict[str, bytes]]:
    """Seal a model: the model itself, and its files by name; ValueError when its files are too large.

    Equal models have equal bytes.
    """
    files = {
        VOCABULARY: _json(
            {"grams": list(by_gram.vocabulary), "fragments": list(by_fragment.vocabulary)}, indent=None
        ),
        IDF: _npy(np.concatenate([by_gram.idf, by_fragment.idf]).astype(np.int16)),
        WEIGHTS: _npy(np.concatenate([by_gram.weights, by_fragment.weights])),
        SHOWN: _npy(by_gram.shown),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    sealed = Card.model_validate({**card.model_dump(), "files": hashes})
    files[CARD] = _json(sealed.model_dump(mode="json"), indent=2)
    size = sum(map(len, files.values()))
    if size > MOST_BYTES:
        raise ValueError(
            f"the model has {size:,} bytes, {MOST_BYTES:,} are allowed: train it with fewer n-grams"
        )
    return Model(
        sealed, hashlib.sha256(files[CARD]).hexdigest(), _scorer(sealed, by_gram, by_fragment)
    ), files


def save_model(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a model's files, its card last: who finds a card finds a whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == CARD):
        fresh = folder / f".{name}.new"
        fresh.write_bytes(files[name])
        fresh.replace(folder / name)


def load_model(folder: Path, expected_sha256: str | None = None) -> Model:
    """Read a model; BadModel when it is not the expected one, is damaged, unreadable, or not good enough."""
    written = _read(folder, CARD)
    sha256 = hashlib.sha256(written).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise BadModel(
            f"{folder}: this is model {sha256[:12]}…, not {expected_sha256[:12]}… that was activated;"
            " restore its folder or activate this one"
        )
    card = _card(folder, written)
    _refuse_weak(folder, card)
    files = {name: _checked(folder, name, card) for name in FILES if name != CARD}
    if len(written) + sum(map(len, files.values())) > MOST_BYTES:
        raise BadModel(f"{folder}: larger than {MOST_BYTES:,} bytes; train it with fewer n-grams")
    by_gram, by_fragment = _features(folder, card, files)
    return Model(card, sha256, _scorer(card, by_gram, by_fragment))


def load_models(folder: Path, expected: Mapping[str, str] | None = None) -> dict[str, Model]:
    """Read a bundle: one folder per language, named after it; `expected` holds sha256 by language."""
    if not folder.is_dir():
        raise BadModel(f"{folder}: no such folder; give the folder of a bundle of models")
    models = {
        path.parent.name: load_model(path.parent, (expected or {}).get(path.parent.name))
        for path in sorted(folder.glob(f"*/{CARD}"))
    }
    for language, model in models.items():
        if model.card.language != language:
            raise BadModel(
                f"{folder / language}: this model reads {model.card.language!r}; rename its folder"
            )
    return models


def _scorer(card: Card, by_gram: Features, by_fragment: Features) -> Scorer:
    return Scorer(
        card.departments,
        by_gram,
        by_fragment,
        bias=card.bias,
        unit=card.unit,
        scale=Scale(card.temperature, card.label_noise),
    )


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadModel(f"{path}: larger than {MOST_BYTES:,} bytes; train it with fewer n-grams")
        return path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}; a model is a folder with {CARD} and its arrays") from None


def _checked(folder: Path, name: str, card: Card) -> bytes:
    content = _read(folder, name)
    if hashlib.sha256(content).hexdigest() != card.files.get(name):
        raise BadModel(f"{folder / name}: its sha256 is not the one in {CARD}; restore the whole folder")
    return content


def _card(folder: Path, written: bytes) -> Card:
    try:
        card = Card.model_validate_json(written)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise BadModel(f"{folder / CARD}: {faults}; train the model again") from None
    if card.normaliser != NORMALISER:
        raise BadModel(
            f"{folder}: trained on texts as version {card.normaliser} reads them, this program reads them as"
            f" version {NORMALISER} does; train the model again, or run the program it was trained with"
        )
    return card


def _refuse_weak(folder: Path, card: Card) -> None:
    measured = card.metrics
    if measured.ece > MOST_ECE:
        raise BadModel(
            f"{folder}: its confidence is off by {measured.ece:.3f} (ECE), {MOST_ECE} is allowed;"
            " correct labels and train again, or stay with the model before"
        )
    if measured.precision is not None and measured.precision < LEAST_PRECISION:
        raise BadModel(
            f"{folder}: {measured.precision:.3f} of its automatic decisions were right, {LEAST_PRECISION} are"
            " demanded; correct labels and train again, or stay with the model before"
        )


def _features(folder: Path, card: Card, files: Mapping[str, bytes]) -> tuple[Features, Features]:
    try:
        vocabulary = TypeAdapter(_Vocabulary).validate_json(files[VOCABULARY])
        idf, weights, shown = (
            np.load(io.BytesIO(files[name]), allow_pickle=False) for name in (IDF, WEIGHTS, SHOWN)
        )
    except (ValueError, EOFError, MemoryError) as error:
        raise BadModel(
            f"{folder}: its arrays cannot be read ({type(error).__name__}); train it again"
        ) from None
    cut, rows = len(vocabulary.grams), len(vocabulary.grams) + len(vocabulary.fragments)
    fits = (
        _is(idf, np.int16, (rows,))
        and _is(weights, np.int16, (rows, len(card.departments)))
        and _is(shown, np.bool_, (cut,))
        and len(card.bias) == len(card.departments) == len(set(card.departments))
        and len(set(vocabulary.grams)) + len(set(vocabulary.fragments)) == rows
        and (not rows or 0 <= int(idf.min()) <= int(idf.max()) <= STEEPEST)
    )
    if not fits:
        raise BadModel(f"{folder}: card, vocabulary and arrays do not belong together; train it again")
    steep = idf.astype(np.int64)
    return (
        Features(_rows(vocabulary.grams), steep[:cut], weights[:cut], shown),
        Features(_rows(vocabulary.fragments), steep[cut:], weights[cut:], np.zeros(rows - cut, np.bool_)),
    )


def _is(array: NDArray[Any], kind: type[np.generic], shape: tuple[int, ...]) -> bool:
    return array.dtype == kind and array.shape == shape


def _rows(names: tuple[str, ...]) -> dict[str, int]:
    return {name: row for row, name in enumerate(names)}


def _json(value: object, *, indent: int | None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def _npy(array: NDArray[Any]) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    return written.getvalue()
