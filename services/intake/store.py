"""Intake's own SQL: the counter of case numbers."""

from chassis.postgres import Tx


async def next_case_numbers(tx: Tx, count: int) -> list[int]:
    """Draw case numbers; a number drawn in a transaction that fails is never used."""
    rows = await tx.fetch("select nextval('case_numbers') as number from generate_series(1, $1)", count)
    return [row["number"] for row in rows]
