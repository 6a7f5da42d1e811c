"""The recorded PBX: what the manager feed means equals what the switch's own queue_log says."""

import gzip
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.ids import foreign_id
from schemas import telephony
from services.intake.sources import asterisk
from services.intake.sources.ami import MAX_BLOCK, Blocks, blocks, recorded_chunks
from services.intake.sources.asterisk import AFTER_A_HOLE, Switch, began_at, live_channels, replay

RECORDINGS = Path(__file__).parents[1] / "recordings"
STEADY = Path(str(resources.files("cli"))) / "recordings/run2-full/ami-steady.raw.gz"
CRASH = RECORDINGS / "run3-crash/ami-steady.raw.gz"
BLOCKS = list(blocks(recorded_chunks(STEADY)))
CRASH_BLOCKS = list(blocks(recorded_chunks(CRASH)))


def moment(seconds):
    return datetime.fromtimestamp(seconds, tz=UTC)


def lived(feed, switch=None):
    """All that a switch tells of a feed from its beginning to its end."""
    switch = switch or Switch("pbx")
    return [fact for block in feed for fact in switch.feed(block)] + switch.settle()


@pytest.fixture(scope="module")
def facts():
    return list(replay(STEADY, "pbx"))


@pytest.fixture(scope="module")
def queue_log():
    text = gzip.open(RECORDINGS / "run2-full/queue_log.gz").read().decode()
    return [line.split("|") for line in text.splitlines()]


def of(facts, kind):
    return [fact.body for fact in facts if isinstance(fact.body, kind)]


def named(name, feed=BLOCKS):
    return [block for block in feed if name in (block.get("Event"), block.get("UserEvent"))]


# ---------------------------------------------------------------- the recording as a whole


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


def test_who_transferred_is_the_agent_that_the_queue_log_names(facts, queue_log):
    lines = sorted((row[1], row[3]) for row in queue_log if row[4].endswith("TRANSFER"))
    assert sorted((body.leg_id, body.from_agent) for body in of(facts, telephony.CallTransferred)) == lines
    assert len(lines) == 9


def test_holds_surveys_and_callbacks_are_kept(facts):
    assert len(of(facts, telephony.SurveyAnswered)) == 34
    assert len(of(facts, telephony.CallHeld)) == 9
    callbacks = [fact for fact in facts if isinstance(fact.body, telephony.CallbackRequested)]
    assert len(callbacks) == 4
    assert all(fact.phone and fact.body.number is None for fact in callbacks)


def test_places_inferred_from_others_equal_the_switch_s_own_at_the_end_of_the_wait():
    switch, places = Switch("pbx"), []
    inferred = {}
    for block in BLOCKS:
        if block["Event" if "Event" in block else "Response"] == "QueueCallerLeave":
            places.append((inferred[block["Linkedid"]], int(block["Position"])))
        for fact in switch.feed(block):
            if isinstance(fact.body, telephony.CallQueued | telephony.CallPositioned):
                inferred[fact.body.call_id] = fact.body.position
    assert len(places) == 63
    assert [inferred for inferred, _ in places] == [own for _, own in places]


# ---------------------------------------------------------------- traps of the feed


def test_an_abandon_event_is_not_yet_a_caller_who_hung_up(facts, queue_log):
    verbs = Counter(row[4] for row in queue_log)
    assert len(named("QueueCallerAbandon")) == 9
    assert verbs["ABANDON"] + verbs["EXITWITHTIMEOUT"] + verbs["WITHDRAW"] == 9
    assert [body.reason for body in of(facts, telephony.QueueLeft)].count("abandoned") == 5


def test_who_leaves_by_a_key_is_known_although_nothing_but_the_leave_is_said(facts, queue_log):
    by_key = {row[1]: int(row[8]) * 1000 for row in queue_log if row[4] == "EXITWITHKEY"}
    assert not by_key.keys() & {block["Uniqueid"] for block in named("QueueCallerAbandon")}
    assert by_key == {
        body.leg_id: body.wait_ms for body in of(facts, telephony.QueueLeft) if body.reason == "key"
    }


