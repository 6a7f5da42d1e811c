"""A recorded decision taken again: the same with the same versions, otherwise named with its reason."""

import asyncio
import json
import shutil
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from chassis.clock import utc_now
from chassis.postgres import Database, migrate, role_of
from cli import router as verbs
from cli.world import Place
from schemas.router import CaseRouted
from schemas.topics import DEPARTMENTS
from services.router.classifier.model import save_model
from services.router.decision import Desk, Read
from services.router.departments import FILE, load_departments, parse_departments
from services.router.domain import DECISIONS, Policy
from services.router.reading import pack, scored_by
from services.router.replay import Recorded, again, difference, inputs_of
from services.router.rules import ASSIGNABLE, parse_rules
from tests.given import Life, a_case, event, message, recorded
from tests.router.given import (
    RULES,
    RULES_TEXT,
    SURE,
    UNSURE,
    Rig,
    bundle,
    day,
    returned,
    sealed_model,
    settings_in,
)

MODEL = sealed_model()[0]
OTHER_RULES = RULES_TEXT.replace('ruleset: "1"', 'ruleset: "2"').replace(
    "department: payments", "department: wealth"
)
AT = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
SHIPPED = load_departments()


def closed_text():
    """The departments' file, but cards have office hours, nobody is in the office, and wealth takes nothing."""
    before, after = FILE.read_text("utf-8").split("\ndepartments:\n")
    after = after.replace("hours: always", "hours: office", 1)
    wealth = after.index("\n  wealth:")
    after = after[:wealth] + after[wealth:].replace("hours: office", "hours: office\n    takes: false")
    return f"{before[: before.index('  office:')]}  office: {{}}\n\ndepartments:\n{after}"


CLOSED = parse_departments(closed_text())

# ------------------------------------------------------------ pure


def decided(read, desk=Desk(RULES), **fields):  # noqa: B008 - a constant
    """What was said of a case, and what it was said of."""
    body = recorded(a_case(**{"product": "other", **fields}))
    come = event(body)
    policy = Policy(desk=desk, read={body.case_id: read})
    said = DECISIONS[type(body)](come, None, AT, policy).events[0]
    return Recorded(CaseRouted.parse(said.to_bytes()), AT, come.uid)


def replayed(one, text, desk=Desk(RULES), scored=None, *, same=True):  # noqa: B008 - a constant
    why = one.routed.explanation
    inputs = inputs_of(one.routed, why, text)
    assert inputs is not None
    return difference(one, why, again(one, why, inputs, desk, scored, why.degraded), same=same)


READS = st.builds(
    lambda text, score, degraded, follows: Read(
        text=text,
        scored=scored_by(MODEL, text) if score and text and not degraded else None,
        degraded="classifier_slow" if degraded else None,
        follows=follows,
    ),
    st.none() | st.sampled_from([SURE["en"], UNSURE["en"], "I lost my card", "kill myself", "x"]),
    st.booleans(),
    st.booleans(),
    st.none() | st.sampled_from(DEPARTMENTS),
)
FIELDS = st.fixed_dictionaries(
    {
        "case_id": st.uuids(),
        "product": st.sampled_from(["fee", "other"]),
        "category": st.sampled_from(["complaint", "dispute", "suggestion"]),
        "severity": st.sampled_from(["low", "normal", "high", "urgent"]),
    }
)
DESKS = st.builds(
    lambda departments, restricted, audits, degraded: Desk(
        RULES, departments, restricted=restricted, audits=audits, normaliser=1, degraded=degraded
    ),
    st.none() | st.sampled_from([SHIPPED, CLOSED]),
    st.frozensets(st.sampled_from(ASSIGNABLE)),
    st.booleans(),
    st.none() | st.just("ruleset_unavailable"),
)


@settings(max_examples=400)
@given(FIELDS, READS, DESKS)
def test_every_decision_is_the_same_when_it_is_taken_again_from_its_event_alone(fields, read, desk):
    """Restricted departments, the sample, the severity before, the earlier case: none of them is handed over."""
    follows = a_case().case_id if read.follows else None
    one = decided(read, desk, **fields, follows=follows)
    known = {one.sha256: one for one in (SHIPPED, CLOSED)}
    departments = known.get(one.routed.explanation.departments_sha256)
    again = Desk(RULES, departments, normaliser=1)
    assert replayed(one, read.text, again, read.scored) is None


