"""From Asterisk's manager events to canonical call events: one switch's feed, no IO.

What Asterisk says and what it means differ (measured on recordings of 22.10): `QueueCallerAbandon`
also stands for timeout and withdrawal, leaving by a key fires nothing but a leave, a refused caller
fires nothing at all unless the dialplan raises a UserEvent, and `AgentComplete` may come without any
channel. The dialplan must raise `IvrIdentified`, `QueueRefused`, `CallbackRequested`, `SurveyAnswer`.

The feed has no numbers and no replay: what happens while nobody listens is lost for good. So the
reader must say `reconnected` at each login and hand over the answer to `QueueStatus` with `resync`.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from schemas import telephony
from schemas.envelope import Body
from services.intake.sources.ami import Block, blocks, recorded_chunks
from services.intake.sources.canonical import Mapped

LeftReason = Literal["abandoned", "timeout", "empty", "key", "withdrawn", "overflow", "unknown"]
_LEFT_BY_STATUS: dict[str, LeftReason] = {
    "TIMEOUT": "timeout",
    "WITHDRAW": "withdrawn",
    "LEAVEEMPTY": "empty",
    "LEAVEUNAVAIL": "empty",
}
_REFUSED_BY_STATUS: dict[str, Literal["full", "joinempty", "closed", "unknown"]] = {
    "FULL": "full",
    "JOINEMPTY": "joinempty",
    "JOINUNAVAIL": "joinempty",
}
_TALKED_STATUS = "CONTINUE"  # the agent hung up and the caller goes on, to the survey
_CALLER_OF_TRANSFER = {
    "BlindTransfer": ("TransfererLinkedid", "TransfereeUniqueid"),
    "AttendedTransfer": ("OrigTransfererLinkedid", "TransfereeUniqueid"),
}
_IDENTITY = ("Event", "UserEvent", "Uniqueid", "Queue", "Interface", "Timestamp")

LINGER = timedelta(milliseconds=500)
"""A contact's last facts may arrive just after its end mark (measured: up to six events, within
milliseconds), so the end is told a moment later."""
FORGET_AFTER = timedelta(hours=24)
"""A call that was never seen to end is forgotten, and counted: nobody talks for a day."""
MAX_CALLS = 10_000
"""Open calls, and ended calls whose echoes are recognised; an open call takes some 6 KB (measured)."""
AFTER_A_HOLE = 1_000
"""Above the ordinals: visits of a call that was not followed from its beginning."""
_WHOLE_SECONDS = timedelta(seconds=3)  # up to two durations and a moment, each cut to whole seconds
_SAME_BOOT = timedelta(seconds=10)  # the boot's time is known from an uptime in seconds, read a moment later
_MAX_NAMES = 200
_MAX_DIGITS = 10


@dataclass(slots=True)
class _Visit:
    """One entry into a queue; `key` is the identity of the entry, `joined` is None when it was estimated."""

    leg: str
    queue: str
    number: int
    key: str
    joined: datetime | None = None
    position: int | None = None
    left: Block | None = None
    abandoned: Block | None = None
    agent: str = ""
    interface: str = ""
    agent_leg: str | None = None
    answered: datetime | None = None


@dataclass(slots=True)
class _Call:
    """`lapsed` is the visit that a resync did not find any more: it may turn out to have been answered."""

    opened: datetime
    began: datetime | None
    followed: bool
    visits: int = 0
    visit: _Visit | None = None
    lapsed: _Visit | None = None
    talks: list[_Visit] = field(default_factory=list)
    legs: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)

    def next_visit(self, at: datetime) -> int:
        self.visits = self.visits + 1 if self.followed else visit_after_hole(self.began, at, self.visits)
        return self.visits


class Switch:
    """What one PBX is doing, as far as its feed tells; `feed` each block in the order of arrival.

    With `system` (the PBX's own name, unique among its siblings) all ids begin with it; without, they
    are Asterisk's, which are unique on one PBX only.

    Keys depend on the fact, not on who read it or when: a second reader's copy of a block is recognised
    and says nothing. Visits are numbered 1, 2, … as long as the call was followed from its beginning;
    after a hole (a reconnect during the call) a visit's number is `AFTER_A_HOLE` and the seconds from
    the call's beginning to the entry, or the next free one. So no two visits of a call share a number,
    nor does one that this feed missed and another feed counts, if both are told to each other (`learn`).
    """

    def __init__(self, source: str, system: str = "") -> None:
        self.source, self.system = source, system
        self.unused: Counter[str] = Counter()
        self.forgotten = 0
        self._prefix = f"{system}-" if system else ""
        # Ordered: their oldest are asked for, and a dict looks for its first among all that have left.
        self._calls: OrderedDict[str, _Call] = OrderedDict()
        self._over: OrderedDict[str, None] = OrderedDict()
        self._legs: dict[str, str] = {}
        self._waiting: dict[str, list[tuple[str, _Visit]]] = {}
        self._ending: dict[str, tuple[datetime, Block]] = {}
        self._heard_at: datetime | None = None
        self._down: datetime | None = None
        self._listening: datetime | None = None
        self._booted: datetime | None = None
        self._fresh: set[tuple[str, str]] | None = None

    @property
    def open_calls(self) -> int:
        """How many calls are under way, as far as this feed tells."""
        return len(self._calls)

    def feed(self, block: Block) -> list[Mapped]:
        """Map one manager event; raises ValueError when the switch sends no timestamps.

        Blocks that mean nothing here, or lack a field, are counted in `unused` by name.
        """
        name = block.get("Event", "")
        if name == "FullyBooted":
            return self._uptime(block)
        handle = _HANDLERS.get(f"UserEvent.{block.get('UserEvent')}" if name == "UserEvent" else name)
        if handle is None:
            self._count(name)
            return []
        at = self._moment(name, block)
        if name in _CALLER_OF_TRANSFER:
            linked, leg = _CALLER_OF_TRANSFER[name]
            block = {**block, "Linkedid": block.get(linked, ""), "Uniqueid": block.get(leg, "")}
        said = self.settle(at - LINGER)
        if not self._repeated(block):
            said += self._handled(name, handle, block)
            self._freshen(block)
        return said

    def settle(self, until: datetime | None = None) -> list[Mapped]:
        """Tell the end of calls that ended before `until`; of all of them when the feed is idle."""
        said: list[Mapped] = []
        while self._ending:
            linked, (at, block) = next(iter(self._ending.items()))
            if until is not None and at > until:
                break
            del self._ending[linked]
            said += self._ended(block, f"hangup_{block.get('Cause', '0')}")
        return said

    def _handled(
        self, name: str, handle: Callable[["Switch", Block], Iterator[Mapped]], block: Block
    ) -> list[Mapped]:
        said: list[Mapped] = []
        try:
            said.extend(handle(self, block))  # what was told before a failure is kept
        except (KeyError, ValidationError):
            self._count(f"{name}, unreadable")
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None:
            call.heard.add(_key(block))
        return said

    def _repeated(self, block: Block) -> bool:
        """Another reader has said it already, or the call is over and told."""
        linked = block.get("Linkedid", "")
        call = self._calls.get(linked)
        return linked in self._over or (call is not None and _key(block) in call.heard)

    def _freshen(self, block: Block) -> None:
        # A hang-up is heard of what is no more: no sign of life.
        if self._fresh is not None and len(self._fresh) < MAX_CALLS and block.get("Event") != "Hangup":
            self._fresh.add((block.get("Linkedid", ""), ""))
            self._fresh.add((block.get("Uniqueid", ""), block.get("Queue", "")))

    def _moment(self, name: str, block: Block) -> datetime:
        try:
            at = _time(block)
        except (KeyError, ValueError, OverflowError, OSError):
            raise ValueError(
                f"{self.source}: {name} has no Timestamp; set timestampevents=yes in manager.conf and reload"
            ) from None
        if self._heard_at is None or at > self._heard_at:
            self._heard_at = at
        return at

    def _count(self, name: str) -> None:
        self.unused[name if name in self.unused or len(self.unused) < _MAX_NAMES else "others"] += 1

    # ------------------------------------------------------------ the feed itself

    def disconnected(self, at: datetime) -> None:
        """The connection broke: from now on events are lost."""
        self._down = self._down or at

    def reconnected(self, at: datetime) -> list[Mapped]:
        """Tell the gap since `disconnected`. Say it at each login, at the first too: calls were under way."""
        began, self._down = self._down, None
        self._listening, self._fresh = at, set()
        for call in self._calls.values():
            call.followed = False
        return [] if began is None else [self._interrupted("disconnected", began, at)]

    def restarted(self, at: datetime) -> list[Mapped]:
        """The PBX began anew at `at`: every older call ended without a word, and nothing will tell of it."""
        if self._booted is not None and abs(at - self._booted) < _SAME_BOOT:
            return []
        self._booted = at
        heard = min(self._heard_at or at, at)
        said = [*self.settle(), self._interrupted("source_restarted", heard, at)]
        for linked, call in list(self._calls.items()):
            if (call.began or call.opened) < at:
                said += self._ended(_block_at(linked, linked, at), "source_restarted", known_end=False)
        return said

    def _uptime(self, block: Block) -> list[Mapped]:
        """`FullyBooted` opens each connection and says for how long the PBX has been running."""
        uptime = _number(block, "Uptime")
        known = [at for at in (self._listening, self._heard_at) if at is not None]
        if uptime is None or not known:
            return []
        booted = max(known) - timedelta(seconds=uptime)
        before = self._booted
        if before is None:
            openings = [call.began or call.opened for call in self._calls.values()]
            before = min(openings, default=booted)
        if booted > before + _SAME_BOOT:
            return self.restarted(booted)
        self._booted = self._booted or booted
        return []

    def _interrupted(
        self, reason: Literal["disconnected", "source_restarted"], gap_from: datetime, gap_to: datetime
    ) -> Mapped:
        body = telephony.SourceInterrupted(
            source=self.source, reason=reason, gap_from=gap_from, gap_to=gap_to
        )
        return Mapped(f"{self._prefix}{reason}|{gap_from.isoformat()}|SourceInterrupted", body)

    def resync(
        self, entries: Iterable[Block], channels: Mapping[str, str] | None, now: datetime
    ) -> list[Mapped]:
        """Catch up after a reconnect with who waits now: a correction of the state, not a replay.

        What was heard since the login is known better than from an answer that may be older.

        `entries` are the `QueueEntry` blocks of `QueueStatus`, `channels` the Linkedid of each live
        Uniqueid (`live_channels`), or None when nobody asked. Visits that wait no more left for an
        unknown reason, calls without a channel ended with cause `ended_during_gap`, entries that were
        not known joined `Wait` seconds ago.
        """
        fresh, self._fresh = self._fresh or set(), None
        waiting = {(entry.get("Uniqueid", ""), entry.get("Queue", "")): entry for entry in entries}
        known = waiting.keys() | fresh
        said = [fact for linked in self._calls for fact in self._lapsed(linked, known, now)]
        if channels is not None:
            # A contact lives as long as its own channel does; a sibling leg may outlive it.
            live = {*channels, *self._ending, *(linked for linked, _ in fresh)}
            for linked in [one for one in self._calls if one not in live]:
                said += self._ended(_block_at(linked, linked, now), "ended_during_gap", known_end=False)
        for (leg, queue), entry in waiting.items():
            owner = self._legs.get(leg) or (channels or {}).get(leg)
            if (leg, queue) in fresh:
                continue
            if owner is None or owner in self._over:
                self._count("QueueEntry of an unknown channel")
            else:
                said += self._handled("QueueEntry", Switch._found, {**entry, **_block_at(owner, leg, now)})
        return said

    def _lapsed(self, linked: str, known: set[tuple[str, str]], now: datetime) -> Iterator[Mapped]:
        """A visit that was seen to leave is left alone: its reason comes, or its call's end."""
        call = self._calls[linked]
        visit = call.visit
        if visit is None or visit.left is not None or (visit.leg, visit.queue) in known:
            return
        self._step_out(visit)
        yield from self._explained(_block_at(linked, visit.leg, now), call, "unknown")
        call.lapsed = visit

    def _found(self, entry: Block) -> Iterator[Mapped]:
        yield from self._offered(entry)
        call = self._calls[entry["Linkedid"]]
        visit, position = call.visit, _number(entry, "Position")
        if visit is None or (visit.leg, visit.queue) != (entry["Uniqueid"], entry["Queue"]):
            yield from self._superseded(entry, call)
            joined = _time(entry) - timedelta(seconds=_number(entry, "Wait") or 0)
            call.visit, entered = self._entered(entry, call, joined, position)
            yield entered
        elif position is not None and position != visit.position:
            visit.position = position
            yield self._positioned(entry, entry["Linkedid"], visit, inferred=False)

    def learn(self, body: Body) -> None:
        """Take over, in silence, what another feed of this PBX (or an earlier run) has told of a call.

        Without it a visit that only queue_log has told would be told again when the manager feed meets it.
        """
        if isinstance(body, telephony.SourceInterrupted):
            self._booted = body.gap_to if body.reason == "source_restarted" else self._booted
            return
        if not isinstance(body, telephony.CallEvent):
            return
        linked = body.call_id.removeprefix(self._prefix)
        if isinstance(body, telephony.CallEnded):
            self._drop(linked)
        elif linked not in self._over:
            call = self._calls.get(linked) or self._opened(linked, body.occurred_at)
            self._learn_visit(linked, call, body)

    def _learn_visit(self, linked: str, call: _Call, body: telephony.CallEvent) -> None:
        leg = (body.leg_id or "").removeprefix(self._prefix) or linked
        call.visits = max(call.visits, getattr(body, "visit", 0))
        if isinstance(body, telephony.CallOffered | telephony.CallQueued):
            self._leg(linked, leg)
        if isinstance(body, telephony.CallQueued):
            key = f"learnt|{leg}|{body.queue}|{body.visit}"
            visit = _Visit(leg, body.queue, body.visit, key, body.occurred_at, body.position)
            self._learn_entry(linked, call, visit, body.occurred_at)
        elif isinstance(body, telephony.CallAnswered):
            answered = _visit_of(body, [call.visit, call.lapsed])
            if answered is not None:
                self._answer({"MemberName": body.agent}, call, answered, body.occurred_at)
        elif isinstance(body, telephony.QueueLeft):
            gone = _visit_of(body, [call.visit])
            if gone is not None:
                self._step_out(gone)
                # Nobody knows why: it may turn out to have been answered.
                call.visit, call.lapsed = None, gone if body.reason == "unknown" else call.lapsed
        elif isinstance(body, telephony.TalkEnded):
            talked = _visit_of(body, call.talks)
            if talked is not None:
                call.talks.remove(talked)

    def _learn_entry(self, linked: str, call: _Call, visit: _Visit, at: datetime) -> None:
        """The log may tell an earlier visit while the call waits in a later one already."""
        waits = call.visit
        if waits is not None and (waits.joined is None or waits.joined > at):
            call.lapsed = visit
            return
        if waits is not None:
            self._step_out(waits)
        call.visit, call.lapsed = visit, waits
        self._waiting.setdefault(visit.queue, []).append((linked, visit))

    # ------------------------------------------------------------ the life of a call

    def _opened(self, linked: str, at: datetime) -> _Call:
        while self._calls:
            oldest = next(iter(self._calls))
            if len(self._calls) < MAX_CALLS and at - self._calls[oldest].opened < FORGET_AFTER:
                break
            self._drop(oldest)
            self.forgotten += 1
        began = began_at(linked)
        followed = self._listening is None or (began or at) >= self._listening
        call = self._calls[linked] = _Call(at, began, followed)
        return call

    def _drop(self, linked: str) -> None:
        call = self._calls.pop(linked, None)
        self._ending.pop(linked, None)
        for leg in call.legs if call else ():
            if self._legs.get(leg) == linked:
                del self._legs[leg]
        for visit in (call.visit, *call.talks) if call else ():
            if visit is not None:
                self._step_out(visit)
        self._over[linked] = None
        if len(self._over) > MAX_CALLS:
            self._over.popitem(last=False)

    def _offered(self, block: Block) -> Iterator[Mapped]:
        """The caller is known to the dialplan; a call that skips it is offered with its first queue."""
        linked = block.get("Linkedid", "")
        if not linked or linked in self._calls:
            return
        self._opened(linked, _time(block))
        self._leg(linked, block.get("Uniqueid", ""))
        phone = block.get("CallerIDNum", "")
        yield self._say(
            block,
            telephony.CallOffered,
            key=linked,
            phone=phone if phone.lstrip("+").isdigit() else None,
            dialled=block.get("Exten", ""),
            language=block.get("Language") or None,
        )

    def _joined(self, block: Block) -> Iterator[Mapped]:
        yield from self._offered(block)
        call = self._calls[block["Linkedid"]]
        yield from self._superseded(block, call)
        position = _number(block, "Position") or 1
        call.visit, entered = self._entered(block, call, _time(block), position, exact=True)
        yield entered
        yield from self._pushed_back(block, call.visit, position)

    def _superseded(self, block: Block, call: _Call) -> Iterator[Mapped]:
        """A call that begins another visit while it waits in one: that one's end was not explained."""
        if call.visit is not None:
            self._step_out(call.visit)
            reason: LeftReason = "key" if self._left_without_word(call.visit) else "unknown"
            yield from self._explained(block, call, reason)

    def _entered(
        self, block: Block, call: _Call, joined: datetime, position: int | None, *, exact: bool = False
    ) -> tuple[_Visit, Mapped]:
        """Begin a visit; one without a position has been answered already and moves nobody."""
        linked, leg, queue = block["Linkedid"], block["Uniqueid"], block["Queue"]
        call.followed, call.lapsed = call.followed and exact, None
        number = call.next_visit(joined)
        key = _key(block) if exact else f"entered|{leg}|{queue}|{number}"
        visit = _Visit(leg, queue, number, key, joined if exact else None, position)
        self._leg(linked, leg)
        told = self._say_of(
            block, visit, telephony.CallQueued, key=key, occurred_at=joined, position=position
        )
        if position is not None:
            self._waiting.setdefault(queue, []).append((linked, visit))
        return visit, told

    def _pushed_back(self, block: Block, visit: _Visit, position: int) -> Iterator[Mapped]:
        """A caller with a higher priority enters before others, who move back."""
        for linked, other in self._waiting[visit.queue]:
            if other is not visit and other.position is not None and other.position >= position:
                other.position += 1
                yield self._positioned(block, linked, other, inferred=True)

    def _left(self, block: Block) -> Iterator[Mapped]:
        """Why is not known yet: an answer, a key or a hang-up follows; the others move up."""
        queue = self._waiting.get(block.get("Queue", ""), [])
        gone = next((visit for linked, visit in queue if linked == block.get("Linkedid")), None)
        if gone is None:
            return
        gone.left = block
        gone.position = _number(block, "Position") or gone.position
        self._step_out(gone)
        for linked, other in queue:
            if other.position is not None and gone.position is not None and other.position > gone.position:
                other.position -= 1
                yield self._positioned(block, linked, other, inferred=True)

    def _step_out(self, visit: _Visit) -> None:
        queue = self._waiting.get(visit.queue, [])
        queue[:] = [entry for entry in queue if entry[1] is not visit]
        if not queue:
            self._waiting.pop(visit.queue, None)

    def _gave_up(self, block: Block) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None and call.visit is not None:
            call.visit.abandoned = block
        yield from ()

    def _refused(self, block: Block) -> Iterator[Mapped]:
        """The dialplan says how the queue ended: a visit that left, or one that never began."""
        status, queue = block.get("Status", ""), block["Queue"]
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None and call.visit is not None and call.visit.queue == queue:
            self._step_out(call.visit)
            yield from self._explained(block, call, _LEFT_BY_STATUS.get(status, "unknown"))
        elif status in _LEFT_BY_STATUS or status == _TALKED_STATUS:
            self._count("QueueRefused without a queue visit")
        else:
            yield from self._offered(block)
            reason = _REFUSED_BY_STATUS.get(status, "unknown")
            yield self._say(block, telephony.CallRefused, queue=queue, reason=reason)

    def _explained(self, block: Block, call: _Call, reason: LeftReason) -> Iterator[Mapped]:
        visit, call.visit = call.visit, None
        if visit is None:
            return
        moment = visit.abandoned or visit.left or block
        position = _number(visit.abandoned, "Position") if visit.abandoned else None
        yield self._say_of(
            {**block, "Timestamp": moment["Timestamp"]},
            visit,
            telephony.QueueLeft,
            key=visit.key,
            reason=reason,
            wait_ms=_waited_ms(visit),
            position=position or visit.position,
        )

    def _left_without_word(self, visit: _Visit) -> bool:
        """Only a key lets a caller leave without an abandon or an answer; a hole may have hidden either."""
        return visit.left is not None and visit.abandoned is None and not self._missed_since(visit.left)

    def _missed_since(self, block: Block) -> bool:
        return self._listening is not None and _time(block) < self._listening

    def _connected(self, block: Block) -> Iterator[Mapped]:
        """An answer tells its wait, so an entry that was not seen is known by it."""
        yield from self._offered(block)
        call, hold = self._calls[block["Linkedid"]], _number(block, "HoldTime") or 0
        visit = call.visit or call.lapsed
        if visit is None or visit.queue != block["Queue"]:
            yield from self._superseded(block, call)
            visit, entered = self._entered(block, call, _time(block) - timedelta(seconds=hold), None)
            yield entered
        self._answer(block, call, visit, _time(block))
        yield self._say_of(
            block,
            visit,
            telephony.CallAnswered,
            agent=_agent(block),
            wait_ms=hold * 1000,
            ring_ms=(_number(block, "RingTime") or 0) * 1000,  # seconds here, unlike AgentRingNoAnswer
            agent_leg_id=self._id(visit.agent_leg),
        )

    def _answer(self, block: Block, call: _Call, visit: _Visit, at: datetime) -> None:
        """The leave comes as its own event; it still moves the others up, so the queue keeps the visit."""
        visit.answered, visit.agent = at, _agent(block)
        visit.interface, visit.agent_leg = block.get("Interface", ""), block.get("DestUniqueid")
        call.visit = None if call.visit is visit else call.visit
        call.lapsed = None
        call.talks.append(visit)

    def _talked(self, block: Block) -> Iterator[Mapped]:
        """The end of a talk tells its wait and its length, so an answer that was not seen is known by it."""
        talk, hold = _number(block, "TalkTime") or 0, _number(block, "HoldTime") or 0
        found = self._talk(block, timedelta(seconds=talk))
        if found is None and not block.get("Linkedid"):
            self._count("AgentComplete without a channel or a talk")
            return
        if found is None:
            yield from self._missed_answer(block, _time(block) - timedelta(seconds=talk), hold)
            found = block["Linkedid"], self._calls[block["Linkedid"]].talks[-1]
        linked, visit = found
        self._calls[linked].talks.remove(visit)
        self._step_out(visit)
        reason = block.get("Reason", "")
        yield self._say_of(
            {**block, "Linkedid": linked},
            visit,
            telephony.TalkEnded,
            key=_key(block),
            agent=_agent(block),
            talk_ms=talk * 1000,
            wait_ms=hold * 1000,
            ended_by=reason if reason in ("caller", "agent", "transfer") else "unknown",
        )

    def _missed_answer(self, block: Block, answered: datetime, hold: int) -> Iterator[Mapped]:
        """The caller may wait for somebody else by now: the talk is of the visit that fits in time."""
        yield from self._offered(block)
        call, joined = self._calls[block["Linkedid"]], answered - timedelta(seconds=hold)
        visit = call.visit or call.lapsed
        if visit is None or visit.queue != block["Queue"] or not _near(visit.joined, joined):
            visit, entered = self._entered(block, call, joined, None)
            yield entered
        self._answer(block, call, visit, answered)
        yield self._say_of(
            block,
            visit,
            telephony.CallAnswered,
            occurred_at=answered,
            agent=_agent(block),
            wait_ms=hold * 1000,
            agent_leg_id=self._id(visit.agent_leg),
        )

    def _talk(self, block: Block, talk: timedelta) -> tuple[str, _Visit] | None:
        """Find the talk that ended; without channel fields, by queue, agent's interface and length."""
        linked, agent_leg = block.get("Linkedid"), block.get("DestUniqueid")
        same = [
            (one, visit)
            for one in ([linked] if linked else self._calls)
            if one in self._calls
            for visit in self._calls[one].talks
            if visit.queue == block.get("Queue") and visit.interface in ("", block.get("Interface"))
        ]
        if linked:
            exact = [pair for pair in same if agent_leg and pair[1].agent_leg == agent_leg]
            return next(iter(exact or same), None)
        began = _time(block) - talk
        fits = [pair for pair in same if _near(pair[1].answered, began)]
        return min(fits, key=lambda pair: abs((pair[1].answered or began) - began), default=None)

    def _hung_up(self, block: Block) -> Iterator[Mapped]:
        """The caller's own channel carries the contact's id; its end is the contact's end."""
        linked = block.get("Linkedid", "")
        if block.get("Uniqueid") == linked and linked in self._calls and linked not in self._ending:
            self._ending[linked] = (_time(block), block)
        yield from ()

    def _ended(self, block: Block, cause: str, *, known_end: bool = True) -> list[Mapped]:
        """End a call; a visit that is still open ends with it, for the reason that its last events allow."""
        linked = block["Linkedid"]
        call = self._calls[linked]
        said: list[Mapped] = []
        if call.visit is not None:
            reason = self._why(call.visit) if known_end else "unknown"
            self._step_out(call.visit)
            said += self._explained(block, call, reason)
        total = int((_time(block) - call.opened) / timedelta(milliseconds=1))
        self._drop(linked)
        said.append(
            self._say(
                block,
                telephony.CallEnded,
                key=linked,
                cause=cause,
                total_ms=max(0, total) if known_end else None,
            )
        )
        return said

    def _why(self, visit: _Visit) -> LeftReason:
        """A hang-up in the queue is an abandon that the dialplan did not explain otherwise."""
        if visit.abandoned is not None and not self._missed_since(visit.abandoned):
            return "abandoned"
        return "key" if self._left_without_word(visit) else "unknown"

    # ------------------------------------------------------------ beside it

    def _ringing(self, block: Block) -> Iterator[Mapped]:
        yield from self._agent_tried(block, "ringing", None)

    def _no_answer(self, block: Block) -> Iterator[Mapped]:
        yield from self._agent_tried(block, "no_answer", _number(block, "RingTime"))

    def _agent_tried(
        self, block: Block, result: Literal["ringing", "no_answer"], ring_ms: int | None
    ) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is None:
            return
        yield self._say(
            block,
            telephony.AgentOffered,
            queue=block["Queue"],
            visit=call.visit.number if call.visit else max(1, call.visits),
            agent=_agent(block),
            result=result,
            ring_ms=ring_ms,
        )

    def _callback(self, block: Block) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is None:
            return
        if call.visit is not None:
            self._step_out(call.visit)
            yield from self._explained(block, call, "key")
        number = block.get("Number") or None
        yield self._say(block, telephony.CallbackRequested, phone=number, queue=block["Queue"])

    def _surveyed(self, block: Block) -> Iterator[Mapped]:
        status = block.get("Status", "").lower()
        known = status if status in ("ok", "timeout", "hangup") else "invalid"
        digits = block.get("Score", "")
        yield self._say(block, telephony.SurveyAnswered, question="satisfaction", digits=digits, status=known)

    def _held(self, block: Block) -> Iterator[Mapped]:
        if block.get("Linkedid", "") in self._calls:
            yield self._say(block, telephony.CallHeld, held=block["Event"] == "Hold")

    def _transferred_blind(self, block: Block) -> Iterator[Mapped]:
        yield from self._transferred(block, "blind", block.get("Extension", ""))

    def _transferred_attended(self, block: Block) -> Iterator[Mapped]:
        yield from self._transferred(block, "attended", block.get("TransferTargetExten", ""))

    def _transferred(self, block: Block, mode: Literal["blind", "attended"], to: str) -> Iterator[Mapped]:
        call = self._calls.get(block["Linkedid"])
        if call is None or block.get("Result") != "Success":
            return
        yield self._say(
            block,
            telephony.CallTransferred,
            mode=mode,
            from_agent=call.talks[-1].agent if call.talks else None,
            to=to,
            to_kind="external" if block.get("IsExternal") == "Yes" else "unknown",
        )

    # ------------------------------------------------------------ words

    def _positioned(self, block: Block, linked: str, visit: _Visit, *, inferred: bool) -> Mapped:
        return self._say_of(
            {**block, "Linkedid": linked},
            visit,
            telephony.CallPositioned,
            key=f"{_key(block)}|{linked}",
            position=visit.position,
            waiting=len(self._waiting.get(visit.queue, ())) or None,
            inferred=inferred,
        )

    def _say_of(self, block: Block, visit: _Visit, kind: type[Body], **fields: Any) -> Mapped:
        """Speak of a visit: its leg is the channel that entered the queue, whatever the block names."""
        return self._say(
            {**block, "Uniqueid": visit.leg},
            kind,
            **{"key": _key(block), "queue": visit.queue, "visit": visit.number, **fields},
        )

    def _say(
        self, block: Block, kind: type[Body], *, key: str = "", phone: str | None = None, **fields: Any
    ) -> Mapped:
        body = kind(
            **{
                "call_id": self._id(block["Linkedid"]),
                "source": self.source,
                "leg_id": self._id(block.get("Uniqueid")),
                "occurred_at": _time(block),
                **fields,
            }
        )
        return Mapped(f"{self._prefix}{key or _key(block)}|{kind.__name__}", body, phone)

    def _id(self, asterisk_id: str | None) -> str | None:
        return f"{self._prefix}{asterisk_id}" if asterisk_id else None

    def _leg(self, linked: str, leg: str) -> None:
        if leg:
            self._calls[linked].legs.add(leg)
            self._legs[leg] = linked


_HANDLERS: dict[str, Callable[[Switch, Block], Iterator[Mapped]]] = {
    "UserEvent.IvrIdentified": Switch._offered,
    "UserEvent.QueueRefused": Switch._refused,
    "UserEvent.CallbackRequested": Switch._callback,
    "UserEvent.SurveyAnswer": Switch._surveyed,
    "QueueCallerJoin": Switch._joined,
    "QueueCallerLeave": Switch._left,
    "QueueCallerAbandon": Switch._gave_up,
    "AgentCalled": Switch._ringing,
    "AgentRingNoAnswer": Switch._no_answer,
    "AgentConnect": Switch._connected,
    "AgentComplete": Switch._talked,
    "BlindTransfer": Switch._transferred_blind,
    "AttendedTransfer": Switch._transferred_attended,
    "Hold": Switch._held,
    "Unhold": Switch._held,
    "Hangup": Switch._hung_up,
}


def replay(path: Path, source: str) -> Iterator[Mapped]:
    """Map a recording of a manager connection, plain or gzip."""
    switch = Switch(source)
    for block in blocks(recorded_chunks(path)):
        yield from switch.feed(block)
    yield from switch.settle()


def live_channels(answer: Iterable[Block]) -> dict[str, str]:
    """The Linkedid of each live Uniqueid, from the blocks that answer `CoreShowChannels`."""
    return {
        block["Uniqueid"]: block["Linkedid"]
        for block in answer
        if block.get("Event") == "CoreShowChannel" and block.get("Uniqueid") and block.get("Linkedid")
    }


def began_at(uniqueid: str) -> datetime | None:
    """When a channel began, cut to the second, by its id `[system-]epoch.counter`; None for another form."""
    epoch, dot, counter = uniqueid.rpartition("-")[2].partition(".")
    if not (dot and counter.isdecimal() and epoch.isdecimal() and len(epoch) <= 10):
        return None
    return datetime.fromtimestamp(int(epoch), tz=UTC)


def visit_after_hole(began: datetime | None, joined: datetime, previous: int) -> int:
    """Number a visit of a call with a hole: above all ordinals and above the number told before."""
    seconds = int((joined - began).total_seconds()) if began else 0
    return max(previous + 1, AFTER_A_HOLE + max(0, seconds))


def _waited_ms(visit: _Visit) -> int | None:
    """The switch's own figure, or both moments cut to the second, as the switch counts."""
    hold = _number(visit.abandoned, "HoldTime") if visit.abandoned else None
    if hold is None and visit.left is not None and visit.joined is not None:
        hold = int(_time(visit.left).timestamp()) - int(visit.joined.timestamp())
    return hold * 1000 if hold is not None else None


def _visit_of(
    body: telephony.CallAnswered | telephony.QueueLeft | telephony.TalkEnded,
    visits: Iterable[_Visit | None],
) -> _Visit | None:
    return next((one for one in visits if one and (one.queue, one.number) == (body.queue, body.visit)), None)


def _near(known: datetime | None, told: datetime) -> bool:
    return known is None or abs(known - told) <= _WHOLE_SECONDS


def _block_at(linked: str, leg: str, at: datetime) -> Block:
    return {"Event": "resync", "Linkedid": linked, "Uniqueid": leg, "Timestamp": f"{at.timestamp():.6f}"}


def _key(block: Block) -> str:
    return "|".join(block.get(name, "") for name in _IDENTITY)


def _time(block: Block) -> datetime:
    return datetime.fromtimestamp(float(block["Timestamp"]), tz=UTC)


def _number(block: Block, name: str) -> int | None:
    text = block.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _agent(block: Block) -> str:
    return block.get("MemberName") or block.get("Interface") or "unknown"
