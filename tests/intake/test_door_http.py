"""Webhooks: what is acknowledged is on disk, what cannot be read is kept with its reason, nobody is mistaken."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256

import httpx
import pytest
from asyncpg import InterfaceError
from standardwebhooks import Webhook as Signer

from chassis.clock import utc_now
from chassis.faults import Misconfigured, Transient
from chassis.health import Health
from schemas import telephony
from services.intake.door import entry as entry_room
from services.intake.door.access import Access
from services.intake.door.app import web
from services.intake.door.settings import DoorSettings
from services.intake.door.sources import Pbx, Webhook, load_sources
from services.intake.door.telephony import MAX_BODY, keep_time
from tests.intake.door import DoorRig

PHONE = "+8613800138000"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


@pytest.fixture
def sources(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    signed = Webhook(name="signed", kind="cloudevents", auth="standard", secret_files=(secret,))
    plain = Webhook(name="events", kind="cloudevents")
    twilio = Webhook(name="twilio", kind="twilio")
    return {source.name: source for source in (signed, plain, twilio)}


@pytest.fixture
def rig(stage_database, vault, sources):
    return DoorRig(stage_database, vault, sources)


def event(event_id="e-1", kind="call-offered", **data):
    body = {"call_id": "call-1", "source": "pbx", "occurred_at": "2026-11-24T09:00:00Z", **data}
    return {
        "specversion": "1.0", "id": event_id, "source": "/pbx/1", "type": f"telephony.{kind}.v1",
        "time": "2026-11-24T09:00:00Z", "datacontenttype": "application/json", "data": body,
    }  # fmt: skip


STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json"}


async def post(client, body, headers=STRUCTURED, source="events"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(f"/telephony/{source}", content=content, headers=headers)


async def refused(rig):
    return [
        (row["reason"], row["explanation"], row["sealed"])
        for row in await rig.rows("select * from refused_deliveries order by refused_id")
    ]


async def test_an_event_is_kept_with_the_number_sealed_and_the_same_again_is_a_duplicate(rig):
    async with rig.client() as client:
        first = await post(client, event(caller_number="138 0013 8000"))
        again = await post(client, event(caller_number="138 0013 8000"))
        other = await post(client, event(caller_number="138 0013 8001"))
    assert (first.status_code, first.json()["kept"]) == (202, 1)
    assert (again.status_code, again.json()["duplicates"]) == (200, 1)
    assert other.status_code == 409
    assert "id_reuse" in other.json()["next"]
    (sent,) = await rig.sent(telephony.CallOffered)
    assert rig.vault.open(sent.customer_ref, sent.caller) == PHONE
    assert [reason for reason, _, _ in await refused(rig)] == ["id_reuse"]


async def test_binary_mode_says_the_same(rig):
    whole = event(caller_number=PHONE)
    headers = {f"ce-{name}": whole[name] for name in ("specversion", "id", "source", "type", "time")}
    async with rig.client() as client:
        first = await post(client, whole["data"], {**headers, "content-type": "application/json"})
        again = await post(client, whole)
    assert (first.status_code, again.status_code) == (202, 200)


async def test_one_bad_element_of_a_batch_spares_its_neighbours(rig):
    queued = {"queue": "cards", "visit": 1}
    batch = [
        event("e-1"),
        event("e-2", "call-queued", **queued),
        event("e-3", "call-queued", queue="cards", visit="first"),
        event("e-4", "call-teleported"),
        event("e-1"),
        event("e-5", "call-ended", cause="normal"),
    ]
    async with rig.client() as client:
        response = await post(client, batch, BATCH)
        again = await post(client, batch, BATCH)
    found = response.json()
    assert response.status_code == 202
    assert (found["kept"], found["duplicates"], found["unknown"]) == (3, 1, ["telephony.call-teleported.v1"])
    assert [fault["path"] for fault in found["refused"]] == ["[2].data.visit"]
    assert (again.json()["kept"], again.json()["duplicates"]) == (0, 4)
    assert sorted(reason for reason, _, _ in await refused(rig)) == ["unknown_type"] * 2 + ["unreadable"] * 2
    assert len(await rig.sent(telephony.CallQueued)) == 1


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"null", "body"),
        (b"\x1f\x8b\x08garbage", "body"),
        (b"[" * 100_000, "body"),
        (json.dumps(event(dialled="a\u0000b")).encode(), "data.dialled"),
        (json.dumps(event()).replace('"pbx"', "1" * 5000).encode(), "data.source"),
        (json.dumps(event()).replace('"pbx"', "NaN").encode(), "data.source"),
        (json.dumps(event()).replace('"pbx"', '"\\ud800"').encode(), "data.source"),
        (json.dumps(event()).replace('"source": "pbx"', '"source": "pbx", "source": "x"').encode(), "data.source"),
        (json.dumps(event(caller="13800138000")).encode(), "data.caller"),
        (json.dumps({**event(), "time": "yesterday"}).encode(), "time"),
        (json.dumps({**event(), "data": {"call_id": "c"}}).encode(), "data.source"),
    ],
    ids=[
        "empty", "broken", "null", "gzip", "deep", "nul", "digits", "nan", "surrogate", "twice", "unsealed",
        "time", "missing",
    ],
)  # fmt: skip
async def test_bad_input_is_refused_with_its_path_kept_and_not_repeated(rig, body, path):
    async with rig.client() as client:
        response = await post(client, body)
        good = await post(client, event("good"))
    assert response.status_code == 400
    (fault,) = response.json()["refused"]
    assert fault["path"].startswith(path) or path == "body"
    assert "13800138000" not in response.text
    assert good.status_code == 202
    ((reason, explanation, sealed),) = await refused(rig)
    assert reason == "unreadable"
    assert "13800138000" not in explanation
    from base64 import b64decode

    assert b64decode(rig.vault.open_record(sealed)["value"]) == body


def signed(body, at=None, secret=SECRET, message="msg-1"):
    at = at or utc_now()
    signature = Signer(secret).sign(message, at, body.decode())
    return {
        "webhook-id": message, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature,
        **STRUCTURED,
    }  # fmt: skip


async def test_signatures_bad_old_future_and_reserialised_are_401_and_a_replay_is_200(rig):
    body = json.dumps(event()).encode()
    other = "whsec_" + "A" * 32
    async with rig.client() as client:
        unsigned = await post(client, body, STRUCTURED, "signed")
        wrong = await post(client, body, signed(body, secret=other), "signed")
        old = await post(client, body, signed(body, utc_now() - timedelta(minutes=6)), "signed")
        new = await post(client, body, signed(body, utc_now() + timedelta(minutes=6)), "signed")
        rewritten = await post(client, json.dumps(event(), indent=1).encode(), signed(body), "signed")
        right = await post(client, body, signed(body), "signed")
        replayed = await post(client, body, signed(body), "signed")
    assert [answer.status_code for answer in (unsigned, wrong, old, new, rewritten)] == [401] * 5
    assert (right.status_code, replayed.status_code) == (202, 200)
    audited = await refused(rig)
    assert [reason for reason, _, _ in audited] == [
        "signature_missing", "signature_mismatch", "signature_too_old", "signature_too_new",
        "signature_mismatch",
    ]  # fmt: skip
    assert [sealed for _, _, sealed in audited] == [None] * 5, "who is not believed fills no disk"
    assert len(await rig.sent(telephony.CallOffered)) == 1


async def test_a_token_is_needed_when_there_are_tokens(rig, tmp_path):
    tokens = tmp_path / "tokens.yaml"
    digest = sha256(b"right").hexdigest()
    tokens.write_text(f"- {{name: pbx, roles: [telephony], token_sha256: {digest}}}\n")
    rig.house.access = Access.at(tokens)
    async with rig.client() as client:
        without = await post(client, event())
        wrong = await post(client, event(), {**STRUCTURED, "authorization": "Bearer wrong"})
        right = await post(client, event(), {**STRUCTURED, "authorization": "Bearer right"})
    assert [answer.status_code for answer in (without, wrong, right)] == [401, 401, 202]


async def test_the_application_says_no_in_one_shape_and_in_words_of_its_own(rig):
    async with rig.client() as client:
        answers = [
            await client.get("/nowhere"),
            await client.delete("/callbacks"),
            await client.put("/calls/c/draft", content=b"{}", headers={"content-type": "text/plain"}),
        ]
        none = await client.post("/telephony/events", content=b"5", headers=STRUCTURED)
    assert [(one.status_code, one.json()["error"]) for one in answers] == [
        (404, "not_found"), (405, "method_not_allowed"), (422, "malformed"),
    ]  # fmt: skip
    assert all(one.json()["zh"] for one in answers[:2])
    fault = {"path": "body", "problem": "is not a JSON object; send Content-Type: application/json"}
    assert answers[2].json()["faults"] == [fault]
    assert none.json()["refused"][0]["problem"] == "is not an object of named fields"


@pytest.mark.parametrize("digest", ["sha256:" + "a" * 64, "A" * 64, "é" * 64, "right", ""])
def test_a_token_file_with_a_digest_that_no_token_can_have_is_refused(tmp_path, digest):
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"- {{name: pbx, roles: [telephony], token_sha256: '{digest}'}}\n", "utf-8")
    with pytest.raises(Misconfigured, match="token_sha256"):
        Access.at(tokens)


def test_a_door_to_the_world_needs_its_tokens_and_nothing_else(tmp_path):
    given = {
        "kafka_bootstrap": "-",
        "database_url": "-",
        "master_key_file": "/dev/null",
        "http_host": "0.0.0.0",
    }
    with pytest.raises(ValueError, match="HOTLINE_TOKENS_FILE"):
        DoorSettings(**given)
    assert DoorSettings(**given, tokens_file=tmp_path).http_host == "0.0.0.0"


async def test_the_metrics_of_a_door_to_the_world_need_the_token_of_processes(rig, tmp_path):
    token = tmp_path / "token"
    token.write_text("b2d1f0c4a99e4f5c")
    statuses = []
    for known in (None, token):
        rig.house.settings = rig.house.settings.model_copy(update={"http_token_file": known})
        app = web(rig.house, Health(), rig.assistant)
        transport = httpx.ASGITransport(app, client=("10.0.0.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as elsewhere:
            shown = {"authorization": "Bearer b2d1f0c4a99e4f5c"}
            answers = [await elsewhere.get("/metrics", headers=headers) for headers in ({}, shown)]
        statuses += [answer.status_code for answer in answers]
    assert statuses == [403, 403, 401, 200]


async def test_a_form_of_twilio_is_a_call(rig):
    form = (
        b"CallSid=CA1&AccountSid=AC1&From=%2B8613800138000&To=%2B8695000&Direction=inbound&CallStatus=ringing"
        b"&Timestamp=Tue%2C+24+Nov+2026+09%3A00%3A00+%2B0000&SequenceNumber=0"
    )
    headers = {"content-type": "application/x-www-form-urlencoded"}
    async with rig.client() as client:
        first = await post(client, form, headers, "twilio")
        again = await post(client, form, headers, "twilio")
        bad = await post(client, b"\xff\xfe", headers, "twilio")
    assert [answer.status_code for answer in (first, again, bad)] == [202, 200, 400]
    (offered,) = await rig.sent(telephony.CallOffered)
    assert (offered.call_id, offered.source) == ("CA1", "twilio")
    assert rig.vault.open(offered.customer_ref, offered.caller) == PHONE


async def test_the_handshake_allows_the_origin_that_asks(rig):
    async with rig.client() as client:
        allowed = await client.options("/telephony/events", headers={"webhook-request-origin": "pbx.example"})
        unknown = await client.options("/telephony/nobody", headers={"webhook-request-origin": "pbx.example"})
    assert allowed.headers["webhook-allowed-origin"] == "pbx.example"
    assert unknown.status_code == 404


async def test_an_unknown_source_a_huge_body_and_a_slow_one(rig, monkeypatch):
    monkeypatch.setattr("services.intake.door.telephony.BODY_WITHIN", 0.2)

    async def slowly():
        yield b"{"
        await asyncio.Event().wait()

    async with rig.client() as client:
        nobody = await post(client, event(), source="nobody")
        huge = await post(client, b" " * (MAX_BODY + 1))
        slow = await client.post("/telephony/events", content=slowly(), headers=STRUCTURED)
    assert [answer.status_code for answer in (nobody, huge, slow)] == [404, 413, 408]


async def test_too_much_is_429_and_an_absent_database_503_each_with_retry_after(rig, monkeypatch):
    async with rig.client() as client:
        with monkeypatch.context() as full:
            full.setattr(entry_room, "MOST_WAITING", 0)
            busy = await post(client, event())

        async def away(*_):
            raise Transient("postgres is away")

        with monkeypatch.context() as broken:
            broken.setattr("chassis.outbox.store", away)
            lost = await post(client, event())
        kept = await post(client, event())
    assert [(answer.status_code, answer.headers.get("retry-after")) for answer in (busy, lost, kept)] == [
        (429, "1"), (503, "1"), (202, None),
    ]  # fmt: skip


async def test_what_must_be_refused_while_postgres_is_away_is_503_too(rig, monkeypatch):
    async def away(*_):
        raise InterfaceError("the pool is closed")

    monkeypatch.setattr("services.intake.door.ledger.refuse", away)
    async with rig.client() as client:
        answers = [
            await post(client, b"{"),
            await post(client, event("e-9", "call-teleported")),
            await post(client, event(), source="signed"),
        ]
    assert [(answer.status_code, answer.headers.get("retry-after")) for answer in answers] == [(503, "1")] * 3


async def test_a_body_is_kept_once_however_many_of_its_events_cannot_be_read(rig):
    batch = [event(f"e-{n}", "call-queued", queue="cards", visit="first") for n in range(20)]
    async with rig.client() as client:
        found = (await post(client, batch, BATCH)).json()
    assert len(found["refused"]) == 20
    ((reason, explanation, sealed),) = await refused(rig)
    assert (reason, explanation[:14]) == ("unreadable", "[0].data.visit")
    assert "[19].data.visit" in explanation
    assert rig.vault.open_record(sealed)["value"]


async def test_who_is_not_believed_is_audited_so_often_a_minute_and_then_only_counted(rig, monkeypatch):
    monkeypatch.setattr("services.intake.door.telephony.AUDITED_A_MINUTE", 3)
    async with rig.client() as client:
        answers = [await post(client, event(), source="signed") for _ in range(10)]
    assert [answer.status_code for answer in answers] == [401] * 10
    assert len(await refused(rig)) == 3
    counted = rig.house.metrics.registry.get_sample_value(
        "door_deliveries_total", {"source": "signed", "outcome": "unbelieved"}
    )
    assert counted == 10


async def test_a_secret_that_cannot_be_read_is_not_told_where_it_lies(rig, sources):
    (secret,) = sources["signed"].secret_files
    secret.unlink()
    async with rig.client() as client:
        answer = await post(client, event(), source="signed")
    assert answer.status_code == 503
    assert str(secret.parent) not in answer.text


def heartbeat(sequence, core="core-1"):
    at = 1795424400_000_000 + sequence * 1_000_000
    headers = {"Event-Name": "HEARTBEAT", "Core-UUID": core, "Event-Sequence": str(sequence)}
    return {**headers, "Event-Date-Timestamp": str(at)}


@pytest.fixture
def clock(monkeypatch):
    """The door's clock, moved by hand."""
    now = [utc_now()]
    monkeypatch.setattr(entry_room, "utc_now", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + timedelta(seconds=seconds))


