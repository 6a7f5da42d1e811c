"""FreeSWITCH: the event socket's headers, of `mod_callcenter` and of channels. Pure.

`CC-Member-Session-UUID` is the call (the caller's channel), `CC-Member-UUID` one stay in a queue: its
`visit` is a number from that id (`visit_of`). Channel events count for the caller's channel alone, the
one whose `Call-Direction` is inbound; an agent's channel names its caller in a channel variable.

Header values must be decoded already (the socket percent-encodes them in plain format, not in JSON).
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from schemas import telephony
from schemas.envelope import Body, Code, Identifier, Line
from services.intake.sources.canonical import BadPayload, Mapped, Reading
from services.intake.sources.foreign import (
    Count,
    Payload,
    Seconds,
    between,
    fields_of,
    from_epoch,
    phone_of,
    plausible,
    visit_of,
)
from services.intake.sources.sequence import Place

SUBCLASS = "callcenter::info"

LeftReason = Literal["abandoned", "timeout", "empty", "key", "unknown"]
_LEFT: Mapping[str, LeftReason] = {
    "BREAK_OUT": "abandoned",
    "TIMEOUT": "timeout",
    "NO_AGENT_TIMEOUT": "empty",
    "EXIT_WITH_KEY": "key",
}
_NOT_TAKEN: Mapping[str, Literal["busy", "rejected"]] = {"USER_BUSY": "busy", "CALL_REJECTED": "rejected"}


def _count(value: object) -> int:
    """A header is text; a number of more than 18 digits is none."""
    if not isinstance(value, str) or not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise ValueError("is not a whole number of at most 18 digits")
    return int(value)


def _microseconds(value: object) -> datetime:
    return from_epoch(_count(value), timedelta(microseconds=1))


def _seconds(value: object) -> datetime:
    return from_epoch(_count(value), timedelta(seconds=1))


Stamp = Annotated[datetime, BeforeValidator(_microseconds), AfterValidator(plausible)]
Second = Annotated[datetime, BeforeValidator(_seconds), AfterValidator(plausible)]
Said = Iterator[tuple[type[Body], dict[str, Any]]]
"""Facts before they are bodies: kind, and what only this kind says."""


class _Numbered(Payload):
    core: Identifier = Field(validation_alias="Core-UUID")
    sequence: Annotated[int, BeforeValidator(_count)] = Field(validation_alias="Event-Sequence")
    at: Stamp = Field(validation_alias="Event-Date-Timestamp")


class _Event(_Numbered):
    """A known event that says nothing of a call's way; the others say more."""

    @property
    def call(self) -> str:
        return ""

    def said(self) -> Said:
        """Tell the facts of the event."""
        yield from ()


# ---------------------------------------------------------------- mod_callcenter


class _Member(_Event):
    session: Identifier = Field(validation_alias="CC-Member-Session-UUID")
    entry: Identifier = Field(validation_alias="CC-Member-UUID")
    queue: Code = Field(validation_alias="CC-Queue")

    @property
    def call(self) -> str:
        return self.session

    @property
    def visit(self) -> dict[str, Any]:
        return {"queue": self.queue, "visit": visit_of(self.entry)}


class _Joined(_Member):
    def said(self) -> Said:
        yield telephony.CallQueued, self.visit


class _Left(_Member):
    cause: Code = Field(validation_alias="CC-Cause")
    reason: Code = Field("NONE", validation_alias="CC-Cancel-Reason")
    joined: Second = Field(validation_alias="CC-Member-Joined-Time")
    left: Second = Field(validation_alias="CC-Member-Leaving-Time")

    def said(self) -> Said:
        """`Terminated` ends an answered visit, which bridge-agent-end has told already."""
        if self.cause == "Cancel":
            reason = _LEFT.get(self.reason, "unknown")
            wait_ms = between(self.joined, self.left)
            yield telephony.QueueLeft, {**self.visit, "reason": reason, "wait_ms": wait_ms}


class _Offering(_Member):
    agent: Code = Field(validation_alias="CC-Agent")

    def said(self) -> Said:
        yield telephony.AgentOffered, {**self.visit, "agent": self.agent, "result": "ringing"}


class _NotTaken(_Offering):
    hangup_cause: Code = Field("NO_ANSWER", validation_alias="CC-Hangup-Cause")
    called: Second = Field(validation_alias="CC-Agent-Called-Time")
    aborted: Second = Field(validation_alias="CC-Agent-Aborted-Time")

    def said(self) -> Said:
        result = _NOT_TAKEN.get(self.hangup_cause, "no_answer")
        ring_ms = between(self.called, self.aborted)
        yield (
            telephony.AgentOffered,
            {**self.visit, "agent": self.agent, "result": result, "ring_ms": ring_ms},
        )


class _Answered(_Offering):
    agent_leg: Identifier = Field(validation_alias="CC-Agent-UUID")
    joined: Second = Field(validation_alias="CC-Member-Joined-Time")
    called: Second = Field(validation_alias="CC-Agent-Called-Time")
    answered: Second = Field(validation_alias="CC-Agent-Answered-Time")

    @property
    def talk(self) -> dict[str, Any]:
        return {**self.visit, "agent": self.agent, "wait_ms": between(self.joined, self.answered)}

    def said(self) -> Said:
        ring_ms = between(self.called, self.answered)
        yield telephony.CallAnswered, {**self.talk, "ring_ms": ring_ms, "agent_leg_id": self.agent_leg}


