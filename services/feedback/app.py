"""Wiring of feedback, and the worker that tells customers."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from chassis.clock import utc_now
from chassis.plan import DueTask
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.vault import Vault
from schemas import feedback
from schemas.case import Personal
from schemas.envelope import Body
from services.feedback.domain import DECISIONS, Feedback, Policy, Telling, wording
from services.feedback.notify import Channel, FileChannel, Message
from services.feedback.settings import FeedbackSettings

STAGE = Stage(
    name="feedback",
    state=Feedback,
    phase=lambda state: state.phase,
    decisions=DECISIONS,
    emits=(
        feedback.CaseOpened,
        feedback.CustomerTold,
        feedback.TellingFailed,
        feedback.CustomerUnreached,
        feedback.TellingOverdue,
        feedback.SatisfactionRecorded,
        feedback.SatisfactionExpired,
        feedback.CaseReopened,
        feedback.CaseClosed,
        feedback.CommandRefused,
    ),
    timer_fired=feedback.TimerFired,
    command_refused=feedback.CommandRefused,
    policy=Policy(),
)


async def tell(vault: Vault, channel: Channel, tasks: Sequence[DueTask]) -> list[Body]:
    """Tell customers the results of their cases; gives one report per task."""
    tellings = [Telling.parse(task.data) for task in tasks]
    await vault.ready([telling.customer.customer_ref for telling in tellings])
    messages = [
        _message(vault, task, telling) for task, telling in zip(tasks, tellings, strict=True)
    ]
    reachable = [message for message in messages if message.to]
    results = dict(await channel.send(reachable))
    return [
        _report(telling, channel.name, results.get(message.message_id, "no_number"))
        for telling, message in zip(tellings, messages, strict=True)
    ]


def _message(vault: Vault, task: DueTask, telling: Telling) -> Message:
    ref = telling.customer.customer_ref
    opened = vault.open(ref, telling.customer.sealed)
    personal = Personal.parse(opened.encode()) if opened.startswith("{") else Personal()
    text = wording(telling.language, telling.case_no, vault.open(ref, telling.decision.text))
    return Message(task.task_id, personal.phone, text)


def _report(telling: Telling, channel: str, result: str) -> Body:
    return feedback.TellingAttempted.model_validate(
        {
            "case_id": telling.case_id,
            "cycle": telling.cycle,
            "attempt": telling.attempt,
            "channel": channel,
            "delivered": result == "delivered",
            "reason": result,
            "at": utc_now(),
        }
    )


def build(settings: Settings, vault: Vault) -> Stage:
    """Bind the stage to its settings, its channel and the vault."""
    assert isinstance(settings, FeedbackSettings)
    policy = Policy(
        tell_within=settings.tell_within,
        rate_within=settings.rate_within,
        reopen_window=settings.reopen_window,
    )
    channel = FileChannel(settings.told_file)
    return replace(STAGE, policy=policy, workers={"tell": partial(tell, vault, channel)})