def missing(rig, source):
    return rig.house.metrics.registry.get_sample_value("door_missing_events", {"source": source})


async def test_a_number_that_a_switch_jumped_over_is_told_as_a_gap_unless_it_comes(
    stage_database, vault, clock
):
    all_of_it = Webhook(name="fs", kind="freeswitch", every_event=True)
    picked = Webhook(name="picked", kind="freeswitch")
    rig = DoorRig(stage_database, vault, {source.name: source for source in (all_of_it, picked)})
    async with rig.client() as client:
        for sequence in (7, 9, 10, 14, 8):
            await post(client, heartbeat(sequence), {}, "fs")
            await post(client, heartbeat(sequence), {}, "picked")
        assert (missing(rig, "fs"), await rig.sent(telephony.SourceInterrupted)) == (3, [])
        clock(11)
        await post(client, heartbeat(15), {}, "fs")
        await post(client, heartbeat(15), {}, "picked")
        (gap,) = await rig.sent(telephony.SourceInterrupted)
        assert (gap.source, gap.reason, gap.from_seq, gap.to_seq) == ("fs", "seq_jump", 11, 13)
        assert gap.gap_to - gap.gap_from == timedelta(seconds=4)
        for late in (12, 11, 13):
            clock(60)
            await post(client, heartbeat(late), {}, "fs")
        assert missing(rig, "fs") == 0
    assert len(await rig.sent(telephony.SourceInterrupted)) == 1
    assert missing(rig, "picked") is None
    assert {reason for reason, _, _ in await refused(rig)} == {"unknown_type"}, "what is picked is kept"
    assert await rig.rows("select 1 from refused_deliveries where source = 'fs'") == []


