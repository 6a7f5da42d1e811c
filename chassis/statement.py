"""Several changes as one statement: one round trip, and all or nothing without a transaction around it."""

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from asyncpg.exceptions import SerializationError

from chassis.faults import ConcurrentWriter
from chassis.postgres import Tx

_PARAMETER = re.compile(r"\$(\d+)")


class Part(NamedTuple):
    """One change: its SQL with parameters of its own from `$1` on, and how many rows it must change.

    `name` is a plain word, once in a statement; `rows` None = however many. A part does not see what
    the other parts change.
    """

    name: str
    sql: str
    args: Sequence[object]
    rows: int | None = None


async def execute(tx: Tx, parts: Sequence[Part]) -> None:
    """Make all these changes; raises ConcurrentWriter, with none made, where one misses its number."""
    if not parts:
        return
    shape = tuple(_Shape(part.name, part.sql, len(part.args), part.rows is not None) for part in parts)
    args = [argument for part in parts for argument in part.args]
    try:
        await tx.fetchval(_text(shape), *args, *(part.rows for part in parts if part.rows is not None))
    except SerializationError as error:
        raise ConcurrentWriter("another process of this stage worked on the same case") from error


class _Shape(NamedTuple):
    name: str
    sql: str
    width: int
    counted: bool


@cache
def _text(shapes: tuple[_Shape, ...]) -> str:
    bodies, before = [], 0
    for shape in shapes:
        returning = " returning 1" if shape.counted else ""
        bodies.append(f"{shape.name} as ({_renumbered(shape.sql, before)}{returning})")
        before += shape.width
    counted = (shape.name for shape in shapes if shape.counted)
    wanted = [f"(select count(*) from {name}) = ${at}" for at, name in enumerate(counted, before + 1)]
    verdict = f"case when {' and '.join(wanted)} then 1 else refuse_concurrent() end" if wanted else "1"
    return f"with {', '.join(bodies)} select {verdict}"


def _renumbered(sql: str, by: int) -> str:
    return _PARAMETER.sub(lambda match: f"${int(match[1]) + by}", sql)
