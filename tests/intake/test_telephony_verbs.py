"""The verbs about telephony: a recording sent twice is sent once; a source is told what it lacks."""

import asyncio
import gzip
import json
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import get_args

import httpx
import pytest
from typer.testing import CliRunner

from chassis.kafka import whole
from cli.listening import Findings, judged
from cli.needs import ASTERISK, NEEDS
from cli.telephony import telephony_app
from cli.world import DOOR, World
from schemas import telephony
from schemas.envelope import BY_BODY
from services.intake.door.sources import Webhook
from services.intake.sources import connect, freeswitch, genesys, twilio
from services.intake.sources.asterisk import replay
from services.intake.waiting.agi import dialplan
from tests.conftest import eventually
from tests.intake.pbx import FLAKY, LOG, SECRET, STEADY, USER, FakePbx, events

EVENTS = events(STEADY)
FIXTURES = Path(__file__).parent / "fixtures"


def payloads(name):
    read = json.loads((FIXTURES / f"{name}.json").read_text())
    return read if isinstance(read, list) else [read]


async def hotline(*arguments):
    """Run a verb as a person does, beside the test; gives the exit code and what it printed as JSON."""
    done = await asyncio.to_thread(CliRunner().invoke, telephony_app, [str(one) for one in arguments])
    printed = done.stdout.strip()
    return done.exit_code, json.loads(printed) if printed.startswith("{") else printed + done.stderr


