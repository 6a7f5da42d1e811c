"""A log, stages that consume and answer, an observer that judges them: seeded, pure, and the truth is known.

The world runs first and leaves a history: what each partition held and what each group had committed, tick
by tick. An observer then lives through that history, as often as a test likes: killed, or with a wrong rule.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple, TypeAlias

from chassis.transport import Place
from observer.barrier import Barrier, Barriers
from observer.contract import contract_of
from observer.deferred import RECENT_MS, Deferred, Waiting
from observer.headers import Said, key_of, time_ms
from observer.ledger import LOST, UPSTREAM, WATCHED, Changes, Effect, Handoff, Ledger, State, Verdict
from observer.sequences import Count, Sequences
from schemas import feedback, intake, operations, resolver, router, telephony
from schemas.envelope import BY_BODY, Body
from schemas.topics import DEPARTMENTS, STAGES, TOPICS

TICK_MS = 50
MINUTE_MS = 60_000
BEGIN_MS = 1_790_000_000_000
PASS_TICKS = 5
"""The observer judges every 250 ms."""
STALE_TICKS = 120
"""So long a batch may stay unsent before the stage's relay takes it."""
METADATA_TICKS = 250
"""So often clients ask for metadata by themselves."""
KEPT_TICKS = 160
"""Retention deletes nothing younger: the observer's longest stall is shorter."""
LONGEST_STALL = 50


def _wire(body: type[Body]) -> bytes:
    return BY_BODY[body].wire.encode()


CALL_ENDED = _wire(telephony.CallEnded)
RECORDING = _wire(intake.RecordingRequested)
RECORDED = _wire(intake.CaseRecorded)
CLOSED = _wire(intake.ContactClosed)
LATE_RECORD = _wire(intake.RecordingOverdue)
ROUTED = _wire(router.CaseRouted)
PARKED = _wire(router.CaseParked)
RULED = _wire(router.AssignmentRequested)
LATE_RULING = _wire(router.TriageOverdue)
DELIVERED = _wire(resolver.CaseDelivered)
ASSIGNED = _wire(resolver.CaseAssigned)
ACCEPTING = _wire(resolver.AcceptanceRequested)
ACCEPTED = _wire(resolver.CaseAccepted)
RESOLVING = _wire(resolver.ResolutionRequested)
RESOLVED = _wire(resolver.CaseResolved)
ESCALATED = _wire(resolver.CaseEscalated)
OPENED = _wire(feedback.CaseOpened)
TELLING = _wire(feedback.TellingAttempted)
TOLD = _wire(feedback.CustomerTold)
CASE_CLOSED = _wire(feedback.CaseClosed)
LATE_TELLING = _wire(feedback.TellingOverdue)
SUNG = _wire(operations.CanarySung)
MANIFEST = _wire(telephony.ManifestPublished)
RUBBISH = b"nobody.knows-this"
FIRED = {
    "intake": _wire(intake.TimerFired),
    "router": _wire(router.TimerFired),
    "resolver": _wire(resolver.TimerFired),
    "feedback": _wire(feedback.TimerFired),
}
REFUSED = {
    "intake": _wire(intake.CommandRefused),
    "router": _wire(router.CommandRefused),
    "resolver": _wire(resolver.CommandRefused),
    "feedback": _wire(feedback.CommandRefused),
}
_OF_CALLS = frozenset({CLOSED, LATE_RECORD, REFUSED["intake"]})
COMMANDS = {
    "intake": intake.COMMANDS,
    "router": router.COMMANDS,
    "resolver": resolver.COMMANDS,
    "feedback": feedback.COMMANDS,
}
SAYS = {
    "intake": intake.CASES,
    "router": router.CASES,
    "resolver": resolver.CASES,
    "feedback": feedback.CASES,
}
TIMED = {
    "intake": (CALL_ENDED, frozenset({CLOSED, RECORDED, LATE_RECORD}), 10 * MINUTE_MS),
    "router": (PARKED, frozenset({ROUTED, LATE_RULING}), 120 * MINUTE_MS),
    "resolver": (DELIVERED, frozenset({ACCEPTED, ESCALATED}), 120 * MINUTE_MS),
    "feedback": (OPENED, frozenset({TOLD, LATE_TELLING}), 24 * 60 * MINUTE_MS),
}
"""By stage: what must be followed in time, by what, within how long."""
SOURCES = (b"/pbx/a", b"/pbx/b")

Template: TypeAlias = tuple[bytes, bytes, bytes, bytes, int, int, int, bytes, bytes, bytes]
"""A record before it is appended: `Said` without its offset and time."""
Out: TypeAlias = tuple[str, int, bytes, bytes]
"""What a decision says: topic, key, wire type, and for which subject it is numbered (none if empty)."""
Outgoing: TypeAlias = tuple[str, int, Template, tuple[str, str, Any] | None]
"""A record as the outbox keeps it; the last is what `Spoken` adds."""
Named: TypeAlias = tuple[bytes, str]
"""An event's id, and the group that owes it an answer."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How one world is: how long, how busy, and how much goes wrong in it."""

    seed: int
    ticks: int = 900
    calls: float = 2.0
    transactions: bool = False
    growth: bool = True
    losses: float = 0.02
    trouble: float = 0.006
    skew_ms: int = 5 * MINUTE_MS
    doubled: float = 0.01


class Spoken(NamedTuple):
    """A record whose body the observer reads: what stages say of their work, and digests."""

    said: Said
    kind: str
    group: str
    content: Any


class Tick(NamedTuple):
    """What changed in one tick: ends are (place, high watermark, last stable offset)."""

    now_ms: int
    ends: list[tuple[Place, int, int]]
    starts: list[tuple[Place, int]]
    commits: list[tuple[str, Place, int | None]]


class Log:
    """One partition: append only; `holds` are the first offsets of open transactions."""

    __slots__ = ("entries", "holds", "place", "start")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.entries: list[Any] = []
        self.holds: list[int] = []
        self.start = 0

    @property
    def stable(self) -> int:
        """What a reader of committed records may see: everything below the oldest open transaction."""
        return min(self.holds) if self.holds else len(self.entries)


@dataclass(slots=True)
class Truth:
    """What really happened, as the simulator did it."""

    lost: dict[Named, str] = field(default_factory=dict)
    mended: set[Named] = field(default_factory=set)
    missing_parts: dict[Named, list[int]] = field(default_factory=dict)
    dead: dict[Named, str] = field(default_factory=dict)
    letters: set[Named] = field(default_factory=set)
    orphans: set[Named] = field(default_factory=set)
    numbers: set[tuple[str, bytes, int]] = field(default_factory=set)
    broken_timers: set[tuple[str, int]] = field(default_factory=set)


class Batch:
    """What one pass of a stage has stored: what it says, and which inputs that answers."""

    __slots__ = ("answers", "letters", "number", "outputs", "owned", "since_ms", "since_tick")

    def __init__(self, number: int, since_tick: int, since_ms: int) -> None:
        self.number = number
        self.outputs: list[Outgoing] = []
        self.answers: list[bytes] = []
        self.letters: list[tuple[Log, int]] = []
        self.since_tick, self.since_ms = since_tick, since_ms
        self.owned = True


class Transaction:
    """An open transaction of a stage's producer: where it wrote, and when it ends."""

    __slots__ = ("batches", "ends", "wrote")

    def __init__(self, ends: int, batches: list[Batch]) -> None:
        self.ends, self.batches = ends, batches
        self.wrote: dict[Log, list[int]] = {}

    def note(self, log: Log, offset: int) -> None:
        """Hold the log back from its first record on."""
        if log not in self.wrote:
            self.wrote[log] = []
            log.holds.append(offset)
        self.wrote[log].append(offset)


# ---------------------------------------------------------------------- the world


