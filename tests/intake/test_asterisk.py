"""The recorded PBX: what the manager feed means equals what the switch's own queue_log says."""

import gzip
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.ids import foreign_id
from schemas import telephony
from services.intake.ami import MAX_BLOCK, blocks, recorded_chunks
from services.intake.asterisk import Switch, replay

RECORDINGS = Path(__file__).parents[1] / "recordings"
STEADY = Path(str(resources.files("cli"))) / "recordings/run2-full/ami-steady.raw.gz"


@pytest.fixture(scope="module")
def facts():
    return list(replay(STEADY, "pbx"))


@pytest.fixture(scope="module")
def queue_log():
    text = gzip.open(RECORDINGS / "run2-full/queue_log.gz").read().decode()
    return [line.split("|") for line in text.splitlines()]


def of(facts, kind):
    return [fact.body for fact in facts if isinstance(fact.body, kind)]


def test_every_offered_call_ends_exactly_once(facts):
    offered = Counter(body.call_id for body in of(facts, telephony.CallOffered))
    ended = Counter(body.call_id for body in of(facts, telephony.CallEnded))
    assert len(offered) == 72
    assert offered == ended


def test_every_visit_to_a_queue_ends_in_an_answer_or_a_reason(facts):
    queued = Counter((body.call_id, body.visit) for body in of(facts, telephony.CallQueued))
    ends = of(facts, telephony.CallAnswered) + of(facts, telephony.QueueLeft)
    assert sum(queued.values()) == 63
    assert queued == Counter((body.call_id, body.visit) for body in ends)


def test_every_answer_has_its_talk(facts):
    answered = Counter((body.call_id, body.visit) for body in of(facts, telephony.CallAnswered))
    assert len(answered) == 50
    assert answered == Counter((body.call_id, body.visit) for body in of(facts, telephony.TalkEnded))


def test_reasons_for_leaving_equal_the_queue_log(facts, queue_log):
    verbs = Counter(row[4] for row in queue_log)
    reasons = Counter(body.reason for body in of(facts, telephony.QueueLeft))
    assert reasons == {
        "abandoned": verbs["ABANDON"],
        "timeout": verbs["EXITWITHTIMEOUT"],
        "key": verbs["EXITWITHKEY"],
        "withdrawn": verbs["WITHDRAW"],
    }
    assert len(of(facts, telephony.CallRefused)) == 8  # a full queue writes no line at all
    modes = Counter(body.mode for body in of(facts, telephony.CallTransferred))
    assert modes == {"blind": verbs["BLINDTRANSFER"], "attended": verbs["ATTENDEDTRANSFER"]}


def test_talk_and_wait_seconds_equal_the_queue_log(facts, queue_log):
    talks = sorted(
        (row[2], int(row[5]), int(row[6]))
        for row in queue_log
        if row[4] in ("COMPLETEAGENT", "COMPLETECALLER")
    )
    mapped = sorted(
        (body.queue, body.wait_ms // 1000, body.talk_ms // 1000)
        for body in of(facts, telephony.TalkEnded)
        if body.ended_by in ("agent", "caller")
    )
    assert mapped == talks


def test_holds_surveys_and_callbacks_are_kept(facts):
    assert len(of(facts, telephony.SurveyAnswered)) == 34
    assert len(of(facts, telephony.CallHeld)) == 9
    callbacks = [fact for fact in facts if isinstance(fact.body, telephony.CallbackRequested)]
    assert len(callbacks) == 4
    assert all(fact.phone and fact.body.number is None for fact in callbacks)


def test_keys_and_ids_are_unique_and_the_same_at_every_reading(facts):
    again = list(replay(STEADY, "pbx"))
    assert [fact.key for fact in again] == [fact.key for fact in facts]
    ids = {foreign_id("pbx", fact.key, fact.body.occurred_at) for fact in facts}
    assert len(ids) == len(facts)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000))
def test_the_cut_of_the_stream_does_not_matter(size):
    whole = list(blocks(recorded_chunks(RECORDINGS / "run3-crash/ami-steady.raw.gz")))
    assert list(blocks(recorded_chunks(RECORDINGS / "run3-crash/ami-steady.raw.gz", size))) == whole


@pytest.mark.parametrize("name", ["run2-full/ami-flaky", "run3-crash/ami-steady", "run3-crash/ami-flaky"])
def test_a_feed_with_holes_leaves_calls_open_and_breaks_nothing(name):
    facts = list(replay(RECORDINGS / f"{name}.raw.gz", "pbx"))
    offered = {body.call_id for body in of(facts, telephony.CallOffered)}
    ended = {body.call_id for body in of(facts, telephony.CallEnded)}
    assert ended < offered


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_any_bytes_are_split_without_an_exception(chunks):
    switch = Switch("pbx")
    for block in blocks(chunks):
        try:
            switch.feed(block)
        except ValueError as error:
            assert "timestampevents" in str(error)


def test_an_endless_block_is_dropped_and_the_next_is_read():
    stream = [b"Event: X\r\nJunk: " + b"a" * MAX_BLOCK, b"a" * MAX_BLOCK, b"\r\n\r\nEvent: Next\r\n\r\n"]
    assert {"Event": "Next"} in list(blocks(stream))


def test_a_switch_without_timestamps_is_told_how_to_send_them():
    with pytest.raises(ValueError, match="timestampevents=yes"):
        Switch("pbx").feed({"Event": "QueueCallerJoin", "Linkedid": "1.1", "Queue": "cards"})
