"""What must follow in time: deadlines, who is overdue, and timers that were lost. Pure.

A person who is late is OVERDUE. A stage's timer says so at the deadline; if the stage's watermark has
passed the deadline, the stage has handled every timer that it had sent itself, and still nothing was
said, then the timer is lost: TIMER_LOST, proved by the same barrier as a dropped handoff.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from chassis.transport import Place
from observer.barrier import Barrier
from observer.contract import Contract, Later, Owed
from observer.headers import Said, key_of, time_ms
from observer.ledger import Handoff, Ledger, State, Verdict
from schemas.envelope import BY_BODY
from schemas.operations import WATERMARKS
from schemas.resolver import CaseAssigned
from schemas.topics import DEPARTMENTS

_WATERMARKS = frozenset({WATERMARKS})
_DEPARTMENT_OF = {f"departments.{code}": code for code in DEPARTMENTS}
_ASSIGNED = BY_BODY[CaseAssigned].wire.encode()
REMEMBERED = 200_000
_MANY_OVER = 10_000
"""Fewer that are over are not worth a look through the queues."""
RECENT_MS = 24 * 60 * 60 * 1000
"""So long after an obligation its copies are known as such by a restarted observer too; later ones show
as open until their deadline, and are looked up in the store before anything is said of them."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A deferred handoff that nobody has met."""

    handoff: Handoff
    later: Later
    subject: bytes
    sequence: int
    due_ms: int
    fired_ms: int = 0
    asked: bool = False
    timer_set: bool = False

    @property
    def open(self) -> bool:
        """Whether it is neither met nor given up."""
        return self.handoff.state in (State.OPEN, State.OVERDUE)

    @property
    def alarmed(self) -> bool:
        """Whether the stage's timer has spoken; kept as the handoff's only part, a restart knows it."""
        return self.handoff.parts > 0

    @property
    def fires_ms(self) -> int:
        """When the stage's timer has surely fired, as far as clocks can differ."""
        return self.due_ms + self.later.margin_ms

    def __lt__(self, other: Waiting) -> bool:
        return self.due_ms < other.due_ms


@dataclass(slots=True, eq=False)
class Handled:
    """A deferred handoff whose stage has handled what obliges, after the deadline had passed."""

    waiting: Waiting


@dataclass(slots=True)
class Acts:
    """What the store must note of acts before what they answer (an agent records while the caller talks).

    `added` has the time (ms) by edge and name; the name is the subject, for an act that is numbered, or
    for an alarm, with that behind it (`_kept`). `removed` goes first.
    """

    added: dict[tuple[str, bytes], int] = field(default_factory=dict)
    removed: list[tuple[str, bytes]] = field(default_factory=list)


