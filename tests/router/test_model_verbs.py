"""The verbs about models and about rules in force: what they print, what they change, their exit codes."""

import asyncio
import json
import random
from dataclasses import asdict
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from chassis.clock import utc_now
from chassis.postgres import Database, migrate, role_of
from chassis.roots import new_id
from chassis.statement import execute
from cli import model as verbs
from cli.rules import rules_app
from cli.world import Place
from schemas.case import Customer
from schemas.router import Candidate, Explanation, ModelSaid
from services.router import learning, lessons, store
from services.router.classifier import training
from services.router.classifier.model import save_model
from services.router.domain import Label, Routing
from services.router.learning import Lesson
from services.router.lessons import night, runs
from services.router.rules import parse_rules
from services.router.settings import RouterSettings
from tests.given import NOW, a_case
from tests.router.given import sealed_model, words_of
from tests.router.test_lessons import SWAPPED, rules, seed, write_model

TESTED = """\
tests:
  - {case: {product: fee}, department: payments, rule: fees}
"""


class Hotline:
    """The command in a world of its own, and the tables that it works on."""

    def __init__(self, folder, database, vault):
        self.folder, self.database, self.vault = folder, database, vault

    async def __call__(self, *arguments, app=verbs.model_app):
        """What the verb printed, what it complained, and its exit code."""
        asked = [str(one) for one in (*arguments, "--dir", self.folder)]
        done = await asyncio.to_thread(CliRunner().invoke, app, asked, env={"COLUMNS": "250"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.stdout, done.stderr, done.exit_code

    async def printed(self, *arguments, app=verbs.model_app):
        """The JSON that the verb printed, and its exit code."""
        out, _, code = await self(*arguments, "--json", app=app)
        return json.loads(out), code

    async def in_force(self):
        async with self.database.session() as tx:
            return await store.in_force(tx)

    async def rows(self, sql, *args):
        async with self.database.session() as tx:
            return [dict(row) for row in await tx.fetch(sql, *args)]

    async def said(self):
        """What lies ready to be sent, in order."""
        return [
            json.loads(row["value"]) for row in await self.rows("select value from outbox order by batch")
        ]

    async def learn(self, texts, label, *, at=NOW, source="triage"):
        """Let cases of these words be known to the router, with a person's label."""
        await self.vault.ready(["c-1"], create=True)
        known = []
        for text in texts:
            customer = Customer(customer_ref="c-1", sealed=self.vault.seal("c-1", words_of(text)))
            known.append(
                Routing(
                    phase="routed",
                    case=a_case(customer=customer),
                    department=label,
                    label=Label(department=label, source=source, at=at),
                )
            )
        await self.keep(known)

    async def keep(self, known):
        async with self.database.transaction() as tx:
            await tx.execute(
                "insert into entities (key, version, sequence, updated_at, phase, timers, document)"
                " select k, 1, 1, now(), 'routed', '{}', d from unnest($1::text[], $2::text[]) as e(k, d)",
                [str(one.case.case_id) for one in known],
                [one.to_bytes().decode() for one in known],
            )
            await execute(tx, [store.ROUTINGS.part(known)])


@pytest.fixture
async def hotline(address, prefix, vault, tmp_path):
    schema = f"{prefix}_router"
    await migrate(address.database_url, schema, ["chassis", "services.router"])
    place = Place(address.kafka_bootstrap, address.database_url, f"{prefix}.", f"{prefix}_")
    (tmp_path / "world.json").write_text(json.dumps(asdict(place)))
    database = Database(address.database_url, schema, role=role_of(schema))
    await database.open()
    yield Hotline(tmp_path, database, vault)
    await database.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(rules("r1") + TESTED)
    return path


WHY = ("--by", "ada", "--reason", "because")


def test_the_shipped_models_are_those_that_the_router_reads_and_the_gate_is_that_of_training():
    assert RouterSettings.model_fields["models"].default == verbs.SHIPPED
    train = next(one for one in verbs.model_app.registered_commands if one.name == "train")
    assert train.callback.__defaults__[1] == training.LEAST_LABELS


# ------------------------------------------------------------ rules in force


@pytest.mark.postgres
async def test_rules_are_put_in_force_and_told(hotline, file):
    ruleset = parse_rules(file.read_text())
    out, complaint, code = await hotline("activate", file, *WHY, app=rules_app)
    assert (complaint, code) == ("", 0)
    assert out == f"in force from now on: version r1, sha256 {ruleset.sha256[:12]}…, 1 rules, 1 tests\n"
    assert (await hotline.in_force())[0] == ruleset.sha256
    assert await hotline.said() == [
        {"kind": "ruleset", "version": "r1", "sha256": ruleset.sha256, "by": "ada", "reason": "because"}
    ]
    again, code = await hotline.printed("activate", file, *WHY, app=rules_app)
    assert (again["changed"], code, len(await hotline.said())) == (False, 0, 1)


@pytest.mark.postgres
async def test_everybody_sees_which_rules_are_in_force_on_whose_word_and_what_cannot_be_loaded(hotline, file):
    out, _, code = await hotline("list", app=rules_app)
    assert ("the installation's own rules do" in out, code) == (True, 0)
    await hotline("activate", file, *WHY, app=rules_app)
    good = parse_rules(file.read_text()).sha256
    async with hotline.database.session() as tx:
        await tx.execute(
            "insert into rulesets (version, sha256, document, by, reason) values ('r9', $1, '[', 'eve', 'x')",
            "9" * 64,
        )
    found, code = await hotline.printed("list", app=rules_app)
    assert [(one["version"], one["sha256"], one["by"], one["state"]) for one in found] == [
        ("r9", "9" * 64, "eve", "cannot be loaded"),
        ("r1", good, "ada", "in force"),
    ]
    assert code == 1
    async with hotline.database.session() as tx:
        await tx.execute("delete from rulesets where version = 'r9'")
        await tx.execute("update rulesets set document = '['")
    assert [one["state"] for one in (await hotline.printed("list", app=rules_app))[0]] == ["cannot be loaded"]
    done, _ = await hotline.printed("activate", file, *WHY, app=rules_app)
    assert done["changed"], "what is damaged may be activated again"
    found, code = await hotline.printed("list", app=rules_app)
    assert ([one["state"] for one in found], code) == (["in force", "before"], 0)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("department: payments}", "department: moon}", "department: Input should be"),
        (
            "rule: fees}",
            "candidates: [cards]}",
            "expected payments, candidates cards, found payments by fees",
        ),
        ("ruleset: r1", "ruleset: r1\nzone: Mars/Base", "'Mars/Base' is no time zone"),
    ],
)
async def test_bad_rules_are_refused_and_the_old_ones_stay(hotline, file, old, new, why):
    await hotline("activate", file, *WHY, app=rules_app)
    before = await hotline.in_force()
    file.write_text(
        file.read_text().replace("ruleset: r1", "ruleset: r2").replace(old.replace("r1", "r2"), new)
    )
    out, complaint, code = await hotline("activate", file, *WHY, app=rules_app)
    assert (out, code) == ("", 1)
    assert complaint.startswith("hotline: rules may not be used")
    assert why in complaint
    assert (await hotline.in_force(), len(await hotline.said())) == (before, 1)


