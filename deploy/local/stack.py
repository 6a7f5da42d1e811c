"""The local stack: Kafka and PostgreSQL of one run folder, started together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.local.kafka import Broker
from deploy.local.postgres import Database


@dataclass(frozen=True, slots=True)
class Address:
    """Where the two parts listen; the URL holds a password."""

    kafka_bootstrap: str
    database_url: str


@dataclass(frozen=True, slots=True)
class PieceStatus:
    """One part of the stack as it stands."""

    running: bool
    pid: int | None
    port: int | None
    log: Path


class LocalStack:
    """Kafka and PostgreSQL under one folder; what is there is kept, what is missing is made."""

    def __init__(self, run_dir: Path, *, progress: Callable[[str], None] = lambda _: None) -> None:
        self._folder = run_dir.resolve()
        self.kafka = Broker(self._folder, progress)
        self.postgres = Database(self._folder, progress)

    def start(self) -> Address:
        """Start what is not running, both at once; raises StackError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as both:
            broker, database = both.submit(self.kafka.start), both.submit(self.postgres.start)
            return Address(broker.result(), database.result())

    def stop(self) -> None:
        """Stop both, in order."""
        with ThreadPoolExecutor(2) as both:
            for done in (both.submit(self.kafka.stop), both.submit(self.postgres.stop)):
                done.result()

    def wipe(self) -> None:
        """Delete PostgreSQL's data, which may lie outside the run folder; the parts must be stopped."""
        self.postgres.wipe()

    def status(self) -> dict[str, PieceStatus]:
        """Say of each part whether it runs, where, and where its log is."""
        return {
            name: PieceStatus(
                piece.process is not None,
                piece.process.pid if piece.process is not None else None,
                piece.port,
                piece.log,
            )
            for name, piece in (("kafka", self.kafka), ("postgres", self.postgres))
        }
