"""Whose folder a command erases, and on which Kafka and PostgreSQL it acts."""

import json
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from chassis.faults import Misconfigured
from cli import world as worlds
from cli.__main__ import app
from cli.demo import Demo, Load
from cli.status import examine
from cli.world import CannotReach, Place, World

STARTED = Place("127.0.0.1:9001", "postgresql://hotline:secret@127.0.0.1:9002/hotline", "mine.", "mine_")
USAGE = 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which something was started, and an environment that names nothing."""
    for name in ("HOTLINE_KAFKA_BOOTSTRAP", "HOTLINE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    worlds._warn.cache_clear()
    (tmp_path / "world.json").write_text(json.dumps(asdict(STARTED)))
    return tmp_path


@pytest.fixture
def given(monkeypatch):
    """What the environment names: another PostgreSQL, the same Kafka."""
    monkeypatch.setenv("HOTLINE_KAFKA_BOOTSTRAP", STARTED.bootstrap)
    monkeypatch.setenv("HOTLINE_DATABASE_URL", "postgresql://hotline:other@127.0.0.1:9003/hotline")


# ------------------------------------------------------------------ demo


def test_a_demo_erases_nothing_that_a_demo_has_not_made(folder):
    (folder / "master.key").write_text("key")
    done = CliRunner().invoke(app, ["demo", "--dir", str(folder)])
    assert done.exit_code == USAGE
    assert "no demo has made" in done.stderr
    assert {file.name for file in folder.iterdir()} == {"world.json", "master.key"}


def test_a_demo_plays_again_where_a_demo_has_played(folder):
    play = Demo(folder, Load(), lambda _: None)
    assert play.taken
    (folder / "world.json").unlink()
    assert not play.taken, "an empty folder is nobody's"
    play._fresh()
    (folder / "told.jsonl").touch()
    assert not play.taken
    play._fresh()
    assert [file.name for file in folder.iterdir()] == ["demo"]


def test_the_folder_of_the_other_verbs_is_not_the_demos(folder, monkeypatch):
    asked = []

    class Played:
        taken = True

        def __init__(self, folder, load, progress):
            asked.append(str(folder))

    monkeypatch.setenv("HOTLINE_DIR", str(folder))
    monkeypatch.setattr("cli.demo.Demo", Played)
    CliRunner().invoke(app, ["demo"])
    assert asked == [".run/demo"]


# ------------------------------------------------------------------ where a command acts


def test_what_the_environment_names_comes_before_what_was_started(folder, given, capsys):
    world = World(folder)
    place = world.place()
    assert (place.bootstrap, place.postgres) == (STARTED.bootstrap, "127.0.0.1:9003/hotline")
    assert (place.kafka_prefix, place.database_prefix) == ("mine.", "mine_"), "the world is still that one"
    assert world.place() == World(folder).place() == place
    said = capsys.readouterr().err
    assert said.count("acting on") == 1
    assert "127.0.0.1:9003/hotline" in said
    assert "127.0.0.1:9002" in said
    assert "secret" not in said
    assert "other@" not in said


def test_nothing_is_said_where_both_agree_or_nothing_is_named(folder, monkeypatch, capsys):
    assert World(folder).place() == STARTED
    monkeypatch.setenv("HOTLINE_KAFKA_BOOTSTRAP", STARTED.bootstrap)
    monkeypatch.setenv("HOTLINE_DATABASE_URL", STARTED.database_url.replace("secret", "renewed"))
    assert World(folder).place() == replace(
        STARTED, database_url=STARTED.database_url.replace("secret", "renewed")
    )
    assert capsys.readouterr().err == ""


def test_one_address_without_the_other_is_refused_though_something_was_started(folder, monkeypatch):
    monkeypatch.setenv("HOTLINE_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    with pytest.raises(Misconfigured, match="set both"):
        World(folder).place()


def test_without_either_nothing_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("HOTLINE_KAFKA_BOOTSTRAP", raising=False)
    monkeypatch.delenv("HOTLINE_DATABASE_URL", raising=False)
    with pytest.raises(CannotReach, match="hotline up"):
        World(tmp_path / "nowhere").place()


def test_down_stops_the_embedded_parts_of_its_folder_whatever_is_named(folder, given, monkeypatch):
    stopped = []
    monkeypatch.setattr("deploy.local.stack.LocalStack.stop", lambda self: stopped.append(self._folder))
    World(folder).stop_stack()
    assert stopped == [folder.resolve()]


@pytest.mark.parametrize("named", [True, False])
def test_up_does_not_split_a_running_world_over_two_places(folder, named, monkeypatch, request):
    """Named others; or none any more, where what runs was started on named ones."""
    if named:
        request.getfixturevalue("given")
    monkeypatch.setattr(World, "pid_of", lambda self, name: 1 if name == "router" else None)
    with pytest.raises(Misconfigured, match=r"router run on .*9001.*hotline down"):
        World(folder).start_stack()
    assert World(folder).stored == STARTED


async def test_the_doctor_names_what_was_started_elsewhere(folder, given):
    found = [what for fine, what, _ in await examine(World(folder)) if not fine]
    assert any("was started on" in what and "9003" in what for what in found)
