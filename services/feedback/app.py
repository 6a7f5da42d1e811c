"""Wiring of feedback, and the worker that tells customers."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from chassis.clock import utc_now
from chassis.plan import DueTask
from chassis.settings import Settings
from chassis.stage import Stage
from chassis.vault import ERASED, Vault
from schemas import feedback
from schemas.case import Customer, Personal
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
    # Most of what it reads is for the others: gathering spares most of the polls, and no customer notices a
    # tenth of a second.
    gather=timedelta(milliseconds=100),
)


async def tell(vault: Vault, channel: Channel, tasks: Sequence[DueTask]) -> list[Body]:
    """Tell customers the results of their cases; gives one report per task, also of what cannot be told."""
    states = [Feedback.parse(task.document) for task in tasks]
    await vault.ready([state.case.customer.customer_ref for state in states])
    messages = [_message(vault, task, state) for task, state in zip(tasks, states, strict=True)]
    sent = await channel.send([message for message in messages if isinstance(message, Message)])
    results = [
        sent.get(message.message_id, "unanswered") if isinstance(message, Message) else message
        for message in messages
    ]
    return [
        _report(task, state, channel.name, result)
        for task, state, result in zip(tasks, states, results, strict=True)
    ]


def _message(vault: Vault, task: DueTask, state: Feedback) -> Message | str:
    """Write one customer's message, or say why there is none."""
    case = state.case
    number = _number(vault, case.customer)
    if not number:
        return "no_number"
    text = vault.open(case.customer.customer_ref, state.decision.text)
    if text == ERASED:
        return "text_unreadable"
    return Message(task.task_id, number, wording(case.language, case.case_no, text))


def _number(vault: Vault, customer: Customer) -> str:
    """The number to tell at; none of a customer who is erased, or whose data is no `Personal`."""
    try:
        return Personal.parse(vault.open(customer.customer_ref, customer.sealed)).phone
    except ValueError:
        return ""


def _report(task: DueTask, state: Feedback, channel: str, result: str) -> Body:
    telling = Telling.parse(task.data)
    return feedback.TellingAttempted(
        case_id=state.case.case_id,
        cycle=telling.cycle,
        attempt=telling.attempt,
        channel=channel,
        delivered=result == "delivered",
        reason=result,
        at=utc_now(),
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
