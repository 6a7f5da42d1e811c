"""Wiring of the router."""

from dataclasses import replace

from chassis.faults import Misconfigured
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.vault import Vault
from schemas import router
from services.router.domain import DECISIONS, Policy, Routing
from services.router.rules import BadRules, load_rules
from services.router.settings import RouterSettings

STAGE = Stage(
    name="router",
    state=Routing,
    phase=lambda routing: routing.phase,
    decisions=DECISIONS,
    emits=(router.CaseRouted, router.CaseParked, router.CaseRejected, router.CommandRefused),
    timer_fired=router.TimerFired,
    command_refused=router.CommandRefused,
    policy=Policy(),
)


def build(settings: Settings, _: Vault) -> Stage:
    """Bind the stage to its rules; raises Misconfigured for a bad rules file."""
    assert isinstance(settings, RouterSettings)
    try:
        ruleset = load_rules(settings.rules_file)
    except BadRules as error:
        raise Misconfigured(str(error)) from None
    policy = Policy(
        ruleset=ruleset,
        accept_within=settings.accept_within,
        resolve_within=settings.resolve_within,
        urgent_within=settings.urgent_within,
    )
    return replace(STAGE, policy=policy)
