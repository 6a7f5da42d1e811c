"""What the operators' verbs say of a ledger, and with which exit code: no observer runs, its tables speak."""

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from chassis.clock import epoch_ms
from chassis.kafka import KafkaPublisher, apply_topics
from chassis.postgres import Database, migrate
from chassis.roots import new_id
from chassis.transport import Outgoing, partition_for
from cli import evidence, ledger
from cli.__main__ import main
from cli.world import Place, connected
from observer.headers import key_of
from schemas.topics import BY_NAME

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

FINE, PROBLEM, USAGE, UNREACHABLE, BLIND = range(5)
EDGE, LATER = "resolver.case-resolved→feedback", "resolver.case-delivered→department"
RANGE = {"topic": "router.cases", "partition": 3, "from": 5, "to": 12, "reason": "retention", "seen_ms": 1}
RANGE_TEXT = "records were deleted before they were read: router.cases"


class Ledger:
    """The observer's tables in one world, filled by hand, and the command on them."""

    def __init__(self, folder, place, database, capsys, monkeypatch):
        self.folder, self.place, self.database = folder, place, database
        self._capsys, self._monkeypatch = capsys, monkeypatch

    async def seen(self, blind="", ranges=(), ago_ms=0):
        at_ms = epoch_ms() - ago_ms
        document = {"blind": blind, "blind_ranges": list(ranges), "edges": {}, "lag": []}
        await self._do(
            "insert into status (one, at_ms, document) values (true, $1, $2)"
            " on conflict (one) do update set at_ms = excluded.at_ms, document = excluded.document",
            at_ms,
            json.dumps(document),
        )

    async def has(
        self, state="open", *, edge=EDGE, group="feedback", offset=7, due_ms=None, name=None, partition=1
    ):
        event = str(new_id()) if name is None else name
        await self._do(
            "insert into handoffs (key, grp, edge, topic, partition, record_offset, at_ms, subject, name,"
            " due_ms, state) values ($1, $2, $3, 'resolver.cases', $10, $4, $5, $6, $7, $8, $9)",
            key_of(event.encode()),
            group,
            edge,
            offset,
            epoch_ms(),
            event.partition("#")[0] if name else "case-1",
            name,
            due_ms,
            state,
            partition,
        )
        return event

    async def set_aside(self, offset, reason, explanation, *, partition=1):
        """What feedback's quarantine says of a record of `has`."""
        schema = f"{self.place.database_prefix}feedback"
        await migrate(self.place.database_url, schema, ["chassis"])
        async with connected(self.place, "feedback") as database, database.transaction() as tx:
            await tx.execute(
                "insert into quarantine values ($1, 'resolver.cases', $2, $3, $4, $5, ''::bytea, now())",
                new_id(),
                partition,
                offset,
                reason,
                explanation,
            )

    async def committed(self, group, offset):
        await self._do("insert into commits values ($1, 'resolver.cases', 1, $2)", group, offset)

    async def _do(self, sql, *values):
        async with self.database.transaction() as tx:
            await tx.execute(sql, *values)

    async def __call__(self, *words, json=True, code=FINE):
        options = ["--dir", str(self.folder), *(["--json"] if json else [])]
        self._monkeypatch.setattr(sys, "argv", ["hotline", *words, *options])
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main)
        said = self._capsys.readouterr()
        assert ended.value.code == code, (words, ended.value.code, said)
        return _read(said.out) if json else said.out


def _read(text):
    return json.loads(text) if text else None


