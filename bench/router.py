"""`python -m bench.router`: how well and how fast cases are told apart by their texts, on real ones.

Four public sets are read in place. Two came without a held-out part: those are cut into five, and each
fifth is judged by a model trained, tuned and calibrated on the other four. Of the other two, the
held-out part is judged once, by a model that was made without it. What is measured is what serves:
`train`, the model's files, `score`, `abstention`, `evidence`.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import process_time, process_time_ns
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from services.router.classifier.calibration import expected_calibration_error
from services.router.classifier.model import Model, load_model, load_models, save_model
from services.router.classifier.scorer import Limits, Scored
from services.router.classifier.text import Language
from services.router.classifier.training import MODELS, About, Trained, train

DATA = Path(__file__).parents[2] / "shared/data/routing"
RESULTS = Path("bench/results/router.json")
DEMO_CASES = Path("cli/demo_cases.yaml")
QUESTION, QUESTION_ENDS = "Including narratives choice", "Comment: "
FOLDS = 5
ABOUT = About(
    version="bench", what="measured, never served", data="public", created_at=datetime(2026, 1, 1, tzinfo=UTC)
)

Decide = Callable[[Model, str], object]


@dataclass(frozen=True, slots=True)
class Goal:
    """At least or at most so much."""

    bound: float
    at_most: bool = False

    def met(self, measured: float) -> bool:
        """Tell whether a figure reaches the goal."""
        return measured <= self.bound if self.at_most else measured >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {_written(self.bound)}"


@dataclass(frozen=True, slots=True)
class Set:
    """One set of texts; `least` is the smallest class that is learned, `goals` by name of a figure."""

    name: str
    file: str
    label: str
    language: Language
    goals: Mapping[str, Goal]
    held_out: bool = False
    least: int = 50


ECE = Goal(0.04, at_most=True)
PRECISION = Goal(0.95)
WORST = "of those right, worst department with 100"
MEDIAN, P99, SPEED = "ms per decision, median", "ms per decision, p99", "decisions per s and core"
MEGABYTES, RETRAIN, REPLAY = "model, MB", "training on all, CPU s", "replayed differently, of 10,000"
COST = {
    MEDIAN: Goal(1.0, at_most=True),
    P99: Goal(5.0, at_most=True),
    SPEED: Goal(1_000),
    MEGABYTES: Goal(20.0, at_most=True),
}
SETS = (
    Set(
        "complaints, 7 departments (en)",
        "en_cfpb_departments.train.csv.gz",
        "department",
        "en",
        {
            "macro-F1": Goal(0.80),
            "ECE": ECE,
            "routed alone": Goal(0.46),
            "of those right": PRECISION,
            WORST: Goal(0.94),
            "right in top 3 of the rest": Goal(0.94),
            **COST,
        },
    ),
    Set(
        "citizens' letters, 7 departments (zh)",
        "zh_city_hotline.train.csv.gz",
        "department",
        "zh",
        {
            "macro-F1": Goal(0.915),
            "ECE": ECE,
            "routed alone": Goal(0.91),
            "of those right": PRECISION,
            WORST: Goal(0.94),
            "right in top 3 of the rest": Goal(0.97),
            **COST,
            RETRAIN: Goal(15.0, at_most=True),
        },
    ),
    Set(
        "Banking77, 77 intents (en)",
        "en_banking77.csv.gz",
        "label",
        "en",
        {
            "accuracy": Goal(0.912),
            "ECE": ECE,
            "routed alone": Goal(0.85),
            "of those right": PRECISION,
            "right in top 3 of the rest": Goal(0.83),
            **COST,
            REPLAY: Goal(0, at_most=True),
        },
        held_out=True,
        least=30,  # two intents have fewer than 50
    ),
    Set(
        "complaints, 5 products, other mix (en)",
        "en_cfpb5.csv.gz",
        "label",
        "en",
        {"accuracy": Goal(0.780), MEDIAN: Goal(2.0, at_most=True)},
        held_out=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Text:
    """One labelled text; `held_out` says that nothing may be learned from it."""

    text: str
    label: str
    held_out: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model said of a text that it had not seen."""

    label: str
    scored: Scored
    limits: Limits

    @property
    def right(self) -> bool:
        """The most likely department is the right one."""
        return self.scored.department == self.label

    @property
    def alone(self) -> bool:
        """The model would have routed it without asking."""
        return self.scored.abstention(self.limits) is None