def test_a_refused_caller_is_known_by_the_dialplan_s_word_alone(facts, queue_log):
    refused = {body.leg_id for body in of(facts, telephony.CallRefused)}
    assert len(refused) == 8
    assert not refused & {row[1] for row in queue_log}
    assert not refused & {block["Uniqueid"] for block in named("QueueCallerJoin")}
    silent = lived(block for block in BLOCKS if block.get("UserEvent") != "QueueRefused")
    assert of(silent, telephony.CallRefused) == []


def test_a_talk_that_ends_without_channel_fields_is_found_by_agent_queue_and_length(facts):
    fields = ("Event", "Timestamp", "Queue", "Interface", "MemberName", "HoldTime", "TalkTime", "Reason")
    bare = [
        {name: block[name] for name in fields} if block.get("Event") == "AgentComplete" else block
        for block in BLOCKS
    ]
    assert of(lived(bare), telephony.TalkEnded) == of(facts, telephony.TalkEnded)


def test_a_talk_end_without_channel_fields_never_ends_the_agent_s_next_talk():
    complete = next(block for block in named("AgentComplete") if block["TalkTime"] == "10")
    bare = {
        name: complete[name] for name in ("Event", "Queue", "Interface", "HoldTime", "TalkTime", "Reason")
    }
    switch = Switch("pbx")
    connected = next(block for block in named("AgentConnect") if block["Uniqueid"] == complete["Uniqueid"])
    switch.feed(connected)
    late = str(float(connected["Timestamp"]) + 60)
    assert switch.feed({**bare, "Timestamp": late}) == []
    assert switch.unused["AgentComplete without a channel or a talk"] == 1


def test_the_next_queue_may_be_entered_before_the_first_talk_is_over(facts):
    order = {
        (block["Event"], block.get("Uniqueid"), block.get("Queue")): place
        for place, block in enumerate(BLOCKS[1:])
        if "Event" in block
    }
    transferred = [body for body in of(facts, telephony.TalkEnded) if body.ended_by == "transfer"]
    inverted = [
        body
        for body in transferred
        if order.get(("QueueCallerJoin", body.leg_id, "backoffice"), 1e9)
        < order[("AgentComplete", body.leg_id, body.queue)]
    ]
    assert len(inverted) == 1
    visits = [body for body in of(facts, telephony.CallQueued) if body.leg_id == inverted[0].leg_id]
    assert [(body.queue, body.visit) for body in visits] == [("cards", 1), ("backoffice", 2)]
    assert (inverted[0].queue, inverted[0].visit) == ("cards", 1)


def test_to_go_on_to_the_survey_is_not_to_be_refused():
    caller = {"Uniqueid": "1795479600.2", "Linkedid": "1795479600.1", "Queue": "cards"}
    agent = {"Interface": "Local/1", "MemberName": "Agent/1"}
    said = lived(
        [
            {"Event": "QueueCallerJoin", "Timestamp": "1795479600.1", "Position": "1", **caller},
            {"Event": "AgentConnect", "Timestamp": "1795479601.1", "HoldTime": "1", **caller, **agent},
            {"Event": "AgentComplete", "Timestamp": "1795479602.1", "TalkTime": "1", **caller, **agent},
            {
                "Event": "UserEvent",
                "UserEvent": "QueueRefused",
                "Status": "CONTINUE",
                "Timestamp": "1795479602.2",
                **caller,
            },
        ]
    )
    assert [type(fact.body).__name__ for fact in said] == [
        "CallOffered",
        "CallQueued",
        "CallAnswered",
        "TalkEnded",
    ]


def test_stamps_that_run_backwards_change_nothing(facts):
    stamps = [float(block["Timestamp"]) for block in BLOCKS if "Timestamp" in block]
    assert sum(later < earlier for earlier, later in pairwise(stamps)) == 9
    assert {body.total_ms >= 0 for body in of(facts, telephony.CallEnded)} == {True}


