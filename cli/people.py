"""Simulated agents, departments and customers: they read and answer topics like real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID

from chassis.batch import next_offsets
from chassis.clock import utc_now
from chassis.faults import insist
from chassis.ids import derived_id
from chassis.kafka import KafkaPublisher, Subscription
from chassis.message import Writer, read, time_header
from chassis.step import Event
from chassis.transport import Handler, Outgoing, Reader, Record
from chassis.vault import Vault
from cli.texts import Script, scripts
from cli.world import Place
from schemas import feedback, intake, resolver, telephony
from schemas.case import Decision, Personal
from schemas.envelope import BY_BODY, Body
from schemas.topics import DEPARTMENTS

OTHER_DEPARTMENT = {"branches": "payments"}


def _types(*bodies: type[Body]) -> dict[str, Any]:
    return {BY_BODY[body].wire: BY_BODY[body] for body in bodies}


class People:
    """Everybody outside the four stages, in one process; each group reads its own topics."""

    def __init__(self, place: Place, vault: Vault, publisher: KafkaPublisher | None = None) -> None:
        self._place, self._vault = place, vault
        self._publisher = publisher or KafkaPublisher(place.kafka, "hotline-people")
        self._writer = Writer("people")
        self._next = count()
        self._by_summary = {script.summary: script for script in scripts()}
        self._case_scripts: dict[UUID, Script] = {}
        self._call_scripts: dict[str, Script] = {}
        subscriptions = [
            ("agents", ("telephony.calls", "intake.cases"), self._on_calls),
            ("customers", ("intake.cases", "feedback.cases"), self._on_customer_events),
            *((f"department.{code}", (f"departments.{code}",), self._on_assignments) for code in DEPARTMENTS),
        ]
        self._subscriptions = [
            Subscription(place.kafka, group, topics, _insistent(handler))
            for group, topics, handler in subscriptions
        ]

    async def start(self) -> None:
        """Begin to read and answer."""
        await self._publisher.start()
        await asyncio.gather(*(subscription.start() for subscription in self._subscriptions))

    async def stop(self) -> None:
        """Hang up."""
        await asyncio.gather(*(subscription.stop() for subscription in self._subscriptions))
        await self._publisher.stop()

    # ------------------------------------------------------------ agents

    async def _on_calls(self, records: Sequence[Record], reader: Reader) -> None:
        handled = _types(telephony.CallAnswered)
        answered = [event for record in records if isinstance(event := read(record, handled), Event)]
        chosen = [(event, self._script_for(event.body.call_id)) for event in answered]
        refs = [self._vault.customer_ref(script.number) for _, script in chosen]
        await self._vault.ready(refs, create=True)
        await self._say([self._recording(event, script) for event, script in chosen])
        owed = _types(intake.CallbackScheduled)
        promised = [event for record in records if isinstance(event := read(record, owed), Event)]
        await self._say([self._called_back(event) for event in promised])
        await _commit(records, reader)

    def _called_back(self, event: Event[Any]) -> Outgoing:
        reached = intake.CallbackAttemptReported(
            call_id=event.body.call_id, agent="agent-callback", outcome="answered"
        )
        return self._command(reached, event)

    def _script_for(self, call_id: str) -> Script:
        """Scripts in turn; the same call tells the same story however often it is read."""
        if call_id not in self._call_scripts:
            self._call_scripts[call_id] = scripts()[next(self._next) % len(scripts())]
        return self._call_scripts[call_id]

    def _recording(self, event: Event[Any], script: Script) -> Outgoing:
        ref = self._vault.customer_ref(script.number)
        personal = Personal(
            name=script.name, phone=script.phone, summary=script.summary, demand=script.demand
        )
        decision = None
        if script.plot == "first_contact":
            decision = self._decision(ref, script, "answered")
        body = intake.RecordingRequested.model_validate(
            {
                "call_id": event.body.call_id,
                "agent": event.body.agent,
                "language": script.language,
                "category": script.category,
                "product": script.product,
                "severity": script.severity,
                "vulnerable": script.vulnerable,
                "customer_ref": ref,
                "sealed": self._vault.seal(ref, personal.model_dump_json()),
                "decision": decision,
            }
        )
        return self._command(body, event)

    def _decision(self, ref: str, script: Script, outcome: str) -> Decision:
        return Decision.model_validate(
            {
                "outcome": outcome,
                "text": self._vault.seal(ref, script.resolution),
                "root_cause": script.root_cause,
            }
        )

    # ------------------------------------------------------------ departments

    async def _on_assignments(self, records: Sequence[Record], reader: Reader) -> None:
        handled = _types(resolver.CaseAssigned)
        events = [event for record in records if isinstance(event := read(record, handled), Event)]
        await self._vault.ready([event.body.case.customer.customer_ref for event in events])
        answers = [answer for event in events for answer in self._answers(event)]
        await self._say(answers)
        await _commit(records, reader)

    def _answers(self, event: Event[Any]) -> list[Outgoing]:
        body: resolver.CaseAssigned = event.body
        ref = body.case.customer.customer_ref
        script = self._script_of(body.case.case_id, ref, body.case.customer.sealed)
        holder = {
            "case_id": body.case_id,
            "assignment_id": body.assignment_id,
            "department": body.department,
            "clerk": f"clerk-{body.department}",
        }
        if script.plot == "return_once" and body.attempt_no == 1:
            other = script.department
            if other == body.department:
                other = OTHER_DEPARTMENT.get(other, "branches")
            back = resolver.ReturnRequested(**holder, reason="not_ours", proposed_department=other)
            return [self._command(back, event)]
        decision = self._decision(ref, script, script.outcome)
        return [
            self._command(resolver.AcceptanceRequested(**holder), event),
            self._command(resolver.ResolutionRequested(**holder, decision=decision), event),
        ]

    def _script_of(self, case_id: UUID, ref: str, sealed: str) -> Script:
        known = self._case_scripts.get(case_id)
        if known is None:
            summary = json.loads(self._vault.open(ref, sealed))["summary"]
            known = self._case_scripts[case_id] = self._by_summary[summary]
        return known

    # ------------------------------------------------------------ customers

    async def _on_customer_events(self, records: Sequence[Record], reader: Reader) -> None:
        handled = _types(intake.CaseRecorded, intake.CaseAnswered, feedback.CustomerTold)
        events = [event for record in records if isinstance(event := read(record, handled), Event)]
        recorded = [event for event in events if not isinstance(event.body, feedback.CustomerTold)]
        await self._vault.ready([event.body.case.customer.customer_ref for event in recorded])
        said: list[Outgoing] = []
        for event in recorded:
            case = event.body.case
            script = self._script_of(case.case_id, case.customer.customer_ref, case.customer.sealed)
            if script.plot == "withdraw" and isinstance(event.body, intake.CaseRecorded):
                said.append(self._withdrawal(event, script))
        for event in events:
            if isinstance(event.body, feedback.CustomerTold):
                said += self._rating(event)
        await self._say(said)
        await _commit(records, reader)

    def _withdrawal(self, event: Event[Any], script: Script) -> Outgoing:
        case = event.body.case
        decision = self._decision(case.customer.customer_ref, script, "withdrawn")
        body = resolver.WithdrawalRequested(case_id=case.case_id, channel="phone", decision=decision)
        return self._command(body, event)

    def _rating(self, event: Event[Any]) -> list[Outgoing]:
        script = self._case_scripts.get(event.body.case_id)
        if script is None or script.plot == "silent":
            return []
        rating = script.rating
        body = feedback.RatingRequested.model_validate(
            {
                "case_id": event.body.case_id,
                "cycle": event.body.cycle,
                "solved": rating.solved or event.body.cycle > 1,
                "attitude": rating.attitude,
                "speed": rating.speed,
            }
        )
        return [self._command(body, event)]

    # ------------------------------------------------------------ sending

    def _command(self, body: Body, event: Event[Any]) -> Outgoing:
        """A command whose id follows from what it answers, so that reading twice asks once."""
        key = str(getattr(body, BY_BODY[type(body)].key))
        return self._writer.write(
            body,
            uid=derived_id(event.uid, BY_BODY[type(body)].wire),
            at=time_header(utc_now()),
            correlation=key,
            cause=event.name,
        )

    async def _say(self, messages: Sequence[Outgoing]) -> None:
        if messages:
            await self._publisher.publish(messages)


def _insistent(handler: Handler) -> Handler:
    """Real departments try again when something is away; what they say has the same ids then."""

    async def handle(records: Sequence[Record], reader: Reader) -> None:
        await insist(partial(handler, records, reader))

    return handle


async def _commit(records: Sequence[Record], reader: Reader) -> None:
    await reader.commit(next_offsets(records))
