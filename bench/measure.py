"""Reads what work cost: CPU seconds by part, memory, bytes of write-ahead log; and the conditions."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg
import psutil

from deploy.local.stack import LocalStack

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of each part, bytes of write-ahead log."""

    workers: float
    postgres: float
    broker: float
    wal: int

    def __sub__(self, earlier: Cost) -> Cost:
        return Cost(
            self.workers - earlier.workers,
            self.postgres - earlier.postgres,
            self.broker - earlier.broker,
            self.wal - earlier.wal,
        )

    @property
    def cpu(self) -> float:
        """CPU seconds of everything but the load generator."""
        return self.workers + self.postgres + self.broker


class Meter:
    """Measures the processes of one world."""

    def __init__(self, database_url: str, postgres_pid: int, broker_pid: int) -> None:
        self._url, self.postgres_pid, self._broker = database_url, postgres_pid, broker_pid

    @classmethod
    def of(cls, stack: LocalStack) -> Meter:
        """Measure a stack that runs."""
        url, database, broker = stack.postgres.url, stack.postgres.process, stack.kafka.process
        assert url is not None
        assert database is not None
        assert broker is not None
        return cls(url, database.pid, broker.pid)

    async def read(self, workers: Iterable[int]) -> Cost:
        """Read all counters now; processes that have ended count nothing."""
        connection = await asyncpg.connect(self._url)
        try:
            wal = await connection.fetchval("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        finally:
            await connection.close()
        return Cost(sum(cpu_of(pid) for pid in workers), self.database(), self.broker(), wal)

    def database(self) -> float:
        """CPU seconds of PostgreSQL, those of its ended children too."""
        children = sum(cpu_of(pid) for pid in _children(self.postgres_pid))
        return cpu_of(self.postgres_pid, reaped=True) + children

    def broker(self) -> float:
        """CPU seconds of Kafka."""
        return cpu_of(self._broker)


async def settled(database_url: str, within: float = 90) -> None:
    """Write out what earlier runs left, and wait for the autovacuum that they woke."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("checkpoint")
        deadline = perf_counter() + within
        quiet_since = perf_counter()
        while perf_counter() - quiet_since < 3 and perf_counter() < deadline:
            busy = "select exists(select from pg_stat_activity where backend_type = 'autovacuum worker')"
            if await connection.fetchval(busy):
                quiet_since = perf_counter()
            await asyncio.sleep(0.25)
    finally:
        await connection.close()


def cpu_of(pid: int, *, reaped: bool = False) -> float:
    """CPU seconds of a process; with `reaped`, those of its ended children too; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(int(field) for field in fields[11 : 15 if reaped else 13]) / _TICK


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def pss_mib(pids: Iterable[int]) -> float:
    """Proportional memory of processes, MiB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return round(total / 1024, 1)


def conditions() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    versions = {name: metadata.version(name) for name in ("faststream", "aiokafka", "asyncpg", "pydantic")}
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": versions,
        "commit": _commit(),
    }


def steal_share() -> float:
    """Share of all CPU time since boot that the host gave to others."""
    times = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return round(times[7] / sum(times), 4)


def fsync_us(folder: Path, times: int = 200) -> float:
    """Median microseconds of one 4 KiB write with fdatasync in this folder."""
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times):
            started = perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, 0)
            os.fdatasync(file.fileno())
            taken.append(perf_counter() - started)
    return round(statistics.median(taken) * 1e6, 1)


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
