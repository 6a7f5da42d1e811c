"""What a waiting caller is told, through HTTP and FastAGI, and that it was told is an event."""

import asyncio
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from asyncpg import InterfaceError, UndefinedColumnError

from chassis.clock import utc_now
from schemas import telephony
from services.intake.contact import Contact, Visit
from services.intake.door import scripts as scripts_room
from services.intake.door.access import Access
from services.intake.door.scripts import scripts
from services.intake.waiting import store
from services.intake.waiting.agi import AgiRequest, AgiServer, NotKnown
from tests.intake.door import DoorRig

PHONE = "+8613800138000"


@pytest.fixture
def rig(stage_database, vault):
    return DoorRig(stage_database, vault)


def waiting(call_id, since, **more):
    queued = utc_now() - since
    visit = Visit(number=1, queue="cards", queued_at=queued)
    return Contact(call_id=call_id, first_at=queued, phase="queued", visits=(visit,), **more)


def served(number, wait_s, ago_s, agent="agent-1", talk_s=60):
    answered = utc_now() - timedelta(seconds=ago_s)
    visit = Visit(
        number=1,
        queue="cards",
        queued_at=answered - timedelta(seconds=wait_s),
        answered_at=answered,
        agent=agent,
        wait_ms=wait_s * 1000,
        talk_ms=talk_s * 1000,
        talk_ended_at=answered + timedelta(seconds=talk_s),
    )
    return Contact(call_id=f"past-{number}", first_at=answered, phase="recorded", visits=(visit,))


def history():
    return [served(n, 60, 2000 - 60 * n, f"agent-{n % 2}") for n in range(30)]


async def test_position_and_estimate_are_told_and_kept(rig):
    await rig.calls(*history(), *(waiting(f"call-{n}", timedelta(seconds=90 - 10 * n)) for n in range(4)))
    async with rig.client() as client:
        answer = (await client.get("/queues/cards/guidance?call_id=call-2&lang=en")).json()
    assert answer["position"] == 3
    assert answer["basis"] == "history"
    assert 0 < answer["estimate_ms"] <= answer["about_ms"] <= answer["at_most_ms"]
    assert "number 3" in answer["say"][1]["text"]
    (told,) = await rig.sent(telephony.PositionTold)
    assert (told.call_id, told.queue, told.visit, told.position) == ("call-2", "cards", 1, 3)
    assert (told.estimate_ms, told.about_ms, told.at_most_ms) == (
        answer["estimate_ms"], answer["about_ms"], answer["at_most_ms"],
    )  # fmt: skip


async def test_a_priority_caller_stands_further_ahead(rig):
    visit = Visit(number=1, queue="cards", queued_at=utc_now() - timedelta(seconds=10), priority=1)
    priority = Contact(call_id="gold", first_at=utc_now(), phase="queued", visits=(visit,))
    await rig.calls(*(waiting(f"call-{n}", timedelta(seconds=60)) for n in range(3)), priority)
    async with rig.client() as client:
        answer = (await client.get("/queues/cards/guidance?call_id=gold")).json()
    assert answer["position"] == 1


async def test_the_switch_s_own_place_goes_before_our_rule(rig):
    def placed(call_id, ago, place, **more):
        queued = utc_now() - timedelta(seconds=ago)
        visit = Visit(number=1, queue="cards", queued_at=queued, place=place, placed_at=queued, **more)
        return Contact(call_id=call_id, first_at=queued, phase="queued", visits=(visit,))

    gone = {"left_at": utc_now() - timedelta(seconds=5), "left": "abandoned"}
    await rig.calls(
        placed("first", 90, 1, **gone), placed("second", 80, 2), placed("third", 70, 3), placed("gold", 60, 2)
    )
    async with rig.client() as client:

        async def position(call_id):
            return (await client.get(f"/queues/cards/guidance?call_id={call_id}")).json()["position"]

        assert [await position(name) for name in ("gold", "second", "third")] == [1, 2, 3]
        await rig.calls(placed("just now", 0, 2))
        assert await position("just now") == 2, "though the queue was read before it came"


