"""The contract stays readable, documented and compatible."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

import schemas.topics  # noqa: F401 - registers every type
import services.feedback.domain
import services.intake.contact
import services.resolver.domain
import services.router.domain  # noqa: F401 - the stages' states are bodies, too
from chassis.memory import MemoryRecord
from chassis.message import read
from chassis.step import Event
from schemas import generate
from schemas.compatibility import breaking_changes
from schemas.envelope import BY_WIRE, Body, Kind

EXAMPLES = sorted((generate.HERE / "examples").glob("*/*.json"))


def test_generated_files_are_fresh():
    assert generate.drift() == [], "run `make schemas`"


def test_drift_is_noticed(tmp_path: Path):
    for name, text in generate.documents().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + " ")
    assert len(generate.drift(tmp_path)) == len(generate.documents())


def test_every_release_of_the_contract_is_still_kept():
    assert generate.broken() == []


def test_every_type_has_an_example():
    assert {path.parent.name for path in EXAMPLES} == set(BY_WIRE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_example_is_read_by_the_reader_and_by_the_schema(path: Path):
    example = json.loads(path.read_text())
    kind = BY_WIRE[path.parent.name]
    jsonschema.validate(example["value"], generate.json_schema(kind))
    record = MemoryRecord(
        example["topic"], 0, 0, 0, example["key"].encode(), json.dumps(example["value"]).encode(),
        [(name, value.encode()) for name, value in example["headers"].items()],
    )  # fmt: skip
    event = read(record, {kind.wire: kind})
    assert isinstance(event, Event), event
    assert event.key == example["key"]
    assert type(event.body).parse(event.body.to_bytes()) == event.body


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_unknown_field_is_ignored_in_events_and_refused_in_commands(path: Path):
    kind = BY_WIRE[path.parent.name]
    value = json.dumps({**json.loads(path.read_text())["value"], "brand_new": 1}).encode()
    if kind.kind is Kind.COMMAND:
        with pytest.raises(ValidationError) as refused:
            kind.body.parse(value)
        assert refused.value.errors()[0]["loc"] == ("brand_new",)
    else:
        kind.body.parse(value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_a_copy_is_what_pydantic_would_have_made(path: Path):
    value = json.loads(path.read_text())["value"]
    body = BY_WIRE[path.parent.name].body.parse(json.dumps(value))
    ours = body.model_copy(update=dict.fromkeys(value))
    theirs = BaseModel.model_copy(body, update=dict.fromkeys(value))
    assert (ours.__dict__, ours.model_fields_set) == (theirs.__dict__, theirs.model_fields_set)
    assert ours == theirs
    assert body == type(body).parse(json.dumps(value)), "the original stays as it was"


def test_no_body_keeps_what_a_copy_would_lose():
    """Neither private nor extra fields, which `Body.model_copy` does not copy."""
    bodies = [Body]
    for body in bodies:
        bodies += body.__subclasses__()
        assert not body.__private_attributes__, body
        assert body.model_config["extra"] in {"ignore", "forbid"}, body
    assert len(bodies) > len(BY_WIRE)


def test_asyncapi_names_every_type_on_a_channel():
    document = generate.asyncapi()
    named = {wire for channel in document["channels"].values() for wire in channel["messages"]}
    assert named == set(BY_WIRE) == set(document["components"]["messages"])


OLD = {
    "type": "object",
    "required": ["a"],
    "x-key": "a",
    "properties": {
        "a": {"type": "string", "maxLength": 10},
        "b": {"enum": ["x", "y"]},
        "c": {"type": "array", "items": {"type": "integer"}},
    },
}


def _changed(**properties: object) -> dict[str, object]:
    return {**OLD, "properties": {**OLD["properties"], **properties}}


@pytest.mark.parametrize(
    ("new", "fault"),
    [
        (OLD, None),
        (_changed(d={"type": "string"}), None),
        (_changed(a={"type": "string", "maxLength": 20}), None),
        (_changed(b={"enum": ["x", "y", "z"]}), None),
        ({**_changed(d={"type": "string"}), "required": ["a", "d"]}, "body.d: is required now"),
        ({**OLD, "properties": {"a": OLD["properties"]["a"]}}, "body.b: was removed"),
        (_changed(a={"type": "integer"}), "body.a: string is not allowed any more"),
        (_changed(a={"type": "integer"}), "body.a: may be integer now, which older readers refuse"),
        (_changed(a={"anyOf": [{"type": "string"}, {"type": "null"}]}), "body.a: may be null now"),
        (_changed(a={"anyOf": [{"type": "integer"}, {"type": "null"}]}), "body.a: string is not allowed"),
        (_changed(a={"type": ["string", "null"]}), "body.a: may be null now"),
        ({**OLD, "required": []}, "body.a: may be missing now, which older readers refuse"),
        ({**OLD, "x-kind": "command", "required": []}, None),
        ({**_changed(a={"type": ["string", "null"]}), "x-kind": "command"}, None),
        ({**_changed(a={"type": "null"}), "x-kind": "command"}, "body.a: string is not allowed"),
        (_changed(a={"type": "string", "maxLength": 5}), "body.a: maxLength is 5 now"),
        (_changed(b={"enum": ["x"]}), "body.b: values were removed"),
        (
            _changed(c={"type": "array", "items": {"type": "string"}}),
            "body.c[]: integer is not allowed any more",
        ),
        ({**OLD, "x-key": "b"}, "x-key changed"),
    ],
)
def test_breaking_changes_are_found_and_others_allowed(new: dict[str, object], fault: str | None):
    found = breaking_changes(OLD, new)
    assert (found == []) if fault is None else any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"case_id": "not-a-uuid"}, "case_id"),
        ({"accept_due": "2026-11-23T09:00:00"}, "accept_due"),
        ({"department": "cards\u0000"}, "department"),
        ({"department": "x" * 200}, "department"),
        ({"why": {"ruleset": "1", "rule": "r", "stage": "guess"}}, "why.stage"),
    ],
)
def test_bad_values_are_refused_with_the_fields_path(change: dict[str, object], where: str):
    kind = BY_WIRE["router.case-routed.v1"]
    example = json.loads((generate.HERE / "examples/router.case-routed.v1/typical.json").read_text())
    with pytest.raises(ValidationError) as refused:
        kind.body.parse(json.dumps({**example["value"], **change}).encode())
    paths = [".".join(str(part) for part in fault["loc"]) for fault in refused.value.errors()]
    assert where in paths