async def test_a_gap_is_the_same_whichever_door_hears_it_and_a_restart_is_told_once(
    stage_database, vault, clock
):
    sources = {"fs": Webhook(name="fs", kind="freeswitch", every_event=True)}
    one, other = (DoorRig(stage_database, vault, sources) for _ in range(2))
    async with one.client() as here, other.client() as there:
        for sequence in range(1, 20, 2):
            await asyncio.gather(
                post(here, heartbeat(sequence), {}, "fs"), post(there, heartbeat(sequence + 1), {}, "fs")
            )
        await post(here, heartbeat(3, "core-2"), {}, "fs")
        await post(there, heartbeat(4, "core-2"), {}, "fs")
        await post(there, heartbeat(20), {}, "fs")
        clock(11)
        await post(here, heartbeat(5, "core-2"), {}, "fs")
    said = [*await one.sent(telephony.SourceInterrupted), *await other.sent(telephony.SourceInterrupted)]
    assert [(gap.reason, gap.from_seq, gap.to_seq) for gap in said] == [("source_restarted", None, None)]


async def test_an_event_that_came_and_was_refused_is_not_missing(stage_database, vault, clock):
    sources = {"fs": Webhook(name="fs", kind="freeswitch", every_event=True)}
    rig = DoorRig(stage_database, vault, sources)
    async with rig.client() as client:
        for sequence in (7, 9):
            await post(client, heartbeat(sequence), {}, "fs")
        created = {**heartbeat(8), "Event-Name": "CHANNEL_CREATE"}
        answer = await post(client, created, {}, "fs")
        nameless = await post(client, {**heartbeat(10), "Core-UUID": ""}, {}, "fs")
        clock(11)
        await post(client, heartbeat(10), {}, "fs")
    assert (answer.status_code, answer.json()["refused"][0]["path"]) == (400, "Unique-ID")
    assert nameless.status_code == 400
    assert missing(rig, "fs") == 0
    assert await rig.sent(telephony.SourceInterrupted) == []
    assert [reason for reason, _, _ in await refused(rig)] == ["unreadable"] * 2