@pytest.mark.postgres
async def test_a_reused_version_is_refused_in_three_lines(hotline, file):
    await hotline("activate", file, *WHY, app=rules_app)
    sha256 = parse_rules(file.read_text()).sha256
    file.write_text(rules("r1", "branches"))
    out, complaint, code = await hotline("activate", file, *WHY, app=rules_app)
    assert (out, code) == ("", 1)
    assert complaint.splitlines() == [
        "hotline: rules not activated",
        f"  version r1 stands for other rules already (sha256 {sha256[:12]}…)",
        "  next: raise `ruleset` in the file: decisions name their rules by it",
    ]


@pytest.mark.postgres
async def test_rules_are_rolled_back_by_version_or_hash(hotline, file):
    first = parse_rules(file.read_text()).sha256
    await hotline("activate", file, *WHY, app=rules_app)
    file.write_text(rules("r2", "branches"))
    await hotline("activate", file, *WHY, app=rules_app)
    done, code = await hotline.printed("rollback", "--to", "r1", *WHY, app=rules_app)
    assert (done["ruleset"], done["changed"], code) == ("r1", True, 0)
    assert (await hotline.in_force())[0] == first
    assert [one["version"] for one in await hotline.said()] == ["r1", "r2", "r1"]
    assert (await hotline("rollback", "--to", first[:10], *WHY, app=rules_app))[2] == 0
    _, complaint, code = await hotline("rollback", "--to", "r9", *WHY, app=rules_app)
    assert (complaint.splitlines()[:2], code) == (["hotline: no such ruleset", "  here is no ruleset r9"], 1)


