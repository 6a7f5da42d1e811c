"""What watching costs is measured against stages that say the same, less what only the ledger reads."""

import inspect
from uuid import UUID

import pytest

from bench.unwatched.stages import LEFT_OUT
from chassis.fold import Fold, Input
from chassis.memory import MemoryLog
from chassis.message import Writer, read, time_header
from chassis.plan import Plan
from schemas import feedback, resolver
from schemas.envelope import BY_WIRE
from services.feedback.app import STAGE
from tests.given import NOW, a_case, resolved

CASE = a_case(UUID(int=7))
LEDGERS = {"ce_causationid", "ce_handoffk", "ce_handoffn", "ce_sequence", "ce_sequenceof"}


@pytest.fixture
def unwatched(monkeypatch):
    def leave_out():
        for owner, name, instead in LEFT_OUT:
            monkeypatch.setattr(owner, name, instead)

    return leave_out


@pytest.mark.parametrize(("owner", "name", "instead"), LEFT_OUT, ids=lambda value: str(value)[:40])
def test_what_stands_in_is_called_as_what_the_product_has(owner, name, instead):
    assert list(inspect.signature(instead).parameters) == list(
        inspect.signature(getattr(owner, name)).parameters
    )


def a_life_in_feedback():
    """What feedback says of a result, two reports that it was told, and a judgement."""
    told = feedback.TellingAttempted(
        case_id=CASE.case_id, cycle=1, attempt=1, channel="file", delivered=True, at=NOW
    )
    bodies = [
        resolved(CASE),
        told,
        told,
        feedback.RatingRequested(case_id=CASE.case_id, cycle=1, solved=True),
    ]
    log, writer = MemoryLog(), Writer("resolver")
    for number, body in enumerate(bodies, 1):
        log.append(
            writer.write(
                body,
                uid=UUID(int=number),
                at=time_header(NOW),
                correlation=str(CASE.case_id),
                cause="somebody",
                sequence=number,
                numbered_for=str(CASE.case_id),
            )
        )
    records = [*log.records(resolver.CASES), *log.records(feedback.COMMANDS)]
    fold = Fold(STAGE, Writer("feedback"), Plan(1, NOW), lambda _: b"")
    fold.decide_all([Input(record, read(record, STAGE.handled)) for record in records], STAGE.policy)
    fold.finish()
    return fold.plan


def test_the_same_is_said_and_done_but_for_what_only_the_ledger_reads(unwatched):
    watched = a_life_in_feedback()
    unwatched()
    plain = a_life_in_feedback()

    assert [row[2] for row in plain.inbox] == [row[2] for row in watched.inbox]
    receipts = [out for out in watched.outgoing if out.topic == "ops.receipts"]
    said = [out for out in watched.outgoing if out.topic != "ops.receipts"]
    assert len(receipts) == 1
    assert [(out.topic, out.key) for out in plain.outgoing] == [(out.topic, out.key) for out in said]
    for bare, full in zip(plain.outgoing, said, strict=True):
        assert bare.headers == [header for header in full.headers if header[0] not in LEDGERS]
        body, same = (
            BY_WIRE[dict(out.headers)["ce_type"].decode()].body.parse(out.value) for out in (bare, full)
        )
        if isinstance(same, feedback.CaseClosed):
            assert same.counts == {"resolver": 1}
            same = same.model_copy(update={"counts": None})
        assert body == same
