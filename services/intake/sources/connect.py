"""Amazon Connect: contact events (EventBridge, fast, may be lost) and contact records (durable). Pure.

Contact events are neither ordered nor certain to come, so each is mapped alone. A *contact* is a leg:
passing a call on makes a new contact with the same `initialContactId`, which is the call. Both feeds
tell the same facts by the same rules; a field that a feed lacks leaves its fact to the other.

A visit to a queue is 1 for the call's first contact; a later contact's is a number from its id
(`visit_of`), because how many came before it is not said. No contact says that the call is over: the
documented events name no next contact, and the one that a record names may be a callback, which is a call of
its own, or somebody who was only consulted and left first. So each tells its own end (`leg_only`), and the
call is over with the last that was heard of. Two things
cannot be told from one event: why a caller left a queue while `disconnectReason` is missing (`unknown`,
the record corrects it); and whose callback was transferred (the legs after it carry the id of the call
that asked for it).
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from schemas import telephony
from schemas.envelope import Body, Code, Identifier, Line
from services.intake.sources.canonical import BadPayload, Mapped, Reading
from services.intake.sources.foreign import Instant, Payload, Seconds, between, phone_of, visit_of

EVENT = "Amazon Connect Contact Event"
DIRECT = "direct"
"""The queue of a talk that nobody queued for: a contact given straight to one agent."""

_LEGS = frozenset({"INBOUND", "TRANSFER", "QUEUE_TRANSFER", "CALLBACK", "DISCONNECT"})
"""How a contact begins that belongs to a customer's call; the others are ours, or nobody's."""

LeftReason = Literal["abandoned", "timeout", "overflow", "unknown"]
_LEFT: Mapping[str, LeftReason] = {"CUSTOMER_DISCONNECT": "abandoned", "EXPIRED": "timeout"}
EndedBy = Literal["caller", "agent", "system", "unknown"]
_ENDED_BY: Mapping[str, EndedBy] = {
    "CUSTOMER_DISCONNECT": "caller",
    "AGENT_DISCONNECT": "agent",
    "TELECOM_PROBLEM": "system",
    "CONTACT_FLOW_DISCONNECT": "system",
    "API": "system",
}

_OUTSIDE = "EXTERNAL_OUTBOUND"
"""How a contact begins by which an agent adds somebody outside to a customer's call, or gives it to him."""


def _last_part(arn: object) -> object:
    return arn.rsplit("/", 1)[-1] if isinstance(arn, str) else arn


def _unset(at: object) -> object:
    """Connect writes 1970-01-01T00:00:00.001Z for what has not happened."""
    return None if isinstance(at, str) and (not at or at.startswith("1970-01-01T")) else at


Arn = Annotated[Code, BeforeValidator(_last_part)]
Stamp = Annotated[Instant | None, BeforeValidator(_unset)]


