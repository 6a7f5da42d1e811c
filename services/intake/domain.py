"""A contact's life, from the first ring to a case or a stated reason; pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from chassis.ids import case_number, derived_id
from chassis.step import Cancel, Decider, Decisions, Event, Ignored, Outcome, Refused, Step, Timer, Waiting
from schemas import handoffs
from schemas.case import Case, Customer
from schemas.envelope import Body
from schemas.intake import (
    AttachmentRequested,
    CallbackAttempted,
    CallbackAttemptReported,
    CallbackCancellationRequested,
    CallbackCancelled,
    CallbackExhausted,
    CallbackOverdue,
    CallbackScheduled,
    CaseAnswered,
    CaseEscalated,
    CaseRecorded,
    ClosingRequested,
    ContactAttached,
    ContactClosed,
    ContactContinued,
    RecordingOverdue,
    RecordingRequested,
    RepeatNoticed,
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
    PositionTold,
    QueueLeft,
    ReasonCaptured,
    RecordingPublished,
    SourceInterrupted,
    SurveyAnswered,
    TalkEnded,
    TranscriptPublished,
    WrapupDone,
)
from services.intake import contact as facts
from services.intake.contact import Callback, Contact

WRAP_UP = "wrap-up"
SETTLE = "settle"
LOST_TRACK = "lost-track"
CALLBACK = "callback"
_LATEST_CALLBACK = handoffs.CALL_BACK - timedelta(hours=1)
"""The ledger must have heard of a callback by then: made, or overdue."""
_SEALED = re.compile(r"[A-Za-z0-9_-]{32,}={0,2}")
_MUST_BE_SEALED = {"caller": "unsealed_number", "number": "unsealed_number", "text": "unsealed_text"}
_NOTHING_OWED = (Cancel(SETTLE), Cancel(WRAP_UP), Cancel(LOST_TRACK))


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows of a caller: contacts of the last days, open cases, callbacks still owed."""

    contacts: int = 0
    open_cases: tuple[UUID, ...] = ()
    callbacks: tuple[str, ...] = ()

    def plus(self, more: "Known") -> "Known":
        """Add what came after, or under another reference."""
        cases = tuple(dict.fromkeys(self.open_cases + more.open_cases))
        return Known(self.contacts + more.contacts, cases, self.callbacks + more.callbacks)


def _always_open(_queue: str, at: datetime) -> datetime:
    return at


@dataclass(frozen=True, slots=True)
class Policy:
    """The manager's times and caps, and what this batch needs from the store.

    `opens` gives the first moment at or after another at which a queue's agents answer, None if none comes.
    `numbers`: case numbers by command; `known`: callers by customer reference; `rung_before`: what this
    batch adds to that before a ring; `contacts_of`: how many contacts a case has had, by case;
    `attached_before`: how many more this batch adds before a command.
    """

    wrap_up: timedelta = timedelta(minutes=10)
    settle: timedelta = timedelta(seconds=5)
    longest_call: timedelta = timedelta(hours=4)
    callback_after: timedelta = timedelta(minutes=10)
    callback_within: timedelta = timedelta(days=2)
    callback_grace: timedelta = timedelta(minutes=30)
    callback_spacing: timedelta = timedelta(minutes=30)
    callback_attempts: int = 3
    opens: Callable[[str, datetime], datetime | None] = _always_open
    repeat_within: timedelta = timedelta(days=7)
    repeat_escalates_at: int = 3
    numbers: Mapping[UUID, int] = field(default_factory=dict)
    known: Mapping[str, Known] = field(default_factory=dict)
    rung_before: Mapping[UUID, Known] = field(default_factory=dict)
    contacts_of: Mapping[UUID, int] = field(default_factory=dict)
    attached_before: Mapping[UUID, int] = field(default_factory=dict)


# ---------------------------------------------------------------- facts of telephony


