"""A contact's life, from the first ring to a case or a stated reason; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from chassis.ids import case_number, derived_id
from chassis.step import Cancel, Decisions, Event, Ignored, Outcome, Refused, Step, Timer, Waiting
from schemas.case import Case, Customer
from schemas.envelope import Body, Identifier, Moment
from schemas.intake import (
    AttachmentRequested,
    CaseAnswered,
    CaseRecorded,
    ClosingRequested,
    ContactAttached,
    ContactClosed,
    RecordingOverdue,
    RecordingRequested,
    TimerFired,
)
from schemas.telephony import (
    AgentOffered,
    CallAnswered,
    CallbackRequested,
    CallEnded,
    CallEvent,
    CallHeld,
    CallOffered,
    CallPositioned,
    CallQueued,
    CallRefused,
    CallTransferred,
    QueueLeft,
    RecordingPublished,
    SourceInterrupted,
    SurveyAnswered,
    TalkEnded,
    TranscriptPublished,
    WrapupDone,
)

Phase = Literal["offered", "queued", "answered", "ended", "recorded", "closed"]
WRAP_UP = "wrap-up"
SETTLE = "settle"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long agents may take to record, and the case numbers of this batch by command."""

    wrap_up: timedelta = timedelta(minutes=10)
    settle: timedelta = timedelta(seconds=5)
    numbers: Mapping[UUID, int] = field(default_factory=dict)


class Contact(Body):
    """What intake knows of one call."""

    call_id: Identifier
    phase: Phase = "offered"
    first_at: Moment
    queue: str | None = None
    agent: str | None = None
    waited_ms: int | None = None
    left: str | None = None
    ended_at: Moment | None = None
    closed_for: str | None = None
    case_id: UUID | None = None


def _contact(event: Event[CallEvent], state: Contact | None) -> Contact:
    if state is not None:
        return state
    return Contact(call_id=event.body.call_id, first_at=event.body.occurred_at)


