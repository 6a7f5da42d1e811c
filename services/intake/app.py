"""Wiring of intake."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from chassis.clock import utc_now
from chassis.postgres import Tx
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.step import Event
from chassis.vault import Vault
from schemas import intake, telephony
from schemas.intake import AttachmentRequested as Attachment
from services.intake import store
from services.intake.contact import Contact
from services.intake.domain import DECISIONS, Policy
from services.intake.settings import IntakeSettings

STAGE = Stage(
    name="intake",
    state=Contact,
    phase=lambda contact: contact.phase,
    decisions=DECISIONS,
    emits=(
        intake.CaseRecorded,
        intake.CaseAnswered,
        intake.CaseEscalated,
        intake.ContactAttached,
        intake.ContactClosed,
        intake.RecordingOverdue,
        intake.RepeatNoticed,
        intake.CallbackScheduled,
        intake.CallbackAttempted,
        intake.CallbackOverdue,
        intake.CallbackExhausted,
        intake.CallbackCancelled,
        intake.CallbackAttemptReported,
        intake.CallbackCancellationRequested,
        intake.CommandRefused,
    ),
    timer_fired=intake.TimerFired,
    command_refused=intake.CommandRefused,
    policy=Policy(),
    copies=store.COPIES,
)


async def look_up(tx: Tx, events: Sequence[Event[Any]], policy: Policy) -> Policy:
    """Read what the decisions of a batch need: case numbers, what is known of callers, contacts of cases."""
    bodies = [event.body for event in events]
    asking = [event.uid for event in events if isinstance(event.body, intake.RecordingRequested)]
    if asking:
        numbers = await store.next_case_numbers(tx, len(asking))
        policy = replace(policy, numbers=dict(zip(asking, numbers, strict=True)))
    refs = {body.customer_ref for body in bodies if isinstance(body, telephony.CallOffered)} - {None}
    if refs:
        since = utc_now() - policy.repeat_within
        policy = replace(policy, known=await store.known_callers(tx, sorted(map(str, refs)), since))
    attachments = [(event.uid, event.body) for event in events if isinstance(event.body, Attachment)]
    if attachments:
        contacts = await store.contacts_of(tx, list({body.to_case_id for _, body in attachments}))
        policy = replace(policy, contacts_of=contacts, attached_before=_attached_before(attachments))
    return policy


def _attached_before(attachments: Sequence[tuple[UUID, Attachment]]) -> dict[UUID, int]:
    """Count for each command the other calls that its batch attaches to the same case before it."""
    calls_of: dict[UUID, dict[str, int]] = defaultdict(dict)
    before: dict[UUID, int] = {}
    for command_id, body in attachments:
        calls = calls_of[body.to_case_id]
        before[command_id] = calls.setdefault(body.call_id, len(calls))
    return before


def build(settings: Settings, _: Vault) -> Stage:
    """Bind the stage to its settings."""
    assert isinstance(settings, IntakeSettings)
    policy = Policy(
        wrap_up=settings.wrap_up,
        settle=settings.settle,
        callback_after=settings.callback_after,
        callback_attempts=settings.callback_attempts,
        callback_spacing=settings.callback_spacing,
        repeat_within=settings.repeat_within,
    )
    return replace(STAGE, policy=policy, prepare=look_up)
