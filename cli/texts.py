"""The sixty-odd invented bank cases that the demo and the benchmarks play."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from services.intake.door.entry import number_of

Plot = Literal["straight", "return_once", "first_contact", "withdraw", "silent"]


@dataclass(frozen=True, slots=True)
class Rating:
    """What the customer of this case will answer."""

    solved: bool
    attitude: int
    speed: int
    comment: str


@dataclass(frozen=True, slots=True)
class Script:
    """One invented case: what is said, by whom, and how it goes."""

    key: str
    language: Literal["zh", "en"]
    category: str
    product: str
    department: str
    severity: str
    vulnerable: bool
    name: str
    phone: str
    summary: str
    demand: str
    resolution: str
    outcome: str
    root_cause: str
    rating: Rating
    plot: Plot

    @property
    def number(self) -> str:
        """The telephone number as the hotline writes it."""
        return number_of(self.phone) or self.phone


@cache
def scripts() -> tuple[Script, ...]:
    """Read the cases shipped with the project."""
    text = resources.files("cli").joinpath("demo_cases.yaml").read_text("utf-8")
    return tuple(_script(entry) for entry in yaml.safe_load(text)["cases"])


def _script(entry: dict[str, Any]) -> Script:
    customer, rating = entry["customer"], entry["rating"]
    plain = {name: entry[name] for name in Script.__slots__ if name in entry and name != "rating"}
    return Script(
        **plain,
        name=customer["name"],
        phone=customer["phone"].replace(" ", ""),
        rating=Rating(rating["solved"], rating["attitude"], rating["speed"], rating["comment"] or ""),
    )
