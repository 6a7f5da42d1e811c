"""Handoffs as data: for each event that obliges a consumer group, what must follow, and by when.

*Immediate*: every consumed event is answered, in the same pass, by one of `answers`, by a receipt or
by a dead letter; the consumer's commit proves it. *Deferred*: one of `later` must follow `within` the
stated time; the owner's timers prove it. The table drives tests, the ledger, the docs and the README.
"""

from dataclasses import dataclass
from datetime import timedelta

from schemas import feedback, intake, resolver, router, telephony
from schemas.envelope import BY_BODY, Body


@dataclass(frozen=True, slots=True)
class Deferred:
    """What must follow in time, and who owes it."""

    later: tuple[type[Body], ...]
    within: timedelta
    owner: str


@dataclass(frozen=True, slots=True)
class Handoff:
    """One obligation: `group` must answer `on`."""

    on: type[Body]
    group: str
    answers: tuple[type[Body], ...]
    receipt: bool = False
    deferred: Deferred | None = None

    @property
    def edge(self) -> str:
        """The name of the handoff in metrics and messages, for example `intake.case-recorded→router`."""
        return f"{BY_BODY[self.on].name}→{self.group}"


WRAP_UP = timedelta(minutes=10)
CALL_BACK = timedelta(days=12)  # A queue may be closed for a festival's nine days.
ACCEPT = timedelta(hours=2)
TELL = timedelta(hours=24)
RATE = timedelta(days=7)

_CONTACT: tuple[type[Body], ...] = (
    intake.ContactClosed,
    intake.ContactContinued,
    intake.RepeatNoticed,
    intake.CallbackScheduled,
    intake.CallbackAttempted,
    intake.CallbackCancelled,
    intake.CallbackCancellationRequested,
    intake.CallbackAttemptReported,
)
"""What any fact about a call may bring about: facts arrive in any order, the last one decides."""

_NOTED = tuple(
    Handoff(kind, "intake", (*_CONTACT,), receipt=True)
    for kind in (
        telephony.CallOffered,
        telephony.CallQueued,
        telephony.CallPositioned,
        telephony.PositionTold,
        telephony.ReasonCaptured,
        telephony.CallRefused,
        telephony.AgentOffered,
        telephony.CallAnswered,
        telephony.QueueLeft,
        telephony.CallHeld,
        telephony.CallTransferred,
        telephony.TalkEnded,
        telephony.WrapupDone,
        telephony.CallbackRequested,
        telephony.SurveyAnswered,
        telephony.RecordingPublished,
        telephony.TranscriptPublished,
        telephony.SourceInterrupted,
    )
)

_ROUTED = (router.CaseRouted, router.CaseParked)
_RESULT = (feedback.CaseOpened,)

