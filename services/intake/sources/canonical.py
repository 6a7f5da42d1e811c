"""What every source gives: canonical call events with the identity of the fact, not of its reading. Pure."""

from dataclasses import dataclass

from schemas.envelope import Body
from services.intake.sources.sequence import Place


@dataclass(frozen=True, slots=True)
class Mapped:
    """One canonical event: `key` is the same whenever the same fact is read; `phone` is not sealed yet.

    `phone` belongs to `CallOffered.caller` or `CallbackRequested.number`; it is as the source gave it.
    """

    key: str
    body: Body
    phone: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one delivery of a source says: its facts, and the name of a type that means nothing to us.

    `delivery` is the source's own id of the delivery: the same again is a duplicate. `place` is where it
    stands in a feed that numbers its events, or up to where the feed says that it has come.
    """

    delivery: str
    facts: tuple[Mapped, ...] = ()
    unknown: str | None = None
    place: Place | None = None


class BadPayload(ValueError):
    """A payload that cannot be read: `path` names the field, `problem` says what is wrong with it.

    `place` is where it stands in a feed that numbers its events, so far as that could be read: it has come.
    """

    def __init__(self, path: str, problem: str, place: Place | None = None) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem, self.place = path, problem, place
