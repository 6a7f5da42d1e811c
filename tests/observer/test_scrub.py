"""A scrub finds what the observer cannot see: what vanished from the log after it was read, and changed rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.roots import new_id
from chassis.transport import Place
from cli.world import OBSERVER, connected
from observer import scrub
from observer.headers import key_of
from observer.scrub import GONE, Scrubber
from schemas.operations import Receipts, ReceiptsGiven

RECORDED, ROUTED, ENDED = "intake.case-recorded.v1", "router.case-routed.v1", "telephony.call-ended.v1"
ATTACHED = "intake.contact-attached.v1"


async def scrubbed(bench):
    async with connected(bench.where, OBSERVER) as database:
        return await Scrubber(bench.kafka, database.session).run(1)


async def edit(bench, sql, *values):
    async with connected(bench.where, OBSERVER) as database, database.transaction() as tx:
        await tx.execute(sql, *values)


async def recorded(bench, *, answered=True, **more):
    uid = await bench.say("intake.cases", RECORDED, **more)
    if answered:
        await bench.say("router.cases", ROUTED, cause=uid)
    return uid


@pytest.mark.kafka
@pytest.mark.postgres
async def test_what_is_as_it_was_differs_in_nothing_and_every_change_is_named(bench):
    answered = [await recorded(bench) for _ in range(5)]
    dropped, partial = [await recorded(bench, answered=False) for _ in range(2)]
    await bench.say("router.cases", ROUTED, cause=partial, part=(1, 2))
    await bench.say("intake.cases", RECORDED, uid=answered[0])  # published twice: nobody answers a copy
    closed = await recorded(bench, answered=False)
    given_ = ReceiptsGiven(
        group="router", receipts=(Receipts(outcome="ignored", reason="other", event_ids=(closed,)),)
    )
    await bench.say_body(given_, "router")
    ended = await bench.say("telephony.calls", ENDED, key="call-1")
    await bench.say("intake.cases", ATTACHED, key="call-1", cause=ended)
    await bench.commit_all("router", "intake.cases")
    late = await recorded(bench, answered=False)
    async with bench.observer() as observer:
        for state, uid in (("dropped", dropped), ("partial", partial), ("open", late), ("closed", closed)):
            await bench.until(observer, bench.is_(state, uid))

    found = await scrubbed(bench)
    assert (found.differences, found.behind) == ([], "")
    assert found.records == 19
    assert found.handoffs in {17, 18}, (
        "nine recorded, six routed, the call at once and in time, perhaps the copy"
    )

    for uid, state in ((dropped, "discharged"), (answered[0], "open"), (closed, "dropped")):
        await edit(bench, "update handoffs set state = $2 where key = $1", key_of(uid.encode()), state)
    await edit(bench, "delete from handoffs where key = $1", key_of(answered[1].encode()))
    forged = str(new_id())
    await edit(
        bench,
        "update handoffs set key = $2 where key = $1",
        key_of(answered[2].encode()),
        key_of(forged.encode()),
    )
    found = await scrubbed(bench)
    assert {(one.event_id, one.stored, one.found) for one in found.differences} == {
        (dropped, "discharged", "dropped"),
        (answered[0], "open", "discharged"),
        (closed, "dropped", "closed"),
        (answered[1], None, "discharged"),
        (answered[2], None, "discharged"),
        (forged, "discharged", GONE),
    }


@pytest.mark.kafka
@pytest.mark.postgres
async def test_where_the_observer_is_behind_nothing_is_compared(bench, monkeypatch):
    monkeypatch.setattr(scrub, "CAUGHT_UP_WITHIN_S", 0.3)
    await recorded(bench)
    await bench.commit_all("router", "intake.cases")
    found = await scrubbed(bench)
    assert "only up to 0" in found.behind
    assert (found.records, found.differences) == (0, [])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3000)), max_size=40), st.integers(0, 3000))
def test_marks_are_where_they_were_made_and_nowhere_else(made, asked):
    marks, places = scrub._Marks(), [Place("a", 0), Place("a", 1), Place("b", 0)]
    for index, offset in made:
        marks.add(places[index], offset)
    for index, place in enumerate(places):
        for offset in {asked, *(offset + step for _, offset in made for step in (-1, 0, 1))} - {-1}:
            assert marks.has(place, offset) == ((index, offset) in made)
