"""What telephony says of a call: one source-neutral event per fact, whatever switch saw it.

A *call* is the customer's contact, a *leg* one channel of it, a *visit* the n-th entry into a queue.
Durations are whole milliseconds. `occurred_at` is the switch's clock.
"""

from typing import Literal

from schemas.envelope import Body, Cipher, Code, Identifier, Kind, Line, Moment, message

TOPIC = "telephony.calls"
Milliseconds = int


class CallEvent(Body):
    """A fact about one call, said by one switch."""

    call_id: Identifier
    source: Code
    leg_id: Identifier | None = None
    occurred_at: Moment
    source_seq: int | None = None


@message("telephony.call-offered", topic=TOPIC, key="call_id")
class CallOffered(CallEvent):
    """A caller reached the hotline; `caller` is the number, sealed by the adapter with the caller's key.

    `callback_of` names the earlier call that asked for this one, when the hotline calls back.
    """

    caller: Cipher | None = None
    customer_ref: Identifier | None = None
    dialled: Line = ""
    language: Code | None = None
    callback_of: Identifier | None = None


@message("telephony.call-queued", topic=TOPIC, key="call_id")
class CallQueued(CallEvent):
    """The caller entered a queue."""

    queue: Code
    visit: int
    position: int | None = None
    priority: int | None = None


@message("telephony.call-positioned", topic=TOPIC, key="call_id")
class CallPositioned(CallEvent):
    """The caller's place in the queue is known or inferred from others leaving."""

    queue: Code
    visit: int
    position: int
    waiting: int | None = None
    inferred: bool = False


@message("telephony.position-told", topic=TOPIC, key="call_id")
class PositionTold(CallEvent):
    """What the voice assistant told a waiting caller: the place, the time, the answers that it played.

    `estimate_ms` is the estimate itself, `about_ms` and `at_most_ms` what was named; `answers` are ids of
    articles.
    """

    queue: Code
    visit: int
    position: int | None = None
    estimate_ms: Milliseconds | None = None
    about_ms: Milliseconds | None = None
    at_most_ms: Milliseconds | None = None
    basis: Code = "unknown"
    language: Code | None = None
    answers: tuple[Code, ...] = ()


@message("telephony.reason-captured", topic=TOPIC, key="call_id")
class ReasonCaptured(CallEvent):
    """Why the caller calls, by digit or in words, so that the agent starts informed.

    `text` is the caller's words, sealed with the key of `customer_ref`.
    """

    topic: Code
    digit: Line = ""
    customer_ref: Identifier | None = None
    text: Cipher | None = None


@message("telephony.call-refused", topic=TOPIC, key="call_id")
class CallRefused(CallEvent):
    """The queue did not take the caller."""

    queue: Code
    reason: Literal["full", "joinempty", "closed", "unknown"] = "unknown"


@message("telephony.agent-offered", topic=TOPIC, key="call_id")
class AgentOffered(CallEvent):
    """An agent's telephone was tried."""

    queue: Code
    visit: int
    agent: Code
    result: Literal["ringing", "no_answer", "busy", "rejected"]
    ring_ms: Milliseconds | None = None


@message("telephony.call-answered", topic=TOPIC, key="call_id")
class CallAnswered(CallEvent):
    """An agent and the caller talk."""

    queue: Code
    visit: int
    agent: Code
    wait_ms: Milliseconds
    ring_ms: Milliseconds | None = None
    agent_leg_id: Identifier | None = None


@message("telephony.queue-left", topic=TOPIC, key="call_id")
class QueueLeft(CallEvent):
    """The caller left the queue without an agent; `unknown` may be corrected by a slower source."""

    queue: Code
    visit: int
    reason: Literal["abandoned", "timeout", "empty", "key", "withdrawn", "overflow", "unknown"]
    wait_ms: Milliseconds | None = None
    position: int | None = None


@message("telephony.call-held", topic=TOPIC, key="call_id")
class CallHeld(CallEvent):
    """The caller was put on hold, or taken back."""

    held: bool
    agent: Code | None = None


@message("telephony.call-transferred", topic=TOPIC, key="call_id")
class CallTransferred(CallEvent):
    """The agent passed the caller on."""

    mode: Literal["blind", "attended", "unknown"]
    from_agent: Code | None = None
    to: Line = ""
    to_kind: Literal["queue", "agent", "external", "unknown"] = "unknown"


@message("telephony.talk-ended", topic=TOPIC, key="call_id")
class TalkEnded(CallEvent):
    """One talk between caller and agent is over."""

    queue: Code
    visit: int
    agent: Code
    talk_ms: Milliseconds
    wait_ms: Milliseconds | None = None
    ended_by: Literal["caller", "agent", "transfer", "system", "unknown"] = "unknown"


@message("telephony.wrapup-done", topic=TOPIC, key="call_id")
class WrapupDone(CallEvent):
    """The agent finished the work after the call."""

    agent: Code
    acw_ms: Milliseconds
    code: Code | None = None


@message("telephony.callback-requested", topic=TOPIC, key="call_id")
class CallbackRequested(CallEvent):
    """The caller asked to be called back and left the queue.

    `number` is sealed with the key of `customer_ref`, whose number it is; without both, the caller's own.
    """

    queue: Code
    customer_ref: Identifier | None = None
    number: Cipher | None = None
    due_at: Moment | None = None


@message("telephony.survey-answered", topic=TOPIC, key="call_id")
class SurveyAnswered(CallEvent):
    """The caller answered (or ignored) the question at the end of the call."""

    question: Code
    digits: Line = ""
    status: Literal["ok", "timeout", "hangup", "invalid"]


@message("telephony.recording-published", topic=TOPIC, key="call_id")
class RecordingPublished(CallEvent):
    """A sound recording exists; the event carries a reference, never the sound."""

    uri: Line
    duration_ms: Milliseconds | None = None


@message("telephony.transcript-published", topic=TOPIC, key="call_id")
class TranscriptPublished(CallEvent):
    """A written transcript exists; the event carries a reference, never the text."""

    uri: Line
    language: Code | None = None


@message("telephony.call-ended", topic=TOPIC, key="call_id")
class CallEnded(CallEvent):
    """The contact is over; exactly one per call.

    With `leg_only` it is the leg that is over, one end for each leg, and the call with the last of them;
    `next_leg_id` is the leg that goes on, where that is known.
    """

    cause: Code
    total_ms: Milliseconds | None = None
    leg_only: bool = False
    next_leg_id: Identifier | None = None


@message("telephony.source-interrupted", topic=TOPIC, key="source")
class SourceInterrupted(Body):
    """A feed was silent or jumped between two moments; what happened meanwhile may be missing."""

    source: Code
    reason: Literal["disconnected", "source_restarted", "seq_jump"]
    gap_from: Moment
    gap_to: Moment
    from_seq: int | None = None
    to_seq: int | None = None


@message("telephony.manifest-published", topic=TOPIC, key="source", kind=Kind.RECORD)
class ManifestPublished(Body):
    """A feed says which numbers (`ce_sequence` of its `ce_source`) it has published; one missing is lost."""

    source: Code
    from_seq: int
    to_seq: int
    count: int
    period_from: Moment
    period_to: Moment