async def test_without_history_the_reason_is_said_instead_of_a_number(rig):
    await rig.calls(waiting("call-1", timedelta(seconds=5)))
    async with rig.client() as client:
        answer = (await client.get("/queues/cards/guidance?call_id=call-1&lang=en")).json()
    assert (answer["position"], answer["estimate_ms"], answer["unknown_because"]) == (1, None, "no_history")
    assert "cannot say" in " ".join(prompt["text"] for prompt in answer["say"])


async def test_who_waits_in_another_queue_is_told_no_place_in_this_one(rig, monkeypatch):
    await rig.calls(waiting("call-1", timedelta(seconds=5)))
    monkeypatch.setattr(type(rig.assistant.hours), "is_open", lambda *_: True)  # whatever the time is
    async with rig.client() as client:
        answer = (await client.get("/queues/cards%40default/guidance?call_id=call-1&lang=en")).json()
    assert answer["position"] is None
    assert [prompt["kind"] for prompt in answer["say"]] == ["greeting", "callback", "menu"]
    assert "keep your place" not in answer["say"][1]["text"]
    (told,) = await rig.sent(telephony.PositionTold)
    assert told.position is None


async def test_nobody_is_next_in_a_queue_whose_agents_are_not_at_work(rig, monkeypatch):
    await rig.calls(waiting("call-1", timedelta(seconds=5)))
    monkeypatch.setattr(type(rig.assistant.hours), "is_open", lambda *_: False)
    async with rig.client() as client:
        answer = (await client.get("/queues/cards/guidance?call_id=call-1&lang=en")).json()
        assert [prompt["kind"] for prompt in answer["say"]] == ["greeting", "hours", "callback", "menu"]
        assert answer["position"] is None
        await rig.calls(served(1, wait_s=60, ago_s=70))
        rig.assistant._queues.clear()
        answer = (await client.get("/queues/cards/guidance?call_id=call-1&lang=en")).json()
    assert answer["position"] == 1, "an agent is still at it"


async def test_who_asks_for_a_callback_without_naming_a_queue_keeps_the_one_of_the_wait(rig):
    await rig.calls(waiting("call-1", timedelta(seconds=5), customer_ref="c-1"))
    async with rig.client():
        await rig.assistant.call_back("call-1", "")
    (wish,) = await rig.sent(telephony.CallbackRequested)
    assert wish.queue == "cards"


async def test_an_unknown_call_is_404_and_nothing_is_kept(rig):
    async with rig.client() as client:
        response = await client.get("/queues/cards/guidance?call_id=nobody")
    assert response.status_code == 404
    assert await rig.sent(telephony.PositionTold) == []


async def a_caller_with_an_open_case(rig):
    await rig.calls(waiting("call-1", timedelta(seconds=5), customer_ref="c-1"))
    async with rig.database.session() as tx:
        await tx.execute(
            "insert into cases (case_id, case_no, customer_ref, recorded_at, state, department, changed_at)"
            " values (gen_random_uuid(), 'C-20261123-004217-6', 'c-1', now(), 'in_progress', 'cards', now())"
        )


async def test_the_open_case_is_told_only_to_who_has_proved_who_he_is(rig):
    await a_caller_with_an_open_case(rig)
    async with rig.client() as client:
        secret = await client.get("/queues/cards/guidance?call_id=call-1&lang=en")
        proved = await client.get("/queues/cards/guidance?call_id=call-1&lang=en&identified=true")
    assert "004217" not in secret.text
    assert "C-20261123-004217-6" in proved.text
    assert "cards department is working" in proved.text


async def test_an_open_case_is_told_to_whoever_was_merged_with_its_customer(rig):
    await a_caller_with_an_open_case(rig)
    async with rig.database.session() as tx:
        await tx.execute("insert into customers (customer_ref) values ('c-0')")
        await tx.execute("insert into customers (customer_ref, merged_into) values ('c-1', 'c-0')")
        await tx.execute("update cases set customer_ref = 'c-0'")
    async with rig.client() as client:
        proved = await client.get("/queues/cards/guidance?call_id=call-1&lang=en&identified=true")
    assert "C-20261123-004217-6" in proved.text


