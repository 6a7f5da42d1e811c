"""The work that is measured: whole cases, different from each other, built before the clock starts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from chassis.clock import utc_now
from chassis.ids import derived_id
from chassis.message import Writer, time_header
from chassis.roots import new_id
from chassis.transport import Outgoing
from chassis.vault import Vault
from cli.texts import Script, scripts
from schemas import feedback, intake, resolver, telephony
from schemas.case import Decision, Personal
from schemas.envelope import BY_BODY, Body
from services.router.rules import View, decide, load_rules
from services.router.settings import RouterSettings

CALL_EVENTS = 5
HANDLED_PER_CASE = CALL_EVENTS + 1 + 1 + 1 + 2 + 1 + 1 + 1
"""Call events and the record (intake), recorded (router), routed, accept, resolve (resolver),
resolved, telling, rating (feedback)."""

_CUSTOMERS_PER = 3
_RULES = load_rules(RouterSettings.model_fields["rules_file"].default)


@dataclass(frozen=True, slots=True)
class Planned:
    """One case of the load: its ids are known before it happens, because ids are derived."""

    call_id: str
    case_id: UUID
    assignment_id: UUID
    department: str
    ref: str
    index: int


class Load:
    """Builds the messages of `cases` whole cases."""

    def __init__(self, vault: Vault, cases: int, *, start: int = 0) -> None:
        self._vault, self._writer = vault, Writer("bench")
        self._dice = random.Random(start)
        self._range = range(start, start + cases)
        self._run = new_id().hex[:12]
        self.planned: list[Planned] = []

    async def prepare(self) -> None:
        """Make the customers' keys."""
        refs = sorted({self._ref(index) for index in self._range})
        for at in range(0, len(refs), 5000):
            await self._vault.ready(refs[at : at + 5000], create=True)

    def calls(self) -> list[Outgoing]:
        """First phase: what telephony says, and what agents record."""
        return [message for index in self._range for message in self.call(index)]

    def call(self, index: int) -> list[Outgoing]:
        """The messages of one call, from the first ring to the agent's record."""
        call_id = f"{self._run}.{index}"
        base = {"call_id": call_id, "source": "bench", "occurred_at": utc_now()}
        wait = self._dice.randrange(1000, 180_000)
        agent = f"agent-{self._dice.randrange(60):02d}"
        facts: list[Body] = [
            telephony.CallOffered(**base, customer_ref=self._ref(index), dialled="95000", language="zh"),
            telephony.CallQueued(**base, queue="cards", visit=1, position=index % 9),
            telephony.CallAnswered(**base, queue="cards", visit=1, agent=agent, wait_ms=wait),
            telephony.TalkEnded(
                **base, queue="cards", visit=1, agent=agent, talk_ms=wait * 2, ended_by="caller"
            ),
            telephony.CallEnded(**base, cause="normal", total_ms=wait * 3),
        ]
        messages = [self._message(fact, new_id()) for fact in facts]
        command_id = new_id()
        messages.append(self._message(self._record(index, call_id, agent), command_id))
        self._plan(index, call_id, command_id)
        return messages

    def departments(self, planned: Sequence[Planned]) -> list[Outgoing]:
        """Second phase: departments accept and resolve."""
        messages = []
        for case in planned:
            holder = {
                "case_id": case.case_id,
                "assignment_id": case.assignment_id,
                "department": case.department,
                "clerk": f"clerk-{case.index % 30}",
            }
            text = self._vault.seal(case.ref, f"{_script(case.index).resolution} ({case.index})")
            decision = Decision(outcome="upheld", text=text, root_cause=f"cause-{case.index % 17}")
            messages.append(self._message(resolver.AcceptanceRequested(**holder), new_id()))
            messages.append(
                self._message(resolver.ResolutionRequested(**holder, decision=decision), new_id())
            )
        return messages

    def customers(self, planned: Sequence[Planned]) -> list[Outgoing]:
        """Third phase: customers judge."""
        return [
            self._message(
                feedback.RatingRequested(
                    case_id=case.case_id, cycle=1, solved=True, attitude=1 + case.index % 5, speed=4
                ),
                new_id(),
            )
            for case in planned
        ]

    def _record(self, index: int, call_id: str, agent: str) -> intake.RecordingRequested:
        script, ref = _script(index), self._ref(index)
        personal = Personal(
            name=script.name,
            phone=f"+86139{index % 10**8:08d}",
            summary=f"{script.summary} #{index} {self._dice.randbytes(24).hex()}",
            demand=script.demand,
        )
        return intake.RecordingRequested.model_validate(
            {
                "call_id": call_id,
                "agent": agent,
                "language": script.language,
                "category": script.category,
                "product": script.product,
                "severity": script.severity,
                "customer_ref": ref,
                "sealed": self._vault.seal(ref, personal.model_dump_json()),
            }
        )

    def _plan(self, index: int, call_id: str, command_id: UUID) -> None:
        recorded = derived_id(command_id, BY_BODY[intake.CaseRecorded].wire, 1)
        script = _script(index)
        self.planned.append(
            Planned(
                call_id,
                derived_id(command_id, "case"),
                derived_id(recorded, "assignment"),
                department_of(script) or "triage",
                self._ref(index),
                index,
            )
        )

    def _ref(self, index: int) -> str:
        return self._vault.customer_ref(f"bench-{index // _CUSTOMERS_PER}")

    def _message(self, body: Body, uid: UUID) -> Outgoing:
        key = str(getattr(body, BY_BODY[type(body)].key))
        return self._writer.write(body, uid=uid, at=time_header(utc_now()), correlation=key)


@cache
def _decided() -> tuple[Script, ...]:
    """The stories that a rule decides: where the others go depends on the model and on the hour."""
    return tuple(script for script in scripts() if department_of(script))


def _script(index: int) -> Script:
    return _decided()[index % len(_decided())]


def department_of(script: Script) -> str | None:
    """Say where the shipped rules send such a case; None: not by a rule."""
    text = f"{script.summary}\n{script.demand}"
    view = View(
        category=script.category,
        product=script.product,
        severity=script.severity,
        language=script.language,
        vulnerable=script.vulnerable,
        text=text,
    )
    ruled = decide(view, _RULES)
    return ruled.department if ruled.rule else None