class Deferred:
    """All deferred handoffs that are not met."""

    def __init__(self, contract: Contract, ledger: Ledger) -> None:
        self._contract, self._ledger = contract, ledger
        self._acts_of: dict[bytes, list[Later]] = {}
        for later in contract.later.values():
            for wire in later.acts | later.alarms:
                self._acts_of.setdefault(wire, []).append(later)
        self._waiting: dict[tuple[str, bytes], list[Waiting]] = {}
        self._due: dict[str, list[Waiting]] = {later.stage: [] for later in contract.later.values()}
        self._to_be_late: list[Waiting] = []
        self._fired: dict[str, list[Waiting]] = {stage: [] for stage in self._due}
        # Where only so many are remembered: a dict would look for its first among all that have left.
        self._early: OrderedDict[tuple[str, bytes, bool], tuple[int, int]] = OrderedDict()
        self._met: OrderedDict[bytes, None] = OrderedDict()
        self._over = 0  # met since the queues were last looked through
        self._acts = Acts()
        self._suspects: list[Barrier] = []
        self._department: OrderedDict[bytes, str] = OrderedDict()

    # ------------------------------------------------------------ what is read

    def take(self, place: Place, said: Said) -> None:
        """Note one record: an act, an alarm, or something that obliges for later."""
        acts = self._acts_of.get(said.wire)
        if acts is not None:
            for later in acts:
                self._acted(later, said)
        later_ = self._contract.later.get(said.wire)
        if later_ is not None:
            self._obliged(later_, place, said)
        elif said.wire == _ASSIGNED and place.topic in _DEPARTMENT_OF:
            self._department[said.subject] = _DEPARTMENT_OF[place.topic]
            if len(self._department) > REMEMBERED:
                self._department.popitem(last=False)

    def _obliged(self, later: Later, place: Place, said: Said) -> None:
        # Numbered together means about the same thing; telephony's numbers count for its source.
        subject = said.subject if later.numbered else said.key
        where = (later.edge, subject)
        # A call ends once, however many feeds tell of it: there the call itself is what obliges.
        key = key_of((said.event_id if later.numbered else subject) + b"@" + later.edge.encode())
        if key in self._met or any(waiting.handoff.key == key for waiting in self._waiting.get(where, ())):
            return
        handoff = Handoff(key, place, said.offset, said.at_ms, Owed(later.edge, later.stage))
        begins = time_ms(said.time) or said.at_ms
        due_ms = begins + later.within_ms
        self._ledger.note_opened(handoff, said, due_ms, subject)
        acted_ms = self._said_early(later, said, subject, alarm=False)
        alarmed_ms = self._said_early(later, said, subject, alarm=True)
        if acted_ms is not None:
            self._ledger.settle(handoff, State.DISCHARGED, b"", acted_ms)
            self._note_met(key)
            return
        waiting = Waiting(handoff, later, subject, said.sequence, due_ms)
        self._expect(waiting)
        if alarmed_ms is not None:
            self._alarm(waiting, b"")

    def _expect(self, waiting: Waiting) -> None:
        self._waiting.setdefault((waiting.later.edge, waiting.subject), []).append(waiting)
        heapq.heappush(self._due[waiting.later.stage], waiting)
        if waiting.handoff.state is State.OPEN:
            heapq.heappush(self._to_be_late, waiting)

    def _acted(self, later: Later, said: Said) -> None:
        where = (later.edge, said.subject)
        alarm = said.wire in later.alarms
        met = [
            waiting
            for waiting in self._waiting.get(where, ())
            if not later.numbered or said.sequence > waiting.sequence
        ]
        for waiting in met:
            if waiting.handoff.state is State.TIMER_LOST:
                self._ledger.mend(later.stage, waiting.handoff.key, said.event_id, said.at_ms)
            elif alarm and waiting.open:
                self._alarm(waiting, said.event_id)
            elif waiting.open:
                self._ledger.settle(waiting.handoff, State.DISCHARGED, said.event_id, said.at_ms)
        if not alarm:
            self._remove(where, met)
            for waiting in met:
                self._note_met(waiting.handoff.key)
        if not met:
            self._remember(later, said, alarm=alarm)

    def _note_met(self, key: bytes) -> None:
        """Know copies of what obliged for what they are."""
        self._over += 1
        self._met[key] = None
        if len(self._met) > REMEMBERED:
            self._met.popitem(last=False)

    def _alarm(self, waiting: Waiting, answer: bytes) -> None:
        """Note that the stage's timer has spoken: somebody is late, the timer is not lost."""
        if not waiting.alarmed:
            waiting.handoff.parts = 1
            self._ledger.settle(waiting.handoff, State.OVERDUE, answer, waiting.due_ms)

    def blinded(self, stage: str) -> None:
        """Suspect no timer of what is waited for now: its alarm may have been in records that are gone."""
        for waiting in self._all_open():
            if waiting.later.stage == stage and not waiting.alarmed:
                waiting.handoff.parts = 1
                self._ledger.settle(waiting.handoff, waiting.handoff.state, b"", waiting.due_ms)

    # Topics are read in any order: what answers may be read before what it answers.

    def _remember(self, later: Later, said: Said, *, alarm: bool) -> None:
        where = (later.edge, said.subject, alarm)
        number = said.sequence if later.numbered else 0
        if b"\0" in said.subject or self._early.get(where, (0, -1))[1] >= number:
            return
        if number == 1:
            return  # the first that is said of anything follows nothing
        self._forget(where)
        self._early[where] = (said.at_ms, number)
        self._acts.added[later.edge, _kept(said.subject, number, alarm=alarm)] = said.at_ms
        if len(self._early) > REMEMBERED:
            self._forget(next(iter(self._early)))

    def _said_early(self, later: Later, said: Said, subject: bytes, *, alarm: bool) -> int | None:
        """When an act or alarm was said that answers this, if it was read before."""
        where = (later.edge, subject, alarm)
        at_ms, number = self._early.get(where, (0, -1))
        if number < 0 or (later.numbered and number <= said.sequence):
            return None
        if not later.numbered:
            self._forget(where)
        return at_ms

    def _forget(self, where: tuple[str, bytes, bool]) -> None:
        known = self._early.pop(where, None)
        if known is not None:
            edge, subject, alarm = where
            name = edge, _kept(subject, known[1], alarm=alarm)
            if self._acts.added.pop(name, None) is None:
                self._acts.removed.append(name)

    def _remove(self, where: tuple[str, bytes], met: list[Waiting]) -> None:
        left = [waiting for waiting in self._waiting.get(where, ()) if waiting not in met]
        if left:
            self._waiting[where] = left
        else:
            self._waiting.pop(where, None)

    def _mark_overdue(self, waiting: Waiting) -> None:
        if waiting.handoff.state is State.OPEN:
            self._ledger.settle(waiting.handoff, State.OVERDUE, b"", waiting.due_ms)

    # ------------------------------------------------------------ time passes

    def tick(self, now_ms: int) -> None:
        """Mark what is overdue at this time."""
        if self._over > max(_MANY_OVER, len(self._to_be_late) // 2):
            self._let_go()
        while self._to_be_late and self._to_be_late[0].due_ms < now_ms:
            self._mark_overdue(heapq.heappop(self._to_be_late))

    def _let_go(self) -> None:
        """Forget what is met long before its time: else it would be kept until then, a day or a week."""
        self._over = 0
        self._to_be_late = [waiting for waiting in self._to_be_late if waiting.handoff.state is State.OPEN]
        heapq.heapify(self._to_be_late)
        for stage, due in self._due.items():
            self._due[stage] = [waiting for waiting in due if waiting.open]
            heapq.heapify(self._due[stage])

    def watermark(self, stage: str, timers_ms: int, sent_ms: int, said_ms: int) -> None:
        """Note a stage's word: timers due before `timers_ms` have fired, all older than `sent_ms` is sent."""
        due = self._due.get(stage)
        if due is None:
            return
        fired, self._fired[stage] = self._fired[stage], []
        suspects: list[Any] = []
        for waiting in fired:
            if waiting.open and not waiting.alarmed:
                sent = waiting.fired_ms < sent_ms and waiting.fires_ms < timers_ms
                (suspects if sent else self._fired[stage]).append(waiting)
        if suspects:
            # Its timers are on its own topic now: it must have handled them before silence means anything.
            topics, after = self._contract.answers_on[stage], self._contract.commands[stage]
            self._suspects.append(Barrier(stage, topics, suspects, after=after))
        not_set: list[Waiting] = []
        while due and due[0].fires_ms < timers_ms:
            waiting = heapq.heappop(due)
            if not waiting.open or waiting.alarmed:
                continue
            if waiting.timer_set or self._is_its_own(waiting):
                waiting.fired_ms = said_ms
                self._fired[stage].append(waiting)
            else:
                not_set.append(waiting)
        for waiting in not_set:
            heapq.heappush(due, waiting)
        self._ask(stage, [waiting for waiting in not_set if not waiting.asked and self._is_handled(waiting)])

    # A stage sets its timer when it handles what obliges, however late. A watermark that it said before
    # may be read after the commit is seen, and knows nothing of the timer. So when the commit is seen, all
    # watermarks that are on the log by then are read first, and only what comes behind them counts.

    def _ask(self, stage: str, handled: list[Waiting]) -> None:
        for waiting in handled:
            waiting.asked = True
        if handled:
            self._suspects.append(Barrier(stage, _WATERMARKS, list(map(Handled, handled))))

    def _is_its_own(self, waiting: Waiting) -> bool:
        """Whether the stage itself said what obliges: then the timer was stored with it."""
        return waiting.handoff.place.topic not in self._contract.reads.get(waiting.later.stage, ())

    def _is_handled(self, waiting: Waiting) -> bool:
        commits = self._ledger.commits_of(waiting.later.stage)
        return commits.get(waiting.handoff.place, -1) > waiting.handoff.offset

    def barriers(self) -> list[Barrier]:
        """Give the barriers behind which timers will be judged."""
        suspects, self._suspects = self._suspects, []
        return suspects

    def judge(self, barrier: Barrier) -> list[Verdict]:
        """Name the timers that are lost."""
        for suspect in barrier.suspects:
            if isinstance(suspect, Handled):
                suspect.waiting.timer_set = True
        return [
            Verdict(
                waiting.handoff,
                State.TIMER_LOST,
                -1,
                barrier,
                f"the timers of {waiting.later.stage} have passed the deadline, and nothing was said",
            )
            for waiting in barrier.suspects
            if isinstance(waiting, Waiting) and waiting.open and not waiting.alarmed
        ]

    # ------------------------------------------------------------ store and figures

    def drain(self) -> Acts:
        """Hand over the early acts that changed since the last call."""
        acts, self._acts = self._acts, Acts()
        return acts

    def restore(
        self, waiting: Iterable[Waiting], early: Iterable[tuple[str, bytes, int]], met: Iterable[bytes] = ()
    ) -> None:
        """Take up where an earlier process stopped; `met` are keys of what was met lately."""
        self._met = OrderedDict.fromkeys(met)
        for found in waiting:
            self._expect(found)
        for edge, name, at_ms in early:
            subject, number, alarm = _unkept(name)
            self._early[edge, subject, alarm] = (at_ms, number)

    def later_of(self, edge: str) -> Later | None:
        """Find a deferred edge by its name."""
        return next((later for later in self._contract.later.values() if later.edge == edge), None)

    def open_by_edge(self) -> dict[str, tuple[int, int]]:
        """Count what is waited for on each edge, with the append time of the oldest (ms)."""
        found: dict[str, tuple[int, int]] = {}
        for waiting in self._all_open():
            edge, at_ms = waiting.later.edge, waiting.handoff.at_ms
            count, oldest = found.get(edge, (0, at_ms))
            found[edge] = (count + 1, min(oldest, at_ms))
        return found

    def overdue(self) -> dict[tuple[str, str], int]:
        """Count what is overdue, by edge and department ("-" where no department is asked)."""
        found: dict[tuple[str, str], int] = {}
        for waiting in self._all_open():
            if waiting.handoff.state is State.OVERDUE:
                holder = self._department.get(waiting.subject, "-")
                what = (waiting.later.edge, waiting.later.department or holder)
                found[what] = found.get(what, 0) + 1
        return found

    def _all_open(self) -> list[Waiting]:
        # As `Waiting.open` says, but looked at every second for all that anybody waits for.
        return [
            waiting
            for found in self._waiting.values()
            for waiting in found
            if (state := waiting.handoff.state) is State.OPEN or state is State.OVERDUE
        ]


def _kept(subject: bytes, number: int, *, alarm: bool) -> bytes:
    """Name an early act for the store."""
    return b"%b\0%d%b" % (subject, number, b"!" if alarm else b"") if number or alarm else subject


def _unkept(name: bytes) -> tuple[bytes, int, bool]:
    """Read what `_kept` wrote: subject, number, whether it was an alarm."""
    subject, _, mark = name.partition(b"\0")
    return subject, int(mark.rstrip(b"!") or 0), mark.endswith(b"!")
