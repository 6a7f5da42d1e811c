"""Foreign telephony: what each switch says becomes the same canonical facts, and nothing crashes on the rest."""

import json
from base64 import urlsafe_b64encode
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.ids import foreign_id
from schemas import telephony
from services.intake import domain
from services.intake.sources import cloudevents, connect, freeswitch, genesys, twilio
from services.intake.sources.canonical import BadPayload, Reading
from services.intake.sources.cloudevents import MAX_BATCH, MAX_EVENT, CloudEvent, read_http
from services.intake.sources.foreign import MOST, Payload, read_json, split_array, visit_of
from services.intake.sources.sequence import Place
from tests.given import Life

FIXTURES = Path(__file__).parent / "fixtures"
NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
PHONE = "+4915112345678"


def fixture(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())


def story(readings):
    """The facts of many readings: kind, seconds after nine, and what only this kind says."""
    common = {"call_id", "source", "occurred_at", "leg_id", "source_seq"}
    return [
        (
            type(fact.body).__name__,
            (fact.body.occurred_at - NINE).total_seconds(),
            fact.body.model_dump(exclude=common, exclude_defaults=True),
        )
        for reading in readings
        for fact in reading.facts
    ]


def refused(read, *arguments):
    with pytest.raises(BadPayload) as caught:
        read(*arguments)
    return caught.value.path, caught.value.problem


# ---------------------------------------------------------------- CloudEvents over HTTP

QUEUED = {
    "call_id": "call-1",
    "source": "pbx-berlin",
    "occurred_at": "2026-11-23T09:00:05Z",
    "queue": "cards",
    "visit": 1,
}
OFFERED = {"call_id": "call-1", "source": "pbx-berlin", "occurred_at": "2026-11-23T09:00:00Z"}


def envelope(data=QUEUED, kind="telephony.call-queued.v1", **changes):
    return {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/pbx/berlin",
        "type": kind,
        "time": "2026-11-23T09:00:05.5Z",
        "data": data,
        **changes,
    }


def structured(event, headers=STRUCTURED):
    (read,) = read_http(headers, json.dumps(event).encode())
    return read


def told(event):
    return cloudevents.facts(structured(event))


def test_the_three_modes_read_the_same_event():
    event = envelope()
    binary = {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "CE-Id": "e-1",
        "ce-source": "/pbx/berlin",
        "ce-type": "telephony.call-queued.v1",
        "ce-time": "2026-11-23T09:00:05.5Z",
    }
    (from_headers,) = read_http(binary, json.dumps(QUEUED).encode())
    (from_batch,) = read_http(BATCH, json.dumps([event]).encode())
    assert from_headers == structured(event) == from_batch
    assert from_headers == CloudEvent(
        "e-1", "/pbx/berlin", "telephony.call-queued.v1", NINE + timedelta(seconds=5.5), QUEUED
    )
    assert cloudevents.facts(from_headers) == cloudevents.facts(from_batch)


def test_our_own_types_become_facts_with_the_identity_of_the_event():
    reading = told(envelope())
    assert reading.delivery == "/pbx/berlin e-1"
    assert reading.facts[0].key == "/pbx/berlin e-1"
    assert reading.facts[0].body == telephony.CallQueued.model_validate(QUEUED)
    assert reading.facts[0].phone is None
    assert told(envelope(source="/pbx/bonn")).facts[0].key != reading.facts[0].key


@pytest.mark.parametrize(
    "kind", ["com.example.other.v1", "telephony.manifest-published.v1", "intake.case-recorded.v1"]
)
def test_other_types_are_named_and_not_believed(kind):
    assert told(envelope({}, kind)) == Reading("/pbx/berlin e-1", unknown=kind)


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("telephony.call-offered.v1", "caller_number", OFFERED),
        ("telephony.callback-requested.v1", "callback_number", {**OFFERED, "queue": "cards"}),
    ],
)
def test_a_number_in_clear_goes_beside_the_body_never_into_it(kind, name, data):
    (fact,) = told(envelope({**data, name: f" {PHONE} "}, kind)).facts
    assert fact.phone == PHONE
    assert PHONE not in fact.body.model_dump_json()
    (withheld,) = told(envelope({**data, name: ""}, kind)).facts
    assert withheld.phone is None


SEALED = "q83vEjRWeJq83vEjRWeJq83vEjRWeJq83vEjRWeJ"


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("telephony.call-offered.v1", "caller", "is not sealed; send it as caller_number"),
        ("telephony.callback-requested.v1", "number", "is not sealed; send it as callback_number"),
        ("telephony.reason-captured.v1", "text", "is not sealed"),
    ],
)
@pytest.mark.parametrize("clear", [PHONE, "13800138000", "my card is lost", "4915112345678==", 13800138000])
def test_what_may_only_stand_sealed_is_refused_in_clear(kind, name, hint, clear):
    data = {**OFFERED, "queue": "cards", "topic": "cards"}
    event = structured(envelope({**data, name: clear}, kind))
    assert refused(cloudevents.facts, event) == (f"data.{name}", hint)
    (fact,) = told(envelope({**data, name: SEALED}, kind)).facts
    assert getattr(fact.body, name) == SEALED


def test_a_sealed_value_has_room_for_nonce_tag_and_one_byte():
    for length, sound in ((28, False), (29, True)):
        sealed = urlsafe_b64encode(b"\xfb" * length).decode()
        event = structured(envelope({**OFFERED, "caller": sealed}, "telephony.call-offered.v1"))
        if sound:
            assert cloudevents.facts(event).facts[0].body.caller == sealed
        else:
            assert refused(cloudevents.facts, event)[0] == "data.caller"


def test_a_number_beside_a_sealed_one_is_refused():
    event = structured(
        envelope({**OFFERED, "caller": SEALED, "caller_number": PHONE}, "telephony.call-offered.v1")
    )
    assert refused(cloudevents.facts, event)[0] == "data.caller_number"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": "a\x00b"}, "id"),
        ({"source": "two words"}, "source"),
        ({"type": None}, "type"),
        ({"time": "yesterday"}, "time"),
        ({"time": 1795424405}, "time"),
        ({"time": "2026-11-23T09:00:05"}, "time"),
        ({"time": "1969-11-23T09:00:05Z"}, "time"),
        ({"data_base64": "e30="}, "data_base64"),
    ],
)
def test_what_makes_identity_and_order_is_read_strictly(changes, path):
    bad = structured(envelope(**changes))
    assert isinstance(bad, BadPayload)
    assert bad.path == path


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_a_missing_attribute_is_named(name):
    event = envelope()
    del event[name]
    bad = structured(event)
    assert (bad.path, bad.problem) == (name, "is missing")
    headers = {f"ce-{key}": str(value) for key, value in event.items() if key != "data"}
    (bad,) = read_http(headers, b"{}")
    assert (bad.path, bad.problem) == (f"ce-{name}", "is missing")