@pytest.fixture
async def hotline(address, prefix, tmp_path, monkeypatch, capsys):
    for name in ("HOTLINE_KAFKA_BOOTSTRAP", "HOTLINE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    place = Place(address.kafka_bootstrap, address.database_url, f"{prefix}.", f"{prefix}_")
    (tmp_path / "world.json").write_text(json.dumps(asdict(place)))
    await migrate(address.database_url, f"{prefix}_observer", ["observer"])
    database = Database(address.database_url, f"{prefix}_observer", size=1)
    await database.open()
    yield Ledger(tmp_path, place, database, capsys, monkeypatch)
    await database.close()


# ------------------------------------------------------------------ blind


async def test_what_was_deleted_unread_is_shown_with_its_range_and_is_never_fine(hotline):
    await hotline.seen(blind=RANGE_TEXT, ranges=[RANGE])
    event = await hotline.has("recovered")
    found = await hotline("handoffs", code=BLIND)
    (shown,) = found["blind_ranges"]
    assert (found["blind"], shown.pop("seen_at")) == (RANGE_TEXT, "1970-01-01T00:00:00.001+00:00")
    assert shown == {"topic": "router.cases", "partition": 3, "from": 5, "to": 12, "reason": "retention"}
    text = await hotline("handoffs", json=False, code=BLIND)
    assert "BLIND" in text
    assert "router.cases/3 5…11: deleted unread (retention)" in text
    assert "NOTHING LOST" not in text
    for words in (["lost", "list"], ["dead", "list"], ["lag"], ["lost", "show", event]):
        await hotline(*words, code=BLIND)
    assert "BLIND" in await hotline("lost", "explain", event, json=False, code=BLIND)


async def test_an_observer_that_sees_says_that_nothing_is_lost(hotline):
    await hotline.seen()
    event = await hotline.has("recovered")
    for words in (["handoffs"], ["lost", "list"], ["dead", "list"], ["lag"], ["lost", "show", event]):
        assert await hotline(*words) is not None
    assert "NOTHING LOST" in await hotline("handoffs", json=False)


async def test_what_is_lost_stays_lost_though_nobody_watches_now(hotline):
    await hotline.seen(ago_ms=60_000)
    event = await hotline.has("dropped")
    dead = await hotline.has("dead lettered")
    for words in (["handoffs"], ["lost", "list"], ["lost", "show", event], ["dead", "list"]):
        await hotline(*words, code=PROBLEM)
    await hotline("lost", "show", dead, code=BLIND)


async def test_a_waiver_that_nobody_carries_out_is_not_done(hotline, monkeypatch):
    event = await hotline.has("dropped")
    monkeypatch.setattr("cli.mend.end", _noted)
    found = await hotline("waive", event, "--reason", "told by phone", code=BLIND)
    assert found == {"verb": "waive", "handoffs": 1, "carried_out": False}


async def _noted(*_):
    return False


async def _unknown(*_):
    return None


async def test_a_loss_on_purpose_that_nobody_names_is_a_problem_or_the_observer_is_blind(hotline):
    await apply_topics(hotline.place.kafka, [BY_NAME["ops.canary"]])
    await hotline.seen()
    found = await hotline("canary", "run", "--within", "0.3", code=PROBLEM)
    assert (found["flagged"], found["verdict"], found["detection_s"]) == (False, None, None)
    assert found["waited_s"] >= 0.3
    await hotline.seen(ago_ms=60_000)
    assert "judged nothing" in (await hotline("canary", "run", "--within", "0.3", code=BLIND))["blind"]


# ------------------------------------------------------------------ dead letters


async def test_dead_letters_stand_together_by_what_is_wrong_with_them(hotline):
    await hotline.seen()
    for offset in range(3):
        await hotline.has("dead lettered", offset=offset)
        await hotline.set_aside(offset, "schema", f"record {offset}: field amount is missing")
    other = await hotline.has("dead lettered", offset=8)
    await hotline.set_aside(8, "second_result", "cycle 1 has a result already")
    gone = await hotline.has("dead lettered", offset=9)

    found = await hotline("dead", "list", code=PROBLEM)
    kinds = {kind["reason"]: kind for kind in found["kinds"]}
    assert {reason: kind["count"] for reason, kind in kinds.items()} == {
        "schema": 3,
        "second_result": 1,
        "not in quarantine": 1,
    }
    assert kinds["second_result"]["example"]["event_id"] == other
    assert kinds["not in quarantine"]["example"]["event_id"] == gone
    assert len({kind["fingerprint"] for kind in kinds.values()}) == 3
    assert {one["offset"]: one["letter"] and one["letter"]["reason"] for one in found["handoffs"]} == {
        **dict.fromkeys(range(3), "schema"),
        8: "second_result",
        9: None,
    }
    text = await hotline("dead", "list", json=False, code=PROBLEM)
    assert "3 × feedback: schema: record " in text
    assert text.count("field amount is missing") == 1
    each = await hotline("dead", "list", "--each", json=False, code=PROBLEM)
    assert each.count("field amount is missing") == 3


async def test_what_came_under_a_used_id_is_not_sent_again_for_it_would_only_come_back(hotline):
    kafka = hotline.place.kafka
    await apply_topics(kafka, [BY_NAME["resolver.cases"]])
    publisher = KafkaPublisher(kafka, "tests")
    await publisher.publish([Outgoing("resolver.cases", b"case-1", b"{}", headers(ce_id=new_id()))])
    await publisher.stop()
    at = partition_for(b"case-1", 4)
    event = await hotline.has("dead lettered", edge="unreadable→feedback", offset=0, partition=at)
    await hotline.set_aside(0, "id_reuse", "this id was used before for other content", partition=at)
    (line,) = await hotline("redrive", event, code=PROBLEM)
    assert not line["sent"]
    assert line["why_not"].startswith("its id was used before for other content")
    assert await hotline("audit", "list") == []


# ------------------------------------------------------------------ what is asked for


async def test_what_nobody_knows_is_a_question_asked_wrongly(hotline, monkeypatch):
    await hotline.seen()
    monkeypatch.setattr("cli.tail.case_id_of", _unknown)
    await hotline("events", "tail", "--case", "nonsense", code=USAGE)
    unknown = str(new_id())
    for words in (["lost", "show"], ["lost", "explain"], ["redrive"], ["dead", "show"]):
        await hotline(*words, unknown, code=USAGE)
    await hotline("waive", unknown, "--reason", "why", code=USAGE)
    await hotline("handoffs", "--state", "nonsense", code=USAGE)
    for words in (["handoffs"], ["lost", "list"]):
        await hotline(*words, "--edge", "intake.case-recorded→nobody-at-all", code=USAGE)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("intake.case-recorded→router", "intake.case-recorded→router"),
        ("intake.case-recorded->router", "intake.case-recorded→router"),
        ("number->telephony", "number→telephony"),
        ("unreadable→router", "unreadable→router"),
        ("nobody→feedback", "nobody→feedback"),
        (LATER, LATER),
        ("intake.case-recorded", None),
        ("number→nobody", None),
    ],
)
def test_edges_are_known_by_their_names(asked, found):
    assert ledger.edge_named(asked) == found


