"""Wiring of the router."""

from dataclasses import replace

from chassis.faults import Misconfigured
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.vault import Vault
from schemas import router
from services.router import store
from services.router.decision import Desk
from services.router.departments import BadDepartments, load_departments
from services.router.domain import DECISIONS, Policy, Routing
from services.router.reading import Reading, load_shipped
from services.router.rules import BadRules, load_rules
from services.router.settings import RouterSettings

STAGE = Stage(
    name="router",
    state=Routing,
    phase=lambda routing: routing.phase,
    decisions=DECISIONS,
    emits=(
        router.CaseRouted,
        router.CaseParked,
        router.CaseRejected,
        router.RulingLapsed,
        router.TriageOverdue,
        router.CommandRefused,
    ),
    timer_fired=router.TimerFired,
    command_refused=router.CommandRefused,
    policy=Policy(),
    copies=(store.ROUTINGS,),
)


def build(settings: Settings, vault: Vault) -> Stage:
    """Bind the stage to its rules, departments and models; raises Misconfigured for bad files."""
    assert isinstance(settings, RouterSettings)
    try:
        desk = Desk(load_rules(settings.rules_file), load_departments(settings.departments_file))
    except (BadRules, BadDepartments) as error:
        raise Misconfigured(str(error)) from None
    policy = Policy(
        desk=replace(desk, audits=settings.audits),
        accept_within=settings.accept_within,
        triage_within=settings.triage_within,
        resolve_within=settings.resolve_within,
        urgent_within=settings.urgent_within,
    )
    reading = Reading(vault, policy.desk, load_shipped(settings.models), settings.models)
    return replace(STAGE, policy=policy, prepare=reading.look_up)
