"""Two feeds of one PBX compared: the manager feed, fast and forgetful, and queue_log, slow and durable. Pure.

A fact that only the log has is told from the log; a reason that the fast feed could not know is
corrected; and what one feed still owes the other is *late* until that feed has been read past it, then
*lost*. Nothing is silent.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from schemas import telephony
from schemas.envelope import Body
from services.intake.sources.canonical import Mapped

DEADLINE = timedelta(seconds=5)
"""Both feeds speak at the moment of the fact; what one has not said so long after is not in it."""
SAME = timedelta(seconds=2)
"""The log's whole second, and a moment that the fast feed took from durations in whole seconds."""
KEEP = timedelta(hours=24)
"""For how long a loss is shown."""
MAX_LEGS = 10_000
"""Caller channels remembered, and contacts, and facts in each list; beyond, the oldest is let go."""
MAX_NAMED = 100
ASIDE = 1_000_000
"""Above every number of `Switch`: visits of the log whose own number another visit of the contact has."""
_SAME_RESTART = timedelta(seconds=30)  # the restart's time is an uptime in one feed and a line in the other
_MAX_GAPS = 100

_KINDS: dict[type[Body], str] = {
    telephony.CallQueued: "queued",
    telephony.CallAnswered: "answered",
    telephony.QueueLeft: "left",
    telephony.TalkEnded: "talk_ended",
    telephony.CallTransferred: "transferred",
    telephony.AgentOffered: "no_answer",
    telephony.CallEnded: "ended",
    telephony.SourceInterrupted: "restarted",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """A fact that a feed owes: its key in the other feed, and whether a known gap explains it."""

    key: str
    kind: str
    call_id: str
    queue: str
    at: datetime
    in_gap: bool


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How many facts one feed owes, the oldest of them by name; `oldest_at` is None when it owes none."""

    count: int
    oldest_at: datetime | None
    named: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """What the feeds owe each other; `*_behind_ms` is None until the feed was read for the first time."""

    fast_behind_ms: int | None
    durable_behind_ms: int | None
    late_in_fast: Shortfall
    lost_in_fast: Shortfall
    late_in_durable: Shortfall
    lost_in_durable: Shortfall
    paired: int
    corrected: int
    let_go: int


@dataclass(slots=True, eq=False)
class _Fact:
    mapped: Mapped
    kind: str
    at: datetime
    leg: str = ""
    queue: str = ""
    visit: int = 0

    @property
    def guessed(self) -> bool:
        body = self.mapped.body
        return isinstance(body, telephony.QueueLeft) and body.reason == "unknown"

    def fits(self, other: "_Fact") -> bool:
        """The same fact by the other feed: by channel, queue, kind and time, never by ordinal."""
        same_agent = self.kind != "no_answer" or _agent(self) == _agent(other)
        same = (self.kind, self.queue) == (other.kind, other.queue) and same_agent
        return same and abs(self.at - other.at) <= SAME


@dataclass(slots=True)
class _Leg:
    """One caller's channel: what each feed has said of it without the other, and whose it is.

    `numbers` leads from the log's visits to the visits as told, `ends` are the visits that the fast
    feed has seen answered or left.
    """

    call_id: str = ""
    fast: list[_Fact] = field(default_factory=list)
    durable: list[_Fact] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Contact:
    visits: set[int] = field(default_factory=set)
    ended: bool = False


class Reconciler:
    """Give it what each feed says, and up to when each has been read; it returns what is still to be told.

    What it returns must also be told to the fast feed (`Switch.learn`), so that both speak of the same
    visits. While the manager connection is down its `through` moves on with the clock: what happened
    meanwhile will never come. A caller who was refused has no line and is not expected to have one.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._legs: OrderedDict[str, _Leg] = OrderedDict()
        self._contacts: OrderedDict[str, _Contact] = OrderedDict()
        self._fast: OrderedDict[str, _Fact] = OrderedDict()
        self._durable: OrderedDict[str, _Fact] = OrderedDict()
        self._lost_in_fast: OrderedDict[str, _Fact] = OrderedDict()
        self._gaps: deque[telephony.SourceInterrupted] = deque(maxlen=_MAX_GAPS)
        self._fast_through: datetime | None = None
        self._durable_through: datetime | None = None
        self._paired = self._corrected = self._let_go = 0

    def fast(self, facts: Iterable[Mapped], through: datetime) -> list[Mapped]:
        """Take what the manager feed says (it is told already) and up to when it has been read."""
        said = [correction for mapped in facts for correction in self._from_fast(mapped)]
        self._fast_through = max(self._fast_through or through, through)
        return said + self._overdue()

    def durable(self, facts: Iterable[Mapped], through: datetime) -> list[Mapped]:
        """Take what queue_log says (it is not told yet) and up to when it has been read."""
        said = [correction for mapped in facts for correction in self._from_durable(mapped)]
        self._durable_through = max(self._durable_through or through, through)
        return said + self._overdue()

    def status(self, now: datetime) -> Status:
        """Say what is late and what is lost, by name."""
        through = self._durable_through
        lost = [fact for fact in self._fast.values() if through is not None and fact.at + DEADLINE <= through]
        late = [fact for fact in self._fast.values() if through is None or fact.at + DEADLINE > through]
        return Status(
            fast_behind_ms=_behind_ms(self._fast_through, now),
            durable_behind_ms=_behind_ms(through, now),
            late_in_fast=self._shortfall(self._durable.values()),
            lost_in_fast=self._shortfall(self._lost_in_fast.values()),
            late_in_durable=self._shortfall(late),
            lost_in_durable=self._shortfall(lost),
            paired=self._paired,
            corrected=self._corrected,
            let_go=self._let_go,
        )

    # ------------------------------------------------------------ hearing

    def _from_fast(self, mapped: Mapped) -> list[Mapped]:
        body = mapped.body
        if isinstance(body, telephony.SourceInterrupted):
            self._gaps.append(body)
            return []
        if not isinstance(body, telephony.CallEvent):
            return []
        contact = self._contact(body.call_id)
        if isinstance(body, telephony.CallEnded):
            contact.ended = True
            return []
        if isinstance(body, telephony.CallOffered) and body.leg_id:
            self._leg(body.leg_id).call_id = body.call_id
        fact = _fact(mapped)
        if fact is None or not self._is_new(fact):
            return []
        self._leg(fact.leg).call_id = body.call_id
        contact.visits.add(fact.visit)
        return self._guess(fact) if fact.guessed else self._pair_fast(fact)

    def _from_durable(self, mapped: Mapped) -> list[Mapped]:
        fact = _fact(mapped)
        if fact is None or not self._is_new(fact):
            return []
        leg = self._leg(fact.leg)
        twin = _nearest(fact, leg.fast)
        if twin is not None:
            leg.fast.remove(twin)
            self._fast.pop(twin.mapped.key, None)
            return self._paired_up(leg, twin, fact)
        if self._answers_a_guess(leg, fact) and fact.guessed:
            return []
        leg.durable.append(fact)
        self._remember(self._durable, fact)
        return []

    def _pair_fast(self, fact: _Fact) -> list[Mapped]:
        leg = self._leg(fact.leg)
        if fact.kind in ("answered", "left"):
            leg.ends.add(fact.visit)
            self._withdraw_guess(leg, fact)
        twin = _nearest(fact, leg.durable)
        if twin is not None:
            leg.durable.remove(twin)
            told = self._durable.pop(twin.mapped.key, None) is None
            self._lost_in_fast.pop(twin.mapped.key, None)
            return [] if told else self._paired_up(leg, fact, twin)
        leg.fast.append(fact)
        self._remember(self._fast, fact)
        return []

    def _paired_up(self, leg: _Leg, fast: _Fact, durable: _Fact) -> list[Mapped]:
        self._paired += 1
        if durable.visit:
            leg.numbers[durable.visit] = fast.visit
        ours, theirs = fast.mapped.body, durable.mapped.body
        if not (isinstance(ours, telephony.QueueLeft) and isinstance(theirs, telephony.QueueLeft)):
            return []
        if durable.guessed or (ours.reason, ours.wait_ms) == (theirs.reason, theirs.wait_ms):
            return []
        self._corrected += 1
        return [self._in_our_words(durable)]

    def _guess(self, fact: _Fact) -> list[Mapped]:
        """A visit that left for an unknown reason: any end in the log explains it, and is told later."""
        leg = self._leg(fact.leg)
        leg.ends.add(fact.visit)
        explained = next((one for one in leg.durable if _explains(leg, one, fact)), None)
        if explained is None:
            leg.fast.append(fact)
            self._remember(self._fast, fact)
        else:
            leg.numbers.setdefault(explained.visit, fact.visit)
        return []

    def _withdraw_guess(self, leg: _Leg, fact: _Fact) -> None:
        for guess in [one for one in leg.fast if one.guessed and one.visit == fact.visit]:
            leg.fast.remove(guess)
            self._fast.pop(guess.mapped.key, None)

    def _answers_a_guess(self, leg: _Leg, fact: _Fact) -> bool:
        guess = next((one for one in leg.fast if one.guessed and _explains(leg, fact, one)), None)
        if guess is None:
            return False
        leg.fast.remove(guess)
        self._fast.pop(guess.mapped.key, None)
        leg.numbers.setdefault(fact.visit, guess.visit)
        return True

    # ------------------------------------------------------------ telling

    def _overdue(self) -> list[Mapped]:
        """Tell what only the log has, once the fast feed has been read past it."""
        said: list[Mapped] = []
        through = self._fast_through
        while through is not None and self._durable:
            fact = next(iter(self._durable.values()))
            if fact.at + DEADLINE > through:
                break
            del self._durable[fact.mapped.key]
            if not self._known_otherwise(fact):
                said.append(self._in_our_words(fact))
                self._remember(self._lost_in_fast, fact)
        self._forget()
        return said

    def _known_otherwise(self, fact: _Fact) -> bool:
        """What a restart ended is in both feeds, but not as one line per fact."""
        leg = self._leg(fact.leg)
        if fact.kind == "restarted":
            restarts = [gap.gap_to for gap in self._gaps if gap.reason == "source_restarted"]
            return any(abs(at - fact.at) <= _SAME_RESTART for at in restarts)
        if fact.kind == "ended":
            return self._contact(leg.call_id or fact.leg).ended
        return fact.guessed and leg.numbers.get(fact.visit) in leg.ends

    def _in_our_words(self, fact: _Fact) -> Mapped:
        """The log's fact and key, under the contact and the visit by which the fast feed knows it."""
        body = fact.mapped.body
        if not isinstance(body, telephony.CallEvent):
            return fact.mapped
        leg = self._leg(fact.leg)
        call_id = leg.call_id or body.call_id
        update: dict[str, object] = {"call_id": call_id}
        if fact.visit:
            update["visit"] = self._number(leg, call_id, fact.visit)
        if fact.kind == "ended":
            self._contact(call_id).ended = True
        return Mapped(fact.mapped.key, body.model_copy(update=update))

    def _number(self, leg: _Leg, call_id: str, visit: int) -> int:
        if visit not in leg.numbers:
            taken = self._contact(call_id).visits
            number = visit if visit not in taken else ASIDE + visit
            while number in taken:
                number += 1
            taken.add(number)
            leg.numbers[visit] = number
        return leg.numbers[visit]

    # ------------------------------------------------------------ memory

    def _is_new(self, fact: _Fact) -> bool:
        keys = self._leg(fact.leg).keys
        new = fact.mapped.key not in keys
        keys.add(fact.mapped.key)
        return new

    def _leg(self, leg_id: str) -> _Leg:
        leg = self._legs.setdefault(leg_id, _Leg())
        self._legs.move_to_end(leg_id)
        if len(self._legs) > MAX_LEGS:
            self._legs.popitem(last=False)
        return leg

    def _contact(self, call_id: str) -> _Contact:
        contact = self._contacts.setdefault(call_id, _Contact())
        self._contacts.move_to_end(call_id)
        if len(self._contacts) > MAX_LEGS:
            self._contacts.popitem(last=False)
        return contact

    def _remember(self, facts: OrderedDict[str, _Fact], fact: _Fact) -> None:
        facts[fact.mapped.key] = fact
        if len(facts) > MAX_LEGS:
            facts.popitem(last=False)
            self._let_go += 1

    def _forget(self) -> None:
        for facts, through in (
            (self._fast, self._durable_through),
            (self._lost_in_fast, self._fast_through),
        ):
            while through is not None and facts and next(iter(facts.values())).at < through - KEEP:
                facts.popitem(last=False)

    def _shortfall(self, facts: Iterable[_Fact]) -> Shortfall:
        owed = sorted(facts, key=lambda fact: fact.at)
        named = tuple(self._missing(fact) for fact in islice(owed, MAX_NAMED))
        return Shortfall(len(owed), named[0].at if named else None, named)

    def _missing(self, fact: _Fact) -> Missing:
        leg = self._legs.get(fact.leg)
        in_gap = any(gap.gap_from - SAME <= fact.at <= gap.gap_to + SAME for gap in self._gaps)
        call_id = (leg.call_id if leg else "") or fact.leg
        return Missing(fact.mapped.key, fact.kind, call_id, fact.queue, fact.at, in_gap)


def _fact(mapped: Mapped) -> _Fact | None:
    """What both feeds should say; None for what one of them never says."""
    body = mapped.body
    kind = _KINDS.get(type(body))
    if kind is None or (isinstance(body, telephony.AgentOffered) and body.result != "no_answer"):
        return None
    if isinstance(body, telephony.SourceInterrupted):
        return _Fact(mapped, kind, body.gap_to) if body.reason == "source_restarted" else None
    assert isinstance(body, telephony.CallEvent)
    if not body.leg_id:
        return None
    queue, visit = getattr(body, "queue", ""), getattr(body, "visit", 0)
    return _Fact(mapped, kind, body.occurred_at, body.leg_id, queue, visit)


def _nearest(fact: _Fact, others: Iterable[_Fact]) -> _Fact | None:
    fitting = [other for other in others if fact.fits(other)]
    return min(fitting, key=lambda other: abs(other.at - fact.at), default=None)


def _explains(leg: _Leg, line: _Fact, guess: _Fact) -> bool:
    """The end of the same visit, which happened before the fast feed noticed that it was over."""
    known = leg.numbers.get(line.visit, guess.visit)
    end = line.kind in ("answered", "left") and line.queue == guess.queue
    return end and known == guess.visit and line.at <= guess.at + SAME


def _agent(fact: _Fact) -> str:
    return getattr(fact.mapped.body, "agent", "")


def _behind_ms(through: datetime | None, now: datetime) -> int | None:
    return None if through is None else max(0, int((now - through) / timedelta(milliseconds=1)))