@pytest.mark.parametrize("stamp", [{}, {"Timestamp": ""}, {"Timestamp": "nan"}, {"Timestamp": "1e400"}])
def test_a_switch_without_timestamps_is_told_how_to_send_them(stamp):
    with pytest.raises(ValueError, match="pbx: QueueCallerJoin has no Timestamp; set timestampevents=yes"):
        Switch("pbx").feed({"Event": "QueueCallerJoin", "Linkedid": "1.1", "Queue": "cards", **stamp})


def test_ringing_times_are_seconds_in_an_answer_and_milliseconds_in_a_failure(facts, queue_log):
    answers = sorted(int(row[7]) * 1000 for row in queue_log if row[4] == "CONNECT")
    failures = sorted(int(row[5]) for row in queue_log if row[4] == "RINGNOANSWER")
    assert sorted(body.ring_ms for body in of(facts, telephony.CallAnswered)) == answers
    offered = of(facts, telephony.AgentOffered)
    assert sorted(body.ring_ms for body in offered if body.result == "no_answer") == failures


def test_detail_records_are_not_a_list_of_calls(facts):
    switch = Switch("pbx")
    lived(BLOCKS, switch)
    assert switch.unused["Cdr"] == 283
    assert len({body.call_id for body in of(facts, telephony.CallOffered)}) == 72


def test_a_block_without_its_fields_is_counted_and_the_feed_goes_on():
    switch = Switch("pbx")
    assert switch.feed({"Event": "QueueCallerJoin", "Timestamp": "1795479600.1", "Queue": "cards"}) == []
    odd = {
        "Event": "QueueCallerJoin",
        "Timestamp": "1795479600.1",
        "Uniqueid": "1.2",
        "Linkedid": "1.1",
        "Queue": "<>",
    }
    assert [type(fact.body).__name__ for fact in switch.feed(odd)] == ["CallOffered"]
    assert switch.unused == {"QueueCallerJoin, unreadable": 2}


# ---------------------------------------------------------------- identity


def test_keys_and_ids_are_unique_and_the_same_at_every_reading(facts):
    again = list(replay(STEADY, "pbx"))
    assert [fact.key for fact in again] == [fact.key for fact in facts]
    ids = {foreign_id("pbx", fact.key, fact.body.occurred_at) for fact in facts}
    assert len(ids) == len({fact.key for fact in facts}) == len(facts)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_two_readers_of_one_switch_tell_what_one_tells(seed, share):
    dice = random.Random(seed)
    readers = [CRASH_BLOCKS[::-1], CRASH_BLOCKS[::-1]]
    both = []
    while any(readers):
        reader = readers[dice.random() < share]
        both.append(reader.pop() if reader else readers[not readers[0]].pop())
    assert lived(both) == lived(CRASH_BLOCKS)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32))
def test_blocks_that_overtake_each_other_by_milliseconds_tell_the_same_facts(seed):
    dice = random.Random(seed)
    stamped = [block for block in BLOCKS if "Timestamp" in block]
    shuffled = sorted(stamped, key=lambda block: float(block["Timestamp"]) + dice.random() * 0.003)
    keys = {fact.key for fact in lived(shuffled) if not isinstance(fact.body, telephony.CallPositioned)}
    expected = {
        fact.key for fact in replay(STEADY, "pbx") if not isinstance(fact.body, telephony.CallPositioned)
    }
    assert keys == expected


def test_two_switches_with_the_same_numbers_share_no_id_and_no_key():
    north, south = (lived(CRASH_BLOCKS, Switch("pbx", system)) for system in ("north", "south"))
    assert {fact.body.call_id.partition("-")[0] for fact in north} == {"north"}
    assert {fact.body.leg_id.partition("-")[0] for fact in south} == {"south"}
    assert not {fact.key for fact in north} & {fact.key for fact in south}
    bare = lived(CRASH_BLOCKS)
    assert [f"north-{fact.body.call_id}" for fact in bare] == [fact.body.call_id for fact in north]


# ---------------------------------------------------------------- holes in the feed


def caller(number, **fields):
    return {"Uniqueid": f"1795479600.{number}", "Linkedid": f"1795479600.{number}", **fields}


