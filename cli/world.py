"""One running hotline: its Kafka, its PostgreSQL, its four stage processes, its keys and its files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from chassis.faults import Misconfigured
from chassis.kafka import Connection, apply_topics
from chassis.postgres import Database, migrate, role_of
from chassis.settings import apart
from chassis.vault import SCHEMA, FileKey, Vault
from cli.verbs import FINE, say
from deploy.local.processes import recall, remember
from schemas.topics import STAGES

Progress = Callable[[str], None]
OBSERVER, DOOR, LESSONS = "observer", "door", "lessons"
BESIDE = {OBSERVER: "observer", DOOR: "services.intake.door", LESSONS: "services.router.lessons"}
"""What runs beside the stages, and its module."""
PROCESSES = (*STAGES, *BESIDE)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


class CannotReach(Exception):
    """A part that the command needs does not answer; says which and what to do."""


class NotFound(Exception):
    """Nobody knows what was asked for; says what, and where to look."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this world's parts are."""

    bootstrap: str
    database_url: str
    kafka_prefix: str = ""
    database_prefix: str = ""

    @property
    def kafka(self) -> Connection:
        """Where Kafka is, with this world's prefix."""
        return Connection(self.bootstrap, self.kafka_prefix)

    @property
    def postgres(self) -> str:
        """Where PostgreSQL is, without who may enter."""
        url = urlsplit(self.database_url)
        return f"{url.hostname}:{url.port or 5432}{url.path}"

    @property
    def parts(self) -> str:
        """Both parts, for people."""
        return f"Kafka {self.bootstrap} and PostgreSQL {self.postgres}"