class World:
    """Telephony, people, stages and the log between them; `run` leaves `history` and `truth`."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.rng = setup, Random(setup.seed)
        self.contract = contract_of()
        self.truth = Truth()
        self.history: list[Tick] = []
        self.tick, self.now_ms = 0, BEGIN_MS
        self.calm = False
        self.topics = {
            topic.name: [Log(Place(topic.name, number)) for number in range(_partitions(topic.name))]
            for topic in TOPICS
            if topic.name != operations.VERDICTS
        }
        self.logs = {log.place: log for logs in self.topics.values() for log in logs}
        self.moved: dict[Log, None] = dict.fromkeys(self.logs.values())
        self.started: list[tuple[Place, int]] = []
        self.committed: list[tuple[str, Place, int | None]] = []
        self.planned: dict[int, list[Callable[[], None]]] = defaultdict(list)
        self.clock = {name: self._skew() for name in (*STAGES, *map(bytes.decode, SOURCES), "people")}
        self.headers: dict[str, bytes] = {}
        self.ids = 0
        self.cases = 0
        self.upstream = dict.fromkeys(SOURCES, 0)
        self.delayed = 0
        self.ended: set[int] = set()
        self.recorded: set[int] = set()
        self.ruled: set[int] = set()
        self.accepted: set[int] = set()
        self.told: set[int] = set()
        self.fired: dict[bytes, tuple[str, int]] = {}
        self.redriven: set[Named] = set()
        self.groups = {name: Group(self, name) for name in STAGES}
        self.sung_until = 0

    def _skew(self) -> int:
        return self.rng.randint(-self.setup.skew_ms, self.setup.skew_ms)

    # ------------------------------------------------------------ basics

    def new_id(self) -> bytes:
        """Name a record; some writers do not use UUIDs."""
        self.ids += 1
        if self.ids % 37 == 0:
            return b"pbx-%d-%d" % (self.setup.seed, self.ids)
        return b"%08x-0000-7000-8000-%012x" % (self.setup.seed, self.ids)

    def header(self, who: str) -> bytes:
        """Give the time on somebody's clock, as `ce_time` has it."""
        found = self.headers.get(who)
        if found is None:
            at = datetime.fromtimestamp(self.clock_ms(who) / 1000, tz=UTC)
            found = self.headers[who] = at.isoformat().encode()
        return found

    def clock_ms(self, who: str) -> int:
        """Give the time on somebody's clock."""
        return self.now_ms + self.clock[who]

    def append(
        self,
        topic: str,
        key: int,
        template: Template,
        spoken: tuple[str, str, Any] | None = None,
        transaction: Transaction | None = None,
    ) -> None:
        """Append a record, now and then twice, as a producer without idempotence does."""
        logs = self.topics[topic]
        log = logs[key % len(logs)]
        entries = log.entries
        times = 2 if self.rng.random() < self.setup.doubled else 1
        for _ in range(times):
            offset = len(entries)
            said = Said(offset, self.now_ms, *template)
            entries.append(said if spoken is None else Spoken(said, *spoken))
            if transaction is not None:
                transaction.note(log, offset)
        self.moved[log] = None

    def say(self, topic: str, key: int, wire: bytes, subject: bytes) -> Template:
        """Let somebody outside the stages say something."""
        at = self.header("people")
        template = (self.new_id(), wire, b"/people", b"", 1, 1, 0, subject, at, subject)
        self.append(topic, key, template)
        return template

    def soon(self, within: int, work: Callable[[], None]) -> None:
        """Do something within so many ticks."""
        self.planned[self.tick + 1 + int(self.rng.random() * within)].append(work)

    def command(self, stage: str, n: int, wire: bytes, within: int) -> None:
        """Let a person tell a stage something, within so many ticks."""
        subject = b"call-%d" % n if stage == "intake" else b"case-%d" % n
        self.soon(within, lambda: self._commanded(stage, n, wire, subject))

    def _commanded(self, stage: str, n: int, wire: bytes, subject: bytes) -> None:
        template = self.say(COMMANDS[stage], n, wire, subject)
        if self.rng.random() < 0.004:
            self.groups[stage].poison[template[0]] = template

    # ------------------------------------------------------------ running

    def run(self) -> World:
        """Live: trouble first, then peace until everything is done, then redrive, then peace again."""
        pauses = {self.rng.randrange(50, self.setup.ticks) for _ in range(4)}
        grows = {self.rng.randrange(30, self.setup.ticks) for _ in range(6)} if self.setup.growth else set()
        while self.tick < self.setup.ticks:
            self._offer_calls()
            if self.tick in grows:
                self._grow()
            if self.tick in pauses and not self.delayed:
                self.now_ms += self.rng.choice((1, 12, 45, 150)) * MINUTE_MS
                self.headers.clear()
            for group in self.groups.values():
                group.misfortune()
            if self.rng.random() < 0.1:
                self._retain()
            if self.rng.random() < 0.01:
                self._say_of_nothing()
            self.step()
        self._settle()
        self._redrive()
        self._settle()
        return self

    def step(self) -> None:
        """One tick: what was planned, what stages do, what changed."""
        for work in self.planned.pop(self.tick, ()):
            work()
        for group in self.groups.values():
            group.step()
        if self.tick % 100 == 17 and not self.calm:
            self._sing()
        self._commit_songs()
        if self.tick % (10 if self.calm else 40) == 0:
            self._watermarks()
        moved, self.moved = self.moved, {}
        ends = [(log.place, len(log.entries), log.stable) for log in moved]
        self.history.append(Tick(self.now_ms, ends, self.started, self.committed))
        self.started, self.committed = [], []
        self.tick += 1
        self.now_ms += TICK_MS
        self.headers.clear()

    def _settle(self) -> None:
        self.calm = True
        for source in SOURCES:
            self._manifest(source)
        self._until_quiet()
        for minutes in (20, 180, 1500):
            self.now_ms += minutes * MINUTE_MS
            self.headers.clear()
            self._until_quiet()
            for _ in range(60):
                self.step()
        for _ in range(60):
            self.step()

    def _until_quiet(self) -> None:
        for group in self.groups.values():
            group.recover()
        for _ in range(2000):
            self.step()
            if not self.planned and all(group.quiet for group in self.groups.values()):
                return
        raise AssertionError(f"seed {self.setup.seed}: the world does not come to rest")

    # ------------------------------------------------------------ telephony and people

    def _offer_calls(self) -> None:
        calls = self.setup.calls * self.rng.choice((0, 0, 0.5, 1, 1, 3.5))
        count = int(calls) + (self.rng.random() < calls % 1)
        for _ in range(count):
            self._offer_call()
        if self.tick % 150 == 149:
            self._manifest(self.rng.choice(SOURCES))

    def _offer_call(self) -> None:
        rng = self.rng
        self.cases += 1
        n = self.cases
        source = rng.choice(SOURCES)
        self.upstream[source] += 1
        number = self.upstream[source]
        who = source.decode()
        at, call = self.header(who), b"call-%d" % n
        # Telephony numbers what a source says, not what is said of a call.
        template = (self.new_id(), CALL_ENDED, source, b"", 1, 1, number, source, at, call)
        draw = rng.random()
        if draw < 0.003 and number > 20:
            self.truth.numbers.add((UPSTREAM, source, number))
            return
        if draw < 0.05:
            self.delayed += 1
            self.soon(15, lambda: self._delayed(n, template))
        else:
            self.append(telephony.TOPIC, n, template)
        if draw > 0.995:
            # Telephony tells its story again, long after.
            self.planned[self.tick + 60 + rng.randrange(200)].append(
                lambda: self.append(telephony.TOPIC, n, template)
            )
        elif draw > 0.985:
            # Another feed tells of the same end, in its own words.
            other = (self.new_id(), CALL_ENDED, b"/pbx/feed", b"", 1, 1, 0, call, at, call)
            self.planned[self.tick + rng.randrange(200)].append(
                lambda: self.append(telephony.TOPIC, n, other)
            )
        if rng.random() < 0.93:
            self.command("intake", n, RECORDING, 40)

    def _delayed(self, n: int, template: Template) -> None:
        self.delayed -= 1
        self.append(telephony.TOPIC, n, template)

    def _manifest(self, source: bytes) -> None:
        """Telephony says how far it has come, once all of that is on the log."""
        if self.delayed:
            self.soon(20, lambda: self._manifest(source))
            return
        last = self.upstream[source]
        at = self.header(source.decode())
        template = (self.new_id(), MANIFEST, source, b"", 1, 1, 0, source, at, source)
        self.append(telephony.TOPIC, last, template, ("manifest", "", last))

    def _sing(self) -> None:
        template = self.say(operations.CANARY, 0, SUNG, b"song")
        self.truth.lost[template[0], operations.CANARY_GROUP] = "canary"

    def _commit_songs(self) -> None:
        [log] = self.topics[operations.CANARY]
        if log.stable > self.sung_until and self.rng.random() < 0.1:
            self.sung_until = log.stable
            self.committed.append((operations.CANARY_GROUP, log.place, log.stable))

    def _say_of_nothing(self) -> None:
        """A stage answers what never was; somebody writes what nobody understands."""
        group = self.groups[self.rng.choice(STAGES)]
        if self.rng.random() < 0.5:
            cause, case, at = self.new_id(), b"case-0", self.header(group.name)
            wire = REFUSED[group.name]
            template = (self.new_id(), wire, group.source, cause, 1, 1, 0, case, at, case)
            self.append(SAYS[group.name], self.rng.randrange(99), template)
            self.truth.orphans.add((cause, group.name))
        else:
            template = (b"", RUBBISH, b"", b"", 1, 1, 0, b"", b"no time", b"")
            self.append(COMMANDS[group.name], self.rng.randrange(99), template)

    # ------------------------------------------------------------ the log

    def _grow(self) -> None:
        """Add a partition; the groups that read the topic learn of it later."""
        topic = self.rng.choice(
            [
                telephony.TOPIC,
                intake.CASES,
                router.CASES,
                resolver.CASES,
                "departments.cards",
                resolver.COMMANDS,
            ]
        )
        log = Log(Place(topic, len(self.topics[topic])))
        self.topics[topic].append(log)
        self.logs[log.place] = log
        self.moved[log] = None
        self.soon(60, lambda: self._taken_up(topic, log))

    def _taken_up(self, topic: str, log: Log) -> None:
        for group in self.groups.values():
            if topic in self.contract.reads[group.name]:
                group.take_up(log)

    def _retain(self) -> None:
        """Delete what is old, although a group that stands still has not read it."""
        idle = [group for group in self.groups.values() if group.stands_still]
        if not idle:
            return
        group = self.rng.choice(idle)
        log = self.rng.choice(group.logs)
        start = self._old_until(log)
        if start <= group.commits[log]:
            return
        for reading in self.groups.values():
            if log in reading.commits and reading.commits[log] < start and not reading.stands_still:
                return
        for reading in self.groups.values():
            if log in reading.commits:
                reading.loses_to_retention(log, start)
        log.start = start
        self.started.append((log.place, start))

    def _old_until(self, log: Log) -> int:
        young = self.history[-KEPT_TICKS].now_ms if len(self.history) > KEPT_TICKS else 0
        offset, limit = log.start, min(log.stable, log.start + 40)
        while offset < limit and (log.entries[offset] is None or _said(log.entries[offset]).at_ms < young):
            offset += 1
        return offset

    def _watermarks(self) -> None:
        for group in self.groups.values():
            if group.down_until <= self.tick:
                group.say_watermark()

    # ------------------------------------------------------------ redrive

    def _redrive(self) -> None:
        """An operator sends again what was lost and what had died: some of it, not all."""
        rng = self.rng
        for group in self.groups.values():
            for name, template in list(group.poison.items()):
                if (name, group.name) not in self.truth.dead:
                    continue
                draw = rng.random()
                if draw < 0.6:
                    group.heal(name)
                if draw < 0.8:
                    self.append(group.home[name], _key(template), template)
        for name, group_name in list(self.truth.lost):
            if (
                group_name in self.groups
                and (name, group_name) not in self.truth.mended
                and rng.random() < 0.5
            ):
                self.groups[group_name].redrive(name)


