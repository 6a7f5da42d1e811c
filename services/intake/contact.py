"""What is known of one call, whatever order its facts came in: the contact as a fold of facts. Pure.

Each fact is merged by a rule that does not ask what came before: the earlier of two rings and ends, the
later of two wishes and places, the more specific of two reasons, the answer over the leaving. So two feeds
of one switch, in any order and with any repetition, give the same contact.
"""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

from pydantic import Field

from schemas.envelope import Body, Cipher, Code, Identifier, Moment
from schemas.intake import ClosingRequested
from schemas.telephony import (
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
    TalkEnded,
    WrapupDone,
)

Phase = Literal["offered", "queued", "answered", "ended", "callback", "recorded", "closed"]

# From what says least to what says most; of two sources the one that says more is believed.
_REASONS = ("unknown", "abandoned", "key", "overflow", "empty", "timeout", "withdrawn")
MEANINGLESS = "unknown"
BY_AGENTS = frozenset(get_args(ClosingRequested.model_fields["reason"].annotation))


class Visit(Body):
    """One stay in a queue, and the talk that it led to; durations in milliseconds.

    `queue_told`, `answer_told`: the queueing, the answer was told itself, not only inferred from what
    came after it. `place` is where the switch last said that the caller stood, `placed_at` when. `leg`:
    on which leg the caller stayed, None where no fact names one: then on the call's first.
    """

    number: int
    queue: Code
    priority: int | None = None
    queued_at: Moment | None = None
    answered_at: Moment | None = None
    left_at: Moment | None = None
    left: Code | None = None
    agent: Code | None = None
    wait_ms: int | None = None
    talk_ended_at: Moment | None = None
    talk_ms: int | None = None
    place: int | None = None
    placed_at: Moment | None = None
    queue_told: bool = False
    answer_told: bool = False
    leg: Identifier | None = None


class Leg(Body):
    """One leg of a call whose source tells the ends of legs; not ended yet, where `ended_at` is None."""

    ended_at: Moment | None = None
    cause: Code = "unknown"


class Told(Body):
    """What the voice assistant last told the caller."""

    at: Moment
    position: int | None = None
    estimate_ms: int | None = None
    about_ms: int | None = None
    at_most_ms: int | None = None
    basis: Code = "unknown"
    answers: tuple[Code, ...] = ()


class Captured(Body):
    """Why the caller calls, as the voice assistant understood it.

    `text` is sealed with the key of `customer_ref`: the caller's, or this one call's where nobody knows whose
    it is.
    """

    at: Moment
    topic: Code
    customer_ref: Identifier | None = None
    text: Cipher | None = None


class Callback(Body):
    """A promise to call back: `open` until answered, exhausted or cancelled.

    `number` is another number than the caller's own, sealed with the key of `customer_ref`; `asked_at` is
    when the caller asked, `wished_at` the time that was asked for.
    """

    queue: Code
    customer_ref: Identifier | None = None
    number: Cipher | None = None
    asked_at: Moment | None = None
    wished_at: Moment | None = None
    state: Literal["wished", "open", "overdue", "answered", "exhausted", "cancelled"] = "wished"
    due_at: Moment | None = None
    waiting_since: Moment
    attempts: int = 0

    @property
    def pending(self) -> bool:
        """Whether somebody must still call."""
        return self.state in ("open", "overdue")

    @property
    def wish(self) -> tuple[float, float, str, str]:
        """Orders wishes: the later one counts."""
        return _wish(self.asked_at, self.wished_at, self.queue, self.number)


def _wish(
    asked_at: datetime | None, due_at: datetime | None, queue: str, number: str | None
) -> tuple[float, float, str, str]:
    asked, due = (moment.timestamp() if moment else 0.0 for moment in (asked_at, due_at))
    return asked, due, queue, number or ""


