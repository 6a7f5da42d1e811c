"""Models, rules and words that are small enough to be checked by reading; the router on a log in memory."""

import re
from datetime import UTC, datetime
from uuid import UUID

import numpy as np

from chassis.batch import Pass
from chassis.ids import derived_id
from chassis.memory import MemoryLog, MemorySubscription
from chassis.metrics import StageMetrics
from chassis.relay import Relay
from chassis.roots import new_id
from schemas import feedback, resolver, router
from schemas.case import Customer, Personal
from schemas.envelope import BY_WIRE
from services.router import app
from services.router.classifier.model import Card, Metrics, Model, build, save_model
from services.router.classifier.scorer import FIXED, Features
from services.router.classifier.text import NORMALISER
from services.router.departments import FILE
from services.router.domain import Routing
from services.router.rules import ASSIGNABLE, parse_rules
from services.router.settings import RouterSettings
from tests.given import DECISION, a_case, headers_of, message, recorded

RULES_TEXT = """\
ruleset: "1"
rules:
  - id: threat
    name: {zh: 威胁, en: threat}
    priority: 5
    author: tests
    when: {field: text, op: contains_any, value: [不想活了, kill myself]}
    then: {department: triage, severity: urgent}
  - id: lost
    name: {zh: 挂失, en: lost}
    priority: 10
    author: tests
    when: {field: text, op: contains_any, value: [卡丢了, lost my card]}
    then: {department: cards, assist: [fraud], severity: urgent}
  - id: no-fraud
    name: {zh: 不归反欺诈, en: no fraud}
    priority: 100
    author: tests
    when: {field: category, op: eq, value: suggestion}
    then: {veto: [fraud]}
  - id: dispute
    name: {zh: 争议, en: dispute}
    priority: 110
    author: tests
    when: {field: category, op: eq, value: dispute}
    then: {narrow: [payments, lending]}
  - id: reports
    name: {zh: 举报, en: reports}
    priority: 190
    author: tests
    when: {field: category, op: eq, value: suggestion}
    then: {department: fraud}
  - id: fees
    name: {zh: 费用, en: fees}
    priority: 200
    author: tests
    when: {field: product, op: eq, value: fee}
    then: {department: payments, severity: high}
  - id: fees-too
    name: {zh: 费用二, en: fees too}
    priority: 210
    author: tests
    when: {field: product, op: eq, value: fee}
    then: {department: branches}
"""
RULES = parse_rules(RULES_TEXT)

WORDS = {
    "en": {
        "card": "cards", "machine": "cards", "swallowed": "cards", "chip": "cards",
        "transfer": "payments", "wire": "payments", "payee": "payments",
        "mortgage": "lending", "loan": "lending", "instalment": "lending",
        "app": "digital", "login": "digital", "password": "digital",
        "stranger": "fraud", "scam": "fraud",
    },
    "zh": {"卡": "cards", "芯": "cards", "账": "payments", "汇": "payments", "贷": "lending", "骗": "fraud"},
}  # fmt: skip
SURE = {"en": "the machine swallowed card chip", "zh": "卡芯卡芯"}
"""Texts of which the models below are sure: cards."""
UNSURE = {"en": "card transfer mortgage app", "zh": "卡账贷骗"}


