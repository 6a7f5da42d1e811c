"""Wiring of the resolver."""

from chassis.settings import Settings
from chassis.stage import Stage
from chassis.vault import Vault
from schemas import resolver
from services.resolver.domain import DECISIONS, Assignment, Policy

STAGE = Stage(
    name="resolver",
    state=Assignment,
    phase=lambda assignment: assignment.phase,
    decisions=DECISIONS,
    emits=(
        resolver.CaseDelivered,
        resolver.CaseAssigned,
        resolver.CaseShared,
        resolver.CaseAccepted,
        resolver.CaseReturned,
        resolver.CaseTransferred,
        resolver.CaseProgressed,
        resolver.CasePaused,
        resolver.CaseResumed,
        resolver.CaseEscalated,
        resolver.CaseResolved,
        resolver.CaseWithdrawn,
        resolver.CommandRefused,
    ),
    timer_fired=resolver.TimerFired,
    command_refused=resolver.CommandRefused,
    policy=Policy(),
)


def build(_: Settings, __: Vault) -> Stage:
    """Give the stage; nothing depends on settings."""
    return STAGE