async def test_what_is_read_and_not_due_yet_waits_and_is_not_late(hotline):
    await hotline.seen()
    hour = 3_600_000
    due = await hotline.has(edge=LATER, group="resolver", due_ms=epoch_ms() + hour)
    unread, read = await hotline.has(offset=9), await hotline.has(offset=3)
    await hotline.committed("feedback", 5)

    async def states(state):
        found = await hotline("handoffs", "--state", state)
        return {one["event_id"]: one["state"] for one in found["handoffs"]}

    assert await states("late") == {unread: "late"}
    assert await states("waiting") == {due: "waiting"}
    assert await states("open") == {unread: "late", due: "waiting", read: "open"}
    assert await states("late,waiting") == {unread: "late", due: "waiting"}


async def test_what_an_operator_copies_is_whole_on_eighty_columns(hotline):
    await hotline.seen()
    event = await hotline.has("dropped")
    for words in (["lost", "list"], ["handoffs", "--state", "dropped"], ["lost", "show", event]):
        text = await hotline(*words, json=False, code=PROBLEM)
        assert event in text
        assert EDGE in text
        assert "resolver.cases/1/7" in text
    assert EDGE in await hotline("handoffs", json=False, code=PROBLEM)


# ------------------------------------------------------------------ evidence

GAP = {"topic": "telephony.calls", "partition": 0, "offset": 3, "subject": "/pbx/b", "sequence": 0}
VERDICT = {
    "state": "sequence gap",
    "committed": None,
    "note": "",
    "barrier": [{"topic": "telephony.calls", "partition": 0, "end": 4, "read": 4}],
}


def gap(group, name):
    return {**GAP, "event_id": name, "group": group, "edge": f"number→{group}"}


def headers(**of):
    return [(name, str(value).encode()) for name, value in of.items()]


async def test_telephonys_gap_is_checked_by_source_and_number(hotline):
    kafka, found = hotline.place.kafka, gap("telephony", "/pbx/b#2")
    await apply_topics(kafka, [BY_NAME["telephony.calls"]])
    publisher = KafkaPublisher(kafka, "tests")

    async def say(source, number):
        of = headers(ce_id=new_id(), ce_source=source, ce_sequence=number)
        await publisher.publish([Outgoing("telephony.calls", b"k", b"{}", of)])

    for source, number in (("/pbx/b", 1), ("/pbx/b", 3), ("/pbx/c", 2)):
        await say(source, number)
    assert await evidence.check_again(hotline.place, found) == []
    await say("/pbx/b", 2)
    await publisher.stop()
    assert len(await evidence.check_again(hotline.place, found)) == 1