def _partitions(topic: str) -> int:
    if topic.startswith("ops.") or topic.endswith(".dead"):
        return 2 if topic == operations.RECEIPTS else 1
    return 1 if topic.removeprefix("departments.") in DEPARTMENTS else 3


def _said(entry: Any) -> Said:
    return entry if type(entry) is Said else entry.said


def _key(template: Template) -> int:
    return int(template[9][5:])


# ---------------------------------------------------------------------- the stages


class Group:
    """One stage: what it has stored, what it still has to send, how far it has committed."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.rng = world, name, world.rng
        self.source = f"/hotline/{name}".encode()
        self.logs = [log for topic in world.contract.reads[name] for log in world.topics[topic]]
        self.logs.sort(key=lambda log: log.place)
        self.commits: dict[Log, int] = dict.fromkeys(self.logs, 0)
        self.seen: set[bytes] = set()
        self.answered: set[bytes] = set()
        self.lettered: set[tuple[Log, int]] = set()
        self.unpublished: dict[int, Batch] = {}
        self.batch_of: dict[bytes, int] = {}
        self.batches = 0
        self.sequence: dict[bytes, int] = {}
        self.poison: dict[bytes, Template] = {}
        self.home: dict[bytes, str] = {}
        self.kept: dict[bytes, list[Outgoing]] = {}
        self.doomed: dict[bytes, str] = {}
        self.records: dict[bytes, tuple[str, Template]] = {}
        self.waiting: list[tuple[int, bytes, list[Out]]] = []
        self.timers: list[tuple[int, int]] = []
        self.timer_late = 0
        self.down_until = self.down_since = 0
        self.pace = 40
        self.slow_until = 0
        self.careless_until = 0
        self.forgotten = False
        self.handlers = self._handlers()
        self.workers: list[Worker] = []
        self._share_out()

    def _handlers(self) -> dict[bytes, Callable[[int, Said], list[Out]]]:
        return {
            "intake": {CALL_ENDED: self._ended, RECORDING: self._record, FIRED["intake"]: self._wrap_up},
            "router": {RECORDED: self._route, RULED: self._rule, FIRED["router"]: self._remind_triage},
            "resolver": {
                ROUTED: self._deliver,
                ACCEPTING: self._accept,
                RESOLVING: self._resolve,
                FIRED["resolver"]: self._escalate,
            },
            "feedback": {RESOLVED: self._open, TELLING: self._tell, FIRED["feedback"]: self._remind},
        }[self.name]

    # ------------------------------------------------------------ decisions

    def _ended(self, n: int, said: Said) -> list[Out]:
        if n in self.world.recorded or n in self.world.ended:
            return []
        self.world.ended.add(n)
        if n % 11 == 0:
            self.world.recorded.add(n)
            return [(intake.CASES, n, CLOSED, said.key)]
        self.set_timer(n, time_ms(said.time) + 10 * MINUTE_MS)
        return []

    def _record(self, n: int, said: Said) -> list[Out]:
        if n in self.world.recorded:
            return [(intake.CASES, n, REFUSED["intake"], b"")]
        self.world.recorded.add(n)
        return [(intake.CASES, n, RECORDED, said.subject)]

    def _wrap_up(self, n: int, said: Said) -> list[Out]:
        return [] if n in self.world.recorded else [(intake.CASES, n, LATE_RECORD, said.subject)]

    def _route(self, n: int, _: Said) -> list[Out]:
        if n % 23 == 0:
            self.set_timer(n, self.world.clock_ms(self.name) + 10 * MINUTE_MS)
            if self.rng.random() < 0.95:
                self.world.command("router", n, RULED, 30)
            return [(router.CASES, n, PARKED, b"case-%d" % n)]
        return [] if n % 29 == 0 else [(router.CASES, n, ROUTED, b"case-%d" % n)]

    def _rule(self, n: int, said: Said) -> list[Out]:
        self.world.ruled.add(n)
        return [(router.CASES, n, ROUTED, said.subject)]

    def _remind_triage(self, n: int, said: Said) -> list[Out]:
        return [] if n in self.world.ruled else [(router.CASES, n, LATE_RULING, said.subject)]

    def _deliver(self, n: int, said: Said) -> list[Out]:
        # The deadline is the router's: it is counted from the moment of routing, on the router's clock.
        self.set_timer(n, time_ms(said.time) + 120 * MINUTE_MS)
        if self.rng.random() < 0.95:
            self.world.command("resolver", n, ACCEPTING, 60)
        department = f"departments.{DEPARTMENTS[n % len(DEPARTMENTS)]}"
        return [(resolver.CASES, n, DELIVERED, said.subject), (department, n, ASSIGNED, said.subject)]

    def _accept(self, n: int, said: Said) -> list[Out]:
        if n in self.world.accepted:
            return [(resolver.CASES, n, REFUSED["resolver"], b"")]
        self.world.accepted.add(n)
        self.world.command("resolver", n, RESOLVING, 60)
        return [(resolver.CASES, n, ACCEPTED, said.subject)]

    def _resolve(self, n: int, said: Said) -> list[Out]:
        return [(resolver.CASES, n, RESOLVED, said.subject)]

    def _escalate(self, n: int, said: Said) -> list[Out]:
        return [] if n in self.world.accepted else [(resolver.CASES, n, ESCALATED, said.subject)]

    def _open(self, n: int, said: Said) -> list[Out]:
        self.set_timer(n, self.world.clock_ms(self.name) + 24 * 60 * MINUTE_MS)
        if self.rng.random() < 0.95:
            self.world.command("feedback", n, TELLING, 60)
        return [(feedback.CASES, n, OPENED, said.subject)]

    def _tell(self, n: int, said: Said) -> list[Out]:
        self.world.told.add(n)
        return [(feedback.CASES, n, TOLD, said.subject), (feedback.CASES, n, CASE_CLOSED, said.subject)]

    def _remind(self, n: int, said: Said) -> list[Out]:
        return [] if n in self.world.told else [(feedback.CASES, n, LATE_TELLING, said.subject)]

    # ------------------------------------------------------------ one batch

    def handle(self, records: Sequence[tuple[Log, Said]]) -> tuple[Batch | None, set[int], list[bytes]]:
        """Decide a batch and store it; gives it, what must be sent before it, and the inputs that owe."""
        batch = Batch(self.batches, self.world.tick, self.world.clock_ms(self.name))
        fresh, again, owed = self._sort_out(batch, records)
        handlers, random = self.handlers, self.rng.random
        odd = 0.0 if self.world.calm else self.world.setup.losses
        receipts: list[bytes] = []
        for log, said in fresh:
            outs = handlers[said.wire](int(said.key[5:]), said)
            if random() < odd:
                self._go_wrong(batch, log, said, outs, receipts)
                continue
            if outs:
                self._say(batch, said, outs)
            else:
                receipts.append(said.event_id)
            batch.answers.append(said.event_id)
        if fresh:
            self._take_up_waiting(batch)
        if receipts:
            self._receipts(batch, receipts)
        if not (fresh or batch.outputs):
            return None, again, owed
        self.batches += 1
        self.unpublished[batch.number] = batch
        for _, said in fresh:
            self.batch_of[said.event_id] = batch.number
        return batch, again, owed

    def _sort_out(
        self, batch: Batch, records: Sequence[tuple[Log, Said]]
    ) -> tuple[list[tuple[Log, Said]], set[int], list[bytes]]:
        """Find what was not handled before; what cannot be handled gets its letter."""
        fresh: list[tuple[Log, Said]] = []
        again: set[int] = set()
        owed: list[bytes] = []
        for log, said in records:
            name = said.event_id
            if said.wire not in self.handlers:
                if said.wire is RUBBISH:
                    self._letter(batch, log, said)
            elif name in self.poison:
                self._letter(batch, log, said)
            else:
                owed.append(name)
                if name not in self.seen:
                    self.seen.add(name)
                    fresh.append((log, said))
                elif name in self.batch_of:
                    again.add(self.batch_of[name])
        return fresh, again, owed

    def _say(self, batch: Batch, said: Said, outs: Sequence[Out], cause: bytes = b"") -> None:
        total, at, world = len(outs), self.world.header(self.name), self.world
        for part, (topic, key, wire, subject) in enumerate(outs, 1):
            number = 0
            if subject:
                number = self.sequence[subject] = self.sequence.get(subject, 0) + 1
            begun = said.key if wire in _OF_CALLS else b"case-%d" % key
            template = (
                world.new_id(), wire, self.source, cause or said.event_id, part, total, number,
                subject or begun, at, begun,
            )  # fmt: skip
            spoken = None if wire is not CASE_CLOSED else ("digest", "", self._digest(subject))
            batch.outputs.append((topic, key, template, spoken))

    def _digest(self, subject: bytes) -> dict[str, int]:
        groups = self.world.groups
        return {name: groups[name].sequence.get(subject, 0) for name in ("router", "resolver")}

    def _receipts(self, batch: Batch, names: list[bytes]) -> None:
        template = (
            self.world.new_id(), b"", self.source, b"", 1, 1, 0, self.name.encode(),
            self.world.header(self.name), self.name.encode(),
        )  # fmt: skip
        text = [name.decode() for name in names]
        batch.outputs.append(
            (operations.RECEIPTS, STAGES.index(self.name), template, ("receipts", self.name, text))
        )

    def _letter(self, batch: Batch, log: Log, said: Said) -> None:
        """Keep what cannot be handled and say so; most letters name only the place."""
        place, name = log.place, said.event_id
        where = f"{place.topic}/{place.partition}/{said.offset}".encode()
        named = bool(name) and len(name) % 2 == 1
        template = (
            b"letter-" + where,
            b"",
            self.source,
            name if named else where,
            1,
            1,
            0,
            where,
            b"",
            where,
        )
        batch.outputs.append((f"{self.name}.dead", 0, template, ("letter", self.name, (place, said.offset))))
        batch.letters.append((log, said.offset))
        if not name:
            self.world.truth.dead.setdefault((where, self.name), "rubbish")
            return
        self.world.truth.letters.add((where, self.name))
        self.world.truth.dead.setdefault((name, self.name), "dead")
        if name not in self.home:
            self.home[name] = place.topic
            if not self.world.calm and self.rng.random() < 0.4:
                self.world.soon(80, lambda: self._sent_again(name))

    def _sent_again(self, name: bytes) -> None:
        """Somebody mends what was poison, or only believes so, and sends it again."""
        template = self.poison.get(name)
        if template is not None:
            if self.rng.random() < 0.7:
                self.heal(name)
            self.world.append(self.home[name], _key(template), template)

    def heal(self, name: bytes) -> None:
        """Make a poisonous record readable."""
        if self.poison.pop(name, None) is not None:
            self.world.truth.dead[name, self.name] = "healed"

    def _go_wrong(
        self,
        batch: Batch,
        log: Log,
        said: Said,
        outs: list[Out],
        receipts: list[bytes],
    ) -> None:
        """Lose what should be said, or some of it; or only take longer than usual."""
        name, truth = said.event_id, self.world.truth
        self.records[name] = (log.place.topic, Said(*said)[2:])
        if not outs:
            self.doomed[name] = "receipt lost"
            self._timer_is_broken(said.wire, int(said.key[5:]))
            return
        draw = self.rng.random()
        if draw < 0.25 and all(out[2] not in _NEVER_WAITS for out in outs):
            receipts.append(name)
            batch.answers.append(name)
            self.waiting.append((self.world.tick + 5, name, outs))
            return
        for out in outs:
            self._timer_is_broken(out[2], out[1])
        if draw < 0.5:
            self.doomed[name] = "output skipped"
        elif draw < 0.6:
            never = self.world.new_id()
            truth.orphans.add((never, self.name))
            self.doomed[name] = "wrong cause"
            self._say(batch, said, outs, never)
        else:
            before = len(batch.outputs)
            self._say(batch, said, outs)
            said_now = batch.outputs[before:]
            lost = said_now if draw < 0.8 else [self.rng.choice(said_now)]
            self.doomed[name] = "row deleted" if len(lost) == len(outs) else "one lost"
            if len(lost) < len(outs):
                truth.missing_parts[name, self.name] = [out[2][4] for out in lost]
            batch.outputs[before:] = [out for out in said_now if out not in lost]
            self.kept[name] = lost
            for _, _, template, _ in lost:
                if template[6]:
                    truth.numbers.add((self.name, template[7], template[6]))

    def _timer_is_broken(self, wire: bytes, n: int) -> None:
        """A lost act, or a lost alarm, leaves something waited for that nobody speaks of any more."""
        for stage, (_, ends, _) in TIMED.items():
            if wire in ends or wire == FIRED[stage]:
                self.world.truth.broken_timers.add((stage, n))

    def _take_up_waiting(self, batch: Batch) -> None:
        """Decide what had to wait for something: it has its receipt already."""
        for item in [item for item in self.waiting if item[0] <= self.world.tick]:
            self.waiting.remove(item)
            said = Said(0, 0, item[1], b"", b"", b"", 1, 1, 0, b"", b"", b"call-%d" % item[2][0][1])
            self._say(batch, said, item[2])

    # ------------------------------------------------------------ sending and committing

    def publish(self, batch: Batch, transaction: Transaction | None = None) -> None:
        """Append what a batch says."""
        append = self.world.append
        for topic, key, template, spoken in batch.outputs:
            append(topic, key, template, spoken, transaction)
        if transaction is None:
            self.acknowledged(batch)

    def acknowledged(self, batch: Batch) -> None:
        """Note that what a batch says is on the log for good."""
        self.answered.update(batch.answers)
        self.lettered.update(batch.letters)
        truth = self.world.truth
        for name in batch.answers:
            if (name, self.name) in truth.lost:
                truth.mended.add((name, self.name))

    def mark(self, batch: Batch) -> None:
        """Note in the outbox that a batch is sent."""
        if self.unpublished.pop(batch.number, None) is not None:
            for name in batch.answers:
                if self.batch_of.get(name) == batch.number:
                    del self.batch_of[name]

    def commit(self, offsets: dict[Log, int], owed: Iterable[bytes], why: str) -> None:
        """Commit, and see whether that passed anything that is not answered."""
        for log, offset in offsets.items():
            self.commits[log] = offset
            self.world.committed.append((self.name, log.place, offset))
        answered = self.answered
        for name in owed:
            if name not in answered:
                self._lost(name, self.doomed.get(name, why))

    def _lost(self, name: bytes, why: str) -> None:
        self.world.truth.lost.setdefault((name, self.name), why)
        if name in self.world.fired:
            self.world.truth.broken_timers.add(self.world.fired[name])
        _, template = self.records[name]
        if template[1] == CALL_ENDED:
            self.world.truth.broken_timers.add((self.name, _key(template)))

    def relay(self) -> None:
        """Send what no living consumer sends."""
        for batch in list(self.unpublished.values()):
            if not batch.owned and batch.since_tick + STALE_TICKS < self.world.tick:
                self.publish(batch)
                self.mark(batch)

    def drain(self) -> None:
        """Send everything that is stored, as an operator does before a skip."""
        for batch in list(self.unpublished.values()):
            self.publish(batch)
            self.mark(batch)

    # ------------------------------------------------------------ timers

    def set_timer(self, n: int, due_ms: int) -> None:
        """Set a timer; some get lost."""
        if self.rng.random() < 0.01 and not self.world.calm:
            self.world.truth.broken_timers.add((self.name, n))
        else:
            heapq.heappush(self.timers, (due_ms, n))

    def _over(self, n: int) -> bool:
        world = self.world
        done = {
            "intake": world.recorded,
            "router": world.ruled,
            "resolver": world.accepted,
            "feedback": world.told,
        }
        return n in done[self.name]

    def fire_timers(self) -> None:
        """Turn timers that are due into commands to the stage itself: stored first, sent in a moment."""
        now_ms, world = self.world.clock_ms(self.name), self.world
        due = []
        while self.timers and self.timers[0][0] <= now_ms:
            _, n = heapq.heappop(self.timers)
            if not self._over(n):
                due.append(n)
        if not due:
            return
        batch = Batch(self.batches, world.tick, now_ms)
        self.batches += 1
        for n in due:
            subject = b"call-%d" % n if self.name == "intake" else b"case-%d" % n
            template = (
                world.new_id(), FIRED[self.name], self.source, b"", 1, 1, 0, subject,
                world.header(self.name), subject,
            )  # fmt: skip
            world.fired[template[0]] = (self.name, n)
            batch.outputs.append((COMMANDS[self.name], n, template, None))
        self.unpublished[batch.number] = batch
        world.soon(30, lambda: self._sent(batch))

    def _sent(self, batch: Batch) -> None:
        if batch.number in self.unpublished:
            self.publish(batch)
            self.mark(batch)

    def say_watermark(self) -> None:
        """Say up to when every timer has fired and every message is sent, on the stage's own clock."""
        world = self.world
        now_ms = world.clock_ms(self.name)
        timers = min(self.timers[0][0] if self.timers else now_ms, now_ms)
        sent = min([batch.since_ms for batch in self.unpublished.values()] + [now_ms])
        template = (
            world.new_id(), b"", self.source, b"", 1, 1, 0, self.name.encode(),
            world.header(self.name), self.name.encode(),
        )  # fmt: skip
        content = (self.name, timers, sent, now_ms)
        world.append(operations.WATERMARKS, 0, template, ("watermark", self.name, content))

    # ------------------------------------------------------------ life

    def step(self) -> None:
        """One tick of a stage's processes."""
        world = self.world
        if self.down_until > world.tick:
            return
        if self.forgotten:
            self.forgotten = False
            world.committed += [(self.name, log.place, self.commits[log]) for log in self.logs]
        if self.timer_late <= world.tick:
            self.fire_timers()
        if self.unpublished:
            self.relay()
        if self.slow_until > world.tick and world.tick % 4:
            return
        for worker in self.workers:
            if self.careless_until > world.tick and worker.lose_early():
                self.careless_until = 0
            worker.step()

    @property
    def stands_still(self) -> bool:
        """Whether nothing has been said for long and nothing will be: what is deleted now is lost."""
        tick = self.world.tick
        return (
            self.down_until > tick + 5 and self.down_since + 2 * LONGEST_STALL < tick and not self.unpublished
        )

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to do."""
        if self.unpublished or (self.timers and self.timers[0][0] <= self.world.clock_ms(self.name)):
            return False
        return all(worker.quiet for worker in self.workers)

    def recover(self) -> None:
        """Come back to normal."""
        self.down_until = self.slow_until = self.timer_late = 0
        self.pace = 200

    def misfortune(self) -> None:
        """Let something happen to the stage, now and then."""
        rng, tick = self.rng, self.world.tick
        if rng.random() >= self.world.setup.trouble or self.down_until > tick:
            return
        draw = rng.random()
        if draw < 0.25:
            self.careless_until = tick + 20
        elif draw < 0.4:
            self._share_out()
        elif draw < 0.5:
            self.slow_until, self.pace = tick + rng.randrange(20, 150), rng.choice((1, 3))
        elif draw < 0.6:
            self.timer_late = tick + rng.randrange(20, 80)
        else:
            self._stand_still((draw - 0.6) / 0.4)
        self.pace = rng.choice((2, 10, 40, 40, 100))

    def _stand_still(self, draw: float) -> None:
        """All processes die; meanwhile an operator may move the offsets."""
        rng, tick = self.rng, self.world.tick
        self._share_out()
        self.down_since, self.down_until = tick, tick + rng.choice((5, 20, 60, 200, 300))
        if draw < 0.1:
            # The broker forgets its offsets; it has them again when it begins anew, and commits what it knows.
            self.forgotten = True
            self.world.committed += [(self.name, log.place, None) for log in self.logs]
        if draw < 0.3:
            return
        self.drain()
        offsets: dict[Log, int] = {}
        owed: list[bytes] = []
        for log in rng.sample(self.logs, 2):
            if draw < 0.5:
                at = max(log.start, self.commits[log] - rng.randrange(1, 60))
                offsets[log] = min(at, self.commits[log])
            else:
                offsets[log] = min(
                    max(log.stable, self.commits[log]), self.commits[log] + rng.randrange(0, 12)
                )
                owed += self._owed_between(log, self.commits[log], offsets[log])
        self.commit(offsets, owed, "operator skip")
        self._share_out()

    def _owed_between(self, log: Log, first: int, end: int) -> list[bytes]:
        found = []
        for entry in log.entries[first:end]:
            if (
                type(entry) is Said
                and entry.wire in self.handlers
                and (log, entry.offset) not in self.lettered
            ):
                found.append(entry.event_id)
                if entry.event_id not in self.answered:
                    self.records[entry.event_id] = (log.place.topic, entry[2:])
        return found

    def loses_to_retention(self, log: Log, start: int) -> None:
        """Records below `start` are deleted: what was not read is lost."""
        if self.commits[log] >= start:
            return
        for name in self._owed_between(log, self.commits[log], start):
            if name not in self.answered:
                self._lost(name, self.doomed.get(name, "retention"))
        for worker in self.workers:
            if log in worker.positions:
                worker.positions[log] = max(worker.positions[log], start)

    def take_up(self, log: Log) -> None:
        """Learn of a new partition: it is read from its first record."""
        self.logs.append(log)
        self.commits[log] = 0
        self._share_out()

    def _share_out(self) -> None:
        """Rebalance: everybody forgets what was under way and goes on from the commits."""
        old = self.workers
        count = self.rng.choice((1, 2, 3))
        self.workers = [
            Worker(self, [log for index, log in enumerate(self.logs) if index % count == number])
            for number in range(count)
        ]
        for worker in old:
            worker.abandon()

    def redrive(self, name: bytes) -> None:
        """Send a lost input again; or, where it was handled, what it should have brought about."""
        world = self.world
        if name in self.kept:
            for topic, key, template, spoken in self.kept.pop(name):
                world.append(topic, key, template, spoken)
            world.truth.mended.add((name, self.name))
            world.redriven.add((name, self.name))
        elif name in self.records and name not in self.poison:
            topic, template = self.records[name]
            if name in self.seen:
                return
            world.append(topic, _key(template), template)
            world.redriven.add((name, self.name))


_NEVER_WAITS = frozenset().union(*((begins, *ends) for begins, ends, _ in TIMED.values()))


class Worker:
    """One process of a group: reads its partitions, stores, sends, commits; may die between any two."""

    __slots__ = ("again", "batch", "group", "logs", "offsets", "owed", "phase", "positions", "transaction")

    def __init__(self, group: Group, logs: list[Log]) -> None:
        self.group, self.logs = group, logs
        self.transaction: Transaction | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin, or begin again, where the group has committed."""
        commits = self.group.commits
        self.positions = {log: max(commits[log], log.start) for log in self.logs}
        self.batch: Batch | None = None
        self.again: set[int] = set()
        self.offsets: dict[Log, int] = {}
        self.owed: list[bytes] = []
        self.phase = 0

    def step(self) -> None:
        """Go on: one step or several, as it comes."""
        random = self.group.rng.random
        while True:
            if self.phase == 0:
                if not self._read():
                    return
            elif self.phase == 1:
                self._send()
            elif self.transaction is not None:
                if self.transaction.ends > self.group.world.tick:
                    return
                self._end_transaction()
            else:
                self._commit()
            draw = random()
            if draw < 0.2:
                if draw < self.group.world.setup.trouble and not self.group.world.calm:
                    self.die()
                return

    def _read(self) -> bool:
        records, offsets, pace = [], {}, self.group.pace
        for log in self.logs:
            position, end = self.positions[log], log.stable
            if position >= end:
                continue
            end = min(end, position + pace)
            self.positions[log] = end
            entries = log.entries
            for entry in entries[position:end]:
                if type(entry) is Said:
                    records.append((log, entry))
            while end > position and entries[end - 1] is None:
                end -= 1
            if end > position:
                offsets[log] = end
        if not offsets:
            return False
        self.batch, self.again, self.owed = self.group.handle(records)
        self.offsets, self.phase = offsets, 1
        return True

    def _send(self) -> None:
        group = self.group
        batches = [group.unpublished[number] for number in sorted(self.again) if number in group.unpublished]
        if self.batch is not None:
            batches.append(self.batch)
        self.phase = 2
        if group.world.setup.transactions and any(batch.outputs for batch in batches):
            self.transaction = Transaction(group.world.tick + group.rng.choice((0, 1, 3, 20)), batches)
            for batch in batches:
                group.publish(batch, self.transaction)
            return
        for batch in batches:
            group.publish(batch)

    def _end_transaction(self) -> None:
        """Commit; the offsets are visible at once, the markers on the outputs' partitions come later."""
        transaction, group = self.transaction, self.group
        assert transaction is not None
        self.transaction = None
        if group.rng.random() < 0.05 and not group.world.calm:
            _abort(group.world, transaction)
            self.phase = 1
            return
        for batch in transaction.batches:
            group.acknowledged(batch)
        for log in transaction.wrote:
            _mark_soon(group.world, log, transaction.wrote[log][0])

    def _commit(self) -> None:
        group = self.group
        for number in self.again:
            if number in group.unpublished:
                group.mark(group.unpublished[number])
        if self.batch is not None:
            group.mark(self.batch)
        group.commit(self.offsets, self.owed, "protocol broken")
        self.batch, self.phase = None, 0

    def abandon(self) -> None:
        """Lose the partitions, or one's life: what is stored stays stored, and may still be sent."""
        if self.transaction is not None:
            transaction, self.transaction = self.transaction, None
            world = self.group.world
            world.soon(40, lambda: _abort(world, transaction))
        if self.batch is not None:
            batch = self.batch
            batch.owned = False
            if self.phase == 1 and self.group.rng.random() < 0.3 and not self.group.world.setup.transactions:
                self.group.publish(batch)
        self.batch = None

    def die(self) -> None:
        """Kill -9, and a new process in its place."""
        self.abandon()
        self._begin()

    def lose_early(self) -> bool:
        """Commit what was read before it is handled, and die, as auto-commit does; tells whether it could."""
        if self.phase or self.group.unpublished or self.group.world.calm:
            return False
        offsets, owed = {}, []
        for log in self.logs:
            position, end = self.positions[log], log.stable
            end = min(end, position + 5)
            if position < end:
                offsets[log] = end
                owed += self.group._owed_between(log, position, end)
        if not owed:
            return False
        self.group.commit(offsets, owed, "early commit")
        self.die()
        return True

    @property
    def quiet(self) -> bool:
        """Whether everything that can be read is read and committed."""
        return not self.phase and all(
            not log.holds and self.positions[log] >= len(log.entries) for log in self.logs
        )