# ------------------------------------------------------------ models in force


@pytest.mark.postgres
async def test_after_the_first_activation_the_installations_own_model_is_gone_back_to(hotline, tmp_path):
    own, other = write_model(tmp_path / "1"), write_model(tmp_path / "2", "2", departments=SWAPPED)
    for number in (1, 2):
        await hotline("store", tmp_path / str(number))
    async with hotline.database.session() as tx:
        await tx.execute(
            "insert into first_decisions (case_id, at, language, department, stage, model_sha256, audit)"
            " values ($1, now() - interval '1 hour', 'en', 'cards', 'model', $2, false)",
            new_id(),
            own.sha256,
        )
    _, complaint, code = await hotline("rollback", "--language", "en", *WHY)
    assert (complaint.splitlines()[0], code) == ("hotline: nothing to go back to", 1)
    await hotline("activate", other.sha256, *WHY)
    assert (await hotline("rollback", "--language", "en", *WHY))[2] == 0
    assert (await hotline.in_force())[1] == {("active", "en"): own.sha256}
    assert (await hotline("rollback", "--language", "en", *WHY))[2] == 0
    assert (await hotline.in_force())[1] == {("active", "en"): other.sha256}


@pytest.mark.postgres
async def test_a_model_is_stored_activated_rolled_back_and_switched_off(hotline, tmp_path):
    first, second = write_model(tmp_path / "1"), write_model(tmp_path / "2", "2", departments=SWAPPED)
    for number in (1, 2):
        assert (await hotline("store", tmp_path / str(number)))[2] == 0
    _, complaint, code = await hotline("rollback", "--language", "en", *WHY)
    assert (complaint.splitlines()[0], code) == ("hotline: nothing to go back to", 1)

    out, _, code = await hotline("activate", "en-1", *WHY)
    assert (out, code) == (f"en-1 is from now on the active model for en ({first.sha256[:12]}…)\n", 0)
    assert (await hotline("activate", "en-1", *WHY))[0].startswith("en-1 was already")
    assert (await hotline.printed("activate", second.sha256[:12], "--role", "shadow", *WHY))[1] == 0
    assert (await hotline.in_force())[1] == {("active", "en"): first.sha256, ("shadow", "en"): second.sha256}

    await hotline("activate", "en-2", *WHY)
    done, _ = await hotline.printed("rollback", "--language", "en", *WHY)
    assert (done["version"], done["changed"]) == ("en-1", True)
    done, _ = await hotline.printed("rollback", "--language", "en", "--to", "en-2", *WHY)
    assert (done["sha256"], done["changed"]) == (second.sha256, True)

    out, _, code = await hotline("off", "--language", "en", *WHY)
    assert (out, code) == ("from now on there is no active model for en\n", 0)
    assert (await hotline.in_force())[1]["active", "en"] == "none"
    assert (await hotline("off", "--language", "en", *WHY))[
        0
    ] == "as before, there is no active model for en\n"
    await hotline("activate", "en-1", *WHY)
    done, _ = await hotline.printed("rollback", "--language", "en", *WHY)
    assert (done["version"], done["changed"]) == ("none", True), "it was off before"
    told = [(one["role"], one["version"]) for one in await hotline.said()]
    assert told == [
        ("active", "en-1"),
        ("shadow", "en-2"),
        ("active", "en-2"),
        ("shadow", "none"),
        ("active", "en-1"),
        ("active", "en-2"),
        ("active", "none"),
        ("active", "en-1"),
        ("active", "none"),
    ]


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (("activate", "en-9", *WHY), "no such model", 1),
        (("activate", "en-1", "--role", "king", *WHY), "no such role", 2),
        (("activate", "en-1", "--language", "fr", *WHY), "no such language", 2),
        (("activate", "en-1", "--by", "a\tb", "--reason", "x"), "not a name or a reason", 2),
        (("off", "--language", "", *WHY), "no such language", 2),
        (("store", "/nowhere"), "no model", 1),
        (("evaluate", "en-9"), "no such model", 1),
        (("watch", "--window", "year"), "no such window", 2),
        (("figures", "--date", "yesterday"), "not a day or zone", 2),
        (("figures", "--zone", "Mars/Base"), "not a day or zone", 2),
        (("allow", "cards", *WHY), "nothing to allow", 1),
    ],
)
async def test_what_cannot_be_done_is_said_in_three_lines(hotline, tmp_path, arguments, what, code):
    write_model(tmp_path / "m")
    await hotline("store", tmp_path / "m")
    out, complaint, found = await hotline(*arguments)
    assert (out, found) == ("", code)
    assert complaint.splitlines()[0] == f"hotline: {what}"
    assert len(complaint.splitlines()) == 3
    assert await hotline.said() == []