def test_our_own_types_must_say_their_time():
    assert refused(cloudevents.facts, structured(envelope(time=None))) == ("time", "is missing")


def test_optional_attributes_may_be_odd():
    odd = {"datacontenttype": "2025-10-08T07:17:02.363Z", "dataschema": 7, "subject": [], "traceparent": {}}
    assert structured(envelope(**odd)) == structured(envelope())
    headers = {"content-type": "2025-10-08T07:17:02.363Z"} | {
        f"ce-{key}": value for key, value in envelope().items() if key != "data"
    }
    assert read_http(headers, json.dumps(QUEUED).encode()) == [structured(envelope())]


HEARD = NINE + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("event", "number"),
    [
        (envelope(sequence="0041"), 41),
        (envelope(sequence=41), 41),
        (envelope({**QUEUED, "source_seq": 41}), 41),
        (envelope({**QUEUED, "source_seq": 7}, sequence="41"), 41),
        (envelope(kind="telephony.of-no-use.v1", sequence="41"), 41),
        (envelope({**QUEUED, "queue": None}, sequence="41"), 41),
        (envelope(sequence="forty-one"), None),
        (envelope(sequence="-1"), None),
        (envelope(sequence=True), None),
        (envelope(sequence="1" * 19), None),
        (envelope(), None),
    ],
)
def test_the_number_of_an_event_is_told_whatever_it_says_if_nothing_is_left_out(event, number):
    read = structured(event)
    try:
        place = cloudevents.facts(read, HEARD).place
        assert cloudevents.facts(read).place is None
    except BadPayload as bad:
        place = bad.place
    assert (place and place.sequence) == number
    if place is not None:
        assert (place.core, place.come) == (event["source"], True)


MANIFEST = {"source": "pbx", "from_seq": 41, "to_seq": 43, "count": 3,
            "period_from": "2026-11-23T09:00:00Z", "period_to": "2026-11-23T09:00:10Z"}  # fmt: skip


def test_a_manifest_says_how_far_a_numbered_feed_has_come_and_is_no_fact():
    read = structured(envelope(MANIFEST, "telephony.manifest-published.v1"))
    reading = cloudevents.facts(read, HEARD)
    assert (reading.facts, reading.unknown) == ((), None)
    assert reading.place == Place(read.source, 43, NINE + timedelta(seconds=10), come=False)
    assert cloudevents.facts(read).unknown == "telephony.manifest-published.v1"


