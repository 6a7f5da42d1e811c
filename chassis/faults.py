"""Faults by what the machine does next: wait and retry, quarantine, or stop that partition.

Fault
├── Transient    the infrastructure is away: back off, retry for ever, acknowledge nothing
├── Misconfigured    a setting is wrong: say which, exit with code 78
└── Bug          a decision raised: block its partition, raise the alarm
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import asyncpg
from aiokafka.errors import KafkaError

T = TypeVar("T")


class Fault(Exception):
    """The base of what can go wrong around a decision."""


class Transient(Fault):
    """Something this process needs is away or overloaded; the same work may succeed later."""


class Misconfigured(Fault):
    """A setting, topic or schema is not what the process needs; retrying will not mend it."""


class Bug(Fault):
    """A decision raised an exception; `topic`, `partition`, `offset` name the input."""

    def __init__(self, topic: str, partition: int, offset: int, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__} while deciding on {topic}/{partition}/{offset}")
        self.topic, self.partition, self.offset, self.cause = topic, partition, offset, cause


class ConcurrentWriter(Transient):
    """Another process changed the same case in between; the batch is read and decided again."""


_DATA_CLASSES = ("22", "23514", "21")
_INFRASTRUCTURE_CLASSES = ("08", "40", "53", "55", "57", "58", "XX", "25")


def is_data_fault(error: BaseException) -> bool:
    """Tell whether PostgreSQL refused the data itself (SQLSTATE class 22), so a retry cannot help."""
    return isinstance(error, asyncpg.PostgresError) and str(error.sqlstate or "").startswith(_DATA_CLASSES)


def is_transient(error: BaseException) -> bool:
    """Tell whether waiting and trying again is the right answer to this error."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        return state.startswith(_INFRASTRUCTURE_CLASSES) or isinstance(
            error, asyncpg.exceptions.InvalidCachedStatementError
        )
    return isinstance(
        error,
        Transient
        | KafkaError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError  # a connection that PostgreSQL closed in the middle of an answer
        | OSError
        | TimeoutError
        | EOFError,
    )


def backoff(first: float = 0.05, cap: float = 5.0) -> Iterator[float]:
    """Yield waiting times in seconds: doubling, capped, each jittered by half."""
    wait = first
    while True:
        yield wait * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        wait = min(wait * 2, cap)


async def insist(work: Callable[[], Awaitable[T]]) -> T:
    """Do the same work again until it works; raises at once what waiting cannot mend."""
    for wait in backoff():
        try:
            return await work()
        except Exception as error:
            if not is_transient(error):
                raise
            await asyncio.sleep(wait)
    raise AssertionError("backoff has no end")
