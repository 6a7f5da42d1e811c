"""From a batch of inputs to a plan: the stage's decisions, case by case, in order; no IO."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from chassis.faults import Bug
from chassis.ids import derived_id
from chassis.inbox import digest_of
from chassis.message import Poison, Writer, time_header
from chassis.plan import Entity, Parked, Plan, Quarantined
from chassis.stage import Stage
from chassis.step import Cancel, Event, Ignored, Outcome, Refused, Step, Waiting
from chassis.transport import Outgoing, Record
from chassis.vault import SealRecord
from schemas.envelope import BY_BODY, Body
from schemas.operations import LetterDied, Receipts, ReceiptsGiven

Ended: TypeAlias = Literal["ignored", "waiting"]
PARKED = "parked."
"""A timer of this name ends the waiting of one input: `parked.<event id>`."""


class Input(NamedTuple):
    """A readable record that was not handled before."""

    record: Record
    event: Event[Any]


class Fold:
    """Folds one batch; `plan` is what came of it."""

    def __init__(self, stage: Stage, writer: Writer, plan: Plan, seal: SealRecord) -> None:
        self._stage, self._writer, self.plan, self._seal = stage, writer, plan, seal
        self._policy = stage.policy
        self._at = time_header(plan.now)
        self._receipts: dict[tuple[Ended, str], list[str]] = {}
        self._waiting: dict[str, list[Parked]] = {}
        self._events_of: dict[UUID, Event[Any]] = {}

    @property
    def waiting_events(self) -> list[Event[Any]]:
        """The inputs of earlier batches that may be decided in this one."""
        return list(self._events_of.values())

    def expect(self, parked: Sequence[Parked], events: dict[UUID, Event[Any]]) -> None:
        """Hand over the inputs that wait for cases of this batch."""
        for waiting in parked:
            self._waiting.setdefault(waiting.key, []).append(waiting)
        self._events_of.update(events)

    def decide_all(self, inputs: Sequence[Input], policy: Any) -> None:
        """Decide every input in order; raises Bug when a decision raises."""
        self._policy = policy
        for item in inputs:
            self._decide(item.event, item.record)

    def quarantine(self, record: Record, poison: Poison, event: Event[Any] | None = None) -> None:
        """Keep a record that cannot be handled, and say so on the group's dead-letter topic."""
        root = event.uid if event else UUID(int=0)
        place = f"{record.topic}/{record.partition}/{record.offset}"
        letter_id = derived_id(_stamp(root, record), place)
        letter = Quarantined(letter_id, record, poison.reason, poison.explanation, self._seal(record))
        self.plan.quarantined.append(letter)
        body = LetterDied(
            group=self._stage.name,
            event_key=poison.event_key,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=poison.reason,
            explanation=poison.explanation[:2000],
            quarantine_id=letter_id,
            first_seen=self.plan.now,
        )
        self._say(
            body,
            derived_id(letter_id, "dead"),
            poison.event_key or place,
            cause=event.name if event else place,
        )

    def finish(self) -> None:
        """Write the receipts of the whole batch as one message."""
        if not self._receipts:
            return
        given = tuple(
            Receipts(outcome=outcome, reason=reason, event_ids=tuple(names))
            for (outcome, reason), names in self._receipts.items()
        )
        body = ReceiptsGiven(group=self._stage.name, receipts=given)
        self._say(body, derived_id(UUID(int=self.plan.batch << 64), "receipts"), None)

    def _decide(self, event: Event[Any], record: Record) -> None:
        entity = self.plan.entities.get(event.key)
        if entity is None:
            entity = self.plan.entities[event.key] = Entity(event.key)
        outcome = self._outcome(event, entity, record)
        match outcome:
            case Step():
                self._step(event, entity, outcome)
                self._seen(event, record, "caused" if outcome.events else "noted")
                if event.key in self._waiting:
                    self._fold_waiting(event.key, record)
            case Ignored(reason):
                self._receipt(event, "ignored", reason)
                self._seen(event, record, f"ignored:{reason}")
            case Refused():
                self._refuse(event, record, outcome)
            case Waiting(reason):
                self._park(event, record, reason)

    def _outcome(self, event: Event[Any], entity: Entity, record: Record) -> Outcome:
        body = event.body
        if type(body) is self._stage.timer_fired:
            fired: Any = body
            name, due = fired.timer, fired.due_at
            if name.startswith(PARKED):
                return self._give_up(event, name.removeprefix(PARKED))
            if entity.timers.get(name) == due:
                # It has fired: whatever is decided, it must not fire again.
                del entity.timers[name]
                entity.changed = True
                entity.version += 1
        decide = self._stage.decisions[type(body)]
        try:
            return decide(event, entity.state, self.plan.now, self._policy)
        except Exception as error:
            raise Bug(record.topic, record.partition, record.offset, error) from error

    def _step(self, event: Event[Any], entity: Entity, step: Step) -> None:
        correlation = step.correlation or event.correlation
        total = len(step.events)
        for ordinal, body in enumerate(step.events, 1):
            entity.sequence += 1
            uid = derived_id(event.uid, BY_BODY[type(body)].wire, ordinal)
            message = self._writer.write(
                body,
                uid=uid,
                at=self._at,
                correlation=correlation,
                cause=event.name,
                sequence=entity.sequence,
                numbered_for=entity.key,
                part=(ordinal, total),
                traceparent=event.traceparent,
            )
            self.plan.say(message, correlation)
        entity.state, entity.changed = step.state, True
        entity.version += 1
        for timer in step.timers:
            if isinstance(timer, Cancel):
                entity.timers.pop(timer.name, None)
            else:
                entity.timers[timer.name] = timer.due_at
        for ordinal, task in enumerate(step.tasks):
            uid = derived_id(event.uid, f"task.{task.name}", ordinal)
            self.plan.tasks.append((uid, entity.key, task))
        if not step.events:
            self._receipt(event, "ignored", step.note)

    def _refuse(self, event: Event[Any], record: Record, refused: Refused) -> None:
        if not self._stage.is_command(event.kind):
            reason = Poison(refused.code, refused.explanation, event.key)
            self.quarantine(record, reason, event)
            self._seen(event, record, f"dead:{refused.code}")
            return
        self._verdict(event, refused)
        self._seen(event, record, f"refused:{refused.code}")

    def _verdict(self, event: Event[Any], refused: Refused) -> None:
        body = self._stage.command_refused.model_validate(
            {
                "subject": event.key,
                "code": refused.code,
                "explanation": refused.explanation,
                "current_state": refused.current_state,
            }
        )
        self._say(body, derived_id(event.uid, "refused"), event.correlation, cause=event.name)

    def _park(self, event: Event[Any], record: Record, reason: str) -> None:
        parked = Parked(event.uid, event.key, record, self.plan.now + self._stage.wait_at_most)
        self.plan.parked[parked.uid] = parked
        self._waiting.setdefault(event.key, []).append(parked)
        self._events_of[event.uid] = event
        self._receipt(event, "waiting", reason)
        self._seen(event, record, f"waiting:{reason}")

    def _fold_waiting(self, key: str, woke: Record) -> None:
        """Decide what has waited for a case; where that raises, the record that woke it blocks."""
        for parked in self._waiting.pop(key, []):
            event = self._events_of[parked.uid]
            entity = self.plan.entities[key]
            outcome = self._outcome(event, entity, woke)
            if isinstance(outcome, Waiting):
                self._waiting.setdefault(key, []).append(parked)
                continue
            self._unpark(parked)
            match outcome:
                case Step():
                    self._step(event, entity, outcome)
                case Ignored(reason):
                    self._receipt(event, "ignored", reason)
                case Refused():
                    self._verdict(event, outcome)

    def _unpark(self, parked: Parked) -> None:
        if self.plan.parked.pop(parked.uid, None) is None:
            self.plan.unparked.append(parked.uid)

    def _give_up(self, event: Event[Any], uid_text: str) -> Outcome:
        for parked in self._waiting.get(event.key, []):
            if str(parked.uid) == uid_text:
                self._waiting[event.key].remove(parked)
                self._unpark(parked)
                self._verdict(
                    self._events_of[parked.uid],
                    Refused("unknown_case", f"no case {event.key} came within the waiting time"),
                )
                return Ignored("gave_up_waiting")
        return Ignored("no_longer_waiting")

    def _receipt(self, event: Event[Any], outcome: Ended, reason: str) -> None:
        self._receipts.setdefault((outcome, reason), []).append(event.name)

    def _seen(self, event: Event[Any], record: Record, outcome: str) -> None:
        self.plan.inbox.append((event.uid, digest_of(record.value), outcome))

    def _say(self, body: Body, uid: UUID, correlation: str | None, cause: str | None = None) -> None:
        message: Outgoing = self._writer.write(
            body, uid=uid, at=self._at, correlation=correlation or "-", cause=cause
        )
        self.plan.say(message, correlation)


def _stamp(uid: UUID, record: Record) -> UUID:
    """Give letters a time prefix: the event's own, else the record's append time."""
    return uid if uid.int else UUID(int=max(record.timestamp, 0) << 80)