@pytest.mark.parametrize(
    ("changes", "attributes", "path"),
    [
        ({"count": 2}, {}, "data.count"),
        ({"from_seq": 44, "count": 0}, {}, "data.count"),
        ({"from_seq": -1, "count": 45}, {}, "data.count"),
        ({"to_seq": "many"}, {}, "data.to_seq"),
        ({"period_to": "1999-01-01T00:00:00Z"}, {}, "data.period_to"),
        ({}, {"sequence": "44"}, "sequence"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_with_its_path(changes, attributes, path):
    event = envelope({**MANIFEST, **changes}, "telephony.manifest-published.v1", **attributes)
    assert refused(cloudevents.facts, structured(event), HEARD)[0] == path


def test_header_values_are_unquoted_and_percent_decoded():
    headers = {f"ce-{key}": value for key, value in envelope().items() if key != "data"}
    (event,) = read_http({**headers, "ce-id": '"Euro \\"%E2%82%AC\\""'}, b"{}")
    assert event.id == 'Euro "€"'
    (bad,) = read_http({**headers, "ce-id": "%E2%82"}, b"{}")
    assert bad.path == "ce-id"


def test_data_may_be_base64():
    event = envelope()
    del event["data"]
    assert structured({**event, "data_base64": "eyJhIjoxfQ=="}).data == {"a": 1}
    assert structured({**event, "data_base64": "eyJhIjo"}).path == "data_base64"
    assert structured({**event, "data_base64": "eyJhIjpOYU59"}).path == "data_base64.a"


def test_the_path_of_a_wrong_field_is_told_with_its_place_in_the_batch():
    data = {**QUEUED, "queue": "no | code"}
    events = read_http(BATCH, json.dumps([envelope()] * 3 + [envelope(data)]).encode())
    assert refused(cloudevents.facts, events[3])[0] == "[3].data.queue"
    assert refused(cloudevents.facts, structured(envelope(data)))[0] == "data.queue"
    assert refused(cloudevents.facts, structured(envelope("text"))) == (
        "data",
        "is not an object of named fields",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("visit", MOST + 1), ("visit", -1), ("position", 10**17), ("occurred_at", "0001-01-01T00:00:00+14:00")],
)
def test_what_no_table_can_hold_is_refused_at_the_door(name, value):
    event = structured(envelope({**QUEUED, name: value}))
    assert refused(cloudevents.facts, event)[0] == f"data.{name}"


DEEP = b"[" * 100_000 + b"]" * 100_000
HOSTILE = {
    "NUL": (b'"a\\u0000b"', "", "has a NUL character"),
    "NaN": (b"NaN", "", "is not a number of JSON (NaN, Infinity)"),
    "infinity": (b"-Infinity", "", "is not a number of JSON (NaN, Infinity)"),
    "overflow": (b"1e999", "", "is too large a number"),
    "surrogate": (b'"\\ud83d"', "", "has half of a surrogate pair"),
    "digits": (b"9" * 5000, "", "has more than 18 digits"),
    "twice": (b'{"a": 1, "b": 2, "b": 3}', ".b", "is there twice"),
    "deep": (DEEP, "[0]" * 31, "is nested deeper than 32"),
    "deep objects": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, ".a" * 31, "is nested deeper than 32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_with_the_path_and_its_neighbours_are_read(name):
    value, below, problem = HOSTILE[name]
    good = json.dumps(envelope()).encode()
    body = good.replace(b'"visit": 1', b'"extra": {"deeper": [0, ' + value + b"]}")
    if "deep" in name:
        body = good.replace(json.dumps(QUEUED).encode(), value)
    inner = "data" if "deep" in name else "data.extra.deeper[1]"
    (alone,) = read_http(STRUCTURED, body)
    assert (alone.path, alone.problem) == (inner + below, problem)
    first, bad, last = read_http(BATCH, b"[" + b" ,".join([good, body, good]) + b"]")
    assert first == last == structured(envelope())
    assert (bad.path, bad.problem) == (f"[1].{inner}{below}", problem)


@pytest.mark.parametrize(
    ("element", "path"),
    [
        (b"", "[1]"),
        (b"7", "[1]"),
        (b"[]", "[1]"),
        (b'{"specversion": }', "[1]"),
        (b'{"specversion": "\xff"}', "[1]"),
        (b'"' + b"a" * MAX_EVENT + b'"', "[1]"),
        (b"{}", "[1].specversion"),
    ],
)
def test_a_bad_element_leaves_its_neighbours(element, path):
    good = json.dumps(envelope()).encode()
    first, bad, last = read_http(BATCH, b"\n[" + good + b"," + element + b"," + good + b" ]\n")
    assert isinstance(first, CloudEvent)
    assert first == last
    assert bad.path == path


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[", b"[{}", b'[{"a', b"[{}]]", b"[{}] x", b"[{}}", b'[{"a":1}}', b"null"]
)
def test_a_batch_that_cannot_be_told_apart_is_refused_as_one(body):
    (bad,) = read_http(BATCH, body)
    assert isinstance(bad, BadPayload)
    assert bad.path == "body"


def test_the_bounds_are_these():
    assert read_http(BATCH, b" [ ] ") == []
    full = read_http(BATCH, json.dumps([envelope()] * MAX_BATCH).encode())
    assert full == [structured(envelope())] * 1000
    (bad,) = read_http(BATCH, json.dumps([envelope()] * (MAX_BATCH + 1)).encode())
    assert bad.path == "body"
    empty = len(json.dumps(envelope("")))
    assert isinstance(structured(envelope("x" * (256 * 1024 - empty))), CloudEvent)
    assert structured(envelope("x" * (256 * 1024 - empty + 1))).path == "body"
    (binary,) = read_http({"ce-id": "1"}, b" " * (MAX_EVENT + 1))
    assert binary.path == "body"


@pytest.mark.parametrize("mode", ["application/cloudevents+avro", "application/cloudevents-batch+xml"])
def test_other_formats_and_plain_requests_are_told_what_to_send(mode):
    assert read_http({"content-type": mode}, b"{}")[0].path == "content-type"
    assert read_http({"content-type": "application/json"}, b"{}")[0].path == "ce-specversion"


def test_an_error_shows_no_content():
    secret = "13800138000"
    bodies = [
        json.dumps({secret: {secret: float("nan")}}).encode(),
        json.dumps(envelope({**QUEUED, "queue": f"| {secret}"})).encode(),
        json.dumps(envelope({**QUEUED, "occurred_at": secret + "x"})).encode(),
        json.dumps(envelope({**OFFERED, "caller": secret}, "telephony.call-offered.v1")).encode(),
        f'{{"id": {secret}x}}'.encode(),
    ]
    for body in bodies:
        (bad,) = read_http(STRUCTURED, body)
        if isinstance(bad, CloudEvent):
            with pytest.raises(BadPayload) as caught:
                cloudevents.facts(bad)
            bad = caught.value
        assert secret not in str(bad)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5).map(lambda key: key.replace("\x00", "")), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_integers_of_eighteen_digits_are_the_largest():
    assert read_json(b"[999999999999999999, -999999999999999999]") == [10**18 - 1, 1 - 10**18]
    assert refused(read_json, b"[1, 1000000000000000000]") == ("[1]", "has more than 18 digits")
    assert refused(read_json, b"-1000000000000000000") == ("body", "has more than 18 digits")


@given(JSON)
def test_what_is_sound_is_read_as_it_is(value):
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 1]))
def test_an_array_is_cut_where_its_elements_end(values, indent):
    elements = list(split_array(json.dumps(values, indent=indent).encode()))
    assert [json.loads(element) for element in elements] == values


