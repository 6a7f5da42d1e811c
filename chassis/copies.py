"""Reading copies: tables that repeat what states say, for those who ask by something else than the key."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chassis.postgres import columns
from chassis.statement import Part


@dataclass(frozen=True)
class Copy:
    """One table: the columns that are its key, the SQL type of each column, and a state's rows.

    `rows` gives a state's rows as they stand now, each with a value per column in order; a row is
    replaced whole, and a row that a state no longer gives stays.
    """

    table: str
    key: tuple[str, ...]
    columns: Mapping[str, str]
    rows: Callable[[Any], Iterable[tuple[Any, ...]]]

    @cached_property
    def _upsert(self) -> str:
        arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(self.columns.values(), 1))
        changes = ", ".join(f"{name} = excluded.{name}" for name in self.columns if name not in self.key)
        return (
            f"insert into {self.table} ({', '.join(self.columns)}) select * from unnest({arrays})"
            f" on conflict ({', '.join(self.key)}) do update set {changes}"
        )

    def part(self, states: Sequence[Any]) -> Part:
        """Rewrite the rows of these states."""
        rows = [row for state in states for row in self.rows(state)]
        return Part(self.table, self._upsert, columns(rows, len(self.columns)))


def rewriting(copies: Sequence[Copy], states: Sequence[Any]) -> list[Part]:
    """Rewrite what these states say in every copy; of no states, nothing."""
    return [copy.part(states) for copy in copies] if states else []
