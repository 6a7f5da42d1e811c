"""Genesys Cloud: conversation detail events, from EventBridge or notifications. Pure.

A conversation is the call. The queue's session and the agent's have different ids, and an event names
only its own, so what joins a wait and its talk is the conversation and the queue: `visit` is a number
from both, and a caller who returns to a queue in the same conversation returns to the same visit.
Events carry no id; the same conversation, session, topic and time are the same fact. A voice session that
the bank began (`OUTBOUND`) is no customer's call; who calls back has a session of `CALLBACK` beside it.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from schemas import telephony
from schemas.envelope import Body, Code, Identifier, Line
from services.intake.sources.canonical import Mapped, Reading
from services.intake.sources.foreign import (
    MOST,
    Count,
    Payload,
    below,
    fields_of,
    from_epoch,
    phone_of,
    plausible,
    visit_of,
)

_TOPIC = re.compile(r"v2\.detail\.events\.conversation\.[^.]+\.([a-z.]+)")


def _from_milliseconds(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a whole number of milliseconds since 1970")  # noqa: TRY004 -- pydantic's way
    return from_epoch(value, timedelta(milliseconds=1))


Moment = Annotated[datetime, BeforeValidator(_from_milliseconds), AfterValidator(plausible)]

Said = Iterator[tuple[type[Body], dict[str, Any]]]
"""Facts before they are bodies: kind, and what only this kind says."""

EndedBy = Literal["caller", "agent", "transfer", "system", "unknown"]
_ENDED_BY: Mapping[str, EndedBy] = {
    "PEER": "caller",
    "CLIENT": "agent",
    "ENDPOINT": "agent",
    "TRANSFER": "transfer",
    "CONSULT_TRANSFER": "transfer",
    "CONFERENCE_TRANSFER": "transfer",
    "FORWARD_TRANSFER": "transfer",
    "SYSTEM": "system",
    "ERROR": "system",
    "TIMEOUT": "system",
    "TRANSPORT_FAILURE": "system",
}
"""Who ended the talk, by the `disconnectType` of the agent's session."""
TransferMode = Literal["blind", "attended"]
_TRANSFERS: Mapping[str, TransferMode] = {
    "TRANSFER": "blind",
    "FORWARD_TRANSFER": "blind",
    "CONSULT_TRANSFER": "attended",
    "CONFERENCE_TRANSFER": "attended",
}
LeftReason = Literal["abandoned", "overflow", "unknown"]
_LEFT: Mapping[str, LeftReason] = {"ABANDON": "abandoned", "FLOW_OUT": "overflow"}


class _Event(Payload):
    """What every detail event has."""

    model_config = ConfigDict(alias_generator=to_camel)

    event_time: Moment
    conversation_id: Identifier
    session_id: Identifier
    media_type: Code = "VOICE"
    direction: Code = "UNKNOWN"
    disconnect_type: Code = "UNKNOWN"

    @property
    def phone(self) -> str | None:
        """The number that the event's fact is about, if it is about one."""
        return None

    def said(self) -> Said:
        """Tell the facts of the event."""
        yield from ()


class _CustomerStarted(_Event):
    ani: str | None = None
    dnis: Line = ""

    @property
    def phone(self) -> str | None:
        return phone_of(self.ani)

    def said(self) -> Said:
        if self.direction == "INBOUND" and self.media_type == "VOICE":
            yield telephony.CallOffered, {"dialled": self.dnis.removeprefix("tel:")}


class _CustomerEnded(_Event):
    def said(self) -> Said:
        if self.media_type == "VOICE":
            # None: the event tells how long the customer was connected, not how long the call was.
            yield telephony.CallEnded, {"cause": self.disconnect_type.lower(), "total_ms": None}


class _Queued(_Event):
    queue_id: Code
    routing_priority: Annotated[int, Field(ge=-MOST, le=MOST)] | None = None
    callback_numbers: tuple[str, ...] | None = None
    callback_scheduled_time: Moment | None = None

    @property
    def phone(self) -> str | None:
        return phone_of(self.callback_numbers[0]) if self.callback_numbers else None

    def said(self) -> Said:
        if self.media_type == "CALLBACK":
            due_at = self.callback_scheduled_time
            yield telephony.CallbackRequested, {"queue": self.queue_id, "due_at": due_at}
        else:
            yield telephony.CallQueued, {**_visit(self, self.queue_id), "priority": self.routing_priority}


class _QueueLeft(_Event):
    queue_id: Code
    acd_outcome: Code = "UNKNOWN"
    connected_duration_ms: Count | None = None

    def said(self) -> Said:
        if self.media_type == "VOICE":
            reason = _LEFT.get(self.acd_outcome, "unknown")
            wait_ms = self.connected_duration_ms
            yield telephony.QueueLeft, {**_visit(self, self.queue_id), "reason": reason, "wait_ms": wait_ms}


class _Answered(_Event):
    queue_id: Code
    answered_user_id: Code
    connected_duration_ms: Count

    def said(self) -> Said:
        visit = _visit(self, self.queue_id)
        agent, wait_ms = self.answered_user_id, self.connected_duration_ms
        yield telephony.CallAnswered, {**visit, "agent": agent, "wait_ms": wait_ms}


