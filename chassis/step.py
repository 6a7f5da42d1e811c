"""What a decision sees and what it may answer: pure values, nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from schemas.envelope import Body, MessageType

B_co = TypeVar("B_co", bound=Body, covariant=True)


class Event(NamedTuple, Generic[B_co]):
    """One message as a decision sees it; `sequence` is its writer's count for `key`, 0 if it has none."""

    uid: UUID
    name: str
    kind: MessageType
    key: str
    body: B_co
    at: datetime
    correlation: str
    traceparent: bytes | None = None
    sequence: int = 0

    @property
    def writer(self) -> str:
        """Who said it: the stage that its type is named for."""
        return self.kind.name.partition(".")[0]


class Timer(NamedTuple):
    """Wake this case at `due_at`; a timer of the same name replaces the earlier one."""

    name: str
    due_at: datetime


class Cancel(NamedTuple):
    """Forget the timer of this name, if it is set."""

    name: str


@dataclass(frozen=True, slots=True)
class Task:
    """Work at the edge that the decision asks for, done after the commit (tell a customer, say)."""

    name: str
    due_at: datetime
    data: Body


class Step(NamedTuple):
    """The case moves on: its new state, what is said about it, what is to be done later."""

    state: Body
    events: tuple[Body, ...] = ()
    timers: tuple[Timer | Cancel, ...] = ()
    tasks: tuple[Task, ...] = ()
    correlation: str | None = None
    note: str = "noted"


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing follows, and that is right; the reason is kept as the input's receipt."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The input may not be carried out: a command gets this as its verdict, an event is quarantined."""

    code: str
    explanation: str
    current_state: str = "none"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The case is not here yet: keep the input until it comes, or until the wait is too long."""

    reason: str


Outcome: TypeAlias = Step | Ignored | Refused | Waiting
Decider: TypeAlias = Callable[[Event[Any], Any, datetime, Any], Outcome]
Decisions: TypeAlias = Mapping[type[Body], Decider]
