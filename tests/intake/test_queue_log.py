"""The recorded queue_log: every line is a fact, counted beside the facts, or known to be odd."""

import gzip
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import telephony
from services.intake.sources import queue_log
from services.intake.sources.asterisk import AFTER_A_HOLE
from services.intake.sources.queue_log import Line, QueueLog, parse

RECORDINGS = Path(__file__).parents[1] / "recordings"
LINES = gzip.open(RECORDINGS / "run2-full/queue_log.gz").read().decode().splitlines()
CRASH = gzip.open(RECORDINGS / "run3-crash/queue_log-both-sides-of-restart.gz").read().decode().splitlines()
JOIN = "1795479579|1795479578.339|cards|NONE|ENTERQUEUE||0510000000|1"
CONNECT = "1795479582|1795479578.339|cards|Agent/1001|CONNECT|3|1795479579.340|2"


def moment(seconds):
    return datetime.fromtimestamp(seconds, tz=UTC)


def of(facts, kind):
    return [fact.body for fact in facts if isinstance(fact.body, kind)]


def one(*lines):
    """What the last line says, after those before it."""
    log = QueueLog("pbx")
    log.feed(lines[:-1])
    said = log.feed(lines[-1:])
    assert log.odd == 0
    return said[0].body


def test_a_line_is_read_into_its_parts():
    assert parse(JOIN + "\n") == Line(
        moment(1795479579), "1795479578.339", "cards", "NONE", "ENTERQUEUE", ("", "0510000000", "1")
    )
    assert parse("1795479811|NONE|NONE|NONE|QUEUESTART|\r\n").data == ("",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1795479579|1795479578.339|cards|NONE",
        "soon|1795479578.339|cards|NONE|ABANDON|1|1|1",
        "1795479579||cards|NONE|ABANDON|1|1|1",
        "1795479579|1795479578.339|cards|NONE|abandon|1|1|1",
        "99999999999999|1795479578.339|cards|NONE|ABANDON|1|1|1",
        "\u0661|1795479578.339|cards|NONE|ABANDON|1|1|1",
        "79579|1.1|cards|NONE|ABANDON|" + "1" * 5000,
    ],
)
def test_an_odd_line_is_none_and_counted(text):
    log = QueueLog("pbx")
    assert parse(text) is None
    assert log.feed([text]) == []
    assert log.odd == 1


@pytest.mark.parametrize("data", ["", "x|1795479579.340|3", "3|1795479579.340|", "3"])
def test_a_line_whose_figures_are_missing_is_odd_and_tells_nothing(data):
    log = QueueLog("pbx")
    log.feed([JOIN])
    assert log.feed([f"1795479582|1795479578.339|cards|Agent/1001|CONNECT|{data}"]) == []
    assert log.odd == 1
    assert [fact.body.visit for fact in log.feed([CONNECT])] == [1]


def test_the_recorded_file_is_told_as_a_whole():
    log = QueueLog("pbx")
    facts = log.feed(LINES)
    assert Counter(type(fact.body).__name__ for fact in facts) == {
        "CallQueued": 63,
        "CallAnswered": 50,
        "TalkEnded": 50,
        "QueueLeft": 13,
        "AgentOffered": 16,
        "CallTransferred": 9,
    }
    assert log.odd == 0
    assert log.unused == {
        "CONFIGRELOAD": 1,
        "PAUSEALL": 1,
        "PAUSE": 1,
        "UNPAUSEALL": 1,
        "UNPAUSE": 1,
        "ADDMEMBER": 1,
        "REMOVEMEMBER": 1,
        "RINGCANCELED": 1,
    }
    ends = of(facts, telephony.CallAnswered) + of(facts, telephony.QueueLeft)
    assert Counter((body.call_id, body.visit) for body in ends) == Counter(
        (body.call_id, body.visit) for body in of(facts, telephony.CallQueued)
    )
    assert all(not channel.open for channel in log._channels.values())


@pytest.mark.parametrize(
    ("rest", "reason", "wait_ms", "position"),
    [
        ("NONE|ABANDON|3|5|7", "abandoned", 7000, 3),
        ("NONE|EXITWITHTIMEOUT|2|4|60", "timeout", 60_000, 2),
        ("NONE|EXITEMPTY|1|2|9", "empty", 9000, 1),
        ("NONE|EXITWITHKEY|2|3|5|4", "key", 4000, 3),
        ("NONE|WITHDRAW|4|5|2|supervisor", "withdrawn", 2000, 4),
    ],
)
def test_the_wait_stands_in_another_field_for_each_way_out(rest, reason, wait_ms, position):
    left = one(JOIN, f"1795479590|1795479578.339|cards|{rest}")
    assert (left.reason, left.wait_ms, left.position, left.visit) == (reason, wait_ms, position, 1)


