"""What a stage has in force, and that nothing which is missing, slow or damaged stops it."""

import io
import re
import zipfile
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.resolver import CaseWithdrawn
from services.router import reading as room
from services.router import store
from services.router.app import build
from services.router.classifier.model import BadModel, save_model
from services.router.classifier.text import language_of
from services.router.decision import Desk, decide
from services.router.departments import load_departments, parse_departments
from services.router.domain import Policy
from services.router.reading import (
    LOOK_EVERY_S,
    NOBODY,
    TOO_SLOW_S,
    Reading,
    load_shipped,
    pack,
    scored_by,
    unpack,
)
from services.router.rules import parse_rules
from services.router.settings import RouterSettings
from tests.given import DECISION, a_case, event, recorded
from tests.router.given import RULES, RULES_TEXT, SURE, UNSURE, bundle, sealed_model, words_of

OPEN = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
DESK = Desk(RULES, load_departments(), audits=False)


class Clock:
    """The monotonic clock, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict]] = []

    def info(self, said, **fields):
        self.lines.append((said, fields))

    error = info

    def of(self, said):
        return [fields for line, fields in self.lines if line == said]


class Router:
    """What the stage reads with, its tables, its clock, its log."""

    def __init__(self, vault, database, clock, shipped, folder=None):
        self.vault, self.database, self.clock = vault, database, clock
        self.shipped, self.folder = shipped, folder
        self.start()

    def start(self):
        """A new process: nothing in memory."""
        structlog.reset_defaults()  # a verb that was tested before has closed what it logged to
        self.reading, self.log = Reading(self.vault, DESK, self.shipped, self.folder), Heard()
        self.reading._log = self.log

    async def a_case(self, text, language="en", **fields):
        reference = fields.pop("customer_ref", "c-1")
        await self.vault.ready([reference], create=True)
        customer = {"customer_ref": reference, "sealed": self.vault.seal(reference, words_of(text))}
        return a_case(language=language, product="other", customer=customer, **fields)

    async def policy(self, *cases):
        async with self.database.transaction() as tx:
            return await self.reading.look_up(tx, [event(recorded(case)) for case in cases], Policy())

    async def routed(self, case, *, later=0.0):
        """What is decided of a case, in a batch so many seconds after the one before."""
        self.clock.now += later
        policy = await self.policy(case)
        read = policy.read[case.case_id]
        return decide(case, read, policy.desk, OPEN, cause=case.case_id)

    async def rules(self, text, sha256=None):
        await self._do(
            "insert into rulesets (version, sha256, document, by, reason) values ('v', $1, $2, 'lead', '')",
            sha256 or parse_rules(text).sha256,
            text,
        )

    async def model(self, language, sha256, role="active"):
        await self._do(
            "insert into model_activations (role, language, sha256, by, reason) values ($1, $2, $3, 'lead', '')",
            role,
            language,
            sha256,
        )

    async def stored(self, content, sha256):
        await self._do(
            "insert into models (sha256, version, language, content) values ($1, 'v', 'en', $2)"
            " on conflict (sha256) do update set content = excluded.content",
            sha256,
            content,
        )

    async def _do(self, sql, *args):
        async with self.database.session() as tx:
            await tx.execute(sql, *args)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(room, "monotonic", clock)
    return clock


@pytest.fixture
def router(vault, database, clock, tmp_path):
    folder = bundle(tmp_path / "models", "en", "zh")
    return Router(vault, database, clock, load_shipped(folder), folder)


def packed(tmp_path, language="en", version="2"):
    model, files = sealed_model(language, version)
    folder = tmp_path / f"{language}-{version}"
    save_model(files, folder)
    return model, pack(folder)


# ------------------------------------------------------------ what is shipped


def test_a_bundle_is_loaded_by_language(tmp_path):
    assert set(load_shipped(bundle(tmp_path, "en", "zh"))) == {"en", "zh"}


def missing(folder):
    return folder / "nowhere"


def empty(folder):
    return folder


def with_another_hash(folder):
    weights = bundle(folder, "en") / "en" / "weights.npy"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    return folder


def with_a_damaged_card(folder):
    (bundle(folder, "en") / "en" / "model.json").write_text("{")
    return folder


def without_an_array(folder):
    (bundle(folder, "en") / "en" / "idf.npy").unlink()
    return folder


BROKEN = [missing, empty, with_another_hash, with_a_damaged_card, without_an_array]


@pytest.mark.parametrize("broken", BROKEN)
async def test_without_a_usable_model_the_stage_starts_and_says_what_is_missing(
    broken, tmp_path, vault, database, clock
):
    settings = RouterSettings(
        kafka_bootstrap="x",
        database_url="x",
        master_key_file=tmp_path / "key",
        models=broken(tmp_path),
    )
    assert build(settings, vault).prepare is not None
    why = load_shipped(settings.models)
    assert isinstance(why, str)
    assert str(tmp_path) in why

    router = Router(vault, database, clock, why)
    assert router.reading.faults == {"model": why}
    choice = await router.routed(await router.a_case(SURE["en"]))
    assert (choice.department, choice.rule) == ("triage", "classifier_unavailable")
    assert choice.explanation.degraded == "classifier_unavailable"
    choice = await router.routed(await router.a_case("I lost my card"))
    assert (choice.department, choice.rule) == ("cards", "lost")
    assert choice.explanation.degraded == "classifier_unavailable"


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_each_text_is_scored_by_the_model_of_its_own_language(router, language):
    choice = await router.routed(await router.a_case(SURE[language], language=language))
    assert (choice.department, choice.stage) == ("cards", "model")
    assert choice.explanation.model.language == language
    assert choice.explanation.degraded is None
    choice = await router.routed(await router.a_case(UNSURE[language], language=language))
    assert choice.department == "triage"


async def test_the_language_is_that_of_the_words_not_that_of_the_call(router):
    choice = await router.routed(await router.a_case(SURE["zh"], language="en"))
    assert choice.explanation.model.language == "zh"


async def test_words_in_no_known_language_go_to_a_person_and_that_is_not_degraded(router):
    choice = await router.routed(await router.a_case("пропала карта, помогите"))
    assert (choice.department, choice.rule) == ("triage", "language_unsupported")
    assert choice.explanation.degraded is None
    assert choice.explanation.model.top == ()


async def test_a_language_that_never_had_a_model_is_not_degraded(vault, database, clock, tmp_path):
    router = Router(vault, database, clock, load_shipped(bundle(tmp_path, "zh")))
    choice = await router.routed(await router.a_case(SURE["en"]))
    assert (choice.department, choice.rule, choice.explanation.degraded) == ("triage", "no_rule", None)


LETTERS = st.text(st.characters() | st.sampled_from("卡丢了〇é ß_9ñп٣ª"), max_size=60)


@given(LETTERS)
def test_the_language_of_a_text_is_that_of_its_letters_counted_one_by_one(text):
    letters = len(re.findall(r"[^\W\d_]", text))
    han = len(re.findall("[\u3007\u3400-\u4dbf\u4e00-\u9fff]", text))
    latin = len(re.findall("[A-Za-z\u00c0-\u024f]", text))
    assert language_of(text) == ("zh" if 3 * han > letters else "en" if 2 * latin > letters else None)


async def test_the_language_is_read_once_and_nothing_is_asked_of_a_shadow_that_is_not_there(
    router, monkeypatch
):
    asked, score = [], Reading.score
    monkeypatch.setattr(room, "language_of", lambda text: asked.append("language") or language_of(text))
    monkeypatch.setattr(Reading, "score", staticmethod(lambda *of: asked.append("score") or score(*of)))
    choice = await router.routed(await router.a_case(SURE["en"]))
    assert (choice.department, asked) == ("cards", ["language", "score"])


# ------------------------------------------------------------ what came with the installation is kept


async def kept(router):
    async with router.database.session() as tx:
        rows = await tx.fetch("select sha256 from documents union all select sha256 from models")
    return sorted(row["sha256"] for row in rows)


def of_the_installation():
    models = [sealed_model(language)[0].sha256 for language in ("en", "zh")]
    return sorted([RULES.sha256, DESK.departments.sha256, *models])


async def test_rules_departments_and_models_of_the_installation_are_kept_once(router):
    await router.routed(await router.a_case("x"))
    router.start()
    await router.routed(await router.a_case("x"))
    assert await kept(router) == of_the_installation()
    async with router.database.session() as tx:
        assert parse_rules(await store.ruleset(tx, RULES.sha256)).sha256 == RULES.sha256
        assert parse_departments(await store.departments(tx, DESK.departments.sha256)) == DESK.departments
        for language in ("en", "zh"):
            sha256 = sealed_model(language)[0].sha256
            assert unpack(await store.model(tx, sha256), sha256).sha256 == sha256


async def test_what_a_batch_that_failed_had_kept_is_kept_by_the_next(router):
    with suppress(ZeroDivisionError):
        async with router.database.transaction() as tx:
            await router.reading.look_up(tx, [], Policy())
            raise ZeroDivisionError
    assert await kept(router) == []
    await router.routed(await router.a_case("x"), later=LOOK_EVERY_S)
    assert await kept(router) == of_the_installation()


async def test_a_model_whose_files_have_changed_since_is_named_and_stops_nothing(
    router, tmp_path, monkeypatch
):
    packing = []
    monkeypatch.setattr(room, "pack", lambda folder: packing.append(folder.name) or pack(folder))
    save_model(sealed_model("en", "9")[1], tmp_path / "models" / "en")
    for _ in range(2):
        assert await said_by(router) == ("cards", "en-1", None)
    assert [one["what"] for one in router.log.of("not_in_force")] == ["kept en"]
    assert packing == ["en", "zh"]
    assert set(of_the_installation()) - set(await kept(router)) == {sealed_model("en")[0].sha256}


# ------------------------------------------------------------ slow


@pytest.mark.parametrize(("seconds", "degraded"), [(TOO_SLOW_S + 0.001, "classifier_slow"), (0.04, None)])
async def test_a_score_that_takes_too_long_is_not_waited_for_again_but_said(
    router, clock, monkeypatch, seconds, degraded
):
    score = Reading.score

    def slow(*asked):
        clock.now += seconds
        return score(*asked)

    monkeypatch.setattr(Reading, "score", staticmethod(slow))
    choice = await router.routed(await router.a_case(SURE["en"]))
    assert choice.explanation.degraded == degraded
    assert choice.department == ("triage" if degraded else "cards")
    assert (choice.explanation.model is None) == (degraded is not None)


# ------------------------------------------------------------ rules in force

OTHER_RULES = RULES_TEXT.replace('ruleset: "1"', 'ruleset: "2"').replace(
    "department: payments", "department: wealth"
)


async def fee_case(router):
    return (await router.a_case("about the fee")).model_copy(update={"product": "fee"})


async def decided_fee(router, later=0.0):
    return (await router.routed(await fee_case(router), later=later)).department


async def test_an_activated_ruleset_decides_within_the_interval_and_not_before(router):
    assert await decided_fee(router) == "payments"
    await router.rules(OTHER_RULES)
    assert await decided_fee(router, later=LOOK_EVERY_S * 0.9) == "payments"
    assert await decided_fee(router, later=LOOK_EVERY_S * 0.1) == "wealth"
    assert router.log.of("ruleset_in_force") == [{"version": "2", "sha256": parse_rules(OTHER_RULES).sha256}]
    await router.rules(RULES_TEXT)
    assert await decided_fee(router, later=LOOK_EVERY_S) == "payments"


@pytest.mark.parametrize(
    "document",
    ["", "ruleset: [", RULES_TEXT.replace("department: payments", "department: moon"), OTHER_RULES],
    ids=["empty", "no YAML", "unknown department", "another hash"],
)
async def test_a_bad_ruleset_changes_nothing_and_is_named_once(router, document):
    await router.rules(OTHER_RULES)
    assert await decided_fee(router) == "wealth"
    await router.rules(document, sha256="0" * 64)
    for _ in range(3):
        assert await decided_fee(router, later=LOOK_EVERY_S) == "wealth"
    (said,) = router.log.of("not_in_force")
    assert said == {"what": "rules", "why": router.reading.faults["rules"]}
    assert "000000000000" in said["why"]


async def test_bad_rules_leave_the_newest_that_load_in_force_whatever_this_process_has_seen(router):
    await router.rules(OTHER_RULES)
    await router.rules(RULES_TEXT.replace("department: payments", "department: lending"))
    await router.rules("rules: nonsense", sha256="1" * 64)
    await router.rules("", sha256="0" * 64)
    choice = await router.routed(await fee_case(router))
    assert (choice.department, choice.explanation.degraded) == ("lending", "ruleset_unavailable")
    await router.rules(RULES_TEXT)
    choice = await router.routed(await fee_case(router), later=LOOK_EVERY_S)
    assert (choice.department, choice.explanation.degraded) == ("payments", None)


async def test_rules_that_load_between_two_bad_ones_decide_after_the_second(router):
    await router.rules("", sha256="0" * 64)
    assert await decided_fee(router) == "payments"
    await router.rules(OTHER_RULES)
    await router.rules("", sha256="1" * 64)
    assert await decided_fee(router, later=LOOK_EVERY_S) == "wealth"


async def test_nothing_is_read_for_a_withdrawal(router):
    case = await router.a_case("I lost my card")
    gone = CaseWithdrawn(case_id=case.case_id, decision=DECISION, case=case)
    async with router.database.transaction() as tx:
        policy = await router.reading.look_up(tx, [event(gone)], Policy())
    assert policy.read == {}


async def test_where_no_rules_load_those_of_the_installation_decide(router):
    await router.rules("", sha256="0" * 64)
    choice = await router.routed(await fee_case(router))
    assert (choice.department, choice.explanation.degraded) == ("payments", "ruleset_unavailable")


async def test_bad_rules_are_no_reason_why_the_classifier_abstains(router):
    await router.rules("", sha256="0" * 64)
    choice = await router.routed(await router.a_case("пропала карта"))
    assert choice.explanation.degraded == "ruleset_unavailable"
    assert choice.rule != "classifier_unavailable"


async def test_a_fault_that_comes_back_is_named_again(router):
    await decided_fee(router)
    for _ in range(2):
        await router.rules("", sha256="0" * 64)
        await decided_fee(router, later=LOOK_EVERY_S)
        await router.rules(RULES_TEXT)
        await decided_fee(router, later=LOOK_EVERY_S)
        assert router.reading.faults == {}
    assert len(router.log.of("not_in_force")) == 2


class Away:
    """A database that does not answer."""

    async def fetchrow(self, *_):
        raise ConnectionError


async def test_what_is_in_force_is_asked_again_at_once_when_the_answer_did_not_come(router):
    await router.rules(OTHER_RULES)
    with pytest.raises(ConnectionError):
        await router.reading.look_up(Away(), [], Policy())
    assert await decided_fee(router) == "wealth"


# ------------------------------------------------------------ models in force


async def said_by(router, later=LOOK_EVERY_S):
    choice = await router.routed(await router.a_case(SURE["en"]), later=later)
    said = choice.explanation.model
    return choice.department, said and said.model, choice.explanation.degraded


async def test_an_activated_model_decides_within_the_interval(router, tmp_path):
    model, content = packed(tmp_path)
    await router.stored(content, model.sha256)
    assert await said_by(router) == ("cards", "en-1", None)
    await router.model("en", model.sha256)
    assert await said_by(router, later=LOOK_EVERY_S * 0.9) == ("cards", "en-1", None)
    assert await said_by(router, later=LOOK_EVERY_S * 0.1) == ("cards", "en-2", None)


async def test_a_classifier_that_was_switched_off_is_not_degraded(router):
    await router.model("en", NOBODY)
    assert await said_by(router) == ("triage", None, None)
    choice = await router.routed(await router.a_case(SURE["zh"]))
    assert choice.department == "cards"


async def test_one_language_switched_off_does_not_hide_that_the_other_is_missing(
    vault, database, clock, tmp_path
):
    router = Router(vault, database, clock, load_shipped(tmp_path / "nowhere"))
    await router.model("zh", NOBODY)
    assert await said_by(router) == ("triage", None, "classifier_unavailable")
    choice = await router.routed(await router.a_case(SURE["zh"]))
    assert choice.explanation.degraded is None


async def test_a_stored_model_replaces_a_shipped_one_that_is_missing(vault, database, clock, tmp_path):
    router = Router(vault, database, clock, load_shipped(tmp_path / "nowhere"))
    model, content = packed(tmp_path)
    await router.stored(content, model.sha256)
    await router.model("en", model.sha256)
    assert await said_by(router) == ("cards", "en-2", None)


async def test_a_shipped_model_may_be_activated_by_its_hash(router):
    await router.model("en", NOBODY)
    await said_by(router)
    await router.model("en", sealed_model()[0].sha256)
    assert await said_by(router) == ("cards", "en-1", None)
    assert router.reading.faults == {}


async def bad_model(router, tmp_path, kind):
    """Activate a model that cannot be loaded; gives the hash that was activated."""
    model, content = packed(tmp_path, "zh" if kind == "other language" else "en", "3")
    if kind == "damaged":
        content = content[:200] + bytes(50) + content[250:]
    wanted = "7" * 64 if kind == "other hash" else model.sha256
    if kind != "not stored":
        await router.stored(content, wanted)
    await router.model("en", wanted)
    return wanted


KINDS = ["not stored", "damaged", "other hash", "other language"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_that_cannot_be_loaded_leaves_the_one_in_force_and_is_named_once(
    router, tmp_path, kind
):
    assert await said_by(router) == ("cards", "en-1", None)
    await bad_model(router, tmp_path, kind)
    for _ in range(3):
        assert await said_by(router) == ("cards", "en-1", None)
    (said,) = router.log.of("not_in_force")
    assert said == {"what": "active en", "why": router.reading.faults["active en"]}


@pytest.mark.parametrize("kind", KINDS)
async def test_after_a_start_a_model_that_cannot_be_loaded_is_replaced_by_people_and_said(
    router, tmp_path, kind
):
    wanted = await bad_model(router, tmp_path, kind)
    router.start()
    assert await said_by(router) == ("triage", None, "classifier_unavailable")
    model, content = packed(tmp_path, "en", "3")
    if wanted == model.sha256:
        await router.stored(content, wanted)
        assert await said_by(router) == ("cards", "en-3", None)
        assert router.reading.faults == {}


async def test_a_shadow_is_scored_beside_and_its_faults_degrade_nothing(router, tmp_path):
    model, content = packed(tmp_path)
    await router.stored(content, model.sha256)
    await router.model("en", model.sha256, role="shadow")
    choice = await router.routed(await router.a_case(SURE["en"]), later=LOOK_EVERY_S)
    assert choice.explanation.model.model == "en-1"
    assert choice.explanation.shadow.model == "en-2"
    await router.model("en", "7" * 64, role="shadow")
    router.start()
    choice = await router.routed(await router.a_case(SURE["en"]))
    assert (choice.department, choice.explanation.shadow, choice.explanation.degraded) == (
        "cards",
        None,
        None,
    )


async def test_a_restricted_department_is_left_to_people_until_it_is_allowed_again(router):
    await router._do("insert into restrictions (department, alarm, by) values ('cards', 'audit', 'lead')")
    choice = await router.routed(await router.a_case(SURE["en"]))
    assert (choice.department, choice.rule) == ("triage", "department_restricted")
    await router._do("delete from restrictions")
    assert await said_by(router) == ("cards", "en-1", None)


# ------------------------------------------------------------ customers


async def test_an_erased_customers_case_is_decided_by_its_fields_alone(router):
    case = await router.a_case("I lost my card", customer_ref="c-gone")
    await router.vault.erase("c-gone")
    choice = await router.routed(case)
    assert (choice.department, choice.rule) == ("triage", "no_rule")
    assert (choice.explanation.model, choice.explanation.degraded) == (None, None)
    fee = case.model_copy(update={"product": "fee"})
    assert (await router.routed(fee)).department == "payments"


async def test_what_is_no_personal_data_is_no_text(router):
    case = await router.a_case("x")
    case.customer.__dict__["sealed"] = router.vault.seal("c-1", "[1, 2")
    assert (await router.policy(case)).read[case.case_id].text is None


async def test_an_earlier_case_of_the_matter_is_looked_up(router):
    first, second = await router.a_case("x"), await router.a_case(UNSURE["en"])
    second = second.model_copy(update={"follows": first.case_id})
    assert (await router.policy(second)).read[second.case_id].follows is None
    await router._do(
        "insert into routings (case_id, case_no, cycle, language, customer_ref, phase, department, attempt_no,"
        " moves, recorded_at, top, would_route, audit)"
        " values ($1, 'C-1', 1, 'en', 'c-1', 'routed', 'wealth', 1, 0, now(), '[]', false, false)",
        first.case_id,
    )
    choice = await router.routed(second)
    assert (choice.department, choice.rule) == ("wealth", "follows_earlier_case")


# ------------------------------------------------------------ models as one value


def test_a_model_is_the_same_after_it_was_packed(tmp_path):
    model, content = packed(tmp_path)
    assert unpack(content, model.sha256).sha256 == model.sha256


def archive(**files):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return written.getvalue()


@pytest.mark.parametrize("name", ["../model.json", "/etc/model.json", "folder/model.json", ".hidden", ".."])
def test_an_archive_that_names_other_folders_is_refused(name):
    with pytest.raises(BadModel, match="its archive names other folders"):
        unpack(archive(**{name: "{}"}), "0" * 64)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is not stored"),
        (b"", "its archive is damaged"),
        (b"no archive", "its archive is damaged"),
        (archive(), "a model is a folder with model.json"),
        (archive(**{"model.json": b"0" * 30_000_000}), "holds more than 20,971,520 bytes"),
    ],
)
def test_what_is_no_model_is_refused_with_its_reason(content, why):
    with pytest.raises(BadModel, match=why):
        unpack(content, "0" * 64)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("models"))


@settings(max_examples=300, deadline=None)
@given(where=st.integers(0, 1 << 16), what=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_whatever_becomes_of_the_bytes_a_model_is_the_right_one_or_none(sound, where, what, cut):
    model, content = sound
    at = where % len(content)
    damaged = content[:at] + what + (b"" if cut else content[at + len(what) :])
    try:
        assert unpack(damaged, model.sha256).sha256 == model.sha256
    except BadModel as error:
        assert len(str(error)) > 20


def test_a_model_of_invented_texts_suggests_and_never_decides():
    invented, _ = sealed_model(demonstration=True)
    real, _ = sealed_model()
    suggested, sure = scored_by(invented, SURE["en"]), scored_by(real, SURE["en"])
    assert (suggested.abstains, sure.abstains) == ("demonstration_model", None)
    assert suggested.probabilities == sure.probabilities
