"""What the demo counts: a handoff is answered by the group that owes the answer, by nobody else."""

from itertools import permutations
from types import SimpleNamespace

import pytest

from chassis.message import Writer, time_header
from chassis.roots import new_id
from cli import tally
from cli.tally import Tally
from schemas import intake, telephony
from schemas.operations import Receipts, ReceiptsGiven
from tests.given import NOW, a_case, recorded, routed


def said(body, source, uid=None, cause=None):
    """A record as its writer sends it."""
    message = Writer(source).write(
        body, uid=uid or new_id(), at=time_header(NOW), correlation="-", cause=cause
    )
    return SimpleNamespace(headers=message.headers, value=message.value, timestamp=0, topic=message.topic)


def receipt(group, event):
    given = Receipts(outcome="ignored", reason="x", event_ids=(str(event),))
    return said(ReceiptsGiven(group=group, receipts=(given,)), group)


def test_an_event_that_two_groups_owe_is_answered_only_by_both(monkeypatch):
    monkeypatch.setitem(tally._OBLIGED, intake.CaseRecorded, ("router", "feedback"))
    case, uid, count = a_case(), new_id(), Tally()
    count.take(said(recorded(case), "intake", uid))
    assert len(count.without_effect) == 2
    count.take(receipt("feedback", uid))
    count.take(receipt("desk", uid))
    assert count.without_effect == [f"intake.case-recorded→router {uid}"]
    assert not count.finished
    count.take(said(routed(case), "feedback", cause=str(uid)))
    assert f"intake.case-recorded→router {uid}" in count.without_effect, "another group's event"
    count.take(said(routed(case), "router", cause=str(uid)))
    assert not [name for name in count.without_effect if str(uid) in name]


def call(kind, leg, **fields):
    return kind(call_id="c1", leg_id=leg, source="connect", occurred_at=NOW, **fields)


def over(leg, **fields):
    return call(telephony.CallEnded, leg, cause="agent_disconnect", leg_only=True, **fields)


RANG = call(telephony.CallOffered, "c1")
STAY = {"queue": "cards", "visit": 7}


@pytest.mark.parametrize(
    "events",
    [
        [RANG, over("c1"), call(telephony.CallQueued, "c2", **STAY), over("c2")],
        [RANG, over("c1"), call(telephony.CallPositioned, "c2", **STAY, position=1), over("c2")],
        [RANG, over("c1"), call(telephony.TalkEnded, "c2", **STAY, agent="a", talk_ms=1), over("c2")],
        [RANG, over("c1"), call(telephony.CallTransferred, "c2", mode="blind"), over("c2")],
    ],
    ids=["a stay tells of it", "a place does", "the end of its talk does", "the transfer tells of it"],
)
def test_a_call_that_goes_on_with_another_leg_has_not_ended(events):
    for order in permutations(events):
        count = Tally()
        for event in order:
            count.take(said(event, "door"))
        assert count.ended == {"c1"}
    count = Tally()
    for event in events[:-1]:
        count.take(said(event, "door"))
    assert count.ended == set()
    assert not count.finished


@pytest.mark.parametrize(
    "told",
    [
        [RANG, over("c1", next_leg_id="a call of its own")],
        [over("c2"), call(telephony.CallTransferred, None, mode="blind")],
        [over("c2"), call(telephony.CallTransferred, "c1", mode="blind")],
        [over("c2"), call(telephony.CallPositioned, "c1", **STAY, position=1, inferred=True)],
        [
            over("c2"),
            call(telephony.CallQueued, "c2", **STAY),
            call(telephony.QueueLeft, None, **STAY, reason="key"),
        ],
    ],
    ids=[
        "only named as the next",
        "no leg",
        "the first leg",
        "a place inferred",
        "one fact of the stay names it",
    ],
)
def test_what_tells_of_no_further_leg_keeps_no_call_open(told):
    for order in permutations(told):
        count = Tally()
        for event in order:
            count.take(said(event, "door"))
        assert count.ended == {"c1"}


def test_a_call_has_ended_when_its_end_is_told_whatever_its_legs_do():
    count = Tally()
    for event in (
        RANG,
        over("c1"),
        call(telephony.CallQueued, "c2", **STAY),
        call(telephony.CallEnded, "c1", cause="hangup"),
    ):
        count.take(said(event, "door"))
    assert count.ended == {"c1"}
