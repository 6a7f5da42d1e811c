"""Case numbers: drawn ahead, never twice."""

from services.intake.store import CaseNumbers


async def test_numbers_are_drawn_ahead(stage_database):
    numbers = CaseNumbers()
    async with stage_database.session() as tx:
        (first,) = await numbers.draw(tx, 1)
    assert await numbers.draw(None, 19) == list(range(first + 1, first + 20)), "no round trip for these"


async def test_nobody_gets_a_number_that_somebody_else_has(stage_database):
    processes, drawn = [CaseNumbers(), CaseNumbers()], []
    async with stage_database.session() as tx:
        for count in (1, 3, 19, 40, 2, 250, 1):
            for process in processes:
                found = await process.draw(tx, count)
                assert len(found) == count
                drawn += found
    assert len(set(drawn)) == len(drawn)
