"""Counts what the whole log says: calls, cases, handoffs without effect, times; reads headers and bodies."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from chassis.kafka import reader
from cli.world import Place
from schemas import feedback, intake, operations, resolver, router, telephony
from schemas.envelope import BY_WIRE, Body
from schemas.handoffs import obligations_of
from schemas.topics import STAGES, TOPICS

_SOURCE = b"/hotline/"
_OBLIGED: dict[type[Body], tuple[str, ...]] = {}
"""The groups that owe an answer to an event, each its own."""
for _group in STAGES:
    for _on in obligations_of(_group):
        _OBLIGED[_on] = (*_OBLIGED.get(_on, ()), _group)


@dataclass(slots=True)
class Tally:
    """What was counted so far.

    `over`: the calls whose own end was told; of others their legs are told of, those that began and those
    that are over, and the stays: which leg each was on, None where no fact names one.
    """

    types: Counter[str] = field(default_factory=Counter)
    offered: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    legs: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    stays: defaultdict[str, dict[int, str | None]] = field(default_factory=lambda: defaultdict(dict))
    legs_over: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    abandoned: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    contacts_closed: dict[str, str] = field(default_factory=dict)
    calls_with_case: set[str] = field(default_factory=set)
    recorded: dict[str, float] = field(default_factory=dict)
    delivered: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    resolved: set[str] = field(default_factory=set)
    rated: set[str] = field(default_factory=set)
    reopened: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    departments: Counter[str] = field(default_factory=Counter)
    obliged: dict[tuple[str, str], str] = field(default_factory=dict)
    effects: set[tuple[str, str]] = field(default_factory=set)
    requested_at: dict[str, float] = field(default_factory=dict)
    dead: int = 0

    def take(self, record: Any) -> None:
        """Count one record of any topic."""
        headers = dict(record.headers)
        wire = headers.get("ce_type", b"").decode(errors="replace")
        kind = BY_WIRE.get(wire)
        if kind is None:
            return
        self.types[kind.name] += 1
        event_id = headers["ce_id"].decode()
        cause = headers.get("ce_causationid")
        if cause is not None:
            source = headers.get("ce_source", b"").removeprefix(_SOURCE)
            self.effects.add((cause.decode(), source.decode(errors="replace")))
        for group in _OBLIGED.get(kind.body, ()):
            self.obliged[event_id, group] = kind.name
        if kind.body in _COUNTED:
            body = kind.body.parse(record.value)
            _COUNTED[kind.body](self, body, record.timestamp / 1000, headers)

    # ------------------------------------------------------------ what it amounts to

    @property
    def ended(self) -> set[str]:
        """The calls that are over: with the last of their legs, where only those are told to end."""
        return self.over | {call for call, over in self.legs_over.items() if self._begun(call) <= over}

    def _begun(self, call_id: str) -> set[str]:
        """The legs that somebody was on, as intake counts them: where a stay names none, the first."""
        stays = self.stays.get(call_id, {}).values()
        return self.legs.get(call_id, set()) | {leg or call_id for leg in stays}

    @property
    def without_effect(self) -> list[str]:
        """The handoffs that their group has not answered: no event, no receipt, no dead letter of its own."""
        return [
            f"{name}→{group} {event_id}"
            for (event_id, group), name in self.obliged.items()
            if (event_id, group) not in self.effects
        ]

    @property
    def unexplained_calls(self) -> set[str]:
        """Offered calls that ended neither in a case nor in a closed contact."""
        return self.offered - self.calls_with_case - set(self.contacts_closed)

    @property
    def open_cases(self) -> set[str]:
        """Cases that were recorded and are not closed."""
        return set(self.recorded) - self.closed

    @property
    def finished(self) -> bool:
        """Whether everything that began has ended."""
        return not (
            self.offered - self.ended or self.unexplained_calls or self.open_cases or self.without_effect
        )

    def latency(self, ends: dict[str, float]) -> dict[str, float | None]:
        """Milliseconds from the agent's record to a milestone: p50 and p99, None without cases."""
        times = [1000 * (ends[case] - self.recorded[case]) for case in ends if case in self.recorded]
        if len(times) < 2:
            return {"p50": None, "p99": None}
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}

    def summary(self) -> dict[str, Any]:
        """Everything a person or a script wants to know at the end."""
        return {
            "calls": {
                "offered": len(self.offered),
                "answered": len(self.answered),
                "abandoned": len(self.abandoned),
                "refused": len(self.refused),
                "ended": len(self.ended),
            },
            "cases": {
                "recorded": len(self.recorded),
                "answered_on_first_contact": self.types["intake.case-answered"],
                "delivered": len(self.delivered),
                "returned": self.types["resolver.case-returned"],
                "withdrawn": self.types["resolver.case-withdrawn"],
                "resolved": len(self.resolved),
                "told": len(self.told),
                "rated": len(self.rated),
                "reopened": len(self.reopened),
                "closed": len(self.closed),
            },
            "routed": dict(sorted(self.departments.items())),
            "contacts_closed": len(self.contacts_closed),
            "contacts_closed_for": dict(Counter(self.contacts_closed.values())),
            "handoffs": {"total": len(self.obliged), "without_effect": len(self.without_effect)},
            "dead_letters": self.dead,
            "latency_ms": {
                "recorded_to_delivered": self.latency(self.delivered),
                "recorded_to_told": self.latency(self.told),
            },
        }