class _Talked(_Answered):
    over: Second = Field(validation_alias="CC-Bridge-Terminated-Time")

    def said(self) -> Said:
        # CC-Hangup-Cause is that of calling the agent, not of the talk's end: who ended it stays unknown.
        yield telephony.TalkEnded, {**self.talk, "talk_ms": between(self.answered, self.over)}


# ---------------------------------------------------------------- channels


class _Channel(_Event):
    channel: Identifier = Field(validation_alias="Unique-ID")
    direction: Code = Field(validation_alias="Call-Direction")
    caller_channel: Identifier | None = Field(None, validation_alias="variable_cc_member_session_uuid")
    agent: Code | None = Field(None, validation_alias="variable_cc_agent")

    @property
    def call(self) -> str:
        return self.channel if self.inbound else self.caller_channel or ""

    @property
    def inbound(self) -> bool:
        return self.direction == "inbound"


class _Created(_Channel):
    number: str | None = Field(None, validation_alias="Caller-Caller-ID-Number")
    dialled: Line = Field("", validation_alias="Caller-Destination-Number")

    def said(self) -> Said:
        if self.inbound:
            yield telephony.CallOffered, {"dialled": self.dialled}


class _HungUp(_Channel):
    cause: Code = Field("unknown", validation_alias="Hangup-Cause")
    total_ms: Annotated[Count, BeforeValidator(_count)] | None = Field(
        None, validation_alias="variable_mduration"
    )

    def said(self) -> Said:
        if self.inbound:
            yield telephony.CallEnded, {"cause": self.cause.lower(), "total_ms": self.total_ms}


class _Held(_Channel):
    name: Literal["CHANNEL_HOLD", "CHANNEL_UNHOLD"] = Field(validation_alias="Event-Name")

    def said(self) -> Said:
        yield telephony.CallHeld, {"held": self.name == "CHANNEL_HOLD", "agent": self.agent}


class _Recorded(_Channel):
    path: Line = Field(validation_alias="Record-File-Path")
    duration_s: Annotated[Seconds, BeforeValidator(_count)] | None = Field(
        None, validation_alias="variable_record_seconds"
    )

    def said(self) -> Said:
        # None: the switch does not always say how long it recorded.
        duration_ms = self.duration_s * 1000 if self.duration_s is not None else None
        yield telephony.RecordingPublished, {"uri": self.path, "duration_ms": duration_ms}


ACTIONS: Mapping[str, type[_Event]] = {
    "member-queue-start": _Joined,
    "member-queue-resume": _Joined,
    "member-queue-end": _Left,
    "agent-offering": _Offering,
    "bridge-agent-start": _Answered,
    "bridge-agent-fail": _NotTaken,
    "bridge-agent-end": _Talked,
    "members-count": _Event,
    "agent-status-change": _Event,
    "agent-state-change": _Event,
    "agent-max-no-answer": _Event,
}
"""What each `CC-Action` of a `callcenter::info` event says."""
CHANNELS: Mapping[str, type[_Event]] = {
    "CHANNEL_CREATE": _Created,
    "CHANNEL_HANGUP_COMPLETE": _HungUp,
    "CHANNEL_HOLD": _Held,
    "CHANNEL_UNHOLD": _Held,
    "RECORD_STOP": _Recorded,
}
"""What each channel event says."""


def facts(payload: object, source: str = "freeswitch") -> Reading:
    """Tell what one event says; `payload` holds its headers by name.

    `delivery` is `Core-UUID` and `Event-Sequence`: the same again is a duplicate. The switch numbers all its
    events, wanted or not: only where all of them are sent does a jump mean that one is missing. Raises
    BadPayload with the header's name, and with the place where that could be read.
    """
    headers = fields_of(payload, "")
    event = _Numbered.read(headers)
    place = Place(event.core, event.sequence, event.at)
    delivery = f"{place.core}|{place.sequence}"
    name = headers.get("Event-Name")
    kind = CHANNELS.get(name) if isinstance(name, str) else None
    if name == "CUSTOM" and headers.get("Event-Subclass") == SUBCLASS:
        name = headers.get("CC-Action")
        kind = ACTIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        return Reading(delivery, unknown=str(name)[:80], place=place)
    try:
        return Reading(delivery, tuple(_say(kind.read(headers), delivery, source)), place=place)
    except BadPayload as bad:
        raise BadPayload(bad.path, bad.problem, place) from None


def _say(event: _Event, delivery: str, source: str) -> Iterator[Mapped]:
    if not event.call:
        return
    for kind, fields in event.said():
        body = kind(
            call_id=event.call,
            source=source,
            leg_id=event.call,
            occurred_at=event.at,
            source_seq=event.sequence,
            **fields,
        )
        number = phone_of(event.number) if isinstance(event, _Created) else None
        yield Mapped(f"{source}|{delivery}|{kind.__name__}", body, number)
