"""Writes the contract for others: JSON Schemas, AsyncAPI, and releases of both (`make schemas`)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from schemas.compatibility import breaking_changes
from schemas.envelope import BY_WIRE, MessageType
from schemas.handoffs import HANDOFFS
from schemas.topics import DEPARTMENTS, STAGES, TOPICS, Topic

HERE = Path(__file__).parent
HEADERS: dict[str, str] = {
    "ce_specversion": "CloudEvents version, 1.0",
    "ce_id": "identity of the message, the same at every delivery",
    "ce_type": "wire type with version, for example router.case-routed.v1",
    "ce_source": "who says it, for example /hotline/router",
    "ce_time": "when it happened, RFC 3339 with zone",
    "content-type": "application/json",
    "ce_correlationid": "the case (or call) that it is about",
    "ce_causationid": "the event or command that caused it; absent for roots",
    "ce_sequence": "how many events the writer has said of the case, contiguous",
    "ce_sequenceof": "what the sequence counts for, where that is not the record's key",
    "ce_handoffk": "k of n outputs of one input; absent where there is only one",
    "ce_handoffn": "n of n outputs of one input; absent where there is only one",
    "hotline-redrive": "present when an operator sends a record again, under the same id",
    "traceparent": "W3C trace context, handed on when present",
}
REQUIRED_HEADERS = ("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type")


def json_schema(kind: MessageType) -> dict[str, Any]:
    """Describe one wire type as JSON Schema 2020-12, with its key, topic and kind."""
    schema = kind.body.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hotline:{kind.wire}",
        **schema,
        "title": kind.wire,
        "x-key": kind.key,
        "x-kind": kind.kind.value,
        "x-topics": list(_topics_of(kind)),
    }


def _topics_of(kind: MessageType) -> Iterator[str]:
    if isinstance(kind.topic, str):
        yield kind.topic
    elif kind.wire.startswith("ops."):
        yield from (f"{stage}.dead" for stage in STAGES)
    else:
        yield from (f"departments.{code}" for code in DEPARTMENTS)


def asyncapi() -> dict[str, Any]:
    """Describe topics, messages, writers, readers and handoffs as AsyncAPI 3."""
    by_topic: dict[str, list[str]] = {topic.name: [] for topic in TOPICS}
    for wire, kind in BY_WIRE.items():
        for topic in _topics_of(kind):
            by_topic[topic].append(wire)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "hotline",
            "version": "1.0.0",
            "description": "Events of a bank's telephone hotline; CloudEvents 1.0 binary mode over Kafka.",
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic, by_topic[topic.name]) for topic in TOPICS},
        "operations": {name: entry for topic in TOPICS for name, entry in _operations(topic)},
        "components": {
            "messages": {wire: _message(kind) for wire, kind in sorted(BY_WIRE.items())},
            "schemas": {"headers": _headers()},
        },
    }


def _channel(topic: Topic, wires: list[str]) -> dict[str, Any]:
    return {
        "address": topic.name,
        "messages": {wire: {"$ref": f"#/components/messages/{wire}"} for wire in sorted(wires)},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": topic.retention_ms},
            }
        },
        "x-key": topic.key,
    }


def _operations(topic: Topic) -> Iterator[tuple[str, dict[str, Any]]]:
    channel = {"$ref": f"#/channels/{topic.name}"}
    for writer in topic.written_by:
        yield f"{writer}-writes-{topic.name}", {"action": "send", "channel": channel, "x-writer": writer}
    for group in topic.read_by:
        yield f"{group}-reads-{topic.name}", {"action": "receive", "channel": channel, "x-group": group}


def _message(kind: MessageType) -> dict[str, Any]:
    owed = [
        {
            "group": handoff.group,
            "answers": [answer.__name__ for answer in handoff.answers],
            "receipt": handoff.receipt,
            **(
                {
                    "later": [later.__name__ for later in handoff.deferred.later],
                    "within": f"PT{int(handoff.deferred.within.total_seconds())}S",
                    "owner": handoff.deferred.owner,
                }
                if handoff.deferred
                else {}
            ),
        }
        for handoff in HANDOFFS
        if handoff.on is kind.body
    ]
    message: dict[str, Any] = {
        "name": kind.wire,
        "summary": (kind.body.__doc__ or "").split("\n")[0],
        "headers": {"$ref": "#/components/schemas/headers"},
        "payload": {"$ref": f"json/{kind.wire}.schema.json"},
        "bindings": {"kafka": {"key": {"type": "string", "description": f"the field {kind.key}"}}},
    }
    return {**message, "x-handoff": owed} if owed else message


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(REQUIRED_HEADERS),
        "properties": {name: {"type": "string", "description": text} for name, text in HEADERS.items()},
    }


def documents() -> dict[str, str]:
    """Give every generated file's path under schemas/ and text."""
    files = {
        f"json/{wire}.schema.json": json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"
        for wire, kind in BY_WIRE.items()
    }
    files["asyncapi.yaml"] = "# Generated by `make schemas`; do not edit.\n" + yaml.safe_dump(
        asyncapi(), sort_keys=False, allow_unicode=True, width=110
    )
    return files


def drift(folder: Path = HERE) -> list[str]:
    """Name the generated files that differ from what the code says now."""
    wanted = documents()
    stale = [name for name, text in wanted.items() if _text(folder / name) != text]
    extra = [
        f"json/{path.name}" for path in (folder / "json").glob("*.json") if f"json/{path.name}" not in wanted
    ]
    return sorted(stale + extra)


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def broken(folder: Path = HERE) -> list[str]:
    """Compare today's schemas with every released version; one line per breaking change."""
    faults = []
    for release in sorted((folder / "history").iterdir()):
        for path in sorted(release.glob("*.schema.json")):
            wire = path.name.removesuffix(".schema.json")
            kind = BY_WIRE.get(wire)
            if kind is None:
                faults.append(f"{release.name}: {wire} was removed; keep it beside the new version")
                continue
            old = json.loads(path.read_text("utf-8"))
            faults += [
                f"{release.name}: {wire}: {fault}" for fault in breaking_changes(old, json_schema(kind))
            ]
    return faults


def main() -> int:
    """Write the files, or with --check only compare; --release freezes the contract as a new version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--release", action="store_true")
    asked = parser.parse_args()
    if asked.check:
        faults = [f"{name} is out of date: make schemas" for name in drift()] + broken()
        print("\n".join(faults) or "schemas are up to date", file=sys.stderr)  # noqa: T201
        return 1 if faults else 0
    (HERE / "json").mkdir(exist_ok=True)
    for name in drift():
        (HERE / name).unlink(missing_ok=True)
    for name, text in documents().items():
        (HERE / name).write_text(text, "utf-8")
    if asked.release:
        _release()
    return 0


def _release() -> None:
    history = HERE / "history"
    history.mkdir(exist_ok=True)
    folder = history / str(1 + max((int(path.name) for path in history.iterdir()), default=0))
    folder.mkdir()
    for name, text in documents().items():
        if name.startswith("json/"):
            (folder / Path(name).name).write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