ALPHABET = st.lists(
    st.sampled_from(
        [
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b":",
            b'"',
            b"\\",
            b"1",
            b"-",
            b"e",
            b"a",
            b"\xe4",
            b"null",
            b" ",
            b"NaN",
        ]
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(ALPHABET.map(b"".join), st.sampled_from([STRUCTURED, BATCH, {"ce-id": "1"}, {}]))
def test_any_bytes_are_read_or_refused(body, headers):
    read = read_http(headers, body)
    assert all(isinstance(event, CloudEvent | BadPayload) for event in read)
    try:
        expected = json.loads(body)
    except ValueError:
        expected = None
    if headers is BATCH and isinstance(expected, list):
        assert len(read) == len(expected)


def test_reading_takes_time_in_proportion():
    """Quotes that never close made a reader quadratic: 64 KiB would take minutes."""
    for hostile in (
        b'{"' + b'\\"' * 120_000,
        b'["' + b'\\"' * 120_000,
        b'["' * 120_000,
        b'"' * 240_000,
        b"\\" * 240_000,
    ):
        assert isinstance(read_http(STRUCTURED, hostile)[0], BadPayload)
        assert isinstance(read_http(BATCH, hostile)[0], BadPayload)


def test_visits_are_numbered_by_their_entries():
    numbers = {visit_of(f"entry-{number}") for number in range(5000)}
    assert len(numbers) == 5000
    assert max(numbers) <= MOST
    # What is kept must find its visit again for ever: this number may never change.
    assert visit_of("entry-1") == 1_757_557_484


# ---------------------------------------------------------------- Amazon Connect


def test_connect_events_tell_a_call_that_is_passed_on_and_given_up():
    readings = [connect.facts(event) for event in fixture("connect_events")]
    second = {"queue": "fraud", "visit": visit_of("c0000002-0000-4000-8000-000000000002")}
    assert story(readings[:8]) == [
        ("CallOffered", 0, {"dialled": "+4930900"}),
        ("CallQueued", 5, {"queue": "cards", "visit": 1}),
        ("CallAnswered", 47.5, {"queue": "cards", "visit": 1, "agent": "agent-7", "wait_ms": 42_500}),
        ("CallTransferred", 180, {"mode": "unknown", "to": "fraud", "to_kind": "queue"}),
        (
            "TalkEnded",
            182,
            {"queue": "cards", "visit": 1, "agent": "agent-7", "talk_ms": 134_500, "wait_ms": 42_500},
        ),
        ("CallEnded", 182, {"cause": "disconnected", "total_ms": 182_000, "leg_only": True}),
        ("CallQueued", 181, second),
        ("QueueLeft", 241, {**second, "reason": "abandoned", "wait_ms": 60_000}),
        ("CallEnded", 241, {"cause": "customer_disconnect", "leg_only": True}),
        ("WrapupDone", 212, {"agent": "agent-7", "acw_ms": 30_000}),
    ]
    facts = [fact for reading in readings[:8] for fact in reading.facts]
    assert {fact.body.call_id for fact in facts} == {"c0000001-0000-4000-8000-000000000001"}
    assert [fact.phone for fact in facts] == [PHONE] + [None] * 9
    assert [reading.delivery for reading in readings] == [f"e{number}" for number in range(1, 11)]


@pytest.mark.parametrize("passed_on", ["TRANSFER", "QUEUE_TRANSFER"])
def test_a_connect_contact_that_is_passed_on_ends_alone_and_names_the_next(passed_on):
    events = fixture("connect_events")
    first, second = events[4], events[6]
    first["detail"]["nextContactId"] = second["detail"]["contactId"]
    second["detail"]["initiationMethod"] = passed_on
    if passed_on == "QUEUE_TRANSFER":
        del first["detail"]["agentInfo"]
    left, ended = story([connect.facts(first)]), story([connect.facts(second)])
    assert [kind for kind, *_ in left] == [
        "TalkEnded" if passed_on == "TRANSFER" else "QueueLeft",
        "CallEnded",
    ]
    assert left[0][2].get("ended_by", left[0][2].get("reason")) in ("transfer", "overflow")
    next_leg = {"leg_only": True, "next_leg_id": second["detail"]["contactId"]}
    assert left[1] == ("CallEnded", 182, {"cause": "disconnected", **next_leg})
    assert ended[-1] == ("CallEnded", 241, {"cause": "customer_disconnect", "leg_only": True})


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.booleans())
def test_connect_events_in_any_order_end_a_call_with_the_last_of_its_contacts(random, consulted):
    events = fixture("connect_events")[:8]
    if consulted:  # the first agent asks a second one, and talks on
        events[4]["detail"]["disconnectTimestamp"] = "2026-11-23T09:05:00.000Z"
    random.shuffle(events)
    life = Life(domain.DECISIONS, domain.Policy())
    for event in events:
        for fact in connect.facts(event).facts:
            life.when(fact.body)
    contact = life.state
    assert (contact.call_id, contact.phase) == ("c0000001-0000-4000-8000-000000000001", "ended")
    assert (contact.ended_at - NINE).total_seconds() == (300 if consulted else 241)
    assert {visit.queue: (visit.agent, visit.left) for visit in contact.visits} == {
        "cards": ("agent-7", None), "fraud": (None, "abandoned"),
    }  # fmt: skip
    assert set(life.timers) == {"wrap-up"}


def test_whom_a_connect_agent_adds_from_outside_is_a_leg_of_the_call():
    began = fixture("connect_events")[3]
    began["detail"] |= {"initiationMethod": "EXTERNAL_OUTBOUND", "queueInfo": None}
    ended = fixture("connect_events")[4]
    links = {name: began["detail"][name] for name in ("contactId", "initialContactId", "previousContactId")}
    ended["detail"] |= {**links, "initiationMethod": "EXTERNAL_OUTBOUND"}
    assert story([connect.facts(began), connect.facts(ended)]) == [
        ("CallTransferred", 180, {"mode": "unknown", "to_kind": "external"}),
        ("CallEnded", 182, {"cause": "disconnected", "leg_only": True}),
    ]
    del began["detail"]["initialContactId"], began["detail"]["previousContactId"]
    assert connect.facts(began).unknown == "INITIATED of VOICE by EXTERNAL_OUTBOUND"


def test_connect_disconnected_without_agent_left_the_queue_and_is_over():
    assert story([connect.facts(fixture("connect_events")[8])]) == [
        ("QueueLeft", 65.25, {"queue": "cards", "visit": 1, "reason": "unknown", "wait_ms": 60_250}),
        ("CallEnded", 65.25, {"cause": "disconnected", "total_ms": 65_250, "leg_only": True}),
    ]


def test_connect_says_1970_for_what_has_not_happened():
    event = fixture("connect_events")[8]
    event["detail"]["agentInfo"] = {
        "agentArn": "a/7",
        "connectedToAgentTimestamp": "1970-01-01T00:00:00.001Z",
    }
    assert [kind for kind, *_ in story([connect.facts(event)])] == ["QueueLeft", "CallEnded"]


def test_each_connect_event_is_mapped_alone():
    events = fixture("connect_events")
    forward = [connect.facts(event) for event in events]
    backward = [connect.facts(event) for event in reversed(events)]
    assert forward == backward[::-1]


def test_connect_records_tell_the_whole_contact_once_more():
    reading = connect.facts_of_record(fixture("connect_record"))
    talk = {"queue": "cards", "visit": 1, "agent": "agent-7"}
    assert story([reading]) == [
        ("CallOffered", 0, {"dialled": "+4930900"}),
        ("CallQueued", 5, {"queue": "cards", "visit": 1}),
        ("CallAnswered", 47, {**talk, "wait_ms": 42_000}),
        ("TalkEnded", 182, {**talk, "talk_ms": 135_000, "wait_ms": 42_000, "ended_by": "caller"}),
        ("WrapupDone", 212, {"agent": "agent-7", "acw_ms": 30_000}),
        ("RecordingPublished", 182, {"uri": "recordings/c0000001.wav", "duration_ms": 135_000}),
        ("CallEnded", 182, {"cause": "customer_disconnect", "total_ms": 182_000, "leg_only": True}),
    ]
    assert [fact.phone for fact in reading.facts] == [PHONE] + [None] * 6
    assert reading.delivery == "c0000001-0000-4000-8000-000000000001@2026-11-23T09:05:10+00:00"
    assert all(fact.key.endswith("|2026-11-23T09:05:10+00:00") for fact in reading.facts)


def test_a_connect_record_of_a_later_time_is_another_version():
    record = fixture("connect_record")
    first = connect.facts_of_record(record)
    later = connect.facts_of_record({**record, "LastUpdateTimestamp": "2026-11-23T10:00:00Z"})
    assert connect.facts_of_record(record) == first
    assert later.delivery > first.delivery
    assert not {fact.key for fact in first.facts} & {fact.key for fact in later.facts}


def test_a_connect_record_that_has_a_next_contact_ends_the_talk_and_names_the_next():
    record = {**fixture("connect_record"), "NextContactId": "c2", "DisconnectReason": "AGENT_DISCONNECT"}
    said = story([connect.facts_of_record(record)])
    next_leg = {"cause": "agent_disconnect", "leg_only": True, "next_leg_id": "c2"}
    assert said[-1] == ("CallEnded", 182, next_leg)
    assert next(fields for kind, _, fields in said if kind == "TalkEnded")["ended_by"] == "transfer"


def test_a_connect_record_tells_nothing_without_its_time():
    record = {**fixture("connect_record"), "DisconnectTimestamp": None, "Recordings": None}
    record["Agent"] = {
        **record["Agent"],
        "ConnectedToAgentTimestamp": None,
        "AfterContactWorkEndTimestamp": None,
    }
    record["Queue"] = {**record["Queue"], "DequeueTimestamp": None}
    assert [kind for kind, *_ in story([connect.facts_of_record(record)])] == ["CallOffered", "CallQueued"]


def test_a_connect_record_without_an_agent_tells_when_and_why_the_queue_was_left():
    record = {**fixture("connect_record"), "Agent": None, "Recordings": None}
    left = {"queue": "cards", "visit": 1, "wait_ms": 42_000}
    assert story([connect.facts_of_record(record)])[2:] == [
        ("QueueLeft", 47, {**left, "reason": "abandoned"}),
        ("CallEnded", 182, {"cause": "customer_disconnect", "total_ms": 182_000, "leg_only": True}),
    ]
    moved = {**record, "NextContactId": "c2", "DisconnectReason": None}
    assert story([connect.facts_of_record(moved)])[2] == ("QueueLeft", 47, {**left, "reason": "overflow"})


def test_two_clocks_that_disagree_make_no_negative_wait():
    event = fixture("connect_events")[2]
    event["detail"]["QueueInfo"]["EnqueueTimestamp"] = "2026-11-23T09:00:49Z"
    assert story([connect.facts(event)])[0][2]["wait_ms"] == 0


def test_a_connect_callback_is_a_call_of_its_own_that_names_the_first():
    event = fixture("connect_events")[0]
    event["detail"] |= {"contactId": "c9", "initialContactId": "c1", "previousContactId": "c1"}
    event["detail"]["initiationMethod"] = "CALLBACK"
    (fact,) = connect.facts(event).facts
    assert (fact.body.call_id, fact.body.callback_of) == ("c9", "c1")


def test_a_connect_contact_given_straight_to_an_agent_has_waited_since_it_began():
    event = fixture("connect_events")[4]
    del event["detail"]["queueInfo"]
    event["detail"]["eventType"] = "CONNECTED_TO_AGENT"
    assert story([connect.facts(event)]) == [
        ("CallAnswered", 47.5, {"queue": "direct", "visit": 1, "agent": "agent-7", "wait_ms": 47_500})
    ]


@pytest.mark.parametrize(
    ("place", "changes", "path"),
    [
        (1, {"queueInfo": None}, "detail.queueInfo"),
        (1, {"queueInfo": {"enqueueTimestamp": "2026-11-23T09:00:05Z"}}, "detail.queueInfo.queueArn"),
        (
            1,
            {"queueInfo": {"queueArn": "q", "enqueueTimestamp": "soon"}},
            "detail.queueInfo.enqueueTimestamp",
        ),
        (1, {"contactId": None}, "detail.contactId"),
        (1, {"eventType": 7}, "detail.eventType"),
        (4, {"queueInfo": {"queueArn": "q"}}, "detail.queueInfo.enqueueTimestamp"),
        (
            7,
            {"agentInfo": {"agentArn": "a", "afterContactWorkDuration": -1}},
            "detail.agentInfo.afterContactWorkDuration",
        ),
    ],
)
def test_connect_names_the_field_that_is_wrong(place, changes, path):
    event = fixture("connect_events")[place]
    event["detail"] |= changes
    assert refused(connect.facts, event)[0] == path


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"eventType": "TELEPORTED"}, "TELEPORTED"),
        ({"channel": "CHAT"}, "QUEUED of CHAT by INBOUND"),
        ({"initiationMethod": "OUTBOUND"}, "QUEUED of VOICE by OUTBOUND"),
    ],
)
def test_connect_tells_nothing_of_what_is_no_customers_call(changes, unknown):
    event = fixture("connect_events")[1]
    event["detail"] |= changes
    assert connect.facts(event) == Reading("e2", unknown=unknown)
    assert connect.facts({**event, "detail-type": "Contact Lens Rules"}).unknown == "Contact Lens Rules"


