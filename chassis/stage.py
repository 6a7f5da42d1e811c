"""A stage as data: what it reads, decides and says; the runner and the tests read this."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

from chassis.copies import Copy
from chassis.plan import DueTask
from chassis.postgres import Tx
from chassis.step import Decisions, Event
from schemas.envelope import BY_BODY, Body, Kind, MessageType
from schemas.topics import inputs_of

Worker: TypeAlias = Callable[[Sequence[DueTask]], Awaitable[Sequence[Body]]]
"""Does tasks of one kind at the edge; gives one command per task, in the same order."""


Prepare: TypeAlias = Callable[[Tx, Sequence[Event[Any]], Any], Awaitable[Any]]
"""Reads what the decisions of a batch need beyond the case itself; gives the batch's policy."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the four stages: its decisions by input, its state and copies of it, the events it may say.

    `gather` is how long records may wait for others before a batch begins: fewer and larger batches for
    a stage that nobody waits for within milliseconds.
    """

    name: str
    state: type[Body]
    phase: Callable[[Any], str]
    decisions: Decisions
    emits: tuple[type[Body], ...]
    timer_fired: type[Body]
    command_refused: type[Body]
    policy: Any = None
    prepare: Prepare | None = None
    copies: tuple[Copy, ...] = ()
    wait_at_most: timedelta = timedelta(minutes=10)
    gather: timedelta = timedelta(0)
    workers: Mapping[str, Worker] = field(default_factory=dict)

    @property
    def handled(self) -> dict[str, MessageType]:
        """The wire types that this stage decides on."""
        return {BY_BODY[body].wire: BY_BODY[body] for body in self.decisions}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics that this stage's consumer group reads."""
        return inputs_of(self.name)

    @property
    def command_topic(self) -> str:
        """The topic on which the stage's own timers and tasks report back."""
        return str(BY_BODY[self.timer_fired].topic)

    def is_command(self, kind: MessageType) -> bool:
        """Tell whether a message asks for a verdict rather than stating a fact."""
        return kind.kind is Kind.COMMAND