HANDOFFS: tuple[Handoff, ...] = (
    *_NOTED,
    Handoff(
        telephony.CallEnded,
        "intake",
        _CONTACT,
        receipt=True,
        deferred=Deferred(
            (
                intake.CaseRecorded,
                intake.CaseAnswered,
                intake.ContactAttached,
                intake.ContactClosed,
                intake.ContactContinued,
                intake.CallbackScheduled,
                intake.RecordingOverdue,
            ),
            WRAP_UP,
            "agents",
        ),
    ),
    Handoff(
        intake.RecordingRequested,
        "intake",
        (intake.CaseRecorded, intake.CaseAnswered, intake.CommandRefused),
        receipt=True,
    ),
    Handoff(
        intake.AttachmentRequested,
        "intake",
        (intake.ContactAttached, intake.CaseEscalated, intake.CommandRefused),
        receipt=True,
    ),
    Handoff(
        intake.ClosingRequested,
        "intake",
        (intake.ContactClosed, intake.CommandRefused),
        receipt=True,
    ),
    Handoff(
        intake.CallbackAttemptReported,
        "intake",
        (intake.CallbackAttempted, intake.CallbackExhausted, intake.ContactClosed, intake.CommandRefused),
        receipt=True,
    ),
    Handoff(
        intake.CallbackCancellationRequested,
        "intake",
        (intake.CallbackCancelled, intake.ContactClosed, intake.CommandRefused),
        receipt=True,
    ),
    Handoff(
        intake.CallbackScheduled,
        "customer",
        (),
        receipt=True,
        deferred=Deferred(
            (
                intake.CallbackAttempted,
                intake.CallbackCancelled,
                intake.CallbackExhausted,
                intake.CallbackOverdue,
            ),
            CALL_BACK,
            "agents",
        ),
    ),
    Handoff(
        intake.TimerFired,
        "intake",
        (
            intake.RecordingOverdue,
            intake.ContactClosed,
            intake.CallbackOverdue,
            intake.CallbackExhausted,
            intake.CommandRefused,
        ),
        receipt=True,
    ),
    Handoff(intake.CaseRecorded, "router", _ROUTED, True),
    Handoff(intake.CaseAnswered, "feedback", _RESULT, True),
    Handoff(
        router.CaseRouted,
        "resolver",
        (resolver.CaseDelivered, resolver.CaseAssigned, resolver.CaseShared),
        True,
    ),
    Handoff(
        router.CaseParked,
        "triage",
        (),
        receipt=True,
        deferred=Deferred(
            (router.CaseRouted, router.CaseRejected, router.RulingLapsed, router.TriageOverdue),
            # At most: the router reminds after ten minutes, or whatever it is told, and then it is overdue.
            ACCEPT,
            "triage",
        ),
    ),
    Handoff(router.CaseRejected, "feedback", _RESULT, True),
    Handoff(router.AssignmentRequested, "router", (router.CaseRouted, router.CommandRefused), True),
    Handoff(router.RejectionRequested, "router", (router.CaseRejected, router.CommandRefused), True),
    Handoff(router.TimerFired, "router", (router.TriageOverdue, router.CommandRefused), True),
    Handoff(
        resolver.AcceptanceRequested,
        "resolver",
        (resolver.CaseAccepted, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.ReturnRequested,
        "resolver",
        (resolver.CaseReturned, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.TransferRequested,
        "resolver",
        (resolver.CaseTransferred, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.ProgressRequested,
        "resolver",
        (resolver.CaseProgressed, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.PauseRequested,
        "resolver",
        (resolver.CasePaused, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.ResumptionRequested,
        "resolver",
        (resolver.CaseResumed, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.ResolutionRequested,
        "resolver",
        (resolver.CaseResolved, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.WithdrawalRequested,
        "resolver",
        (resolver.CaseWithdrawn, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(
        resolver.TimerFired,
        "resolver",
        (resolver.CaseEscalated, resolver.CaseResumed, resolver.CommandRefused),
        receipt=True,
    ),
    Handoff(resolver.CaseReturned, "router", _ROUTED, True),
    Handoff(resolver.CaseTransferred, "router", _ROUTED, True),
    Handoff(resolver.CaseWithdrawn, "router", (router.RulingLapsed,), True),
    Handoff(
        resolver.CaseDelivered,
        "department",
        (),
        receipt=True,
        deferred=Deferred(
            (
                resolver.CaseAccepted,
                resolver.CaseReturned,
                resolver.CaseWithdrawn,
                resolver.CaseEscalated,
                # A person in triage decided meanwhile: another department has it, and its own time.
                resolver.CaseDelivered,
            ),
            ACCEPT,
            "department",
        ),
    ),
    Handoff(resolver.CaseResolved, "feedback", _RESULT, True),
    Handoff(resolver.CaseWithdrawn, "feedback", _RESULT, True),
    Handoff(
        feedback.CaseOpened,
        "customer",
        (),
        receipt=True,
        deferred=Deferred(
            (feedback.CustomerTold, feedback.CustomerUnreached, feedback.TellingOverdue),
            TELL,
            "feedback",
        ),
    ),
    Handoff(
        feedback.TellingAttempted,
        "feedback",
        (
            feedback.CustomerTold,
            feedback.TellingFailed,
            feedback.CustomerUnreached,
            feedback.CommandRefused,
        ),
        receipt=True,
    ),
    Handoff(
        feedback.RatingRequested,
        "feedback",
        (feedback.SatisfactionRecorded, feedback.CommandRefused),
        receipt=True,
    ),
    Handoff(
        feedback.TimerFired,
        "feedback",
        (feedback.SatisfactionExpired, feedback.TellingOverdue, feedback.CommandRefused),
        receipt=True,
    ),
    Handoff(feedback.CaseReopened, "router", _ROUTED, True),
)

TERMINAL: tuple[type[Body], ...] = (
    intake.ContactAttached,
    intake.ContactClosed,
    intake.ContactContinued,
    intake.RecordingOverdue,
    intake.RepeatNoticed,
    intake.CaseEscalated,
    intake.CallbackAttempted,
    intake.CallbackOverdue,
    intake.CallbackExhausted,
    intake.CallbackCancelled,
    intake.CommandRefused,
    router.RulingLapsed,
    router.TriageOverdue,
    router.CommandRefused,
    resolver.CaseAssigned,
    resolver.CaseShared,
    resolver.CaseAccepted,
    resolver.CaseProgressed,
    resolver.CasePaused,
    resolver.CaseResumed,
    resolver.CaseEscalated,
    resolver.CommandRefused,
    feedback.CustomerTold,
    feedback.TellingFailed,
    feedback.CustomerUnreached,
    feedback.TellingOverdue,
    feedback.SatisfactionRecorded,
    feedback.SatisfactionExpired,
    feedback.CaseClosed,
    feedback.CommandRefused,
)
"""Events that oblige no stage: they end a history, or people outside the four stages act on them."""


def obligations_of(group: str) -> dict[type[Body], Handoff]:
    """Give what a consumer group owes, by the event that obliges it."""
    return {handoff.on: handoff for handoff in HANDOFFS if handoff.group == group}