class Contact(Body):
    """What intake knows of one call.

    `told_later`: which of the caller's particulars a later ring than the first told, and when. `legs`: what
    was told of legs themselves; others are known from the stays on them.
    """

    call_id: Identifier
    source: Code = "unknown"
    phase: Phase = "offered"
    first_at: Moment
    offered_at: Moment | None = None
    customer_ref: Identifier | None = None
    caller: Cipher | None = None
    language: Code | None = None
    callback_of: Identifier | None = None
    told_later: dict[str, Moment] = Field(default_factory=dict)
    visits: tuple[Visit, ...] = ()
    refused: Code | None = None
    refused_by: Code | None = None
    refused_at: Moment | None = None
    holds: tuple[Moment, ...] = ()
    releases: tuple[Moment, ...] = ()
    wrapped_up: dict[str, int] = Field(default_factory=dict)
    told: Told | None = None
    reason: Captured | None = None
    callback: Callback | None = None
    ended_at: Moment | None = None
    cause: Code | None = None
    legs: dict[str, Leg] = Field(default_factory=dict)
    overdue: bool = False
    closed_for: Code | None = None
    case_id: UUID | None = None
    repeat: int = 0

    @property
    def over(self) -> bool:
        """Whether it has its case or its reason."""
        return self.phase in ("recorded", "closed")

    @property
    def settled(self) -> bool:
        """Whether a person has said what it came to; what telephony alone closed, an answer opens again."""
        return self.phase == "recorded" or (self.phase == "closed" and self.closed_for in BY_AGENTS)

    @property
    def answered(self) -> Visit | None:
        """The stay whose agent has, or last had, the call."""
        found = [visit for visit in self.visits if visit.answered_at is not None]
        return max(found, key=_answered_at, default=None)

    @property
    def agent(self) -> str | None:
        """Who has, or last had, the call."""
        visit = self.answered
        return visit.agent if visit else None

    @property
    def last_stay(self) -> Visit | None:
        """The stay that began last; of those that began in one second, the one with the higher number.

        Some sources count stays, others number them by what they are: only time orders those.
        """
        return max(self.visits, key=self._began, default=None)

    def left_at(self, stay: Visit) -> datetime | None:
        """When somebody left a queue, though nobody told: with the next stay, at the latest with the call."""
        if stay.left_at is not None or stay.answered_at is not None:
            return stay.left_at
        later = [
            other.queued_at
            for other in self.visits
            if other.queued_at
            and stay.queued_at
            and other.queued_at > stay.queued_at
            # Within one second neither times nor numbers alone tell the order.
            and self._began(other) > self._began(stay)
        ]
        return min(later, default=self.ended_at)

    def _began(self, stay: Visit) -> tuple[datetime, int]:
        began = stay.queued_at or stay.answered_at or stay.left_at or self.first_at
        return began.replace(microsecond=0), stay.number

    @property
    def queue(self) -> str | None:
        """The queue of the agent who has the call, else the last queue that it was in or before."""
        visit = self.answered or self.last_stay
        return visit.queue if visit else self.refused_by

    @property
    def left(self) -> str | None:
        """Why the caller got no agent: None while that is open, or when an agent answered."""
        if self.answered is not None:
            return None
        stay = self.last_stay
        if stay is not None:
            return stay.left
        return f"refused_{self.refused}" if self.refused else None

    @property
    def waited_ms(self) -> int | None:
        """How long the caller waited until the first answer, or until giving up."""
        answered = [visit for visit in self.visits if visit.answered_at is not None]
        if answered:
            return min(answered, key=_answered_at).wait_ms
        stay = self.last_stay
        return stay.wait_ms if stay else None

    @property
    def hold_ms(self) -> int:
        """How long the caller was on hold, all together."""
        marks = sorted([(at, True) for at in self.holds] + [(at, False) for at in self.releases])
        spans = [after - before for (before, held), (after, _) in pairwise(marks) if held]
        return int(sum(spans, timedelta()).total_seconds() * 1000)


def _answered_at(visit: Visit) -> datetime:
    assert visit.answered_at is not None
    return visit.answered_at