@asynccontextmanager
async def connected(place: Place, part: str) -> AsyncIterator[Database]:
    """Connect for a moment to the schema of one part: a stage's, or the observer's."""
    database = Database(place.database_url, f"{place.database_prefix}{part}", size=1)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class World:
    """A hotline under one folder; embedded parts unless the environment names others.

    What the environment names is always what a command acts on; what was started is only remembered.
    """

    def __init__(self, folder: Path, progress: Progress = lambda _: None, prefix: str = "") -> None:
        self.folder = folder.resolve()
        self._progress, self._prefix = progress, prefix
        self._file = self.folder / "world.json"

    # ------------------------------------------------------------ infrastructure

    @property
    def given(self) -> Place | None:
        """The Kafka and PostgreSQL that the environment names, with this world's prefixes; None for neither.

        Raises Misconfigured when it names only one of them.
        """
        bootstrap = os.environ.get("HOTLINE_KAFKA_BOOTSTRAP", "")
        url = os.environ.get("HOTLINE_DATABASE_URL", "")
        if bool(bootstrap) != bool(url):
            raise Misconfigured(
                "set both HOTLINE_KAFKA_BOOTSTRAP and HOTLINE_DATABASE_URL, or neither for the embedded parts"
            )
        if not bootstrap:
            return None
        stored = self.stored
        if stored is not None:
            return Place(bootstrap, url, stored.kafka_prefix, stored.database_prefix)
        schema_prefix = self._prefix.replace("-", "_").replace(".", "_")
        return Place(bootstrap, url, self._prefix, schema_prefix)

    @property
    def stored(self) -> Place | None:
        """What this world was last started on; None when it never was."""
        try:
            return Place(**json.loads(self._file.read_text()))
        except FileNotFoundError:
            return None

    @property
    def elsewhere(self) -> str:
        """What this world was started on, if the environment names something else now; else empty."""
        given, stored = self.given, self.stored
        if given is None or stored is None or given.parts == stored.parts:
            return ""
        return f"{self.folder} was started on {stored.parts}; the environment names {given.parts}"

    def wipe(self) -> None:
        """Forget everything in this folder; the parts must be down."""
        from deploy.local.stack import LocalStack

        LocalStack(self.folder).wipe()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_stack(self) -> Place:
        """Have Kafka and PostgreSQL up; embedded ones are started when they are not running.

        Raises Misconfigured where processes of this world run on other ones.
        """
        running = [name for name in PROCESSES if self.pid_of(name) is not None]
        if running and self._moves():
            raise Misconfigured(
                f"{', '.join(running)} run on {self.stored.parts if self.stored else 'other parts'}, and"
                " the environment names others (or none any more): run `hotline down` first"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.given
        if place is None:
            from deploy.local.stack import LocalStack

            address = LocalStack(self.folder, progress=self._progress).start()
            place = Place(address.kafka_bootstrap, address.database_url)
        handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(
                {
                    "bootstrap": place.bootstrap,
                    "database_url": place.database_url,
                    "kafka_prefix": place.kafka_prefix,
                    "database_prefix": place.database_prefix,
                },
                file,
            )
        return place

    def stop_stack(self) -> None:
        """Stop this folder's embedded parts, whatever the environment names; given ones are left alone."""
        from deploy.local.stack import LocalStack

        LocalStack(self.folder, progress=self._progress).stop()

    def _moves(self) -> bool:
        """Whether the next start would be on other parts than the last."""
        from deploy.local.stack import LocalStack

        stored = self.stored
        if self.given is not None or stored is None:
            return bool(self.elsewhere)
        return stored.bootstrap != f"127.0.0.1:{LocalStack(self.folder).kafka.port}"

    def place(self) -> Place:
        """What a command acts on: what the environment names, else what was started last.

        Says so on standard error where the two differ; raises CannotReach when there is neither.
        """
        place = self.given or self.stored
        if place is None:
            raise CannotReach(f"nothing is running under {self.folder}: run `hotline up`")
        if self.elsewhere:
            _warn(self.elsewhere, place.parts)
        return place

    async def prepare(self, place: Place) -> dict[str, list[str]]:
        """Bring topics and schemas up to date, make the master key; gives what was done."""
        done = await apply_topics(place.kafka)
        if done:
            self._progress(f"topics: {len(done)} created or grown")
        applied = []
        for part, packages in self._schemas().items():
            applied += await migrate(place.database_url, f"{place.database_prefix}{part}", packages)
        if applied:
            self._progress(f"database: {len(applied)} migrations applied")
        FileKey.at(self.master_key, create=True)
        return {"topics": done, "migrations": applied}

    @staticmethod
    def _schemas() -> dict[str, list[str]]:
        stages = {stage: ["chassis", f"services.{stage}"] for stage in STAGES}
        return {SCHEMA: ["chassis.vault"], OBSERVER: ["observer"], **stages}

    @property
    def master_key(self) -> Path:
        """The file with the key that wraps all customers' keys."""
        return self.folder / "master.key"

    @property
    def told_file(self) -> Path:
        """The file to which the file channel writes what customers are told."""
        return self.folder / "told.jsonl"

    async def vault(self, place: Place) -> Vault:
        """Open the vault of this world."""
        schema = f"{place.database_prefix}{SCHEMA}"
        database = Database(place.database_url, schema, role=role_of(schema), size=2)
        await database.open()
        return Vault(database, FileKey.at(self.master_key), keys=200_000)

    # ------------------------------------------------------------ stages

    def environment(self, place: Place) -> dict[str, str]:
        """The settings of the stages' processes."""
        ports = {f"HOTLINE_{stage.upper()}__PORT_FILE": f"{stage}.port" for stage in STAGES}
        return {
            **os.environ,
            "HOTLINE_KAFKA_BOOTSTRAP": place.bootstrap,
            "HOTLINE_KAFKA_PREFIX": place.kafka_prefix,
            "HOTLINE_DATABASE_URL": place.database_url,
            "HOTLINE_DATABASE_PREFIX": place.database_prefix,
            "HOTLINE_MASTER_KEY_FILE": str(self.master_key),
            "HOTLINE_TOLD_FILE": str(self.told_file),
            **ports,
        }

    def start_stages(
        self,
        place: Place,
        extra: Mapping[str, str] | None = None,
        stages: tuple[str, ...] = STAGES,
        program: str = "services",
    ) -> None:
        """Start the stages that are not running, each in its own process with its own log.

        `program` is the module that is run with their names.
        """
        missing = [stage for stage in stages if self.pid_of(stage) is None]
        for stage in missing:
            (self.folder / f"{stage}.port").unlink(missing_ok=True)
        if missing:
            started = subprocess.run(
                [sys.executable, "-m", program, *missing],
                env={**self.environment(place), **(extra or {})},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if started.returncode:
                raise CannotReach(f"the stages did not start:\n{started.stderr[-800:]}")
        for stage in missing:
            pid = int((self.folder / f"{stage}.pid").read_text())
            with suppress(psutil.NoSuchProcess):
                remember(self.folder / f"{stage}.pid", psutil.Process(pid))

    def start_beside(self, name: str, place: Place, extra: Mapping[str, str] | None = None) -> None:
        """Start one of those beside the stages if it does not run, with its own log."""
        if self.pid_of(name) is not None:
            return
        (self.folder / f"{name}.port").unlink(missing_ok=True)
        given = {**self.environment(place), "HOTLINE_PORT_FILE": f"{name}.port", **(extra or {})}
        with os.fdopen(os.open(self.folder / f"{name}.log", _APPEND, 0o600), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", BESIDE[name]],
                env=apart(given, name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        remember(self.folder / f"{name}.pid", psutil.Process(process.pid))

    def pid_of(self, stage: str) -> int | None:
        """The process id of a running stage, or of what runs beside; None when it does not run."""
        process = recall(self.folder / f"{stage}.pid")
        return process.pid if process is not None else None

    async def wait_ready(self, within: float = 60, stages: tuple[str, ...] = STAGES) -> None:
        """Wait until every stage reads its topics; raises CannotReach with the last words of the log."""
        deadline = time.monotonic() + within
        for stage in stages:
            while not (await self.health(stage)).get("ready"):
                if self.pid_of(stage) is None:
                    raise CannotReach(f"{stage} has ended:\n{self._last_words(stage)}")
                if time.monotonic() > deadline:
                    raise CannotReach(
                        f"{stage} is not ready after {within:.0f} s:\n{self._last_words(stage)}"
                    )
                await asyncio.sleep(0.1)

    async def health(self, stage: str) -> dict[str, Any]:
        """What a stage says about itself; empty when it does not answer."""
        port = self.port_of(stage)
        if port is None:
            return {}
        return await asyncio.to_thread(_get_json, f"http://127.0.0.1:{port}/readyz")

    def port_of(self, stage: str) -> int | None:
        """The port on which a process answers, as it wrote it down."""
        try:
            return int(json.loads((self.folder / f"{stage}.port").read_text())["port"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _last_words(self, stage: str) -> str:
        try:
            lines = (self.folder / f"{stage}.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-6:])

    def stop_stages(self, stages: tuple[str, ...] = PROCESSES, within: float = 35) -> list[str]:
        """Ask every process to stop and wait; returns those that had to be killed."""
        running = {stage: pid for stage in stages if (pid := self.pid_of(stage)) is not None}
        for pid in running.values():
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + within
        while any(self.pid_of(stage) for stage in running) and time.monotonic() < deadline:
            time.sleep(0.05)
        killed = [stage for stage in running if self.pid_of(stage) is not None]
        for stage in killed:
            _signal(running[stage], signal.SIGKILL)
        for stage in running:
            (self.folder / f"{stage}.pid").unlink(missing_ok=True)
        return killed

    def kill_stage(self, stage: str) -> None:
        """Kill a stage without warning, as a crash would."""
        pid = self.pid_of(stage)
        if pid is not None:
            _signal(pid, signal.SIGKILL)
            while self.pid_of(stage) is not None:
                time.sleep(0.01)


@cache
def _warn(why: str, parts: str) -> None:
    """Say once a command that it acts on other parts than were started."""
    next_step = "unset HOTLINE_KAFKA_BOOTSTRAP and HOTLINE_DATABASE_URL to act on what was started"
    say(f"acting on {parts}", why, next_step, FINE)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _get_json(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - loopback, fixed scheme
            body: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        return dict(json.load(error))
    except (OSError, ValueError):
        return {}
    return body