def test_a_stages_gap_is_checked_by_what_it_counts():
    wanted = evidence.wanted_of(gap("resolver", "case-1#2"))
    assert {"resolver.cases", "departments.cards"} <= set(wanted.topics)

    def finds(key=b"case-1", source="resolver", number="0000000002", of=()):
        named = {"ce_source": f"/hotline/{source}".encode(), "ce_sequence": number.encode(), **dict(of)}
        return wanted.finds(named, SimpleNamespace(key=key))

    assert finds()
    assert finds(key=b"other", of=[("ce_sequenceof", b"case-1")])
    assert not finds(key=b"case-2")
    assert not finds(of=[("ce_sequenceof", b"case-2")])
    assert not finds(source="router")
    assert not finds(number="12")
    assert not finds(number="many")


def recipe(handoff, **verdict):
    place = Place("127.0.0.1:9092", "postgresql://h:x@127.0.0.1/hotline", "t.")
    return evidence.by_hand(place, handoff, {**VERDICT, **verdict})


def test_the_recipe_for_telephonys_gap_asks_no_group_and_looks_for_the_number():
    lines = recipe(gap("telephony", "/pbx/b#2"))
    assert not any("consumer-groups" in line for line in lines), "nobody commits for telephony"
    (search,) = [line for line in lines if line.startswith("kcat") and "grep" in line]
    assert "-t t.telephony.calls -p 0 -o beginning -c 4" in search
    assert matches(search, "telephony.calls/0/2 k ce_id=x,ce_source=/pbx/b,ce_sequence=2")
    assert matches(search, "telephony.calls/0/2 k ce_source=/pbx/b,ce_sequence=0000000002,ce_type=t")
    assert not matches(search, "telephony.calls/0/2 k ce_source=/pbx/b,ce_sequence=12")
    assert not matches(search, "telephony.calls/0/2 k ce_source=/pbx/bb,ce_sequence=2")


def test_the_recipe_for_a_stages_gap_looks_for_the_subject_too():
    barrier = [{"topic": "resolver.cases", "partition": 1, "end": 9, "read": 9}]
    lines = recipe(gap("resolver", "case-1#2"), barrier=barrier)
    assert any("--group t.resolver" in line for line in lines)
    search = lines[-1]
    source = "ce_source=/hotline/resolver,ce_sequence=0000000002"
    assert matches(search, f"resolver.cases/1/4 case-1 {source}")
    assert matches(search, f"departments.cards/1/4 other {source},ce_sequenceof=case-1")
    assert not matches(search, f"resolver.cases/1/4 case-12 {source}")
    assert not matches(search, "resolver.cases/1/4 case-1 ce_source=/hotline/router,ce_sequence=2")


def matches(search, line):
    """Run the part of a recipe behind kcat on one line of kcat's."""
    command = search.partition(" | ")[2]
    return subprocess.run(command, shell=True, input=line + "\n", text=True, check=False).returncode == 0


def test_each_kind_of_edge_is_disproved_in_its_own_way():
    handoff = {**GAP, "event_id": "e-1", "group": "resolver", "subject": "case-1", "sequence": 4}
    act = {"ce_type": b"resolver.case-accepted.v1", "ce_sequenceof": b"case-1", "ce_sequence": b"5"}
    timer = evidence.wanted_of({**handoff, "edge": LATER})
    assert timer.finds(act, None)
    assert not timer.finds({**act, "ce_sequence": b"4"}, None), "it was said before"
    assert not timer.finds({**act, "ce_sequenceof": b"case-2"}, None)
    assert not timer.finds({**act, "ce_type": b"resolver.case-resolved.v1"}, None)
    orphan = evidence.wanted_of({**handoff, "edge": "nobody→resolver"})
    assert "router.cases" in orphan.topics
    assert orphan.finds({"ce_id": b"e-1"}, None)
    assert not orphan.finds({"ce_causationid": b"e-1"}, None)
    answer = evidence.wanted_of({**handoff, "edge": "router.case-routed→resolver"})
    named = {"ce_source": b"/hotline/resolver", "ce_causationid": b"e-1"}
    assert answer.finds(named, None)
    assert not answer.finds({**named, "ce_source": b"/hotline/router"}, None)


def test_where_nothing_is_proved_there_is_no_recipe():
    lines = recipe(
        {**GAP, "event_id": "e-1", "group": "router", "edge": EDGE}, state="unprovable", note="why"
    )
    assert lines == ["# nothing is proved, so nothing can be checked: why"]
