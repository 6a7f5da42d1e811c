"""Labels, activations and restrictions on a real PostgreSQL, and what the running stage makes of them."""

import json
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from pydantic import ValidationError

from chassis.batch import Pass
from chassis.clock import utc_now
from chassis.memory import MemoryLog, MemorySubscription
from chassis.metrics import StageMetrics
from chassis.postgres import Database, migrate, role_of
from chassis.relay import Relay
from chassis.roots import new_id
from schemas.case import Customer
from schemas.resolver import CaseReturned, CaseTransferred
from schemas.router import AssignmentRequested, CaseRouted
from services.router import lessons, store
from services.router.app import STAGE
from services.router.classifier.model import BadModel, Metrics, load_model, save_model
from services.router.decision import Desk, _audited
from services.router.domain import Policy
from services.router.learning import ALL, Gauge, Share, figures, split
from services.router.lessons import Act, Refused
from services.router.reading import Reading
from services.router.rules import ASSIGNABLE, parse_rules
from tests.given import NOW, a_case, headers_of, message, recorded, types_on
from tests.router.given import sealed_model, words_of

ACT = Act("ada", "because", NOW)
RULES = """\
ruleset: {version}
rules:
  - id: fees
    name: {{zh: 费用, en: fees}}
    priority: 100
    author: tests
    when: {{field: product, op: eq, value: fee}}
    then: {{department: {department}}}
"""


def rules(version="r1", department="payments"):
    return RULES.format(version=version, department=department)


SWAPPED = tuple({"cards": "fraud", "fraud": "cards"}.get(name, name) for name in ASSIGNABLE)
"""The departments of a model that takes cards for fraud, and fraud for cards."""


def write_model(folder, version="1", *, language="en", departments=ASSIGNABLE, ece=0.0, precision=1.0):
    """A model of a few words in a folder; one word is enough for it to be sure."""
    metrics = Metrics(
        texts=1000, texts_of={}, accuracy=1, macro_f1=1, ece=ece, coverage=1, precision=precision
    )
    model, files = sealed_model(language, version, known=0.0, departments=departments, metrics=metrics)
    save_model(files, folder)
    return model


class Router:
    """The stage, its database, its log, its vault; `model` is the installation's own."""

    def __init__(self, database, vault, model=None):
        self.database, self.vault, self.log = database, vault, MemoryLog()
        self.reading = Reading(vault, Desk(), {model.card.language: model} if model else {})
        stage = replace(STAGE, policy=Policy(), prepare=self.reading.look_up)
        metrics = StageMetrics("router")
        self.relay = Relay(stage, database, self.log, metrics)
        self.handle = Pass(stage, database, self.log, vault.seal_record, metrics)
        self.subscription = MemorySubscription(
            self.log, "router", stage.inputs, self.handle, self.handle.settle
        )

    async def take(self, *bodies):
        """Handle these messages; what is in force is looked up anew."""
        self.reading._looked_at = float("-inf")
        for body in bodies:
            self.log.append(message(body))
        await self.subscription.drain()

    async def record(self, text, *, audited=False, ref="c-1", **fields):
        """Record a case of these words; gives it as it was recorded."""
        await self.vault.ready([ref], create=True)
        sealed = self.vault.seal(ref, words_of(text))
        case = a_case(an_id(audited=audited), customer=Customer(customer_ref=ref, sealed=sealed), **fields)
        await self.take(recorded(case))
        return case

    def routed(self, case):
        """What was said last of where the case goes."""
        said = [
            record for record in self.log.records("router.cases") if record.key == str(case.case_id).encode()
        ]
        return CaseRouted.parse(said[-1].value)

    async def moved(self, case, kind, reason, proposed):
        now = self.routed(case)
        await self.take(
            kind(
                case_id=case.case_id,
                assignment_id=now.assignment_id,
                department=now.department,
                reason=reason,
                proposed_department=proposed,
                case=now.case,
            )
        )

    async def labels(self):
        async with self.database.session() as tx:
            rows = await tx.fetch("select case_id, label, label_source from routings where label is not null")
        return {row["case_id"]: (row["label"], row["label_source"]) for row in rows}


def an_id(*, audited):
    while _audited(found := new_id(), 1) is not audited:
        pass
    return found