def seen(contact: Contact | None, event: CallEvent) -> Contact:
    """Open the contact with the first fact that arrives; note when the earliest of all happened."""
    if contact is None:
        return Contact(call_id=event.call_id, source=event.source, first_at=event.occurred_at)
    if event.occurred_at < contact.first_at:
        return contact.model_copy(update={"first_at": event.occurred_at, "source": event.source})
    return contact


def offered(contact: Contact, event: CallOffered) -> Contact:
    """Who rings, and whether it is we who call back: of two that tell it, the earlier ring is believed."""
    at, first = event.occurred_at, contact.offered_at or event.occurred_at
    known: dict[str, Any] = {"offered_at": min(first, at)}
    later = dict(contact.told_later)
    for name in ("customer_ref", "language", "callback_of"):
        said, kept = getattr(event, name), getattr(contact, name)
        kept_at = later.pop(name, first)
        if said is not None and (kept is None or (at, said) < (kept_at, kept)):
            known[name], kept, kept_at = said, said, at
        if kept is not None and kept_at > known["offered_at"]:
            later[name] = kept_at
    # The number is sealed with the key of the customer whose it is: they go together.
    ref = known.get("customer_ref", contact.customer_ref)
    caller = contact.caller if ref == contact.customer_ref else None
    known["caller"] = caller or (event.caller if ref == event.customer_ref else None)
    return contact.model_copy(update={**known, "told_later": later})


def queued(contact: Contact, event: CallQueued) -> Contact:
    """The caller waits; whoever has asked to be called back keeps this place."""
    visit = _visit(contact, event)
    known = {
        "queued_at": _earlier(visit.queued_at if visit.queue_told else None, event.occurred_at),
        "queue_told": True,
        "priority": visit.priority if visit.priority is not None else event.priority,
        **_placed(visit, event.occurred_at, event.position),
    }
    contact = _with(contact, visit.model_copy(update=known))
    callback = contact.callback
    if callback is None or callback.asked_at is None or callback.queue != event.queue:
        return contact
    since = _place_kept(contact, event.queue, callback.asked_at)
    return contact.model_copy(update={"callback": callback.model_copy(update={"waiting_since": since})})


def positioned(contact: Contact, event: CallPositioned) -> Contact:
    """The switch says where the caller stands."""
    visit = _visit(contact, event)
    return _with(contact, visit.model_copy(update=_placed(visit, event.occurred_at, event.position)))


def _placed(visit: Visit, at: datetime, place: int | None) -> dict[str, Any]:
    """Keep the latest place, of two at once the one further ahead; nothing when that stands already."""
    if place is None:
        return {}
    if visit.placed_at is not None and (visit.placed_at, -(visit.place or 0)) >= (at, -place):
        return {}
    return {"place": place, "placed_at": at}


def answered(contact: Contact, event: CallAnswered) -> Contact:
    """An agent has the call; that the same stay was also called left is a mistake of its source."""
    visit = _visit(contact, event)
    return _with(contact, _taken(visit, _Answer(True, event.occurred_at, event.agent, event.wait_ms)))


def left(contact: Contact, event: QueueLeft) -> Contact:
    """The caller left the queue; the reason that says more is kept, the longer of two waits too."""
    visit = _visit(contact, event)
    if visit.answered_at is not None:
        return _with(contact, visit)
    waits = [wait for wait in (visit.wait_ms, event.wait_ms) if wait is not None]
    known: dict[str, Any] = {"wait_ms": max(waits, default=None)}
    says = _leaving(event.reason, event.occurred_at)
    if visit.left is None or visit.left_at is None or says > _leaving(visit.left, visit.left_at):
        known |= {"left_at": event.occurred_at, "left": event.reason}
    return _with(contact, visit.model_copy(update=known))


def _leaving(reason: str, at: datetime) -> tuple[int, float]:
    """How much a leaving says; of two with the same reason the earlier counts."""
    return _REASONS.index(reason), -at.timestamp()