def decide(model: Model, text: str) -> object:
    """Decide as the router does: score, reason to abstain, evidence for the most likely department."""
    scored = model.score(text)
    return scored.department, scored.abstention(model.limits), scored.evidence(scored.department)


def read(of: Set, folder: Path) -> list[Text]:
    """Read a set in the order of its file.

    One publisher left a question to a language model, with the names of all classes, before 293 texts:
    it is cut off.
    """
    csv.field_size_limit(1 << 30)
    with gzip.open(folder / of.file, "rt", encoding="utf-8", newline="") as lines:
        return [
            Text(
                row["text"].split(QUESTION_ENDS, 1)[-1] if row["text"].startswith(QUESTION) else row["text"],
                row[of.label],
                row.get("split") == "heldout",
            )
            for row in csv.DictReader(lines)
        ]


def fit(of: Set, texts: Sequence[Text]) -> Trained:
    """Train on texts of a set as the router's own are trained."""
    return train(
        [text.text for text in texts], [text.label for text in texts], of.language, ABOUT, least=of.least
    )


def splits(of: Set, texts: Sequence[Text], folds: int) -> Iterator[tuple[list[Text], list[Text]]]:
    """Cut a set into what is learned and what is judged: its held-out part, or some of five fifths."""
    if of.held_out:
        yield [text for text in texts if not text.held_out], [text for text in texts if text.held_out]
        return
    fifths = [hashlib.sha256(text.text.encode()).digest()[0] % FOLDS for text in texts]
    for fold in range(folds):
        cut = list(zip(texts, fifths, strict=True))
        yield [text for text, at in cut if at != fold], [text for text, at in cut if at == fold]


def quality(judged: Sequence[Judged]) -> dict[str, float]:
    """Sum up what was said: shares 0 … 1; the figures that depend on no decision are left out then."""
    right = np.array([one.right for one in judged])
    confidence = np.array([one.scored.confidence for one in judged])
    alone = np.array([one.alone for one in judged])
    figures = {
        "accuracy": float(right.mean()),
        "macro-F1": macro_f1([(one.label, one.scored.department) for one in judged]),
        "ECE": expected_calibration_error(confidence, right),
        "routed alone": float(alone.mean()),
    }
    if alone.any():
        figures["of those right"] = float(right[alone].mean())
        per_department: dict[str, list[bool]] = {}
        for one in judged:
            if one.alone:
                per_department.setdefault(one.scored.department, []).append(one.right)
        large = [statistics.fmean(of) for of in per_department.values() if len(of) >= 100]
        if large:
            figures[WORST] = min(large)
    shown = np.array([one.label in {name for name, _ in one.scored.ranked[:3]} for one in judged])
    if not alone.all():
        figures["right in top 3 of the rest"] = float(shown[~alone].mean())
    return {**figures, "right in top 3 of all": float(shown.mean())}


def macro_f1(pairs: Iterable[tuple[str, str]]) -> float:
    """Mean over the labels of 2 x hits / (said + meant), from pairs of meant and said."""
    counted = Counter(pairs)
    meant: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for (label, department), count in counted.items():
        meant[label] += count
        said[department] += count
    return statistics.fmean(
        2 * counted[label, label] / (meant[label] + said[label])
        for label in sorted(meant.keys() | said.keys())
    )


def speed(model: Model, texts: Sequence[str], deciding: Decide = decide) -> dict[str, float]:
    """Time decisions one by one, in CPU milliseconds of this process; the fastest of three rounds.

    Neighbours on the machine slow a core's memory down, nothing speeds it up.
    """
    rounds = []
    for _ in range(3):
        took = []
        for text in texts:
            start = process_time_ns()
            deciding(model, text)
            took.append((process_time_ns() - start) / 1e6)
        rounds.append(sorted(took))
    best = min(rounds, key=sum)
    return {
        MEDIAN: statistics.median(best),
        P99: best[int(0.99 * (len(best) - 1))],
        SPEED: 1_000 / statistics.fmean(best),
    }


def differing(trained: Trained, texts: Sequence[str]) -> int:
    """Count the decisions that come out differently from the model's files, in the other order of texts."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(trained.files, Path(folder))
        loaded = load_model(Path(folder), trained.model.sha256)
    again = [decide(loaded, text) for text in reversed(texts)]
    return sum(
        decide(trained.model, text) != other for text, other in zip(reversed(texts), again, strict=True)
    )


def megabytes(trained: Trained) -> float:
    """The size of a model's files, in MB of 1,000,000 bytes."""
    return sum(map(len, trained.files.values())) / 1e6