def on_offered(event: Event[CallOffered], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """The first ring opens the contact."""
    return Step(_contact(event, state), note="offered")


def on_queued(event: Event[CallQueued], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """A queue makes the contact wait, unless an agent already has it or it is over."""
    contact = _contact(event, state)
    if contact.phase != "offered":
        return Step(
            contact.model_copy(update={"queue": contact.queue or event.body.queue}), note="queued_again"
        )
    return Step(contact.model_copy(update={"phase": "queued", "queue": event.body.queue}), note="queued")


def on_answered(event: Event[CallAnswered], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """From here on somebody owes a record of what the call was about."""
    contact = _contact(event, state)
    if contact.phase in ("recorded", "closed"):
        return Ignored("contact_is_over")
    change: dict[str, Any] = {"queue": event.body.queue, "agent": event.body.agent, "left": None}
    if contact.waited_ms is None:
        change["waited_ms"] = event.body.wait_ms
    if contact.phase == "ended":
        return _owed(contact.model_copy(update=change), policy)
    return Step(contact.model_copy(update={**change, "phase": "answered"}), note="answered")


def on_refused(event: Event[CallRefused], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """The queue did not take the caller; the reason is kept for the closing."""
    return _left(event, state, f"refused_{event.body.reason}", event.body.queue, None)


def on_queue_left(event: Event[QueueLeft], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """The caller left without an agent; the reason is kept for the closing."""
    return _left(event, state, event.body.reason, event.body.queue, event.body.wait_ms)


def _left(
    event: Event[Any], state: Contact | None, reason: str, queue: str, waited_ms: int | None
) -> Outcome:
    contact = _contact(event, state)
    if contact.agent is not None:
        return Ignored("an_agent_had_the_call")
    change = {"left": reason, "queue": queue, "waited_ms": waited_ms}
    return Step(contact.model_copy(update=change), note="left_queue")


def on_call_ended(event: Event[CallEnded], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """An unanswered call is closed with its reason; an answered one waits for its record."""
    contact = _contact(event, state)
    if contact.phase in ("recorded", "closed"):
        return Step(
            contact.model_copy(update={"ended_at": event.body.occurred_at}), note="ended_after_record"
        )
    ended = contact.model_copy(update={"phase": "ended", "ended_at": event.body.occurred_at})
    if ended.agent is not None:
        return _owed(ended, policy)
    if ended.left is not None:
        return _closed(ended, ended.left)
    # Telephony may still deliver why: feeds of one switch overtake each other.
    return Step(ended, timers=(Timer(SETTLE, now + policy.settle),), note="ended_unexplained")


def _owed(contact: Contact, policy: Policy) -> Step:
    due = (contact.ended_at or contact.first_at) + policy.wrap_up
    return Step(contact, timers=(Cancel(SETTLE), Timer(WRAP_UP, due)), note="record_owed")


def _closed(contact: Contact, reason: str) -> Step:
    body = ContactClosed(
        call_id=contact.call_id, reason=reason, queue=contact.queue, waited_ms=contact.waited_ms
    )
    over = contact.model_copy(update={"phase": "closed", "closed_for": reason})
    return Step(over, (body,), (Cancel(SETTLE), Cancel(WRAP_UP)))


def on_informative(event: Event[Body], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """A fact that changes nobody's duty; it stays on the topic for statistics."""
    return Ignored("informative")


def on_recording_requested(
    event: Event[RecordingRequested], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """An agent's record makes the case; with a decision, it is answered on first contact."""
    objection = _objection(state)
    if objection is not None or state is None:
        return objection or Waiting("no_such_call_yet")
    body = event.body
    case_id = derived_id(event.uid, "case")
    case = Case(
        case_id=case_id,
        case_no=case_number(now, policy.numbers[event.uid]),
        call_id=state.call_id,
        queue=state.queue,
        agent=body.agent,
        language=body.language,
        category=body.category,
        product=body.product,
        severity=body.severity,
        vulnerable=body.vulnerable,
        customer=Customer(customer_ref=body.customer_ref, sealed=body.sealed),
        recorded_at=now,
    )
    said: Body = CaseRecorded(case_id=case_id, case=case)
    if body.decision is not None:
        said = CaseAnswered(case_id=case_id, case=case, decision=body.decision)
    over = state.model_copy(update={"phase": "recorded", "case_id": case_id})
    return Step(over, (said,), (Cancel(WRAP_UP),), correlation=str(case_id))


def on_attachment_requested(
    event: Event[AttachmentRequested], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """The call is about a case that is already open."""
    objection = _objection(state)
    if objection is not None or state is None:
        return objection or Waiting("no_such_call_yet")
    body = event.body
    attached = ContactAttached(
        case_id=body.to_case_id, call_id=state.call_id, repeat_no=body.repeat_no, agent=body.agent
    )
    over = state.model_copy(update={"phase": "recorded", "case_id": body.to_case_id})
    return Step(over, (attached,), (Cancel(WRAP_UP),), correlation=str(body.to_case_id))


def on_closing_requested(
    event: Event[ClosingRequested], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """The contact needs no case, and the agent says why."""
    objection = _objection(state)
    if objection is not None or state is None:
        return objection or Waiting("no_such_call_yet")
    return _closed(state, event.body.reason)


def _objection(state: Contact | None) -> Waiting | Refused | None:
    if state is None:
        return Waiting("no_such_call_yet")
    if state.phase == "recorded":
        return Refused("already_recorded", f"call {state.call_id} has case {state.case_id}", "recorded")
    if state.phase == "closed":
        return Refused("contact_closed", f"call {state.call_id} was closed: {state.closed_for}", "closed")
    if state.agent is None:
        return Waiting("not_answered_yet")
    return None


def on_timer(event: Event[TimerFired], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """Time is up for an explanation, or for the agent's record."""
    if state is None or state.phase != "ended":
        return Ignored("no_longer_needed")
    if event.body.timer == SETTLE and state.agent is None:
        return _closed(state, state.left or "unanswered")
    if event.body.timer == WRAP_UP:
        overdue = RecordingOverdue(
            call_id=state.call_id, agent=state.agent, ended_at=state.ended_at or state.first_at
        )
        return Step(state, (overdue,))
    return Ignored("no_longer_needed")


DECISIONS: Decisions = {
    CallOffered: on_offered,
    CallQueued: on_queued,
    CallAnswered: on_answered,
    CallRefused: on_refused,
    QueueLeft: on_queue_left,
    CallEnded: on_call_ended,
    CallPositioned: on_informative,
    AgentOffered: on_informative,
    CallHeld: on_informative,
    CallTransferred: on_informative,
    TalkEnded: on_informative,
    WrapupDone: on_informative,
    CallbackRequested: on_informative,
    SurveyAnswered: on_informative,
    RecordingPublished: on_informative,
    TranscriptPublished: on_informative,
    SourceInterrupted: on_informative,
    RecordingRequested: on_recording_requested,
    AttachmentRequested: on_attachment_requested,
    ClosingRequested: on_closing_requested,
    TimerFired: on_timer,
}