def _on(merge: Callable[[Contact, Any], Contact], note: str) -> Decider:
    """Make the decision on a fact that only adds to what is known: merge it, then see what is due."""

    def decide(event: Event[Any], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
        unsealed = _unsealed(event.body)
        if unsealed is not None:
            return unsealed
        contact = merge(facts.seen(state, event.body), event.body)
        return _weigh(state, contact, now, policy, note)

    return decide


def on_offered(event: Event[CallOffered], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """The first ring opens the contact; who has called before is noticed, and need not be called back."""
    body = event.body
    unsealed = _unsealed(body)
    if unsealed is not None:
        return unsealed
    first = state is None or state.customer_ref is None
    contact = facts.offered(facts.seen(state, body), body)
    said: list[Body] = []
    if first and body.customer_ref is not None:
        known = policy.known.get(body.customer_ref, Known())
        known = known.plus(policy.rung_before.get(event.uid, Known()))
        if known.contacts or known.open_cases:
            contact = contact.model_copy(update={"repeat": known.contacts + 1})
            said.append(_repeat(contact, known, policy))
        said += [
            CallbackCancellationRequested(call_id=owed, reason="customer_called", by_call_id=contact.call_id)
            for owed in known.callbacks
            if owed not in (contact.call_id, contact.callback_of)
        ]
    return _weigh(state, contact, now, policy, "offered", said)


def _unsealed(body: CallEvent) -> Refused | None:
    """Tell a number or words in clear by their shape; such a fact goes no further."""
    for name in _to_be_sealed(type(body)):
        value = getattr(body, name)
        if value is not None and not _SEALED.fullmatch(value):
            return Refused(_MUST_BE_SEALED[name], f"{name}: is not sealed; send it through the HTTP door")
    return None


@cache
def _to_be_sealed(kind: type[CallEvent]) -> tuple[str, ...]:
    """Name the fields of such a fact that must be sealed; most have none."""
    return tuple(name for name in _MUST_BE_SEALED if name in kind.model_fields)


def _repeat(contact: Contact, known: Known, policy: Policy) -> RepeatNoticed:
    return RepeatNoticed(
        call_id=contact.call_id,
        customer_ref=contact.customer_ref or "",
        contacts=contact.repeat,
        within_days=policy.repeat_within.days,
        open_cases=known.open_cases,
    )


def on_positioned(
    event: Event[CallPositioned], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """Where the switch says that the caller stands; what is inferred from others, readers infer themselves.

    There is one for everybody in line whenever somebody leaves: they are not worth a write each.
    """
    if event.body.inferred:
        return Ignored("informative")
    return _positioned(event, state, now, policy)


def on_transferred(
    event: Event[CallTransferred], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """A hand-over to a leg with an end of its own is worth noting; any other changes nobody's duty."""
    if event.body.leg_id in (None, event.body.call_id):
        return Ignored("informative")
    return _transferred(event, state, now, policy)


def on_informative(event: Event[Body], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """A fact that changes nobody's duty; it stays on the topic for statistics."""
    return Ignored("informative")


def _weigh(
    before: Contact | None,
    contact: Contact,
    now: datetime,
    policy: Policy,
    note: str,
    said: Sequence[Body] = (),
) -> Outcome:
    """See what is due now, from what is known and not from what came last: the order cannot matter."""
    contact = facts.with_its_end(contact)
    events = [*said, *_promise_kept(before, contact), *_goes_on(before, contact)]
    timers: list[Timer | Cancel] = []
    resumed = before is not None and before.ended_at is not None and contact.ended_at is None
    if before is None:
        timers.append(Timer(LOST_TRACK, now + policy.longest_call))
    if contact.callback is not None:
        contact = _weigh_callback(contact, contact.callback, now, policy, events, timers)
    if contact.over:
        if contact.settled or (contact.agent is None and not resumed):
            return Step(contact, tuple(events), tuple(timers), note=note)
        # It was closed as unanswered, and has been answered, or goes on: its record is owed after all.
        contact = contact.model_copy(update={"closed_for": None})
        timers.append(Timer(LOST_TRACK, now + policy.longest_call))
    elif resumed:
        timers += [Cancel(SETTLE), Cancel(WRAP_UP), Timer(LOST_TRACK, now + policy.longest_call)]
    contact = _in_phase(contact)
    if contact.ended_at is None:
        return Step(contact, tuple(events), tuple(timers), note=note)
    return _after_the_end(before, contact, policy, now, events, timers)


def _promise_kept(before: Contact | None, contact: Contact) -> list[Body]:
    """If it is we who call, and the customer talks with an agent, somebody has called back."""
    asked_by = contact.callback_of
    if asked_by is None:
        return []
    agent = contact.agent
    if agent is None or (before and before.callback_of and before.agent):
        return []
    by = contact.call_id
    return [CallbackAttemptReported(call_id=asked_by, agent=agent, outcome="answered", by_call_id=by)]


def _goes_on(before: Contact | None, contact: Contact) -> list[Body]:
    """If a leg has ended and the call has not, no record is owed yet, and whoever waits for one hears so."""
    if not contact.legs or contact.ended_at is not None or contact.settled:
        return []
    at = facts.last_leg_end(contact)
    if at is None:
        return []
    if before is not None and before.ended_at is None and facts.last_leg_end(before) == at:
        return []
    return [ContactContinued(call_id=contact.call_id, ended_at=at)]


def _in_phase(contact: Contact) -> Contact:
    if contact.ended_at is not None:
        waits = contact.callback is not None and contact.callback.pending and contact.agent is None
        phase = "callback" if waits else "ended"
    elif contact.agent is not None:
        phase = "answered"
    else:
        phase = "queued" if contact.visits else "offered"
    return contact if phase == contact.phase else contact.model_copy(update={"phase": phase})


def _after_the_end(
    before: Contact | None,
    contact: Contact,
    policy: Policy,
    now: datetime,
    events: list[Body],
    timers: list[Timer | Cancel],
) -> Step:
    """An answered call owes its record, a promised one its callback; any other closes soon."""
    ended_at = contact.ended_at or contact.first_at
    ended_now = before is None or before.ended_at != ended_at
    timers.append(Cancel(LOST_TRACK))
    if contact.agent is not None:
        if (ended_now or before is None or before.agent is None) and not contact.overdue:
            timers += [Cancel(SETTLE), Timer(WRAP_UP, ended_at + policy.wrap_up)]
        return Step(contact, tuple(events), tuple(timers), note="record_owed")
    if contact.phase == "callback":
        return Step(contact, tuple(events), (*timers, Cancel(SETTLE)), note="callback_owed")
    if ended_now:
        # Telephony may still deliver why, or that an agent answered: feeds of one switch overtake each
        # other. But not beyond the deadline of the end itself: the ledger takes a timer that is set behind
        # it for lost.
        timers.append(Timer(SETTLE, min(now + policy.settle, ended_at + handoffs.WRAP_UP)))
    return Step(contact, tuple(events), tuple(timers), note="ended_unanswered")


def _closed(
    contact: Contact,
    reason: str,
    events: Sequence[Body] = (),
    timers: Sequence[Timer | Cancel] = (),
    referred_to: str | None = None,
) -> Step:
    body = ContactClosed(
        call_id=contact.call_id,
        reason=reason,
        queue=contact.queue,
        waited_ms=contact.waited_ms,
        referred_to=referred_to,
    )
    over = contact.model_copy(update={"phase": "closed", "closed_for": reason})
    return Step(over, (*events, body), (*timers, *_NOTHING_OWED))


# ---------------------------------------------------------------- callbacks


def promised_for(wish: datetime | None, queue: str, now: datetime, policy: Policy) -> datetime:
    """Tell when to call back: as wished, in two days at most, and not before the queue's agents are there.

    Without a wish it is soon. Applied to what it gave before, it gives the same.
    """
    wished = now + policy.callback_after if wish is None else wish
    due = min(max(wished, now), now + policy.callback_within)
    opens = policy.opens(queue, due) or due
    return min(opens.astimezone(UTC), now + _LATEST_CALLBACK)


def _weigh_callback(
    contact: Contact,
    callback: Callback,
    now: datetime,
    policy: Policy,
    events: list[Body],
    timers: list[Timer | Cancel],
) -> Contact:
    """Schedule a wish; whoever got an agent after it need not be called back."""
    if not callback.pending and callback.state != "wished":
        return contact
    if _answered_since(contact, callback):
        timers.append(Cancel(CALLBACK))
        if callback.pending:
            by = contact.call_id
            events.append(CallbackCancelled(call_id=by, reason="customer_called", by_call_id=by))
        return _with_callback(contact, callback, {"state": "cancelled"})
    if callback.state != "wished":
        return contact
    due = promised_for(callback.wished_at, callback.queue, now, policy)
    timers.append(Timer(CALLBACK, due + policy.callback_grace))
    events.append(
        CallbackScheduled(
            call_id=contact.call_id,
            queue=callback.queue,
            customer_ref=callback.customer_ref if callback.number else contact.customer_ref,
            number=callback.number or contact.caller,
            due_at=due,
            waiting_since=callback.waiting_since,
        )
    )
    return _with_callback(contact, callback, {"state": "open", "due_at": due})


def _answered_since(contact: Contact, callback: Callback) -> bool:
    visit = contact.answered
    return (
        visit is not None
        and visit.answered_at is not None
        and callback.asked_at is not None
        and visit.answered_at > callback.asked_at
    )


def _with_callback(contact: Contact, callback: Callback, change: dict[str, Any]) -> Contact:
    return contact.model_copy(update={"callback": callback.model_copy(update=change)})


def on_attempt_reported(
    event: Event[CallbackAttemptReported], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """Somebody called back: reached, to be tried again later, or tried often enough."""
    found = _promised(state)
    if not isinstance(found, tuple):
        return found
    contact, callback = found
    body = event.body
    number = callback.attempts + 1
    reached, last = body.outcome == "answered", number >= policy.callback_attempts
    again = None
    if not reached and not last:
        again = promised_for(now + policy.callback_spacing, callback.queue, now, policy)
    attempted = CallbackAttempted(
        call_id=contact.call_id,
        attempt=number,
        outcome=body.outcome,
        by_call_id=body.by_call_id,
        next_at=again,
    )
    change: dict[str, Any] = {"attempts": number}
    if again is not None:
        change |= {"state": "open", "due_at": again}
        tried = _with_callback(contact, callback, change)
        return Step(tried, (attempted,), (Timer(CALLBACK, again + policy.callback_grace),))
    change["state"] = "answered" if reached else "exhausted"
    done = _with_callback(contact, callback, change)
    if reached:
        return _without_callback(done, "called_back", [attempted])
    exhausted = CallbackExhausted(call_id=contact.call_id, attempts=number)
    return _without_callback(done, "callback_exhausted", [attempted, exhausted])


def on_callback_cancellation(
    event: Event[CallbackCancellationRequested], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """The customer came first, or no longer wants to be called."""
    found = _promised(state)
    if not isinstance(found, tuple):
        return found
    contact, callback = found
    body = CallbackCancelled(
        call_id=contact.call_id, reason=event.body.reason, by_call_id=event.body.by_call_id
    )
    done = _with_callback(contact, callback, {"state": "cancelled"})
    return _without_callback(done, "callback_cancelled", [body])


def _promised(state: Contact | None) -> tuple[Contact, Callback] | Waiting | Refused:
    """Give the call and its callback that is still owed, or why there is none."""
    if state is None:
        return Waiting("no_such_call_yet")
    if state.callback is None:
        return Refused("no_callback", f"call {state.call_id} asked for no callback", state.phase)
    if not state.callback.pending:
        over = f"the callback of call {state.call_id} is {state.callback.state}"
        return Refused("callback_over", over, "over")
    return state, state.callback


def _without_callback(contact: Contact, reason: str, events: list[Body]) -> Step:
    """End what the callback kept open; a contact that has its own end keeps that."""
    if contact.over or contact.agent is not None:
        return Step(contact, tuple(events), (Cancel(CALLBACK),))
    return _closed(contact, reason, events, [Cancel(CALLBACK)])


# ---------------------------------------------------------------- what agents ask


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
        completeness=body.completeness,
        follows=body.follows,
    )
    said: Body = CaseRecorded(case_id=case_id, case=case)
    if body.decision is not None:
        said = CaseAnswered(case_id=case_id, case=case, decision=body.decision)
    return _recorded(state, case_id, (said,))


def on_attachment_requested(
    event: Event[AttachmentRequested], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """The call is about a case that is already open; who calls too often is heard by somebody senior."""
    objection = _objection(state)
    if objection is not None or state is None:
        return objection or Waiting("no_such_call_yet")
    body = event.body
    contacts = policy.contacts_of.get(body.to_case_id, 0)
    if not contacts:
        return Refused("unknown_case", f"no call has ever recorded case {body.to_case_id}", state.phase)
    contacts += policy.attached_before.get(event.uid, 0)
    attached = ContactAttached(
        case_id=body.to_case_id,
        call_id=state.call_id,
        repeat_no=contacts + 1,
        agent=body.agent,
        customer_ref=body.customer_ref,
        text=body.text,
    )
    said: tuple[Body, ...] = (attached,)
    if attached.repeat_no >= policy.repeat_escalates_at:
        escalated = CaseEscalated(
            case_id=body.to_case_id,
            call_id=state.call_id,
            cause="repeat_calls",
            repeat_no=attached.repeat_no,
        )
        said = (attached, escalated)
    return _recorded(state, body.to_case_id, said)


def _recorded(contact: Contact, case_id: UUID, said: tuple[Body, ...]) -> Step:
    over = contact.model_copy(update={"phase": "recorded", "case_id": case_id, "closed_for": None})
    return Step(over, said, _NOTHING_OWED, correlation=str(case_id))


def on_closing_requested(
    event: Event[ClosingRequested], state: Contact | None, now: datetime, policy: Policy
) -> Outcome:
    """The contact needs no case, and the agent says why."""
    objection = _objection(state)
    if objection is not None or state is None:
        return objection or Waiting("no_such_call_yet")
    return _closed(state, event.body.reason, referred_to=event.body.referred_to)


def _objection(state: Contact | None) -> Waiting | Refused | None:
    """Say why an agent's word cannot be taken; that there is one tells that somebody has answered."""
    if state is None:
        return Waiting("no_such_call_yet")
    if state.phase == "recorded":
        return Refused("already_recorded", f"call {state.call_id} has case {state.case_id}", "recorded")
    if state.settled:
        return Refused("contact_closed", f"call {state.call_id} was closed: {state.closed_for}", "closed")
    return None


# ---------------------------------------------------------------- time


def on_timer(event: Event[TimerFired], state: Contact | None, now: datetime, policy: Policy) -> Outcome:
    """Time is up: for an explanation, for the record, for a callback, or for a call without an end."""
    if state is None:
        return Ignored("no_longer_needed")
    match event.body.timer:
        case "callback":
            return _callback_overdue(state, event.body.due_at)
        case "settle" if not state.over and state.ended_at is not None and state.agent is None:
            return _closed(state, _reason_at_last(state))
        case "wrap-up" if not state.over and state.ended_at is not None:
            return _record_overdue(state)
        case "lost-track" if not state.over and state.ended_at is None:
            return _record_overdue(state) if state.agent is not None else _closed(state, "end_unknown")
    return Ignored("no_longer_needed")


def _reason_at_last(contact: Contact) -> str:
    """What stands in for an explanation that never came: a stay that never ended has no more to say."""
    if contact.left is not None:
        return contact.left
    return "unanswered"


def _record_overdue(contact: Contact) -> Outcome:
    if contact.overdue:
        return Ignored("said_before")
    body = RecordingOverdue(
        call_id=contact.call_id, agent=contact.agent, ended_at=contact.ended_at or contact.first_at
    )
    return Step(contact.model_copy(update={"overdue": True}), (body,))


def _callback_overdue(contact: Contact, fired_for: datetime) -> Outcome:
    callback = contact.callback
    if callback is None or callback.state != "open" or callback.due_at is None:
        return Ignored("no_longer_needed")
    if fired_for < callback.due_at:
        # Somebody has called meanwhile, and will call again.
        return Ignored("no_longer_needed")
    late = _with_callback(contact, callback, {"state": "overdue"})
    body = CallbackOverdue(call_id=contact.call_id, queue=callback.queue, due_at=callback.due_at)
    return Step(late, (body,))


_positioned = _on(facts.positioned, "positioned")
_transferred = _on(facts.transferred, "transferred")

DECISIONS: Decisions = {
    CallOffered: on_offered,
    CallQueued: _on(facts.queued, "queued"),
    CallAnswered: _on(facts.answered, "answered"),
    CallRefused: _on(facts.refused, "refused"),
    QueueLeft: _on(facts.left, "left_queue"),
    CallEnded: _on(facts.ended, "ended"),
    TalkEnded: _on(facts.talked, "talked"),
    CallHeld: _on(facts.held, "held"),
    WrapupDone: _on(facts.wrapped_up, "wrapped_up"),
    CallbackRequested: _on(facts.wished, "callback_wished"),
    PositionTold: _on(facts.told, "told"),
    ReasonCaptured: _on(facts.captured, "reason_captured"),
    CallPositioned: on_positioned,
    AgentOffered: on_informative,
    CallTransferred: on_transferred,
    SurveyAnswered: on_informative,
    RecordingPublished: on_informative,
    TranscriptPublished: on_informative,
    SourceInterrupted: on_informative,
    RecordingRequested: on_recording_requested,
    AttachmentRequested: on_attachment_requested,
    ClosingRequested: on_closing_requested,
    CallbackAttemptReported: on_attempt_reported,
    CallbackCancellationRequested: on_callback_cancellation,
    TimerFired: on_timer,
}
