"""Twilio: callbacks of calls, conferences and recordings, TaskRouter's events as forms or stream. Pure.

The call is the caller's own leg (`ParentCallSid` where there is one); a task is its wait for an agent.
Queues and agents are named by their Sid, which stays when a name changes and names nobody. A task may
move from queue to queue: `visit` is a number from the task and the queue (`visit_of`).

No event of TaskRouter says when an agent accepted. A workflow that writes `answered_at` (seconds since
1970, or ISO 8601) into the task's attributes gets the end of each talk; without it none is told, for
its length would be invented. Needed in the attributes in any case: `call_sid`, as Enqueue sets it.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
)
from pydantic.alias_generators import to_pascal, to_snake

from schemas import telephony
from schemas.envelope import Body, Code, Identifier, Line
from services.intake.sources.canonical import BadPayload, Mapped, Reading
from services.intake.sources.foreign import (
    MOST,
    Payload,
    Seconds,
    below,
    between,
    fields_of,
    from_epoch,
    phone_of,
    plausible,
    visit_of,
)

STREAM = "com.twilio.taskrouter."
"""What the CloudEvents types of TaskRouter begin with."""
WITHHELD = frozenset({"+266696687", "+7378742833", "+2562533", "+8656696", "+86282452253"})
"""What Twilio writes for a caller without a number: ANONYMOUS, RESTRICTED, BLOCKED, UNKNOWN, UNAVAILABLE
spelt on a keypad. Taken for a number, they would make one customer of all who withhold theirs."""

_ENDS = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})
_ON_THE_WAY = frozenset({"queued", "initiated", "in-progress"})
_LEFT: Mapping[str, Literal["abandoned", "timeout"]] = {"hangup": "abandoned", "task ttl exceeded": "timeout"}
_HOLDS: Mapping[str, bool] = {"participant-hold": True, "participant-unhold": False}
_CONFERENCE = frozenset(
    {"start", "end", "join", "leave", "mute", "unmute", "modify", "speech-start", "speech-stop"}
)
_MODES: Mapping[str, Literal["blind", "attended"]] = {"COLD": "blind", "WARM": "attended"}
_KINDS: Mapping[str, Literal["agent", "queue"]] = {"WORKER": "agent", "QUEUE": "queue"}


def _moment(value: object) -> object:
    """Read what Twilio writes: seconds or milliseconds since 1970, RFC 2822, or ISO 8601."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError("is not a time")  # noqa: TRY004 -- pydantic's way
    if text.isascii() and text.isdigit() and len(text) <= 18:
        unit = timedelta(milliseconds=1) if len(text) > 11 else timedelta(seconds=1)
        return from_epoch(int(text), unit)
    if "," not in text:
        return text
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        raise ValueError("is not a time of RFC 2822") from None


Moment = Annotated[AwareDatetime, BeforeValidator(_moment), AfterValidator(plausible)]
Said = Iterator[tuple[type[Body], dict[str, Any]]]
"""Facts before they are bodies: kind, and what only this kind says."""


