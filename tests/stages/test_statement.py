"""Several changes as one statement, on a real PostgreSQL."""

import pytest

from chassis.copies import Copy, rewriting
from chassis.faults import ConcurrentWriter
from chassis.statement import Part, execute

KEEP = "insert into tasks (task_id, key, name, due_at, data) select gen_random_uuid(), k, $1, now(), ''"
ONE = f"{KEEP} from unnest($2::text[]) as x(k)"


async def kept(database):
    async with database.session() as tx:
        return [row["key"] for row in await tx.fetch("select key from tasks order by name, key")]


async def test_each_part_has_parameters_of_its_own(stage_database):
    async with stage_database.session() as tx:
        await execute(tx, [Part("a", ONE, ["1", ["x", "y"]], 2), Part("b", ONE, ["2", ["z"]])])
        await execute(tx, [Part("a", ONE, ["3", ["w"]])])
        await execute(tx, [])
    assert await kept(stage_database) == ["x", "y", "z", "w"]


@pytest.mark.parametrize("rows", [0, 1, 3])
async def test_a_part_that_misses_its_number_leaves_nothing_of_any_part(stage_database, rows):
    async with stage_database.session() as tx:
        with pytest.raises(ConcurrentWriter):
            await execute(tx, [Part("a", ONE, ["a", ["x"]]), Part("b", ONE, ["b", ["y", "z"]], rows)])
    assert await kept(stage_database) == []


NOTES = Copy("notes", ("who", "at"), {"who": "text", "at": "int", "said": "text"}, lambda state: state.rows())


class Speaker:
    def __init__(self, who, *said):
        self.who, self.said = who, said

    def rows(self):
        return [(self.who, at, word) for at, word in enumerate(self.said)]


async def test_a_copy_is_rewritten_row_by_row_and_a_state_without_rows_changes_nothing(stage_database):
    async with stage_database.session() as tx:
        await tx.execute("create temporary table notes (who text, at int, said text, primary key (who, at))")
        for states in ([Speaker("li", "a", "b"), Speaker("wu")], [Speaker("li", "c")], []):
            await execute(tx, rewriting([NOTES], states))
        rows = await tx.fetch("select who, at, said from notes order by at")
        assert [tuple(row) for row in rows] == [("li", 0, "c"), ("li", 1, "b")]
        await tx.execute("drop table notes")
