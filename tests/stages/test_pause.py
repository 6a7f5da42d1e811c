"""A stage that is paused and resumed, whatever its batch is at."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

from chassis.pause import Reading

PAUSE = {"since": datetime(2026, 11, 26, tzinfo=UTC), "actor": "lead", "reason": "a release"}


class Word:
    """The row in the stage's schema."""

    def __init__(self):
        self.row = None

    @asynccontextmanager
    async def session(self):
        async def fetchrow(_):
            return self.row

        yield SimpleNamespace(fetchrow=fetchrow)


class Reader:
    """A subscription whose batch may outlive its stop."""

    def __init__(self):
        self.reads, self.busy = False, False

    async def start(self):
        self.reads = True

    async def stop(self):
        self.reads = False


async def test_whoever_is_paused_reads_nothing_and_resumed_reads_with_a_new_subscription():
    word, made = Word(), []
    reading = Reading(word, lambda: made.append(Reader()) or made[-1])
    for row, reads in ((None, [True]), (PAUSE, [False]), (PAUSE, [False]), (None, [False, True])):
        word.row = row
        await reading.look()
        await reading.obey()
        assert [reader.reads for reader in made] == reads


async def test_nobody_resumes_beside_a_batch_that_is_still_tried():
    word, made = Word(), []
    reading = Reading(word, lambda: made.append(Reader()) or made[-1])
    await reading.look()
    await reading.obey()
    made[0].busy, word.row = True, PAUSE
    await reading.look()
    await reading.obey()
    word.row = None
    await reading.look()
    await reading.obey()
    assert [reader.reads for reader in made] == [False]
    made[0].busy = False
    await reading.obey()
    assert [reader.reads for reader in made] == [False, True]
