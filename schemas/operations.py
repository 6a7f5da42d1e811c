"""What every stage says about its own work: receipts, watermarks, dead letters."""

from typing import Literal
from uuid import UUID

from schemas.envelope import Body, Code, Identifier, Kind, Line, Moment, Paragraph, message

RECEIPTS = "ops.receipts"
WATERMARKS = "ops.watermarks"
VERDICTS = "ops.verdicts"
CANARY = "ops.canary"
CANARY_GROUP = "canary"


class Receipts(Body):
    """Inputs of one batch that brought about no event, all for the same reason."""

    outcome: Literal["ignored", "waiting"]
    reason: Code
    event_ids: tuple[Identifier, ...]


@message("ops.receipts-given", topic=RECEIPTS, key="group", kind=Kind.RECORD)
class ReceiptsGiven(Body):
    """The receipts of one batch, together: a receipt per record would double the traffic."""

    group: Code
    receipts: tuple[Receipts, ...]


@message("ops.watermark-passed", topic=WATERMARKS, key="group", kind=Kind.RECORD)
class WatermarkPassed(Body):
    """Timers due before `timers_through` have fired, batches before `outbox_through` are sent."""

    group: Code
    process: Code
    timers_through: Moment
    outbox_through: Moment


@message("ops.letter-died", topic=lambda body: f"{body.group}.dead", key="event_key", kind=Kind.RECORD)
class LetterDied(Body):
    """A record could not be handled; its bytes are kept in the group's quarantine."""

    group: Code
    event_key: str
    topic: Code
    partition: int
    offset: int
    reason: Code
    explanation: Paragraph
    quarantine_id: UUID
    first_seen: Moment


@message("ops.canary-sung", topic=CANARY, key="song", kind=Kind.RECORD)
class CanarySung(Body):
    """A handoff that nobody answers, on purpose: the observer must name it as dropped within seconds."""

    song: Identifier
    sung_at: Moment


@message("ops.verdict-given", topic=VERDICTS, key="subject", kind=Kind.RECORD)
class VerdictGiven(Body):
    """The observer has proved what became of a handoff; the evidence is in its table of verdicts."""

    verdict_id: int
    subject: str
    event_id: Identifier
    group: Code
    edge: Line
    state: Code
    topic: Code
    partition: int
    offset: int
    judged_at: Moment
    note: Line = ""
