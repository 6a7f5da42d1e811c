"""The router as a stage: each case is routed exactly once, whatever is missing, repeated or killed."""

import asyncio
import json
from collections import Counter
from datetime import timedelta
from random import Random
from uuid import UUID

import asyncpg
import pytest

from chassis import failpoints
from chassis.kafka import KafkaPublisher, whole
from chassis.postgres import Database
from chassis.roots import new_id
from schemas.case import Decision
from schemas.router import CaseParked, CaseRouted, CommandRefused, RejectionRequested, TriageOverdue
from services.router.classifier.model import save_model
from services.router.reading import pack
from tests.conftest import eventually
from tests.given import DECISION, message, recorded
from tests.router.given import (
    ROUTING,
    RULES_TEXT,
    SURE,
    UNSURE,
    Rig,
    always_open,
    assignment_by,
    bundle,
    day,
    held,
    reopened,
    returned,
    ruling,
    sealed_model,
    settings_in,
    transferred,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def folder(tmp_path):
    bundle(tmp_path / "models", "en", "zh")
    return tmp_path


@pytest.fixture
def rig(database, vault, folder):
    return Rig(database, vault, settings_in(folder, audits=False))


# ------------------------------------------------------------ exactly one


async def missing_model(rig, folder):
    rig.live(settings_in(folder, models=folder / "nowhere"))


async def damaged_model(rig, folder):
    card = folder / "models" / "en" / "model.json"
    card.write_text(card.read_text()[:-20])
    rig.live(settings_in(folder))


async def bad_rules(rig, folder):
    async with rig.database.session() as tx:
        await tx.execute(
            "insert into rulesets (version, sha256, document, by, reason)"
            " values ('9', repeat('9', 64), 'rules: nonsense', 'lead', '')"
        )


async def everything_sound(rig, folder):
    pass


FAULTS = [everything_sound, missing_model, damaged_model, bad_rules]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_input_brings_about_exactly_one_routing(rig, folder, fault, seed):
    await fault(rig, folder)
    inputs = await day(rig, Random(seed), 40)
    assert set(inputs.values()) == {
        "CaseRecorded",
        "CaseReturned",
        "CaseTransferred",
        "CaseReopened",
        "AssignmentRequested",
    }
    causes = Counter(headers["ce_causationid"] for headers, body in rig.said() if isinstance(body, ROUTING))
    assert causes == Counter(list(inputs))
    assert {type(body) for _, body in rig.said()} == {CaseRouted, CaseParked}

    said = len(rig.log.records("router.cases"))
    rig.from_the_beginning()
    rig.live(settings_in(folder))
    await rig.say()
    assert len(rig.log.records("router.cases")) == said
    assert await rig.rows("select 1 from unpublished") == []
    assert rig.log.records("router.dead") == []
    await same_in_the_reading_copy(rig)


async def same_in_the_reading_copy(rig):
    """Each state has its row in `routings`, and says the same."""
    rows = {row["case_id"]: row for row in await rig.rows("select * from routings")}
    keys = [UUID(row["key"]) for row in await rig.rows("select key from entities")]
    assert set(rows) == set(keys)
    for key in keys:
        state, row = await rig.state(key), rows[key]
        why, label = state.explanation, state.label
        said = why.model if why else None
        assert {
            "case_no": state.case.case_no,
            "cycle": state.case.cycle,
            "language": state.case.language,
            "customer_ref": state.case.customer.customer_ref,
            "phase": state.phase,
            "department": state.department,
            "stage": state.stage,
            "rule": state.rule,
            "attempt_no": state.attempt_no,
            "moves": state.moves,
            "changed_at": state.changed_at,
            "recorded_at": state.case.recorded_at,
            "top": [[one.department, one.p] for one in said.top] if said else [],
            "suggested": said.top[0].department if said and said.top else None,
            "would_route": said.would_route if said else False,
            "model_sha256": said.sha256 if said else None,
            "abstained": why.abstained if why else None,
            "degraded": why.degraded if why else None,
            "audit": why.audit if why else False,
            "label": label.department if label else None,
            "label_source": label.source if label else None,
            "label_at": label.at if label else None,
        }.items() <= {**row, "top": json.loads(row["top"])}.items()


async def test_with_a_bad_ruleset_each_decision_says_so(rig, folder):
    await bad_rules(rig, folder)
    case = await rig.case(product="fee")
    await rig.say(message(recorded(case)))
    assert rig.last(case.case_id).explanation.degraded == "ruleset_unavailable"
    assert (await rig.rows("select degraded from routings"))[0]["degraded"] == "ruleset_unavailable"


async def test_without_a_model_rules_decide_and_people_have_the_rest(rig, folder):
    await missing_model(rig, folder)
    fee, sure = await rig.case(product="fee"), await rig.case(SURE["en"])
    await rig.say(message(recorded(fee)), message(recorded(sure)))
    assert [(rig.last(one.case_id).department, rig.last(one.case_id).why.rule) for one in (fee, sure)] == [
        ("payments", "fees"),
        ("triage", "classifier_unavailable"),
    ]
    assert rig.last(sure.case_id).explanation.degraded == "classifier_unavailable"


async def test_an_activated_model_that_is_damaged_sends_its_language_to_people(rig, folder):
    model, files = sealed_model("en", "2")
    save_model(files, folder / "second")
    content = pack(folder / "second")
    async with rig.database.session() as tx:
        await tx.execute(
            "insert into models (sha256, version, language, content) values ($1, '2', 'en', $2)",
            model.sha256,
            content[: len(content) // 2],
        )
        await tx.execute(
            "insert into model_activations (role, language, sha256, by, reason)"
            " values ('active', 'en', $1, 'lead', '')",
            model.sha256,
        )
    english, chinese = await rig.case(SURE["en"]), await rig.case(SURE["zh"], language="zh")
    await rig.say(message(recorded(english)), message(recorded(chinese)))
    assert rig.last(english.case_id).explanation.degraded == "classifier_unavailable"
    assert rig.last(chinese.case_id).department == "cards"


@pytest.mark.parametrize(
    "point", ["before_store", "after_store", "after_publish", "after_mark", "after_commit"]
)
async def test_a_crash_at_any_point_routes_each_case_once(rig, folder, point):
    cases = [await rig.case(text) for text in (SURE["en"], UNSURE["en"], "I lost my card")]
    failpoints.arm(point, "hang")
    dying = asyncio.create_task(rig.say(*(message(recorded(case)) for case in cases)))

    async def reached():
        return point not in failpoints.ARMED

    await eventually(reached, 20, f"{point} is reached")
    dying.cancel()
    for task in (rig.handle._sending, rig.handle._acknowledging):
        if task is not None:
            task.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    rig.live(settings_in(folder, models=folder / "nowhere"))
    await rig.say()
    assert Counter(body.case_id for _, body in rig.said()) == Counter({case.case_id: 1 for case in cases})
    stored = {case.case_id: (await rig.state(case.case_id)).department for case in cases}
    assert {body.case_id: body.department for _, body in rig.said()} == stored
    assert await rig.rows("select 1 from unpublished") == []


async def test_what_comes_before_its_case_is_decided_when_the_case_comes(rig):
    case = await rig.case(product="fee")
    first = message(recorded(case))
    cause = UUID(dict(first.headers)["ce_id"].decode())
    early = message(returned(held(case, assignment_by(cause), "payments"), to="wealth"))
    late = message(ruling(case.case_id, "lending"))
    await rig.say(early, late)
    assert rig.said() == []
    await rig.say(first)
    assert [body.department for _, body in rig.said(case.case_id)] == ["payments", "wealth"]
    assert [body.code for body in verdicts(rig, late)] == ["illegal_in_state"]


@pytest.mark.parametrize("together", [False, True])
async def test_a_case_follows_its_forerunner_even_when_both_come_in_one_batch(rig, together):
    fee = await rig.case(product="fee")
    second = await rig.case(UNSURE["en"], follows=fee.case_id)
    third = await rig.case(UNSURE["en"], follows=second.case_id)
    said = [message(recorded(case)) for case in (fee, second, third)]
    for batch in [said] if together else [[one] for one in said]:
        await rig.say(*batch)
    for case in (second, third):
        routed = rig.last(case.case_id)
        assert (routed.department, routed.why.rule) == ("payments", "follows_earlier_case")
        assert routed.explanation.follows == "payments"


# ------------------------------------------------------------ a person decides


async def in_triage(rig, text=UNSURE["en"], **fields):
    case = await rig.case(text, **fields)
    await rig.say(message(recorded(case)))
    assert rig.last(case.case_id).department == "triage"
    return case


def verdicts(rig, item):
    uid = dict(item.headers)["ce_id"].decode()
    return [body for headers, body in rig.said() if headers["ce_causationid"] == uid]


async def test_triage_names_the_department_and_what_was_suggested_stays_known(rig):
    case = await in_triage(rig)
    suggested = rig.last(case.case_id).explanation.model
    await rig.say(message(ruling(case.case_id, "lending")))
    routed = rig.last(case.case_id)
    assert (routed.department, routed.why.stage, routed.why.rule) == ("lending", "ruling", "ruling_by_lead")
    assert routed.attempt_no == 2
    assert routed.explanation.model == suggested
    state = await rig.state(case.case_id)
    assert (state.label.department, state.label.source) == ("lending", "triage")
    await same_in_the_reading_copy(rig)


async def test_a_blind_sample_teaches_as_such(database, vault, folder):
    rig = Rig(database, vault, settings_in(folder))
    case = await in_triage(rig, SURE["en"], case_id=UUID(int=143))
    assert rig.last(case.case_id).why.rule == "audit_sample"
    await rig.say(message(ruling(case.case_id, "cards")))
    state = await rig.state(case.case_id)
    assert (state.label.department, state.label.source, state.explanation.audit) == ("cards", "audit", True)


async def test_a_case_that_a_department_has_is_not_for_triage_to_give(rig):
    case = await rig.case(product="fee")
    await rig.say(message(recorded(case)))
    for department, code in (
        ("cards", "illegal_in_state"),
        ("moon", "unknown_department"),
        ("triage", "unknown_department"),
    ):
        command = message(ruling(case.case_id, department))
        await rig.say(command)
        (refused,) = verdicts(rig, command)
        assert (type(refused), refused.code) == (CommandRefused, code)
    assert (await rig.state(case.case_id)).department == "payments"
    assert (await rig.state(case.case_id)).label is None


async def test_a_command_that_comes_twice_assigns_once(rig):
    case = await in_triage(rig)
    command = message(ruling(case.case_id, "lending"))
    await rig.say(command, command)
    await rig.say(command)
    assert [type(body) for body in verdicts(rig, command)] == [CaseRouted]
    second = message(ruling(case.case_id, "cards"))
    await rig.say(second)
    assert verdicts(rig, second)[0].code == "illegal_in_state"


async def test_a_person_with_the_longest_name_may_decide(rig):
    case = await in_triage(rig)
    await rig.say(message(ruling(case.case_id, "lending", by="n" * 80)))
    assert rig.last(case.case_id).department == "lending"


async def between(rig, *ways):
    """A case that goes from department to department; gives it and who had it."""
    case = await rig.case(product="fee")
    await rig.say(message(recorded(case)))
    for kind, to in ways:
        await rig.say(message(kind(rig.last(case.case_id), to=to)))
    return case, [getattr(body, "department", "parked") for _, body in rig.said(case.case_id)]


async def test_departments_that_disagree_get_a_ruling(rig):
    case, holders = await between(rig, (returned, "wealth"), (returned, "payments"))
    assert holders == ["payments", "wealth", "parked"]
    state = await rig.state(case.case_id)
    assert (state.phase, state.moves, state.assignment_id) == ("parked", 2, None)
    assert (state.label.department, state.label.source) == ("payments", "transfer")
    await rig.say(message(ruling(case.case_id, "lending")))
    state = await rig.state(case.case_id)
    assert (state.phase, state.department, state.label.source) == ("routed", "lending", "ruling")
    await same_in_the_reading_copy(rig)


async def test_who_gave_a_case_back_does_not_get_it_by_rule_again(rig):
    _, holders = await between(rig, (returned, None), (transferred, None))
    assert holders == ["payments", "branches", "triage"]


async def test_what_triage_passes_on_is_no_disagreement(rig):
    case = await in_triage(rig)
    for to in ("lending", "triage", "wealth", "triage", "cards"):
        await rig.say(message(transferred(rig.last(case.case_id), to=to)))
    state = await rig.state(case.case_id)
    assert (state.phase, state.department, state.moves) == ("routed", "cards", 2)
    assert (state.label.department, state.label.source) == ("cards", "triage")


async def test_work_that_is_done_elsewhere_teaches_nothing_and_forgets_no_lesson(rig):
    case = await in_triage(rig)
    await rig.say(message(ruling(case.case_id, "lending")))
    await rig.say(message(transferred(rig.last(case.case_id), to="payments")))
    state = await rig.state(case.case_id)
    assert (state.department, state.label.department, state.label.source) == ("payments", "lending", "triage")
    await rig.say(message(reopened(rig.last(case.case_id))))
    state = await rig.state(case.case_id)
    assert (state.department, state.case.cycle, state.label.department) == ("payments", 2, "lending")


async def test_a_matter_of_another_bank_is_rejected_only_while_nobody_has_it(rig):
    decision = Decision(**{**DECISION.model_dump(), "outcome": "rejected"})
    case, _ = await between(rig, (returned, "wealth"))
    early = message(RejectionRequested(case_id=case.case_id, by="lead", decision=decision))
    await rig.say(early)
    assert verdicts(rig, early)[0].code == "illegal_in_state"
    await rig.say(message(returned(rig.last(case.case_id), to="payments")))
    await rig.say(message(RejectionRequested(case_id=case.case_id, by="lead", decision=decision)))
    assert (await rig.state(case.case_id)).phase == "rejected"
    await same_in_the_reading_copy(rig)


# ------------------------------------------------------------ nobody decides


async def fire(rig):
    """Let every timer that is due fire, and decide what it says."""
    await rig.relay.fire_timers_once()
    await rig.relay.relay_once()
    await rig.say()


async def test_a_parked_case_is_reminded_of_with_rising_level(database, vault, folder):
    rig = Rig(database, vault, settings_in(folder, triage_within=timedelta(0)))
    case, _ = await between(rig, (returned, "wealth"), (returned, "payments"))
    parked = await rig.state(case.case_id)
    for _ in range(5):
        await fire(rig)
    overdue = [body for _, body in rig.said(case.case_id) if isinstance(body, TriageOverdue)]
    assert [one.level for one in overdue] == [1, 2, 3, 4, 5]
    assert {one.waiting_since for one in overdue} == {parked.changed_at}
    assert (await rig.state(case.case_id)).reminders == 5
    await rig.say(message(ruling(case.case_id, "lending")))
    assert (await rig.state(case.case_id)).reminders == 0


async def test_a_ruling_ends_the_reminders(database, vault, folder):
    rig = Rig(database, vault, settings_in(folder, triage_within=timedelta(0)))
    case, _ = await between(rig, (returned, "wealth"), (returned, "payments"))
    await rig.say(message(ruling(case.case_id, "lending")))
    await fire(rig)
    assert [body for _, body in rig.said() if isinstance(body, TriageOverdue)] == []


# ------------------------------------------------------------ the real thing, killed


class Alone:
    """The router alone, as a process, with a broken ruleset in force and without a model."""

    def __init__(self, world, place, folder):
        self.world, self.place = world, place
        self.settings = {
            "HOTLINE_RULES_FILE": str(folder / "rules.yaml"),
            "HOTLINE_DEPARTMENTS_FILE": str(always_open(folder)),
            "HOTLINE_MODELS": str(folder / "nowhere"),
        }
        (folder / "rules.yaml").write_text(RULES_TEXT, "utf-8")

    async def start(self, **settings):
        await asyncio.to_thread(
            self.world.start_stages, self.place, {**self.settings, **settings}, ("router",)
        )

    async def value(self, sql):
        connection = await asyncpg.connect(self.place.database_url)
        try:
            await connection.execute(f'set search_path to "{self.place.database_prefix}router"')
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    async def publish(self, *messages):
        publisher = KafkaPublisher(self.place.kafka, "tests")
        await publisher.publish(list(messages))
        await publisher.stop()

    async def said(self):
        """What is on the topic: each id once, with its cause and its body."""
        found = {}
        async for record in whole(self.place.kafka, "router.cases"):
            headers = {name: value.decode() for name, value in record.headers}
            body = {"router.case-routed.v1": CaseRouted, "router.case-parked.v1": CaseParked}[
                headers["ce_type"]
            ]
            one = headers["ce_causationid"], body.parse(record.value)
            assert found.setdefault(headers["ce_id"], one) == one
        return list(found.values())


@pytest.fixture
async def alone(world, tmp_path):
    return Alone(world, world.place(), tmp_path)


POINTS = ("before_store", "after_store", "after_publish", "after_mark", "after_commit")


@pytest.mark.kafka
@pytest.mark.slow
async def test_kill_9_routes_each_case_exactly_once_on_the_real_parts(alone):
    await alone.value(
        "insert into rulesets (version, sha256, document, by, reason)"
        " values ('9', repeat('9', 64), 'rules: nonsense', 'lead', '')"
    )
    vault = await alone.world.vault(alone.place)
    dice, inputs = Random(5), {}
    rig = Rig(Database("", "unused"), vault, settings_in(alone.world.folder / "given"))
    waves = []
    for _ in range(len(POINTS) + 1):
        cases = [await rig.case(product=dice.choice(["fee", "other"]), case_id=new_id()) for _ in range(60)]
        firsts = {new_id(): case for case in cases}
        messages = [message(recorded(case), uid) for uid, case in firsts.items()]
        for uid, case in firsts.items():
            holder = held(case, assignment_by(uid), "payments" if case.product == "fee" else "triage")
            if dice.random() < 0.3:
                messages.append(message(dice.choice([returned, transferred])(holder, to="wealth")))
        inputs.update({dict(one.headers)["ce_id"].decode(): one for one in messages})
        waves.append(messages)
    await vault.close()

    for point, messages in zip(POINTS, waves, strict=False):
        armed = {"HOTLINE_TESTING": "1", "HOTLINE_FAILPOINTS": f"{point}=kill"}
        await alone.start(**armed)
        await alone.publish(*messages, *dice.sample(messages, 10))

        async def dead():
            return alone.world.pid_of("router") is None

        await eventually(dead, 60, f"the router dies at {point}")
    await alone.start()
    await alone.publish(*waves[-1])

    async def quiet():
        handled = await alone.value("select count(*) from inbox")
        return handled == len(inputs) and await alone.value("select count(*) from unpublished") == 0

    await eventually(quiet, 90, f"{len(inputs)} inputs are handled and all is sent")
    said = await alone.said()
    assert Counter(cause for cause, _ in said) == Counter(list(inputs))
    assert {body.why.rule for cause, body in said if isinstance(body, CaseRouted)} == {
        "fees",
        "classifier_unavailable",
        "proposed_by_department",
    }
    assert await alone.value("select count(*) from quarantine") == 0
    assert await alone.value(
        "select count(*) from entities e join routings r on r.case_id::text = e.key"
        " where e.document::json->>'department' = r.department and e.phase = r.phase"
    ) == await alone.value("select count(*) from entities")
