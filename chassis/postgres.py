"""PostgreSQL: pools with safe settings, a typed transaction, migrations in plain SQL."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from types import MappingProxyType
from typing import Any, Protocol, cast

import asyncpg

from chassis.faults import Misconfigured

_LOCK = 0x686F746C696E65  # "hotline": one migrator at a time


class Tx(Protocol):
    """What SQL needs of a connection; asyncpg's connection fills it."""

    async def fetch(self, sql: str, *args: object) -> Sequence[Any]: ...
    async def fetchrow(self, sql: str, *args: object) -> Any: ...
    async def fetchval(self, sql: str, *args: object) -> Any: ...
    async def execute(self, sql: str, *args: object) -> str: ...


def columns(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows of `width` values into columns, as `unnest` takes them; of no rows, empty columns."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


BY_KEY = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""For who finds rows by their keys: a statement is planned once, for tables of any size.

Planning anew each time is a fifth of what a small batch costs the database, and a plan made while a
table was empty must not read it whole when it is full.
"""


class Database:
    """A pool of connections bound to one schema and one role; `planning` overrides how it plans."""

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        role: str | None = None,
        size: int = 4,
        planning: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._url, self.schema, self._role, self._size = url, schema, role, size
        self._planning = planning
        self._pool: asyncpg.Pool | None = None
        self._lines: list[Line] = []

    async def open(self) -> None:
        """Connect; raises OSError or asyncpg errors when the database is away."""
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=1,
            max_size=self._size,
            # Nothing here changes a session, so nothing must be put back: a round trip saved per loan.
            reset=_leave_as_it_is,
            **self._session(),
        )

    def _session(self) -> dict[str, Any]:
        settings = {
            "search_path": self.schema,
            "application_name": f"hotline-{self.schema}",
            "statement_timeout": "30000",
            "lock_timeout": "5000",
            "idle_in_transaction_session_timeout": "60000",
            "jit": "off",
            **self._planning,
        }
        if self._role is not None:
            settings["role"] = self._role
        return {"command_timeout": 30, "timeout": 5, "server_settings": settings}

    async def reopen(self, *packages: str) -> None:
        """Connect anew; raises Misconfigured where the schema lacks a migration of these packages.

        What a newer version has applied beyond them is none of our business: migrations only go forward.
        """
        await self.close()
        await self.open()
        async with self.session() as tx:
            empty = await tx.fetchval("select to_regclass('migrations')") is None
            rows = [] if empty else await tx.fetch("select name from migrations")
        applied = {row["name"] for row in rows}
        missing = [name for package in packages for name, _ in _scripts(package) if name not in applied]
        if missing:
            raise Misconfigured(
                f"schema {self.schema} lacks {', '.join(missing)}: run `hotline up` or `hotline migrate`"
            )

    async def close(self) -> None:
        """Close all connections, by force after a moment."""
        for line in self._lines:
            line.hang_up()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """Open one transaction; commits at the end, rolls back on an exception."""
        async with self._connection() as connection, connection.transaction():
            yield cast(Tx, connection)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Tx]:
        """Lend a connection without a transaction: each statement commits by itself."""
        async with self._connection() as connection:
            yield cast(Tx, connection)

    def line(self) -> Line:
        """Give a connection of one's own, beside the pool, for a task that speaks all the time."""
        line = Line(self._connect)
        self._lines.append(line)
        return line

    async def _connect(self) -> asyncpg.Connection:
        if self._pool is None:
            raise asyncpg.InterfaceError("the pool is closed")
        return await asyncpg.connect(self._url, **self._session())

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._pool is None:
            raise asyncpg.InterfaceError("the pool is closed")
        async with self._pool.acquire(timeout=10) as connection:
            yield connection


class Line:
    """A connection that is kept from one use to the next, for one task at a time; made when first needed.

    Borrowing one of the pool and giving it back costs a small batch an eighth of its time.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Tx]:
        """Speak without a transaction, each statement for itself; raises as `Database.open` does."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            yield cast(Tx, self._connection)
        except asyncpg.PostgresError:
            raise  # an answer like any other
        except BaseException:
            # Whoever was interrupted, or cut off, does not know what the server says next.
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """Let go of the connection, at once; the next use makes a new one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _leave_as_it_is(_: Any) -> None:
    return


def role_of(schema: str) -> str:
    """Name the role that owns nothing but may work in one schema."""
    return f"hotline_{schema}"


async def migrate(url: str, schema: str, packages: Sequence[str]) -> list[str]:
    """Bring a schema up to date from the packages' `migrations/*.sql`; returns what was applied.

    Forward only, each file once, in order, in one transaction; raises Misconfigured when a file
    that was applied has been changed since.
    """
    connection = await asyncpg.connect(url, timeout=10)
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            await _prepare_schema(connection, schema)
            return [
                name
                for package in packages
                for name, sql in _scripts(package)
                if await _apply(connection, schema, name, sql)
            ]
    finally:
        await connection.close()


def _scripts(package: str) -> list[tuple[str, str]]:
    folder = resources.files(package) / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name)
    return [(f"{package}/{entry.name}", entry.read_text("utf-8")) for entry in files]


async def _prepare_schema(connection: Any, schema: str) -> None:
    role = role_of(schema)
    if not await connection.fetchval("select 1 from pg_roles where rolname = $1", role):
        await connection.execute(f"create role {_quoted(role)} nologin")
    await connection.execute(f"grant {_quoted(role)} to current_user")
    await connection.execute(f"create schema if not exists {_quoted(schema)}")
    await connection.execute("revoke all on schema public from public")
    await connection.execute(f"grant usage on schema {_quoted(schema)} to {_quoted(role)}")
    await connection.execute(f"set local search_path to {_quoted(schema)}")
    await connection.execute(
        "create table if not exists migrations"
        " (name text primary key, checksum text not null, applied_at timestamptz default now())"
    )


async def _apply(connection: Any, schema: str, name: str, sql: str) -> bool:
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    known = await connection.fetchval("select checksum from migrations where name = $1", name)
    if known == checksum:
        return False
    if known is not None:
        raise Misconfigured(
            f"migration {name} was changed after it was applied to {schema}: add a new file instead"
        )
    await connection.execute(sql)
    await connection.execute("insert into migrations (name, checksum) values ($1, $2)", name, checksum)
    for rights in ("select, insert, update, delete on all tables", "usage on all sequences"):
        await connection.execute(f"grant {rights} in schema {_quoted(schema)} to {_quoted(role_of(schema))}")
    return True


def _quoted(identifier: str) -> str:
    if not identifier.replace("_", "").isalnum():
        raise Misconfigured(f"{identifier!r} is not a plain name: use letters, digits and _")
    return f'"{identifier}"'