async def test_a_gap_before_silence_is_told_shown_by_every_door_and_let_go_after_a_day(
    stage_database, vault, clock
):
    sources = {
        "fs": Webhook(name="fs", kind="freeswitch", every_event=True),
        "picked": Webhook(name="picked", kind="freeswitch"),
    }
    one, other = (DoorRig(stage_database, vault, sources) for _ in range(2))
    watches = [partial(keep_time, rig.house, sources) for rig in (one, other)]

    async def shown():
        for watch in watches:
            await watch()
        return missing(one, "fs"), missing(other, "fs")

    async with one.client() as here, other.client():
        assert await shown() == (0, 0), "nothing was heard yet"
        for sequence in (7, 11):
            await post(here, heartbeat(sequence), {}, "fs")
        assert await shown() == (3, 3)
        assert await one.sent(telephony.SourceInterrupted) == []
        clock(11)
        assert await shown() == await shown() == (3, 3)
        said = [*await one.sent(telephony.SourceInterrupted), *await other.sent(telephony.SourceInterrupted)]
        assert [(gap.from_seq, gap.to_seq) for gap in said] == [(8, 10)]
        clock(24 * 3600)
        assert await shown() == (0, 0)
    assert missing(one, "picked") is None


async def test_numbered_cloudevents_and_their_manifests_show_what_was_lost(stage_database, vault, clock):
    def numbered(number, kind="call-offered", **data):
        return {**event(f"e-{number}", kind, **data), "sequence": str(number)}

    every = Webhook(name="every", kind="cloudevents", every_event=True)
    picked = Webhook(name="picked", kind="cloudevents")
    rig = DoorRig(stage_database, vault, {source.name: source for source in (every, picked)})
    at = "2026-11-24T09:00:10Z"
    said = {"source": "pbx", "from_seq": 41, "to_seq": 48, "count": 8, "period_from": at, "period_to": at}
    manifest = {**event("m-1", "manifest-published"), "data": said}
    async with rig.client() as client:
        for source in ("every", "picked"):
            for number in (41, 43):
                await post(client, numbered(number), source=source)
            await post(client, numbered(44, "of-no-use"), source=source)
            await post(client, numbered(45, "call-queued", queue=1), source=source)
            batch = [numbered(46), numbered(47)]
            assert (await post(client, batch, BATCH, source)).json()["kept"] == 2
        kept, again, unread = [
            (answer.status_code, answer.json())
            for answer in [
                await post(client, manifest, source="every"),
                await post(client, manifest, source="every"),
                await post(client, manifest, source="picked"),
            ]
        ]
        other = {**manifest, "data": {**said, "to_seq": 43, "count": 3}}
        assert (await post(client, other, source="every")).status_code == 409
        clock(11)
        await keep_time(rig.house, rig.sources)
    assert (kept[0], again[0], unread[1]["unknown"]) == (202, 200, ["telephony.manifest-published.v1"])
    gaps = await rig.sent(telephony.SourceInterrupted)
    assert [(gap.source, gap.from_seq, gap.to_seq) for gap in gaps] == [("every", 42, 42), ("every", 48, 48)]
    assert missing(rig, "every") == 2
    assert await rig.sent(telephony.ManifestPublished) == [], "it numbers their feed, not ours"