@pytest.fixture
def router(database, vault, tmp_path):
    return Router(database, vault, write_model(tmp_path / "own"))


async def rows(database, sql, *args):
    async with database.session() as tx:
        return [dict(row) for row in await tx.fetch(sql, *args)]


# ------------------------------------------------------------ labels on a running stage


@pytest.mark.postgres
async def test_what_people_correct_becomes_a_label_and_nothing_else_does(router):
    misrouted = await router.record("my card is gone, please help")
    assert (router.routed(misrouted).department, router.routed(misrouted).why.stage) == ("cards", "model")
    await router.moved(misrouted, CaseTransferred, "misrouted", "fraud")

    returned = await router.record("the card machine took my money")
    await router.moved(returned, CaseReturned, "not_ours", "branches")

    done = await router.record("my card and my friend, please")
    await router.moved(done, CaseTransferred, "done_here", "lending")
    assert router.routed(done).department == "lending"

    unsure = await router.record("nobody answers, what shall I do")
    assert router.routed(unsure).department == "triage"
    await router.take(AssignmentRequested(case_id=unsure.case_id, department="wealth", by="ada"))

    passed_on = await router.record("nobody writes back to me either")
    await router.moved(passed_on, CaseTransferred, "found", "digital")

    sampled = await router.record("my card again, please help", audited=True)
    assert router.routed(sampled).explanation.audit
    assert router.routed(sampled).department == "triage"
    await router.take(AssignmentRequested(case_id=sampled.case_id, department="cards", by="ada"))

    assert await router.labels() == {
        misrouted.case_id: ("fraud", "transfer"),
        returned.case_id: ("branches", "transfer"),
        unsure.case_id: ("wealth", "triage"),
        passed_on.case_id: ("digital", "triage"),
        sampled.case_id: ("cards", "audit"),
    }


@pytest.mark.postgres
async def test_first_decisions_stay_as_they_were_whatever_becomes_of_the_case(router):
    case = await router.record("my card is gone, please help")
    waiting = await router.record("my card or my transfer, who knows", language="zh")
    await router.moved(case, CaseTransferred, "misrouted", "fraud")
    await router.take(AssignmentRequested(case_id=waiting.case_id, department="wealth", by="ada"))
    kept = await rows(
        router.database,
        "select case_id, language, department, stage, suggested, audit from first_decisions order by at",
    )
    assert kept == [
        {
            "case_id": case.case_id,
            "language": "en",
            "department": "cards",
            "stage": "model",
            "suggested": "cards",
            "audit": False,
        },
        {
            "case_id": waiting.case_id,
            "language": "zh",
            "department": "triage",
            "stage": "triage",
            "suggested": "cards",
            "audit": False,
        },
    ]
    now = await rows(router.database, "select department from routings where case_id = $1", case.case_id)
    assert now == [{"department": "fraud"}]


@pytest.mark.postgres
async def test_a_decision_before_the_router_had_one_is_no_first_decision(router):
    """A person may have decided before the case came: nothing was decided by rules or models then."""
    case = a_case()
    await router.take(AssignmentRequested(case_id=case.case_id, department="wealth", by="ada"))
    assert await rows(router.database, "select 1 from first_decisions") == []
    await router.vault.ready(["c-1"], create=True)
    await router.take(recorded(case))
    assert [row["stage"] for row in await rows(router.database, "select stage from routings")] == ["ruling"]
    assert await rows(router.database, "select 1 from first_decisions") == []


@pytest.mark.postgres
async def test_lessons_are_the_labelled_words_by_their_language_and_erased_customers_teach_nothing(router):
    for number, text in enumerate(("my card, please help", "我的卡丢了", "what my friend said", "12345")):
        case = await router.record(text, ref=f"c-{number}")
        department = router.routed(case).department
        reason = "found" if department == "triage" else "misrouted"
        await router.moved(case, CaseTransferred, reason, "fraud")
    await router.record("a card without a label, please", ref="c-9")
    await router.vault.erase("c-2")
    seen = []
    found = await lessons.labelled(router.database, router.vault, seen.append)
    assert {
        language: [(one.text, one.department, one.source) for one in of] for language, of in found.items()
    } == {
        "en": [("my card, please help", "fraud", "transfer")],
        "zh": [("我的卡丢了", "fraud", "triage")],
    }
    assert seen == [4]


