"""From Asterisk's manager events to canonical call events: one switch's feed, no IO.

What Asterisk says and what it means differ (measured on recordings of 22.10): `QueueCallerAbandon`
also stands for timeout and withdrawal, leaving by a key fires nothing but a leave, a refused caller
fires nothing at all unless the dialplan raises a UserEvent, and `AgentComplete` may come without any
channel. The dialplan must raise `IvrIdentified`, `QueueRefused`, `CallbackRequested`, `SurveyAnswer`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from schemas import telephony
from schemas.envelope import Body
from services.intake.ami import Block, blocks, recorded_chunks

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


@dataclass(frozen=True, slots=True)
class Mapped:
    """One canonical event: `key` is the same whenever the same fact is read; `phone` is not sealed yet."""

    key: str
    body: Body
    phone: str | None = None


@dataclass(slots=True)
class _Visit:
    queue: str
    number: int
    position: int
    talk_of: str | None = None
    left_at: Block | None = None
    abandoned: Block | None = None


@dataclass(slots=True)
class _Call:
    visits: int = 0
    visit: _Visit | None = None
    talks: list[_Visit] = field(default_factory=list)
    offered_at: datetime | None = None


LINGER = timedelta(milliseconds=500)
"""A contact's last facts may arrive just after its end mark (measured: up to six events, within
milliseconds), so the end is told a moment later."""


class Switch:
    """What one PBX is doing, as far as its feed tells; `feed` each block in the order of arrival."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.unused: Counter[str] = Counter()
        self._calls: dict[str, _Call] = {}
        self._waiting: dict[str, list[tuple[str, _Visit]]] = {}
        self._ending: dict[str, Block] = {}

    def feed(self, block: Block) -> list[Mapped]:
        """Map one manager event; raises ValueError when the switch sends no timestamps."""
        name = block.get("Event", "")
        handle = _HANDLERS.get(f"UserEvent.{block.get('UserEvent')}" if name == "UserEvent" else name)
        if handle is None:
            self.unused[name] += 1
            return []
        if "Timestamp" not in block:
            raise ValueError(
                f"{self.source}: {name} has no Timestamp; set timestampevents=yes in manager.conf and reload"
            )
        return [*self.settle(_time(block) - LINGER), *handle(self, block)]

    def settle(self, until: datetime | None = None) -> list[Mapped]:
        """Tell the end of calls that ended before `until`; of all of them when the feed is idle."""
        over = [call_id for call_id, block in self._ending.items() if until is None or _time(block) <= until]
        return [event for call_id in over for event in self._ended(self._ending.pop(call_id))]

    # ------------------------------------------------------------ the life of a call

    def _offered(self, block: Block) -> Iterator[Mapped]:
        """The caller is known to the dialplan; a call that skips it is offered with its first queue."""
        call_id = block.get("Linkedid", "")
        if not call_id or call_id in self._calls:
            return
        self._calls[call_id] = _Call(offered_at=_time(block))
        phone = block.get("CallerIDNum", "")
        yield self._say(
            block,
            telephony.CallOffered,
            phone=phone if phone.lstrip("+").isdigit() else None,
            dialled=block.get("Exten", ""),
            language=block.get("Language") or None,
        )

    def _joined(self, block: Block) -> Iterator[Mapped]:
        yield from self._offered(block)
        call = self._calls[block["Linkedid"]]
        call.visits += 1
        position = _number(block, "Position") or 1
        visit = call.visit = _Visit(block["Queue"], call.visits, position)
        self._waiting.setdefault(visit.queue, []).append((block["Linkedid"], visit))
        yield self._say(block, telephony.CallQueued, queue=visit.queue, visit=visit.number, position=position)

    def _left(self, block: Block) -> Iterator[Mapped]:
        """Why is not known yet: an answer, a key or a hang-up follows; the others move up."""
        call = self._calls.get(block.get("Linkedid", ""))
        if call is None or call.visit is None:
            return
        gone = call.visit
        gone.left_at = block
        queue = self._waiting.get(gone.queue, [])
        queue[:] = [entry for entry in queue if entry[1] is not gone]
        for other_id, other in queue:
            if other.position > gone.position:
                other.position -= 1
                yield Mapped(
                    f"{_key(block)}|moves|{other_id}",
                    telephony.CallPositioned(
                        call_id=other_id,
                        source=self.source,
                        occurred_at=_time(block),
                        queue=other.queue,
                        visit=other.number,
                        position=other.position,
                        waiting=len(queue),
                        inferred=True,
                    ),
                )

    def _gave_up(self, block: Block) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None and call.visit is not None:
            call.visit.abandoned = block
        yield from ()

    def _refused(self, block: Block) -> Iterator[Mapped]:
        """The dialplan says how the queue ended: a visit that left, or one that never began."""
        status = block.get("Status", "")
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None and call.visit is not None:
            yield from self._explained(block, call, _LEFT_BY_STATUS.get(status, "unknown"))
        else:
            yield from self._offered(block)
            reason = _REFUSED_BY_STATUS.get(status, "unknown")
            yield self._say(block, telephony.CallRefused, queue=block["Queue"], reason=reason)

    def _explained(self, block: Block, call: _Call, reason: LeftReason) -> Iterator[Mapped]:
        visit = call.visit
        if visit is None:
            return
        call.visit = None
        moment = visit.abandoned or visit.left_at or block
        hold = _number(visit.abandoned, "HoldTime") if visit.abandoned else None
        yield self._say(
            {**block, "Timestamp": moment["Timestamp"]},
            telephony.QueueLeft,
            queue=visit.queue,
            visit=visit.number,
            reason=reason,
            wait_ms=hold * 1000 if hold is not None else None,
            position=visit.position,
        )

    def _connected(self, block: Block) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is None or call.visit is None:
            self.unused["AgentConnect without a queue visit"] += 1
            return
        visit, call.visit = call.visit, None
        visit.talk_of = block.get("Interface", "")
        call.talks.append(visit)
        yield self._say(
            block,
            telephony.CallAnswered,
            queue=visit.queue,
            visit=visit.number,
            agent=_agent(block),
            wait_ms=(_number(block, "HoldTime") or 0) * 1000,
            ring_ms=(_number(block, "RingTime") or 0) * 1000,  # seconds here, unlike AgentRingNoAnswer
            agent_leg_id=block.get("DestUniqueid"),
        )

    def _talked(self, block: Block) -> Iterator[Mapped]:
        found = self._talk(block)
        if found is None:
            self.unused["AgentComplete without a talk"] += 1
            return
        call_id, visit = found
        reason = block.get("Reason", "")
        ended_by = reason if reason in ("caller", "agent", "transfer") else "unknown"
        yield self._say(
            {**block, "Linkedid": call_id},
            telephony.TalkEnded,
            queue=visit.queue,
            visit=visit.number,
            agent=_agent(block),
            talk_ms=(_number(block, "TalkTime") or 0) * 1000,
            wait_ms=(_number(block, "HoldTime") or 0) * 1000,
            ended_by=ended_by,
        )

    def _talk(self, block: Block) -> tuple[str, _Visit] | None:
        """Find the talk that ended; without channel fields, by queue and agent's interface."""
        linked = block.get("Linkedid")
        candidates = [linked] if linked else list(self._calls)
        for call_id in candidates:
            call = self._calls.get(call_id)
            for visit in call.talks if call else ():
                if visit.queue == block.get("Queue") and visit.talk_of == block.get("Interface"):
                    assert call is not None
                    call.talks.remove(visit)
                    return call_id, visit
        return None

    def _hung_up(self, block: Block) -> Iterator[Mapped]:
        """The caller's own channel carries the contact's id; its end is the contact's end."""
        call_id = block.get("Linkedid", "")
        if block.get("Uniqueid") == call_id and call_id in self._calls:
            self._ending.setdefault(call_id, block)
        yield from ()

    def _ended(self, block: Block) -> Iterator[Mapped]:
        call = self._calls[block["Linkedid"]]
        if call.visit is not None:
            reason: LeftReason = "abandoned" if call.visit.abandoned else "key"
            yield from self._explained(block, call, reason)
        del self._calls[block["Linkedid"]]
        began = call.offered_at or _time(block)
        total = int((_time(block) - began).total_seconds() * 1000)
        cause = f"hangup_{block.get('Cause', '0')}"
        yield self._say(block, telephony.CallEnded, cause=cause, total_ms=max(0, total))

    # ------------------------------------------------------------ beside it

    def _ringing(self, block: Block) -> Iterator[Mapped]:
        yield from self._agent_tried(block, "ringing", None)

    def _no_answer(self, block: Block) -> Iterator[Mapped]:
        yield from self._agent_tried(block, "no_answer", _number(block, "RingTime"))

    def _agent_tried(
        self, block: Block, result: Literal["ringing", "no_answer"], ring_ms: int | None
    ) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None:
            yield self._say(
                block,
                telephony.AgentOffered,
                queue=block["Queue"],
                visit=max(1, call.visits),
                agent=_agent(block),
                result=result,
                ring_ms=ring_ms,
            )

    def _callback(self, block: Block) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None:
            yield from self._explained(block, call, "key")
            number = block.get("Number") or None
            yield self._say(block, telephony.CallbackRequested, phone=number, queue=block["Queue"])

    def _surveyed(self, block: Block) -> Iterator[Mapped]:
        status = block.get("Status", "").lower()
        known = status if status in ("ok", "timeout", "hangup") else "invalid"
        digits = block.get("Score", "")
        yield self._say(block, telephony.SurveyAnswered, question="satisfaction", digits=digits, status=known)

    def _held(self, block: Block) -> Iterator[Mapped]:
        call = self._calls.get(block.get("Linkedid", ""))
        if call is not None:
            yield self._say(block, telephony.CallHeld, held=block["Event"] == "Hold")

    def _transferred_blind(self, block: Block) -> Iterator[Mapped]:
        yield from self._transferred(block, "blind", "TransfererLinkedid", block.get("Extension", ""))

    def _transferred_attended(self, block: Block) -> Iterator[Mapped]:
        target = block.get("TransferTargetExten", "")
        yield from self._transferred(block, "attended", "OrigTransfererLinkedid", target)

    def _transferred(
        self, block: Block, mode: Literal["blind", "attended"], linked: str, to: str
    ) -> Iterator[Mapped]:
        call = self._calls.get(block.get(linked, ""))
        if call is None or block.get("Result") != "Success":
            return
        agent = call.talks[-1].talk_of if call.talks else None
        yield self._say(
            {**block, "Linkedid": block[linked]},
            telephony.CallTransferred,
            mode=mode,
            from_agent=agent,
            to=to,
            to_kind="external" if block.get("IsExternal") == "Yes" else "unknown",
        )

    def _say(self, block: Block, kind: type[Body], *, phone: str | None = None, **fields: Any) -> Mapped:
        body = kind(
            call_id=block["Linkedid"],
            source=self.source,
            leg_id=block.get("Uniqueid"),
            occurred_at=_time(block),
            **fields,
        )
        return Mapped(f"{_key(block)}|{kind.__name__}", body, phone)


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


def _key(block: Block) -> str:
    parts = (block.get(name, "") for name in ("Event", "Uniqueid", "Queue", "Interface", "Timestamp"))
    return "|".join(parts)


def _time(block: Block) -> datetime:
    return datetime.fromtimestamp(float(block["Timestamp"]), tz=UTC)


def _number(block: Block, name: str) -> int | None:
    text = block.get(name, "")
    return int(text) if text.isdigit() else None


def _agent(block: Block) -> str:
    return block.get("MemberName") or block.get("Interface") or "unknown"
