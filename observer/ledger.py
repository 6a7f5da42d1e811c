"""The handoff ledger: one obligation per (event, group), and the proof that one was dropped. Pure.

The rule: a group commits an offset only when everything that its inputs caused is acknowledged. So if
the commit is seen first, then the high watermarks of every topic on which the group may answer are
taken, and all of that is read, then an input below the commit that nothing names has no effect: it is
DROPPED. No clock and no waiting time is part of it (`observer/barrier.py` keeps the order of steps).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

from chassis.transport import Place
from observer.barrier import Barrier
from observer.contract import Contract, Owed
from observer.headers import Said, key_of


class State(StrEnum):
    """Where a handoff stands; OPEN is late as long as its group has not committed past it."""

    OPEN = "open"
    DISCHARGED = "discharged"
    CLOSED = "closed"
    DEAD_LETTERED = "dead lettered"
    DROPPED = "dropped"
    PARTIAL = "partial"
    EXPIRED_UNREAD = "expired unread"
    ORPHAN = "orphan"
    SEQUENCE_GAP = "sequence gap"
    OVERDUE = "overdue"
    TIMER_LOST = "timer lost"
    UNPROVABLE = "unprovable"
    RECOVERED = "recovered"
    WAIVED = "waived"

    # An enumeration's own hash is Python code, and sets of states are asked for every record.
    __hash__ = str.__hash__


LOST = frozenset({State.DROPPED, State.PARTIAL, State.EXPIRED_UNREAD, State.SEQUENCE_GAP, State.TIMER_LOST})
"""States that say: something is missing, and that is proved."""

SETTLED = frozenset({State.DISCHARGED, State.CLOSED, State.RECOVERED, State.WAIVED})
"""States in which nobody has to do anything any more."""

WATCHED = LOST | {State.DEAD_LETTERED}
"""States that stay in memory until something mends them or somebody waives them."""


def parts_missing(parts: int, total: int) -> list[int]:
    """List which of `total` outputs a bit mask of outputs lacks."""
    return [part for part in range(1, total + 1) if not parts >> part & 1]


@dataclass(slots=True, eq=False)
class Handoff:
    """One obligation in memory; `parts` is a bit mask of the outputs seen, of `total`."""

    key: bytes
    place: Place
    offset: int
    at_ms: int
    owed: Owed
    parts: int = 0
    total: int = 0
    state: State = State.OPEN

    @property
    def missing(self) -> list[int]:
        """The parts of the answer that nobody has seen; [] when complete, or when nothing was seen."""
        return parts_missing(self.parts, self.total)

    @property
    def answered(self) -> bool:
        """Whether every output that the answer says it has was seen."""
        return self.total > 0 and self.parts == ((1 << self.total) - 1) << 1


@dataclass(slots=True, eq=False)
class Effect:
    """An answer that was read before what it answers."""

    key: bytes
    group: str
    state: State
    place: Place
    offset: int
    at_ms: int
    answer: bytes
    parts: int = 0
    total: int = 0
    stored: bool = False

    @property
    def dead(self) -> bool:
        """Whether it is a letter, and nothing has answered since."""
        return self.state is State.DEAD_LETTERED and not self.parts


@dataclass(slots=True)
class Opened:
    """A handoff that the store does not have yet, with how it has ended meanwhile, if it has."""

    handoff: Handoff
    said: Said
    due_ms: int = 0
    answer: bytes = b""
    settled_ms: int = 0
    subject: bytes = b""


@dataclass(frozen=True, slots=True)
class Settled:
    """How a handoff that the store knows as open, or as lost, has ended."""

    handoff: Handoff
    answer: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is proved of a handoff, with the evidence; `barrier` is None where nothing can be proved.

    `name` and `subject` name what no record ever named: a number that did not come.
    """

    handoff: Handoff
    state: State
    commit: int
    barrier: Barrier | None
    note: str = ""
    name: str = ""
    subject: str = ""


@dataclass(slots=True)
class Changes:
    """What the store has to write since it wrote last.

    `early` are effects that it does not have yet, `grown` ones that it has and that have more parts now.
    """

    opened: list[Opened] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    early: list[Effect] = field(default_factory=list)
    grown: list[Effect] = field(default_factory=list)
    matched: list[Effect] = field(default_factory=list)


