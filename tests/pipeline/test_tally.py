"""What the demo counts: a handoff is answered by the group that owes the answer, by nobody else."""

from types import SimpleNamespace

from chassis.message import Writer, time_header
from chassis.roots import new_id
from cli import tally
from cli.tally import Tally
from schemas import intake
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