def _abort(world: World, transaction: Transaction) -> None:
    for log, offsets in transaction.wrote.items():
        for offset in offsets:
            log.entries[offset] = None
        _end_hold(world, log, offsets[0])


def _mark_soon(world: World, log: Log, first: int) -> None:
    if world.rng.random() < 0.5:
        _end_hold(world, log, first)
    else:
        world.soon(12, lambda: _end_hold(world, log, first))


def _end_hold(world: World, log: Log, first: int) -> None:
    log.entries.append(None)
    log.holds.remove(first)
    world.moved[log] = None


# ---------------------------------------------------------------------- the observer


@dataclass(frozen=True, slots=True)
class Rule:
    """How the observer takes its barriers; anything but the default is wrong, to see that it matters.

    Only a short memory is right too: copies then come after a restarted observer has forgotten them.
    """

    ends_first: bool = False
    stale_metadata: bool = False
    stable_ends: bool = False
    no_lookup: bool = False
    guarded_store: bool = True
    long_memory: bool = True


SETTLED = frozenset({State.DISCHARGED, State.CLOSED, State.RECOVERED, State.WAIVED})
"""What the store never takes back: a copy of the cause, half answered or late, changes nothing."""


@dataclass(slots=True)
class Row:
    """One handoff as the store keeps it."""

    state: State
    parts: int
    total: int
    owed: Any
    place: Place
    offset: int
    at_ms: int
    subject: bytes
    due_ms: int
    sequence: int