UPSTREAM = "telephony"
"""Whoever publishes call events: it owes numbers without a gap, and no group's commit can prove it."""


class _Group:
    """What one consumer group owes, and how far it has come."""

    __slots__ = (
        "again",
        "commits",
        "early",
        "ended",
        "fresh_early",
        "letters",
        "name",
        "on",
        "open",
        "passed",
        "queues",
        "watched",
        "watched_at",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.open: dict[bytes, Handoff] = {}
        self.on: Counter[str] = Counter()
        self.watched: dict[bytes, Handoff] = {}
        self.watched_at: dict[tuple[Place, int], Handoff] = {}
        self.again: set[bytes] = set()
        self.ended: OrderedDict[bytes, None] = OrderedDict()
        self.early: dict[bytes, Effect] = {}
        self.letters = 0
        self.fresh_early: list[Effect] = []
        self.queues: dict[Place, deque[Handoff]] = {}
        self.passed: dict[tuple[Place, int], Handoff] = {}
        self.commits: dict[Place, int] = {}

    def begin(self, handoff: Handoff) -> None:
        """Keep an open handoff; in the order in which they were read."""
        self.open[handoff.key] = handoff
        self.on[handoff.owed.edge] += 1

    def close(self, key: bytes) -> None:
        """Let an open handoff go, if it is one."""
        handoff = self.open.pop(key, None)
        if handoff is not None:
            self.on[handoff.owed.edge] -= 1

    def note_ended(self, key: bytes) -> None:
        """Know what was answered for a while: what else is said of it later proves nothing."""
        self.ended[key] = None
        if len(self.ended) > _ENDED_KEPT:
            self.ended.popitem(last=False)

    def watch(self, handoff: Handoff) -> None:
        """Keep what is lost or dead; by its place too, if a letter can be about it."""
        self.watched[handoff.key] = handoff
        if handoff.state not in _NO_RECORD:
            self.watched_at[handoff.place, handoff.offset] = handoff

    def unwatch(self, key: bytes) -> Handoff | None:
        """Let a watched handoff go; None if it was none."""
        handoff = self.watched.pop(key, None)
        if handoff is not None and self.watched_at.get((handoff.place, handoff.offset)) is handoff:
            del self.watched_at[handoff.place, handoff.offset]
        return handoff


_NO_RECORD = frozenset({State.SEQUENCE_GAP, State.TIMER_LOST})
"""What is lost here is no record at the handoff's place."""
_ENDED_KEPT = 50_000
"""So many answered handoffs each group remembers; how older ones have ended the store knows."""
_LOOK_AT = 5_000
"""So many open handoffs are looked at for the oldest of each edge; they stand in the order of reading."""


class Ledger:
    """All unsettled handoffs of all groups; settled ones leave memory when the store has them."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._groups = {name: _Group(name) for name in (*contract.groups, UPSTREAM)}
        self._owed = {
            wire: tuple((owed, self._groups[owed.group]) for owed in owes)
            for wire, owes in contract.owed.items()
        }
        self._by_source = {source: self._groups[name] for source, name in contract.group_of.items()}
        self._changes = Changes()
        self._fresh: dict[Handoff, Opened] = {}
        self._last_ms = 0
        self.after_commit: dict[str, int] = dict.fromkeys(contract.groups, 0)

    # ------------------------------------------------------------ what is read

    def take(self, place: Place, said: Said) -> None:
        """Note one record: an answer, an obligation, or both."""
        if said.cause:
            group = self._by_source.get(said.source)
            if group is not None:
                self._answered(group, key_of(said.cause), place, said, State.DISCHARGED)
        owes = self._owed.get(said.wire)
        if owes is not None:
            key = key_of(said.event_id)
            for owed, group in owes:
                self._obliged(group, owed, key, place, said)

    def take_receipts(self, group: str, names: Iterable[str], place: Place, said: Said) -> None:
        """Note that a group closed these events without an effect, on purpose."""
        owner = self._groups.get(group)
        if owner is not None:
            whole = said._replace(part=1, total=1)
            for name in names:
                self._answered(owner, key_of(name.encode()), place, whole, State.CLOSED)

    def take_letter(self, group: str, source: tuple[Place, int], said: Said) -> None:
        """Note that a group could not handle the record at a place; its id may be unreadable."""
        owner = self._groups.get(group)
        if owner is None:
            return
        key, (at, offset) = key_of(said.cause), source
        handoff = owner.open.get(key) or owner.passed.get(source) or _at(owner.queues.get(at, ()), at, offset)
        if handoff is None:
            handoff = owner.watched.get(key) or owner.watched_at.get(source)
        if handoff is not None:
            if handoff.state is State.OPEN or handoff.state in WATCHED:
                self._died(owner, handoff, said.event_id, said.at_ms)
            return  # else it was sent again and answered, and that was read first
        if key not in owner.early:
            self._keep_letter(owner, key, source, said)

    def take_reuse(self, group: str, source: tuple[Place, int], said: Said) -> None:
        """Note that a group has put aside other content that came under the id of an event it had handled.

        The event stays what it is. What was put aside is a dead letter of its own, named by its place.
        """
        owner = self._groups.get(group)
        if owner is None:
            return
        (at, offset), copy = source, owner.open.get(key_of(said.cause))
        if copy is not None and (copy.place, copy.offset) == source:
            owner.close(copy.key)  # taken for an event of its own, because the first one is settled and gone
            self.settle(copy, State.DISCHARGED, b"", said.at_ms)
        self._keep_letter(owner, _named_reuse(at, offset), source, said)

    def _keep_letter(self, owner: _Group, key: bytes, source: tuple[Place, int], said: Said) -> None:
        effect = Effect(key, owner.name, State.DEAD_LETTERED, *source, said.at_ms, said.event_id)
        owner.early[key] = effect
        owner.letters += 1
        owner.fresh_early.append(effect)
        self._changes.early.append(effect)

    def _died(self, group: _Group, handoff: Handoff, answer: bytes, at_ms: int) -> None:
        group.close(handoff.key)
        group.watch(handoff)
        self.settle(handoff, State.DEAD_LETTERED, answer, at_ms)

    def _obliged(self, group: _Group, owed: Owed, key: bytes, place: Place, said: Said) -> None:
        if key in group.open or key in group.watched:
            self._sent_again(group, key, place, said.offset)
            return
        if said.at_ms != self._last_ms:
            self._last_ms = said.at_ms  # records of one batch share their time: one integer for all
        handoff = Handoff(key, place, said.offset, self._last_ms, owed)
        self.note_opened(handoff, said)
        if group.early and self._met_early(group, handoff):
            return
        group.begin(handoff)
        queue = group.queues.get(place)
        if queue is None:
            queue = group.queues[place] = deque()
        queue.append(handoff)

    def _sent_again(self, group: _Group, key: bytes, place: Place, offset: int) -> None:
        """Note a copy: a letter about it, read before it or after, is about the same handoff."""
        handoff = group.unwatch(key)
        if handoff is not None:
            group.passed.pop((handoff.place, handoff.offset), None)
            handoff.place, handoff.offset = place, offset
            group.watch(handoff)
            group.again.add(key)
        letter = group.early.get(_named(place, offset)) if group.letters else None
        if letter is not None:
            self._forget_early(group, letter.key)
            self._died(group, handoff or group.open[key], letter.answer, letter.at_ms)

    def _met_early(self, group: _Group, handoff: Handoff) -> bool:
        """Match what was said before its cause was read; tells whether that settles it."""
        letter = group.early.get(_named(handoff.place, handoff.offset)) if group.letters else None
        effect = group.early.get(handoff.key) or letter
        if effect is None:
            return False
        self._forget_early(group, effect.key)
        if letter is not None:
            self._forget_early(group, letter.key)
        handoff.parts, handoff.total = effect.parts, effect.total
        if effect.dead:
            self._died(group, handoff, effect.answer, effect.at_ms)
        elif handoff.answered:
            state = State.CLOSED if effect.state is State.CLOSED else State.DISCHARGED
            self.settle(handoff, state, effect.answer, effect.at_ms)
            group.note_ended(handoff.key)
        return handoff.state is not State.OPEN

    def _answered(self, group: _Group, key: bytes, place: Place, said: Said, state: State) -> None:
        handoff = group.open.get(key)
        if handoff is not None:
            # Most answers are one output, or the last of few: settled without a look at the mask.
            if said.total > 1:
                handoff.parts |= 1 << said.part
                handoff.total = max(handoff.total, said.total)
                if not handoff.answered:
                    self.settle(handoff, State.OPEN, b"", 0)
                    return
            group.close(key)
            self.settle(handoff, state, said.event_id, said.at_ms)
            group.note_ended(key)
            return
        handoff = group.watched.get(key)
        if handoff is not None:
            self._answered_late(group, handoff, said)
            return
        if key in group.ended:
            return  # a copy of the answer, or it came to nothing at first and to something later
        effect = group.early.get(key)
        if effect is None:
            effect = Effect(key, group.name, state, place, said.offset, said.at_ms, said.event_id)
            group.early[key] = effect
            group.fresh_early.append(effect)
            self._changes.early.append(effect)
        elif effect.stored:
            self._changes.grown.append(effect)
        if effect.dead:
            effect.answer = said.event_id  # it had died, was sent again, and is answered now
            group.letters -= 1
        effect.parts |= 1 << said.part
        effect.total = max(effect.total, said.total)

    def _answered_late(self, group: _Group, handoff: Handoff, said: Said) -> None:
        handoff.parts |= 1 << said.part
        handoff.total = max(handoff.total, said.total)
        if not handoff.answered:
            self.settle(handoff, handoff.state, b"", said.at_ms)
            return
        group.unwatch(handoff.key)
        if handoff.key in group.again:
            group.again.discard(handoff.key)
        elif handoff.state is not State.DEAD_LETTERED:
            self.after_commit[group.name] += 1  # nobody sent it again: the group committed too early
        self.settle(handoff, State.RECOVERED, said.event_id, said.at_ms)

    # ------------------------------------------------------------ changes for the store

    def note_opened(self, handoff: Handoff, said: Said, due_ms: int = 0, subject: bytes = b"") -> None:
        """Have the store keep a handoff that begins now; a deferred one has a deadline and a subject."""
        opened = self._fresh[handoff] = Opened(handoff, said, due_ms, subject=subject)
        self._changes.opened.append(opened)

    def settle(self, handoff: Handoff, state: State, answer: bytes, at_ms: int) -> None:
        """Have the store keep how a handoff stands now."""
        handoff.state = state
        opened = self._fresh.get(handoff)
        if opened is None:
            self._changes.settled.append(Settled(handoff, answer, at_ms))
        else:
            opened.answer, opened.settled_ms = answer, at_ms

    def mend(self, group: str, key: bytes, answer: bytes, at_ms: int) -> bool:
        """Note that what was lost has come after all; tells whether it was lost."""
        handoff = self._groups[group].unwatch(key) if group in self._groups else None
        if handoff is not None:
            self.settle(handoff, State.RECOVERED, answer, at_ms)
        return handoff is not None

    def drain(self) -> Changes:
        """Hand over what changed since the last call; the caller stores it before anything else is judged."""
        changes, self._changes = self._changes, Changes()
        self._fresh.clear()
        # Only effects that are still without their cause need a row.
        changes.early = [effect for effect in changes.early if self._is_early(effect)]
        changes.grown = [effect for effect in changes.grown if self._is_early(effect)]
        for effect in changes.early:
            effect.stored = True
        return changes

    def _is_early(self, effect: Effect) -> bool:
        return self._groups[effect.group].early.get(effect.key) is effect

    # ------------------------------------------------------------ what is committed

    def commit(self, group: str, commits: Mapping[Place, int]) -> Barrier | None:
        """Note a group's committed offsets; gives the barrier behind which suspects will be judged.

        A commit below what was seen before (a rewind, or offsets that expired) takes nothing back: what
        was committed once was committed. The high watermarks must be taken after this call.
        """
        owner = self._groups[group]
        suspects: list[Handoff] = []
        for place, offset in commits.items():
            owner.commits[place] = max(offset, owner.commits.get(place, -1))
        for place, queue in owner.queues.items():
            limit = owner.commits.get(place, -1)
            while queue and queue[0].offset < limit:
                handoff = queue.popleft()
                if handoff.state is State.OPEN:
                    owner.passed[place, handoff.offset] = handoff
                    suspects.append(handoff)
        if not suspects:
            return None
        passed = {handoff.place: owner.commits[handoff.place] for handoff in suspects}
        return Barrier(group, self.contract.answers_on[group], suspects, commits=passed)

    def commits_of(self, group: str) -> Mapping[Place, int]:
        """How far a group was ever seen to have committed."""
        return self._groups[group].commits

    def effects_without_cause(self) -> Iterator[Barrier]:
        """Give a barrier for the answers whose cause was not read yet: all the group reads must be read."""
        for group in self._groups.values():
            if group.fresh_early:
                effects = [effect for effect in group.fresh_early if self._is_early(effect)]
                group.fresh_early = []
                if effects:
                    yield Barrier(group.name, self.contract.reads[group.name], effects)

    # ------------------------------------------------------------ verdicts

    def judge(self, barrier: Barrier) -> list[Verdict]:
        """Say what is proved once a barrier has been read past; the store may know better of some."""
        verdicts = []
        passed = self._groups[barrier.group].passed
        for suspect in barrier.suspects:
            if isinstance(suspect, Handoff):
                passed.pop((suspect.place, suspect.offset), None)
            if isinstance(suspect, Handoff) and suspect.state is State.OPEN:
                commit = barrier.commits.get(suspect.place, -1)
                verdicts.append(
                    Verdict(suspect, _lost(suspect, barrier), commit, barrier, _why(suspect, barrier))
                )
            elif isinstance(suspect, Effect) and self._is_early(suspect):
                verdicts.append(_without_cause(suspect, barrier))
        return verdicts

    def expired(self, group: str, starts: Mapping[Place, int]) -> Barrier | None:
        """Give a barrier for what was deleted before the group committed it: its answer may be on the way."""
        owner = self._groups[group]
        gone: list[Handoff] = []
        for place, queue in owner.queues.items():
            start, commit = starts.get(place, 0), owner.commits.get(place, -1)
            while queue and queue[0].offset < start:
                if queue[0].state is State.OPEN and queue[0].offset < commit:
                    break  # it is committed: the barrier will tell
                handoff = queue.popleft()
                if handoff.state is State.OPEN:
                    gone.append(handoff)
        return self._deleted(owner, gone, "the log was deleted up to here before the group read it")

    def vanished(self, group: str, place: Place) -> Barrier | None:
        """Give a barrier for what was lost with a topic that was deleted and made again."""
        owner = self._groups[group]
        queue = owner.queues.pop(place, deque())
        if place in owner.commits:
            owner.commits[place] = 0  # not forgotten: the store must forget the old one too
        gone = [handoff for handoff in queue if handoff.state is State.OPEN]
        return self._deleted(owner, gone, "the topic was deleted before the group read it")

    def _deleted(self, owner: _Group, gone: list[Handoff], note: str) -> Barrier | None:
        if not gone:
            return None
        commits = {handoff.place: owner.commits.get(handoff.place, -1) for handoff in gone}
        return Barrier(owner.name, self.contract.answers_on[owner.name], gone, commits=commits, note=note)

    def blinded(self, group: str) -> list[Verdict]:
        """Give up what is open: some topic on which its answers could be was deleted before it was read."""
        note = "records on which its answer may have been were deleted before they were read"
        owner = self._groups[group]
        return [
            Verdict(handoff, State.UNPROVABLE, owner.commits.get(handoff.place, -1), None, note)
            for handoff in owner.open.values()
        ]

    def apply(self, verdict: Verdict) -> None:
        """Let a verdict stand, after the store knows of no earlier answer."""
        handoff = verdict.handoff
        group = self._groups[handoff.owed.group]
        group.close(handoff.key)
        self._forget_early(group, handoff.key)
        handoff.state = verdict.state
        if verdict.state in WATCHED:
            group.watch(handoff)

    def known_before(self, verdict: Verdict) -> None:
        """The store has this as answered long ago: a repeat, neither a loss nor an orphan."""
        handoff = verdict.handoff
        group = self._groups[handoff.owed.group]
        group.close(handoff.key)
        self._forget_early(group, handoff.key)
        handoff.state = State.DISCHARGED

    def _forget_early(self, group: _Group, key: bytes) -> None:
        effect = group.early.pop(key, None)
        if effect is not None and effect.dead:
            group.letters -= 1
        if effect is not None and effect.stored:
            self._changes.matched.append(effect)

    def waive(self, group: str, key: bytes, at_ms: int) -> bool:
        """Let an operator's word end a watched handoff; tells whether there was one."""
        handoff = self._groups[group].unwatch(key) if group in self._groups else None
        if handoff is None:
            return False
        self.settle(handoff, State.WAIVED, b"", at_ms)
        return True

    # ------------------------------------------------------------ restart and figures

    def restore(
        self,
        handoffs: Sequence[Handoff],
        effects: Sequence[Effect],
        commits: Mapping[tuple[str, Place], int],
    ) -> None:
        """Take up where an earlier process stopped; `handoffs` in the order of their offsets."""
        for handoff in handoffs:
            group = self._groups.get(handoff.owed.group)
            if group is None:
                continue
            if handoff.state is State.OPEN:
                group.begin(handoff)
                group.queues.setdefault(handoff.place, deque()).append(handoff)
            elif handoff.state in WATCHED:
                group.watch(handoff)
        for effect in effects:
            if effect.group in self._groups:
                effect.stored = True
                self._groups[effect.group].early[effect.key] = effect
                self._groups[effect.group].letters += effect.dead
                self._groups[effect.group].fresh_early.append(effect)
        for (name, place), offset in commits.items():
            if name in self._groups:
                self._groups[name].commits[place] = offset

    def open_by_edge(self) -> dict[str, tuple[int, int]]:
        """Count what is open on each edge that has any, with the append time of the oldest (ms)."""
        found: dict[str, tuple[int, int]] = {}
        for group in self._groups.values():
            oldest: dict[str, int] = {}
            at_ms = 0
            for handoff in islice(group.open.values(), _LOOK_AT):
                at_ms = handoff.at_ms
                oldest[handoff.owed.edge] = min(oldest.get(handoff.owed.edge, at_ms), at_ms)
            # An edge that is not among so many is younger than they are.
            found.update(
                {edge: (count, oldest.get(edge, at_ms)) for edge, count in group.on.items() if count}
            )
        return found

    def watched(self) -> Iterator[Handoff]:
        """Give what is lost or dead lettered."""
        for group in self._groups.values():
            yield from group.watched.values()

    def watched_by_edge(self) -> dict[tuple[str, State], int]:
        """Count what is lost or dead lettered on each edge."""
        found: dict[tuple[str, State], int] = {}
        for handoff in self.watched():
            what = (handoff.owed.edge, handoff.state)
            found[what] = found.get(what, 0) + 1
        return found


def _at(handoffs: Iterable[Handoff], place: Place, offset: int) -> Handoff | None:
    return next((found for found in handoffs if found.offset == offset and found.place == place), None)


def _named(place: Place, offset: int) -> bytes:
    """The key under which a letter goes whose record has no readable id."""
    return key_of(f"{place.topic}/{place.partition}/{offset}".encode())


def _named_reuse(place: Place, offset: int) -> bytes:
    """The key of a letter about a record under another one's id: no event and no other letter has it."""
    return key_of(f"{place.topic}/{place.partition}/{offset} under a used id".encode())


def _lost(handoff: Handoff, barrier: Barrier) -> State:
    if barrier.note:
        return State.EXPIRED_UNREAD
    return State.PARTIAL if handoff.parts else State.DROPPED


def _why(handoff: Handoff, barrier: Barrier) -> str:
    parts = f"parts {handoff.missing} of {handoff.total} are missing" if handoff.parts else ""
    return barrier.note or parts


def _without_cause(effect: Effect, barrier: Barrier) -> Verdict:
    """An answer to nothing is an orphan; a letter about a record that obliged nobody is a dead letter."""
    dead = effect.dead
    owed = Owed(f"{'unreadable' if dead else 'nobody'}→{effect.group}", effect.group)
    handoff = Handoff(effect.key, effect.place, effect.offset, effect.at_ms, owed, effect.parts, effect.total)
    if dead:
        note = "put aside without a handoff of its own: unreadable, unknown, or under an id that was used"
        return Verdict(handoff, State.DEAD_LETTERED, -1, barrier, note)
    return Verdict(handoff, State.ORPHAN, -1, barrier, "its cause is on no topic that the group reads")
