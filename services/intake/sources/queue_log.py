"""From the lines of Asterisk's queue_log to canonical call events: the durable feed of one PBX, no IO.

The file has whole seconds, no call that was refused, no start and no end of a contact; what it has, it
has for good. Its call is the channel that entered the queue (Uniqueid), not the contact (Linkedid):
`reconcile` finds the contact. The seconds waited stand in another field for each verb.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from schemas import telephony
from schemas.envelope import Body
from services.intake.sources.asterisk import LeftReason, began_at, visit_after_hole
from services.intake.sources.canonical import Mapped

MAX_CHANNELS = 20_000
"""Channels whose visits are remembered, the latest seen; a day of a large hotline."""
_MAX_LINE = 4096
_MAX_VERBS = 100
_MAX_DIGITS = 10
_MAX_EPOCH = 253_402_300_799  # the last second that a datetime can hold


class Line(NamedTuple):
    """One line: when (whole seconds), the channel's Uniqueid, queue, agent, the verb and its fields."""

    at: datetime
    callid: str
    queue: str
    agent: str
    verb: str
    data: tuple[str, ...]


def parse(text: str) -> Line | None:
    """Read `epoch|callid|queue|agent|VERB|data…`; None for anything else, which the caller counts."""
    epoch, *rest = text.strip("\r\n").split("|")
    if len(rest) < 4 or len(text) > _MAX_LINE or not (epoch.isascii() and epoch.isdecimal()):
        return None
    callid, queue, agent, verb, *data = rest
    if not (callid and verb.isascii() and verb.isupper()) or int(epoch) > _MAX_EPOCH:
        return None
    return Line(datetime.fromtimestamp(int(epoch), tz=UTC), callid, queue, agent, verb, tuple(data))


class _Gone(NamedTuple):
    reason: LeftReason
    position: int
    wait: int


_GONE = {
    "ABANDON": _Gone("abandoned", 0, 2),
    "EXITWITHTIMEOUT": _Gone("timeout", 0, 2),
    "EXITEMPTY": _Gone("empty", 0, 2),
    "EXITWITHKEY": _Gone("key", 1, 3),
    "WITHDRAW": _Gone("withdrawn", 0, 2),
}
_ENDED_BY: dict[str, Literal["caller", "agent", "transfer"]] = {
    "COMPLETECALLER": "caller",
    "COMPLETEAGENT": "agent",
    "BLINDTRANSFER": "transfer",
    "ATTENDEDTRANSFER": "transfer",
}


@dataclass(slots=True)
class _Visit:
    queue: str
    number: int
    agent: str | None = None


@dataclass(slots=True)
class _Channel:
    """One caller's channel; `open` are the visits that neither left nor finished their talk."""

    visits: int = 0
    open: list[_Visit] = field(default_factory=list)


