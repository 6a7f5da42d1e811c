"""How many agents a load of calls takes: Erlang B, C and A. Pure.

A load is given in erlang: calls per interval x average handling time / interval (`offered_load`).
The formulas hold for a steady state: calls come at random at one rate, one queue, first come first
served. An interval is taken as long enough to get there, as every staffing table does.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction

MOST_ERLANG = 20_000.0
"""More than any hotline carries; beyond it the input has the wrong unit."""
MOST_PATIENCE = timedelta(days=1)
"""Nobody holds the line longer; who waits for ever is Erlang C."""
_NEGLIGIBLE = 1e-17  # of a sum so far: below what a float can add to it


def offered_load(calls: float, aht: timedelta, interval: timedelta) -> float:
    """Load of so many calls per interval, in erlang: agents that would be busy if nobody waited.

    Raises ValueError for a negative number of calls or a duration that is not positive.
    """
    _positive(aht=aht, interval=interval)
    if not calls >= 0:
        raise ValueError(f"{calls} calls cannot be a load; give a number of calls, 0 or more")
    return calls * (aht / interval)


def blocking(agents: int, load: float) -> float:
    """Share of calls that find all agents busy when nobody may wait (Erlang B); load in erlang.

    Recursion over the agents, A. K. Erlang 1917: stable for any size. Raises ValueError for bad numbers.
    """
    _countable(agents, load)
    blocked = 1.0
    for agent in range(1, agents + 1):
        blocked = load * blocked / (agent + load * blocked)
    return blocked


def wait_probability(agents: int, load: float) -> float:
    """Share of calls that must wait when everybody waits until answered (Erlang C); load in erlang.

    1 when the load is more than the agents can carry. Raises ValueError for bad numbers.
    """
    blocked = blocking(agents, load)
    if agents <= load:
        return 1.0
    return blocked / (1 - load / agents * (1 - blocked))


def average_speed_of_answer(agents: int, load: float, aht: timedelta) -> timedelta | None:
    """Mean wait of all calls, those answered at once included (Erlang C); load in erlang.

    None when the load is more than the agents can carry: the queue grows, no mean exists.
    Raises ValueError for bad numbers.
    """
    _positive(aht=aht)
    waits = wait_probability(agents, load)
    return aht * (waits / (agents - load)) if agents > load else None


def service_level(
    agents: int, load: float, aht: timedelta, within: timedelta, patience: timedelta | None = None
) -> float:
    """Share of all calls that are answered within a time; load in erlang.

    Erlang C without `patience`: 0 when the load is more than the agents can carry. With the mean
    patience of callers Erlang A: whoever gives up counts as not answered, however soon.
    Raises ValueError for bad numbers.
    """
    _positive(aht=aht)
    if not within >= timedelta():
        raise ValueError(f"an answer within {within} is impossible; give 0 s or more")
    if patience is not None:
        return ErlangA(agents, load, aht, patience).service_level(within)
    _countable(agents, load)
    if agents <= load:
        return 0.0
    return 1 - wait_probability(agents, load) * math.exp(-(agents - load) * (within / aht))


def occupancy(agents: int, load: float, abandonment: float = 0.0) -> float | None:
    """Share of the agents' time that is spent on calls; load in erlang, `abandonment` of all calls.

    None without agents. Raises ValueError for bad numbers.
    """
    _countable(agents, load)
    return min(1.0, load * (1 - abandonment) / agents) if agents else None


@dataclass(frozen=True, slots=True)
class ErlangA:
    """A queue whose callers give up: patience is exponential with the given mean; load in erlang.

    C. Palm 1957; Mandelbaum and Zeltyn 2007, "The Palm/Erlang-A queue". With u = t / patience,
    x = agents * patience / aht and y = load * patience / aht, the wait t that an infinitely patient
    caller would have is distributed as exp(y(1 - exp(-u)) - xu), if there is a wait at all. Its tails,
    and those of the callers still there, are the series of `_log_series`, shifted: no integration.
    Raises ValueError for bad numbers.
    """

    agents: int
    load: float
    aht: timedelta
    patience: timedelta

    def __post_init__(self) -> None:
        _countable(self.agents, self.load)
        _positive(aht=self.aht, patience=self.patience)
        if self.patience > MOST_PATIENCE:
            raise ValueError(
                f"a patience of {self.patience} is not one of callers; leave it out for Erlang C"
            )

    @property
    def wait_probability(self) -> float:
        """Share of calls that must wait, answered later or not."""
        blocked = blocking(self.agents, self.load)
        return blocked / (blocked + (1 - blocked) * math.exp(-_log_series(self._x, self._y)))

    @property
    def abandonment(self) -> float:
        """Share of all calls that give up before they are answered."""
        if not self.agents:
            return 1.0
        if not self.load:
            return 0.0
        answered = self.agents / self.load * -math.expm1(-_log_series(self._x, self._y))
        return self.wait_probability * max(0.0, 1 - answered)

    @property
    def average_wait(self) -> timedelta:
        """Mean time in the queue over all calls, answered or not: abandonment x patience (Little's law)."""
        return self.abandonment * self.patience

    @property
    def occupancy(self) -> float | None:
        """Share of the agents' time that is spent on calls; None without agents."""
        return occupancy(self.agents, self.load, self.abandonment)

    def service_level(self, within: timedelta) -> float:
        """Share of all calls that are answered within a time."""
        if not self.agents:
            return 0.0
        waits = self.wait_probability
        in_time = self._answered_after(0.0) - self._answered_after(within / self.patience)
        return min(1.0, max(0.0, 1 - waits + waits * in_time))

    @property
    def _x(self) -> float:
        return self.agents * (self.patience / self.aht)

    @property
    def _y(self) -> float:
        return self.load * (self.patience / self.aht)

    def _answered_after(self, u: float) -> float:
        """Of those who must wait: share answered later than `u` patiences after they came."""
        x, y = self._x, self._y
        density = -y * math.expm1(-u) - (x + 1) * u
        tail = _log_series(x + 1, y * math.exp(-u)) - _log_series(x, y)
        return x / (x + 1) * math.exp(density + tail)


def agents_needed(
    load: float,
    aht: timedelta,
    *,
    target: float,
    within: timedelta,
    patience: timedelta | None = None,
    max_occupancy: float | None = None,
) -> int:
    """Fewest agents who answer the share `target` of calls within a time; load in erlang.

    Erlang C, or Erlang A with `patience`. No agent is needed for no load. `max_occupancy` keeps them
    from being busier than that share of their time. Raises ValueError for bad numbers.
    """
    if not 0 < target < 1:
        raise ValueError(f"a service level of {target} cannot be staffed for; give a share such as 0.8")
    if max_occupancy is not None and not 0 < max_occupancy <= 1:
        raise ValueError(f"an occupancy of {max_occupancy} is impossible; give a share such as 0.85")
    if load == 0:
        return 0

    def enough(agents: int) -> bool:
        if service_level(agents, load, aht, within, patience) < target:
            return False
        lost = 0.0 if patience is None else ErlangA(agents, load, aht, patience).abandonment
        busy = occupancy(agents, load, lost)
        return max_occupancy is None or busy is None or busy <= max_occupancy

    most = 1
    while not enough(most):
        most *= 2
    return bisect_left(range(most), True, key=enough)


def rostered(agents: int, shrinkage: float) -> int:
    """How many to roster so that so many are there; `shrinkage` is the share of breaks, training, absence.

    Raises ValueError for a share outside 0..1, or 1 itself.
    """
    return math.ceil(agents / (1 - _share(shrinkage)))


def present(agents_rostered: int, shrinkage: float) -> int:
    """How many of those rostered are there to answer; the inverse of `rostered`, rounded down."""
    return math.floor(agents_rostered * (1 - _share(shrinkage)))


def _share(shrinkage: float) -> Fraction:
    if not 0 <= shrinkage < 1:
        raise ValueError(f"a shrinkage of {shrinkage} leaves nobody; give a share of paid time such as 0.3")
    # As it was written, not as a float holds it: 7 / (1 - 0.3) must not round up to 11.
    return Fraction(str(shrinkage))


def _log_series(x: float, y: float) -> float:
    """Logarithm of 1 + y/(x+1) + y²/((x+1)(x+2)) + ..., all terms positive: stable at any size.

    Summed outwards from the largest term, which is what must not overflow.
    """
    peak = max(0, math.floor(y - x))
    top = peak * math.log(y) + math.lgamma(x + 1) - math.lgamma(x + 1 + peak) if peak else 0.0
    total, term, at = 1.0, 1.0, peak
    while term > total * _NEGLIGIBLE:
        at += 1
        term *= y / (x + at)
        total += term
    term, at = 1.0, peak
    while at and term > total * _NEGLIGIBLE:
        term *= (x + at) / y
        at -= 1
        total += term
    return top + math.log(total)


def _countable(agents: int, load: float) -> None:
    if agents < 0:
        raise ValueError(f"{agents} agents cannot answer; give a number of agents, 0 or more")
    if not 0 <= load <= MOST_ERLANG:
        raise ValueError(
            f"a load of {load} erlang is not one of a hotline; give calls x handling time / interval"
        )


def _positive(**durations: timedelta) -> None:
    for name, duration in durations.items():
        if duration <= timedelta():
            raise ValueError(f"{name} is {duration}; give a duration longer than 0 s")
