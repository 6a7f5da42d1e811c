"""From records to rooms: who notes which record, and what stages say of their own work. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import ValidationError

from chassis.transport import Place, Record
from observer.contract import Contract
from observer.deferred import Deferred
from observer.headers import Said, read_said, time_ms
from observer.lag import AppendTimes
from observer.ledger import UPSTREAM, Ledger
from observer.sequences import Sequences
from schemas import feedback, operations, telephony
from schemas.envelope import BY_BODY, Body
from schemas.topics import BY_NAME

B = TypeVar("B", bound=Body)
ID_REUSED = "id_reuse"
"""Why a letter is about other content under the id of an event that was handled (`chassis/batch.py`)."""
_NOWHERE = Place("", -1)


class Desk:
    """Takes each record once, whatever is in it: nothing that anybody writes stops the reading."""

    def __init__(self, contract: Contract, ledger: Ledger, sequences: Sequences, deferred: Deferred) -> None:
        self._contract = contract
        self._ledger, self._sequences, self._deferred = ledger, sequences, deferred
        self._places: dict[tuple[str, int], Place] = {}
        self._taken: dict[Place, int] = {}
        self.last: dict[Place, int] = {}
        self.times: dict[Place, AppendTimes] = {}
        self.newest: dict[Place, int] = {}
        self.read = 0
        self._spoken: dict[bytes, Callable[[Place, Said, Record], None]] = {
            _wire(operations.ReceiptsGiven): self._receipts,
            _wire(operations.LetterDied): self._letter,
            _wire(operations.WatermarkPassed): self._watermark,
            _wire(telephony.ManifestPublished): self._manifest,
            _wire(feedback.CaseClosed): self._closed,
        }

    def begin(self, place: Place, taken: int, last: int, follow_from: int) -> None:
        """Say up to where a partition was taken before; what comes again below that is only timed."""
        self._taken[place] = taken
        self.last[place] = last
        topic = BY_NAME.get(place.topic)
        if topic is not None and any(group != "observer" for group in topic.read_by):
            times = self.times[place] = AppendTimes()
            times.start_at(follow_from)

    def take(self, records: Sequence[Record]) -> None:
        """Note records, in order per partition."""
        spoken, last = self._spoken, self.last
        ledger, sequences, deferred = self._ledger, self._sequences, self._deferred
        place, taken, times = _NOWHERE, 0, None
        said: Said | None = None
        for record in records:
            # They come in runs of one partition: what is known of it is looked up once a run.
            if record.partition != place.partition or record.topic != place.topic:
                if said is not None:
                    self.newest[place] = said.at_ms
                where = record.topic, record.partition
                place = self._places.setdefault(where, Place(*where))
                taken, times = self._taken.get(place, 0), self.times.get(place)
            said = read_said(record)
            if times is not None:
                times.note(said.offset, said.at_ms)
            if said.offset < taken:
                continue
            last[place] = said.offset + 1
            special = spoken.get(said.wire)
            if special is not None:
                special(place, said, record)
                if said.wire in _ONLY_SPOKEN:
                    continue
            ledger.take(place, said)
            if said.sequence:
                sequences.take(place, said)
            deferred.take(place, said)
        if said is not None:
            self.newest[place] = said.at_ms
        self.read += len(records)

    # ------------------------------------------------------------ bodies of what is said about the work

    def _receipts(self, place: Place, said: Said, record: Record) -> None:
        body = _parsed(operations.ReceiptsGiven, record)
        if body is not None:
            names = [name for given in body.receipts for name in given.event_ids]
            self._ledger.take_receipts(body.group, names, place, said)

    def _letter(self, _: Place, said: Said, record: Record) -> None:
        body = _parsed(operations.LetterDied, record)
        if body is not None:
            source = Place(body.topic, body.partition), body.offset
            if body.reason == ID_REUSED:
                self._ledger.take_reuse(body.group, source, said)
            else:
                self._ledger.take_letter(body.group, source, said)

    def _watermark(self, _: Place, said: Said, record: Record) -> None:
        body = _parsed(operations.WatermarkPassed, record)
        if body is not None:
            through, sent = (int(at.timestamp() * 1000) for at in (body.timers_through, body.outbox_through))
            # Both moments are the stage's own clock's; so must be the moment at which it said so.
            self._deferred.watermark(body.group, through, sent, time_ms(said.time))

    def _manifest(self, place: Place, said: Said, record: Record) -> None:
        body = _parsed(telephony.ManifestPublished, record)
        if body is not None:
            subject, said_by = said.source, f"its manifest up to {body.to_seq}"
            self._sequences.take_end(UPSTREAM, subject, body.to_seq, place, said, said_by, body.from_seq)

    def _closed(self, place: Place, said: Said, record: Record) -> None:
        body = _parsed(feedback.CaseClosed, record)
        for writer, last in (body.counts or {}).items() if body is not None else ():
            if writer in self._contract.answers_on:
                self._sequences.take_end(writer, said.subject, last, place, said, "the closing digest")


def _wire(body: type[Body]) -> bytes:
    return BY_BODY[body].wire.encode()


_ONLY_SPOKEN = frozenset(
    _wire(body) for body in (operations.ReceiptsGiven, operations.LetterDied, operations.WatermarkPassed)
)
"""Records that are about the work only: they oblige nobody and answer nothing by themselves."""


def _parsed(body: type[B], record: Record) -> B | None:
    """Read a body; None when somebody wrote something else under its name."""
    try:
        return body.parse(record.value or b"")
    except (ValidationError, ValueError):
        return None