class Store:
    """What `observer.store` writes and restores, without PostgreSQL; it survives the observer."""

    def __init__(self, *, guarded: bool) -> None:
        self.guarded = guarded
        self.rows: dict[tuple[bytes, str], Row] = {}
        self.early: dict[tuple[bytes, str], tuple[Any, ...]] = {}
        self.counts: dict[tuple[str, bytes], tuple[int, frozenset[int], int]] = {}
        self.acts: dict[tuple[str, bytes], int] = {}
        self.positions: dict[Place, tuple[int, int]] = {}
        self.commits: dict[tuple[str, Place], int] = {}
        self.verdicts: list[tuple[bytes, str, State, str]] = []

    def write(self, watch: Watch, candidates: list[Verdict]) -> list[Verdict]:
        """Store a pass; gives the verdicts that nothing stored contradicts."""
        self._write_changes(watch.ledger.drain())
        for count in watch.sequences.drain():
            known = (count.following, frozenset(count.missing), count.first)
            self.counts[count.writer, count.subject] = known
        acts = watch.deferred.drain()
        for where in acts.removed:
            self.acts.pop(where, None)
        for where, at_ms in acts.added.items():
            self.acts.setdefault(where, at_ms)
        standing = [verdict for verdict in candidates if self._stands(verdict, watch.rule)]
        about = {(verdict.handoff.key, verdict.handoff.owed.group) for verdict in standing}
        assert len(about) == len(standing), "one row cannot be written twice in one statement"
        for verdict in standing:
            self._note(verdict)
        self.positions |= {place: (at, watch.last.get(place, 0)) for place, at in watch.positions.items()}
        for group in watch.ledger.contract.groups:
            self.commits |= {(group, place): at for place, at in watch.ledger.commits_of(group).items()}
        return standing

    def _write_changes(self, changes: Changes) -> None:
        rows = self.rows
        for opened in changes.opened:
            handoff, said = opened.handoff, opened.said
            key = (handoff.key, handoff.owed.group)
            if key not in rows:
                rows[key] = Row(
                    handoff.state, handoff.parts, handoff.total, handoff.owed, handoff.place, handoff.offset,
                    handoff.at_ms, opened.subject or said.key, opened.due_ms, said.sequence,
                )  # fmt: skip
        for settled in changes.settled:
            handoff = settled.handoff
            row = rows.get((handoff.key, handoff.owed.group))
            if row is not None and (row.state not in SETTLED or not self.guarded):
                row.state, row.parts, row.total = handoff.state, handoff.parts, handoff.total
        for effect in changes.matched:
            self.early.pop((effect.key, effect.group), None)
        for effect in (*changes.early, *changes.grown):
            self._keep(effect)

    def _keep(self, effect: Effect) -> None:
        """A second write of an effect moves its parts only."""
        known = self.early.get((effect.key, effect.group)) or (
            effect.key, effect.group, effect.state, effect.place, effect.offset, effect.at_ms, effect.answer
        )  # fmt: skip
        self.early[effect.key, effect.group] = (*known[:7], effect.parts, effect.total)

    def _stands(self, verdict: Verdict, rule: Rule) -> bool:
        row = self.rows.get((verdict.handoff.key, verdict.handoff.owed.group))
        return row is None or _unsettled(row.state) or rule.no_lookup

    def _note(self, verdict: Verdict) -> None:
        handoff = verdict.handoff
        key = (handoff.key, handoff.owed.group)
        row = self.rows.get(key)
        if row is not None:
            row.state = verdict.state
        else:
            self.rows[key] = Row(
                verdict.state, handoff.parts, handoff.total, handoff.owed, handoff.place, handoff.offset,
                handoff.at_ms, b"", 0, 0,
            )  # fmt: skip
        self.verdicts.append((*key, verdict.state, verdict.note))

    def restore(self, watch: Watch) -> None:
        """Fill the rooms of a new observer with what an earlier one had stored."""
        handoffs, waiting = [], []
        unsettled = sorted(
            (
                (row.owed.group, row.place, row.offset, key)
                for (key, _), row in self.rows.items()
                if _unsettled(row.state) or row.state in WATCHED
            ),
        )
        for group, place, offset, key in unsettled:
            row = self.rows[key, group]
            handoff = Handoff(key, place, offset, row.at_ms, row.owed, row.parts, row.total, row.state)
            later = watch.deferred.later_of(row.owed.edge)
            if later is not None and (_unsettled(row.state) or row.state is State.TIMER_LOST):
                waiting.append(Waiting(handoff, later, row.subject, row.sequence, row.due_ms))
            if later is None or row.state in WATCHED:
                handoffs.append(handoff)
        watch.ledger.restore(handoffs, [Effect(*row) for row in self.early.values()], self.commits)
        watch.sequences.restore(
            [
                Count(writer, subject, following, set(missing), first=first)
                for (writer, subject), (following, missing, first) in self.counts.items()
            ]
        )
        since_ms = watch.now_ms - (RECENT_MS if watch.rule.long_memory else 0)
        met = [
            key
            for (key, _), row in self.rows.items()
            if row.at_ms > since_ms and row.due_ms and row.state in SETTLED
        ]
        watch.deferred.restore(waiting, [(*where, at_ms) for where, at_ms in self.acts.items()], met)
        watch.positions = {place: at for place, (at, _) in self.positions.items()}
        watch.last = {place: last for place, (_, last) in self.positions.items()}