async def test_a_question_is_answered_or_said_to_be_unknown(rig):
    await rig.calls(waiting("call-1", timedelta(seconds=5)))
    async with rig.client() as client:
        known = (await client.get("/queues/cards/guidance", params={
            "call_id": "call-1", "lang": "zh", "question": "银行卡丢了怎么挂失",
        })).json()  # fmt: skip
        unknown = (await client.get("/queues/cards/guidance", params={
            "call_id": "call-1", "lang": "zh", "question": "红烧肉怎么做才好吃",
        })).json()  # fmt: skip
    assert known["answers"]
    assert unknown["answers"] == []
    assert "nothing_found" in [prompt["kind"] for prompt in unknown["say"]]
    assert (await rig.sent(telephony.PositionTold))[0].answers == tuple(known["answers"])


async def test_a_reason_is_masked_and_sealed_for_the_agent(rig):
    ref = rig.vault.customer_ref(PHONE)
    await rig.calls(waiting("call-1", timedelta(seconds=5), customer_ref=ref))
    async with rig.client() as client:
        said = "我的信用卡 4111 1111 1111 1111 被盗刷了"
        topic = (await client.post("/calls/call-1/reason", json={"said": said})).json()["topic"]
        digit = (await client.post("/calls/call-1/reason", json={"said": "1"})).json()["topic"]
    first, second = await rig.sent(telephony.ReasonCaptured)
    assert (first.topic, second.topic, second.digit, second.text) == (topic, digit, "1", None)
    opened = rig.vault.open(first.customer_ref, first.text)
    assert "被盗刷" in opened
    assert "4111 1111 1111 1111" not in opened


async def test_a_callback_needs_a_number_that_can_be_called(rig):
    await rig.calls(
        waiting("anonymous", timedelta(seconds=5)), waiting("known", timedelta(seconds=5), customer_ref="c-1")
    )
    async with rig.client() as client:
        none = await client.post("/calls/anonymous/callback", json={"queue": "cards"})
        wrong = await client.post("/calls/anonymous/callback", json={"queue": "cards", "number": "12"})
        for number in ("110", "120", "12378", "4008100000"):
            asked = {"queue": "cards", "number": number}
            nobody_s = await client.post("/calls/anonymous/callback", json=asked)
            assert nobody_s.status_code == 422, "no customer answers there"
        given = await client.post(
            "/calls/anonymous/callback", json={"queue": "cards", "number": "138 0013 8000"}
        )
        own = await client.post("/calls/known/callback", json={"queue": "cards"})
    assert [answer.status_code for answer in (none, wrong, given, own)] == [422, 422, 202, 202]
    first, second = await rig.sent(telephony.CallbackRequested)
    assert rig.vault.open(rig.vault.customer_ref(PHONE), first.number) == PHONE
    assert second.number is None


async def test_who_wishes_to_be_called_back_is_told_when_and_may_wish_again(rig):
    await rig.calls(waiting("call-1", timedelta(seconds=5), customer_ref="c-1"))
    wishes = ({}, {"due_at": (utc_now() + timedelta(days=6)).isoformat()}, {"number": "138 0013 8000"})
    async with rig.client() as client:
        answers = [
            await client.post("/calls/call-1/callback", json={"queue": "loans", **wish}) for wish in wishes
        ]
    promised = [datetime.fromisoformat(answer.json()["due_at"]) for answer in answers]
    assert [answer.json()["promised"] for answer in answers] == [True] * 3
    assert all(rig.assistant.hours.is_open("loans", due) for due in promised)
    assert promised[1] - utc_now() > timedelta(days=1, hours=23)
    assert [body.due_at for body in await rig.sent(telephony.CallbackRequested)] == promised
    spoken = AgiRequest("callback", {"call": "call-1", "queue": "cards", "lang": "en"}, (), {})
    async with rig.client():
        said = await scripts(rig.assistant)["callback"](spoken)
    *_, last = await rig.sent(telephony.CallbackRequested)
    assert f"at {last.due_at.astimezone(ZoneInfo('Asia/Shanghai')):%H:%M}" in said["HOTLINE_PROMPT_1"]


