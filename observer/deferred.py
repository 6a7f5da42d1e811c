"""What must follow in time: deadlines, who is overdue, and timers that were lost. Pure.

A person who is late is OVERDUE. A stage's timer says so at the deadline; if the stage's watermark has
passed the deadline, the stage has handled every timer that it had sent itself, and still nothing was
said, then the timer is lost: TIMER_LOST, proved by the same barrier as a dropped handoff.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from chassis.transport import Place
from observer.barrier import Barrier
from observer.contract import Contract, Later, Owed
from observer.headers import Said, key_of, time_ms
from observer.ledger import Handoff, Ledger, State, Verdict

MARGIN_MS = 1_000
"""A deadline is computed from the event's time and the stage's own from its clock a moment before."""
_DEPARTMENTS = "departments."
_REMEMBERED = 200_000


@dataclass(slots=True, eq=False)
class Waiting:
    """A deferred handoff that nobody has met."""

    handoff: Handoff
    later: Later
    subject: bytes
    sequence: int
    due_ms: int
    alarmed: bool = False
    fired_ms: int = 0

    @property
    def open(self) -> bool:
        """Whether it is neither met nor given up."""
        return self.handoff.state in (State.OPEN, State.OVERDUE)

    def __lt__(self, other: Waiting) -> bool:
        return self.due_ms < other.due_ms


@dataclass(slots=True)
class Acts:
    """What the store must note of acts before what they answer (an agent records while the caller talks)."""

    added: list[tuple[str, bytes, int]] = field(default_factory=list)
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
        self._early: dict[tuple[str, bytes], int] = {}
        self._acts = Acts()
        self._suspects: list[Barrier] = []
        self._department: dict[bytes, str] = {}

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
        elif place.topic.startswith(_DEPARTMENTS):
            self._department[said.subject] = place.topic.removeprefix(_DEPARTMENTS)
            if len(self._department) > _REMEMBERED:
                self._department.pop(next(iter(self._department)))

    def _obliged(self, later: Later, place: Place, said: Said) -> None:
        where = (later.edge, said.subject)
        key = key_of(said.event_id + b"@" + later.edge.encode())
        if any(waiting.handoff.key == key for waiting in self._waiting.get(where, ())):
            return
        handoff = Handoff(key, place, said.offset, said.at_ms, Owed(later.edge, later.stage))
        begins = time_ms(said.time) or said.at_ms
        due_ms = begins + later.within_ms
        self._ledger.note_opened(handoff, said, due_ms)
        at = self._early.pop(where, None) if not later.numbered else None
        if at is not None:
            self._acts.removed.append(where)
            self._ledger.settle(handoff, State.DISCHARGED, b"", at)
            return
        self._expect(Waiting(handoff, later, said.subject, said.sequence, due_ms))

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
            waiting.alarmed = True
            if alarm and waiting.open:
                self._mark_overdue(waiting)
            elif waiting.handoff.state is State.TIMER_LOST:
                self._ledger.mend(later.stage, waiting.handoff.key, said.event_id, said.at_ms)
            elif waiting.open:
                self._ledger.settle(waiting.handoff, State.DISCHARGED, said.event_id, said.at_ms)
        if not alarm:
            self._remove(where, met)
            if not met and not later.numbered and where not in self._early:
                self._early[where] = said.at_ms
                self._acts.added.append((*where, said.at_ms))

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
        while self._to_be_late and self._to_be_late[0].due_ms < now_ms:
            self._mark_overdue(heapq.heappop(self._to_be_late))

    def watermark(self, stage: str, timers_ms: int, sent_ms: int, said_ms: int) -> None:
        """Note a stage's word: timers due before `timers_ms` have fired, all older than `sent_ms` is sent."""
        due = self._due.get(stage)
        if due is None:
            return
        sent = [waiting for waiting in self._fired[stage] if waiting.fired_ms < sent_ms]
        self._fired[stage] = [waiting for waiting in self._fired[stage] if waiting.fired_ms >= sent_ms]
        suspects = [waiting for waiting in sent if waiting.open and not waiting.alarmed]
        if suspects:
            # Its timers are on its own topic now: it must have handled them before silence means anything.
            topics, after = self._contract.answers_on[stage], self._contract.commands[stage]
            self._suspects.append(Barrier(stage, topics, list(suspects), after=after))
        while due and due[0].due_ms + MARGIN_MS < timers_ms:
            waiting = heapq.heappop(due)
            if waiting.open and not waiting.alarmed:
                waiting.fired_ms = said_ms
                self._fired[stage].append(waiting)

    def barriers(self) -> list[Barrier]:
        """Give the barriers behind which timers will be judged."""
        suspects, self._suspects = self._suspects, []
        return suspects

    def judge(self, barrier: Barrier) -> list[Verdict]:
        """Name the timers that are lost."""
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

    def restore(self, waiting: Iterable[Waiting], early: Iterable[tuple[str, bytes, int]]) -> None:
        """Take up where an earlier process stopped."""
        for found in waiting:
            self._expect(found)
        for edge, subject, at_ms in early:
            self._early[edge, subject] = at_ms

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
                what = (waiting.later.edge, self._department.get(waiting.subject, "-"))
                found[what] = found.get(what, 0) + 1
        return found

    def _all_open(self) -> Iterable[Waiting]:
        return (waiting for found in self._waiting.values() for waiting in found if waiting.open)