@pytest.mark.postgres
async def test_a_weak_model_is_refused_with_its_figures(hotline, tmp_path):
    write_model(tmp_path / "m", ece=0.2)
    _, complaint, code = await hotline("store", tmp_path / "m")
    assert code == 1
    assert "its confidence is off by 0.200 (ECE), 0.05 is allowed" in complaint
    assert await hotline.rows("select 1 from models") == []


@pytest.mark.postgres
async def test_the_list_says_what_decides_what_is_stored_and_where_none_may_decide(hotline, tmp_path):
    own, zh = write_model(tmp_path / "own" / "en"), write_model(tmp_path / "own" / "zh", language="zh")
    await hotline("store", tmp_path / "own")
    await hotline("activate", "zh-1", *WHY)
    async with hotline.database.transaction() as tx:
        await tx.execute(
            "insert into restrictions (department, alarm, figure, by) values ('cards', 'misrouted', 0.1, 'x')"
        )
    found, code = await hotline.printed("list", "--shipped", tmp_path / "own")
    assert code == 0
    assert [(one["role"], one["language"], one["sha256"], one["by"]) for one in found["roles"]] == [
        ("active", "zh", zh.sha256, "ada"),
        ("active", "en", own.sha256, "installation"),
    ]
    assert {one["version"]: one["metrics"]["texts"] for one in found["stored"]} == {
        "en-1": 1000,
        "zh-1": 1000,
    }
    assert [one["department"] for one in found["restricted"]] == ["cards"]
    out, _, _ = await hotline("list", "--shipped", tmp_path / "nowhere")
    assert "the installation has no model" in out
    assert "not for cards, since" in out
    assert "accuracy 1.000, macro-F1 1.000, ECE 0.000, coverage 1.000, precision 1.000, on 1000 texts" in out


@pytest.mark.postgres
async def test_a_stored_model_that_can_no_longer_be_read_does_not_hide_the_others(hotline, tmp_path):
    write_model(tmp_path / "1"), write_model(tmp_path / "2", "2")
    await hotline("store", tmp_path / "1")
    await hotline("store", tmp_path / "2")
    async with hotline.database.transaction() as tx:
        await tx.execute("update models set content = 'x' where version = 'en-1'")
    found, code = await hotline.printed("list", "--shipped", tmp_path)
    assert (sorted((one["version"], "bad" in one) for one in found["stored"]), code) == (
        [("en-1", True), ("en-2", False)],
        0,
    )


# ------------------------------------------------------------ how good it is


def split_texts(word, count, *, held_out):
    """Different texts about something, all of them on one side of the split."""
    numbered = (f"{word} again {'x' * n}" for n in range(10_000))
    texts = (one for one in numbered if Lesson(new_id(), one, "cards", "triage", NOW).held_out is held_out)
    return [next(texts) for _ in range(count)]


