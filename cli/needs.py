"""What each kind of telephony must say for the pipeline to live, and what makes it say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from schemas import telephony
from schemas.envelope import BY_BODY, Body


class Need(NamedTuple):
    """What a source must say, by its own event (a PBX by its log's verbs too), and what adds it."""

    event: str
    verbs: tuple[str, ...]
    kind: type[Body]
    is_needed: bool
    where: str
    fix: str


_ENDS = ("COMPLETECALLER", "COMPLETEAGENT", "BLINDTRANSFER", "ATTENDEDTRANSFER")
_LEAVES = ("ABANDON", "EXITWITHTIMEOUT", "EXITWITHKEY", "EXITEMPTY", "WITHDRAW")
_USER, _READ = "manager.conf, in the user's section", "read = system,call,agent,user"
ASTERISK = (
    Need(
        "UserEvent IvrIdentified", (), telephony.CallOffered, True,
        "extensions.conf, as soon as the caller is known",
        "UserEvent(IvrIdentified)",
    ),
    Need("QueueCallerJoin", ("ENTERQUEUE",), telephony.CallQueued, True, _USER, _READ),
    Need("AgentConnect", ("CONNECT",), telephony.CallAnswered, True, _USER, _READ),
    Need("AgentComplete", _ENDS, telephony.TalkEnded, True, _USER, _READ),
    Need("QueueCallerLeave", _LEAVES, telephony.QueueLeft, True, _USER, _READ),
    Need("Hangup", (), telephony.CallEnded, True, _USER, _READ),
    Need(
        "UserEvent QueueRefused", (), telephony.CallRefused, True,
        "extensions.conf, after each Queue()",
        "UserEvent(QueueRefused,Queue: ${QUEUE},Status: ${QUEUESTATUS})",
    ),
    Need(
        "UserEvent CallbackRequested", (), telephony.CallbackRequested, False,
        "extensions.conf, where the caller chooses to be called back",
        "UserEvent(CallbackRequested,Queue: ${QUEUE},Number: ${CALLERID(num)})",
    ),
    Need(
        "UserEvent SurveyAnswer", (), telephony.SurveyAnswered, False,
        "extensions.conf, after the Read() of the answer (QUEUESTATUS is CONTINUE there)",
        "UserEvent(SurveyAnswer,Queue: ${QUEUE},Score: ${SCORE},Status: ${READSTATUS})",
    ),
)  # fmt: skip
_LIFE: tuple[tuple[type[Body], bool], ...] = (
    (telephony.CallOffered, True),
    (telephony.CallQueued, True),
    (telephony.CallAnswered, True),
    (telephony.TalkEnded, True),
    (telephony.QueueLeft, False),
    (telephony.CallEnded, True),
)
"""One answered call; who gives up is seen only when somebody does."""


def _hook(where: str, fix: str, *events: str) -> tuple[Need, ...]:
    """Name the events by which a sender tells a call's life, in the order of `_LIFE`."""
    return tuple(
        Need(event, (), kind, is_needed, where, fix)
        for event, (kind, is_needed) in zip(events, _LIFE, strict=True)
    )


_TASKS = "Twilio, the TaskRouter workspace: event callback, or a sink of Event Streams"
_TWILIO = _hook(
    _TASKS,
    "send it to this address; the task's attributes need call_sid, as Enqueue sets it",
    *("CallStatus ringing", "task-queue.entered", "reservation.accepted", "reservation.completed"),
    *("task.canceled", "CallStatus completed"),
)
_INSTEAD: Mapping[str, tuple[str, str]] = {
    "CallStatus ringing": ("Twilio, the number's voice request", "forward it to this address too"),
    "CallStatus completed": ("Twilio, the number: call status changes", "send them to this address"),
    "reservation.completed": (
        f"{_TASKS}; and the workflow",
        "write answered_at (seconds since 1970) into the task's attributes when an agent accepts",
    ),
}
NEEDS: Mapping[str, tuple[Need, ...]] = {
    "asterisk": ASTERISK,
    "cloudevents": _hook(
        "the sender",
        "send this type, with the fields of its schema (schemas/json)",
        *(BY_BODY[kind].wire for kind, _ in _LIFE),
    ),
    "connect": _hook(
        "Amazon EventBridge, the rule's event pattern",
        '"detail-type": ["Amazon Connect Contact Event"], and no filter on eventType',
        *("INITIATED", "QUEUED", "CONNECTED_TO_AGENT", "DISCONNECTED", "DISCONNECTED", "DISCONNECTED"),
    ),
    "connect_records": _hook(
        "Amazon Connect, data streaming: contact records",
        "post each record as it is, once it is there and again when it has changed",
        *("contact record",) * len(_LIFE),
    ),
    "twilio": tuple(
        need._replace(where=_INSTEAD[need.event][0], fix=_INSTEAD[need.event][1])
        if need.event in _INSTEAD
        else need
        for need in _TWILIO
    ),
    "genesys": _hook(
        "Genesys Cloud, the EventBridge integration or the notification channel",
        "subscribe to v2.detail.events.conversation.{id} with this topic",
        *("customer.start", "acd.start", "acd.end", "user.end", "acd.end", "customer.end"),
    ),
    "freeswitch": _hook(
        "FreeSWITCH, the forwarder's event socket",
        "event json CHANNEL_CREATE CHANNEL_HANGUP_COMPLETE CHANNEL_HOLD CHANNEL_UNHOLD RECORD_STOP"
        " CUSTOM callcenter::info",
        *("CHANNEL_CREATE", "member-queue-start", "bridge-agent-start", "bridge-agent-end"),
        *("member-queue-end", "CHANNEL_HANGUP_COMPLETE"),
    ),
}
"""By the kind of a source, the events that the pipeline lives on."""
