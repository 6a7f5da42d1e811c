"""Who owes what, as the observer needs it: the contract's handoffs and topics, turned round. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas import feedback, intake, operations, resolver, router
from schemas.envelope import BY_BODY, Body
from schemas.handoffs import HANDOFFS, Deferred, Handoff
from schemas.topics import DEPARTMENTS, STAGES, TOPICS

ALARMS: frozenset[type[Body]] = frozenset(
    {
        intake.RecordingOverdue,
        intake.CallbackOverdue,
        router.TriageOverdue,
        resolver.CaseEscalated,
        feedback.TellingOverdue,
    }
)
"""Events with which a stage's timer says that nobody has acted: they prove the timer, not the act."""


SET_ELSEWHERE: frozenset[type[Body]] = frozenset({resolver.CaseDelivered})
"""Events whose deadline another stage has set, by its own clock (the router's `accept_due`)."""
MARGIN_MS = 1_000
"""A deadline is computed from the event's time, and the stage's own from its clock a moment before."""
CLOCKS_APART_MS = 10 * 60 * 1000
"""So far two stages' clocks may differ: each may be five minutes wrong."""


@dataclass(frozen=True, slots=True)
class Owed:
    """One edge: this group must answer events of that type."""

    edge: str
    group: str


@dataclass(frozen=True, slots=True)
class Later:
    """One deferred edge: what must follow `within_ms`, and whose timers prove it.

    `numbered` tells whether what follows is numbered together with what obliges, so that earlier
    acts can be told from later ones. `margin_ms` after the deadline the stage's timer has surely fired.
    `department`: who is late, whoever has held the case; None: who holds it.
    """

    edge: str
    stage: str
    acts: frozenset[bytes]
    alarms: frozenset[bytes]
    within_ms: int
    numbered: bool
    margin_ms: int = MARGIN_MS
    department: str | None = None


@dataclass(frozen=True, slots=True)
class Contract:
    """Everything that the ledger knows of the pipeline.

    `owed` and `later` by wire type; `answers_on` and `reads` name topics by group; `group_of` tells
    the group by its `ce_source`.
    """

    owed: Mapping[bytes, tuple[Owed, ...]]
    later: Mapping[bytes, Later]
    answers_on: Mapping[str, frozenset[str]]
    reads: Mapping[str, frozenset[str]]
    commands: Mapping[str, frozenset[str]]
    group_of: Mapping[bytes, str]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups whose handoffs are proved."""
        return tuple(self.answers_on)

    @property
    def edges(self) -> tuple[str, ...]:
        """Every edge, immediate ones first."""
        immediate = [owed.edge for owes in self.owed.values() for owed in owes]
        return (*immediate, *(later.edge for later in self.later.values()))


CANARY = Owed(f"{BY_BODY[operations.CanarySung].name}→{operations.CANARY_GROUP}", operations.CANARY_GROUP)


def contract_of(handoffs: Iterable[Handoff] = HANDOFFS) -> Contract:
    """Turn the table of handoffs round; adds the canary's edge, which nobody ever answers."""
    owed: dict[bytes, tuple[Owed, ...]] = {}
    later: dict[bytes, Later] = {}
    for handoff in handoffs:
        wire = BY_BODY[handoff.on].wire.encode()
        if handoff.group in STAGES:
            owed[wire] = (*owed.get(wire, ()), Owed(handoff.edge, handoff.group))
        if handoff.deferred is not None:
            later[wire] = _later(handoff, handoff.deferred)
    owed[BY_BODY[operations.CanarySung].wire.encode()] = (CANARY,)
    groups = (*STAGES, operations.CANARY_GROUP)
    return Contract(
        owed=owed,
        later=later,
        answers_on={group: _written_by(group) for group in groups},
        reads={group: _read_by(group) for group in groups},
        commands={
            stage: frozenset(topic for topic in _read_by(stage) if _carries_timers(topic, stage))
            for stage in STAGES
        },
        group_of={f"/hotline/{stage}".encode(): stage for stage in STAGES},
    )


def _later(handoff: Handoff, deferred: Deferred) -> Later:
    kinds = [BY_BODY[body] for body in deferred.later]
    stage = kinds[0].name.split(".")[0]
    edge = handoff.edge if handoff.group not in STAGES else f"{handoff.edge} in time"
    return Later(
        edge=edge,
        stage=stage,
        acts=frozenset(kind.wire.encode() for kind in kinds if kind.body not in ALARMS),
        alarms=frozenset(kind.wire.encode() for kind in kinds if kind.body in ALARMS),
        within_ms=int(deferred.within.total_seconds() * 1000),
        numbered=BY_BODY[handoff.on].name.split(".")[0] == stage,
        margin_ms=CLOCKS_APART_MS if handoff.on in SET_ELSEWHERE else MARGIN_MS,
        department=deferred.owner if deferred.owner in DEPARTMENTS else None,
    )


def _written_by(group: str) -> frozenset[str]:
    """Where a group's effects can be: every topic that it writes, but for its word about its timers."""
    found = {
        topic.name for topic in TOPICS if group in topic.written_by and topic.name != operations.WATERMARKS
    }
    return frozenset(found or {operations.RECEIPTS})


def _read_by(group: str) -> frozenset[str]:
    return frozenset(topic.name for topic in TOPICS if group in topic.read_by)


def _carries_timers(topic: str, stage: str) -> bool:
    """A stage's timers come to it as commands on the topic that it writes and reads itself."""
    return any(entry.name == topic and stage in entry.written_by for entry in TOPICS)