def sealed_model(language: str = "en", version: str = "1", **card) -> tuple[Model, dict[str, bytes]]:
    """A model of a few words, each of which speaks for one department alone."""
    words = WORDS[language]
    weights = np.zeros((len(words), len(ASSIGNABLE)), np.int16)
    for row, department in enumerate(words.values()):
        weights[row, ASSIGNABLE.index(department)] = 100
    none = Features(
        {}, np.zeros(0, np.int64), np.zeros((0, len(ASSIGNABLE)), np.int16), np.zeros(0, np.bool_)
    )
    return build(
        Card.model_validate(
            {
                "version": f"{language}-{version}",
                "what": "a few words",
                "data": "none",
                "demonstration": False,
                "created_at": datetime(2026, 11, 1, tzinfo=UTC),
                "language": language,
                "departments": ASSIGNABLE,
                "normaliser": NORMALISER,
                "members": {},
                "bias": [0.0] * len(ASSIGNABLE),
                "unit": 0.05,
                "temperature": 1.0,
                "label_noise": 0.0,
                "threshold": 0.8,
                "metrics": Metrics(
                    texts=1000, texts_of={}, accuracy=1, macro_f1=1, ece=0, coverage=1, precision=1
                ),
                **card,
            }
        ),
        Features(
            {word: row for row, word in enumerate(words)},
            np.full(len(words), FIXED, np.int64),
            weights,
            np.ones(len(words), np.bool_),
        ),
        none,
    )


def bundle(folder, *languages: str):
    """A folder of models, as an installation has it."""
    for language in languages:
        save_model(sealed_model(language)[1], folder / language)
    return folder


def words_of(text: str) -> str:
    """A customer's words, before they are sealed."""
    return Personal(name="Zhang Wei", phone="+8613912345678", summary=text).model_dump_json()


def always_open(folder):
    """The shipped departments, none of which ever closes."""
    text = re.sub(r"^(closed|worked): .*$", "", FILE.read_text("utf-8"), flags=re.MULTILINE)
    file = folder / "departments.yaml"
    file.write_text(re.sub(r"hours: (extended|office)", "hours: always", text), "utf-8")
    return file


def settings_in(folder, **fields) -> RouterSettings:
    """The settings of a router with the rules and models above."""
    folder.mkdir(exist_ok=True)
    (folder / "rules.yaml").write_text(RULES_TEXT, "utf-8")
    given = {
        "kafka_bootstrap": "x",
        "database_url": "x",
        "master_key_file": folder / "master.key",
        "rules_file": folder / "rules.yaml",
        "departments_file": always_open(folder),
        "models": folder / "models",
        **fields,
    }
    return RouterSettings(**given)


class Rig:
    """The router on a real database with the log in memory, and those who write to it."""

    def __init__(self, database, vault, settings):
        self.database, self.vault, self.log = database, vault, MemoryLog()
        self.live(settings)

    def live(self, settings):
        """A new process: nothing in memory but what the log and the database hold."""
        self.stage = app.build(settings, self.vault)
        metrics = StageMetrics("router")
        self.relay = Relay(self.stage, self.database, self.log, metrics)
        self.handle = Pass(self.stage, self.database, self.log, self.vault.seal_record, metrics)
        self.subscription = MemorySubscription(
            self.log, "router", self.stage.inputs, self.handle, self.handle.settle
        )

    def from_the_beginning(self):
        """Have Kafka hand over everything again."""
        self.log.committed.clear()

    async def say(self, *messages, batch=1000):
        """Let these arrive, and decide them."""
        for item in messages:
            self.log.append(item)
        await self.subscription.drain(max_records=batch)

    async def case(self, text="nothing that anybody knows", reference="c-1", **fields):
        """A case with a customer's words in it."""
        await self.vault.ready([reference], create=True)
        sealed = self.vault.seal(reference, words_of(text))
        customer = Customer(customer_ref=reference, sealed=sealed)
        return a_case(**{"product": "other", "customer": customer, **fields})

    async def rows(self, sql, *args):
        async with self.database.session() as tx:
            return await tx.fetch(sql, *args)

    async def state(self, case_id: UUID) -> Routing:
        """What the router knows of a case."""
        (row,) = await self.rows("select document from entities where key = $1", str(case_id))
        return Routing.parse(row["document"])

    def said(self, case_id=None):
        """What the router said, each once: its headers and its body."""
        once = {}
        for record in self.log.records("router.cases"):
            assert once.setdefault(headers_of(record)["ce_id"], record).value == record.value
        said = [
            (headers_of(one), BY_WIRE[headers_of(one)["ce_type"]].body.parse(one.value))
            for one in once.values()
        ]
        return [pair for pair in said if case_id is None or getattr(pair[1], "case_id", None) == case_id]

    def last(self, case_id):
        """How a case was routed last, or that it was parked."""
        return [body for _, body in self.said(case_id) if isinstance(body, ROUTING)][-1]


