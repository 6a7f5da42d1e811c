"""The verbs about rules: what they print, and their exit codes."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner

from chassis.postgres import Database, migrate, role_of
from cli import rules as verbs
from cli.world import Place
from schemas.case import Case, Customer, Personal, Severity
from schemas.router import Explanation
from services.router.domain import Routing
from services.router.rules import load_rules, parse_rules
from services.router.settings import RouterSettings
from tests.given import a_case

RULES = """\
ruleset: test-1
rules:
  - id: lost
    name: {zh: 挂失, en: lost}
    priority: 10
    author: tests
    when: {field: text, op: contains_any, value: [卡丢了, lost my card]}
    then: {department: cards, assist: [fraud], severity: urgent}
  - id: fees
    name: {zh: 费用, en: fees}
    priority: 100
    author: tests
    when: {field: product, op: eq, value: fee}
    then: {department: payments}
tests:
  - {case: {text: 我的卡丢了}, department: cards, rule: lost}
  - {case: {product: fee}, department: payments, rule: fees}
"""

UNKNOWN = (
    "Input should be 'cards', 'fraud', 'digital', 'lending', 'payments', 'branches', 'wealth' or 'triage'"
)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def hotline(*arguments):
    """What the verb printed, what it complained, and its exit code."""
    done = CliRunner().invoke(verbs.rules_app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout, done.stderr, done.exit_code


def printed(*arguments):
    out, complaint, code = hotline(*arguments, "--json")
    assert complaint == ""
    return json.loads(out), code


def test_the_shipped_file_is_the_one_that_the_router_reads():
    assert RouterSettings.model_fields["rules_file"].default == verbs.SHIPPED
    assert hotline("check")[2] == 0
    assert hotline("test")[2] == 0


def test_check_says_which_rules_they_are(file):
    sha256 = load_rules(file).sha256
    out, _, code = hotline("check", file)
    assert (out, code) == (
        f"{file}: fine; version test-1, sha256 {sha256[:12]}…, 2 rules, 2 tests\n",
        0,
    )
    assert printed("check", file) == (
        {"file": str(file), "ruleset": "test-1", "sha256": sha256, "rules": 2, "tests": 2, "faults": []},
        0,
    )


def test_check_names_every_fault_with_its_line(file):
    file.write_text(RULES.replace("department: cards, ass", "department: moon, ass").replace("100", "10"))
    out, complaint, code = hotline("check", file)
    assert (out, code) == ("", 1)
    assert complaint.splitlines() == [
        "hotline: rules may not be used: 1 fault",
        f"  {file}:8: rules.0.then.department: {UNKNOWN}",
        f"  next: correct the file, then hotline rules check {file}",
    ]
    found, code = printed("check", file)
    assert ([(fault["line"], fault["where"]) for fault in found["faults"]], code) == (
        [(8, "rules.0.then.department")],
        1,
    )


@pytest.mark.parametrize("verb", ["check", "test"])
def test_a_test_that_fails_is_told_with_its_line_and_what_was_found(file, verb):
    file.write_text(RULES.replace("{case: {product: fee}", "{case: {product: atm}"))
    _, complaint, code = hotline(verb, file)
    assert code == 1
    assert complaint.splitlines()[1] == (
        f"  {file}:17: tests.1: expected payments by fees, found triage (— no rule)"
    )


def test_test_counts_what_passed(file):
    assert hotline("test", file)[::2] == (f"{file}: 2 of 2 tests pass\n", 0)
    assert printed("test", file)[0]["passed"] == 2
    file.write_text(RULES.replace("rule: fees}", "candidates: [cards]}"))
    found, code = printed("test", file)
    assert (found["passed"], code) == (1, 1)
    assert found["failed"][0]["reason"] == (
        "expected payments, candidates cards, found payments by fees, candidates"
        " cards, fraud, digital, lending, payments, branches, wealth"
    )


def test_rules_without_tests_are_not_called_tested(file):
    file.write_text(RULES[: RULES.index("tests:")])
    _, complaint, code = hotline("test", file)
    assert (complaint.splitlines()[0], code) == ("hotline: nothing was tested", 1)
    assert printed("test", file)[1] == 1


def test_explain_tells_what_was_tried_and_never_the_text(file):
    out, _, code = hotline(
        "explain", "--file", file, "--field", "product=fee", "--text", "Li Lei 李雷 lost it"
    )
    assert code == 0
    assert "李雷" not in out
    assert out.splitlines()[2:] == [
        "·  10 lost: no match: ✗ text contains_any [卡丢了, lost my card], seen —",
        "→ 100 fees: decides: ✓ product eq [fee], seen fee",
        "decision: payments by fees",
    ]


def test_explain_for_a_script_has_the_decision_and_the_reasons(file):
    found, code = printed(
        *("explain", "--file", file, "--field", "attempts=2", "--field", "vulnerable=true"),
        *("--text", "I lost my card", "--exclude", "fraud"),
    )
    assert code == 0
    assert (found["case"]["attempts"], found["case"]["vulnerable"], found["case"]["text"]) == (
        2,
        True,
        "known",
    )
    assert found["decision"] == {
        "department": "cards",
        "rule": "lost",
        "assist": [],
        "severity_raised_to": "urgent",
        "vetoed": [],
        "candidates": ["cards", "digital", "lending", "payments", "branches", "wealth"],
        "matched": [
            {
                "field": "text",
                "op": "contains_any",
                "expected": "卡丢了, lost my card",
                "seen": "lost my card",
            }
        ],
    }
    assert [(one["rule"], one["fate"]) for one in found["tried"]] == [("lost", "decides")]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--field", "prodct=atm"], "prodct: Extra inputs are not permitted"),
        (["--field", "product"], "'product' is not NAME=VALUE"),
        (["--field", "attempts=many"], "attempts: Input should be a valid integer, unable to parse"),
        (["--field", "severity=hihg"], "severity: 'hihg' is none of low, normal, high, urgent"),
        (["--text", "x", "--exclude", "moon"], "moon"),
        ([], "either a recorded case, or --field and --text of an invented one"),
        (["C-1", "--text", "x"], "either a recorded case, or --field and --text of an invented one"),
    ],
)
def test_what_explain_cannot_use_is_told_in_three_lines(arguments, why):
    _, complaint, code = hotline("explain", *arguments)
    assert code == 2
    assert len(complaint.splitlines()) == 3
    assert complaint.splitlines()[1].strip().startswith(why)


def test_diff_tells_what_changed_in_the_rules_and_for_the_demo_cases(file, tmp_path):
    new = tmp_path / "new.yaml"
    new.write_text(RULES.replace("department: payments", "department: branches", 1).split("tests:")[0])
    found, code = printed("diff", file, new)
    assert code == 0
    assert (found["added"], found["removed"], found["changed"], found["moved"]) == ([], [], ["fees"], [])
    assert found["version_reused"] is True
    assert found["cases"] == 64
    assert len(found["rerouted"]) == 5
    assert found["rerouted"][0] == {
        "case": "zh-fee-sms",
        "before": "payments by fees",
        "after": "branches by fees",
    }
    out, _, _ = hotline("diff", file, new)
    assert "5 of 64 cases go elsewhere" in out
    assert "  zh-fee-sms: payments by fees → branches by fees" in out
    assert "raise `ruleset`" in out


def test_coverage_tells_what_each_rule_does_and_the_share_without(file):
    found, code = printed("coverage", file)
    assert code == 0
    assert (found["cases"], found["without_rule"], found["share_without_rule"]) == (64, 59, 0.9219)
    assert [(use["rule"], use["holds"], use["decides"], use["verdict"]) for use in found["use"]] == [
        ("lost", 0, 0, "never matches"),
        ("fees", 5, 5, "used"),
    ]
    assert hotline("coverage", file)[0].splitlines() == [
        "ruleset test-1 over 64 cases; without rule 59, 92.2%",
        " 10 lost                     holds    0  decides    0  never matches",
        "100 fees                     holds    5  decides    5  used",
    ]


@pytest.mark.parametrize(
    "verb", [["test"], ["explain", "--text", "x", "--file"], ["coverage"], ["diff", "/dev/null"]]
)
def test_a_bad_file_ends_each_verb_with_its_fault(verb, tmp_path):
    _, complaint, code = hotline(*verb, tmp_path / "none.yaml")
    assert code == 1
    assert complaint.splitlines()[0].startswith("hotline: rules may not be used")


# ------------------------------------------------------------ recorded cases


@pytest.fixture
async def known(address, prefix, vault, tmp_path) -> list[Case]:
    """Two cases that the router of the world in `tmp_path` knows; the customer of the second was erased."""
    schema = f"{prefix}_router"
    await migrate(address.database_url, schema, ["chassis", "services.router"])
    place = Place(address.kafka_bootstrap, address.database_url, f"{prefix}.", f"{prefix}_")
    (tmp_path / "world.json").write_text(json.dumps(asdict(place)))
    said = Personal(name="李雷", phone="1", summary="I lost my card", demand="Block it.").model_dump_json()
    await vault.ready(["c-1", "c-2"], create=True)
    cases = [
        a_case(
            case_no=f"C-{ref}",
            product="fee",
            customer=Customer(customer_ref=ref, sealed=vault.seal(ref, said)),
        )
        for ref in ("c-1", "c-2")
    ]
    await vault.erase("c-2")
    database = Database(address.database_url, schema, role=role_of(schema))
    await database.open()
    async with database.transaction() as tx:
        for case in cases:
            await tx.execute(
                "insert into entities (key, version, sequence, updated_at, phase, timers, document)"
                " values ($1, 1, 1, now(), 'routed', '{}', $2)",
                str(case.case_id),
                json.dumps({"phase": "routed", "case": case.model_dump(mode="json")}),
            )
    await database.close()
    return cases


@pytest.mark.postgres
async def test_a_recorded_case_is_explained_with_its_text_unless_the_customer_was_erased(
    known, file, tmp_path
):
    async def explained(case):
        asked = ("explain", str(case.case_id), "--file", file, "--dir", tmp_path)
        found, code = await asyncio.to_thread(printed, *asked)
        return found["decision"]["rule"], found["case"]["text"], code

    assert await explained(known[0]) == ("lost", "known", 0)
    assert await explained(known[1]) == ("fees", None, 0)
    _, complaint, code = await asyncio.to_thread(hotline, "explain", str(UUID(int=1)), "--dir", tmp_path)
    assert (complaint.splitlines()[0], code) == ("hotline: no such case", 1)


@pytest.mark.postgres
async def test_a_recorded_case_is_explained_as_it_was_decided(known, address, prefix, file, tmp_path):
    """By the rules that decided, with the severity before they raised it, without whoever gave it back."""
    case = known[0].model_copy(update={"severity": Severity.URGENT})
    decided = RULES.replace("test-1", "then-1").replace("department: cards", "department: wealth")
    sha256 = parse_rules(decided).sha256
    why = Explanation(
        decision_id=case.case_id, ruleset="then-1", ruleset_sha256=sha256, normaliser=1, input_sha256="x",
        severity=Severity.LOW, excluded=("lending",),
    )  # fmt: skip
    database = Database(address.database_url, f"{prefix}_router", role=role_of(f"{prefix}_router"))
    await database.open()
    async with database.transaction() as tx:
        await tx.execute(
            "update entities set document = $1 where key = $2",
            Routing(phase="routed", case=case, explanation=why).to_bytes().decode(),
            str(case.case_id),
        )
        await tx.execute(
            "insert into rulesets (version, sha256, document, by, reason) values ('then-1', $1, $2, 'l', '')",
            sha256,
            decided,
        )
    await database.close()

    async def explained(*options):
        return (await asyncio.to_thread(printed, "explain", str(case.case_id), "--dir", tmp_path, *options))[
            0
        ]

    found = await explained()
    assert (found["ruleset"], found["decision"]["department"], found["case"]["severity"]) == (
        "then-1", "wealth", "low",
    )  # fmt: skip
    assert "lending" not in found["decision"]["candidates"]
    assert (await explained("--exclude", "wealth"))["decision"]["department"] == "payments"
    assert (await explained("--file", file))["decision"]["department"] == "cards"
    assert (await explained("--file", "then-1"))["ruleset"] == "then-1"
    diff, code = await asyncio.to_thread(printed, "diff", "then-1", file, "--dir", tmp_path)
    assert (diff["changed"], code) == (["lost"], 0)
    _, complaint, code = await asyncio.to_thread(hotline, "diff", "then-9", file, "--dir", tmp_path)
    assert (complaint.splitlines()[0], code) == ("hotline: no such ruleset", 1)


@pytest.mark.postgres
async def test_rules_are_looked_at_over_recorded_cases(known, file, tmp_path):
    asked = ("coverage", file, "--recorded", 10, "--dir", tmp_path)
    found, code = await asyncio.to_thread(printed, *asked)
    assert (found["cases"], found["without_rule"], code) == (2, 0, 0)
    assert [(use["rule"], use["decides"]) for use in found["use"]] == [("lost", 1), ("fees", 1)]