async def test_the_wallboard_shows_what_is_known_and_null_for_what_is_not(rig):
    await rig.calls(*(waiting(f"call-{n}", timedelta(seconds=40)) for n in range(2)))
    async with rig.client() as client:
        (line,) = (await client.get("/queues")).json()
    assert (line["queue"], line["in_queue"], line["on_contact"]) == ("cards", 2, 0)
    assert line["oldest_contact_age_s"] == pytest.approx(40, abs=5)
    assert (line["staffed"], line["estimate_s"], line["unknown_because"]) == (None, None, "no_agent_seen")


async def test_asterisk_is_told_the_same_over_fastagi(rig):
    await rig.calls(*history(), waiting("call-1", timedelta(seconds=5)))
    running = asyncio.create_task(rig.house.entry.run())
    async with AgiServer(scripts(rig.assistant), port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"agi_network_script: guidance?call=call-1&queue=cards\nagi_language: en\nagi_uniqueid: x\n\n"
        )
        variables = {}
        while not (line := await reader.readline()).startswith(b"SET VARIABLE HOTLINE_RESULT"):
            _, _, name, value = line.decode().rstrip("\n").split(" ", 3)
            variables[name] = value
            writer.write(b"200 result=1\n")
        writer.write(b"200 result=1\n")
        writer.close()
    running.cancel()
    assert variables["HOTLINE_POSITION"] == '"1"'
    assert int(variables["HOTLINE_PROMPTS"].strip('"')) >= 3
    (told,) = await rig.sent(telephony.PositionTold)
    assert (told.call_id, told.position, told.language) == ("call-1", 1, "en")


async def test_asterisk_may_ask_a_moment_before_its_event_has_come(rig, monkeypatch):
    monkeypatch.setattr(scripts_room, "AGAIN", 0.01)
    asked = []
    found = rig.assistant.guidance

    async def guidance(about):
        asked.append(about.call_id)
        if len(asked) == 3:
            await rig.calls(waiting("pbx1-call-1", timedelta(seconds=5)))
        return await found(about)

    monkeypatch.setattr(rig.assistant, "guidance", guidance)
    request = AgiRequest("guidance", {"call": "call-1", "system": "pbx1", "queue": "cards"}, (), {})
    async with rig.client():
        told = await scripts(rig.assistant)["guidance"](request)
        assert (told["HOTLINE_POSITION"], asked) == ("1", ["pbx1-call-1"] * 3)
        monkeypatch.setattr(scripts_room, "PATIENCE", 0.0)
        with pytest.raises(NotKnown):
            await scripts(rig.assistant)["callback"](AgiRequest("callback", {"call": "nobody"}, (), {}))


async def test_a_question_in_a_body_is_answered_as_one_in_the_address(rig):
    await a_caller_with_an_open_case(rig)
    asked = {"call_id": "call-1", "lang": "zh", "question": "银行卡丢了怎么挂失", "identified": True}
    async with rig.client() as client:
        got = await client.get("/queues/cards/guidance", params=asked)
        posted = await client.post("/queues/cards/guidance", json=asked)
        unknown = await client.post("/queues/cards/guidance", json={"call_id": "nobody"})
        wrong = await client.post("/queues/cards/guidance", json={**asked, "question": "请" * 501})
        misspelt = await client.post("/queues/cards/guidance", json={"call_id": "call-1", "qestion": "x"})
    assert posted.status_code == 200
    assert "C-20261123-004217-6" in posted.text
    assert said(posted) == said(got)
    assert len(await rig.sent(telephony.PositionTold)) == 2
    assert [answer.status_code for answer in (unknown, wrong, misspelt)] == [404, 422, 422]
    assert "请请" not in wrong.text