@pytest.mark.postgres
async def test_a_label_made_after_the_split_never_moves_a_case_into_training(router):
    """Whoever labels it, again and again: what is held out stays held out."""
    cases = [await router.record(f"my card number {'x' * n} is gone") for n in range(20)]
    for case in cases[:10]:
        await router.moved(case, CaseTransferred, "misrouted", "fraud")
    learn, held_out = split((await lessons.labelled(router.database, router.vault))["en"])
    assert (len(learn), len(held_out)) == (9, 1)

    for case in cases[10:]:
        await router.moved(case, CaseTransferred, "misrouted", "payments")
    for case in cases[:10]:
        await router.moved(case, CaseReturned, "not_ours", "digital")
    copy = await router.record(next(iter(held_out)).text.upper())
    await router.moved(copy, CaseTransferred, "misrouted", "fraud")
    more, judged = split((await lessons.labelled(router.database, router.vault))["en"])
    assert {one.case_id for one in learn} < {one.case_id for one in more}
    assert {one.case_id for one in held_out} | {copy.case_id} <= {one.case_id for one in judged}
    assert {one.department for one in more if one.case_id in {old.case_id for old in learn}} == {"digital"}
    assert len(more) + len(judged) == 21


# ------------------------------------------------------------ rules in force


async def activated(database, document, act=ACT):
    async with database.transaction() as tx:
        return await lessons.activate_rules(tx, document, act)


@pytest.mark.postgres
async def test_rules_are_taken_up_by_the_running_stage_and_told_to_everybody(router):
    before = await router.record("what about my account, please", product="fee")
    assert router.routed(before).department == "triage"
    ruleset, changed = await activated(router.database, rules())
    assert changed
    after = await router.record("what about my account, please", product="fee")
    assert (router.routed(after).department, router.routed(after).why.ruleset) == ("payments", "r1")
    assert router.routed(after).explanation.ruleset_sha256 == ruleset.sha256
    assert router.log.records("router.activations") == []
    await router.relay.relay_once()
    (record,) = router.log.records("router.activations")
    assert headers_of(record)["ce_type"] == "router.ruleset-activated.v1"
    assert headers_of(record)["ce_source"] == "/hotline/router"
    assert json.loads(record.value) == {
        "kind": "ruleset",
        "version": "r1",
        "sha256": ruleset.sha256,
        "by": "ada",
        "reason": "because",
    }
    assert await rows(router.database, "select 1 from unpublished") == []


@pytest.mark.postgres
async def test_rules_and_their_record_are_stored_together_or_not_at_all(database):
    too_long = replace(ACT, reason="x" * 501)
    with pytest.raises(ValidationError):
        await activated(database, rules(), too_long)
    assert await rows(database, "select 1 from rulesets union all select 1 from outbox") == []


@pytest.mark.postgres
async def test_rules_that_are_in_force_are_not_put_in_force_again(database):
    assert (await activated(database, rules()))[1]
    assert not (await activated(database, rules() + "# a remark\n"))[1]
    assert len(await rows(database, "select 1 from rulesets union all select 1 from outbox")) == 2


@pytest.mark.postgres
async def test_a_version_stands_for_the_same_rules_for_ever(database):
    await activated(database, rules("r1"))
    sha256 = parse_rules(rules("r1")).sha256
    with pytest.raises(Refused) as refused:
        await activated(database, rules("r1", "branches"))
    assert refused.value.why == f"version r1 stands for other rules already (sha256 {sha256[:12]}…)"
    with pytest.raises(Refused, match="department"):
        await activated(database, rules("r2", "moon"))
    assert len(await rows(database, "select 1 from rulesets")) == 1