def refused(contact: Contact, event: CallRefused) -> Contact:
    """A queue did not take the caller; of several the last that says why is why nobody answered."""
    if contact.refused is not None:
        known = (contact.refused != MEANINGLESS, contact.refused_at or contact.first_at)
        told = (event.reason != MEANINGLESS, event.occurred_at)
        if (*known, contact.refused, contact.refused_by or "") >= (*told, event.reason, event.queue):
            return contact
    return contact.model_copy(
        update={"refused": event.reason, "refused_by": event.queue, "refused_at": event.occurred_at}
    )


def talked(contact: Contact, event: TalkEnded) -> Contact:
    """One talk is over; that it took place is also an answer, if the answer itself was lost."""
    visit = _visit(contact, event)
    told = (event.occurred_at, event.talk_ms)
    if visit.talk_ended_at is None or told < (visit.talk_ended_at, visit.talk_ms or 0):
        visit = visit.model_copy(update={"talk_ended_at": event.occurred_at, "talk_ms": event.talk_ms})
    began = event.occurred_at - timedelta(milliseconds=max(0, event.talk_ms))
    return _with(contact, _taken(visit, _Answer(False, began, event.agent, event.wait_ms)))


def held(contact: Contact, event: CallHeld) -> Contact:
    """Put on hold, or taken back."""
    name = "holds" if event.held else "releases"
    marks = {*getattr(contact, name), event.occurred_at}
    return contact.model_copy(update={name: tuple(sorted(marks))})


def wrapped_up(contact: Contact, event: WrapupDone) -> Contact:
    """The agent's work after the call."""
    done = {**contact.wrapped_up, event.agent: max(event.acw_ms, contact.wrapped_up.get(event.agent, 0))}
    return contact.model_copy(update={"wrapped_up": done})


def told(contact: Contact, event: PositionTold) -> Contact:
    """The assistant spoke; the latest word is kept."""
    if contact.told is not None and contact.told.at >= event.occurred_at:
        return contact
    word = Told(
        at=event.occurred_at,
        position=event.position,
        estimate_ms=event.estimate_ms,
        about_ms=event.about_ms,
        at_most_ms=event.at_most_ms,
        basis=event.basis,
        answers=event.answers,
    )
    return contact.model_copy(update={"told": word})


def captured(contact: Contact, event: ReasonCaptured) -> Contact:
    """The caller said why; the latest word is kept."""
    if contact.reason is not None and contact.reason.at >= event.occurred_at:
        return contact
    word = Captured(at=event.occurred_at, topic=event.topic, customer_ref=event.customer_ref, text=event.text)
    return contact.model_copy(update={"reason": word})


def wished(contact: Contact, event: CallbackRequested) -> Contact:
    """The caller wants to be called back, and keeps the place; of several wishes the last counts."""
    known = contact.callback
    if known is not None and known.wish >= _wish(event.occurred_at, event.due_at, event.queue, event.number):
        return contact
    callback = Callback(
        queue=event.queue,
        customer_ref=event.customer_ref if event.number else None,
        number=event.number,
        asked_at=event.occurred_at,
        wished_at=event.due_at,
        waiting_since=_place_kept(contact, event.queue, event.occurred_at),
    )
    return contact.model_copy(update={"callback": callback})


def transferred(contact: Contact, event: CallTransferred) -> Contact:
    """The call goes on with another leg, which will end by itself."""
    return _with_leg(contact, event.leg_id, Leg())


def ended(contact: Contact, event: CallEnded) -> Contact:
    """The contact is over for telephony, or one leg of it; of two ends the earlier one counts.

    A leg that is only named as the next one is waited for no longer than any other that may yet be heard of:
    it may be a call of its own, or nobody's.
    """
    if event.leg_only:
        leg = Leg(ended_at=event.occurred_at, cause=event.cause)
        return _with_leg(contact, event.leg_id or contact.call_id, leg)
    told = _end_told(contact)
    if told is not None and told <= event.occurred_at:
        return contact
    return contact.model_copy(update={"ended_at": event.occurred_at, "cause": event.cause, "legs": {}})