def joined(number, at, queue="cards", position=1):
    return caller(number, Event="QueueCallerJoin", Timestamp=f"{at}", Queue=queue, Position=f"{position}")


def entry(number, wait, queue="cards", position=1):
    leg = f"1795479600.{number}"
    return {
        "Event": "QueueEntry",
        "Queue": queue,
        "Uniqueid": leg,
        "Wait": f"{wait}",
        "Position": f"{position}",
    }


def agent(number, event, at, queue="cards", **fields):
    return caller(
        number,
        Event=event,
        Timestamp=f"{at}",
        Queue=queue,
        Interface="Local/1",
        MemberName="Agent/1",
        **fields,
    )


LOGIN = 1795479620.0


def after_a_gap(*before):
    switch = Switch("pbx")
    lived(before, switch)
    switch.disconnected(moment(LOGIN - 5))
    return switch, switch.reconnected(moment(LOGIN))


def test_a_gap_is_told_from_and_to():
    switch, told = after_a_gap()
    assert [fact.body for fact in told] == [
        telephony.SourceInterrupted(
            source="pbx", reason="disconnected", gap_from=moment(LOGIN - 5), gap_to=moment(LOGIN)
        )
    ]
    assert switch.reconnected(moment(LOGIN + 1)) == []


def test_who_waits_no_more_after_a_gap_left_for_an_unknown_reason():
    switch, _ = after_a_gap(joined(1, 1795479601.5), joined(2, 1795479602.5, position=2))
    told = switch.resync([entry(2, 17)], None, moment(LOGIN))
    assert [
        (fact.body.call_id, fact.body.visit, fact.body.reason, fact.body.wait_ms) for fact in told[:1]
    ] == [("1795479600.1", 1, "unknown", None)]
    assert isinstance(told[1].body, telephony.CallPositioned)
    assert (told[1].body.call_id, told[1].body.position, told[1].body.inferred) == ("1795479600.2", 1, False)
    assert len(told) == 2


def test_who_joined_during_the_gap_is_told_with_the_moment_of_the_entry():
    switch, _ = after_a_gap()
    told = switch.resync(
        [entry(1, 3)], live_channels([{"Event": "CoreShowChannel", **caller(1)}]), moment(LOGIN)
    )
    assert [type(fact.body).__name__ for fact in told] == ["CallOffered", "CallQueued"]
    assert told[1].body.occurred_at == moment(LOGIN - 3)
    assert switch.resync([entry(1, 9)], None, moment(LOGIN + 6)) == []


def test_an_entry_whose_contact_nobody_knows_is_counted_not_guessed():
    switch, _ = after_a_gap()
    assert switch.resync([entry(7, 3)], None, moment(LOGIN)) == []
    assert switch.unused == {"QueueEntry of an unknown channel": 1}


def test_calls_without_a_channel_ended_during_the_gap():
    switch, _ = after_a_gap(joined(1, 1795479601.5), joined(2, 1795479602.5, position=2))
    told = switch.resync([entry(2, 17, position=2)], {"1795479600.2": "1795479600.2"}, moment(LOGIN))
    assert [(type(fact.body).__name__, fact.body.call_id) for fact in told] == [
        ("QueueLeft", "1795479600.1"),
        ("CallEnded", "1795479600.1"),
    ]
    assert (told[1].body.cause, told[1].body.total_ms) == ("ended_during_gap", None)
    assert switch.open_calls == 1


def test_what_was_heard_since_the_login_is_not_undone_by_an_older_answer():
    switch, _ = after_a_gap(joined(1, 1795479601.5))
    lived([joined(3, LOGIN + 0.1, position=2), agent(1, "AgentConnect", LOGIN + 0.2, HoldTime="18")], switch)
    assert switch.resync([entry(1, 18)], {}, moment(LOGIN + 0.3)) == []
    assert switch.open_calls == 2