@pytest.mark.postgres
async def test_rules_come_back_as_they_were_written(database):
    first = rules("r1") + "# why: the fees moved\n"
    await activated(database, first)
    await activated(database, rules("r2", "branches"))
    async with database.session() as tx:
        for asked in ("r1", parse_rules(first).sha256, parse_rules(first).sha256[:8]):
            assert await lessons.rules_named(tx, asked) == first
        for asked in ("r3", parse_rules(first).sha256[:5], ""):
            with pytest.raises(Refused) as refused:
                await lessons.rules_named(tx, asked)
            assert (refused.value.what, refused.value.why) == (
                "no such ruleset",
                f"here is no ruleset {asked}",
            )
    assert (await activated(database, first))[1]
    async with database.session() as tx:
        assert (await store.in_force(tx))[0] == parse_rules(first).sha256


# ------------------------------------------------------------ models in force


async def stored(database, folder):
    async with database.transaction() as tx:
        return (await lessons.store_model(tx, folder, NOW))[0]


async def given(database, asked, role="active", act=ACT, language=None):
    async with database.transaction() as tx:
        model = await lessons.model_named(tx, asked, language)
        return await lessons.activate_model(tx, model, role, act)


async def in_force(database):
    async with database.session() as tx:
        return (await store.in_force(tx))[1]


@pytest.mark.postgres
async def test_a_model_is_stored_once_and_whole(database, tmp_path):
    model = write_model(tmp_path / "m")
    async with database.transaction() as tx:
        assert (await lessons.store_model(tx, tmp_path / "m", NOW))[1]
        assert not (await lessons.store_model(tx, tmp_path / "m", NOW))[1]
        again = await lessons.loaded(tx, model.sha256)
        assert await lessons.stored_models(tx, 5) == [
            (lessons.StoredModel("en-1", model.sha256, "en", NOW), model.card)
        ]
    assert again.score("my card").ranked == model.score("my card").ranked


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"ece": 0.06}, "its confidence is off by 0.060 (ECE), 0.05 is allowed"),
        ({"precision": 0.93}, "0.930 of its automatic decisions were right, 0.94 are demanded"),
    ],
)
async def test_a_weak_model_is_not_stored(database, tmp_path, figures, why):
    write_model(tmp_path / "m", **figures)
    with pytest.raises(Refused) as refused:
        await stored(database, tmp_path / "m")
    assert why in refused.value.why
    assert await rows(database, "select 1 from models") == []


@pytest.mark.postgres
async def test_a_damaged_model_is_not_stored_and_a_folder_without_one_is_said(database, tmp_path):
    write_model(tmp_path / "m" / "en")
    assert (
        lessons.folders_in(tmp_path / "m")
        == lessons.folders_in(tmp_path / "m" / "en")
        == [tmp_path / "m" / "en"]
    )
    (tmp_path / "m" / "en" / "weights.npy").write_bytes(b"")
    with pytest.raises(Refused, match="sha256 is not the one"):
        await stored(database, tmp_path / "m" / "en")
    with pytest.raises(Refused, match=r"no model\.json"):
        lessons.folders_in(tmp_path)


@pytest.mark.postgres
async def test_what_the_router_could_not_read_again_is_not_stored(database, tmp_path):
    write_model(tmp_path / "m")
    (tmp_path / "m" / ".hidden").write_text("x")
    with pytest.raises(Refused, match="names other folders"):
        await stored(database, tmp_path / "m")


@pytest.mark.postgres
async def test_an_activated_model_decides_within_a_second_and_is_told(router, tmp_path):
    other = write_model(tmp_path / "other", "2", departments=SWAPPED)
    await stored(router.database, tmp_path / "other")
    assert await given(router.database, "en-2")
    assert not await given(router.database, other.sha256)
    case = await router.record("my card is gone, please help")
    assert router.routed(case).department == "fraud"
    assert router.routed(case).explanation.model.sha256 == other.sha256
    await router.relay.relay_once()
    assert types_on(router.log, "router.activations") == ["router.model-activated.v1"]
    (record,) = router.log.records("router.activations")
    assert json.loads(record.value) == {
        "kind": "model",
        "role": "active",
        "language": "en",
        "version": "en-2",
        "sha256": other.sha256,
        "by": "ada",
        "reason": "because",
    }


