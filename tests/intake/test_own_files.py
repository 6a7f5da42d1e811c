"""A bank's own hours, articles and checklists: read instead of ours, and checked before they are needed."""

import pytest

from chassis.faults import Misconfigured
from chassis.vault import FileKey
from cli.own_files import own_files
from services.intake.desk.checklist import CHECKLISTS
from services.intake.door.app import Door
from services.intake.door.assistant import Assistant
from services.intake.door.house import House
from services.intake.door.settings import DoorSettings
from services.intake.waiting.agi import AgiServer
from services.intake.waiting.hours import HOURS
from services.intake.waiting.knowledge import KNOWLEDGE

SHIPPED = {"HOURS": HOURS, "KNOWLEDGE": KNOWLEDGE, "CHECKLISTS": CHECKLISTS}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Copies of ours, named by the settings; `own(word, text)` writes another."""
    for word, shipped in SHIPPED.items():
        (tmp_path / shipped.name).write_text(shipped.read_text("utf-8"), "utf-8")
        monkeypatch.setenv(f"HOTLINE_{word}_FILE", str(tmp_path / shipped.name))
    return lambda word, text: (tmp_path / SHIPPED[word].name).write_bytes(text)


def test_ours_are_sound_and_so_are_those_of_the_bank(own, monkeypatch):
    assert [fine for fine, _, _ in own_files()] == [True] * 3
    assert all(
        name in what
        for (_, what, _), name in zip(own_files(), ("hours", "knowledge", "checklists"), strict=True)
    )
    for word in SHIPPED:
        monkeypatch.delenv(f"HOTLINE_{word}_FILE")
    assert [fine for fine, _, _ in own_files()] == [True] * 3


@pytest.mark.parametrize("word", SHIPPED)
@pytest.mark.parametrize("text", [b"version: 0", b"- nothing", b"\xff", b"{", b""])
def test_a_file_that_may_not_be_used_is_named_before_it_is_needed(own, word, text):
    own(word, text)
    wrong = [(what, next_step) for fine, what, next_step in own_files() if not fine]
    ((what, next_step),) = wrong
    assert SHIPPED[word].name in what
    assert f"HOTLINE_{word}_FILE" in what
    assert "correct the file" in next_step


def test_a_path_that_each_process_would_read_elsewhere_is_refused(own, monkeypatch):
    monkeypatch.setenv("HOTLINE_DOOR__HOURS_FILE", "hours.yaml")
    fine, what, next_step = own_files()[0]
    assert (fine, what) == (False, "HOTLINE_HOURS_FILE=hours.yaml")
    assert "whole path" in next_step


def test_the_door_reads_the_banks_own_files_and_ends_as_misconfigured_over_a_bad_one(own):
    given = {"kafka_bootstrap": "-", "database_url": "-", "master_key_file": "/dev/null"}
    own("HOURS", HOURS.read_bytes().replace(b'version: "', b'version: "ours-', 1))
    house = House(DoorSettings(**given), None, None, None, None)
    assert Assistant(house).hours.version.startswith("ours-")
    own("KNOWLEDGE", b"{")
    with pytest.raises(Misconfigured, match=KNOWLEDGE.name):
        Assistant(house)


async def test_a_port_of_the_settings_that_is_taken_is_told_as_a_setting(tmp_path):
    key = tmp_path / "master.key"
    FileKey.at(key, create=True)
    async with AgiServer({}, port=0) as taken:
        given = {"kafka_bootstrap": "-", "database_url": "postgresql://-", "master_key_file": key}
        door = Door(DoorSettings(**given, agi_port=taken.port))
        with pytest.raises(Misconfigured, match=f"{taken.port}: .*HOTLINE_AGI_PORT"):
            await door._listen_to_asterisk()