@pytest.mark.postgres
async def test_a_model_is_judged_on_cases_from_which_none_may_learn(hotline, tmp_path):
    model = write_model(tmp_path / "m")
    await hotline.learn(split_texts("card", 3, held_out=True), "cards")
    await hotline.learn(split_texts("chip", 1, held_out=True), "fraud")
    await hotline.learn(split_texts("machine", 5, held_out=False), "fraud")
    found, code = await hotline.printed("evaluate", tmp_path / "m")
    assert (found["sha256"], found["version"], code) == (model.sha256, "en-1", 0)
    assert found["accuracy"] == {"value": 0.75, "low": 0.3562, "high": 0.9421, "hits": 3, "of": 4}
    assert (found["precision"]["hits"], found["precision"]["of"]) == (3, 4)
    assert found["departments"]["fraud"]["precision"] == {
        "value": None,
        "missing": "it would send nothing there",
        "hits": 0,
        "of": 0,
    }
    await hotline("store", tmp_path / "m")
    out, _, code = await hotline("evaluate", "en-1")
    assert (code, out.splitlines()[:2]) == (
        0,
        ["en-1 on 4 held-out cases", "  accuracy: 75.0% (35.6%-94.2% of 4)"],
    )
    assert out.splitlines()[-1] == f"decides from confidence {model.card.threshold:.3f}"


@pytest.mark.postgres
async def test_a_models_own_limits_for_departments_are_told(hotline, tmp_path):
    model, files = sealed_model(thresholds={"cards": 0.95})
    save_model(files, tmp_path / "m")
    found, _ = await hotline.printed("evaluate", tmp_path / "m")
    assert (found["threshold"], found["thresholds"]) == (model.card.threshold, {"cards": 0.95})
    await hotline("store", tmp_path / "m")
    out, _, _ = await hotline("list", "--shipped", tmp_path / "nowhere")
    assert f"  decides from confidence {model.card.threshold:.3f}, cards 0.950" in out.splitlines()


@pytest.mark.postgres
async def test_without_labels_there_is_a_dash_and_no_figure(hotline, tmp_path):
    write_model(tmp_path / "m")
    found, code = await hotline.printed("evaluate", tmp_path / "m")
    assert (found["accuracy"]["value"], found["accuracy"]["missing"], code) == (None, "nothing labelled", 1)
    assert "  accuracy: — nothing labelled" in (await hotline("evaluate", tmp_path / "m"))[0]


def explained(active, shadow):
    """Why a case was decided, with what two models said of it."""

    def said(department, sha256):
        top = (Candidate(department=department, p=0.99),)
        return ModelSaid(
            model="m", sha256=sha256, language="en", top=top, margin=0.9, known_share=1, threshold=0.8
        )

    return Explanation(
        decision_id=new_id(),
        ruleset="r",
        ruleset_sha256="s",
        normaliser=1,
        input_sha256="i",
        model=said(*active) if active else None,
        shadow=said(*shadow),
    )


async def watched(hotline, sha256, pairs):
    """Let the router have decided cases of which two models said something."""
    known = [
        Routing(
            phase="routed",
            case=a_case(),
            department=active,
            explanation=explained((active, "m"), (shadow, sha256)),
            label=Label(department=label, source="triage", at=NOW) if label else None,
        )
        for active, shadow, label in pairs
    ]
    await hotline.keep(known)


@pytest.mark.postgres
async def test_a_shadow_is_compared_with_what_decided(hotline, tmp_path):
    model = write_model(tmp_path / "m")
    await hotline("store", tmp_path / "m")
    assert (await hotline("shadow"))[0] == "no model is watched: hotline model activate SHA --role shadow\n"
    async with hotline.database.transaction() as tx:
        stored = await lessons.model_named(tx, "en-1")
        await lessons.activate_model(
            tx, stored, "shadow", lessons.Act("ada", "x", utc_now() - timedelta(days=1))
        )
    pairs = [("cards", "cards", "cards"), ("cards", "fraud", "fraud"), ("fraud", "fraud", None)]
    await watched(hotline, model.sha256, pairs)
    await watched(hotline, "0" * 64, [("cards", "wealth", "wealth")])
    ((found,), code) = await hotline.printed("shadow")
    assert (found["agreed"]["hits"], found["agreed"]["of"], code) == (2, 3, 0)
    assert {name: (one["hits"], one["of"]) for name, one in found["departments"].items()} == {
        "cards": (1, 2),
        "fraud": (1, 1),
    }
    assert [found[name] for name in ("labelled", "both_right", "only_active_right", "only_shadow_right")] == [
        2,
        1,
        0,
        1,
    ]
    out, _, _ = await hotline("shadow")
    assert "  of 2 labelled: both right 1  only active right 0  only shadow right 1  neither right 0" in out


# ------------------------------------------------------------ how it learns

