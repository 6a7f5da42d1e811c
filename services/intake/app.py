"""Wiring of intake."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chassis.postgres import Tx
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.step import Event
from chassis.vault import Vault
from schemas import intake
from services.intake import store
from services.intake.domain import DECISIONS, Contact, Policy
from services.intake.settings import IntakeSettings

STAGE = Stage(
    name="intake",
    state=Contact,
    phase=lambda contact: contact.phase,
    decisions=DECISIONS,
    emits=(
        intake.CaseRecorded,
        intake.CaseAnswered,
        intake.ContactAttached,
        intake.ContactClosed,
        intake.RecordingOverdue,
        intake.CommandRefused,
    ),
    timer_fired=intake.TimerFired,
    command_refused=intake.CommandRefused,
    policy=Policy(),
)


async def number_cases(tx: Tx, events: Sequence[Event[Any]], policy: Policy) -> Policy:
    """Draw a case number for each command that may make a case."""
    asking = [event.uid for event in events if isinstance(event.body, intake.RecordingRequested)]
    if not asking:
        return policy
    numbers = await store.next_case_numbers(tx, len(asking))
    return replace(policy, numbers=dict(zip(asking, numbers, strict=True)))


def build(settings: Settings, _: Vault) -> Stage:
    """Bind the stage to its settings."""
    assert isinstance(settings, IntakeSettings)
    policy = Policy(wrap_up=settings.wrap_up, settle=settings.settle)
    return replace(STAGE, policy=policy, prepare=number_cases)