def test_a_talk_that_began_in_the_gap_is_known_by_its_end():
    switch, _ = after_a_gap(joined(1, 1795479601.5))
    switch.resync([], None, moment(LOGIN))
    told = switch.feed(agent(1, "AgentComplete", LOGIN + 10, HoldTime="15", TalkTime="13", Reason="agent"))
    answered, talk = (fact.body for fact in told)
    assert (answered.visit, answered.wait_ms, answered.occurred_at) == (1, 15_000, moment(LOGIN - 3))
    assert (talk.visit, talk.talk_ms, talk.ended_by) == (1, 13_000, "agent")


def test_a_reason_that_the_gap_may_have_hidden_is_not_guessed():
    gave_up = caller(1, Event="QueueCallerAbandon", Timestamp="1795479603.5", Queue="cards", HoldTime="2")
    switch, _ = after_a_gap(joined(1, 1795479601.5), gave_up)
    told = lived([caller(1, Event="Hangup", Timestamp=f"{LOGIN + 1}", Cause="16")], switch)
    assert [fact.body.reason for fact in told if isinstance(fact.body, telephony.QueueLeft)] == ["unknown"]


def test_visits_are_counted_while_followed_and_never_share_a_number_after_a_hole():
    switch, _ = after_a_gap(joined(1, 1795479601.5), agent(1, "AgentConnect", 1795479602.5, HoldTime="1"))
    told = lived(
        [joined(1, LOGIN + 1, "loans"), joined(1, LOGIN + 1.2, "cards"), joined(9, LOGIN + 1)], switch
    )
    numbers = [
        (fact.body.call_id[-1], fact.body.visit)
        for fact in told
        if isinstance(fact.body, telephony.CallQueued)
    ]
    assert numbers == [("1", AFTER_A_HOLE + 21), ("1", AFTER_A_HOLE + 22), ("9", AFTER_A_HOLE + 21)]
    fresh = {"Uniqueid": "1795479621.4", "Linkedid": "1795479621.4"}
    (_, first) = switch.feed({**joined(1, LOGIN + 2, "savings"), **fresh})
    assert first.body.visit == 1


def test_a_visit_whose_end_was_not_explained_ends_with_the_next_one():
    left = caller(1, Event="QueueCallerLeave", Timestamp="1795479604.2", Queue="cards", Position="1")
    said = lived([joined(1, 1795479601.9), left, joined(1, 1795479605.5, "loans"), joined(1, 1795479606.5)])
    ends = [(body.queue, body.visit, body.reason, body.wait_ms) for body in of(said, telephony.QueueLeft)]
    assert ends == [("cards", 1, "key", 3000), ("loans", 2, "unknown", None)]
    switch, _ = after_a_gap(joined(1, 1795479601.9), left)
    told = switch.resync([entry(1, 2, "loans")], None, moment(LOGIN))
    assert [(body.queue, body.reason) for body in of(told, telephony.QueueLeft)] == [("cards", "unknown")]
    assert [body.queue for body in of(told, telephony.CallQueued)] == ["loans"]


def talks_of(facts, call_id):
    ends = [body for body in of(facts, telephony.TalkEnded) if body.call_id == call_id]
    answers = {
        body.visit: body.queue for body in of(facts, telephony.CallAnswered) if body.call_id == call_id
    }
    return [(answers[body.visit], body.queue, body.agent, body.talk_ms) for body in ends]


def test_a_reader_that_begins_in_the_middle_numbers_as_after_a_hole():
    seen_whole = [body for body in of(lived(BLOCKS), telephony.CallQueued) if body.visit == 2]
    for body in seen_whole:
        switch = Switch("pbx")
        switch.reconnected(body.occurred_at - timedelta(seconds=1))
        since = [
            one
            for one in BLOCKS
            if "Timestamp" in one and float(one["Timestamp"]) > body.occurred_at.timestamp() - 1
        ]
        again = [one for one in of(lived(since, switch), telephony.CallQueued) if one.call_id == body.call_id]
        numbers = {one.occurred_at: one.visit for one in again}
        assert numbers[body.occurred_at] > AFTER_A_HOLE
        assert len(again) == len(set(numbers.values()))
        assert talks_of(lived(since, Switch("pbx")), body.call_id) == talks_of(lived(BLOCKS), body.call_id)
    assert len(seen_whole) == 3