ROUTING = (router.CaseRouted, router.CaseParked)


def assignment_by(cause: UUID) -> UUID:
    """The assignment that an input brings about."""
    return derived_id(cause, "assignment")


def held(case, assignment_id, department) -> router.CaseRouted:
    """What a department holds, as far as it speaks of it."""
    return router.CaseRouted.model_construct(
        case_id=case.case_id, assignment_id=assignment_id, department=department, case=case
    )


def moved(kind, routed, *, reason="not_ours", to=None):
    """A department returns a case or passes it on."""
    return kind(
        case_id=routed.case_id,
        assignment_id=routed.assignment_id,
        department=routed.department,
        reason=reason,
        proposed_department=to,
        case=routed.case,
    )


def returned(routed, **fields) -> resolver.CaseReturned:
    return moved(resolver.CaseReturned, routed, **fields)


def transferred(routed, **fields) -> resolver.CaseTransferred:
    return moved(resolver.CaseTransferred, routed, **{"reason": "our_part_is_done", **fields})


def reopened(routed, cycle=2) -> feedback.CaseReopened:
    return feedback.CaseReopened(
        case_id=routed.case_id,
        cycle=cycle,
        reason="not_solved",
        prior_decision=DECISION,
        department=routed.department,
        case=routed.case.model_copy(update={"cycle": cycle}),
    )


def ruling(case_id, department, by="lead") -> router.AssignmentRequested:
    return router.AssignmentRequested(case_id=case_id, department=department, by=by)


async def day(rig, dice, cases):
    """Cases come in, go on, come back and are reopened; everything up to three times, in batches of any size.

    Gives the ids of all inputs, with their kinds.
    """
    inputs: dict[str, str] = {}

    async def arrive(bodies):
        messages = [message(body) for body in bodies]
        for one, body in zip(messages, bodies, strict=True):
            inputs[dict(one.headers)["ce_id"].decode()] = type(body).__name__
        repeated = [one for one in messages for _ in range(dice.randint(1, 3))]
        await rig.say(*repeated, batch=dice.randint(1, 60))

    def routed():
        return [last for one in ids if isinstance(last := rig.last(one), router.CaseRouted)]

    words = [
        SURE["en"],
        SURE["zh"],
        UNSURE["en"],
        "I lost my card",
        "kill myself",
        "about the fee",
        "пропала карта",
        "",
    ]
    ids = [new_id() for _ in range(cases)]
    incoming = [
        await rig.case(
            dice.choice(words),
            f"c-{number % 7}",
            case_id=one,
            product=dice.choice(["fee", "other", "other", "other"]),
            category=dice.choice(["complaint", "complaint", "dispute", "suggestion"]),
            severity=dice.choice(["low", "normal", "high"]),
            follows=ids[number // 2] if number > cases // 2 and dice.random() < 0.5 else None,
        )
        for number, one in enumerate(ids)
    ]
    await arrive([recorded(case) for case in incoming[: cases // 2 + 1]])
    await arrive([recorded(case) for case in incoming[cases // 2 + 1 :]])
    for _ in range(4):
        moving = dice.sample(routed(), len(routed()) // 2)
        ends = (dice.choice([returned, transferred]) for _ in moving)
        targets = (dice.choice([None, None, "wealth", "payments", "moon"]) for _ in moving)
        await arrive([end(one, to=to) for end, one, to in zip(ends, moving, targets, strict=True)])
    waiting = [one.case_id for one in routed() if one.department == "triage"]
    await arrive([ruling(one, dice.choice(ASSIGNABLE)) for one in waiting[::2]])
    await arrive([reopened(one) for one in routed()[::2]])
    return inputs
