"""Wiring of intake."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from chassis.clock import utc_now
from chassis.postgres import Tx
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.step import Event
from chassis.vault import Vault
from schemas import intake, telephony
from schemas.envelope import Body
from schemas.intake import AttachmentRequested as Attachment
from services.intake import store
from services.intake.contact import Contact
from services.intake.domain import DECISIONS, Known, Policy
from services.intake.settings import IntakeSettings
from services.intake.waiting.hours import load_hours

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
        intake.ContactContinued,
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


async def look_up(drawing: store.CaseNumbers, tx: Tx, events: Sequence[Event[Any]], policy: Policy) -> Policy:
    """Read what the decisions of a batch need: case numbers, what is known of callers, contacts of cases."""
    of_kind: dict[type[Body], list[Event[Any]]] = defaultdict(list)
    for event in events:
        of_kind[type(event.body)].append(event)
    asking = [event.uid for event in of_kind[intake.RecordingRequested]]
    if asking:
        numbers = await drawing.draw(tx, len(asking))
        policy = replace(policy, numbers=dict(zip(asking, numbers, strict=True)))
    refs = {event.body.customer_ref for event in of_kind[telephony.CallOffered]} - {None}
    if refs:
        since = utc_now() - policy.repeat_within
        known, families = await store.known_callers(tx, sorted(refs), since)
        rung_before = await _rung_before(tx, events, since, families)
        policy = replace(policy, known=known, rung_before=rung_before)
    attachments = [(event.uid, event.body) for event in of_kind[Attachment]]
    if attachments:
        contacts = await store.contacts_of(tx, list({body.to_case_id for _, body in attachments}))
        policy = replace(policy, contacts_of=contacts, attached_before=_attached_before(attachments))
    return policy


async def _rung_before(
    tx: Tx, events: Sequence[Event[Any]], since: datetime, families: Mapping[str, str]
) -> dict[UUID, Known]:
    """Tell for each ring what its batch adds to what is known of the caller: rings and wishes before it.

    Calls of one customer lie in several partitions, so the time of the facts is their order, not the reading.
    A wish is its caller's, as in the store; where nobody knows the caller, whose number it names.
    """
    kinds = (telephony.CallOffered, telephony.CallbackRequested)
    told = [(event.uid, event.body) for event in events if type(event.body) in kinds]
    refs = {
        body.call_id: body.customer_ref
        for _, body in told
        if isinstance(body, telephony.CallOffered) and body.customer_ref
    }
    wishes = {body.call_id for _, body in told if isinstance(body, telephony.CallbackRequested)}
    if not wishes and len({families[ref] for ref in refs.values()}) == len(refs):
        return {}
    # The calls whose first ring was read earlier are counted in the store.
    known_calls = await store.known_calls(tx, sorted(refs.keys() | wishes))
    counted = set(known_calls)
    refs |= known_calls
    before: dict[str, Known] = defaultdict(Known)
    found: dict[UUID, Known] = {}
    for uid, body in sorted(told, key=lambda one: one[1].occurred_at):
        ref = refs.get(body.call_id) or body.customer_ref
        if ref is None:
            continue
        ref = families.get(ref, ref)  # numbers that were merged are one customer's
        known = before[ref]
        if isinstance(body, telephony.CallbackRequested):
            before[ref] = known.plus(Known(callbacks=(body.call_id,)))
            continue
        found[uid] = known
        if body.call_id not in counted and body.occurred_at > since:
            counted.add(body.call_id)
            before[ref] = known.plus(Known(contacts=1))
    return found


def _attached_before(attachments: Sequence[tuple[UUID, Attachment]]) -> dict[UUID, int]:
    """Count for each command the other calls that its batch attaches to the same case before it."""
    calls_of: dict[UUID, dict[str, int]] = defaultdict(dict)
    before: dict[UUID, int] = {}
    for command_id, body in attachments:
        calls = calls_of[body.to_case_id]
        before[command_id] = calls.setdefault(body.call_id, len(calls))
    return before


def build(settings: Settings, _: Vault) -> Stage:
    """Bind the stage to its settings; raises BadHours for an hours file that may not be used."""
    assert isinstance(settings, IntakeSettings)
    policy = Policy(
        wrap_up=settings.wrap_up,
        settle=settings.settle,
        callback_after=settings.callback_after,
        callback_attempts=settings.callback_attempts,
        callback_spacing=settings.callback_spacing,
        repeat_within=settings.repeat_within,
        opens=load_hours(settings.hours_file).next_opening,
    )
    return replace(STAGE, policy=policy, prepare=partial(look_up, store.CaseNumbers()))