def test_a_connect_event_that_says_nothing_needs_no_more_than_its_type():
    event = fixture("connect_events")[9]
    assert connect.facts(event) == Reading("e10")
    assert connect.facts({**event, "detail": {"eventType": "PAUSED"}}) == Reading("e10")
    assert connect.facts({**event, "detail": {"EventType": "SOON"}}) == Reading("e10", unknown="SOON")


# ---------------------------------------------------------------- Twilio


def test_twilio_forms_tell_a_call():
    readings = [twilio.facts(form) for form in fixture("twilio_forms")]
    visit = {"queue": "WQ01", "visit": visit_of("WT00000000000000000000000000000001|WQ01")}
    tried = {**visit, "agent": "WK07"}
    assert story(readings) == [
        ("CallOffered", 0, {"dialled": "+4930900"}),
        ("CallQueued", 5, {**visit, "priority": 5}),
        ("AgentOffered", 40, {**tried, "result": "ringing"}),
        ("AgentOffered", 55, {**tried, "result": "no_answer"}),
        ("CallAnswered", 65, {**tried, "wait_ms": 60_000}),
        ("TalkEnded", 165, {**tried, "talk_ms": 100_000}),
        ("QueueLeft", 45, {**visit, "reason": "abandoned"}),
        ("RecordingPublished", 165, {"uri": "https://recordings.example/RE01", "duration_ms": 99_000}),
        ("CallEnded", 170, {"cause": "completed", "total_ms": 170_000}),
    ]
    facts = [fact for reading in readings for fact in reading.facts]
    assert {fact.body.call_id for fact in facts} == {"CA00000000000000000000000000000001"}
    assert [fact.phone for fact in facts] == [PHONE] + [None] * 8
    assert len({reading.delivery for reading in readings}) == len(readings)