def _call(name: str) -> Any:
    def count(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
        getattr(tally, name).add(body.call_id)

    return count


def _case(name: str) -> Any:
    def count(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
        getattr(tally, name).add(str(body.case_id))

    return count


def _first(name: str) -> Any:
    def count(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
        getattr(tally, name).setdefault(str(body.case_id), at)

    return count


def _offered(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.offered.add(body.call_id)
    tally.legs[body.call_id].add(body.call_id)


def _transferred(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    if body.leg_id not in (None, body.call_id):
        tally.legs[body.call_id].add(body.leg_id)


def _stayed(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    stays = tally.stays[body.call_id]
    named = [leg for leg in (stays.get(body.visit), body.leg_id) if leg is not None]
    stays[body.visit] = min(named, default=None)


def _positioned(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    if not body.inferred:
        _stayed(tally, body, at, headers)


def _answered(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.answered.add(body.call_id)
    _stayed(tally, body, at, headers)


def _ended(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    if not body.leg_only:
        tally.over.add(body.call_id)
        return
    tally.legs_over[body.call_id].add(body.leg_id or body.call_id)


def _left(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    _stayed(tally, body, at, headers)
    if body.reason == "abandoned":
        tally.abandoned.add(body.call_id)


def _requested(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.requested_at[headers["ce_id"].decode()] = at


def _recorded(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    cause = headers.get("ce_causationid", b"").decode()
    tally.recorded.setdefault(str(body.case_id), tally.requested_at.get(cause, at))
    tally.calls_with_case.add(body.case.call_id)


def _contact_closed(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.contacts_closed[body.call_id] = body.reason


def _attached(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.calls_with_case.add(body.call_id)


def _routed(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.departments[body.department] += 1


def _receipts(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    for given in body.receipts:
        tally.effects.update((event_id, body.group) for event_id in given.event_ids)


def _died(tally: Tally, body: Any, at: float, headers: dict[str, bytes]) -> None:
    tally.dead += 1


_COUNTED: dict[type[Body], Any] = {
    telephony.CallOffered: _offered,
    telephony.CallQueued: _stayed,
    telephony.CallPositioned: _positioned,
    telephony.CallAnswered: _answered,
    telephony.TalkEnded: _stayed,
    telephony.CallTransferred: _transferred,
    telephony.CallEnded: _ended,
    telephony.CallRefused: _call("refused"),
    telephony.QueueLeft: _left,
    intake.RecordingRequested: _requested,
    intake.CaseRecorded: _recorded,
    intake.CaseAnswered: _recorded,
    intake.ContactClosed: _contact_closed,
    intake.ContactAttached: _attached,
    router.CaseRouted: _routed,
    resolver.CaseAssigned: _first("delivered"),
    resolver.CaseResolved: _case("resolved"),
    feedback.CustomerTold: _first("told"),
    feedback.SatisfactionRecorded: _case("rated"),
    feedback.CaseReopened: _case("reopened"),
    feedback.CaseClosed: _case("closed"),
    operations.ReceiptsGiven: _receipts,
    operations.LetterDied: _died,
}


class Counting:
    """Reads every topic from the beginning and keeps a tally."""

    def __init__(self, place: Place) -> None:
        topics = [topic.name for topic in TOPICS]
        self._consumer = reader(place.kafka, *topics)
        self.tally = Tally()

    async def start(self) -> None:
        """Connect."""
        await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def read_on(self, seconds: float = 0.2) -> int:
        """Count what has come; returns how many records there were, without the stages' watermarks."""
        polled = await self._consumer.getmany(timeout_ms=int(seconds * 1000))
        taken = 0
        for records in polled.values():
            for record in records:
                self.tally.take(record)
                taken += not record.topic.endswith(operations.WATERMARKS)
        return taken
