"""A trace follows the arrows both ways, on a real Kafka and PostgreSQL, and names the one that is missing."""

import asyncio

import pytest

from chassis.ids import derived_id
from chassis.outbox import store
from chassis.postgres import migrate
from chassis.roots import new_batch_id, new_id
from chassis.transport import Outgoing
from cli import trace
from cli.world import NotFound, connected
from schemas.topics import STAGES

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

REQUESTED, RECORDED, ATTACHED = (
    "intake.recording-requested.v1",
    "intake.case-recorded.v1",
    "intake.contact-attached.v1",
)
CALL, CASE = "call-1", str(new_id())


@pytest.fixture
async def pipeline(bench):
    where = bench.where
    for stage in STAGES:
        await migrate(where.database_url, f"{where.database_prefix}{stage}", ["chassis", f"services.{stage}"])
    return bench


async def handled(pipeline, cause, *said, sent=True):
    """Have intake say these (topic, wire, key) on account of an input, as its pass does; gives the ids."""
    messages, batch = [], new_batch_id()
    for ordinal, (topic, wire, key) in enumerate(said):
        headers = {
            "ce_id": str(derived_id(new_id(), wire, ordinal)),
            "ce_type": wire,
            "ce_source": "/hotline/intake",
            "ce_time": "2026-11-26T03:00:00.000Z",
            "ce_correlationid": key,
            "ce_causationid": cause,
            "ce_handoffk": str(ordinal + 1),
            "ce_handoffn": str(len(said)),
        }
        messages.append(Outgoing(topic, key.encode(), b"{}", [(k, v.encode()) for k, v in headers.items()]))
    async with connected(pipeline.where, "intake") as database, database.transaction() as tx:
        await store(tx, batch, messages, [key for _, _, key in said])
        await tx.execute("insert into inbox values ($1::text::uuid, $2, 0, 'caused')", cause, batch)
        if sent:
            await tx.execute("delete from unpublished")
    if sent:
        await pipeline.publisher.publish(messages)
    return [dict(message.headers)["ce_id"].decode() for message in messages]


async def test_causes_effects_places_and_the_missing_arrow(pipeline):
    asked = await pipeline.say("intake.commands", REQUESTED, source="agents", key=CALL)
    recorded, attached = await handled(
        pipeline, asked, ("intake.cases", RECORDED, CASE), ("intake.cases", ATTACHED, CASE)
    )
    async with pipeline.observer() as observer:
        await pipeline.until(observer, pipeline.is_("discharged", asked, "intake"))
        found = await trace.trace(pipeline.where, recorded)
        assert (found.missing, found.lost) == ([], False)
        assert found.event.custody[0]["state"] == "late"
        await pipeline.commit_all("router", "intake.cases")
        await pipeline.until(observer, pipeline.is_("dropped", recorded))

    found = await trace.trace(pipeline.where, asked)
    assert ([node.event_id for node in found.causes], found.event.event_id) == ([], asked)
    assert {node.event_id: node.depth for node in found.effects} == {recorded: 1, attached: 1}
    places = {node.event_id: (node.topic, node.offset) for node in (found.event, *found.effects)}
    assert places == {
        asked: ("intake.commands", 0),
        recorded: ("intake.cases", 0),
        attached: ("intake.cases", 1),
    }, "what obliges nobody is found on the log itself"
    (had,) = found.event.custody
    assert (had["group"], had["state"]) == ("intake", "discharged")
    shown = found.as_json()
    assert all(node["after_cause_ms"] >= 0 for node in shown["effects"])
    (arrow,) = shown["missing"]
    assert (arrow["event_id"], arrow["edge"], arrow["state"]) == (
        recorded,
        "intake.case-recorded→router",
        "dropped",
    )
    assert arrow["evidence"]["committed"] > 0
    assert all(mark["read"] >= mark["end"] for mark in arrow["evidence"]["barrier"])
    assert found.lost

    above = await trace.trace(pipeline.where, attached)
    assert [node.event_id for node in above.causes] == [asked]
    assert (above.event.depth, above.effects, above.missing) == (1, [], [])


async def test_what_is_stored_and_not_sent_has_no_place_and_says_so(pipeline):
    asked = await pipeline.say("intake.commands", REQUESTED, source="agents", key=CALL)
    async with pipeline.observer() as observer:
        await pipeline.until(observer, pipeline.is_("open", asked, "intake"))
    (recorded,) = await handled(pipeline, asked, ("intake.cases", RECORDED, CASE), sent=False)
    found = await trace.trace(pipeline.where, recorded)
    assert [node.event_id for node in found.causes] == [asked]
    assert (found.event.sent, found.event.offset) == (False, None)
    assert found.causes[0].custody[0]["until"] is None


async def test_a_cause_that_nobody_knows_is_named_and_who_asks_for_nothing_is_told(pipeline):
    nowhere = str(new_id())
    (recorded,) = await handled(pipeline, nowhere, ("intake.cases", RECORDED, CASE))
    async with pipeline.observer() as observer:
        await pipeline.until(observer, pipeline.is_("orphan", nowhere, "intake"))
    found = await trace.trace(pipeline.where, recorded)
    assert [(arrow["event_id"], arrow["state"]) for arrow in found.missing] == [(nowhere, "orphan")]
    with pytest.raises(NotFound, match="knows an event"):
        await trace.trace(pipeline.where, str(new_id()))


async def test_arrows_in_a_circle_end(pipeline):
    one, other = str(new_id()), str(new_id())
    for uid, cause in ((one, other), (other, one)):
        await pipeline.say("intake.commands", REQUESTED, source="agents", key=CALL, uid=uid, cause=cause)
    async with pipeline.observer() as observer:
        await pipeline.until(observer, pipeline.is_("open", other, "intake"))
    found = await asyncio.wait_for(trace.trace(pipeline.where, one), 20)
    assert [node.event_id for node in found.causes] == [other]