def test_twilios_own_sample_of_a_stream_is_read_though_two_attributes_are_odd():
    event = structured(fixture("twilio_stream"))
    assert event.time is None
    reading = cloudevents.facts(event)
    visit = {"queue": "WQ01", "visit": visit_of("WT00000000000000000000000000000001|WQ01")}
    assert story([reading]) == [("QueueLeft", 45, {**visit, "reason": "abandoned", "wait_ms": 40_000})]
    assert reading.delivery == "AB00000000000000000000000001 NO00000000000000000000000001"


def test_a_twilio_fact_is_the_same_from_a_form_and_from_the_stream():
    (from_form,) = twilio.facts(fixture("twilio_forms")[6]).facts
    (from_stream,) = cloudevents.facts(structured(fixture("twilio_stream"))).facts
    assert from_form.key == from_stream.key
    assert from_form.body.occurred_at == from_stream.body.occurred_at


def test_without_the_time_of_the_answer_twilio_tells_no_talk():
    form = fixture("twilio_forms")[5]
    form["TaskAttributes"] = '{"call_sid": "CA1"}'
    reading = twilio.facts(form)
    assert (reading.facts, reading.unknown) == ((), None)


@pytest.mark.parametrize(
    "number", [*sorted(twilio.WITHHELD), "client:somebody", "sip:a@b.example", "anonymous"]
)
def test_a_withheld_number_is_nobodys(number):
    (fact,) = twilio.facts({**fixture("twilio_forms")[0], "From": number}).facts
    assert isinstance(fact.body, telephony.CallOffered)
    assert fact.phone is None


def test_twilios_keypad_words_spell_what_they_say():
    keys = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "22233344455566677778889999", strict=True))
    words = ("ANONYMOUS", "RESTRICTED", "BLOCKED", "UNKNOWN", "UNAVAILABLE")
    assert {"+" + "".join(keys[letter] for letter in word) for word in words} == twilio.WITHHELD


def test_a_form_without_timestamp_takes_the_time_of_its_receipt():
    form = {name: value for name, value in fixture("twilio_forms")[0].items() if name != "Timestamp"}
    assert refused(twilio.facts, form) == ("Timestamp", "is missing")
    (fact,) = twilio.facts(form, NINE).facts
    assert fact.body.occurred_at == NINE


@pytest.mark.parametrize(
    ("place", "changes", "path"),
    [
        (0, {"Timestamp": "Mon, 99 Nov 2026 09:00:00 +0000"}, "Timestamp"),
        (0, {"CallSid": ""}, "CallSid"),
        (8, {"CallDuration": "long"}, "CallDuration"),
        (8, {"CallDuration": "9" * 30}, "CallDuration"),
        (1, {"Timestamp": "9" * 18}, "Timestamp"),
        (1, {"TaskSid": ""}, "TaskSid"),
        (1, {"TaskAttributes": "{"}, "TaskAttributes"),
        (1, {"TaskAttributes": '{"call_sid": 7}'}, "TaskAttributes.call_sid"),
        (1, {"TaskAttributes": "[" * 100_000}, "TaskAttributes"),
        (1, {"TaskQueueSid": ""}, "TaskQueueSid"),
        (4, {"WorkerSid": "a | b"}, "WorkerSid"),
    ],
)
def test_twilio_names_the_field_that_is_wrong(place, changes, path):
    assert refused(twilio.facts, fixture("twilio_forms")[place] | changes)[0] == path


def test_twilio_names_the_field_of_a_stream_as_the_stream_does():
    event = fixture("twilio_stream")
    del event["data"]["payload"]["task_queue_sid"]
    assert refused(cloudevents.facts, structured(event)) == ("data.payload.task_queue_sid", "is missing")
    (alone,) = read_http(BATCH, json.dumps([{**event, "data": {}}]).encode())
    assert refused(cloudevents.facts, alone)[0] == "[0].data.payload"


@pytest.mark.parametrize(
    ("place", "changes", "unknown"),
    [
        (0, {"Direction": "outbound-api"}, "ringing of outbound-api"),
        (0, {"CallStatus": "teleported"}, "teleported"),
        (1, {"EventType": "worker.activity.update", "TaskSid": ""}, "worker.activity.update"),
        (1, {"TaskAttributes": "{}"}, "task-queue.entered of a task without call_sid"),
    ],
)
def test_twilio_tells_nothing_of_what_is_no_customers_call(place, changes, unknown):
    reading = twilio.facts(fixture("twilio_forms")[place] | changes)
    assert (reading.facts, reading.unknown) == ((), unknown)


HOLD = {
    "ConferenceSid": "CF1",
    "FriendlyName": "WT1",
    "StatusCallbackEvent": "participant-hold",
    "Timestamp": "Mon, 23 Nov 2026 09:02:00 +0000",
    "SequenceNumber": "4",
    "CallSid": "CA1",
    "Muted": "false",
    "Hold": "true",
}


def test_a_twilio_conference_tells_when_the_customer_is_held():
    back = {"StatusCallbackEvent": "participant-unhold", "Timestamp": "Mon, 23 Nov 2026 09:02:30 +0000"}
    readings = [twilio.facts(HOLD), twilio.facts({**HOLD, **back, "SequenceNumber": "5"})]
    assert story(readings) == [("CallHeld", 120, {"held": True}), ("CallHeld", 150, {"held": False})]
    assert [reading.delivery for reading in readings] == ["CF1|4", "CF1|5"]
    assert {fact.body.call_id for reading in readings for fact in reading.facts} == {"CA1"}
    assert twilio.facts({**HOLD, "ParticipantLabel": "worker"}) == Reading("CF1|4")
    assert twilio.facts({**HOLD, "StatusCallbackEvent": "participant-join"}) == Reading("CF1|4")
    assert twilio.facts({**HOLD, "StatusCallbackEvent": "announcement-end"}).unknown == "announcement-end"
    assert refused(twilio.facts, {**HOLD, "CallSid": ""}) == ("CallSid", "is missing in participant-hold")