@pytest.mark.postgres
async def test_a_shadow_is_heard_and_does_not_decide(router, tmp_path):
    other = write_model(tmp_path / "other", "2", departments=SWAPPED)
    await stored(router.database, tmp_path / "other")
    await given(router.database, "en-2", "shadow", replace(ACT, at=utc_now() - timedelta(days=1)))
    case = await router.record("my card is gone, please help")
    await router.record("what a day, nobody knows")
    await router.moved(case, CaseTransferred, "misrouted", "fraud")
    async with router.database.session() as tx:
        watched = (await lessons.activations(tx))["shadow", "en"]
    assert watched.sha256 == other.sha256
    said = await lessons.said_by_shadow(router.database, watched)
    assert sorted((one.active, one.shadow, one.label) for one in said if one.label) == [
        ("cards", "fraud", "fraud")
    ]
    assert len(said) == 2
    nobody = replace(watched, sha256="0" * 64)
    assert await lessons.said_by_shadow(router.database, nobody) == []


@pytest.mark.postgres
async def test_who_decides_is_not_watched_as_well(database, tmp_path):
    model = write_model(tmp_path / "m")
    await stored(database, tmp_path / "m")
    await given(database, "en-1", "shadow")
    await given(database, "en-1", "active")
    assert await in_force(database) == {("active", "en"): model.sha256, ("shadow", "en"): "none"}


@pytest.mark.postgres
async def test_switching_off_leaves_rules_and_triage(router):
    async with router.database.transaction() as tx:
        assert await lessons.switch_off(tx, "en", ACT)
        assert not await lessons.switch_off(tx, "en", ACT)
    case = await router.record("my card is gone, please help")
    routed = router.routed(case)
    assert (routed.department, routed.explanation.model, routed.explanation.degraded) == (
        "triage",
        None,
        None,
    )


@pytest.mark.postgres
async def test_the_one_before_is_what_decided_before(database, tmp_path):
    shas = []
    for number in (1, 2, 3):
        shas.append(write_model(tmp_path / str(number), str(number)).sha256)
        await stored(database, tmp_path / str(number))

    async def before():
        async with database.session() as tx:
            return await lessons.before(tx, "en")

    with pytest.raises(Refused, match="no other model has decided before"):
        await before()
    await given(database, "en-1")
    with pytest.raises(Refused, match="no other model has decided before"):
        await before()
    await given(database, "en-2")
    assert await before() == shas[0]
    await given(database, "en-3", "shadow")
    assert await before() == shas[0]
    async with database.transaction() as tx:
        await lessons.switch_off(tx, "en", ACT)
    assert await before() == shas[1]


@pytest.mark.postgres
async def test_a_model_is_found_by_version_or_hash_and_a_doubtful_name_is_refused(database, tmp_path):
    one = write_model(tmp_path / "1", "same")
    two = write_model(tmp_path / "2", "same", departments=SWAPPED)
    zh = write_model(tmp_path / "3", "same", language="zh")
    for number in (1, 2, 3):
        await stored(database, tmp_path / str(number))
    async with database.session() as tx:
        assert (await lessons.model_named(tx, one.sha256[:8])).sha256 == one.sha256
        assert (await lessons.model_named(tx, "zh-same", "zh")).sha256 == zh.sha256
        with pytest.raises(Refused) as refused:
            await lessons.model_named(tx, "en-same", "en")
        assert {one.sha256[:12], two.sha256[:12]} == set(
            refused.value.why.removeprefix("model en-same for en may be ").split(", ")
        )
        with pytest.raises(Refused, match="here is no model en-same for zh"):
            await lessons.model_named(tx, "en-same", "zh")


@pytest.mark.postgres
async def test_a_model_that_can_no_longer_be_read_is_listed_with_the_reason_and_never_activated(
    database, tmp_path
):
    model = write_model(tmp_path / "m")
    await stored(database, tmp_path / "m")
    async with database.transaction() as tx:
        await tx.execute("update models set content = 'gone'")
        ((_, why),) = await lessons.stored_models(tx, 5)
    assert "archive" in why
    with pytest.raises(Refused, match="archive"):
        await given(database, model.sha256)
    assert await in_force(database) == {}


def test_a_model_of_these_tests_is_one_that_may_be_used(tmp_path):
    model = write_model(tmp_path)
    assert load_model(tmp_path).sha256 == model.sha256
    assert model.score("my card is gone").abstention(model.limits) is None
    with pytest.raises(BadModel):
        load_model(tmp_path, "0" * 64)