class _Spelt(Payload):
    """Fields as forms spell them (`TaskSid`), or as streams do (`task_sid`)."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(to_pascal(name), name))
    )


# ---------------------------------------------------------------- voice


class _Status(_Spelt):
    call_sid: Identifier
    parent_call_sid: Identifier | None = None
    call_status: Code
    direction: Code = "unknown"
    timestamp: Moment | None = None
    sequence_number: Annotated[int, Field(ge=0, le=MOST)] | None = None
    caller: str | None = Field(None, validation_alias="From")
    dialled: Line = Field("", validation_alias="To")
    call_duration: Seconds | None = None
    recording_url: Line | None = None
    recording_duration: Seconds | None = None

    def said(self) -> Said:
        if self.parent_call_sid is None:
            if self.call_status == "ringing":
                yield telephony.CallOffered, {"dialled": self.dialled}
            elif self.call_status in _ENDS:
                total_ms = _ms(self.call_duration)
                yield telephony.CallEnded, {"cause": self.call_status, "total_ms": total_ms}
        if self.recording_url:
            duration_ms = _ms(self.recording_duration)
            yield telephony.RecordingPublished, {"uri": self.recording_url, "duration_ms": duration_ms}


class _Conference(_Spelt):
    """What a conference tells of one who takes part: the customer, unless a label says otherwise."""

    conference_sid: Identifier
    status_callback_event: Code
    timestamp: Moment | None = None
    sequence_number: Annotated[int, Field(ge=0, le=MOST)] | None = None
    call_sid: Identifier | None = None
    participant_label: str = "customer"

    @property
    def held(self) -> bool | None:
        return _HOLDS.get(self.status_callback_event)


class _Recorded(_Spelt):
    call_sid: Identifier
    recording_sid: Identifier
    recording_status: Code
    recording_url: Line | None = None
    recording_duration: Seconds | None = None
    recording_start_time: Moment | None = None


def _ms(seconds: int | None) -> int | None:
    return seconds * 1000 if seconds is not None else None


def facts(form: Mapping[str, str], received_at: datetime | None = None, source: str = "twilio") -> Reading:
    """Tell what a form says: of a task (`EventType`), a call (`CallStatus`), a conference, or a recording.

    `received_at` stands in for a `Timestamp` that Twilio does not send, as in the request for a call's
    first instructions. Calls that the bank makes itself, and tasks that are no call, are `unknown`.
    Raises BadPayload with the field's name.
    """
    # An empty field of a form is one that does not apply.
    named = {name: value for name, value in form.items() if value}
    if "EventType" in named:
        return _task(named, named["EventType"], source)
    if "CallStatus" in named:
        return _status(named, received_at, source)
    if "StatusCallbackEvent" in named:
        return _conference(named, received_at, source)
    if "RecordingStatus" in named:
        return _recording(named, received_at, source)
    problem = "is missing, and CallStatus, StatusCallbackEvent and RecordingStatus too: this form is not read"
    raise BadPayload("EventType", problem)


def _status(named: Mapping[str, Any], received_at: datetime | None, source: str) -> Reading:
    status = _Status.read(named)
    number = status.call_status if status.sequence_number is None else status.sequence_number
    delivery = f"{status.call_sid}|{number}"
    if status.call_status not in _ENDS | _ON_THE_WAY | {"ringing"}:
        return Reading(delivery, unknown=status.call_status)
    if status.parent_call_sid is None and status.direction != "inbound":
        return Reading(delivery, unknown=f"{status.call_status} of {status.direction}")
    at = status.timestamp or received_at
    if at is None:
        raise BadPayload("Timestamp", "is missing")
    said = tuple(_say_status(status, at, source))
    return Reading(delivery, said)


def _say_status(status: _Status, at: datetime, source: str) -> Iterator[Mapped]:
    for kind, fields in status.said():
        body = kind(
            call_id=status.parent_call_sid or status.call_sid,
            source=source,
            leg_id=status.call_sid,
            occurred_at=at,
            source_seq=status.sequence_number,
            **fields,
        )
        caller = status.caller if kind is telephony.CallOffered and status.caller not in WITHHELD else None
        yield Mapped(
            f"{source}|{status.call_sid}|{status.call_status}|{kind.__name__}", body, phone_of(caller)
        )


def _conference(named: Mapping[str, Any], received_at: datetime | None, source: str) -> Reading:
    event = _Conference.read(named)
    name, at = event.status_callback_event, event.timestamp or received_at
    number = event.sequence_number if event.sequence_number is not None else f"{name}|{event.call_sid}|{at}"
    delivery = f"{event.conference_sid}|{number}"
    if event.held is None:
        known = name.removeprefix("conference-").removeprefix("participant-") in _CONFERENCE
        return Reading(delivery, unknown=None if known else name)
    if event.call_sid is None:
        raise BadPayload("CallSid", f"is missing in {name}")
    if at is None:
        raise BadPayload("Timestamp", "is missing")
    if event.participant_label != "customer":
        return Reading(delivery)
    leg = {"call_id": event.call_sid, "leg_id": event.call_sid, "source": source, "occurred_at": at}
    return Reading(delivery, (Mapped(f"{source}|{delivery}", telephony.CallHeld(**leg, held=event.held)),))


def _recording(named: Mapping[str, Any], received_at: datetime | None, source: str) -> Reading:
    event = _Recorded.read(named)
    delivery = f"{event.recording_sid}|{event.recording_status}"
    if event.recording_status != "completed" or event.recording_url is None:
        return Reading(delivery)
    began, length = event.recording_start_time, event.recording_duration
    at = began + timedelta(seconds=length or 0) if began else received_at
    if at is None:
        raise BadPayload("RecordingStartTime", "is missing")
    body = telephony.RecordingPublished(
        call_id=event.call_sid,
        leg_id=event.call_sid,
        source=source,
        occurred_at=at,
        uri=event.recording_url,
        duration_ms=_ms(length),
    )
    return Reading(delivery, (Mapped(f"{source}|{delivery}", body),))


# ---------------------------------------------------------------- TaskRouter


class _Other(_Spelt):
    timestamp: Moment
    resource_sid: str = ""


class _Attributes(Payload):
    call_sid: Identifier | None = None
    answered_at: Moment | None = None


class _Task(_Spelt):
    """What every event of a task has; alone it says nothing of a call's way."""

    timestamp: Moment
    task_sid: Identifier
    task_attributes: Json[_Attributes]

    @property
    def about(self) -> str:
        """What the event happened to: with its type, the fact's identity."""
        return self.task_sid

    def said(self) -> Said:
        """Tell the facts of the event."""
        yield from ()