@pytest.mark.parametrize(
    ("rest", "talk_ms", "wait_ms", "ended_by"),
    [
        ("COMPLETEAGENT|3|10|1", 10_000, 3000, "agent"),
        ("COMPLETECALLER|3|10|1", 10_000, 3000, "caller"),
        ("BLINDTRANSFER|8001|transfer|3|2|1", 2000, 3000, "transfer"),
        ("ATTENDEDTRANSFER|BRIDGE|7cff7e9e|3|4|2", 4000, 3000, "transfer"),
        ("ATTENDEDTRANSFER|LINK|SIP/1-1|SIP/2-1|3|4|2", 4000, 3000, "transfer"),
    ],
)
def test_the_talk_s_figures_are_found_for_each_way_to_end_it(rest, talk_ms, wait_ms, ended_by):
    talk = one(JOIN, CONNECT, f"1795479592|1795479578.339|cards|Agent/1001|{rest}")
    assert (talk.talk_ms, talk.wait_ms, talk.ended_by, talk.visit) == (talk_ms, wait_ms, ended_by, 1)


def test_a_transfer_says_whereto_when_the_line_does():
    facts = QueueLog("pbx").feed(
        [JOIN, CONNECT, "1795479592|1795479578.339|cards|Agent/1001|BLINDTRANSFER|8001|transfer|3|2|1"]
    )
    moved = facts[-1].body
    assert (moved.mode, moved.to, moved.from_agent) == ("blind", "8001", "Agent/1001")


def test_an_answer_and_a_failed_attempt_have_their_own_units():
    answered = one(JOIN, CONNECT)
    assert (answered.wait_ms, answered.ring_ms, answered.agent_leg_id) == (3000, 2000, "1795479579.340")
    tried = one(JOIN, "1795479584|1795479578.339|cards|Agent/1002|RINGNOANSWER|5000")
    assert (tried.result, tried.ring_ms, tried.visit) == ("no_answer", 5000, 1)


def test_a_second_visit_may_stand_before_the_end_of_the_first_talk():
    facts = QueueLog("pbx").feed(
        [
            JOIN,
            CONNECT,
            "1795479592|1795479578.339|cards|NONE|ENTERQUEUE||0510000000|1",
            "1795479592|1795479578.339|cards|Agent/1001|BLINDTRANSFER|8001|transfer|3|10|1",
            "1795479593|1795479578.339|cards|Agent/1002|CONNECT|1|1795479592.350|1",
            "1795479599|1795479578.339|cards|Agent/1002|COMPLETECALLER|1|6|1",
        ]
    )
    assert [(type(fact.body).__name__, fact.body.visit) for fact in facts if hasattr(fact.body, "visit")] == [
        ("CallQueued", 1),
        ("CallAnswered", 1),
        ("CallQueued", 2),
        ("TalkEnded", 1),
        ("CallAnswered", 2),
        ("TalkEnded", 2),
    ]


def test_who_leaves_the_same_queue_while_the_first_talk_is_not_yet_over_leaves_the_second_visit():
    lines = [JOIN, CONNECT, JOIN.replace("1795479579|", "1795479592|", 1)]
    assert one(*lines, "1795479593|1795479578.339|cards|NONE|ABANDON|1|1|1").visit == 2
    talk = "1795479592|1795479578.339|cards|Agent/1001|COMPLETEAGENT|3|10|1"
    assert one(*lines, "1795479593|1795479578.339|cards|NONE|ABANDON|1|1|1", talk).visit == 1


def test_equal_lines_are_two_facts_and_a_second_reading_is_none():
    tried = "1795479584|1795479578.339|cards|Agent/1002|RINGNOANSWER|0"
    first, second = QueueLog("pbx").feed([tried, tried])
    assert first.key != second.key
    assert [fact.key for fact in QueueLog("pbx").feed(LINES)] == [
        fact.key for fact in QueueLog("pbx").feed(LINES)
    ]
    from_the_middle = QueueLog("pbx").feed(LINES[40:])
    whole = {fact.key for fact in QueueLog("pbx").feed(LINES)}
    assert {fact.key for fact in from_the_middle} < whole
    assert len(whole) == 201


