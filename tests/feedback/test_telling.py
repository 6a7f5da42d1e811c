"""The worker that tells customers: each task ends in its own report, and nobody is told "[erased]"."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from chassis.plan import DueTask
from chassis.roots import new_id
from chassis.vault import ERASED, Vault
from schemas.case import Customer
from services.feedback.app import tell
from services.feedback.domain import Feedback, Telling
from services.feedback.notify import Message
from tests.given import DECISION, NOW, a_case

WORDS = {"personal": json.dumps({"phone": "+8613900000000"}), "text": "上门更换"}


class Opened:
    """A vault in which everything sealed is its own key; what it does not know does not open."""

    async def ready(self, refs: Sequence[str]) -> None:
        assert refs

    def open(self, ref: str, sealed: str) -> str:
        return {**WORDS, "torn": "no json", "unlike": '{"phone": 7}', "silent": "{}"}.get(sealed, ERASED)


class Sent:
    """A channel that delivers everything but what it was told to forget."""

    name = "sent"

    def __init__(self, *forgotten: UUID) -> None:
        self.texts: list[str] = []
        self._forgotten = forgotten

    async def send(self, messages: Sequence[Message]) -> Mapping[UUID, str]:
        self.texts += [message.text for message in messages]
        return {one.message_id: "delivered" for one in messages if one.message_id not in self._forgotten}


def _task(personal: str = "personal", text: str = "text") -> DueTask:
    case = a_case(language="zh", customer=Customer(customer_ref="c-1", sealed=personal))
    state = Feedback(
        phase="due",
        case=case,
        decision=DECISION.model_copy(update={"text": text}),
        department="cards",
        due_at=NOW,
    )
    data = Telling(cycle=1, attempt=1).to_bytes().decode()
    return DueTask(new_id(), str(case.case_id), "tell", data, state.to_bytes().decode())


async def _told(channel: Sent, *tasks: DueTask) -> list[tuple[bool, str]]:
    reports: list[Any] = await tell(cast("Vault", Opened()), channel, tasks)
    assert [str(report.case_id) for report in reports] == [task.key for task in tasks]
    return [(report.delivered, report.reason) for report in reports]


async def test_what_cannot_be_told_is_reported_for_itself_and_its_neighbours_are_told() -> None:
    channel = Sent()
    odd = [_task(text="other"), _task("other"), _task("torn"), _task("unlike"), _task("silent")]
    reports = await _told(channel, _task(), *odd, _task())
    unread = [(False, "text_unreadable"), *[(False, "no_number")] * 4]
    assert reports == [(True, "delivered"), *unread, (True, "delivered")]
    assert len(channel.texts) == 2
    assert not any(ERASED in text for text in channel.texts)


async def test_a_message_that_the_channel_does_not_answer_for_is_not_delivered() -> None:
    lost, told = _task(), _task()
    reports = await _told(Sent(lost.task_id), lost, told)
    assert reports == [(False, "unanswered"), (True, "delivered")]
