"""What people in triage see of the departments: what is open there, as the resolver knows it."""

import asyncio
import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from chassis.postgres import Database, migrate
from chassis.roots import new_id
from cli.triage import triage_app
from cli.world import Place
from services.resolver.domain import Assignment
from services.router.departments import FILE
from tests.given import NOW, a_case


@pytest.fixture
async def place(address, prefix, tmp_path):
    """A world of which only the router's and the resolver's schemas are there."""
    for stage in ("router", "resolver"):
        await migrate(address.database_url, f"{prefix}_{stage}", ["chassis", f"services.{stage}"])
    place = Place(address.kafka_bootstrap, address.database_url, f"{prefix}.", f"{prefix}_")
    (tmp_path / "world.json").write_text(json.dumps(asdict(place)))
    return place


async def do(place, stage, sql, *rows):
    database = Database(place.database_url, f"{place.database_prefix}{stage}", size=1)
    await database.open()
    async with database.transaction() as tx:
        for row in rows:
            await tx.execute(sql, *row)
    await database.close()


def assigned(department, phase):
    """A case of a department, as the resolver stores it."""
    state = Assignment(
        phase=phase,
        case=a_case(),
        assignment_id=new_id(),
        department=department,
        attempt_no=1,
        accept_due=NOW,
        resolve_due=NOW,
        clerk=None,
        escalations=0,
    )
    return str(new_id()), phase, state.to_bytes().decode()


async def departments(folder, file, *options):
    arguments = ["departments", "--file", str(file), "--dir", str(folder), *options]
    done = await asyncio.to_thread(CliRunner().invoke, triage_app, arguments, env={"COLUMNS": "250"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout, done.stderr, done.exit_code


@pytest.mark.postgres
async def test_what_is_open_stands_beside_what_a_department_should_hold(place, tmp_path):
    phases = ("delivered", "in_progress", "waiting", "returned", "resolved", "withdrawn")
    await do(
        place,
        "resolver",
        "insert into entities (key, version, sequence, updated_at, phase, timers, document)"
        " values ($1, 1, 1, now(), $2, '{}', $3)",
        *(assigned("cards", phase) for phase in phases),
        *(assigned("fraud", "delivered") for _ in range(2)),
    )
    await do(
        place, "router", "insert into restrictions (department, alarm, by) values ($1, 'a', 'l')", ["cards"]
    )
    file = tmp_path / "departments.yaml"
    text = FILE.read_text("utf-8")
    text = text.replace("en: Cards}", "en: Cards}\n    capacity: 3", 1)
    text = text.replace("hours: always\n    accept_within: PT30M", "hours: never\n    capacity: 3", 1)
    text = text.replace("\nhours:\n", "\nhours:\n  never: {}\n", 1)
    wealth = text.index("\n  wealth:")
    file.write_text(text[:wealth] + text[wealth:].replace("hours: office", "hours: never\n    takes: false"))

    out, _, code = await departments(tmp_path, file, "--json")
    rows = {row.pop("department"): row for row in json.loads(out)}
    assert code == 0
    assert rows["cards"] == {
        "open": 3, "capacity": 3, "full": True, "works_now": True, "takes": True, "classifier_may": False,
    }  # fmt: skip
    assert rows["fraud"] == {
        "open": 2, "capacity": 3, "full": False, "works_now": False, "takes": True, "classifier_may": True,
    }  # fmt: skip
    assert rows["wealth"] == {
        "open": 0, "capacity": None, "full": False, "works_now": False, "takes": False, "classifier_may": True,
    }  # fmt: skip
    out, _, _ = await departments(tmp_path, file)
    (line,) = [line.split() for line in out.splitlines() if "cards" in line]
    assert line == ["cards", "3", "3", "yes", "yes", "yes", "no"]
    assert "any number" in out


@pytest.mark.postgres
async def test_a_bad_file_is_said_in_three_lines(place, tmp_path):
    (tmp_path / "bad.yaml").write_text("version: [")
    out, complaint, code = await departments(tmp_path, tmp_path / "bad.yaml")
    assert (out, code, len(complaint.splitlines())) == ("", 1, 3)
    assert "bad.yaml:1" in complaint
