"""Numbers without a gap: what a writer says of a subject is counted, so what never comes is missed. Pure.

A stage numbers what it says of each case; telephony may number everything that a source publishes
(`ce_sequence` with the source as subject), and may say in a manifest how far it has come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from chassis.transport import Place
from observer.barrier import Barrier
from observer.contract import Contract, Owed
from observer.headers import Said, key_of, shown
from observer.ledger import UPSTREAM, Handoff, Ledger, State, Verdict
from schemas.envelope import ID_LENGTH

UNPROVED_WAIT_MS = 30_000
"""Telephony commits nothing that proves a gap: without a manifest a number is given so long to come."""
KEPT_MS = 60 * 24 * 60 * 60 * 1000
"""Counts are stored longer than anything else: a case may be reopened a month after it was closed."""
_REMEMBERED = 50_000
_TRIED = 20
MANY = 10_000
"""A jump by more is a source that begins anew, not so many losses."""


@dataclass(slots=True, eq=False)
class Count:
    """How far one writer has counted for one subject, from `first` on, and which numbers have not come."""

    writer: str
    subject: bytes
    following: int
    missing: set[int] = field(default_factory=set)
    changed: bool = False
    first: int = 1


@dataclass(frozen=True, slots=True)
class Gap:
    """A number that has not come: the record that showed it, and who says that it must exist."""

    count: Count
    number: int
    place: Place
    offset: int
    at_ms: int
    said_by: str


class Sequences:
    """Counts per writer and subject; names the numbers that are lost."""

    def __init__(self, contract: Contract, ledger: Ledger, calls: str) -> None:
        self._contract, self._ledger, self._calls = contract, ledger, calls
        self._counts: dict[str, OrderedDict[bytes, Count]] = {
            name: OrderedDict() for name in (*contract.groups, UPSTREAM)
        }
        self._fresh: dict[str, list[Gap]] = {name: [] for name in self._counts}
        self._changed: list[Count] = []
        self._lacking: set[Count] = set()
        self._named: set[tuple[str, bytes, int]] = set()
        self._unsure: list[tuple[Count, Place, Said, str]] = []
        self.from_the_beginning = False
        """Whether everything was read since each topic's first record: then a count must begin with 1."""

    def take(self, place: Place, said: Said) -> None:
        """Note the number of one record, if it has one."""
        number = said.sequence
        if not number:
            return
        writer = self._contract.group_of.get(said.source)
        subject = said.subject
        if writer is None:
            if place.topic != self._calls:
                return
            writer, subject = UPSTREAM, said.source
        count = self._counts[writer].get(subject)
        if count is None:
            count = self._begin(writer, subject, number, place, said)
        if number == count.following:
            count.following = number + 1
        elif number > count.following:
            self._jumped(count, number, place, said)
        elif number in count.missing:
            count.missing.discard(number)
            self._named.discard((writer, subject, number))
            self._ledger.mend(writer, _key(count, number), said.event_id, said.at_ms)
        elif number < count.first:
            # Partitions are read in any order: the first number that was seen need not be the first.
            # Unless every log was read from its first record, what lies between may have been deleted.
            if self.from_the_beginning:
                self._suspect(count, range(number + 1, count.first), place, said)
            count.first = number
        else:
            return
        self._note(count)

    def take_end(
        self,
        writer: str,
        subject: bytes,
        last: int,
        place: Place,
        said: Said,
        said_by: str,
        first: int | None = None,
    ) -> None:
        """Note that a writer has said everything up to `last` (from `first` on): a digest, or a manifest."""
        counts = self._counts.get(writer)
        if counts is None or last <= 0:
            return
        if not self.from_the_beginning:
            first = None  # what was deleted before anything was read is not lost
        count = counts.get(subject)
        if count is None:
            count = self._begin(writer, subject, first or last + 1, place, said, said_by)
        if first is not None and first < count.first and count.first - first < MANY:
            count.missing.update(range(first, count.first))
            count.first = first
            self._note(count)
        if last >= count.following:
            if last - count.following < MANY:
                count.missing.update(range(count.following, last + 1))
            count.following = last + 1
            self._note(count)
        # What was only guessed to be missing is proved by this word.
        gone = sorted(number for number in count.missing if number <= last)
        self._fresh[writer] += [
            Gap(count, number, place, said.offset, said.at_ms, said_by) for number in gone
        ]

    def _begin(
        self, writer: str, subject: bytes, number: int, place: Place, said: Said, said_by: str = ""
    ) -> Count:
        """Begin to count in the middle, if it is the middle: the store may know the numbers before."""
        counts = self._counts[writer]
        if len(counts) >= _REMEMBERED:
            self._let_go(counts)
        count = counts[subject] = Count(writer, subject, number, first=number)
        if number > 1:
            self._unsure.append((count, place, said, said_by))
        return count

    @staticmethod
    def _let_go(counts: OrderedDict[bytes, Count]) -> None:
        """Let the oldest count go that the store has and that lacks nothing."""
        for _ in range(_TRIED):
            subject, count = counts.popitem(last=False)
            if not count.changed and not count.missing:
                return
            counts[subject] = count

    def unsure(self) -> list[tuple[str, bytes]]:
        """Name the counts that began in the middle: the store may know them, `recall` tells what it says."""
        return [(count.writer, count.subject) for count, _, _, _ in self._unsure if count.first > 1]

    def recall(self, known: Mapping[tuple[str, bytes], int]) -> None:
        """Conclude what counts that began in the middle lack; `known` has the stored next numbers."""
        unsure, self._unsure = self._unsure, []
        for count, place, said, said_by in unsure:
            following = known.get((count.writer, count.subject))
            if following is not None:
                count.missing = {number for number in count.missing if number >= following}
            elif self.from_the_beginning and count.writer != UPSTREAM and not _is_old(count, said):
                following = 1
            else:
                continue
            if following < count.first:
                self._suspect(count, range(following, count.first), place, said, said_by)
            count.first, count.following = 1, max(count.following, following)
            self._note(count)

    def blinded(self, writer: str) -> None:
        """Forget a writer's counts: some of what it said was deleted before it was read."""
        self.from_the_beginning = False
        self._counts[writer].clear()
        self._fresh[writer] = []
        self._unsure = [entry for entry in self._unsure if entry[0].writer != writer]
        self._changed = [count for count in self._changed if count.writer != writer]
        self._lacking = {count for count in self._lacking if count.writer != writer}

    def _jumped(self, count: Count, number: int, place: Place, said: Said) -> None:
        self._suspect(count, range(count.following, number), place, said)
        count.following = number + 1

    def _suspect(self, count: Count, numbers: range, place: Place, said: Said, said_by: str = "") -> None:
        if len(numbers) <= MANY:
            count.missing.update(numbers)
            self._fresh[count.writer] += [
                Gap(count, number, place, said.offset, said.at_ms, said_by) for number in numbers
            ]

    def _note(self, count: Count) -> None:
        if not count.changed:
            count.changed = True
            self._changed.append(count)

    def drain(self) -> list[Count]:
        """Hand over the counts that changed since the last call."""
        changed, self._changed = self._changed, []
        for count in changed:
            count.changed = False
        self._lacking = {count for count in (*self._lacking, *changed) if count.missing}
        return changed

    def barriers(self, now_ms: int) -> Iterable[Barrier]:
        """Give a barrier for each writer whose numbers are missing.

        What a stage decided before was caused by what it had read before. So when it has committed past
        everything that it reads, all that it ever numbered is acknowledged.
        """
        self.recall({})  # nobody has asked a store: there is none
        for writer, gaps in self._fresh.items():
            missing = [gap for gap in gaps if self._is_news(gap)]
            self._fresh[writer] = []
            if not missing:
                continue
            if writer != UPSTREAM:
                topics, after = self._contract.answers_on[writer], self._contract.reads[writer]
                yield Barrier(writer, topics, missing, after=after)
                continue
            proved = [gap for gap in missing if gap.said_by]
            guessed = [gap for gap in missing if not gap.said_by]
            topics = frozenset({self._calls})
            if proved:
                yield Barrier(writer, topics, proved)
            if guessed:
                yield Barrier(writer, topics, guessed, not_before_ms=now_ms + UNPROVED_WAIT_MS)

    def _is_news(self, gap: Gap) -> bool:
        """Whether a number is still missing, and was not named before."""
        where = (gap.count.writer, gap.count.subject, gap.number)
        return gap.number in gap.count.missing and where not in self._named

    def judge(self, barrier: Barrier) -> list[Verdict]:
        """Name the numbers that did not come, each once: several records may have shown it."""
        found = []
        for gap in barrier.suspects:
            if isinstance(gap, Gap) and self._is_news(gap):
                self._named.add((gap.count.writer, gap.count.subject, gap.number))
                found.append(_verdict(gap, barrier))
        return found

    def restore(self, counts: Iterable[Count]) -> None:
        """Take up where an earlier process stopped; missing numbers are suspected again."""
        for count in counts:
            if count.writer in self._counts:
                self._counts[count.writer][count.subject] = count
                self._lacking.add(count)
                self._fresh[count.writer] += [
                    Gap(count, number, Place("", -1), -1, 0, "") for number in sorted(count.missing)
                ]

    @property
    def missing(self) -> Mapping[str, int]:
        """How many numbers have not come, by writer."""
        found = dict.fromkeys(self._counts, 0)
        for count in {*self._lacking, *self._changed}:
            found[count.writer] += len(count.missing)
        return found


def _is_old(count: Count, said: Said) -> bool:
    """Whether the store may have pruned a subject's count since: our ids begin with their time."""
    try:
        born_ms = UUID(count.subject.decode()).int >> 80
    except ValueError:
        return False
    return said.at_ms - born_ms > KEPT_MS // 2


def _key(count: Count, number: int) -> bytes:
    return key_of(b"%b#%d" % (count.subject, number))


def _verdict(gap: Gap, barrier: Barrier) -> Verdict:
    count = gap.count
    owed = Owed(f"number→{count.writer}", count.writer)
    handoff = Handoff(_key(count, gap.number), gap.place, gap.offset, gap.at_ms, owed)
    said = gap.said_by or f"it said a later number (up to {count.following - 1})"
    note = f"{count.writer} never said number {gap.number} of {shown(count.subject)}; {said}"
    subject, number = shown(count.subject), f"#{gap.number}"
    name = subject[: ID_LENGTH - len(number)] + number
    return Verdict(handoff, State.SEQUENCE_GAP, -1, barrier, note, name, subject)
