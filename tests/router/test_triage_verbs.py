"""What people in triage see of the departments and of what waits, and what becomes of their rulings."""

import asyncio
import json
from dataclasses import asdict
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from chassis.ids import derived_id
from chassis.postgres import Database, migrate
from chassis.roots import new_id
from chassis.statement import execute
from cli import rulings
from cli.triage import triage_app
from cli.world import Place, connected
from schemas.resolver import AcceptanceRequested, ResolutionRequested
from schemas.router import AssignmentRequested, Candidate, Explanation, ModelSaid, RejectionRequested
from services.resolver.domain import Assignment
from services.router.departments import FILE
from services.router.domain import Routing
from services.router.rules import ASSIGNABLE
from services.router.store import ROUTINGS
from tests.given import NOW, a_case


@pytest.fixture
async def place(address, prefix, tmp_path):
    """A world of which only the router's and the resolver's schemas are there."""
    for stage in ("router", "resolver"):
        await migrate(address.database_url, f"{prefix}_{stage}", ["chassis", f"services.{stage}"])
    place = Place(address.kafka_bootstrap, address.database_url, f"{prefix}.", f"{prefix}_")
    (tmp_path / "world.json").write_text(json.dumps(asdict(place)))
    return place


async def do(place, stage, sql, *rows):
    database = Database(place.database_url, f"{place.database_prefix}{stage}", size=1)
    await database.open()
    async with database.transaction() as tx:
        for row in rows:
            await tx.execute(sql, *row)
    await database.close()


def assigned(department, phase):
    """A case of a department, as the resolver stores it."""
    state = Assignment(
        phase=phase,
        case=a_case(),
        assignment_id=new_id(),
        department=department,
        attempt_no=1,
        accept_due=NOW,
        resolve_due=NOW,
        clerk=None,
        escalations=0,
    )
    return str(new_id()), phase, state.to_bytes().decode()