NOISE = ("please", "help", "again", "today", "since", "nobody", "answered", "when", "letter", "came", "last")


def spoken(word, count, seed_):
    dice = random.Random(seed_)
    return [
        " ".join([word, *dice.choices(NOISE, k=8), dice.choice(["x", "y", "z"]) * dice.randint(1, 40)])
        for _ in range(count)
    ]


async def taught(hotline, *, seed_=1):
    """Enough lessons to train an English model with: what each word means is never in doubt."""
    for number, (word, label) in enumerate((("card", "cards"), ("loan", "lending"), ("scam", "fraud"))):
        await hotline.learn(spoken(word, 450, seed_ + number), label)


@pytest.mark.postgres
async def test_too_few_lessons_are_said_with_their_count(hotline):
    await hotline.learn(spoken("card", 10, 1), "cards")
    out, complaint, code = await hotline("train", "--language", "en")
    assert (out, code) == ("", 1)
    assert "hotline: en: not trained" in complaint
    assert " lessons to learn from, 1,000 are demanded" in complaint
    found, code = await hotline.printed("train")
    assert ([("why" in one, one["failed"]) for one in found], code) == ([(True, False), (True, False)], 1)


@pytest.mark.postgres
async def test_without_scikit_learn_the_way_to_it_is_told(hotline, monkeypatch):
    def absent(*_):
        raise ModuleNotFoundError(
            "training needs scikit-learn, serving does not: run `pip install hotline[train]`"
        )

    await taught(hotline)
    monkeypatch.setattr(training, "train", absent)
    _, complaint, code = await hotline("train", "--language", "en")
    assert code == 1
    assert "training needs scikit-learn" in complaint
    assert complaint.endswith("next: pip install hotline[train]\n")
    assert (await hotline("retrain", "--shipped", hotline.folder))[2] == 1


@pytest.mark.postgres
async def test_a_model_is_trained_judged_and_stored_without_deciding(hotline, tmp_path):
    pytest.importorskip("sklearn", reason="training needs scikit-learn")
    await taught(hotline)
    ((found,), code) = await hotline.printed("train", "--language", "en", "--out", tmp_path / "out")
    assert code == 0
    assert (found["held_out"]["accuracy"]["value"], found["held_out"]["precision"]["value"]) == (1.0, 1.0)
    judged = found["held_out"]["accuracy"]["of"]
    assert found["learnt_from"] + judged == 1350
    assert found["learnt_from"] == found["metrics"]["texts"]
    assert [one["sha256"] for one in await hotline.rows("select sha256 from models")] == [found["sha256"]]
    assert (tmp_path / "out" / "en" / "model.json").is_file()
    assert (await hotline.in_force())[1] == {}
    again, code = await hotline.printed("evaluate", found["sha256"])
    assert (again["accuracy"], code) == (found["held_out"]["accuracy"], 0)


@pytest.mark.postgres
async def test_the_nightly_job_trains_watches_and_promotes_what_is_better(hotline, tmp_path):
    pytest.importorskip("sklearn", reason="training needs scikit-learn")
    write_model(tmp_path / "own" / "en", departments=SWAPPED)
    asked = ("retrain", "--shipped", tmp_path / "own")
    await taught(hotline)
    (zh, en), code = await hotline.printed(*asked)
    assert (zh["trained"]["why"], code) == ("0 lessons to learn from, 1,000 are demanded", 0)
    fresh, held_out = en["trained"]["sha256"], en["trained"]["held_out"]
    judged, of_lending = held_out["accuracy"]["of"], held_out["departments"]["lending"]["seen"]["of"]
    assert (en["watched"], (await hotline.in_force())[1]) == (None, {("shadow", "en"): fresh})

    (_, en), code = await hotline.printed(*asked)
    assert (en["watched"], en["verdict"], en["trained"], code) == (fresh, "watch", None, 0)
    assert en["why"] == "watched for 0.0 days on 0 cases; it takes 3 days or 500 cases"

    async with hotline.database.transaction() as tx:
        await tx.execute("update model_activations set activated_at = activated_at - interval '3 days'")
    (_, en), code = await hotline.printed(*asked)
    assert (en["verdict"], code) == ("promote", 0)
    before = f"the one before on {of_lending} of {judged}"
    assert en["why"] == f"right on {judged} of {judged} held-out lessons, {before}"
    assert (await hotline.in_force())[1] == {("active", "en"): fresh, ("shadow", "en"): "none"}
    assert en["trained"]["why"] == "no lesson is new since the last training"
    told = [(one["role"], one["version"][:3], one["by"]) for one in await hotline.said()]
    assert told == [("shadow", "en-", "retrain"), ("active", "en-", "retrain"), ("shadow", "non", "retrain")]