# ---------------------------------------------------------------- restarts


def test_a_killed_switch_ends_three_talks_and_three_waits():
    switch = Switch("pbx")
    before = lived(CRASH_BLOCKS, switch)
    waiting = {one.leg_id for one in of(before, telephony.CallQueued)} - {
        one.leg_id for one in of(before, telephony.CallAnswered)
    }
    told = switch.restarted(moment(1795479811))
    assert [fact.body.reason for fact in told if isinstance(fact.body, telephony.SourceInterrupted)] == [
        "source_restarted"
    ]
    ended = of(told, telephony.CallEnded)
    assert len(ended) == 6
    assert {body.cause for body in ended} == {"source_restarted"}
    left = of(told, telephony.QueueLeft)
    assert {body.leg_id for body in left} == waiting
    assert [body.reason for body in left] == ["unknown"] * 3
    offered = {body.call_id for body in of(before, telephony.CallOffered)}
    assert offered == {body.call_id for body in of(before + told, telephony.CallEnded)}
    assert switch.open_calls == 0


def test_who_hung_up_just_before_the_restart_ended_by_hanging_up():
    switch = Switch("pbx")
    for block in (joined(1, 1795479601.5), caller(1, Event="Hangup", Timestamp="1795479602.5", Cause="16")):
        switch.feed(block)
    told = switch.restarted(moment(1795479603))
    assert [body.cause for body in of(told, telephony.CallEnded)] == ["hangup_16"]


def test_a_short_uptime_at_login_is_a_restart_and_a_long_one_is_not():
    switch = Switch("pbx")
    switch.reconnected(moment(1795479782.8))
    lived(CRASH_BLOCKS, switch)
    switch.disconnected(moment(1795479808.5))
    switch.reconnected(moment(1795479810.5))
    assert switch.feed({"Event": "FullyBooted", "Uptime": "871", "LastReload": "871"}) == []
    switch.reconnected(moment(1795479815.0))
    told = switch.feed({"Event": "FullyBooted", "Uptime": "4", "LastReload": "4"})
    assert told[0].body.gap_to == moment(1795479811)
    assert len(of(told, telephony.CallEnded)) == 6
    assert switch.restarted(moment(1795479811)) == []


def test_a_reader_that_saw_no_login_before_knows_a_restart_by_older_calls():
    switch = Switch("pbx")
    lived([joined(1, 1795479601.5)], switch)
    switch.reconnected(moment(1795479700))
    told = switch.feed({"Event": "FullyBooted", "Uptime": "10"})
    assert [fact.body.cause for fact in told if isinstance(fact.body, telephony.CallEnded)] == [
        "source_restarted"
    ]


# ---------------------------------------------------------------- what another feed told


def test_what_was_learnt_is_not_told_again():
    switch = Switch("pbx", "north")
    told = of(lived([joined(1, 1795479601.5)], Switch("pbx", "north")), telephony.CallEvent)
    for body in told:
        switch.learn(body)
    switch.reconnected(moment(LOGIN))
    assert switch.resync([entry(1, 18)], {"1795479600.1": "1795479600.1"}, moment(LOGIN)) == []
    (answered,) = switch.feed(agent(1, "AgentConnect", LOGIN + 1, HoldTime="19"))
    assert (answered.body.call_id, answered.body.visit) == ("north-1795479600.1", 1)
    again = Switch("pbx", "north")
    for body in [*told, answered.body]:
        again.learn(body)
    (talk,) = again.feed(agent(1, "AgentComplete", LOGIN + 9, HoldTime="19", TalkTime="8", Reason="caller"))
    assert (talk.body.visit, talk.body.talk_ms) == (1, 8_000)