class _AgentStarted(_Event):
    user_id: Code
    queue_id: Code | None = None

    def said(self) -> Said:
        if self.queue_id:
            visit = _visit(self, self.queue_id)
            yield telephony.AgentOffered, {**visit, "agent": self.user_id, "result": "ringing"}


class _AgentEnded(_Event):
    user_id: Code
    queue_id: Code | None = None
    interacting_duration_ms: Count | None = None
    held_duration_ms: Count | None = None
    alerting_duration_ms: Count | None = None

    def said(self) -> Said:
        if self.queue_id:
            yield self._talk(_visit(self, self.queue_id))
        mode = _TRANSFERS.get(self.disconnect_type)
        if mode and self.interacting_duration_ms:
            yield telephony.CallTransferred, {"mode": mode, "from_agent": self.user_id}

    def _talk(self, visit: dict[str, Any]) -> tuple[type[Body], dict[str, Any]]:
        if not self.interacting_duration_ms:
            ring_ms = self.alerting_duration_ms
            result = {"agent": self.user_id, "result": "no_answer", "ring_ms": ring_ms}
            return telephony.AgentOffered, {**visit, **result}
        talk_ms = min(MOST, self.interacting_duration_ms + (self.held_duration_ms or 0))
        ended_by = _ENDED_BY.get(self.disconnect_type, "unknown")
        return (
            telephony.TalkEnded,
            {**visit, "agent": self.user_id, "talk_ms": talk_ms, "ended_by": ended_by},
        )


class _WrappedUp(_Event):
    user_id: Code
    wrapup_duration_ms: Count
    wrapup_code: Code | None = None

    def said(self) -> Said:
        acw_ms, code = self.wrapup_duration_ms, self.wrapup_code
        yield telephony.WrapupDone, {"agent": self.user_id, "acw_ms": acw_ms, "code": code}


TOPICS: Mapping[str, type[_Event]] = {
    "customer.start": _CustomerStarted,
    "customer.end": _CustomerEnded,
    "acd.start": _Queued,
    "acd.end": _QueueLeft,
    "user.start": _AgentStarted,
    "user.end": _AgentEnded,
    "acw": _WrappedUp,
    # These are known, and tell nothing that the others do not: `wrapup` is `acw` without the agent.
    "wrapup": _Event,
    "flow.start": _Event,
    "flow.end": _Event,
    "voicemail.start": _Event,
    "voicemail.end": _Event,
}
"""What each topic `v2.detail.events.conversation.{id}.…` says; an `acd.end` ANSWERED is `_Answered`."""
_MEDIA = frozenset({"VOICE", "CALLBACK"})
_WITH_PHONE = (telephony.CallOffered, telephony.CallbackRequested)


class _Notice(Payload):
    model_config = ConfigDict(alias_generator=to_camel)

    topic_name: Identifier
    event_body: Mapping[str, Any]


def facts(payload: object, source: str = "genesys") -> Reading:
    """Tell what one event says; `payload` is an EventBridge envelope (`detail`), or its detail alone.

    Raises BadPayload with the field's path (`detail.eventBody.queueId`). Of other media than voice and
    callbacks nothing is told (`unknown`).
    """
    named = fields_of(payload, "")
    path = "detail" if "detail" in named else ""
    notice = _Notice.read(named["detail"] if path else named, path)
    body, path = notice.event_body, below(path, "eventBody")
    found = _TOPIC.fullmatch(notice.topic_name)
    kind = TOPICS.get(found[1]) if found else None
    if found is None or kind is None:
        return Reading(
            _delivery(named, notice), unknown=found[1] if found else "no conversation detail event"
        )
    event = kind.read(body, path)
    if event.media_type not in _MEDIA:
        return Reading(_delivery(named, notice), unknown=f"{found[1]} of {event.media_type}")
    if (event.media_type, event.direction) == ("VOICE", "OUTBOUND"):
        return Reading(_delivery(named, notice), unknown=f"{found[1]} of OUTBOUND")
    if isinstance(event, _QueueLeft) and event.acd_outcome == "ANSWERED":
        event = _Answered.read(body, path)
    return Reading(_delivery(named, notice), tuple(_say(event, found[1], source)))


def _delivery(named: Mapping[str, Any], notice: _Notice) -> str:
    """EventBridge names each delivery; a notification is known by what it tells of."""
    name = named.get("id")
    if isinstance(name, str) and name:
        return name
    parts = (notice.event_body.get(part) for part in ("sessionId", "eventTime"))
    return "|".join([notice.topic_name, *(str(part) for part in parts if isinstance(part, str | int))])


def _visit(event: _Event, queue: str) -> dict[str, Any]:
    return {"queue": queue, "visit": visit_of(f"{event.conversation_id}|{queue}")}


def _say(event: _Event, topic: str, source: str) -> Iterator[Mapped]:
    for kind, fields in event.said():
        body = kind(
            call_id=event.conversation_id,
            source=source,
            leg_id=event.session_id,
            occurred_at=event.event_time,
            **fields,
        )
        names = (source, event.conversation_id, event.session_id, topic, event.event_time.isoformat())
        yield Mapped("|".join((*names, kind.__name__)), body, event.phone if kind in _WITH_PHONE else None)
