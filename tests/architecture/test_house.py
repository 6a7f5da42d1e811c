"""The house keeps its shape: same rooms, two ends to every handoff, drivers behind one door."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from schemas.envelope import BY_BODY, BY_WIRE, Kind
from schemas.handoffs import HANDOFFS, TERMINAL
from schemas.topics import BY_NAME, STAGES

ROOT = Path(__file__).parents[2]
STAGE_OF = {name: importlib.import_module(f"services.{name}.app").STAGE for name in STAGES}
OUTSIDE = {"department", "customer", "triage"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_same_rooms(stage: str):
    rooms = {path.name for path in (ROOT / "services" / stage).iterdir()} - {"__pycache__"}
    assert {"__init__.py", "__main__.py", "app.py", "domain.py", "settings.py", "migrations"} <= rooms
    charter = importlib.import_module(f"services.{stage}").__doc__ or ""
    assert all(word in charter for word in ("Reads:", "Emits:", "Promises:"))


def test_each_event_of_a_stage_has_exactly_one_emitter():
    emitted = [body for stage in STAGE_OF.values() for body in stage.emits]
    assert len(emitted) == len(set(emitted))
    said = {
        kind.body
        for kind in BY_WIRE.values()
        if kind.kind is Kind.EVENT and kind.name.split(".")[0] in STAGES
    }
    commanded = {body for body in emitted if BY_BODY[body].kind is Kind.COMMAND}
    assert said == set(emitted) - commanded


def test_each_event_is_a_handoff_or_declared_terminal_and_not_both():
    events = {kind.body for kind in BY_WIRE.values() if kind.kind is not Kind.RECORD}
    handed = {handoff.on for handoff in HANDOFFS if handoff.group not in OUTSIDE}
    waiting = {handoff.on for handoff in HANDOFFS if handoff.group in OUTSIDE}
    assert handed | waiting | set(TERMINAL) == events
    assert not handed & set(TERMINAL)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_decides_exactly_what_it_owes(stage: str):
    owed = {handoff.on for handoff in HANDOFFS if handoff.group == stage}
    assert owed == set(STAGE_OF[stage].decisions)


@pytest.mark.parametrize("handoff", HANDOFFS, ids=lambda handoff: handoff.edge)
def test_a_handoff_lies_on_a_topic_that_its_group_reads(handoff):
    if handoff.group in OUTSIDE:
        return
    topic = BY_BODY[handoff.on].topic
    assert isinstance(topic, str)
    assert handoff.group in BY_NAME[topic].read_by
    assert set(handoff.answers) <= set(STAGE_OF[handoff.group].emits)


def test_wire_names_are_well_formed():
    for kind in BY_WIRE.values():
        assert re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)+", kind.name), kind.name


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


CLIENT_ROOMS = {f"chassis/{room}.py" for room in ("kafka", "faults", "polling", "salvage", "following")}


def _calls(path: Path) -> set[str]:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


def test_brokers_and_consumers_are_built_in_one_place():
    banned = {"aiokafka", "faststream.kafka"}
    constructors = {"KafkaBroker", "AIOKafkaConsumer", "AIOKafkaProducer", "AIOKafkaAdminClient"}
    for folder in ("chassis", "services", "observer", "cli", "schemas"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name not in CLIENT_ROOMS:
                assert not _imports(path) & banned, path
            if name != "chassis/kafka.py":
                assert not _calls(path) & constructors, path


def test_nobody_names_a_package_registry():
    hosts = re.compile(r"py" + r"pi\.org|python" + r"hosted|mave" + r"n\.org|npm" + r"js\.(org|com)")
    for pattern in ("*.lock", "Makefile", "*.toml", "*.md", "deploy/**/*", "docs/**/*"):
        for path in ROOT.glob(pattern):
            if path.is_file() and path.suffix not in {".pyc", ".gz"}:
                assert not hosts.search(path.read_text(errors="replace")), path