@pytest.mark.postgres
async def test_the_nightly_job_gives_up_what_is_no_better_and_promotes_nothing_against_a_person(
    hotline, tmp_path
):
    better, worse = (
        write_model(tmp_path / "own" / "en"),
        write_model(tmp_path / "m", "2", departments=SWAPPED),
    )
    await hotline("store", tmp_path / "m")
    await hotline.learn(split_texts("card", 120, held_out=True), "cards")
    async with hotline.database.transaction() as tx:
        stored = await lessons.model_named(tx, "en-2")
        await lessons.activate_model(
            tx, stored, "shadow", lessons.Act("ada", "x", utc_now() - timedelta(hours=1))
        )
    await watched(hotline, worse.sha256, [("cards", "fraud", None)] * 500)
    asked = ("retrain", "--shipped", tmp_path / "own")

    await hotline("off", "--language", "en", *WHY)
    (_, en), _ = await hotline.printed(*asked)
    assert (en["verdict"], en["why"]) == (
        "watch",
        "somebody has switched the classifier off: only a person switches it on",
    )
    await hotline("store", tmp_path / "own")
    await hotline("activate", better.sha256, *WHY)
    out, _, code = await hotline(*asked)
    assert code == 0
    assert (
        f"en: {worse.sha256[:12]} is given up: of its own decisions 0 of 120 are right, 94% are demanded;"
        " right on 0 of 120, no more than the one before on 120 of 120;"
        " it would decide 0 cases rightly by itself, the one before 120\n"
    ) in out
    assert (await hotline.in_force())[1] == {("active", "en"): better.sha256, ("shadow", "en"): "none"}


@pytest.mark.postgres
async def test_the_nightly_job_gives_up_a_watched_model_that_can_no_longer_be_read(hotline, tmp_path):
    write_model(tmp_path / "m")
    await hotline("store", tmp_path / "m")
    await hotline("activate", "en-1", "--role", "shadow", *WHY)
    async with hotline.database.transaction() as tx:
        await tx.execute("update models set content = 'x'")
    (_, en), code = await hotline.printed("retrain", "--shipped", tmp_path)
    assert (en["verdict"], code) == ("discard", 0)
    assert "archive" in en["why"]
    assert (await hotline.in_force())[1] == {("shadow", "en"): "none"}


@pytest.mark.postgres
async def test_what_a_person_does_during_the_nightly_job_stands(hotline, tmp_path, monkeypatch):
    write_model(tmp_path / "own" / "en", departments=SWAPPED)
    better = write_model(tmp_path / "m", "2")
    await hotline("store", tmp_path / "m")
    await hotline.learn(split_texts("card", 120, held_out=True), "cards")
    await hotline("activate", "en-2", "--role", "shadow", *WHY)
    async with hotline.database.transaction() as tx:
        await tx.execute("update model_activations set activated_at = activated_at - interval '3 days'")
    judged = night._judged

    async def switched_off_meanwhile(database, *arguments):
        found = await judged(database, *arguments)
        async with database.transaction() as tx:
            await tx.execute(
                "insert into model_activations (role, language, sha256, by, reason)"
                " values ('active', 'en', 'none', 'ada', 'stop')"
            )
        assert found.verdict == "promote"
        return found

    monkeypatch.setattr(night, "_judged", switched_off_meanwhile)
    (_, en), _ = await hotline.printed("retrain", "--shipped", tmp_path / "own")
    assert (en["verdict"], en["why"]) == ("watch", "somebody has activated another model meanwhile")
    assert (await hotline.in_force())[1] == {("active", "en"): "none", ("shadow", "en"): better.sha256}