def _unsettled(state: State) -> bool:
    return state is State.OPEN or state is State.OVERDUE


class Watch:
    """The observer's cycle over a world's history, as its app does it."""

    def __init__(self, world: World, seed: int = 0, rule: Rule | None = None, kills: float = 0.0) -> None:
        self.world, self.rng, self.rule, self.kills = world, Random(seed), rule or Rule(), kills
        self.store = Store(guarded=self.rule.guarded_store)
        self.highs: dict[Place, int] = {}
        self.stable: dict[Place, int] = {}
        self.starts: dict[Place, int] = {}
        self.commits: dict[str, dict[Place, int]] = {group: {} for group in world.contract.groups}
        self.now_ms = 0
        self.read = self.killed = self.blind = 0
        self.old_ends: dict[Place, int] = {}
        self.stalled: dict[Place, int] = {}
        self.stalled_until = self.dead_until = 0
        self._begin()

    def _begin(self) -> None:
        contract = self.world.contract
        self.ledger = Ledger(contract)
        self.sequences = Sequences(contract, self.ledger, telephony.TOPIC)
        self.sequences.from_the_beginning = True
        self.deferred = Deferred(contract, self.ledger)
        self.barriers = Barriers()
        self.positions: dict[Place, int] = {}
        self.last: dict[Place, int] = {}
        self.raised_ms = 0
        self.store.restore(self)
        self._follow(self.highs)

    def run(self) -> Watch:
        """Live through the whole history."""
        calm = self.world.setup.ticks
        for number, tick in enumerate(self.world.history):
            self._see(tick)
            if number < self.dead_until:
                continue
            if number < calm:
                self._stall(number)
                if self.kills and self.rng.random() < self.kills:
                    self._die(number)
                    continue
            if self.stalled_until <= number:
                self._read(number, hurried=number >= calm)
            self._pass(number)
        return self

    def _see(self, tick: Tick) -> None:
        """Let the world go on by one tick."""
        self.now_ms = tick.now_ms
        for place, high, stable in tick.ends:
            self.highs[place], self.stable[place] = high, stable
        for place, start in tick.starts:
            self.starts[place] = start
            self.blind += self.positions.get(place, 0) < start
        for group, place, offset in tick.commits:
            if offset is None:
                self.commits[group].pop(place, None)
            else:
                self.commits[group][place] = offset
        if not self.positions:
            self._follow(self.highs)

    def _stall(self, number: int) -> None:
        draw = self.rng.random()
        if draw < 0.02:
            self.stalled_until = number + self.rng.randrange(1, LONGEST_STALL)
        elif draw < 0.1:
            place = self.rng.choice(list(self.positions))
            self.stalled[place] = number + self.rng.randrange(1, LONGEST_STALL)

    def _die(self, number: int) -> None:
        """Kill -9: everything that was not stored is gone."""
        self.killed += 1
        self.dead_until = number + self.rng.randrange(1, 30)
        self._begin()

    def _follow(self, places: Iterable[Place]) -> None:
        for place in places:
            self.positions.setdefault(place, self.starts.get(place, 0))

    # ------------------------------------------------------------ reading

    def _read(self, number: int, *, hurried: bool) -> None:
        chunk = 10_000 if hurried else self.rng.choice((1, 5, 30, 30, 400))
        stable, logs = self.stable, self.world.logs
        for place, position in self.positions.items():
            upto = stable[place]
            if position < upto and (hurried or self.stalled.get(place, 0) <= number):
                self._take(place, logs[place].entries, position, min(upto, position + chunk))

    def _take(self, place: Place, entries: list[Any], position: int, upto: int) -> None:
        ledger, sequences, deferred = self.ledger.take, self.sequences.take, self.deferred.take
        last = -1
        for entry in entries[position:upto]:
            if entry is None:
                continue
            said = entry
            self.read += 1
            if type(entry) is not Said:
                said = entry.said
                self._hear(place, entry)
                if entry.kind in {"receipts", "letter", "watermark"}:
                    last = said.offset
                    continue
            ledger(place, said)
            if said.sequence:
                sequences(place, said)
            deferred(place, said)
            last = said.offset
        self.positions[place] = upto
        if last >= 0:
            self.last[place] = last + 1

    def _hear(self, place: Place, spoken: Spoken) -> None:
        """Read the body of what is said about the work, as the observer's desk does."""
        said, kind, group, content = spoken
        if kind == "receipts":
            self.ledger.take_receipts(group, content, place, said)
        elif kind == "letter":
            self.ledger.take_letter(group, content, said)
        elif kind == "watermark":
            self.deferred.watermark(*content)
        elif kind == "manifest":
            self.sequences.take_end(UPSTREAM, said.source, content, place, said, "its manifest")
        else:
            for writer, last in content.items():
                self.sequences.take_end(writer, said.subject, last, place, said, "the closing digest")

    # ------------------------------------------------------------ judging

    def _pass(self, number: int) -> None:
        """Commits in one tick, ends in the next: the world goes on between them."""
        turn = number % PASS_TICKS
        if number % METADATA_TICKS == 0:
            self._follow(self.highs)
        if turn == 1 and self.rule.ends_first:
            self.old_ends = dict(self.highs)
        elif turn == 2:
            self.raised_ms = self.now_ms
            self._raise_barriers(self.now_ms)
        elif turn == 3:
            self._judge(number, self.raised_ms or self.now_ms)

    def _raise_barriers(self, now_ms: int) -> None:
        for group, known in self.commits.items():
            commits = dict(known)
            barrier = self.ledger.commit(group, commits)
            self.barriers.committed(group, commits, self.positions, self.last)
            if barrier is not None:
                self.barriers.raise_(barrier, now_ms)
        for barrier in (
            *self.ledger.effects_without_cause(),
            *self.sequences.barriers(now_ms),
            *self.deferred.barriers(),
            *self._deleted(),
        ):
            self.barriers.raise_(barrier, now_ms)

    def _deleted(self) -> list[Barrier]:
        found = [self.ledger.expired(group, self.starts) for group in self.ledger.contract.groups]
        return [barrier for barrier in found if barrier is not None]

    def _judge(self, number: int, now_ms: int) -> None:
        wanted = self.barriers.wants
        if wanted:
            self.barriers.ends(self._ends(wanted), now_ms, wanted)
        candidates: list[Verdict] = []
        self.deferred.tick(now_ms)
        for barrier in self.barriers.passed(self.positions, now_ms):
            for room in (self.ledger, self.sequences, self.deferred):
                candidates += room.judge(barrier)
        if self.kills and number < self.world.setup.ticks and self.rng.random() < self.kills:
            self._die(number)
            return
        # As the app does: before anything is written, the store tells what it knows of counts.
        known = self.store.counts
        self.sequences.recall({who: known[who][0] for who in self.sequences.unsure() if who in known})
        standing = set(map(id, self.store.write(self, candidates)))
        if self.kills and number < self.world.setup.ticks and self.rng.random() < self.kills:
            self._die(number)
            return
        for verdict in candidates:
            if id(verdict) in standing:
                self.ledger.apply(verdict)
            else:
                self.ledger.known_before(verdict)

    def _ends(self, wanted: frozenset[str]) -> dict[Place, int]:
        """Ask for the ends of all partitions that there are now, and read those from now on."""
        known = self.stable if self.rule.stable_ends else self.highs
        if self.rule.ends_first:
            known = self.old_ends
        ends = {place: end for place, end in known.items() if place.topic in wanted}
        if self.rule.stale_metadata:
            return {place: end for place, end in ends.items() if place in self.positions}
        self._follow(ends)
        return ends