class _Spelt(Payload):
    """Fields as events spell them (`agentInfo.agentArn`); records and some events write `Agent.ARN`."""

    model_config = ConfigDict(alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _respelt(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name.lower() if name.isupper() else name[:1].lower() + name[1:]: value[name] for name in value
        }


class _Named(_Spelt):
    event_type: Code


class _Queue(_Spelt):
    arn: Arn = Field(validation_alias=AliasChoices("queueArn", "arn"))
    enqueue_timestamp: Stamp = None
    dequeue_timestamp: Stamp = None


class _Agent(_Spelt):
    arn: Arn = Field(validation_alias=AliasChoices("agentArn", "arn"))
    connected_to_agent_timestamp: Stamp = None
    after_contact_work_end_timestamp: Stamp = None
    after_contact_work_duration: Seconds | None = None


class _Endpoint(_Spelt):
    address: Line = ""


class _Recording(_Spelt):
    status: str | None = None
    location: Line | None = None
    start_timestamp: Stamp = None
    stop_timestamp: Stamp = None


class _Contact(_Spelt):
    contact_id: Identifier
    initial_contact_id: Identifier | None = None
    previous_contact_id: Identifier | None = None
    next_contact_id: Identifier | None = None
    channel: Code
    initiation_method: Code
    disconnect_reason: Code | None = None
    initiation_timestamp: Stamp = None
    disconnect_timestamp: Stamp = None
    customer_endpoint: _Endpoint | None = None
    system_endpoint: _Endpoint | None = None
    queue: _Queue | None = Field(None, validation_alias=AliasChoices("queueInfo", "queue"))
    agent: _Agent | None = Field(None, validation_alias=AliasChoices("agentInfo", "agent"))
    recordings: tuple[_Recording, ...] | None = None

    @property
    def call_id(self) -> str:
        """A callback is a call of its own, though Connect counts it to the call that asked for it."""
        if self.initiation_method == "CALLBACK":
            return self.contact_id
        return self.initial_contact_id or self.previous_contact_id or self.contact_id

    @property
    def first(self) -> bool:
        return self.call_id == self.contact_id

    @property
    def connected_at(self) -> datetime | None:
        return self.agent.connected_to_agent_timestamp if self.agent else None

    @property
    def outside(self) -> bool:
        return self.initiation_method == _OUTSIDE and not self.first

    @property
    def ours(self) -> bool:
        return self.channel.upper() == "VOICE" and (self.initiation_method in _LEGS or self.outside)


class _Record(_Contact):
    last_update_timestamp: Instant


class _Envelope(Payload):
    id: Identifier
    time: Instant
    detail_type: Code = Field(validation_alias="detail-type")
    detail: Mapping[str, Any]


When = datetime | None
"""The moment of an event, for what has none of its own; a record has none, and tells only what is timed."""
Said = tuple[type[Body], datetime, dict[str, Any]]
"""A fact before it is a body: its kind, when it happened, and what only this kind says."""


# ---------------------------------------------------------------- what a contact says


def _begun(contact: _Contact, now: When) -> Iterator[Said]:
    at = contact.initiation_timestamp or now
    if not at:
        return
    if contact.first:
        dialled = contact.system_endpoint.address if contact.system_endpoint else ""
        asked_by = contact.previous_contact_id or contact.initial_contact_id
        callback_of = asked_by if contact.initiation_method == "CALLBACK" else None
        yield telephony.CallOffered, at, {"dialled": dialled, "callback_of": callback_of}
    elif contact.outside:
        yield telephony.CallTransferred, at, {"mode": "unknown", "to_kind": "external"}
    elif contact.initiation_method in {"TRANSFER", "QUEUE_TRANSFER"}:
        to = {"to": contact.queue.arn, "to_kind": "queue"} if contact.queue else {}
        yield telephony.CallTransferred, at, {"mode": "unknown", **to}


def _queued(contact: _Contact, now: When) -> Iterator[Said]:
    at = contact.queue and (contact.queue.enqueue_timestamp or now)
    if at:
        yield telephony.CallQueued, at, _visit(contact)


def _answered(contact: _Contact, now: When) -> Iterator[Said]:
    at = contact.agent and (contact.agent.connected_to_agent_timestamp or now)
    if contact.agent and at:
        wait_ms = between(_waits_since(contact), at)
        yield telephony.CallAnswered, at, {**_visit(contact), "agent": contact.agent.arn, "wait_ms": wait_ms}


def _talk_ended(contact: _Contact, now: When) -> Iterator[Said]:
    connected, at = contact.connected_at, contact.disconnect_timestamp or now
    if not contact.agent or not connected or not at:
        return
    ended_by: str = _ENDED_BY.get(contact.disconnect_reason or "", "unknown")
    if contact.next_contact_id and ended_by in {"agent", "unknown"}:
        ended_by = "transfer"
    times = {"talk_ms": between(connected, at), "wait_ms": between(_waits_since(contact), connected)}
    yield (
        telephony.TalkEnded,
        at,
        {**_visit(contact), "agent": contact.agent.arn, **times, "ended_by": ended_by},
    )


def _left(contact: _Contact, now: When) -> Iterator[Said]:
    if not contact.queue or contact.connected_at:
        return
    at = contact.queue.dequeue_timestamp or contact.disconnect_timestamp or now
    if at:
        since = contact.queue.enqueue_timestamp
        wait_ms = between(since, at) if since else None  # None: not said since when
        reason: LeftReason = "overflow" if contact.next_contact_id else "unknown"
        reason = _LEFT.get(contact.disconnect_reason or "", reason)
        yield telephony.QueueLeft, at, {**_visit(contact), "reason": reason, "wait_ms": wait_ms}


def _wrapped_up(contact: _Contact, now: When) -> Iterator[Said]:
    agent = contact.agent
    if not agent or agent.after_contact_work_duration is None:
        return
    at = agent.after_contact_work_end_timestamp or now
    if at:
        acw_ms = agent.after_contact_work_duration * 1000
        yield telephony.WrapupDone, at, {"agent": agent.arn, "acw_ms": acw_ms}


def _recorded(contact: _Contact, now: When) -> Iterator[Said]:
    for recording in contact.recordings or ():
        start, stop = recording.start_timestamp, recording.stop_timestamp
        at = stop or contact.disconnect_timestamp or now
        if recording.location and recording.status == "AVAILABLE" and at:
            duration_ms = between(start, stop) if start and stop else None  # None: one end is not said
            yield telephony.RecordingPublished, at, {"uri": recording.location, "duration_ms": duration_ms}


def _ended(contact: _Contact, now: When) -> Iterator[Said]:
    """The contact is over, and the call with the last of its contacts."""
    at, began = contact.disconnect_timestamp or now, contact.initiation_timestamp
    if at:
        # None: a later contact does not say when the call began, nor one that is passed on when it ended.
        whole = contact.first and contact.next_contact_id is None
        total_ms = between(began, at) if began and whole else None
        cause = (contact.disconnect_reason or "disconnected").lower()
        leg = {"leg_only": True, "next_leg_id": contact.next_contact_id}
        yield telephony.CallEnded, at, {"cause": cause, "total_ms": total_ms, **leg}


def _visit(contact: _Contact) -> dict[str, Any]:
    queue = contact.queue.arn if contact.queue else DIRECT
    return {"queue": queue, "visit": 1 if contact.first else visit_of(contact.contact_id)}


def _waits_since(contact: _Contact) -> datetime:
    """Tell since when the contact waits for its agent: in the queue, or without one since it began."""
    since = contact.queue.enqueue_timestamp if contact.queue else contact.initiation_timestamp
    if since is None:
        missing = "queueInfo.enqueueTimestamp" if contact.queue else "initiationTimestamp"
        raise BadPayload(missing, "is missing; without it nobody knows how long the caller waited")
    return since


Rule = Callable[[_Contact, When], Iterator[Said]]
EVENTS: Mapping[str, tuple[Rule, ...]] = {
    "INITIATED": (_begun,),
    "QUEUED": (_queued,),
    "CONNECTED_TO_AGENT": (_answered,),
    "DISCONNECTED": (_talk_ended, _left, _ended),
    "COMPLETED": (_wrapped_up,),
    # These are known, and say nothing of a call's way.
    "CONNECTED_TO_SYSTEM": (),
    "CONTACT_DATA_UPDATED": (),
    "AMD_DISABLED": (),
    "PAUSED": (),
    "RESUMED": (),
    "WEBRTC_API": (),
}
"""What each contact event says."""
RECORD: tuple[Rule, ...] = (
    _begun,
    _queued,
    _answered,
    _talk_ended,
    _left,
    _wrapped_up,
    _recorded,
    _ended,
)
"""What a contact record says: everything, once the contact is over."""
_NEEDED: Mapping[str, str] = {"QUEUED": "queue", "CONNECTED_TO_AGENT": "agent"}


def facts(payload: object, source: str = "connect") -> Reading:
    """Tell what one contact event says (EventBridge envelope); its `id` is the delivery's.

    Raises BadPayload with the field's path (`detail.queueInfo.queueArn`). Of other channels than voice,
    and of calls that the bank itself makes, nothing is told (`unknown`).
    """
    envelope = _Envelope.read(payload)
    if envelope.detail_type != EVENT:
        return Reading(envelope.id, unknown=envelope.detail_type)
    name = _Named.read(envelope.detail, "detail").event_type
    rules = EVENTS.get(name)
    if not rules:
        return Reading(envelope.id, unknown=name if rules is None else None)
    contact = _Contact.read(envelope.detail, "detail")
    if not contact.ours:
        return Reading(envelope.id, unknown=_kind_of(contact, name))
    needed = _NEEDED.get(name)
    if needed and getattr(contact, needed) is None:
        raise BadPayload(f"detail.{needed}Info", f"is missing in {name}")
    try:
        said = tuple(_say(contact, rules, envelope.time, source, name))
    except BadPayload as bad:
        raise BadPayload(f"detail.{bad.path}", bad.problem) from None
    return Reading(envelope.id, said)


def facts_of_record(payload: object, source: str = "connect") -> Reading:
    """Tell everything that a contact record says; it comes at least once, and again when it has changed.

    `delivery` and each key end with the record's version, its `LastUpdateTimestamp` (ISO 8601, UTC), so each
    version tells its facts anew; what two of them say of one thing is merged like the words of two feeds.
    Raises BadPayload with the field's path.
    """
    record = _Record.read(payload)
    version = record.last_update_timestamp.isoformat()
    delivery = f"{record.contact_id}@{version}"
    if not record.ours:
        return Reading(delivery, unknown=_kind_of(record, "contact record"))
    return Reading(delivery, tuple(_say(record, RECORD, None, source, version)))


def _kind_of(contact: _Contact, name: str) -> str:
    return f"{name} of {contact.channel.upper()} by {contact.initiation_method}"


def _say(contact: _Contact, rules: tuple[Rule, ...], now: When, source: str, marker: str) -> Iterator[Mapped]:
    # An agent of a talk with somebody outside is on the line for the consultation, and has answered before.
    rules = tuple(rule for rule in rules if rule in (_begun, _ended) or not contact.outside)
    said = (fact for rule in rules for fact in rule(contact, now))
    for ordinal, (kind, at, fields) in enumerate(said):
        body = kind(
            call_id=contact.call_id, source=source, leg_id=contact.contact_id, occurred_at=at, **fields
        )
        key = f"{source}|{contact.contact_id}|{kind.__name__}|{ordinal}|{marker}"
        caller = contact.customer_endpoint.address if contact.customer_endpoint else None
        yield Mapped(key, body, phone_of(caller) if kind is telephony.CallOffered else None)
