"""Builders and given-when-then for decisions and stages."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from chassis.memory import MemoryLog, MemoryRecord
from chassis.message import Writer, time_header
from chassis.postgres import Tx
from chassis.roots import new_id
from chassis.step import Event, Step
from chassis.transport import Outgoing
from schemas import intake, resolver, router, telephony
from schemas.case import Case, Customer, Decision
from schemas.envelope import BY_BODY, Body
from services.intake.app import look_up
from services.intake.store import CaseNumbers

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
SEALED = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJ"
DECISION = Decision(outcome="upheld", text=SEALED, root_cause="double_charge")
_writer = Writer("tests")


def message(body: Body, uid: UUID | None = None, *, at: datetime = NOW, cause: str | None = None) -> Outgoing:
    """A message as its writer would send it."""
    key = str(getattr(body, BY_BODY[type(body)].key))
    return _writer.write(body, uid=uid or new_id(), at=time_header(at), correlation=key, cause=cause)


def event(body: Body, uid: UUID | None = None) -> Event[Any]:
    """An event as a decision sees it."""
    kind = BY_BODY[type(body)]
    uid = uid or new_id()
    key = str(getattr(body, kind.key))
    return Event(uid, str(uid), kind, key, body, NOW, key)


async def looked_up(tx: Tx, events: Sequence[Event[Any]], policy: Any) -> Any:
    """Look up as intake does; with case numbers drawn anew, for tests share a stage and not its database."""
    return await look_up(CaseNumbers(), tx, events, policy)


class Life:
    """Decides one thing after the other about one case: `when(...)` gives the outcome, `then` the events."""

    def __init__(self, decisions: Any, policy: Any) -> None:
        self._decisions, self._policy = decisions, policy
        self.state: Any = None
        self.now = NOW
        self.timers: dict[str, datetime] = {}
        self.said: list[Body] = []
        self.outcome: Any = None

    def when(self, body: Body, *, after: timedelta = timedelta(), policy: Any = None) -> "Life":
        self.now += after
        item = event(body)
        use = policy(item) if policy else self._policy
        self.outcome = self._decisions[type(body)](item, self.state, self.now, use)
        self.said = []
        if isinstance(self.outcome, Step):
            self.state, self.said = self.outcome.state, list(self.outcome.events)
            for timer in self.outcome.timers:
                self.timers.pop(timer.name, None)
                if hasattr(timer, "due_at"):
                    self.timers[timer.name] = timer.due_at
        return self

    def then(self, *kinds: type[Body]) -> "Life":
        assert [type(body) for body in self.said] == list(kinds), self.outcome
        return self


def call(name: str = "call-1", **fields: Any) -> dict[str, Any]:
    return {"call_id": name, "source": "pbx", "occurred_at": NOW, **fields}


def offered(name: str = "call-1") -> telephony.CallOffered:
    return telephony.CallOffered(**call(name))


def answered(name: str = "call-1") -> telephony.CallAnswered:
    return telephony.CallAnswered(**call(name), queue="cards", visit=1, agent="a-1", wait_ms=4000)


def ended(name: str = "call-1") -> telephony.CallEnded:
    return telephony.CallEnded(**call(name), cause="normal")


def record_request(name: str = "call-1", **fields: Any) -> intake.RecordingRequested:
    return intake.RecordingRequested.model_validate(
        {
            "call_id": name,
            "agent": "a-1",
            "language": "zh",
            "category": "complaint",
            "product": "credit_card",
            "customer_ref": "c-1",
            "sealed": SEALED,
            **fields,
        }
    )


def a_case(case_id: UUID | None = None, **fields: Any) -> Case:
    return Case.model_validate(
        {
            "case_id": case_id or new_id(),
            "case_no": "C-20261123-004217-6",
            "call_id": "call-1",
            "agent": "a-1",
            "language": "en",
            "category": "complaint",
            "product": "credit_card",
            "severity": "normal",
            "customer": Customer(customer_ref="c-1", sealed=SEALED),
            "recorded_at": NOW,
            **fields,
        }
    )


def recorded(case: Case) -> intake.CaseRecorded:
    return intake.CaseRecorded(case_id=case.case_id, case=case)


def routed(case: Case, department: str = "cards", attempt_no: int = 1) -> router.CaseRouted:
    return router.CaseRouted(
        case_id=case.case_id,
        assignment_id=new_id(),
        department=department,
        attempt_no=attempt_no,
        why=router.RuleUsed(ruleset="1", rule="r", stage="rule"),
        accept_due=NOW + timedelta(hours=2),
        resolve_due=NOW + timedelta(days=5),
        case=case,
    )


def resolved(case: Case, department: str = "cards") -> resolver.CaseResolved:
    return resolver.CaseResolved(
        case_id=case.case_id,
        assignment_id=new_id(),
        department=department,
        decision=DECISION,
        clerk="clerk",
        case=case,
    )


def types_on(log: MemoryLog, topic: str) -> list[str]:
    return [dict(record.headers)["ce_type"].decode() for record in log.records(topic)]


def headers_of(record: MemoryRecord) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}