@pytest.fixture
async def world(address, prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("HOTLINE_KAFKA_BOOTSTRAP", address.kafka_bootstrap)
    monkeypatch.setenv("HOTLINE_DATABASE_URL", address.database_url)
    made = World(tmp_path / "world", prefix=f"{prefix}.")
    place = await asyncio.to_thread(made.start_stack)
    await made.prepare(place)
    yield made
    await asyncio.to_thread(made.stop_stages, (DOOR,))


def sources(folder, *entries):
    path = folder / "sources.yaml"
    path.write_text(json.dumps(entries))  # JSON is YAML
    return path


@pytest.mark.kafka
async def test_a_recording_is_kept_and_sent_and_the_same_again_changes_nothing(world):
    place = world.place()
    await asyncio.to_thread(world.start_beside, DOOR, place)
    arguments = ["replay", STEADY, "--source", "demo", "--dir", world.folder, "--json"]
    code, first = await hotline(*arguments)
    assert (code, first["format"], first["known_before"]) == (0, "ami", 0)
    assert first["calls"]["calls"] == first["calls"]["ended"] == 72
    assert (first["calls"]["answered"], first["calls"]["refused"], first["calls"]["abandoned"]) == (47, 8, 5)
    facts = list(replay(STEADY, "demo"))
    assert first["kept"] == first["events"] == len(facts)
    code, again = await hotline(*arguments)
    assert (code, again["kept"], again["known_before"]) == (0, 0, len(facts))

    async def published():
        found = [one async for one in whole(place.kafka, telephony.TOPIC)]
        wires = [dict(one.headers)["ce_type"].decode() for one in found]
        return sum(not wire.startswith("telephony.manifest") for wire in wires) >= len(facts)

    await eventually(published, within=40, what="the recording on the topic")
    found = [dict(one.headers) async for one in whole(place.kafka, telephony.TOPIC)]
    ended = BY_BODY[telephony.CallEnded].wire.encode()
    assert len([headers for headers in found if headers["ce_type"] == ended]) == 72


async def test_a_log_is_recognised_and_counted(world, tmp_path):
    plain = tmp_path / "queue_log"
    plain.write_text(LOG + "a line that is none\n")
    code, found = await hotline("replay", plain, "--dir", world.folder, "--json")
    assert (code, found["format"]) == (0, "queue_log")
    assert found["calls"]["answered"] == 47
    assert found["kinds"]["telephony.call-queued"] == LOG.count("|ENTERQUEUE|")
    assert found["unused"]["unreadable lines"] == 1
    code, printed = await hotline("replay", plain, "--dir", world.folder)
    assert (code, f"{found['events']} known before" in printed) == (0, True)


async def test_what_is_no_recording_is_said_and_nothing_is_sent(world, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("dear diary\n")
    code, printed = await hotline("replay", other, "--dir", world.folder)
    assert code == 2
    assert "neither a manager connection nor a queue_log" in printed
    untimed = tmp_path / "untimed.gz"
    untimed.write_bytes(
        gzip.compress(b"Event: QueueCallerJoin\r\nUniqueid: 1.1\r\nLinkedid: 1.1\r\nQueue: q\r\n\r\n")
    )
    code, printed = await hotline("replay", untimed, "--dir", world.folder)
    assert code == 1
    assert "timestampevents=yes" in printed


DIALPLAN = [need.fix for need in ASTERISK if need.event.startswith("UserEvent ")]


@pytest.fixture
async def pbx(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    async with FakePbx() as made:
        entry = {"name": "pbx", "kind": "asterisk", "host": "127.0.0.1", "port": made.port,
                 "username": USER, "secret_file": str(secret)}  # fmt: skip
        made.sources = sources(tmp_path, entry)
        made.entry = entry
        yield made


async def checked(pbx, *more, play=()):
    listening = asyncio.create_task(hotline("check", "pbx", "--sources", pbx.sources, "--seconds", 2, *more))

    async def asked():
        return bool(pbx.actions("CoreShowChannels")) or listening.done()

    await eventually(asked, what="the check listening")
    if not listening.done():
        pbx.say(*play)
    return await listening


def verdicts(found):
    return {row["event"]: row["verdict"] for row in found["needs"]}


async def test_a_pbx_that_says_all_is_fine(pbx):
    pbx.dialplan = DIALPLAN
    code, found = await checked(pbx, "--json", play=EVENTS)
    assert (code, found["fine"], found["faults"]) == (0, True, [])
    assert set(verdicts(found).values()) == {"seen"}
    assert found["events"]["QueueCallerJoin"] == 63


async def test_what_nobody_did_in_that_time_is_found_in_the_dialplan(pbx):
    pbx.dialplan = DIALPLAN
    silent = [one for one in EVENTS if one["Event"] != "UserEvent"]
    code, found = await checked(pbx, "--json", play=silent)
    assert code == 0
    assert verdicts(found)["UserEvent QueueRefused"] == "in_dialplan"


async def test_what_the_dialplan_lacks_is_named_with_the_line_that_adds_it(pbx):
    pbx.dialplan = [line for line in DIALPLAN if "QueueRefused" not in line]
    silent = [one for one in EVENTS if one.get("UserEvent") != "QueueRefused"]
    code, printed = await checked(pbx, play=silent)
    assert code == 1
    assert "UserEvent(QueueRefused,Queue: ${QUEUE},Status: ${QUEUESTATUS})" in printed
    assert "✗ UserEvent QueueRefused → telephony.call-refused  (0 seen)" in printed
    assert "✓ QueueCallerJoin" in printed
    assert SECRET not in printed


async def test_where_no_call_came_by_nothing_is_called_fine(pbx):
    pbx.refused = {"ShowDialPlan", "CoreShowChannels"}
    code, found = await checked(pbx, "--json")
    assert (code, found["fine"]) == (1, False)
    assert set(verdicts(found).values()) == {"unproven"}
    assert "write = system,reporting" in found["faults"][0]


async def test_missing_timestamps_are_a_fault_with_the_setting(pbx):
    code, found = await checked(pbx, "--json", play=[{"Event": "Newchannel", "Uniqueid": "1.1"}])
    assert code == 1
    assert "timestampevents=yes" in found["faults"][0]


async def test_a_pbx_that_cannot_be_reached_is_exit_3(pbx):
    (pbx.sources.parent / "secret").write_text("wrong")
    code, printed = await checked(pbx)
    assert code == 3
    assert "refuses the login" in printed
    code, printed = await hotline("check", "nobody", "--sources", pbx.sources)
    assert code == 2
    assert "known: pbx" in printed


async def test_a_log_alone_is_read_at_once_and_told_what_it_can_never_say(tmp_path):
    path = tmp_path / "queue_log"
    path.write_text(LOG)
    listed = sources(tmp_path, {"name": "pbx", "kind": "asterisk", "queue_log": str(path)})
    began = time.monotonic()
    code, found = await hotline("check", "pbx", "--sources", listed, "--seconds", 60, "--json")
    assert time.monotonic() - began < 30
    assert code == 1
    assert verdicts(found)["QueueCallerJoin"] == "seen"
    assert verdicts(found)["Hangup"] == "missing"
    assert found["log"]["ENTERQUEUE"] == LOG.count("|ENTERQUEUE|")
    path.unlink()
    code, printed = await hotline("check", "pbx", "--sources", listed)
    assert code == 3
    assert "queue_log" in printed


def test_the_needs_are_events_that_the_switch_really_maps():
    """Each need, by the recording: the events named are the ones that become those facts."""
    kinds = {type(fact.body) for fact in replay(STEADY, "pbx")}
    assert {need.kind for need in ASTERISK} <= kinds
    steady, flaky = (
        {
            f"UserEvent {one['UserEvent']}" if one["Event"] == "UserEvent" else one["Event"]
            for one in events(path)
        }
        for path in (STEADY, FLAKY)
    )
    assert {need.event for need in ASTERISK} <= steady & flaky
    assert not judged("pbx", Findings())["fine"]


SAID = {
    "connect": [connect.facts(one) for one in payloads("connect_events")],
    "connect_records": [connect.facts_of_record(one) for one in payloads("connect_record")],
    "twilio": [twilio.facts(one, datetime.now(UTC)) for one in payloads("twilio_forms")],
    "genesys": [genesys.facts(one) for one in payloads("genesys_events")],
    "freeswitch": [freeswitch.facts(one) for one in payloads("freeswitch_events")],
}


@pytest.mark.parametrize("kind", SAID)
def test_what_a_webhook_is_asked_for_is_what_its_kind_can_say(kind):
    told = {type(fact.body) for reading in SAID[kind] for fact in reading.facts}
    needed = {need.kind for need in NEEDS[kind] if need.is_needed}
    assert needed == {need.kind for need in NEEDS["cloudevents"] if need.is_needed}
    assert needed <= told
    known = {*connect.EVENTS, "contact record", *twilio.TYPES, "CallStatus ringing", "CallStatus completed",
             *genesys.TOPICS, *freeswitch.ACTIONS, *freeswitch.CHANNELS}  # fmt: skip
    assert {need.event for need in NEEDS[kind]} <= known


def test_every_kind_of_source_has_its_needs():
    kinds = get_args(Webhook.model_fields["kind"].annotation)
    assert set(NEEDS) == {"asterisk", *kinds}


def test_the_lines_for_a_pbx_name_its_system(tmp_path):
    listed = sources(tmp_path, {"name": "pbx", "kind": "asterisk", "system": "pbx1", "queue_log": "/l"})
    asked = ["dialplan", "pbx", "--sources", str(listed), "--dir", str(tmp_path)]
    done = CliRunner().invoke(telephony_app, asked)
    assert (done.exit_code, done.stdout) == (0, dialplan("pbx1"))
    asked[1] = "events"
    assert CliRunner().invoke(telephony_app, asked).exit_code == 2


def a_call(number):
    """One answered call, event by event, again and again."""
    kinds = [need.kind for need in NEEDS["cloudevents"] if need.is_needed]
    kind = kinds[number % len(kinds)]
    call = {"call_id": f"c-{number // len(kinds)}", "source": "pbx", "occurred_at": "2026-11-25T10:00:00Z"}
    talk = {"queue": "cards", "visit": 1, "agent": "a-1", "wait_ms": 0, "talk_ms": 0, "cause": "normal"}
    data = call | {name: value for name, value in talk.items() if name in kind.model_fields}
    return {
        "specversion": "1.0", "id": f"e-{number}", "source": "/pbx", "type": BY_BODY[kind].wire,
        "time": "2026-11-25T10:00:00Z", "data": data,
    }  # fmt: skip


def a_call_and_more(number):
    """The same, and now and then what is of no use to us."""
    event = a_call(number - number // 7)
    return event if number % 7 else {**event, "id": f"other-{number}", "type": "example.of.another.kind"}


CLOUDEVENT = "application/cloudevents+json"


def heartbeat(number):
    stamp = str(int(time.time() * 1_000_000))
    return {
        "Event-Name": "HEARTBEAT", "Core-UUID": "core", "Event-Sequence": str(number),
        "Event-Date-Timestamp": stamp,
    }  # fmt: skip


async def meanwhile(checking, url, event, kind, status=202):
    """Deliver one event after the other until the check has ended; gives what it found."""
    async with httpx.AsyncClient() as client:
        numbers = count(1)
        while not checking.done():
            content = json.dumps(event(next(numbers)))
            answer = await client.post(url, content=content, headers={"content-type": kind})
            assert answer.status_code == status
    return await checking


@pytest.mark.kafka
async def test_a_webhook_is_told_its_address_and_what_arrived(world, tmp_path, monkeypatch):
    listed = sources(
        tmp_path,
        {"name": "events", "kind": "cloudevents", "auth": "none"},
        {"name": "fs", "kind": "freeswitch", "auth": "none", "every_event": True},
    )

    def check(source, seconds):
        arguments = ["--sources", listed, "--dir", world.folder, "--json", "--seconds", seconds]
        return hotline("check", source, *arguments)

    code, printed = await check("events", 1)
    assert (code, "the door does not run" in printed) == (3, True)
    monkeypatch.setenv("HOTLINE_SOURCES_FILE", str(listed))
    await asyncio.to_thread(world.start_beside, DOOR, world.place())
    await world.wait_ready(stages=(DOOR,))
    port = json.loads((world.folder / "door.port").read_text())["port"]

    async def watched():
        async with httpx.AsyncClient() as client:
            shown = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        return 'door_missing_events{source="fs"} 0.0' in shown

    await eventually(watched, what="the watch over a source that has said nothing")
    for source, event, kind in (
        ("events", a_call_and_more, CLOUDEVENT),
        ("fs", heartbeat, "application/json"),
    ):
        code, nothing = await check(source, 1)
        assert (code, nothing["deliveries"], nothing["facts"]) == (1, 0, {})
        assert {row["verdict"] for row in nothing["needs"]} == {"unproven"}
        assert (nothing["faults"] == []) == (source == "events"), "nothing was numbered yet"
        checking = asyncio.create_task(check(source, 1))
        code, found = await meanwhile(checking, nothing["url"], event, kind)
        assert (code, found["fine"]) == ((0, True) if source == "events" else (1, False))
        assert found["faults"] == []
        needed = {row["means"] for row in found["needs"] if row["needed"]}
        assert found["facts"].keys() == {"of no use to us"} | (needed if source == "events" else set())
        assert found["of_no_use"] == ("example.of.another.kind" if source == "events" else "")
        assert (found["refused"], found["why"]) == ({}, {})
        fixes = {row["fix"] for row in found["needs"]}
        assert source == "events" or fixes == {"event json ALL"}
        # It counts facts a moment longer than deliveries, at both ends.
        assert 0 <= found["deliveries"] <= sum(found["facts"].values())
        assert (found["deliveries"] > 0) == (source == "events"), "what is of no use is counted, not kept"
        assert found["auth"].startswith("none")
    checking = asyncio.create_task(check("events", 1))
    url = nothing["url"].replace("/fs", "/events")
    code, again = await meanwhile(checking, url, lambda number: a_call(1 + number % 5), CLOUDEVENT, 200)
    assert (code, again["deliveries"], again["duplicates"] > 0) == (0, 0, True)
    checking = asyncio.create_task(check("events", 1))
    code, wrong = await meanwhile(
        checking, url, lambda number: {**a_call(number), "time": ""}, CLOUDEVENT, 400
    )
    assert (code, wrong["refused"].keys(), wrong["why"]) == (
        1, {"unreadable"}, {"unreadable": "time: is not an RFC 3339 time such as 2026-11-23T09:30:00Z"},
    )  # fmt: skip


def test_freeswitch_is_asked_for_every_event_that_is_read():
    for need in NEEDS["freeswitch"]:
        assert need.fix.split()[2:] == [*freeswitch.CHANNELS, "CUSTOM", freeswitch.SUBCLASS]