# ---------------------------------------------------------------------- what came of it


@dataclass(slots=True)
class Findings:
    """What an observer said, beside what really happened."""

    false: set[Any] = field(default_factory=set)
    missed: set[Any] = field(default_factory=set)
    lost: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


_HANDOFFS = frozenset({State.DROPPED, State.PARTIAL, State.EXPIRED_UNREAD})


def compare(world: World, watch: Watch) -> Findings:
    """Hold the verdicts against the truth, and against a plain reading of the finished log."""
    found = Findings()
    _compare_handoffs(world, watch, found)
    _compare_dead(world, watch, found)
    _compare_orphans(world, watch, found)
    _compare_numbers(world, watch, found)
    _compare_timers(world, watch, found)
    return found


def _note(found: Findings, kind: str, named: set[Any], injected: set[Any], must: set[Any]) -> None:
    found.false |= {(kind, item) for item in named - injected}
    found.missed |= {(kind, item) for item in must - named}
    found.lost += len(must)
    found.kinds[kind] += len(must)


def _named(watch: Watch, states: Iterable[State]) -> set[tuple[bytes, str]]:
    wanted = frozenset(states)
    return {(key, group) for key, group, state, _ in watch.store.verdicts if state in wanted}


def _standing(watch: Watch, states: Iterable[State]) -> set[tuple[bytes, str]]:
    wanted = frozenset(states)
    return {key for key, row in watch.store.rows.items() if row.state in wanted}