class _Queued(_Task):
    task_queue_sid: Code
    task_priority: Annotated[int, Field(ge=-MOST, le=MOST)] | None = None

    @property
    def about(self) -> str:
        return f"{self.task_sid}|{self.task_queue_sid}"

    @property
    def visit(self) -> dict[str, Any]:
        return {"queue": self.task_queue_sid, "visit": visit_of(f"{self.task_sid}|{self.task_queue_sid}")}

    def said(self) -> Said:
        yield telephony.CallQueued, {**self.visit, "priority": self.task_priority}


class _Canceled(_Queued):
    task_canceled_reason: str | None = Field(
        None, validation_alias=AliasChoices("TaskCanceledReason", "task_canceled_reason", "Reason", "reason")
    )
    task_age_in_queue: Seconds | None = None

    def said(self) -> Said:
        reason = _LEFT.get((self.task_canceled_reason or "").lower(), "unknown")
        # None: forms tell the age of the task only, which counts every queue it was in.
        wait_ms = _ms(self.task_age_in_queue)
        yield telephony.QueueLeft, {**self.visit, "reason": reason, "wait_ms": wait_ms}


class _Moved(_Queued):
    def said(self) -> Said:
        # None: how long the task was in this queue, no form says.
        yield telephony.QueueLeft, {**self.visit, "reason": "overflow", "wait_ms": None}


class _Reserved(_Queued):
    reservation_sid: Identifier
    worker_sid: Code

    @property
    def about(self) -> str:
        return self.reservation_sid

    @property
    def tried(self) -> dict[str, Any]:
        return {**self.visit, "agent": self.worker_sid}

    def said(self) -> Said:
        yield telephony.AgentOffered, {**self.tried, "result": "ringing"}


class _Rejected(_Reserved):
    def said(self) -> Said:
        yield telephony.AgentOffered, {**self.tried, "result": "rejected"}


class _TimedOut(_Reserved):
    def said(self) -> Said:
        yield telephony.AgentOffered, {**self.tried, "result": "no_answer"}