def said(answer):
    """What is said, without the estimate: between two moments it may differ."""
    return [(prompt["kind"], prompt["text"]) for prompt in answer.json()["say"] if prompt["kind"] != "wait"]


async def test_while_postgres_is_away_the_ivr_is_told_to_try_again(rig, monkeypatch):
    async def away(*_):
        raise InterfaceError("the pool is closed")

    for room in ("caller", "busy_queues"):
        monkeypatch.setattr(f"services.intake.waiting.store.{room}", away)
    async with rig.client() as client:
        answers = [
            await client.get("/queues"),
            await client.get("/queues/cards/guidance?call_id=call-1"),
            await client.post("/calls/call-1/reason", json={"said": "1"}),
            await client.post("/calls/call-1/callback", json={"queue": "cards"}),
        ]
    assert [(answer.status_code, answer.headers.get("retry-after")) for answer in answers] == [(503, "1")] * 4
    assert {answer.json()["error"] for answer in answers} == {"try_again"}


async def test_a_defect_is_not_told_as_an_outage(rig, monkeypatch):
    async def broken(*_):
        raise UndefinedColumnError

    monkeypatch.setattr("services.intake.waiting.store.busy_queues", broken)
    async with rig.client() as client:
        with pytest.raises(UndefinedColumnError):
            await client.get("/queues")


async def test_a_call_may_be_named_by_any_identifier_and_by_nothing_else(rig):
    await rig.calls(waiting("pbx/1:a b", timedelta(seconds=5), customer_ref="c-1"))
    async with rig.client() as client:
        known = [
            await client.post("/calls/pbx%2F1%3Aa%20b/reason", json={"said": "1"}),
            await client.post("/calls/pbx%2F1%3Aa%20b/callback", json={"queue": "cards"}),
        ]
        impossible = [
            await client.get("/queues/cards/guidance?call_id=%00"),
            await client.post("/calls/a%00/reason", json={"said": "1"}),
        ]
    assert [answer.status_code for answer in known + impossible] == [202, 202, 422, 422]


async def test_a_place_beyond_the_newest_stays_is_still_the_true_one(rig, monkeypatch):
    monkeypatch.setattr("services.intake.waiting.store.MOST_STAYS", 5)
    await rig.calls(*history(), *(waiting(f"call-{n}", timedelta(seconds=90 - n)) for n in range(12)))
    async with rig.client() as client:
        answer = (await client.get("/queues/cards/guidance?call_id=call-11&lang=en")).json()
        (line,) = (await client.get("/queues")).json()
    assert answer["position"] == 12
    assert line["in_queue"] == 12


async def test_a_stay_whose_end_was_lost_is_not_shown_as_waiting_nor_a_talk_as_going_on(rig):
    ago = timedelta(hours=5)
    talk = Visit(number=1, queue="cards", queued_at=utc_now() - ago, answered_at=utc_now() - ago, agent="a")
    lost = Contact(call_id="talk", first_at=utc_now() - ago, phase="answered", visits=(talk,))
    await rig.calls(waiting("lost", ago), lost, waiting("call-1", timedelta(seconds=40)))
    async with rig.client() as client:
        (line,) = (await client.get("/queues")).json()
    assert (line["in_queue"], line["on_contact"]) == (1, 0)
    assert line["oldest_contact_age_s"] == pytest.approx(40, abs=5)


async def test_a_queue_is_read_once_for_all_who_ask_at_the_same_time(rig, monkeypatch):
    await rig.calls(*history(), *(waiting(f"call-{n}", timedelta(seconds=90 - n)) for n in range(30)))
    reads, stays = [], store.stays

    async def counted(tx, queue, *more):
        reads.append(queue)
        return await stays(tx, queue, *more)

    monkeypatch.setattr("services.intake.waiting.store.stays", counted)
    async with rig.client() as client:
        answers = await asyncio.gather(
            *(client.get(f"/queues/cards/guidance?call_id=call-{n}") for n in range(30))
        )
    assert sorted(answer.json()["position"] for answer in answers) == list(range(1, 31))
    assert reads == ["cards"]