async def departments(folder, file, *options):
    arguments = ["departments", "--file", str(file), "--dir", str(folder), *options]
    done = await asyncio.to_thread(CliRunner().invoke, triage_app, arguments, env={"COLUMNS": "250"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout, done.stderr, done.exit_code


@pytest.mark.postgres
async def test_what_is_open_stands_beside_what_a_department_should_hold(place, tmp_path):
    phases = ("delivered", "in_progress", "waiting", "returned", "resolved", "withdrawn")
    await do(
        place,
        "resolver",
        "insert into entities (key, version, sequence, updated_at, phase, timers, document)"
        " values ($1, 1, 1, now(), $2, '{}', $3)",
        *(assigned("cards", phase) for phase in phases),
        *(assigned("fraud", "delivered") for _ in range(2)),
    )
    await do(
        place, "router", "insert into restrictions (department, alarm, by) values ($1, 'a', 'l')", ["cards"]
    )
    file = tmp_path / "departments.yaml"
    text = FILE.read_text("utf-8")
    text = text.replace("en: Cards}", "en: Cards}\n    capacity: 3", 1)
    text = text.replace("hours: always\n    accept_within: PT30M", "hours: never\n    capacity: 3", 1)
    text = text.replace("\nhours:\n", "\nhours:\n  never: {}\n", 1)
    wealth = text.index("\n  wealth:")
    file.write_text(text[:wealth] + text[wealth:].replace("hours: office", "hours: never\n    takes: false"))

    out, _, code = await departments(tmp_path, file, "--json")
    rows = {row.pop("department"): row for row in json.loads(out)}
    assert code == 0
    assert rows["cards"] == {
        "open": 3, "capacity": 3, "full": True, "works_now": True, "takes": True, "classifier_may": False,
    }  # fmt: skip
    assert rows["fraud"] == {
        "open": 2, "capacity": 3, "full": False, "works_now": False, "takes": True, "classifier_may": True,
    }  # fmt: skip
    assert rows["wealth"] == {
        "open": 0, "capacity": None, "full": False, "works_now": False, "takes": False, "classifier_may": True,
    }  # fmt: skip
    out, _, _ = await departments(tmp_path, file)
    (line,) = [line.split() for line in out.splitlines() if "cards" in line]
    assert line == ["cards", "3", "3", "yes", "yes", "yes", "no"]
    assert "any number" in out


@pytest.mark.postgres
async def test_a_bad_file_is_said_in_three_lines(place, tmp_path):
    (tmp_path / "bad.yaml").write_text("version: [")
    out, complaint, code = await departments(tmp_path, tmp_path / "bad.yaml")
    assert (out, code, len(complaint.splitlines())) == ("", 1, 3)
    assert "bad.yaml:1" in complaint


# ------------------------------------------------------------ what waits


def routing(phase="routed", department="triage", due=NOW, top=(), *, audit=False, **case):
    """A case as the router stores it."""
    said = ModelSaid(model="m", sha256="m", language="en", top=top, margin=0, known_share=1, threshold=1)
    why = Explanation(
        decision_id=new_id(),
        ruleset="1",
        ruleset_sha256="1",
        normaliser=1,
        input_sha256="1",
        model=said,
        audit=audit,
    )
    return Routing(
        phase=phase, case=a_case(**case), assignment_id=new_id(), department=department, stage="triage",
        rule="low_margin", attempt_no=1, changed_at=NOW, act_by=due, explanation=why,
    )  # fmt: skip


def with_department(known, phase="delivered", due=NOW, department=None):
    """The same case as the resolver stores it."""
    return Assignment(
        phase=phase, case=known.case, assignment_id=known.assignment_id, department=department or known.department,
        attempt_no=1, accept_due=due, resolve_due=due + timedelta(days=5),
    )  # fmt: skip


STATED = (
    "insert into entities (key, version, sequence, updated_at, phase, timers, document)"
    " values ($1, 1, 1, now(), $2, '{}', $3)"
)


async def stand(place, *pairs):
    """Let router and resolver know these cases."""
    routings = [known for known, _ in pairs]
    rows = [(str(one.case.case_id), one.phase, one.to_bytes().decode()) for one in routings]
    held = [
        (str(one.case.case_id), one.phase, one.to_bytes().decode()) for _, one in pairs if one is not None
    ]
    await do(place, "router", STATED, *rows)
    await do(place, "resolver", STATED, *held)
    async with connected(place, "router") as database, database.transaction() as tx:
        await execute(tx, [ROUTINGS.part(routings)])


def likely(*probabilities):
    return tuple(Candidate(department=one, p=p) for one, p in zip(ASSIGNABLE, probabilities, strict=False))


@pytest.mark.postgres
async def test_what_waits_is_listed_by_what_is_due_and_what_has_ended_is_not(place):
    soon, later = NOW + timedelta(minutes=4), NOW + timedelta(hours=1)
    unclear, clear, blind = (
        routing(top=likely(0.4, 0.3), case_no="C-unclear"),
        routing(top=likely(0.9, 0.05), case_no="C-clear"),
        routing(top=likely(0.99, 0.01), audit=True, case_no="C-blind"),
    )
    parked = routing("parked", "cards", due=soon, case_no="C-parked")
    ended = [
        (one := routing(case_no="C-ended"), with_department(one, phase))
        for phase in ("resolved", "withdrawn")
    ]
    gone = routing("withdrawn", "triage", case_no="C-gone")
    elsewhere = routing("routed", "cards", case_no="C-elsewhere")
    await stand(
        place,
        (clear, with_department(clear, due=later)),
        (unclear, with_department(unclear, due=later + timedelta(seconds=20))),
        (parked, with_department(parked, "returned")),
        (blind, with_department(blind, "in_progress", due=NOW)),
        *ended,
        (gone, with_department(gone, "withdrawn")),
        (elsewhere, with_department(elsewhere)),
    )  # fmt: skip
    found = await rulings.waiting(place)
    assert [(one.case_no, one.state, one.due) for one in found] == [
        ("C-parked", "needs a ruling", soon),
        ("C-unclear", "not accepted", later + timedelta(seconds=20)),
        ("C-clear", "not accepted", later),
        ("C-blind", "in work", NOW + timedelta(days=5)),
    ]
    assert (found[3].suggested, found[0].why) == ((), "departments disagree")
    assert [one.as_json(soon + timedelta(seconds=1))["overdue"] for one in found] == [
        True,
        False,
        False,
        False,
    ]


# ------------------------------------------------------------ what becomes of a ruling


@pytest.fixture
def asked(place, monkeypatch):
    """What was asked of the stages; `answers` says how the stages end an input of theirs."""
    said, answers = [], {}

    async def say(_, writer, *bodies):
        ids = [new_id() for _ in bodies]
        said.extend((writer, body) for body in bodies)
        routed = derived_id(ids[-1], "router.case-routed.v1", 1)
        for stage, outcome in answers.items():
            uid = routed if (stage, type(bodies[0])) == ("resolver", AssignmentRequested) else ids[-1]
            await do(place, stage, "insert into inbox values ($1, 1, 1, $2)", (uid, outcome))
        return ids

    monkeypatch.setattr(rulings, "_say", say)
    return said, answers


def ask(known, department="cards"):
    return AssignmentRequested(case_id=known.case.case_id, department=department, by="lead")


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("answers", "outcome", "why"),
    [
        ({"router": "caused", "resolver": "caused"}, "done", "cards has the case"),
        (
            {"router": "caused", "resolver": "ignored:resolved_meanwhile"},
            "refused",
            "resolved meanwhile: nothing has changed for the customer",
        ),
        ({"router": "refused:illegal_in_state"}, "refused", "illegal in state"),
        ({"router": "waiting:not_recorded_yet"}, "waiting", "not recorded yet"),
    ],
)
async def test_an_assignment_is_done_when_the_department_has_the_case(place, asked, answers, outcome, why):
    known = routing()
    await stand(place, (known, with_department(known)))
    asked[1].update(answers)
    verdict = await rulings.assign(place, ask(known))
    assert (verdict.outcome, verdict.why) == (outcome, why)


@pytest.mark.postgres
@pytest.mark.parametrize("phase", ["resolved", "withdrawn"])
async def test_nobody_is_asked_for_a_case_that_has_ended_but_for_one_that_was_reopened(place, asked, phase):
    known, again = routing(), routing(cycle=2)
    before = with_department(again, phase)
    before = before.model_copy(update={"case": before.case.model_copy(update={"cycle": 1})})
    await stand(place, (known, with_department(known, phase)), (again, before))
    verdict = await rulings.assign(place, ask(known))
    assert (verdict.outcome, asked[0]) == ("refused", [])
    assert verdict.why == f"the case is {phase}: only the customer's word opens it again"
    asked[1].update({"router": "caused", "resolver": "caused"})
    assert (await rulings.assign(place, ask(again))).outcome == "done"


@pytest.mark.postgres
async def test_what_a_department_works_on_is_not_taken_from_it(place, asked):
    known, in_triage = routing(department="payments"), routing()
    await stand(
        place,
        (known, with_department(known, "in_progress")),
        (in_triage, with_department(in_triage, "in_progress")),
    )
    verdict = await rulings.assign(place, ask(known))
    assert (verdict.outcome, asked[0]) == ("refused", [])
    assert verdict.why == "payments has accepted the case: who works on it passes it on"
    asked[1].update({"router": "caused", "resolver": "caused"})
    assert (await rulings.assign(place, ask(in_triage))).outcome == "done"


class Sealing:
    """A world of which only the vault is asked."""

    def __init__(self, place, vault):
        self.place, self._vault = (lambda: place), vault

    async def vault(self, _):
        return self._vault


@pytest.mark.postgres
async def test_what_is_not_the_banks_is_rejected_where_it_waits(place, asked, vault):
    await vault.ready(["c-1"], create=True)
    world, parked, held = Sealing(place, vault), routing("parked", "cards"), routing()
    elsewhere, done = routing(department="cards"), routing()
    await stand(
        place,
        (parked, with_department(parked, "returned")),
        (held, with_department(held)),
        (elsewhere, with_department(elsewhere)),
        (done, with_department(done, "resolved")),
    )  # fmt: skip
    asked[1].update({"router": "caused", "resolver": "caused"})
    vault.close = lambda: asyncio.sleep(0)

    async def reject(known):
        del asked[0][:]
        verdict = await rulings.reject(world, known.case.case_id, "lead", "Not our bank.", "not_ours")
        return verdict.outcome, verdict.why, [(writer, type(body)) for writer, body in asked[0]]

    told = "rejected: the customer is told"
    assert await reject(parked) == ("done", told, [("triage", RejectionRequested)])
    assert vault.open("c-1", asked[0][0][1].decision.text) == "Not our bank."
    assert await reject(held) == (
        "done", told, [("departments", AcceptanceRequested), ("departments", ResolutionRequested)],
    )  # fmt: skip
    assert asked[0][1][1].decision.outcome == "rejected"
    only = "triage answers only what waits for it"
    assert await reject(elsewhere) == ("refused", f"the case is with cards: {only}", [])
    assert await reject(done) == ("refused", f"the case is resolved: {only}", [])
    await vault.erase("c-1")
    assert await reject(held) == ("refused", "the customer was erased: there is nobody to tell", [])


@pytest.mark.postgres
@pytest.mark.parametrize(
    "options", [["--by", "O'Brien"], ["--by", "lead", "--reason", "x" * 600]], ids=["name", "reason"]
)
async def test_a_name_or_a_reason_that_may_not_be_is_told_in_three_lines(place, tmp_path, options):
    arguments = ["assign", str(new_id()), "cards", "--dir", str(tmp_path), *options]
    done = await asyncio.to_thread(CliRunner().invoke, triage_app, arguments)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 3)
    assert "http" not in done.stderr
