"""The embedded stack, once for a session; each test has its own topics, groups and schemas."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import structlog

from chassis.kafka import Connection
from chassis.postgres import Database, migrate, role_of
from chassis.vault import FileKey, Vault
from cli.world import World
from deploy.local.stack import Address, LocalStack

_number = itertools.count(1)

# A broker that lives for minutes does not earn back what optimising it costs: half of its CPU.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what uses the stack: `make test` runs all else beside it."""
    if "stack" in getattr(item, "fixturenames", ()) or item.get_closest_marker("kafka"):
        item.add_marker("stack")


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A verb that a test ran has sent the logs to a stream that is closed by now."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """A real Kafka and a real PostgreSQL; none of them missing is ever a reason to skip."""
    folder = Path(tempfile.mkdtemp(prefix="hotline-tests-"))
    folder.chmod(0o755)
    local = LocalStack(folder)
    try:
        asyncio.run(_without_fsync(local.start().database_url))
        yield local
    finally:
        # Nobody reads it again: a stop in order would write down every topic and every schema.
        local.kafka.kill()
        local.postgres.stop("immediate")
        local.wipe()
        shutil.rmtree(folder, ignore_errors=True)


async def _without_fsync(database_url: str) -> None:
    """Let PostgreSQL leave the writing to the system: tests kill processes, none of them cuts the power.

    A stop in order, or a restart, would otherwise wait for every file of every schema that tests have made.
    """
    connection = await asyncpg.connect(database_url)
    await connection.execute("alter system set fsync = off")
    await connection.execute("select pg_reload_conf()")
    await connection.close()


@pytest.fixture
def address(stack: LocalStack) -> Address:
    """Where the parts are; restarts one that an earlier test left down."""
    return stack.start()


@pytest.fixture
def prefix() -> str:
    """A world of its own for this test."""
    return f"t{os.getpid()}x{next(_number)}"


@pytest.fixture
def kafka(address: Address, prefix: str) -> Connection:
    return Connection(address.kafka_bootstrap, f"{prefix}.")


@asynccontextmanager
async def opened(address: Address, schema: str, *packages: str) -> AsyncIterator[Database]:
    """A schema of its own, brought up to date, with the rights of its role alone."""
    await migrate(address.database_url, schema, packages)
    database = Database(address.database_url, schema, role=role_of(schema))
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def stage_database(address: Address, prefix: str) -> AsyncIterator[Database]:
    """An empty stage schema."""
    async with opened(address, f"{prefix}_stage", "chassis", "services.intake") as database:
        yield database


@pytest.fixture
def master_key(tmp_path: Path) -> FileKey:
    return FileKey.at(tmp_path / "master.key", create=True)


@pytest.fixture
async def vault(address: Address, prefix: str, master_key: FileKey) -> AsyncIterator[Vault]:
    """A vault with a schema of its own."""
    async with opened(address, f"{prefix}_vault", "chassis.vault") as database:
        yield Vault(database, master_key)


@pytest.fixture
async def world(
    address: Address, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """A hotline of its own on the tests' Kafka and PostgreSQL, prepared; what a test starts is stopped."""
    monkeypatch.setenv("HOTLINE_KAFKA_BOOTSTRAP", address.kafka_bootstrap)
    monkeypatch.setenv("HOTLINE_DATABASE_URL", address.database_url)
    world = World(tmp_path / "world", prefix=f"{prefix}.")
    await world.prepare(world.start_stack())
    yield world
    await asyncio.to_thread(world.stop_stages)


async def eventually(condition, within: float = 20.0, what: str = "the condition") -> None:
    """Wait until an async condition holds, or fail and say which did not."""
    deadline = asyncio.get_running_loop().time() + within
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"{what} did not come true within {within} s")
        await asyncio.sleep(0.05)