class QueueLog:
    """What one PBX's queue_log tells; `feed` its lines in the order of the file, each once.

    The call's id is the channel's Uniqueid, with `system` before it as in `Switch`. A visit's number is
    the n-th ENTERQUEUE of its channel, if the file is read from before that channel's first; otherwise
    `visit_after_hole`. The key is (PBX, the line without the caller's number, n-th equal line): the same
    at every reading that begins before the line's second. `unused` counts lines by verb, `odd` the lines
    that cannot be read.
    """

    def __init__(self, source: str, system: str = "") -> None:
        self.source, self.system = source, system
        self.unused: Counter[str] = Counter()
        self.odd = 0
        self._prefix = f"{system}-" if system else ""
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._equal: Counter[str] = Counter()
        self._last: datetime | None = None

    def feed(self, lines: Iterable[str]) -> list[Mapped]:
        """Map the next lines; odd lines are counted, never raised."""
        said: list[Mapped] = []
        for text in lines:
            line = parse(text)
            if line is None:
                self.odd += 1
                continue
            try:
                said.extend(self._facts(line))
            except (ValidationError, ValueError, IndexError):
                self.odd += 1
            self._last = line.at
        return said

    def _facts(self, line: Line) -> Iterator[Mapped]:
        match line.verb:
            case "ENTERQUEUE":
                yield from self._entered(line)
            case "CONNECT":
                yield from self._connected(line)
            case "RINGNOANSWER":
                yield from self._no_answer(line)
            case "COMPLETEAGENT" | "COMPLETECALLER":
                yield self._talked(line, self._key(line), _figure(line.data[0]), _figure(line.data[1]))
            case "BLINDTRANSFER" | "ATTENDEDTRANSFER":
                yield from self._transferred(line)
            case "QUEUESTART":
                yield from self._restarted(line)
            case verb if verb in _GONE:
                yield from self._gone(line)
            case verb:
                known = verb in self.unused or len(self.unused) < _MAX_VERBS
                self.unused[verb if known else "others"] += 1

    def _key(self, line: Line) -> str:
        data = (line.data[0], *line.data[2:]) if line.verb == "ENTERQUEUE" else line.data
        identity = "|".join((str(int(line.at.timestamp())), *line[1:5], *data))
        if self._last != line.at:
            self._equal.clear()  # equal lines are of one second
        self._equal[identity] += 1
        return f"{self._prefix}queue_log|{identity}|{self._equal[identity]}"

    # ------------------------------------------------------------ the life of a visit

    def _entered(self, line: Line) -> Iterator[Mapped]:
        position = _figure(line.data[2])
        channel = self._channel(line.callid)
        channel.visits += 1
        visit = _Visit(line.queue, channel.visits)
        channel.open.append(visit)
        yield self._say(line, self._key(line), telephony.CallQueued, visit, position=position)

    def _gone(self, line: Line) -> Iterator[Mapped]:
        how = _GONE[line.verb]
        wait, position = _figure(line.data[how.wait]), _figure(line.data[how.position])
        visit = self._close(line, wait)
        yield self._say(
            line,
            self._key(line),
            telephony.QueueLeft,
            visit,
            reason=how.reason,
            wait_ms=wait * 1000,
            position=position,
        )

    def _connected(self, line: Line) -> Iterator[Mapped]:
        hold, leg, ring = _figure(line.data[0]), line.data[1], _figure(line.data[2])
        visit = self._waiting(line) or self._missed(line, hold)
        visit.agent = line.agent
        yield self._say(
            line,
            self._key(line),
            telephony.CallAnswered,
            visit,
            agent=line.agent,
            wait_ms=hold * 1000,
            ring_ms=ring * 1000,
            agent_leg_id=f"{self._prefix}{leg}" if leg else None,
        )

    def _transferred(self, line: Line) -> Iterator[Mapped]:
        """The figures are the last three fields; what stands before them depends on the way of transfer."""
        key = self._key(line)
        hold, talk = _figure(line.data[-3]), _figure(line.data[-2])
        yield self._talked(line, key, hold, talk)
        blind = line.verb == "BLINDTRANSFER"
        yield self._say(
            line,
            key,
            telephony.CallTransferred,
            mode="blind" if blind else "attended",
            from_agent=line.agent,
            to=line.data[0] if blind else "",
        )

    def _talked(self, line: Line, key: str, hold: int, talk: int) -> Mapped:
        visit = self._close(line, hold + talk, talking=True)
        return self._say(
            line,
            key,
            telephony.TalkEnded,
            visit,
            agent=line.agent,
            talk_ms=talk * 1000,
            wait_ms=hold * 1000,
            ended_by=_ENDED_BY[line.verb],
        )

    def _no_answer(self, line: Line) -> Iterator[Mapped]:
        ring_ms = _figure(line.data[0])  # milliseconds, alone among the figures
        visit = self._waiting(line) or self._missed(line, 0)
        yield self._say(
            line,
            self._key(line),
            telephony.AgentOffered,
            visit,
            agent=line.agent,
            result="no_answer",
            ring_ms=ring_ms,
        )

    def _restarted(self, line: Line) -> Iterator[Mapped]:
        """The PBX began anew: whoever was waiting or talking has no further line."""
        key = self._key(line)
        gap_from = self._last if self._last is not None and self._last < line.at else line.at
        yield Mapped(
            f"{key}|SourceInterrupted",
            telephony.SourceInterrupted(
                source=self.source, reason="source_restarted", gap_from=gap_from, gap_to=line.at
            ),
        )
        for callid, channel in self._channels.items():
            call = line._replace(callid=callid)
            for visit in channel.open:
                if visit.agent is None:
                    left = call._replace(queue=visit.queue)
                    yield self._say(left, f"{key}|{callid}", telephony.QueueLeft, visit, reason="unknown")
            if channel.open:
                yield self._say(call, f"{key}|{callid}", telephony.CallEnded, cause="source_restarted")
        self._channels.clear()

    # ------------------------------------------------------------ channels and words

    def _channel(self, callid: str) -> _Channel:
        channel = self._channels.setdefault(callid, _Channel())
        self._channels.move_to_end(callid)
        if len(self._channels) > MAX_CHANNELS:
            self._channels.popitem(last=False)
        return channel

    def _waiting(self, line: Line) -> _Visit | None:
        same = [one for one in self._channel(line.callid).open if one.queue == line.queue]
        return next((one for one in reversed(same) if one.agent is None), None)

    def _close(self, line: Line, seconds: int, *, talking: bool = False) -> _Visit:
        """A new visit may stand before the end of the old one's talk, so the agent tells which it is."""
        agent = line.agent if talking else None
        open_visits = self._channel(line.callid).open
        for visit in open_visits:
            if (visit.queue, visit.agent) == (line.queue, agent):
                open_visits.remove(visit)
                return visit
        missed = self._missed(line, seconds)
        open_visits.remove(missed)
        return missed

    def _missed(self, line: Line, seconds: int) -> _Visit:
        """The entry stands before the place where the reading began."""
        channel = self._channel(line.callid)
        joined = line.at - timedelta(seconds=seconds)
        channel.visits = visit_after_hole(began_at(line.callid), joined, channel.visits)
        visit = _Visit(line.queue, channel.visits)
        channel.open.append(visit)
        return visit

    def _say(
        self, line: Line, key: str, kind: type[Body], visit: _Visit | None = None, **fields: Any
    ) -> Mapped:
        of_visit = {"queue": visit.queue, "visit": visit.number} if visit is not None else {}
        channel = f"{self._prefix}{line.callid}"
        body = kind(
            call_id=channel, leg_id=channel, source=self.source, occurred_at=line.at, **of_visit, **fields
        )
        return Mapped(f"{key}|{kind.__name__}", body)


def _figure(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise ValueError("a figure that is no number")
    return int(text)