def test_the_severity_before_a_rule_raised_it_is_found():
    one = decided(Read("I lost my card"), severity="low")
    assert one.routed.case.severity == "urgent"
    assert inputs_of(one.routed, one.routed.explanation, "I lost my card").case.severity == "low"


def test_other_words_are_not_taken_for_those_that_were_read():
    one = decided(Read("I lost my card"))
    assert inputs_of(one.routed, one.routed.explanation, "I lost my cat") is None
    assert inputs_of(one.routed, one.routed.explanation, None) is None


def test_a_decision_that_was_taken_without_words_needs_none():
    one = decided(Read())
    assert inputs_of(one.routed, one.routed.explanation, "known by now").text is None


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"department": "wealth"}, ("department",)),
        ({"assisting": ("wealth",)}, ("assisting",)),
        ({"why": {"ruleset": "1", "rule": "fees", "stage": "rule"}}, ("stage", "rule")),
    ],
)
def test_what_was_said_otherwise_than_decided_is_found(change, parts):
    one = decided(Read("I lost my card"))
    said = CaseRouted.model_validate({**one.routed.model_dump(), **change})
    found = replayed(replace(one, routed=said), "I lost my card")
    assert found.parts == parts
    assert found.would_be == "cards by safety lost"


@pytest.mark.parametrize("name", ["matched", "candidates", "abstained", "decision_id", "ruleset_sha256"])
def test_an_explanation_that_does_not_explain_is_found(name):
    one, other = (
        decided(Read("I lost my card")),
        decided(Read(UNSURE["en"], scored_by(MODEL, UNSURE["en"])), category="dispute"),
    )
    value = getattr(other.routed.explanation, name) if name != "ruleset_sha256" else "0" * 64
    changed = one.routed.explanation.model_copy(update={name: value})
    said = one.routed.model_copy(update={"explanation": changed})
    found = replayed(replace(one, routed=said), "I lost my card")
    assert found.parts == (f"explanation.{name}",)
    without_cause = replayed(replace(one, routed=said, cause=None), "I lost my card")
    assert (without_cause is None) == (name == "decision_id")


def test_other_rules_are_compared_by_what_they_decide():
    fee, other = decided(Read("x"), product="fee"), decided(Read("x"))
    desk = Desk(parse_rules(OTHER_RULES))
    assert replayed(other, "x", desk, same=False) is None
    found = replayed(fee, "x", desk, same=False)
    assert (found.was, found.would_be, found.parts) == (
        "payments by rule fees",
        "wealth by rule fees",
        ("department",),
    )


def test_another_model_is_compared_by_what_it_decides():
    shy = sealed_model(version="2", threshold=0.9999)[0]
    sure = decided(Read(SURE["en"], scored_by(MODEL, SURE["en"])), Desk(RULES, audits=False))
    unsure = decided(Read(UNSURE["en"], scored_by(MODEL, UNSURE["en"])))
    assert replayed(unsure, UNSURE["en"], scored=scored_by(shy, UNSURE["en"]), same=False) is None
    found = replayed(sure, SURE["en"], scored=scored_by(shy, SURE["en"]), same=False)
    assert found.parts == ("department", "stage", "rule")
    assert found.was.startswith("cards by classifier (cards ")
    assert found.would_be.startswith("triage because of low_confidence (cards ")


def test_a_persons_word_stays_whatever_rules_would_say():
    life = Life(DECISIONS, Policy(desk=Desk(RULES)))
    life.when(recorded(a_case(product="fee")))
    come = returned(life.said[0], to="lending")
    cause = event(come)
    said = DECISIONS[type(come)](cause, life.state, AT, Policy(desk=Desk(RULES))).events[0]
    one = Recorded(said, AT, cause.uid)
    assert (said.department, said.why.stage) == ("lending", "hold")
    assert replayed(one, None) is None
    assert replayed(one, None, Desk(parse_rules(OTHER_RULES)), same=False) is None


# ------------------------------------------------------------ the verb, on what a stage recorded

SINCE = "2020-01-01T00:00:00+00:00"