def test_an_earlier_visit_that_the_log_tells_late_does_not_replace_the_one_that_waits():
    switch, _ = after_a_gap(joined(1, LOGIN - 0.5, "loans"))
    base = {
        "call_id": "1795479600.1",
        "leg_id": "1795479600.1",
        "source": "pbx",
        "queue": "cards",
        "visit": 7,
    }
    switch.learn(telephony.CallQueued(**base, occurred_at=moment(LOGIN - 15)))
    switch.learn(
        telephony.CallAnswered(**base, occurred_at=moment(LOGIN - 10), agent="Agent/1", wait_ms=5000)
    )
    (talk,) = switch.feed(agent(1, "AgentComplete", LOGIN + 0.2, HoldTime="5", TalkTime="10"))
    assert (talk.body.queue, talk.body.visit) == ("cards", 7)
    (answered,) = switch.feed(agent(1, "AgentConnect", LOGIN + 9, "loans", HoldTime="9"))
    assert (answered.body.queue, answered.body.visit) == ("loans", 1)


def test_a_call_that_another_feed_ended_is_over():
    switch = Switch("pbx")
    first = lived([joined(1, 1795479601.5)], switch)
    ended = telephony.CallEnded(
        call_id="1795479600.1", source="pbx", occurred_at=moment(LOGIN), cause="source_restarted"
    )
    switch.learn(ended)
    assert len(first) == 2
    assert switch.open_calls == 0
    assert switch.feed(agent(1, "AgentConnect", LOGIN + 1)) == []


# ---------------------------------------------------------------- memory


def test_calls_that_never_end_are_forgotten_and_counted(monkeypatch):
    monkeypatch.setattr(asterisk, "MAX_CALLS", 10)
    switch = Switch("pbx")
    lived([joined(number, 1795479601 + number) for number in range(25)], switch)
    assert (switch.open_calls, switch.forgotten) == (10, 15)
    lived([joined(99, 1795479601 + 86400 * 2)], switch)
    assert (switch.open_calls, switch.forgotten) == (1, 25)
    assert (len(switch._over), len(switch._legs), len(switch._waiting["cards"])) == (10, 1, 1)


def test_nothing_is_kept_of_calls_that_are_over():
    switch = Switch("pbx")
    lived(BLOCKS, switch)
    assert (switch.open_calls, switch.forgotten) == (0, 0)
    assert (switch._legs, switch._waiting, switch._ending) == ({}, {}, {})


def test_a_leave_that_was_lost_keeps_no_place_in_the_queue():
    switch = Switch("pbx")
    answered = [joined(1, 1795479601.5), agent(1, "AgentConnect", 1795479602.5)]
    lived([*answered, agent(1, "AgentComplete", 1795479603.5, TalkTime="1"), joined(2, 1795479604.5)], switch)
    assert [linked for linked, _ in switch._waiting["cards"]] == ["1795479600.2"]


# ---------------------------------------------------------------- the reader


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.booleans())
def test_the_cut_of_the_stream_does_not_matter(size, bare):
    raw = gzip.open(CRASH).read()
    raw = raw.replace(b"\r\n", b"\n") if bare else raw
    assert list(blocks(raw[at : at + size] for at in range(0, len(raw), size))) == CRASH_BLOCKS


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_any_bytes_are_split_without_an_exception(chunks):
    switch = Switch("pbx")
    for block in blocks(chunks):
        try:
            switch.feed(block)
        except ValueError as error:
            assert "timestampevents" in str(error)