def test_twilio_tells_a_recording_once_it_is_there():
    form = {
        "CallSid": "CA1",
        "RecordingSid": "RE1",
        "RecordingUrl": "https://recordings.example/RE1",
        "RecordingStatus": "completed",
        "RecordingDuration": "60",
        "RecordingStartTime": "Mon, 23 Nov 2026 09:01:00 +0000",
    }
    kept = {"uri": "https://recordings.example/RE1", "duration_ms": 60_000}
    assert story([twilio.facts(form)]) == [("RecordingPublished", 120, kept)]
    assert twilio.facts({**form, "RecordingStatus": "absent"}) == Reading("RE1|absent")
    untimed = {**form, "RecordingStartTime": ""}
    assert story([twilio.facts(untimed, NINE)])[0][1] == 0
    assert refused(twilio.facts, untimed) == ("RecordingStartTime", "is missing")


def test_a_task_that_is_moved_leaves_its_queue_but_a_step_that_timed_out_may_stay():
    form = fixture("twilio_forms")[1]
    visit = {"queue": "WQ01", "visit": visit_of("WT00000000000000000000000000000001|WQ01")}
    assert story([twilio.facts({**form, "EventType": "task-queue.moved"})]) == [
        ("QueueLeft", 5, {**visit, "reason": "overflow"})
    ]
    silent = twilio.facts({**form, "EventType": "task-queue.timeout"})
    assert (silent.facts, silent.unknown) == ((), None)


def test_a_form_of_another_kind_is_refused():
    assert refused(twilio.facts, {"MessageSid": "SM1"})[0] == "EventType"


# ---------------------------------------------------------------- Genesys


def test_genesys_events_tell_a_call():
    readings = [genesys.facts(event) for event in fixture("genesys_events")]
    cards = {"queue": "q-cards", "visit": visit_of("7d9e|q-cards")}
    fraud = {"queue": "q-fraud", "visit": visit_of("7d9e|q-fraud")}
    assert story(readings) == [
        ("CallOffered", 0, {"dialled": "+4930900"}),
        ("CallQueued", 5, {**cards, "priority": 3}),
        ("AgentOffered", 30, {**cards, "agent": "u-7", "result": "ringing"}),
        ("CallAnswered", 47.5, {**cards, "agent": "u-7", "wait_ms": 42_500}),
        ("TalkEnded", 180, {**cards, "agent": "u-7", "talk_ms": 132_500, "ended_by": "transfer"}),
        ("CallTransferred", 180, {"mode": "attended", "from_agent": "u-7"}),
        ("WrapupDone", 210, {"agent": "u-7", "acw_ms": 30_000, "code": "resolved"}),
        ("CallEnded", 181, {"cause": "peer"}),
        ("QueueLeft", 90, {**fraud, "reason": "abandoned", "wait_ms": 40_000}),
        ("AgentOffered", 95, {**fraud, "agent": "u-8", "result": "no_answer", "ring_ms": 15_000}),
        ("CallbackRequested", 99, {"queue": "q-cards", "due_at": NINE + timedelta(hours=1)}),
    ]
    facts = [fact for reading in readings for fact in reading.facts]
    assert [fact.phone for fact in facts] == [PHONE] + [None] * 9 + [PHONE]
    assert facts[0].key == "genesys|7d9e|s1|customer.start|2026-11-23T09:00:00+00:00|CallOffered"


def test_genesys_tells_nothing_of_calls_that_the_bank_makes():
    for event in fixture("genesys_events"):
        body = event["detail"]["eventBody"]
        body["direction"] = "OUTBOUND"
        reading = genesys.facts(event)
        assert bool(reading.facts) == (body["mediaType"] == "CALLBACK")
        assert (reading.unknown or "of OUTBOUND").endswith("of OUTBOUND")


def test_genesys_notifications_come_without_an_envelope():
    for event in fixture("genesys_events"):
        bare, wrapped = genesys.facts(event["detail"]), genesys.facts(event)
        assert bare.facts == wrapped.facts
    assert bare.delivery == "v2.detail.events.conversation.7d9e.acd.start|s6|1795424499000"
    assert wrapped.delivery == "g-acd.start"


@pytest.mark.parametrize(
    ("place", "changes", "path"),
    [
        (1, {"queueId": None}, "detail.eventBody.queueId"),
        (3, {"connectedDurationMs": "long"}, "detail.eventBody.connectedDurationMs"),
        (3, {"answeredUserId": None}, "detail.eventBody.answeredUserId"),
        (0, {"eventTime": "2026-11-23"}, "detail.eventBody.eventTime"),
        (0, {"eventTime": 10**17}, "detail.eventBody.eventTime"),
        (0, {"conversationId": ["x"]}, "detail.eventBody.conversationId"),
    ],
)
def test_genesys_names_the_field_that_is_wrong(place, changes, path):
    event = fixture("genesys_events")[place]
    event["detail"]["eventBody"] |= changes
    assert refused(genesys.facts, event)[0] == path


def test_genesys_tells_no_more_than_an_event_says():
    first, queued, *_ = fixture("genesys_events")
    first["detail"]["eventBody"]["direction"] = "OUTBOUND"
    assert genesys.facts(first) == Reading("g-customer.start", unknown="customer.start of OUTBOUND")
    queued["detail"]["eventBody"]["callbackNumbers"] = [PHONE]
    assert [fact.phone for fact in genesys.facts(queued).facts] == [None]
    ended = fixture("genesys_events")[4]
    ended["detail"]["eventBody"]["interactingDurationMs"] = 0
    assert [kind for kind, *_ in story([genesys.facts(ended)])] == ["AgentOffered"]
    del ended["detail"]["eventBody"]["queueId"]
    assert genesys.facts(ended).facts == ()


def test_genesys_tells_nothing_of_other_topics_and_media():
    event = fixture("genesys_events")[1]
    event["detail"]["eventBody"]["mediaType"] = "CHAT"
    assert genesys.facts(event) == Reading("g-acd.start", unknown="acd.start of CHAT")
    event["detail"]["topicName"] = "v2.detail.events.conversation.7d9e.teleported"
    assert genesys.facts(event) == Reading("g-acd.start", unknown="teleported")
    event["detail"] |= {"topicName": "v2.users.u-7.presence", "eventBody": {}}
    assert genesys.facts(event) == Reading("g-acd.start", unknown="no conversation detail event")


# ---------------------------------------------------------------- FreeSWITCH