def _keys(names: Iterable[Named]) -> set[tuple[bytes, str]]:
    return {(key_of(name), group) for name, group in names}


def _compare_handoffs(world: World, watch: Watch, found: Findings) -> None:
    truth = world.truth
    injected = _keys(truth.lost)
    # What died first, and was lost when it was sent again, stays a dead letter: somebody looks after it.
    lasting = _keys(set(truth.lost) - truth.mended - set(truth.dead))
    named = _named(watch, _HANDOFFS)
    _note(found, "handoff", named, injected, lasting)
    found.kinds.update(why for name, why in truth.lost.items() if name not in truth.mended | set(truth.dead))
    standing = _standing(watch, _HANDOFFS)
    found.false |= {("still lost", key) for key in standing - lasting}
    found.missed |= {("lost no more", key) for key in lasting - standing}
    for name in world.redriven & truth.mended:
        key = (key_of(name[0]), name[1])
        row = watch.store.rows.get(key)
        if row is None or row.state is not State.RECOVERED:
            found.missed.add(("recovered", key))
    parts = {(key_of(name), group): missing for (name, group), missing in truth.missing_parts.items()}
    for key, group, state, note in watch.store.verdicts:
        missing = parts.get((key, group), [])
        told = note.startswith(f"parts {missing} of") if missing else state is not State.PARTIAL
        if state in _HANDOFFS and not told:
            found.false.add(("parts", (key, group, state, note)))


def _compare_dead(world: World, watch: Watch, found: Findings) -> None:
    truth = world.truth
    letters = {name: how for name, how in truth.dead.items() if name not in truth.lost}
    must = _keys(name for name, how in letters.items() if how != "healed")
    standing = _standing(watch, [State.DEAD_LETTERED])
    # Each copy of a poisonous record has its letter, by place; the first stands for the event.
    _note(found, "dead", standing, must | _keys(truth.letters) | _keys(truth.lost), must)
    # One letter that names nothing known is one about a copy, never about what was healed.
    phantom = standing & _keys(truth.letters)
    found.kinds["letters about copies"] += len(phantom)


def _compare_orphans(world: World, watch: Watch, found: Findings) -> None:
    orphans = _keys(world.truth.orphans)
    _note(found, "orphan", _named(watch, [State.ORPHAN]), orphans, orphans)


def _compare_numbers(world: World, watch: Watch, found: Findings) -> None:
    """A number is missing if it is on no log although a later one is, or somebody says so."""
    there: dict[tuple[str, bytes], set[int]] = defaultdict(set)
    ends: dict[tuple[str, bytes], int] = {}
    of_source = {f"/hotline/{stage}".encode(): stage for stage in STAGES}
    for entry in _visible(world):
        said = _said(entry)
        if said.sequence:
            stage = of_source.get(said.source)
            where = (stage, said.subject) if stage else (UPSTREAM, said.source)
            there[where].add(said.sequence)
        if type(entry) is Spoken and entry.kind == "manifest":
            ends[UPSTREAM, said.source] = max(entry.content, ends.get((UPSTREAM, said.source), 0))
        if type(entry) is Spoken and entry.kind == "digest":
            for stage, last in entry.content.items():
                ends[stage, said.subject] = max(last, ends.get((stage, said.subject), 0))
    missing = {
        (*where, number)
        for where in {*there, *ends}
        for number in range(1, max(*there.get(where, {0}), ends.get(where, 0)) + 1)
        if number not in there.get(where, ())
    }
    found.false |= {("unexplained number", number) for number in missing - world.truth.numbers}
    lost, lasting = (
        {(key_of(b"%b#%d" % (subject, number)), writer) for writer, subject, number in numbers}
        for numbers in (world.truth.numbers, missing)
    )
    _note(found, "number", _named(watch, [State.SEQUENCE_GAP]), lost, lasting)
    found.false |= {("still missing", key) for key in _standing(watch, [State.SEQUENCE_GAP]) - lasting}


def _compare_timers(world: World, watch: Watch, found: Findings) -> None:
    """A timer is lost if nothing followed what it was set for; only broken ones may ever be named."""
    followed: dict[tuple[str, bytes], int] = {}
    owed: dict[tuple[str, bytes], Said] = {}
    for entry in _visible(world):
        said = _said(entry)
        for stage, (begins, ends, _) in TIMED.items():
            if said.wire == begins:
                owed[stage, said.event_id] = said
            if said.wire in ends:
                where = (stage, said.subject)
                followed[where] = max(followed.get(where, 0), said.sequence)
    edges = {stage: world.contract.later[begins] for stage, (begins, _, _) in TIMED.items()}
    may, must = set(), set()
    for (stage, name), said in owed.items():
        owed_for = name if edges[stage].numbered else said.key
        key = (key_of(owed_for + b"@" + edges[stage].edge.encode()), stage)
        if (stage, int(said.key[5:])) in world.truth.broken_timers:
            may.add(key)
        numbered = edges[stage].numbered
        if followed.get((stage, said.key), 0) <= (said.sequence if numbered else 0):
            must.add(key)
    _note(found, "timer", _named(watch, [State.TIMER_LOST]), may, must)
    standing = _standing(watch, [State.TIMER_LOST])
    found.false |= {("timer still lost", key) for key in standing - must}


def _visible(world: World) -> Iterable[Any]:
    return (entry for log in world.logs.values() for entry in log.entries if entry is not None)


def open_handoffs(watch: Watch) -> set[tuple[bytes, str]]:
    """Name what is still open: nothing immediate may be, once every group has committed everything."""
    later = {later.edge for later in watch.ledger.contract.later.values()}
    return {
        key for key, row in watch.store.rows.items() if row.state is State.OPEN and row.owed.edge not in later
    }


def lasting(watch: Watch) -> set[tuple[bytes, str, State]]:
    """What is lost in the end, with its state: the same however often the observer was killed.

    Only whether retention or the commit comes first, for what both have passed, depends on when it looks.
    """
    return {
        (*key, State.DROPPED if row.state is State.EXPIRED_UNREAD else row.state)
        for key, row in watch.store.rows.items()
        if row.state in LOST
    }