async def test_busy_queues_are_those_in_which_somebody_waited_lately(rig):
    def stay(call_id, queue, ago):
        visit = Visit(number=1, queue=queue, queued_at=utc_now() - ago)
        return Contact(call_id=call_id, first_at=utc_now(), visits=(visit,))

    hour = timedelta(hours=1)
    await rig.calls(
        stay("1", "loans", hour), stay("2", "cards", hour), stay("3", "cards", 2 * hour),
        stay("4", "closed long ago", 48 * hour), stay("5", "digital", hour),
    )  # fmt: skip
    async with rig.database.session() as tx:
        assert await store.busy_queues(tx, utc_now() - timedelta(days=1)) == ["cards", "digital", "loans"]
        assert await store.busy_queues(tx, utc_now()) == []


async def test_a_question_on_the_way_needs_no_queue_and_is_spoken_as_the_dialplan_expects(rig):
    await rig.calls(waiting("call-1", timedelta(seconds=5)))
    async with rig.client():
        answer = scripts(rig.assistant)["answer"]
        found = await answer(AgiRequest("answer", {"call": "call-1"}, ("银行卡丢了怎么挂失",), {}))
        nothing = await answer(AgiRequest("answer", {"call": "call-1"}, ("红烧肉怎么做才好吃",), {}))
    assert (found["HOTLINE_FOUND"], nothing["HOTLINE_FOUND"]) == ("1", "0")
    assert "挂失" in found["HOTLINE_PROMPT_1"]
    assert "抱歉" in nothing["HOTLINE_PROMPT_1"]
    assert {body.queue for body in await rig.sent(telephony.PositionTold)} == {"cards"}


async def test_who_is_in_no_queue_is_told_no_place(rig):
    await rig.calls(Contact(call_id="call-1", first_at=utc_now()))
    async with rig.client():
        answer = scripts(rig.assistant)["answer"]
        found = await answer(AgiRequest("answer", {"call": "call-1"}, ("银行卡丢了怎么挂失",), {}))
    assert found["HOTLINE_FOUND"] == "1"
    (told,) = await rig.sent(telephony.PositionTold)
    assert (told.queue, told.position, told.estimate_ms) == ("none", None, None)


async def test_while_nobody_works_a_callback_is_promised_for_the_next_opening(rig, monkeypatch):
    opening = utc_now() + timedelta(hours=9)
    monkeypatch.setattr(rig.assistant.hours, "is_open", lambda *_: False)
    monkeypatch.setattr(rig.assistant.hours, "next_opening", lambda _, at: max(at, opening))
    await rig.calls(waiting("call-1", timedelta(seconds=5), customer_ref="c-1"))
    wished = utc_now() + timedelta(hours=11)
    async with rig.client() as client:
        await client.post("/calls/call-1/callback", json={"queue": "cards"})
        await client.post("/calls/call-1/callback", json={"queue": "cards", "due_at": wished.isoformat()})
    assert [body.due_at for body in await rig.sent(telephony.CallbackRequested)] == [opening, wished]


async def test_the_ivr_needs_its_role(rig, tmp_path):
    tokens = tmp_path / "tokens.yaml"
    from hashlib import sha256

    tokens.write_text(
        f"- {{name: pbx, roles: [ivr], token_sha256: {sha256(b'right').hexdigest()}}}\n"
        f"- {{name: desk, roles: [agent], token_sha256: {sha256(b'desk').hexdigest()}}}\n"
    )
    rig.house.access = Access.at(tokens)
    async with rig.client() as client:
        codes = [
            (await client.get("/queues", headers={"authorization": f"Bearer {token}"})).status_code
            for token in ("right", "desk", "wrong")
        ]
        asking = [
            (
                await client.post(
                    "/queues/cards/guidance",
                    json={"call_id": "nobody"},
                    headers={"authorization": f"Bearer {token}"},
                )
            ).status_code
            for token in ("right", "desk", "wrong")
        ]
    assert codes == [200, 403, 401]
    assert asking == [404, 403, 401]