calls = st.sampled_from(["1795479590.1", "1795479590.2", "1795479605.3"])
odd = st.sampled_from(["", "-3", "<unknown>", "9" * 30, "\u4e00"])
event = st.fixed_dictionaries(
    {
        "Event": st.sampled_from(
            [name for name in asterisk._HANDLERS if "." not in name]
            + ["UserEvent", "FullyBooted", "reconnect", "QueueEntry"]
        ),
        "Linkedid": calls,
        "Uniqueid": calls,
        "Queue": st.sampled_from(["cards", "loans"]) | odd,
    },
    optional={
        "UserEvent": st.sampled_from([name.partition(".")[2] for name in asterisk._HANDLERS if "." in name]),
        "Status": st.sampled_from(["FULL", "TIMEOUT", "CONTINUE", "OK"]) | odd,
        "Interface": st.sampled_from(["Local/1", "Local/2"]),
        "Position": st.sampled_from(["1", "2"]) | odd,
        "HoldTime": st.sampled_from(["0", "3"]) | odd,
        "TalkTime": st.sampled_from(["0", "3"]) | odd,
        "Uptime": st.sampled_from(["1", "1000"]) | odd,
        "Result": st.just("Success"),
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(event, max_size=30))
def test_no_order_of_events_stops_the_feed_or_tells_a_fact_twice(feed):
    switch, told = Switch("pbx"), []
    for place, fields in enumerate(feed):
        at, linked = 1795479600.5 + place, fields["Linkedid"]
        block = {
            **fields,
            "Timestamp": f"{at}",
            "TransfererLinkedid": linked,
            "OrigTransfererLinkedid": linked,
        }
        match block["Event"]:
            case "reconnect":
                switch.disconnected(moment(at - 0.4))
                told += switch.reconnected(moment(at))
            case "QueueEntry":
                told += switch.resync([block], {block["Uniqueid"]: block["Linkedid"]}, moment(at))
            case _:
                told += switch.feed(block)
    told += switch.settle()
    assert len({fact.key for fact in told}) == len(told)
    entered = [(body.call_id, body.visit) for body in of(told, telephony.CallQueued)]
    left = [(body.call_id, body.visit) for body in of(told, telephony.QueueLeft)]
    ended = [body.call_id for body in of(told, telephony.CallEnded)]
    talked = {(body.call_id, body.visit) for body in of(told, telephony.TalkEnded)}
    answered = {(body.call_id, body.visit) for body in of(told, telephony.CallAnswered)}
    for facts in (entered, left, ended):
        assert len(facts) == len(set(facts))
    assert {*left, *answered} <= set(entered)
    assert talked <= answered
    assert {visit for visit in entered if visit[0] in ended} <= {*left, *answered}
    assert set(ended) <= {body.call_id for body in of(told, telephony.CallOffered)}


def test_an_endless_block_is_dropped_and_counted_and_the_next_is_read():
    reader = Blocks()
    assert reader.feed(b"Event: X\r\nJunk: " + b"a" * MAX_BLOCK) == []
    for _ in range(3):
        assert reader.feed(b"a" * MAX_BLOCK + b"\r\nEvent: Y\r\n") == []
        assert len(reader._rest) <= 1
    assert reader.feed(b"Event: Z\r\n\r\nEvent: Next\r\n\r\n") == [{"Event": "Next"}]
    whole = b"Junk: " + b"a" * MAX_BLOCK + b"\r\n\r\nEvent: Last\r\n"
    assert reader.feed(whole) == []
    assert reader.close() == [{"Event": "Last"}]
    assert reader.skipped == 2


@pytest.mark.parametrize("name", ["run2-full/ami-flaky", "run3-crash/ami-steady", "run3-crash/ami-flaky"])
def test_a_feed_with_holes_leaves_calls_open_and_breaks_nothing(name):
    facts = list(replay(RECORDINGS / f"{name}.raw.gz", "pbx"))
    offered = {body.call_id for body in of(facts, telephony.CallOffered)}
    ended = {body.call_id for body in of(facts, telephony.CallEnded)}
    assert ended < offered


@pytest.mark.parametrize(
    ("uniqueid", "began"),
    [
        ("1795479600.12", moment(1795479600)),
        ("pbx-a-1795479600.1", moment(1795479600)),
        ("abc", None),
        ("1.x", None),
    ],
)
def test_a_channel_s_id_tells_when_it_began(uniqueid, began):
    assert began_at(uniqueid) == began


def test_no_number_of_a_caller_stands_in_a_key(facts):
    numbers = {
        block["CallerIDNum"] for block in BLOCKS if re.fullmatch(r"05\d{8}", block.get("CallerIDNum", ""))
    }
    assert len(numbers) == 72
    assert not [fact.key for fact in facts if any(number in fact.key for number in numbers)]