class _Accepted(_Reserved):
    wait: Seconds = Field(validation_alias=AliasChoices("TaskAge", "task_age_in_queue", "task_age"))

    def said(self) -> Said:
        yield telephony.CallAnswered, {**self.tried, "wait_ms": self.wait * 1000}


class _Talked(_Reserved):
    def said(self) -> Said:
        answered_at = self.task_attributes.answered_at
        if answered_at:
            yield telephony.TalkEnded, {**self.tried, "talk_ms": between(answered_at, self.timestamp)}


class _Transferred(_Task):
    transfer_mode: Code = "unknown"
    transfer_type: Code = "unknown"
    transfer_to: Line = ""
    transfer_initiating_worker_sid: Code | None = None

    def said(self) -> Said:
        yield (
            telephony.CallTransferred,
            {
                "mode": _MODES.get(self.transfer_mode.upper(), "unknown"),
                "from_agent": self.transfer_initiating_worker_sid,
                "to": self.transfer_to,
                "to_kind": _KINDS.get(self.transfer_type.upper(), "unknown"),
            },
        )


TYPES: Mapping[str, type[_Task]] = {
    "task-queue.entered": _Queued,
    "task-queue.moved": _Moved,
    "task.canceled": _Canceled,
    "reservation.created": _Reserved,
    "reservation.accepted": _Accepted,
    "reservation.rejected": _Rejected,
    "reservation.timeout": _TimedOut,
    "reservation.wrapup": _Talked,
    "reservation.completed": _Talked,
    "task.transfer-completed": _Transferred,
    # These are known, and tell nothing that the others do not: a step of the workflow that timed out may be
    # followed by one in the same queue.
    "task-queue.timeout": _Task,
    "workflow.entered": _Task,
    "workflow.target-matched": _Task,
    "workflow.timeout": _Task,
    "task.created": _Task,
    "task.updated": _Task,
    "task.completed": _Task,
    "task.wrapup": _Task,
    "task.transfer-initiated": _Task,
    "task.transfer-attempt-failed": _Task,
    "task.transfer-failed": _Task,
    "task.transfer-canceled": _Task,
    "reservation.canceled": _Task,
    "reservation.rescinded": _Task,
}
"""What each type of event says."""


def facts_of_stream(kind: str, data: object, delivery: str, path: str = "data") -> Reading:
    """Tell what an event of Event Streams says: `kind` is its CloudEvents type, `data` stands at `path`.

    Raises BadPayload with the field's path (`data.payload.task_sid`).
    """
    # The payload names a type too, which Twilio's own samples show to be that of another event.
    payload = fields_of(fields_of(data, path).get("payload"), below(path, "payload"))
    try:
        return _task(payload, kind.removeprefix(STREAM), "twilio", delivery, below(path, "payload"))
    except BadPayload as bad:
        raise BadPayload(to_snake(bad.path), bad.problem) from None


def _task(payload: Mapping[str, Any], name: str, source: str, delivery: str = "", path: str = "") -> Reading:
    kind = TYPES.get(name)
    if kind is None:
        other = _Other.read(payload, path)
        return Reading(
            delivery or f"{other.resource_sid}|{name}|{other.timestamp.isoformat()}", unknown=name[:80]
        )
    event = kind.read(payload, path)
    delivery = delivery or f"{event.about}|{name}|{event.timestamp.isoformat()}"
    call_id = event.task_attributes.call_sid
    if call_id is None:
        return Reading(delivery, unknown=f"{name} of a task without call_sid")
    return Reading(delivery, tuple(_say_task(event, name, call_id, source)))


def _say_task(event: _Task, name: str, call_id: str, source: str) -> Iterator[Mapped]:
    # Forms and streams tell the same fact, the one in whole seconds, the other in milliseconds.
    at = event.timestamp.replace(microsecond=0)
    for kind, fields in event.said():
        body = kind(call_id=call_id, source=source, leg_id=call_id, occurred_at=at, **fields)
        yield Mapped(f"{source}|{event.about}|{name}|{at.isoformat()}", body)