def _with_leg(contact: Contact, name: str | None, leg: Leg) -> Contact:
    """Note one leg, unless the end of the call itself was told: whoever tells that knows better."""
    if name is None or _end_told(contact) is not None:
        return contact
    legs = {**contact.legs, name: min(contact.legs.get(name, leg), leg, key=_end)}
    return contact.model_copy(update={"legs": dict(sorted(legs.items()))})


def _end_told(contact: Contact) -> datetime | None:
    return None if _legs_ended(contact) else contact.ended_at


def _end(leg: Leg) -> tuple[bool, float, str]:
    return leg.ended_at is None, leg.ended_at.timestamp() if leg.ended_at else 0.0, leg.cause


def _legs_ended(contact: Contact) -> list[Leg]:
    return [leg for leg in contact.legs.values() if leg.ended_at is not None]


def with_its_end(contact: Contact) -> Contact:
    """See whether the call is over, where only its legs are told to end: with the last, once none goes on."""
    over = _legs_ended(contact)
    if not over:
        return contact
    begun = {visit.leg or contact.call_id for visit in contact.visits} | contact.legs.keys()
    if contact.offered_at is not None:
        begun.add(contact.call_id)
    last = max(over, key=_end) if len(over) == len(begun) else Leg()
    cause = last.cause if last.ended_at else None
    return contact.model_copy(update={"ended_at": last.ended_at, "cause": cause})


def last_leg_end(contact: Contact) -> datetime | None:
    """Tell when the last of the legs ended that have ended; None where legs are not told of."""
    return max((leg.ended_at for leg in contact.legs.values() if leg.ended_at), default=None)


def _earlier(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else min(one, other)


class _Answer(NamedTuple):
    """An answer as one fact has it; `told` or only inferred from the end of the talk."""

    told: bool
    at: datetime
    agent: str
    wait_ms: int | None

    @property
    def rank(self) -> tuple[bool, datetime, str, int]:
        return not self.told, self.at, self.agent, -1 if self.wait_ms is None else self.wait_ms


def _taken(visit: Visit, answer: _Answer) -> Visit:
    """Have an agent take the call: what was told counts before what is inferred, the earlier first."""
    if visit.answered_at is not None:
        known = _Answer(visit.answer_told, visit.answered_at, visit.agent or "", visit.wait_ms)
        if known.rank <= answer.rank:
            return visit
    update: dict[str, Any] = {
        "answered_at": answer.at,
        "answer_told": answer.told,
        "agent": answer.agent,
        "wait_ms": answer.wait_ms,
        "left_at": None,
        "left": None,
    }
    if not visit.queue_told:
        waited = answer.wait_ms
        update["queued_at"] = None if waited is None else answer.at - timedelta(milliseconds=max(0, waited))
    return visit.model_copy(update=update)


def _place_kept(contact: Contact, queue: str, asked_at: datetime) -> datetime:
    """Tell since when who asks to be called back has waited: his last stay in that queue before."""
    stays = [visit.queued_at for visit in contact.visits if visit.queue == queue and visit.queued_at]
    return max((at for at in stays if at <= asked_at), default=asked_at)


_Stay = CallQueued | CallPositioned | CallAnswered | QueueLeft | TalkEnded


def _visit(contact: Contact, event: _Stay) -> Visit:
    """Find the stay, or begin it; of two legs that are named for it the first by name is believed."""
    visit = next((visit for visit in contact.visits if visit.number == event.visit), None)
    if visit is None:
        return Visit(number=event.visit, queue=event.queue, leg=event.leg_id)
    if event.leg_id is None or (visit.leg is not None and visit.leg <= event.leg_id):
        return visit
    return visit.model_copy(update={"leg": event.leg_id})


def _with(contact: Contact, visit: Visit) -> Contact:
    others = [other for other in contact.visits if other.number != visit.number]
    return contact.model_copy(
        update={"visits": tuple(sorted([*others, visit], key=lambda stay: stay.number))}
    )