# ------------------------------------------------------------ figures, drift, restrictions


async def seed(database, at, count, **fields):
    """Put first decisions of cases and what became of them straight into the tables."""
    plain = {
        "language": "en", "department": "cards", "stage": "model", "suggested": "cards", "known_share": 0.8,
        "model_sha256": "m", "audit": False, "now": None, "label": None, "source": None,
    } | fields  # fmt: skip
    async with database.transaction() as tx:
        await tx.execute(
            "insert into routings (case_id, case_no, cycle, language, customer_ref, phase, department, stage,"
            " rule, attempt_no, moves, changed_at, recorded_at, suggested, top, would_route, known_share,"
            " model_sha256, audit) select gen_random_uuid(), $10, 1, $3, 'c', 'routed', $4, $5, 'r', 1, 0,"
            " $2, $2, $6, '[]', true, $7, $8, $9 from generate_series(1, $1)",
            count, at, plain["language"], plain["department"], plain["stage"], plain["suggested"],
            plain["known_share"], plain["model_sha256"], plain["audit"], marked := str(new_id()),
        )  # fmt: skip
        await tx.execute(
            "update routings set department = coalesce($2, department), label = $3, label_source = $4,"
            " stage = case when $3::text is null then stage else 'hold' end, attempt_no = 2 where case_no = $1",
            marked, plain["now"] or plain["label"], plain["label"], plain["source"],
        )  # fmt: skip


@pytest.mark.postgres
async def test_a_day_counts_the_cases_that_came_on_it_as_they_were_decided_first(database):
    await seed(database, NOW - timedelta(days=1), 7)
    await seed(database, NOW, 30)
    await seed(database, NOW, 3, label="fraud", source="transfer")
    await seed(
        database, NOW, 4, stage="triage", department="triage", audit=True, label="cards", source="audit"
    )
    await seed(
        database, NOW, 1, stage="triage", department="triage", audit=True, label="fraud", source="audit"
    )
    await seed(database, NOW + timedelta(days=1), 9)
    async with database.session() as tx:
        day = (NOW - timedelta(hours=9), NOW + timedelta(hours=15))
        by_name = {line.department: line for line in figures(await lessons.decided(tx, [day]))}
    everything, cards = by_name[ALL], by_name["cards"]
    assert (everything.cases, everything.coverage, everything.triage) == (38, Share(33, 38), Share(5, 38))
    assert (cards.precision, cards.labelled, cards.misrouted) == (Share(4, 5), Share(4, 8), Share(3, 33))
    assert by_name["fraud"].cases == 0


@pytest.mark.postgres
async def test_the_last_day_is_compared_with_the_same_weekday_of_four_weeks(database):
    now = NOW + timedelta(hours=1)
    for week in (1, 2, 3, 4):
        await seed(database, NOW - timedelta(weeks=week), 50)
    for day in (2, 3, 5, 6):
        await seed(database, NOW - timedelta(days=day), 500, department="fraud", known_share=0.1)
    await seed(database, NOW, 80)
    await seed(database, NOW, 120, stage="triage", department="triage", known_share=0.7)
    async with database.session() as tx:
        found = {one.alarm: one for one in await lessons.watch(tx, timedelta(days=1), now) if one.language}
        hour = await lessons.watch(tx, timedelta(hours=1), now + timedelta(hours=1))
    assert [name for name, one in found.items() if one.rings] == ["triage_share", "known_share"]
    assert found["triage_share"].figure == pytest.approx(0.6)
    assert found["known_share"].figure == pytest.approx(-0.06)
    assert found["department_mix"].missing == "80 cases now, 200 before: it takes 100 of each"
    assert [one for one in hour if one.language] == []


async def alarms(database, now):
    async with database.transaction() as tx:
        found = await lessons.watch(tx, timedelta(days=1), now)
        return [
            one for one in found if one.restricts and await lessons.restrict(tx, one, replace(ACT, at=now))
        ]