def measure(of: Set, texts: Sequence[Text], folds: int) -> dict[str, float]:
    """Measure everything on one set; raises BadModel when a model is not good enough to be activated."""
    judged: list[Judged] = []
    for learned, unseen in splits(of, texts, folds):
        trained = fit(of, learned)
        model = trained.model
        judged += [Judged(text.label, model.score(text.text), model.limits) for text in unseen]
    figures = {
        "texts learned": float(len(learned)),
        "texts judged": float(len(judged)),
        **quality(judged),
        **speed(model, [text.text for text in unseen][:1_000]),
        MEGABYTES: megabytes(trained),
    }
    if RETRAIN in of.goals:
        started = process_time()
        fit(of, texts)
        figures[RETRAIN] = process_time() - started
    if REPLAY in of.goals:
        figures[REPLAY] = float(differing(trained, [text.text for text in texts[:10_000]]))
    return figures


def demonstration() -> dict[str, float]:
    """How the models that come with the program do on the demonstration's cases: no goal, no yardstick."""
    models = load_models(MODELS)
    judged = [
        Judged(case["department"], model.score(f"{case['summary']} {case['demand']}"), model.limits)
        for case in yaml.safe_load(DEMO_CASES.read_text("utf-8"))["cases"]
        if case["department"] in (model := models[case["language"]]).card.departments
    ]
    return {"texts judged": float(len(judged)), **quality(judged)}


def conditions() -> dict[str, Any]:
    """Under what conditions this was measured."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpus": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "threads": os.environ.get("OMP_NUM_THREADS", "not limited"),
        "times": "CPU time of the process, fastest of three rounds; the machine is shared",
    }


def _written(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) != 1 else f"{value:.3f}"


def _row(table: Table, of: Set, name: str, figure: float, first: bool) -> None:  # noqa: FBT001 - a row's place
    goal = of.goals.get(name)
    met = "" if goal is None else ("yes" if goal.met(figure) else "[bold]no[/bold]")
    table.add_row(of.name if first else "", name, "" if goal is None else str(goal), _written(figure), met)


def _show(report: Mapping[str, Any]) -> None:
    table = Table(title="Cases told apart by their texts", title_justify="left")
    for column in ("set", "figure", "goal", "measured", "met"):
        table.add_column(column, justify="right" if column in {"goal", "measured"} else "left")
    for of in SETS:
        for at, (name, figure) in enumerate(report["sets"].get(of.name, {}).items()):
            _row(table, of, name, figure, at == 0)
        table.add_section()
    for at, (name, figure) in enumerate(report["demonstration"].items()):
        table.add_row(
            "the program's own models on its demo (invented)" if at == 0 else "",
            name,
            "",
            _written(figure),
            "",
        )
    Console().print(table)
    print("times: CPU time of the process, fastest of three rounds, on a shared machine")


def missed(report: Mapping[str, Any]) -> list[str]:
    """Name the goals that were not reached, and those whose figure is missing."""
    return [
        f"{of.name}: {name} {goal}"
        for of in SETS
        if of.name in report["sets"]
        for name, goal in of.goals.items()
        if name not in report["sets"][of.name] or not goal.met(report["sets"][of.name][name])
    ]


def main() -> int:
    """Measure all sets that are there, print the table; 1 when a goal was missed."""
    words = argparse.ArgumentParser(prog="python -m bench.router", description=__doc__)
    words.add_argument("--data", type=Path, default=DATA, help="the folder with the sets (CSV, gzip)")
    words.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    words.add_argument("--quick", action="store_true", help="judge two of the five fifths; keep no results")
    given = words.parse_args()
    sets: dict[str, dict[str, float]] = {}
    for of in SETS:
        if not (given.data / of.file).exists():
            print(
                f"skipped: {given.data / of.file} is not there; give its folder with --data", file=sys.stderr
            )
            continue
        sets[of.name] = measure(of, read(of, given.data), 2 if given.quick else FOLDS)
    report: dict[str, Any] = {"conditions": conditions(), "sets": sets, "demonstration": demonstration()}
    report["missed"] = missed(report)
    if not given.quick and sets:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if given.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _show(report)
    return 1 if report["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