def hotline(*arguments):
    done = CliRunner().invoke(verbs.router_app, ["replay", *(str(one) for one in arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout, done.stderr, done.exit_code


@pytest.fixture
async def rig(address, prefix, vault, tmp_path):
    """A router that decides, in a world that the command finds under `tmp_path`."""
    structlog.reset_defaults()  # a verb that was tested before has closed what it logged to
    schema = f"{prefix}_router"
    await migrate(address.database_url, schema, ["chassis", "services.router"])
    place = Place(address.kafka_bootstrap, address.database_url, f"{prefix}.", f"{prefix}_")
    (tmp_path / "world.json").write_text(json.dumps(asdict(place)))
    bundle(tmp_path / "models", "en", "zh")
    given = settings_in(tmp_path)
    database = Database(address.database_url, schema, role=role_of(schema))
    await database.open()
    yield Rig(database, vault, given)
    await database.close()


@pytest.fixture
def replay(tmp_path):
    async def replay(*arguments):
        out, _, code = await asyncio.to_thread(
            hotline, "--from", SINCE, "--dir", tmp_path, "--json", *arguments
        )
        return json.loads(out), code

    return replay


async def activated(rig, tmp_path, *, rules=OTHER_RULES, version="2", role="active"):
    """Put other rules and another English model in force, and a department out of the classifier's reach."""
    model, files = sealed_model("en", version, threshold=0.9)
    save_model(files, tmp_path / f"en-{version}")
    content = pack(tmp_path / f"en-{version}")
    async with rig.database.session() as tx:
        await tx.execute(
            "insert into rulesets (version, sha256, document, by, reason) values ('2', $1, $2, 'lead', '')",
            parse_rules(rules).sha256,
            rules,
        )
        await tx.execute(
            "insert into models (sha256, version, language, content) values ($1, $2, 'en', $3)",
            model.sha256,
            version,
            content,
        )
        await tx.execute(
            "insert into model_activations (role, language, sha256, by, reason) values ($1, 'en', $2, 'l', '')",
            role,
            model.sha256,
        )
        await tx.execute("insert into restrictions (department, alarm, by) values ('cards', 'a', 'lead')")
    return model


def routings(rig):
    return [body for _, body in rig.said() if isinstance(body, CaseRouted)]


@pytest.mark.postgres
@pytest.mark.parametrize("seed", range(2))
async def test_a_day_taken_again_with_what_decided_it_is_the_same_day(rig, replay, tmp_path, seed):
    dice = Random(seed)
    await day(rig, dice, 40)
    await activated(rig, tmp_path)
    rig.live(settings_in(tmp_path))
    await day(rig, dice, 40)
    rig.live(settings_in(tmp_path, models=tmp_path / "nowhere", audits=False))
    await day(rig, dice, 20)
    await rig.say(message(recorded(await rig.case(SURE["zh"]))))
    said = routings(rig)
    assert {one.why.stage for one in said} == {"hold", "safety", "rule", "model", "triage", "ruling"}
    assert {one.explanation.ruleset for one in said} == {"1", "2"}
    assert {one.explanation.model.model for one in said if one.explanation.model} >= {
        "en-1",
        "en-2",
        "zh-1",
        "-",
    }
    assert any(one.why.rule == "department_restricted" for one in said)
    assert any(one.why.rule == "follows_earlier_case" for one in said)
    assert any(one.explanation.degraded for one in said)
    found, code = await replay()
    begin = datetime.fromisoformat(found.pop("kept_since"))
    assert timedelta(0) <= datetime.fromisoformat(rig.said()[0][0]["ce_time"]) - begin < timedelta(minutes=5)
    assert found == {
        "decisions": len(said),
        "same": len(said),
        "different": 0,
        "not_replayable": {},
        "differences": [],
    }
    assert code == 0


@pytest.mark.postgres
async def test_departments_rules_and_models_that_came_and_went_are_no_longer_needed_as_files(
    rig, replay, tmp_path
):
    dice = Random(7)
    await day(rig, dice, 40)
    folder = tmp_path / "later"
    given = settings_in(folder, models=bundle(folder / "models", "zh"))
    (folder / "rules.yaml").write_text(OTHER_RULES, "utf-8")
    (folder / "closed.yaml").write_text(closed_text(), "utf-8")
    rig.live(given.model_copy(update={"departments_file": folder / "closed.yaml"}))
    await day(rig, dice, 40)
    said = routings(rig)
    assert len({one.explanation.departments_sha256 for one in said}) == 2
    assert {one.explanation.ruleset for one in said} == {"1", "2"}
    assert any(one.explanation.abstained == "department_outside_hours" for one in said)
    assert {one.department for one in said if one.why.rule == "fees-too"} == {"branches"}
    for one in (tmp_path / "rules.yaml", tmp_path / "departments.yaml", folder, tmp_path / "models"):
        shutil.rmtree(one) if one.is_dir() else one.unlink()
    found, code = await replay()
    assert (found["decisions"], found["same"], found["not_replayable"], code) == (len(said), len(said), {}, 0)


@pytest.mark.postgres
async def test_a_decision_whose_departments_are_not_known_any_more_is_no_same_one(rig, replay):
    await rig.say(message(recorded(await rig.case("about the fee", product="fee"))))
    async with rig.database.session() as tx:
        await tx.execute("delete from documents where kind = 'departments'")
    found, code = await replay()
    assert (found["same"], found["not_replayable"], code) == (0, {"departments_unknown": 1}, 1)


NAMED_SINCE = ("departments_sha256", "restricted", "audits", "severity", "follows")


@pytest.mark.postgres
async def test_a_decision_older_than_the_naming_of_departments_is_counted_and_no_fault(rig, replay):
    words = ("I lost my card", "about the fee")
    await rig.say(*[message(recorded(await rig.case(one, severity="low"))) for one in words])
    assert "urgent" in {one.case.severity for one in routings(rig)}, "the severity before is not named either"
    async with rig.database.session() as tx:
        for row in await tx.fetch("select batch, ordinal, value from outbox where topic = 'router.cases'"):
            said = json.loads(row["value"])
            explanation = said.get("explanation", {})
            said |= {"explanation": {k: v for k, v in explanation.items() if k not in NAMED_SINCE}}
            place = row["batch"], row["ordinal"]
            value = json.dumps(said).encode()
            await tx.execute("update outbox set value = $3 where batch = $1 and ordinal = $2", *place, value)
    found, code = await replay()
    assert (found["same"], found["not_replayable"], code) == (0, {"departments_unnamed": 2}, 0)


@pytest.mark.postgres
async def test_the_erased_are_counted_and_are_no_fault(rig, replay):
    cases = [await rig.case(SURE["en"], f"c-{number}") for number in range(4)]
    await rig.say(*(message(recorded(case)) for case in cases))
    await rig.vault.erase("c-1")
    await rig.vault.erase("c-2")
    found, code = await replay()
    assert (found["same"], found["not_replayable"], code) == (2, {"erased": 2}, 0)


@pytest.mark.postgres
async def test_what_a_tampered_record_says_is_found(rig, replay):
    case = await rig.case("about the fee", product="fee")
    await rig.say(message(recorded(case)))
    async with rig.database.session() as tx:
        (row,) = await tx.fetch("select value from outbox where topic = 'router.cases'")
        said = CaseRouted.parse(row["value"]).model_copy(update={"department": "wealth"})
        await tx.execute("update outbox set value = $1 where topic = 'router.cases'", said.to_bytes())
    found, code = await replay()
    assert code == 1
    (difference_,) = found["differences"]
    assert difference_["case_no"] == case.case_no
    assert (difference_["was"], difference_["would_be"]) == ("wealth by rule fees", "payments by rule fees")
    assert difference_["differs_in"] == ["department"]

    async with rig.database.session() as tx:
        other = said.case.model_copy(update={"channel": "letter"})
        changed = said.model_copy(update={"case": other}).to_bytes()
        await tx.execute("update outbox set value = $1 where topic = 'router.cases'", changed)
    found, code = await replay()
    assert (found["decisions"], found["not_replayable"], code) == (1, {"inputs_unknown": 1}, 1)


@pytest.mark.postgres
async def test_versions_that_are_gone_are_named_and_are_a_fault(rig, replay, tmp_path):
    await activated(rig, tmp_path)
    cases = [await rig.case("about the fee", product="fee"), await rig.case(SURE["en"])]
    await rig.say(*(message(recorded(case)) for case in cases))
    async with rig.database.session() as tx:
        await tx.execute("delete from models")
    found, code = await replay()
    assert (found["same"], found["not_replayable"], code) == (0, {"model_unknown": 2}, 1)
    async with rig.database.session() as tx:
        await tx.execute("delete from rulesets")
    found, code = await replay()
    assert (found["not_replayable"], code) == ({"ruleset_unknown": 2}, 1)


@pytest.mark.postgres
async def test_other_rules_and_another_model_are_tried_on_what_was_recorded(rig, replay, tmp_path):
    model = await activated(rig, tmp_path, role="shadow")
    rules = tmp_path / "other.yaml"
    rules.write_text(OTHER_RULES.replace('"2"', '"3"'))
    async with rig.database.session() as tx:
        await tx.execute("delete from rulesets where version <> '2'")
        await tx.execute("delete from restrictions")
        await tx.execute(
            "insert into rulesets (version, sha256, document, by, reason) values ('1', $1, $2, 'l', '')",
            RULES.sha256,
            RULES_TEXT,
        )
    rig.live(settings_in(tmp_path, audits=False))
    fee, sure = await rig.case("about the fee", product="fee"), await rig.case(SURE["en"], case_no="C-sure")
    await rig.say(message(recorded(fee)), message(recorded(sure)))
    assert {one.case_id: one.department for one in routings(rig)} == {
        fee.case_id: "payments",
        sure.case_id: "cards",
    }

    for asked in (rules, parse_rules(OTHER_RULES).sha256, parse_rules(OTHER_RULES).sha256[:12]):
        found, code = await replay("--ruleset", asked)
        assert [(one["case_no"], one["would_be"]) for one in found["differences"]] == [
            (fee.case_no, "wealth by rule fees")
        ]
        assert code == 1
    for asked in (model.sha256, model.sha256[:10], tmp_path / "en-2", tmp_path / "models"):
        found, code = await replay("--model", asked)
        assert (found["same"], code) == (2, 0)
    _, files = sealed_model("en", "shy", threshold=0.9999)
    save_model(files, tmp_path / "shy")
    found, code = await replay("--model", tmp_path / "shy")
    assert [one["case_no"] for one in found["differences"]] == ["C-sure"]
    assert found["differences"][0]["would_be"].startswith("triage because of low_confidence (cards ")


@pytest.mark.postgres
async def test_a_span_and_a_limit_choose_what_is_taken_again(rig, replay, tmp_path):
    first = [await rig.case(product="fee") for _ in range(3)]
    await rig.say(*(message(recorded(case)) for case in first), batch=1)
    between = utc_now()
    await rig.say(*[message(recorded(await rig.case(product="fee"))) for _ in range(2)])
    assert (await replay())[0]["decisions"] == 5
    assert (await replay("--to", between.isoformat()))[0]["decisions"] == 3
    assert (await replay("--limit", 4))[0]["decisions"] == 4
    assert (await replay("--from", between.isoformat()))[0]["decisions"] == 2
    later = (utc_now() + timedelta(hours=1)).isoformat()
    assert await replay("--from", later) == (
        {
            "kept_since": None,
            "decisions": 0,
            "same": 0,
            "different": 0,
            "not_replayable": {},
            "differences": [],
        },
        0,
    )


@pytest.mark.postgres
async def test_people_read_it_line_by_line(rig, tmp_path):
    case = await rig.case("about the fee", product="fee")
    await rig.say(message(recorded(case)))
    (tmp_path / "other.yaml").write_text(OTHER_RULES)
    asked = ("--from", SINCE, "--dir", tmp_path, "--ruleset", tmp_path / "other.yaml")
    out, _, code = await asyncio.to_thread(hotline, *asked)
    line, begin, total = out.splitlines()
    assert line.startswith(case.case_no)
    assert line.endswith("payments by rule fees → wealth by rule fees; department")
    assert begin.startswith("the router keeps what it said since 20")
    assert (total, code) == ("1 decisions: 0 the same, 1 different", 1)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "yesterday"], "--from 'yesterday' is no time with a zone"),
        (["--from", "2026-11-24T09:00:00"], "is no time with a zone"),
        (["--from", SINCE, "--to", "x"], "--to 'x' is no time with a zone"),
        (["--from", SINCE, "--ruleset", "nowhere"], "is neither a file nor the hash of rules in force once"),
        (
            ["--from", SINCE, "--model", "nowhere"],
            "is neither a folder nor the hash of a model that is stored",
        ),
    ],
)
async def test_what_cannot_be_done_is_said_in_three_lines(rig, tmp_path, arguments, said):
    out, complaint, code = await asyncio.to_thread(hotline, *arguments, "--dir", tmp_path)
    assert (out, code, len(complaint.splitlines())) == ("", 2, 3)
    assert said in complaint