@pytest.mark.postgres
async def test_a_department_is_taken_once_and_stays_taken_until_a_person_gives_it_back(router, database):
    now = NOW + timedelta(hours=1)
    await seed(database, NOW, 18)
    await seed(database, NOW, 2, label="fraud", source="transfer")
    (alarm,) = await alarms(database, now)
    assert (alarm.alarm, alarm.department, alarm.figure) == ("misrouted", "cards", 0.1)
    assert await alarms(database, now + timedelta(hours=1)) == []
    case = await router.record("my card is gone, please help")
    assert (router.routed(case).department, router.routed(case).why.rule) == (
        "triage",
        "department_restricted",
    )

    async with database.transaction() as tx:
        assert [one["department"] for one in await lessons.restrictions(tx)] == ["cards"]
        await lessons.allow(tx, "cards", Act("bob", "new model", now + timedelta(hours=2)))
        with pytest.raises(Refused, match="the classifier may decide for cards"):
            await lessons.allow(tx, "cards", ACT)
    case = await router.record("my card is gone, please help")
    assert router.routed(case).why.stage == "model"
    assert await alarms(database, now + timedelta(hours=3)) == [], "what was before is not held against it"
    await seed(database, now + timedelta(hours=2), 18)
    await seed(database, now + timedelta(hours=2), 2, label="fraud", source="transfer")
    assert [one.alarm for one in await alarms(database, now + timedelta(hours=3))] == ["misrouted"]

    await router.relay.relay_once()
    said = [json.loads(record.value) for record in router.log.records("router.activations")]
    assert [(one["department"], one["allowed"], one["alarm"], one["by"]) for one in said] == [
        ("cards", False, "misrouted", "ada"),
        ("cards", True, "misrouted", "bob"),
        ("cards", False, "misrouted", "ada"),
    ]
    acts = await rows(database, "select allowed, reason from restriction_acts order by act_id")
    assert [(one["allowed"], one["reason"]) for one in acts] == [
        (False, "because"),
        (True, "new model"),
        (False, "because"),
    ]


@pytest.mark.postgres
async def test_blind_samples_of_four_weeks_count_until_the_department_is_given_back(database):
    now = NOW + timedelta(hours=1)
    fields = {"stage": "triage", "department": "triage", "audit": True, "source": "audit"}
    for day in range(0, 30, 3):
        await seed(database, NOW - timedelta(days=day), 1, label="cards", **fields)
        await seed(database, NOW - timedelta(days=day), 1, label="fraud", **fields)
    (alarm,) = await alarms(database, now)
    assert (alarm.alarm, alarm.department) == ("audit_precision", "cards")
    assert isinstance(alarm, Gauge)
    async with database.transaction() as tx:
        await lessons.allow(tx, "cards", Act("bob", "seen", now))
    assert await alarms(database, now + timedelta(hours=1)) == []


@pytest.mark.postgres
async def test_two_restrictions_at_once_are_one(database):
    gauge = Gauge("misrouted", 0.2, rings=True, department="cards")
    async with database.transaction() as tx:
        assert await lessons.restrict(tx, gauge, ACT)
        assert not await lessons.restrict(tx, replace(gauge, alarm="audit_precision"), ACT)
    assert len(await rows(database, "select 1 from outbox")) == 1


@pytest.mark.postgres
async def test_decisions_made_before_the_migration_are_kept_too(address, prefix, tmp_path, monkeypatch):
    """The first decision of a case that nobody has moved is known even if it was taken earlier."""
    from chassis import postgres

    schema, scripts = f"{prefix}_old", postgres._scripts
    early = lambda package: [pair for pair in scripts(package) if "0003_lessons" not in pair[0]]  # noqa: E731
    monkeypatch.setattr(postgres, "_scripts", early)
    await migrate(address.database_url, schema, ["chassis", "services.router"])
    old = Database(address.database_url, schema, role=role_of(schema))
    await old.open()
    await seed(old, NOW, 2)
    async with old.transaction() as tx:
        await tx.execute(
            "update routings set attempt_no = 1 where case_id = (select min(case_id::text)::uuid from routings)"
        )
    monkeypatch.setattr(postgres, "_scripts", scripts)
    await migrate(address.database_url, schema, ["chassis", "services.router"])
    kept = await rows(old, "select case_id, department from first_decisions")
    first = await rows(old, "select case_id from routings where attempt_no = 1")
    assert kept == [{"case_id": UUID(str(first[0]["case_id"])), "department": "cards"}]
    await old.close()