def test_freeswitch_events_tell_a_call():
    readings = [freeswitch.facts(event) for event in fixture("freeswitch_events")]
    visit = {"queue": "cards@default", "visit": visit_of("entry-1")}
    talk = {**visit, "agent": "1001@default"}
    assert story(readings) == [
        ("CallOffered", 0, {"dialled": "900"}),
        ("CallQueued", 5, visit),
        ("AgentOffered", 10, {**talk, "result": "ringing"}),
        ("AgentOffered", 25, {**talk, "result": "busy", "ring_ms": 15_000}),
        ("CallAnswered", 47.1, {**talk, "wait_ms": 42_000, "ring_ms": 17_000, "agent_leg_id": "agent-leg-1"}),
        ("CallHeld", 60, {"held": True, "agent": "1001@default"}),
        ("CallHeld", 70, {"held": False, "agent": "1001@default"}),
        ("TalkEnded", 180, {**talk, "talk_ms": 133_000, "wait_ms": 42_000}),
        ("RecordingPublished", 180.1, {"uri": "/var/records/call-1.wav", "duration_ms": 133_000}),
        ("CallEnded", 180.3, {"cause": "normal_clearing", "total_ms": 180_300}),
        (
            "QueueLeft",
            200,
            {
                "queue": "cards@default",
                "visit": visit_of("entry-2"),
                "reason": "abandoned",
                "wait_ms": 40_000,
            },
        ),
    ]
    facts = [fact for reading in readings for fact in reading.facts]
    assert Counter(fact.body.call_id for fact in facts) == {"call-1": 10, "call-2": 1}
    assert [fact.phone for fact in facts] == [PHONE] + [None] * 10
    assert facts[1].key == "freeswitch|core-1|102|CallQueued"
    assert [reading.delivery for reading in readings] == [f"core-1|{number}" for number in range(101, 115)]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("NONE", "unknown"),
        ("TIMEOUT", "timeout"),
        ("NO_AGENT_TIMEOUT", "empty"),
        ("BREAK_OUT", "abandoned"),
        ("EXIT_WITH_KEY", "key"),
        ("SOMETHING_NEW", "unknown"),
    ],
)
def test_freeswitch_says_why_a_caller_left(said, reason):
    event = fixture("freeswitch_events")[-1] | {"CC-Cancel-Reason": said}
    assert story([freeswitch.facts(event)])[0][2]["reason"] == reason


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (1, "CC-Queue", None),
        (1, "CC-Member-UUID", ""),
        (5, "CC-Agent-Answered-Time", "soon"),
        (5, "CC-Agent-Answered-Time", "0"),
        (5, "CC-Agent-Answered-Time", "9" * 5000),
        (1, "Event-Sequence", "-1"),
        (1, "Event-Sequence", "1" * 19),
        (1, "Event-Date-Timestamp", "1795424400"),
        (0, "Call-Direction", None),
    ],
)
def test_freeswitch_names_the_header_that_is_wrong(place, name, value):
    event = fixture("freeswitch_events")[place] | {name: value}
    if value is None:
        del event[name]
    assert refused(freeswitch.facts, event)[0] == name


def test_freeswitch_tells_nothing_of_other_events():
    event = fixture("freeswitch_events")[1]
    place = freeswitch.facts(event).place
    assert (place.core, place.sequence) == ("core-1", 102)
    assert freeswitch.facts(event | {"CC-Action": "teleport"}) == Reading(
        "core-1|102", unknown="teleport", place=place
    )
    assert freeswitch.facts(event | {"Event-Subclass": "conference::x"}).unknown == "CUSTOM"
    assert freeswitch.facts(event | {"Event-Name": "HEARTBEAT"}).unknown == "HEARTBEAT"
    assert freeswitch.facts(event | {"CC-Action": "members-count"}) == Reading("core-1|102", place=place)


# ---------------------------------------------------------------- all of them


def readable(event):
    (read,) = read_http(STRUCTURED, json.dumps(event).encode())
    if isinstance(read, BadPayload):
        raise read
    return read


MAPPERS = {
    "connect_events": connect.facts,
    "connect_record": connect.facts_of_record,
    "twilio_forms": twilio.facts,
    "twilio_stream": lambda event: cloudevents.facts(readable(event)),
    "genesys_events": genesys.facts,
    "freeswitch_events": freeswitch.facts,
}


def payloads(name):
    found = fixture(name)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("name", MAPPERS)
def test_ids_are_unique_and_the_same_at_every_reading(name):
    def ids():
        facts = [fact for payload in payloads(name) for fact in MAPPERS[name](payload).facts]
        return [foreign_id("telephony", fact.key, fact.body.occurred_at) for fact in facts]

    assert ids() == ids()
    assert len(set(ids())) == len(ids()) > 0


@pytest.mark.parametrize("name", MAPPERS)
def test_extra_fields_are_ignored(name):
    for payload in payloads(name):
        assert MAPPERS[name]({**payload, "somethingNew": "and so on"}) == MAPPERS[name](payload)


TEXTS = ["", "x", "a|b", "-1", "\x00", "\ud83d", "1970-01-01T00:00:00Z", "9" * 400, "٣", "Mon, x", "[" * 5000]
ODD = [None, 0, -1, 10**15, 1.5, True, [], {}, [None], *TEXTS]


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", MAPPERS)
def test_a_damaged_payload_is_refused_with_a_path_or_what_it_says_is_sound(name, data):
    payload = place = json.loads(json.dumps(data.draw(st.sampled_from(payloads(name)))))
    while True:
        field = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[field], dict) or not place[field] or data.draw(st.booleans()):
            break
        place = place[field]
    # A form has nothing but texts.
    place[field] = data.draw(st.sampled_from(TEXTS if name == "twilio_forms" else ODD))
    try:
        reading = MAPPERS[name](payload)
    except BadPayload as bad:
        assert bad.path
        return
    for fact in reading.facts:
        assert type(fact.body).parse(fact.body.to_bytes()) == fact.body
        numbers = [value for key, value in fact.body if key.endswith("_ms") and value is not None]
        assert all(0 <= number <= MOST for number in numbers)


@pytest.mark.parametrize("name", sorted(MAPPERS.keys() - {"twilio_forms"}))
@pytest.mark.parametrize("payload", [None, [], "text", 7, {}])
def test_what_is_no_payload_is_refused(name, payload):
    assert refused(MAPPERS[name], payload)[0]


def test_an_error_of_a_payload_hides_its_content():
    class Secret(Payload):
        number: int

    assert refused(Secret.read, {"number": "13800138000x"}, "data") == (
        "data.number",
        "Input should be a valid integer, unable to parse string as an integer",
    )