@pytest.mark.postgres
async def test_a_trained_model_that_is_not_watched_is_said_to_be_stored_only(hotline, tmp_path, monkeypatch):
    mine, theirs = write_model(tmp_path / "m"), write_model(tmp_path / "t", "2")

    async def train(database, language, *_, **__):
        if language == "zh":
            return night.NotTrained("x", "y")
        async with database.transaction() as tx:
            for folder in ("m", "t"):
                await lessons.store_model(tx, tmp_path / folder, NOW)
            stored = await lessons.model_named(tx, theirs.sha256)
            await lessons.activate_model(tx, stored, "shadow", lessons.Act("ada", "mine", NOW))
        return night.Trained(mine, 1000, learning.score([]))

    monkeypatch.setattr(night, "train", train)
    out, _, code = await hotline("retrain", "--shipped", tmp_path)
    said = f"en: en-1 ({mine.sha256[:12]}) is stored and not watched: somebody has activated another model"
    assert (said in out, code) == (True, 0)
    assert (await hotline.in_force())[1] == {("shadow", "en"): theirs.sha256}


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("verb", "what"), [("retrain", "learning already"), ("watch", "looking for drift already")]
)
async def test_what_somebody_does_at_the_moment_is_not_done_by_hand_as_well(hotline, verb, what):
    async with runs.alone(hotline.database, verb) as tx:
        session = await tx.fetchval("select pg_backend_pid()")
        out, complaint, code = await hotline(verb)
    assert (out, code) == ("", 1)
    assert complaint.splitlines() == [
        f"hotline: {what}",
        f"  the process of the lessons is at it, or another hand: session {session} of PostgreSQL",
        "  next: ask again when it has ended, or docs/runbook/LessonsStopped.md",
    ]
    assert (await hotline(verb))[2] == 0


# ------------------------------------------------------------ figures, drift


@pytest.mark.postgres
async def test_figures_of_a_day_have_dashes_with_reasons(hotline):
    await seed(hotline.database, NOW, 8)
    await seed(hotline.database, NOW, 2, label="fraud", source="transfer")
    found, code = await hotline.printed("figures", "--date", "2026-11-24")
    assert (found["date"], found["zone"], code) == ("2026-11-24", "Asia/Shanghai", 0)
    lines = {one["department"]: one for one in found["lines"]}
    assert lines["cards"]["coverage"] == {"value": 1.0, "low": 0.7871, "high": 1.0, "hits": 10, "of": 10}
    assert lines["cards"]["misrouted"]["value"] == 0.2
    assert lines["cards"]["precision"] == {
        "value": None,
        "missing": "no blind sample judged",
        "hits": 0,
        "of": 0,
    }
    assert lines["*"]["triage"]["value"] == 0
    assert lines["cards"]["triage"] == {"value": None, "missing": "counted over all"}
    out, _, _ = await hotline("figures", "--date", "2026-11-24")
    assert "precision: — no blind sample judged" in out
    assert (await hotline.printed("figures", "--date", "2026-11-23"))[0]["lines"][0]["cases"] == 0


@pytest.mark.postgres
async def test_drift_is_watched_and_a_department_taken_until_it_is_given_back(hotline):
    quiet, code = await hotline.printed("watch")
    assert (quiet["restricted"], code, [one["alarm"] for one in quiet["samples"]]) == ([], 0, [0] * 14)
    recent = utc_now() - timedelta(hours=1)
    await seed(hotline.database, recent, 18)
    await seed(hotline.database, recent, 2, label="fraud", source="transfer")
    found, code = await hotline.printed("watch", "--window", "day")
    assert (found["restricted"], code) == (["cards"], 1)
    assert [one for one in found["samples"] if one["alarm"]] == [
        {
            "name": "router_misrouted",
            "labels": {"department": "cards"},
            "value": 0.1,
            "missing": None,
            "limit": 0.05,
            "alarm": 1,
        }
    ]
    assert (await hotline.in_force())[2] == {"cards"}
    out, _, code = await hotline("watch")
    assert (code, "! misrouted" in out, "decides no more for" in out) == (1, True, False)
    out, _, code = await hotline("allow", "cards", *WHY)
    assert (out, code) == ("the classifier may decide for cards again\n", 0)
    assert (await hotline.in_force())[2] == frozenset()
    assert (await hotline("watch"))[2] == 0
    assert [(one["allowed"], one["by"]) for one in await hotline.said()] == [(False, "watch"), (True, "ada")]