def test_no_number_of_a_caller_stands_in_a_key():
    numbers = {line.split("|")[6] for line in LINES if "ENTERQUEUE" in line}
    facts = QueueLog("pbx").feed(LINES)
    assert len(numbers) == 60
    assert not [
        fact for fact in facts for number in numbers if number in fact.key or number in repr(fact.body)
    ]


def test_two_switches_with_the_same_numbers_share_no_id_and_no_key():
    north, south = QueueLog("pbx", "north").feed(LINES), QueueLog("pbx", "south").feed(LINES)
    assert not {fact.key for fact in north} & {fact.key for fact in south}
    assert {fact.body.call_id.partition("-")[0] for fact in north} == {"north"}
    assert of(south, telephony.CallAnswered)[0].agent_leg_id == "south-1795479579.340"


def test_a_reading_from_the_middle_numbers_no_visit_as_another():
    """One that begins after a visit's entry takes a number above the ordinals, not the next visit's."""
    late = QueueLog("pbx").feed(
        [
            "1795479582|1795479578.339|cards|Agent/1001|CONNECT|3|1795479579.340|2",
            "1795479592|1795479578.339|cards|Agent/1001|COMPLETEAGENT|3|10|1",
        ]
    )
    assert [fact.body.visit for fact in late] == [AFTER_A_HOLE + 1, AFTER_A_HOLE + 1]
    talk = one("1795479592|1795479578.339|cards|Agent/1001|COMPLETEAGENT|3|10|1")
    assert talk.visit == AFTER_A_HOLE + 1


def test_a_restart_ends_whoever_was_waiting_or_talking():
    log = QueueLog("pbx")
    start = next(place for place, line in enumerate(CRASH) if "QUEUESTART" in line)
    before = log.feed(CRASH[:start])
    told = log.feed(CRASH[start : start + 1])
    assert told[0].body == telephony.SourceInterrupted(
        source="pbx", reason="source_restarted", gap_from=moment(1795479808), gap_to=moment(1795479811)
    )
    left = [(body.call_id, body.reason) for body in of(told, telephony.QueueLeft)]
    assert left == [(call, "unknown") for call in ("1795479799.653", "1795479802.657", "1795479806.659")]
    ended = of(told, telephony.CallEnded)
    assert {body.cause for body in ended} == {"source_restarted"}
    talking = {body.call_id for body in of(before, telephony.CallAnswered)} - {
        body.call_id for body in of(before, telephony.TalkEnded)
    }
    assert {body.call_id for body in ended} == talking | {call for call, _ in left}
    assert len(ended) == 6
    after = log.feed(CRASH[start + 1 :])
    assert len({fact.key for fact in before + told + after}) == len(before + told + after)
    assert Counter(body.reason for body in of(after, telephony.QueueLeft)) == {"key": 1, "withdrawn": 1}


def test_memory_is_bounded_by_the_latest_channels(monkeypatch):
    monkeypatch.setattr(queue_log, "MAX_CHANNELS", 10)
    log = QueueLog("pbx")
    log.feed(f"1795479579|1795479578.{number}|cards|NONE|ENTERQUEUE||1|1" for number in range(30))
    assert list(log._channels) == [f"1795479578.{number}" for number in range(20, 30)]
    log.feed(f"1795479579|NONE|NONE|NONE|{verb}|" for verb in map("A".__mul__, range(1, 500)))
    log.feed(f"{1795479600 + second}|1795479578.1|cards|A|RINGNOANSWER|1" for second in range(50))
    assert len(log._equal) == 1
    assert len(log.unused) == 101
    assert sum(log.unused.values()) == 499


part = st.sampled_from(
    ["", "1", "NONE", "cards", "<>", "-1", "9" * 30, "ABANDON", "CONNECT", "\u4e00", *LINES[1].split("|")]
)
verb = st.sampled_from(
    ["ENTERQUEUE", "CONNECT", "COMPLETEAGENT", "BLINDTRANSFER", "QUEUESTART", "RINGNOANSWER", "WITHDRAW"]
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.lists(part, min_size=4, max_size=4), verb, st.lists(part, max_size=5)) | st.text(),
        max_size=10,
    )
)
def test_any_lines_are_told_or_counted_never_raised(lines):
    texts = [
        line if isinstance(line, str) else "|".join(["1795479579", *line[0][1:], line[1], *line[2]])
        for line in lines
    ]
    log = QueueLog("pbx")
    for text in texts:
        before = log.odd + sum(log.unused.values())
        told = log.feed([text])
        assert told or log.odd + sum(log.unused.values()) == before + 1