def test_a_sources_file_is_checked_entry_by_entry(tmp_path):
    path = tmp_path / "sources.yaml"

    def fault(text):
        path.write_text(text)
        with pytest.raises(Misconfigured) as refusal:
            load_sources(path, "127.0.0.1")
        return str(refusal.value)

    assert "not a list" in fault("name: x")
    assert "entry 1: kind" in fault("- {name: a, kind: fax}") or "entry 1" in fault("- {name: a, kind: fax}")
    assert "secret_files" in fault("- {name: a, kind: cloudevents, auth: standard}")
    assert "twilio calls" in fault("- {name: a, kind: twilio, auth: twilio, secret_files: [x]}").lower()
    assert "number its events" in fault("- {name: a, kind: connect, every_event: true}")
    assert "taken" in fault("- {name: a, kind: cloudevents}\n- {name: a, kind: cloudevents}")
    assert "host" in fault("- {name: a, kind: asterisk}")
    assert "tls: true" in fault("- {name: a, kind: asterisk, host: pbx, secret_file: s, tls_ca_file: c}")
    assert "secret_file" in fault("- {name: a, kind: asterisk, host: pbx}")
    path.write_text(
        "- {name: open, kind: cloudevents, auth: none}\n- {name: p, kind: asterisk, queue_log: /l}"
    )
    assert isinstance(load_sources(path, "127.0.0.1")["p"], Pbx)
    with pytest.raises(Misconfigured, match="loopback"):
        load_sources(path, "0.0.0.0")
